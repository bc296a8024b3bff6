"""One life of a training process: TensorFlow set up for exact repetition, the strategy, the records, the loop."""

from __future__ import annotations

import faulthandler
import logging
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepfake_detector.adapters.machine import code_version, cpu_limit, cpu_model
from deepfake_detector.adapters.rounds import require_no_half_done_retry
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.adapters.tensorflow_import import import_tensorflow
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, flat, require_same, stage_settings
from deepfake_detector.core.errors import ConfigError, WaitError
from deepfake_detector.core.losses import require_few_lost
from deepfake_detector.core.markers import CheckpointMarker, RecordsSummary, TrainedMarker, decode
from deepfake_detector.core.timeline import Timeline
from deepfake_detector.core.topology import Cluster
from deepfake_detector.training import checkpoints
from deepfake_detector.training.dataset import Records, damage_named, open_records, open_split
from deepfake_detector.training.task import Splits, Task

log = logging.getLogger(__name__)
POLL_SECONDS = 0.02


class Watchdog:
    """Ends the process, status 1 with a traceback, unless stopped in time.

    faulthandler's own thread is the only one that can while TensorFlow holds Python's lock.
    """

    def __init__(self, startup_seconds: float, stall_seconds: float) -> None:
        self._startup, self._stall = startup_seconds, stall_seconds
        self._running = False
        self._again = 0.0  # when progress is worth another thread

    def start(self) -> None:
        self._arm(self._startup)

    def progress(self) -> None:
        if time.monotonic() >= self._again:
            self._arm(self._stall)
            self._again = time.monotonic() + 1.0

    def _arm(self, seconds: float) -> None:
        self._running = True
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    def stop(self) -> None:
        if self._running:
            faulthandler.cancel_dump_traceback_later()
            self._running = False


def run_worker(
    run_uri: str,
    config: Config,
    cluster: Cluster,
    scratch: Path,
    records_uri: str,
    timeline: Timeline | None = None,
) -> None:
    """Train `config` on the records of `records_uri` as one worker of `cluster`; ends when training is committed.

    TF_CONFIG must be set to `cluster.tf_config()` when there are several workers. scratch: a folder of this
    worker's own, where records and checkpoints are staged. timeline: what is known of the moments before this one.
    Does nothing when the run's training is finished.

    Raises ConfigError (other settings than the run's, workers that do not match, a loss that is not finite),
    DataError (records that can't be trained on), CorruptError (a damaged record), WaitError (a peer went away),
    StorageError. A peer that does not come within operations.startup_seconds ends the process with status 1 and a
    traceback: TensorFlow waits for it with Python's lock held, so that no exception could be raised.
    """
    run, records_run = (open_storage(uri, patient=True) for uri in (run_uri, records_uri))
    if _is_trained(run, config):
        return
    if cluster.workers != config.train.workers:
        raise ConfigError(f"train.workers={config.train.workers}: expected {cluster.workers}, as in TF_CONFIG")
    records, threads = begun_with(run, records_run, config)
    task = Task(
        run=run,
        records_run=records_run,
        records=records,
        config=config,
        cluster=cluster,
        scratch=scratch,
        threads=threads,
        code_version=code_version(),
        machine=f"{cpu_model()}, {threads} threads",
        timeline=timeline or Timeline(),
    )
    task.timeline.mark("prepared")
    _train(task)


def _is_trained(run: Storage, config: Config) -> bool:
    """Whether the run's training is finished. Raises ConfigError when it was done with other settings."""
    if not run.exists(layout.TRAINED):
        return False
    where = f"{run.uri}/{layout.TRAINED}"
    marker = decode(TrainedMarker, run.read(layout.TRAINED), where)
    require_same(stage_settings(config, "train"), marker.settings, where)
    return True


def _train(task: Task) -> None:
    configure_tensorflow(task.threads)
    from deepfake_detector.training.loop import train

    task.timeline.mark("imported")
    operations = task.config.operations
    watchdog = Watchdog(operations.startup_seconds, operations.stall_seconds)
    try:
        with _peers_needed(task.cluster):
            watchdog.start()
            strategy = make_strategy(task.cluster, operations.heartbeat_seconds)
            watchdog.stop()
            task.timeline.mark("strategy")
            # Staging may take longer than any time limit; the peers wait in their first sum meanwhile.
            splits = Splits(
                *(open_split(task.records_run, name, task.scratch, task.records) for name in ("train", "validation"))
            )
            task.timeline.mark("staged")
            with damage_named(splits.train, splits.validation):
                train(task, splits, strategy, watchdog)
    finally:
        watchdog.stop()


@contextmanager
def _peers_needed(cluster: Cluster) -> Iterator[None]:
    """Raises WaitError where a peer goes away meanwhile."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        reason = (error.message or repr(error)).splitlines()[0]
        raise WaitError(f"worker {cluster.rank} of {cluster.workers}: expected all peers to go on: {reason}") from error


def begun_with(run: Storage, records_run: Storage, config: Config) -> tuple[Records, int]:
    """The records and the intra-op threads that the run's training has begun with, or is to begin with now.

    Raises ConfigError and DataError where these are no records for it, NotFoundError where there are none.
    """
    newest = next(checkpoints.markers(run), None)
    if not newest:
        require_no_half_done_retry(records_run)
    records = open_records(records_run, newest.state.records_fingerprint if newest else "")
    _require_usable(records.summary, config, records_run.uri)
    if newest:
        _require_same_records(newest, records, run, records_run.uri)
    return records, (newest.state.threads if newest else 0) or config.train.threads or cpu_limit()


def configure_tensorflow(threads: int) -> None:
    """Exact repetition: deterministic kernels and a frozen number of threads. To be called before the first op.

    TensorFlow would count the node's cores, not the container's limit, and the bits depend on the intra-op count.
    """
    import_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    tf.config.experimental.enable_op_determinism()
    accelerators = tf.config.list_physical_devices("GPU")
    if accelerators:  # one replica per worker: the batch's slices are counted so
        tf.config.set_visible_devices(accelerators[:1], "GPU")


def make_strategy(cluster: Cluster, heartbeat_seconds: int) -> Any:
    """MultiWorkerMirroredStrategy, which waits for all workers without limit; alone, TensorFlow's default."""
    import tensorflow as tf

    if cluster.workers == 1:
        return tf.distribute.get_strategy()
    _set_heartbeat(cluster, heartbeat_seconds)
    await_chief(cluster)
    on_cpu = not tf.config.list_physical_devices("GPU")
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    auto = tf.distribute.experimental.CommunicationImplementation.AUTO
    options = tf.distribute.experimental.CommunicationOptions(implementation=ring if on_cpu else auto)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def await_chief(cluster: Cluster) -> None:
    """Wait until the chief's TensorFlow listens, which it does before it waits for the others.

    A worker that comes too early is refused, and TensorFlow's coordination agent tries again after a whole second.
    Whoever calls bounds the time.
    """
    if cluster.chief:
        return
    host, _, port = cluster.addresses[0].rpartition(":")
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
        except OSError:
            time.sleep(POLL_SECONDS)
        else:
            return


def _set_heartbeat(cluster: Cluster, seconds: int) -> None:
    """Failure detection after `seconds`, by a private interface: where it is gone, TensorFlow's default holds."""
    try:
        from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
        from tensorflow.python.eager.context import context

        context().configure_coordination_service(
            service_type="standalone",
            service_leader="/job:worker/replica:0/task:0",
            coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=cluster.workers)],
            heartbeat_timeout_in_ms=seconds * 1000,
        )
    except (ImportError, AttributeError, TypeError) as error:
        log.warning("operations.heartbeat_seconds=%d not set, TensorFlow's default holds: %r", seconds, error)


def _require_usable(summary: RecordsSummary, config: Config, uri: str) -> None:
    where = f"{uri}/{layout.RECORDS_SUMMARY}"
    require_same(flat(config, "sampling", "faces"), _made_with(summary.settings), where)
    require_few_lost(summary, config.operations.max_lost_fraction, where)


def _require_same_records(marker: CheckpointMarker, records: Records, run: Storage, uri: str) -> None:
    """All checkpoints of a run are made with the same records, whatever retries of lost videos have added since."""
    if marker.state.records_fingerprint != records.fingerprint:
        raise ConfigError(
            f"{uri}: records {records.fingerprint[:12]}: expected {marker.state.records_fingerprint[:12]}, with which "
            f"{run.uri}/{layout.checkpoint_marker(marker.step)} was made (another RUN can train on these)"
        )


def _made_with(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith(("sampling.", "faces."))}
