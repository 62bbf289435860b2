"""Numbers from results: paired statistics, the Pareto frontier, the long tail, calibration. No prose, no torch."""
