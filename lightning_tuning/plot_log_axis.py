"""A logarithmic axis that is quick to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers; at twos and fives too where it spans little.

    Matplotlib's own labels are formulas, and parsing these takes a quarter of a figure's time.

    Args:
        axis: An axis whose scale is "log", with all that it is to show.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot(yscale="log", ylim=(0.08, 2.0))
        >>> plain_numbers(axes.yaxis)
        >>> [axes.yaxis.get_major_formatter()(place) for place in (0.1, 2.0, 1e-9)]
        ['0.1', '2', '1e-09']
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    some = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=some, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
