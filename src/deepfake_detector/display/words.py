"""Lines that describe what a stage has come to."""

from __future__ import annotations

from deepfake_detector.core.markers import EpochMetrics, RecordsSummary
from deepfake_detector.core.outcomes import Outcome


def describe_epoch(epoch: EpochMetrics) -> str:
    auc = "-" if epoch.validation_auc is None else f"{epoch.validation_auc:.4f}"
    return (
        f"  epoch {epoch.epoch:>3}: loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.3f}, "
        f"validation AUC {auc}, {epoch.seconds:.1f} s"
    )


def describe_records(summary: RecordsSummary) -> list[str]:
    """What preprocessing came to, and every loss by its reason."""
    sequences = ", ".join(f"{sum(labels.values())} {split}" for split, labels in summary.sequences.items())
    kept = sum(summary.outcomes.get(Outcome.OK, {}).values())
    lines = [f"  {kept} of {summary.videos} videos in {summary.shards} shards; sequences: {sequences}"]
    for outcome, labels in summary.outcomes.items():
        if outcome != Outcome.OK:
            counts = ", ".join(f"{count} {label}" for label, count in labels.items() if count)
            lines.append(f"  lost: {outcome} {counts}")
    return lines + [f"  warning: {warning}" for warning in summary.warnings]
