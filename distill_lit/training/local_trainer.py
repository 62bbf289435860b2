"""A Lightning Trainer that looks at no scheduler: this suite alone decides about signals, ranks and checkpoints."""

import warnings
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only as fabric_rank_zero
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from distill_lit.utils.distributed.ranks import get_local_rank, get_node_rank, get_rank, get_world_size

# of Lightning: means over ranks are taken before they are logged, and ranks are started here
NEEDLESS_WARNINGS = (r"It is recommended to use `self\.log\(.*sync_dist=True", r"The `srun` command is available")


class KnownRanksEnvironment(ClusterEnvironment):
    """The ranks as torch's default group has them, whatever the environment's variables say."""

    @property
    def creates_processes_externally(self) -> bool:
        """They run already."""
        return True

    @property
    def main_address(self) -> str:
        """Where they have met."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Never asked for: they have met."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Never chosen by itself."""
        return False

    def world_size(self) -> int:
        """The number of ranks."""
        return get_world_size()

    def set_world_size(self, size: int) -> None:
        """Does nothing: it is set when the ranks start."""

    def global_rank(self) -> int:
        """The rank of this process."""
        return get_rank()

    def set_global_rank(self, rank: int) -> None:
        """Does nothing: it is set when the ranks start."""

    def local_rank(self) -> int:
        """The number of this process on its machine."""
        return get_local_rank()

    def node_rank(self) -> int:
        """The number of this machine."""
        return get_node_rank()


class _NoSignalHandling(_SignalConnector):
    """Leaves every handler as it is. Lightning's would end a run with exit code 0, or requeue the user's whole job."""

    def register_signal_handlers(self) -> None:
        """None."""

    def teardown(self) -> None:
        """Nothing to put back."""


class _ExplicitResumeOnly(_CheckpointConnector):
    """Goes on from the checkpoint it is given, never from an `hpc_ckpt_1.ckpt` that Lightning once wrote for SLURM."""

    @property
    def _hpc_resume_path(self) -> None:
        return None


def sync_lightning_rank() -> None:
    """Tells Lightning which rank this is: it reads RANK, LOCAL_RANK, SLURM_PROCID … when it is imported."""
    rank_zero_only.rank = fabric_rank_zero.rank = get_rank()


def build_local_trainer(**settings: Any) -> L.Trainer:
    """`L.Trainer(**settings)` on the ranks of torch's default group."""
    sync_lightning_rank()
    for message in NEEDLESS_WARNINGS:
        warnings.filterwarnings("ignore", message)
    trainer = L.Trainer(**{**settings, "plugins": [KnownRanksEnvironment(), *settings.get("plugins", [])]})
    trainer._signal_connector = _NoSignalHandling(trainer)
    trainer._checkpoint_connector = _ExplicitResumeOnly(trainer)
    return trainer
