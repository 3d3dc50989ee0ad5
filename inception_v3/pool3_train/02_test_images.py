"""What is on these photos? One command for every classifier of the chapter
========================================================================

You learn: to use a trained classifier on photos of any kind, thousands at once; what TensorFlow 1
did with a frozen graph; what a confidence below which no answer is given can do, and what not; why
photos of the training prove nothing; and how two classifiers are compared on the same photos.

Run, after ``01_retrain.py``, with images or folders of images::

    python inception_v3/pool3_train/02_test_images.py new.jpg my_photos/
    python inception_v3/pool3_train/02_test_images.py --at-least 0.8 --json my_photos/ > all.json
    python inception_v3/pool3_train/02_test_images.py --model models/slim my_photos/
    python inception_v3/pool3_train/02_test_images.py --graph models/pool3/output_graph.pb new.jpg

You should see: the class of each photo and how sure the classifier is of it, in the figure
``photos.png`` and in ``predictions.csv``, too. A folder that has the name of a class, as in
``my_photos/roses/``, is taken for the truth. Then come the accuracy with its interval and a table
of the classes. Without images, the test photos of the training are read.

A file that can't be read is reported, the others go on, and the exit status is 1. With ``--json``
standard output has a JSON array and nothing else.

Time: 9 s for 52 photos on two CPU cores.
"""

import csv
import json
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track

from data.images import encoded, find_images, label_fonts
from models import classifier, inception_v3
from utils.run import ROOT, CourseParser, Run, readable, share

LISTED = 40  # photos in the table on the screen

# %%
# TensorFlow 1's way
# ------------------
# A frozen graph is run in a session. It takes the bytes of a JPEG or PNG file under one name and
# gives the probabilities under another. What they stand for is in a text file beside it, a label a
# line. With the labels of another training every answer would be wrong, and nothing would fail as
# long as there are as many.


class FrozenGraph:
    """A graph of ``01_retrain.py`` or of Google's retrain.py; used like a ``Classifier``."""

    def __init__(self, path: Path, labels: Path, result: str) -> None:
        try:
            text = labels.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise classifier.ModelError(f"--labels: can't read {labels} ({error})") from None
        self.classes = [line for line in text.splitlines() if line.strip()]
        self.about: dict[str, Any] = {}
        needed = ("DecodeJpeg/contents", result)
        graph = inception_v3.read_frozen(path, needed, "--graph")
        self.session, self.result = tf.compat.v1.Session(graph=graph), result

    def probabilities(
        self, paths: Sequence[Path], failed: dict[int, str]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The number of each image file and its probabilities, float32 [classes]."""
        for number, path in enumerate(paths):
            try:
                feed = {"DecodeJpeg/contents:0": encoded(path)}
                (row,) = self.session.run(f"{self.result}:0", feed)
            except (OSError, ValueError, tf.errors.InvalidArgumentError) as error:
                failed[number] = getattr(error, "strerror", None) or str(error)
                continue
            if len(row) != len(self.classes):
                counts = f"{len(row)} probabilities, there are {len(self.classes)} labels"
                raise SystemExit(f"--graph: the graph gives {counts}")
            yield number, row

    def was_trained_on(self, content: bytes) -> bool:
        """Not known."""
        return False


# %%
# "None of these"
# ---------------
# A classifier of flowers calls a dog a flower, too: its probabilities are shares among the classes
# that it knows, and add up to 1 whatever it sees. ``--at-least P`` gives no answer where the
# largest is below P. That keeps back photos between two classes, which are often the mistakes. It
# can't be relied on for photos of something else. Nothing in the training has told the network what
# those look like, so it may be very sure of one. A class "other", with photos of what is likely to
# come, does more.
#
# The truth, where a folder tells it
# ----------------------------------
# Two things make a name differ that looks the same. macOS writes "é" as two characters. Google's
# retrain.py made labels of small letters, with a blank for all but a to z and 0 to 9.


def truth_of(path: Path, classes: Sequence[str]) -> str | None:
    """The class that the file's folder is named after; None if it isn't named after one."""
    name = unicodedata.normalize("NFC", path.resolve().parent.name)
    same = {unicodedata.normalize("NFC", label): label for label in classes}
    return same.get(name) or same.get(re.sub(r"[^a-z0-9]+", " ", name.lower()))


def answers_of(model: Any, paths: Sequence[Path], at_least: float = 0.0) -> list[dict[str, Any]]:
    """An answer for each file, with None for what there is not."""
    failed: dict[int, str] = {}
    rows = model.probabilities(paths, failed)
    shown = track(rows, "Reading", len(paths), console=Console(stderr=True))
    found, answers = dict(shown), []
    for number, path in enumerate(paths):
        row = found.get(number)
        truth, error = truth_of(path, model.classes), failed.get(number)
        guess = None if row is None else model.classes[row.argmax()]
        sure = None if row is None else float(row.max())
        label = guess if guess and sure >= at_least else None
        answer = {"file": str(path), "class": label, "guess": guess, "confidence": sure}
        answer |= {"truth": truth, "right": guess == truth if guess and truth else None}
        answer["trained_on"] = bool(guess) and model.was_trained_on(path.read_bytes())
        each = None if row is None else dict(zip(model.classes, row.tolist(), strict=True))
        answers.append(answer | {"error": error, "probabilities": each})
    return answers


# %%
# Which of two is better?
# -----------------------
# Intervals of two accuracies on 50 photos nearly always overlap. But both classifiers saw the same
# photos, and those that both get right, or both wrong, say nothing about which is better. McNemar's
# test looks at the others: if both were equally good, each would win half of them, like a coin.


def compare(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> float:
    """Compare answers of two models to the same photos; p of McNemar's test."""
    pairs = [
        (a, b) for a, b in zip(one, other, strict=True) if None not in (a["right"], b["right"])
    ]
    pairs = [(a["right"], b["right"]) for a, b in pairs if not (a["trained_on"] or b["trained_on"])]
    first, second = np.array(pairs, bool).reshape(-1, 2).T
    p = classifier.mcnemar(first, second)
    print(
        f"On {len(pairs):,} photos: right {first.sum():,} and {second.sum():,} times; "
        f"{(first & ~second).sum():,} only the first, {(second & ~first).sum():,} only the second, "
        f"p = {p:.2g}"
    )
    return p


def report(answers: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, float]:
    """Print the answers and what they are worth; return the metrics."""
    widest = max(len(Path(answer["file"]).name) for answer in answers[:LISTED])
    for answer in answers[:LISTED]:
        said = answer["error"] or answer["class"] or "none of these"
        judged = {True: "right", False: f"is {answer['truth']}", None: ""}[answer["right"]]
        sure = f"{answer['confidence']:.4f}" if answer["guess"] else ""
        print(f"{Path(answer['file']).name:{widest}}  {sure:6}  {said}  {judged}".rstrip())
    if len(answers) > LISTED:
        print(f"… and {len(answers) - LISTED:,} more: all are in predictions.csv")
    read = [answer for answer in answers if answer["guess"]]
    metrics = {"images": len(read), "failed": len(answers) - len(read)}
    metrics["none_of_these"] = sum(answer["class"] is None for answer in read)
    known = [answer for answer in read if answer["truth"]]
    if trained := sum(answer["trained_on"] for answer in read):
        metrics["trained_on"] = trained
        print(
            f"{trained:,} of the photos were in the training, wherever they lie now. What the "
            "network says of those proves nothing, so they are not counted below."
        )
        known = [answer for answer in known if not answer["trained_on"]]
    if known:
        truth = np.array([classes.index(answer["truth"]) for answer in known])
        rows = np.array([[*answer["probabilities"].values()] for answer in known])
        tested = classifier.print_test(truth, rows, classes)
        metrics = {"test_accuracy": tested["accuracy"], "test_images": len(known)} | metrics
        if given := [answer["right"] for answer in known if answer["class"]]:
            metrics["given_accuracy"] = sum(given) / len(given)
            print(f"Of {len(given):,} answers given {sum(given):,} are right.")
    return metrics


def main() -> None:
    parser = CourseParser(__doc__)
    add, pool3 = parser.add_argument, ROOT / "models" / "pool3"
    model, file = pool3 / "output_model.keras", {"type": Path, "metavar": "FILE"}
    add("paths", nargs="*", metavar="IMAGE|FOLDER", help="by default the training's test photos")
    add("--model", **file, default=model, quick=pool3 / "quick" / model.name, help="or its folder")
    add("--graph", **file, help="use this frozen graph, not a Keras model")
    add("--labels", **file, help="of the graph (default: output_labels.txt beside it)")
    add("--final_tensor_name", default="final_result", help="the graph's output")
    add("--against", **file, help="a second model, compared with the first on the same photos")
    add("--at-least", type=share, metavar="P", default=0.0, help="confidence of an answer")
    add("--json", action="store_true", help="print a JSON array, messages to standard error")
    run = Run(parser, __file__)
    args = run.args
    label_fonts()
    try:
        if args.graph:
            labels = args.labels or args.graph.with_name("output_labels.txt")
            trained = FrozenGraph(args.graph, labels, args.final_tensor_name)
        else:
            trained = classifier.load_classifier(args.model)
        against = classifier.load_classifier(args.against) if args.against else None
    except classifier.ModelError as error:
        quick = " --quick" * args.quick
        raise SystemExit(
            f"{error}. To train one: python inception_v3/pool3_train/01_retrain.py{quick}"
        ) from None
    kept = filter(Path.is_file, map(Path, trained.about.get("test_photos", ())))
    paths = list(find_images(args.paths) if args.paths else kept)
    if not paths:
        raise SystemExit("Name images or folders: the training's test photos are not to be found.")

    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        started = time.perf_counter()
        answers = answers_of(trained, paths, args.at_least)
        speed = len(paths) / (time.perf_counter() - started)
        metrics = report(answers, trained.classes) | {"files_a_second": speed}
        if against:
            metrics["p"] = compare(answers, answers_of(against, paths))
        with run.path("predictions.csv").open("w", encoding="utf-8", newline="") as csv_file:
            columns = [*[*answers[0]][:-1], *trained.classes]
            writer = csv.DictWriter(csv_file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(answer | (answer["probabilities"] or {}) for answer in answers)
        wrong = sorted(  # mistakes first, the surest of them before the others
            (answer for answer in answers if answer["guess"]),
            key=lambda answer: (answer["right"] is not False, -answer["confidence"]),
        )
        if wrong:
            said = [
                f"{classifier.shorten(a['class'] or 'none of these')} {a['confidence']:.3f}"
                + (f"\nis {classifier.shorten(a['truth'])}" if a["right"] is False else "")
                for a in wrong
            ]
            files, colours = [Path(a["file"]) for a in wrong], [a["right"] is False for a in wrong]
            run.save_figure(classifier.draw_photos(files, said, colours), "photos")
        weights = trained.about.get("weights", "not known")
        print(f"The network is {readable(args.graph or args.model)}, its weights: {weights}")
        source = ", ".join(args.paths) or "the test photos of the training"
        stand_in = bool(trained.about.get("stand_in"))
        data = {"source": source, "stand_in": stand_in, "test_images": metrics.get("test_images")}
        run.finish(metrics, data=data, weights=weights)
    if args.json:
        print("[\n" + ",\n".join(map(json.dumps, answers)) + "\n]")
    if metrics["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
