"""Training's ratios: folded time against TimeDistributed, two workers against one, input, checkpoints.

Every measurement is a process of its own, pinned with taskset where it compares cores: a TensorFlow process can't
change its threads.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepfake_detector.adapters.machine import cpu_limit
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.topology import ALONE, Cluster, parse_tf_config

FRAMES, SIZE, BATCH = 16, 128, 4
STEPS = {"compact": 14, "mobilenet_v3_small": 8}
WORKER_STEPS = 16
ROUNDS = 3  # of each pair, in turn, since a shared machine's speed drifts
RECIPE_BATCH = 16  # of a worker: the recipe dfdc has 32 over two


def run() -> list[dict[str, Any]]:
    """Rows of name, ratio, target and detail; takes about twelve minutes on two cores."""
    return [*_folding(), *_scaling(), *_checkpoints()]


def settings(backbone: str = "compact", workers: int = 1, batch: int = BATCH) -> Config:
    values = {"sampling.frames": FRAMES, "faces.size": SIZE, "model.backbone": backbone, "train.workers": workers}
    return override(Config(), {**values, "train.global_batch": batch}, "the benchmark")


def _row(name: str, ratio: float, target: str, detail: str) -> dict[str, Any]:
    return {"name": name, "ratio": ratio, "target": target, "detail": detail}


def _folding() -> list[dict[str, Any]]:
    rows = []
    for backbone, target in (("compact", ">= 1.8"), ("mobilenet_v3_small", ">= 2.5")):
        pairs = []
        for _ in range(ROUNDS):
            folded, spread = (_child("form", backbone, form)[0]["seconds"] for form in ("folded", "time_distributed"))
            pairs.append((BATCH / spread, BATCH / folded))
        ratio, spread_rate, folded_rate, extent = _summary(pairs)
        rates = f"{folded_rate:.1f} and {spread_rate:.1f} sequences/s"
        detail = f"{extent}; {rates} at batch {BATCH}, T={FRAMES}, {SIZE} px"
        rows.append(_row(f"{backbone}: folded over TimeDistributed", ratio, target, detail))
    return rows


def _summary(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float, str]:
    """The medians of second / first, of the first and of the second; and how far the ratios lie apart."""
    ratios = [second / first for first, second in pairs]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    extent = f"median of {len(pairs)}, from {min(ratios):.2f} to {max(ratios):.2f}"
    return statistics.median(ratios), first, second, extent


def _scaling() -> list[dict[str, Any]]:
    """Each worker on a core of its own, against one worker on one core with as many sequences a step."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return [_row("2 workers over 1", float("nan"), ">= 1.85", "needs two cores")]
    rows = []
    for batch, target in ((RECIPE_BATCH, ">= 1.85"), (BATCH, "-")):
        pairs = []
        for _ in range(ROUNDS):
            one = _child("worker", str(batch), clusters=[ALONE], cores=cores)[0]
            two = _child("worker", str(batch), clusters=_two_workers(), cores=cores)[0]
            pairs.append((batch / one["seconds"], 2 * batch / two["seconds"]))
        ratio, alone, together, extent = _summary(pairs)
        rates = f"{alone:.1f} and {together:.1f} sequences/s"
        detail = f"{extent}; {rates}, compact, batch {batch} each, pinned to a core each"
        rows.append(_row("2 workers over 1", ratio, target, detail))
    detail = "records, JPEG, augmentation; chief of 2"
    return [*rows, _row("waiting for input, share of a step", two["wait"], "<= 0.02", detail)]


def _two_workers() -> list[Cluster]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = tuple(f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    return [Cluster(rank, addresses) for rank in (0, 1)]


def _checkpoints() -> list[dict[str, Any]]:
    saved = _child("checkpoint")[0]
    interval = Config().operations.checkpoint_seconds
    lost = interval + _child("form", "compact", "folded")[0]["seconds"] + saved["seconds"]
    detail = f"{saved['seconds'] * 1000:.0f} ms and {saved['bytes'] / 1e6:.1f} MB every {interval:g} s, local folder"
    return [
        _row("checkpoints, share of the time", saved["seconds"] / (interval + saved["seconds"]), "<= 0.03", detail),
        _row("most work lost [s]", lost, "<= 60", "interval, step and save; a validation cut off is not counted"),
    ]


def _child(
    what: str, *arguments: str, clusters: list[Cluster] | None = None, cores: list[int] | None = None
) -> list[dict[str, Any]]:
    """What each process printed last, as JSON; raises CalledProcessError with its output on stderr."""
    processes = []
    for cluster in clusters or [ALONE]:
        command = [sys.executable, "-m", "bench.train", what, *arguments]
        variables = dict(os.environ)
        if cores:
            command += ["--core", str(cores[cluster.rank])]
        if cluster.workers > 1:
            variables["TF_CONFIG"] = cluster.tf_config()
        variables.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        processes.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure_form(backbone: str, form: str) -> dict[str, Any]:
    """Median seconds of a training step of the folded or the TimeDistributed model on fixed clips."""
    import keras
    import numpy as np
    import tensorflow as tf

    from deepfake_detector.training.model import build
    from deepfake_detector.training.normalization import SynchronizedBatchNormalization
    from deepfake_detector.training.step import compile_step, make_optimizer
    from deepfake_detector.training.worker import configure_tensorflow

    config = settings(backbone)
    configure_tensorflow(cpu_limit())
    keras.utils.set_random_seed(0)
    model = build(config, SynchronizedBatchNormalization) if form == "folded" else build_time_distributed(config)
    optimizer = make_optimizer(config.train)
    optimizer.build(model.trainable_variables)
    step = compile_step(tf.distribute.get_strategy(), model, optimizer, config.train, 0)
    clips = tf.constant(np.random.default_rng(0).integers(0, 256, (BATCH, FRAMES, SIZE, SIZE, 3), np.uint8))
    labels = tf.constant([[0.0], [1.0]] * (BATCH // 2))
    return {"seconds": _median(lambda number: step(clips, labels, 1e-3, number), STEPS[backbone])}


def build_time_distributed(config: Config) -> Any:
    """The same model as Keras' own layers give it: the backbone under TimeDistributed, BatchNormalization built in."""
    import keras

    from deepfake_detector.training.model import backbone, head

    clip = keras.Input((config.sampling.frames, config.faces.size, config.faces.size, 3), dtype="uint8")
    network = backbone(config)
    return keras.Model(clip, head(keras.layers.TimeDistributed(network)(clip), config))


def _median(step: Callable[[int], Any], steps: int) -> float:
    times = []
    for number in range(steps + 2):
        begin = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])  # the first traces, the second allocates


def measure_worker(core: int, batch: int) -> dict[str, Any]:
    """Median seconds of a step on one core, input included, and the share that waited for it."""
    os.sched_setaffinity(0, {core})  # before TensorFlow starts its threads, which inherit it
    cluster = parse_tf_config(os.environ.get("TF_CONFIG", ""))
    import keras
    import numpy as np

    from deepfake_detector.adapters.storage import open_storage
    from deepfake_detector.core.order import Order
    from deepfake_detector.training.dataset import Ahead, open_split, training_batches
    from deepfake_detector.training.model import build
    from deepfake_detector.training.normalization import SynchronizedBatchNormalization
    from deepfake_detector.training.step import Collectives, compile_step, make_optimizer
    from deepfake_detector.training.worker import configure_tensorflow, make_strategy
    from tests.make_records import make_run

    config = settings(workers=cluster.workers, batch=batch * cluster.workers)
    configure_tensorflow(threads=1)
    strategy = make_strategy(cluster, config.operations.heartbeat_seconds)
    with tempfile.TemporaryDirectory() as folder:
        uri = make_run(Path(folder) / "run", config, {"train": (16, 16)})
        split = open_split(open_storage(uri), "train", Path(folder))
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = build(config, SynchronizedBatchNormalization)
            optimizer = make_optimizer(config.train)
            optimizer.build(model.trainable_variables)
        step = compile_step(strategy, model, optimizer, config.train, cluster.rank)
        order = Order(split.labels, config)
        distributed = strategy.distribute_datasets_from_function(
            lambda _: training_batches(split, order, config, cluster.rank, cluster.workers, 0)
        )
        batches = Ahead(lambda: iter(distributed))
        waits: list[float] = []

        def one(number: int) -> None:
            begin = time.perf_counter()
            images, labels = next(batches)
            waits.append(time.perf_counter() - begin)
            step(images, labels, 1e-3, number)

        seconds = _median(one, WORKER_STEPS)
        batches.close()
        Collectives(strategy).sum(np.zeros(1, np.int32))
    return {"seconds": seconds, "wait": statistics.median(waits[2:]) / seconds}


def measure_checkpoint() -> dict[str, Any]:
    """Median seconds and the bytes of one committed checkpoint of the compact model with Adam."""
    import keras

    from deepfake_detector.adapters.storage import open_storage
    from deepfake_detector.core.config import stage_settings
    from deepfake_detector.core.schedule import initial_state
    from deepfake_detector.training.checkpoints import Checkpoints
    from deepfake_detector.training.model import build
    from deepfake_detector.training.step import make_optimizer

    config = settings()
    keras.utils.set_random_seed(0)
    model = build(config)
    optimizer = make_optimizer(config.train)
    optimizer.build(model.trainable_variables)
    state = initial_state("", 1)
    with tempfile.TemporaryDirectory() as folder:
        run = open_storage(f"{folder}/run")
        writer = Checkpoints(run, Path(folder), stage_settings(config, "train"), "bench", [], keep=2)
        seconds = _median(lambda step: writer.save(model, optimizer, state.model_copy(update={"step": step})), 8)
        size = sum(entry.size for entry in run.list("checkpoints/00000009/"))
    return {"seconds": seconds, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("form", "worker", "checkpoint"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--core", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.what == "form":
        result = measure_form(*chosen.arguments)
    elif chosen.what == "worker":
        result = measure_worker(chosen.core, int(chosen.arguments[0]))
    else:
        result = measure_checkpoint()
    print(json.dumps(result), flush=True)
    os._exit(0)  # TensorFlow's teardown may wait for the peer


if __name__ == "__main__":
    main()
