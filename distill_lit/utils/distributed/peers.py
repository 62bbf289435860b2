"""The nodes of a training, who meet at a store of the first one: there ranks find each other, and whoever started a node's
ranks learns that those of another have failed."""

import contextlib
import json
import secrets
import socket
import time
from datetime import timedelta
from typing import Any, NamedTuple

from distill_lit.utils.distributed.node import Node
from distill_lit.utils.exceptions import Preempted, RankFailure, UserError

MEETING_SECONDS = 1800.0  # that a node waits for the first one
POLL_SECONDS = 1.0
LEAVE_SECONDS = 10.0  # that the first node's store outlives its ranks while others still need it
FAILED, LEFT, LABEL, MEETING = (f"distill_lit/{name}" for name in ("failed", "left", "label", "meeting"))


class Peers:
    """This node among all. `port`: of the store."""

    def __init__(self, world_size: int, node: Node, label: str = "") -> None:
        """Opens the store on the first node, where nobody else on the net sees it unless there are others; elsewhere waits
        for it. label: what is to be done there, which must be the same on all nodes. Raises UserError where it is not, for
        an address that is not this machine's, or where nobody listens."""
        self.node = node
        if node.rank == 0:
            listener = _listen(node)
            self.port = listener.getsockname()[1]
            options: dict[str, Any] = {"is_master": True, "master_listen_fd": listener.detach()}
        else:
            self.port, options = node.port, {"is_master": False, "timeout": timedelta(seconds=MEETING_SECONDS)}
        self._store = _open(node, self.port, world_size, options)
        if node.rank == 0:
            self._store.set(MEETING, secrets.token_hex(8))
            self._store.set(LABEL, label)
        elif node.count > 1 and (other := self._store.get(LABEL).decode()) != label:
            raise UserError(
                f"training.nodes: the first node is at {other or 'nothing with a name'}, and this one at {label}"
            )

    @property
    def poll_seconds(self) -> float:
        """Between two looks at the others."""
        return POLL_SECONDS if self.node.count > 1 else float("inf")

    def failure(self) -> Exception | None:
        """Why another node has ended, if one has before its time."""
        if self.node.count == 1:
            return None
        try:
            if not self._store.check([FAILED]):
                return None
            number, is_preempted, text = json.loads(self._store.get(FAILED))
        except Exception:  # whatever torch raises when the store has gone
            return RankFailure("the first node has ended")
        if number == self.node.rank:
            return None
        return Preempted(text) if is_preempted else RankFailure(f"node {number}: {text}")

    def tell(self, cause: Exception) -> None:
        """Tells the other nodes why this one ends; the first to tell is heard."""
        with contextlib.suppress(Exception):
            if self.node.count > 1 and not self._store.check([FAILED]):
                facts = (self.node.rank, isinstance(cause, Preempted), str(cause))
                self._store.set(FAILED, json.dumps(facts))

    def leave(self) -> None:
        """Says goodbye; the first node's store stays until all have, or for a while."""
        end = time.monotonic() + LEAVE_SECONDS
        with contextlib.suppress(Exception):
            left = self._store.add(LEFT, 1)
            while self.node.rank == 0 and left < self.node.count and time.monotonic() < end:
                time.sleep(0.05)
                left = self._store.add(LEFT, 0)
        del self._store


class Meeting(NamedTuple):
    """What the first node is at. token: of this one time, as it may be at the same again."""

    label: str
    token: str


def find_meeting(node: Node, seconds: float) -> Meeting | None:
    """What the first node is at now; None where it is at nothing that needs others, as nobody answers within `seconds`."""
    try:
        store = _open(node, node.port, 1, {"is_master": False, "timeout": timedelta(seconds=seconds)})
        return Meeting(store.get(LABEL).decode(), store.get(MEETING).decode())
    except (UserError, RuntimeError):  # it has left meanwhile
        return None


def _open(node: Node, port: int, world_size: int, options: dict[str, Any]) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        return TCPStore(node.address, port, world_size, wait_for_workers=False, **options)
    except RuntimeError as error:
        raise UserError(f"training.nodes: the first node does not answer at {node.address}:{node.port}") from error


def _listen(node: Node) -> socket.socket:
    try:
        return socket.create_server((node.address, node.port))
    except OSError as error:
        raise UserError(f"training.nodes: cannot listen at {node.address}:{node.port}: {error.strerror}") from error
