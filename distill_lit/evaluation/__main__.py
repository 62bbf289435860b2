"""`python -m distill_lit.evaluation` is lm-eval's own command line, which then knows `--model prefix_tree`."""

from lm_eval.__main__ import cli_evaluate

import distill_lit.evaluation.prefix_tree_lm  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
