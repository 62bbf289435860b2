"""Minutes, memory, power and what `auto` means, before a run begins."""
