"""What was said of a Job's pods, so that everything is said once, and again only when it is new."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from deepfake_detector.core.findings import Finding, Kind
from deepfake_detector.core.pods import FINISHED, Manifest, phase_of, state_of, subject_of

Key = tuple[Kind, str | int]
Likeness = tuple[Kind, str, str]
GROWTH_SECONDS = 10.0  # a trouble that spreads from pod to pod is told at most so often
ONE_BY_ONE = 8  # indexes; the pods of a Job with more are told of by name only when something is wrong with them


class Notices:
    """Turns the state of a Job, told again and again, into lines that are news."""

    def __init__(self) -> None:
        self._said: dict[Key, int] = {}  # how often it had happened then
        self._told_at: dict[Likeness, float] = {}
        self._states: dict[str, str] = {}  # of pods, by uid

    def findings(self, found: Sequence[Finding], now: float, *, last: bool = False) -> list[str]:
        """A line for each finding with something new: its kind, an index that has it, or once more of it.

        now: seconds of any steady clock: one that is like another told GROWTH_SECONDS ago or less waits for its turn,
        and is told then as it is then. last: nothing can wait. What is over is forgotten, so that it is said again
        should it come back. Other numbers of the same trouble (free CPUs, for instance) are no news.
        """
        lines: list[str] = []
        said: dict[Key, int] = {}
        for finding in found:
            alike = _likeness(finding)
            due = last or now - self._told_at.get(alike, float("-inf")) >= GROWTH_SECONDS
            tell = due and any(self._is_new(key, finding) for key in _keys(finding))
            if tell:
                lines.append(str(finding))
                self._told_at[alike] = now
            said |= {key: finding.times for key in _keys(finding) if tell}
            said |= {key: self._said[key] for key in _keys(finding) if not tell and key in self._said}
        self._said = said
        there = {_likeness(finding) for finding in found}
        self._told_at = {alike: moment for alike, moment in self._told_at.items() if alike in there}
        return lines

    def _is_new(self, key: Key, finding: Finding) -> bool:
        return self._said.get(key, -1) < finding.times

    def states(self, job: Manifest, pods: Sequence[Manifest]) -> list[str]:
        """ "worker 1: runs on node-1", where that has changed; of a Job with few indexes only.

        A failure and a wait for a node are left to the findings, which say why.
        """
        if job["spec"].get("completions", 1) > ONE_BY_ONE:
            return []
        lines = []
        for pod in pods:
            uid, state = pod["metadata"]["uid"], state_of(pod)
            if self._states.get(uid) != state:
                self._states[uid] = state
                if phase_of(pod) != "Failed" and (pod.get("spec") or {}).get("nodeName"):
                    lines.append(f"{subject_of(pod)}: {state}")
        return lines


def count_in_words(pods: Iterable[Manifest]) -> str:
    """ "3 pods run, 1 waits": those that are not finished."""
    phases = [phase_of(pod) for pod in pods]
    running = phases.count("Running")
    others = sum(phase not in ("Running", *FINISHED) for phase in phases)
    words = [f"{running} {'pod runs' if running == 1 else 'pods run'}"] if running else []
    if others:
        words.append(f"{others} {'waits' if others == 1 else 'wait'}")
    return ", ".join(words)


def _keys(finding: Finding) -> list[Key]:
    return [(finding.kind, index) for index in finding.indexes] or [(finding.kind, finding.subject)]


def _likeness(finding: Finding) -> Likeness:
    """The same for troubles that differ in their numbers, or in the indexes that have them, alone."""
    subject = "" if finding.indexes else finding.subject
    return finding.kind, subject, re.sub(r"\d[\d.]*", "#", finding.problem)
