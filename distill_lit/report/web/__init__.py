"""The page of an experiment and the index of all: one file each, nothing loaded from elsewhere."""
