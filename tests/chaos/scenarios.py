"""What is done to which run, and when: a pure function of the seed and the run's number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

STEPS = 40
STARTUP_SECONDS = 20.0  # of which a fault by the clock may come: imports, rendezvous, strategy, first steps

Act = Literal["kill", "stop", "term", "outage", "missing", "full"]
Victim = Literal["child", "supervisor", "shard", "preprocess", "decoder", "export", "launcher", "storage", "disk"]


@dataclass(frozen=True)
class Fault:
    """act: SIGKILL, SIGSTOP or SIGTERM to the victim, storage away, or as if its bucket did not exist, scratch full.

    index: which of those that are there.

    step: when that many steps are done (0: when the run begins), and then `delay` seconds later. seconds: how long it
    lasts; for a stopped process 0: for good.
    """

    act: Act
    victim: Victim
    index: int = 0
    step: int = 0
    delay: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        when = f"step {self.step}+{self.delay:.1f} s" if self.step else f"{self.delay:.1f} s"
        lasts = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.act} {self.victim} {self.index} at {when}{lasts}"


@dataclass(frozen=True)
class Scenario:
    """One disturbed run. whole: from the videos, not on finished records; rate: share of storage requests that fail."""

    number: int
    family: str
    whole: bool = False
    spares: int = 0
    standby: bool = False
    rate: float = 0.0
    faults: list[Fault] = field(default_factory=list)

    @property
    def repeatable(self) -> bool:
        """Whether the command may end without success, and be given again: where it was hit itself, or has no room."""
        return self.family in ("launcher", "disk full")


def draw(seed: int, number: int) -> Scenario:
    """Run `number` (from 0): families come in turn, in an order that the seed decides."""
    names = list(FAMILIES)
    random.Random(f"{seed} order {number // len(names)}").shuffle(names)
    family = names[number % len(names)]
    dice = random.Random(f"{seed} {number}")
    return Scenario(
        number=number,
        family=family,
        whole=family == "preprocess",
        spares=dice.randint(0, 1),
        standby=dice.random() < 0.3,
        rate=dice.choice((0.0, 0.01, 0.03)),
        faults=sorted(FAMILIES[family](dice), key=lambda fault: (fault.step, fault.delay)),
    )


def _moment(dice: random.Random) -> dict[str, float]:
    """Half of them by the clock, which falls into a start, half by the step."""
    if dice.random() < 0.5:
        return {"delay": dice.uniform(0, STARTUP_SECONDS)}
    return {"step": dice.randint(1, STEPS - 2), "delay": dice.uniform(0, 0.3)}


def _signal(dice: random.Random, victim: Victim, *, for_good: bool = True, **moment: float) -> Fault:
    act: Act = dice.choice(("kill", "kill", "stop", "term"))
    lasts = 0.0
    if act == "stop" and (not for_good or dice.random() < 0.5):
        lasts = dice.choice((1.0, 5.0, 20.0))  # shorter and longer than anybody's patience
    moment = moment or _moment(dice)
    return Fault(act, victim, dice.randint(0, 2), int(moment.get("step", 0)), moment["delay"], lasts)


def _child(dice: random.Random) -> list[Fault]:
    return [_signal(dice, "child")]


def _supervisor(dice: random.Random) -> list[Fault]:
    return [_signal(dice, "supervisor")]


def _two_at_once(dice: random.Random) -> list[Fault]:
    moment = _moment(dice)
    first, second = dice.sample(range(2), 2)
    faults = [_signal(dice, dice.choice(("child", "supervisor")), **moment) for _ in range(2)]
    return [Fault(f.act, f.victim, i, f.step, f.delay, f.seconds) for f, i in zip(faults, (first, second), strict=True)]


def _storm(dice: random.Random) -> list[Fault]:
    """One after the other, most of them into the start that the one before has caused."""
    moments = [dice.uniform(0, 40) for _ in range(5)]
    return [_signal(dice, dice.choice(("child", "supervisor")), for_good=False, delay=moment) for moment in moments]


def _preprocess(dice: random.Random) -> list[Fault]:
    victims: list[Victim] = dice.sample(["preprocess", "shard", "decoder"], 2)
    return [_signal(dice, victim, for_good=False, delay=dice.uniform(0.5, 8)) for victim in victims] + _child(dice)


def _outage(dice: random.Random) -> list[Fault]:
    moment = _moment(dice)
    step, delay, seconds = int(moment.get("step", 0)), moment["delay"], dice.uniform(2, 40)
    beside = _signal(dice, dice.choice(("child", "supervisor")), step=step, delay=delay + 1)
    return [Fault(dice.choice(("outage", "missing")), "storage", 0, step, delay, seconds), beside]


def _disk(dice: random.Random) -> list[Fault]:
    moment = _moment(dice)
    return [Fault("full", "disk", 0, int(moment.get("step", 0)), moment["delay"], dice.uniform(3, 15))]


def _launcher(dice: random.Random) -> list[Fault]:
    """As a laptop's battery does; somebody types the same command again."""
    moment = _moment(dice)
    return [Fault(dice.choice(("kill", "term")), "launcher", 0, int(moment.get("step", 0)), moment["delay"])]


def _export(dice: random.Random) -> list[Fault]:
    victim: Victim = dice.choice(("export", "supervisor"))
    return [Fault(dice.choice(("kill", "term")), victim, 0, STEPS, dice.uniform(0.5, 6))]


FAMILIES: dict[str, Callable[[random.Random], list[Fault]]] = {
    "child": _child,
    "supervisor": _supervisor,
    "two at once": _two_at_once,
    "storm": _storm,
    "preprocess": _preprocess,
    "outage": _outage,
    "disk full": _disk,
    "launcher": _launcher,
    "export": _export,
}
