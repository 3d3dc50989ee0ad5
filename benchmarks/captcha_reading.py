"""How fast does tf.data read captchas from TFRecords, beside TensorFlow 1's queue runners?

The queue pipeline is the one of most captcha tutorials: ``string_input_producer``,
``TFRecordReader``, ``parse_single_example``, decode, ``shuffle_batch``, ``Coordinator``. Both
read the same files, by turns, in one process, and first show that they give the same images::

    python benchmarks/captcha_reading.py --rounds 5

Three times: grey images stored as PNG files; stored as bare pixels, as the tutorials do it, for
``decode_raw``; and those pixels scaled to floats for each image, which the tutorials do in the
pipeline and this course in the model. "03_train.py" is that script's
``train_batches``, all but the moving of the images. The other rows of tf.data say which option
gives what: each adds one to the row above it. "Limit" rows do only a part of the work.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data.captchas import Captchas, decode_pngs, encode_text, png_file
from utils.run import positive_int
from utils.tfrecord import read_dataset, write_dataset

v1 = tf.compat.v1
CAPTCHAS = Captchas()
SHAPE = (CAPTCHAS.height, CAPTCHAS.width, 1)
MIN_AFTER_DEQUEUE = 1_000  # decoded images that shuffle_batch keeps
BUFFER = 10_000  # encoded ones that tf.data keeps, as in 03_train.py
WARM_UP = 10  # batches before the clock starts
SPEC = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "classes": tf.io.FixedLenFeature([CAPTCHAS.length], tf.int64),
}
Batches = Iterator[tuple[Any, Any]]  # images [n, height, width, 1], classes [n, length]


def draw(index: int) -> tuple[list[int], np.ndarray]:
    """Classes and grey pixels, uint8 [height, width, 1]."""
    text, image = CAPTCHAS.draw(index)
    return encode_text(text, CAPTCHAS.alphabet), np.asarray(image.convert("L"))[..., np.newaxis]


def as_png(item: tuple[list[int], np.ndarray]) -> tf.train.Example:
    return example(png_file(item[1]), item[0])


def as_pixels(item: tuple[list[int], np.ndarray]) -> tf.train.Example:
    return example(item[1].tobytes(), item[0])


def example(image: bytes, classes: list[int]) -> tf.train.Example:
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "classes": tf.train.Feature(int64_list=tf.train.Int64List(value=classes)),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def write_files(folder: Path, images: int, workers: int) -> dict[str, Path]:
    """Draw captchas and write them twice: the folders ``png`` and ``raw``, two shards each."""
    drawing = Parallel(workers, return_as="generator")(delayed(draw)(i) for i in range(images))
    items = list(track(drawing, "drawing", total=images))
    folders = {"png": folder / "png", "raw": folder / "raw"}
    for (kind, place), to_example in zip(folders.items(), (as_png, as_pixels), strict=True):
        write_dataset(place, {"train": items}, to_example, about={"kind": kind})
    return folders


def paths_of(folder: Path) -> list[str]:
    return read_dataset(folder)[1]["train"][0]


def pixels_of(encoded: Any, raw: bool) -> Any:
    """The pixels, uint8 [height, width, 1], of one stored image."""
    if raw:
        return tf.reshape(tf.io.decode_raw(encoded, tf.uint8), SHAPE)
    return tf.ensure_shape(tf.io.decode_png(encoded, channels=1), SHAPE)


def all_pixels_of(encoded: Any, raw: bool) -> Any:
    """The same of a batch, [n] to [n, height, width, 1]."""
    if raw:
        return tf.reshape(tf.io.decode_raw(encoded, tf.uint8), (-1, *SHAPE))
    return decode_pngs(encoded, *SHAPE[:2])


def scaled(images: Any) -> Any:
    """From 0 … 255 to -1 … 1, float32, in the steps that the tutorials take."""
    return (tf.cast(images, tf.float32) / 255 - 0.5) * 2


# %%
# The pipelines. Each is a generator of batches, for ever or, to be checked, for one epoch.


def by_queue_runners(
    folder: Path, raw: bool, floats: bool, batch_size: int, threads: int, once: bool
) -> Batches:
    """TensorFlow 1: Python threads run ``enqueue`` operations, ``session.run`` dequeues."""
    with tf.Graph().as_default():
        names = v1.train.string_input_producer(paths_of(folder), num_epochs=1 if once else None)
        _, record = v1.TFRecordReader().read(names)
        example = v1.parse_single_example(record, features=SPEC)
        image = pixels_of(example["image"], raw)
        batch = v1.train.shuffle_batch(
            [scaled(image) if floats else image, example["classes"]],
            batch_size=batch_size,
            capacity=MIN_AFTER_DEQUEUE + (threads + 2) * batch_size,
            min_after_dequeue=MIN_AFTER_DEQUEUE,
            num_threads=threads,
            allow_smaller_final_batch=once,
        )
        with v1.Session() as session:
            session.run(v1.local_variables_initializer())  # the counter of epochs
            coordinator = v1.train.Coordinator()
            runners = v1.train.start_queue_runners(sess=session, coord=coordinator)
            try:
                while True:
                    yield tuple(session.run(batch))
            except tf.errors.OutOfRangeError:
                pass
            finally:
                coordinator.request_stop()
                coordinator.join(runners)


def by_03_train(folder: Path, raw: bool, floats: bool, batch_size: int, once: bool) -> Batches:
    """``train_batches`` of ``captcha_multitask/03_train.py``, which moves the images as well."""
    train_files = paths_of(folder)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        files = tf.random.experimental.stateless_shuffle(train_files, [1, number])
        records = tf.data.TFRecordDataset(files)
        return records.shuffle(BUFFER, seed=number, reshuffle_each_iteration=False)

    def read(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        examples = tf.io.parse_example(records, SPEC)
        images = all_pixels_of(examples["image"], raw)
        return scaled(images) if floats else images, examples["classes"]

    epochs = tf.data.Dataset.range(1 if once else 10**9)
    yield from epochs.flat_map(epoch).batch(batch_size).map(read, num_parallel_calls=2).prefetch(2)


def by_tf_data(
    folder: Path,
    raw: bool,
    floats: bool,
    batch_size: int,
    once: bool,
    parallel: bool = False,
    ahead: bool = False,
    batch_first: bool = False,
) -> Batches:
    """tf.data by hand. ``parallel``: maps on all cores; ``ahead``: prefetch; ``batch_first``:
    parse, decode and scale a whole batch in one call each."""
    calls = os.cpu_count() if parallel else None
    dataset = tf.data.TFRecordDataset(paths_of(folder)).shuffle(BUFFER, 1)
    dataset = dataset if once else dataset.repeat()

    def one(record: Any) -> tuple[Any, Any]:
        example = tf.io.parse_single_example(record, SPEC)
        image = pixels_of(example["image"], raw)
        return scaled(image) if floats else image, example["classes"]

    def many(records: Any) -> tuple[Any, Any]:
        example = tf.io.parse_example(records, SPEC)
        images = all_pixels_of(example["image"], raw)
        return scaled(images) if floats else images, example["classes"]

    if batch_first:
        dataset = dataset.batch(batch_size).map(many, calls)
    else:
        dataset = dataset.map(one, calls).batch(batch_size)
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    yield from dataset.prefetch(2) if ahead else dataset


def reading_alone(folder: Path, batch_size: int) -> Batches:
    """Records from the files to memory, neither parsed nor decoded; no pixels to look at."""
    records = tf.data.TFRecordDataset(paths_of(folder)).repeat().batch(batch_size)
    for batch in records.prefetch(2):
        yield batch, None


def decoding_alone(folder: Path, raw: bool, batch_size: int) -> Batches:
    """One batch of parsed records, in memory, decoded again and again on all cores."""
    records = next(iter(tf.data.TFRecordDataset(paths_of(folder)).batch(batch_size)))
    example = tf.io.parse_example(records, SPEC)
    batches = tf.data.Dataset.from_tensors(example).repeat()
    decoded = batches.map(lambda x: (all_pixels_of(x["image"], raw), x["classes"]), os.cpu_count())
    yield from decoded.prefetch(2)


QUEUE = "queue runner, num_threads=1"
AS_03 = "tf.data, as 03_train.py"


def pipelines(
    folder: Path, raw: bool, floats: bool, batch_size: int, once: bool
) -> dict[str, Callable[[], Batches]]:
    """All that give images: name to a function that starts it."""
    common = (folder, raw, floats, batch_size)
    options = [
        ("tf.data, one step after another", {}),
        (" + prefetch", {"ahead": True}),
        (" + parallel map", {"ahead": True, "parallel": True}),
        (" + batch before parse", {"ahead": True, "parallel": True, "batch_first": True}),
    ]
    return {
        QUEUE: lambda: by_queue_runners(*common, threads=1, once=once),
        "queue runner, num_threads=2": lambda: by_queue_runners(*common, threads=2, once=once),
        AS_03: lambda: by_03_train(*common, once=once),
    } | {name: lambda o=chosen: by_tf_data(*common, once=once, **o) for name, chosen in options}


def contents(batches: Batches) -> Counter:
    """How often each pair of label and sum of pixels, 0 … 255, comes."""
    found: Counter = Counter()
    for images, classes in batches:
        images = np.asarray(images)
        if images.dtype != np.uint8:  # scaled; whole numbers again, whatever the rounding
            images = np.rint((images / 2 + 0.5) * 255)
        sums = images.astype(np.int64).sum(axis=(1, 2, 3))
        found.update(zip(map(tuple, np.asarray(classes).tolist()), sums.tolist(), strict=True))
    return found


def measure(batches: Batches, images: int) -> tuple[float, float]:
    """Images a second once the pipeline runs (its start and the filling of queues are not
    counted), and microseconds of processor time an image, all cores together."""
    with closing(batches):
        for _ in itertools.islice(batches, WARM_UP):
            pass
        seen, started, used = 0, time.perf_counter(), time.process_time()
        while seen < images:
            seen += next(batches)[0].shape[0]
        rate = seen / (time.perf_counter() - started)
        return rate, 1e6 * (time.process_time() - used) / seen


def spread(values: list[float], form: str) -> str:
    return f"{min(values):{form}} – {max(values):{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=positive_int, default=5, help="turns of each (default: 5)")
    add("--images", type=positive_int, default=3_000, help="to draw (default: 3000)")
    add("--reads", type=positive_int, default=6_000, help="images read in a turn (default: 6000)")
    add("--batch-size", type=positive_int, default=64, help="images in a batch (default: 64)")
    args = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # that queue runners are deprecated is known
    cores = os.cpu_count() or 1
    console = Console(width=max(100, Console().width))
    with tempfile.TemporaryDirectory() as name:
        folders = write_files(Path(name), args.images, cores)
        for title, kind, floats in (
            ("stored as PNG", "png", False),
            ("stored as pixels", "raw", False),
            ("stored as pixels, scaled to float32", "raw", True),
        ):
            common = (folders[kind], kind == "raw", floats, args.batch_size)
            found = {name: contents(start()) for name, start in pipelines(*common, True).items()}
            for name, what in found.items():
                if what != found[QUEUE]:
                    raise SystemExit(f"{name} and {QUEUE} give different images")
            starts = pipelines(*common, False) | {
                "limit: reading alone": lambda c=common: reading_alone(c[0], c[3]),
                "limit: decoding alone": lambda c=common: decoding_alone(c[0], c[1], c[3]),
            }
            rates: dict[str, list[float]] = {name: [] for name in starts}
            costs: dict[str, list[float]] = {name: [] for name in starts}
            for _ in range(args.rounds):
                for name, start in starts.items():
                    rate, cost = measure(start(), args.reads)
                    rates[name].append(rate)
                    costs[name].append(cost)
            size = sum(Path(path).stat().st_size for path in paths_of(folders[kind]))
            table = Table(
                title=f"{title}: {size / args.images / 1000:.1f} kB an image, batches of "
                f"{args.batch_size}, {cores} cores, median of {args.rounds} rounds"
            )
            table.add_column("pipeline")
            for column in ("images/s", "min – max", "ratio", "min – max", "CPU µs/image"):
                table.add_column(column, justify="right", no_wrap=True)
            for name, values in rates.items():
                ratios = [a / b for a, b in zip(values, rates[QUEUE], strict=True)]
                table.add_row(
                    name,
                    f"{statistics.median(values):,.0f}",
                    spread(values, ",.0f"),
                    f"{statistics.median(ratios):.2f}",
                    spread(ratios, ".2f"),
                    f"{statistics.median(costs[name]):.0f}",
                )
            console.print(table)
    console.print(
        "The ratio is to the queue runner with one thread, round by round. CPU: processor time "
        "an image, all cores together; other programs disturb it less than the rates."
    )


if __name__ == "__main__":
    main()
