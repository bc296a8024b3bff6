"""The demo's set as files: the same bytes every time, no shortcut to the label, and each broken file's outcome."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import pytest
from sklearn.metrics import roc_auc_score

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import demo
from deepfake_detector.stages.extract import extract
from deepfake_detector.stages.plan import load_plan, make_plan
from demo.synthesise import MARKER, Settings, synthesise

SETTINGS = Settings(groups=12)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "videos"
    assert synthesise(folder, SETTINGS, processes=2)
    return folder


@pytest.fixture(scope="module")
def config(videos: Path) -> Config:
    return override(demo(), {"data.videos": str(videos)}, "test")


def clips(videos: Path, label: str) -> list[Path]:
    return sorted(videos.glob(f"part_*/????_{label}.mp4"), key=lambda path: path.name)


def test_bytes_depend_on_the_settings_alone(tmp_path: Path) -> None:
    small = Settings(groups=2)
    synthesise(tmp_path / "one", small, processes=1)
    synthesise(tmp_path / "two", small, processes=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_finished_set_is_kept_and_an_interrupted_one_is_made_anew(tmp_path: Path) -> None:
    folder, small = tmp_path / "set", Settings(groups=2)
    synthesise(folder, small, processes=1)
    before = digests(folder)
    (folder / "part_0/0000_real.mp4").write_bytes(b"changed")
    assert not synthesise(folder, small, processes=1)
    assert digests(folder) != before
    (folder / MARKER).rename(folder / "unfinished.json")
    (folder / "part_1/of_an_older_try.mp4").touch()
    assert synthesise(folder, small, processes=1)
    assert digests(folder) == before
    with pytest.raises(ConfigError, match=r"demo\.groups=3: expected 2"):
        synthesise(folder, Settings(groups=3), processes=1)


def test_real_and_fake_files_have_the_same_properties(videos: Path) -> None:
    def properties(path: Path) -> tuple[object, ...]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            codec = stream.codec_context
            return codec.name, codec.width, codec.height, stream.average_rate, stream.frames, stream.duration

    reals, fakes = clips(videos, "real"), clips(videos, "fake")
    assert len(reals) == len(fakes) == SETTINGS.groups
    assert [properties(path) for path in reals] == [properties(path) for path in fakes]
    assert len({properties(path) for path in reals}) > SETTINGS.groups / 2
    sizes = [path.stat().st_size for path in reals + fakes]
    assert 0.4 < roc_auc_score([0] * len(reals) + [1] * len(fakes), sizes) < 0.6


def test_the_plan_keeps_each_fake_with_its_real(videos: Path, config: Config, tmp_path: Path) -> None:
    run = open_storage(str(tmp_path / "run"))
    make_plan(run, config)
    summary, planned = load_plan(run)
    split_of = {Path(video.path).stem: video.split for video in planned}
    for group in range(SETTINGS.groups):
        assert split_of[f"{group:04d}_real"] == split_of[f"{group:04d}_fake"]
    assert {(Path(lost.key).stem, lost.outcome) for lost in summary.lost} == {
        ("broken_missing", Outcome.MISSING_FILE),
        ("broken_unlabelled", Outcome.UNLABELLED),
    }


def test_a_face_is_found_in_nearly_all_frames_of_both_labels(videos: Path, config: Config) -> None:
    for label in ("real", "fake"):
        found = [extract(path, config) for path in clips(videos, label)]
        assert [one.outcome for one in found] == [Outcome.OK] * len(found)
        assert {one.tracks for one in found} == {1}
        sampled, detected = sum(one.frames_sampled for one in found), sum(one.frames_detected for one in found)
        assert detected >= 0.95 * sampled, label


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("empty", Outcome.NOT_A_VIDEO),
        ("text", Outcome.NOT_A_VIDEO),
        ("truncated", Outcome.NOT_A_VIDEO),
        ("faceless", Outcome.NO_FACE),
        ("missing", Outcome.MISSING_FILE),
        ("unlabelled", Outcome.OK),
    ],
)
def test_broken_files_have_their_outcomes(videos: Path, config: Config, name: str, outcome: Outcome) -> None:
    assert extract(videos / f"part_1/broken_{name}.mp4", config).outcome == outcome
