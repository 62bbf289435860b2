"""What a model costs to run: speed and latency (`inference`), `memory`, `energy`."""
