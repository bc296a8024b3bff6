"""Preprocessing against the frozen reference loop: ratios of CPU time, measured turn by turn on the same clips."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from deepfake_detector.core.config import Config, override
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.recipes import dfdc

REPEATS = 3
FRAMES = 32
# CPU s per DFDC clip at 32 frames spread over it (decode with skip + convert + detect, over decoding every frame),
# from the measurements of the prototype that this pipeline was designed after.
PROTOTYPE_RATIO = (0.78 + 0.105 + 0.164) / 1.48
FULL_HD = 1920 * 1080


def run(clips: Path) -> list[dict[str, Any]]:
    """Rows of name, ratio, target and detail. clips: a folder with videos anywhere below it."""
    paths = sorted(clips.rglob("*.mp4"))
    if not paths:
        print(f"preprocess: skipped, no .mp4 below {clips}", file=sys.stderr)
        return []
    config = override(dfdc(), {"sampling.frames": FRAMES, "faces.size": 224}, "bench")
    in_child = _in_decoding_process(paths, config)
    return [*_cpu(paths, config), *_memory(in_child), _detection(in_child)]


def _cpu(paths: list[Path], config: Config) -> list[dict[str, Any]]:
    from bench.reference_loop import ReferenceLoop, decode_every_frame
    from deepfake_detector.stages.extract import extract

    loop = ReferenceLoop()
    extract(paths[0], config)  # loads the detector
    ours, every, seconds = [], [], []
    for path in paths:
        wanted, pixels = _wanted_pts(path, config)
        for _ in range(REPEATS):
            reference = _cpu_seconds(partial(loop.run, path, wanted))
            extraction = _cpu_seconds(partial(extract, path, config))
            ours.append(extraction / reference)
            if pixels >= FULL_HD:
                full = _cpu_seconds(partial(decode_every_frame, path))
                every.append(reference / full)
                seconds.append((extraction, reference, full))
    rows: list[dict[str, Any]] = [
        {
            "name": "preprocess: CPU per video over the reference loop",
            "ratio": median(ours),
            "target": "<= 1.25",
            "detail": f"median of {len(ours)}, from {min(ours):.2f} to {max(ours):.2f}; T={FRAMES}, {len(paths)} clips",
        }
    ]
    if every:
        mean = [median(column) for column in zip(*seconds, strict=True)]
        rows.append(
            {
                "name": "reference loop over decoding every frame, 1080p",
                "ratio": median(every),
                "target": f"<= {1.1 * PROTOTYPE_RATIO:.2f}",
                "detail": f"1.1 x the prototype's {PROTOTYPE_RATIO:.2f}; CPU s per clip: extract {mean[0]:.2f}, "
                f"reference {mean[1]:.2f}, every frame {mean[2]:.2f}",
            }
        )
    return rows


def _memory(results: list[tuple[Extraction, dict[str, Any]]]) -> list[dict[str, Any]]:
    large = [told for extraction, told in results if _pixels(extraction) >= FULL_HD]
    rows: list[dict[str, Any]] = [
        {
            "name": "preprocess: TensorFlow in a decoding process",
            "ratio": any(told["tensorflow"] for _, told in results),
            "target": "False",
            "detail": f"sys.modules after {len(results)} videos",
        }
    ]
    if large:
        rows.insert(
            0,
            {
                "name": "preprocess: peak memory of a decoding process, MB, 1080p",
                "ratio": max(told["peak_mb"] for told in large),
                "target": "<= 400",
                "detail": f"resident, libraries included, {len(large)} clips, T={FRAMES}",
            },
        )
    return rows


def _detection(results: list[tuple[Extraction, dict[str, Any]]]) -> dict[str, Any]:
    extractions = [extraction for extraction, _ in results]
    wanted = sum(extraction.frames_wanted for extraction in extractions)
    found = sum(extraction.frames_with_face for extraction in extractions)
    filled = sum(extraction.frames_filled for extraction in extractions)
    return {
        "name": "preprocess: sampled frames with a detection",
        "ratio": found / wanted,
        "target": ">= 0.99",
        "detail": f"{found} of {wanted} frames of {len(extractions)} clips; beside them {filled} crops filled in "
        f"from their neighbours, {sum(e.tracks for e in extractions)} tracks",
    }


def observed(path: Path, config: Config) -> Extraction:
    """extract(), with what this decoding process has come to as the detail."""
    from deepfake_detector.adapters.machine import peak_memory_mb
    from deepfake_detector.stages.extract import extract

    extraction = extract(path, config)
    told = {"peak_mb": peak_memory_mb(), "tensorflow": "tensorflow" in sys.modules}
    return replace(extraction, detail=json.dumps(told))


def _in_decoding_process(paths: list[Path], config: Config) -> list[tuple[Extraction, dict[str, Any]]]:
    from deepfake_detector.stages.decoders import Decoders

    with Decoders(config, 1, observed) as decoders:
        return [(extraction, json.loads(extraction.detail)) for extraction in decoders.map(paths)]


def _wanted_pts(path: Path, config: Config) -> tuple[set[int], int]:
    """The presentation times, in the stream's own unit, of the frames that extract() samples; and the frame's size."""
    import av

    from deepfake_detector.adapters.video import Video
    from deepfake_detector.core.sampling import choose_frames

    video = Video(path, config.limits.max_pixels)
    chosen = {index for window in choose_frames(video.times, video.end, config.sampling) for index in window}
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
    assert base is not None
    return {round(video.times[index] / base) for index in chosen}, video.width * video.height


def _pixels(extraction: Extraction) -> float:
    return float(extraction.metadata["width"]) * float(extraction.metadata["height"])


def _cpu_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin
