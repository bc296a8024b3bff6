"""The launcher with real processes: the jobs' work alone is a stand-in's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepfake_detector.adapters.machine import cpu_limit
from deepfake_detector.cli import main
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_PERMANENT, EXIT_RETRY, EXIT_UNAVAILABLE
from deepfake_detector.local import processes
from deepfake_detector.local.launch import RETRIES, Commands, run_local
from deepfake_detector.local.processes import JobError, checkout, free_blocks
from deepfake_detector.stages.prepare import prepare_run
from deepfake_detector.stages.runs import save_config
from tests.integration.director import PATIENCE, ROOT, FakeWorker, Stage
from tests.integration.forked import Forked
from tests.make_records import make_run, tiny

FAKE_LOCAL = str(Path(__file__).with_name("fake_local.py"))
COUNTS = {"train": (4, 4), "validation": (2, 2), "test": (2, 2)}


class Local(Stage):
    """One run and the launcher on it."""

    def launch(self, *, forked: bool = True, **more: str) -> Forked | subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RUN": self.run.uri,
            "TEMPLATE": str(self.folder / "template"),
            "DIRECTOR": str(self.server.getsockname()[1]),
            **more,
        }
        self.launcher = Forked(FAKE_LOCAL, environment, self.folder) if forked else begin(FAKE_LOCAL, environment)
        self.supervisors[len(self.supervisors)] = self.launcher
        return self.launcher

    def preprocessed(self) -> None:
        for _ in range(2):
            [shard] = self.cast(1)
            assert shard.stage == "preprocess"
            shard.order(0, marker=True)

    def trained(self, children: list[FakeWorker]) -> None:
        for child in reversed(children):
            child.order(0, marker=True)
        [export] = self.cast(1)
        export.order(0, marker=True)

    def result(self) -> tuple[int | None, str, str]:
        output, errors = self.launcher.communicate(timeout=PATIENCE)
        return self.launcher.returncode, output, errors


def begin(script: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """An interpreter of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, script], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    config = tiny(train__workers=2)
    make_run(tmp_path / "template", config, COUNTS)
    with Local(tmp_path) as local:
        save_config(local.run, config, {}, "")
        yield local


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a process' state in /proc")
def test_a_frozen_supervisor_is_started_again(local: Local) -> None:
    local.launch(FROZEN_SECONDS="0.3")
    local.preprocessed()
    first = local.cast(2)
    os.kill(first[1].parent, signal.SIGSTOP)
    for each in first:
        each.wait_gone()
    local.trained(local.cast(2))
    status, output, _ = local.result()
    assert status == 0
    assert "train 1: was frozen for 0.3 s (SIGSTOP), and ended for it; starting it again" in output


def test_the_whole_pipeline_and_then_nothing_more(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRY", "many")  # variables of the user, who means other things by them
    monkeypatch.setenv("SETTINGS", "site.production")
    local.launch()
    local.preprocessed()
    local.trained(local.cast(2))
    status, output, errors = local.result()
    assert (status, errors) == (0, "")
    assert "16 of 16 videos in 2 shards; sequences: 8 train, 4 validation, 4 test" in output
    staged = layout.staged_export("0123456789abcdef") + "model/saved_model.pb"
    local.run.write(staged, b"of an export that died before it had tidied up")
    local.launch()
    status, output, errors = local.result()
    assert (status, errors) == (0, "")
    assert output == f"{local.run.uri}/model/: done before, nothing to do\n"
    assert not local.run.exists(staged)


def test_a_finished_stage_starts_nothing(local: Local) -> None:
    """Records are there: the first process to start is training's."""
    make_run(local.folder / "run", tiny(train__workers=2), COUNTS)
    local.launch()
    children = local.cast(2)
    assert [child.stage for child in children] == ["train", "train"]
    local.trained(children)
    assert local.result()[0] == 0


def test_shards_fail_and_are_tried_again(local: Local) -> None:
    local.launch()
    [first] = local.cast(1)
    first.kill()
    local.preprocessed()
    local.trained(local.cast(2))
    status, output, _ = local.result()
    assert status == 0
    assert f"preprocess {first.rank}: exit 137: killed by signal 9 (SIGKILL); again (1 of 3)" in output
    logs = [entry.name for entry in local.run.list(f"logs/preprocess/{first.rank}/") if entry.name.endswith(".log")]
    assert logs == [layout.log("preprocess", first.rank, number) for number in (1, 2)]
    assert local.run.read(logs[0]).endswith(b": killed by signal 9 (SIGKILL)\n")


def test_shard_that_fails_for_ever_ends_the_run(local: Local) -> None:
    local.launch()
    failures = dict.fromkeys(range(2), 0)
    while max(failures.values()) <= RETRIES:
        [shard] = local.cast(1)
        failures[shard.rank] += 1
        shard.order(75, "storage was away")
    status, _, errors = local.result()
    assert status == 75
    assert errors.endswith(": exit 75: storage was away\n")


def test_permanent_error_of_a_job_is_the_commands_own(local: Local) -> None:
    local.launch()
    shards = local.cast(min(2, cpu_limit()))
    shards[0].order(78, "--videos x: no video found")
    for shard in shards[1:]:
        shard.kill()
    status, _, errors = local.result()
    assert (status, errors) == (78, "error: --videos x: no video found\n")


def test_killed_supervisor_is_started_again(local: Local) -> None:
    make_run(local.folder / "run", tiny(train__workers=2), COUNTS)
    local.launch()
    first = local.cast(2)
    os.kill(first[0].parent, signal.SIGKILL)
    for child in first:
        child.wait_gone()
    second = local.cast(2)
    assert [child.attempt for child in second] == [2, 2]
    local.trained(second)
    status, output, _ = local.result()
    assert status == 0
    assert "train 0: killed by signal 9 (SIGKILL); starting it again" in output


def test_workers_that_do_not_come_end_the_run_at_once(local: Local) -> None:
    """Without another start, which could only wait again; the command's status asks for another try."""
    make_run(local.folder / "run", tiny(train__workers=2), COUNTS)
    says = f"import sys; print('error: worker 1: not there', file=sys.stderr); sys.exit({EXIT_UNAVAILABLE})"
    command = (sys.executable, "-c", says)
    with pytest.raises(JobError, match=r"^train [01]: exit 69: worker 1: not there$") as caught:
        run_local(local.run, tiny(train__workers=2), commands=Commands(train=command))
    assert caught.value.exit_status == EXIT_RETRY


@pytest.mark.gcs
@pytest.mark.parametrize("misspelt", ["videos", "run", "records"])
def test_a_bucket_that_does_not_exist_is_told_at_once(
    gcs_bucket: str, tmp_path: Path, misspelt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command itself: its jobs would wait for a bucket that may be away."""
    missing = "gs://no-such-bucket/somewhere"
    place = {"videos": str(tmp_path), "run": str(tmp_path / "run"), misspelt: missing}
    if misspelt == "records":
        del place["videos"]
    arguments = [part for name, uri in place.items() for part in (f"--{name}", uri)]
    assert main(["local", "--recipe", "demo", *arguments]) == EXIT_PERMANENT
    assert capsys.readouterr().err.startswith("error: gs://no-such-bucket: no such bucket (expected one that exists")


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        pytest.param(signal.SIGTERM, 143, "the same command again goes on from here", id="SIGTERM"),
        pytest.param(signal.SIGINT, -signal.SIGINT, "KeyboardInterrupt", id="Ctrl-C, which the command line words"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, "", id="SIGKILL"),
    ],
)
def test_no_process_outlives_the_launcher(local: Local, number: signal.Signals, status: int, said: str) -> None:
    make_run(local.folder / "run", tiny(train__workers=2), COUNTS)
    launcher = local.launch(forked=False)  # Ctrl-C is the interpreter's to word
    children = local.cast(2)
    launcher.send_signal(number)
    for child in children:
        child.wait_gone()
    ended, _, errors = local.result()
    assert ended == status
    assert said in errors


def test_unfinished_records_of_another_run_are_refused(local: Local) -> None:
    config = tiny(train__workers=2)
    save_config(local.run, config, {}, str(local.folder / "other"))
    local.launch()
    status, _, errors = local.result()
    assert status == 78
    assert errors.endswith("records/summary.json: not found, expected finished records (--records)\n")


@pytest.mark.parametrize("shards", [1, 1000])
def test_shards_that_run_together_share_the_cpus(tmp_path: Path, shards: int) -> None:
    (tmp_path / "videos").mkdir()
    _, config = prepare_run(
        str(tmp_path / "run"), recipe="demo", assignments=[f"data.shards={shards}"], videos=str(tmp_path / "videos")
    )
    assert config.operations.decoders == (cpu_limit() if shards == 1 else 1)


def test_free_blocks_do_not_overlap() -> None:
    blocks = free_blocks(3, 9)
    assert len({port for block in blocks for port in range(block, block + 9)}) == 27


def test_a_package_without_its_checkout_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes.deepfake_detector, "__file__", str(tmp_path / "a" / "b" / "__init__.py"))
    with pytest.raises(processes.ConfigError, match="expected the checkout's jobs/ folder"):
        checkout()
