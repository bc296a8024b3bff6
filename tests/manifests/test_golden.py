from __future__ import annotations

import shutil

import pytest

from deepfake_detector.adapters.kubectl import kustomize
from tests.manifests.golden_files import GOLDEN, OVERLAYS, ROOT, SOURCES, golden

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")


@needs_kubectl
@pytest.mark.parametrize("source", SOURCES)
def test_it_renders_as_reviewed(source: str) -> None:
    assert kustomize(SOURCES[source]) == list(golden(source)), "make golden renders it anew, for review"


@needs_kubectl
def test_base_is_valid_by_itself_and_part_of_every_overlay() -> None:
    base = {(thing["kind"], thing["metadata"]["name"]) for thing in kustomize(ROOT / "k8s" / "base")}
    assert ("Namespace", "deepfake-detector") in base
    assert not any(kind == "Job" for kind, _ in base)  # kubectl apply -k must never start one
    for overlay in OVERLAYS:
        assert base <= {(thing["kind"], thing["metadata"]["name"]) for thing in golden(overlay)}


def test_every_overlay_and_component_has_a_golden_file() -> None:
    folders = [folder.name for kind in ("overlays", "components") for folder in (ROOT / "k8s" / kind).iterdir()]
    assert sorted(folders) == sorted(SOURCES) == sorted(file.stem for file in GOLDEN.iterdir())
