"""Variants: named sets of overrides, one of which, or one of each axis, is laid over the experiment.

variants: {soft: {objective.terms.kl.temperature: 4}, hard: {}}                    # grid: {variant: [soft, hard]}
variants:                                                                         # grid: {variant.loss: [kl, rkl],
  loss: {kl: {}, rkl: {objective.terms.kl.kind: reverse_kl}}                      #        variant.data: [few, many]}
  data: {few: {data.max_tokens: 20000}, many: {data.max_tokens: 80000}}
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from distill_lit.config.key_paths import is_variant_axis
from distill_lit.config.schema import ExperimentConfig
from distill_lit.utils.exceptions import UserError, suggest

VARIANT_AXIS_PREFIX = "variant."  # of the grid keys that choose from an axis


class Variant(NamedTuple):
    """name: as errors call it, `variants.soft` or `variants.loss.kl`; changes: {dotted key: value}."""

    name: str
    changes: dict[str, Any]


def all_variants(config: ExperimentConfig) -> Iterator[Variant]:
    """Every variant, those of axes too."""
    for name, entry in config.variants.items():
        if is_variant_axis(entry, ExperimentConfig):
            yield from (Variant(f"variants.{name}.{choice}", changes) for choice, changes in entry.items())
        else:
            yield Variant(f"variants.{name}", entry)


def choose_variants(config: ExperimentConfig, point: Mapping[str, Any]) -> list[Variant]:
    """The variants at a point of the grid: one of `variants`, one of each axis that is chosen from, or none. Raises
    UserError for unknown names, and where both forms are used."""
    axes = {name for name, entry in config.variants.items() if is_variant_axis(entry, ExperimentConfig)}
    single = point.get("variant", config.variant)
    # "" at a point takes all choices away; a mapping there adds to those of the experiment
    chosen = dict(config.variant) if isinstance(config.variant, dict) and single != "" else {}
    if isinstance(single, dict):
        chosen, single = chosen | single, ""
    chosen |= {key.removeprefix(VARIANT_AXIS_PREFIX): point[key] for key in point if key.startswith(VARIANT_AXIS_PREFIX)}
    if single and chosen:
        raise UserError(f"variant: {single!r} and variant.{next(iter(chosen))}: choose one variant, or one of each axis")
    if single:
        if isinstance(single, str) and single in axes:
            raise UserError(f"variant: {single!r} is an axis of variants; choose from it with variant.{single}")
        if not isinstance(single, str) or single not in config.variants:
            raise UserError(f"variant: unknown value {single!r}{suggest(str(single), set(config.variants) - axes)}")
        return [Variant(f"variants.{single}", config.variants[single])]
    return [_of_axis(config, axes, axis, name) for axis, name in chosen.items() if name != ""]


def _of_axis(config: ExperimentConfig, axes: set[str], axis: str, name: Any) -> Variant:
    if axis not in axes:
        raise UserError(f"variant.{axis}: variants has no axis of this name{suggest(axis, axes)}")
    if not isinstance(name, str) or name not in config.variants[axis]:
        raise UserError(f"variant.{axis}: unknown value {name!r}{suggest(str(name), config.variants[axis])}")
    return Variant(f"variants.{axis}.{name}", config.variants[axis][name])


def check_disjoint(layers: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Raises UserError for two variants, (name, nested changes), that set the same key: neither may silently win."""
    known: dict[tuple[str, ...], str] = {}
    for name, tree in layers:
        paths = [path for path in leaf_paths(tree) if path]
        for path in paths:
            for other, owner in known.items():
                shared = min(len(path), len(other))
                if path[:shared] == other[:shared]:
                    raise UserError(f"{owner} and {name} both set {'.'.join(path if len(path) > len(other) else other)}")
        known |= dict.fromkeys(paths, name)


def leaf_paths(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys from the root to each value of nested changes; an empty mapping is a value. path: to `tree`."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaf_paths(value, (*path, key))
    else:
        yield path
