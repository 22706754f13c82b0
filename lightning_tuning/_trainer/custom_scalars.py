"""The charts of all monitors of a trainer, written to TensorBoard as the one layout it reads."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from lightning_tuning._trainer.report import real_loggers
from lightning_tuning._trainer.tensorboard_events import prefix_of

RIGHT = "1. Is the program right?"
RATE = "2. Which learning rate?"
WELL = "3. Is it training well?"
"""The questions that charts are grouped by, in this order."""
Layout = Mapping[str, Mapping[str, Sequence[Any]]]

_OF: weakref.WeakKeyDictionary[object, dict[str, dict[str, list[Any]]]] = (
    weakref.WeakKeyDictionary()
)
_WRITTEN: weakref.WeakSet[object] = weakref.WeakSet()


def add(trainer: Trainer, layout: Layout) -> None:
    """Merge a layout into that of the trainer."""
    known = _OF.setdefault(trainer.fit_loop, {})
    for category, charts in layout.items():
        for title, (kind, tags) in charts.items():
            _merge(known.setdefault(category, {}), title, kind, list(tags))


def write(trainer: Trainer) -> None:
    """Write the layout to each writer that has none yet; on rank zero."""
    layout = _OF.get(trainer.fit_loop)
    if not layout:
        return
    for logger in real_loggers(trainer):
        writer: Any = getattr(logger, "experiment", None)
        if writer not in _WRITTEN and callable(getattr(writer, "add_custom_scalars", None)):
            _WRITTEN.add(writer)
            ordered = dict(sorted(layout.items()))
            writer.add_custom_scalars(_with_prefix(ordered, prefix_of(logger)))


def _merge(charts: dict[str, list[Any]], title: str, kind: str, tags: list[str]) -> None:
    known = charts.get(title)
    if known is None:
        charts[title] = [kind, tags]
    elif known[0] == kind == "Multiline":
        known[1] += [tag for tag in tags if tag not in known[1]]
    elif known != [kind, tags]:
        # a band has three tags, so that it can't take those of another
        _merge(charts, f"{title} (2)", kind, tags)


def _with_prefix(layout: Layout, prefix: str) -> Layout:
    if not prefix:
        return layout
    return {
        category: {
            title: [k, [prefix + tag for tag in tags]] for title, (k, tags) in charts.items()
        }
        for category, charts in layout.items()
    }
