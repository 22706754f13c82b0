"""Labels of a logarithmic axis."""

import pytest
from matplotlib.figure import Figure

from lightning_tuning.plot_axes import plain_numbers


@pytest.mark.parametrize(
    ("low", "high"), [(2.27, 2.31), (0.3, 0.45), (0.08, 2.0), (1e-7, 3e4), (1e-30, 1e30)]
)
def test_any_span_has_a_few_labels_that_are_the_numbers_of_their_places(low, high):
    figure = Figure()
    axes = figure.add_subplot(yscale="log", ylim=(low, high))
    plain_numbers(axes.yaxis)
    figure.canvas.draw()
    shown = [
        (place, label.get_text())
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if low <= place <= high
    ]
    assert 2 <= len(shown) <= 16
    for place, label in shown:
        assert "$" not in label
        assert float(label) == pytest.approx(place, rel=1e-5)
