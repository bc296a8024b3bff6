"""The report's plots, as PNG bytes: equal scores give equal bytes. Without a display and without global state."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deepfake_detector.adapters.scoring import roc_curve
from deepfake_detector.stages.evaluate import VideoScore

REAL, FAKE, INK, MUTED = "#2a78b5", "#d1495b", "#1d2733", "#6b7785"
BINS = 10


def draw_plots(scores: Sequence[VideoScore], document: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> PNG, of the decided videos. document: the content of metrics.json."""
    draw = {"roc.png": _draw_roc, "calibration.png": _draw_reliability, "scores.png": _draw_histogram}
    return {name: _plot(function, scores, document) for name, function in draw.items()}


def _plot(draw: Callable[..., None], scores: Sequence[VideoScore], document: Mapping[str, Any]) -> bytes:
    """The PNG of `draw(axes, labels, probabilities, document)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.4), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    decided = [one for one in scores if one.decided]
    labels = np.array([one.label for one in decided], int)
    draw(axes, labels, np.array([one.probability for one in decided]), document)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    return data.getvalue()


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes, wrap=True)


def _draw_roc(axes: Any, labels: Any, probabilities: Any, document: Mapping[str, Any]) -> None:
    block = document["test"]["decided"]
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_title("ROC, decided test videos", loc="left", fontsize=11, color=INK)
    axes.set_aspect("equal")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
    if block["auc"] is None:
        _say(axes, block["reasons"]["auc"])
        return
    fpr, tpr = roc_curve(labels, probabilities)
    axes.fill_between(fpr, tpr, alpha=0.10, color=REAL, linewidth=0)
    axes.plot(fpr, tpr, color=REAL, linewidth=2, label=f"AUC {block['auc']:.3f}, n = {block['videos']}")
    threshold = document["calibration"]["threshold"]
    verdict = probabilities >= threshold
    axes.plot(
        verdict[labels == 0].mean(),
        verdict[labels == 1].mean(),
        "o",
        color=FAKE,
        markersize=8,
        markeredgecolor="white",
        clip_on=False,
        zorder=3,
        label=f"threshold {threshold:.3f}",
    )
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _draw_reliability(axes: Any, labels: Any, probabilities: Any, document: Mapping[str, Any]) -> None:
    """Share of fakes in ten equal bins of probability, classes weighted to the prior that the model assumes."""
    prior = document["calibration"]["prior"]
    axes.set(xlabel="probability of fake", ylabel="share of fakes", xlim=(-0.03, 1.03), ylim=(-0.08, 1.12))
    axes.set_title(f"Reliability at a prior of {prior:g}", loc="left", fontsize=11, color=INK)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
    fakes, reals = int((labels == 1).sum()), int((labels == 0).sum())
    if not fakes or not reals:
        _say(axes, f"expected real and fake videos,\nfound {reals} real and {fakes} fake")
        return
    weights = np.where(labels == 1, prior / fakes, (1 - prior) / reals)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    centres, shares, counts = [], [], []
    for number in np.unique(bins):
        inside = bins == number
        centres.append(np.average(probabilities[inside], weights=weights[inside]))
        shares.append(np.average(labels[inside], weights=weights[inside]))
        counts.append(int(inside.sum()))
        axes.annotate(  # above: beside it, the numbers of two bins that are close read as one
            str(counts[-1]),
            (centres[-1], shares[-1]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    # No line between the points: one through bins of one video looks as sure as one through bins of fifty.
    area = 30 + 120 * np.array(counts) / max(counts)
    axes.scatter(centres, shares, area, color=REAL, zorder=3, edgecolors="white", label="a bin, with its videos")
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_histogram(axes: Any, labels: Any, probabilities: Any, document: Mapping[str, Any]) -> None:
    threshold = document["calibration"]["threshold"]
    axes.set(xlabel="probability of fake", ylabel="videos", xlim=(0, 1))
    axes.set_title("Scores by label, decided test videos", loc="left", fontsize=11, color=INK)
    edges = np.linspace(0, 1, 2 * BINS + 1)
    for label, name, colour in ((0, "real", REAL), (1, "fake", FAKE)):
        values = probabilities[labels == label]
        axes.hist(values, edges, color=colour, alpha=0.55, label=f"{name} (n = {len(values)})", edgecolor="white")
    axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"threshold {threshold:.3f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best", frameon=False, fontsize=9)
