"""What every package uses and that knows none of them: files, processes, hardware, errors."""
