"""Another node than the first: it takes part in whatever runs the first one needs several nodes for, until all are built.

    DISTILL_LIT_NODE_RANK=1 DISTILL_LIT_MAIN_ADDRESS=node1:15000 \
        python -m distill_lit.experiment.join EXPERIMENT ROOT [key=value …]

while `distill-lit run EXPERIMENT --root ROOT` runs on the first node with DISTILL_LIT_NODE_RANK=0, in the same folder.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from distill_lit.config import load_experiment
from distill_lit.experiment.estimates.strategy import may_take_several_nodes
from distill_lit.experiment.execution.run import join_run
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.state.completion import is_run_built
from distill_lit.utils.distributed.cluster_environment import remove_cluster_variables
from distill_lit.utils.distributed.node import Node, node_from_environment
from distill_lit.utils.distributed.peers import MEETING_SECONDS, POLL_SECONDS, Meeting, find_meeting
from distill_lit.utils.exceptions import Preempted, RankFailure, UserError

LOOK_SECONDS = 10.0  # for the first node to answer, before it is seen whether all is done
log = logging.getLogger(__name__)


def join(experiment: Experiment) -> None:
    """Follows the first node from run to run. Raises UserError where it does not answer, Preempted when asked to stop."""
    runs = {run.name: run for run in experiment.runs if may_take_several_nodes(run)}
    if not runs:
        raise UserError(f"training.nodes: no run of {experiment.name} takes several nodes")
    node = node_from_environment(max(run.config.training.nodes for run in runs.values()))

    def is_over() -> bool:
        return all(is_run_built(run, experiment.folder_of(run)) for run in runs.values())

    last: Meeting | None = None
    while meeting := _next_meeting(node, last, is_over):
        last, name = meeting, meeting.label
        if name not in runs:
            raise UserError(
                f"training.nodes: the first node is at {name}, which is no run of {experiment.name} as it is here"
            )
        folder = experiment.folder_of(runs[name])
        # every `auto` as the first node has it; hypotheses are not of one run
        run = replace(runs[name], config=load_experiment(folder / "config.yaml", must_test=False))
        try:
            join_run(run, folder, replace(node, count=run.config.training.nodes))
        except RankFailure as error:  # the first node says so in the run's folder, and goes on with the next run
            log.warning("%s: %s", name, error)


def _next_meeting(node: Node, last: Meeting | None, is_over: Callable[[], bool]) -> Meeting | None:
    """What the first node is at, once that is another than what this one has left; None once all is done. Raises UserError
    where it is at nothing for too long."""
    end = time.monotonic() + MEETING_SECONDS
    while not is_over():
        if (meeting := find_meeting(node, LOOK_SECONDS)) and meeting != last:
            return meeting
        if time.monotonic() > end:
            raise UserError(f"training.nodes: the first node does not answer at {node.address}:{node.port}")
        time.sleep(POLL_SECONDS)
    return None


def main(arguments: Sequence[str]) -> int:
    """The exit code of the process."""
    remove_cluster_variables()
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        experiment = Experiment.from_yaml(arguments[0], arguments[2:], arguments[1])
        experiment.prepare()
        join(experiment)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Preempted:
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
