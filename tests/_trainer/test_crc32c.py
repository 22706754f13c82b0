"""Checksums of TensorBoard's records: known values, TensorBoard's own, and what must not matter."""

import pathlib
import random
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torch.utils.tensorboard import SummaryWriter

from lightning_tuning._trainer.crc32c import crc32c, masked_crc32c
from lightning_tuning._trainer.tensorboard_events import write_measured
from lightning_tuning.functional.histogram import Histogram


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
        (b"a", 0xC1D04330),
    ],
)
def test_known_values(data, crc):
    assert crc32c(data) == crc


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 63, 64, 65, 127, 128, 129, 255, 256, 257, 9_999])
def test_it_is_that_of_tensorboard(length):
    data = random.Random(length).randbytes(length)
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)


def test_it_is_linear():
    draw = random.Random(0).randbytes
    one, two, three = draw(2000), draw(2000), draw(2000)
    mixed = bytes(a ^ b ^ c for a, b, c in zip(one, two, three, strict=True))
    assert crc32c(mixed) == crc32c(one) ^ crc32c(two) ^ crc32c(three)


def test_event_files_have_the_same_bytes(tmp_path, monkeypatch):
    """With our checksums and with TensorBoard's own, which read them without a complaint too."""
    facts = {"min": 0, "max": 100, "num": 100, "sum": 0, "sum_squares": 1}
    histogram = Histogram(limits=tuple(range(1, 101)), counts=(1,) * 100, **facts)
    monkeypatch.setattr("time.time", lambda: 1.0)
    files = []
    for own in (True, False):
        writer = SummaryWriter(tmp_path / str(own))
        if own:
            logger = SimpleNamespace(experiment=writer)
            assert write_measured(logger, lambda: ({}, {"some": histogram}), 3)
        else:
            writer.add_histogram_raw(
                "some",
                bucket_limits=histogram.limits,
                bucket_counts=histogram.counts,
                global_step=3,
                **facts,
            )
        writer.add_scalar("other", 1.0, 4)
        writer.close()
        [file] = (tmp_path / str(own)).iterdir()
        files.append(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [event.step for event in EventFileLoader(str(files[0])).Load()] == [0, 3, 4]
    assert pathlib.Path(files[0]).stat().st_size > 1_000
