"""Draw the captchas
=================

You learn: how to make labelled data with a program when there is none to fetch; how to draw at
random in several processes, stop anywhere, go on, and still get the same images to the last
byte; and why the version of the library that drew a captcha decides how hard it is to read.

Run::

    python captcha_multitask/01_generate_images.py

You should see: 60,000 images such as ``0427_000123.png`` in ``data/captcha/images``, and
``captchas.json``, which says how they were drawn. ``samples.png`` shows 24 of them with their
texts, ``warps.png`` the same texts as two versions of the library draw them.

Time: 2 minutes on two CPU cores. The folder is all the state there is: after Ctrl-C, kill -9 or a
full disk the same command goes on with the images that are missing. A larger ``--count`` adds
images to the same folder.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import captcha.image
import matplotlib.pyplot as plt
from joblib import Parallel, delayed
from PIL import Image, ImageFont
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.captchas import FOLDER, MOST_PIXELS, WARPS, Captchas, label_of, parse_alphabet
from utils.run import (
    CourseParser,
    Run,
    make_parser,
    positive_int,
    quoted,
    readable,
    sha256,
    write_json,
    written_whole,
)

SETTINGS = "captchas.json"
TEMPORARY = re.compile(r"\..*\.\d+\.tmp\.(png|json)")  # what written_whole leaves when killed
HARMLESS = {".DS_Store", "Thumbs.db", "desktop.ini"}
CHUNK = 25  # images a worker process draws before it reports
SMALLEST = 16  # pixels; no character can be told from another in less
SAMPLES = (4, 6)  # rows and columns of the figure


def flags() -> CourseParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--count", type=positive_int, default=60_000, quick=1_500, help="images in the folder")
    add("--length", type=positive_int, default=4, help="characters in a text")
    add(
        "--alphabet",
        type=parse_alphabet,
        default="digits",
        help="digits, lower, upper, alnum (all three), or the characters themselves",
    )
    add("--width", type=positive_int, default=160, help="of an image, in pixels")
    add("--height", type=positive_int, default=60, help="of an image, in pixels")
    add("--fonts", nargs="+", metavar="FILE", help="TrueType files (default: the library's own)")
    add(
        "--warp",
        choices=WARPS,
        default="modern",
        help="how strongly characters are bent: as by captcha 0.7.1, up to 0.7.0, or both",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=FOLDER / "images",
        quick=FOLDER / "quick" / "images",
        help="the folder of the images",
    )
    add("--workers", type=positive_int, default=os.cpu_count(), help="processes that draw")
    return parser


# %%
# Why generated data
# ------------------
# A network that reads captchas wants tens of thousands of labelled images, and nobody likes to
# type off so many. But a captcha is made by a program, so we can run that program ourselves: it
# chooses the text first, and the text is the label, right even where nobody could read the
# image. When the network needs more images, we draw more. The limit: it learns to read *this*
# program's images. Another font, another warp, and it has to learn again (``--fonts``,
# ``--warp``).
#
# Four digits give 10⁴ = 10,000 texts, so among 60,000 images every text comes six times, and
# nearly all texts of the test images occur in training too. That is no cheating: the images of a
# text differ, since all else is random too. And the network that follows answers position by
# position, with a head of ten classes for each, not with one of 10,000 texts. With
# ``--alphabet alnum`` there are 62⁴ = 14,776,336 texts, most of which no training sees, but
# still only 62 classes in each position.
#
# What captcha draws at random, in this order:
#
# 1. a light background, and a colour for all characters, dots and the curve. Characters are
#    pasted with the lightness of that colour as their opacity: the darker it is, the fainter
#    they are, while dots and curve keep it in full;
# 2. for each character a font size of 42, 50 or 56 pixels (and a font, if there are several),
#    and with probability 1/2 a gap before it;
# 3. its turn, by an angle from -30° to 30°;
# 4. its warp: each corner of its box is moved, and the box is stretched to fit;
# 5. how far it overlaps the one before: up to a quarter of a character's width. That makes
#    cutting captchas into characters so hard, and is why we read all four at once;
# 6. 30 dots and one arc, and at last the whole image is smoothed.
#
# Modern and legacy warp
# ----------------------
# In step 4 a corner moves across by anything between -d and d. For a character w pixels wide,
# with r uniform in [0, 1], captcha up to 0.7.0 took
#
# .. math:: d_{\text{legacy}} = w \, (r (b - a) + a), \qquad a = 0.1,\ b = 0.3 .
#
# In version 0.7.1, which takes its chances from ``secrets`` instead of ``random``, the brackets
# are gone:
#
# .. math:: d_{\text{modern}} = w \, r (b - a) + a .
#
# On average d was 0.2 w and is 0.1 w. Down, where a = 0.2, it was a quarter of the height and is
# a twentieth. ``warps.png`` shows both. Images of version 0.7.1 are easier: a network trained on
# them read 99.67 % of their kind and 98.67 % of the older one. So the version belongs to any
# accuracy that is told, and ``--warp both`` makes data for a network that is to read either.
#
# A generator of its own for each image
# -------------------------------------
# The usual ``random.seed(1)`` at the start makes image 500 depend on the 499 before it. Two
# processes that share the work would draw other images than one, and a run that goes on after a
# crash other images than one that never crashed. ``data/captchas.py`` instead begins each image
# with ``random.Random(f"{seed}:{index}")``. Image 500 of seed 1 is then the same one, whoever
# draws it and when. Nothing has to be saved to go on: the missing numbers are the work left.
# (captcha 0.7.1 draws from ``secrets``, which can't be seeded at all; for the time of an image
# that generator is put in its place.)


def settings_of(captchas: Captchas) -> dict[str, Any]:
    """What decides how the images look; a font is known by its content, not by its path."""
    return {
        "seed": captchas.seed,
        "alphabet": captchas.alphabet,
        "length": captchas.length,
        "width": captchas.width,
        "height": captchas.height,
        "fonts": [{"file": Path(f).name, "sha256": sha256(Path(f))} for f in captchas.fonts],
        "warp": captchas.warp,
        "captcha": version("captcha"),
    }


def check_drawable(captchas: Captchas) -> None:
    """Raise ValueError, with a sentence, if these captchas can't be drawn or read."""
    size = f"{captchas.width}×{captchas.height}"
    if min(captchas.width, captchas.height) < SMALLEST:
        raise ValueError(
            f"nothing can be read in {size} pixels: take {SMALLEST}×{SMALLEST} or more"
        )
    if captchas.width * captchas.height > MOST_PIXELS:
        raise ValueError(f"{size} pixels are too many for a captcha: at most {MOST_PIXELS:,}")
    longest = captchas.length * max(len(c.encode()) for c in captchas.alphabet)
    if longest > 200:  # file systems allow 255 bytes, and the number takes some
        raise ValueError(f"--length {captchas.length}: the text has to fit into a file's name")
    for path in captchas.fonts or captcha.image.DEFAULT_FONTS:
        try:
            font = ImageFont.truetype(path, 42)
        except OSError as error:
            reason = "no such file" if not Path(path).is_file() else f"no TrueType font ({error})"
            raise ValueError(f"--fonts {path}: {reason}") from None
        box = bytes(font.getmask("\uffff"))  # what fonts show for a character that they lack
        if lacking := [c for c in captchas.alphabet if bytes(font.getmask(c)) == box]:
            raise ValueError(
                f"the font {Path(path).name} has no {''.join(lacking)!r}: they would all look "
                "alike. Name a font that has them with --fonts, or another --alphabet"
            )
    try:
        captchas.png(0)
    except Exception as error:  # whatever the library stumbles over
        raise ValueError(f"the library captcha can't draw these images: {error}") from error


# %%
# Which images are there already
# ------------------------------
# Only a whole image has a final name: it is written under a temporary one and then renamed,
# which file systems do in one step. What a killed process leaves is a temporary file, and those
# are removed. ``captchas.json`` is written first. It keeps images of different settings, which
# could not be told apart later, out of one folder.


def open_folder(folder: Path, captchas: Captchas) -> dict[int, Path]:
    """Make ``folder`` ready for these captchas; return the images in it by their numbers.

    Raises ValueError, with nothing touched, if it was made with other settings or holds files
    that are not ours; OSError if it can't be read or written.
    """
    wanted = settings_of(captchas)
    other = "Name another folder with --out, or remove this one."
    files = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
    left_over = [files.pop(name) for name in list(files) if TEMPORARY.fullmatch(name)]
    for name in HARMLESS & files.keys():
        del files[name]
    if settings_file := files.pop(SETTINGS, None):
        try:
            found = dict(json.loads(settings_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{settings_file} is damaged. {other}") from None
        differing = [
            f"{name} is {found.get(name)!r} there and {value!r} here"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if differing:
            raise ValueError(f"{folder} has other settings: {'; '.join(differing)}. {other}")
    images: dict[int, Path] = {}
    for name, path in files.items():
        number = number_of(path, captchas)
        if settings_file is None or number is None or number in images:
            raise ValueError(f"{folder} holds {name!r}, which is not of these captchas. {other}")
        images[number] = path
    folder.mkdir(parents=True, exist_ok=True)
    for path in left_over:
        path.unlink(missing_ok=True)
    if settings_file is None:
        write_json(folder / SETTINGS, wanted)
    return {n: path for n, path in images.items() if path.stat().st_size}  # a power cut empties


def number_of(path: Path, captchas: Captchas) -> int | None:
    """The number in the name of one of these captchas; None if it is no such name."""
    text, number = label_of(path), path.stem.rpartition("_")[2]
    fits = len(text) == captchas.length and set(text) <= set(captchas.alphabet)
    fits = fits and number.isascii() and number.isdecimal()
    return int(number) if fits and path.name == file_name(text, int(number)) else None


def file_name(text: str, number: int) -> str:
    """``0427_000123.png``: the label, and a number that keeps names of equal texts apart."""
    return f"{text}_{number:06}.png"


# %%
# Drawing in several processes
# ----------------------------
# joblib starts the workers, sends each a few numbers at a time and brings back what the function
# returns. A Python thread would not do: drawing is Python code, and of that only one thread runs
# at a time. Each worker has an interpreter of its own, which imports what the function needs.
# This script imports TensorFlow only when it saves the figures, so the workers never do.


def draw_some(captchas: Captchas, folder: Path, numbers: Iterable[int]) -> int:
    """Draw and write the captchas of these numbers; return how many."""
    count = 0
    for number in numbers:
        text, png = captchas.png(number)
        with written_whole(folder / file_name(text, number)) as temporary:
            temporary.write_bytes(png)
        count += 1
    return count


def draw_missing(captchas: Captchas, folder: Path, count: int, workers: int) -> int:
    """Bring the images in ``folder`` to numbers 0 to ``count`` - 1; return how many were drawn.
    Raises ValueError and OSError as ``open_folder`` does, OSError when the disk is full."""
    there = open_folder(folder, captchas)
    missing = [number for number in range(count) if number not in there]
    chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    parallel = Parallel(workers, return_as="generator_unordered")
    drawn = parallel(delayed(draw_some)(captchas, folder, chunk) for chunk in chunks)
    with Progress(*columns) as progress, closing(drawn):
        bar = progress.add_task("", total=count, completed=count - len(missing))
        for number in drawn:
            progress.update(bar, advance=number)
    return len(missing)


# %%
# Figures
# -------
# ``samples.png`` is made from the files, not from what was just drawn: what is shown is what the
# next script will read. Look for captchas that you can't read yourself. Nobody should expect
# the network to.


def show_samples(paths: list[Path]) -> plt.Figure:
    """The images of these files, each under the text that its name states."""
    figure, axes = plt.subplots(*SAMPLES, figsize=(11, 4.6), layout="constrained")
    for place in axes.flat:
        place.axis("off")
    for place, path in zip(axes.flat, paths, strict=False):
        with Image.open(path) as image:
            place.imshow(image)
        place.set_title(label_of(path), fontsize=10, parse_math=False)
    figure.suptitle("The first images, and their labels from the files' names")
    return figure


def show_warps(captchas: Captchas) -> plt.Figure:
    """The same four texts by either warp."""
    figure, axes = plt.subplots(2, 4, figsize=(11, 2.9), layout="constrained")
    for row, warp, title in (
        (axes[0], "modern", "captcha 0.7.1"),
        (axes[1], "legacy", "up to 0.7.0"),
    ):
        for index, place in enumerate(row):
            text, image = replace(captchas, warp=warp).draw(index)
            place.imshow(image)
            place.set(xticks=[], yticks=[])
            if row is axes[0]:
                place.set_title(text, parse_math=False)
        row[0].set_ylabel(f"{warp}:\n{title}")
    figure.suptitle("The same texts with either warp (all else is drawn at random again)")
    return figure


# %%
# All together
# ------------


def main() -> None:
    parser = flags()
    run = Run(parser, __file__)
    args = run.args
    folder = args.out.expanduser().resolve()
    fonts = tuple(str(Path(font).expanduser().resolve()) for font in args.fonts or ())
    captchas = Captchas(
        args.alphabet, args.length, args.width, args.height, fonts, args.warp, args.seed
    )
    started = time.perf_counter()
    try:
        check_drawable(captchas)
        drawn = draw_missing(captchas, folder, args.count, args.workers)
        seconds = time.perf_counter() - started
        images = open_folder(folder, captchas)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        raise SystemExit(
            f"Can't write into {folder}: {error.strerror or error}. The images that are there are "
            "whole. Once that is mended, the same command draws the others."
        ) from None
    except KeyboardInterrupt:
        print(f"\nStopped. To go on: the same command. The images so far are in {folder}")
        sys.exit(130)
    paths = [images[number] for number in sorted(images)]
    texts = len(args.alphabet) ** args.length
    print(
        f"{len(paths):,} images in {readable(folder)}, of them {drawn:,} drawn now in "
        f"{seconds:.1f} s. Of this alphabet and length there are {texts:,} texts"
        + (f": {len(paths) / texts:.1f} images of each" if len(paths) >= texts else "")
    )
    if len(paths) > args.count:
        print(f"That is more than --count {args.count:,}: an earlier run drew the others")
    run.save_figure(show_samples(paths[: SAMPLES[0] * SAMPLES[1]]), "samples")
    run.save_figure(show_warps(captchas), "warps")
    next_step = ["captcha_multitask/02_images_to_tfrecords.py"] + ["--quick"] * args.quick
    if args.out != parser.get_default("out"):
        next_step += ["--images", folder]
    print(f"Next: {quoted('python', *next_step)}")
    run.finish({"images": len(paths), "images_per_second": drawn / seconds})


if __name__ == "__main__":
    main()
