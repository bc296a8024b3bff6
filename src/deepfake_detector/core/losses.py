"""Whether so many videos were lost that no detector should be trained on the rest."""

from __future__ import annotations

from deepfake_detector.core.errors import DataError
from deepfake_detector.core.markers import RecordsSummary
from deepfake_detector.core.outcomes import Outcome


def require_few_lost(summary: RecordsSummary, limit: float, where: str) -> None:
    """Raise DataError, with the losses by reason, when more than `limit` (0 to 1) of the labelled videos are lost.

    where: the summary's URI, for messages.
    """
    if summary.lost_fraction > limit:
        raise DataError(
            f"{where}: {summary.lost_fraction:.1%} of the labelled videos lost ({reasons(summary)}): "
            f"expected at most operations.max_lost_fraction={limit:g}"
        )


def reasons(summary: RecordsSummary) -> str:
    """The losses in words, most frequent first: "decode_error 12, no_face 3"."""
    lost = {
        outcome: sum(count for label, count in labels.items() if label != "unknown")
        for outcome, labels in summary.outcomes.items()
        if outcome not in (Outcome.OK, Outcome.UNLABELLED)
    }
    return ", ".join(f"{name} {count}" for name, count in sorted(lost.items(), key=lambda item: (-item[1], item[0])))
