"""Reading scalars, histograms and distributions
=============================================

You learn: to tell from TensorBoard's Scalars, Histograms and Distributions tabs what happens to
a network's weights and activations. Nine tensors change over the steps in known ways: one as it
should be, eight as they are when something is wrong.

Run::

    python tensorboard_demos/02_variable_analysis.py

You should see: a table with the mean, standard deviation, maximum and minimum of each tensor at
the first and the last step, which agree with their formulas to 0.002, and two figures,
``distributions.png`` and ``histograms.png``, that are the key to the two tabs.

Time: 9 s on two CPU cores, half of it spent importing TensorFlow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import erf, exp, log, pi, sqrt, tanh
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from utils.run import Run, make_parser, positive_int
from utils.summary import variable_summaries

parser = make_parser(__doc__)
parser.add_argument(
    "--steps", type=positive_int, default=50, quick=10, help="steps over which the tensors change"
)
run = Run(parser, __file__)
args = run.args

# %%
# The summaries
# -------------
# ``variable_summaries(name, value, step)`` from ``utils/summary.py`` is what this course uses
# for any tensor worth watching. It writes four numbers and a histogram:
#
# .. math::
#
#    \text{mean} = \frac{1}{n}\sum_i v_i, \qquad
#    \text{stddev} = \sqrt{\frac{1}{n}\sum_i (v_i - \text{mean})^2}, \qquad \max_i v_i, \qquad
#    \min_i v_i .
#
# In TensorFlow 1 each was an operation in the graph, with ``tf.summary.merge_all`` to collect
# them and a ``FileWriter`` to write what ``session.run`` gave. Now they are calls that write at
# once to the writer in use.

# %%
# Values without chance
# ---------------------
# To check what is written, the tensors must have known statistics. Instead of drawing random
# numbers we take evenly spaced quantiles, so that any 1,000 values follow their distribution as
# closely as 1,000 values can. ``BELL`` follows the normal distribution, with mean 0 and standard
# deviation 1 exactly, and ends at ±3.29; ``FLAT`` is even between -1 and 1.

COUNT, UNITS = 1000, 20  # values in each tensor; columns of the weight matrix


def bell(count: int) -> np.ndarray:
    """``count`` quantiles of the normal distribution, scaled to standard deviation 1."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
    return np.array(quantiles) / np.std(quantiles)  # [count], ascending


BELL = bell(COUNT)  # [1000]
COLUMN = bell(COUNT // UNITS)  # [50]
HALF = bell(COUNT // 2)  # [500]
FLAT = (np.arange(COUNT) + 0.5) / COUNT * 2 - 1  # [1000]
rng = np.random.default_rng(args.seed)
# A weight matrix of 50 inputs and 20 units. Each column holds the same 50 values in another
# order, so that each unit's weights have the same statistics.
MATRIX = np.stack([rng.permutation(COLUMN) for _ in range(UNITS)], axis=1)  # [50, 20]

# %%
# Nine ways to change
# -------------------
# ``progress`` runs from 0 at the first step to 1 at the last. Beside the values of each tensor
# stands its formula for mean, standard deviation, maximum and minimum, and what to learn from it.
#
# Three of the formulas are worth a line. With φ and Φ the density and the distribution function
# of the normal distribution:
#
# *Dead units.* When k of 20 columns are zero, the mean of the squares is that of the others times
# 1 - k/20, hence the standard deviation √(1 - k/20). Maximum and minimum see nothing until the
# last column is gone.
#
# *Stuck activations.* max(0, z - a) for a normal z is the rectified normal distribution. A share
# Φ(a) of it is zero, and
#
# .. math:: E = \varphi(a) - a\,\Phi(-a), \qquad
#           E_2 = (1 + a^2)\,\Phi(-a) - a\,\varphi(a), \qquad
#           \text{stddev} = \sqrt{E_2 - E^2} .
#
# *Saturation.* For u even between -1 and 1, the mean of tanh²(g u) is 1 - tanh(g)/g.

Statistics = tuple[float, float, float, float]  # mean, standard deviation, maximum, minimum
# The largest values; the smallest are the same with a minus.
PEAK, HALF_PEAK, COLUMN_PEAK, FLAT_PEAK = BELL[-1], HALF[-1], COLUMN[-1], FLAT[-1]


@dataclass(frozen=True)
class Case:
    """A tensor that changes, with what it shows."""

    name: str  # the tags begin with it
    title: str
    values: Callable[[float], np.ndarray]  # progress to the tensor
    expected: Callable[[float], Statistics]  # progress to the statistics by formula
    bands: str  # what the Distributions tab shows
    hills: str  # what the Histograms tab shows
    meaning: str  # what it tells of a training


def dead_units(progress: float) -> np.ndarray:
    """MATRIX with its first columns zero: none at the start, all at the end."""
    alive = np.arange(UNITS) >= round(progress * UNITS)
    return MATRIX * alive  # [50, 20]


def dead_units_expected(progress: float) -> Statistics:
    alive = 1 - round(progress * UNITS) / UNITS
    peak = COLUMN_PEAK if alive > 0 else 0.0
    return 0.0, sqrt(alive), peak, 0.0 - peak


def stuck_expected(progress: float) -> Statistics:
    a = 2.5 * progress - 0.5
    density, above = exp(-a * a / 2) / sqrt(2 * pi), 0.5 - erf(a / sqrt(2)) / 2
    mean = density - a * above
    return mean, sqrt((1 + a * a) * above - a * density - mean**2), PEAK - a, 0.0


def saturating_expected(progress: float) -> Statistics:
    gain = 0.5 * 40**progress
    peak = tanh(gain * FLAT_PEAK)
    return 0.0, sqrt(1 - tanh(gain) / gain), peak, -peak


def spread(deviation: Callable[[float], float]) -> dict[str, Callable]:
    """A bell around 0 whose standard deviation follows ``deviation``: values and formula."""
    return {
        "values": lambda p: BELL * deviation(p),
        "expected": lambda p: (0.0, deviation(p), PEAK * deviation(p), -PEAK * deviation(p)),
    }


CASES = (
    Case(
        "1_steady",
        "1 steady",
        **spread(lambda p: 0.1 * (1 + 0.2 * sqrt(p))),
        bands="bands widen a little, then run level",
        hills="the same hill, a little broader",
        meaning="healthy: weights settle as learning slows",
    ),
    Case(
        "2_drifting",
        "2 drifting mean",
        values=lambda p: BELL + 4 * p,
        expected=lambda p: (4 * p, 1.0, PEAK + 4 * p, 4 * p - PEAK),
        bands="all bands climb together, widths stay",
        hills="the hill walks, its shape stays",
        meaning="a bias makes up for inputs that aren't centred",
    ),
    Case(
        "3_widening",
        "3 widening",
        **spread(lambda p: 0.5 + 2 * p),
        bands="bands fan out",
        hills="the hill sinks and broadens",
        meaning="weights grow without limit: try weight decay",
    ),
    Case(
        "4_narrowing",
        "4 narrowing",
        **spread(lambda p: exp(-3 * p)),
        bands="bands meet in a point",
        hills="the hill becomes a needle",
        meaning="weight decay outweighs what is learned",
    ),
    Case(
        "5_dead_units",
        "5 dead units (weights)",
        values=dead_units,
        expected=dead_units_expected,
        bands="inner bands fall to 0, max and min stay",
        hills="a needle grows at 0, the rest sinks",
        meaning="columns go to zero: units no longer used",
    ),
    Case(
        "6_stuck_at_zero",
        "6 stuck at zero (ReLU outputs)",
        values=lambda p: np.maximum(BELL - (2.5 * p - 0.5), 0),
        expected=stuck_expected,
        bands="band after band lies down on 0",
        hills="a needle at 0, one tail that fades",
        meaning="dying ReLUs: learning rate or bias too far off",
    ),
    Case(
        "7_saturating",
        "7 saturating (tanh outputs)",
        values=lambda p: np.tanh(0.5 * 40**p * FLAT),
        expected=saturating_expected,
        bands="innermost band fills all from -1 to 1",
        hills="a plain turns into two walls at -1 and 1",
        meaning="gradients vanish: smaller start or normalise",
    ),
    Case(
        "8_splitting",
        "8 splitting in two",
        values=lambda p: np.concatenate([HALF - 2 * p, HALF + 2 * p]),
        expected=lambda p: (0.0, sqrt(1 + 4 * p * p), HALF_PEAK + 2 * p, -HALF_PEAK - 2 * p),
        bands="innermost band widest: no bell",
        hills="the hill parts in two",
        meaning="two groups, e.g. units for and against a class",
    ),
    Case(
        "9_exploding",
        "9 exploding",
        **spread(lambda p: exp(p * log(1e4))),
        bands="flat for long, then one huge last step",
        hills="needles, until the last slices lie flat",
        meaning="diverges: lower the rate or clip gradients",
    ),
)

# %%
# Writing and checking
# --------------------
# One writer, one tag prefix a tensor. The numbers before the names keep TensorBoard's
# alphabetical order the same as ours. The histogram does not know shapes: a matrix is summarised
# as the list of its values.


def statistics_of(values: np.ndarray) -> Statistics:
    """Mean, standard deviation, maximum and minimum of the values themselves."""
    return values.mean(), values.std(), values.max(), values.min()


steps = np.arange(args.steps)
progress_at = steps / max(args.steps - 1, 1)  # [steps], from 0 to 1
writer = tf.summary.create_file_writer(run.log_dir("variables"))
largest_error = 0.0
with writer.as_default():
    for step, progress in zip(steps, progress_at, strict=True):
        for case in CASES:
            values = case.values(progress)
            variable_summaries(case.name, values, step)
            found, expected = statistics_of(values), case.expected(progress)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3, err_msg=case.name)
            scale = max(1.0, expected[1])
            error = np.max(np.abs(np.subtract(found, expected))) / scale
            largest_error = max(largest_error, error)
writer.close()

table = Table(title="Statistics by formula, first and last step", title_justify="left")
table.add_column("tensor")
for column in ("step", "mean", "stddev", "max", "min"):
    table.add_column(column, justify="right")
for case in CASES:
    for name, index in ((case.title, 0), ("", -1)):
        expected = case.expected(progress_at[index])
        table.add_row(name, str(steps[index]), *(f"{value:.4g}" for value in expected))
Console().print(table)
print(f"largest difference between the tensors and the formulas: {largest_error:.1e}")

# %%
# How to read the Distributions tab
# ---------------------------------
# Steps run to the right, values upwards. The lines are percentiles: the middle one is the median,
# the outermost are maximum and minimum, and between them lie those percentiles that are half a
# standard deviation apart in a normal distribution: 7, 16, 31, 69, 84 and 93 %. So for a bell all
# inner bands have the same width, and bands of unequal width say that it is no bell. A spike of
# equal values shows as bands of no width, as in 5 and 6.

PERCENTILES = [0, 6.68, 15.87, 30.85, 50, 69.15, 84.13, 93.32, 100]

figure, panels = plt.subplots(3, 3, figsize=(12.5, 12), layout="constrained")
for case, axes in zip(CASES, panels.flat, strict=True):
    lines = np.array([np.percentile(case.values(p), PERCENTILES) for p in progress_at])
    for band in range(4):  # from the outermost to the innermost
        axes.fill_between(steps, lines[:, band], lines[:, 8 - band], color="tab:blue", alpha=0.22)
    axes.plot(steps, lines[:, 4], color="black", linewidth=1)
    axes.set_title(case.title, fontweight="bold")
    axes.set(xlabel=f"step\n\n{case.bands}\n→ {case.meaning}\n", ylabel="value")
figure.suptitle("Key to the Distributions tab: percentiles of the values over the steps")
run.save_figure(figure, "distributions")

# %%
# How to read the Histograms tab
# ------------------------------
# Values run to the right, and each step is a slice: the oldest at the back, the newest at the
# front. The height is the number of values in a bin, so each slice has the same area: a hill
# that broadens sinks. All slices share one horizontal axis, and the largest step sets it: in 9
# the last few steps press all that came before into a needle. Where that happens, look at the
# scalars, with the vertical axis set to logarithmic.
#
# The two tabs draw the same data. Distributions is better for seeing when something began,
# Histograms for its shape: that there are two groups in 8 is plain only there. The scalars show
# what both hide: in 5 the standard deviation sinks while maximum and minimum stand still. Read
# the numbers on their axis: the mean of 1 looks wild, and all of it is rounding at 0.0000000001.

SLICES, BINS = 12, 30  # TensorFlow, too, writes 30 bins

figure, panels = plt.subplots(3, 3, figsize=(12.5, 12), layout="constrained")
colours = plt.get_cmap("viridis")(np.linspace(0.85, 0, SLICES))  # pale is old, dark is new
for case, axes in zip(CASES, panels.flat, strict=True):
    slices = [case.values(p) for p in np.linspace(0, 1, SLICES)]
    low, high = min(v.min() for v in slices), max(v.max() for v in slices)
    counts = np.array([np.histogram(v, BINS, (low, high))[0] for v in slices])  # [slices, bins]
    middles = low + (np.arange(BINS) + 0.5) / BINS * (high - low)
    rise = counts.max() / 8  # how far each slice stands above the one before it
    for index, colour in enumerate(colours):
        base = (SLICES - 1 - index) * rise
        axes.fill_between(
            middles, base, base + counts[index], color=colour, ec="white", lw=0.5, zorder=index
        )
    axes.set_title(case.title, fontweight="bold")
    axes.set(xlabel=f"value\n\n{case.hills}\n→ {case.meaning}\n", ylabel="number of values")
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
figure.suptitle("Key to the Histograms tab: one slice a step, the newest in front")
run.save_figure(figure, "histograms")

run.finish({"tensors": len(CASES), "largest_error": largest_error})
