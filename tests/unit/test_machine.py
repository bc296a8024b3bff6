from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_detector.adapters.machine import (
    MemoryUse,
    code_version,
    cpu_limit,
    cpu_model,
    describe_oom,
    memory_free_bytes,
    memory_limit_bytes,
    memory_use,
    peak_memory_mb,
)

AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
GIB = 1 << 30
V2 = "0::/\n"
V1 = "4:memory:/docker/ab12\n3:cpu,cpuacct:/docker/ab12\n1:name=systemd:/docker/ab12\n"
HYBRID = V1 + "0::/docker/ab12\n"
NESTED = "0::/kubepods.slice/pod1/container1\n"


def system(root: Path, files: dict[str, str]) -> Path:
    """A folder with the kernel's files; names below sys/fs/cgroup may be given without it."""
    for name, text in files.items():
        path = root / (name if name.startswith("proc/") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal: 9000000 kB\nMemAvailable: 2097152 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        pytest.param({"proc/meminfo": MEMINFO}, 2 * GIB, id="the machine's"),
        pytest.param(
            {
                "proc/self/cgroup": V2,
                "memory.max": f"{2 * GIB}\n",
                "memory.current": f"{3 * GIB // 2}\n",
                "memory.stat": f"anon 5\ninactive_file {GIB // 4}\nactive_file 7\n",
            },
            3 * GIB // 4,
            id="v2, with cache that can go",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "memory/memory.usage_in_bytes": f"{GIB}\n",
                "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
            },
            3 * GIB // 2,
            id="v1, with that of its children",
        ),
        pytest.param(
            {"proc/self/cgroup": V2, "memory.max": "max\n", "memory.current": "5\n"}, 2 * GIB, id="v2, no limit"
        ),
        pytest.param(
            {"proc/self/cgroup": V2, "memory.max": "100\n", "memory.current": "120\n"}, 0, id="above the limit"
        ),
    ],
)
def test_memory_free(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert memory_free_bytes(system(tmp_path, {"proc/meminfo": MEMINFO, **files})) == free


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        pytest.param({}, AFFINITY, id="no /proc"),
        pytest.param({"proc/self/cgroup": V2}, AFFINITY, id="v2, no controller"),
        pytest.param({"proc/self/cgroup": V2, "cpu.max": "max 100000\n"}, AFFINITY, id="v2, no limit"),
        pytest.param({"proc/self/cgroup": V2, "cpu.max": "100000 100000\n"}, 1, id="v2, one"),
        pytest.param({"proc/self/cgroup": V2, "cpu.max": "199999 100000\n"}, 1, id="v2, rounded down"),
        pytest.param({"proc/self/cgroup": V2, "cpu.max": "25000 100000\n"}, 1, id="v2, at least one"),
        pytest.param({"proc/self/cgroup": V2, "cpu.max": "99900000 100000\n"}, AFFINITY, id="v2, more than there are"),
        pytest.param(
            {"proc/self/cgroup": NESTED, "kubepods.slice/pod1/cpu.max": "100000 100000\n"}, 1, id="v2, of a parent"
        ),
        pytest.param(
            {"proc/self/cgroup": NESTED, "other/cpu.max": "100000 100000\n"}, AFFINITY, id="v2, of a stranger"
        ),
        pytest.param(
            {"proc/self/cgroup": NESTED, "cpu.max": "150000 100000\n"}, 1, id="v2, the host's path in a container"
        ),
        pytest.param(
            {"proc/self/cgroup": V1, "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            AFFINITY,
            id="v1, no limit",
        ),
        pytest.param(
            {"proc/self/cgroup": V1, "cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1,
            id="v1, in a container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": HYBRID,
                "cpu/docker/ab12/cpu.cfs_quota_us": "100000\n",
                "cpu/docker/ab12/cpu.cfs_period_us": "100000\n",
            },
            1,
            id="hybrid, on the host",
        ),
    ],
)
def test_cpu_limit(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    assert cpu_limit(system(tmp_path, files)) == limit


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        pytest.param({}, MEMORY, id="no /proc"),
        pytest.param({"proc/self/cgroup": V2, "memory.max": "max\n"}, MEMORY, id="v2, no limit"),
        pytest.param({"proc/self/cgroup": V2, "memory.max": f"{GIB}\n"}, GIB, id="v2"),
        pytest.param(
            {"proc/self/cgroup": NESTED, "kubepods.slice/memory.max": f"{GIB}\n", "memory.max": "max\n"},
            GIB,
            id="v2, of a parent",
        ),
        pytest.param(
            {"proc/self/cgroup": V1, "memory/memory.limit_in_bytes": "9223372036854771712\n"}, MEMORY, id="v1, no limit"
        ),
        pytest.param({"proc/self/cgroup": V1, "memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB, id="v1"),
    ],
)
def test_memory_limit(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    assert memory_limit_bytes(system(tmp_path, files)) == limit


MIB = 1 << 20
EVENTS = "low 0\nhigh 0\nmax 12\noom 1\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def v2(kills: int, limit: str = str(300 * MIB), **more: str) -> dict[str, str]:
    return {"proc/self/cgroup": V2, "memory.events": EVENTS.format(kills), "memory.max": f"{limit}\n", **more}


def v1(kills: int, limit: int = 300 * MIB) -> dict[str, str]:
    return {
        "proc/self/cgroup": V1,
        "memory/memory.oom_control": CONTROL.format(kills),
        "memory/memory.limit_in_bytes": f"{limit}\n",
        "memory/memory.max_usage_in_bytes": f"{299 * MIB}\n",
    }


PEAK = {"memory.peak": f"{299 * MIB}\n"}


@pytest.mark.parametrize(
    ("files", "use"),
    [
        pytest.param({}, None, id="no cgroup"),
        pytest.param({"proc/self/cgroup": V2}, None, id="v2, no memory controller"),
        pytest.param(v2(0, **PEAK), MemoryUse(0, 300 * MIB, 299 * MIB), id="v2"),
        pytest.param(v2(2), MemoryUse(2, 300 * MIB, None), id="v2 before Linux 5.19"),
        pytest.param(v2(0, "max", **PEAK), MemoryUse(0, None, 299 * MIB), id="v2, no limit"),
        pytest.param(v1(3), MemoryUse(3, 300 * MIB, 299 * MIB), id="v1"),
        pytest.param(v1(0, 9223372036854771712), MemoryUse(0, None, 299 * MIB), id="v1, no limit"),
        pytest.param(
            {"proc/self/cgroup": V1, "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"},
            None,
            id="v1 before Linux 4.13",
        ),
        pytest.param(
            {
                "proc/self/cgroup": NESTED,
                "kubepods.slice/pod1/memory.max": f"{200 * MIB}\n",
                "kubepods.slice/pod1/memory.events": EVENTS.format(7),
                **{
                    f"kubepods.slice/pod1/container1/{name}": text
                    for name, text in v2(1, **PEAK).items()
                    if name != "proc/self/cgroup"
                },
            },
            MemoryUse(1, 200 * MIB, 299 * MIB),
            id="v2, the container's own account under the pod's limit",
        ),
    ],
)
def test_memory_use(tmp_path: Path, files: dict[str, str], use: MemoryUse | None) -> None:
    assert memory_use(system(tmp_path, files)) == use


RAISE = ": raise the memory limit (LIMITS=memory=...)"


@pytest.mark.parametrize(
    ("before", "files", "reason"),
    [
        pytest.param(0, v2(1, **PEAK), f"OOMKilled: limit 300 MiB, peak 299 MiB{RAISE}", id="v2"),
        pytest.param(0, v2(1), f"OOMKilled: limit 300 MiB{RAISE}", id="v2 without peak"),
        pytest.param(1, v1(3), f"OOMKilled: limit 300 MiB, peak 299 MiB{RAISE}", id="v1"),
        pytest.param(
            0, v2(1, "max", **PEAK), f"OOMKilled: the machine's {MEMORY >> 20} MiB ran out, peak 299 MiB", id="no limit"
        ),
        pytest.param(1, v2(1, **PEAK), None, id="killed before our time"),
        pytest.param(3, v1(3), None, id="v1, none killed"),
        pytest.param(None, v1(3), None, id="no account before"),
        pytest.param(0, {}, None, id="no account now"),
    ],
)
def test_describe_oom(tmp_path: Path, before: int | None, files: dict[str, str], reason: str | None) -> None:
    then = None if before is None else MemoryUse(before, None, None)
    assert describe_oom(then, system(tmp_path, files)) == reason


XEON = "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu {}\n\nprocessor\t: 1\nmodel name\t: Some Xeon\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (XEON.format("sse4_2 avx"), r"Some Xeon \(no wide vectors\)"),
        (XEON.format("avx2 fma"), r"Some Xeon \(avx2\)"),
        (XEON.format("avx512_vnni avx512f avx2 avx512fp16"), r"Some Xeon \(avx2 avx512f avx512_vnni\)"),
        ("processor\t: 0\nFeatures\t: fp asimd sve\nCPU part\t: 0xd40\n", r"\w+ 0xd40 \(sve\)"),
        ("", r"\w+ \(no wide vectors\)"),
    ],
    ids=["sse", "avx2", "avx512", "arm", "unknown"],
)
def test_cpu_model(tmp_path: Path, cpuinfo: str, expected: str) -> None:
    assert re.fullmatch(expected, cpu_model(system(tmp_path, {"proc/cpuinfo": cpuinfo})))


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_version_names_the_last_commit_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "src/package"
    package.mkdir(parents=True)
    plain = code_version(package)
    assert re.fullmatch(r"\d+\.\d+\.\d+", plain)

    git(tmp_path, "init", "-q")
    (tmp_path / "README.md").write_text("")
    git(tmp_path, "add", "README.md")
    git(tmp_path, "commit", "-qm", "Start")
    (package / "installed").mkdir()
    assert code_version(package / "installed") == plain  # in somebody else's repository, and not part of it

    (package / "a.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "Add a package")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "README.md").write_text("words")
    git(tmp_path, "commit", "-qam", "Write words")
    (package / "a.py").write_text("1")  # an uncommitted change is not told
    code_version.cache_clear()
    assert code_version(package) == f"{plain}+g{commit[:10]}"


def test_code_version_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert re.fullmatch(r"\d+\.\d+\.\d+", code_version(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_peak_memory_outlives_the_memory() -> None:
    code = """
from deepfake_detector.adapters.machine import peak_memory_mb
before = peak_memory_mb()
block = b"x" * (200 << 20)
del block
print(peak_memory_mb() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 190 < float(result.stdout) < 210


def test_peak_memory_of_another_process(tmp_path: Path) -> None:
    root = system(tmp_path, {"proc/123/status": "Name:\tcat\nVmPeak:\t 9000 kB\nVmHWM:\t    2560 kB\nVmRSS:\t 10 kB\n"})
    (tmp_path / "proc/124").mkdir()
    (tmp_path / "proc/124/status").write_text("Name:\tzombie\nState:\tZ (zombie)\n")
    assert peak_memory_mb(123, root) == 2.5
    assert peak_memory_mb(124, root) is None
    assert peak_memory_mb(125, root) is None
    assert (peak_memory_mb(None, root) or 0) > 1  # without /proc/self: from getrusage
