"""Seeds that depend on what is drawn and on nothing else."""

import numpy as np


def derive_seed(*numbers: int) -> int:
    """32 bits that depend on every number: torch's CPU generator looks at no more of its seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
