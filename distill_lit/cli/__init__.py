"""The command line, `distill-lit`: what it says, how it ends, and the commands."""
