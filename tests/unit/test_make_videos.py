from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.make_videos import has_encoder, talking_head, write_video


@pytest.mark.skipif(not has_encoder("libsvtav1"), reason="needs SVT-AV1")
@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="needs sched_getscheduler(2)")
def test_encoding_makes_no_real_time_process_of_the_tests(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    write_video(tmp_path / "a.mp4", talking_head(4), codec="libsvtav1", options={"preset": "12"})
    assert os.sched_getscheduler(0) == before
