"""What this machine is and what it allows: CPUs, memory, instruction set, code version.

Paths below `root` are the kernel's (/proc, /sys/fs/cgroup), so that tests can bring their own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_CONTROL = "sys/fs/cgroup"
# The vector extensions by which TensorFlow's kernels choose their code path, so results may differ between them.
_BIT_FLAGS = ("avx2", "avx512f", "avx512_vnni", "sve")


def cpu_limit(root: Path = ROOT) -> int:
    """Whole CPUs that this process may use, at least 1: its affinity, and its cgroup's quota rounded down."""
    limit = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, "cpu"):
        quota, period = "max", "100000"
        if (folder / "cpu.max").is_file():  # v2: "max 100000" or "150000 100000"
            quota, period = (folder / "cpu.max").read_text().split()
        elif (folder / "cpu.cfs_quota_us").is_file():  # v1: -1 is no limit
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota not in ("max", "-1"):
            limit = min(limit, int(quota) // int(period))
    return max(limit, 1)


def memory_limit_bytes(root: Path = ROOT) -> int:
    """Bytes that this process may use: the machine's memory or its cgroup's limit, whichever is less."""
    limit = _machine_memory()
    for folder in _control_groups(root, "memory"):
        for file in (folder / "memory.max", folder / "memory.limit_in_bytes"):  # v2, v1
            if file.is_file() and (text := file.read_text().strip()) != "max":
                limit = min(limit, int(text))
    return limit


@dataclass(frozen=True)
class MemoryUse:
    """What a cgroup tells of its memory, in bytes.

    oom_kills: processes of it that the kernel has killed; limit: None, none but the machine's memory; peak: None,
    this kernel does not tell (memory.peak came with Linux 5.19).
    """

    oom_kills: int
    limit: int | None
    peak: int | None


def memory_free_bytes(root: Path = ROOT) -> int:
    """Bytes that processes of this cgroup may still take: of its limits, or of the machine, whichever is less.

    Page cache that the kernel would give up (inactive_file) counts as free, as in the kubelet's working set
    (kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction).
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    free = int(available[1]) << 10 if available else _machine_memory()
    for folder in _control_groups(root, "memory"):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, now = _text(folder / most).strip(), _text(folder / used).strip()
            if limit and limit != "max" and now:
                statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
                cache = statistics.get("total_inactive_file") or statistics.get("inactive_file") or "0"
                free = min(free, int(limit) - int(now) + int(cache))
    return max(free, 0)


def memory_use(root: Path = ROOT) -> MemoryUse | None:
    """The account of this process's innermost cgroup that has one; None where no cgroup counts memory.

    v2: memory.events, memory.max and memory.peak; v1: memory.oom_control, memory.limit_in_bytes and
    memory.max_usage_in_bytes (kernel.org/doc/html/latest/admin-guide/cgroup-v2.html and cgroup-v1/memory.html).
    """
    for folder in _control_groups(root, "memory"):
        for events, peak in (("memory.events", "memory.peak"), ("memory.oom_control", "memory.max_usage_in_bytes")):
            kills = re.search(r"^oom_kill (\d+)$", _text(folder / events), re.MULTILINE)
            if kills:
                limit = memory_limit_bytes(root)
                most = _text(folder / peak).strip()
                return MemoryUse(
                    oom_kills=int(kills[1]),
                    limit=limit if limit < _machine_memory() else None,
                    peak=int(most) if most else None,
                )
    return None


def describe_oom(before: MemoryUse | None, root: Path = ROOT) -> str | None:
    """Why a process of this cgroup got SIGKILL, if the kernel has killed one for memory since `before`; or None."""
    now = memory_use(root)
    if before is None or now is None or now.oom_kills <= before.oom_kills:
        return None
    peak = f", peak {_mebibytes(now.peak)}" if now.peak is not None else ""
    if now.limit is None:
        return f"OOMKilled: the machine's {_mebibytes(_machine_memory())} ran out{peak}"
    return f"OOMKilled: limit {_mebibytes(now.limit)}{peak}: raise the memory limit (LIMITS=memory=...)"


def _mebibytes(size: int) -> str:
    return f"{size >> 20} MiB"


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and of all above it, in v2 and in v1's hierarchy of `controller`.

    /proc/self/cgroup has lines "0::/path" (v2) and "4:cpu,cpuacct:/path" (v1). In a container the path may be
    that of the host, of which only the mounted root exists: folders that are missing have no files to read.
    """
    file = root / "proc/self/cgroup"
    for line in file.read_text().splitlines() if file.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / _CONTROL / controller if controllers else root / _CONTROL
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


@functools.cache
def cpu_model(root: Path = ROOT) -> str:
    """The CPU's model and the vector extensions on which results may depend: "AMD EPYC 7B12 (avx2)"."""
    fields: dict[str, str] = {}
    file = root / "proc/cpuinfo"
    for line in file.read_text().splitlines() if file.is_file() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    model = fields.get("model name") or " ".join(filter(None, (platform.machine(), fields.get("cpu part"))))
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return f"{model} ({' '.join(flag for flag in _BIT_FLAGS if flag in flags) or 'no wide vectors'})"


@functools.cache
def code_version(package: Path = Path(__file__).parent.parent) -> str:
    """ "0.1.0+g1a2b3c4d5e": the distribution's version, and the last commit that changed the package's folder.

    The version alone where the folder is not under git or git is not there: in an image it names the commit by itself
    (docker/Dockerfile).
    """
    version = importlib.metadata.version("deepfake-detector")
    command = ["git", "-C", str(package), "log", "-1", "--abbrev=10", "--format=%h", "--", "."]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return version
    commit = result.stdout.strip()
    return f"{version}+g{commit}" if result.returncode == 0 and commit else version


def peak_memory_mb(pid: int | None = None, root: Path = ROOT) -> float | None:
    """Most resident memory so far, in MiB, of a process (None: this one).

    None when the process has ended, or when this system does not tell of others. VmHWM, unlike getrusage, starts
    anew at exec, so a child's peak holds nothing of its parent's.
    """
    try:
        status = (root / "proc" / ("self" if pid is None else str(pid)) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    if pid is None:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return None
