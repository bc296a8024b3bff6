"""Where a process runs, as its attempts and logs tell it: one node on which everything fails is seen then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Where:
    """pod, node: their names; "" outside a cluster."""

    pod: str = ""
    node: str = ""

    def of(self, title: str) -> str:
        """The title of a log with the pod and the node: "preprocess 0, pod preprocess-... on node-1"."""
        return f"{title}, pod {on(self.pod, self.node)}" if self.pod else title


NOWHERE = Where()


def on(what: str, node: str) -> str:
    """ "worker 1 on node-1", or "worker 1" where no node is known."""
    return f"{what} on {node}" if node else what
