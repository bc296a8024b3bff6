"""Disks that are too small, real ones: a tmpfs of a few MB in a mount namespace of its own."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_detector.adapters.files import full_disk, require_room
from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import StorageError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.markers import ShardReport, decode
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.sequences import FaceSequence
from deepfake_detector.stages.plan import make_plan
from deepfake_detector.stages.preprocess import preprocess_shard
from deepfake_detector.stages.runs import save_config
from tests.integration.test_preprocess import config_for
from tests.integration.trained_run import make_trained_run, usual_videos
from tests.make_videos import talking_head, write_video

REPOSITORY = Path(__file__).parents[2]
IN_TMPFS = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


@functools.cache
def namespace() -> list[str] | None:
    """A command that begins a mount namespace in which this account may mount."""
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            done = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            return command
    return None


def on_small_disk(folder: Path, size: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to whom `folder` is an empty file system of `size`."""
    begin = namespace()
    if begin is None:
        pytest.skip("needs unshare(1) and the right to mount a tmpfs")
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [*begin, "sh", "-c", IN_TMPFS, "sh", size, str(folder), *command],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def python(folder: Path, size: str, program: str, *arguments: str) -> str:
    """What a Python program wrote that ran beside a small disk."""
    done = on_small_disk(folder, size, sys.executable, "-c", program, str(folder), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


STORAGE = """
import sys
from pathlib import Path
from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.errors import StorageError
folder, source = map(Path, sys.argv[1:])
run, big = open_storage(str(folder / "run")), source.read_bytes()
run.write("small", b"stays")
for name, call in {
    "write": lambda: run.write("a", big),
    "rewrite": lambda: run.write("small", big),
    "create": lambda: run.create("a", big),
    "replace": lambda: run.replace("small", big, run.version("small")),
    "upload": lambda: run.upload(source, "a"),
    "download": lambda: open_storage(str(source.parent)).download(source.name, folder / "copy"),
}.items():
    try:
        call()
    except StorageError as error:
        print(name, error.exit_status, error)
assert run.read("small") == b"stays"
assert [entry.name for entry in run.list()] == ["small"]
assert [path.name for path in folder.rglob("*") if path.is_file()] == ["small"]
"""


def test_storage_on_a_full_disk(tmp_path: Path) -> None:
    """Each ends retryable, and leaves what was there before and nothing else."""
    (tmp_path / "source").write_bytes(os.urandom(3 << 20))
    lines = python(tmp_path / "disk", "2m", STORAGE, str(tmp_path / "source")).splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, "75"] for name in ("write", "rewrite", "create", "replace", "upload", "download")
    ]
    assert all("No space left on device" in line for line in lines[:5])
    assert "MB free: expected 3.1 MB for a copy of" in lines[5]


LIBRARIES = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from pathlib import Path
import keras, numpy as np, tensorflow as tf
from deepfake_detector.adapters.files import full_disk
from deepfake_detector.adapters.records import RecordWriter
folder = Path(sys.argv[1])
model = keras.Sequential([keras.Input((1024,)), keras.layers.Dense(1024)])
module = tf.Module()
module.variable = tf.Variable(tf.random.uniform((1024, 1024)))
def records():
    with RecordWriter(folder / "records") as writer:
        for _ in range(100):
            writer.add(bytes(100_000))
def served():
    @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
    def call(value):
        return value + module.variable[0, 0]
    module.call = call
    tf.saved_model.save(module, str(folder / "saved"))
for name, call in {
    "checkpoint": lambda: tf.train.Checkpoint(model=model).write(str(folder / "checkpoint")),
    "saved_model": served,
    "keras": lambda: model.save(folder / "model.keras"),
    "numpy": lambda: np.save(folder / "array.npy", np.zeros(1 << 20)),
    "records": records,
}.items():
    try:
        call()
    except Exception as error:
        full = full_disk(error)
        print(name, full.exit_status if full else f"{type(error).__name__}: {error}")
    else:
        print(name, "no error")
"""


def test_what_libraries_make_of_a_full_disk(tmp_path: Path) -> None:
    told = dict(line.split(maxsplit=1) for line in python(tmp_path / "disk", "2m", LIBRARIES).splitlines())
    assert told == dict.fromkeys(["checkpoint", "saved_model", "keras", "numpy", "records"], "75")


def test_an_export_without_room(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run", usual_videos(2))
    done = on_small_disk(
        tmp_path / "scratch",
        "1m",
        sys.executable,
        "-m",
        "jobs.export_model",
        RUN=str(tmp_path / "run"),
        SCRATCH=str(tmp_path / "scratch"),
    )
    assert done.returncode == 75, done.stderr
    assert "free: expected" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / layout.DETECTOR).exists()


EXPORT_UNAWARE = """
import os, sys
from deepfake_detector.stages import export
from jobs import export_model
export.require_room = lambda *_: None  # others have written since, or a quota counts that no look at the disk tells
sys.exit(export_model.main(dict(os.environ)))
"""


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.2, "the disk is full: expected room for what is written"), (1.5, "model.keras: No space left on device")],
    ids=["by TensorFlow", "by Keras"],
)
def test_an_export_that_fills_its_disk(tmp_path: Path, share: float, said: str) -> None:
    """There is room for the checkpoint (share: of its size), and not for all that is made of it."""
    run, _ = make_trained_run(tmp_path / "run", usual_videos(2))
    size = sum(entry.size for entry in run.list(layout.CHECKPOINTS))
    done = on_small_disk(
        tmp_path / "scratch",
        str(int(size * share)),
        sys.executable,
        "-c",
        EXPORT_UNAWARE,
        RUN=run.uri,
        SCRATCH=str(tmp_path / "scratch"),
    )
    assert done.returncode == 75, done.stderr
    last = done.stderr.splitlines()[-1]
    assert said in last
    assert f"{tmp_path}/scratch/export/model" in last
    assert not run.exists(layout.DETECTOR)


PREPROCESS = """
import sys
from pathlib import Path
from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.stages.preprocess import preprocess_shard
from deepfake_detector.stages.runs import load_config
scratch, run = Path(sys.argv[1]), open_storage(sys.argv[2])
from deepfake_detector.adapters.files import full_disk
try:
    preprocess_shard(run, load_config(run), 0, scratch=scratch)
except Exception as error:
    print(full_disk(error).exit_status, full_disk(error))
print(len([path for path in scratch.rglob("*") if path.is_file()]), "files left")
"""


def test_a_full_disk_loses_no_video(tmp_path: Path) -> None:
    """The records outgrow scratch: the shard is not reported, and with room all its videos are there."""
    videos = tmp_path / "videos"
    for kind in ("real", "fake"):
        for index in range(4):
            write_video(videos / kind / f"{index}.mp4", talking_head(8))
    config = config_for(videos, data__shards=1, faces__size=64)
    run = open_storage(str(tmp_path / "run"))
    save_config(run, config, {"recipe": "demo", "set": [], "videos": str(videos), "records": ""})
    make_plan(run, config)
    told = python(tmp_path / "scratch", "16k", PREPROCESS, run.uri).splitlines()
    assert told[0].startswith("75 the disk is full"), told
    assert ".tfrecord: No space left on device" in told[0]
    assert told[1] == "0 files left"
    name = layout.shard_report(0, 1)
    assert not run.exists(name)
    preprocess_shard(run, config, 0, scratch=tmp_path / "more")
    report = decode(ShardReport, run.read(name), name)
    assert {video.outcome for video in report.videos} == {Outcome.OK}


def small_face(path: Path, config: Config) -> Extraction:
    """A sequence that a file's buffer takes whole, so that the disk is met later, and again when the file is closed."""
    face = FaceSequence(
        track=0,
        window=0,
        images=[bytes(3000)],
        frame_indices=[0],
        timestamps=[0.0],
        boxes=[(0, 0, 64, 64)],
        scores=[1.0],
        present=[True],
        valid=[True],
    )
    return Extraction(outcome=Outcome.OK, sequences=[face], metadata={"fps": 25.0, "codec": "none"}, frame_count=1)


def test_records_that_outgrow_their_disk_are_removed(tmp_path: Path) -> None:
    for name in (f"{kind}/{index}.mp4" for kind in ("real", "fake") for index in range(8)):
        open_storage(str(tmp_path / "videos")).write(name, name.encode())
    config = config_for(tmp_path / "videos", data__shards=1, operations__decoders=1)
    run = open_storage(str(tmp_path / "run"))
    make_plan(run, config)
    folder = tmp_path / "scratch/records"
    folder.mkdir(parents=True)
    for split in layout.SPLITS:
        (folder / f"{split}-00000.tfrecord").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"-00000\.tfrecord: No space left on device"):
        preprocess_shard(run, config, 0, scratch=tmp_path / "scratch", extract=small_face)
    assert not (folder / "train-00000.tfrecord").is_symlink()
    assert not run.exists(layout.shard_report(0, 1))


def test_room(tmp_path: Path) -> None:
    require_room(tmp_path / "not yet" / "there", 1, "nothing")
    with pytest.raises(
        StorageError, match=r"/there: [\d.]+ [GM]B free: expected 1000000000\.0 GB for 3 files"
    ) as error:
        require_room(tmp_path / "there", 10**18, "3 files")
    assert error.value.exit_status == 75


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("/scratch/checkpoint-00000: No space left on device"), True),
        (ValueError("no"), False),
    ],
)
def test_errors_of_a_full_disk(error: Exception, full: bool) -> None:
    assert (full_disk(error) is not None) == full
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    assert (full_disk(wrapped) is not None) == full
