from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from deepfake_detector.adapters.storage import Storage, is_copy, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import ConfigError, CorruptError, ExportError, NotFoundError
from deepfake_detector.core.markers import DetectorManifest, ShardReport, TrainedMarker, decode
from tests.integration.trained_run import STEP, make_trained_run, usual_videos, write_records

USER_SCRIPT = """
import sys
import numpy as np, tensorflow as tf
frames, out, folder = sys.argv[1:]
frames = np.load(frames)
saved = tf.saved_model.load(folder)
served = saved.signatures["serving_default"](tf.constant(frames))
keras_model = tf.keras.models.load_model(folder)
assert not [name for name in sys.modules if name.startswith("deepfake_detector")]
np.savez(out, called=saved(frames), keras=keras_model.predict(frames, verbose=0), **served)
"""


@pytest.fixture
def load_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the written model in this process: a fresh interpreter costs 8 s, and `exported` has had one."""
    from deepfake_detector.adapters import load_check, saved_model

    monkeypatch.setattr(saved_model, "load_afresh", lambda *paths: load_check.load(*map(str, paths)))


def document(run: Storage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.read(layout.REPORT_METRICS))
    return found


def manifest(run: Storage) -> DetectorManifest:
    return decode(DetectorManifest, run.read(layout.DETECTOR), layout.DETECTOR)


def scores(run: Storage) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run.read("report/scores.csv").decode())))


def copy_of_training(run: Storage, to: Path) -> Storage:
    """The run as it was before its export."""
    shutil.copytree(run.uri, to, ignore=shutil.ignore_patterns("model", "report"))
    return open_storage(str(to))


def test_a_fresh_interpreter_outside_the_repository_loads_the_model_in_all_three_ways(
    exported: Storage, model_folder: Path, tmp_path: Path
) -> None:
    from deepfake_detector.training.checkpoints import restore_weights
    from deepfake_detector.training.model import build
    from tests.integration.trained_run import SETTINGS, resolve

    config = resolve("demo", SETTINGS)
    model = build(config)
    restore_weights(exported, STEP, model, tmp_path)
    shape = (5, config.sampling.frames, config.faces.size, config.faces.size, 3)
    frames = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    logits = model(frames, training=False).numpy().astype(np.float64)
    np.save(tmp_path / "frames.npy", frames)
    shutil.copytree(model_folder, tmp_path / "pulled model")
    subprocess.run(
        [sys.executable, "-I", "-c", USER_SCRIPT, "frames.npy", "out.npz", "pulled model"],
        cwd=tmp_path,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    found = manifest(exported)
    probability = 1 / (1 + np.exp(-(found.slope * logits + found.offset)))
    with np.load(tmp_path / "out.npz") as out:
        for name in ("called", "keras", "probability"):
            assert out[name].dtype == np.float32
            np.testing.assert_allclose(out[name], probability, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(out["logit"], logits, rtol=1e-6, atol=1e-6)
    assert np.ptp(probability) > 1e-4  # different inputs, different answers


def test_the_marker_names_every_file_and_all_that_prediction_needs(exported: Storage, model_folder: Path) -> None:
    found = manifest(exported)
    present = {path.relative_to(exported.uri).as_posix() for path in model_folder.rglob("*") if path.is_file()}
    assert {file.name for file in found.files} == present - {layout.DETECTOR}
    assert all(is_copy(Path(exported.uri) / file.name, file) for file in found.files)
    assert found.step == STEP
    assert found.slope > 0
    assert 0 < found.threshold < 1
    assert found.validation_prior == 0.5
    assert found.config["sampling.frames"] == 3


def test_the_metrics_are_scikit_learns_on_the_scores_of_the_videos(exported: Storage) -> None:
    rows = scores(exported)
    labels = np.array([row["label"] == "fake" for row in rows])
    p = np.array([float(row["probability"]) for row in rows])
    block = document(exported)["test"]["all"]
    assert (block["videos"], block["real"], block["fake"]) == (40, 20, 20)
    assert block["auc"] == metrics.roc_auc_score(labels, p)
    assert block["average_precision"] == metrics.average_precision_score(labels, p)
    assert block["log_loss_natural"] == metrics.log_loss(labels, p)
    right = [row["verdict"] == row["label"] for row in rows]
    assert block["accuracy"] == np.mean(right)
    assert block["reasons"] == {}
    assert block["auc"] > 0.8  # the fixture's fakes are brighter


def test_lost_videos_stay_in_the_denominator(exported: Storage) -> None:
    test = document(exported)["test"]
    assert test["undecided"] == 2
    assert test["decided"]["videos"] == 38
    assert test["losses"] == {"decode_error": {"fake": 1}, "no_face": {"real": 1}}
    undecided = {row["video"]: row for row in scores(exported) if row["verdict"] == "undecided"}
    assert set(undecided) == {"set/real/faceless", "set/method0/broken"}
    assert {row["probability"] for row in undecided.values()} == {"0.5"}


def test_metrics_by_method_compare_one_methods_fakes_with_all_reals(exported: Storage) -> None:
    methods = document(exported)["test"]["by_method"]
    counts = {name: (block["real"], block["fake"]) for name, block in methods.items()}
    assert counts == {"set/method0": (20, 11), "set/method1": (20, 9)}
    rows = [row for row in scores(exported) if row["label"] == "real" or row["video"].startswith("set/method1/")]
    expected = metrics.roc_auc_score([row["label"] == "fake" for row in rows], [float(r["probability"]) for r in rows])
    assert methods["set/method1"]["auc"] == expected


def test_the_page_is_whole_and_escapes_what_it_shows(exported: Storage) -> None:
    page = exported.read("report/report.html").decode()
    pages = _Tags()
    pages.feed(page)
    assert pages.open == []
    assert page.count('src="data:image/png;base64,') == 3
    assert "a warning with &lt;markup&gt; &amp; more" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for name in ("roc.png", "calibration.png", "scores.png"):
        assert exported.read(layout.REPORT + name).startswith(b"\x89PNG")


class _Tags(HTMLParser):
    """The stack of open tags; raises AssertionError where an end tag does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_second_export_does_nothing(exported: Storage, tmp_path: Path) -> None:
    from deepfake_detector.stages.export import export

    before = {entry.name: (Path(exported.uri) / entry.name).stat().st_mtime_ns for entry in exported.list()}
    assert export(exported, tmp_path) == manifest(exported)
    assert {entry.name: (Path(exported.uri) / entry.name).stat().st_mtime_ns for entry in exported.list()} == before
    assert not list(tmp_path.iterdir())


def test_what_a_dead_export_staged_is_removed_by_the_next(exported: Storage, tmp_path: Path) -> None:
    """It published its model and died before it had tidied up."""
    from deepfake_detector.stages.export import export

    shutil.copytree(exported.uri, tmp_path / "run")
    run = open_storage(str(tmp_path / "run"))
    before = {entry.name for entry in run.list()}
    run.write(layout.staged_export("0123") + "model/saved_model.pb", b"staged")
    export(run, tmp_path / "scratch")
    assert {entry.name for entry in run.list()} == before


@pytest.mark.usefixtures("load_here")
def test_the_same_checkpoint_gives_the_same_weights_calibration_and_report(exported: Storage, tmp_path: Path) -> None:
    from deepfake_detector.stages.export import export

    again = copy_of_training(exported, tmp_path / "run")
    export(again, tmp_path / "scratch")
    promised = ["model/model.weights.h5", "model/variables/variables.data-00000-of-00001"]
    for name in promised + [entry.name for entry in exported.list("report/")]:
        assert again.read(name) == exported.read(name), name
    first, second = manifest(exported), manifest(again)
    assert (first.slope, first.offset, first.threshold) == (second.slope, second.offset, second.threshold)


def test_other_settings_than_the_markers_are_refused_by_name(exported: Storage, tmp_path: Path) -> None:
    from deepfake_detector.stages.export import export

    run = open_storage(str(tmp_path / "run"))
    (tmp_path / "run" / "model").mkdir(parents=True)
    for name in (layout.CONFIG, layout.DETECTOR):
        run.write(name, exported.read(name))
    changed = json.loads(run.read(layout.CONFIG))
    changed["resolved"]["export"]["prior"] = 0.25
    run.write(layout.CONFIG, json.dumps(changed).encode())
    with pytest.raises(ConfigError, match=r"export\.prior=0\.25: expected 0\.5"):
        export(run, tmp_path / "scratch")


def test_an_interpreter_that_fails_is_an_error_that_says_why(tmp_path: Path) -> None:
    from deepfake_detector.adapters.saved_model import load_afresh

    with pytest.raises(ExportError, match=r"model: expected it to load in a fresh interpreter \(FileNotFoundError"):
        load_afresh(tmp_path / "model", tmp_path / "no frames.npy", tmp_path / "out.npz")


def test_export_waits_for_no_training(tmp_path: Path) -> None:
    from deepfake_detector.stages.export import export

    run, _ = make_trained_run(tmp_path / "run", usual_videos(1))
    marker = decode(TrainedMarker, run.read(layout.TRAINED), "")
    run.delete(layout.TRAINED)
    with pytest.raises(NotFoundError, match="expected finished training"):
        export(run, tmp_path / "scratch")
    run.write(layout.TRAINED, marker.model_copy(update={"weights_sha256": "0" * 64}).encode())
    with pytest.raises(CorruptError, match=rf"expected {'0' * 64} .* delete \S+/{layout.TRAINED}, then"):
        export(run, tmp_path / "scratch")


def test_records_that_changed_since_training_are_refused(exported: Storage, tmp_path: Path) -> None:
    from deepfake_detector.stages.export import export
    from deepfake_detector.stages.runs import load_config

    run = copy_of_training(exported, tmp_path / "run")
    write_records(run, load_config(run), usual_videos(2), ())
    with pytest.raises(CorruptError, match="records have fingerprint"):
        export(run, tmp_path / "scratch")


def test_a_damaged_record_is_named(exported: Storage, tmp_path: Path) -> None:
    from deepfake_detector.stages.export import export

    run = copy_of_training(exported, tmp_path / "run")
    report = decode(ShardReport, run.read(layout.shard_report(0, 1)), "the test")
    [file] = [file for file in report.files if file.split == "test"]
    record = file.records[-1]
    data = bytearray(run.read(file.name))
    data[record.offset + record.length // 2] ^= 1
    run.write(file.name, bytes(data))
    with pytest.raises(CorruptError, match=f"{re.escape(file.name)} at byte {record.offset}: checksum"):
        export(run, tmp_path / "scratch")


@pytest.mark.usefixtures("load_here")
def test_a_model_that_disagrees_with_its_checkpoint_gets_no_marker(
    exported: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepfake_detector.adapters import saved_model
    from deepfake_detector.stages.export import export

    write = saved_model.write
    monkeypatch.setattr(saved_model, "write", lambda model, slope, *rest: write(model, slope + 1e-3, *rest))
    run = copy_of_training(exported, tmp_path / "run")
    with pytest.raises(ExportError, match=r"differs from the checkpoint by \d.*expected at most 1e-06"):
        export(run, tmp_path / "scratch")
    assert not run.exists(layout.DETECTOR)
    assert not list(run.list(layout.MODEL))


@pytest.mark.usefixtures("load_here")
def test_one_class_and_an_empty_test_split_give_nulls_with_reasons(tmp_path: Path) -> None:
    from deepfake_detector.stages.export import export

    videos = usual_videos(3)
    run, _ = make_trained_run(
        tmp_path / "run", {**videos, "validation": videos["validation"][:3], "test": []}, scale=-1.0
    )
    found = export(run, tmp_path / "scratch")
    assert (found.slope, found.offset, found.threshold, found.validation_prior) == (1.0, 0.0, 0.5, 0.0)
    report = document(run)
    assert "found 3 real and 0 fake" in report["calibration"]["notes"][0]
    assert report["test"]["all"]["auc"] is None
    assert report["test"]["all"]["reasons"]["auc"] == "expected real and fake videos, found 0 real and 0 fake"
    assert "not calibrated" in run.read("report/report.html").decode()
