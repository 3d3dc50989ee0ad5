"""A convolutional network from Keras layers
=========================================

You learn: what a convolution and a pooling layer do to the shape of an image, how many numbers
each layer learns, how a learning rate rises and falls over a training, and how to look at the
mistakes that are left.

Run::

    python cnn/01_mnist_conv_layers.py

You should see: a test accuracy of 99.40 % on all 10,000 test images, 20 predictions beside
the truth, and three figures: those 20 (``predictions.png``), the images that the network got
most wrong (``worst_mistakes.png``), and which digits it confuses (``confusion_matrix.png``).

Time: 3 minutes on two CPU cores. Stopped with Ctrl-C, the same command with the same
``--run-dir`` goes on after the last finished epoch.
"""

import argparse
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table
from sklearn.metrics import confusion_matrix

from data import mnist
from utils.run import (
    CourseParser,
    Run,
    make_parser,
    positive_float,
    positive_int,
    readable,
    written_whole,
)
from utils.summary import write_graph

QUICK_IMAGES = 3_000  # training images with --quick
BLUE, RED = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


def flags() -> CourseParser:
    """The flags of this script and, with them, the defaults of its training."""
    parser = make_parser(__doc__)
    mnist.add_data_dir(parser)
    parser.add_argument(
        "--epochs", type=positive_int, default=4, quick=1, help="passes over the training images"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=128, quick=32, help="images in a training step"
    )
    parser.add_argument(
        "--learning-rate", type=positive_float, default=1.5e-3, help="Adam's, at its peak"
    )
    return parser


# %%
# The network
# -----------
# Each layer, the shape it puts out for one image, and the numbers it learns:
#
# ===========  ==============  ============  =================================
# layer        what it does    puts out      parameters
# ===========  ==============  ============  =================================
# (rescaling)  0…255 to 0…1    28 × 28 × 1   0
# conv1        32 filters 5×5  28 × 28 × 32  5·5·1·32 + 32 = 832
# pool1        maximum of 2×2  14 × 14 × 32  0
# conv2        64 filters 5×5  14 × 14 × 64  5·5·32·64 + 64 = 51,264
# pool2        maximum of 2×2  7 × 7 × 64    0
# (flatten)    one long row    3,136         0
# hidden       1,024 units     1,024         3,136·1,024 + 1,024 = 3,212,288
# dropout      half set to 0   1,024         0
# logits       10 units        10            1,024·10 + 10 = 10,250
# ===========  ==============  ============  =================================
#
# Together 3,274,634, and 98 % of them in ``hidden``: a filter has few weights, because the same
# 5×5 weights are used at every place of the image. That is the point of a convolution. A stroke
# is recognised wherever it lies, and each weight of ``conv1`` learns from 784 places at once.
#
# **SAME and VALID.** A 5×5 filter needs two pixels on every side of its centre. ``SAME`` adds a
# border of zeros, so that 28 stays 28. ``VALID`` adds nothing and stops where the filter would
# stick out: 28 becomes 28 - 5 + 1 = 24. With ``VALID`` this network would shrink 28, 24, 12,
# 8, 4, and ``hidden`` would see 4·4·64 = 1,024 numbers in place of 3,136.
#
# **What one number sees.** A number after ``conv1`` depends on 5×5 pixels. After ``pool1`` it is
# 6×6, and neighbours lie 2 pixels apart, so the 5×5 filter of ``conv2`` reaches
# 6 + 4·2 = 14 pixels; after ``pool2`` 16 of the image's 28 pixels. This is the
# receptive field: the first layer can only know strokes, the second knows loops and crossings.
#
# **Logits.** The last layer has no softmax. The loss takes the logits and does the softmax
# itself (``from_logits=True``), which is exact also for extreme values. A softmax in the layer
# and another one in the loss is the commonest mistake of such scripts: it still trains, but
# slowly, since the second softmax sees only numbers between 0 and 1.
#
# **Scaling.** Pixels are divided by 255 inside the model and nowhere else. The saved model then
# takes raw bytes, and nobody can forget the division or do it twice.
#
# The lines of TensorFlow 1 beside those of today::
#
#     tf.layers.conv2d(x, 32, 5, padding="same",          layers.Conv2D(32, 5, padding="same",
#                      activation=tf.nn.relu)                           activation="relu")
#     tf.layers.max_pooling2d(x, 2, 2)                    layers.MaxPooling2D(2)
#     tf.reshape(x, [-1, 7 * 7 * 64])                     layers.Flatten()
#     tf.layers.dense(x, 1024, tf.nn.relu)                layers.Dense(1024, activation="relu")
#     tf.layers.dropout(x, 0.5, training=is_training)     layers.Dropout(0.5)
#     tf.losses.sparse_softmax_cross_entropy(y, logits)   SparseCategoricalCrossentropy(
#                                                             from_logits=True)
#     tf.metrics.accuracy(y, prediction)                  metrics=["accuracy"]
#
# ``tf.layers.dropout`` needed ``is_training`` and did nothing when it was left out. Keras passes
# it along: on in ``fit``, off in ``evaluate`` and ``predict``.

PARAMETERS = {
    "conv1": 5 * 5 * 1 * 32 + 32,
    "conv2": 5 * 5 * 32 * 64 + 64,
    "hidden": 7 * 7 * 64 * 1024 + 1024,
    "logits": 1024 * 10 + 10,
}


def build_model() -> keras.Sequential:
    """The network of the table above: uint8 of shape [n, 28, 28] in, logits [n, 10] out."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            layers.Reshape((28, 28, 1), name="channel"),  # convolutions want [n, 28, 28, 1]
            layers.Rescaling(1 / 255, name="rescaling"),
            layers.Conv2D(32, 5, padding="same", activation="relu", name="conv1"),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Conv2D(64, 5, padding="same", activation="relu", name="conv2"),
            layers.MaxPooling2D(2, name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(1024, activation="relu", name="hidden"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(10, name="logits"),
        ],
        name="mnist_conv_layers",
    )
    for name, count in PARAMETERS.items():
        assert model.get_layer(name).count_params() == count, name
    assert model.count_params() == sum(PARAMETERS.values()) == 3_274_634
    return model


# %%
# The learning rate over the training
# -----------------------------------
# Adam's first steps rest on a guess of each gradient's size from very few batches, so the rate
# starts at a tenth of its peak and rises in a straight line over the first 15 % of all steps.
# From there it falls to zero along half a cosine: large steps while there is far to go, small
# ones at the end, when the noise of the batches is larger than what is left to gain. The rate
# is the curve ``epoch_learning_rate`` in TensorBoard.


def learning_rate_schedule(peak: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """A rate that rises to ``peak`` over 15 % of ``steps`` and falls to 0 over the rest."""
    warmup = steps * 15 // 100
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / 10,
        decay_steps=max(1, steps - warmup),  # counted from the end of the warm-up
        warmup_target=peak,
        warmup_steps=warmup,
    )


# %%
# The data, in batches
# --------------------
# A ``tf.data.Dataset`` is what remains of TensorFlow 1's queues, and of ``feed_dict`` with
# ``mnist.train.next_batch(50)``. Shuffling goes over the whole training set, anew in each epoch.
# The last batch of an epoch may be smaller; it is kept, so that every image is used.


def batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, shuffle_seed: int | None = None
) -> tf.data.Dataset:
    """Batches of images uint8 [b, 28, 28] and labels [b]; shuffled if there is a seed."""
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if shuffle_seed is not None:
        dataset = dataset.shuffle(len(images), seed=shuffle_seed, reshuffle_each_iteration=True)
    options = tf.data.Options()
    options.autotune.enabled = False  # on a CPU it can hold up the end of an epoch for seconds
    return dataset.batch(batch_size).prefetch(2).with_options(options)


# %%
# Training
# --------
# The line that Keras prints for an epoch has two kinds of numbers. ``accuracy`` and ``loss`` are
# averages over the batches of the epoch, taken while the weights were still changing and with
# half of the hidden units switched off: they lag behind, and in the first epoch by much. The
# fair numbers are ``val_accuracy`` and ``val_loss``: the weights as they stand at the end of the
# epoch, all units on, on images that were not trained on. The training script of old printed
# ``tf.metrics.accuracy``, an average over everything since the first step, as its accuracy.
#
# ``BackupAndRestore`` writes weights and optimizer after each epoch and reads them when the same
# command is started again in the same run folder. It doesn't keep the state of the random
# numbers for dropout and shuffling, so the result of an interrupted training is as good as that
# of an uninterrupted one, but not the same to the last digit. The next script shows how to get
# that too.


def train(
    model: keras.Model, m: mnist.Mnist, args: argparse.Namespace, run: Run
) -> tuple[list[int], float | None]:
    """Train ``model``; return the epochs done here, counted from 0, and the seconds they took
    (None when an earlier run did a part of them)."""
    images, labels = m.train_images, m.train_labels
    if args.quick:
        images, labels = images[:QUICK_IMAGES], labels[:QUICK_IMAGES]
    steps = args.epochs * -(-len(images) // args.batch_size)  # rounded up
    model.compile(
        keras.optimizers.Adam(learning_rate_schedule(args.learning_rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    for name in ("train", "validation"):
        run.log_dir(name)
    resumed = run.resuming and run.backup.exists()
    if resumed:
        print("Going on after the last finished epoch of the interrupted run.")

    started = time.perf_counter()
    history = model.fit(
        batches(images, labels, args.batch_size, shuffle_seed=args.seed),
        epochs=args.epochs,
        validation_data=batches(m.validation_images, m.validation_labels, 500),
        shuffle=False,  # the dataset shuffles; fit can't, and warns if this is not said
        verbose=run.verbose,
        callbacks=[
            keras.callbacks.BackupAndRestore(run.backup, double_checkpoint=True),
            keras.callbacks.TensorBoard(run.folder, write_graph=False),
        ],
    )
    return history.epoch, None if resumed else time.perf_counter() - started


# %%
# Saved, and loaded back
# ----------------------
# What is saved takes raw bytes and gives probabilities: a softmax is put behind the logits for
# that, after training. One file holds layers, weights and the scaling. To use it elsewhere::
#
#     model = keras.models.load_model("model.keras")
#     model.predict(images)        # uint8 [n, 28, 28] in, probabilities [n, 10] out
#
# In TensorFlow 1 a ``Saver`` kept the weights only, and the program that loaded them had to
# build the same graph by the same code.


def save_and_check(model: keras.Model, images: np.ndarray, path: Path) -> None:
    """Save ``model`` with a softmax behind it, load it, and compare the two on ``images``.

    Raises:
        SystemExit: the loaded model doesn't predict exactly what the saved one did.
    """
    classifier = keras.Sequential(
        [keras.Input((28, 28), dtype="uint8"), model, keras.layers.Softmax(name="probabilities")]
    )
    with written_whole(path) as temporary:
        classifier.save(temporary)
    dataset = batches(images, np.zeros(len(images)), 500).map(lambda image, _: image)
    before = classifier.predict(dataset, verbose=0)
    after = keras.models.load_model(path).predict(dataset, verbose=0)
    if not np.array_equal(before, after):
        worst = np.abs(before - after).max()
        raise SystemExit(f"{path}: loaded back, its probabilities differ by up to {worst}")
    print(f"Model: {readable(path)}, loaded back with identical predictions")


# %%
# What the network says, and where it errs
# ----------------------------------------
# Everything below comes from one pass over all test images. Confidence is the probability of
# the answer, the largest of the ten. In ``worst_mistakes.png`` the images stand in the order of
# their loss, -log(probability of the truth): at the top the network was sure and wrong. Look at
# them before training longer. Some could be read either way, and a few carry a wrong label.


def show_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    losses: np.ndarray,
    title: str,
    with_loss: bool = False,
) -> plt.Figure:
    """A figure of up to 20 images uint8 [n, 28, 28] with prediction, confidence and truth."""
    figure, grid = plt.subplots(4, 5, figsize=(9, 8.6), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, label, p, loss in zip(
        grid.flat, images, labels, probabilities, losses, strict=False
    ):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        answer = p.argmax()
        axes.set_title(
            f"{'✓' if answer == label else '✗'} says {answer} ({p[answer]:.1%})\n"
            f"is {label}" + (f", loss {loss:.1f}" if with_loss else ""),
            color=BLUE if answer == label else RED,
            fontsize=10,
        )
    figure.suptitle(title)
    return figure


def print_predictions(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """A table with one row for each image: prediction, truth, confidence."""
    table = Table(
        "test image", "truth", "prediction", "confidence", "", title="Prediction and truth"
    )
    for number, (label, p) in enumerate(zip(labels, probabilities, strict=True)):
        right = p.argmax() == label
        table.add_row(
            str(number), str(label), str(p.argmax()), f"{p.max():.2%}", "" if right else "wrong"
        )
    Console().print(table)


def show_confusion(matrix: np.ndarray) -> plt.Figure:
    """A figure of the matrix [10, 10]: row the truth, column the answer. The right answers, a
    hundred times as many as the wrong ones, are counted but not coloured."""
    figure, axes = plt.subplots(figsize=(6.6, 6), layout="constrained")
    wrong = np.where(np.eye(10, dtype=bool), 0, matrix)
    image = axes.imshow(wrong, cmap="Blues", vmin=0, vmax=max(1, wrong.max()))
    for (row, column), count in np.ndenumerate(matrix):
        light = row != column and count > 0.6 * wrong.max()
        if count:
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color="white" if light else "black",
                fontsize=9,
            )
    axes.set(
        xticks=range(10),
        yticks=range(10),
        xlabel="the network says",
        ylabel="the label says",
        title="Which digits are confused (colour: mistakes)",
    )
    figure.colorbar(image, label="mistakes", shrink=0.8, ticks=MaxNLocator(integer=True))
    return figure


def main() -> None:
    run = Run(flags(), __file__)
    args = run.args
    keras.utils.set_random_seed(args.seed)
    tf.config.experimental.enable_op_determinism()  # add in a fixed order
    m = mnist.load(args.data_dir)
    print(f"Data: {m.source}. Seed: {args.seed}")

    model = build_model()
    model.summary()
    # The graph for TensorBoard's Graphs tab. The Keras callback's own graph shows layers only.
    signature = tf.TensorSpec([None, 28, 28], tf.uint8, name="images")
    forward = tf.function(lambda images: model(images, training=False))
    write_graph(run.log_dir("graph"), forward.get_concrete_function(signature))

    _, train_seconds = train(model, m, args, run)
    save_and_check(model, m.validation_images[:1_000], run.folder / "model.keras")
    validation_loss, validation_accuracy = model.evaluate(
        batches(m.validation_images, m.validation_labels, 500), verbose=0
    )

    # The test: once, at the end, all images.
    print(f"Scoring all {len(m.test_images):,} test images …")
    test = batches(m.test_images, m.test_labels, 500)
    logits = model.predict(test, verbose=0).astype(np.float64)  # [n, 10]
    labels = m.test_labels.astype(np.int64)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy()  # [n]
    probabilities = tf.nn.softmax(logits).numpy()  # [n, 10]
    answers = logits.argmax(axis=1)  # [n]
    matrix = confusion_matrix(labels, answers, labels=range(10))
    print_predictions(labels[:20], probabilities[:20])
    wrong = np.where(np.eye(10, dtype=bool), 0, matrix)
    for place in np.argsort(wrong, axis=None)[::-1][:3]:
        truth, answer = divmod(int(place), 10)
        if wrong[truth, answer]:
            print(f"{truth} taken for {answer}: {wrong[truth, answer]} of {matrix[truth].sum()}")

    figure = show_predictions(
        m.test_images, labels, probabilities, losses, "The first 20 test images"
    )
    run.save_figure(figure, "predictions")
    worst = np.argsort(-losses, kind="stable")[:20]
    figure = show_predictions(
        m.test_images[worst],
        labels[worst],
        probabilities[worst],
        losses[worst],
        f"The 20 highest losses ({np.sum(answers != labels)} of {len(labels):,} are wrong)",
        with_loss=True,
    )
    run.save_figure(figure, "worst_mistakes")
    run.save_figure(show_confusion(matrix), "confusion_matrix")

    run.finish(
        {
            "test_accuracy": np.mean(answers == labels),
            "test_loss": np.mean(losses),
            "validation_accuracy": validation_accuracy,
            "validation_loss": validation_loss,
        },
        data=m.describe(),
        train_seconds=train_seconds,
        parameters=model.count_params(),
        confusion_matrix=matrix.tolist(),
    )


if __name__ == "__main__":
    main()
