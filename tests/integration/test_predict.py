from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import cv2
import matplotlib.cbook
import numpy as np
import pytest

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.cli import main
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, CorruptError, NotFoundError
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.stages.predict import VideoVerdict, fetch_model, predict
from tests.integration.trained_run import SETTINGS, resolve


def write_video(path: Path, images: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face (a public-domain portrait that comes with matplotlib), and files in which there is none to judge."""
    folder = tmp_path_factory.mktemp("clips")
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
    portrait = cv2.resize(portrait, (256, 300))
    write_video(folder / "a face é.mp4", [np.roll(portrait, shift, 1) for shift in range(10)])
    write_video(folder / "grey.mp4", [np.full((120, 160, 3), 128, np.uint8)] * 5)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 100)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    (folder / "folder.mp4").mkdir()
    return folder


def test_broken_videos_have_their_reasons_and_the_others_are_judged(model_folder: Path, clips: Path) -> None:
    expected = {
        "empty.mp4": (Outcome.NOT_A_VIDEO, None),
        "a face é.mp4": (Outcome.OK, "judged"),
        "text.mp4": (Outcome.NOT_A_VIDEO, None),
        "not there.mp4": (Outcome.MISSING_FILE, None),
        "grey.mp4": (Outcome.NO_FACE, "undecided"),
        "folder.mp4": (Outcome.MISSING_FILE, None),
        "sound.mp4": (Outcome.NO_VIDEO_STREAM, None),
    }
    names = [str(clips / name) for name in expected]
    seen: list[VideoVerdict] = []
    verdicts = predict(str(model_folder), names, on_video=seen.append)
    assert seen == verdicts
    assert [verdict.video for verdict in verdicts] == names
    found = [(one.outcome, "judged" if one.outcome is Outcome.OK else one.verdict) for one in verdicts]
    assert found == list(expected.values())
    assert all(verdict.detail for verdict in verdicts if verdict.failed)
    face = verdicts[1]
    assert face.verdict in ("real", "fake")
    assert len(face.tracks) == 1
    assert face.tracks[0].frames == 3
    assert face.probability == face.tracks[0].probability == pytest.approx(by_hand(model_folder, clips), abs=1e-6)


def by_hand(model_folder: Path, clips: Path) -> float:
    """The probability that the Keras model gives to what preprocessing would have stored."""
    import tensorflow as tf

    from deepfake_detector.stages.extract import extract

    (sequence,) = extract(clips / "a face é.mp4", resolve("demo", SETTINGS)).sequences
    frames = tf.stack([tf.io.decode_jpeg(image, dct_method="INTEGER_ACCURATE") for image in sequence.images])
    model = tf.keras.models.load_model(str(model_folder))
    return float(model(frames[None], training=False)[0, 0])


def test_exit_status_and_json_tell_of_a_missing_video(
    model_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = str(clips / "grey.mp4")
    assert main(["predict", "--model", str(model_folder), grey]) == EXIT_OK
    assert "undecided" in capsys.readouterr().out
    assert main(["predict", "--json", "--model", str(model_folder), "not there.mp4", grey]) == EXIT_PERMANENT
    missing, judged = json.loads(capsys.readouterr().out)["videos"]
    assert (missing["outcome"], missing["detail"], missing["verdict"]) == ("missing_file", "no such file", None)
    assert (judged["outcome"], judged["verdict"], judged["probability"]) == ("no_face", "undecided", 0.5)


@pytest.mark.gcs
def test_model_and_video_come_from_a_bucket(gcs_bucket: str, model_folder: Path, clips: Path) -> None:
    bucket = open_storage(gcs_bucket)
    for path in model_folder.rglob("*"):
        if path.is_file():
            bucket.upload(path, f"run/model/{path.relative_to(model_folder).as_posix()}")
    bucket.upload(clips / "grey.mp4", "videos/grey clip.mp4")
    names = [f"{gcs_bucket}/videos/none.mp4", f"{gcs_bucket}/videos/grey clip.mp4"]
    missing, judged = predict(f"{gcs_bucket}/run/model", names)
    assert (missing.outcome, missing.detail) == (Outcome.MISSING_FILE, "no such object")
    assert (judged.outcome, judged.verdict) == (Outcome.NO_FACE, "undecided")


def test_a_model_with_a_changed_file_is_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    assert fetch_model(str(copy), tmp_path / "scratch")[1] == copy
    with open(copy / "model.weights.h5", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xaa")
    with pytest.raises(CorruptError, match=r"model\.weights\.h5: expected \d+ bytes with crc32c"):
        predict(str(copy), ["any.mp4"])


@pytest.mark.parametrize(("folder", "hint"), [("", "did you mean .*/model/"), ("report", "expected an exported model")])
def test_a_folder_without_a_model_is_refused(model_folder: Path, folder: str, hint: str) -> None:
    with pytest.raises(NotFoundError, match=hint):
        predict(str(model_folder.parent / folder), ["any.mp4"])


def test_real_clips_are_judged_face_by_face(model_folder: Path, real_clips: Path) -> None:
    videos = sorted(str(path) for path in (real_clips / "dfdc_train_part_0").glob("*.mp4"))[:2]
    for verdict in predict(f"{model_folder}/", videos):
        assert verdict.outcome is Outcome.OK
        assert verdict.probability == max(track.probability for track in verdict.tracks)
