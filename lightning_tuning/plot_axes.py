"""Axes that are quick to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def fixed_labels(axes: Axes, *, left: float = 0.0, below: float = 0.0) -> None:
    """Put title and labels where they are to be, so that no text is measured to find room.

    Otherwise each tick's label is measured three times before it is drawn.

    Args:
        axes: The axes; it is to get its title afterwards.
        left: Distance of the vertical axis' label, in widths of the axes.
        below: Distance of the horizontal axis' label, in heights of the axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> fixed_labels(axes, left=0.1)
        >>> axes.yaxis.label.get_position()[0]
        -0.1
    """
    axes.set_title("", y=1.0)
    axes.yaxis.set_label_coords(-left, 0.5)
    axes.xaxis.set_label_coords(0.5, -below)


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
