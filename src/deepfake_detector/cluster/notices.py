"""What was said of a Job's pods, so that everything is said once, and again only when it is new."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deepfake_detector.core.diagnosis import Finding, Kind
from deepfake_detector.core.pods import FINISHED, Manifest, phase_of, state_of, subject_of

Key = tuple[Kind, str | int]
ONE_BY_ONE = 8  # indexes; the pods of a Job with more are told of by name only when something is wrong with them


class Notices:
    """Turns the state of a Job, told again and again, into lines that are news."""

    def __init__(self) -> None:
        self._said: dict[Key, int] = {}  # how often it had happened then
        self._states: dict[str, str] = {}  # of pods, by uid

    def findings(self, found: Sequence[Finding]) -> list[str]:
        """A line for each finding with something new: its kind, an index that has it, or once more of it.

        What is over is forgotten, so that it is said again should it come back. Other numbers of the same trouble
        (free CPUs, for instance) are no news.
        """
        lines = [str(finding) for finding in found if any(self._is_new(key, finding) for key in _keys(finding))]
        self._said = {key: finding.times for finding in found for key in _keys(finding)}
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
