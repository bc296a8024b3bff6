"""A model folder is what was exported or is refused, and nothing in it is unpickled or made code of."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import ConfigError, CorruptError, DetectorError
from deepfake_detector.stages.predict import predict
from deepfake_detector.stages.pull import pull

REPOSITORY = Path(__file__).parents[2]
LARGEST = "variables/variables.data-00000-of-00001"


def flip(folder: Path) -> None:
    data = bytearray((folder / LARGEST).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / LARGEST).write_bytes(data)


def cut(folder: Path) -> None:
    (folder / LARGEST).write_bytes((folder / LARGEST).read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def add(folder: Path) -> None:
    (folder / "saved_model.pbtxt").write_text("")


def swap(folder: Path) -> None:
    """A Lambda layer, as an attacker would put it there."""
    (folder / "config.json").write_text('{"class_name": "Lambda"}')


DAMAGES = [flip, cut, remove, add, swap]


@pytest.mark.parametrize("damage", DAMAGES)
def test_predict_refuses(model_folder: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    damage(folder)
    with pytest.raises(CorruptError, match=r"expected .*detector\.json") as error:
        predict(str(folder), [])
    assert error.value.exit_status == 78


def test_predict_takes_what_is_whole(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / ".DS_Store").write_text("left by a file manager")
    assert predict(str(folder), []) == []


@pytest.mark.parametrize("damage", [flip, cut, remove, swap])
def test_pull_refuses(model_folder: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run = tmp_path / "run"
    shutil.copytree(model_folder, run / layout.MODEL)
    damage(run / layout.MODEL)
    with pytest.raises(DetectorError):
        pull(str(run), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_pull_brings_only_what_was_exported(model_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(model_folder, run / layout.MODEL)
    add(run / layout.MODEL)
    pull(str(run), tmp_path / "pulled")
    names = {entry.name for entry in open_storage(str(tmp_path / "pulled")).list()}
    assert names == {entry.name for entry in open_storage(str(model_folder)).list()}
    add(tmp_path / "pulled")
    with pytest.raises(ConfigError, match=r"saved_model\.pbtxt"):
        pull(str(run), tmp_path / "pulled")


def test_a_lambda_layer_is_not_loaded(model_folder: Path, tmp_path: Path) -> None:
    """Even where the checksums agree with it."""
    import zipfile

    import keras

    from deepfake_detector.adapters.load_check import load

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    inputs = keras.Input((1,))
    touch = keras.layers.Lambda(lambda value: value + 1)
    keras.Model(inputs, touch(inputs)).save(tmp_path / "evil.keras")
    with zipfile.ZipFile(tmp_path / "evil.keras") as archive:
        archive.extractall(folder)
    manifest_shape = open_frames_shape(folder)
    np.save(tmp_path / "frames.npy", np.zeros((1, *manifest_shape), np.uint8))
    with pytest.raises(ValueError, match=r"(?i)lambda.*safe_mode|unsafe|arbitrary code"):
        load(str(folder), str(tmp_path / "frames.npy"), str(tmp_path / "out.npz"))
    assert not (tmp_path / "out.npz").exists()


def open_frames_shape(folder: Path) -> tuple[int, ...]:
    """Of the signature's input, without the batch."""
    import tensorflow as tf

    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return tuple(signature.structured_input_signature[1]["frames"].shape[1:])


def test_an_array_of_objects_is_not_unpickled(model_folder: Path, tmp_path: Path) -> None:
    from deepfake_detector.adapters.load_check import load

    np.save(tmp_path / "frames.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        load(str(model_folder), str(tmp_path / "frames.npy"), str(tmp_path / "out.npz"))


# What a decoding process tells its parent, through their own pipe: multiprocessing would pickle it just so.
OWN_CHILDREN = ("decoding.py",)


def test_every_loader_is_told_so() -> None:
    """By reading all code: numpy's and Keras' loaders say it in words, and what only unpickles is not imported."""
    wanted = {"load_model": "safe_mode", "load": "allow_pickle"}
    found = []
    for path in sorted([*REPOSITORY.glob("src/**/*.py"), *REPOSITORY.glob("jobs/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                unpicklers = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch"}
                assert not names & unpicklers or path.name in OWN_CHILDREN, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if node.func.attr == "load_model" or (node.func.attr == "load" and of == "np"):
                    values = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    option = wanted[node.func.attr]
                    assert values.get(option) == str(option == "safe_mode"), f"{path}:{node.lineno}"
                    found.append(node.func.attr)
    assert sorted(found) == ["load", "load", "load_model"]
