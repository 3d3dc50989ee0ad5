"""Train a network that reads a captcha, all positions at once
===========================================================

You learn: multi-task learning, one network with a head for each character; how TensorFlow 1's
queue runners became ``tf.data``; a training loop that can be killed at any moment, runs on
several machines, and keeps the model that does best on images it has not learned from. And why
AlexNet may sit at chance for long.

Run::

    python captcha_multitask/03_train.py
    python captcha_multitask/03_train.py --net alexnet_v2 --steps 4000

You should see: at each validation, how many captchas are read as a whole. ``compact`` passes 97 %
within the first 32,000 images and ends at 99.85 %. ``alexnet_v2`` sits at chance for the first
8,000, is at 37 % after 25,600, at 96 % after 128,000 and ends at 98.65 %. ``curves.png`` shows it.

Time: 10 to 20 minutes on two CPU cores, 45 minutes for ``alexnet_v2``. Stopped with Ctrl-C or
killed, the same command with ``--resume`` goes on and ends with the same weights to the last bit.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from joblib import Parallel, delayed
from nets import nets_factory
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.captchas import FOLDER, WARPS, Captchas, decode_classes, decode_pngs, encode_text
from models.captcha import FOLDER as MODEL_FOLDER
from models.captcha import load_recogniser, save_recogniser
from utils.run import (
    CourseParser,
    make_parser,
    positive_float,
    positive_int,
    readable,
    share,
    write_json,
)
from utils.summary import write_graph
from utils.tfrecord import DatasetError, load_split, read_info
from utils.training import (
    STRATEGIES,
    Place,
    ResumableRun,
    exact_checkpoints,
    interruption,
    warm_up_cosine,
)

RECORDS = "python captcha_multitask/02_images_to_tfrecords.py"
BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


def flags() -> CourseParser:
    """The flags of this script and, with them, the defaults of its training."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "--records",
        type=Path,
        metavar="DIR",
        default=FOLDER / "records",
        quick=FOLDER / "quick" / "records",
        help="the data set that 02_images_to_tfrecords.py wrote",
    )
    add(
        "--model",
        type=Path,
        metavar="DIR",
        default=MODEL_FOLDER,
        quick=MODEL_FOLDER / "quick",
        help="where the best model goes",
    )
    add("--net", choices=nets_factory.NETS, default="compact", help="the network")
    add(
        "--input-size",
        type=positive_int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels that the network sees (default: the network's own)",
    )
    add("--epochs", type=positive_int, default=3, quick=6, help="passes over the stored images")
    add("--steps", type=positive_int, help="training steps, instead of --epochs")
    add("--batch-size", type=positive_int, help="images in a step (default: the network's own)")
    add("--learning-rate", type=positive_float, help="Adam's peak (default: the network's own)")
    add(
        "--target-accuracy",
        type=share,
        metavar="SHARE",
        help="stop once two validations in a row read this share of whole captchas, e.g. 0.985",
    )
    add("--validate-every", type=positive_int, default=500, quick=30, help="steps in between")
    add(
        "--online",
        type=share,
        metavar="SHARE",
        default=0.0,
        help="share of each batch drawn while training, 1 for all of it",
    )
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="shift the images a little, make them paler or darker",
    )
    add(
        "--start",
        choices=("he", "slim"),
        default="he",
        help="how alexnet_v2's weights begin; slim's own are stuck for long",
    )
    add(
        "--strategy",
        choices=STRATEGIES,
        default="none",
        help="one device, all GPUs of this machine, or a process on each of several machines",
    )
    add("--resume", action="store_true", help="go on with the last run that was stopped")
    return parser


# %%
# From queue runners to tf.data
# -----------------------------
# TensorFlow 1 fed a network by threads that filled queues inside the graph. Each of their steps
# is one call in ``utils/tfrecord.py``'s ``load_split`` today (first then, behind the colon now):
#
# - ``string_input_producer(files)``, a queue of shuffled names:
#   ``Dataset.from_tensor_slices(files).shuffle(…)``.
# - ``TFRecordReader().read(queue)``, one file after the other: ``.interleave(TFRecordDataset)``,
#   records of several files in turn.
# - ``shuffle_batch(min_after_dequeue=…)``: ``.shuffle(10_000)``, on encoded records, from a seed,
#   then ``.batch(64)``, still encoded.
# - ``parse_single_example``: ``.map(parse_example)``, a batch at one go.
# - ``decode_raw``, ``reshape``, ``set_shape``: ``decode_png``, for PNG files, not raw pixels.
# - A queue of batches: ``.prefetch(2)``.
# - ``start_queue_runners``, ``Coordinator``, ``try: … except OutOfRangeError``: nothing. Iterating
#   starts the threads, and an exception reaches the loop.
#
# What is new beside the shape of it: the iterator is an object with a state, so a checkpoint can
# hold it, with the records that wait in the shuffle buffer. And the reader knows from
# ``dataset.json`` how many records must come; the old one took a file cut short for a short file.


class Captcha:
    """A data set of captchas: what ``dataset.json`` says of it, and its batches, images uint8
    [b, height, width, 3] and classes int32 [b, length]."""

    def __init__(self, folder: Path) -> None:
        info = read_info(folder)
        self.folder, self.about = folder, info["about"]
        if self.about.get("kind") != "captcha":
            raise DatasetError(f"{folder} holds no captchas: --records names another data set")
        self.alphabet, self.length = self.about["alphabet"], self.about["length"]
        self.shape = (self.about["height"], self.about["width"], 3)
        if "validation" not in info["splits"] or "train" not in info["splits"]:
            raise DatasetError(
                f"{folder} has the splits {', '.join(info['splits'])}: a training needs train and "
                "validation. Write it again with 02_images_to_tfrecords.py"
            )
        self.counts = {
            split: sum(shard["records"] for shard in shards)
            for split, shards in info["splits"].items()
        }

    def drawn_alike(self, seed: int) -> Captchas:
        """Fresh captchas as the stored ones; DatasetError if nobody knows how those were drawn."""
        if self.about.get("warp") not in WARPS or self.about.get("fonts"):
            raise DatasetError(
                f"--online draws captchas like those in {self.folder}, but these are not from "
                "01_generate_images.py with the library's own font"
            )
        height, width, _ = self.shape
        return Captchas(
            self.alphabet, self.length, width, height, warp=self.about["warp"], seed=seed
        )

    def _decode(self, features: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        images = decode_pngs(features["image"], *self.shape[:2])
        return images, tf.cast(features["classes"], tf.int32)

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """One pass over a split; with a seed shuffled, pass after pass without end."""
        return load_split(
            self.folder, split, batch_size, self._decode, seed, endless=seed is not None
        )


# %%
# Captchas drawn while training
# -----------------------------
# More distinct images teach more than more passes over the same ones, and here they cost only
# the drawing. ``--online 0.5`` takes half of every batch from the files and draws the other half,
# in processes of their own, a few batches ahead. Number 1,000,000,000 and up: no folder of
# stored captchas reaches that far, so none of validation or test is among them. The n-th batch
# always has the same numbers, so a resumed training needs no memory of them.


def draw_batch(captchas: Captchas, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Captchas ``first`` to ``first + count - 1`` from a thousand million on, as a batch."""
    drawn = [captchas.pixels(10**9 + first + i) for i in range(count)]
    classes = [encode_text(text, captchas.alphabet) for text, _ in drawn]
    return np.stack([pixels for _, pixels in drawn]), np.array(classes, np.int32)


def online_batches(
    captchas: Captchas, count: int, step: int, worker: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of ``count``, those of steps ``step``, ``step + 1`` …; each of several
    workers gets its own."""

    def jobs() -> Iterator[Any]:
        number = step
        while True:
            yield delayed(draw_batch)(captchas, (number * workers + worker) * count, count)
            number += 1

    processes = os.cpu_count() or 1
    return Parallel(processes, return_as="generator", pre_dispatch=2 * processes)(jobs())


# %%
# Light augmentation
# ------------------
# Each time an image is seen it is moved by up to 4 pixels and its ink made weaker or stronger.
# What comes in from outside at the border repeats the border. The dice have no state: seed and
# step give the offsets, so the 700th batch is treated the same in a resumed run.

SHIFT, CONTRAST = 4, 0.3


def augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Images uint8 [b, h, w, 3] moved and faded by chance, from a ``seed`` int64 [2]."""
    count, height, width, _ = tf.unstack(tf.shape(images))
    seeds = tf.unstack(tf.random.split(seed, 2))
    moves = tf.random.stateless_uniform([2, count, 1], seeds[0], -SHIFT, SHIFT + 1, tf.int32)
    rows = tf.clip_by_value(tf.range(height) + moves[0], 0, height - 1)  # [b, h]
    columns = tf.clip_by_value(tf.range(width) + moves[1], 0, width - 1)  # [b, w]
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    images = tf.gather(images, columns, axis=2, batch_dims=1)
    factor = tf.random.stateless_uniform([count, 1, 1, 1], seeds[1], 1 - CONTRAST, 1 + CONTRAST)
    ink = (255.0 - tf.cast(images, tf.float32)) * factor
    return tf.saturate_cast(255.0 - ink, tf.uint8)


# %%
# One loss from many heads
# ------------------------
# Each head answers its own question, "what is the second character?", with a softmax over the
# alphabet. The loss is the sum of their cross-entropies:
#
# .. math:: L = \sum_{k=1}^{4} -\ln p_k(y_k)
#
# A head's own weights get a gradient from its own term only. The layers below get the sum of all:
# four teachers for one eye. At chance L is 4 ln 10 = 9.21.


def losses_of(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """The loss of each image, float32 [b], for logits [b, positions, classes] and the true
    classes int32 [b, positions]."""
    heads = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)
    return tf.reduce_sum(heads, axis=1)


def make_step(
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    strategy: tf.distribute.Strategy,
    batch_size: int,
    seed: int,
    with_augment: bool,
) -> Any:
    """A function that trains on a batch, images and classes, and returns the mean loss, taken
    before the step and with dropout on. ``batch_size`` is that of all replicas together."""

    def replica_step(images: tf.Tensor, classes: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        if with_augment:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            place = number * strategy.num_replicas_in_sync + tf.cast(replica, tf.int64)
            images = augment(images, tf.stack([tf.constant(seed, tf.int64), place]))
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            # A share of the whole batch's mean: the replicas' gradients are added up.
            loss = tf.reduce_sum(losses_of(logits, classes)) / batch_size
        variables = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    @tf.function
    def step(images: Any, classes: Any, number: tf.Tensor) -> tf.Tensor:
        parts = strategy.run(replica_step, args=(images, classes, number))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

    return step


# %%
# Stuck, and learning
# -------------------
# AlexNet has eight layers in a row and nothing that keeps the size of the signal. How much is
# left of it on top decides what is learned. Before the first step, with the weights' start that
# slim has (``--start slim``) and with He's (the default), over 64 captchas:
#
# =========================================  =========  =========
# differs from image to image by (std)       slim       He
# =========================================  =========  =========
# the pixels that go in, standardised        0.89       0.89
# conv1                                      0.12       0.63
# conv5                                      0.022      0.40
# fc6                                        0.0039     0.43
# fc7                                        0.0011     0.42
# the logits                                 0.0003     0.80
# =========================================  =========  =========
#
# With slim's start the network gives every image the same answer. The best one answer is "all
# digits are equally likely", so the biases learn that, the loss goes to 4 ln 10 and stays there:
# the gradient of the lower layers has to come down through the same thin weights. Adam, which
# scales every gradient up, digs itself out in the end. He's start, a standard deviation of
# :math:`\sqrt{2 / n}` for a unit with n inputs, lets each layer hand on as much as it gets (K. He
# et al., 2015, arXiv 1502.01852). The compact network needs no such care: batch normalisation
# measures the signal and scales it at every layer. ``logits_spread`` in TensorBoard shows it: the
# loss begins to fall where the logits begin to differ. See the chapter's README for the two runs.


# %%
# Whole captchas
# --------------
# A captcha is read if all its characters are right. That is the number to report: 99 % of the
# characters is only about 96 % of the captchas. It is taken over the whole validation split, with
# the weights as they stand and dropout off, not as a running mean over training batches.


def evaluate(predict: Any, batches: tf.data.Dataset) -> dict[str, float]:
    """Scores over all ``batches``: loss, whole_captcha_accuracy, character_accuracy,
    position_1_accuracy and so on, and logits_spread, how much the logits of one image differ
    from those of another (standard deviation)."""
    losses, right, spread = [], [], []
    for images, classes in batches:
        logits = predict(images)
        spread.append(tf.math.reduce_std(logits, axis=0).numpy().mean())
        losses.append(losses_of(logits, classes).numpy())
        right.append(logits.numpy().argmax(axis=-1) == classes.numpy())
    right = np.concatenate(right)  # [n, positions]
    positions = {f"position_{k + 1}_accuracy": share for k, share in enumerate(right.mean(axis=0))}
    scores = {
        "loss": np.concatenate(losses).mean(),
        "whole_captcha_accuracy": right.all(axis=1).mean(),
        "character_accuracy": right.mean(),
        "logits_spread": np.mean(spread),
        **positions,
    }
    return {name: float(value) for name, value in scores.items()}


# %%
# Feeding
# -------
# A step waits for its batch, or the batch for the step. Which of the two it is decides whether a
# faster pipeline or a faster network would help, so the waiting is timed and shown.


class Feed:
    """The batches of this worker, stored and drawn, without end.

    Attributes:
        stored: the iterator over the stored part; None if all is drawn. A checkpoint holds it.
        waited: seconds spent waiting for batches since this was last set to 0.
    """

    def __init__(self, data: Captcha, args: argparse.Namespace, size: int, place: Place) -> None:
        self._data, self._seed, self._place = data, args.seed, place
        self._drawn_size = round(args.online * size)
        self.stored, self._drawn, self.waited = None, None, 0.0
        if stored_size := size - self._drawn_size:
            if data.counts.get("train", 0) < stored_size * place.workers:
                raise DatasetError(
                    f"{data.folder} has {data.counts.get('train', 0)} images to train on, fewer "
                    f"than the {stored_size * place.workers} of one batch: lower --batch-size"
                )
            batches = data.batches("train", stored_size, args.seed)
            self.stored = iter(batches.shard(place.workers, place.worker))

    def start(self, step: int) -> None:
        """Begin to draw, for ``step`` and those after it."""
        if self._drawn_size:
            captchas = self._data.drawn_alike(self._seed)
            place = self._place
            self._drawn = online_batches(
                captchas, self._drawn_size, step, place.worker, place.workers
            )

    def close(self) -> None:
        """Stop drawing."""
        if self._drawn is not None:
            self._drawn.close()

    def next(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Images uint8 [b, height, width, 3] and classes int32 [b, length]."""
        started = time.perf_counter()
        parts = [next(source) for source in (self.stored, self._drawn) if source is not None]
        self.waited += time.perf_counter() - started
        return tuple(tf.concat(part, axis=0) for part in zip(*parts, strict=True))


# %%
# What a run shows
# ----------------
# Screen and TensorBoard get the same numbers. ``batch_loss`` is the loss of single batches, with
# augmentation and dropout on; the ``validation`` curves are of all validation images with both
# off. The Images tab shows eight images as they are trained on, and the first eight misread.

HISTORY = "history.json"


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

    def figure(self, name: str, step: int, figure: plt.Figure) -> None:
        if "validation" in self._writers:
            figure.canvas.draw()
            pixels = np.asarray(figure.canvas.buffer_rgba())[np.newaxis]  # [1, height, width, 4]
            with self._writers["validation"].as_default(step=step):
                tf.summary.image(name, pixels)
        plt.close(figure)


def show_misread(
    images: np.ndarray, logits: np.ndarray, classes: np.ndarray, data: Captcha
) -> plt.Figure:
    """The first eight of these captchas that are misread, with text and reading."""
    figure, axes = plt.subplots(2, 4, figsize=(10, 2.8), layout="constrained")
    read = logits.argmax(axis=-1)
    wrong = np.flatnonzero((read != classes).any(axis=1))[:8]
    for place in axes.flat:
        place.axis("off")
    for i, place in zip(wrong, axes.flat, strict=False):
        place.imshow(images[i])
        title = " read as ".join(decode_classes(row[i], data.alphabet) for row in (classes, read))
        place.set_title(title, color=ORANGE, parse_math=False)
    return figure


def show_history(history: list[dict[str, float]]) -> plt.Figure:
    """Loss, and whole captchas read, against the images seen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    seen = [row["images"] for row in history]
    left.semilogy(
        seen, [row["train_loss"] for row in history], color=ORANGE, marker=".", label="training"
    )
    left.semilogy(
        seen, [row["loss"] for row in history], color=BLUE, marker=".", label="validation"
    )
    left.set(xlabel="images seen", ylabel="loss, sum of the heads", title="Loss")
    left.legend()
    missed = [max(1 - row["whole_captcha_accuracy"], 1e-4) for row in history]
    right.semilogy(seen, missed, color=BLUE, marker=".")
    right.set(xlabel="images seen", ylabel="share misread", title="Whole captchas, validation")
    right.set_ylim(top=1.1)
    for side in (left, right):
        side.yaxis.set_major_formatter("{x:g}")
        side.yaxis.set_minor_formatter("")
        side.xaxis.set_major_formatter("{x:,.0f}")
        side.grid(which="both", alpha=0.3)
    return figure


# %%
# The training
# ------------
# Every ``--validate-every`` steps a validation. The model that reads most is kept as a whole
# recogniser: pixels in, probabilities out, alphabet and sizes beside it. Then a checkpoint:
# weights, Adam's averages, dropout's seeds, the iterator over the records, the step. A training
# that is killed loses what came after the last checkpoint and, with ``--resume``, does it again
# in just the same way. Ctrl-C writes one more checkpoint first.


class Training:
    """A training as ``run.args`` say. The best model is in the run folder, as ``model``.

    Attributes:
        done: steps so far.
        best: the largest share of whole validation captchas read.
        held: validations in a row that reached ``--target-accuracy``.
        seconds: spent in the loop.
        history: what ``validate`` found, a row each time.
    """

    def __init__(self, run: ResumableRun, data: Captcha, place: Place) -> None:
        args, net = run.args, nets_factory.NETS[run.args.net]
        self.run, self.data, self.args, self.chief = run, data, args, place.worker == 0
        batch_size = args.batch_size or net.batch_size  # of each worker
        self.batch_size = batch_size * place.workers
        epochs = args.epochs * data.counts.get("train", 0)
        self.steps = args.steps or max(1, epochs // self.batch_size)
        self.place, self.feed = place, Feed(data, args, batch_size, place)
        self.validation = data.batches("validation", 250)
        options = {"synchronized": True} if place.replicas > 1 else {}
        if args.net == "alexnet_v2":  # has no batch normalisation
            options = {"start": args.start}
        with place.strategy.scope():
            self.network = nets_factory.build(
                args.net,
                data.length,
                len(data.alphabet),
                *data.shape[:2],
                args.input_size,
                **options,
            )
            peak = args.learning_rate or net.learning_rate
            schedule = warm_up_cosine(peak, self.steps, warm_up=0.05, start=0)
            self.optimizer = keras.optimizers.Adam(schedule)
            self.optimizer.build(self.network.trainable_variables)
        self.parameters = self.network.count_params()
        self.step = make_step(
            self.network, self.optimizer, place.strategy, self.batch_size, args.seed, args.augment
        )
        self.predict = tf.function(lambda images: self.network(images, training=False))
        self.done = tf.Variable(0, dtype=tf.int64)
        self.best = tf.Variable(-1.0, dtype=tf.float64)
        self.held = tf.Variable(0)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)
        self.history: list[dict[str, float]] = []
        state = {name: getattr(self, name) for name in ("done", "best", "held", "seconds")}
        if self.feed.stored is not None:
            state["stored"] = self.feed.stored
        folder = run.backup / f"worker_{place.worker}"
        self.backup = exact_checkpoints(folder, self.network, self.optimizer, **state)
        if run.resuming and self.backup.restore_or_initialize():
            if run.path(HISTORY).exists():
                rows = json.loads(run.path(HISTORY).read_text(encoding="utf-8"))
                self.history = [row for row in rows if row["step"] <= int(self.done)]
            print(f"Going on after step {int(self.done):,} of {self.steps:,}")
        self.feed.start(int(self.done))
        self.report = Report(run, self.chief)
        if self.chief:
            spec = tf.TensorSpec([None, *data.shape], tf.uint8)
            write_graph(run.log_dir("graph"), self.predict.get_concrete_function(spec))

    def run_steps(self) -> None:
        """Train until all steps are done or the target is held."""
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress, interruption() as interrupted, closing(self.feed):
            bar = progress.add_task("", total=self.steps, completed=int(self.done), loss=np.nan)
            losses, begun = [], time.perf_counter()
            started = begun
            while (number := int(self.done)) < self.steps and int(self.held) < 2:
                batch = self.feed.next()
                if number == 0:
                    examples = augment(batch[0][:8], tf.constant([self.args.seed, 0], tf.int64))
                    self.report.images("augmented", examples if self.args.augment else batch[0][:8])
                images, classes = self.place.deal(*batch)
                losses.append(float(self.step(images, classes, tf.constant(number, tf.int64))))
                self.done.assign(number := number + 1)
                progress.update(bar, advance=1, loss=losses[-1])
                if number % 20 == 0:
                    rate = float(self.optimizer.learning_rate)
                    values = {"batch_loss": losses[-1], "learning_rate": rate}
                    self.report.scalars("train", number, values)
                due = number % self.args.validate_every == 0 or number == self.steps
                stop = interrupted()
                if due or stop:
                    now = time.perf_counter()
                    self.seconds.assign_add(now - begun)
                    if due:
                        line = self.validate(losses, now - started)
                        progress.console.print(line, soft_wrap=True, highlight=False)
                        losses, self.feed.waited = [], 0.0
                    self.back_up()
                    begun, started = now, time.perf_counter()
                if stop:
                    raise KeyboardInterrupt

    def back_up(self) -> None:
        """Write a checkpoint; OSError if that fails, with the one before still whole."""
        try:
            self.backup.save()
        except tf.errors.OpError as error:  # what a full disk raises is no OSError
            raise OSError(f"can't write {self.run.backup}: {error.message}") from error

    def validate(self, losses: list[float], seconds: float) -> str:
        """Score the network as it stands, keep it if it is the best so far, and return a line
        to print. ``losses`` are those of the steps since the last time, which took ``seconds``."""
        step, data = int(self.done), self.data
        scores = evaluate(self.predict, self.validation)
        whole = scores["whole_captcha_accuracy"]
        speed = {
            "images_per_second": len(losses) * self.batch_size / seconds,
            "share_of_time_waiting": self.feed.waited / seconds,
        }
        facts = {"step": step, "images": step * self.batch_size, "seconds": float(self.seconds)}
        self.history.append(facts | {"train_loss": float(np.mean(losses))} | speed | scores)
        self.report.scalars("train", step, speed)
        self.report.scalars("validation", step, scores)
        images, classes = next(iter(self.validation))
        figure = show_misread(images.numpy(), self.predict(images).numpy(), classes.numpy(), data)
        self.report.figure("misread", step, figure)
        self.held.assign(
            int(self.held) + 1
            if self.args.target_accuracy and whole >= self.args.target_accuracy
            else 0
        )
        if whole > float(self.best):
            self.best.assign(whole)
            if self.chief:
                self.save(facts | {"validation": scores})
        if self.chief:
            write_json(self.run.path(HISTORY), self.history)
        positions = ", ".join(
            f"{scores[f'position_{k + 1}_accuracy']:.2%}" for k in range(data.length)
        )
        return (
            f"step {step:,}: {step * self.batch_size:,} images seen, loss {np.mean(losses):.4f}; "
            f"validation: loss {scores['loss']:.4f}, whole captchas {whole:.2%} (by position "
            f"{positions}); {speed['images_per_second']:.0f} images/s, "
            f"{speed['share_of_time_waiting']:.1%} of the time waiting for images"
        )

    def save(self, facts: dict[str, Any]) -> None:
        """Save the network with a softmax on top: pixels in, probabilities out."""
        about = self.data.about | {
            "net": self.args.net,
            "input_size": self.args.input_size or nets_factory.NETS[self.args.net].input_size,
            "parameters": self.parameters,
            "training_seed": self.args.seed,
            "online": self.args.online,
        }
        recogniser = keras.Model(self.network.input, keras.layers.Softmax()(self.network.output))
        save_recogniser(self.run.path("model"), recogniser, about | facts)


# %%
# All together
# ------------
# The best model is loaded again from its files and scored once more, as the scripts that use it
# will load it. It was chosen on the validation images, so its figure there is a little
# flattered; ``04_test.py`` has images that no choice was made on.


@tf.function(reduce_retracing=True)
def logarithms(model: keras.Model, images: tf.Tensor) -> tf.Tensor:
    """The logarithms of a saved model's probabilities: logits as good as the network's own."""
    return tf.math.log(tf.maximum(model(images, training=False), 1e-7))


def main() -> None:
    parser = flags()
    run = ResumableRun(parser, __file__)
    args = run.args
    if args.start != "he" and args.net != "alexnet_v2":
        parser.error(f"--start {args.start} is for alexnet_v2: {args.net} has one start only")
    try:
        args.model.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"can't write into the folder {args.model}: {error.strerror}")
    try:
        place = Place(args.strategy)
        keras.utils.set_random_seed(args.seed)
        tf.config.experimental.enable_op_determinism()
        training = Training(run, Captcha(args.records), place)
    except ValueError as error:
        quick = " --quick" if args.quick else ""
        parser.error(f"{error}\nRecords are written by {RECORDS}{quick}")
    print(f"{args.net}: {training.parameters:,} parameters, {training.steps:,} steps")
    try:
        training.run_steps()
        scores = max(training.history, key=lambda row: row["whole_captcha_accuracy"])
        if training.chief:
            trained = load_recogniser(run.path("model"))
            scores = evaluate(lambda images: logarithms(trained.model, images), training.validation)
            save_recogniser(args.model, trained.model, trained.about)
    except OSError as error:
        raise SystemExit(
            f"Stopped: {error}\nWhat was saved in {run.folder} before is whole. Once this is "
            "mended, the same command with --run-dir and --resume goes on from there."
        ) from None
    if training.chief:
        print(f"The best model, of step {trained.about['step']:,}: {readable(args.model)}")
        run.save_figure(show_history(training.history), "curves")
    run.finish(
        {
            f"validation_{name}": value
            for name, value in scores.items()
            if name == "loss" or name.endswith("accuracy")
        },
        data={"source": str(args.records), "stand_in": False},
        train_seconds=round(float(training.seconds), 3),
        parameters=training.parameters,
        steps=int(training.done),
        images_seen=int(training.done) * training.batch_size,
        history=training.history,
    )


if __name__ == "__main__":
    main()
