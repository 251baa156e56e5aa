"""TensorBoard's file of events, written without TensorFlow."""

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX.crc32c
from tensorboardX.proto import event_pb2, summary_pb2

from vit_jax_mixer.errors import writing
from vit_jax_mixer.run.writers import Appended, Scalars, png

_events: Any = event_pb2  # whose names are made when it is loaded
_summaries: Any = summary_pb2
_BINS = 64


class TensorBoard:
    """Metrics and pictures, and, if asked for, ``histograms`` of the parameters."""

    def __init__(
        self, workdir: Path, start: int, *, histograms: bool = False, say: Callable[[str], None] = print
    ) -> None:
        path = workdir / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self.histograms = histograms
        with writing(path):
            self._file = Appended(path, say)
        self._event(file_version="brain.Event:2")
        # TensorBoard forgets what earlier files have from that step on.
        self._event(step=start + 1, session_log=_events.SessionLog(status=_events.SessionLog.START))

    def write(self, step: int, scalars: Scalars) -> None:
        self._summary(step, *(dict(tag=name, simple_value=value) for name, value in scalars.items()))

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Write a picture, or a text, whose lines stay as they are."""
        if isinstance(picture, str):
            from tensorboardX.summary import text  # which takes long to import

            indented = "\n".join(f"    {line}" for line in picture.splitlines())  # Markdown's way of saying so
            self._event(step=step, summary=text(name, indented))
            return
        size = dict(height=picture.height, width=picture.width, colorspace=3)
        image = _summaries.Summary.Image(**size, encoded_image_string=png(picture))
        self._summary(step, dict(tag=name, image=image))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Write how often values of any shape are where."""
        values = np.asarray(values, np.float64)
        counts, edges = np.histogram(values, _BINS)
        found = _summaries.HistogramProto if hasattr(_summaries, "HistogramProto") else _events.HistogramProto
        told = dict(
            min=values.min(), max=values.max(), num=values.size, sum=values.sum(), sum_squares=(values**2).sum()
        )
        self._summary(step, dict(tag=name, histo=found(**told, bucket_limit=edges[1:], bucket=counts)))

    def close(self) -> None:
        self._file.close()

    def _summary(self, step: int, *values: dict[str, Any]) -> None:
        self._event(step=step, summary=_summaries.Summary(value=[_summaries.Summary.Value(**one) for one in values]))

    def _event(self, **fields) -> None:
        """Write an event as TensorBoard reads it: a TFRecord."""
        data = _events.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(length + _checksum(length) + data + _checksum(data))


def _checksum(data: bytes) -> bytes:
    """Return the masked CRC-32C of the TFRecord format."""
    crc = tensorboardX.crc32c.crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
