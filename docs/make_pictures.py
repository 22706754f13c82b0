"""Make the pictures of README and docs: ``python docs/make_pictures.py``."""

import json
import os
import pathlib
import sys
import tempfile

from matplotlib import image
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))


def main() -> None:
    """Make all pictures, or those whose names are given."""
    makers = {"quickstart": quickstart_picture, "ema": ema_picture}
    for name in sys.argv[1:] or makers:
        makers[name]()


def ema_picture() -> None:
    """Fit the example of EMAWeights with five seeds and draw what validation logged."""
    import ema

    raw_name = {False: "averaged", True: "raw"}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        finals = [ema.fit(seed) for seed in range(1, 6)]
        for events in sorted({file.parent for file in pathlib.Path(folder).rglob("events*")}):
            for panel, tag in zip(axes, ("val_loss", "val_accuracy"), strict=True):
                for raw in (True, False):
                    epochs, values = logged(events, tag + "_raw" * raw)
                    panel.plot(epochs, values, color="C1" if raw else "C0", label=raw_name[raw])
                panel.set(xlabel="epoch", title=tag)
        os.chdir(ROOT)
    for final in finals:
        print(json.dumps(final))
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles[:2], labels[:2])
    figure.savefig(ROOT / "docs" / "images" / "ema.png", dpi=110)


def logged(events: pathlib.Path, tag: str) -> tuple[list[int], list[float]]:
    """Return epochs, from 1, and values of a tag in an event file."""
    reader = EventAccumulator(str(events)).Reload()
    values = [event.value for event in reader.Scalars(tag)]
    return list(range(1, len(values) + 1)), values


def quickstart_picture() -> None:
    """Fit the quickstart and save its range test beside its cycle."""
    import quickstart

    from lightning_tuning import LRRangeTest, OneCycle
    from lightning_tuning.plots import plot_lr_range_test, plot_schedule

    test, cycle = LRRangeTest(), OneCycle()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trainer = quickstart.fit(test, cycle)
        print(json.dumps({k: float(v) for k, v in trainer.callback_metrics.items()}))
        os.chdir(ROOT)
    assert test.result is not None
    assert cycle.result is not None
    parts = [plot_lr_range_test(test.result), plot_schedule(cycle.result)]
    beside(parts).savefig(ROOT / "docs" / "images" / "quickstart.png", dpi=110)


def beside(parts: list[Figure]) -> Figure:
    """Put figures beside each other in one."""
    paths = []
    with tempfile.TemporaryDirectory() as folder:
        for index, part in enumerate(parts):
            part.set_size_inches(7, 3.6)
            paths.append(pathlib.Path(folder, f"{index}.png"))
            part.savefig(paths[-1], dpi=110)
        pictures = [image.imread(path) for path in paths]
    whole = Figure(figsize=(14, 3.6))
    for axes, picture in zip(whole.subplots(1, len(parts)), pictures, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.axis("off")
    whole.subplots_adjust(0, 0, 1, 1, 0, 0)
    return whole


if __name__ == "__main__":
    main()
