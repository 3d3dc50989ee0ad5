"""Photos: how fast are they written as records, and read faster than InceptionV3 can use them?

Two questions, each answered by turns in one run::

    python benchmarks/slim_reading.py
    python benchmarks/slim_reading.py --image-size 299 --image-dir my_photos

Writing: what ``01_images_to_tfrecords.py`` does, with one process and with two that have started.
Looking at the files: each is decoded, hashed and made a fingerprint of. Writing them as they are:
each is read, checked and decoded once more; with ``--resize-shorter`` also made smaller and
encoded. Few photos are taken several times over.

Reading: the training's pipeline, from the records to distorted batches of float32, alone on the
machine; against it the training steps of ``02_train_image_classifier.py`` on a batch in memory,
alone on the machine too. Then both together, as in a training: how much of the time do the steps
wait?
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from data import photos
from models.inception_v3 import Weights
from utils.run import positive_int
from utils.tfrecord import write_dataset
from utils.training import Place

CHAPTER = Path(__file__).resolve().parents[1] / "inception_v3" / "slim_train"
sys.path.insert(0, str(CHAPTER))
WRITING, READING = "01_images_to_tfrecords.py", "02_train_image_classifier.py"


def load(name: str) -> ModuleType:
    """A script of the chapter as a module."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), CHAPTER / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def shown(values: list[float], form: str) -> str:
    """The median of the rounds, and in brackets the least and the largest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} – {high:{form}})"


# %%
# Writing


def writing(
    script: ModuleType, found: photos.Scan, folder: Path, count: int, rounds: int, shorter: int
) -> Table:
    """Photos a second by one process and by two."""
    some = list(itertools.islice(itertools.cycle(found.photos), count))
    classes = tuple(found.classes)

    def write(items: list[photos.Photo], workers: int, size: int | None = None) -> int:
        features = script.convert.ToFeatures(classes, size)
        write_dataset(folder, {"image_train": items}, features, 2, workers)
        return len(items)

    def look(workers: int) -> int:
        return len(photos.scan(found.folder, workers).photos)

    def everything(workers: int) -> int:
        look(workers)
        return write(found.photos, workers)

    calls: dict[str, Callable[[int], int]] = {
        "looking at the files": look,
        "writing them as they are": lambda workers: write(some, workers),
        "all of 01: looking, then writing": everything,
        f"writing them with --resize-shorter {shorter}": lambda workers: write(
            some, workers, shorter
        ),
    }
    table = Table(
        title=f"Photos/s, {len(found.photos):,} photos (for writing taken until there are "
        f"{count:,}): median (min – max) of {rounds} rounds, {os.cpu_count()} cores"
    )
    for column in ("what", "1 process", "2 processes", "ratio"):
        table.add_column(column)
    write(some[:64], 2)  # starts the processes, which stay
    for name, call in calls.items():
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for workers, found_rates in rates.items():
                started = time.perf_counter()
                done = call(workers)
                found_rates.append(done / (time.perf_counter() - started))
        ratios = [two / one for one, two in zip(*rates.values(), strict=True)]
        table.add_row(name, *(shown(r, ",.0f") for r in rates.values()), shown(ratios, ".2f"))
    return table


# %%
# Reading


def rate(batches: Iterator[Any], batch_size: int, seconds: float) -> float:
    """Photos a second that come out of ``batches``, for about so many seconds."""
    next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        count += batch_size
    return count / (time.perf_counter() - started)


def rate_of_steps(step: Callable, batch: Any, batch_size: int, steps: int) -> float:
    """Photos a second that a training step takes in from memory."""
    started = time.perf_counter()
    for number in range(steps):
        step(*batch, tf.constant(number, tf.int64))
    return steps * batch_size / (time.perf_counter() - started)


def fed(step: Callable, batches: Iterator[Any], batch_size: int, steps: int) -> tuple[float, float]:
    """The same, fed by the pipeline, and the share of the time spent waiting for it."""
    waited, started = 0.0, time.perf_counter()
    for number in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(*batch, tf.constant(number, tf.int64))
    took = time.perf_counter() - started
    return steps * batch_size / took, waited / took


def reading(script: ModuleType, folder: Path, args: argparse.Namespace) -> Table:
    """What the pipeline delivers and what the steps take."""
    data, size, batch_size = script.Records(folder), args.image_size, args.batch_size
    place = Place("none")

    def prepare(files: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        return script.preprocessing.training_images(files, number, 1, size, 0.3, args.colour)

    def start() -> Iterator[Any]:
        return iter(script.training_batches(data, batch_size, 1, place, prepare))

    flags = script.flags().parse_args(["--weights", "none"])
    keras.utils.set_random_seed(1)
    start_weights = Weights(None, "none", False, "none")  # trained ones cost the same
    net = script.network.build(start_weights, len(data.classes), size)
    steps = {}
    optimizer = script.make_optimizer(flags)
    heads = script.network.HEADS
    tuned = net._replace(loaded=tuple(name for name in net.scopes if name not in heads))
    for name, scopes in (("everything", script.network.SCOPES), ("the heads", heads)):
        variables = script.network.train_only(tuned, scopes, freeze_norms=True)
        if not optimizer.built:
            optimizer.build(variables)
            averages = script.Averages(variables, 0.99)
        steps[name] = script.make_step(
            net, optimizer, place.strategy, variables, averages, batch_size, flags
        )
        batch = next(start())
        steps[name](*batch, tf.constant(0, tf.int64))  # traces it
    rates: dict[str, list[float]] = {"pipeline": [], **{name: [] for name in steps}}
    together: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        rates["pipeline"].append(rate(start(), batch_size, 3.0))
        for name, step in steps.items():
            count = args.steps * (1 if name == "everything" else 3)
            rates[name].append(rate_of_steps(step, batch, batch_size, count))
            batches = start()
            next(batches)
            together[name].append(fed(step, batches, batch_size, count))
    table = Table(
        title=f"Photos/s at {size}×{size}, batches of {batch_size}: median (min – max) of "
        f"{args.rounds} rounds, {os.cpu_count()} cores"
    )
    for column in ("what", "alone", "pipeline to this", "fed by the pipeline", "waiting"):
        table.add_column(column)
    table.add_row("reading, decoding, distorting", shown(rates["pipeline"], ".0f"))
    for name in steps:
        ratios = [a / b for a, b in zip(rates["pipeline"], rates[name], strict=True)]
        fed_rates, waiting = map(list, zip(*together[name], strict=True))
        table.add_row(
            f"training step, {name}",
            shown(rates[name], ".1f"),
            shown(ratios, ".1f"),
            shown(fed_rates, ".1f"),
            shown(waiting, ".1%"),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--image-dir", type=Path, help="photos (default: flower_photos)")
    add("--photos", type=positive_int, default=2400, help="to write (default: 2400)")
    add("--resize-shorter", type=positive_int, default=256, help="pixels (default: 256)")
    add("--image-size", type=positive_int, default=224, help="of the network (default: 224)")
    add("--batch-size", type=positive_int, default=32, help="photos in a step (default: 32)")
    add("--colour", default="full", help="full, fast or none (default: full)")
    add("--rounds", type=positive_int, default=5, help="turns of each (default: 5)")
    add("--steps", type=positive_int, default=3, help="training steps in a turn (default: 3)")
    add("--only", choices=("writing", "reading"), help="one of the two")
    args = parser.parse_args()
    console = Console(width=max(120, Console().width))
    try:
        folder, data = photos.find_photos(args.image_dir)
        found = photos.scan(folder)
    except ValueError as error:
        parser.error(str(error))
    console.print(data["source"])
    script = load(WRITING)
    with tempfile.TemporaryDirectory() as name:
        if args.only != "reading":
            console.print(
                writing(script, found, Path(name), args.photos, args.rounds, args.resize_shorter)
            )
        if args.only != "writing":
            features = script.convert.ToFeatures(tuple(found.classes))
            about = {"kind": script.KIND, "classes": found.classes, **data}
            splits = {"image_train": script.mixed(found.photos, 1)}
            write_dataset(Path(name), splits, features, about=about)
            console.print(reading(load(READING), Path(name), args))


if __name__ == "__main__":
    main()
