"""Digits from a fully connected network, and a race of eight optimizers
=====================================================================

You learn: a network of dense layers on MNIST from the pixels to the saved file: truncated
normal start, dropout, a learning rate that falls every epoch, what to write to TensorBoard,
and how to compare optimizers fairly, so that the winner has won by more than its tuning and
its luck.

Run::

    python linear/02_linear_mnist.py
    python linear/02_linear_mnist.py --optimizer all --epochs 5 --seeds 1

You should see: 98.46 % of the 10,000 test images right with Adam, 98.49 % as the mean of
three seeds. ``curves.png`` shows a training loss that begins above the validation loss, and why
that is no mistake. The race ends with a table and with ``race.png``.

Time: 90 s on two CPU cores, 75 s of it training. The second command takes 3 minutes; the full race
(``--optimizer all``: 20 epochs, three seeds) about half an hour. Stop any by Ctrl-C: the same
command with the same ``--run-dir`` goes on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.ticker import LogLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from tensorboard.plugins.hparams import api as hp

from data import mnist
from utils.run import (
    Run,
    make_parser,
    positive_float,
    positive_int,
    readable,
    write_json,
    written_whole,
)
from utils.summary import variable_summaries, write_graph

# %%
# What can be turned
# ------------------
# Everything that was tuned stands here, in one place. It was chosen by the accuracy on the
# 5,000 validation images, with one seed.

HIDDEN = (500, 300)  # units of the hidden layers
STDDEV = 0.04  # of the truncated normal distribution that the weights start from
INPUT_DROPOUT = 0.2  # share of the pixels hidden in each training step
DROPOUT = 0.2  # share of the units hidden after each hidden layer
EPOCHS, QUICK_EPOCHS, QUICK_IMAGES = 20, 2, 4_000
BATCH_SIZE = 128
RACE_SEEDS = 3
PLAIN_IMAGES = 5_000  # training images whose loss is also taken without dropout
PROBE_IMAGES = 500  # validation images whose activations are shown in TensorBoard

# %%
# Eight optimizers
# ----------------
# Each turns a gradient g into a step:
#
# - ``sgd``: minus the learning rate times g;
# - ``momentum``: a velocity, which keeps 0.9 of itself from step to step and adds sgd's step;
# - ``nesterov``: the same, looking one move of the velocity ahead;
# - ``adagrad``: g divided by the root of the sum of all its squares so far, weight by weight:
#   steps shrink for ever;
# - ``rmsprop``: the same with a running mean of the squares, so old gradients are forgotten;
# - ``adadelta``: as rmsprop, times a running size of its own earlier steps; this replaces the
#   learning rate, and the factor that is left is far larger than elsewhere;
# - ``adam``: momentum's velocity over rmsprop's root, both corrected for their start at zero;
# - ``adamw``: adam, and every step pulls all weights a little towards zero (weight decay 0.05; with
#   Keras's default, 0.004, its results can't be told from adam's here).
#
# One learning rate for all would not be a race: it would suit one of them, and the table
# would show for which it was chosen. So each has its own: of six or more rates, each twice the
# last (adadelta: of five), the one with the best validation accuracy after short trainings (3
# epochs on 12,000 images, one seed); always one between worse ones, never at the end of the row.
# Two exceptions: sgd has half of its best rate, 0.5, because 1.0 failed already; and adam has
# 0.001, on validation level with 0.002 in full trainings (98.70 and 98.68 %), and adamw the same.
# A rate that is best in a short training tends to be too high for a long one, so the others
# may be a little too high as well.

OPTIMIZERS: dict[str, tuple[float, Callable[..., keras.optimizers.Optimizer]]] = {
    "sgd": (0.25, keras.optimizers.SGD),
    "momentum": (0.1, partial(keras.optimizers.SGD, momentum=0.9)),
    "nesterov": (0.1, partial(keras.optimizers.SGD, momentum=0.9, nesterov=True)),
    "adagrad": (0.16, keras.optimizers.Adagrad),
    "adadelta": (6.0, keras.optimizers.Adadelta),
    "rmsprop": (2e-3, keras.optimizers.RMSprop),
    "adam": (1e-3, keras.optimizers.Adam),
    "adamw": (1e-3, partial(keras.optimizers.AdamW, weight_decay=0.05)),
}


# %%
# A learning rate that falls every epoch
# --------------------------------------
# Large steps find the region, small steps settle in it. In epoch e of E (counted from 0) the
# rate is
#
# .. math:: r_e = \frac{r}{2} \left(1 + \cos \frac{\pi e}{E}\right) ,
#
# half a cosine from the peak r to zero. TensorFlow 1 scripts kept the rate in a variable and
# changed it from outside, ``sess.run(tf.assign(lr, 0.001 * 0.95 ** epoch))``. Here it is a
# schedule, a function of the optimizer's step count, which every optimizer takes in place
# of a number and which is saved with the model.


def learning_rate_in(epoch: int, peak: float, epochs: int) -> float:
    """The learning rate in ``epoch`` (from 0) of ``epochs``; 0 for the one after the last."""
    return peak * (1 + cos(pi * epoch / epochs)) / 2


def learning_rate_schedule(
    peak: float, epochs: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A schedule that is constant within an epoch and falls from ``peak`` between epochs.

    Args:
        peak: the rate of the first epoch.
        epochs: the epochs of the whole training, after which the rate is 0.
        steps_per_epoch: batches in an epoch, the last and smaller one included.
    """
    last_steps = [steps_per_epoch * (epoch + 1) - 1 for epoch in range(epochs)]
    rates = [learning_rate_in(epoch, peak, epochs) for epoch in range(epochs + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(last_steps, rates)


# %%
# The data
# --------
# The pipeline for training shuffles over the whole training set, anew each epoch, so that no
# two epochs see the same batches; the others keep their order. TensorFlow 1 scripts often drew
# ``n_batch = 55000 // 100`` batches and dropped the rest; here the last, smaller batch counts.


class Data(NamedTuple):
    """Images are uint8 [n, 28, 28], labels int32 [n]; ``describe`` is for ``result.json``."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    describe: dict[str, str | bool]


def load_data(data_dir: Path | None, quick: bool) -> Data:
    """MNIST or its stand-in; with ``quick`` the first QUICK_IMAGES training images only."""
    m = mnist.load(data_dir)
    count = QUICK_IMAGES if quick else len(m.train_images)
    return Data(
        (m.train_images[:count], m.train_labels[:count].astype(np.int32)),
        (m.validation_images, m.validation_labels.astype(np.int32)),
        (m.test_images, m.test_labels.astype(np.int32)),
        m.describe(),
    )


def make_dataset(
    part: tuple[np.ndarray, np.ndarray], batch_size: int, shuffle_seed: int | None = None
) -> tf.data.Dataset:
    """Batches (uint8 [b, 28, 28], int32 [b]); shuffled anew each epoch if a seed is given."""
    dataset = tf.data.Dataset.from_tensor_slices(part)
    if shuffle_seed is not None:
        dataset = dataset.shuffle(len(part[0]), seed=shuffle_seed, reshuffle_each_iteration=True)
    options = tf.data.Options()
    options.autotune.enabled = False  # on a CPU it can stall for seconds between two epochs
    return dataset.batch(batch_size).prefetch(2).with_options(options)


# %%
# The network
# -----------
# 784 pixels → 500 → 300 → 10, with tanh in between:
#
# - **Pixels** go in as they are, uint8 from 0 to 255, and are standardised inside the model:
#   minus the mean, over the standard deviation of the training pixels. Whoever loads the
#   saved model can't forget it or do it twice.
# - **Weights** start from a normal distribution without its tails: what falls beyond two standard
#   deviations is drawn again. So no tanh starts saturated, where its derivative is nearly zero and
#   learning slow. Biases start at zero; the weights being random is enough to make
#   units differ.
# - **Dropout** sets a share p of the values to zero in each training step and divides the rest by
#   1 - p. ``fit`` turns it on, ``evaluate`` and ``predict`` turn it off. TensorFlow 1 fed the share
#   to *keep* into a placeholder ``keep_prob``, and whoever forgot to feed 1.0 for the test
#   measured a crippled network. A standardised pixel of zero is an average grey.
# - **No softmax**: the outputs are logits. The loss applies softmax itself, exactly once and
#   without overflow; the largest logit belongs to the largest probability anyway.


def build_model(train_images: np.ndarray, initial_seed: int) -> keras.Model:
    """The network, untrained.

    Args:
        train_images: uint8 [n, 28, 28], for the mean and the variance of a pixel.
        initial_seed: for the weights and the dropout masks.

    Returns:
        A model from uint8 [b, 28, 28] to logits, float32 [b, 10].
    """
    counts = np.bincount(train_images.ravel(), minlength=256) / train_images.size
    mean = float(counts @ np.arange(256))
    variance = float(counts @ np.square(np.arange(256) - mean))
    seeds = iter(range(initial_seed * 100, initial_seed * 100 + 100))

    def dense(units: int, name: str, activation: str | None = None) -> keras.layers.Dense:
        start = keras.initializers.TruncatedNormal(stddev=STDDEV, seed=next(seeds))
        return keras.layers.Dense(units, activation, kernel_initializer=start, name=name)

    layers = [
        keras.Input((28, 28), dtype="uint8", name="pixels"),
        keras.layers.Flatten(),
        keras.layers.Normalization(axis=None, mean=mean, variance=variance),
        keras.layers.Dropout(INPUT_DROPOUT, seed=next(seeds)),
    ]
    for number, units in enumerate(HIDDEN, 1):
        layers.append(dense(units, f"hidden{number}", "tanh"))
        layers.append(keras.layers.Dropout(DROPOUT, seed=next(seeds)))
    layers.append(dense(10, "logits"))
    return keras.Sequential(layers, name="mlp")


# %%
# What is recorded after each epoch
# ---------------------------------
# The training loss that Keras prints lies *above* the validation loss for the first ten epochs,
# which looks like a mistake. It has two honest causes. It is taken with dropout on, from a
# network that misses a third of its units; validation uses all of them. And it is the mean over
# the epoch's batches while the network was still learning; validation comes after the last. So
# the same loss is taken once more on 5,000 training images after the epoch, without dropout:
# this third curve lies below the validation loss, and the distance between those two is
# the overfitting.
#
# Weights, biases and activations are summarised by ``variable_summaries``. Step 0 holds the
# start: the weights' histogram is a bell with its sides cut off at ±0.08.


class Recorder(keras.callbacks.Callback):
    """After each epoch: loss without dropout, variable summaries, a line in ``trial.json``."""

    def __init__(self, trial: "Trial", folder: Path, data: Data, on_epoch: Callable[[], None]):
        super().__init__()
        self.trial, self.folder, self.on_epoch = trial, folder, on_epoch
        images, labels = data.train
        self.plain = make_dataset((images[:PLAIN_IMAGES], labels[:PLAIN_IMAGES]), 500)
        self.probe = tf.constant(data.validation[0][:PROBE_IMAGES])  # [500, 28, 28]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.writers = {
            name: tf.summary.create_file_writer(str(self.folder / name))
            for name in ("variables", "train_without_dropout")
        }
        hidden = [layer for layer in self.model.layers if layer.name.startswith("hidden")]
        self.hidden = keras.Model(self.model.inputs, [layer.output for layer in hidden])
        if not self.trial.history:
            self.write_variables(step=0)
        self.mark = time.perf_counter()

    def write_variables(self, step: int) -> None:
        with self.writers["variables"].as_default():
            for layer in self.model.layers:
                if isinstance(layer, keras.layers.Dense):
                    variable_summaries(f"{layer.name}/weights", layer.kernel, step)
                    variable_summaries(f"{layer.name}/biases", layer.bias, step)
            for layer, values in zip(
                self.hidden.output_names, self.hidden(self.probe, training=False), strict=True
            ):
                variable_summaries(f"{layer}/activations", values, step)  # [500, units]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        settings = self.trial.settings
        if not np.isfinite(logs["loss"]):
            raise SystemExit(
                f"{settings.optimizer}: the training loss is no finite number after epoch "
                f"{epoch + 1}. --learning-rate {settings.learning_rate:g} is too large: make it "
                "smaller."
            )
        plain = self.model.evaluate(self.plain, verbose=0, return_dict=True)
        rate = learning_rate_in(epoch, settings.learning_rate, settings.epochs)
        self.write_variables(step=epoch + 1)
        with self.writers["variables"].as_default():
            tf.summary.scalar("learning_rate", rate, epoch + 1)
        with self.writers["train_without_dropout"].as_default():  # beside Keras's own curves
            tf.summary.scalar("epoch_loss", plain["loss"], epoch)
            tf.summary.scalar("epoch_accuracy", plain["accuracy"], epoch)
        for writer in self.writers.values():
            writer.flush()
        now = time.perf_counter()
        record = {
            "epoch": epoch + 1,
            "learning_rate": rate,
            "seconds": now - self.mark,
            **{name: float(value) for name, value in logs.items()},
            "plain_loss": plain["loss"],
            "plain_accuracy": plain["accuracy"],
        }
        self.mark = now
        self.trial.history[epoch:] = [record]  # an epoch done twice counts once
        self.trial.write(self.folder)
        self.on_epoch()


# %%
# A trial
# -------
# One optimizer with one seed. Its folder ``<optimizer>/seed_<seed>/`` holds ``trial.json`` with
# the settings (the hyperparameters), the curves and the metrics; the trained network as
# ``model.keras``; and its parameters alone as ``parameters.npz``. ``trial.json`` is written
# after each epoch, so a race that was stopped knows which trials are done, and which epoch the
# unfinished one had reached; Keras's ``BackupAndRestore`` keeps weights and optimizer state.
# (A trial that was resumed shuffles anew, so its digits differ from an uninterrupted one's.)
#
# A seed fixes the start weights, the order of the images and the dropout masks. In the race
# all optimizers get the same seeds: they start from the same network and see the same batches.


@dataclass(frozen=True)
class Settings:
    """What decides a trial's result; a stopped trial goes on only if all of it is the same."""

    optimizer: str
    learning_rate: float
    seed: int
    epochs: int
    batch_size: int
    train_images: int
    stand_in: bool

    @property
    def folder(self) -> str:
        return f"{self.optimizer}/seed_{self.seed}"


@dataclass
class Trial:
    """A trial and how far it is: a record for each epoch, and ``metrics`` when it is done."""

    settings: Settings
    history: list[dict[str, float]]
    metrics: dict[str, float]
    parameters: int = 0

    def write(self, folder: Path) -> None:
        write_json(folder / "trial.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Trial":
        content = json.loads((folder / "trial.json").read_text(encoding="utf-8"))
        return cls(**content | {"settings": Settings(**content["settings"])})

    @property
    def train_seconds(self) -> float:
        return sum(record["seconds"] for record in self.history)


def run_trial(
    run: Run, settings: Settings, data: Data, verbose: int, on_epoch: Callable[[], None]
) -> Trial:
    """Train, save, load back, test; or go on with what an earlier, stopped run left.

    Args:
        run: whose folder the trial's folder lies in.
        settings: the trial.
        data: what to train, validate and test on.
        verbose: Keras's, for training.
        on_epoch: called after each epoch.

    Returns:
        The finished trial.

    Raises:
        SystemExit: the loss stopped being finite.
        AssertionError: what was loaded back predicts something else.
    """
    folder, backup = run.folder / settings.folder, run.backup / settings.folder
    trial = Trial(settings, [], {})
    if (folder / "trial.json").exists():
        earlier = Trial.read(folder)
        if earlier.settings == settings:
            trial = earlier
    if trial.metrics:
        return trial
    if not (trial.history and (backup / "training_metadata.json").exists()):
        shutil.rmtree(folder, ignore_errors=True)  # nothing to go on from
        trial.history.clear()

    keras.utils.clear_session()  # layer names count from the beginning again
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()  # add in a fixed order
    train = make_dataset(data.train, settings.batch_size, shuffle_seed=settings.seed)
    validation = make_dataset(data.validation, 500)
    model = build_model(data.train[0], settings.seed)
    trial.parameters = int(sum(np.prod(variable.shape) for variable in model.trainable_variables))
    schedule = learning_rate_schedule(settings.learning_rate, settings.epochs, len(train))
    model.compile(
        optimizer=OPTIMIZERS[settings.optimizer][1](schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=10,  # such small steps cost less than the way from one to the next
    )
    trial.write(folder)
    model.fit(
        train,
        epochs=settings.epochs,
        validation_data=validation,
        shuffle=False,  # the data set shuffles; Keras would only warn that it can't
        verbose=verbose,
        callbacks=[
            Recorder(trial, folder, data, on_epoch),
            keras.callbacks.TensorBoard(str(folder), write_graph=False),
            keras.callbacks.BackupAndRestore(
                str(backup), double_checkpoint=True, delete_checkpoint=False
            ),
        ],
    )
    loaded = save_and_load(model, folder, data, settings.seed)

    last = trial.history[-1]
    test = loaded.evaluate(make_dataset(data.test, 500), verbose=0, return_dict=True)
    trial.metrics = {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "validation_accuracy": last["val_accuracy"],
        "validation_loss": last["val_loss"],
    }
    with tf.summary.create_file_writer(run.log_dir(settings.folder)).as_default():
        names = ("optimizer", "learning_rate", "seed", "epochs", "batch_size")
        hp.hparams({name: getattr(settings, name) for name in names}, trial_id=settings.folder)
        for name, value in trial.metrics.items():
            tf.summary.scalar(name, value, settings.epochs)
        tf.summary.flush()
    trial.write(folder)
    assert Trial.read(folder) == trial, "trial.json does not hold what was measured"
    return trial


# %%
# Saving, and loading back
# ------------------------
# ``model.keras`` is the whole model: layers, parameters, loss, optimizer and its state. It is
# loaded without the code that built it; ``safe_mode`` refuses files that would run code of
# their own. ``parameters.npz`` is only the six arrays, what ``tf.train.Saver`` kept in
# TensorFlow 1; the code has to build the network again before they can be put into it. Either
# way the predictions must be the same to the last bit, and the test set is scored by the
# model that came from the file.


def save_and_load(model: keras.Model, folder: Path, data: Data, seed: int) -> keras.Model:
    """Write ``model.keras`` and ``parameters.npz``, read both back, and compare what all three
    predict for the validation images.

    Returns:
        The model from ``model.keras``.

    Raises:
        AssertionError: the predictions differ anywhere.
    """
    with written_whole(folder / "model.keras") as temporary:
        model.save(temporary)
    with written_whole(folder / "parameters.npz") as temporary:
        np.savez(temporary, **{v.path: v.numpy() for v in model.trainable_variables})

    loaded = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    rebuilt = build_model(data.train[0], seed + 1)  # another start, to be overwritten
    with np.load(folder / "parameters.npz", allow_pickle=False) as arrays:
        for variable in rebuilt.trainable_variables:
            variable.assign(arrays[variable.path])

    images = tf.constant(data.validation[0])  # [5000, 28, 28]
    logits = model(images, training=False)  # [5000, 10]
    for other in (loaded, rebuilt):
        again = other(images, training=False)
        assert np.array_equal(logits, again), "what was loaded predicts something else"
    return loaded


# %%
# What the figures show
# ---------------------
# ``curves.png``: the training loss with dropout on top, validation below it, and the training
# loss without dropout lowest. ``race.png``: the mean of all seeds for each optimizer, with a
# band of one standard deviation to either side. Where bands overlap, the race is undecided.

COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#888888", "#0072B2", "#D55E00", "#CC79A7")


def mean_and_spread(values: list[float] | np.ndarray) -> tuple[Any, Any]:
    """Mean and standard deviation over the first axis, the seeds (dividing by n - 1); for one
    seed there is no spread and the second is None."""
    spread = np.std(values, axis=0, ddof=1) if len(values) > 1 else None
    return np.mean(values, axis=0), spread


def draw_curve(axes: Any, trials: list[Trial], name: str, **style: Any) -> None:
    """Draw a recorded loss, or an accuracy as the percentage of errors, over the epochs: the
    mean over the trials and a band."""
    values = np.array([[record[name] for record in t.history] for t in trials])  # [seeds, epochs]
    if name.endswith("accuracy"):
        values = 100 * (1 - values)
    mean, spread = mean_and_spread(values)
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, mean, marker=".", **style)
    if spread is not None:
        low = np.maximum(mean - spread, mean / 4)  # the axis is logarithmic
        axes.fill_between(epochs, low, mean + spread, alpha=0.15, color=style["color"], lw=0)


def two_panels(title: str) -> tuple[Any, Any, Any]:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    right.set(xlabel="epoch", ylabel="images wrong (%)", yscale="log")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    return figure, left, right


def draw_curves(trials: list[Trial]) -> Any:
    """The figure of one optimizer: training with and without dropout, and validation."""
    seeds = f"mean of {len(trials)} seeds" if len(trials) > 1 else "one seed"
    figure, left, right = two_panels(f"{trials[0].settings.optimizer}, {seeds}")
    for prefix, label, color in (
        ("", "training, dropout on, mean over the epoch", "#E69F00"),
        ("val_", "validation", "#0072B2"),
        ("plain_", "training, dropout off, after the epoch", "#009E73"),
    ):
        draw_curve(left, trials, f"{prefix}loss", color=color, label=label)
        draw_curve(right, trials, f"{prefix}accuracy", color=color)
    left.legend()
    return figure


def draw_race(results: dict[str, list[Trial]]) -> Any:
    """The figure of the race: validation loss and error of every optimizer."""
    seeds = len(next(iter(results.values())))
    spread = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    figure, left, right = two_panels(f"Validation, {spread}")
    for (name, trials), color in zip(results.items(), COLORS, strict=True):
        line = "--" if name in ("nesterov", "adamw") else "-"  # they lie close to their likes
        draw_curve(left, trials, "val_loss", color=color, linestyle=line)
        draw_curve(right, trials, "val_accuracy", color=color, linestyle=line, label=name)
    figure.legend(loc="outside right center")
    return figure


def show_table(results: dict[str, list[Trial]], winner: str) -> None:
    """Print the race: one row for each optimizer, best validation accuracy first."""
    count = len(results[winner])
    table = Table(title=f"{count} seed{'s' if count > 1 else ''}; * = best by validation accuracy")
    for column in ("optimizer", "rate", "validation %", "test %", "seconds"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")

    def cell(trials: list[Trial], metric: str) -> str:
        mean, spread = mean_and_spread([100 * trial.metrics[metric] for trial in trials])
        return f"{mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")

    for name in sorted(results, key=partial(validation_accuracy, results), reverse=True):
        trials = results[name]
        table.add_row(
            f"{name} *" if name == winner else name,
            f"{trials[0].settings.learning_rate:g}",
            cell(trials, "validation_accuracy"),
            cell(trials, "test_accuracy"),
            f"{np.mean([trial.train_seconds for trial in trials]):.0f}",
        )
    Console().print(table)


def validation_accuracy(results: dict[str, list[Trial]], name: str) -> float:
    """The mean over the seeds, by which the winner is chosen."""
    return float(np.mean([trial.metrics["validation_accuracy"] for trial in results[name]]))


def summarise(trials: list[Trial], names: tuple[str, ...], prefix: str = "") -> dict[str, float]:
    """Means over the seeds as ``<prefix><name>``; with several seeds also ``…_std``."""
    metrics = {}
    for name in names:
        mean, spread = mean_and_spread([trial.metrics[name] for trial in trials])
        metrics[prefix + name] = mean
        if spread is not None:
            metrics[f"{prefix}{name}_std"] = spread
    return metrics


# %%
# The race
# --------
# Each trial scores the test set once, when its training is over, and nothing is chosen by that
# figure: the winner is the optimizer with the best validation accuracy, the mean over the
# seeds. Its validation accuracy is a little flattered by the choice, its test accuracy is
# not.
#
# In TensorBoard, the HParams tab sets all trials side by side: as a table, as lines through
# optimizer, rate and accuracies (Parallel coordinates), or as points (Scatter plot).


def run_all(
    run: Run, data: Data, names: list[str], seeds: range, rate: float | None
) -> dict[str, list[Trial]]:
    """Run a trial for each seed and optimizer, seed by seed; the trials by optimizer."""
    args = run.args
    results: dict[str, list[Trial]] = {name: [] for name in names}
    single = len(names) * len(seeds) == 1
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=single) as progress:
        bar = progress.add_task("epochs", total=len(names) * len(seeds) * args.epochs)
        for seed in seeds:
            for name in names:
                settings = Settings(
                    name,
                    rate or OPTIMIZERS[name][0],
                    seed,
                    args.epochs,
                    args.batch_size,
                    len(data.train[0]),
                    bool(data.describe["stand_in"]),
                )
                progress.update(bar, description=f"{name}, seed {seed}")
                verbose = run.verbose if single else 0
                trial = run_trial(run, settings, data, verbose, partial(progress.advance, bar))
                results[name].append(trial)
                finished = sum(len(trials) for trials in results.values())
                progress.update(bar, completed=finished * args.epochs)
                if not single:
                    progress.console.print(
                        f"{name}, seed {seed}: validation "
                        f"{trial.metrics['validation_accuracy']:.2%}, {trial.train_seconds:.0f} s"
                    )
    return results


def main() -> None:
    parser = make_parser(__doc__)
    mnist.add_data_dir(parser)
    parser.add_argument(
        "--optimizer",
        choices=[*OPTIMIZERS, "all"],
        default="adam",
        help="how gradients become steps; 'all' races them",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive_float,
        help="rate of the first epoch, from which it falls (default: the optimizer's own: "
        + ", ".join(f"{name} {rate:g}" for name, (rate, _) in OPTIMIZERS.items())
        + ")",
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        default=EPOCHS,
        quick=QUICK_EPOCHS,
        help="passes through the training images",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=BATCH_SIZE, help="images in a training step"
    )
    parser.add_argument(
        "--seeds",
        type=positive_int,
        metavar="N",
        help="train N times, with the seeds --seed, --seed + 1, ..., and give mean and standard "
        f"deviation (default: 1; with --optimizer all {RACE_SEEDS}, with --quick 1)",
    )
    args = parser.parse_args()
    race = args.optimizer == "all"
    if race and args.learning_rate:
        parser.error(
            "argument --learning-rate: no single rate is fair to all optimizers; give it with "
            "one --optimizer, or leave it out"
        )
    count = args.seeds or (RACE_SEEDS if race and not args.quick else 1)
    if args.seed + count > 2**32:
        parser.error(f"argument --seeds: --seed {args.seed} + {count} seeds go beyond 4294967295")

    run = Run(parser, __file__)
    data = load_data(args.data_dir, args.quick)
    run.backup.mkdir(exist_ok=True)  # each trial keeps its own in it
    if run.resuming:
        print(f"Going on with the stopped run in {readable(run.folder)}")
    else:  # trials of an earlier run that came to its end are not this one's
        for old in run.folder.glob("*/seed_*/trial.json"):
            shutil.rmtree(old.parent)
    names = list(OPTIMIZERS) if race else [args.optimizer]
    seeds = range(args.seed, args.seed + count)

    inference = tf.function(build_model(data.train[0], args.seed))
    pixels = tf.TensorSpec([None, 28, 28], tf.uint8, "pixels")
    write_graph(run.log_dir("graph"), inference.get_concrete_function(pixels, training=False))
    with tf.summary.create_file_writer(run.log_dir()).as_default():
        hp.hparams_config(
            hparams=[
                hp.HParam("optimizer", hp.Discrete(names)),
                hp.HParam("learning_rate", hp.RealInterval(1e-6, 100.0)),
                hp.HParam("seed", hp.Discrete(list(seeds))),
            ],
            metrics=[hp.Metric("validation_accuracy"), hp.Metric("test_accuracy")],
        )
        tf.summary.flush()

    results = run_all(run, data, names, seeds, args.learning_rate)
    winner = max(results, key=partial(validation_accuracy, results))
    best = results[winner]
    every_trial = [trial for trials in results.values() for trial in trials]
    metrics = summarise(best, tuple(best[0].metrics))
    if race:
        for name, trials in results.items():
            metrics |= summarise(trials, ("validation_accuracy", "test_accuracy"), f"{name}_")
        run.save_figure(draw_race(results), "race")
    if len(every_trial) > 1:
        show_table(results, winner)
    run.save_figure(draw_curves(best), "curves")
    print(f"Model: {readable(run.folder / best[0].settings.folder / 'model.keras')}")
    run.finish(
        metrics,
        data=data.describe,
        train_seconds=sum(trial.train_seconds for trial in every_trial),
        parameters=best[0].parameters,
        winner=winner,
        trials=[
            asdict(trial.settings)
            | {"metrics": trial.metrics, "train_seconds": round(trial.train_seconds, 3)}
            for trial in every_trial
        ],
    )


if __name__ == "__main__":
    main()
