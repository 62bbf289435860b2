"""Engine slurm: runs as array jobs, submitted through submitit. What is done is read from disk, never from SLURM."""
