"""Accuracy, loss and time per epoch, as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from deepfake_detector.core.markers import EpochMetrics


def draw(epochs: Sequence[EpochMetrics]) -> bytes:
    """A PNG of three panels over the epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss, seconds = figure.subplots(1, 3)
    numbers = [epoch.epoch for epoch in epochs]
    panels = (
        (accuracy, "accuracy", ("train_accuracy", "validation_accuracy", "validation_auc")),
        (loss, "log loss", ("train_loss", "validation_loss")),
        (seconds, "time [s]", ("seconds",)),
    )
    for axes, title, names in panels:
        for name in names:
            values = [getattr(epoch, name) for epoch in epochs]
            if any(value is not None for value in values):
                shown = [float("nan") if value is None else value for value in values]
                axes.plot(numbers, shown, marker="o", markersize=3, label=name.replace("_", " "))
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    loss.axhline(0.6931, color="grey", linewidth=0.8, linestyle=":")  # ln 2, a constant guess on balanced data
    accuracy.set_ylim(0, 1.02)
    seconds.set_ylim(bottom=0)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
