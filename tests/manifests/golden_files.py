"""The overlays, and what may be added to them, rendered as `make golden` left them for review."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

OVERLAYS = ("local", "gke")
STAGES = ("preprocess", "train", "export")
ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
# What each golden file is rendered from.
SOURCES = {
    **{overlay: ROOT / "k8s" / "overlays" / overlay for overlay in OVERLAYS},
    "bucket-key": Path(__file__).parent / "bucket-key",
}

Manifest = dict[str, Any]


@functools.cache
def golden(source: str) -> tuple[Manifest, ...]:
    """All objects of an overlay, or of another of SOURCES."""
    return tuple(yaml.safe_load_all((GOLDEN / f"{source}.yaml").read_text()))


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    """The overlay's objects of a kind by name."""
    return {thing["metadata"]["name"]: thing for thing in golden(overlay) if thing["kind"] == kind}


def the(overlay: str, kind: str, name: str) -> Manifest:
    return of_kind(overlay, kind)[name]


def pod_templates(overlay: str) -> dict[str, Manifest]:
    """Each pod template by "Kind/name" of what it belongs to."""
    return {
        f"{thing['kind']}/{thing['metadata']['name']}": thing["spec"]["template"]
        for thing in golden(overlay)
        if "template" in thing.get("spec", {})
    }


def stage_container(overlay: str, stage: str) -> Manifest:
    """The one container of a stage's pod."""
    (container,) = the(overlay, "Job", stage)["spec"]["template"]["spec"]["containers"]
    return container
