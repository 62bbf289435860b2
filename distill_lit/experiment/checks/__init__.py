"""What is refused before a run begins."""
