"""Names of everything inside a run folder, local or gs://. Data is written first, its marker last."""

from __future__ import annotations

import re

SPLITS = ("train", "validation", "test")

CONFIG = "config.json"
PLAN_VIDEOS = "plan/videos.jsonl.gz"
PLAN = "plan/summary.json"  # the plan's marker
RECORDS_SUMMARY = "records/summary.json"  # preprocessing's marker
CHECKPOINTS = "checkpoints/"
TRAINED = "checkpoints/trained.json"  # training's marker
ATTEMPTS = "logs/attempts/"
TERMS = "logs/train/terms/"  # where the supervisors of a training find the one that keeps their rendezvous
METRICS = "logs/metrics.jsonl"
TENSORBOARD = "logs/tensorboard/"
CHARTS = "report/charts.png"  # accuracy, loss and time per epoch
MODEL = "model/"
DETECTOR = "model/detector.json"  # the export's marker: calibration, threshold, prior, checksums
REPORT = "report/"
REPORT_METRICS = "report/metrics.json"
EXPORTS = "exports/"
RETRIES = "retries/"
# With CONFIG, all that a run consists of.
FOLDERS = ("plan/", "records/", RETRIES, CHECKPOINTS, "logs/", EXPORTS, MODEL, REPORT)


def is_object_name(name: str) -> bool:
    """Whether storage can address it: a relative path, without empty, "." or ".." parts, that stays in its root."""
    return "\0" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def records(split: str, shard: int, shards: int, crc32c: str) -> str:
    """The content is part of the name, so that two processes that make one shard never replace each other's bytes."""
    return f"{shard_records(split, shard, shards)}-{crc32c}.tfrecord"


def shard_records(split: str, shard: int, shards: int) -> str:
    """What the names of the shard's records begin with. Which of them count is said by its report alone."""
    return f"records/{split}/{shard:05d}-of-{shards:05d}"


def shard_report(shard: int, shards: int) -> str:
    """Marker of one shard, written after its records."""
    return f"records/{shard:05d}-of-{shards:05d}.json"


def is_shard_report(name: str) -> bool:
    return re.fullmatch(r"records/\d{5}-of-\d{5}\.json", name) is not None


def retry(number: int) -> str:
    """The folder of retry `number` (from 1): laid out like a run of its own, with plan, records and progress."""
    return f"{RETRIES}{number:05d}"


def progress(stage: str, index: int) -> str:
    """One small object per index: storage takes about one write per second per name."""
    return f"logs/{stage}/{index}/progress.json"


def checkpoint(step: int) -> str:
    return f"{CHECKPOINTS}{step:08d}/"


def checkpoint_marker(step: int) -> str:
    return f"{CHECKPOINTS}{step:08d}.json"


def checkpoint_step(name: str) -> int | None:
    """The step in a name of `checkpoint_marker`, or in one below `checkpoint`; None for any other name."""
    match = re.match(r"checkpoints/(\d{8})(\.json\Z|/)", name)
    return int(match[1]) if match else None


def is_checkpoint_marker(name: str) -> bool:
    return re.fullmatch(r"checkpoints/\d{8}\.json", name) is not None


def export_choice(fingerprint: str) -> str:
    """Which of the exports with these settings is the run's: the manifest that will be DETECTOR, created only."""
    return f"{EXPORTS}{fingerprint[:12]}.json"


def staged_export(digest: str) -> str:
    """The folder of an export's files until they are MODEL and REPORT; digest: SHA-256 (hex) of its manifest."""
    return f"{EXPORTS}{digest[:16]}/"


def attempts(shard: int | None = None) -> str:
    """The folder of attempts: training's and the export's together, or those of one shard's preprocessing."""
    return ATTEMPTS if shard is None else f"logs/preprocess/{shard}/attempts/"


def attempt(number: int, shard: int | None = None) -> str:
    """What one attempt was and why it ended: ranks, addresses, reason."""
    return f"{attempts(shard)}{number:05d}.json"


def attempt_number(name: str) -> int:
    """The number in a name of `attempt`."""
    return int(name.rpartition("/")[2].removesuffix(".json"))


def term(number: int) -> str:
    """Who kept the rendezvous of training from then on: ten digits, so that names sort by number."""
    return f"{TERMS}{number:010d}.json"


def term_number(name: str) -> int:
    """The number in a name of `term`."""
    return int(name.removeprefix(TERMS).removesuffix(".json"))


def log(stage: str, index: int, number: int) -> str:
    """The tail of one child's output, and why it ended."""
    return f"logs/{stage}/{index}/{number:05d}.log"


def supervisor_log(stage: str, index: int, number: int) -> str:
    """The same of a supervisor that did not succeed."""
    return f"logs/{stage}/{index}/supervisor-{number:05d}.log"
