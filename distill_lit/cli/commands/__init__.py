"""The commands, one a file: `add_parser` adds its arguments, `run` does it and returns the exit code."""
