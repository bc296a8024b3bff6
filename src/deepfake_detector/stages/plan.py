"""The plan: list the videos, group and split them, and commit the result to the run. Index 0 of preprocessing does it.

The videos are only listed and their small metadata files read; no video is opened here.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Iterable

from pydantic import TypeAdapter, ValidationError

from deepfake_detector import __version__
from deepfake_detector.adapters.storage import Storage, crc32c_of, fetch_bytes, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, fingerprint, require_same, stage_settings
from deepfake_detector.core.datasets import find_videos
from deepfake_detector.core.errors import ConfigError, CorruptError, WaitError
from deepfake_detector.core.markers import PlanSummary, StoredFile, decode
from deepfake_detector.core.outcomes import PlannedVideo, VideoOutcome
from deepfake_detector.core.plan import Plan, plan_videos

PROGRESS_EVERY = 1000  # listed names
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.1, 5.0

_VIDEO = TypeAdapter(PlannedVideo)


def make_plan(run: Storage, config: Config, *, progress: Callable[[int], None] | None = None) -> PlanSummary:
    """Plan the videos under config.data.videos and commit the plan to the run; the plan that is there is kept.

    progress: called with the number of names listed so far. Raises ConfigError when the run's plan was made with
    other settings, DataError when the videos cannot become a detector (see `find_videos` and `plan_videos`).
    """
    if run.exists(layout.PLAN):
        return committed_plan(run, config)
    if not config.data.videos:
        raise ConfigError("data.videos='': expected the folder or gs:// prefix that holds the videos")
    videos = open_storage(config.data.videos, patient=True)
    found = find_videos(list_sizes(videos, progress), videos.read, videos.uri)
    plan = plan_videos(found, config.data, videos.uri)
    return commit_plan(run, config, plan, shards=config.data.shards, found=found.lines, lost=found.lost)


def commit_plan(
    run: Storage, config: Config, plan: Plan, *, shards: int, found: list[str], lost: list[VideoOutcome]
) -> PlanSummary:
    """Write the plan and its marker, create-only, unless another one has come first; returns what is there then."""
    data = encode_videos(plan.videos)
    if not run.create(layout.PLAN_VIDEOS, data):
        # Left by a planner that was killed, from other videos than are listed now; or its marker has just come.
        if run.exists(layout.PLAN):
            return committed_plan(run, config)
        run.write(layout.PLAN_VIDEOS, data)
    settings = stage_settings(config, "plan")
    summary = PlanSummary(
        settings=settings,
        fingerprint=fingerprint(settings),
        code_version=__version__,
        videos=StoredFile(name=layout.PLAN_VIDEOS, size=len(data), crc32c=crc32c_of(data)),
        found=found,
        shards=shards,
        groups=plan.groups,
        counts=plan.counts,
        lost=lost,
        warnings=plan.warnings,
    )
    if not run.create(layout.PLAN, summary.encode()):
        return committed_plan(run, config)
    return summary


def load_plan(run: Storage) -> tuple[PlanSummary, list[PlannedVideo]]:
    """The committed plan, its videos sorted by key.

    Raises NotFoundError when there is none yet, CorruptError when it is not what its marker commits.
    """
    summary = decode(PlanSummary, run.read(layout.PLAN), f"{run.uri}/{layout.PLAN}")
    return summary, decode_videos(fetch_bytes(run, summary.videos), f"{run.uri}/{summary.videos.name}")


def await_plan(run: Storage, config: Config, budget_seconds: float) -> PlanSummary:
    """Wait for the plan that another index makes.

    Raises WaitError when it is not there within the budget, ConfigError when it was made with other settings.
    """
    deadline = time.monotonic() + budget_seconds
    pause = FIRST_POLL_SECONDS
    while not run.exists(layout.PLAN):
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitError(
                f"{run.uri}/{layout.PLAN}: not there after {budget_seconds:g} s: expected index 0 to make the plan "
                "(see its log, or raise operations.plan_wait_seconds)"
            )
        time.sleep(min(pause, left))
        pause = min(2 * pause, LAST_POLL_SECONDS)
    return committed_plan(run, config)


def encode_videos(videos: Iterable[PlannedVideo]) -> bytes:
    """One JSON object per line, gzip-compressed without a time stamp: equal plans, equal bytes."""
    lines = b"".join(_VIDEO.dump_json(video) + b"\n" for video in videos)
    return gzip.compress(lines, compresslevel=6, mtime=0)


def decode_videos(data: bytes, where: str) -> list[PlannedVideo]:
    """The inverse of `encode_videos`. Raises CorruptError naming `where` and the line."""
    try:
        lines = gzip.decompress(data).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptError(f"{where}: expected gzip ({error})") from None
    videos = []
    for number, line in enumerate(lines, start=1):
        try:
            videos.append(_VIDEO.validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the line"
            raise CorruptError(f"{where}, line {number}: {field}: expected a planned video ({first['msg']})") from None
    return videos


def committed_plan(run: Storage, config: Config) -> PlanSummary:
    """The plan's marker. Raises NotFoundError without one, ConfigError when it was made with other settings."""
    where = f"{run.uri}/{layout.PLAN}"
    summary = decode(PlanSummary, run.read(layout.PLAN), where)
    require_same(stage_settings(config, "plan"), summary.settings, f"the plan {where}")
    return summary


def list_sizes(videos: Storage, progress: Callable[[int], None] | None = None) -> dict[str, int]:
    """Name -> bytes of every object; progress: called with the number of names so far."""
    sizes: dict[str, int] = {}
    for entry in videos.list():
        sizes[entry.name] = entry.size
        if progress and len(sizes) % PROGRESS_EVERY == 0:
            progress(len(sizes))
    if progress:
        progress(len(sizes))
    return sizes
