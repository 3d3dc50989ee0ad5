"""How well are photos classified? The test, and single photos
===========================================================

You learn: what an accuracy from a few hundred photos is worth, why the accuracy of each class has
to be looked at in two ways, and how to look at what a classifier gets wrong.

Run, after ``02_train_image_classifier.py``::

    python inception_v3/slim_train/03_eval_image_classifier.py
    python inception_v3/slim_train/03_eval_image_classifier.py my_photo.jpg my_folder

You should see: the share of the test photos that are classified right, with the range that this
number is good for, and a table of the classes. After the default training on 600 flower photos 49
of 52 are right, 94.2 % (84.4 to 98.0). ``confusion.png`` shows which classes are taken for which,
``mistakes.png`` the photos. With photos or folders named: the likeliest classes of each photo, and
``photos.png``.

Time: 14 seconds for 52 test photos on two CPU cores.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    confusion_matrix,
    precision_recall_fscore_support,
)
from slim.classifier import FOLDER, TRAIN, Classifier, ModelError, load_classifier
from slim.records import FOLDER as DATA
from slim.records import SPLITS, WRITE, Records

from data.images import encoded, find_images, label_fonts
from models.inception_v3 import decode
from utils.run import CourseParser, Run, make_parser, positive_int, readable, written_whole
from utils.tfrecord import DatasetError

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too
SHOWN = 18  # photos in a figure
SIDE = 240  # pixels of a photo in a figure


def flags() -> CourseParser:
    """The flags of this script."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        metavar="IMAGE|FOLDER",
        help="image files, and folders to be searched for them, subfolders included (default: "
        "the photos of the records)",
    )
    add(
        "--records",
        "--dataset-dir",
        "--dataset_dir",
        type=Path,
        metavar="DIR",
        default=DATA / "records",
        quick=DATA / "quick" / "records",
        help="the data set that 01_images_to_tfrecords.py wrote",
    )
    add(
        "--model",
        type=Path,
        metavar="DIR",
        default=FOLDER,
        quick=FOLDER / "quick",
        help="the classifier that 02_train_image_classifier.py saved",
    )
    add("--split", choices=SPLITS, default="test", help="the photos of the records to classify")
    add("--top", type=positive_int, default=5, help="classes to print of each image named")
    return parser


# %%
# Every photo, once
# -----------------
# slim's ``eval_image_classifier.py`` took ``ceil(photos / batch_size)`` batches from a queue that
# began again at the first photo: of 52 photos in batches of 100, 48 counted twice. Here the
# records are read in order, to their end, one photo at a time, since each has a size of its own.
# The model does the rest: it has the preprocessing of the training's validation inside.


class Scores(NamedTuple):
    """What came out for n photos, in order.

    Attributes:
        truth: the classes, int [n]; -1 where nobody knows.
        probabilities: float [n, classes].
        thumbnails: small versions, uint8 [h, w, 3] each.
    """

    truth: np.ndarray
    probabilities: np.ndarray
    thumbnails: list[np.ndarray]

    @property
    def answers(self) -> np.ndarray:
        """The likeliest class of each photo, int [n]."""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        """Whether the answer is the truth, bool [n]."""
        return self.answers == self.truth

    def among_first(self, k: int) -> np.ndarray:
        """Whether the truth is one of the ``k`` likeliest classes, bool [n]."""
        first = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return (first == self.truth[:, np.newaxis]).any(axis=1)


def score(trained: Classifier, some: Iterator[tuple[bytes, int]], total: int) -> Scores:
    """Classify photos, each a JPEG or PNG file and its class."""
    truth, probabilities, thumbnails = [], [], []
    for file, label in track(some, "Classifying", total=total):
        pixels = decode(file)
        truth.append(label)
        probabilities.append(trained.probabilities(pixels))
        small = Image.fromarray(pixels.numpy())
        small.thumbnail((SIDE, SIDE))
        thumbnails.append(np.asarray(small))
    return Scores(np.array(truth), np.array(probabilities), thumbnails)


def records_of(data: Records, split: str) -> Iterator[tuple[bytes, int]]:
    """The photos of a split, in order, each once."""
    for files, labels in data.batches(split, 32).as_numpy_iterator():
        yield from zip(files, labels.tolist(), strict=True)


# %%
# The number, and how sure it is
# ------------------------------
# A test is a sample: other photos would give another number. Wilson's interval holds the true
# shares for which the measured one would not be surprising. (04_test.py of the captchas derives
# it.) With 52 photos it is some 20 points wide. Two classifiers whose intervals overlap that much
# are not told apart by such a test.
#
# Precision and recall
# --------------------
# "Roses: 90 %" may mean two things. *Recall*: of the photos of roses, 90 % were called roses.
# *Precision*: of the photos called roses, 90 % were roses. A classifier that calls everything a
# rose has a recall of 1 for it, and tells nothing apart. F1 is their harmonic mean, which is small
# as soon as one of the two is:
#
# .. math:: F_1 = \frac{2 \cdot P \cdot R}{P + R}


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of which ``right`` of ``total`` were seen."""
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return float(low), float(high)


def accuracies(scores: Scores) -> dict[str, np.ndarray]:
    """Whether each photo counts as right, bool [n], by the accuracy's name."""
    hits = {"accuracy": scores.right}
    if scores.probabilities.shape[1] > 5:
        hits["top_5_accuracy"] = scores.among_first(5)
    return hits


def print_scores(scores: Scores, classes: Sequence[str], title: str) -> None:
    """The accuracies with their intervals, and the table of the classes."""
    table = Table("", "right", "of", "accuracy", "95 % interval", title=title)
    for name, hit in accuracies(scores).items():
        low, high = interval(int(hit.sum()), len(hit))
        shown = "top 5" if "5" in name else "top 1"
        share = f"{hit.mean():.2%}"
        table.add_row(shown, f"{hit.sum():,}", f"{len(hit):,}", share, f"{low:.2%} to {high:.2%}")
    Console().print(table)
    table = Table("class", "photos", "precision", "recall", "F1")
    for label, (precision, recall, f1, count) in per_class(scores, classes).items():
        ratios = (f"{value:.3f}" if count else "–" for value in (precision, recall, f1))
        table.add_row(escape(label), f"{count:,}", *ratios)
    Console().print(table)


def per_class(scores: Scores, classes: Sequence[str]) -> dict[str, tuple[float, float, float, int]]:
    """Precision, recall, F1 and the number of photos of each class."""
    rows = precision_recall_fscore_support(
        scores.truth, scores.answers, labels=range(len(classes)), zero_division=0
    )
    return {
        label: (float(p), float(r), float(f1), int(n))
        for label, p, r, f1, n in zip(classes, *rows, strict=True)
    }


# %%
# Which class is taken for which, and the photos
# ----------------------------------------------
# No number replaces looking. Mistakes come with the surest first: an answer that the classifier
# would swear to may be one that you give, too, or the folder has a photo that doesn't belong there.


def show_confusion(scores: Scores, classes: Sequence[str]) -> plt.Figure:
    """The confusion matrix: rows are what it is, columns what it was called."""
    n = len(classes)
    side = min(max(4.5, 2 + 0.55 * n), 24)  # inches
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    counts = confusion_matrix(scores.truth, scores.answers, labels=range(n))
    display = ConfusionMatrixDisplay(counts, display_labels=classes)
    display.plot(ax=axes, cmap="Blues", include_values=n <= 30, xticks_rotation=90)
    axes.set(xlabel="called", ylabel="truth")
    axes.set_title(f"{counts.sum():,} photos, {counts.sum() - np.trace(counts):,} called wrongly")
    return figure


def show_photos(
    numbers: Sequence[int], scores: Scores, classes: Sequence[str], title: str
) -> plt.Figure:
    """Photos, each with its answer, the answer's probability, and the truth if that differs."""
    columns = min(6, max(2, len(numbers)))
    rows = -(-len(numbers) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.2 * columns, 2.6 * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, numbers, strict=False):
        axes.imshow(scores.thumbnails[i])
        answer, truth = scores.answers[i], scores.truth[i]
        text = f"{shortened(classes[answer])} {scores.probabilities[i, answer]:.0%}"
        wrong = truth not in (-1, answer)
        if wrong:
            text += f"\nis {shortened(classes[truth])}"
        axes.set_title(text, fontsize=10, color=ORANGE if wrong else "black")
    figure.suptitle(title)
    return figure


def shortened(text: str, most: int = 20) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# %%
# Photos of any kind
# ------------------
# A photo named on the command line goes the way of the records' photos: the file's bytes, or a PNG
# of what a person sees where TensorFlow would decode it otherwise, then the model. If it lies in
# a folder that has the name of a class, that is taken for the truth.


def read_all(paths: Iterable[Path]) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """The photos, as JPEG or PNG files, and of those that are none the reason."""
    files, failed = {}, {}
    for path in paths:
        try:
            files[path] = encoded(path)
            decode(files[path])
        except Exception as error:  # a broken file may raise almost anything in some decoder
            files.pop(path, None)
            failed[path] = getattr(error, "message", str(error))
    return files, failed


def classify_photos(run: Run, trained: Classifier) -> None:
    """What the photos named on the command line are."""
    classes = trained.classes
    files, failed = read_all(dict.fromkeys(find_images(run.args.paths)))
    for path, reason in failed.items():
        print(f"{readable(path)} can't be read: {reason}", file=sys.stderr)
    if not files:
        raise SystemExit("none of the files named is an image that can be read")
    known = {label: i for i, label in enumerate(classes)}
    pairs = ((file, known.get(path.resolve().parent.name, -1)) for path, file in files.items())
    scores = score(trained, pairs, len(files))
    top = min(run.args.top, len(classes))
    for path, row in zip(files, scores.probabilities, strict=True):
        best = ", ".join(f"{classes[i]} {row[i]:.1%}" for i in np.argsort(-row)[:top])
        print(f"{readable(path)}: {best}")
    shown = range(len(files))[:SHOWN]
    title = f"{len(shown)} of {len(files):,} photos" if len(files) > SHOWN else ""
    run.save_figure(show_photos(shown, scores, classes, title), "photos")
    metrics = {"images": len(files), "failed": len(failed)}
    told = scores.truth >= 0
    if told.any():
        judged = Scores(scores.truth[told], scores.probabilities[told], [])
        print_scores(judged, classes, "Where the folder names the truth")
        print("Of photos that the training had, this says nothing about others.")
        metrics["accuracy"] = judged.right.mean()
    run.finish(
        metrics,
        data={"source": "photos named on the command line", "stand_in": False},
        answers={
            str(path): dict(zip(classes, map(float, row), strict=True))
            for path, row in zip(files, scores.probabilities, strict=True)
        },
        weights=trained.about.get("weights"),
    )


# %%
# All together
# ------------


def write_predictions(path: Path, scores: Scores, classes: Sequence[str]) -> None:
    """Truth, answer and the answer's probability of each photo, in the order of the records."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(("index", "truth", "prediction", "probability"))
        for i, (truth, answer) in enumerate(zip(scores.truth, scores.answers, strict=True)):
            probability = scores.probabilities[i, answer]
            rows.writerow((i, classes[truth], classes[answer], f"{probability:.6g}"))


def score_records(run: Run, trained: Classifier) -> None:
    """How well the photos of a split are classified."""
    args, classes = run.args, trained.classes
    data = Records(args.records)
    if data.classes != classes:
        raise DatasetError(
            f"the model knows the classes {', '.join(classes[:10])}, the records hold "
            f"{', '.join(data.classes[:10])}: train a model on these records, or name others"
        )
    total = data.counts.get(args.split, 0)
    scores = score(trained, records_of(data, args.split), total)
    write_predictions(run.path("predictions.csv"), scores, classes)
    print_scores(scores, classes, f"{args.split}: {total:,} photos")
    run.save_figure(show_confusion(scores, classes), "confusion")
    answered = scores.probabilities.max(axis=1)
    by_sureness = np.argsort(-answered, kind="stable")
    wrong = [int(i) for i in by_sureness if not scores.right[i]]
    title = f"{len(wrong[:SHOWN])} of {len(wrong):,} mistakes, the surest first"
    if not wrong:
        print("No photo was called wrongly; the figure shows the least sure answers.")
        wrong, title = by_sureness[::-1].tolist(), "No mistakes; the least sure answers"
    run.save_figure(show_photos(wrong[:SHOWN], scores, classes, title), "mistakes")
    hits = accuracies(scores)
    own = np.take_along_axis(scores.probabilities, scores.truth[:, np.newaxis], axis=1)
    weights = trained.about.get("weights", "")
    print(f"The network's weights before the training: {weights or 'unknown'}.")
    table = {
        label: dict(zip(("precision", "recall", "f1", "images"), row, strict=True))
        for label, row in per_class(scores, classes).items()
    }
    run.finish(
        {f"{args.split}_{name}": hit.mean() for name, hit in hits.items()}
        | {f"{args.split}_loss": -np.log(np.maximum(own, 1e-7)).mean()},
        data=data.source,
        images=total,
        intervals={name: interval(int(hit.sum()), total) for name, hit in hits.items()},
        per_class=table,
        weights=weights,
    )


def main() -> None:
    run = Run(flags(), __file__)
    label_fonts()
    try:
        trained = load_classifier(run.args.model)
        if run.args.paths:
            classify_photos(run, trained)
        else:
            score_records(run, trained)
    except (DatasetError, ModelError) as error:
        quick = " --quick" * run.args.quick
        raise SystemExit(
            f"{error}\nRecords are written by {WRITE}{quick}, models by {TRAIN}{quick}"
        ) from None


if __name__ == "__main__":
    main()
