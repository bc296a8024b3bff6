from __future__ import annotations

import dataclasses
import json

import pytest

from deepfake_detector.core.calibration import Calibration
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.sequences import FaceSequence
from deepfake_detector.stages.predict import VideoVerdict, judge, to_json, to_text

CALIBRATION = Calibration(
    slope=1.0, offset=0.0, prior=0.5, validation_prior=0.5, threshold=0.6, threshold_from="a test"
)


def sequence(track: int, window: int, start: float, valid: int = 4) -> FaceSequence:
    return FaceSequence(
        track=track,
        window=window,
        images=[b""] * 4,
        frame_indices=[0, 1, 2, 3],
        timestamps=[start + k for k in range(valid)] + [start + valid - 1] * (4 - valid),
        boxes=[(0, 0, 1, 1)] * 4,
        scores=[1.0] * 4,
        present=[True] * 4,
        valid=[k < valid for k in range(4)],
    )


def judged(sequences: list[FaceSequence], logits: list[float]) -> VideoVerdict:
    return judge("a.mp4", Extraction(outcome=Outcome.OK, sequences=sequences), logits, CALIBRATION)


@pytest.mark.parametrize(
    ("logits", "probability", "verdict"),
    [
        ([-9.0, 9.0, -2.0], 0.5, "real"),  # the windows' mean logit, not their mean probability
        ([-2.0, -2.0, 2.0], 0.8808, "fake"),  # the most suspicious face
        ([-1.0, -1.0, -1.0], 0.2689, "real"),
    ],
    ids=["mean_within_a_track", "max_across_tracks", "below_the_threshold"],
)
def test_judge(logits: list[float], probability: float, verdict: str) -> None:
    found = judged([sequence(0, 0, 0.0), sequence(0, 1, 5.0, valid=2), sequence(1, 0, 1.0)], logits)
    assert found.probability == pytest.approx(probability, abs=1e-4)
    assert found.verdict == verdict
    assert not found.failed
    first, second = found.tracks
    assert (first.track, first.frames, first.seconds) == (0, 6, (0.0, 6.0))
    assert (second.track, second.frames, second.seconds) == (1, 4, (1.0, 4.0))


def test_the_threshold_itself_is_fake() -> None:
    at = dataclasses.replace(CALIBRATION, threshold=0.5)
    extraction = Extraction(outcome=Outcome.OK, sequences=[sequence(0, 0, 0.0)])
    assert judge("a.mp4", extraction, [0.0], at).verdict == "fake"


@pytest.mark.parametrize(
    ("outcome", "verdict", "probability", "failed"),
    [
        (Outcome.NO_FACE, "undecided", 0.5, False),
        (Outcome.NOT_A_VIDEO, None, None, True),
        (Outcome.MISSING_FILE, None, None, True),
        (Outcome.CRASHED, None, None, True),
        (Outcome.TIMEOUT, None, None, True),
    ],
)
def test_without_a_face_there_is_no_verdict(
    outcome: Outcome, verdict: str | None, probability: float | None, failed: bool
) -> None:
    found = judge("a.mp4", Extraction(outcome=outcome, detail="why"), [], CALIBRATION)
    assert (found.verdict, found.probability, found.failed) == (verdict, probability, failed)
    assert (found.outcome, found.detail, found.tracks) == (outcome, "why", [])


def test_json_is_the_stable_form() -> None:
    found = judged([sequence(0, 0, 0.5)], [2.0])
    assert json.loads(to_json([found])) == {
        "schema_version": 1,
        "videos": [
            {
                "video": "a.mp4",
                "verdict": "fake",
                "probability": found.probability,
                "threshold": 0.6,
                "outcome": "ok",
                "detail": "",
                "tracks": [
                    {
                        "track": 0,
                        "probability": found.probability,
                        "verdict": "fake",
                        "frames": 4,
                        "seconds": [0.5, 3.5],
                    }
                ],
            }
        ],
    }


def test_text_shows_faces_reasons_and_no_control_characters() -> None:
    broken = judge(
        "bad\x1b[2J\n\u00e9.mp4", Extraction(outcome=Outcome.NOT_A_VIDEO, detail="no index"), [], CALIBRATION
    )
    assert to_text([judged([sequence(0, 0, 0.5)], [2.0]), broken]).splitlines() == [
        "VERDICT     P(FAKE)  VIDEO",
        "fake          0.881  a.mp4",
        "  fake        0.881    face 0: 4 frames, 0.5-3.5 s",
        "not judged        -  bad\\x1b[2J\\n\u00e9.mp4  (not_a_video: no index)",
        "fake is a P(FAKE) of at least 0.600",
    ]
