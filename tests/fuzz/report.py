"""What the fuzzer found, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.fuzz.run import MAX_MB, MAX_SECONDS, Findings, Result, outcomes


def table(findings: Findings, seed: int, files: int) -> str:
    """Outcomes by kind of mutation, the dearest files, the lost processes, and all that must not be."""
    results = list(findings.results.values())
    columns = [name for name, _ in outcomes(findings).most_common()]
    by_kind: dict[str, Counter[str]] = {}
    for result in results:
        by_kind.setdefault(result.kind, Counter())[str(result.outcome)] += 1
    rows = [["kind", "files", *columns]]
    for kind, counts in [*sorted(by_kind.items()), ("all", outcomes(findings))]:
        rows.append([kind, str(counts.total()), *(str(counts[name] or "") for name in columns)])
    lines = [*_aligned(rows), ""]
    if results:
        slowest, largest = max(results, key=lambda r: r.seconds), max(results, key=lambda r: r.peak_mb)
        lines += [
            f"slowest file     {slowest.seconds:.1f} s of {MAX_SECONDS:g} ({_named(slowest)})",
            f"peak memory      {largest.peak_mb:.0f} MB of {MAX_MB:g} ({_named(largest)})",
        ]
    lost = [result for result in results if result.lost]
    lines += [f"lost processes   {len(lost)} files"]
    lines += [f"  {_named(result)}: {'; then '.join(result.lost)} -> {result.outcome}" for result in lost]
    lines += [f"files            {len(results)} of {files} accounted for, seed {seed}"]
    lines += [f"WRONG  index {index}: {reason}" for index, reason in sorted(findings.wrong.items())]
    return "\n".join(lines)


def _named(result: Result) -> str:
    return f"index {result.index}, {result.kind} of {result.source}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
