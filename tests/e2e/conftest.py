"""What the tests on a real cluster share. They need KUBECONFIG, and IMAGE, the stages' image as its nodes know it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.synthesise import Settings, synthesise
from tests.e2e.namespace import Namespace, Said, download, put, require_all_removed, unless_set

VIDEOS = "gs://videos/set"
RUN = "gs://videos/runs/undisturbed"
FINISHED = "gs://videos/runs/finished"  # of `give_records`
TEST_SECONDS = 900  # the first test of all also makes the undisturbed run
# Small, and with checkpoints in mid-epoch: 8 steps an epoch.
SETTINGS = (
    "data.shards=3",
    "faces.size=32",
    "sampling.frames=4",
    "train.global_batch=8",
    "train.steps_per_epoch=8",
    "train.epochs=5",
    "operations.checkpoint_steps=5",
    "operations.rendezvous_seconds=60",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called with the tests of all folders."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("e2e")
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def image() -> str:
    name = unless_set("IMAGE")
    if not name or not unless_set("KUBECONFIG"):
        pytest.skip("needs KUBECONFIG and IMAGE")
    return name


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 small labelled clips and a few broken files: the same bytes every time."""
    folder = tmp_path_factory.mktemp("videos") / "set"
    synthesise(folder, Settings(groups=24, seed=0))
    return folder


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The last thing of all: whatever the tests made in the cluster is gone, or that is an error."""
    yield
    if unless_set("KUBECONFIG") and shutil.which("kubectl"):
        require_all_removed()


@pytest.fixture
def namespace(image: str, tmp_path: Path) -> Iterator[Namespace]:
    """Fresh and deployed, removed whatever happens."""
    with deployed(image, tmp_path) as namespace:
        yield namespace


@contextmanager
def deployed(image: str, folder: Path) -> Iterator[Namespace]:
    """The same where a test's scope is not wide enough. folder: for the output of its commands."""
    namespace = Namespace(image, folder)
    try:
        namespace.run("deploy")
        yield namespace
    finally:
        namespace.remove()


@dataclass(frozen=True)
class Undisturbed:
    """A run from videos to a model that nothing happened to. folder: the run's objects, copied out of the bucket."""

    namespace: Namespace
    folder: Path
    upload: Said
    preprocess: Said
    train: Said


@pytest.fixture(scope="session")
def undisturbed(image: str, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """Made once: the failures are compared with it. Its own tests are in test_run.py, and may only add to it."""
    with deployed(image, tmp_path_factory.mktemp("undisturbed")) as namespace:
        upload = namespace.run("upload", "--videos", str(videos), "--to", VIDEOS)
        settings = ("--recipe", "demo", "--set", *SETTINGS)
        preprocess = namespace.run(
            *("submit", "preprocess", "--videos", VIDEOS, "--run", RUN, "--image", image, "--pods", "3", *settings)
        )
        # --debug: the display tells how many API requests it sent.
        train = namespace.run("submit", "train", "--run", RUN, "--image", image, "--workers", "2", "--debug")
        folder = tmp_path_factory.mktemp("run")
        with namespace.bucket() as bucket:
            download(bucket, "runs/undisturbed/", folder)
        yield Undisturbed(namespace, folder, upload, preprocess, train)


@pytest.fixture
def with_records(namespace: Namespace, undisturbed: Undisturbed) -> Namespace:
    """A namespace whose bucket holds the undisturbed run's records, as those of FINISHED."""
    give_records(namespace, undisturbed)
    return namespace


def give_records(namespace: Namespace, undisturbed: Undisturbed) -> None:
    with namespace.bucket() as bucket:
        for part in ("config.json", "plan", "records"):
            put(bucket, undisturbed.folder / part, f"runs/finished/{part}")
