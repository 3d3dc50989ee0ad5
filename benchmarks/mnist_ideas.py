"""What does each idea of ``cnn/04_small_and_fast.py`` bring?

The network of that script is trained with all its ideas and then without one of them at a time.
Accuracy and loss are those of the 5,000 validation images; chance alone moves an accuracy of 99.5 %
on so few images by ±0.2 %, so look at the loss as well, and take more seeds for small differences::

    python benchmarks/mnist_ideas.py --seeds 3

Time: half a minute for each training of two epochs on two CPU cores, so 9 minutes for two seeds.
"""

import argparse
import statistics
import time
from pathlib import Path

import keras
import tensorflow as tf

from data import mnist
from utils.run import readable, write_json
from utils.training import warm_up_cosine

BATCH_SIZE, PEAK_RATE, SHIFT = 64, 2e-3, 2  # as in the script
AVERAGED = {"use_ema": True, "ema_momentum": 0.998}


def build(
    pairs: bool = True, norm: bool = True, momentum: float = 0.9, pooled: bool = True
) -> keras.Sequential:
    """The network of the script; or with one 5×5 in place of each pair of 3×3, without batch
    normalisation or with another momentum of it, or with a dense layer in place of the global
    pooling."""
    layers = keras.layers
    blocks = [(24, 5, "valid", True)]  # filters, side of a filter, padding, followed by pooling?
    if pairs:
        blocks += [(48, 3, "valid", False), (48, 3, "same", True)]
        blocks += [(96, 3, "same", False), (96, 3, "valid", False)]
    else:
        blocks += [(48, 5, "valid", True), (96, 5, "same", False)]
    parts = [keras.Input((28, 28), dtype="uint8")]
    parts += [layers.Reshape((28, 28, 1)), layers.Rescaling(1 / 255)]
    for filters, side, padding, pool in blocks:
        parts.append(layers.Conv2D(filters, side, padding=padding, use_bias=not norm))
        parts += [layers.MaxPooling2D(2)] * pool
        parts += [layers.BatchNormalization(momentum=momentum)] * norm
        parts.append(layers.ReLU())
    if pooled:
        parts.append(layers.GlobalAveragePooling2D())
    else:
        parts += [layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dropout(0.5)]
    return keras.Sequential([*parts, layers.Dense(10)])


def shifted(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The images, each moved at random by up to two pixels down or up, right or left."""
    padded = tf.pad(images, [[0, 0], [SHIFT, SHIFT], [SHIFT, SHIFT]])
    first = tf.random.uniform([2, len(images), 1], 0, 2 * SHIFT + 1, tf.int32)
    rows = tf.gather(padded, first[0] + tf.range(28), axis=1, batch_dims=1)
    return tf.gather(rows, first[1] + tf.range(28), axis=2, batch_dims=1), labels


# What is changed: the network, whether images are shifted, whether the rate falls, averaging.
VARIANTS = {
    "all ideas": {},
    "one 5×5 for two 3×3": {"network": {"pairs": False}},
    "no batch normalisation": {"network": {"norm": False}},
    "… with momentum 0.99": {"network": {"momentum": 0.99}},
    "no global pooling": {"network": {"pooled": False}},
    "no shifts": {"shift": False},
    "averaged weights as well": {"adam": AVERAGED},
    "rate doesn't fall": {"falls": False},
    "… and averaged weights": {"falls": False, "adam": AVERAGED},
}


def train(
    data: mnist.Mnist,
    epochs: int,
    seed: int,
    network: dict = {},  # noqa: B006  (only read)
    shift: bool = True,
    falls: bool = True,
    adam: dict = {},  # noqa: B006
) -> dict[str, float]:
    """One training and its scores on the validation images."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = build(**network)
    rate = PEAK_RATE
    if falls:
        rate = warm_up_cosine(PEAK_RATE, epochs * -(-len(data.train_images) // BATCH_SIZE))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate, **adam), loss, metrics=["accuracy"])
    batches = mnist.batches(data.train_images, data.train_labels, BATCH_SIZE, seed=seed)
    started = time.perf_counter(), time.process_time()
    model.fit(
        batches.map(shifted).prefetch(2) if shift else batches,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    )  # at its end Keras puts the averaged weights into the model
    seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    validation = mnist.batches(data.validation_images, data.validation_labels, 500)
    loss, accuracy = model.evaluate(validation, verbose=0)
    count = model.count_params()
    return {"accuracy": accuracy, "loss": loss, "s": seconds, "cpu_s": cpu, "parameters": count}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2, help="of each training (default: 2)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings a line (default: 2)")
    parser.add_argument("--train", type=int, default=55_000, help="training images")
    parser.add_argument("--json", type=Path, help="write all scores there")
    args = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    data = mnist.load().first(train=args.train, validation=mnist.VALIDATION)
    print(f"{'':26} parameters  accuracy  loss     CPU seconds")
    scores: dict[str, list[dict[str, float]]] = {}
    for name, changed in VARIANTS.items():
        scores[name] = [train(data, args.epochs, s + 1, **changed) for s in range(args.seeds)]
        mean = {k: statistics.mean(score[k] for score in scores[name]) for k in scores[name][0]}
        print(
            f"{name:26} {mean['parameters']:10,.0f}  {mean['accuracy']:8.2%}  {mean['loss']:.4f}  "
            f"{mean['cpu_s']:8.1f}",
            flush=True,
        )
        if args.json:
            write_json(args.json, scores)
    if args.json:
        print(f"Scores: {readable(args.json)}")


if __name__ == "__main__":
    main()
