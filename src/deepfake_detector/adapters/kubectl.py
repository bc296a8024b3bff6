"""kubectl, for what the client library cannot do: render kustomize, and apply on the server's side."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepfake_detector.core.errors import ClusterError

RENDER_SECONDS, APPLY_SECONDS = 60, 120


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization, in its order. Raises ClusterError: no kubectl, or no valid kustomization."""
    import yaml

    if not folder.is_dir():
        raise ClusterError(f"{folder}: expected a folder with a kustomization (the product runs from a checkout)")
    text, _ = _run(["kustomize", str(folder)], f"kubectl kustomize {folder}", RENDER_SECONDS)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast, where it is there
    return [thing for thing in yaml.load_all(text, Loader=loader) if thing is not None]


def apply(objects: Sequence[dict[str, Any]], context: str, namespace: str) -> str:
    """Create or change them (kubectl apply --server-side); returns kubectl's lines, one for each object, and warnings.

    Fields that another tool set meanwhile become ours: the manifests are the one description of these objects.
    Raises ClusterError with kubectl's own error.
    """
    arguments = ["--context", context, "--namespace", namespace, "apply", "--server-side", "--force-conflicts"]
    arguments += ["--field-manager", "deepfake-detector", "--filename", "-"]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    where = f"kubectl apply (context {context}, namespace {namespace})"
    return "".join(_run(arguments, where, APPLY_SECONDS, listed))


def kubectl_version() -> tuple[int, int]:
    """The installed kubectl's, for example (1, 34). Raises ClusterError where there is none."""
    text, _ = _run(["version", "--client", "--output", "json"], "kubectl version", RENDER_SECONDS)
    version = json.loads(text)["clientVersion"]
    major, minor = ("".join(filter(str.isdigit, version[part])) for part in ("major", "minor"))
    return int(major), int(minor)


def _run(arguments: Sequence[str], what: str, seconds: float, text: str | None = None) -> tuple[str, str]:
    """stdout and stderr of kubectl. Raises ClusterError, in one line, when it fails."""
    try:
        result = subprocess.run(
            ["kubectl", *arguments], input=text, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError:
        raise ClusterError(
            "kubectl: not found, expected it on PATH: install it (https://kubernetes.io/docs/tasks/tools/)"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{what}: no end after {seconds:g} s, expected an answer of the cluster") from None
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if not line.startswith("Warning:")] or [f"exit {result.returncode}"]
        more = f" (and {len(errors) - 1} lines more)" if len(errors) > 1 else ""
        raise ClusterError(f"{what}: {errors[0]}{more}")
    return result.stdout, result.stderr
