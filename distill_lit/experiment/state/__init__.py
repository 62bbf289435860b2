"""What the disk says of runs: who works on one, whether it is done, how long it took."""
