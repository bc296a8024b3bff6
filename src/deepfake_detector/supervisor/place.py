"""Where a training supervisor is: what the environment tells it of itself and of its peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepfake_detector.supervisor.terms import Peer
from deepfake_detector.supervisor.where import NOWHERE, Where


@dataclass(frozen=True)
class Place:
    """Where a supervisor is. peers: every supervisor's rendezvous address, spares included, in order of index.

    host: this machine's IP address, under which the TensorFlow processes find each other; base_port: the first of
    the 8 ports of this worker; environment: what its children inherit.
    """

    index: int
    peers: tuple[Peer, ...]
    host: str
    base_port: int
    scratch: Path
    environment: Mapping[str, str]
    verbose: bool = False
    where: Where = NOWHERE

    @property
    def rendezvous(self) -> Peer:
        """Where this supervisor keeps the rendezvous, if it does: by address, since names may not resolve yet."""
        return Peer(self.host, self.peers[self.index].port)
