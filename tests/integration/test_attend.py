"""Parents of preprocessing and export pods: real processes and signals; the child's work alone is a stand-in's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from deepfake_detector.adapters.attempts import Attempt
from deepfake_detector.adapters.machine import memory_use
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.adapters.storage_local import LocalStorage
from deepfake_detector.cluster.logs import show_logs
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.stages.runs import save_config
from deepfake_detector.supervisor import attend, sigterm
from deepfake_detector.supervisor.attempts import EXPORTED, POD_GONE, SHARD_DONE, SILENT, STOPPED, History
from deepfake_detector.supervisor.where import Where
from tests.integration.director import PATIENCE, ROOT, FakeWorker, Stage
from tests.integration.fault_proxy import faulty_server
from tests.integration.forked import Forked
from tests.integration.gcs_server import GcsServer, available

FAKE_PREPROCESS = str(Path(__file__).with_name("fake_preprocess.py"))
FAKE_EXPORT = str(Path(__file__).with_name("fake_export.py"))


class Pod(Stage):
    """One pod of index 0, started again and again, with a child that does as it is told."""

    def launch(self, *command: str, **environment: str) -> FakeWorker:
        self.begin(*command, **environment)
        [child] = self.cast(1)
        return child

    def begin(self, *command: str, **environment: str) -> None:
        """command: a script or a module, or another program with its arguments."""
        own = {**self.environment(0), "TERMINATION_LOG": str(self.message_file), **environment}
        self.message_file.write_text("")  # as the kubelet makes it
        if len(command) < 2:
            self.supervisors[0] = Forked((command or (FAKE_PREPROCESS,))[0], own, self.folder)
        else:
            self.supervisors[0] = subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    @property
    def message_file(self) -> Path:
        return self.folder / "termination-log"

    def message(self) -> str:
        return self.message_file.read_text()

    def logs(self, stage: str = "preprocess") -> list[str]:
        """The stored ends, in order, each without the output before it."""
        names = [entry.name for entry in self.run.list(f"logs/{stage}/0/") if entry.name.endswith(".log")]
        assert names == [layout.log(stage, 0, number) for number in range(1, len(names) + 1)]
        return [self.run.read(name).decode().rpartition("--- ")[2].rstrip("\n") for name in names]

    def reasons(self, shard: int | None = 0) -> list[str | None]:
        """Why each attempt ended."""
        names = [entry.name for entry in self.run.list(layout.attempts(shard))]
        return [Attempt.model_validate_json(self.run.read(name)).reason for name in names]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        yield pod


def test_success_keeps_its_log(pod: Pod) -> None:
    pod.launch().order(0)
    status, _ = pod.end(0)
    assert (status, pod.message(), pod.logs(), pod.reasons()) == (0, "", ["preprocess 0: exit 0"], [SHARD_DONE])
    assert pod.run.read(layout.log("preprocess", 0, 1)).startswith(b"some output\n")


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        pytest.param(lambda child: child.order(78, "a=0: expected 1"), 78, "a=0: expected 1", id="permanent"),
        pytest.param(lambda child: child.order(75, "gs://b: away"), 75, "gs://b: away", id="another try"),
        pytest.param(lambda child: child.order(3), 3, "some output", id="without a word of its own"),
        pytest.param(FakeWorker.kill, 137, "killed by signal 9 (SIGKILL)", id="killed"),
    ],
)
def test_a_failure_is_passed_on_and_kept(pod: Pod, end: Callable[[FakeWorker], None], status: int, reason: str) -> None:
    end(pod.launch())
    assert pod.end(0) == (status, f"error: {reason}")
    assert pod.message() == f"{reason}\n"
    kept = reason if status == 137 else f"exit {status}: {reason}"
    assert pod.logs() == [f"preprocess 0: {kept}"]


def test_each_end_has_a_log_of_its_own(pod: Pod) -> None:
    for number in (1, 2, 3):
        pod.launch().order(75, f"try {number}")
        assert pod.end(0)[0] == 75
    assert pod.logs() == [f"preprocess 0: exit 75: try {number}" for number in (1, 2, 3)]
    assert pod.reasons() == [f"exit 75: try {number}" for number in (1, 2, 3)]
    assert b"some output\n" in pod.run.read(layout.log("preprocess", 0, 1))


def test_the_childs_output_is_on_stderr(pod: Pod) -> None:
    pod.launch().order(75, "away")
    _, errors = pod.supervisors[0].communicate(timeout=PATIENCE)
    assert errors.startswith("some output\nerror: away\n")


def test_the_lives_of_a_shard_are_shown_in_order(pod: Pod) -> None:
    """The first is lost without a word, the second fails, the third succeeds; no pod of them is left."""
    pod.launch(POD_NAME="pod-1", NODE_NAME="node-1")
    pod.signal(0, signal.SIGKILL)
    pod.launch(POD_NAME="pod-2", NODE_NAME="node-2").order(75, "away")
    assert pod.end(0)[0] == 75
    pod.launch(POD_NAME="pod-3", NODE_NAME="node-1").order(0)
    assert pod.end(0)[0] == 0
    last = ["== logs/preprocess/0/00003.log", "some output\n--- preprocess 0, pod pod-3 on node-1: exit 0"]
    assert shown(pod.run) == ["== preprocess 0: done; STAGE=preprocess POD=index shows what was said"]
    assert shown(pod.run, pod="0") == [
        f"== preprocess 0, attempt 1, pod pod-1 on node-1: no log of it is stored ({POD_GONE})",
        "== logs/preprocess/0/00002.log",
        "some output\nerror: away\n\n--- preprocess 0, pod pod-2 on node-2: exit 75: away",
        *last,
    ]


def shown(run: Storage, **choice: str) -> list[str]:
    lines: list[str] = []
    assert show_logs(None, run.uri, write=lines.append, **choice) == 0
    return lines


def test_sigterm_ends_both_and_is_told(pod: Pod) -> None:
    """The stand-in ignores SIGTERM as TensorFlow may."""
    child = pod.launch()
    assert pod.signal(0, signal.SIGTERM) == 143
    child.wait_gone()
    assert pod.message() == f"{sigterm.SAID}\n"
    assert pod.logs() == [f"preprocess 0: {sigterm.SAID}"]


def test_sigterm_is_obeyed_while_storage_does_not_answer(pod: Pod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        pod.begin(RUN="gs://videos/run", STORAGE_EMULATOR_HOST=address)
        silent.settimeout(PATIENCE)
        silent.accept()
        assert pod.signal(0, signal.SIGTERM) == 143  # within PATIENCE, where storage alone would be asked for 300 s


@pytest.mark.gcs
def test_sigterm_is_obeyed_when_storage_answers_no_more(pod: Pod, gcs_server: GcsServer, gcs_bucket: str) -> None:
    """Nobody hears what is told: the child is ended all the same, and its attempt was counted when it began."""
    pod.run = open_storage(f"{gcs_bucket}/run")
    save_config(pod.run, Config(), {}, "")
    child = pod.launch(RUN=pod.run.uri, POD_NAME="pod-1", FAREWELL_SECONDS="0.2")
    with gcs_server.silent():
        assert pod.signal(0, signal.SIGTERM) == 143
        child.wait_gone()
    # What was sent to the server waits in its socket, and may be carried out when it goes on.
    [reason] = History(pod.run, shard=0).in_vain("preprocess")
    assert reason in (POD_GONE, sigterm.SAID)


@pytest.mark.parametrize(
    ("module", "shard", "whose"),
    [
        pytest.param("preprocess", 0, "shard 0", id="a shard"),
        pytest.param("export", None, "the export", id="the export"),
    ],
)
def test_attempts_are_bounded_whatever_ended_them(tmp_path: Path, module: str, shard: int | None, whose: str) -> None:
    """Kubernetes counts none of the first two: SIGTERM, as by spot nodes, and a pod that is lost without a word."""
    with Pod(tmp_path, settings={"operations.attempts": 3}) as pod:
        command = FAKE_PREPROCESS if module == "preprocess" else FAKE_EXPORT
        pod.launch(command, POD_NAME="pod-1")
        assert pod.signal(0, signal.SIGTERM) == 143
        pod.launch(command, POD_NAME="pod-2")
        assert pod.signal(0, signal.SIGKILL) == -9
        pod.launch(command, POD_NAME="pod-3").order(75, "gs://b: away")
        assert pod.end(0)[0] == 75
        pod.begin(command)
        last = "exit 75: gs://b: away" if shard == 0 else "export: exit 75: gs://b: away"
        told = sigterm.SAID if shard == 0 else f"export: {sigterm.SAID}"
        line = (
            f"3 attempts of {whose}: expected at most operations.attempts=3 without success (raise it to go on); the "
            f"last ended with {last}, before that {POD_GONE}, before that {told}"
        )
        assert pod.end(0) == (78, f"error: {line}")
        assert pod.message() == f"{line}\n"
        assert pod.reasons(shard) == [told, POD_GONE, last], "a refusal is no attempt"


@pytest.mark.parametrize(
    ("command", "shard", "done"),
    [
        pytest.param(FAKE_PREPROCESS, 0, SHARD_DONE, id="a shard"),
        pytest.param(FAKE_EXPORT, None, EXPORTED, id="export"),
    ],
)
def test_what_a_person_or_nobody_s_word_ends_is_no_attempt(
    tmp_path: Path, command: str, shard: int | None, done: str
) -> None:
    """Ctrl-C on one machine, where the launcher sends SIGTERM; and SIGKILL, of which nobody knows who sent it."""
    with Pod(tmp_path, settings={"operations.attempts": 1}) as pod:
        pod.launch(command)
        assert pod.signal(0, signal.SIGTERM) == 143
        pod.launch(command)
        assert pod.signal(0, signal.SIGKILL) == -9
        pod.launch(command).order(0)
        assert pod.end(0)[0] == 0
        assert pod.reasons(shard) == [STOPPED, SILENT, done]


def test_the_pod_and_its_node_are_kept(tmp_path: Path) -> None:
    """A node on which a shard always fails is seen after its pods are gone."""
    with Pod(tmp_path, settings={"operations.attempts": 3}) as pod:
        for number, node in enumerate(("node-1", "node-2", "node-2"), start=1):
            pod.launch(POD_NAME=f"pod-{number}", NODE_NAME=node).order(75, "away")
            assert pod.end(0)[0] == 75
            (worker,) = Attempt.model_validate_json(pod.run.read(layout.attempt(number, 0))).workers
            assert (worker.index, worker.pod, worker.node) == (0, f"pod-{number}", node)
        assert pod.logs()[1] == "preprocess 0, pod pod-2 on node-2: exit 75: away"
        pod.begin()
        last = "the last ended with exit 75: away, on node-2 (2 times), before that exit 75: away, on node-1\n"
        assert pod.end(0)[0] == 78
        assert pod.message().endswith(last)


def test_attempts_before_a_success_do_not_count(tmp_path: Path) -> None:
    """A shard that is made again, with videos that were lost, has all of its attempts."""
    with Pod(tmp_path, settings={"operations.attempts": 2}) as pod:
        for status in (75, 0, 75, 0):
            pod.launch().order(status)
            assert pod.end(0)[0] == status
        assert len(pod.reasons()) == 4


@pytest.mark.parametrize("stage", ["preprocess", "export"])
def test_an_end_is_recorded_before_the_log_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Literal["preprocess", "export"]
) -> None:
    """Else a success would stay open where storage stalls on the log, and count as a pod that was lost."""
    known: list[str] = []

    class Watched(LocalStorage):
        def write(self, name: str, data: bytes) -> None:
            if name == layout.log(stage, 0, 1):
                known.append(History(self, shard=shard).reason)
            super().write(name, data)

    shard = 0 if stage == "preprocess" else None
    run = Watched(tmp_path / "run")
    save_config(run, Config(), {}, "")
    monkeypatch.setattr(attend, "open_storage", lambda _, patient: run)
    where = Where("pod-1", "node-1")
    attend.attend(run.uri, stage, 0, (sys.executable, "-S", "-c", ""), tmp_path, dict(os.environ), where)
    assert known == [SHARD_DONE if stage == "preprocess" else EXPORTED]


def test_the_child_does_not_outlive_a_parent_that_is_killed(pod: Pod) -> None:
    child = pod.launch()
    assert pod.signal(0, signal.SIGKILL) == -9
    child.wait_gone()


@pytest.mark.parametrize(
    ("module", "environment", "line"),
    [
        pytest.param("preprocess", {"RUN": ""}, "RUN: not set (environment)", id="no run"),
        pytest.param("preprocess", {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX='x': expected", id="index"),
        pytest.param("export", {"SCRATCH": ""}, "SCRATCH: not set (environment)", id="no scratch"),
        pytest.param("export", {"RUN": "ftp://x"}, "'ftp://x': expected a folder or gs://", id="no such storage"),
    ],
)
def test_a_bad_environment_is_one_line(pod: Pod, module: str, environment: dict[str, str], line: str) -> None:
    pod.begin(f"jobs.{module}", **environment)
    status, said = pod.end(0)
    assert status == 78
    assert said.startswith(f"error: {line}")
    assert pod.message().startswith(line)


@pytest.mark.parametrize(
    ("module", "smuggle", "said"),
    [
        pytest.param("preprocess", {"data": {"shards": 0}}, "data.shards=0: expected greater than", id="preprocess"),
        pytest.param("train", {"train": {"learning_rate": -1}}, "train.learning_rate=-1: expected", id="train"),
        pytest.param("export", {"export": {"prior": 2}}, "export.prior=2: expected less than 1", id="export"),
        pytest.param("preprocess", {"train": {"learning": 1}}, "train.learning=1: expected one of", id="unknown key"),
        pytest.param("preprocess", {"train": 5}, "train=5: expected", id="not a section"),
    ],
)
def test_a_bad_value_smuggled_into_the_settings(pod: Pod, module: str, smuggle: dict[str, object], said: str) -> None:
    """All that runs fails for good at once, by one line that names it, wherever a person would look for it."""
    document = json.loads(pod.run.read(layout.CONFIG))
    for section, values in smuggle.items():
        if isinstance(values, dict):
            document["resolved"][section] |= values
        else:
            document["resolved"][section] = values
    pod.run.write(layout.CONFIG, json.dumps(document).encode())
    pod.begin(f"jobs.{module}")
    status, line = pod.end(0)
    assert (status, pod.message()) == (78, f"{line.removeprefix('error: ')}\n")
    assert said in line
    kept = layout.supervisor_log("train", 0, 1) if module == "train" else layout.log(module, 0, 1)
    assert pod.run.read(kept).decode().splitlines()[-1].endswith(line.removeprefix("error: "))


@pytest.mark.gcs
@pytest.mark.parametrize("module", ["preprocess", "train"])
def test_a_bucket_that_does_not_exist(pod: Pod, gcs_bucket: str, module: str) -> None:
    """It may be away, since the command that created the Job has found it: that takes storage's whole budget."""
    script = pod.folder / "impatient.py"
    script.write_text(f"""
import runpy
from deepfake_detector.adapters.storage_gcs import GcsStorage
GcsStorage.__init__.__kwdefaults__["outage_seconds"] = 1
runpy.run_module("jobs.{module}", run_name="__main__")
""")
    pod.begin(str(script), RUN="gs://no-such-bucket/run")
    line = "gs://no-such-bucket: no such bucket (expected one that exists, for gs://no-such-bucket/run)"
    _, errors = pod.supervisors[0].communicate(timeout=PATIENCE)
    assert "no such bucket (expected one that exists, for gs://no-such-bucket/run); trying again" in errors
    assert errors.splitlines()[-1] == f"error: {line}"
    assert pod.supervisors[0].returncode == 78
    assert pod.message() == f"{line}\n"


@pytest.mark.gcs
def test_a_bucket_that_answers_404_while_a_pod_starts(pod: Pod, tmp_path: Path) -> None:
    """Another life of a run whose other processes have seen the bucket: it waits as they do."""
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    with faulty_server(tmp_path / "server.log") as (server, proxy):
        server.make_bucket("bucket")
        with proxy.outage(missing=True):
            pod.begin("jobs.preprocess", RUN="gs://bucket/run", STORAGE_EMULATOR_HOST=proxy.url)
            deadline = time.monotonic() + PATIENCE
            while proxy.injected["outage"] < 2:
                assert time.monotonic() < deadline
                assert pod.supervisors[0].returncode is None
                time.sleep(0.01)
        status, line = pod.end(0)
    assert status == 78
    assert line.startswith("error: gs://bucket/run/config.json: not found")


def test_out_of_memory_is_told_with_limit_and_peak(pod: Pod, memory_group: Path) -> None:
    """A real limit of the kernel's: the child is killed, its parent lives on to say so."""
    script = """
import os, sys
from jobs.preprocess import main
sys.exit(main(dict(os.environ), shard=(sys.executable, "-c", "bytearray(1 << 30)")))
"""
    status, line = run_within(memory_group, pod, script)
    assert status == 75
    assert line.startswith("error: OOMKilled: limit 500 MiB, peak ")
    assert line.endswith(": raise the memory limit (LIMITS=memory=...)")
    assert pod.message() == f"{line.removeprefix('error: ')}\n"
    assert pod.logs()[0].startswith("preprocess 0: OOMKilled: limit 500 MiB, peak ")


def test_out_of_memory_of_a_decoding_process_is_no_video_s_fault(pod: Pod, memory_group: Path) -> None:
    """The video would be lost otherwise, and the records depend on the pod's limit."""
    script = """
import os, sys
from pathlib import Path
from deepfake_detector.stages.decoders import Decoders
from jobs.environment import exit_status
from tests.integration.test_decoders import act
from tests.integration.test_preprocess import config_for
def work():
    config = config_for("videos", operations__video_memory_mb=2048)  # more than the kernel's limit
    with Decoders(config, 1, act) as decoders:
        list(decoders.map([Path("ok-1"), Path("eat-1")]))
sys.exit(exit_status(os.environ, work))
"""
    status, line = run_within(memory_group, pod, script)
    assert status == 75
    assert line.startswith("error: decoding process: OOMKilled: limit 500 MiB, peak ")


def run_within(group: Path, pod: Pod, script: str) -> tuple[int, str]:
    pod.begin("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", script)
    return pod.end(0)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A cgroup of 500 MiB below this process's own, where this user may make one."""
    lines = Path("/proc/self/cgroup").read_text().splitlines() if memory_use() else []
    v1 = next((line.rpartition(":")[2] for line in lines if ":memory:" in line), None)
    if v1 is None:
        pytest.skip("needs a cgroup v1 in which memory is counted")
    top = Path("/sys/fs/cgroup/memory")
    own = top / v1.strip("/")
    group = (own if own.is_dir() else top) / f"test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(500 << 20))
        (group / "memory.swappiness").write_text("0")
    except OSError as error:
        pytest.skip(f"needs a cgroup of its own: {error}")
    yield group
    _remove(group)


def _remove(group: Path) -> None:
    """The kernel keeps a cgroup for as long as a process that was killed in it has not quite gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
