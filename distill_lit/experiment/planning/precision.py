"""What every `auto` that can change a result means: number formats by the fastest of the machine on which runs happen, and
what writes text."""

import socket
from pathlib import Path
from typing import Any, Protocol

from distill_lit.config import Dtype, ExperimentConfig
from distill_lit.config.fields import with_values
from distill_lit.generation.backend import resolve_backend
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import merge_json, read_mapping

AUTO_FIELDS = (("training", "precision"), ("teacher", "dtype"), ("evaluation", "dtype"))
DTYPES_FILE = "dtypes.json"  # in the folder of the runs: {kind of machine: {dtype, host}}


class Dtypes(Protocol):
    """Who knows the fastest number format of the machines that do the work."""

    def of(self, config: ExperimentConfig) -> str:
        """That of a config; empty where nobody knows."""
        ...


def read_kept_dtypes(folder: Path) -> dict[str, dict[str, Any]]:
    """{kind of machine: {dtype, host}} as it is kept in the folder of the runs of an experiment."""
    found = read_mapping(folder / DTYPES_FILE).items()
    return {kind: facts for kind, facts in found if isinstance(facts, dict) and "dtype" in facts}


def keep_dtypes(folder: Path, dtypes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keeps those of kinds of machines that were not kept yet; all that are kept then."""
    return merge_json(folder / DTYPES_FILE, dtypes, lambda _: read_kept_dtypes(folder))


class LocalDtypes:
    """The fastest number format of this machine's devices: what is kept beside the runs in a folder, whichever machine has
    measured it, with however many threads; else what is measured, which is kept once a run begins."""

    def __init__(self, folder: Path) -> None:
        """folder: of the runs of an experiment."""
        self.folder = folder
        self._known = read_kept_dtypes(folder)

    def of(self, config: ExperimentConfig) -> str:
        """The number format of a config."""
        device = hardware.device_for(config.training.accelerator)
        kind = f"local {device.type}"
        if kind not in self._known:
            self._known[kind] = {"dtype": hardware.fastest_dtype(device), "host": socket.gethostname()}
        return str(self._known[kind]["dtype"])

    def keep(self) -> None:
        """Keeps what was asked for. Raises UserError where another machine has kept another one meanwhile."""
        kept = read_kept_dtypes(self.folder)
        if self._known.keys() - kept.keys():
            kept = keep_dtypes(self.folder, self._known)
        for kind, facts in kept.items():
            if facts["dtype"] != self._known.setdefault(kind, facts)["dtype"]:
                raise UserError(
                    f"{self.folder / DTYPES_FILE}: {facts.get('host')} has just chosen {facts['dtype']} for auto; the same "
                    "command again takes it"
                )


def has_auto(config: ExperimentConfig) -> bool:
    """Whether a number format is to be measured."""
    return any(getattr(getattr(config, section), field) == "auto" for section, field in AUTO_FIELDS)


def resolve_auto(config: ExperimentConfig, dtypes: Dtypes | None = None) -> ExperimentConfig:
    """The same experiment with every `auto` that can change a result replaced by the choice of the machine on which its
    runs happen: by `dtypes`, or else by this one."""
    config = resolve_backend(config)
    if not has_auto(config):
        return config
    fastest = dtypes.of(config) if dtypes is not None else ""
    sections: dict[str, Any] = {}
    for section, field in AUTO_FIELDS:
        value = getattr(getattr(config, section), field)
        if value == "auto":
            resolved = fastest or resolve_dtype(value, config.training.accelerator)
            sections[section] = with_values(getattr(config, section), **{field: resolved})
    return with_values(config, **sections)


def resolve_dtype(dtype: Dtype, accelerator: str = "auto") -> Dtype:
    """The number format itself, or for `auto` the fastest measured on this machine."""
    return hardware.fastest_dtype(hardware.device_for(accelerator)) if dtype == "auto" else dtype
