"""What `distill-lit` exits with; `--help` lists them."""

DONE, FAILED, BAD_INPUT, SOME_RUNS_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
