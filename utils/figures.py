"""The two kinds of figure that many scripts draw: a grid of pictures, and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


def picture_grid(
    images: Sequence, titles: Sequence = (), columns: int = 8, wrong: Sequence = (), **look: Any
) -> plt.Figure:
    """Draw ``images``, [n, height, width] or [n, height, width, 3], row by row in ``columns``.
    ``titles`` stand above them, in orange where ``wrong`` is true. ``look`` goes to Matplotlib's
    ``imshow``; grey images are drawn dark on white."""
    rows, (height, width) = -(-len(images) // columns), np.shape(images[0])[:2]
    lines = max((str(title).count("\n") + 1 for title in titles), default=0)
    inches = 10.4, rows * (10.4 / columns * height / width + 0.18 * lines)
    figure = plt.figure(figsize=inches, layout="constrained")
    for number, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(image, **{"cmap": "gray_r", **look})
        axes.axis("off")
        if len(titles):
            colour = ORANGE if len(wrong) and wrong[number] else "black"
            axes.set_title(str(titles[number]), fontsize=9, color=colour)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, Sequence]], xlabel: str = "epoch", log=False, x: Any = None
) -> plt.Figure:
    """Draw one panel for each entry: its title, and the curves in it by name. A curve has one value
    for each of ``x``, by default 1, 2, …; ``log`` makes y logarithmic."""
    size = 5 * len(panels), 3.8
    figure, row = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (title, lines) in zip(row.flat, panels.items(), strict=True):
        for name, values in lines.items():
            axes.plot(np.arange(1, len(values) + 1) if x is None else x, values, ".-", label=name)
        axes.set(title=title, xlabel=xlabel, yscale="log" if log else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
