"""Ranks of a training: who starts them, where their environment comes from, how one waits for the others."""
