import math

import numpy as np
import pytest

from lightning_tuning.functional.filters.filter_images import (
    MOST_FILTERS,
    amplitude,
    filters_of_rows,
    grid,
    has_channels_last,
    shared_scale,
    shown,
    smoothness,
    smoothness_of_noise,
    stays_within,
)

NOISE = np.random.default_rng(0).normal(size=(64, 3, 7, 7))
GAP = [26, 35, 60]


# -------------------------------------------------------------------------------- smoothness


@pytest.mark.parametrize("frequency", [0.0, 0.05, 0.125, 0.25, 0.4, 0.5])
def test_a_wave_has_the_cosine_of_its_frequency(frequency):
    places = np.arange(4000)
    wave = np.cos(2 * np.pi * frequency * places + 0.3)[None, None]
    assert smoothness(wave) == pytest.approx(math.cos(2 * np.pi * frequency), abs=2e-3)


def test_waves_along_both_axes_have_the_mean_of_both():
    x = np.cos(2 * np.pi * 0.1 * np.arange(1000))
    y = np.cos(2 * np.pi * 0.3 * np.arange(1000))
    expected = (math.cos(2 * np.pi * 0.1) + math.cos(2 * np.pi * 0.3)) / 2
    assert smoothness(np.outer(y, x)[None, None]) == pytest.approx(expected, abs=2e-3)


def test_it_is_the_share_of_the_spectrum_weighted_by_the_cosine():
    """Where the edges meet, a sum over neighbours is one over frequencies (Wiener, Khinchin)."""
    kernel = np.random.default_rng(1).normal(size=32)
    power = np.abs(np.fft.fft(kernel)) ** 2
    expected = (power * np.cos(2 * np.pi * np.fft.fftfreq(32))).sum() / power.sum()
    closed = np.append(kernel, kernel[0])
    assert smoothness(closed[None, None]) == pytest.approx(expected, abs=1e-12)


def test_it_is_that_of_numpy_for_values_without_a_mean():
    pairs = NOISE.reshape(-1, 7, 7)[:, :, :-1].ravel(), NOISE.reshape(-1, 7, 7)[:, :, 1:].ravel()
    rows_only = NOISE.reshape(-1, 1, 7)
    assert smoothness(rows_only) == pytest.approx(np.corrcoef(*pairs)[0, 1], abs=2e-3)


@pytest.mark.parametrize("correlation", [-0.5, 0.3, 0.9])
def test_an_autoregressive_process_has_its_coefficient(correlation):
    rng = np.random.default_rng(2)
    values = [rng.normal()]
    for _ in range(20_000):
        values.append(correlation * values[-1] + math.sqrt(1 - correlation**2) * rng.normal())
    assert smoothness(np.array(values)[None, None]) == pytest.approx(correlation, abs=0.03)


def test_it_is_the_same_for_multiples_signs_mirrors_and_orders():
    base = np.cumsum(NOISE, axis=-1)
    for other in (-3e-6 * base, 1e6 * base, base[..., ::-1], base[..., ::-1, :], base[::-1]):
        assert smoothness(other) == pytest.approx(smoothness(base), abs=1e-12)
    assert smoothness(base.swapaxes(-1, -2)) == pytest.approx(smoothness(base), abs=1e-12)


def test_noise_spreads_as_told():
    rng = np.random.default_rng(3)
    shape = (16, 3, 5, 6)
    found = [smoothness(rng.normal(size=shape)) for _ in range(400)]
    assert np.mean(found) == pytest.approx(0, abs=0.003)
    assert np.std(found) == pytest.approx(smoothness_of_noise(shape), rel=0.1)


@pytest.mark.parametrize(
    "filters", [np.zeros((1, 1, 3, 3)), np.full((1, 1, 3, 3), np.nan), np.ones((4, 2, 1, 1))]
)
def test_where_nothing_can_be_said_it_is_nan(filters):
    assert math.isnan(smoothness(filters))
    assert smoothness_of_noise((4, 2, 1, 1)) == math.inf


def test_all_axes_of_a_volume_count():
    volume = np.ones((1, 1, 4, 4, 4))
    volume[:, :, ::2] = -1  # neighbours along one axis of three differ
    assert smoothness(volume) == pytest.approx(1 / 3)


# -------------------------------------------------------------------------------------- scale


def test_the_scale_never_shrinks_and_doubles_where_it_must():
    scales = [0.0]
    for reached in (0.0, 0.1, 0.05, 0.1, 0.11, 0.3, 0.9, 0.2):
        scales.append(shared_scale(scales[-1], reached))
    assert scales[1:] == pytest.approx([0.0, 0.1, 0.1, 0.1, 0.2, 0.4, 1.6, 1.6])


def test_one_weight_far_out_does_not_set_the_scale():
    filters = np.full((10, 1, 10, 10), 0.5)
    filters[0, 0, 0, 0] = -100
    filters[0, 0, 0, 1] = np.inf
    assert amplitude(filters) == 0.5
    assert amplitude(np.full((1, 1, 2), np.nan)) == 0.0


def test_what_stays_within_a_scale_has_no_larger_amplitude():
    generator = np.random.default_rng(0)
    for size in (1, 2, 7, 199, 200, 201, 5000):
        for _ in range(50):
            weights = generator.standard_normal((1, 1, size))
            reached = amplitude(weights)
            for scale in (0.0, 0.99 * reached, reached, 1.01 * reached):
                if stays_within(weights, scale):
                    assert reached <= scale
            assert size == 1 or stays_within(weights, float(np.abs(weights).max()))
    assert not stays_within(np.full((1, 1, 9), np.nan), 1.0)


# --------------------------------------------------------------------------------------- grids


def test_grey_filters_lie_in_reading_order():
    filters = np.linspace(-1, 1, 9).reshape(9, 1, 1, 1).repeat(4, -1).repeat(4, -2)
    image = grid(filters, 1.0)
    size = image.shape[0] // 16  # three filters of four and four gaps
    middles = image[3 * size :: 5 * size, 3 * size :: 5 * size][:3, :3]
    assert middles[..., 0].ravel().tolist() == [0, 32, 64, 96, 128, 159, 191, 223, 255]
    assert (middles[..., 0] == middles[..., 2]).all()


def test_three_channels_are_colours():
    filters = np.zeros((1, 3, 2, 2))
    filters[:, 0] = 1
    filters[:, 2] = -1
    middle = grid(filters, 1.0)[200, 200]
    assert middle.tolist() == [255, 128, 0]


def test_other_channels_lie_side_by_side_with_gaps():
    filters = np.arange(5.0).reshape(1, 5, 1, 1).repeat(3, -1).repeat(3, -2)
    image = grid(filters, 4.0)
    size = image.shape[1] // 21  # five channels of three, four gaps within, two around
    row = image[2 * size, ::size][:21]
    assert [tuple(pixel) for pixel in row[[0, 4, 8, 20]]] == [tuple(GAP)] * 4
    assert row[[2, 6, 10, 14, 18], 0].tolist() == [128, 159, 191, 223, 255]


@pytest.mark.parametrize(
    ("shape", "extent"),
    [
        ((6, 40, 9), (40, 9)),  # in time: a row for each channel
        ((6, 1, 2, 5, 5), (5, 11)),  # in space and time: slices side by side
        ((6, 3, 2, 5, 5), (5, 11)),
        ((6, 40, 5, 5), (5, 95)),  # sixteen channels
    ],
)
def test_each_shape_has_room(shape, extent):
    image = grid(np.zeros(shape), 1.0)
    grey = (image == 128).all(-1)
    used = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
    times = next(n for n in range(1, 512) if not grey[used[0][0] + n * extent[0], used[1][0]])
    assert grey[used[0][0] : used[0][0] + extent[0] * times, used[1][0]].all()
    assert image.dtype == np.uint8
    assert max(image.shape) <= 1024
    assert (np.abs(image.astype(int) - GAP).sum(-1)[0] == 0).all()


def test_it_is_readable_and_bounded():
    assert len(shown(np.zeros((500, 1, 5, 5)))) == MOST_FILTERS
    assert len(shown(np.zeros((20, 1, 300, 300)))) == 9
    assert len(shown(np.zeros((2, 1, 1, 2000)))) == 2
    assert len(shown(np.zeros((3, 1, 1200, 1200)))) == 1
    assert 256 < min(grid(np.zeros((1, 1, 3, 3)), 1.0).shape[:2]) <= 512
    assert grid(np.zeros((2, 1, 3, 3)), 0.0).shape[2] == 3  # before there is a scale


def test_weights_that_are_not_finite_are_gaps():
    image = grid(np.full((1, 1, 1, 1), np.nan), 1.0)
    assert (image == GAP).all()


# ---------------------------------------------------------------------------- rows of a Linear


def test_rows_become_images_in_the_order_that_flatten_has():
    images = np.random.default_rng(4).normal(size=(2, 3, 5, 6))
    assert (filters_of_rows(images.reshape(2, -1), (3, 5, 6)) == images).all()
    last = np.moveaxis(images, 1, -1)
    assert (filters_of_rows(last.reshape(2, -1), (5, 6, 3)) == images).all()
    assert filters_of_rows(np.zeros((2, 12)), (3, 4)).shape == (2, 1, 3, 4)
    assert not has_channels_last((1, 4, 4))
    with pytest.raises(ValueError, match=r"image_shape=\(2, 2\) has 4 values.*5 inputs"):
        filters_of_rows(np.zeros((1, 5)), (2, 2))
