"""Which of the machines that train together this is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from distill_lit.utils.distributed.cluster_environment import removed_variables
from distill_lit.utils.exceptions import UserError

NODE_RANK, MAIN_ADDRESS = "DISTILL_LIT_NODE_RANK", "DISTILL_LIT_MAIN_ADDRESS"  # set by hand, or by who starts the nodes
SLURM_PORT = 15000  # and the last four digits of the job's number, so that two jobs of a node do not meet


@dataclass(frozen=True)
class Node:
    """One of `count` machines. rank: its number, from 0; address, port: where the first one listens."""

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    port: int = 0


ONLY_NODE = Node()


class RankPlace(NamedTuple):
    """Which rank a process is. local_rank: among those of its machine; node_rank: the machine's number; address, port:
    where all meet."""

    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    address: str
    port: int


def node_from_environment(count: int, environment: Mapping[str, str] | None = None) -> Node:
    """This machine among the `count` of a training.

    By DISTILL_LIT_NODE_RANK and DISTILL_LIT_MAIN_ADDRESS (host:port of the first), or inside a SLURM job of so many nodes
    by its variables. Other schedulers are not asked: what is around a run must not change it. Raises UserError where
    nothing tells.
    """
    if count == 1:
        return ONLY_NODE
    environment = {**removed_variables, **os.environ} if environment is None else environment
    if NODE_RANK in environment:
        host, _, port = environment.get(MAIN_ADDRESS, "").rpartition(":")
        rank = environment[NODE_RANK]
        if not (host and port.isdecimal() and rank.isdecimal() and int(rank) < count):
            raise UserError(
                f"{NODE_RANK}: give a number below training.nodes ({count}), and {MAIN_ADDRESS} as host:port of the first"
            )
        return Node(int(rank), count, host, int(port))
    if environment.get("SLURM_NNODES") == str(count) and "SLURM_NODEID" in environment:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        nodes = environment.get("SLURM_JOB_NODELIST", environment.get("SLURM_NODELIST", ""))
        job = int(environment.get("SLURM_JOB_ID", "0")[-4:])
        first = SLURMEnvironment.resolve_root_node_address(nodes)
        return Node(int(environment["SLURM_NODEID"]), count, first, SLURM_PORT + job)
    raise UserError(
        f"training.nodes: {count} are to train together, and nothing says which one this is; start it by SLURM, or on each "
        f"with {NODE_RANK} and {MAIN_ADDRESS}"
    )
