"""k8s/create-cluster before it touches anything: what is missing, and what is wrong with its arguments."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "k8s" / "create-cluster"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with nothing in it but what the script itself needs."""
    for name in ("bash", "dirname"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    return tmp_path


def create_cluster(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(path / "bash"), str(SCRIPT), *arguments]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


def program(path: Path, name: str, status: int) -> None:
    (path / name).write_text(f"#!{path}/bash\nexit {status}\n")
    (path / name).chmod(0o755)


@pytest.mark.parametrize("tool", ["kind", "minikube"])
def test_says_at_once_all_that_must_be_installed(path: Path, tool: str) -> None:
    result = create_cluster(path, tool, "detector:1")
    assert result.returncode == 78
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [tool, "docker", "kubectl"]
    assert all("not found. Install " in line and "https://" in line for line in lines)


def test_another_tool_is_refused_by_name(path: Path) -> None:
    result = create_cluster(path, "k3d", "detector:1")
    assert (result.returncode, result.stderr) == (78, "CLUSTER=k3d: expected kind or minikube\n")


def test_docker_without_a_daemon_is_worth_another_try(path: Path) -> None:
    for name, status in (("kind", 0), ("kubectl", 0), ("docker", 1)):
        program(path, name, status)
    result = create_cluster(path, "kind", "detector:1")
    assert result.returncode == 75
    assert result.stderr.startswith("docker: its daemon doesn't answer")
