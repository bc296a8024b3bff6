"""What a finished stage has come to, in words, and whether the next one may build on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deepfake_detector.adapters.rounds import half_done_retry, load_summary, round_storage
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, Stage
from deepfake_detector.core.errors import CorruptError
from deepfake_detector.core.losses import require_few_lost
from deepfake_detector.display import describe_records
from deepfake_detector.stages.runs import has_config, records_storage

# A training Job also exports, so it has come to its end when the model is there.
MARKERS: Mapping[Stage, str] = {
    "preprocess": layout.RECORDS_SUMMARY,
    "train": layout.DETECTOR,
    "export": layout.DETECTOR,
}


def is_done(run: Storage, stage: Stage, retry: int = 0) -> bool:
    """Whether the marker is there with which the stage's Job ends. retry: number of the round for lost videos."""
    if retry:
        return round_storage(run, retry).exists(MARKERS[stage])
    if stage == "preprocess":
        return has_config(run) and records_storage(run).exists(MARKERS[stage])
    return run.exists(MARKERS[stage])


def describe(run: Storage, stage: Stage) -> list[str]:
    """Lines on the result of a stage that is done, and the next command."""
    if stage == "preprocess":
        records = records_storage(run)
        lines = [f"preprocess: done, {records.uri}/records", *describe_records(load_summary(records))]
        if number := half_done_retry(records):
            return [*lines, f"next: make preprocess RUN={records.uri} RETRY_LOST=1 (retry {number} is half done)"]
        return [*lines, f"next: make train RUN={run.uri}"]
    metrics = _metrics(run)
    return [
        f"{stage}: done, {run.uri}/{layout.MODEL}",
        *describe_test(metrics),
        f"  report: {run.uri}/{layout.REPORT}report.html",
        f"next: make pull-model RUN={run.uri}",
    ]


def _metrics(run: Storage) -> dict[str, Any]:
    where = f"{run.uri}/{layout.REPORT_METRICS}"
    try:
        metrics = json.loads(run.read(layout.REPORT_METRICS))
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: expected JSON ({error})") from None
    if not isinstance(metrics, dict):
        raise CorruptError(f"{where}: expected a JSON object")
    return metrics


def describe_test(metrics: Mapping[str, Any]) -> list[str]:
    """The test split's figures; metrics: content of report/metrics.json."""
    test = metrics["test"]["all"]
    figures = ("auc", "AUC"), ("equal_error_rate", "equal error rate"), ("log_loss_balanced", "log loss")
    return [
        f"  test: {test['videos']} videos ({test['real']} real, {test['fake']} fake)",
        "  test: "
        + ", ".join(f"{label} {_figure(test, name)}" for name, label in (*figures, ("accuracy", "accuracy"))),
    ]


def require_good(records: Storage, config: Config) -> None:
    """Raise DataError when preprocessing lost more videos than operations.max_lost_fraction allows."""
    where = f"{records.uri}/{layout.RECORDS_SUMMARY}"
    require_few_lost(load_summary(records), config.operations.max_lost_fraction, where)


def _figure(block: Mapping[str, Any], name: str) -> str:
    if block[name] is None:
        return f"not available ({block['reasons'][name]})"
    return f"{block[name]:.4f}"
