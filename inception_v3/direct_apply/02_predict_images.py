"""What is in the picture? InceptionV3 as it was trained
=====================================================

You learn: to use a trained network as it is, in Keras and in TensorFlow 1's way from a frozen
graph; what its input must look like; and what the probabilities do and do not say.

Run, with images or folders of images (without any, with three photos that Matplotlib and
scikit-learn carry)::

    python inception_v3/direct_apply/02_predict_images.py panda.jpg my_photos/
    python inception_v3/direct_apply/02_predict_images.py --graph-def classify_image_graph_def.pb

You should see: the five likeliest of ImageNet's 1,000 classes for each image, as a table, as
figures with the photos beside their bars, and in ``predictions.csv`` in the run's folder.

The first command needs Keras's weights (96 MB), which are found on this machine or downloaded; the
second Google's frozen graph of 2015, and the words from ``01_id_to_description.py``. With
``--quick`` nothing is downloaded: without the weights the network is untrained, says so, and what
it answers is noise. A file that can't be read is named and the others go on; the exit status is 1
only if none could be read.

Time: 15 seconds for three images on two CPU cores.
"""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from data.images import encoded, find_images, label_fonts, load_image
from data.photos import example_photos
from models import inception_v3
from utils.run import CourseParser, Run, make_parser, positive_int, readable, written_whole

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too
BATCH = 16  # images at a time
LISTED = 20  # images in the table on the screen
ROWS, PAGES = 4, 6  # images in a figure, and figures
THUMBNAIL = 480  # pixels
SIZE = 299  # pixels, width and height of what the network sees
ID_DESC = inception_v3.CACHE / "id_desc.json"


def flags() -> CourseParser:
    """The flags of this script."""
    parser = make_parser(__doc__)
    add, file = parser.add_argument, {"type": Path, "metavar": "FILE"}
    add(
        "paths",
        nargs="*",
        metavar="IMAGE|FOLDER",
        help="image files, and folders to be searched for them, subfolders included",
    )
    inception_v3.add_weights_flag(parser)
    add("--class-index", **file, help="the classes in Keras's order (default: found or fetched)")
    add("--graph-def", **file, help="Google's frozen graph instead of Keras's network")
    quick = inception_v3.CACHE / "quick" / ID_DESC.name
    add("--id-desc", **file, default=ID_DESC, quick=quick, help="the words of the graph's nodes")
    add("--top", type=positive_int, default=5, help="classes to name")
    return parser


# %%
# The same picture for the network as for us
# ------------------------------------------
# TensorFlow decodes JPEG and PNG, and gives the pixels as they lie in the file. Many photos of
# telephones lie on their side in it, with a note (EXIF) to turn them. A PNG may be transparent, and
# what is below the transparency is often black. Then there are CMYK from printing, 16 bits a
# channel, WebP, GIF. ``data.images.encoded`` gives a file back as it is where TensorFlow decodes
# the picture that a person sees, and turns any other into a PNG that it does so with. An image of
# 30,000×30,000 pixels, 2.7 GB unpacked, is refused when its header has been read.


class Picture(NamedTuple):
    """An image that could be read.

    Attributes:
        path: its file.
        content: a JPEG or PNG file with its picture.
        square: float32 [299, 299, 3] from 0 to 255, the picture squeezed into a square.
        thumbnail: uint8 [height, width, 3], for the figure.
    """

    path: Path
    content: bytes
    square: np.ndarray
    thumbnail: np.ndarray


def read_picture(path: Path) -> Picture:
    """Read an image file. Raises OSError or ValueError, with a sentence."""
    if path.is_dir():
        raise ValueError("no images in this folder")
    content = encoded(path)
    try:
        pixels = inception_v3.decode(content)
    except tf.errors.InvalidArgumentError:
        load_image(content)  # raises with the reason, if Pillow finds it broken too
        raise ValueError("TensorFlow can't decode it") from None
    small = Image.fromarray(pixels.numpy())
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    square = inception_v3.resize(pixels, SIZE).numpy()
    return Picture(path, content, square, np.asarray(small))


def read_pictures(paths: Sequence[Path]) -> tuple[list[Picture], dict[Path, str]]:
    """The pictures that could be read, and the reason for each file that couldn't."""
    pictures, failed = [], {}
    for path in paths:
        try:
            pictures.append(read_picture(path))
        except (OSError, ValueError) as error:
            failed[path] = getattr(error, "strerror", None) or str(error)
    return pictures, failed


# %%
# Keras's way
# -----------
# ``keras.applications.InceptionV3`` is the network with its last layer: 1,000 numbers that softmax
# turns into probabilities. It takes a batch of 299×299 pixels, scaled from 0 … 255 to -1 … 1:
#
# .. math:: x = \text{pixel} / 127.5 - 1
#
# This scaling is not in the network. Who forgets it gets answers all the same, bad ones. The
# photo is squeezed into the square, whatever its proportions; a trained network doesn't mind much.

Predict = Callable[[Sequence[Picture]], np.ndarray]  # probabilities [n, outputs]


def make_keras(weights: inception_v3.Weights) -> Predict:
    """Keras's InceptionV3 with its last layer."""
    if weights.path is None:
        keras.utils.set_random_seed(weights.seed)
    model = keras.applications.InceptionV3(weights=None)
    try:
        inception_v3.load_weights(model, weights)
    except SystemExit as error:
        raise SystemExit(f"{error}\n  It must have the last layer, of 1,000 classes.") from None

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3])])
    def classify(squares: tf.Tensor) -> tf.Tensor:
        return model(inception_v3.scale(squares), training=False)

    return lambda pictures: classify(np.stack([p.square for p in pictures])).numpy()


# %%
# TensorFlow 1's way
# ------------------
# A frozen graph brings everything: decoding, resizing and scaling are operations in it, before the
# convolutions. In go the bytes of one JPEG file, at ``DecodeJpeg/contents:0`` (the operation reads
# PNG, too), out come the probabilities, at ``softmax:0``. There is nothing to forget, but these
# names have to be known.
#
# ``import_graph_def`` puts the file's nodes into a graph of ours, and a ``Session`` runs what it
# is asked for. The session must be closed. ``with tf.compat.v1.Session(graph=graph):`` does so,
# but within it the graph is the default one, and whatever TensorFlow is asked to compute becomes a
# node in it instead of a number. So here ``contextlib.closing`` closes it.
#
# The graph was made for one image at a time, ``softmax:0`` has the shape [1, 1008]. And it shrinks
# photos by looking at four pixels for each new one, without averaging over those between: its
# answers differ a little from Keras's for this alone.

JPEG, PROBABILITIES = "DecodeJpeg/contents", "softmax"


def run_frozen(
    session: tf.compat.v1.Session, path: Path, pictures: Sequence[Picture]
) -> np.ndarray:
    """The probabilities that the frozen graph of ``path`` gives, float32 [n, outputs]."""
    rows = []
    for picture in pictures:
        try:
            row = session.run(f"{PROBABILITIES}:0", {f"{JPEG}:0": picture.content})
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise SystemExit(
                f"--graph-def: {path} can't be run on {picture.path}: {error}"
            ) from None
        if row.ndim != 2 or len(row) != 1:
            raise SystemExit(f"--graph-def: {PROBABILITIES} of {path} has the shape {row.shape}")
        rows.append(row)
    return np.concatenate(rows)


# %%
# What the outputs are called
# ---------------------------
# Keras's index 388 and Google's node 169 are both the giant panda: the two networks have the same
# classes in two orders (``01_id_to_description.py`` tells which). So each comes with its own list,
# and with the other's list every answer would be wrong, without any error.


class Name(NamedTuple):
    """What an output stands for."""

    synset: str
    words: str


def read_names(path: Path, what: str) -> dict[int, Name]:
    """The names in Keras's ``imagenet_class_index.json``, ``{"388": ["n02510455",
    "giant_panda"]}``, or in the ``id_desc.json`` of 01, ``{"169": {"synset": …, "description":
    …}}``. Raises SystemExit where neither is in the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = {
            int(output): entry.values() if isinstance(entry, dict) else entry
            for output, entry in content.items()
        }
        names = {output: Name(*map(str, pair)) for output, pair in pairs.items()}
    except OSError as error:
        raise SystemExit(f"{what}: can't read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SystemExit(f"{what}: {path} is no list of names ({error})") from error
    return {output: Name(n.synset, n.words.replace("_", " ")) for output, n in names.items()}


def find_names(run: Run) -> dict[int, Name]:
    """The names for the chosen network; an empty list if they are not to be had."""
    args = run.args
    if args.graph_def is None:
        path = args.class_index or inception_v3.find_file(
            inception_v3.CLASS_INDEX, download=not args.quick
        )
        if path is not None:
            return read_names(path, "--class-index")
    elif args.id_desc.is_file():
        return read_names(args.id_desc, "--id-desc")
    else:
        command = "python inception_v3/direct_apply/01_id_to_description.py"
        print(f"There is no {readable(args.id_desc)}: run {command}{' --quick' * args.quick}")
    print("Without it the outputs have no names, only numbers.")
    return {}


# %%
# What a probability says
# -----------------------
# The 1,000 probabilities add up to 1, so something is always the likeliest, in a photo of a thing
# that is none of the classes, too: there is no output for "something else". In a photo with
# two things in it they share the 1 between them. And the training rewarded probabilities of
# 0.9 for the right class rather than 1 (label smoothing), so a sure answer looks less sure than
# with other networks. Look at the first and the second: a large gap means more than a large
# first.


class Answer(NamedTuple):
    """The likeliest outputs for an image, best first: their numbers and probabilities."""

    path: Path
    outputs: np.ndarray
    probabilities: np.ndarray


def best(path: Path, probabilities: np.ndarray, top: int) -> Answer:
    """The ``top`` likeliest outputs of probabilities [outputs]; of equals the first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return Answer(path, order, probabilities[order])


def classify(
    predict: Predict, paths: Sequence[Path], top: int
) -> tuple[list[Answer], list[np.ndarray], dict[Path, str]]:
    """Read and classify image files, ``BATCH`` at a time.

    Returns:
        An answer for each image that could be read, thumbnails of the first of them, and the
        reason for each file that couldn't be read.
    """
    answers, thumbnails, failed = [], [], {}
    starts = range(0, len(paths), BATCH)
    for start in track(starts, "Looking", disable=len(starts) < 2):
        pictures, more = read_pictures(paths[start : start + BATCH])
        failed |= more
        if pictures:
            rows = predict(pictures)
            answers += [best(p.path, row, top) for p, row in zip(pictures, rows, strict=True)]
        thumbnails += [p.thumbnail for p in pictures][: ROWS * PAGES - len(thumbnails)]
    return answers, thumbnails, failed


# %%
# Table, file and figures
# -----------------------


def words_of(names: dict[int, Name], output: int) -> Name:
    """The name of an output; its number if it has none."""
    return names.get(output, Name("", f"output {output}"))


def print_answers(answers: Sequence[Answer], names: dict[int, Name], output: str) -> None:
    """The answers as a table; ``output`` is what the network's outputs are called."""
    table = Table("image", "probability", output, "synset")
    table.add_column("class", no_wrap=True, overflow="ellipsis")
    for answer in answers[:LISTED]:
        for i, (number, p) in enumerate(zip(answer.outputs, answer.probabilities, strict=True)):
            synset, words = words_of(names, int(number))
            file = "" if i else escape(answer.path.name)
            table.add_row(file, f"{p:.4f}", str(number), synset, escape(words))
        table.add_section()
    Console().print(table)
    if len(answers) > LISTED:
        print(f"… and {len(answers) - LISTED:,} more images: all are in predictions.csv")


def write_answers(
    path: Path, answers: Sequence[Answer], names: dict[int, Name], failed: dict[Path, str]
) -> None:
    """Write the answers as CSV, a line for each class; then the files that couldn't be read."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(("file", "rank", "output", "synset", "class", "probability", "error"))
        for answer in answers:
            pairs = zip(answer.outputs, answer.probabilities, strict=True)
            for rank, (output, p) in enumerate(pairs, start=1):
                name = words_of(names, int(output))
                rows.writerow((answer.path, rank, output, *name, f"{p:.6g}", ""))
        rows.writerows((file, "", "", "", "", "", error) for file, error in failed.items())


def shorten(text: str, most: int) -> str:
    """A text of at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def show_answers(
    answers: Sequence[Answer],
    thumbnails: Sequence[np.ndarray],
    names: dict[int, Name],
    warning: str,
) -> plt.Figure:
    """Each photo, and beside it its classes as bars. ``warning`` stands above all, if any."""
    count = len(answers)
    top = max(len(answer.outputs) for answer in answers)
    size = (10, count * max(2.4, 0.34 * top + 0.5) + 0.6)
    figure, grid = plt.subplots(
        count, 2, figsize=size, width_ratios=(1, 1.5), layout="constrained", squeeze=False
    )
    if warning:
        figure.suptitle(warning, color=ORANGE, weight="bold")
    for (photo, bars), answer, thumbnail in zip(grid, answers, thumbnails, strict=True):
        photo.imshow(thumbnail)
        photo.set_title(shorten(answer.path.name, 40), fontsize=10)
        photo.axis("off")
        places = np.arange(len(answer.outputs))
        bars.barh(places, answer.probabilities, color=BLUE)
        labels = [words_of(names, int(o)).words.split(",")[0] for o in answer.outputs]
        bars.set_yticks(places, [shorten(label, 32) for label in labels])
        bars.invert_yaxis()
        bars.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6))
        for place, p in zip(places, answer.probabilities, strict=True):
            bars.annotate(f"{p:.3f}", (p, place), (4, 0), textcoords="offset points", va="center")
        bars.spines[["top", "right"]].set_visible(False)
    grid[-1, 1].set_xlabel("probability")
    return figure


# %%
# All together
# ------------


def report(
    run: Run,
    answers: Sequence[Answer],
    thumbnails: Sequence[np.ndarray],
    failed: dict[Path, str],
    names: dict[int, Name],
    warning: str,
) -> None:
    """Print and save what came out."""
    if answers:
        print_answers(answers, names, "index" if run.args.graph_def is None else "node")
    write_answers(run.path("predictions.csv"), answers, names, failed)
    for path, reason in failed.items():
        print(f"Can't read {path}: {reason}")
    shown = len(thumbnails)
    for page, start in enumerate(range(0, shown, ROWS), start=1):
        part = slice(start, min(start + ROWS, shown))
        figure = show_answers(answers[part], thumbnails[part], names, warning)
        run.save_figure(figure, f"predictions_{page}" if shown > ROWS else "predictions")
        if not run.args.show:
            plt.close(figure)
    if len(answers) > shown:
        print(f"The figures show the first {shown} of {len(answers):,} images.")


def main() -> None:
    run = Run(flags(), __file__)
    args = run.args
    label_fonts()
    paths = list(find_images(args.paths or example_photos()))
    names = find_names(run)
    if args.graph_def is None:
        weights = inception_v3.find_weights(
            args.weights, top=True, quick=args.quick, seed=args.seed
        )
        answers, thumbnails, failed = classify(make_keras(weights), paths, args.top)
        warning = "UNTRAINED network: these answers are noise" if weights.stand_in else ""
        source, stand_in = weights.source, weights.stand_in
    else:
        path = inception_v3.find_graph_def(args.graph_def)
        published = inception_v3.is_published(path, inception_v3.GRAPH_DEF)
        source = f"{path.name}, {'as Google published it' if published else 'not Google’s own'}"
        graph = inception_v3.read_frozen(path, (JPEG, PROBABILITIES))
        with closing(tf.compat.v1.Session(graph=graph)) as session:
            answers, thumbnails, failed = classify(
                partial(run_frozen, session, path), paths, args.top
            )
        weights, warning, stand_in = None, "", False
    report(run, answers, thumbnails, failed, names, warning)
    if weights is not None:
        inception_v3.warn_unpublished(weights)
    elif not published:
        print(f"Measured with {path.name}, which is not Google's own file.")
    run.finish(
        {"images": len(answers), "failed": len(failed)},
        data={"source": ", ".join(args.paths) or "example photos", "stand_in": stand_in},
        weights=source,
    )
    if not answers:
        raise SystemExit(f"None of the {len(failed):,} files could be read.")


if __name__ == "__main__":
    main()
