"""From what a user typed to a run folder with settled settings, before any work is spent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deepfake_detector.adapters.machine import cpu_limit
from deepfake_detector.adapters.storage import Storage, open_object, open_storage
from deepfake_detector.core.config import Config, Stage, override
from deepfake_detector.core.errors import ConfigError, NotFoundError
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages.runs import (
    Settlement,
    has_begun,
    has_config,
    inherit_records,
    load_config,
    load_given,
    require_agreement,
    save_config,
)

DEFAULT_RECIPE = "dfdc"


@dataclass(frozen=True)
class Cpus:
    """Whole CPUs of the places where the work will be done: of one training pod, and of one preprocessing pod."""

    train_threads: int
    decoders: int


def prepare_run(
    run_uri: str,
    *,
    recipe: str | None,
    assignments: Sequence[str],
    videos: str = "",
    records: str = "",
    cpus: Cpus | None = None,
    active: Collection[Stage] = (),
) -> tuple[Storage, Config]:
    """Settle the settings (see `settle`), and store them in config.json. Nothing is written when it raises."""
    run = open_storage(run_uri)
    settlement = settle(
        run, recipe=recipe, assignments=assignments, videos=videos, records=records, cpus=cpus, active=active
    )
    save_config(run, settlement.config, settlement.given, settlement.records)
    return run, settlement.config


def settle(
    run: Storage,
    *,
    recipe: str | None,
    assignments: Sequence[str],
    videos: str = "",
    records: str = "",
    cpus: Cpus | None = None,
    active: Collection[Stage] = (),
) -> Settlement:
    """Resolve the settings, and check them against what the run already holds. Writes nothing.

    recipe: None goes on with what was given to the run before, `assignments` on top of it; a run without settings
    then starts from DEFAULT_RECIPE. assignments: `key=value` strings. videos or records: where the videos, or another
    run's records, are; both may be given where they agree; neither, as given to the run before. cpus: None is this
    machine, shared by its local workers. active: stages whose Job lives; it was made with the settings that are
    stored, which is as binding as a stage's marker.
    Raises ConfigError (unknown key, bad value, a setting that differs from those of a stage that is active or has
    begun) and NotFoundError (no such run behind `records`, no such backbone weights).
    """
    before = load_given(run) if has_config(run) else {}
    if recipe is None:
        recipe = before.get("recipe") or DEFAULT_RECIPE
        assignments = _merged([*before.get("set", ()), *assignments])
    if not videos and not records:
        videos, records = before.get("videos", ""), before.get("records", "")
    config, records = _sourced(run, resolve(recipe, assignments), _keys(assignments), videos, records)
    _require_weights(config.model.weights)
    config = _settle_decoders(_settle_threads(config, run, cpus, active), cpus)
    require_agreement(run, config, records, active)
    given = {"recipe": recipe, "set": list(assignments), "videos": videos, "records": records}
    return Settlement(config, given, records)


def _keys(assignments: Sequence[str]) -> set[str]:
    return {assignment.partition("=")[0].strip() for assignment in assignments}


def _merged(assignments: Sequence[str]) -> list[str]:
    """The last assignment of each setting."""
    return list({assignment.partition("=")[0].strip(): assignment for assignment in assignments}.values())


def _sourced(run: Storage, config: Config, given: set[str], videos: str, records: str) -> tuple[Config, str]:
    """`config` with its videos, or with the settings of the records; and the records' full URI."""
    if "data.videos" in given:
        raise ConfigError("--set data.videos: expected the folder as --videos")
    if not records:
        if not videos:
            raise ConfigError(
                f"--videos: expected a folder or gs:// prefix with labelled videos (none was given to {run.uri} before)"
            )
        return override(config, {"data.videos": open_storage(videos).uri}, "--videos"), ""
    source = open_storage(records)
    if source.uri == run.uri:
        raise ConfigError(f"--records {source.uri}: expected another run than --run")
    config = inherit_records(config, given, source)
    if videos and open_storage(videos).uri != config.data.videos:
        raise ConfigError(f"--videos {videos}: expected {config.data.videos}, from which {source.uri} made its records")
    return config, source.uri


def _settle_threads(config: Config, run: Storage, cpus: Cpus | None, active: Collection[Stage]) -> Config:
    """Freeze the intra-op threads of a worker: the bits of the weights depend on them.

    A run whose training has begun keeps its own, wherever it goes on.
    """
    if config.train.threads:
        return config
    recorded = load_config(run).train.threads if "train" in active or has_begun(run, "train") else 0
    if recorded:
        threads, where = recorded, "as before"
    elif cpus:
        threads, where = cpus.train_threads, "a training pod's CPU limit"
    else:
        threads, where = max(1, cpu_limit() // config.train.workers), "this machine's CPUs"
    return override(config, {"train.threads": threads}, where)


def _require_weights(uri: str) -> None:
    """Find out now, and not after hours of preprocessing, that the backbone's weights are not there."""
    if uri == "none":
        return
    storage, name = open_object(uri)
    if not storage.exists(name):
        raise NotFoundError(f"model.weights={uri}: not found, expected a .weights.h5 file or 'none'")


def _settle_decoders(config: Config, cpus: Cpus | None) -> Config:
    """Decoding processes of one shard, settled anew each time; here, as many shards as CPUs are worked on together."""
    if config.operations.decoders:
        return config
    if cpus:
        return override(config, {"operations.decoders": cpus.decoders}, "a preprocessing pod's CPU limit")
    return override(config, {"operations.decoders": max(1, cpu_limit() // config.data.shards)}, "this machine's CPUs")
