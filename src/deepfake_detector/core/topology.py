"""Who takes part in an attempt: TF_CONFIG and ports.

TF_CONFIG is TensorFlow's own description of a cluster (tensorflow.org/guide/distributed_training); ours holds
workers only, so that worker 0 is the chief.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from deepfake_detector.core.errors import ConfigError

PORTS = 8  # each worker owns this many TensorFlow ports


@dataclass(frozen=True)
class Cluster:
    """This worker's rank and every worker's "host:port" by rank."""

    rank: int
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.rank < len(self.addresses):
            raise ConfigError(f"rank {self.rank}: expected 0 to {len(self.addresses) - 1} (cluster {self.addresses})")

    @property
    def workers(self) -> int:
        return len(self.addresses)

    @property
    def chief(self) -> bool:
        return self.rank == 0

    def tf_config(self) -> str:
        """The TF_CONFIG of this worker."""
        cluster = {"worker": list(self.addresses)}
        return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": self.rank}})


ALONE = Cluster(0, ("localhost:0",))


def parse_tf_config(text: str) -> Cluster:
    """The Cluster of a TF_CONFIG; empty text is one worker alone. Raises ConfigError."""
    if not text.strip():
        return ALONE
    try:
        parsed = json.loads(text)
        task = parsed["task"]
        addresses, kind, index = tuple(parsed["cluster"]["worker"]), task["type"], task["index"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"TF_CONFIG={text}: expected cluster.worker, task.type and task.index ({error!r})") from None
    if kind != "worker" or not isinstance(index, int) or not all(isinstance(each, str) for each in addresses):
        raise ConfigError(f"TF_CONFIG={text}: expected a task of type 'worker' with a whole index, and address strings")
    return Cluster(index, addresses)


def port(base: int, attempt: int) -> int:
    """TensorFlow's port in an attempt: it moves on each time, so that a stale peer of the last one can't join."""
    return base + attempt % PORTS
