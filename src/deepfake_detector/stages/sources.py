"""Videos as local files, wherever they are, and what becomes of one that cannot be had."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

from deepfake_detector.adapters.files import os_errors
from deepfake_detector.adapters.storage import Storage, crc32c_of
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError
from deepfake_detector.core.outcomes import PlannedVideo


def fetch_video(storage: Storage, name: str, folder: Path, number: int) -> tuple[Path, str]:
    """Copy a video into `folder`; its path there, and why its bytes cannot be had though it is in storage, or "".

    A video that is gone yields a path where nothing is: the decoder names that outcome. number: makes the copy's name
    unique. Raises StorageError, ConfigError.
    """
    # A name of our own: the object's may be longer than a file name can be.
    path = folder / f"{number}{PurePosixPath(name).suffix[:16]}"
    try:
        with suppress(NotFoundError):
            storage.download(name, path)
    except CorruptError as error:
        return path, str(error)
    return path, ""


class Sources:
    """The shard's videos as local files, fetched a little ahead of their use by a few threads.

    A video that is gone since the plan was made yields a path where nothing is: the decoder names that outcome. So
    does one whose bytes keep disagreeing with storage's checksum, which `unread` tells. Raises StorageError where a
    disk or a network is in trouble, which is not the video's.
    """

    def __init__(self, storage: Storage, videos: Iterable[PlannedVideo], folder: Path, ahead: int) -> None:
        self._storage, self._videos, self._folder, self._ahead = storage, list(videos), folder, ahead
        self._local = not storage.uri.startswith("gs://")
        self._threads = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="fetch")
        self.unread: dict[str, str] = {}  # key -> why its bytes cannot be had, though they are there
        self._checksums: dict[str, str] = {}
        self._copies: dict[str, Path] = {}

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for copy in self._copies.values():
            copy.unlink(missing_ok=True)

    def paths(self) -> Iterator[Path]:
        """Local paths in the order of the videos."""
        pending: deque[tuple[PlannedVideo, Future[tuple[Path, str]]]] = deque()
        waiting = iter(enumerate(self._videos))
        while True:
            while len(pending) <= self._ahead and (item := next(waiting, None)):
                pending.append((item[1], self._threads.submit(self._fetch, *item)))
            if not pending:
                return
            video, future = pending.popleft()
            path, self._checksums[video.key] = future.result()
            yield path

    def release(self, video: PlannedVideo) -> str:
        """The source's CRC-32C, "" when it is gone; its copy, if one was made, is removed."""
        copy = self._copies.pop(video.key, None)
        if copy:
            copy.unlink(missing_ok=True)
        return self._checksums.pop(video.key)

    def _fetch(self, number: int, video: PlannedVideo) -> tuple[Path, str]:
        if self._local:
            path = Path(self._storage.uri) / video.path
        else:
            path, reason = fetch_video(self._storage, video.path, self._folder, number)
            self._copies[video.key] = path
            if reason:
                self.unread[video.key] = reason
                return path, ""
        try:
            with os_errors(path):
                return path, crc32c_of(path)
        except (NotFoundError, ConfigError):  # gone, or not to be read by us, now and later
            return path, ""
