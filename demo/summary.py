"""What the demo says at its end, from the numbers of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from demo.synthesise import Settings


def summary(metrics: Mapping[str, Any], settings: Settings, *, run: str, command: str) -> str:
    """The closing text.

    metrics: content of the run's report/metrics.json; run: its folder, as the user wrote it; command: how to call
    `deepfake-detector` from here.
    """
    run = run.rstrip("/")
    test = metrics["test"]["all"]
    losses = sum(sum(labels.values()) for labels in metrics["test"]["losses"].values())
    lines = [
        f"test split  {test['videos']} held-out clips ({test['real']} real, {test['fake']} fake, "
        f"{losses} of them without a face sequence)",
        f"            AUC {_number(test, 'auc')}, equal error rate {_number(test, 'equal_error_rate')}, "
        f"accuracy {_number(test, 'accuracy')}, log loss {_number(test, 'log_loss_balanced')}",
        f"model       {run}/model/",
        f"report      {run}/report/report.html",
        "",
        f"What this means: {settings.groups} groups were synthesised, each one real clip and the fake made from it,",
        "and no group is in two splits. All clips show the same two portraits, so the figures measure how well",
        f"the artefact of blending (strength {settings.strength:g}) is found, and not how the detector does on",
        "unseen people.",
        "",
        "What to type next:",
        f"  {command} status --run {run}",
        f"  {command} predict --model {run}/model VIDEO",
        f"  {command} local --videos FOLDER_WITH_LABELLED_VIDEOS --run my-run",
    ]
    return "\n".join(lines)


def _number(block: Mapping[str, Any], name: str) -> str:
    """Three digits, or why there is no number."""
    if block[name] is None:
        return f"not available ({block['reasons'][name]})"
    return f"{block[name]:.3f}"
