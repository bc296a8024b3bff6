"""Where a command works: an overlay, a context, a namespace. Imported by every command line, so nothing heavy here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepfake_detector.core.errors import ConfigError

OVERLAYS = Path(__file__).parents[3] / "k8s" / "overlays"  # beside src: the product runs from a checkout
DEFAULT_OVERLAY = "local"
DEFAULT_NAMESPACE = "deepfake-detector"


@dataclass(frozen=True)
class Target:
    """An overlay of k8s/overlays, a context of the kubeconfig (None: its current one), a namespace."""

    overlay: str
    context: str | None = None
    namespace: str = DEFAULT_NAMESPACE


def overlay_folder(overlay: str) -> Path:
    """The overlay's kustomization; raises ConfigError naming the overlays that there are."""
    there = sorted(folder.name for folder in OVERLAYS.iterdir() if folder.is_dir()) if OVERLAYS.is_dir() else []
    if overlay not in there:
        raise ConfigError(
            f"--overlay {overlay}: expected one of {', '.join(there) or 'none'} ({OVERLAYS}: the product runs from a "
            "checkout)"
        )
    return OVERLAYS / overlay
