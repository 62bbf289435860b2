"""An experiment: its plan of runs, what each depends on, what builds and evaluates them, and what they left behind."""
