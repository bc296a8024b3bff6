"""A run's settings: stored in config.json, and never silently different from what finished stages were made with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import config as settings
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, Stage
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError
from deepfake_detector.core.markers import (
    CheckpointMarker,
    DetectorManifest,
    Marker,
    PlanSummary,
    ShardReport,
    TrainedMarker,
    decode,
)

RECORDS_SECTIONS = ("data", "sampling", "faces", "limits")


def has_config(run: Storage) -> bool:
    return run.exists(layout.CONFIG)


def has_begun(run: Storage, stage: Stage) -> bool:
    """The stage has committed something, a checkpoint for instance."""
    return any(stage == begun for begun, _, _ in _markers(run))


def load_config(run: Storage) -> Config:
    """The resolved settings of the run; raises NotFoundError before anything was submitted to it."""
    return settings.parse(_document(run)["resolved"], f"{run.uri}/{layout.CONFIG}")


def load_given(run: Storage) -> dict[str, Any]:
    """What the user gave: recipe, set (key=value strings), videos, records."""
    return dict(_document(run)["given"])


def records_storage(run: Storage) -> Storage:
    """The run whose records are trained on: another one where `--records` named it, or the run itself."""
    uri = _document(run)["records"]
    return open_storage(uri) if uri else run


def save_config(
    run: Storage, config: Config, given: Mapping[str, Any], records: str = "", active: Collection[Stage] = ()
) -> None:
    """Write config.json, unless the settings may not change (require_agreement)."""
    require_agreement(run, config, records, active)
    document = {"given": dict(given), "resolved": config.model_dump(mode="json"), "records": records}
    run.write(layout.CONFIG, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def require_agreement(run: Storage, config: Config, records: str = "", active: Collection[Stage] = ()) -> None:
    """Raise ConfigError naming the first setting that differs from those of a stage that has begun.

    active: stages at work without a marker yet, bound by the settings that are stored now.
    """
    recorded = _document(run)["records"] if has_config(run) else records
    for stage, theirs, where in _bindings(run, active):
        wanted = settings.stage_settings(config, stage)
        settings.require_same(wanted, _comparable(wanted, theirs), where)
        if recorded != records:
            raise ConfigError(f"--records {records!r}: expected {recorded!r}, with which {where} was made")


def inherit_records(config: Config, given: Collection[str], records: Storage) -> Config:
    """`config` with the settings that the records of another run were made with.

    given: the dotted settings that the user named; one of them that differs from the records' is refused.
    """
    theirs = load_config(records)
    made_with = settings.flat(theirs, *RECORDS_SECTIONS)
    ours = settings.flat(config, *RECORDS_SECTIONS)
    for name in sorted(set(given) & made_with.keys()):
        if ours[name] != made_with[name]:
            raise ConfigError(
                f"{name}={ours[name]!r}: expected {made_with[name]!r}, with which {records.uri} made its records"
            )
    return config.model_copy(update={section: getattr(theirs, section) for section in RECORDS_SECTIONS})


def _document(run: Storage) -> dict[str, Any]:
    where = f"{run.uri}/{layout.CONFIG}"
    try:
        document = json.loads(run.read(layout.CONFIG))
    except NotFoundError:
        raise NotFoundError(
            f"{where}: not found, expected the settings of a run (is {run.uri} a run folder?)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: expected JSON ({error})") from None
    parts = {"given": dict, "resolved": dict, "records": str}
    if not isinstance(document, dict) or any(not isinstance(document.get(name), parts[name]) for name in parts):
        raise CorruptError(f"{where}: expected an object with given, resolved (objects) and records (a string)")
    return document


def _bindings(run: Storage, active: Collection[Stage]) -> Iterator[tuple[Stage, Mapping[str, Any], str]]:
    """The settings that cannot change any more: of which stage, and of what of it."""
    if active:
        stored = load_config(run)
        for stage in active:
            yield stage, settings.stage_settings(stored, stage), f"the {stage} Job at work on {run.uri}"
    for stage, marker, name in _markers(run):
        yield stage, marker.settings, f"{run.uri}/{name}"


def _comparable(wanted: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A marker's settings, reduced to those that its stage depends on."""
    return {name: theirs.get(name) for name in wanted}


def _markers(run: Storage) -> Iterator[tuple[Stage, Marker, str]]:
    """One marker of each stage that has begun, earliest stage first."""
    if run.exists(layout.PLAN):
        yield "plan", decode(PlanSummary, run.read(layout.PLAN), layout.PLAN), layout.PLAN
    report = next((entry.name for entry in run.list("records/") if layout.is_shard_report(entry.name)), None)
    if report:
        yield "preprocess", decode(ShardReport, run.read(report), report), report
    checkpoint = next((e.name for e in run.list(layout.CHECKPOINTS) if layout.is_checkpoint_marker(e.name)), None)
    if run.exists(layout.TRAINED):
        yield "train", decode(TrainedMarker, run.read(layout.TRAINED), layout.TRAINED), layout.TRAINED
    elif checkpoint:
        yield "train", decode(CheckpointMarker, run.read(checkpoint), checkpoint), checkpoint
    if run.exists(layout.DETECTOR):
        yield "export", decode(DetectorManifest, run.read(layout.DETECTOR), layout.DETECTOR), layout.DETECTOR
