"""Who keeps the rendezvous: one small object for each term of office, created and never changed; the highest holds.

A term is taken by whoever creates the next object, which storage grants to one alone: no supervisor is needed for it,
no name has to resolve, and a keeper that is dead, frozen or cut off is superseded by any other that can't reach it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.markers import Document, decode


@dataclass(frozen=True)
class Peer:
    """Where a supervisor is, or will be; a host is a name or an IP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Term:
    """number: from 1; keeper: the supervisor's index, NO_KEEPER and NOBODY's address where its object is damaged."""

    number: int
    keeper: int
    address: Peer

    def __str__(self) -> str:
        if self.address == NOBODY:
            return f"{layout.term(self.number)}, which is damaged"
        return f"supervisor {self.keeper} ({self.address})"


class _Stored(Document):
    index: int
    host: str
    port: int
    nonce: str  # two supervisors that restart under one address must not take each other's object for their own


NOBODY = Peer("", 0)
NO_KEEPER = -1


def latest(run: Storage) -> Term | None:
    """The term that holds; None before the first. Raises StorageError."""
    names = [entry.name for entry in run.list(layout.TERMS)]
    if not names:
        return None
    number = layout.term_number(names[-1])
    try:
        stored = decode(_Stored, run.read(names[-1]), f"{run.uri}/{names[-1]}")
    except (CorruptError, NotFoundError):  # whoever is there can't be found: the next term is anybody's
        return Term(number, NO_KEEPER, NOBODY)
    return Term(number, stored.index, Peer(stored.host, stored.port))


def take(run: Storage, number: int, index: int, address: Peer) -> Term | None:
    """Begin the term `number`; None when somebody else has. Raises StorageError."""
    stored = _Stored(index=index, host=address.host, port=address.port, nonce=secrets.token_hex(8))
    return Term(number, index, address) if run.create(layout.term(number), stored.encode()) else None
