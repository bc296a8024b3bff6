"""The end of preprocessing: totals over all shards, losses by reason and label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from deepfake_detector.adapters.machine import code_version
from deepfake_detector.adapters.rounds import finished_rounds, read_reports, round_storage
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, fingerprint, require_same, stage_settings
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.markers import RecordsSummary, ShardReport, decode
from deepfake_detector.core.outcomes import LABELS, Outcome, VideoOutcome
from deepfake_detector.core.retry import latest
from deepfake_detector.stages.plan import committed_plan, load_plan
from deepfake_detector.stages.runs import first_marker

METADATA_AUC_WARNING = 0.6
LOSS_GAP_WARNING = 0.05  # difference of the lost shares of real and fake videos


def finish(run: Storage, config: Config, retry: int = 0) -> RecordsSummary | None:
    """Write the round's records/summary.json once every shard has its report; None while one is missing.

    Any number of shards may try at the same time: they write the same bytes, create-only. retry: the round; its
    summary has the totals over the rounds before it, too. Raises ConfigError when a report or the summary was made
    with other settings, or when training has begun on the records before a retry adds to them.
    """
    settings = stage_settings(config, "preprocess")
    place = round_storage(run, retry)
    where = f"{place.uri}/{layout.RECORDS_SUMMARY}"
    if place.exists(layout.RECORDS_SUMMARY):
        summary = decode(RecordsSummary, place.read(layout.RECORDS_SUMMARY), where)
        require_same(settings, summary.settings, where)
        return summary
    there = {entry.name for entry in place.list("records/")}
    shards = committed_plan(place, config).shards if retry else config.data.shards
    names = [layout.shard_report(shard, shards) for shard in range(shards)]
    if not there.issuperset(names):
        return None
    earlier = finished_rounds(run)[:retry] if retry else []
    reports = read_reports(place, shards)
    for name, report in zip(names, reports, strict=True):
        require_same(settings, report.settings, f"{place.uri}/{name}")
    before = [report for each in earlier for report in read_reports(each.storage, each.shards)]
    summary = summarise([*before, *reports], load_plan(run)[0].lost, config)
    if retry:
        require_untrained(run)
    if not place.create(layout.RECORDS_SUMMARY, summary.encode()):
        return decode(RecordsSummary, place.read(layout.RECORDS_SUMMARY), where)
    return summary


def require_untrained(run: Storage, asked: str = "a retry") -> None:
    """Raise ConfigError, naming the marker, when training has begun on the run's own records.

    asked: the word with which the user asked for the retry, where it is known.
    """
    marker = first_marker(run, "train")
    if marker:
        raise ConfigError(
            f"{run.uri}/{marker}: training has begun on these records: expected lost videos to be tried again before "
            f"that (without {asked} this run goes on; a new RUN can have all videos)"
        )


def summarise(reports: Sequence[ShardReport], lost_by_plan: Iterable[VideoOutcome], config: Config) -> RecordsSummary:
    """Totals of the reports, in the order of rounds: of a video that several of them have, the last one counts.

    Files without a label are counted, but their loss is no reason against training.
    """
    settings = stage_settings(config, "preprocess")
    by_key = latest(video for report in reports for video in report.videos)
    planned = list(by_key.values())
    videos = [*planned, *(video for video in lost_by_plan if video.key not in by_key)]
    outcomes: dict[str, dict[str, int]] = {}
    for (outcome, label), count in sorted(Counter((str(v.outcome), LABELS[v.label]) for v in videos).items()):
        outcomes.setdefault(outcome, {})[label] = count
    sequences = {split: {"real": 0, "fake": 0} for split in layout.SPLITS}
    for entry, split in ((entry, file.split) for report in reports for file in report.files for entry in file.records):
        sequences[split][LABELS[entry.label]] += 1
    labelled = [video for video in videos if video.label is not None]
    auc, tested = metadata_auc(planned)
    return RecordsSummary(
        settings=settings,
        fingerprint=fingerprint(settings),
        code_version=code_version(),
        shards=len(reports),
        videos=len(videos),
        lost_fraction=_lost_fraction(labelled),
        outcomes=outcomes,
        sequences=sequences,
        frames_sampled=sum(video.frames_sampled for video in planned),
        frames_detected=sum(video.frames_detected for video in planned),
        frames_filled=sum(video.frames_filled for video in planned),
        metadata_auc=auc,
        warnings=_warnings(labelled, sequences, auc, tested),
    )


def metadata_auc(videos: Sequence[VideoOutcome]) -> tuple[float | None, int]:
    """AUC, over validation and test videos, of a baseline that sees no pixel; and how many it was tested on.

    A small decision tree on width, height, rate, duration, rotation and codec, fitted on the training split. Far
    above 0.5, these correlate with the label, and a detector may learn them instead of faces. None where a split
    lacks a class.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.tree import DecisionTreeClassifier

    usable = [video for video in videos if video.outcome is Outcome.OK and video.label is not None]
    codecs = sorted({str(video.metadata["codec"]) for video in usable})
    train = [video for video in usable if video.split == "train"]
    held_out = [video for video in usable if video.split != "train"]
    if any({video.label for video in part} != {0, 1} for part in (train, held_out)):
        return None, len(held_out)
    # The leaves are at least 2 % of the data: a tree that memorises single videos says nothing about a shortcut.
    tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=max(3, len(train) // 50), random_state=0)
    tree.fit([_features(video, codecs) for video in train], [video.label for video in train])
    scores = tree.predict_proba([_features(video, codecs) for video in held_out])[:, 1]
    return round(float(roc_auc_score([video.label for video in held_out], scores)), 4), len(held_out)


def _features(video: VideoOutcome, codecs: Sequence[str]) -> list[float]:
    numbers = [float(video.metadata[name]) for name in ("width", "height", "fps", "seconds", "rotation")]
    return [*numbers, *(float(video.metadata["codec"] == codec) for codec in codecs)]


def _lost_fraction(videos: Sequence[VideoOutcome]) -> float:
    lost = sum(video.outcome is not Outcome.OK for video in videos)
    return lost / len(videos) if videos else 0.0


def _warnings(
    labelled: Sequence[VideoOutcome], sequences: dict[str, dict[str, int]], auc: float | None, tested: int
) -> list[str]:
    lines = []
    if auc is not None and auc > METADATA_AUC_WARNING:
        lines.append(
            f"size, rate, codec and duration alone tell real from fake with AUC {auc:.2f} on {tested} held-out videos "
            f"(expected at most {METADATA_AUC_WARNING}): the detector may learn them instead of faces"
        )
    shares = [_lost_fraction([video for video in labelled if video.label == label]) for label in (0, 1)]
    if not math.isclose(*shares, abs_tol=LOSS_GAP_WARNING):
        lines.append(f"lost {shares[0]:.0%} of the real and {shares[1]:.0%} of the fake videos: a biased loss")
    lines += [
        f"split {split} has no {label} sequence: some of its metrics cannot be computed"
        for split, labels in sequences.items()
        for label, count in labels.items()
        if not count
    ]
    return lines
