"""Evaluation: lm-eval's own tasks behind a fast exact harness, one record per document, each kept for ever.

evaluate.py   a model folder and the settings to records, from the store where they are there
tasks.py      names to tasks: our groups, lm-eval's groups and tags, tasks of your own
sources.py    where the documents of a task come from
index.py      what tasks lm-eval has, read once per installation
harness.py    log-likelihoods on packed prefix trees; packing.py builds the trees, forward.py runs them
records.py    lm-eval's samples to one row per document
surprisal.py  what the prompts are to the teacher: axes of the long tail
cost.py       what a model costs to run: speed, latency, energy.py, memory.py
store.py      content-addressed records on disk
quiet.py      lm-eval without its bars, its logging, and its hand on the random state
"""
