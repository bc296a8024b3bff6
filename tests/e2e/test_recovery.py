"""How long training stands still after a fault, as a ratio to a cold start of all workers in the same run.

Printed and not asserted: what a machine that does nothing else reaches is for people to judge. It is asserted that
each fault is got over; test_survival.py compares bits.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from google.cloud import storage

from tests.e2e.conftest import FINISHED, SETTINGS
from tests.e2e.namespace import BUCKET, Client, Namespace, eventually, names, read, unless_set

SECONDS = 600.0
LONG = ("operations.checkpoint_steps=20", "operations.attempts=40", "operations.rendezvous_seconds=600")
SETTLED_STEPS = 60  # after a recovery, until the next fault
# A child's output is in attempt-NNNNN.log, that of one in waiting in standby-NNNNN.log.
CHILDREN = """
import os, pathlib, sys, time
def child(kind):
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if b"jobs.train_worker" in (folder / "cmdline").read_bytes() and kind in os.readlink(folder / "fd/1"):
                return folder
        except OSError:
            pass  # it has just ended
"""
KILL = (
    CHILDREN
    + """
victim = int(child("/attempt-").name)
print(time.time())
os.kill(victim, 9)
"""
)
# 540 MB when TensorFlow is imported.
STANDBY = (
    CHILDREN
    + """
waiting = child("/standby-")
sizes = [line.split()[1] for line in (waiting / "status").open() if line.startswith("VmRSS:")] if waiting else [0]
sys.exit(int(sizes[0]) < 500_000)
"""
)


@dataclass
class Recovery:
    what: str
    fault: float  # seconds since 1970
    step: float = 0.0


class Training:
    """A long run of two workers in a namespace."""

    def __init__(self, namespace: Namespace, name: str, *options: str) -> None:
        self.namespace, self.name = namespace, f"runs/{name}"
        run = f"gs://{BUCKET}/{self.name}"
        settings = [*SETTINGS, *LONG, *(option for option in options if "=" in option)]
        more = [option for option in options if "=" not in option]
        self.client: Client = namespace.submit(
            *("train", run, "--records", FINISHED, "--workers", "2", "--recipe", "demo", *more, "--set", *settings)
        )
        self.recoveries: list[Recovery] = []
        self._begun: float | None = None

    def settle(self, bucket: storage.Bucket) -> None:
        """Until so many steps are committed after the last recovery."""
        before = self._step(bucket)
        eventually("training goes on", SECONDS, lambda: self._step(bucket) >= before + SETTLED_STEPS)
        if self._begun is None:
            self._begun = json.loads(read(bucket, f"{self.name}/logs/train/0/progress.json"))["timeline"]["process"]

    def holder(self, bucket: storage.Bucket, rank: int) -> int:
        """The index of who has this rank in the latest attempt: with a spare it is not known before."""
        attempt = json.loads(read(bucket, max(names(bucket, f"{self.name}/logs/attempts/"))))
        [index] = [worker["index"] for worker in attempt["workers"] if worker["rank"] == rank]
        return int(index)

    def fault(self, what: str, at: float) -> None:
        self.recoveries.append(Recovery(what, at))

    def end(self, bucket: storage.Bucket) -> tuple[float, str]:
        """Seconds of the cold start, and the weights; every recovery has its time then."""
        assert self.client.end(SECONDS).status == 0
        firsts = sorted(max(times) for times in self._firsts(bucket).values())
        for recovery in self.recoveries:
            recovery.step = next(first for first in firsts if first > recovery.fault) - recovery.fault
        assert self._begun
        trained = json.loads(read(bucket, f"{self.name}/checkpoints/trained.json"))
        return firsts[0] - self._begun, trained["weights_sha256"]

    def _step(self, bucket: storage.Bucket) -> int:
        found = [re.search(r"/(\d{8})\.json", name) for name in names(bucket, f"{self.name}/checkpoints/")]
        return max((int(match[1]) for match in found if match), default=0)

    def _firsts(self, bucket: storage.Bucket) -> dict[int, list[float]]:
        """When each attempt's workers had done their first step, as their logs tell."""
        firsts: dict[int, list[float]] = {}
        for name in names(bucket, f"{self.name}/logs/train/"):
            if match := re.search(r"/(\d{5})\.log$", name):
                text = read(bucket, name).decode()
                for moment in re.findall(r"^(\S+ [\d:,]+) INFO first step of this attempt done", text, re.MULTILINE):
                    at = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC).timestamp()
                    firsts.setdefault(int(match[1]), []).append(at)
        return firsts


def kill_child(training: Training, index: int) -> None:
    [pod] = running_pods(training.namespace, index)
    said = training.namespace.kubectl("exec", pod, "--", "python", "-c", KILL)
    training.fault(f"kill -9 of worker {index}'s child", float(said))


def delete_pod(training: Training, index: int) -> None:
    at = time.time()
    training.namespace.delete_running_pod("train", index)
    training.fault(f"pod {index} deleted", at)


def running_pods(namespace: Namespace, index: int) -> list[str]:
    label = f"app.kubernetes.io/component=train,batch.kubernetes.io/job-completion-index={index}"
    pods = namespace.objects("pods", label)
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]


Act = Callable[[Training, int], None]
# Options, fault, of which ranks, target, and how many steps: a standby child and a replacement take their time.
CASES: dict[str, tuple[Sequence[str], Act, Sequence[int], str, int]] = {
    "child": ((), kill_child, (1, 0, 1), "<= 1.0", 400),
    "child-standby": (("operations.standby=true",), kill_child, (1, 0, 1), "<= 0.6", 1500),
    "pod-spare": (("--spares", "1"), delete_pod, (1, 0), "<= 1.3", 900),
    "pod": ((), delete_pod, (1,), "the back-off", 300),
}

pytestmark = pytest.mark.skipif(
    not unless_set("RECOVERY"), reason="measures for ten minutes: RECOVERY=1 make e2e TESTS=tests/e2e/test_recovery.py"
)


@pytest.mark.parametrize("case", CASES)
def test_recovery(with_records: Namespace, case: str) -> None:
    options, act, ranks, target, steps = CASES[case]
    training = Training(with_records, case, *options, "train.epochs=1", f"train.steps_per_epoch={steps}")
    with with_records.bucket() as bucket:
        for rank in ranks:
            training.settle(bucket)
            if "standby" in case:
                await_standby(training)
            if "--spares" in options:
                eventually("all pods run", SECONDS, lambda: all(running_pods(with_records, i) for i in range(3)))
            act(training, training.holder(bucket, rank))
        cold, weights = training.end(bucket)
    print(f"\n{case}: cold start {cold:.1f} s, target {target}; weights {weights[:12]}")
    for recovery in training.recoveries:
        print(f"{case}: {recovery.what}: {recovery.step:.1f} s, {recovery.step / cold:.2f} of a cold start", flush=True)


def await_standby(training: Training) -> None:
    """Both workers have one: the fault of one is a new start of both."""
    for each in (0, 1):
        [pod] = running_pods(training.namespace, each)

        def there(pod: str = pod) -> bool:
            try:
                training.namespace.kubectl("exec", pod, "--", "python", "-c", STANDBY)
            except AssertionError:
                return False
            return True

        eventually(f"worker {each} has a standby child", SECONDS, there)
