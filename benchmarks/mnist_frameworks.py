"""The MNIST networks in Keras and in PyTorch: which one trains faster on this machine?

The networks of ``cnn/01``, ``cnn/04`` and ``rnn/01`` are trained by turns in both, on the same
number of random images held in memory, and the speeds and their ratios are printed. PyTorch is
no part of the course. Name a Python that has it::

    python benchmarks/mnist_frameworks.py --torch-python /path/to/venv/bin/python

A turn is what a training does with its images: shuffling, batches, scaling, the step of Adam,
the averages of loss and accuracy. Keras does it with ``fit``, PyTorch with the usual loop,
Adam's fused form and both layouts of images: its default (channels first) and channels last.
The ratios compare turns that followed each other, first by the clock, then by the seconds of
all CPU cores together.

Let nothing else run meanwhile. PyTorch's threads wait for each other at every operation, and
spin as they wait: when another program takes a core, it becomes many times slower. With
``--threads 1`` the seconds on the CPU hardly depend on other programs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CNN01_MAPS, CNN01_HIDDEN, CNN01_DROPOUT = (32, 64), 256, 0.5
CNN04_MAPS, CNN04_MOMENTUM = (24, 48, 48, 96, 96), 0.9
RNN01_UNITS, RNN01_DROPOUT = 128, 0.3
BATCHES = {"cnn/01": 128, "cnn/04": 64, "rnn/01": 128}
AT_ONCE = {"cnn/01": 10, "cnn/04": 1, "rnn/01": 10}  # steps that Keras takes in one call
RATE = 1e-3
PYTORCH = {  # the columns: how the images lie in memory
    "cnn/01": ("channels first", "channels last"),
    "cnn/04": ("channels first", "channels last"),
    "rnn/01": ("rows",),
}


def random_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images uint8 [n, 28, 28] of noise, and labels [n]."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    return images, rng.integers(0, 10, count).astype(np.int64)


def timed(train: Callable[[], Any]) -> dict[str, float]:
    """The seconds that ``train()`` takes by the clock and on all cores together."""
    started, cpu = time.perf_counter(), time.process_time()
    train()
    return {"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}


# ---------------------------------------------------------------------------------- Keras


def keras_network(name: str) -> Any:
    """The network of a script: uint8 [n, 28, 28] in, logits [n, 10] out."""
    import keras

    layers = keras.layers

    def normalised(maps: int, size: int, padding: str, pool: bool = False) -> list[Any]:
        return [
            layers.Conv2D(maps, size, padding=padding, use_bias=False),
            *([layers.MaxPooling2D(2)] if pool else []),
            layers.BatchNormalization(momentum=CNN04_MOMENTUM),
            layers.ReLU(),
        ]

    if name == "rnn/01":
        inside = [layers.LSTM(RNN01_UNITS), layers.Dropout(RNN01_DROPOUT)]
    elif name == "cnn/01":
        inside = [layers.Reshape((28, 28, 1))]
        for maps in CNN01_MAPS:
            inside += [
                layers.Conv2D(maps, 5, activation="relu"),
                layers.MaxPooling2D(2),
            ]
        inside += [
            layers.Flatten(),
            layers.Dense(CNN01_HIDDEN, activation="relu"),
            layers.Dropout(CNN01_DROPOUT),
        ]
    else:
        a, b, c, d, e = CNN04_MAPS
        inside = [
            layers.Reshape((28, 28, 1)),
            *normalised(a, 5, "valid", pool=True),
            *normalised(b, 3, "valid"),
            *normalised(c, 3, "same", pool=True),
            *normalised(d, 3, "same"),
            *normalised(e, 3, "valid"),
            layers.GlobalAveragePooling2D(),
        ]
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            layers.Rescaling(1 / 255),
            *inside,
            layers.Dense(10),
        ]
    )


def keras_training(name: str, count: int) -> Callable[[], Any]:
    """A function that trains the network of ``name`` on ``count`` images once."""
    import keras
    import tensorflow as tf

    images, labels = random_images(count)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = dataset.shuffle(count, seed=1).batch(BATCHES[name]).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    model = keras_network(name)
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=AT_ONCE[name],
    )
    return lambda: model.fit(dataset, shuffle=False, verbose=0)


# -------------------------------------------------------------------------------- PyTorch


def torch_network(name: str) -> Any:
    """The same network in PyTorch: float32 [n, 1, 28, 28], or [n, 28, 28] for ``rnn/01``, in."""
    from torch import nn

    class LastOfLstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(28, RNN01_UNITS, batch_first=True)

        def forward(self, rows: Any) -> Any:
            return self.lstm(rows)[0][:, -1]

    def normalised(before: int, maps: int, size: int, padding: int, pool: bool) -> list[Any]:
        return [
            nn.Conv2d(before, maps, size, padding=padding, bias=False),
            *([nn.MaxPool2d(2)] if pool else []),
            nn.BatchNorm2d(maps, momentum=1 - CNN04_MOMENTUM),
            nn.ReLU(),
        ]

    if name == "rnn/01":
        dropout = nn.Dropout(RNN01_DROPOUT)
        return nn.Sequential(LastOfLstm(), dropout, nn.Linear(RNN01_UNITS, 10))
    if name == "cnn/01":
        inside, before = [], 1
        for maps in CNN01_MAPS:
            inside += [nn.Conv2d(before, maps, 5), nn.ReLU(), nn.MaxPool2d(2)]
            before = maps
        return nn.Sequential(
            *inside,
            nn.Flatten(),
            nn.Linear(4 * 4 * before, CNN01_HIDDEN),
            nn.ReLU(),
            nn.Dropout(CNN01_DROPOUT),
            nn.Linear(CNN01_HIDDEN, 10),
        )
    a, b, c, d, e = CNN04_MAPS
    return nn.Sequential(
        *normalised(1, a, 5, 0, pool=True),
        *normalised(a, b, 3, 0, pool=False),
        *normalised(b, c, 3, 1, pool=True),
        *normalised(c, d, 3, 1, pool=False),
        *normalised(d, e, 3, 0, pool=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(e, 10),
    )


def torch_training(name: str, layout: str, count: int) -> Callable[[], Any]:
    """A function that trains the network of ``name`` on ``count`` images once."""
    import torch

    images, labels = (torch.from_numpy(array) for array in random_images(count))
    if name != "rnn/01":
        images = images[:, None]
    network = torch_network(name)
    if layout == "channels last":
        network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), RATE, fused=True)
    network.train()

    def train() -> tuple[float, float]:
        loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for chosen in torch.randperm(count).split(BATCHES[name]):
            some_images, some_labels = images[chosen].float() / 255, labels[chosen]
            if layout == "channels last":
                some_images = some_images.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            logits = network(some_images)
            loss = torch.nn.functional.cross_entropy(logits, some_labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(chosen)
            right += (logits.detach().argmax(1) == some_labels).sum()
        return float(loss_sum) / count, float(right) / count

    return train


def serve_torch(count: int, threads: int | None) -> None:
    """The PyTorch half: read a network and a layout a line, answer with the seconds of a turn."""
    try:
        import torch
    except ImportError:
        return
    if threads:
        torch.set_num_threads(threads)
    print(json.dumps(torch.__version__), flush=True)
    trainings: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        if line not in trainings:
            trainings[line] = torch_training(*json.loads(line), count)
            trainings[line]()  # the first turn is slower
        print(json.dumps(timed(trainings[line])), flush=True)


# ------------------------------------------------------------------------------- together


def ratio(others: list[dict[str, float]], ours: list[dict[str, float]], clock: str) -> float:
    """How many times as long the others took: the median over the rounds."""
    pairs = zip(others, ours, strict=True)
    return statistics.median(other[clock] / our[clock] for other, our in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch-python",
        metavar="PATH",
        default=sys.executable,
        help="a Python that has PyTorch (default: the one that runs this)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--images", type=int, default=6_400, help="per turn (default: 6400)")
    parser.add_argument("--threads", type=int, help="threads of each (default: its own choice)")
    parser.add_argument("--serve-torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_torch:
        serve_torch(args.images, args.threads)
        return

    command = [args.torch_python, Path(__file__).resolve(), "--serve-torch"]
    command += ["--images", str(args.images)]
    if args.threads:
        command += ["--threads", str(args.threads)]
    try:
        torch = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
    except OSError as error:
        parser.error(f"--torch-python: can't run {args.torch_python}: {error.strerror}")
    hello = torch.stdout.readline()
    if not hello:
        raise SystemExit(
            f"{args.torch_python} has no PyTorch, so there is nothing to compare with. Install it "
            "into an environment of its own and name that environment's Python: --torch-python."
        )

    import keras
    import tensorflow as tf

    if args.threads:
        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    print(f"Keras {keras.__version__} on TensorFlow {tf.__version__}, PyTorch {json.loads(hello)}")

    def torch_turn(name: str, layout: str) -> dict[str, float]:
        torch.stdin.write(json.dumps([name, layout]) + "\n")
        torch.stdin.flush()
        return json.loads(torch.stdout.readline())

    print(f"{'':8} {'':24} {'images/s':>9}  {'× as long as Keras, by clock':>29} {'by CPU':>7}")
    for name in BATCHES:
        training = keras_training(name, args.images)
        training()  # traces the graph
        ours: list[dict[str, float]] = []
        others: dict[str, list[dict[str, float]]] = {layout: [] for layout in PYTORCH[name]}
        for _ in range(args.rounds):
            ours.append(timed(training))
            for layout, turns in others.items():
                turns.append(torch_turn(name, layout))
        both = {"Keras": ours} | {f"PyTorch, {layout}": turns for layout, turns in others.items()}
        for label, turns in both.items():
            speed = args.images / statistics.median(turn["wall"] for turn in turns)
            clock, cpu = (ratio(turns, ours, kind) for kind in ("wall", "cpu"))
            print(f"{name:8} {label:24} {speed:9,.0f}  {clock:29.2f} {cpu:7.2f}", flush=True)
    torch.stdin.close()
    torch.wait()


if __name__ == "__main__":
    main()
