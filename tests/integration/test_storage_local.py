"""What only a folder can do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detector.adapters.files import TEMPORARY, os_errors
from deepfake_detector.adapters.storage import Entry, open_storage
from deepfake_detector.core.errors import ConfigError, DataError, DetectorError, NotFoundError, StorageError

CONTEND = """
import sys
from deepfake_detector.adapters.storage import open_storage
folder, index = sys.argv[1:]
storage = open_storage(folder)
print(*[int(storage.create(f"race/{race}", f"by {index}".encode())) for race in range(20)])
"""


def test_create_race_between_processes_has_one_winner(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", CONTEND, str(tmp_path), str(index)] for index in range(3)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    results = [process.communicate(timeout=60)[0].split() for process in processes]
    for race, won in enumerate(zip(*results, strict=True)):
        assert won.count("1") == 1
        assert (tmp_path / f"race/{race}").read_text() == f"by {won.index('1')}"
    assert len(list(open_storage(str(tmp_path)).list())) == 20


def test_relative_roots_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("runs/../run/")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.write("a", b"1")
    assert storage.uri == str(tmp_path / "run")
    assert (tmp_path / "run/a").read_bytes() == b"1"


def test_listing_makes_no_folder(tmp_path: Path) -> None:
    assert list(open_storage(str(tmp_path / "run")).list()) == []
    assert not (tmp_path / "run").exists()


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / f"records/{TEMPORARY}of a killed writer").write_bytes(b"half")
    (tmp_path / "records/.hidden").write_bytes(b"whole")
    assert list(open_storage(str(tmp_path)).list()) == [Entry("records/.hidden", 5)]


def test_failed_writes_leave_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    (tmp_path / "folder/below").mkdir(parents=True)
    for write in (storage.write, storage.create):
        with pytest.raises(ConfigError, match="folder/below"):
            write("folder/below", b"1")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "below"]


@pytest.mark.parametrize("name", ["file/below", "n" * 300], ids=["below a file", "too long"])
def test_impossible_names_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(ConfigError, match=name):
        open_storage(str(tmp_path)).write(name, b"1")


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"clip\.mp4: expected a folder"):
        list(open_storage(str(tmp_path / "clip.mp4")).list())


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.mp4").write_bytes(b"123")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "data")
    (root / "b.mp4").symlink_to(tmp_path / "data/a.mp4")
    (root / "loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "dangling").symlink_to(root / "nothing")
    assert list(open_storage(str(root)).list()) == [Entry("b.mp4", 3), Entry("linked/a.mp4", 3)]


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb"):
        pass
    with pytest.raises(DataError, match="UTF-8"):
        list(open_storage(str(tmp_path)).list())


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_storage(str(tmp_path)).write("a", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("number", "expected", "status"),
    [
        (errno.ENOENT, NotFoundError, 78),
        *(
            (number, ConfigError, 78)
            for number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSYS)
        ),
        *((number, StorageError, 75) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)),
        *((number, StorageError, 75) for number in (errno.EMFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY)),
        *((number, StorageError, 75) for number in (errno.ENOTCONN, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENOLCK)),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
def test_system_errors(number: int, expected: type[DetectorError], status: int, tmp_path: Path) -> None:
    with pytest.raises(expected, match=str(tmp_path)) as caught, os_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_status == status


def test_a_library_s_own_words_are_kept(tmp_path: Path) -> None:
    """h5py and others raise an OSError without a number."""
    with pytest.raises(StorageError) as caught, os_errors(tmp_path):
        raise OSError("Can't write data\n(file write failed)")
    assert str(caught.value) == f"{tmp_path}: Can't write data (file write failed)"


PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=50).filter(
    lambda part: part not in (".", "..") and not part.startswith(TEMPORARY)
)


@given(st.lists(PARTS, min_size=1, max_size=4).map("/".join), st.binary(max_size=100))
@settings(deadline=None, max_examples=50)
def test_any_name_round_trips(tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes) -> None:
    storage = open_storage(str(tmp_path_factory.mktemp("any")))
    write: Callable[[str, bytes], object] = storage.create if len(data) % 2 else storage.write
    write(name, data)
    assert storage.read(name) == data
    assert list(storage.list()) == [Entry(name, len(data))]
