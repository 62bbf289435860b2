"""distill-lit: distil causal language models, benchmark students against teachers, and say what was lost."""

import logging

# torchao, where it is installed, complains on import of each CUDA library that a CPU machine lacks
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
