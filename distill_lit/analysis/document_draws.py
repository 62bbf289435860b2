"""How often each document of several tasks is drawn, when documents are redrawn by cluster within their task."""

from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.bootstrap import bootstrap_seed, cluster_counts
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.slices import discovery_mask

MAX_DOCUMENT_DRAWS = 1000


class DocumentDraws:
    """Draws of the documents of an experiment; those of the same documents are made once."""

    def __init__(self, scores: Scores) -> None:
        self._panels = {panel.task: panel for panel in scores.responses.tasks}
        self._clusters = scores.results.documents["cluster"].astype(str)
        self._draws = min(scores.analysis.n_resamples, MAX_DOCUMENT_DRAWS)
        self._index = pd.MultiIndex.from_arrays([[], []])
        self._counts: FloatArray = np.empty((self._draws, 0))

    @cached_property
    def first_half(self) -> NDArray[np.bool_]:
        """Whether each document of the experiment is of the first half, by its cluster."""
        return discovery_mask(self._clusters)

    def counts(self, index: pd.MultiIndex) -> FloatArray:
        """(draws, D): how often each document of `index` is drawn."""
        if not self._index.equals(index):
            self._index, self._counts = index, self._draw(index)
        return self._counts

    def _draw(self, index: pd.MultiIndex) -> FloatArray:
        tasks = index.get_level_values("task")
        found = np.empty((self._draws, len(index)), np.float64)
        for task in dict.fromkeys(tasks):
            columns, panel = np.flatnonzero(tasks == task), self._panels[task]
            clusters = panel.clusters[panel.index.get_indexer(index[columns])]
            blocks = cluster_counts(int(panel.clusters.max()) + 1, self._draws, bootstrap_seed(task))
            found[:, columns] = np.concatenate(list(blocks))[:, clusters]
        return found
