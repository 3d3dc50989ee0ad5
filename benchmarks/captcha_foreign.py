"""Captchas of another program: what does somebody get who brings a folder of their own?

The images are drawn here, without the library captcha: grey, 200×50 pixels, five characters out of
19 in one of two fonts, bent by a wave, with a line through them and speckles. With ``--hard`` each
character has a font of its own out of four, and there are two lines. The commands of the README
then run on them as they stand, several times with another seed, which gives another split, other
initial weights and another order of the images.

    python benchmarks/captcha_foreign.py
    python benchmarks/captcha_foreign.py --count 250 --splits 3 --init models/captcha/compact
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from utils.run import quoted, write_json

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "captcha_multitask"
RESULTS = ROOT / "docs" / "results" / "captcha_multitask"
ALPHABET = "2345678bcdefgmnpwxy"
LENGTH, WIDTH, HEIGHT = 5, 200, 50
FONTS = ("DejaVu Serif", "DejaVu Sans", "DejaVu Sans Mono", "STIXGeneral")


def draw(rng: np.random.Generator, text: str, hard: bool = False) -> Image.Image:
    """One captcha, grey, WIDTH×HEIGHT pixels."""
    image = Image.new("L", (WIDTH, HEIGHT), int(rng.integers(200, 256)))
    pen, ink = ImageDraw.Draw(image), int(rng.integers(0, 90))
    x = float(rng.uniform(8, 25))
    name = FONTS[rng.integers(2)]
    for character in text:
        name = FONTS[rng.integers(len(FONTS))] if hard else name
        font = ImageFont.truetype(font_manager.findfont(name), int(rng.integers(26, 35)))
        pen.text((x, rng.uniform(2, 12)), character, ink, font)
        x += pen.textlength(character, font) + rng.uniform(0, 9)
    for _ in range(2 if hard else 1):
        heights = rng.uniform(8, HEIGHT - 8, 2)
        pen.line((0, heights[0], WIDTH, heights[1]), ink, int(rng.integers(1, 3)))
    pixels = np.asarray(image)
    columns = np.arange(WIDTH)  # a wave moves each column up or down
    moves = rng.uniform(1, 4) * np.sin(columns / rng.uniform(8, 25) + rng.uniform(0, 6.3))
    rows = np.clip(np.arange(HEIGHT)[:, np.newaxis] + moves.round().astype(int), 0, HEIGHT - 1)
    pixels = pixels[rows, columns] + rng.normal(0, 12, (HEIGHT, WIDTH))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def run(script: str, folder: Path, *flags: object) -> dict:
    """Run a script of the chapter; its ``result.json``. SystemExit with its last words if it
    fails."""
    command = [sys.executable, CHAPTER / script, "--run-dir", folder, *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_040, help="images (default: %(default)s)")
    parser.add_argument("--splits", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--hard", action="store_true", help="more fonts and lines")
    parser.add_argument("--init", type=Path, help="a trained model to begin with")
    parser.add_argument("--record", metavar="NAME", help="keep the figures in docs/results")
    parser.add_argument("train", nargs="*", help="after --: more flags for 03_train.py")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="foreign-"))
    try:
        measure(folder, args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, args: argparse.Namespace) -> None:
    images, rng = folder / "images", np.random.default_rng(1)
    images.mkdir()
    while len(list(images.iterdir())) < args.count:
        text = "".join(rng.choice(list(ALPHABET), LENGTH))
        draw(rng, text, args.hard).save(images / f"{text}.png")
    accuracies, all_seconds = [], []
    for seed in range(1, args.splits + 1):
        place = folder / f"seed_{seed}"
        records, model = place / "records", place / "model"
        started = time.perf_counter()
        flags = ("--seed", seed)
        run("02_images_to_tfrecords.py", place / "2", "--images", images, "--out", records, *flags)
        begin = ("--init", args.init) if args.init else ()
        flags = ("--records", records, "--model", model, *flags)
        trained = run("03_train.py", place / "3", *flags, *begin, *args.train)
        tested = run("04_test.py", place / "4", *flags)
        seconds = time.perf_counter() - started
        accuracies.append(tested["metrics"]["whole_captcha_accuracy"])
        all_seconds.append(seconds)
        count = tested["data"]["test_images"]
        print(
            f"seed {seed}: {accuracies[-1]:.2%} of {count} test images, {seconds:.0f} s, of them "
            f"{trained['train_seconds']:.0f} s training, {trained['metrics']['steps']:.0f} steps",
            flush=True,
        )
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    print(
        f"{args.count:,} images: {statistics.fmean(accuracies):.2%} ± {spread:.2%} over "
        f"{len(accuracies)} splits, {statistics.fmean(all_seconds):.0f} s each"
    )
    if args.record:
        figures = {"whole_captcha_accuracy": (accuracies, spread), "seconds": (all_seconds, None)}
        metrics = {
            name: {"mean": statistics.fmean(values), "sd": sd, "values": values}
            for name, (values, sd) in figures.items()
        }
        command = quoted("python", "benchmarks/captcha_foreign.py", *sys.argv[1:])
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        record = {"command": command, "metrics": metrics, "machine": machine}
        write_json(RESULTS / f"{args.record}.json", record)


if __name__ == "__main__":
    main()
