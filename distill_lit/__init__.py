"""distill-lit: distil causal language models, benchmark students against teachers, and say what was lost."""
