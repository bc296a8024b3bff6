"""One worker that also tells the loss and the digest of its weights after each step: `training_worker RUN SCRATCH OUT`.

OUT: {"losses": [...], "digests": [...], "threads": 1}, the losses being means over the global batch, and the threads
those that TensorFlow was told to compute one operation with.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.config import Train
from deepfake_detector.core.topology import parse_tf_config
from deepfake_detector.stages.runs import load_config
from deepfake_detector.training import loop
from deepfake_detector.training.checkpoints import weights_sha256
from deepfake_detector.training.step import Step
from deepfake_detector.training.worker import run_worker


def main(uri: str, scratch: str, out: str) -> None:
    losses: list[float] = []
    digests: list[str] = []
    compile_step = loop.compile_step

    def telling(strategy: Any, model: Any, optimizer: Any, train: Train, rank: int) -> Step:
        step = compile_step(strategy, model, optimizer, train, rank)

        def tell(images: Any, labels: Any, rate: float, number: int) -> tuple[float, float]:
            loss_sum, correct = step(images, labels, rate, number)
            losses.append(loss_sum / train.global_batch)
            digests.append(weights_sha256(model))
            return loss_sum, correct

        return tell

    loop.compile_step = telling
    cluster = parse_tf_config(os.environ.get("TF_CONFIG", ""))
    run_worker(uri, load_config(open_storage(uri)), cluster, Path(scratch), uri)
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    Path(out).write_text(json.dumps({"losses": losses, "digests": digests, "threads": threads}))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
