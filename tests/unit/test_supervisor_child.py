from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_detector.adapters.kernel import is_stopped
from deepfake_detector.core.errors import WaitError
from deepfake_detector.supervisor import child as child_module
from deepfake_detector.supervisor import sigterm
from deepfake_detector.supervisor.child import TAIL_BYTES, TAIL_LINES, Child, describe_end, tail


@pytest.mark.parametrize(
    ("status", "output", "reason"),
    [
        pytest.param(-9, "loading\n", "killed by signal 9 (SIGKILL)", id="killed"),
        pytest.param(-64, "", "killed by signal 64 (SIGRTMAX)", id="real-time signal"),
        pytest.param(75, "a\nerror: gs://b: away\n\n", "exit 75: gs://b: away", id="the job's error"),
        pytest.param(78, "error: a=0\nW0000 bye\n", "exit 78: a=0", id="TensorFlow has the last word"),
        pytest.param(1, "Traceback:\n  a\nKeyError: 3\n\n", "exit 1: KeyError: 3", id="last line that says something"),
        pytest.param(1, "", "exit 1", id="silent"),
        pytest.param(0, "bye\n", "exit 0", id="success needs no words"),
    ],
)
def test_describe_end(status: int, output: str, reason: str) -> None:
    assert describe_end(status, output) == reason


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        pytest.param("".join(f"{i}\n" for i in range(1000)), [str(i) for i in range(800, 1000)], id="many lines"),
        pytest.param("x" * (2 * TAIL_BYTES) + "\nend\n", ["x" * (TAIL_BYTES - 5), "end"], id="a long line"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_tail(tmp_path: Path, written: str, lines: list[str]) -> None:
    log = tmp_path / "log"
    log.write_text(written)
    assert tail(log).splitlines() == lines
    assert len(lines) <= TAIL_LINES


def test_child_is_its_own_group_with_its_output_in_a_file(tmp_path: Path) -> None:
    async def run() -> tuple[int, str]:
        script = "import os, sys; print(os.getpgid(0) == os.getpid()); print('oops', file=sys.stderr); sys.exit(75)"
        child = await Child.start([sys.executable, "-c", script], {}, tmp_path / "logs" / "log")
        end = await child.wait()
        return end.status, end.reason

    assert asyncio.run(run()) == (75, "exit 75: oops")
    assert (tmp_path / "logs" / "log").read_text() == "True\noops\n"


def test_killed_child_takes_its_own_children_with_it(tmp_path: Path) -> None:
    """The grandchild holds the write end of a pipe: end of file means that it is gone."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = (
        "import os, signal, sys\n"
        f"pipe = os.open({str(fifo)!r}, os.O_WRONLY)\n"
        "os.fork()\n"
        "os.write(pipe, b'x')\n"
        "signal.pause()\n"
    )

    async def run() -> int:
        child = await Child.start([sys.executable, "-c", script], {}, tmp_path / "log")
        with fifo.open("rb", buffering=0) as pipe:
            both = b""
            while len(both) < 2:
                both += await asyncio.to_thread(pipe.read, 2 - len(both))
            child.kill()
            status = (await child.wait()).status
            assert await asyncio.to_thread(pipe.read, 1) == b""
        return status

    assert asyncio.run(run()) == -9


@pytest.mark.parametrize(
    ("kill", "reason"),
    [
        pytest.param("SIGKILL", "OOMKilled: limit 300 MiB, peak 299 MiB: raise", id="by the kernel"),
        pytest.param("SIGTERM", "killed by signal 15 (SIGTERM)", id="by somebody, while another process ran out"),
    ],
)
def test_child_out_of_memory_is_told_by_the_cgroup(tmp_path: Path, kill: str, reason: str) -> None:
    memory = tmp_path / "sys/fs/cgroup"
    files = {"memory.events": "oom_kill 2\n", "memory.max": f"{300 << 20}\n", "memory.peak": f"{299 << 20}\n"}
    for name, text in files.items():
        memory.mkdir(parents=True, exist_ok=True)
        (memory / name).write_text(text)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    script = f"import os, signal; open({str(memory / 'memory.events')!r}, 'w').write('oom_kill 3'); "
    script += f"os.kill(os.getpid(), signal.{kill})"

    async def run() -> str:
        child = await Child.start([sys.executable, "-c", script], {}, tmp_path / "log", root=tmp_path)
        return (await child.wait()).reason

    assert asyncio.run(run()).startswith(reason)


def test_child_killed_by_its_supervisor_did_not_run_out_of_memory(tmp_path: Path) -> None:
    """A peer in the same container did, in the same moment."""
    memory = tmp_path / "sys/fs/cgroup"
    memory.mkdir(parents=True)
    (memory / "memory.events").write_text("oom_kill 0\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")

    async def run() -> str:
        command = [sys.executable, "-c", "import signal; signal.pause()"]
        child = await Child.start(command, {}, tmp_path / "log", root=tmp_path)
        (memory / "memory.events").write_text("oom_kill 1\n")
        child.kill()
        return (await child.wait()).reason

    assert asyncio.run(run()) == "killed by signal 9 (SIGKILL)"


def test_sigterm_while_a_child_starts_ends_it_and_is_told() -> None:
    """It comes when the child runs and its process group is not known yet."""
    script = """
import asyncio, os, signal, sys
from pathlib import Path
from deepfake_detector.adapters.kernel import is_stopped
from deepfake_detector.supervisor import child as child_module
from deepfake_detector.supervisor import sigterm
from deepfake_detector.supervisor.child import Child

start = asyncio.create_subprocess_exec

async def start_and_be_told_to_end(*command, **options):
    process = await start(*command, **options)
    os.kill(os.getpid(), signal.SIGTERM)
    return process

async def run():
    asyncio.create_subprocess_exec = start_and_be_told_to_end
    with sigterm.farewell():
        child = await Child.start([sys.executable, "-c", "import signal; signal.pause()"], {}, Path(os.devnull))
        print((await child.wait()).reason, flush=True)

sigterm.FAREWELL_SECONDS = 60.0
sigterm.end_on_sigterm()
asyncio.run(run())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (143, f"{sigterm.SAID}\n"), done.stderr


def test_a_child_that_can_not_be_started_is_worth_another_try(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import sys; {'#' * 2**21}"]  # more than all arguments may have
    with pytest.raises(WaitError, match=r"Argument list too long: .*: expected to start this process"):
        asyncio.run(Child.start(command, {}, tmp_path / "log"))


def test_a_frozen_child_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(child_module, "FROZEN_SECONDS", 0.2)

    async def run() -> tuple[int, str]:
        child = await Child.start([sys.executable, "-c", "import signal; signal.pause()"], {}, tmp_path / "log")
        os.kill(child.pid, signal.SIGSTOP)
        end = await asyncio.wait_for(child.wait(), 30)
        return end.status, end.reason

    status, reason = asyncio.run(run())
    assert status == -signal.SIGKILL
    assert reason.startswith("was frozen for 0.2")


def test_a_child_that_is_stopped_for_a_moment_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "LOOK_SECONDS", 0.05)

    async def run() -> int:
        child = await Child.start([sys.executable, "-c", "input()"], {}, tmp_path / "log", waiting=True)
        os.kill(child.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(child.wait())
        while not is_stopped(child.pid):
            await asyncio.sleep(0.01)
        os.kill(child.pid, signal.SIGCONT)
        child.order({}, tmp_path / "renamed")
        return (await asyncio.wait_for(waiting, 30)).status

    assert asyncio.run(run()) == 0
    assert not (tmp_path / "log").exists()


def test_a_child_that_does_not_die_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits in the kernel for a mount that hangs: no signal reaches it."""
    monkeypatch.setattr(child_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(child_module, "UNKILLABLE_SECONDS", 0.2)

    async def run() -> None:
        child = await Child.start([sys.executable, "-c", "import signal; signal.pause()"], {}, tmp_path / "log")
        with monkeypatch.context() as deaf:
            deaf.setattr(sigterm, "kill_group", lambda _group: None)
            child.kill()
            with pytest.raises(WaitError, match=rf"^process {child.pid}: still there 0\.2 s after SIGKILL"):
                await asyncio.wait_for(child.wait(), 30)
        child.kill()
        await child.wait()

    asyncio.run(run())


REAPS = """
import asyncio, ctypes, os, sys
from pathlib import Path
from deepfake_detector.supervisor.child import Child

assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: orphans come here, as to a pod's PID 1

orphan = "import os, time; os.fork() or time.sleep(600)"

async def run():
    child = await Child.start([sys.executable, "-c", orphan], {}, Path(sys.argv[1]))
    assert (await child.wait()).status == 0
    return child.pid

group = asyncio.run(run())
while True:  # the reaping thread ends it: ECHILD, as a zombie would be found here
    try:
        os.waitid(os.P_PGID, group, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        break
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process inherit orphans")
def test_orphans_of_a_child_are_reaped(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", REAPS, str(tmp_path / "log")], check=True, timeout=60)
