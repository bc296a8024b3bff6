"""What a run has come to, read from its markers alone: it works after every process of the run is gone."""

from __future__ import annotations

import json
from typing import Any

from deepfake_detector.adapters.attempts import Attempt, read_attempt
from deepfake_detector.adapters.epochs import read_epochs
from deepfake_detector.adapters.rounds import finished_rounds, round_storage
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.markers import (
    INEXACT,
    DetectorManifest,
    Document,
    EpochMetrics,
    PlanSummary,
    RecordsSummary,
    TrainedMarker,
    decode,
)
from deepfake_detector.stages.runs import load_given, records_storage


class ShardProgress(Document):
    shard: int
    done: bool


class RetryProgress(Document):
    """A further round for lost videos; until it is finished its records do not count."""

    number: int
    tried: list[str]  # what is tried again and what is not, a line each
    videos: int
    shards: list[ShardProgress]
    finished: bool


class Status(Document):
    """Everything `deepfake-detector status` shows; a stage that is not done is None."""

    run: str
    given: dict[str, Any]
    records_from: str  # the run whose records are used
    plan: PlanSummary | None
    shards: list[ShardProgress]
    records: RecordsSummary | None  # finished retries included
    retries: list[RetryProgress]
    epochs: list[EpochMetrics]
    trained: TrainedMarker | None
    attempts: list[Attempt]
    model: DetectorManifest | None
    metrics: dict[str, Any] | None  # report/metrics.json


def read_status(run: Storage) -> Status:
    """Collect the status of a run; raises NotFoundError where the folder holds no run, CorruptError on damage."""
    given = load_given(run)
    records = records_storage(run)
    plan = _optional(records, layout.PLAN, PlanSummary)
    rounds = finished_rounds(records)
    return Status(
        run=run.uri,
        given=given,
        records_from=records.uri,
        plan=plan,
        shards=_shards(records, plan),
        records=rounds[-1].summary if rounds else None,
        retries=[each for number in range(1, len(rounds) + 1) if (each := _retry(records, number, len(rounds)))],
        epochs=read_epochs(run),
        trained=_optional(run, layout.TRAINED, TrainedMarker),
        attempts=[read_attempt(run, entry.name) for entry in run.list(layout.ATTEMPTS)],
        model=_optional(run, layout.DETECTOR, DetectorManifest),
        metrics=_object(run, layout.REPORT_METRICS) if run.exists(layout.REPORT_METRICS) else None,
    )


def to_text(status: Status) -> str:
    """The status for people, a stage a paragraph."""
    lines = [f"run       {status.run}"]
    given = ", ".join(f"{key}={value}" for key, value in status.given.items() if value)
    lines.append(f"given     {given or 'defaults'}")
    if status.records_from != status.run:
        lines.append(f"records   of {status.records_from}")
    lines += _plan_lines(status) + _records_lines(status) + _retry_lines(status)
    lines += _training_lines(status) + _model_lines(status)
    return "\n".join(lines)


def _shards(records: Storage, plan: PlanSummary | None) -> list[ShardProgress]:
    if plan is None:
        return []
    done = {entry.name for entry in records.list("records/") if layout.is_shard_report(entry.name)}
    return [
        ShardProgress(shard=shard, done=layout.shard_report(shard, plan.shards) in done) for shard in range(plan.shards)
    ]


def _retry(records: Storage, number: int, rounds: int) -> RetryProgress | None:
    place = round_storage(records, number)
    plan = _optional(place, layout.PLAN, PlanSummary)
    if plan is None:
        return None
    return RetryProgress(
        number=number,
        tried=plan.found,
        videos=sum(sum(labels.values()) for labels in plan.counts.values()),
        shards=_shards(place, plan),
        finished=number < rounds,
    )


def _object(run: Storage, name: str) -> dict[str, Any]:
    try:
        value = json.loads(run.read(name))
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{run.uri}/{name}: expected JSON ({error})") from None
    if not isinstance(value, dict):
        raise CorruptError(f"{run.uri}/{name}: {type(value).__name__}: expected a JSON object")
    return value


def _optional(run: Storage, name: str, kind: Any) -> Any:
    try:
        return decode(kind, run.read(name), f"{run.uri}/{name}")
    except NotFoundError:
        return None


def _plan_lines(status: Status) -> list[str]:
    plan = status.plan
    if plan is None:
        return ["plan      not made"]
    lines = [f"plan      done: {plan.groups} groups, {plan.shards} shards"]
    lines += [f"          {line}" for line in plan.found]
    for split, counts in plan.counts.items():
        lines.append(f"          {split:<10} " + ", ".join(f"{label} {count}" for label, count in counts.items()))
    return lines + [f"          warning: {warning}" for warning in plan.warnings]


def _records_lines(status: Status) -> list[str]:
    summary = status.records
    if summary is None:
        done = sum(shard.done for shard in status.shards)
        return [f"records   {done} of {len(status.shards)} shards done"]
    lines = [
        f"records   done: {summary.videos} videos, lost {summary.lost_fraction:.1%}; "
        f"faces detected in {summary.frames_detected} of {summary.frames_sampled} frames, "
        f"{summary.frames_filled} filled"
    ]
    for outcome, counts in summary.outcomes.items():
        lines.append(f"          {outcome:<16}" + ", ".join(f"{label} {count}" for label, count in counts.items()))
    return lines + [f"          warning: {warning}" for warning in summary.warnings]


def _retry_lines(status: Status) -> list[str]:
    lines = []
    for retry in status.retries:
        done = f"{sum(shard.done for shard in retry.shards)} of {len(retry.shards)} shards done"
        state = f"done: {retry.videos} videos" if retry.finished else f"{done}, not counted yet"
        lines += [f"retry {retry.number:<4}{state}", *(f"          {line}" for line in retry.tried)]
    return lines


def _training_lines(status: Status) -> list[str]:
    lines = []
    if status.trained:
        trained = status.trained
        lines.append(
            f"training  done: {trained.epochs} epochs, {trained.stopped}; best checkpoint step {trained.best_step}"
        )
        if not trained.exact:
            lines.append(f"          {INEXACT}")
    else:
        lines.append(f"training  {len(status.epochs)} epochs done" if status.epochs else "training  not begun")
    if status.epochs:
        lines.append("          epoch  step   seconds  loss    accuracy  val loss  val AUC")
    for epoch in status.epochs:
        lines.append(
            f"          {epoch.epoch:>5}  {epoch.step:>5}  {epoch.seconds:>6.1f}  {epoch.train_loss:.4f}  "
            f"{epoch.train_accuracy:.4f}    {_number(epoch.validation_loss)}    {_number(epoch.validation_auc)}"
        )
    for attempt in status.attempts:
        lines.append(f"          attempt {attempt.attempt}: {attempt.reason or 'running'}")
    return lines


def _model_lines(status: Status) -> list[str]:
    if status.model is None:
        return ["model     not exported"]
    return [
        f"model     {status.run}/{layout.MODEL}: step {status.model.step}, threshold {status.model.threshold:.4f} "
        f"at a prior of {status.model.prior:g} fakes",
        f"report    {status.run}/{layout.REPORT}report.html",
    ]


def _number(value: float | None) -> str:
    return "  -   " if value is None else f"{value:.4f}"
