"""Students cut out of a teacher: fewer layers (`depth`), narrower layers (`width`), chosen by measured `importance`."""

from distill_lit.models.pruning.depth import (
    METHODS,
    Progress,
    block_influence,
    check_depth,
    check_layers,
    choose_layers,
    divergence,
    keep_layers,
    only_layers,
    removal_order,
    shallow_config,
)
from distill_lit.models.pruning.importance import Importance, measure_importance, norm_corrections
from distill_lit.models.pruning.layer_settings import check_cut, skipped_layers
from distill_lit.models.pruning.width import Cut, choose_cut, cut_width, narrow_config, target_widths

__all__ = [
    "METHODS",
    "Cut",
    "Importance",
    "Progress",
    "block_influence",
    "check_cut",
    "check_depth",
    "check_layers",
    "choose_cut",
    "choose_layers",
    "cut_width",
    "divergence",
    "keep_layers",
    "measure_importance",
    "narrow_config",
    "norm_corrections",
    "only_layers",
    "removal_order",
    "shallow_config",
    "skipped_layers",
    "target_widths",
]
