"""Records by position: staged TFRecord files, and the tf.data pipelines that read them.

There is no shuffle buffer and no skip(): element k of the pipeline is a pure function of k, so that training
starts at any step at once.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deepfake_detector.adapters.files import require_room
from deepfake_detector.adapters.records import read_record
from deepfake_detector.adapters.rounds import Round, finished_rounds, read_reports
from deepfake_detector.adapters.storage import Storage, fetch_file
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.markers import RecordFile, RecordsSummary, ShardReport
from deepfake_detector.core.order import Order, worker_slice
from deepfake_detector.core.sequences import RecordEntry

DOWNLOADS = 8  # files at once: one connection does not fill a pod's network
PREFETCH = 4  # batches
LEAST_URGENT = 19  # as nice(1) counts


@dataclass(frozen=True)
class Records:
    """Finished preprocessing: its rounds, all their files by round, split and shard, and a digest of their content."""

    rounds: Sequence[Round]
    files: list[RecordFile]
    fingerprint: str

    @property
    def summary(self) -> RecordsSummary:
        """The totals over these rounds."""
        return self.rounds[-1].summary


def open_records(run: Storage, fingerprint: str = "") -> Records:
    """Read the markers of `run`'s records, those of finished retries included.

    fingerprint: of the records that a training began with: rounds only ever follow, so those up to it are these
    records still. Without it, or where none are these, all rounds. Raises NotFoundError when preprocessing has not
    finished.
    """
    rounds = finished_rounds(run)
    if not rounds:
        raise NotFoundError(f"{run.uri}/{layout.RECORDS_SUMMARY}: not found, expected finished records")
    return records_of(rounds, (read_reports(each.storage, each.shards) for each in rounds), fingerprint)


def records_of(rounds: Sequence[Round], reports: Iterable[Sequence[ShardReport]], fingerprint: str = "") -> Records:
    """As `open_records`, of finished rounds, one or more, and each one's reports."""
    files = [_files(each, its) for each, its in zip(rounds, reports, strict=True)]
    every = _records(rounds, files)
    if fingerprint in ("", every.fingerprint):
        return every
    earlier = (_records(rounds[:count], files[:count]) for count in range(1, len(rounds)))
    return next((records for records in earlier if records.fingerprint == fingerprint), every)


def _files(of: Round, reports: Iterable[ShardReport]) -> list[RecordFile]:
    """The files of a round, named as seen from the run."""
    return [file.model_copy(update={"name": of.prefix + file.name}) for report in reports for file in report.files]


def _records(rounds: Sequence[Round], files: Sequence[Sequence[RecordFile]]) -> Records:
    """Files are in the order of their names, so that the first round's come first and each retry's after them."""
    ordered = sorted((file for each in files for file in each), key=lambda file: file.name)
    content = "\n".join(f"{file.name} {file.size} {file.crc32c}" for file in ordered)
    return Records(rounds, ordered, hashlib.sha256(content.encode()).hexdigest())


class Split:
    """The records of one split on local disk; record i is `entries[i]`, in file and record order.

    labels: int64 (n,). damage: the first error of `read`, of which a pipeline keeps only the text (`damage_named`).
    Thread-safe. Holds one open descriptor per file until `close`.
    """

    def __init__(self, name: str, files: Sequence[tuple[RecordFile, Path]]) -> None:
        self.name = name
        self.entries: list[RecordEntry] = [entry for file, _ in files for entry in file.records]
        self.labels: npt.NDArray[np.int64] = np.array([entry.label for entry in self.entries], dtype=np.int64)
        self.damage: CorruptError | None = None
        self._paths = [path for _, path in files]
        self._descriptors = [os.open(path, os.O_RDONLY) for path in self._paths]
        self._file_of = np.repeat(np.arange(len(files)), [len(file.records) for file, _ in files])

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> bytes:
        """The payload of record `index`, a serialised SequenceExample; raises CorruptError."""
        entry, file = self.entries[index], self._file_of[index]
        try:
            return read_record(self._descriptors[file], entry.offset, entry.length, str(self._paths[file]))
        except CorruptError as error:
            self.damage = self.damage or error
            raise

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


@contextmanager
def damage_named(*splits: Split) -> Iterator[None]:
    """While pipelines over `splits` are read: raises CorruptError where a record is damaged.

    TensorFlow makes an UnknownError of every error that is raised in a numpy_function.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        for split in splits:
            if split.damage:
                raise split.damage from error
        raise


def open_split(run: Storage, split: str, scratch: Path, records: Records | None = None) -> Split:
    """The records of `split` ("train", "validation", "test"), staged under `scratch`.

    A local run is read where it is. Raises NotFoundError without finished records, CorruptError where a file
    disagrees with its shard's report, StorageError where `scratch` has no room for them all.
    """
    files = [file for file in (records or open_records(run)).files if file.split == split and file.records]
    if "://" in run.uri:
        missing = [file.size for file in files if not _staged(file, scratch).exists()]
        require_room(scratch, sum(missing), f"{len(missing)} files of {split} records of {run.uri}")
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        paths = list(pool.map(lambda file: _stage(run, file, scratch), files))
    return Split(split, list(zip(files, paths, strict=True)))


def _stage(run: Storage, file: RecordFile, scratch: Path) -> Path:
    """The local path of a record file: in place, staged by an earlier attempt, or downloaded now."""
    if "://" not in run.uri:
        path = Path(run.uri) / file.name
        if not path.exists():
            raise NotFoundError(f"{path}: not found, expected the {file.size} bytes that its shard's report names")
        if path.stat().st_size != file.size:  # each record is checked as it is read
            raise CorruptError(f"{path}: {path.stat().st_size} bytes, expected {file.size}")
        return path
    path = _staged(file, scratch)
    fetch_file(run, file, path)
    return path


def _staged(file: RecordFile, scratch: Path) -> Path:
    return scratch / "records" / file.crc32c / file.name  # two runs' records may share the scratch folder


def decode_images(images: Any, size: int) -> Any:
    """JPEG bytes (T,) -> uint8 (T, S, S, 3). The accurate DCT: the default one depends on the platform."""
    import tensorflow as tf

    def one(image: Any) -> Any:
        decoded = tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.ensure_shape(decoded, (size, size, 3))

    return tf.map_fn(one, images, fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8))


def decode_payload(payload: Any, frames: int, size: int) -> Any:
    """A serialised SequenceExample (a string scalar) -> uint8 (T, S, S, 3)."""
    import tensorflow as tf

    features = {"image/encoded": tf.io.FixedLenSequenceFeature([], tf.string)}
    _, lists = tf.io.parse_single_sequence_example(payload, sequence_features=features)
    return decode_images(tf.ensure_shape(lists["image/encoded"], (frames,)), size)


def training_batches(split: Split, order: Order, config: Config, rank: int, workers: int, start_step: int) -> Any:
    """Endless tf.data.Dataset of worker `rank`'s slices from step `start_step` on.

    Elements: uint8 (b, T, S, S, 3) and float32 labels (b, 1), with b = global_batch / workers.
    """
    import tensorflow as tf

    from deepfake_detector.training.augment import augment, clip_seed

    frames, size, seed = config.sampling.frames, config.faces.size, config.train.seed
    positions = worker_slice(config.train.global_batch, rank, workers)
    current: tuple[int, list[int]] = (-1, [])

    def load(element: int) -> tuple[bytes, np.int64, np.int64, np.float32]:
        nonlocal current  # determinism makes stateful maps sequential
        step, within = divmod(int(element), len(positions))
        if current[0] != step:
            current = (step, order.global_batch(step))
        position = positions[within]
        index = current[1][position]
        return split.read(index), np.int64(step), np.int64(position), np.float32(split.labels[index])

    def read(element: Any) -> Any:
        kinds = (tf.string, tf.int64, tf.int64, tf.float32)
        return [tf.ensure_shape(value, ()) for value in tf.numpy_function(load, [element], kinds)]

    def sample(payload: Any, step: Any, position: Any, label: Any) -> Any:
        clip = decode_payload(payload, frames, size)
        if config.train.augment:
            clip = augment(clip, clip_seed(seed, step, position))
        return clip, label[None]

    elements = tf.data.Dataset.counter(start_step * len(positions))
    loaded = elements.map(read).map(sample, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    # Threads of its own, started by the thread that asks first, whose priority they inherit.
    options.threading.private_threadpool_size = tf.config.threading.get_intra_op_parallelism_threads()
    return loaded.batch(len(positions), drop_remainder=True).with_options(options)


class Ahead:
    """An iterator whose next elements are made ahead by a thread; errors are raised where the element is taken.

    tf.data's own prefetch does not help here: with op determinism on, TensorFlow makes a pipeline synchronous that
    calls Python (as measured: the loop waited for input during 0.24 of a step). The thread is the least urgent of
    the process: a worker that prepares input while its peers compute holds all of them up at the next all-reduce
    (two workers on a core each: a step of 1.14 s instead of 1.24 s).
    """

    def __init__(self, elements: Callable[[], Iterator[Any]], depth: int = PREFETCH) -> None:
        """elements: makes the iterator, in the thread."""
        self._elements = elements
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        element = self._queue.get()
        if isinstance(element, BaseException):
            raise element
        return element

    def close(self) -> None:
        """End the thread; elements made ahead are dropped."""
        self._stopped.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get(timeout=0.01)

    def _fill(self) -> None:
        try:
            if sys.platform == "linux":  # where a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)
            elements = self._elements()
            while not self._stopped.is_set():
                self._queue.put(next(elements))
        except BaseException as error:
            self._queue.put(error)


def evaluation_batches(split: Split, indices: Sequence[int], batch: int, frames: int, size: int) -> Any:
    """tf.data.Dataset of uint8 (up to `batch`, T, S, S, 3): the records `indices`, in that order, as they are."""
    import tensorflow as tf

    def read(index: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(lambda i: split.read(int(i)), [index], tf.string), ())

    return (
        tf.data.Dataset.from_tensor_slices(np.asarray(indices, dtype=np.int64))
        .map(read)
        .map(
            lambda payload: decode_payload(payload, frames, size),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .batch(batch)
        .prefetch(PREFETCH)
    )
