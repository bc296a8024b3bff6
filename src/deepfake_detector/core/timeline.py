"""Where the time goes between the submission of a training Job and its first step. For people; decides nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from deepfake_detector.core import pods as pod_status
from deepfake_detector.core.pods import Manifest

FIRST_STEP = "first_step"

# Moments in order, and what was done when each was reached. needed: what no program can do without: the pod's start
# (from its creation: whoever waits for it waits for the scheduler, too), TensorFlow's import, and building graphs: the
# model with its optimizer's variables, the input with its augmentation, and the step. The step is traced and optimised
# by its first call, which also runs it: TensorFlow does not tell the two apart.
_STEPS = (
    ("submitted", "", False),
    ("job", "submit: checks, settings, the Job is created", False),
    ("pod", "Job controller: the chief's pod is created", False),
    ("scheduled", "scheduler: a node is found", True),
    ("process", "kubelet: image, sandbox, the container starts", True),
    ("supervisor", "supervisor: Python, storage, settings", False),
    ("child", "rendezvous: all workers are there", False),
    ("prepared", "worker: Python, storage, settings, the records' index", False),
    ("imported", "worker: TensorFlow is imported", True),
    ("strategy", "worker: strategy, which connects all workers", False),
    ("staged", "worker: records are on local disk", False),
    ("agreed", "worker: threads and machines are agreed on", False),
    ("model", "worker: the model and its optimizer are built", True),
    ("resumed", "worker: a checkpoint is looked for", False),
    ("built", "worker: the input's graph is built", True),
    (FIRST_STEP, "worker: the step's graph is built, and run once", True),
)


class Timeline:
    """Moments of one life of a training process, in seconds since 1970 (UTC)."""

    def __init__(self, moments: Mapping[str, float] | None = None) -> None:
        self.moments = dict(moments or {})

    def mark(self, name: str) -> None:
        """This moment, unless it was marked before."""
        self.moments.setdefault(name, round(time.time(), 3))

    def encode(self) -> str:
        return json.dumps(self.moments)

    @classmethod
    def decode(cls, text: str) -> Timeline:
        """From `encode`; anything else is an empty timeline, as training must not fail on it."""
        try:
            moments = json.loads(text)
            return cls({str(name): float(value) for name, value in moments.items()})
        except (ValueError, TypeError, AttributeError):
            return cls()


@dataclass(frozen=True)
class Step:
    """Seconds up to a moment from the one before it."""

    name: str
    seconds: float
    needed: bool


def steps(moments: Mapping[str, float]) -> list[Step]:
    """The steps between the known moments; a step that overlaps the one before it counts for nothing."""
    found = []
    last: float | None = None
    for moment, name, needed in _STEPS:
        if moment not in moments:
            continue
        if last is not None:
            found.append(Step(name, max(0.0, moments[moment] - last), needed))
        last = max(moments[moment], last or 0.0)
    return found


def table(moments: Mapping[str, float]) -> list[str]:
    """The steps for people, and their sum over that of those which are needed; empty before the first step of a run."""
    found = steps(moments)
    if not {"child", FIRST_STEP} <= moments.keys():  # a resumed training's first step tells nothing of the start
        return []
    lines = [f"  {step.seconds:>6.1f} s  {'*' if step.needed else ' '} {step.name}" for step in found]
    total = sum(step.seconds for step in found)
    needed = sum(step.seconds for step in found if step.needed)
    if needed > 0:
        ratio = f"{total / needed:.2f} x the {needed:.1f} s of pod start, TensorFlow import and graph building (*)"
        lines.append(f"  {total:>6.1f} s    to the first step, {ratio}")
    return lines


def of_job(job: Manifest, pod: Manifest) -> dict[str, float]:
    """What the API tells of the chief's pod; its timestamps are whole seconds."""
    states = [(each.get("state") or {}) for each in pod_status.container_statuses(pod)]
    started = [(state.get("running") or state.get("terminated") or {}).get("startedAt") for state in states]
    texts = {
        "job": pod_status.created(job),
        "pod": pod_status.created(pod),
        "scheduled": (pod_status.holds(pod, "PodScheduled") or {}).get("lastTransitionTime"),
        "process": next((text for text in reversed(started) if text), None),
    }
    return {name: datetime.fromisoformat(text).timestamp() for name, text in texts.items() if text}
