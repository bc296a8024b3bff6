"""The baseline that sees no pixel: what it says of shortcuts in the data."""

from __future__ import annotations

from collections.abc import Callable

from deepfake_detector.core.outcomes import Outcome, VideoOutcome
from deepfake_detector.stages.summary import metadata_auc


def outcome(number: int, split: str, label: int, width: float) -> VideoOutcome:
    metadata: dict[str, float | str] = {
        "width": width,
        "height": 10.0,
        "fps": 25.0,
        "seconds": 1.0,
        "rotation": 0.0,
        "codec": "h264",
    }
    return VideoOutcome(key=f"{split}{number}", label=label, split=split, outcome=Outcome.OK, metadata=metadata)


def test_the_metadata_baseline_sees_a_shortcut() -> None:
    def corpus(width: Callable[[int, int], float]) -> list[VideoOutcome]:
        sizes = {"train": 40, "validation": 10, "test": 10}
        return [outcome(k, split, k % 2, width(k, k % 2)) for split, size in sizes.items() for k in range(size)]

    assert metadata_auc(corpus(lambda k, label: 640.0 + 640 * label)) == (1.0, 20)
    assert metadata_auc(corpus(lambda k, label: 640.0)) == (0.5, 20)
    assert metadata_auc([outcome(k, "train", k % 2, 1.0) for k in range(10)]) == (None, 0)
