"""What the chaos runs do is a pure function of seed and number, and all of it can be done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.scenarios import FAMILIES, STEPS, draw

SEEDS = st.integers(0, 10**6)


@given(SEEDS, st.integers(0, 200))
def test_a_run_is_drawn_alike_each_time(seed: int, number: int) -> None:
    assert draw(seed, number) == draw(seed, number)


@given(SEEDS)
def test_every_family_comes_in_turn(seed: int) -> None:
    families = [draw(seed, number).family for number in range(len(FAMILIES))]
    assert sorted(families) == sorted(FAMILIES)


@given(SEEDS, st.integers(0, 200))
def test_faults_can_be_done(seed: int, number: int) -> None:
    scenario = draw(seed, number)
    assert 1 <= len(scenario.faults) <= 5
    assert scenario.spares < 2, "fewer than workers"
    for fault in scenario.faults:
        assert 0 <= fault.step <= STEPS
        assert fault.delay >= 0
        assert fault.act != "stop" or fault.victim not in ("launcher", "decoder") or fault.seconds, str(fault)
    assert {fault.act for fault in scenario.faults if fault.victim == "storage"} <= {"outage", "missing"}
    assert sum(fault.victim == "decoder" for fault in scenario.faults) <= 1, "a second one would lose the video"
