"""The demo's settings, folders and closing words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.core.errors import ConfigError, DataError
from demo.__main__ import main
from demo.summary import summary
from demo.synthesise import MARKER, Settings, check, describe, held_out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"groups": 1}, "--groups 1: expected at least 2", id="too-few"),
        pytest.param({"strength": -0.5}, "--strength -0.5: expected 0 to 4", id="negative"),
        pytest.param({"strength": float("nan")}, "--strength nan: expected 0 to 4", id="nan"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**given)


def test_free_folders_pass(tmp_path: Path) -> None:
    check(tmp_path / "new", Settings())
    check(tmp_path, Settings())
    assert not (tmp_path / "new").exists()


def test_folders_of_others_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="expected a folder that is new, empty, or the demo's own"):
        check(tmp_path, Settings())
    with pytest.raises(ConfigError, match=r"holiday\.mp4: expected a folder"):
        check(tmp_path / "holiday.mp4", Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_a_set_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(json.dumps(describe(Settings())))
    check(tmp_path, Settings())
    with pytest.raises(ConfigError, match=r"demo.strength=0.0: expected 1.0, with which .* was made"):
        check(tmp_path, Settings(strength=0.0))


def test_the_first_test_group_is_judged(tmp_path: Path) -> None:
    paths = ["part_1/0007_fake.mp4", "part_0/0012_real.mp4", "part_1/broken_text.mp4", "part_1/0007_real.mp4"]
    assert held_out(tmp_path, paths) == (tmp_path / "part_1/0007_real.mp4", tmp_path / "part_1/0007_fake.mp4")
    with pytest.raises(DataError, match="expected at least one of 1 videos"):
        held_out(tmp_path, ["part_1/broken_text.mp4"])


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "mine.mp4").touch()
    status = main(["--videos", str(videos), "--run", str(tmp_path / "run")])
    assert status == ConfigError.exit_status
    assert capsys.readouterr().err.splitlines() == [
        f"error: --videos {videos}: expected a folder that is new, empty, or the demo's own"
    ]
    assert not (tmp_path / "run").exists()


def metrics(auc: float | None) -> dict[str, Any]:
    block = {"videos": 113, "real": 57, "fake": 56, "equal_error_rate": 0.035, "accuracy": 0.9735}
    block |= {"auc": auc, "log_loss_balanced": 0.1255, "reasons": {} if auc else {"auc": "one class only"}}
    return {"test": {"all": block, "losses": {"no_face": {"fake": 1}, "not_a_video": {"real": 2}}}}


def test_the_summary_has_figures_places_and_what_they_mean() -> None:
    text = summary(metrics(0.98434), Settings(), run="demo-run/", command=".venv/bin/deepfake-detector")
    for part in (
        "113 held-out clips (57 real, 56 fake, 3 of them without a face sequence)",
        "AUC 0.984, equal error rate 0.035, accuracy 0.974, log loss 0.126",
        "model       demo-run/model/",
        "report      demo-run/report/report.html",
        "280 groups were synthesised, each one real clip and the fake made from it",
        "not how the detector does on\nunseen people",
        ".venv/bin/deepfake-detector predict --model demo-run/model VIDEO",
    ):
        assert part in text


def test_a_figure_that_cannot_be_computed_has_its_reason() -> None:
    text = summary(metrics(None), Settings(strength=0.0), run="run", command="deepfake-detector")
    assert "AUC not available (one class only), equal" in text
    assert "(strength 0)" in text
