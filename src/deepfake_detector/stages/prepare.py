"""From what a user typed to a run folder with settled settings, before any work is spent."""

from __future__ import annotations

from collections.abc import Sequence

from deepfake_detector.adapters.machine import cpu_limit
from deepfake_detector.adapters.storage import Storage, open_object, open_storage
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import ConfigError, NotFoundError
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages.runs import has_begun, inherit_records, load_config, save_config


def prepare_run(
    run_uri: str, *, recipe: str, assignments: Sequence[str], videos: str = "", records: str = ""
) -> tuple[Storage, Config]:
    """Resolve the settings, check them against what the run already holds, and store them in config.json.

    assignments: `key=value` strings; videos or records: where the videos, or another run's records, are; both may be
    given where they agree.
    Raises ConfigError (unknown key, bad value, a setting that differs from a finished stage's) and NotFoundError
    (no such run behind `records`, no such backbone weights). Nothing is written when it raises.
    """
    run = open_storage(run_uri)
    config = resolve(recipe, assignments)
    given = {assignment.partition("=")[0].strip() for assignment in assignments}
    if "data.videos" in given:
        raise ConfigError("--set data.videos: expected the folder as --videos")
    if records:
        records = open_storage(records).uri
        if records == run.uri:
            raise ConfigError(f"--records {records}: expected another run than --run")
        config = inherit_records(config, given, open_storage(records))
        if videos and open_storage(videos).uri != config.data.videos:
            raise ConfigError(
                f"--videos {videos}: expected {config.data.videos}, from which {records} made its records"
            )
    else:
        config = override(config, {"data.videos": open_storage(videos).uri}, "--videos")
    _require_weights(config.model.weights)
    config = _share_decoders(_settle_threads(config, run))
    save_config(
        run, config, {"recipe": recipe, "set": list(assignments), "videos": videos, "records": records}, records
    )
    return run, config


def _settle_threads(config: Config, run: Storage) -> Config:
    """Freeze the intra-op threads of a worker: the bits of the weights depend on them.

    A run whose training has begun keeps its own; any other shares this machine's CPUs among its local workers.
    """
    if config.train.threads:
        return config
    recorded = load_config(run).train.threads if has_begun(run, "train") else 0
    threads = recorded or max(1, cpu_limit() // config.train.workers)
    return override(config, {"train.threads": threads}, "this machine's CPUs")


def _require_weights(uri: str) -> None:
    """Find out now, and not after hours of preprocessing, that the backbone's weights are not there."""
    if uri == "none":
        return
    storage, name = open_object(uri)
    if not storage.exists(name):
        raise NotFoundError(f"model.weights={uri}: not found, expected a .weights.h5 file or 'none'")


def _share_decoders(config: Config) -> Config:
    """Decoding processes of one shard, settled anew each time: as many shards as CPUs are worked on together."""
    if config.operations.decoders:
        return config
    return override(config, {"operations.decoders": max(1, cpu_limit() // config.data.shards)}, "this machine's CPUs")
