"""The same network by hand
========================

You learn: what the layers of the script before are made of. Convolutions, pooling and matrix
products are called one by one on plain variables, the training step is written out, and a
training that was killed goes on exactly where it was. And why a classifier is trained with the
cross-entropy: the quadratic cost learns slowest from what it gets most wrong.

Run::

    python cnn/02_mnist_conv_nn.py

You should see: a test accuracy of 99.36 % on all 10,000 test images. ``costs.png`` sets the two
costs side by side: from a start that is sure of a wrong answer the cross-entropy recovers within
20 steps, the quadratic cost stands still for 40. ``curves.png`` shows loss and
accuracy during the training, ``filters.png`` and ``feature_maps.png`` what was learned.

Time: 4 minutes on two CPU cores. Stopped with Ctrl-C or killed, the same command with the same
``--run-dir`` goes on after the last finished epoch and ends with the same result to the last
digit.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data import mnist
from utils.run import (
    CourseParser,
    Run,
    make_parser,
    positive_float,
    positive_int,
)
from utils.summary import variable_summaries, write_graph

QUICK_IMAGES, QUICK_SCORED = 3_000, 500  # with --quick: images to train on, to score
BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


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
    parser.add_argument(
        "--compare-steps",
        type=positive_int,
        default=200,
        quick=30,
        help="steps of each of the four short trainings that compare the two costs",
    )
    return parser


# %%
# Shapes, parameters and receptive fields, reckoned
# -------------------------------------------------
# A window of k pixels moved by s pixels fits into a row of n pixels
#
# .. math:: \lceil n / s \rceil \text{ times with SAME}, \qquad
#           \lceil (n - k + 1) / s \rceil \text{ times with VALID.}
#
# ``SAME`` adds as many zeros at the border as are needed for that, ``VALID`` none. For a 5×5
# filter moved by 1 that is 28 or 24. For the 2×2 pooling of an even number of pixels both give
# the half.
#
# A layer with windows of k pixels widens what one of its numbers sees by (k - 1) times the
# distance of its inputs, and multiplies that distance by s. So the receptive field grows from
# 1 pixel to 5, 6, 14 and 16.


class Window(NamedTuple):
    """A layer that looks through a window: its name, the window's size and step, how many maps
    it reads and puts out; ``learns`` is False for pooling."""

    name: str
    size: int
    stride: int
    maps_in: int
    maps_out: int
    learns: bool


WINDOWS = (
    Window("conv1", 5, 1, 1, 32, True),
    Window("pool1", 2, 2, 32, 32, False),
    Window("conv2", 5, 1, 32, 64, True),
    Window("pool2", 2, 2, 64, 64, False),
)
SIDE, HIDDEN, CLASSES = 28, 1024, 10
FLAT = 7 * 7 * 64  # what pool2 puts out, as one row


def output_size(size: int, window: int, stride: int, padding: str) -> int:
    """How many places a window has in a row of ``size`` pixels; ``padding`` SAME or VALID."""
    room = {"SAME": size, "VALID": size - window + 1}[padding]
    return -(-room // stride)  # rounded up


def layer_table() -> list[tuple[str, int, int, int, int, int]]:
    """For each window layer: name, side with SAME, side if all were VALID, maps, receptive
    field in pixels, parameters."""
    rows = []
    same = valid = SIDE
    field = distance = 1
    for name, size, stride, maps_in, maps_out, learns in WINDOWS:
        same = output_size(same, size, stride, "SAME")
        valid = output_size(valid, size, stride, "VALID")
        field += (size - 1) * distance
        distance *= stride
        parameters = size * size * maps_in * maps_out + maps_out if learns else 0
        rows.append((name, same, valid, maps_out, field, parameters))
    return rows


def print_layers() -> None:
    """``layer_table`` and the two dense layers, for a reader."""
    table = Table("layer", "puts out", "if VALID", "sees", "parameters", title="The network")
    for name, same, valid, maps, field, parameters in layer_table():
        table.add_row(
            name,
            f"{same}×{same}×{maps}",
            f"{valid}×{valid}×{maps}",
            f"{field}×{field} pixels",
            f"{parameters:,}",
        )
    table.add_row("hidden", f"{HIDDEN}", "", "all", f"{FLAT * HIDDEN + HIDDEN:,}")
    table.add_row("logits", f"{CLASSES}", "", "all", f"{HIDDEN * CLASSES + CLASSES:,}")
    Console().print(table)


# %%
# The network
# -----------
# A ``tf.Module`` is a place for variables: whatever variable is assigned to an attribute is
# found by ``trainable_variables`` and by a checkpoint. It takes the part of TensorFlow 1's
# collections and variable scopes. The operations have hardly changed::
#
#     W = tf.Variable(tf.truncated_normal([5, 5, 1, 32], stddev=0.1))
#     b = tf.Variable(tf.constant(0.1, shape=[32]))
#     h = tf.nn.relu(tf.nn.conv2d(x, W, strides=[1, 1, 1, 1], padding="SAME") + b)
#     p = tf.nn.max_pool(h, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME")
#     d = tf.nn.dropout(f, keep_prob)        # the share that is kept
#
# Today a stride is one number, ``tf.nn.max_pool2d`` has the 2 in its name, and dropout takes the
# share that is *dropped*: 0.5 hides that change, 0.75 copied over would drop three quarters.
#
# **Initial values.** A unit adds up as many products as it has inputs, n, so its output has
# about n·σ² times the power of its inputs, and relu then halves it. With σ = √(2/n) the signal
# keeps its size through all layers (He et al., *Delving deep into rectifiers*, 2015). The
# tutorials of TensorFlow 1 took σ = 0.1 for all layers, and biases of 0.1 against dead units.
# For ``hidden`` with n = 3,136 that is almost four times too much: the untrained network is sure
# of wrong answers, with a loss of 6.4 (He's values: 3.3; a network that gives every digit 1/10:
# ln 10 = 2.3). Adam unlearns that soon. After 100 steps of 64 images at a rate of 0.001 the
# validation accuracy was 94.6 % against 96.6 % with He's values. With the quadratic cost (below)
# it was 9.6 % against 87.6 %: the start of old had not learned anything yet (``--seed 1``; with
# ``--seed 2`` it had, 87.7 %). Both cut the normal distribution at two standard deviations, which
# leaves 0.88 of its spread; here that is made up for.
#
# **Dropout** takes its random numbers from a seed made of ``--seed`` and the number of the step.
# No hidden state has to be kept: step 700 drops the same units, whether the program came there
# in one go or was started again at step 600. Without a seed nothing is dropped, so evaluation
# can't forget to switch it off.


class ConvNet(tf.Module):
    """32 and 64 filters of 5×5 with 2×2 pooling, 1,024 hidden units with dropout, 10 logits."""

    def __init__(self, seed: int) -> None:
        """Draw the weights; the same seed gives the same ones."""
        super().__init__(name="mnist_conv_nn")
        self.conv1_kernel = self._weights("conv1_kernel", (5, 5, 1, 32), (seed, 1))
        self.conv1_bias = tf.Variable(tf.zeros(32), name="conv1_bias")
        self.conv2_kernel = self._weights("conv2_kernel", (5, 5, 32, 64), (seed, 2))
        self.conv2_bias = tf.Variable(tf.zeros(64), name="conv2_bias")
        self.hidden_kernel = self._weights("hidden_kernel", (FLAT, HIDDEN), (seed, 3))
        self.hidden_bias = tf.Variable(tf.zeros(HIDDEN), name="hidden_bias")
        self.logits_kernel = self._weights("logits_kernel", (HIDDEN, CLASSES), (seed, 4))
        self.logits_bias = tf.Variable(tf.zeros(CLASSES), name="logits_bias")

    @staticmethod
    def _weights(name: str, shape: tuple[int, ...], seed: tuple[int, int]) -> tf.Variable:
        inputs = np.prod(shape[:-1])  # of one unit: 25 for conv1, 800 for conv2
        stddev = np.sqrt(2 / inputs) / 0.8796  # the cut at ±2σ leaves 0.8796 of it
        seed = tf.constant(seed, tf.int64)
        return tf.Variable(
            tf.random.stateless_truncated_normal(shape, seed, stddev=stddev), name=name
        )

    def convolutions(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """From pixels 0 to 1, float32 [n, 28, 28, 1], to what conv1, conv2 and pool2 put out:
        [n, 28, 28, 32], [n, 14, 14, 64] and [n, 7, 7, 64]."""
        with tf.name_scope("conv1"):
            conv1 = tf.nn.conv2d(images, self.conv1_kernel, strides=1, padding="SAME")
            conv1 = tf.nn.relu(conv1 + self.conv1_bias)
        with tf.name_scope("pool1"):
            pool1 = tf.nn.max_pool2d(conv1, ksize=2, strides=2, padding="SAME")  # [n, 14, 14, 32]
        with tf.name_scope("conv2"):
            conv2 = tf.nn.conv2d(pool1, self.conv2_kernel, strides=1, padding="SAME")
            conv2 = tf.nn.relu(conv2 + self.conv2_bias)
        with tf.name_scope("pool2"):
            pool2 = tf.nn.max_pool2d(conv2, ksize=2, strides=2, padding="SAME")
        return conv1, conv2, pool2

    def __call__(self, images: tf.Tensor, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """Logits float32 [n, 10] of images uint8 [n, 28, 28].

        Args:
            images: raw pixels; they are scaled here and nowhere else.
            dropout_seed: two whole numbers, in training; None keeps all units.
        """
        with tf.name_scope("scaling"):
            pixels = tf.cast(images, tf.float32)[..., tf.newaxis] / 255
        _, _, pool2 = self.convolutions(pixels)
        with tf.name_scope("hidden"):
            flat = tf.reshape(pool2, [-1, FLAT])
            hidden = tf.nn.relu(tf.matmul(flat, self.hidden_kernel) + self.hidden_bias)
        if dropout_seed is not None:
            with tf.name_scope("dropout"):
                # The units that stay are doubled, so that the sum keeps its size.
                hidden = tf.nn.experimental.stateless_dropout(hidden, rate=0.5, seed=dropout_seed)
        with tf.name_scope("logits"):
            return tf.matmul(hidden, self.logits_kernel) + self.logits_bias

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE], tf.uint8, name="images")])
    def predict(self, images: tf.Tensor) -> tf.Tensor:
        """The logits without dropout, as a compiled graph."""
        return self(images)


# %%
# Two costs
# ---------
# The network's logits z become probabilities p = softmax(z). Let y be 1 for the true digit and 0
# for the others. Two costs to choose from:
#
# .. math::
#
#    C_{\text{cross-entropy}} = -\sum_i y_i \ln p_i , \qquad
#    C_{\text{quadratic}} = \tfrac{1}{2} \sum_i (p_i - y_i)^2 .
#
# Both are least when p = y. What matters is the slope on the way there. The softmax has the
# derivatives :math:`\partial p_j / \partial z_i = p_j (\delta_{ij} - p_i)`, and with them
#
# .. math::
#
#    \frac{\partial C_{\text{cross-entropy}}}{\partial z_i} = p_i - y_i , \qquad
#    \frac{\partial C_{\text{quadratic}}}{\partial z_i}
#    = p_i \Bigl[ (p_i - y_i) - \sum_j p_j (p_j - y_j) \Bigr] .
#
# The logarithm cancels the derivative of the softmax: the first slope is just the error. In the
# second it stays. With two classes the bracket is :math:`2 (1 - p_i)(p_i - y_i)`: the error
# times p(1 - p), which is 1/4 for p = 1/2 and next to nothing when the network is sure, whether
# right or wrong. The worse the mistake, the less is learned from it. (M. Nielsen, *Neural
# Networks and Deep Learning*, 2015, chapter 3, tells this with one sigmoid neuron.)


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The mean cross-entropy of logits [n, 10] and labels [n]; softmax and logarithm in one."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(losses)


def quadratic(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Half the squared distance of probabilities and truth, mean over logits [n, 10]."""
    error = tf.nn.softmax(logits) - tf.one_hot(labels, CLASSES, dtype=logits.dtype)
    return tf.reduce_mean(tf.reduce_sum(tf.square(error), axis=-1) / 2)


COSTS = {"cross_entropy": cross_entropy, "quadratic": quadratic}


def cost_slopes(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The two formulas above: for each cost its slope [n, 10] by the logits [n, 10], one image
    at a time (not the mean over n)."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = p - np.eye(CLASSES)[labels]
    return {
        "cross_entropy": error,
        "quadratic": p * (error - np.sum(p * error, axis=1, keepdims=True)),
    }


def slopes_when_wrong() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A network that says 0 where 1 is true, more and more surely: the probability of its wrong
    answer, [n], and the slope of each cost by that answer's logit, [n].

    Checked here against automatic differentiation.
    """
    logits = np.zeros((100, CLASSES))
    logits[:, 0] = np.linspace(-3, 12, 100)
    labels = np.ones(100, np.int64)
    slopes = cost_slopes(logits, labels)
    for name, cost in COSTS.items():
        z = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(z)
            total = cost(z, labels) * len(logits)  # the costs are means; the formulas are not
        np.testing.assert_allclose(tape.gradient(total, z), slopes[name], atol=1e-12)
    wrong = tf.nn.softmax(logits).numpy()[:, 0]
    return wrong, {name: slope[:, 0] for name, slope in slopes.items()}


def print_slopes(wrong: np.ndarray, slopes: dict[str, np.ndarray]) -> None:
    """Some rows of ``slopes_when_wrong`` as a table."""
    table = Table(
        "probability of the wrong answer",
        "cross-entropy",
        "quadratic cost",
        title="Slope of the cost by the wrong answer's logit",
    )
    for p in (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999):
        row = int(np.argmin(np.abs(wrong - p)))
        table.add_row(
            f"{wrong[row]:.4f}",
            f"{slopes['cross_entropy'][row]:.4f}",
            f"{slopes['quadratic'][row]:.5f}",
        )
    Console().print(table)


# %%
# The training step
# -----------------
# All of it: the loss with dropout, its gradient by every variable, the optimizer's step.
# ``tf.function`` records the operations once and runs them as a graph from then on. The step
# number is a tensor, read at each call; as a Python number it would be frozen into the graph.
# In TensorFlow 1 this was ``train_op = tf.train.AdamOptimizer(1e-4).minimize(cost)`` and
# ``sess.run(train_op, feed_dict={x: batch[0], y: batch[1], keep_prob: 0.5})``.


def make_step(
    network: ConvNet, optimizer: keras.optimizers.Optimizer, cost: Callable, seed: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function that trains ``network`` on images uint8 [b, 28, 28] and labels int64 [b] and
    returns the cost of this batch, taken before the step and with dropout on."""
    variables = network.trainable_variables
    optimizer.build(variables)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, SIDE, SIDE], tf.uint8),
            tf.TensorSpec([None], tf.int64),
        ]
    )
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        number = tf.cast(optimizer.iterations.value, tf.int64)
        with tf.GradientTape() as tape:
            logits = network(images, dropout_seed=tf.stack([tf.constant(seed, tf.int64), number]))
            loss = cost(logits, labels)
        gradients = tape.gradient(loss, variables)
        optimizer.apply(gradients, variables)
        return loss

    return step


def learning_rate_schedule(peak: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """A rate that rises from a tenth of ``peak`` to ``peak`` over 15 % of ``steps`` and falls to
    0 along half a cosine over the rest, as in the script before."""
    warmup = steps * 15 // 100
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / 10,
        decay_steps=max(1, steps - warmup),
        warmup_target=peak,
        warmup_steps=warmup,
    )


# %%
# Batches in an order that can be found again
# -------------------------------------------
# The order of the images in an epoch comes from a seed made of ``--seed`` and the number of the
# epoch. As with dropout no state is kept: the third epoch has one order, in whatever process it
# runs. TensorFlow 1's ``shuffle_batch`` mixed only as many images as its queue held; here the
# whole training set is mixed, by shuffling the row numbers.


def shuffled_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int, epoch: int
) -> tf.data.Dataset:
    """One epoch: batches of images uint8 [b, 28, 28] and labels int64 [b], each image once."""
    images, labels = tf.constant(images), tf.constant(labels, tf.int64)
    order = tf.random.experimental.stateless_shuffle(
        tf.range(len(images)), seed=tf.constant([seed, epoch], tf.int64)
    )
    rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
    return rows.map(lambda row: (tf.gather(images, row), tf.gather(labels, row))).prefetch(2)


def logits_of(network: ConvNet, images: np.ndarray) -> np.ndarray:
    """The network's logits, float32 [n, 10], of images uint8 [n, 28, 28]; dropout off."""
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(500)
    return np.concatenate([network.predict(batch) for batch in dataset])


def score(network: ConvNet, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all the images given."""
    logits = tf.constant(logits_of(network, images), tf.float64)
    accuracy = np.mean(np.argmax(logits, axis=1) == labels)
    return float(cross_entropy(logits, tf.constant(labels, tf.int64))), float(accuracy)


# %%
# Training that survives a kill
# -----------------------------
# At the end of each epoch the network is scored as it stands then, dropout off, on the 5,000
# validation images and on as many training images (500 of each with ``--quick``). Those two
# curves may be compared: same weights, same number of images, same way. The cost of single
# batches goes to TensorBoard too, under its own name, ``batch_loss``; it has dropout on and
# jumps about.
#
# Then a checkpoint is written: weights, Adam's two averages for each weight, the number of steps
# (dropout and learning rate follow from it), the number of epochs (the order of the images
# follows from it), and the curves so far. Nothing else changes during a training, so going on
# from there is exact. The manager writes the new checkpoint before it removes the old one, so
# there is a whole one at any moment.


def train(
    network: ConvNet, m: mnist.Mnist, args: argparse.Namespace, run: Run
) -> tuple[np.ndarray, float]:
    """Train ``network`` with the cross-entropy.

    Returns:
        The curves, float64 [epochs + 1, 4]: loss and accuracy on training images, loss and
        accuracy on validation images, before the training and after each epoch; and the seconds
        of training, those before an interruption included.
    """
    images, labels = m.train_images, m.train_labels
    if args.quick:
        images, labels = images[:QUICK_IMAGES], labels[:QUICK_IMAGES]
    # As many training as validation images are scored after each epoch.
    scored = slice(0, QUICK_SCORED if args.quick else len(m.validation_images))
    steps_per_epoch = -(-len(images) // args.batch_size)  # rounded up
    steps = args.epochs * steps_per_epoch
    optimizer = keras.optimizers.Adam(learning_rate_schedule(args.learning_rate, steps))
    step = make_step(network, optimizer, cross_entropy, args.seed)

    curves = tf.Variable(tf.zeros([args.epochs + 1, 4], tf.float64))
    epochs_done = tf.Variable(0)
    seconds = tf.Variable(0.0, dtype=tf.float64)
    checkpoint = tf.train.Checkpoint(
        network=network,
        optimizer=optimizer,
        curves=curves,
        epochs_done=epochs_done,
        seconds=seconds,
    )
    manager = tf.train.CheckpointManager(checkpoint, run.backup, max_to_keep=1)
    resumed = run.resuming and manager.latest_checkpoint is not None
    if resumed:
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()
        print(f"Going on after epoch {epochs_done.numpy()} of the interrupted run.")
    writers = {
        name: tf.summary.create_file_writer(run.log_dir(name)) for name in ("train", "validation")
    }

    def note_scores(epoch: int) -> None:
        train_scores = score(network, images[scored], labels[scored])
        validation_scores = score(network, m.validation_images[scored], m.validation_labels[scored])
        curves[epoch].assign(train_scores + validation_scores)
        for writer, (loss, accuracy) in zip(
            writers.values(), (train_scores, validation_scores), strict=True
        ):
            with writer.as_default(step=epoch * steps_per_epoch):
                tf.summary.scalar("loss", loss)
                tf.summary.scalar("accuracy", accuracy)
        with writers["train"].as_default():
            for variable in network.trainable_variables:
                variable_summaries(variable.name.split(":")[0], variable, epoch * steps_per_epoch)
        for writer in writers.values():
            writer.flush()

    if not resumed:
        note_scores(0)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, batch loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        done = int(epochs_done) * steps_per_epoch
        bar = progress.add_task("training", total=steps, completed=done, loss=np.nan)
        for epoch in range(int(epochs_done), args.epochs):
            started = time.perf_counter()
            for batch in shuffled_batches(images, labels, args.batch_size, args.seed, epoch):
                loss = float(step(*batch))
                progress.update(bar, advance=1, loss=loss)
                if (number := int(optimizer.iterations)) % 20 == 0:
                    with writers["train"].as_default(step=number):
                        tf.summary.scalar("batch_loss", loss)
                        tf.summary.scalar("learning_rate", optimizer.learning_rate)
            note_scores(epoch + 1)
            seconds.assign_add(time.perf_counter() - started)
            epochs_done.assign(epoch + 1)
            manager.save()
            now = curves[epoch + 1].numpy()
            progress.console.print(
                f"epoch {epoch + 1}/{args.epochs}: training loss {now[0]:.4f}, accuracy "
                f"{now[1]:.2%}; validation loss {now[2]:.4f}, accuracy {now[3]:.2%}",
                soft_wrap=True,
            )
    for writer in writers.values():
        writer.close()
    return curves.numpy(), float(seconds)


# %%
# The two costs on the same network
# ---------------------------------
# Four short trainings: each cost from two starts. One start is the normal one, nearly undecided.
# The other has a bias of 12 for digit 0, so that the network is sure that every image is a 0:
# p = 0.9999, nine times in ten wrongly. Weights, batches and dropped units are the same for both
# costs, and so is the rule: plain gradient descent, as in the formulas. Adam divides a gradient
# by its own average size, and so would hide how small the quadratic cost's gradients are: put
# ``keras.optimizers.Adam(1e-3)`` in place of ``SGD`` and look again: from the wrong start both are
# near 90 % after 60 steps.
#
# One rate for both costs is not a fair race, and the rate decides much. The slopes differ in
# size, so each cost has a best rate of its own. In one trial at 0.2 in place of 0.05 (a bias of
# 10, batches of 64) the cross-entropy's large first steps threw the network about: after 100
# steps it stood at 45 %, the quadratic cost at 85 %. What holds at any rate is the formula: how
# much of a gradient is left when the network is sure and wrong.
#
# Start and rate were picked to show the effect: with a bias of 10 the quadratic cost got away
# sooner, and 12 was taken.
#
# The accuracies are from 250 validation images, so they are good to about three in a hundred:
# enough to see which cost is faster, not to rank two good networks.

STARTS = {"normal_start": 0.0, "wrong_start": 12.0}  # the bias of digit 0
COMPARE_BATCH, COMPARE_RATE = 32, 0.05
COMPARE_EVERY, COMPARE_IMAGES = 10, 250  # how often scored, and on how many images


def compare_costs(m: mnist.Mnist, args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Train the network from both starts with both costs.

    Returns:
        ``steps``, [k], and for each start and cost the accuracies at those steps, [k].
    """
    images, labels = m.validation_images[:COMPARE_IMAGES], m.validation_labels[:COMPARE_IMAGES]

    def endless_batches() -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        for epoch in itertools.count():
            yield from shuffled_batches(
                m.train_images, m.train_labels, COMPARE_BATCH, args.seed, epoch
            )

    noted = [*range(0, args.compare_steps, COMPARE_EVERY), args.compare_steps]
    result: dict[str, Any] = {"steps": noted} | {start: {} for start in STARTS}
    with Progress() as progress:
        bar = progress.add_task("comparing costs", total=4 * args.compare_steps)
        for name, cost in COSTS.items():
            writer = tf.summary.create_file_writer(run.log_dir(f"compare/{name}"))
            for start, bias in STARTS.items():
                network = ConvNet(args.seed)
                network.logits_bias.assign(bias * tf.one_hot(0, CLASSES))
                step = make_step(network, keras.optimizers.SGD(COMPARE_RATE), cost, args.seed)
                batches = endless_batches()
                accuracies = result[start][name] = []
                for number in range(args.compare_steps + 1):
                    if number in noted:
                        accuracies.append(score(network, images, labels)[1])
                        with writer.as_default(step=number):
                            tf.summary.scalar(f"compare_{start}/accuracy", accuracies[-1])
                    if number < args.compare_steps:
                        step(*next(batches))
                        progress.update(bar, advance=1)
            writer.close()
    return result


def first_step_above(steps: list[int], accuracies: list[float], wanted: float = 0.5) -> int | None:
    """The first of ``steps`` with an accuracy above ``wanted``; None if there is none."""
    return next((s for s, a in zip(steps, accuracies, strict=True) if a > wanted), None)


# %%
# Figures
# -------
# ``costs.png``: on the left the slopes by formula. The orange line bends back to zero where the
# network is surest of its mistake. In the middle the normal start, where both costs learn, the
# cross-entropy faster; on the right the start that is sure and wrong.
#
# ``filters.png``: the 5×5 weights of ``conv1``, blue below zero and red above. They began as
# noise, and a short training needs to change them only a little: look for edges, one colour on
# one side, among much that still looks like noise. ``feature_maps.png``: where each filter answers
# in one digit. Maps of ``conv1`` show the digit, or its outline from one side; maps of
# ``conv2`` have half the resolution and answer to few places each; dark ones found nothing.


def show_costs(
    wrong: np.ndarray, slopes: dict[str, np.ndarray], comparison: dict[str, Any]
) -> plt.Figure:
    """The slopes of the two costs and the four short trainings."""
    figure, (left, *others) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    colours = {"cross_entropy": BLUE, "quadratic": ORANGE}
    styles = {"cross_entropy": "-", "quadratic": "--"}
    for name in COSTS:
        look = {"color": colours[name], "linestyle": styles[name], "label": name.replace("_", "-")}
        left.plot(wrong, slopes[name], **look)
        for axes, start in zip(others, STARTS, strict=True):
            axes.plot(comparison["steps"], comparison[start][name], marker=".", **look)
    left.set(
        title="Slope of a mistake, by formula",
        xlabel="probability of the wrong answer",
        ylabel="slope by the wrong answer's logit",
    )
    for axes, start in zip(others, ("undecided", "sure and wrong"), strict=True):
        axes.set(
            title=f"Start: {start}",
            xlabel="step",
            ylabel=f"accuracy on {COMPARE_IMAGES} validation images",
            ylim=(0, 1),
        )
    for axes in (left, *others):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def show_curves(curves: np.ndarray) -> plt.Figure:
    """Loss and accuracy of training and validation images, from ``curves`` [epochs + 1, 4]."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = range(len(curves))
    for column, (axes, label, look) in enumerate(
        [
            (left, "training images", {"color": BLUE, "marker": "o"}),
            (right, "training images", {"color": BLUE, "marker": "o"}),
            (left, "validation images", {"color": ORANGE, "marker": "s", "linestyle": "--"}),
            (right, "validation images", {"color": ORANGE, "marker": "s", "linestyle": "--"}),
        ]
    ):
        values = curves[:, column] if axes is left else 1 - curves[:, column]
        axes.plot(epochs, values, label=label, **look)
    left.set(title="Cross-entropy", ylabel="mean loss")
    right.set(title="Wrong answers", ylabel="share of images (1 - accuracy)")
    for axes in (left, right):
        axes.set(xlabel="epochs done", xticks=epochs, yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return figure


def mosaic(maps: np.ndarray, columns: int) -> np.ndarray:
    """Lay ``maps`` [n, height, width] out in rows of ``columns``, with a gap of not-a-number
    between them; n has to be a multiple of ``columns``."""
    padded = np.pad(maps, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    n, height, width = padded.shape
    grid = padded.reshape(n // columns, columns, height, width).transpose(0, 2, 1, 3)
    return grid.reshape(n // columns * height, columns * width)[:-1, :-1]


def show_filters(network: ConvNet) -> plt.Figure:
    """The 32 filters of conv1, all on one scale of colours."""
    filters = np.transpose(network.conv1_kernel.numpy()[:, :, 0, :], (2, 0, 1))  # [32, 5, 5]
    largest = np.abs(filters).max()
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    image = axes.imshow(mosaic(filters, 8), cmap="RdBu_r", vmin=-largest, vmax=largest)
    axes.axis("off")
    axes.set_title("The 32 filters of conv1, 5×5 each")
    figure.colorbar(image, label="weight", shrink=0.8)
    return figure


def show_feature_maps(network: ConvNet, digit: np.ndarray) -> plt.Figure:
    """What conv1 and conv2 make of one image uint8 [28, 28]."""
    pixels = tf.cast(digit, tf.float32)[tf.newaxis, :, :, tf.newaxis] / 255
    conv1, conv2, _ = (np.transpose(maps[0], (2, 0, 1)) for maps in network.convolutions(pixels))
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 6), width_ratios=(1, 1.4, 2.7), layout="constrained"
    )
    left.imshow(digit, cmap="gray_r", vmin=0, vmax=255)
    left.set_title("image, 28×28")
    middle.imshow(mosaic(conv1, 4), cmap="viridis")  # conv1: [32, 28, 28]
    middle.set_title("conv1: 32 maps of 28×28")
    right.imshow(mosaic(conv2, 8), cmap="viridis")  # conv2: [64, 14, 14]
    right.set_title("conv2: 64 maps of 14×14")
    for axes in (left, middle, right):
        axes.axis("off")
    return figure


# %%
# All together
# ------------
# The order matters: the test images are scored once, when everything else is decided.


def main() -> None:
    run = Run(flags(), __file__)
    args = run.args
    keras.utils.set_random_seed(args.seed)
    tf.config.experimental.enable_op_determinism()  # add in a fixed order
    m = mnist.load(args.data_dir)
    print(f"Data: {m.source}. Seed: {args.seed}")

    network = ConvNet(args.seed)
    print_layers()
    parameters = sum(int(tf.size(variable)) for variable in network.trainable_variables)
    windows = sum(row[-1] for row in layer_table())
    dense = FLAT * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
    assert parameters == windows + dense == 3_274_634
    write_graph(run.log_dir("graph"), network.predict.get_concrete_function())

    wrong, slopes = slopes_when_wrong()
    print_slopes(wrong, slopes)
    curves, train_seconds = train(network, m, args, run)

    started = time.perf_counter()
    comparison = compare_costs(m, args, run)
    comparison["seconds"] = round(time.perf_counter() - started, 3)
    for start in STARTS:
        for name in COSTS:
            accuracies = comparison[start][name]
            step = first_step_above(comparison["steps"], accuracies)
            print(
                f"{start.replace('_', ' ')}, {name.replace('_', '-')}: accuracy above 50 % "
                f"{'never' if step is None else f'at step {step}'}, "
                f"{accuracies[-1]:.1%} after {args.compare_steps} steps"
            )

    run.save_figure(show_costs(wrong, slopes, comparison), "costs")
    run.save_figure(show_curves(curves), "curves")
    three = int(np.argmax(m.validation_labels == 3))  # the first 3: edges, curves and ends
    run.save_figure(show_filters(network), "filters")
    run.save_figure(show_feature_maps(network, m.validation_images[three]), "feature_maps")

    print(f"Scoring all {len(m.test_images):,} test images …")
    test_loss, test_accuracy = score(network, m.test_images, m.test_labels)
    run.finish(
        {
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "validation_accuracy": curves[-1, 3],
            "validation_loss": curves[-1, 2],
        },
        data=m.describe(),
        train_seconds=train_seconds,
        parameters=parameters,
        curves=curves.tolist(),
        comparison=comparison,
    )


if __name__ == "__main__":
    main()
