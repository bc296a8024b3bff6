"""The status of a run whose stored documents are damaged, or have something to warn of."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import CorruptError
from deepfake_detector.core.markers import PlanSummary, StoredFile
from deepfake_detector.stages.runs import save_config
from deepfake_detector.stages.status import read_status, to_text


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    run = open_storage(str(tmp_path))
    save_config(run, Config(), {})
    return run


DAMAGES = pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"attempt": 1', id="cut off"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[1]", id="no object"),
    ],
)


@pytest.mark.parametrize("name", [layout.REPORT_METRICS, layout.METRICS])
@DAMAGES
def test_a_damaged_document_is_named(run: Storage, name: str, data: bytes) -> None:
    run.write(name, data)
    with pytest.raises(CorruptError, match=name) as caught:
        read_status(run)
    assert "\n" not in str(caught.value)


@DAMAGES
def test_a_damaged_attempt_is_shown_among_the_others(run: Storage, data: bytes) -> None:
    run.write(layout.attempt(1), data)
    assert "          attempt 1: unknown: its record is damaged" in to_text(read_status(run)).splitlines()


def test_warnings_of_the_plan_are_shown(run: Storage) -> None:
    run.write(layout.PLAN, plan("split test has real videos only (3)").encode())
    assert "          warning: split test has real videos only (3)" in to_text(read_status(run)).splitlines()


def plan(*warnings: str) -> PlanSummary:
    return PlanSummary(
        settings={},
        fingerprint="",
        code_version="1",
        videos=StoredFile(name=layout.PLAN_VIDEOS, size=0, crc32c="00000000"),
        found=["DFDC in ./: 1 real, 1 fake"],
        shards=1,
        groups=2,
        counts={"train": {"real": 1, "fake": 1}},
        lost=[],
        warnings=list(warnings),
    )
