"""`python -m distill_lit` is `distill-lit`."""

from distill_lit.cli import main

main()
