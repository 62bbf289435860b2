"""Lightning callbacks: throughput, checkpoints, evaluation on the way, random state, termination, what is logged."""
