"""A run's settings: stored in config.json, and never silently different from what finished stages were made with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import config as settings
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, Stage
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError, StorageError
from deepfake_detector.core.markers import (
    CheckpointMarker,
    DetectorManifest,
    Marker,
    PlanSummary,
    ShardReport,
    TrainedMarker,
    decode,
)
from deepfake_detector.training import checkpoints

RECORDS_SECTIONS = ("data", "sampling", "faces", "limits")
KEEP_ROUNDS = 5  # more means that somebody writes config.json all the time


@dataclass(frozen=True)
class Settlement:
    """The content of config.json.

    given: what the user gave: recipe, set (key=value strings), videos, records. records: URI of the run whose records
    are trained on, where `--records` named one, or "" for the run's own.
    """

    config: Config
    given: Mapping[str, Any] = field(default_factory=dict)
    records: str = ""

    def encode(self) -> bytes:
        document = {"given": dict(self.given), "resolved": self.config.model_dump(mode="json"), "records": self.records}
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()

    def fingerprint(self, stage: Stage) -> str:
        """Of all that a Job of the stage is bound to (SHA-256, hex): its settings, and whose records it uses."""
        records = {"records": self.records} if self.records else {}
        return settings.fingerprint({**_job_settings(self.config, stage), **records})

    def records_of(self, run: Storage) -> Storage:
        """The run whose records are trained on: another one, or `run` itself."""
        return open_storage(self.records) if self.records else run


def has_config(run: Storage) -> bool:
    return run.exists(layout.CONFIG)


def has_begun(run: Storage, stage: Stage) -> bool:
    """The stage has committed something, a checkpoint for instance."""
    return bool(first_marker(run, stage))


def first_marker(run: Storage, stage: Stage) -> str:
    """The name of something that the stage has committed; "" where it has not begun."""
    return next((name for begun, _, name in _markers(run) if begun == stage), "")


def trained_records(run: Storage) -> str | None:
    """The fingerprint of the records that the run's training has begun with; None where it has not begun."""
    for _, marker, _ in _markers(run):
        if isinstance(marker, TrainedMarker):
            return marker.records_fingerprint
        if isinstance(marker, CheckpointMarker):
            return marker.state.records_fingerprint
    return None


def load_settlement(run: Storage) -> Settlement:
    """All of config.json by one read; raises NotFoundError before anything was submitted to the run."""
    document = _document(run)
    config = settings.parse(document["resolved"], f"{run.uri}/{layout.CONFIG}")
    return Settlement(config, document["given"], document["records"])


def load_config(run: Storage) -> Config:
    """The resolved settings of the run; raises NotFoundError before anything was submitted to it."""
    return load_settlement(run).config


def load_given(run: Storage) -> dict[str, Any]:
    """What the user gave: recipe, set (key=value strings), videos, records."""
    return dict(_document(run)["given"])


def records_storage(run: Storage, *, patient: bool = False) -> Storage:
    """The run whose records are trained on: another one where `--records` named it, or the run itself.

    patient: as in `open_storage`, of another one.
    """
    uri = _document(run)["records"]
    return open_storage(uri, patient=patient) if uri else run


def save_config(run: Storage, config: Config, given: Mapping[str, Any], records: str = "") -> None:
    """Write config.json. Whether the settings may change is asked before (require_agreement)."""
    run.write(layout.CONFIG, Settlement(config, given, records).encode())


def store_settlement(run: Storage, settlement: Settlement, version: int) -> bool:
    """Write config.json where it has still the `version` (Storage.version); False when it was changed since.

    Settings that are there already are not written again. What they may not contradict is not looked at.
    """
    content = settlement.encode()
    if version and run.read(layout.CONFIG) == content:
        return True
    return run.replace(layout.CONFIG, content, version)


def keep_settlement(run: Storage, settlement: Settlement, stage: Stage) -> None:
    """Have config.json hold the settings with which the stage's Job was created, once it is created.

    It is written in any case: a client that has not seen the Job, and is about to store other settings, must find
    another version than the one that it has read. Settings that the stage does not depend on stay as they are stored.
    Raises StorageError when it is changed all the time.
    """
    for _ in range(KEEP_ROUNDS):
        version = run.version(layout.CONFIG)
        stored = load_settlement(run) if version else settlement
        agreed = stored if stored.fingerprint(stage) == settlement.fingerprint(stage) else settlement
        if run.replace(layout.CONFIG, agreed.encode(), version):
            return
    raise StorageError(
        f"{run.uri}/{layout.CONFIG}: changed by others {KEEP_ROUNDS} times in a row, expected it to stay"
    )


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
            yield _last_stage(stage), _job_settings(stored, stage), f"the {stage} Job at work on {run.uri}"
    for stage, marker, name in _markers(run):
        yield stage, marker.settings, f"{run.uri}/{name}"


def _job_settings(config: Config, stage: Stage) -> dict[str, Any]:
    """What a Job of the stage depends on."""
    return settings.stage_settings(config, _last_stage(stage))


def _last_stage(stage: Stage) -> Stage:
    """Which a Job of the stage works on last: a training Job exports, too."""
    return "export" if stage == "train" else stage


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
    if run.exists(layout.TRAINED):
        yield "train", decode(TrainedMarker, run.read(layout.TRAINED), layout.TRAINED), layout.TRAINED
    elif checkpoint := next(checkpoints.markers(run), None):
        yield "train", checkpoint, layout.checkpoint_marker(checkpoint.step)
    if run.exists(layout.DETECTOR):
        yield "export", decode(DetectorManifest, run.read(layout.DETECTOR), layout.DETECTOR), layout.DETECTOR
