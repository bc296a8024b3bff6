"""RUN/report/: the numbers (metrics.json), the score of each test video, plots, and one page that holds it all."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from deepfake_detector.adapters.rounds import finished_rounds
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.markers import RecordsSummary
from deepfake_detector.stages.evaluate import VideoScore
from deepfake_detector.stages.plots import draw_plots
from deepfake_detector.stages.summary import METADATA_AUC_WARNING

METRICS = {
    "auc": "AUC",
    "average_precision": "Average precision",
    "equal_error_rate": "Equal error rate",
    "accuracy": "Accuracy at the threshold",
    "balanced_accuracy": "Balanced accuracy at the threshold",
    "brier": "Brier score",
    "log_loss_balanced": "Log loss, balanced",
    "log_loss_balanced_clipped": "Log loss, balanced, clipped",
    "log_loss_natural": "Log loss, natural",
    "log_loss_natural_clipped": "Log loss, natural, clipped",
    "log_loss_natural_shifted": "Log loss, natural, at the validation prior",
    "log_loss_natural_shifted_clipped": "Log loss, natural, at the validation prior, clipped",
}
STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1d2733;background:#f4f6f8;margin:0}
main{max-width:1040px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:1.75rem;margin:0 0 4px}h2{font-size:1.15rem;margin:40px 0 12px}
p{margin:8px 0;max-width:75ch}.muted{color:#6b7785}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:14px;margin:24px 0}
.card,figure,.table{background:#fff;border:1px solid #e0e5ea;border-radius:10px}
.card{padding:14px 18px}.card b{display:block;font-size:1.7rem;font-variant-numeric:tabular-nums}
.card span{color:#6b7785;font-size:.85rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:14px}
figure{margin:0;padding:10px}figure img{display:block;width:100%;height:auto}.wide{margin-top:14px}
.table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:8px 16px;text-align:right;border-bottom:1px solid #edf0f3;font-size:.93rem}
tr:last-child td{border-bottom:0}th:first-child,td:first-child{text-align:left}
th{font-weight:600;color:#6b7785}td i{color:#6b7785;font-size:.83rem}
ul{padding-left:20px;max-width:80ch}li{margin:6px 0}.warning{color:#a32638}
"""


def report_files(
    run: Storage, records: Storage, document: Mapping[str, Any], scores: Sequence[VideoScore]
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file of the report; equal input gives equal bytes.

    document: the content of metrics.json; scores: the test split's videos, in order. Training's charts are taken
    from `run` when they are there, the losses and the metadata baseline from the summary of `records`.
    """
    rounds = finished_rounds(records)
    summary = rounds[-1].summary if rounds else None
    caveats = _caveats(document, summary)
    plots = draw_plots(scores, document)
    charts = run.read(layout.CHARTS) if run.exists(layout.CHARTS) else None
    yield layout.REPORT_METRICS, _json({**document, "caveats": caveats})
    yield layout.REPORT + "scores.csv", _csv(scores, document["calibration"]["threshold"])
    for name, data in plots.items():
        yield layout.REPORT + name, data
    yield layout.REPORT + "report.html", render(document, caveats, summary, plots, charts).encode()


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _csv(scores: Sequence[VideoScore], threshold: float) -> bytes:
    """One line per test video. The probability has 17 digits: the metrics can be computed again from the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "label", "probability", "verdict", "tracks", "outcome"])
    for one in scores:
        verdict = ("fake" if one.probability >= threshold else "real") if one.decided else "undecided"
        label = "fake" if one.label else "real"
        writer.writerow([one.video, label, repr(one.probability), verdict, one.tracks, one.outcome])
    return text.getvalue().encode()


def _caveats(document: Mapping[str, Any], summary: RecordsSummary | None) -> list[str]:
    """What a reader must know before believing the figures, most important first."""
    test, calibration = document["test"], document["calibration"]
    caveats = [
        "The figures measure the data given: videos of the same collection as the training videos, no source shared "
        "between the splits. Other cameras, compression or manipulations will score lower until they are measured.",
        *calibration["notes"],
    ]
    if summary is None or summary.metadata_auc is None:
        caveats.append("The metadata-only baseline could not be computed: shortcuts in the data were not looked for.")
    else:
        baseline = (
            f"A baseline that sees only size, frame rate, codec and duration reaches AUC {summary.metadata_auc:.3f}"
        )
        if summary.metadata_auc > METADATA_AUC_WARNING:
            caveats.append(f"{baseline}: above {METADATA_AUC_WARNING}, so labels leak through the files' properties.")
        else:
            caveats.append(f"{baseline} (a warning is given above {METADATA_AUC_WARNING}).")
    caveats += summary.warnings if summary else []
    if test["undecided"]:
        caveats.append(
            f"{test['undecided']} of {test['all']['videos']} test videos gave no face sequence. They count as "
            "undecided: probability 0.5, and wrong in both accuracies."
        )
    smaller = min(test["all"]["real"], test["all"]["fake"])
    if smaller < 50:
        caveats.append(f"The smaller class of the test split has {smaller} videos: expect wide confidence intervals.")
    caveats.append(
        f"Probabilities assume that {calibration['prior']:.0%} of the videos are fake. They are calibrated per face "
        "track: a video's is its largest, which lies higher the more faces it shows. Threshold: "
        f"{calibration['threshold_from']}. Calibration and threshold saw the validation split and never the test split."
    )
    return caveats


def render(
    document: Mapping[str, Any],
    caveats: Sequence[str],
    summary: RecordsSummary | None,
    plots: Mapping[str, bytes],
    charts: bytes | None,
) -> str:
    """report.html: one page without script, network or other files; every value that is shown is escaped."""
    test, calibration = document["test"], document["calibration"]
    subtitle = (
        f"recipe {document['recipe']} · checkpoint of step {document['step']} after {document['epochs']} epochs · "
        f"deepfake-detector {document['code_version']}"
    )
    cards = "".join(
        f'<div class="card"><span>{escape(METRICS[name])}</span><b>{_number(test["all"], name)}</b></div>'
        for name in ("auc", "equal_error_rate", "balanced_accuracy", "log_loss_balanced")
    )
    images = "".join(_figure(name.removesuffix(".png"), data) for name, data in plots.items())
    sections = [
        f"<h1>Deepfake detector: test report</h1><p class='muted'>{escape(subtitle)}</p>",
        f'<div class="cards">{cards}</div>',
        f"<p class='muted'>{escape(_counts(test))}</p>",
        "<h2>Read this first</h2><ul>" + "".join(f"<li>{escape(text)}</li>" for text in caveats) + "</ul>",
        f'<h2>Plots</h2><div class="plots">{images}</div>',
        "<h2>Metrics</h2>" + _metrics_table(document),
        "<h2>By method</h2><p class='muted'>Fakes of one method against all reals of the test split.</p>"
        + _method_table(test["by_method"]),
        "<h2>Calibration</h2>" + _calibration_table(calibration),
        "<h2>Videos without a verdict</h2>" + _loss_tables(test["losses"], summary),
    ]
    if charts is not None:
        sections.insert(5, f'<div class="wide">{_figure("training", charts)}</div>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Deepfake detector: test report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _counts(test: Mapping[str, Any]) -> str:
    block, sequences = test["all"], test["sequences"]
    return (
        f"Test split: {block['videos']} videos ({block['real']} real, {block['fake']} fake, {test['undecided']} "
        f"undecided), {test['tracks']} face tracks, {sequences['total']} sequences."
    )


def _figure(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}"></figure>'


def _number(block: Mapping[str, Any], name: str) -> str:
    value = block[name]
    if value is None:
        return f'<i title="{escape(block["reasons"][name])}">not available</i>'
    return f"{value:.4f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """header: plain text; cells of rows: HTML that is escaped already."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _metrics_table(document: Mapping[str, Any]) -> str:
    test, validation = document["test"], document["validation"]
    blocks = [test["all"], test["decided"], validation["all"]]
    rows = [[escape(title), *(_number(block, name) for block in blocks)] for name, title in METRICS.items()]
    sequences = [_number(split["sequences"], "auc") for split in (test, validation)]
    rows.append(["AUC of single sequences", sequences[0], sequences[0], sequences[1]])
    rows.append(["Videos (real + fake)", *(f"{block['real']} + {block['fake']}" for block in blocks)])
    reasons = sorted({reason for block in blocks for reason in block["reasons"].values()})
    notes = "".join(f"<p class='muted'>Not available: {escape(reason)}.</p>" for reason in reasons)
    return _table(["", "test, all videos", "test, decided", "validation, all"], rows) + notes


def _method_table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    names = ("auc", "equal_error_rate", "balanced_accuracy", "log_loss_balanced_clipped")
    rows = [
        [escape(method), str(block["fake"]), *(_number(block, name) for name in names)]
        for method, block in methods.items()
    ]
    return _table(["method", "fakes", *(METRICS[name] for name in names)], rows or [["no fakes", *["-"] * 5]])


def _calibration_table(calibration: Mapping[str, Any]) -> str:
    natural = calibration["validation_prior"]
    rows = [
        ["Probability", f"sigmoid({calibration['slope']:.4f} &times; logit {calibration['offset']:+.4f})"],
        ["Share of fakes that it assumes", f"{calibration['prior']:g}"],
        ["Share of fakes in the validation split", "not available" if natural is None else f"{natural:.4f}"],
        ["Verdict is fake from", f"{calibration['threshold']:.4f}"],
        ["Threshold", escape(calibration["threshold_from"])],
    ]
    return _table(["", "value"], rows)


def _loss_tables(test: Mapping[str, Mapping[str, int]], summary: RecordsSummary | None) -> str:
    """Outcome by label: of the test split, and of all videos of the run with the share of each label."""

    def table(title: str, outcomes: Mapping[str, Mapping[str, int]]) -> str:
        names = [name for name in ("real", "fake", "unknown") if any(name in row for row in outcomes.values())]
        totals = {name: sum(row.get(name, 0) for row in outcomes.values()) for name in names}
        rows = [
            [
                escape(outcome),
                *(
                    f"{row.get(name, 0)}" + (f" <i>{row.get(name, 0) / totals[name]:.1%}</i>" if totals[name] else "")
                    for name in names
                ),
            ]
            for outcome, row in outcomes.items()
        ]
        return _table([title, *names], rows)

    parts = [table("test split", test) if test else "<p>Every video of the test split has a verdict.</p>"]
    if summary is not None:
        parts.append("<p></p>" + table("all videos of the run", summary.outcomes))
    return "".join(parts)
