"""`python -m distill_lit` is `distill-lit`."""

from distill_lit.cli.main import main

main()
