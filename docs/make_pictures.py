"""Make the pictures of README and docs: ``python docs/make_pictures.py``."""

import json
import os
import pathlib
import sys
import tempfile

from matplotlib import image
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))


def main() -> None:
    """Fit the quickstart and save its range test beside its cycle."""
    import quickstart

    from lightning_tuning import LRRangeTest, OneCycle
    from lightning_tuning.plots import plot_lr_range_test, plot_one_cycle

    test, cycle = LRRangeTest(), OneCycle()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trainer = quickstart.fit(test, cycle)
        print(json.dumps({k: float(v) for k, v in trainer.callback_metrics.items()}))
        os.chdir(ROOT)
    assert test.result is not None
    assert cycle.result is not None
    parts = [plot_lr_range_test(test.result), plot_one_cycle(cycle.result)]
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
