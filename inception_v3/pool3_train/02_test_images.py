"""Classifying photos with the retrained network
=============================================

You learn: to use a retrained network from its frozen graph, as TensorFlow 1's programs do, and as
a Keras model; to measure it on photos in class folders; and why photos it was trained on prove
nothing.

Run, after ``01_retrain.py``, with images or folders of images::

    python inception_v3/pool3_train/02_test_images.py new.jpg my_photos/
    python inception_v3/pool3_train/02_test_images.py --model models/pool3/output_model.keras

You should see: the class of each photo and its score, as a table, as figures and in
``predictions.csv`` in the run's folder. Where a folder's name is one of the labels, as in
``my_photos/roses/``, it is taken for the truth: then come the accuracy with its range, and a table
of the classes. Without images, the test photos of ``01_retrain.py`` with its default flags are
classified: 48 of 52 right for 600 flower photos.

A file that can't be read is named and the others go on; the exit status is 1 only if none could
be read.

Time: 14 seconds for 52 photos on two CPU cores.
"""

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from data.images import encoded, find_images, label_fonts, load_image
from data.photos import PhotosError, find_photos, scan, split
from models import inception_v3
from utils.run import CourseParser, Run, make_parser, readable, sha256, written_whole

ORANGE = "#d55e00"
FOLDER = Path(inception_v3.__file__).resolve().parent / "pool3"
RETRAIN = "python inception_v3/pool3_train/01_retrain.py"
LISTED = 40  # images in the table on the screen
SHOWN, COLUMNS = 24, 4  # images in a figure
THUMBNAIL = 320  # pixels


def flags() -> CourseParser:
    """The flags of this script; those of Google's label_image.py with dashes, too."""
    parser = make_parser(__doc__)
    add, file = parser.add_argument, {"type": Path, "metavar": "FILE"}
    add(
        "paths",
        nargs="*",
        metavar="IMAGE|FOLDER",
        help="image files, and folders to be searched for them, subfolders included (default: "
        "the test photos of 01_retrain.py)",
    )
    graph, quick = FOLDER / "output_graph.pb", FOLDER / "quick" / "output_graph.pb"
    names = ("--output_graph", "--output-graph")
    add(*names, **file, default=graph, quick=quick, help="the frozen graph of 01_retrain.py")
    names = ("--output_labels", "--output-labels")
    add(*names, **file, help="the labels, one a line (default: output_labels.txt beside the graph)")
    add("--model", **file, help="use this Keras model, output_model.keras, and not the graph")
    names, name = ("--final_tensor_name", "--final-tensor-name"), {"metavar": "NAME"}
    add(*names, **name, help="the graph's output (default: as output.json says, or final_result)")
    return parser


# %%
# Files of a training belong together
# -----------------------------------
# A graph gives one number for each class, in an order that only the labels file knows. With the
# labels of another training every answer is wrong, and nothing fails as long as there are as many.
# So ``01_retrain.py`` writes ``output.json`` with the SHA-256 of each file beside them, and here
# they are compared. Without it, as with files that Google's retrain.py wrote, only the number is.


class Model(NamedTuple):
    """A retrained network's file and what belongs to it.

    Attributes:
        path: the frozen graph or Keras model.
        labels: the classes, in the order of the outputs.
        facts: what ``output.json`` says; empty if there is none.
    """

    path: Path
    labels: list[str]
    facts: dict[str, Any]


def find_model(run: Run) -> Model:
    """The files that the flags name. Raises SystemExit where one is missing or doesn't belong."""
    args = run.args
    path, flag = (args.model, "--model") if args.model else (args.output_graph, "--output_graph")
    path = path.expanduser()
    labels_path = (args.output_labels or path.with_name("output_labels.txt")).expanduser()
    for name, file in ((flag, path), ("--output_labels", labels_path)):
        if not file.is_file():
            quick = " --quick" if args.quick else ""
            raise SystemExit(f"{name}: there is no file {file}. To train one: {RETRAIN}{quick}")
    try:
        lines = labels_path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"--output_labels: can't read {labels_path} ({error})") from error
    labels = [label.removesuffix("\r") for label in lines if label.strip()]
    facts: dict[str, Any] = {}
    if path.with_name("output.json").is_file():
        try:
            facts = dict(json.loads(path.with_name("output.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            print(f"{path.with_name('output.json')} is damaged: it is not used")
    known = facts.get("files", {})
    for file in (path, labels_path):
        digest = known.get(file.name) if file.parent == path.parent else None
        if digest not in (None, sha256(file)):
            raise SystemExit(
                f"{file} is altered, or of another training than what lies beside it (its SHA-256 "
                f"is not the one in output.json). To train again: {RETRAIN}"
            )
    return Model(path, labels, facts)


# %%
# The same way in as in the training
# ----------------------------------
# The graph takes the bytes of a JPEG file and decodes them itself, the Keras model takes pixels.
# Both get the picture as a person sees it, by the same function as in the training
# (``data.images.encoded``): turned upright, transparent places white, WebP and GIF made into PNG.
# A program of your own that hands the graph a telephone's photo as it is, shows it a picture lying
# on its side.


class Picture(NamedTuple):
    """An image that could be read: its file, a JPEG or PNG file with its picture, and its pixels,
    uint8 [height, width, 3]."""

    path: Path
    content: bytes
    pixels: np.ndarray


def read_picture(path: Path) -> Picture:
    """Read an image file. Raises OSError or ValueError, with a sentence."""
    if path.is_dir():
        raise ValueError("no images in this folder")
    content = encoded(path)
    try:
        return Picture(path, content, inception_v3.decode(content).numpy())
    except tf.errors.InvalidArgumentError:
        load_image(content)  # raises with the reason, if Pillow finds it broken too
        raise ValueError("TensorFlow can't decode it") from None


# %%
# From the frozen graph
# ---------------------
# TensorFlow 1's way: a graph, a session, and names to feed and to fetch. ``with`` a session would
# make its graph the default one, and TensorFlow's own functions, such as the decoding above, would
# then add nodes to it instead of computing. ``closing`` only closes the session in the end.
#
# The Keras model is called like a function. Wrapped into ``tf.function`` with sizes left open, it
# is traced once for photos of all sizes.

JPEG = "DecodeJpeg/contents"
Predict = Callable[[Picture], np.ndarray]  # scores [classes]


def open_session(path: Path, result: str) -> tf.compat.v1.Session:
    """A session with the frozen graph of ``path``, whose output is called ``result``."""
    graph = inception_v3.read_frozen(path, (JPEG, result), "--output_graph")
    return tf.compat.v1.Session(graph=graph)


def ask_graph(session: tf.compat.v1.Session, result: str, picture: Picture) -> np.ndarray:
    """The scores that the graph gives to one image, float32 [classes]."""
    return session.run(f"{result}:0", {f"{JPEG}:0": picture.content})[0]


def make_keras(path: Path) -> Predict:
    """A function that asks the Keras model of ``path``. Raises SystemExit if it is no model."""
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)  # runs no code in it
    except Exception as error:  # zip, JSON, HDF5 and Keras raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SystemExit(f"--model: {path} can't be loaded ({reason})") from None
    spec = tf.TensorSpec([1, None, None, 3], tf.uint8)
    function = tf.function(lambda images: model(images, training=False), input_signature=[spec])
    return lambda picture: function(picture.pixels[np.newaxis]).numpy()[0]


def checked(predict: Predict, model: Model) -> Predict:
    """``predict``, with a sentence where the network fails or has not one score for a label."""

    def ask(picture: Picture) -> np.ndarray:
        try:
            scores = predict(picture)
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise SystemExit(f"{model.path} can't be run on {picture.path}: {error}") from None
        if scores.shape != (len(model.labels),):
            raise SystemExit(
                f"{model.path} gives {scores.size} scores and there are {len(model.labels)} "
                "labels: they are not of one training. --output_labels names another file."
            )
        return scores

    return ask


# %%
# The truth, where a folder tells it
# ----------------------------------
# In ``my_photos/roses/12.jpg`` the folder says what is to be seen, if "roses" is a label. Two
# things make a name differ that looks the same: macOS writes "é" as two characters, and Google's
# retrain.py put labels into small letters with a blank for all but a to z and 0 to 9.


def truth_of(path: Path, labels: Sequence[str]) -> str | None:
    """The label that the file's folder is named after; None if it isn't named after one."""
    name = unicodedata.normalize("NFC", path.resolve().parent.name)
    same = {unicodedata.normalize("NFC", label): label for label in labels}
    return same.get(name) or same.get(re.sub(r"[^a-z0-9]+", " ", name.lower()))


class Answer(NamedTuple):
    """What was found: the file, scores [classes] in the order of the labels, and the truth, a
    place among the labels, None where it isn't known."""

    path: Path
    scores: np.ndarray
    truth: int | None

    @property
    def best(self) -> int:
        """The place of the highest score."""
        return int(self.scores.argmax())

    @property
    def wrong(self) -> bool:
        """True if the truth is known, and another."""
        return self.truth not in (None, self.best)


Shown = list[tuple[Answer, np.ndarray]]  # answers with thumbnails, uint8 [h, w, 3]


class Found(NamedTuple):
    """What came out for many files: an answer for each that could be read, the reason for each
    other; for the figures ``SHOWN`` answers spread evenly over all, and the surest wrong ones."""

    answers: list[Answer]
    failed: dict[Path, str]
    some: Shown
    mistakes: Shown


def classify_all(predict: Predict, paths: Sequence[Path], labels: Sequence[str]) -> Found:
    """Classify image files."""
    found = Found([], {}, [], [])
    spread = set(np.linspace(0, len(paths) - 1, SHOWN).round().astype(int))
    for number, path in enumerate(track(paths, "Looking", disable=len(paths) < SHOWN)):
        try:
            picture = read_picture(path)
        except (OSError, ValueError) as error:
            found.failed[path] = getattr(error, "strerror", None) or str(error)
            continue
        truth = truth_of(path, labels)
        place = None if truth is None else labels.index(truth)
        answer = Answer(path, predict(picture), place)
        found.answers.append(answer)
        small = Image.fromarray(picture.pixels)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        if number in spread:
            found.some.append((answer, np.asarray(small)))
        if answer.wrong:
            found.mistakes.append((answer, np.asarray(small)))
            found.mistakes.sort(key=lambda shown: -shown[0].scores.max())
            del found.mistakes[SHOWN:]
    return found


# %%
# How good, and how sure that is
# ------------------------------
# The accuracy is the share of photos whose highest score is the truth's. n photos are a sample, so
# it comes with Wilson's 95 % interval, which holds the true shares for which such a sample would
# not be surprising; it doesn't fail near 100 %, as ± 1.96 standard deviations do.
#
# One number hides which class suffers. Of those said to be roses, how many are (precision)? Of
# the roses, how many were found (recall)? F1 is the harmonic mean of the two.
#
# All of this holds only for photos that the training never saw. On its own training photos a
# network is right far more often than on any other; so photos of the folder that it was trained
# on are announced, and the accuracy isn't called a test accuracy then.


def measure(answers: Sequence[Answer], labels: Sequence[str]) -> dict[str, Any]:
    """Of the answers whose truth is known: how many, how many right, the interval, and precision,
    recall, F1 and number of photos for each class, each [classes]."""
    known = [answer for answer in answers if answer.truth is not None]
    truth, best = [a.truth for a in known], [a.best for a in known]
    right = sum(t == b for t, b in zip(truth, best, strict=True))
    interval = binomtest(right, len(known)).proportion_ci(method="wilson")
    table = precision_recall_fscore_support(
        truth, best, labels=range(len(labels)), zero_division=np.nan
    )
    return {"photos": len(known), "right": right, "interval": list(interval), "classes": table}


def print_measures(found: Mapping[str, Any], labels: Sequence[str]) -> None:
    """The accuracy with its range, and the table of the classes."""
    table = Table("class", "photos", "precision", "recall", "F1", title="By class")
    rows = zip(labels, *found["classes"], strict=True)
    for label, precision, recall, f1, photos in rows:
        shares = ("" if np.isnan(x) else f"{x:.1%}" for x in (precision, recall, f1))
        table.add_row(escape(label), f"{photos:,}", *shares)
    Console().print(table)
    low, high = found["interval"]
    share = found["right"] / found["photos"]
    print(
        f"{found['right']:,} of {found['photos']:,} photos right, {share:.1%}; "
        f"95 % interval {low:.1%} to {high:.1%}"
    )


# %%
# Photos of the training
# ----------------------
# The split into training, validation and test goes by each photo's content (``data/photos.py``).
# So the test photos can be told apart here again, from the folder alone.


def find_test_photos(run: Run, facts: Mapping[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    """The test photos of 01_retrain.py, and what ``result.json`` says of the data."""
    named = facts.get("image_dir")
    folder, data = find_photos(Path(named) if named else None, quick=run.args.quick)
    kept = Path(facts.get("settings", {}).get("bottleneck_dir", run.folder))  # where 01 keeps both:
    cache, memory = kept / "scan.json", kept / "split.json"
    per_class = facts.get("per_class", 20 if run.args.quick else None)
    found = scan(folder, cache=cache if kept.is_dir() else None, per_class=per_class)
    shares = (facts.get(f"{name}_percentage", 10) for name in ("validation", "testing"))
    photos = split(found.photos, *shares, memory=memory if memory.is_file() else None)["test"]
    print(f"{len(photos):,} test photos of {folder}, which had no part in the training")
    return [photo.path for photo in photos], facts.get("data", data)


def in_training(paths: Sequence[Path], facts: Mapping[str, Any]) -> int:
    """How many of the files lie in the folder that the network was trained on."""
    if not facts.get("image_dir"):
        return 0
    folder = Path(facts["image_dir"]).expanduser().resolve()
    return sum(path.resolve().is_relative_to(folder) for path in paths)


# %%
# Table, file and figures
# -----------------------


def print_answers(answers: Sequence[Answer], labels: Sequence[str]) -> None:
    """The answers as a table, with the truth where it is known and another."""
    table = Table("image", "class", "score", "the folder says")
    for answer in answers[:LISTED]:
        score = f"{answer.scores[answer.best]:.4f}"
        said = "" if answer.truth is None else "the same"
        said = f"wrong: {labels[answer.truth]}" if answer.wrong else said
        table.add_row(escape(answer.path.name), escape(labels[answer.best]), score, escape(said))
    Console().print(table)
    if len(answers) > LISTED:
        print(f"… and {len(answers) - LISTED:,} more images: all are in predictions.csv")


def write_answers(
    path: Path, answers: Sequence[Answer], labels: Sequence[str], failed: Mapping[Path, str]
) -> None:
    """Write the answers as CSV, a line for each file, with the scores of all classes at the end."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as f:
        rows = csv.writer(f)
        scores = [f"score of {label}" for label in labels]
        rows.writerow(("file", "class", "score", "truth", "right", "error", *scores))
        for answer in answers:
            known = answer.truth is not None
            said = (labels[answer.truth], int(not answer.wrong)) if known else ("", "")
            numbers = [f"{score:.6g}" for score in answer.scores]
            first = (answer.path, labels[answer.best], numbers[answer.best])
            rows.writerow((*first, *said, "", *numbers))
        rows.writerows((file, "", "", "", "", error) for file, error in failed.items())


def shorten(text: str, most: int = 28) -> str:
    """A text of at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def show_answers(shown: Shown, labels: Sequence[str], title: str) -> plt.Figure:
    """Photos with class and score; wrong ones in orange, with the truth."""
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (3 * max(columns, 2), 2.7 * rows + 0.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title)
    for axes in grid.flat:
        axes.axis("off")
        axes.set_anchor("N")
    for axes, (answer, thumbnail) in zip(grid.flat, shown, strict=False):
        axes.imshow(thumbnail)
        title = f"{shorten(labels[answer.best])}  {answer.scores[answer.best]:.3f}"
        title += f"\nit is: {shorten(labels[answer.truth])}" if answer.wrong else ""
        axes.set_title(title, color=ORANGE if answer.wrong else "black", fontsize=10)
    return figure


# %%
# All together
# ------------


def report(
    run: Run, labels: Sequence[str], found: Found, trained_on: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Print and save what came out; the metrics, and what else ``result.json`` is to say."""
    answers = found.answers
    if answers:
        print_answers(answers, labels)
    write_answers(run.path("predictions.csv"), answers, labels, found.failed)
    for path, reason in found.failed.items():
        print(f"Can't read {path}: {reason}")
    metrics: dict[str, float] = {"images": len(answers), "failed": len(found.failed)}
    more: dict[str, Any] = {}
    if any(answer.truth is not None for answer in answers):
        measured = measure(answers, labels)
        print_measures(measured, labels)
        name = "accuracy" if trained_on else "test_accuracy"
        metrics = {name: measured["right"] / measured["photos"], **metrics}
        more = {"photos_with_truth": measured["photos"], "interval": measured["interval"]}
    if trained_on:
        print(
            f"{trained_on:,} of the images lie in the folder that this network was trained on. "
            "Many were in the training, and how it does on those says nothing about new photos. "
            "With no image on the command line only the test photos are taken."
        )
    if found.some:
        title = f"{len(found.some)} of {len(answers):,} images, class and score"
        run.save_figure(show_answers(found.some, labels, title), "predictions")
    if len(answers) > SHOWN and found.mistakes:
        title = f"The surest of {sum(answer.wrong for answer in answers):,} mistakes"
        run.save_figure(show_answers(found.mistakes, labels, title), "mistakes")
    return metrics, more


def main() -> None:
    run = Run(flags(), __file__)
    label_fonts()
    model = find_model(run)
    data = {"source": ", ".join(run.args.paths), "stand_in": False}
    if run.args.paths:
        paths = list(find_images(run.args.paths))
        trained_on = in_training(paths, model.facts)
    else:
        trained_on = 0
        try:
            paths, data = find_test_photos(run, model.facts)
        except (PhotosError, OSError) as error:
            raise SystemExit(
                f"Name images or folders. (There are no test photos: {error})"
            ) from None
    if run.args.model:
        found = classify_all(checked(make_keras(model.path), model), paths, model.labels)
    else:
        result = run.args.final_tensor_name or model.facts.get("final_tensor_name", "final_result")
        with closing(open_session(model.path, result)) as session:
            ask = partial(ask_graph, session, result)
            found = classify_all(checked(ask, model), paths, model.labels)
    metrics, more = report(run, model.labels, found, trained_on)
    weights = model.facts.get("weights", "not known")
    print(f"The network is {readable(model.path)}, retrained from the weights: {weights}")
    if "untrained" in weights:
        print(
            "*** Its features come from an UNTRAINED network: no result here is InceptionV3's ***"
        )
    more |= {"model": readable(model.path), "labels": model.labels, "weights": weights}
    run.finish(metrics, data=data, **more)
    if not found.answers:
        raise SystemExit(f"None of the {len(found.failed):,} files could be read.")


if __name__ == "__main__":
    main()
