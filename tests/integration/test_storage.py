"""One suite over both storages: a folder, and a bucket of a real fake-gcs-server."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import (
    Entry,
    Storage,
    commit_bytes,
    commit_file,
    crc32c_of,
    fetch_bytes,
    fetch_file,
    open_storage,
)
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError
from deepfake_detector.core.markers import StoredFile

BIG = (8 << 20) + 3  # from 8 MiB on, google-cloud-storage uploads in a resumable session

NAMES = [
    "a",
    "records/00000-of-00002.json",
    "records/train/00000-of-00002.tfrecord",
    "records/train/00001-of-00002.tfrecord",
    "videos/a clip with spaces.mp4",
    "videos/naïve 漢字 🎥.mp4",
    "videos/percent%2Fsign+plus#hash?query&[brackets].mp4",
    'videos/quote\'s "double" \\backslash.mp4',
    "videos-2/b.mp4",
]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000], ids=["empty", "one", "binary"])
@pytest.mark.parametrize("name", NAMES)
def test_round_trip(storage: Storage, name: str, data: bytes) -> None:
    assert not storage.exists(name)
    storage.write(name, data)
    assert storage.exists(name)
    assert storage.read(name) == data
    assert list(storage.list()) == [Entry(name, len(data))]


def test_write_replaces(storage: Storage) -> None:
    storage.write("a/b", b"a long first version")
    storage.write("a/b", b"second")
    assert storage.read("a/b") == b"second"
    assert list(storage.list()) == [Entry("a/b", 6)]


def test_another_storage_of_the_same_uri_sees_the_object(storage: Storage) -> None:
    storage.write("a/b", b"1")
    assert open_storage(storage.uri).read("a/b") == b"1"
    assert open_storage(storage.uri + "/").uri == storage.uri
    assert open_storage(storage.uri + "/a").read("b") == b"1"


def test_objects_outside_the_root_are_not_listed(storage: Storage) -> None:
    storage.write("run/a", b"")
    storage.write("run-2/a", b"")
    assert [entry.name for entry in open_storage(storage.uri + "/run").list()] == ["a"]


def test_create_keeps_the_first(storage: Storage) -> None:
    assert storage.create("a/b", b"first")
    assert not storage.create("a/b", b"other")
    assert storage.read("a/b") == b"first"


def test_create_of_its_own_bytes_succeeds_again(storage: Storage) -> None:
    assert storage.create("a/b", b"first")
    assert storage.create("a/b", b"first")


def test_create_race_has_one_winner(storage: Storage) -> None:
    threads, rounds = 8, 10
    barrier = threading.Barrier(threads, timeout=60)

    def contend(index: int) -> list[bool]:
        own = open_storage(storage.uri)
        won = []
        for race in range(rounds):
            barrier.wait()
            won.append(own.create(f"race/{race}", f"by {index}".encode() * 100))
        return won

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(contend, range(threads)))
    for race in range(rounds):
        winners = [index for index in range(threads) if results[index][race]]
        assert len(winners) == 1
        assert storage.read(f"race/{race}") == f"by {winners[0]}".encode() * 100


def test_every_write_changes_the_version(storage: Storage) -> None:
    assert storage.version("a/b") == 0
    seen = {0}
    for data in (b"1", b"1", b"2"):
        storage.write("a/b", data)
        assert storage.version("a/b") == storage.version("a/b")
        seen.add(storage.version("a/b"))
    assert len(seen) == 4
    storage.delete("a/b")
    assert storage.version("a/b") == 0


def test_replace_only_what_was_read(storage: Storage) -> None:
    assert storage.replace("a/b", b"first", 0)
    assert not storage.replace("a/b", b"other", 0)
    version = storage.version("a/b")
    assert storage.replace("a/b", b"first", version), "the same bytes are a write, too"
    assert not storage.replace("a/b", b"other", version)
    assert storage.read("a/b") == b"first"
    assert storage.replace("a/b", b"second", storage.version("a/b"))
    assert storage.read("a/b") == b"second"
    assert storage.replace("a/b", b"second", version), "as a retry after a lost answer finds it"
    version = storage.version("a/b")
    storage.delete("a/b")
    assert not storage.replace("a/b", b"third", version)
    assert not storage.exists("a/b")


def test_replace_race_has_one_winner(storage: Storage) -> None:
    threads, rounds = 4, 10
    barrier = threading.Barrier(threads, timeout=60)

    def contend(index: int) -> list[bool]:
        own = open_storage(storage.uri)
        won = []
        for _ in range(rounds):
            version = own.version("a/b")
            barrier.wait()
            won.append(own.replace("a/b", f"by {index}".encode(), version))
            barrier.wait()
        return won

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(contend, range(threads)))
    assert [sum(won) for won in zip(*results, strict=True)] == [1] * rounds
    winner = next(index for index in range(threads) if results[index][-1])
    assert storage.read("a/b") == f"by {winner}".encode()


def test_readers_see_the_old_object_or_the_new_one(storage: Storage) -> None:
    versions = [bytes([value]) * (50_000 + value) for value in range(80)]
    storage.write("a/b", versions[0])
    done = threading.Event()

    def rewrite() -> None:
        own = open_storage(storage.uri)
        try:
            for version in versions:
                own.write("a/b", version)
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(rewrite)
        reads = 0
        while not done.is_set():
            assert storage.read("a/b") in versions
            assert [entry.name for entry in storage.list()] == ["a/b"]
            reads += 1
        writing.result()
    assert reads > 1
    assert storage.read("a/b") == versions[-1]


def test_list_is_sorted_and_filtered_by_prefix(storage: Storage) -> None:
    for name in reversed(NAMES):
        storage.write(name, name.encode())
    everything = list(storage.list())
    assert everything == [Entry(name, len(name.encode())) for name in sorted(NAMES)]
    for prefix in [
        "records/",
        "records/train/00001",
        "videos",
        "videos/",
        "videos/naïve",
        "v",
        "a",
        "nothing/here",
        "b",
    ]:
        assert list(storage.list(prefix)) == [entry for entry in everything if entry.name.startswith(prefix)], prefix


def test_checksums_are_those_of_the_bytes(storage: Storage, tmp_path: Path) -> None:
    contents = {name: name.encode() * 9 for name in NAMES} | {"empty": b""}
    for name, data in contents.items():
        storage.write(name, data)
    big = tmp_path / "big"
    big.write_bytes(bytes(BIG))  # in a resumable session
    storage.upload(big, "videos/big")
    expected = [StoredFile(name=name, size=len(data), crc32c=crc32c_of(data)) for name, data in contents.items()]
    expected.append(StoredFile(name="videos/big", size=BIG, crc32c=crc32c_of(big)))
    expected.sort(key=lambda stored: stored.name)
    assert list(storage.checksums()) == expected
    assert list(storage.checksums("videos/")) == [each for each in expected if each.name.startswith("videos/")]
    assert list(storage.checksums("nothing/")) == []


def test_nothing_lists_as_empty(storage: Storage) -> None:
    assert list(storage.list()) == []
    assert list(storage.list("records/")) == []


def test_missing_objects(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/b", b"1")
    for name in ["a", "a/c", "a/b/c", "z"]:
        assert not storage.exists(name)
        with pytest.raises(NotFoundError, match=f"{name}: no such"):
            storage.read(name)
        with pytest.raises(NotFoundError, match=f"{name}: no such"):
            storage.download(name, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    with pytest.raises(NotFoundError, match="nowhere"):
        storage.upload(tmp_path / "nowhere", "c")
    assert [entry.name for entry in storage.list()] == ["a/b"]


def test_delete(storage: Storage) -> None:
    storage.write("a/b", b"1")
    storage.write("a/c", b"1")
    storage.delete("a/b")
    storage.delete("a/b")
    storage.delete("never/was")
    assert [entry.name for entry in storage.list()] == ["a/c"]
    assert storage.create("a/b", b"2")


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "../a", "a/../b", "./a", "a/.", "a\0b"])
def test_names_stay_inside_the_root(storage: Storage, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    calls = [
        lambda: storage.read(name),
        lambda: storage.write(name, b""),
        lambda: storage.create(name, b""),
        lambda: storage.exists(name),
        lambda: storage.upload(tmp_path / "file", name),
        lambda: storage.download(name, tmp_path / "to"),
        lambda: storage.delete(name),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="expected a relative object name"):
            call()


@pytest.mark.parametrize("size", [0, 1, BIG])
def test_upload_and_download_by_path(storage: Storage, tmp_path: Path, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    source, target = tmp_path / "source file", tmp_path / "new folder/target"
    source.write_bytes(data)
    storage.upload(source, "big/ü")
    storage.upload(source, "big/ü")
    storage.download("big/ü", target)
    storage.download("big/ü", target)
    assert target.read_bytes() == data
    assert list(target.parent.iterdir()) == [target]
    assert list(storage.list()) == [Entry("big/ü", size)]


@pytest.mark.parametrize(
    ("data", "digits"),
    [
        (b"", "00000000"),
        (b"123456789", "e3069283"),  # the check value of CRC-32C in the catalogue of parametrised CRCs
        (bytes(32), "8a9136aa"),  # RFC 3720, B.4
        (b"\xff" * 32, "62a8ab43"),
        (bytes(range(32)), "46dd794e"),
    ],
    ids=["empty", "check", "zeros", "ones", "incrementing"],
)
def test_crc32c(data: bytes, digits: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert crc32c_of(data) == digits
    assert crc32c_of(tmp_path / "file") == digits


def test_committed_file_comes_back(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "a/target"
    source.write_bytes(b"some bytes")
    stored = commit_file(storage, source, "model/x")
    assert stored == commit_bytes(storage, b"some bytes", "model/x")
    assert (stored.name, stored.size, stored.crc32c) == ("model/x", 10, crc32c_of(b"some bytes"))
    fetch_file(storage, stored, target)
    assert target.read_bytes() == fetch_bytes(storage, stored) == b"some bytes"

    target.write_bytes(b"same size!")
    fetch_file(storage, stored, target)
    assert target.read_bytes() == b"some bytes"

    storage.delete("model/x")
    fetch_file(storage, stored, target)  # it is there already: nothing is asked of storage
    (tmp_path / "a/target").unlink()
    with pytest.raises(NotFoundError):
        fetch_file(storage, stored, target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("data", [b"some bytez", b"shorter"], ids=["other bytes", "other size"])
def test_changed_object_is_corrupt(storage: Storage, tmp_path: Path, data: bytes) -> None:
    stored = commit_bytes(storage, b"some bytes", "model/x")
    storage.write("model/x", data)
    with pytest.raises(CorruptError, match=rf"model/x: {len(data)} bytes with crc32c \w+: expected 10 bytes"):
        fetch_file(storage, stored, tmp_path / "target")
    with pytest.raises(CorruptError, match="as its marker says"):
        fetch_bytes(storage, stored)
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []


@pytest.mark.parametrize(
    "uri", ["", "s3://bucket/a", "http://host/a", "file:///a", "gs:bucket", "gs://", "gs://UPPER/a", "gs://bucket/../a"]
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        open_storage(uri)


def test_interface_is_light() -> None:
    heavy = "('google.cloud.storage', 'google.auth', 'requests')"
    code = f"""
import sys, deepfake_detector.adapters.storage as storage
storage.open_storage("some/folder")
assert not [name for name in {heavy} if name in sys.modules], sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
