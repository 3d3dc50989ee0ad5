"""Train InceptionV3 on photos, from scratch or from weights
=========================================================

You learn: how slim trained its networks and what each of its flags is for (an auxiliary head,
label smoothing, weight decay, RMSprop, falling learning rates, a moving average of the weights,
distorted photos); how fine-tuning goes, the new head first and then everything; and how to write
a training that can be killed at any moment and runs on several machines.

Run, after ``01_images_to_tfrecords.py``::

    python inception_v3/slim_train/02_train_image_classifier.py
    python inception_v3/slim_train/02_train_image_classifier.py --weights none --epochs 100

You should see: after each epoch the share of validation photos that are classified right. With 490
flower photos of five classes and trained weights it passes 80 % while the heads alone are trained,
and 90 % soon after everything is. ``curves.png`` shows the whole course, ``distortions.png`` what
the network gets to see of a photo. The best model goes to ``models/slim``: pixels of any photo in,
probabilities out.

Time: 15 to 20 minutes for 490 photos on two CPU cores, two hours for the 2,940 of all
flower_photos (``--image-size 139``: half of it). Stopped with Ctrl-C or killed, the same command
with ``--resume`` goes on and ends with the same weights to the last bit.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from slim import classifier, network, preprocessing, records
from slim.network import Network
from slim.records import Records

from models.inception_v3 import (
    Weights,
    add_weights_flag,
    decode,
    find_weights,
    warn_unpublished,
)
from utils.run import (
    CourseParser,
    make_parser,
    positive_float,
    positive_int,
    quoted,
    readable,
    share,
)
from utils.summary import write_graph
from utils.tfrecord import DatasetError
from utils.training import STRATEGIES, Place, Resumable, ResumableRun

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too
BUFFER = 1_000  # encoded photos that wait to be drawn from
DECAYS = ("fixed", "exponential", "polynomial", "cosine")


class Rates(NamedTuple):
    """Learning rates to begin with: of new heads alone, of everything from weights, and of
    everything from scratch."""

    heads: float
    tuning: float
    scratch: float


RATES = {  # rmsprop and adam were tried on 600 photos, the others are to begin with
    "rmsprop": Rates(0.002, 0.003, 0.003),
    "sgd": Rates(0.02, 0.03, 0.03),
    "momentum": Rates(0.002, 0.003, 0.003),
    "adam": Rates(0.001, 0.0001, 0.0003),
    "adagrad": Rates(0.01, 0.001, 0.01),
    "adadelta": Rates(1.0, 0.3, 1.0),
    "ftrl": Rates(0.05, 0.01, 0.05),
}


def flags() -> CourseParser:
    """The flags of this script. Those that slim had keep its names."""
    parser = make_parser(__doc__)

    def add(name: str, *others: str, **options: Any) -> None:
        """A flag, also as slim wrote it, with underscores."""
        names = (name, *others)
        if "type" in options:
            options.setdefault("metavar", "N" if options["type"] is positive_int else "X")
        slims = [f"--{n.removeprefix('--').replace('-', '_')}" for n in names]
        parser.add_argument(*dict.fromkeys([*names, *slims]), **options)

    add(
        "--records",
        "--dataset-dir",
        type=Path,
        metavar="DIR",
        default=records.FOLDER / "records",
        quick=records.FOLDER / "quick" / "records",
        help="the data set that 01_images_to_tfrecords.py wrote",
    )
    add(
        "--model",
        type=Path,
        metavar="DIR",
        default=classifier.FOLDER,
        quick=classifier.FOLDER / "quick",
        help="where the best model goes",
    )
    add_weights_flag(parser)
    add(
        "--image-size",
        "--train-image-size",
        type=positive_int,
        default=224,
        quick=75,
        help=f"side of the square that the network sees, from {network.SMALLEST}",
    )
    add("--epochs", type=positive_int, default=15, quick=2, help="passes over the photos in all")
    add("--max-number-of-steps", type=positive_int, help="training steps, instead of --epochs")
    add("--batch-size", type=positive_int, default=32, quick=8, help="photos in a step")
    add(
        "--head-epochs",
        type=int,
        metavar="N",
        help="of these epochs, how many train the new heads alone (default: 3 if there are "
        "weights, else 0)",
    )
    scopes = f"separated by commas: {', '.join(network.SCOPES)}"
    add(
        "--trainable-scopes",
        metavar="SCOPES",
        help=f"the parts to train (default: all), {scopes}",
    )
    add(
        "--exclude-scopes",
        "--checkpoint-exclude-scopes",
        metavar="SCOPES",
        help="parts that begin untrained although there are weights",
    )
    add(
        "--freeze-batch-norm",
        action=argparse.BooleanOptionalAction,
        help="keep the means and variances that came with the weights (default: if there are any)",
    )
    add("--optimizer", choices=RATES, default="rmsprop", help="how gradients become steps")
    add(
        "--learning-rate",
        type=positive_float,
        help="to begin with (default, from weights / from scratch: "
        f"{', '.join(f'{k} {v.tuning:g} / {v.scratch:g}' for k, v in RATES.items())})",
    )
    add(
        "--head-learning-rate",
        type=positive_float,
        help="of the heads alone (default: "
        f"{', '.join(f'{k} {v.heads:g}' for k, v in RATES.items())})",
    )
    add("--learning-rate-decay-type", choices=DECAYS, default="cosine", help="how it falls")
    add("--end-learning-rate", type=float, default=0.0, help="of polynomial and cosine")
    add("--learning-rate-decay-factor", type=share, default=0.94, help="of exponential")
    add("--num-epochs-per-decay", type=positive_float, default=2.0, help="of exponential")
    add("--momentum", type=share, default=0.9, help="of momentum")
    add("--rmsprop-decay", type=share, default=0.9, help="of rmsprop's mean of squares")
    add("--rmsprop-momentum", type=share, default=0.9, help="of rmsprop")
    add("--opt-epsilon", type=positive_float, help="default: rmsprop 1.0, others Keras's")
    add("--adam-beta1", type=share, default=0.9, help="of adam's mean")
    add("--adam-beta2", type=share, default=0.999, help="of adam's mean of squares")
    add("--adadelta-rho", type=share, default=0.95, help="of adadelta")
    add("--adagrad-initial-accumulator-value", type=positive_float, default=0.1, help="of adagrad")
    add("--ftrl-learning-rate-power", type=float, default=-0.5, help="of ftrl")
    add("--ftrl-initial-accumulator-value", type=positive_float, default=0.1, help="of ftrl")
    add("--ftrl-l1", type=float, default=0.0, help="of ftrl")
    add("--ftrl-l2", type=float, default=0.0, help="of ftrl")
    add("--weight-decay", type=float, default=0.00004, help="L2, of the kernels, in the loss")
    add("--label-smoothing", type=share, default=0.1, help="share given to all classes alike")
    add("--dropout", type=share, default=0.2, help="of the features before the logits")
    add("--aux-weight", type=float, default=0.4, help="of the auxiliary loss; 0: no such head")
    add(
        "--moving-average-decay",
        type=share,
        default=0.99,
        help="of the weights' moving average, which is what is validated and saved; 0: none",
    )
    add(
        "--batch-norm-decay",
        type=share,
        default=0.99,
        quick=0.9,
        help="of the moving averages in batch normalisation; slim's 0.9997 is for long trainings",
    )
    add(
        "--crop-area",
        type=share,
        metavar="SHARE",
        help="least share of a photo that a crop keeps (default: 0.3 if there are weights, else "
        "slim's 0.05)",
    )
    add(
        "--colour",
        choices=preprocessing.COLOURS,
        help="shift the colours of the photos: fully as slim did, or only brightness and "
        "saturation, slim's fast mode (default: fast if there are weights, else full)",
    )
    add("--validate-every", type=positive_int, help="steps in between (default: an epoch)")
    add("--log-every-n-steps", type=positive_int, default=10, quick=2, help="for TensorBoard")
    add(
        "--strategy",
        choices=STRATEGIES,
        default="none",
        help="one device, all GPUs of this machine, or a process on each of several machines",
    )
    add("--resume", action="store_true", help="go on with the last run that was stopped")
    return parser


# %%
# From slim's queues to tf.data
# -----------------------------
# slim fed its networks by three objects, each with queues and threads of its own. Today a data
# set is one expression (first then, behind the colon now).
#
# - ``DatasetDataProvider(dataset, num_readers, common_queue_capacity)``: ``TFRecordDataset``
#   and ``shuffle``.
# - ``provider.get(["image", "label"])``: ``parse`` in ``slim/records.py``.
# - ``preprocessing_factory.get_preprocessing(...)``: ``.map(…)`` of ``slim/preprocessing.py``.
# - ``tf.train.batch(num_threads, capacity)``: ``.batch(32)`` before, ``num_parallel_calls``.
# - ``slim.prefetch_queue.prefetch_queue``: ``.prefetch(2)``.
#
# The seed and the number of the step decide everything that is random. The order of the photos
# depends on the seed and the epoch, their distortion on the seed and their number in the training.
# So a training that was killed skips the batches it had, before anything is decoded, and sees what
# it would have seen. Of several workers each decodes its share of a batch.


def training_batches(
    data: Records, batch_size: int, seed: int, place: Place, prepare: Callable, first_step: int = 0
) -> tf.data.Dataset:
    """This worker's share of the batches from ``first_step`` on, without end: images float32
    [b, size, size, 3] in [-1, 1], classes int64 [b]. ``batch_size`` is that of all workers
    together. ``prepare`` makes of files, strings [b], and the number of the share the images."""
    files, mine = data.files("train"), place.share(batch_size)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        names = tf.random.experimental.stateless_shuffle(files, [seed, number])
        dice = tf.random.stateless_uniform([], [seed, number], maxval=2**62, dtype=tf.int64)
        photos = tf.data.TFRecordDataset(names)
        return photos.shuffle(BUFFER, dice, reshuffle_each_iteration=False)

    def read(step: tf.Tensor, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        photos, labels = records.parse(batch[mine])
        return prepare(photos, step * place.workers + place.worker), labels

    batches = tf.data.Dataset.range(10**9).flat_map(epoch).batch(batch_size).skip(first_step)
    return batches.enumerate(first_step).map(read, num_parallel_calls=os.cpu_count()).prefetch(2)


def validation_batches(data: Records, size: int) -> tf.data.Dataset:
    """All validation photos, as evaluation sees them."""
    batches = data.batches("validation", 32)
    return batches.map(lambda f, labels: (preprocessing.evaluation_images(f, size), labels))


class Feed:
    """The training batches of this worker, and the time spent waiting for them.

    Attributes:
        waited: seconds since this was last set to 0.
    """

    def __init__(self, batches: tf.data.Dataset) -> None:
        self._iterator, self.waited = iter(batches), 0.0

    def next(self) -> tuple[tf.Tensor, tf.Tensor]:
        started = time.perf_counter()
        batch = next(self._iterator)
        self.waited += time.perf_counter() - started
        return batch


# %%
# Three losses
# ------------
# **Cross-entropy with smoothed labels.** A network that is asked for a probability of 1 never
# gets there: it makes its logits larger for ever, and is too sure of itself. With a smoothing of
# ε the truth asks for a little less, and for something of the other classes:
#
# .. math:: q_k = (1 - \varepsilon)\,[k = y] + \varepsilon / K, \qquad
#           L = -\sum_k q_k \ln p_k
#
# **The auxiliary head's**, the same of its logits, times 0.4. It gives the lower layers a gradient
# that did not have to come down through all the others. C. Szegedy et al., *Rethinking the
# Inception Architecture for Computer Vision*, 2015, arXiv 1512.00567, describe both.
#
# **Weight decay**, :math:`\lambda/2 \sum w^2` over all kernels that are trained, with λ = 0.00004.
# As in slim it is a part of the loss, so its gradient λw goes through the optimizer like the
# others. (AdamW and its like take λw off the weights beside the optimizer; with RMSprop, which
# divides a gradient by its size, that is not the same.)


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Of each photo, float32 [b], for logits [b, classes] and classes int64 [b]."""
    classes = logits.shape[-1]
    wanted = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(wanted, logits)


def weight_decay_loss(variables: Sequence[keras.Variable], decay: float) -> tf.Tensor:
    """The L2 loss of those among the variables that are kernels."""
    kernels = [variable for variable in variables if variable.path.endswith("kernel")]
    return decay * tf.add_n([tf.nn.l2_loss(kernel.value) for kernel in kernels])


def make_step(
    net: Network,
    optimizer: keras.optimizers.Optimizer,
    strategy: tf.distribute.Strategy,
    variables: Sequence[keras.Variable],
    averages: "Averages",
    batch_size: int,
    args: argparse.Namespace,
) -> Any:
    """A function that trains ``variables`` on a batch, images, classes and the step's number, and
    returns what it measured before the step: the losses, and how many photos were right.
    ``batch_size`` is that of all replicas together."""

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Layers below the lowest variable that is watched cost no backward pass.
            tape.watch([variable.value for variable in variables])
            outputs = net.whole(images, training=True)
            logits, *auxiliary = outputs if isinstance(outputs, list) else [outputs]
            # Shares of the whole batch's mean: the replicas' gradients are added up.
            values = {
                "main": tf.reduce_sum(cross_entropy(logits, labels, args.label_smoothing)),
                "regularisation": weight_decay_loss(variables, args.weight_decay) * batch_size,
            }
            values["regularisation"] /= strategy.num_replicas_in_sync
            total = values["main"] + values["regularisation"]
            for other in auxiliary:
                loss = tf.reduce_sum(cross_entropy(other, labels, args.label_smoothing))
                values["auxiliary"] = loss
                total += args.aux_weight * loss
            total /= batch_size
        gradients = tape.gradient(total, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        right = tf.argmax(logits, axis=-1) == labels
        values["accuracy"] = tf.reduce_sum(tf.cast(right, tf.float32))
        return {name: value / batch_size for name, value in values.items()}

    @tf.function
    def step(images: Any, labels: Any, number: tf.Tensor) -> dict[str, tf.Tensor]:
        parts = strategy.run(replica_step, args=(images, labels))
        averages.update(number)
        return {
            name: strategy.reduce(tf.distribute.ReduceOp.SUM, part, axis=None)
            for name, part in parts.items()
        }

    return step


# %%
# Optimizers
# ----------
# RMSprop divides each gradient by a running mean of its size; with momentum, as slim had it:
#
# .. math:: v \leftarrow 0.9\,v + 0.1\,g^2, \qquad
#           m \leftarrow 0.9\,m + \eta\, g / \sqrt{v + \epsilon}, \qquad w \leftarrow w - m
#
# With ε = 1.0 instead of the usual 10⁻⁷ it divides by hardly more than 1 as long as gradients
# are small: it is momentum with a brake for large gradients. (TensorFlow 1 began with v = 1,
# Keras begins with 0.)


def make_optimizer(args: argparse.Namespace) -> keras.optimizers.Optimizer:
    """The optimizer that the flags ask for. Its learning rate is set anew at each step."""
    rate = RATES[args.optimizer].scratch
    epsilon = {"epsilon": args.opt_epsilon} if args.opt_epsilon else {}
    kinds = keras.optimizers
    if args.optimizer == "rmsprop":
        epsilon = epsilon or {"epsilon": 1.0}
        return kinds.RMSprop(
            rate, rho=args.rmsprop_decay, momentum=args.rmsprop_momentum, **epsilon
        )
    if args.optimizer == "adam":
        return kinds.Adam(rate, beta_1=args.adam_beta1, beta_2=args.adam_beta2, **epsilon)
    if args.optimizer == "adagrad":
        start = args.adagrad_initial_accumulator_value
        return kinds.Adagrad(rate, initial_accumulator_value=start, **epsilon)
    if args.optimizer == "adadelta":
        return kinds.Adadelta(rate, rho=args.adadelta_rho, **epsilon)
    if args.optimizer == "ftrl":
        return kinds.Ftrl(
            rate,
            learning_rate_power=args.ftrl_learning_rate_power,
            initial_accumulator_value=args.ftrl_initial_accumulator_value,
            l1_regularization_strength=args.ftrl_l1,
            l2_regularization_strength=args.ftrl_l2,
        )
    return kinds.SGD(rate, momentum=args.momentum if args.optimizer == "momentum" else 0.0)


# %%
# Learning rates
# --------------
# With η₀ to begin with, t the step, T all steps, and E steps in an epoch:
#
# .. math::
#    \text{exponential} &: \eta_0 \cdot 0.94^{\lfloor t / 2E \rfloor} \\
#    \text{polynomial} &: \eta_T + (\eta_0 - \eta_T)(1 - t/T) \\
#    \text{cosine} &: \eta_T + (\eta_0 - \eta_T)(1 + \cos(\pi t/T))/2
#
# slim's polynomial reached its end after ``--num_epochs_per_decay``, two epochs by default, and
# stayed there for the rest of the training. Here polynomial and cosine fall to the training's end.


def learning_rate(
    kind: str,
    step: int,
    start: float,
    end: float = 0.0,
    steps: int = 1,
    decay_steps: float = 1.0,
    factor: float = 0.94,
) -> float:
    """The rate of a ``step`` of ``steps``; exponential falls by ``factor`` every
    ``decay_steps``."""
    done = min(step / steps, 1.0)
    if kind == "exponential":
        return start * factor ** math.floor(step / decay_steps)
    if kind == "polynomial":
        return end + (start - end) * (1 - done)
    if kind == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
    return start


# %%
# A moving average of the weights
# -------------------------------
# The weights after any one step are where the last few batches pushed them. Their moving average
# is quieter, and most often better:
#
# .. math:: \bar w \leftarrow d\,\bar w + (1 - d)\,w, \qquad
#           d = \min\left(0.99, \frac{1 + t}{10 + t}\right)
#
# The fraction lets the average follow quickly at first, or it would consist of initial weights
# for long. The average is what is validated, saved and used; the training goes on with the
# weights themselves. d = 0.99 averages over about 100 steps, slim's 0.9999 over 10,000.


class Averages:
    """The moving averages of some variables; none with a ``decay`` of 0.

    Attributes:
        shadows: the averages.
    """

    def __init__(self, variables: Sequence[keras.Variable], decay: float) -> None:
        self._variables, self._decay = (list(variables) if decay else []), decay
        self.shadows = [tf.Variable(v.value, trainable=False) for v in self._variables]

    def update(self, step: tf.Tensor) -> None:
        """Take the variables' values in, after the step of this number, int64 from 0."""
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self._decay, (1 + step) / (10 + step))
        for shadow, variable in zip(self.shadows, self._variables, strict=True):
            shadow.assign(decay * shadow + (1 - decay) * variable.value)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The variables have the averages' values inside the block."""
        kept = [variable.numpy() for variable in self._variables]
        try:
            for variable, shadow in zip(self._variables, self.shadows, strict=True):
                variable.assign(shadow.numpy())
            yield
        finally:
            for variable, value in zip(self._variables, kept, strict=True):
                variable.assign(value)


# %%
# What a run shows
# ----------------
# Screen and TensorBoard get the same numbers. Those of ``train`` are of single batches: distorted
# photos, dropout on, the weights themselves. Those of ``validation`` are of all validation photos,
# undistorted, by the moving averages. Early on validation may well look better than training.


def evaluate(predict: Callable[[tf.Tensor], tf.Tensor], batches: Any) -> dict[str, float]:
    """Scores over all ``batches`` of images and classes: loss, accuracy, and top_5_accuracy where
    there are more than five classes. ``predict`` gives logits [b, classes]."""
    losses, answers, truth = [], [], []
    for images, labels in batches:
        logits = predict(images)
        losses.append(cross_entropy(logits, labels, 0.0).numpy())
        answers.append(np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :5])
        truth.append(labels.numpy())
    losses, answers, truth = map(np.concatenate, (losses, answers, truth))
    hits = (answers == truth[:, np.newaxis]) & np.isfinite(losses)[:, np.newaxis]  # [n, 5]
    scores = {"loss": losses.mean(), "accuracy": hits[:, 0].mean()}
    if logits.shape[1] > 5:
        scores["top_5_accuracy"] = hits.any(axis=1).mean()
    return {name: float(value) for name, value in scores.items()}


class Report:
    """Writes for TensorBoard; does nothing in workers that are not the chief."""

    def __init__(self, run: ResumableRun, chief: bool) -> None:
        names = ("train", "validation") if chief else ()
        self._writers = {n: tf.summary.create_file_writer(run.log_dir(n)) for n in names}

    def scalars(self, name: str, step: int, values: dict[str, Any]) -> None:
        if name in self._writers:
            with self._writers[name].as_default(step=step):
                for tag, value in values.items():
                    tf.summary.scalar(tag, value)
            self._writers[name].flush()

    def images(self, name: str, images: tf.Tensor) -> None:
        if "train" in self._writers:
            with self._writers["train"].as_default(step=0):
                tf.summary.image(name, images, max_outputs=len(images))


def show_distortions(files: Sequence[bytes], size: int, draw: Callable) -> plt.Figure:
    """Photos, how evaluation sees them, and four distortions of each. ``draw`` makes of a number
    and pixels a distorted image."""
    titles = ("the photo", "in evaluation", *["in training"] * 4)
    figure, grid = plt.subplots(
        len(files),
        len(titles),
        figsize=(1.9 * len(titles), 1.9 * len(files) + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for row, (axes, file) in enumerate(zip(grid, files, strict=True)):
        pixels = decode(file)
        views = [preprocessing.evaluation_image(pixels, size)]
        views += [draw(4 * row + k, pixels) for k in range(4)]
        axes[0].imshow(pixels)
        for place, view in zip(axes[1:], views, strict=True):
            place.imshow(np.clip((view + 1) / 2, 0, 1))
        for place, title in zip(axes, titles, strict=True):
            place.axis("off")
            if row == 0:
                place.set_title(title)
    return figure


def show_history(history: list[dict[str, Any]], classes: int, head_photos: int) -> plt.Figure:
    """Losses and accuracies against the photos seen; ``head_photos`` were seen by heads alone."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    seen = [row["images"] for row in history]
    chance = math.log(classes)
    for axes, name, train in ((left, "loss", "train_loss"), (right, "accuracy", "train_accuracy")):
        for kind, key, colour in (("training", train, ORANGE), ("validation", name, BLUE)):
            values = [row[key] for row in history]
            axes.plot(seen, values, color=colour, marker=".", label=kind)
        level = chance if name == "loss" else 1 / classes
        axes.axhline(level, color="0.5", linestyle=":", label="chance")
        axes.set(xlabel="photos seen", xlim=(0, None))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        if head_photos:
            axes.axvspan(0, head_photos, color="0.93", label="heads alone")
    highest = max(max(row["loss"], row["train_loss"]) for row in history)
    top = min(max(1.05 * highest, 1.1 * chance), 2 * chance)  # beyond, it is worse than guessing
    left.set(ylabel="cross-entropy", title="Loss (training's with smoothed labels)", ylim=(0, top))
    right.set(ylabel="share right", title="Accuracy", ylim=(0, 1.02))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


# %%
# Fine-tuning: the head first
# ---------------------------
# The body has seen 1.2 million photos, the new heads none. Their first gradients are large and
# wrong, and would spoil what the body knows. So the heads are trained alone until they are
# reasonable, at a third of the cost: nothing flows back through the body. Then everything is.
#
# Batch normalisation stays in inference mode in all that came with weights. From 32 photos of
# flowers it would learn means and variances worse than those of ImageNet, and each photo's result
# would depend on the others in its batch. ``layer.trainable = False`` does this in Keras. From
# scratch there is nothing to keep, and it is trained.
#
# slim needed two runs for this, ``--trainable_scopes`` in the first and the first one's checkpoint
# for the second. The flag is here too, for what it is still good for: ``--trainable-scopes
# mixed8,mixed9,mixed10,logits,aux_logits`` trains the upper blocks only, faster and with less to
# overfit. ``--exclude-scopes mixed10`` lets a block begin anew.


def parse_scopes(text: str | None, flag: str) -> list[str] | None:
    """The scopes named, None if no text was given. Raises ValueError for a name there is not."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in network.SCOPES]:
        raise ValueError(
            f"{flag}: there is no scope {unknown[0]!r}, only {', '.join(network.SCOPES)}"
        )
    return names


class Diverged(ArithmeticError):
    """The weights have grown beyond all numbers; the message says when."""


class Training:
    """A training as ``run.args`` say. The best model is in the run folder, as ``model``.

    Attributes:
        resumable: has the steps so far and the seconds; a checkpoint of it holds the weights, the
            optimizer's averages, the moving averages of the weights and the step.
        history: what ``validate`` found, a row each time.
    """

    def __init__(self, run: ResumableRun, data: Records, weights: Weights, place: Place) -> None:
        args = run.args
        self.run, self.data, self.args, self.weights = run, data, args, weights
        self.place, self.chief = place, place.worker == 0
        self.batch_size = args.batch_size * place.workers  # the flag's is that of each worker
        place.share(self.batch_size)  # ValueError if the replicas can't share it equally
        self._plan_steps()
        if args.crop_area == 0:
            raise ValueError("--crop-area 0 leaves nothing of a photo")
        gentle = weights.path is not None
        self.crop_area = args.crop_area or (0.3 if gentle else 0.05)
        self.colour = args.colour or ("fast" if gentle else "full")
        self.validation = validation_batches(data, args.image_size)
        self._build()
        more = {"averages": self.averages.shadows}
        self.resumable = Resumable(run, place, self.net.whole, self.optimizer, **more)
        self.history = self.resumable.history
        self.feed = Feed(self._batches(self.resumable.step))
        self.report = Report(run, self.chief)
        if self.chief and not self.resumable.step:
            write_graph(run.log_dir("graph"), self.predict.get_concrete_function())

    def _plan_steps(self) -> None:
        args, count = self.args, self.data.counts["train"]
        self.epoch = max(1, round(count / self.batch_size))  # steps
        self.steps = args.max_number_of_steps or args.epochs * self.epoch
        self.validate_every = args.validate_every or self.epoch
        head_epochs = args.head_epochs
        if head_epochs is None:
            head_epochs = 0 if self.weights.path is None else 3
        self.head_steps = min(head_epochs * self.epoch, self.steps)
        named = parse_scopes(args.trainable_scopes, "--trainable-scopes")
        available = [s for s in network.SCOPES if args.aux_weight or s != "aux_logits"]
        self.scopes = [s for s in available if named is None or s in named]
        self.head_scopes = [s for s in self.scopes if s in network.HEADS]
        if not self.scopes:
            raise ValueError("--trainable-scopes names nothing that could be trained")
        if self.head_scopes in ([], self.scopes):
            self.head_steps = 0  # there is one stage only

    def _batches(self, first_step: int) -> tf.data.Dataset:
        args = self.args
        distortions = (args.seed, args.image_size, self.crop_area, self.colour)

        def prepare(files: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
            return preprocessing.training_images(files, number, *distortions)

        common = (self.data, self.batch_size, args.seed, self.place)
        return training_batches(*common, prepare, first_step)

    def _build(self) -> None:
        args, place = self.args, self.place
        with place.strategy.scope():
            self.net = network.build(
                self.weights,
                len(self.data.classes),
                args.image_size,
                auxiliary="aux_logits" in self.scopes,
                dropout=args.dropout,
                decay=args.batch_norm_decay,
                exclude=parse_scopes(args.exclude_scopes, "--exclude-scopes") or (),
                synchronized=place.replicas > 1,
            )
            variables = self._train_only(self.scopes)
            self.optimizer = make_optimizer(args)
            self.optimizer.build(variables)
            self.averages = Averages(variables, args.moving_average_decay)
        self.parameters = self.net.inference.count_params()
        self.model = classifier.make_model(self.net.inference, args.image_size)
        size = args.image_size
        self.predict = tf.function(
            lambda images: self.net.inference(images, training=False),
            input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32)],
        )

    def _train_only(self, scopes: Collection[str]) -> list[keras.Variable]:
        freeze = self.args.freeze_batch_norm
        return network.train_only(self.net, scopes, freeze is None or freeze)

    def _stage(self, number: int) -> str:
        return "heads" if number < self.head_steps else "all"

    def _step_of(self, stage: str) -> Any:
        """The training step of a stage; it is traced when it is first called."""
        variables = self._train_only(self.head_scopes if stage == "heads" else self.scopes)
        return make_step(
            self.net,
            self.optimizer,
            self.place.strategy,
            variables,
            self.averages,
            self.batch_size,
            self.args,
        )

    def rate(self, number: int) -> float:
        """The learning rate of a step."""
        args, known = self.args, RATES[self.args.optimizer]
        if number < self.head_steps:
            return args.head_learning_rate or known.heads
        start = args.learning_rate or (known.tuning if self.net.loaded else known.scratch)
        return learning_rate(
            args.learning_rate_decay_type,
            number - self.head_steps,
            start,
            args.end_learning_rate,
            max(1, self.steps - self.head_steps),
            args.num_epochs_per_decay * self.epoch,
            args.learning_rate_decay_factor,
        )

    def run_steps(self) -> None:
        """Train until all steps are done."""
        columns = (
            TextColumn("training {task.fields[stage]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            done = self.resumable.step
            bar = progress.add_task("", total=self.steps, completed=done, loss=np.nan, stage="")
            stage, seen, started = "", [], time.perf_counter()
            for number in range(done, self.steps):
                if self._stage(number) != stage:
                    stage = self._stage(number)
                    step = self._step_of(stage)
                batch = self.feed.next()
                if number == 0:
                    self.report.images("augmented", (batch[0][:8] + 1) / 2)
                rate = self.rate(number)
                self.optimizer.learning_rate = rate
                values = step(*self.place.deal(*batch), tf.constant(number, tf.int64))
                seen.append({name: float(value) for name, value in values.items()})
                if not math.isfinite(seen[-1]["main"]):
                    raise Diverged(f"at step {number + 1:,} the loss is no number any more")
                self.resumable.step = number = number + 1
                progress.update(bar, advance=1, loss=seen[-1]["main"], stage=stage)
                if number % self.args.log_every_n_steps == 0:
                    losses = {
                        name if name == "accuracy" else f"loss/{name}": value
                        for name, value in seen[-1].items()
                    }
                    self.report.scalars("train", number, losses | {"learning_rate": rate})
                if number % self.validate_every == 0 or number == self.steps:
                    line = self.validate(stage, seen, time.perf_counter() - started)
                    progress.console.print(line, soft_wrap=True, highlight=False)
                    self.resumable.save()
                    seen, self.feed.waited, started = [], 0.0, time.perf_counter()
                if self.resumable.stops(False):
                    break
        self.resumable.close()

    def validate(self, stage: str, seen: list[dict[str, float]], seconds: float) -> str:
        """Score the averaged weights, keep them if they are the best so far, and return a line to
        print. ``seen`` is what the steps since the last time gave, which took ``seconds``."""
        step = self.resumable.step
        means = {name: float(np.mean([row[name] for row in seen])) for name in seen[0]}
        speed = {
            "images_per_second": len(seen) * self.batch_size / seconds,
            "share_of_time_waiting": self.feed.waited / seconds,
        }
        facts = {
            "step": step,
            "images": step * self.batch_size,
            "seconds": round(self.resumable.seconds, 3),
            "stage": stage,
        }
        with self.averages.in_use():
            scores = evaluate(self.predict, self.validation)
            better = all(
                (scores["accuracy"], -scores["loss"]) > (row["accuracy"], -row["loss"])
                for row in self.history
            )
            if better and self.chief:
                self.save(facts | {"validation": scores})
        row = facts | {"train_loss": means["main"], "train_accuracy": means["accuracy"]}
        self.resumable.note(row | speed | scores)
        self.report.scalars("train", step, speed)
        self.report.scalars("validation", step, scores)
        return (
            f"step {step:,} ({stage}): {step * self.batch_size:,} photos seen, loss "
            f"{means['main']:.3f}, {means['accuracy']:.1%} right; validation: loss "
            f"{scores['loss']:.3f}, {scores['accuracy']:.1%} right; "
            f"{speed['images_per_second']:.1f} photos/s, {speed['share_of_time_waiting']:.1%} of "
            "the time waiting for them"
        )

    def save(self, facts: dict[str, Any]) -> None:
        """Save the network, as it stands, with all that belongs to it."""
        about = {
            "classes": self.data.classes,
            "image_size": self.args.image_size,
            "weights": self.weights.source,
            "records": self.data.source,
            "parameters": self.parameters,
            "training_seed": self.args.seed,
        }
        classifier.save_classifier(self.run.path("model"), self.model, about | facts)

    def show_distortions(self) -> None:
        """Save the figure of what the network gets to see."""
        files, _ = next(iter(self.data.batches("train", 3)))
        size, colour = self.args.image_size, self.colour

        def draw(number: int, pixels: tf.Tensor) -> tf.Tensor:
            seed = tf.constant([self.args.seed, number], tf.int64)
            how = preprocessing.draw_distortion(seed, tf.shape(pixels), self.crop_area)
            return preprocessing.distort(pixels, how, size, colour)

        self.run.save_figure(show_distortions(list(files.numpy()), size, draw), "distortions")


# %%
# All together
# ------------
# At the end the best model is loaded from its files, as ``03_eval_image_classifier.py`` will load
# it, and classifies the validation photos from their pixels. It was chosen on these photos, so
# its figure there is a little flattered. The test photos had no part in any choice.


def score_again(trained: classifier.Classifier, data: Records) -> dict[str, float]:
    """``evaluate`` of a saved model on the validation photos."""

    def predict(files: tf.Tensor) -> tf.Tensor:
        each = [trained.probabilities(decode(file)) for file in files]
        return tf.math.log(tf.maximum(tf.stack(each), 1e-7))  # logits as good as the network's

    return evaluate(predict, data.batches("validation", 32))


def main() -> None:
    parser = flags()
    run = ResumableRun(parser, __file__)
    args = run.args
    for name in ("head_epochs", "weight_decay", "aux_weight", "end_learning_rate"):
        if (getattr(args, name) or 0) < 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is below 0")
    try:
        args.model.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"can't write into the folder {args.model}: {error.strerror}")
    try:
        place = Place(args.strategy)
        keras.utils.set_random_seed(args.seed)
        tf.config.experimental.enable_op_determinism()
        data = Records(args.records)
        for split in ("train", "validation"):
            if not data.counts.get(split):
                raise DatasetError(f"{args.records} has no photos for {split}")
        weights = find_weights(args.weights, top=False, quick=args.quick, seed=args.seed)
        training = Training(run, data, weights, place)
    except DatasetError as error:
        quick = " --quick" if args.quick else ""
        parser.error(f"{error}\nRecords are written by {records.WRITE}{quick}")
    except ValueError as error:
        parser.error(str(error))
    print(
        f"InceptionV3, {training.parameters:,} parameters, {args.image_size}×{args.image_size} "
        f"pixels, {len(data.classes)} classes; {data.counts['train']:,} photos to train on, "
        f"{training.steps:,} steps, of them {training.head_steps:,} of the heads alone"
    )
    try:
        training.run_steps()
        scores = training.history[-1]
        if training.chief:
            trained = classifier.load_classifier(run.path("model"))
            scores = score_again(trained, data)
            classifier.save_classifier(args.model, trained.model, trained.about)
    except Diverged as error:
        raise SystemExit(
            f"Stopped: {error}. The steps were too large: try again with a smaller "
            "--learning-rate (or --head-learning-rate)."
        ) from None
    if training.chief:
        print(f"The best model, of step {trained.about['step']:,}: {readable(args.model)}")
        training.show_distortions()
        head_photos = training.head_steps * training.batch_size
        run.save_figure(show_history(training.history, len(data.classes), head_photos), "curves")
        if weights.path is None:
            print("The network began untrained: fine-tuning one that is trained reaches far more.")
        else:
            warn_unpublished(weights)
        test = quoted("python", "inception_v3/slim_train/03_eval_image_classifier.py")
        print(f"Next, on photos that had no part in this: {test}{' --quick' * args.quick}")
    names = ("loss", "accuracy", "top_5_accuracy")
    run.finish(
        {f"validation_{name}": scores[name] for name in names if name in scores},
        data=data.source,
        train_seconds=round(training.resumable.seconds, 3),
        parameters=training.parameters,
        weights=weights.source,
        steps=training.resumable.step,
        images_seen=training.resumable.step * training.batch_size,
        history=training.history,
    )


if __name__ == "__main__":
    main()
