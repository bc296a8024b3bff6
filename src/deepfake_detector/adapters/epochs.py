"""The epochs of a run, as training tells them in logs/metrics.jsonl."""

from __future__ import annotations

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import NotFoundError
from deepfake_detector.core.markers import EpochMetrics, decode


def read_epochs(run: Storage) -> list[EpochMetrics]:
    """All finished epochs, first to last; none before training has told of one. Raises CorruptError."""
    try:
        lines = run.read(layout.METRICS).splitlines()
    except NotFoundError:
        return []
    return [decode(EpochMetrics, line, f"{run.uri}/{layout.METRICS}") for line in lines if line.strip()]
