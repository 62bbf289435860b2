"""Runs what of an experiment is not done: on this machine, or as jobs of SLURM."""
