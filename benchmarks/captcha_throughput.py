"""What does a training step of a captcha network get out of this machine?

Three numbers from one run, by turns: the best rate of large convolutions, in GFLOP/s, forward
alone and with both gradients; the share of it that a training step (loss, gradients, Adam)
reaches on a batch in memory; the share of the time spent waiting for data when the batches
come from records::

    python benchmarks/captcha_throughput.py --net compact --rounds 5

Operations are counted from the layers: convolutions and dense layers only, a multiplication
with its addition as two, the padding's zeros as numbers like others. Backward costs twice the
forward pass, once for the weights and once for the input, which the first layer does without.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from data.captchas import Captchas, decode_pngs, encode_text, png_file
from utils.run import positive_int
from utils.tfrecord import read_dataset, write_dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "captcha_multitask"))
CAPTCHAS = Captchas()
SIZE = (CAPTCHAS.height, CAPTCHAS.width)
# images, height, width, channels in and out, kernel: what training on captchas is made of
CONVOLUTIONS = [
    (32, 30, 80, 64, 64, 3),
    (32, 28, 28, 128, 128, 3),
    (32, 14, 14, 256, 256, 3),
    (32, 12, 12, 384, 384, 3),
    (32, 26, 26, 64, 192, 5),
]


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """The mean wall-clock time of a call. TensorFlow's CPU has finished when it returns."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


# %%
# What the machine can do


def convolution_flops(n: int, h: int, w: int, channels: int, filters: int, kernel: int) -> int:
    """Operations of one forward convolution, stride 1, padding ``SAME``."""
    return 2 * n * h * w * filters * kernel * kernel * channels


def convolution(
    n: int, h: int, w: int, channels: int, filters: int, kernel: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Two functions: the convolution alone; with its gradients, three times the operations."""
    images = tf.random.normal([n, h, w, channels])
    weights = tf.random.normal([kernel, kernel, channels, filters])

    @tf.function
    def forward(images: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(images, weights, 1, "SAME")

    @tf.function
    def both_ways(images: tf.Tensor, weights: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([images, weights])
            outputs = tf.nn.conv2d(images, weights, 1, "SAME")
        return tape.gradient(outputs, [images, weights], output_gradients=outputs)

    return lambda: forward(images, weights), lambda: both_ways(images, weights)


# %%
# What a network asks for


def forward_flops(model: keras.Model) -> dict[str, int]:
    """Operations for one image of every convolution and dense layer, in the model's order.

    Raises TypeError for a layer of another kind that multiplies by a matrix of weights.
    """
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            inner = forward_flops(layer)
            found |= {f"{layer.name}/{name}": flops for name, flops in inner.items()}
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            # Every output is a sum over all but the last of the kernel's sides.
            found[layer.name] = (
                2 * math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:-1])
            )
        elif any(len(weight.shape) > 1 for weight in layer.trainable_weights):
            raise TypeError(f"can't count {layer.name}, a {type(layer).__name__}")
    return found


def step_flops(model: keras.Model) -> int:
    """Operations for one image of a training step: forward, and twice as many backward, less
    the gradient of the pixels, which nobody needs."""
    flops = list(forward_flops(model).values())
    return 3 * sum(flops) - flops[0]


def make_step(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A training step: the heads' cross-entropies summed, Adam."""
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)  # [n, positions, classes]
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
            loss = tf.reduce_mean(tf.reduce_sum(each, axis=1))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


# %%
# What the data cost


SPEC = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "classes": tf.io.FixedLenFeature([CAPTCHAS.length], tf.int64),
}


def example_of(index: int) -> tf.train.Example:
    """A record of the course: the grey image as a PNG file, and the classes."""
    text, image = CAPTCHAS.draw(index)
    png = png_file(np.asarray(image.convert("L"))[..., np.newaxis])
    classes = encode_text(text, CAPTCHAS.alphabet)
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png])),
        "classes": tf.train.Feature(int64_list=tf.train.Int64List(value=classes)),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def decode(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    examples = tf.io.parse_example(records, SPEC)
    return decode_pngs(examples["image"], *SIZE), examples["classes"]


def fed(step: Callable, batches: Iterator, steps: int) -> tuple[float, float]:
    """Train ``steps`` times; seconds in all and seconds spent in ``next(batches)``."""
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(*batch)
    return time.perf_counter() - started, waited


def shown(values: list[float], form: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} – {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--net", default="compact", help="compact or alexnet_v2 (default: compact)")
    add("--batch-size", type=positive_int, default=64, help="images in a step (default: 64)")
    add("--rounds", type=positive_int, default=5, help="turns of each (default: 5)")
    add("--steps", type=positive_int, default=20, help="steps in a turn (default: 20)")
    add("--images", type=positive_int, default=2_000, help="to draw (default: 2000)")
    args = parser.parse_args()
    from nets import nets_factory

    if args.net not in nets_factory.NETS:
        parser.error(f"--net {args.net}: there are only {', '.join(nets_factory.NETS)}")
    model = nets_factory.build(args.net, CAPTCHAS.length, len(CAPTCHAS.alphabet), *SIZE)
    forward, whole = sum(forward_flops(model).values()), step_flops(model)
    step = make_step(model)
    rng = np.random.default_rng(1)
    batch = (
        tf.constant(rng.integers(0, 256, (args.batch_size, *SIZE, 1), np.uint8)),
        tf.constant(rng.integers(0, 10, (args.batch_size, CAPTCHAS.length))),
    )
    pairs = [convolution(*shape) for shape in CONVOLUTIONS]
    rates = [([], []) for _ in CONVOLUTIONS]  # GFLOP/s: forward, with gradients
    in_memory, from_records, peaks, waiting = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        write_dataset(Path(name), {"train": range(args.images)}, example_of, threads=2)
        records = tf.data.TFRecordDataset(read_dataset(Path(name))[1]["train"][0])
        records = records.shuffle(10_000, 1).repeat().batch(args.batch_size)
        batches = iter(records.map(decode, num_parallel_calls=2).prefetch(2))
        for call in (call for pair in pairs for call in pair):
            seconds(call, 2)  # traces the graphs
        fed(step, batches, 3)
        for _ in range(args.rounds):
            for shape, calls, found in zip(CONVOLUTIONS, pairs, rates, strict=True):
                for call, times, values in zip(calls, (1, 3), found, strict=True):
                    best = min(seconds(call) for _ in range(4))
                    values.append(times * convolution_flops(*shape) / best / 1e9)
            peaks.append(max(values[-1] for found in rates for values in found))
            in_memory.append(seconds(lambda: step(*batch), args.steps))
            fed(step, batches, 1)  # the batches made while others were measured
            took, waited = fed(step, batches, args.steps)
            from_records.append(took / args.steps)
            waiting.append(waited / took)
        del batches, records

    console = Console(width=max(100, Console().width))
    table = Table(title="Convolutions, GFLOP/s: median (min – max) of the rounds")
    for column in ("images × height × width × channels, filters", "forward", "with gradients"):
        table.add_column(column)
    for (n, h, w, channels, filters, kernel), found in zip(CONVOLUTIONS, rates, strict=True):
        table.add_row(
            f"{n} × {h} × {w} × {channels}, {filters} of {kernel}×{kernel}",
            *(shown(values, ".0f") for values in found),
        )
    console.print(table)

    achieved = [whole * args.batch_size / took / 1e9 for took in in_memory]
    shares = [rate / peak for rate, peak in zip(achieved, peaks, strict=True)]
    fed_rates = [args.batch_size / took for took in from_records]
    table = Table(title=f"{args.net}, batches of {args.batch_size}, {os.cpu_count()} cores")
    table.add_column("what")
    table.add_column("median (min – max)", justify="right")
    for row in (
        ("parameters", f"{model.count_params():,}"),
        ("million operations an image, forward", f"{forward / 1e6:,.1f}"),
        ("million operations an image, training step", f"{whole / 1e6:,.1f}"),
        ("peak of the convolutions, GFLOP/s", shown(peaks, ".0f")),
        ("step on a batch in memory, ms", shown([1e3 * took for took in in_memory], ".1f")),
        ("images/s, batch in memory", shown([args.batch_size / t for t in in_memory], ".0f")),
        ("GFLOP/s of that step", shown(achieved, ".0f")),
        ("share of the peak", shown(shares, ".1%")),
        ("images/s, fed from records", shown(fed_rates, ".0f")),
        ("share of that time spent waiting for data", shown(waiting, ".2%")),
    ):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
