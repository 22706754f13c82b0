"""Many values in one event of TensorBoard: a hundredth of the cost of ``add_scalar`` for each."""

from __future__ import annotations

import functools
import itertools
import math
import pathlib
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import (  # type: ignore[import-untyped]
    HistogramProto,
    Summary,
)

from lightning_tuning._trainer.event_batch import batch_of
from lightning_tuning.functional.histogram import Histogram

Measured = tuple[Mapping[str, float], Mapping[str, Histogram]]
"""Scalars and histograms by their tags."""
# fields of HistogramProto as protocol buffers write them: five doubles, and two packed ones
_MOMENTS = tuple(number << 3 | 1 for number in range(1, 6))
_LIMITS, _COUNTS = (bytes([number << 3 | 2]) for number in (6, 7))
_FIRST = "events.out.tfevents.0000000000.tuning"


def write_measured(logger: Any, measured: Callable[[], Measured], step: int) -> bool:
    """Write scalars as ``logger.log_metrics`` names them, and histograms, in one event.

    Args:
        logger: Any logger.
        measured: Makes them; called when the event is written, see
            :class:`~lightning_tuning._trainer.event_batch.EventBatch`.
        step: Their place.

    Returns:
        Whether the logger writes to a file that is known here; else nothing is done.
    """
    file = _event_file(getattr(logger, "experiment", None))
    if file is None:
        return False
    summary = functools.partial(_summary, prefix_of(logger), measured)
    batch = batch_of(file)
    if batch is None:
        file.add_summary(summary(), step)
    else:
        batch.add(step, summary)
    return True


def write_png(writer: Any, tag: str, png: bytes, step: int) -> bool:
    """Write a picture that is drawn already; False where the writer must draw it itself."""
    file = _event_file(writer)
    if file is None:
        return False
    # a PNG begins with its signature and the header of width and height
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    file.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
    return True


def write_curve(logger: Any, curve: Mapping[str, Sequence[float]]) -> None:
    """Write numbers over their places from 0 on; nothing where the logger is not TensorBoard's."""
    file = _event_file(getattr(logger, "experiment", None))
    if file is None:
        return
    before = prefix_of(logger)
    for tag, values in curve.items():
        for place, value in enumerate(values):
            if math.isfinite(value):
                scalar = Summary.Value(tag=before + tag, simple_value=value)
                file.add_summary(Summary(value=[scalar]), place)


def write_hyperparameters(
    folder: pathlib.Path, settings: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Write what the tab "HParams" shows of a run, in place of what its logger wrote at its start.

    TensorBoard takes the first that it reads of a run, and it reads event files in the order of
    their names, so that this goes into a file that comes before the others. One that is already
    open goes on with what it has read until it is started anew.

    Args:
        folder: The run's folder.
        settings: All hyperparameters.
        metrics: The results.
    """
    from torch.utils.tensorboard import FileWriter
    from torch.utils.tensorboard.summary import hparams

    with tempfile.TemporaryDirectory(dir=folder) as place:
        writer = FileWriter(place)
        for summary in hparams(dict(settings), dict(metrics)):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        writer.close()
        [file] = pathlib.Path(place).iterdir()
        file.replace(folder / _FIRST)


def prefix_of(logger: Any) -> str:
    """Return what Lightning's TensorBoard logger puts before the names of metrics."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else ""


def _event_file(writer: Any) -> Any:
    """Return the open event file; None for what is no writer of torch's, or is not open yet."""
    from torch.utils.tensorboard import SummaryWriter

    return writer.file_writer if isinstance(writer, SummaryWriter) else None


def _summary(prefix: str, measured: Callable[[], Measured]) -> Any:
    scalars, histograms = measured()
    values = [
        Summary.Value(tag=prefix + tag, simple_value=float(value)) for tag, value in scalars.items()
    ]
    values += [Summary.Value(tag=tag, histo=_proto(each)) for tag, each in histograms.items()]
    return Summary(value=values)


def _proto(histogram: Histogram) -> Any:
    """Return it as TensorBoard stores it; two numbers a bin are copied as bytes, not one by one."""
    moments = (
        histogram.min,
        histogram.max,
        histogram.num,
        histogram.sum,
        histogram.sum_squares,
    )
    fields = struct.pack("<BdBdBdBdBd", *itertools.chain(*zip(_MOMENTS, moments, strict=True)))
    bins = len(histogram.limits)
    length = _varint(8 * bins)
    numbers = f"<{bins}d"
    return HistogramProto.FromString(
        fields
        + _LIMITS
        + length
        + struct.pack(numbers, *histogram.limits)
        + _COUNTS
        + length
        + struct.pack(numbers, *histogram.counts)
    )


def _varint(number: int) -> bytes:
    """Return a number as protocol buffers write a length.

    Example:
        >>> _varint(300).hex()
        'ac02'
    """
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
