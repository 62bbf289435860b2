"""Structured pruning of a teacher: depth pruning (`depth`), width pruning (`width`), by measured `importance`."""

from distill_lit.models.pruning.calibration import calibration_inputs
from distill_lit.models.pruning.depth import (
    LAYER_SELECTION_METHODS,
    block_influence,
    check_layers,
    check_num_layers,
    choose_layers,
    mean_kl_to_teacher,
    only_layers,
    prune_depth,
    removal_order,
    shallow_config,
)
from distill_lit.models.pruning.importance import Importance, measure_importance, norm_corrections
from distill_lit.models.pruning.layer_settings import check_pruned_logits, skipped_layers
from distill_lit.models.pruning.width import WidthSelection, narrow_config, prune_width, select_width, target_widths

__all__ = [
    "LAYER_SELECTION_METHODS",
    "Importance",
    "WidthSelection",
    "block_influence",
    "calibration_inputs",
    "check_layers",
    "check_num_layers",
    "check_pruned_logits",
    "choose_layers",
    "mean_kl_to_teacher",
    "measure_importance",
    "narrow_config",
    "norm_corrections",
    "only_layers",
    "prune_depth",
    "prune_width",
    "removal_order",
    "select_width",
    "shallow_config",
    "skipped_layers",
    "target_widths",
]
