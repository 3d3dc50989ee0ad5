"""Photos as records: how fast are they written and read, and how much faster than a step needs?

    python benchmarks/slim_reading.py
    python benchmarks/slim_reading.py --photos 200 --rounds 5 --weights FILE

Writing: ``01_images_to_tfrecords.py`` as it stands, on flower photos and on as many photos of 12
megapixels that lie on their side, as telephones take them; these also with ``--resize-shorter 0``.
Seconds of the whole program (its imports, a look at every file, writing, reading back), megabytes
of records, and the most memory that it had.

Reading: the training's pipeline, alone on the machine, from each of these records.

Steps: what ``02_train_image_classifier.py`` does with a batch in memory, with the heads alone, from
``mixed8`` and from the stem. All three take turns.
"""

import argparse
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tensorflow as tf
from PIL import Image

from data import photos
from utils import training
from utils.run import positive_int

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "inception_v3" / "slim_train"
WRITE, TRAIN = CHAPTER / "01_images_to_tfrecords.py", CHAPTER / "02_train_image_classifier.py"


def telephone(source: Path, target: Path) -> None:
    """A photo enlarged to 4,000×3,000 pixels, with the note to turn it by 90°."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(source) as image:
        large = image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
    target.parent.mkdir(parents=True, exist_ok=True)
    large.save(target, quality=90, exif=exif)


def write(folder: Path, out: Path, *flags: Any) -> str:
    """Write the records of a folder; seconds, megabytes and memory as a line."""
    command = [sys.executable, WRITE, "--image-dir", folder, "--out", out, *flags]
    command += ["--run-dir", out / "run"]
    measured = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"  # kB; not on Windows
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", measured, *map(str, command)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in out.glob("*.tfrecord")) / 1e6
    return f"{seconds:6.1f} s, {size:7.1f} MB of records, {int(done.stdout) / 1e3:6,.0f} MB memory"


class Ready(BaseException):
    """The lesson has made its batches and its step; the training itself isn't wanted."""


def lesson(records: Path, weights: str, *flags: str) -> dict[str, Any]:
    """The names of the training's script just before it would begin to train."""
    kept: dict[str, Any] = {}

    def stop(*_: Any, **__: Any) -> None:
        kept.update(sys._getframe(1).f_globals)
        raise Ready

    with tempfile.TemporaryDirectory() as name:
        arguments = ["--records", str(records), "--run-dir", name, "--model", f"{name}/model"]
        arguments += ["--weights", weights, *flags]
        with (
            mock.patch.object(training.TrainingRun, "start", stop),
            mock.patch.object(sys, "argv", [str(TRAIN), *arguments]),
        ):
            try:
                runpy.run_path(str(TRAIN), run_name="__main__")
            except Ready:
                return kept
    raise AssertionError("the script has changed: it starts no training")


def rate(batches: Any, batch_size: int, count: int) -> float:
    """Photos a second that come out of ``count`` batches."""
    iterator = iter(batches)
    next(iterator)
    started = time.perf_counter()
    for _ in range(count):
        next(iterator)
    return count * batch_size / (time.perf_counter() - started)


def shown(values: list[float]) -> str:
    """The median of the rounds, and in brackets the least and the largest."""
    return f"{statistics.median(values):7.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=positive_int, default=200, help="of each kind (default: 200)")
    add("--weights", default="none", help="of the network (default: none; a step costs the same)")
    add("--rounds", type=positive_int, default=5, help="turns of each (default: 5)")
    add("--steps", type=positive_int, default=4, help="batches in a turn (default: 4)")
    args = parser.parse_args()
    folder, data = photos.find_photos(None)
    print(data["source"])
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        labels = sorted(path.name for path in folder.iterdir() if path.is_dir())
        for label in labels:
            some = sorted((folder / label).glob("*.jpg"))[: args.photos // len(labels)]
            for path in some:
                (here / "flowers" / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, here / "flowers" / label)
                telephone(path, here / "telephone" / label / path.name)
        kinds = {
            "flowers": ("flowers",),
            "telephone": ("telephone",),
            "telephone, as they are": ("telephone", "--resize-shorter", 0),
        }
        records = {kind: here / f"records {number}" for number, kind in enumerate(kinds)}
        for kind, (source, *flags) in kinds.items():
            print(f"{kind:24}{write(here / source, records[kind], *flags)}", flush=True)
        for kind, out in records.items():
            made = lesson(out, args.weights, "--image-size", "224", "--batch-size", "32")
            size = made["batch_size"]
            rates = [rate(made["train_batches"](0), size, args.steps) for _ in range(args.rounds)]
            print(f"{kind:24}{shown(rates)} photos/s read and distorted", flush=True)
        steps: dict[str, Callable[..., Any]] = {}
        for part in ("head", "mixed8", "stem"):
            flags = ("--image-size", "224", "--batch-size", "32", "--train-from", part)
            made = lesson(records["flowers"], args.weights, *flags)
            names = tuple(made["trained_parts"])
            # Trained weights keep their batch normalisation, which makes a step cheaper.
            made["train_only"].__globals__["scratch"] = False
            steps[part] = made["step_of"](made["train_only"]((*names, "head")))
            batch = next(iter(made["train_batches"](0)))
            steps[part](tf.constant(0, tf.int64), *batch)  # traces it
        found: dict[str, list[float]] = {part: [] for part in steps}
        for _ in range(args.rounds):
            for part, step in steps.items():
                started = time.perf_counter()
                for number in range(args.steps):
                    step(tf.constant(number, tf.int64), *batch)
                seconds = time.perf_counter() - started
                found[part].append(args.steps * len(batch[1]) / seconds)
        for part, rates in found.items():
            print(f"step, trained from {part:7}{shown(rates)} photos/s", flush=True)


if __name__ == "__main__":
    main()
