from __future__ import annotations

import threading

import pytest

from deepfake_detector.core.errors import StorageError
from deepfake_detector.training.uploads import WAITING, Uploads

PATIENCE = 30.0


def test_work_is_done_in_order_and_beside_the_caller() -> None:
    uploads, gate, done = Uploads(), threading.Event(), []

    def work(number: int) -> None:
        assert gate.wait(PATIENCE)
        done.append((number, threading.get_ident()))

    for number in range(WAITING):
        uploads.put(lambda number=number: work(number))  # type: ignore[misc]
    assert not uploads.idle
    assert done == [], "nobody has waited for it"
    gate.set()
    uploads.close()
    assert uploads.idle
    assert [number for number, _ in done] == list(range(WAITING))
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()})


def test_whoever_adds_too_much_waits() -> None:
    uploads, gate, added = Uploads(), threading.Event(), threading.Event()

    def fill() -> None:
        for _ in range(WAITING + 2):  # one at work, WAITING in line, and one more
            uploads.put(lambda: gate.wait(PATIENCE))
        added.set()

    filling = threading.Thread(target=fill)
    filling.start()
    assert not added.wait(0.2)
    gate.set()
    assert added.wait(PATIENCE)
    filling.join()
    uploads.close()


@pytest.mark.parametrize("call", ["put", "drain", "close"])
def test_a_failure_is_raised_by_the_next_call_and_nothing_follows_it(call: str) -> None:
    uploads, gate, done = Uploads(), threading.Event(), []

    def fail() -> None:
        assert gate.wait(PATIENCE)
        raise StorageError("gs://b: away for 300 s")

    uploads.put(fail)
    uploads.put(lambda: done.append("a marker"))
    gate.set()
    with pytest.raises(StorageError, match="away for 300 s"):
        uploads.drain()
    with pytest.raises(StorageError, match="away for 300 s"):
        {"put": lambda: uploads.put(lambda: None), "drain": uploads.drain, "close": uploads.close}[call]()
    assert done == []
