"""Stands in for the TensorFlow process: it reports to the test's director and does what it is told, once."""

import json
import os
import signal
import socket
import sys

TRAINED = "checkpoints/trained.json"
DETECTOR = "model/detector.json"


def main() -> None:
    stage = sys.argv[1]
    tf_config = json.loads(os.environ.get("TF_CONFIG", "null"))
    hello = {
        "stage": stage,
        "pid": os.getpid(),
        "attempt": int(os.environ["ATTEMPT"]),
        "rank": tf_config["task"]["index"] if tf_config else 0,
        "cluster": tf_config["cluster"]["worker"] if tf_config else [],
    }
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as TensorFlow may
    with socket.create_connection(("127.0.0.1", int(os.environ["DIRECTOR"]))) as connection:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        order = json.loads(connection.makefile().readline() or "null")
    if order is None:
        sys.exit("error: the test is gone")
    if order["marker"]:
        from deepfake_detector.adapters.storage import open_storage

        open_storage(os.environ["RUN"]).write(TRAINED if stage == "train" else DETECTOR, b"{}")
    print("some output", flush=True)
    if order["message"]:
        print(f"error: {order['message']}\n", file=sys.stderr, flush=True)
    sys.exit(order["status"])


if __name__ == "__main__":
    main()
