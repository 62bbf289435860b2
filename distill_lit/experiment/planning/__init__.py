"""From an experiment to its runs: grid, stages, identities, labels."""
