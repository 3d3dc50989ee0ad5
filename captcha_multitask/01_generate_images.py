"""Draw the captchas
=================

You learn: how to make labelled images with a program; how to draw at random in several processes,
stop at any moment, go on, and still get the same images; and why the version of the library that
drew a captcha decides how hard it is to read.

Run::

    python captcha_multitask/01_generate_images.py
    python captcha_multitask/01_generate_images.py --alphabet alnum --style mixed --out my_captchas

You should see: 60,000 images such as ``0427_000123.png`` in ``data/captcha/images``, and
``captchas.json``, which says how they were drawn. ``samples.png`` shows the first 24 of them,
``styles.png`` four texts in every style.

Time: 1 minute on two CPU cores. After Ctrl-C, a kill or a full disk the same command draws the
images that are missing. A larger ``--count`` adds images to those that are there.
"""

import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
from joblib import Parallel, delayed
from PIL import Image
from rich.progress import track

from data.captchas import (
    FOLDER,
    KINDS,
    SETTINGS,
    STYLES,
    Captchas,
    check_drawable,
    look_into,
    parse_alphabet,
    parse_font,
)
from utils.figures import picture_grid
from utils.run import CourseParser, Run, positive_int, readable, sha256, write_json, written_whole

parser = CourseParser(__doc__)
add = parser.add_argument
add("--count", type=positive_int, default=60_000, quick=1_500, help="images in the folder")
add("--alphabet", type=parse_alphabet, default="digits", help="or lower, upper, alnum, or abc123…")
add("--length", type=positive_int, default=4, help="characters in a text")
add("--size", type=positive_int, nargs=2, default=(160, 60), metavar=("WIDTH", "HEIGHT"))
add("--fonts", nargs="+", type=parse_font, default=(), help='files, or names as "DejaVu Serif"')
add("--style", choices=STYLES, default="modern", help="what the images look like")
out, quick = FOLDER / "images", FOLDER / "quick" / "images"
add("--out", type=Path, metavar="DIR", default=out, quick=quick, help="the folder of the images")
run = Run(parser, __file__)
run.to_go_on = "The same command draws the images that are missing."
args = run.args
folder, fonts = args.out.expanduser().resolve(), tuple(args.fonts)

# %%
# Why we draw them
# ----------------
# A network that reads captchas needs tens of thousands of images with their texts, and nobody likes
# to type that many. But a program makes captchas, and we can run it ourselves. It chooses the text
# first, so every text is right. When the network needs more images, we draw more. The limit: it
# learns to read *this* program's images, and has to learn again for other fonts or lines.
#
# Four digits give 10⁴ = 10,000 texts, so every text comes about six times among 60,000 images. No
# two of these look alike, since chance decides everything else. In this order, captcha draws
#
# 1. a light background, and one colour for all characters, dots and the arc. Characters are pasted
#    with the colour's lightness as opacity, so a dark colour makes pale characters;
# 2. for each character a font size of 42, 50 or 56 pixels (and a font, if there are several), and
#    with probability 1/2 a gap before it;
# 3. its turn, by an angle from -30° to 30°;
# 4. its warp: the corners of its box are moved, and the box is stretched to fit;
# 5. how far it overlaps the one before it, up to a quarter of a character's width. This makes it
#    hard to cut captchas into characters, and is why our network reads all of them at once;
# 6. 30 dots and an arc. At last the whole image is smoothed.
#
# A font shows an empty box for each character that it lacks. No network can tell boxes apart, so
# ``check_drawable`` refuses such fonts.

width, height = args.size
captchas = Captchas(args.alphabet, args.length, width, height, fonts, args.style, args.seed)
try:
    check_drawable(captchas)
except ValueError as error:
    parser.error(str(error))

# %%
# Modern and legacy warp
# ----------------------
# In step 4 each corner moves sideways by a random distance of at most d. For a character w pixels
# wide, with r drawn evenly from 0 to 1, captcha up to version 0.7.0 took
#
# .. math:: d_{\text{legacy}} = w \, (r (b - a) + a), \qquad a = 0.1,\ b = 0.3 .
#
# Version 0.7.1 lost the brackets:
#
# .. math:: d_{\text{modern}} = w \, r (b - a) + a .
#
# The mean of d was 0.2 w and is now 0.1 w. Up and down, where a = 0.2, it was a quarter of the
# height and is now a twentieth. So images of version 0.7.1 are easier to read, and an accuracy says
# little without the version. ``--style legacy`` draws the old ones, ``both`` some of each.
#
# The other styles come closer to what websites show: ``grey``, ``noise`` on every pixel, ``lines``
# across the text, light text on a ``dark`` background. ``mixed`` takes any of them for each image.
#
# A generator of its own for each image
# -------------------------------------
# After the usual ``random.seed(1)`` at the start, image 500 would depend on the 499 before it. Two
# processes that share the work would draw other images than one, and so would a program that goes
# on after a kill. So ``data/captchas.py`` starts each image with a generator of its own,
# ``random.Random(f"{seed}:{number}")``. Image 500 of seed 1 is the same, whoever draws it and when.
# Nothing has to be saved to go on: the missing numbers are the work left. (captcha takes its random
# numbers from ``secrets``, which has no seed. While it draws, our generator takes that place.)


def file_name(number: int) -> str:
    """The text, and a number that keeps the names of equal texts apart: ``0427_000123.png``."""
    return f"{captchas.text(number)}_{number:06}.png"


def draw(number: int) -> None:
    """Draw and write one captcha. Only a whole image gets its name, by a rename at the end."""
    with written_whole(folder / file_name(number)) as temporary:
        temporary.write_bytes(captchas.png(number)[1])


# %%
# Which images are there already
# ------------------------------
# ``captchas.json`` says with which settings a folder was drawn. Nobody could tell images of other
# settings apart later, so a folder that has other settings, or files that aren't ours, is refused.

settings = asdict(captchas) | {"captcha": version("captcha")}
settings["fonts"] = [{"file": Path(font).name, "sha256": sha256(Path(font))} for font in fonts]
try:
    there, left_over = look_into(folder, settings, file_name)
except (OSError, ValueError) as error:
    parser.error(str(error))

# %%
# Drawing in several processes
# ----------------------------
# joblib starts a process for each core and sends it a few numbers at a time until all are drawn.
# Threads would not help: drawing is Python code, and in one process only one thread at a time runs
# Python code. A worker process imports only what ``draw`` needs, which is not TensorFlow.

missing = [number for number in range(args.count) if number not in there]
started = time.perf_counter()
try:
    folder.mkdir(parents=True, exist_ok=True)
    for path in left_over:
        path.unlink(missing_ok=True)
    write_json(folder / SETTINGS, settings)
    drawn = Parallel(n_jobs=-1, return_as="generator_unordered")(delayed(draw)(n) for n in missing)
    for _ in track(drawn, "Drawing", len(missing)):
        pass
except OSError as error:
    raise SystemExit(
        f"Can't write into {folder}: {error.strerror or error}. The images that are there are "
        "whole. Once that is mended, the same command draws the others."
    ) from None
seconds = time.perf_counter() - started
count = len(there.union(missing))
print(f"{count:,} images in {readable(folder)}, {len(missing):,} of them drawn in {seconds:.1f} s")

# %%
# Figures
# -------
# ``samples.png`` shows the first files. The network will hardly read those that you can't read.
# ``styles.png`` has one row for each style. All but ``legacy`` start from the same image.

plt.rcParams["text.parse_math"] = False  # a "$" in a text is a dollar
samples = [folder / file_name(number) for number in range(min(24, args.count))]
texts = [captchas.text(number) for number in range(len(samples))]
figure = picture_grid([Image.open(path) for path in samples], texts, columns=6, cmap="gray")
figure.set_size_inches(10, 3.4)
run.save_figure(figure, "samples")

drawn = [replace(captchas, style=style).draw(n) for style in KINDS for n in range(4)]
titles = [f"{KINDS[i // 4]}: {text}" for i, (text, _) in enumerate(drawn)]
figure = picture_grid([image for _, image in drawn], titles, columns=4, cmap="gray")
figure.set_size_inches(9, 6)
run.save_figure(figure, "styles")

run.finish({"images": count, "images_per_second": len(missing) / seconds})
