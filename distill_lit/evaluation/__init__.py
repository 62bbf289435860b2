"""Evaluation: lm-eval's own tasks behind a fast exact harness, one record per document, each kept for ever.

evaluator.py        a model folder, or a model in memory, and the settings to records; from the cache where they are there
task_evaluation.py  one task on one model: documents, lm-eval's own evaluation, the facts beside the rows
tasks.py            names to tasks: our groups, lm-eval's groups and tags, tasks of your own; task_index.py lists lm-eval's
task_data.py        where the documents of a task come from
prefix_tree_lm.py   lm-eval's model whose log-likelihoods come from packed prefix trees
prefix_tree_scorer.py  which sequences share a row and a prefix cache; prefix_tree.py builds the trees, scoring.py runs them
packing_support.py  which models can be packed: a self-check against plain forward passes
records.py          lm-eval's samples to one row per document; cache.py keeps them, addressed by content
surprisal.py        what the prompts are to the teacher: axes of the long tail
sandbox.py          tasks that run what a model writes
lm_eval_patches.py  lm-eval without its bars, its logging, and its hand on the random state
"""
