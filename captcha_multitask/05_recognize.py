"""Reading captchas
================

You learn: what lies between a trained network and a program that others can use: images of any
format and size, files that are broken, thousands of them at once, and answers that another
program can read.

Run, after ``03_train.py``, with images or folders of images::

    python captcha_multitask/05_recognize.py 0427.png my_captchas/
    python captcha_multitask/05_recognize.py --json my_captchas/ > readings.json

You should see: the text of each image and how sure the recogniser is of it. Where a file's name
states the text, as ``0427.png`` and ``0427_000123.png`` do, it is compared.

``--json`` prints a JSON array and nothing else to standard output, messages go to standard
error. A file that can't be read is reported and the others go on; the exit status is then 1. It
is 0 if every image was read, rightly or wrongly.

Time: 10 seconds for a few images on two CPU cores.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from data import captchas
from data.images import find_images
from models import captcha
from utils.run import CourseParser, Run, make_parser, written_whole

ORANGE = "#d55e00"
FEW = 8  # read when no image is named
SHOWN, LISTED, BATCH = 12, 100, 256  # images in the figure, lines in the table, read at a time
STRETCH = 1.25  # a change of the sides' ratio beyond this is worth a warning
plt.rcParams["text.parse_math"] = False  # "$" may be a character of the alphabet


def flags() -> CourseParser:
    """The flags of this script."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="IMAGE|FOLDER",
        help="image files, and folders to be searched for them, subfolders included; with none, "
        "a few of those that 01_generate_images.py drew",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        default=captcha.FOLDER,
        quick=captcha.FOLDER / "quick",
        help="what 03_train.py saved",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array, messages to standard error"
    )
    return parser


# %%
# Which files
# -----------
# A file that is named is read whatever it is called: its content says what format it has. In a
# folder only files with the suffix of an image are taken, sorted, and hidden ones are passed
# over, so a ``captchas.json`` or a system's ``.DS_Store`` among them does no harm. A name that
# doesn't exist stays in the list: it becomes an answer with an error, like a broken image. All
# scripts that read images do so, by ``find_images`` in ``data/images.py``.
#
# One size for all
# ----------------
# The network takes pixels of one size, uint8 [60, 160, 3], and scales them itself.
# ``load_image`` makes such pixels of whatever a file holds: grey, transparent, with a palette,
# 16 bits a channel, several frames, lying on its side. A captcha twice as large is shrunk and
# read as well. One of other proportions is squeezed into the model's, and it then has letters
# such as the model never saw: it is read all the same, with a warning.


def fit(pixels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, str | None]:
    """``pixels``, uint8 [h, w, 3], in the model's ``size`` (width, height), and a warning if
    their proportions are quite different from it."""
    height, width, _ = pixels.shape
    if (width, height) == size:
        return pixels, None
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    ratio = width / height / (size[0] / size[1])
    warning = None
    if max(ratio, 1 / ratio) > STRETCH:
        warning = f"{width}×{height} has other proportions than the model's {size[0]}×{size[1]}"
    return np.asarray(image), warning


def label_in_name(path: Path, recogniser: captcha.Recogniser) -> str | None:
    """The text that the file's name states, None if it can't be one of this recogniser's."""
    label = captchas.label_of(path)
    fits = len(label) == recogniser.length and set(label) <= set(recogniser.alphabet)
    return label if fits else None


# %%
# A batch at a time
# -----------------
# A hundred thousand images don't fit into memory at once, and one at a time a processor is badly
# used: so they are loaded and read in batches. Loading fails for one image at a time, and the
# reason takes the place of the reading.


def read_batch(
    recogniser: captcha.Recogniser, paths: Sequence[Path]
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Read image files.

    Returns:
        An answer for each path: file, text, confidence, characters (each with its probability),
        label, correct, warning, error, None for what there is not; and the pixels of those that
        could be loaded, uint8 [height, width, 3].
    """
    answers, loaded, images = [], [], []
    for path in paths:
        answer = dict.fromkeys(
            ("file", "text", "confidence", "characters", "label", "correct", "warning", "error")
        )
        answers.append(answer | {"file": str(path)})
        try:
            if path.is_dir():
                raise ValueError("no images in this folder")
            pixels, answers[-1]["warning"] = fit(captchas.load_image(path), recogniser.size)
        except (OSError, ValueError, RuntimeError) as error:  # the last from a broken AVIF
            answers[-1]["error"] = getattr(error, "strerror", None) or str(error)
        else:
            images.append(pixels)
            loaded.append((path, answers[-1]))
    if not images:
        return answers, images
    probabilities = recogniser.probabilities(np.stack(images))  # [n, L, characters]
    texts, confidences = recogniser.texts(probabilities)
    of_characters = probabilities.max(axis=-1)  # [n, L]
    for (path, answer), text, confidence, row in zip(
        loaded, texts, confidences, of_characters, strict=True
    ):
        answer["text"], answer["confidence"] = text, float(confidence)
        answer["characters"] = [
            {"character": c, "probability": float(p)} for c, p in zip(text, row, strict=True)
        ]
        answer["label"] = label = label_in_name(path, recogniser)
        answer["correct"] = None if label is None else text == label
    return answers, images


def read_all(
    recogniser: captcha.Recogniser, paths: Sequence[Path], console: Console
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The answers for all paths, and the pixels of the first images, for the figure."""
    answers, first = [], []
    waiting = track(paths, "Reading", console=console)
    while batch := list(islice(waiting, BATCH)):
        more, images = read_batch(recogniser, batch)
        answers += more
        first += images[: SHOWN - len(first)]
    return answers, first


# %%
# Answers for people and for programs
# -----------------------------------
# People get a table and a figure. Programs get JSON, an answer a line: in ASCII, so that any file
# name gets through any console, and with ``null`` for what there is not.


def as_json(answers: Sequence[dict[str, Any]]) -> str:
    """A JSON array with a line for each answer."""
    return "[\n" + ",\n".join(json.dumps(answer) for answer in answers) + "\n]\n"


def make_table(answers: Sequence[dict[str, Any]]) -> Table:
    """The answers, one a row."""
    table = Table("file", "text", "confidence", "the name says")
    for answer in answers:
        judged = {True: "right", False: f"wrong: {answer['label']}", None: ""}[answer["correct"]]
        read = (answer["text"], f"{answer['confidence']:.4f}") if answer["text"] else ("", "")
        row = (Path(answer["file"]).name, *read, judged)
        table.add_row(*map(escape, row))
    return table


def show_answers(images: Sequence[np.ndarray], answers: Sequence[dict[str, Any]]) -> plt.Figure:
    """Images, uint8 [height, width, 3], with what was read; wrong readings in orange."""
    height, width, _ = images[0].shape
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    cell = 3.2 * height / width + 0.7  # inches
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.2 * columns, cell * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, answer in zip(grid.flat, images, answers, strict=False):
        axes.imshow(image)
        wrong = answer["correct"] is False
        title = f"{answer['text']}  ({answer['confidence']:.3f})"
        title += f"\ntruth: {answer['label']}" if wrong else ""
        axes.set_title(title, color=ORANGE if wrong else "black", family="monospace", fontsize=11)
    return figure


# %%
# All together
# ------------


def report(answers: Sequence[dict[str, Any]], console: Console) -> dict[str, float]:
    """Print the table and what is to be said beyond it; return the metrics."""
    console.print(make_table(answers[:LISTED]))
    if len(answers) > LISTED:
        console.print(f"… and {len(answers) - LISTED:,} more: all are in readings.json")
    failed = [a for a in answers if a["error"]]
    for answer in failed[:LISTED]:
        console.print(f"{answer['file']}: {answer['error']}", markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed):,} of {len(answers):,} files could not be read.")
    if warned := [a for a in answers if a["warning"]]:
        console.print(
            f"{len(warned):,} of {len(answers):,} images were squeezed: don't trust the readings. "
            f"First {warned[0]['file']}: {warned[0]['warning']}",
            markup=False,
            soft_wrap=True,
        )
    metrics = {"images": len(answers) - len(failed), "failed": len(failed)}
    labelled = [a["correct"] for a in answers if a["correct"] is not None]
    if labelled:
        right = sum(labelled)
        console.print(f"Of {len(labelled):,} images with a text in the name {right:,} are right.")
        metrics["whole_captcha_accuracy"] = right / len(labelled)
    return metrics


def recognise(run: Run, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Read ``paths`` and leave table, figure and result; return the answers."""
    try:
        recogniser = captcha.load_recogniser(run.args.model)
    except captcha.ModelError as error:
        quick = f"\nFor --quick: {captcha.TRAIN} --quick" if run.args.quick else ""
        raise SystemExit(f"{error}{quick}") from None
    messages = Console(stderr=True)
    answers, images = read_all(recogniser, list(find_images(paths)), messages)
    with written_whole(run.path("readings.json")) as temporary:
        temporary.write_text(as_json(answers), encoding="utf-8")
    metrics = report(answers, messages if run.args.json else Console())
    if images:
        read = [answer for answer in answers if not answer["error"]]
        run.save_figure(show_answers(images, read), "readings")
    run.finish(metrics, data={"source": ", ".join(paths), "stand_in": False})
    return answers


def main() -> None:
    run = Run(flags(), __file__)
    paths = run.args.paths
    if not paths:  # some that were drawn in this chapter
        folder = (
            captchas.FOLDER / "quick" / "images" if run.args.quick else captchas.FOLDER / "images"
        )
        paths = [str(path) for path in find_images([str(folder)])][:FEW]
        if not folder.is_dir():
            raise SystemExit(
                f"Name images or folders. (There are none in {folder} either, where "
                f"01_generate_images.py{' --quick' if run.args.quick else ''} would draw some.)"
            )
    with redirect_stdout(sys.stderr) if run.args.json else nullcontext():
        answers = recognise(run, paths)
    if run.args.json:
        print(as_json(answers), end="")
    if any(answer["error"] for answer in answers):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
