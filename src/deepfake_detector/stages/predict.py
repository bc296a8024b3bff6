"""Judge videos with an exported model: the crop code of training, the SavedModel, and its manifest's calibration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from deepfake_detector.adapters.files import require_room
from deepfake_detector.adapters.machine import cpu_limit
from deepfake_detector.adapters.quiet import silent_stderr
from deepfake_detector.adapters.storage import checked_name, fetch_file, is_copy, open_object, open_storage
from deepfake_detector.adapters.tensorflow_import import import_tensorflow
from deepfake_detector.core import layout
from deepfake_detector.core.calibration import UNDECIDED, Calibration, mean_by_track
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.markers import DetectorManifest, decode
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.sequences import FaceSequence
from deepfake_detector.stages.decoders import Decoders
from deepfake_detector.stages.sources import fetch_video

JSON_SCHEMA = 1
BATCH = 8  # sequences at once, all of one video: a result never depends on the other videos
MANIFEST = layout.DETECTOR.removeprefix(layout.MODEL)


@dataclass(frozen=True, kw_only=True)
class TrackVerdict:
    """One face. probability: of fake, calibrated; frames: judged ones, over all windows; seconds: first and last."""

    track: int
    probability: float
    verdict: str
    frames: int
    seconds: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class VideoVerdict:
    """One video, as it was named. verdict: fake, real, undecided (no face), or None where nothing could be judged.

    probability: the largest of the tracks', 0.5 when undecided, None with verdict None; outcome and detail: what
    became of the file; threshold: the verdict is fake at probability >= threshold.
    """

    video: str
    verdict: str | None
    probability: float | None
    threshold: float
    outcome: Outcome
    detail: str = ""
    tracks: list[TrackVerdict] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """The video could not be judged: not there, not a video, or broken."""
        return self.verdict is None


def predict(
    model_uri: str, videos: Sequence[str], *, on_video: Callable[[VideoVerdict], None] | None = None
) -> list[VideoVerdict]:
    """The verdict on each video, in the order given; `on_video` is called with each as it is known.

    model_uri: a run's model/ folder or a pulled one, local or gs://; videos: paths or gs:// URIs. A video that is
    missing or broken has its outcome and stops none of the others. Raises NotFoundError when there is no model,
    CorruptError when its files are not those that were exported, StorageError when gs:// stays away.
    """
    verdicts: list[VideoVerdict] = []
    with tempfile.TemporaryDirectory(prefix="deepfake-detector-") as scratch:
        manifest, folder = fetch_model(model_uri, Path(scratch) / "model")
        config = override(Config(), manifest.config, f"{model_uri}/{MANIFEST}")
        calibration = Calibration(
            slope=manifest.slope,
            offset=manifest.offset,
            prior=manifest.prior,
            validation_prior=manifest.validation_prior,
            threshold=manifest.threshold,
            threshold_from=manifest.threshold_from,
        )
        model: Callable[[Sequence[FaceSequence]], list[float]] | None = None
        for video, extraction in _extractions(videos, config, Path(scratch) / "videos"):
            if model is None and extraction.sequences:  # loaded while the next videos are being decoded
                model = _load(folder, config.faces.size)
            logits = model(extraction.sequences) if model else []
            verdict = judge(video, extraction, logits, calibration)
            verdicts.append(verdict)
            if on_video is not None:
                on_video(verdict)
    return verdicts


def fetch_model(uri: str, scratch: Path) -> tuple[DetectorManifest, Path]:
    """The manifest and a local folder with the verified files: the folder itself, or a copy of gs:// in scratch.

    Nothing else may lie in a local folder (names that begin with a dot may, which no library reads): TensorFlow would
    take a file that it knows, whoever put it there. Raises NotFoundError, CorruptError.
    """
    storage = open_storage(uri)
    try:
        data = storage.read(MANIFEST)
    except NotFoundError:
        hint = f" (did you mean {uri.rstrip('/')}/{layout.MODEL}?)" if storage.exists(layout.DETECTOR) else ""
        raise NotFoundError(f"{uri}: expected an exported model with {MANIFEST}{hint}") from None
    manifest = decode(DetectorManifest, data, f"{uri}/{MANIFEST}")
    local = "://" not in storage.uri
    folder = Path(storage.uri) if local else scratch
    if not local:
        require_room(folder, sum(file.size for file in manifest.files), f"a copy of {uri}")
    for file in manifest.files:
        name = checked_name(file.name.removeprefix(layout.MODEL))
        if not local:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            fetch_file(storage, file.model_copy(update={"name": name}), folder / name)
        elif not is_copy(folder / name, file):
            raise CorruptError(f"{folder / name}: expected {file.size} bytes with crc32c {file.crc32c} ({MANIFEST})")
    known = {MANIFEST, *(file.name.removeprefix(layout.MODEL) for file in manifest.files)}
    if strange := [entry.name for entry in open_storage(str(folder)).list() if not _is_known(entry.name, known)]:
        raise CorruptError(f"{folder / strange[0]}: expected only the files that {MANIFEST} names")
    return manifest, folder


def _is_known(name: str, known: Collection[str]) -> bool:
    return name in known or name.rpartition("/")[2].startswith(".")


def judge(video: str, extraction: Extraction, logits: Sequence[float], calibration: Calibration) -> VideoVerdict:
    """logits: one natural logit per sequence of the extraction."""
    threshold, outcome = calibration.threshold, extraction.outcome
    probability: float | None = None
    verdict, tracks = None, []
    if outcome is Outcome.NO_FACE:
        verdict, probability = "undecided", UNDECIDED
    if outcome is Outcome.OK:
        tracks = _judge_tracks(extraction.sequences, logits, calibration)
        largest = max(tracks, key=lambda track: track.probability)
        verdict, probability = largest.verdict, largest.probability
    return VideoVerdict(
        video=video,
        verdict=verdict,
        probability=probability,
        threshold=threshold,
        outcome=outcome,
        detail=extraction.detail,
        tracks=tracks,
    )


def _judge_tracks(
    sequences: Sequence[FaceSequence], logits: Sequence[float], calibration: Calibration
) -> list[TrackVerdict]:
    means = mean_by_track([("", sequence.track) for sequence in sequences], logits)
    tracks = []
    for (_, number), logit in means.items():
        windows = [sequence for sequence in sequences if sequence.track == number]
        times = [time for sequence in windows for time in sequence.timestamps]
        probability = float(calibration.apply(logit))
        tracks.append(
            TrackVerdict(
                track=number,
                probability=probability,
                verdict="fake" if probability >= calibration.threshold else "real",
                frames=sum(sum(sequence.valid) for sequence in windows),
                seconds=(min(times), max(times)),
            )
        )
    return tracks


def to_json(verdicts: Sequence[VideoVerdict]) -> str:
    """One JSON document: {"schema_version": 1, "videos": [...]}, the fields of VideoVerdict and TrackVerdict."""
    document = {"schema_version": JSON_SCHEMA, "videos": [asdict(verdict) for verdict in verdicts]}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)


def to_text(verdicts: Sequence[VideoVerdict]) -> str:
    """A table for people: one line per video, one per face below it, and from where on a verdict is "fake"."""
    rows = [("VERDICT", "P(FAKE)", "VIDEO")]
    for one in verdicts:
        probability = "-" if one.probability is None else f"{one.probability:.3f}"
        reason = "" if one.outcome is Outcome.OK else f"  ({one.outcome}{': ' if one.detail else ''}{one.detail})"
        rows.append((one.verdict or "not judged", probability, _printable(one.video + reason)))
        for track in one.tracks:
            first, last = track.seconds
            where = f"  face {track.track}: {track.frames} frame{'s' * (track.frames > 1)}, {first:.1f}-{last:.1f} s"
            rows.append((f"  {track.verdict}", f"{track.probability:.3f}", where))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}" for row in rows]
    thresholds = sorted({one.threshold for one in verdicts})  # one model, one threshold
    return "\n".join([*lines, *(f"fake is a P(FAKE) of at least {threshold:.3f}" for threshold in thresholds)])


def _printable(text: str) -> str:
    """A file's name may hold what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _load(folder: Path, size: int) -> Callable[[Sequence[FaceSequence]], list[float]]:
    """A function from sequences to their natural logits, by the SavedModel in `folder`."""
    with silent_stderr():  # or notes on the machine bury the verdicts
        import_tensorflow()
        import tensorflow as tf

        loaded = tf.saved_model.load(str(folder))

    from deepfake_detector.training.dataset import decode_images

    serve = loaded.signatures["serving_default"]
    decode_clip = tf.function(
        lambda images: decode_images(images, size), input_signature=[tf.TensorSpec((None,), tf.string)]
    )

    def logits(sequences: Sequence[FaceSequence]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(sequences), BATCH):
            clips = [decode_clip(list(sequence.images)) for sequence in sequences[start : start + BATCH]]
            found += serve(tf.stack(clips))["logit"].numpy()[:, 0].tolist()
        return found

    logits.model = loaded  # type: ignore[attr-defined]  # a signature does not keep its variables alive
    return logits


def _extractions(videos: Sequence[str], config: Config, scratch: Path) -> Iterator[tuple[str, Extraction]]:
    """Each video with what was extracted from it, in order, by decoding processes: a hostile file costs only itself."""
    absent = {index: reason for index, video in enumerate(videos) if (reason := _absent(video))}
    present = [index for index in range(len(videos)) if index not in absent]
    copies: dict[int, Path] = {}
    unread: dict[int, str] = {}

    def paths() -> Iterator[Path]:
        for index in present:
            if videos[index].startswith("gs://"):
                copies[index], unread[index] = fetch_video(*open_object(videos[index]), scratch, index)
            yield copies.get(index, Path(videos[index]))

    slots = min(config.operations.decoders or cpu_limit(), max(len(present), 1))
    with Decoders(config, slots) as decoders, tqdm(total=len(videos), unit="video", delay=2, disable=None) as bar:
        extractions = decoders.map(paths())
        for index, video in enumerate(videos):
            if index in absent:
                yield video, Extraction(outcome=Outcome.MISSING_FILE, detail=absent[index])
            else:
                extraction = next(extractions)
                reason = unread.pop(index, "")
                yield video, Extraction(outcome=Outcome.DECODE_ERROR, detail=reason) if reason else extraction
            if index in copies:
                copies.pop(index).unlink(missing_ok=True)
            bar.update()


def _absent(video: str) -> str:
    """Why there is nothing to judge under this name; "" when there is a file."""
    if video.startswith("gs://"):
        parent, _, name = video.rpartition("/")
        return "" if name and parent != "gs:/" and open_storage(parent).exists(name) else "no such object"
    path = Path(video)
    if path.is_dir():
        return "is a folder: expected a video file"
    return "" if path.is_file() else "no such file"
