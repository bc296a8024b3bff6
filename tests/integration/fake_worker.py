"""Stands in for a job's process: it reports to the test's director and does what it is told, once."""

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

TRAINED = "checkpoints/trained.json"
DETECTOR = "model/detector.json"


def main() -> None:
    stage = sys.argv[1]
    waited = os.environ.get("STANDBY") == "1"
    if waited:
        os.environ.update(json.loads(sys.stdin.readline() or sys.exit(0)))
    tf_config = json.loads(os.environ.get("TF_CONFIG", "null"))
    hello = {
        "stage": stage,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "attempt": int(os.environ.get("ATTEMPT", "0")),
        "rank": tf_config["task"]["index"] if tf_config else int(os.environ["JOB_COMPLETION_INDEX"]),
        "waited": waited,
        "cluster": tf_config["cluster"]["worker"] if tf_config else [],
    }
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as TensorFlow may
    with socket.create_connection(("127.0.0.1", int(os.environ["DIRECTOR"]))) as connection:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        order = json.loads(connection.makefile().readline() or "null")
    if order is None:
        sys.exit("error: the test is gone")
    if order["marker"]:
        write_marker(Path(os.environ["RUN"]), stage)
    print("some output", flush=True)
    if order["message"]:
        print(f"error: {order['message']}\n", file=sys.stderr, flush=True)
    sys.exit(order["status"])


def write_marker(run: Path, stage: str) -> None:
    if stage == "preprocess":
        copy_shard(Path(os.environ["TEMPLATE"]), run)
        return
    marker = run / (TRAINED if stage == "train" else DETECTOR)
    marker.parent.mkdir(exist_ok=True)
    marker.write_bytes(b"{}")


def copy_shard(template: Path, run: Path) -> None:
    """This shard's report out of a finished run, and the summary with the last of them."""
    reports = sorted(path.relative_to(template) for path in template.glob("records/*-of-*.json"))
    for folder in ("plan", "records"):
        (run / folder).mkdir(exist_ok=True)
    mine = reports[int(os.environ["JOB_COMPLETION_INDEX"])]
    for name in (Path("plan/summary.json"), mine):
        shutil.copy(template / name, run / name)
    if all((run / report).exists() for report in reports):
        shutil.copy(template / "records/summary.json", run / "records/summary.json")


if __name__ == "__main__":
    main()
