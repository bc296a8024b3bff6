from __future__ import annotations

from tests.chaos.report import by_family, line
from tests.chaos.scenarios import Fault, Scenario
from tests.chaos.stage import Hit, Result


def result(number: int, family: str, attempts: int, steps: list[float | None], problems: list[str]) -> Result:
    fault = Fault("kill", "child", 1, step=7)
    hits = [Hit(fault, 0.0, step) for step in steps]
    return Result(Scenario(number, family, spares=1), {}, hits, [], attempts, 1, 40.4, 8.0, problems)


RESULTS = [
    result(0, "child", 3, [4.0, 9.0], []),
    result(1, "storm", 6, [None], ["other weights"]),
    result(2, "child", 2, [8.0], []),
]


def test_a_run_is_a_row() -> None:
    fault = "kill child 1 at step 7+0.0 s"
    assert line(RESULTS[0]) == f"| 0 | child, 1 spare | 3 | 1 | {fault}: 4.0<br>{fault}: 9.0 | 40 | yes |"
    assert line(RESULTS[1]) == f"| 1 | storm, 1 spare | 6 | 1 | {fault}: - | 40 | NO: other weights |"


def test_families_are_summed_up() -> None:
    assert by_family(RESULTS).splitlines()[2:] == [
        "| child | 2 | 3 | 8.0 | 9.0 | 2 |",
        "| storm | 1 | 6 | - | - | 0 |",
        "| all | 3 | 6 | 8.0 | 9.0 | 2 |",
    ]
