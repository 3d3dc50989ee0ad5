"""Reading captchas
================

You learn: what lies between a trained network and a program that others can use: images of any
format and size, broken files, thousands at once, an answer that says "not sure", answers for
other programs, and the same network without TensorFlow.

Run, after ``03_train.py``, with images or folders of images::

    python captcha_multitask/05_recognize.py 0427.png my_captchas/
    python captcha_multitask/05_recognize.py --at-least 0.5 --json my_captchas/ > readings.json
    python captcha_multitask/05_recognize.py --export onnx my_captchas/

You should see: the text of each image and how sure the recogniser is of it, compared with the text
that the file's name states, if it does, as ``0427.png`` and ``0427_000123.png`` do. ``04_test.py``
chooses a P for ``--at-least P``. A file that can't be read is reported and the exit status is 1.
With ``--json`` standard output has a JSON array and nothing else.

Time: 5 s for a few images on two CPU cores, 2 s more for 3,000.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import track

from data import captchas
from data.images import find_images
from models import captcha
from utils.figures import picture_grid
from utils.run import CourseParser, Run, readable, share

BATCH_SIZE = 256
FEW, LISTED, SHOWN = 8, 100, 12  # read if none is named, printed, in the figure
NEEDED = {"onnx": ["tf2onnx", "onnx", "onnxruntime"], "tflite": ["ai_edge_litert"]}  # to export
plt.rcParams["text.parse_math"] = False  # "$" may be a character of the alphabet

# %%
# Any file, one size
# ------------------
# The network takes grey pixels of one size, uint8 [height, width, 1]. ``load_image`` makes them of
# whatever a file holds: colour, transparent, with a palette, 16 bits a channel, several frames,
# lying on its side. A captcha twice as large is shrunk and read as well. One of other proportions
# is squeezed, and then has letters such as the model never saw.
#
# Loading fails for one image at a time. The reason takes the place of the pixels.


def load(path: Path, size: tuple[int, int]) -> np.ndarray | str:
    """The pixels of an image file, or why there are none."""
    if path.is_dir():
        return "no images in this folder"
    try:
        return captchas.load_image(path, size)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error) or repr(error)


# %%
# A batch at a time
# -----------------
# A hundred thousand images don't fit into memory, and reading them one at a time is slow. So they
# are read in batches. Where the confidence is below ``--at-least``, ``text`` is None. ``guess`` has
# the likeliest text.

Answer = dict[str, Any]  # with None for what there is not


def read_all(
    recogniser: captcha.Recogniser, paths: Sequence[Path], at_least: float
) -> tuple[list[Answer], np.ndarray]:
    """The answers to all ``paths``, and the pixels of the first images, uint8 [n, h, w, 1]."""
    answers, first = [], []
    batches = [paths[i : i + BATCH_SIZE] for i in range(0, len(paths), BATCH_SIZE)]
    for batch in track(batches, "Reading", console=Console(stderr=True)):
        loaded = [load(path, recogniser.size) for path in batch]
        images = np.array([pixels for pixels in loaded if not isinstance(pixels, str)])
        first += [*images[: BATCH_SIZE - len(first)]]
        probabilities = recogniser.probabilities(images)  # [n, length, characters]
        texts, confidences = recogniser.texts(probabilities)
        best = probabilities.max(axis=-1).tolist()  # of each character
        read = zip(texts, confidences.tolist(), best, strict=True)
        for path, pixels in zip(batch, loaded, strict=True):
            error = pixels if isinstance(pixels, str) else None
            guess, confidence, each = (None, None, None) if error else next(read)
            text = guess if guess and confidence >= at_least else None
            label = captchas.label_of(path)
            if len(label) != recogniser.length or not set(label) <= set(recogniser.alphabet):
                label = None  # the name is no text of this recogniser's
            correct = text == label if text and label else None
            answer = {"file": str(path), "text": text, "guess": guess, "confidence": confidence}
            answer |= {"probabilities": each, "label": label, "correct": correct}
            answers.append(answer | {"error": error})
    return answers, np.array(first)


# %%
# Answers for people and for programs
# -----------------------------------
# People get lines and a figure. Programs get JSON, an answer a line, in ASCII so that any file name
# gets through any console.


def report(answers: Sequence[Answer]) -> dict[str, float]:
    """Print the answers and their counts; return the metrics."""
    widest = max(len(Path(answer["file"]).name) for answer in answers[:LISTED])
    for answer in answers[:LISTED]:
        sure = f"{answer['confidence']:.4f}" if answer["guess"] else "not read"
        text = answer["text"] or ("not sure" if answer["guess"] else "")
        judged = {True: "right", False: f"wrong: {answer['label']}", None: ""}[answer["correct"]]
        print(f"{Path(answer['file']).name:{widest}}  {text:8}  {sure}  {judged}")
    if len(answers) > LISTED:
        print(f"… and {len(answers) - LISTED:,} more: all are in readings.json")
    failed = [answer for answer in answers if answer["error"]]
    for answer in failed[:LISTED]:
        print(f"{answer['file']}: {answer['error']}")
    unsure = sum(answer["text"] is None for answer in answers) - len(failed)
    print(f"{len(answers):,} files: {len(failed):,} could not be read, {unsure:,} not sure")
    metrics = {"images": len(answers) - len(failed), "failed": len(failed), "not_sure": unsure}
    if correct := [answer["correct"] for answer in answers if answer["correct"] is not None]:
        print(f"Of {len(correct):,} answers with a text in the name {sum(correct):,} are right.")
        metrics["right"] = sum(correct)
    return metrics


def main() -> None:
    parser = CourseParser(__doc__)
    add = parser.add_argument
    add("paths", nargs="*", metavar="IMAGE|FOLDER", help="by default some that 01 drew")
    model, quick = captcha.FOLDER / "compact", captcha.FOLDER / "compact-quick"
    add("--model", type=Path, metavar="DIR", default=model, quick=quick, help="what 03 saved")
    add("--at-least", type=share, metavar="P", default=0.0, help="confidence of an answer")
    add("--json", action="store_true", help="print a JSON array, messages to standard error")
    add("--export", choices=NEEDED, help="also write the model for use without TensorFlow")
    run = Run(parser, __file__)
    args = run.args
    drawn = captchas.FOLDER / ("quick/images" if args.quick else "images")
    paths = list(find_images(args.paths)) if args.paths else list(find_images([drawn]))[:FEW]
    if not args.paths and not drawn.is_dir():
        raise SystemExit("Name images or folders, or draw some with 01_generate_images.py.")
    if missing := [p for p in NEEDED.get(args.export, ()) if not importlib.util.find_spec(p)]:
        install = "pip install -r requirements-export.txt"
        raise SystemExit(f"--export {args.export} needs {', '.join(missing)}: {install}")
    try:
        recogniser = captcha.load_recogniser(args.model)
    except captcha.ModelError as error:
        raise SystemExit(str(error)) from None

    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        blank = np.zeros((1, *recogniser.size[::-1], 1), np.uint8)
        recogniser.probabilities(blank)  # builds the graph, which takes a second
        started = time.perf_counter()
        answers, images = read_all(recogniser, paths, args.at_least)
        speed = len(paths) / (time.perf_counter() - started)
        metrics = report(answers) | {"files_a_second": speed}
        print(f"{speed:,.0f} files a second")
        lines = "[\n" + ",\n".join(map(json.dumps, answers)) + "\n]\n"
        run.path("readings.json").write_text(lines, encoding="utf-8")
        if len(images):
            read = [answer for answer in answers if answer["guess"]][:SHOWN]
            titles = [f"{a['text'] or 'not sure'} ({a['confidence']:.3f})" for a in read]
            look = {"wrong": [answer["correct"] is False for answer in read], "columns": 4}
            figure = picture_grid(images[:SHOWN], titles, **look, cmap="gray", vmin=0, vmax=255)
            width, height = recogniser.size
            figure.set_size_inches(10, -(-len(read) // 4) * (2.5 * height / width + 0.4))
            run.save_figure(figure, "readings")
        if args.export and len(images):
            # A web service or a telephone needs no TensorFlow. Many libraries read ONNX; LiteRT,
            # once TensorFlow Lite, is for small devices. What Keras wrote is loaded again and reads
            # the same images: its probabilities must be the network's up to rounding.
            path, difference = captcha.export(recogniser, args.export, images)
            told = f"{path.stat().st_size / 1e6:.1f} MB, differs by at most {difference:.1e}"
            print(f"Exported: {readable(path)}, {told} on {len(images):,} of these images")
        run.finish(metrics, data={"source": ", ".join(args.paths), "stand_in": False})
    if args.json:
        print(lines, end="")
    if metrics["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
