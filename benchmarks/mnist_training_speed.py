"""How long does a training epoch of each MNIST script take, beside a reference network?

Seconds alone say little, since machines differ and are noisy. So each script's network and a
small reference network (two 3×3 convolutions with pooling, as in most introductions to Keras)
train by turns in one process, on the same random images, and the ratio is printed::

    python benchmarks/mnist_training_speed.py --rounds 5

Every network trains as its script does it: its batch size, its optimizer, its way of stepping.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 55_000  # of an epoch


def load_script(name: str) -> ModuleType:
    """A script of the course as a module."""
    module_name = name.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(module_name, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


def reference() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            layers.Reshape((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )


def by_fit(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, batch: int, at_once: int = 1
) -> Callable[[], None]:
    """A function that trains ``model`` with ``fit`` on all images once."""
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=at_once,
    )
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch).prefetch(2)
    return lambda: model.fit(dataset, shuffle=False, verbose=0)


def by_hand(
    script: ModuleType, images: np.ndarray, labels: np.ndarray, batch: int
) -> Callable[[], None]:
    """The same with the training step of ``cnn/02_mnist_conv_nn.py``."""
    network = script.ConvNet(seed=1)
    step = script.make_step(network, keras.optimizers.Adam(1e-3), script.cross_entropy, seed=1)

    def train() -> None:
        for some_images, some_labels in script.shuffled_batches(images, labels, batch, 1, 0):
            step(some_images, some_labels)

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--images", type=int, default=2_560, help="per turn (default: 2560)")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (args.images, 28, 28), np.uint8)
    labels = rng.integers(0, 10, args.images).astype(np.int64)

    linear = load_script("linear/02_linear_mnist.py")
    layers = load_script("cnn/01_mnist_conv_layers.py")
    hand = load_script("cnn/02_mnist_conv_nn.py")
    lstm = load_script("rnn/01_mnist_lstm.py")
    trainings = {
        "reference, batch 128": by_fit(reference(), images, labels, 128),
        "linear/02, batch 128": by_fit(linear.build_model(images, 1), images, labels, 128, 10),
        "cnn/01, batch 128": by_fit(layers.build_model(), images, labels, 128),
        "cnn/02, batch 128": by_hand(hand, images, labels, 128),
        "rnn/01, batch 64": by_fit(lstm.build_model(), images, labels, 64),
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for train in trainings.values():
        train()  # traces the graphs
    for _ in range(args.rounds):
        for name, train in trainings.items():
            started = time.perf_counter()
            train()
            seconds[name].append((time.perf_counter() - started) * IMAGES / args.images)
    base = statistics.median(seconds["reference, batch 128"])
    print(f"{'':22} seconds an epoch (median)  ratio to the reference")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:22} {middle:26.1f}  {middle / base:22.2f}")


if __name__ == "__main__":
    main()
