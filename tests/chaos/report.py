"""What came of the disturbed runs, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.chaos.stage import Result

HEAD = "| run | what | attempts | launches | fault, s to the next step | s | identical |\n" + "|---" * 7 + "|"


def line(result: Result) -> str:
    """A run as a row below HEAD."""
    scenario = result.scenario
    done = [f"{hit.fault}: {'-' if hit.step is None else f'{hit.step:.1f}'}" for hit in result.hits]
    done += [f"({fault}: nothing there)" for fault in result.missed]
    extras = [f"{scenario.spares} spare"] * bool(scenario.spares) + ["standby"] * scenario.standby
    extras += [f"{scenario.rate:.0%} of requests fail"] * bool(scenario.rate)
    what = ", ".join([scenario.family, *extras])
    verdict = "yes" if not result.problems else "NO: " + "; ".join(result.problems)
    return _row(
        scenario.number,
        what,
        result.attempts,
        result.launches,
        "<br>".join(done),
        f"{result.seconds:.0f}",
        verdict,
    )


def by_family(results: Sequence[Result]) -> str:
    """A row for each family of faults, and one for all runs."""
    families = sorted({result.scenario.family for result in results})
    rows = [(family, [result for result in results if result.scenario.family == family]) for family in families]
    head = "| faults | runs | most attempts | s to the next step: median | longest | identical |\n" + "|---" * 6 + "|"
    return "\n".join([head, *(_summary(name, members) for name, members in [*rows, ("all", list(results))])])


def _summary(name: str, results: Sequence[Result]) -> str:
    steps = [hit.step for result in results for hit in result.hits if hit.step is not None]
    return _row(
        name,
        len(results),
        max((result.attempts for result in results), default=0),
        f"{statistics.median(steps):.1f}" if steps else "-",
        f"{max(steps):.1f}" if steps else "-",
        sum(not result.problems for result in results),
    )


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
