"""Calibration from the validation split, and all numbers of a split at the level of videos.

A sequence's logit -> mean over the windows of a track -> calibrated probability -> maximum over a video's tracks.
Videos that gave no sequence (no face, broken) stay in the denominator: `all` counts them at 0.5 and as wrong in
both accuracies, `decided` leaves them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deepfake_detector.adapters.rounds import Round, read_reports
from deepfake_detector.adapters.scoring import area_under_roc, fit_platt, score
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.calibration import UNDECIDED, Calibration, best_threshold, max_by_video, mean_by_track
from deepfake_detector.core.markers import PlanSummary, decode
from deepfake_detector.core.outcomes import LABELS, Outcome, VideoOutcome
from deepfake_detector.core.retry import latest
from deepfake_detector.core.sequences import RecordEntry


@dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """A split as the detector saw it: one natural logit per sequence, and the videos that gave none."""

    entries: Sequence[RecordEntry]
    logits: Sequence[float]
    lost: Sequence[VideoOutcome]


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """One line of report/scores.csv. tracks: 0 for a video without a verdict, whose probability is 0.5."""

    video: str
    method: str
    label: int
    probability: float
    tracks: int
    outcome: Outcome

    @property
    def decided(self) -> bool:
        return self.tracks > 0


def lost_videos(records: Storage, rounds: Iterable[Round]) -> list[VideoOutcome]:
    """Every video that gave no sequence, of all splits, sorted by key; reads the plan and the rounds' shard reports."""
    outcomes: list[VideoOutcome] = []
    if records.exists(layout.PLAN):
        outcomes += decode(PlanSummary, records.read(layout.PLAN), f"{records.uri}/{layout.PLAN}").lost
    for each in rounds:
        outcomes += [video for report in read_reports(each.storage, each.shards) for video in report.videos]
    lost = [video for video in latest(outcomes).values() if video.outcome is not Outcome.OK]
    return sorted(lost, key=lambda video: video.key)


def calibrate(validation: ScoredSplit, prior: float) -> Calibration:
    """Platt's slope and offset from the validation tracks, the threshold from its videos.

    Tracks carry their video's label. The threshold maximises the balanced accuracy of the videos' maxima, because
    only the label of a whole video is exact: in a fake one a face may be untouched. With one class or none there
    is nothing to fit: slope 1, offset 0 and threshold 0.5, and `notes` has the reason.
    """
    labels = {entry.video: entry.label for entry in validation.entries}
    fakes = sum(labels.values())
    reals = len(labels) - fakes
    validation_prior = fakes / len(labels) if labels else None
    if not fakes or not reals:
        reason = f"validation: expected real and fake videos, found {reals} real and {fakes} fake"
        return Calibration(
            slope=1.0,
            offset=0.0,
            prior=prior,
            validation_prior=validation_prior,
            threshold=0.5,
            threshold_from="default, not calibrated",
            notes=(f"not calibrated (slope 1, offset 0, threshold 0.5): {reason}",),
        )
    tracks = _tracks(validation)
    slope, offset, warning = fit_platt(list(tracks.values()), [labels[video] for video, _ in tracks], prior)
    fitted = Calibration(
        slope=slope,
        offset=offset,
        prior=prior,
        validation_prior=validation_prior,
        threshold=0.5,
        threshold_from=f"largest balanced accuracy on {reals} real and {fakes} fake validation videos",
        notes=(f"calibration: {warning}",) if warning else (),
    )
    videos = max_by_video(dict(zip(tracks, fitted.apply(list(tracks.values())).tolist(), strict=True)))
    threshold = best_threshold(list(videos.values()), [labels[video] for video in videos], prior)
    return Calibration(**{**vars(fitted), "threshold": threshold})


def video_scores(split: ScoredSplit, calibration: Calibration) -> list[VideoScore]:
    """The calibrated probability of every labelled video of the split, lost ones included, sorted by key."""
    labels = {entry.video: entry.label for entry in split.entries}
    tracks = _tracks(split)
    counts = Counter(video for video, _ in tracks)
    probabilities = calibration.apply(list(tracks.values())).tolist()
    videos = max_by_video(dict(zip(tracks, probabilities, strict=True)))
    scores = [
        VideoScore(
            video=video,
            method=_method(video),
            label=labels[video],
            probability=probability,
            tracks=counts[video],
            outcome=Outcome.OK,
        )
        for video, probability in videos.items()
    ]
    for lost in split.lost:
        if lost.label is not None:
            scores.append(
                VideoScore(
                    video=lost.key,
                    method=_method(lost.key),
                    label=lost.label,
                    probability=UNDECIDED,
                    tracks=0,
                    outcome=lost.outcome,
                )
            )
    return sorted(scores, key=lambda one: one.video)


def evaluate(split: ScoredSplit, calibration: Calibration) -> dict[str, Any]:
    """All numbers of one split, ready for metrics.json: metrics of `all` and `decided` videos, of each method's
    fakes against all reals, of sequences; losses: outcome -> label -> videos. None has its reason beside it.
    """
    scores = video_scores(split, calibration)
    sequence_labels = [entry.label for entry in split.entries]
    auc, reason = area_under_roc(sequence_labels, split.logits)
    losses: dict[str, dict[str, int]] = {}
    for video in split.lost:
        of_outcome = losses.setdefault(str(video.outcome), {})
        of_outcome[LABELS[video.label]] = of_outcome.get(LABELS[video.label], 0) + 1
    reals = [one for one in scores if one.label == 0]
    methods = sorted({one.method for one in scores if one.label == 1})
    return {
        "all": _scored(scores, calibration),
        "decided": _scored([one for one in scores if one.decided], calibration),
        "undecided": sum(not one.decided for one in scores),
        "by_method": {
            method: _scored([*reals, *(one for one in scores if one.label == 1 and one.method == method)], calibration)
            for method in methods
        },
        "tracks": sum(one.tracks for one in scores),
        "sequences": {
            "total": len(sequence_labels),
            "real": sequence_labels.count(0),
            "fake": sequence_labels.count(1),
            "auc": auc,
            "reasons": {"auc": reason} if reason else {},
        },
        "losses": losses,
    }


def _scored(scores: Sequence[VideoScore], calibration: Calibration) -> dict[str, Any]:
    return score(
        [one.label for one in scores],
        [one.probability for one in scores],
        decided=[one.decided for one in scores],
        threshold=calibration.threshold,
        assumed_prior=calibration.prior,
        natural_prior=calibration.validation_prior,
    )


def _tracks(split: ScoredSplit) -> dict[tuple[str, int], float]:
    return mean_by_track([(entry.video, entry.track) for entry in split.entries], split.logits)


def _method(key: str) -> str:
    """dataset/method/id -> dataset/method."""
    return key.rsplit("/", 1)[0]
