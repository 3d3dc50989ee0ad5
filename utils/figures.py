"""The two kinds of figure that many scripts draw: a grid of pictures, and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


def picture_grid(
    images: Sequence[Any],
    titles: Sequence[Any] = (),
    columns: int = 8,
    wrong: Sequence[bool] = (),
    size: float = 1.3,
    **look: Any,
) -> plt.Figure:
    """Draw ``images``, [n, height, width] or [n, height, width, 3], row by row in ``columns``.

    ``titles`` stand above them, in orange where ``wrong`` is true. ``size`` is a picture's width in
    inches. ``look`` goes to Matplotlib's ``imshow``; grey images are drawn dark on white.
    """
    rows = -(-len(images) // columns)
    height = size * (1 + 0.14 * max((str(title).count("\n") + 1 for title in titles), default=0))
    figure, grid = plt.subplots(
        rows, columns, figsize=(columns * size, rows * height), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.axis("off")
    for number, (axes, image) in enumerate(zip(grid.flat, images, strict=False)):
        axes.imshow(image, **{"cmap": "gray_r", **look})
        if len(titles):
            colour = ORANGE if len(wrong) and wrong[number] else "black"
            axes.set_title(str(titles[number]), fontsize=9, color=colour)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str = "epoch",
    log: bool = False,
    x: Sequence[float] | None = None,
) -> plt.Figure:
    """Draw one panel for each entry: its title, and the curves in it by name.

    A curve has one value for each of ``x``, by default 1, 2, …; ``log`` makes y logarithmic.
    """
    figure, row = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 3.8), squeeze=False, layout="constrained"
    )
    for axes, (title, lines) in zip(row.flat, panels.items(), strict=True):
        for name, values in lines.items():
            axes.plot(np.arange(1, len(values) + 1) if x is None else x, values, ".-", label=name)
        axes.set(title=title, xlabel=xlabel)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
