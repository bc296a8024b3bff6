"""One worker that also tells the digest of its weights at each validation: `training_worker RUN SCRATCH OUT`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.topology import parse_tf_config
from deepfake_detector.stages.runs import load_config
from deepfake_detector.training import loop
from deepfake_detector.training.checkpoints import weights_sha256
from deepfake_detector.training.validation import Validation
from deepfake_detector.training.worker import run_worker


def main(uri: str, scratch: str, out: str) -> None:
    digests: list[str] = []
    make_validation = loop.make_validation

    def telling(strategy: Any, collectives: Any, model: Any, *rest: Any) -> Validation:
        validate = make_validation(strategy, collectives, model, *rest)

        def tell(after_batch: Callable[[], None]) -> Any:
            digests.append(weights_sha256(model))
            return validate(after_batch)

        return tell

    loop.make_validation = telling  # type: ignore[assignment]
    cluster = parse_tf_config(os.environ.get("TF_CONFIG", ""))
    run_worker(uri, load_config(open_storage(uri)), cluster, Path(scratch), uri)
    Path(out).write_text(json.dumps(digests))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
