"""How well are captchas read? The test
====================================

You learn: what one number for a recogniser has to count, how sure one can be of it, which
characters are taken for which, and whether the recogniser knows when it is wrong.

Run, after ``03_train.py``::

    python captcha_multitask/04_test.py

You should see: 99.8 % of the test captchas read right as a whole, with the range that this
number is good for. ``confusion.png`` shows which characters are mixed up, ``calibration.png``
what a confidence is worth, ``mistakes.png`` and ``successes.png`` the images themselves. All
readings are in ``predictions.csv``, in the run's folder.

Time: 15 seconds for 3,000 images on two CPU cores, 45 for 20,000.
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import confusion_matrix

from data import captchas
from models import captcha
from utils.run import CourseParser, Run, make_parser, positive_int, written_whole
from utils.tfrecord import DatasetError, load_split, read_info

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too
SHOWN = 24  # images in a figure
RECORDS = "python captcha_multitask/02_images_to_tfrecords.py"
BINS = 15  # of confidence, as in Guo et al.
THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
plt.rcParams["text.parse_math"] = False  # "$" may be a character of the alphabet


def flags() -> CourseParser:
    """The flags of this script."""
    parser = make_parser(__doc__)
    add, folder = parser.add_argument, {"type": Path, "metavar": "DIR"}
    records, quick = captchas.FOLDER / "records", captchas.FOLDER / "quick" / "records"
    add("--records", **folder, default=records, quick=quick, help="TFRecords of captchas")
    model, quick = captcha.FOLDER, captcha.FOLDER / "quick"
    add("--model", **folder, default=model, quick=quick, help="a trained recogniser")
    add("--split", choices=("test", "validation"), default="test", help="the images to read")
    add("--batch-size", type=positive_int, default=256, help="images read at a time")
    return parser


# %%
# Every test image, once
# ----------------------
# The test images had no part in the training: not in the weights, not in the choice of the best
# step. They are read in the order of the files, all of them, each once. TensorFlow 1 examples
# often took a few batches from a shuffling queue: some images came twice, others never, and the
# accuracy changed from run to run.
#
# The cross-entropy of a captcha is the sum over its positions, as in the training:
#
# .. math:: -\sum_k \log p_k(\text{the true character}).
#
# A probability can be 0 in 32 bits; like Keras, this takes 10⁻⁷ for anything smaller.


class Scores(NamedTuple):
    """What came out for n images of L characters, in the order of the records.

    Attributes:
        truth, read: places in the alphabet, int [n, L].
        confidence: the probability that the recogniser gives its text, float [n].
        loss: the cross-entropies of a captcha's positions, summed, float [n].
    """

    truth: np.ndarray
    read: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether all characters are right, bool [n]."""
        return (self.truth == self.read).all(axis=1)


def make_decode(about: dict[str, Any], size: tuple[int, int]) -> Callable[[dict[str, Any]], Any]:
    """A function from a batch of features to images of ``size`` (width, height), uint8
    [b, height, width, 3], and classes [b, L]. ``about`` says what size the records have."""

    def decode(features: dict[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        images = captchas.decode_pngs(features["image"], about["height"], about["width"])
        if size != (about["width"], about["height"]):
            images = tf.image.resize(images, size[::-1], antialias=True)
            images = tf.cast(tf.round(images), tf.uint8)
        return images, features["classes"]

    return decode


def score(recogniser: captcha.Recogniser, dataset: tf.data.Dataset) -> Scores:
    """Read all images of ``dataset``: batches of uint8 [n, h, w, 3] and classes [n, L]."""
    parts = []
    for images, truth in track(
        dataset.as_numpy_iterator(), "Reading", total=int(dataset.cardinality())
    ):
        probabilities = recogniser.probabilities(images, len(images))  # [n, L, characters]
        of_truth = np.take_along_axis(probabilities, truth[..., np.newaxis], axis=-1)[..., 0]
        loss = -np.log(np.maximum(of_truth, 1e-7)).sum(axis=1)
        _, confidence = recogniser.texts(probabilities)
        parts.append(Scores(truth, probabilities.argmax(axis=-1), confidence, loss))
    return Scores(*map(np.concatenate, zip(*parts, strict=True)))


# %%
# The honest number, and how sure it is
# -------------------------------------
# A captcha with three of four characters right is a wrong answer. Accuracy by character looks
# better than it is: at 99 % a character, only 0.99⁴ = 96 % of the captchas are right. So the
# number to state is the share of captchas read right as a whole; the others explain it.
#
# If the mistakes fell on the positions independently, the whole would be the product of the
# positions' accuracies. It often is more: an image that is hard at one place is hard at others,
# so the mistakes meet in fewer captchas.
#
# A test is a sample, and another 1,000 images would give another number. The usual
# :math:`\hat p \pm 1.96 \sqrt{\hat p (1 - \hat p) / n}` fails where a recogniser is good: after
# 1,000 right of 1,000 it claims 100 % ± 0. Wilson's interval holds the true shares p for which
# the measured one would not be surprising, :math:`|\hat p - p| \le z \sqrt{p (1 - p) / n}`.
# Solved for p:
#
# .. math:: \frac{\hat p + z^2 / 2n \;\pm\; z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4 n^2}}
#                {1 + z^2 / n}
#
# 1,000 of 1,000 then means 99.6 to 100 %. (E. B. Wilson, *Probable inference, the law of
# succession, and statistical inference*, Journal of the American Statistical Association 22,
# 1927.) It speaks of images like these. It knows nothing of captchas of another site.
#
# The accuracy by character gets no interval: the characters of one image are not independent.


def wilson_interval(right: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share of which ``right`` of ``total`` were seen."""
    z = NormalDist().inv_cdf((1 + level) / 2)  # 1.96
    share = right / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    low = (middle - half) / scale if right else 0.0  # exact where rounding would miss them
    high = (middle + half) / scale if right < total else 1.0
    return low, high


def accuracies(scores: Scores) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The accuracies by name, and the 95 % intervals of those that have one."""
    hits = scores.truth == scores.read  # [n, L]
    right = {"whole_captcha_accuracy": hits.all(axis=1)}
    right |= {f"position_{k + 1}_accuracy": hits[:, k] for k in range(hits.shape[1])}
    values = {name: float(hit.mean()) for name, hit in right.items()}
    intervals = {name: wilson_interval(int(hit.sum()), len(hit)) for name, hit in right.items()}
    return values | {"character_accuracy": float(hits.mean())}, intervals


def print_accuracies(scores: Scores) -> None:
    """The accuracies as a table, and what independent mistakes would give."""
    values, intervals = accuracies(scores)
    table = Table("", "right", "of", "accuracy", "95 % interval", title="Read right")
    for name, value in values.items():
        total = scores.truth.size if name == "character_accuracy" else len(scores.truth)
        low, high = intervals.get(name, (math.nan, math.nan))
        table.add_row(
            name.removesuffix("_accuracy").replace("_", " "),
            f"{round(value * total):,}",
            f"{total:,}",
            f"{value:.2%}",
            f"{low:.2%} to {high:.2%}" if name in intervals else "",
        )
    Console().print(table)
    independent = math.prod(v for name, v in values.items() if name.startswith("position_"))
    print(
        f"With independent mistakes {independent:.2%} of the captchas would be right (the product "
        f"of the positions), measured {values['whole_captcha_accuracy']:.2%}."
    )


# %%
# Which character is taken for which
# ----------------------------------
# Row: what it is; column: what was read. The diagonal, all that went right, is so much larger
# that any colour scale over both would show nothing else. So only the mistakes are coloured.


def show_confusion(scores: Scores, alphabet: str) -> plt.Figure:
    """The confusion matrix over all positions, readable for 2 to some 60 characters."""
    n = len(alphabet)
    counts = confusion_matrix(scores.truth.ravel(), scores.read.ravel(), labels=range(n))
    wrong = np.where(np.eye(n, dtype=bool), np.nan, counts)
    side = max(5.0, n * (0.6 if n <= 16 else 0.28))  # inches
    size = min(11, 72 * side * 0.85 / n / (0.62 * max(2, len(str(counts.max())))))  # points
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    scale = plt.get_cmap("Oranges").with_extremes(bad="#dddddd")
    most = max(1, np.nanmax(wrong))
    axes.imshow(wrong, cmap=scale, vmin=0, vmax=most)
    place = {"ha": "center", "va": "center", "fontsize": size}
    for row, column in np.argwhere(counts):
        dark = row != column and counts[row, column] > 0.6 * most
        axes.text(column, row, counts[row, column], color="white" if dark else "black", **place)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(n), alphabet, family="monospace", fontsize=max(size, 8))
        axis.set_ticks(np.arange(n) - 0.5, minor=True)
    axes.tick_params(top=True, labeltop=n > 16, right=n > 16, labelright=n > 16)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="#cccccc", linewidth=0.4)
    title = f"{counts.sum():,} characters, {np.nansum(wrong):,.0f} of them taken for another"
    axes.set(title=title, xlabel="read as", ylabel="truth")
    return figure


def commonest_mistakes(scores: Scores, alphabet: str, most: int = 5) -> list[tuple[str, str, int]]:
    """The commonest confusions: truth, what was read, how often."""
    wrong = scores.truth != scores.read
    pairs = Counter(zip(scores.truth[wrong], scores.read[wrong], strict=True))
    return [(alphabet[t], alphabet[r], count) for (t, r), count in pairs.most_common(most)]


# %%
# What a confidence is worth
# --------------------------
# The heads give each character a probability; the product over the positions is the confidence
# of the whole text. It is *calibrated* if of all readings with a confidence near 0.8 eight in ten
# are right. Networks tend to be too sure of themselves, since the training rewards a larger
# probability for the truth even where all answers are right already. The expected calibration
# error puts the n readings into 15 bins of equal width and weighs the gaps:
#
# .. math:: \text{ECE} = \sum_b \frac{n_b}{n} \left| \text{accuracy}_b - \text{confidence}_b \right|
#
# (Guo et al., *On calibration of modern neural networks*, 2017, arXiv 1706.04599.) A good
# recogniser has nearly all readings in the last bin, so look at the counts below the diagram:
# a bin with three readings says little, as its interval shows.
#
# In use another question matters more: if answers below a confidence t are refused (ask for
# another captcha), how many are refused, and how many of the others are right? A t to work with
# is chosen with ``--split validation``: chosen here, it would fit these test images too well.


def calibration(
    confidence: np.ndarray, right: np.ndarray, bins: int = BINS
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The expected calibration error, and of each bin ((b - 1)/bins, b/bins] how many readings
    are in it, their mean confidence, how many are right."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=confidence, minlength=bins)
    hits = np.bincount(place, weights=right, minlength=bins).astype(int)
    error = float(np.abs(hits - sums).sum() / len(confidence))  # n_b goes into the bars
    return error, counts, sums / np.maximum(counts, 1), hits


def refusals(
    confidence: np.ndarray, right: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> list[tuple[float, int, int, int]]:
    """For each threshold: itself, readings refused, answered, and right of those answered."""
    kept = [confidence >= threshold for threshold in thresholds]
    return [
        (threshold, int((~k).sum()), int(k.sum()), int(right[k].sum()))
        for threshold, k in zip(thresholds, kept, strict=True)
    ]


def print_refusals(scores: Scores) -> None:
    """The table of what refusing is worth."""
    table = Table("refused below", "refused", "answered", "right", "95 % interval")
    table.title = "If unsure answers are refused"
    for threshold, refused, answered, right in refusals(scores.confidence, scores.right):
        low, high = wilson_interval(right, answered) if answered else (0.0, 1.0)
        table.add_row(
            f"{threshold:g}" if threshold else "none",
            f"{refused / len(scores.right):.2%}",
            f"{answered:,}",
            f"{right / answered:.2%}" if answered else "",
            f"{low:.2%} to {high:.2%}" if answered else "",
        )
    Console().print(table)


def show_calibration(scores: Scores) -> plt.Figure:
    """The reliability diagram with its counts, and the wrong answers against the refused."""
    error, counts, confidence, hits = calibration(scores.confidence, scores.right)
    figure, axes = plt.subplot_mosaic(
        [["reliability", "refusal"], ["counts", "refusal"]],
        figsize=(11, 5),
        height_ratios=(3, 1),
        layout="constrained",
    )
    used = np.flatnonzero(counts)
    accuracy = hits[used] / counts[used]
    ranges = np.array([wilson_interval(int(hits[b]), int(counts[b])) for b in used])  # [used, 2]
    bars = np.abs(ranges.T - accuracy)
    top, below, side = axes["reliability"], axes["counts"], axes["refusal"]
    top.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
    look = {"fmt": "o", "color": BLUE, "capsize": 3, "label": "95 % interval"}
    top.errorbar(confidence[used], accuracy, bars, **look)
    top.set(title=f"Calibration error {error:.4f}", ylabel="share that is right")
    top.legend(loc="lower right")
    below.bar((np.arange(BINS) + 0.5) / BINS, counts, 0.9 / BINS, color=BLUE, log=True)
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.set(xlabel="confidence of the whole text", ylabel="readings")
    below.set(xlim=top.get_xlim(), ylim=(0.5, None))

    order = np.argsort(-scores.confidence, kind="stable")
    sure = scores.confidence[order]
    last = np.append(sure[1:] != sure[:-1], True)  # equal confidences are refused together
    answered = np.arange(1, len(sure) + 1)[last]
    wrong = np.cumsum(~scores.right[order])[last] / answered
    refused = 1 - answered / len(sure)
    side.plot(refused, wrong, color=ORANGE, drawstyle="steps-pre")
    dots = {  # where several thresholds refuse the same readings, the last is shown
        (number / len(sure), 1 - hit / rest): f"{threshold:g}"
        for threshold, number, rest, hit in refusals(scores.confidence, scores.right)
        if rest and threshold
    }
    for place, label in dots.items():
        side.plot(*place, "o", color=ORANGE)
        side.annotate(label, place, (4, 4), textcoords="offset points")
    some = refused[wrong > 0].max(initial=0)  # beyond, all that is answered is right
    side.set(
        title="Refusing answers below a confidence (beside the dots)",
        xlabel="share refused",
        ylabel="share wrong of the answered",
        xlim=(0, min(1.08, max(0.02, 1.3 * some))),
        ylim=(0, 1.08 * max(0.01, wrong.max())),
    )
    for part in axes.values():
        part.grid(alpha=0.3)
    return figure


# %%
# The images themselves
# ---------------------
# No number replaces looking. Mistakes come with the surest first: a wrong answer that the
# recogniser would swear to may be one that you read wrong too, or a false label. Of the
# successes, the first half are the least sure ones, the others drawn by lot.


def read_images(records: Path, split: str, wanted: Collection[int]) -> dict[int, np.ndarray]:
    """The images with these numbers in the order of the records, uint8 [height, width, 3]."""
    files = load_split(records, split, 256, lambda features: features["image"])
    numbered = enumerate(chain.from_iterable(files.as_numpy_iterator()))
    return {i: tf.io.decode_png(png, channels=3).numpy() for i, png in numbered if i in wanted}


def show_readings(
    numbers: Sequence[int], images: dict[int, np.ndarray], scores: Scores, alphabet: str, title: str
) -> plt.Figure:
    """Images with truth, reading and confidence; wrong characters in orange and underlined."""
    height, width, _ = images[numbers[0]].shape
    columns = 4 if width < 4 * height else 2
    rows = -(-len(numbers) // columns)
    inches = 12, rows * (12 / columns * height / width + 0.55) + 0.4
    figure, grid = plt.subplots(rows, columns, figsize=inches, layout="constrained", squeeze=False)
    figure.suptitle(title)
    step = min(0.055, 0.45 / scores.truth.shape[1])  # of the image's width, a character
    for axes in grid.flat:
        axes.axis("off")
    for axes, number in zip(grid.flat, numbers, strict=False):
        axes.imshow(images[number])
        look = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
        write = partial(axes.annotate, **look)  # text, a place on the image's edge, points above
        write("truth", (0, 1), (0, 24), fontsize=9)
        write("read", (0, 1), (0, 9), fontsize=9)
        write(f"{scores.confidence[number]:.4f}", (1, 1), (0, 9), fontsize=9, ha="right")
        pairs = zip(scores.truth[number], scores.read[number], strict=True)
        for k, (truth, read) in enumerate(pairs):
            font = {"family": "monospace", "fontsize": 236 * step, "ha": "center"}
            edge = (0.2 + k * step, 1)
            write(alphabet[truth], edge, (0, 24), **font)
            font |= {"color": ORANGE, "weight": "bold"} if truth != read else {}
            write(alphabet[read], edge, (0, 9), **font)
            if truth != read:
                write("_", edge, (0, 6), **font)
    return figure


def write_predictions(path: Path, scores: Scores, alphabet: str) -> None:
    """Write what was read as CSV: number in the order of the records, truth, prediction,
    confidence."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(("index", "truth", "prediction", "confidence"))
        for index, (truth, read, confidence, _) in enumerate(zip(*scores, strict=True)):
            texts = (captchas.decode_classes(classes, alphabet) for classes in (truth, read))
            rows.writerow((index, *texts, f"{confidence:.6g}"))


# %%
# All together
# ------------
# A recogniser is tested only on texts that it can read: the same alphabet, in the same order, and
# the same length. Images of another size are no obstacle, as in use they come in any size. The
# warp is how strongly captcha bends the characters, weaker since its version 0.7.1.


def open_both(records: Path, model: Path) -> tuple[dict[str, Any], captcha.Recogniser]:
    """What is known of the records, and the recogniser. Raises DatasetError or ModelError where
    one is missing or damaged or they don't fit each other."""
    about = read_info(records)["about"]
    if about.get("kind") != "captcha":
        raise DatasetError(
            f"{records} holds no captchas, but other records: name another folder, --records DIR"
        )
    return about, captcha.load_recogniser(model, about["alphabet"], about["length"])


def main() -> None:
    run = Run(flags(), __file__)
    args = run.args
    try:
        about, recogniser = open_both(args.records, args.model)
        size = about["width"], about["height"]
        decode = make_decode(about, recogniser.size)
        dataset = load_split(args.records, args.split, args.batch_size, decode)
    except (DatasetError, captcha.ModelError) as error:
        quick = " --quick" if args.quick else ""
        raise SystemExit(
            f"{error}\nRecords are written by {RECORDS}{quick}, models by {captcha.TRAIN}{quick}"
        ) from None
    alphabet = recogniser.alphabet
    warp = {"records": about.get("warp"), "model": recogniser.about.get("warp")}
    if size != recogniser.size:
        sizes = "The images are {}×{}, the model takes {}×{}: they are resized."
        print(sizes.format(*size, *recogniser.size))
    if warp["model"] not in ("both", warp["records"]):
        print(
            f"The images have the warp {warp['records']}, the model was trained on "
            f"{warp['model']}: it may read them worse than its own kind."
        )

    scores = score(recogniser, dataset)
    right = scores.right
    write_predictions(run.path("predictions.csv"), scores, alphabet)
    print_accuracies(scores)
    for truth, read, count in commonest_mistakes(scores, alphabet):
        print(f"{truth} was read as {read}: {count:,} times")
    print_refusals(scores)

    by_confidence = np.argsort(scores.confidence, kind="stable")  # the least sure first
    mistakes = [i for i in by_confidence[::-1] if not right[i]][:SHOWN]
    title = f"Mistakes: {len(mistakes)} of {(~right).sum():,}, the surest first"
    if not mistakes:
        print(f"No mistakes in {len(right):,} images; the figure shows the least sure readings.")
        mistakes, title = by_confidence[:SHOWN], "No mistakes; the least sure readings"
    good = [i for i in by_confidence if right[i]]
    rest = np.array(good[SHOWN // 2 :], int)
    by_lot = np.random.default_rng(args.seed).permutation(rest)[: SHOWN - SHOWN // 2]
    good = [*good[: SHOWN // 2], *by_lot]
    images = read_images(args.records, args.split, {*mistakes, *good})
    run.save_figure(show_confusion(scores, alphabet), "confusion")
    run.save_figure(show_calibration(scores), "calibration")
    run.save_figure(show_readings(mistakes, images, scores, alphabet, title), "mistakes")
    if good:
        title = "Read right: the least sure ones, then some drawn by lot"
        run.save_figure(show_readings(good, images, scores, alphabet, title), "successes")
    else:
        print("Not one captcha was read right, so there is no figure of successes.")

    values, intervals = accuracies(scores)
    error, *_ = calibration(scores.confidence, right)
    run.finish(
        values | {f"{args.split}_loss": scores.loss.mean(), "calibration_error": error},
        data={"source": str(args.records), "stand_in": False},
        images=len(right),
        intervals=intervals,
        warp=warp,
    )


if __name__ == "__main__":
    main()
