"""A fair race of eight optimizers
===============================

You learn: how an optimizer turns a gradient into a step, how much the learning rate decides, how
to compare optimizers fairly, and how to tell a difference from luck.

Run::

    python linear/03_optimizer_race.py

You should see: eight optimizers, far apart at Keras's learning rates. At tuned ones all read 97 to
98 % of the test images; most pairs are undecided, plain ``sgd`` is behind (``race.png``).

Time: 110 s on two CPU cores.
"""

import time
from functools import partial
from itertools import permutations

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hp

from data import mnist
from utils.run import CourseParser, Run, positive_int
from utils.training import warm_up_cosine

BATCH_SIZE = 128

parser = CourseParser(__doc__)
mnist.add_data_dir(parser)
parser.add_argument(
    "--epochs", type=positive_int, default=3, quick=1, help="passes over the training images"
)
parser.add_argument(
    "--runs", type=positive_int, default=5, quick=2, help="times that each optimizer is tuned"
)
run = Run(parser, __file__)
keras.utils.set_random_seed(run.args.seed)
tf.config.experimental.enable_op_determinism()  # the same seed gives the same result

# %%
# Eight optimizers
# ----------------
# The loss rises along the gradient g. An optimizer decides how far a weight goes the other way:
#
# - ``sgd``: the learning rate times g.
# - ``momentum``: a velocity, which keeps 0.9 of itself in each step and gains the rate times g.
# - ``nesterov``: the same, and it looks one move of the velocity ahead.
# - ``adagrad``: divides g by the root of the sum of all its squares (plus 0.1). The steps shrink.
# - ``rmsprop``: divides g by the root of a running mean of its squares, so it forgets old ones.
# - ``adadelta``: as rmsprop, times the running size of its own steps. The rate is Keras's addition.
# - ``adam``: a running mean of g, divided by rmsprop's root. Both are corrected for starting at 0.
# - ``adamw``: adam, and each step makes the weight smaller by the share 0.004 times the rate.
#
# At rate 1, the last four go nearly as far for a small gradient as for a large one:

OPTIMIZERS = {
    "sgd": keras.optimizers.SGD,
    "momentum": partial(keras.optimizers.SGD, momentum=0.9),
    "nesterov": partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    "adagrad": keras.optimizers.Adagrad,
    "rmsprop": keras.optimizers.RMSprop,
    "adadelta": keras.optimizers.Adadelta,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
}
print("first step   gradient 1   gradient 0.01")
for name, make in OPTIMIZERS.items():
    weights = [keras.Variable(0.0), keras.Variable(0.0)]
    make(learning_rate=1.0).apply([tf.constant(1.0), tf.constant(0.01)], weights)
    print(f"{name:10s} {-weights[0].numpy():12.4f} {-weights[1].numpy():15.4f}")

# %%
# The track
# ---------
# A small network can be trained hundreds of times. A *start* is a set of random first weights and
# an order of the images. From one start, all optimizers see the same network and batches.

data = mnist.load(run.args.data_dir)
if run.args.quick:
    data = data.first(train=4_000, validation=1_000)
print(f"Data: {data.source}, {len(data.train_images):,} training images")
images, labels = tf.constant(data.train_images), tf.constant(data.train_labels)
steps = run.args.epochs * len(images) // BATCH_SIZE


def make_model() -> keras.Model:
    """The network, with new random weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Flatten(),  # [b, 784]
            keras.layers.Rescaling(1 / 255),
            keras.layers.Dense(100, activation="relu"),  # [b, 100]
            keras.layers.Dense(10),  # [b, 10]
        ]
    )


rng = np.random.default_rng(run.args.seed)
starts = []
for _ in range(run.args.runs):
    order = np.concatenate([rng.permutation(len(images)) for _ in range(run.args.epochs)])
    batches = order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)  # numbers of images
    starts.append((make_model().get_weights(), tf.constant(batches)))

# %%
# One training
# ------------
# All trainings share one model and, for each optimizer, one graph of ``descend``: making these
# takes as long as a training. So each begins anew by hand, with the weights of its start *and* with
# an optimizer that remembers nothing. The rate rises over the first 15 % of the steps to the rate
# that is tried, then falls to zero along half a cosine.

model = make_model()
loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
schedule = warm_up_cosine(1.0, steps)
optimizers = {name: make() for name, make in OPTIMIZERS.items()}
for optimizer in optimizers.values():
    optimizer.build(model.trainable_variables)
fresh = {name: [v.numpy() for v in optimizers[name].variables] for name in OPTIMIZERS}
defaults = {name: float(optimizers[name].learning_rate) for name in OPTIMIZERS}  # Keras's rates


@tf.function
def descend(optimizer: keras.Optimizer, peak: tf.Tensor, batches: tf.Tensor) -> None:
    """One step for each row of ``batches`` [steps, b], with rates up to ``peak`` (a scalar)."""
    for batch in batches:  # [b]
        with tf.GradientTape() as tape:
            logits = model(tf.gather(images, batch), training=True)  # [b, 10]
            loss = loss_function(tf.gather(labels, batch), logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.learning_rate.assign(peak * schedule(optimizer.iterations))
        optimizer.apply(gradients, model.trainable_variables)


def train(name: str, rate: float, start: int) -> None:
    """Train ``model`` anew, from the start with that number."""
    weights, batches = starts[start]
    model.set_weights(weights)
    for variable, value in zip(optimizers[name].variables, fresh[name], strict=True):
        variable.assign(value)
    descend(optimizers[name], tf.constant(rate), batches)


def score(images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy of ``model``; the loss of a training that exploded is infinite."""
    logits = model(images).numpy()  # [n, 10]
    loss = float(loss_function(labels, logits))
    return loss if np.isfinite(loss) else np.inf, float(np.mean(logits.argmax(axis=1) == labels))


# %%
# The tuning
# ----------
# One rule for all: go up from some rate in factors of two, then down, until the rate with the best
# validation loss has two worse ones above it and two below. So it is never the last one tried.


def tune(name: str, first: float, start: int) -> dict[float, float]:
    """Return the rates that were tried and their losses; ``model`` is left as the best one."""
    tried, best = {}, first
    for factor in (2, 1 / 2):
        rate = first
        while 1 / 4 <= rate / best <= 4:
            if rate not in tried:
                train(name, rate, start)
                tried[rate], _ = score(data.validation_images, data.validation_labels)
                if tried[rate] == min(tried.values()):
                    best, weights = rate, model.get_weights()
            rate *= factor
    model.set_weights(weights)
    return tried


# %%
# The race
# --------
# A run takes a new start, tunes the rate, and scores the best network on the test images. The first
# run begins with Keras's rate, each further one with the best rate of the run before. So the spread
# between the runs comes from weights, order and tuning. ``hp.hparams`` is for the HParams tab.

valleys = {}  # by optimizer: what the first run tried
rates, losses, accuracies = ({name: [] for name in OPTIMIZERS} for _ in range(3))  # of all runs
started = time.perf_counter()
for start in range(run.args.runs):
    for name in OPTIMIZERS:
        tried = tune(name, rates[name][-1] if start else defaults[name], start)
        valleys.setdefault(name, tried)
        best = min(tried, key=tried.get)
        rates[name].append(best)
        losses[name].append(tried[best])
        accuracies[name].append(score(data.test_images, data.test_labels)[1])
        for rate, loss in tried.items():
            trial = f"{name}-{start}-{rate:.3g}"
            with tf.summary.create_file_writer(str(run.folder / f"trials/{trial}")).as_default():
                hp.hparams({"optimizer": name, "rate": rate, "start": start}, trial_id=trial)
                tf.summary.scalar("validation_loss", loss, step=steps)
                if rate == best:
                    tf.summary.scalar("test_accuracy", accuracies[name][-1], step=steps)
train_seconds = time.perf_counter() - started

# %%
# A difference, or luck?
# ----------------------
# If two optimizers are equally good, all five runs of one beat all five runs of the other in 2 of
# :math:`\binom{10}{5} = 252` races. When that happens, we call the pair decided. Among eight equals
# 28·2/252 = 0.2 pairs would be. All other pairs have no winner, whatever their order in the table.

ranking = sorted(OPTIMIZERS, key=lambda name: np.mean(losses[name]))
print("          loss at Keras's rate   tuned rate      loss   test accuracy (worst to best)")
for name in ranking:
    test, median = accuracies[name], np.median(rates[name])
    print(f"{name:10s}{valleys[name][defaults[name]]:20.4f}{median:13.3g}", end="")
    print(f"{np.mean(losses[name]):10.4f}{np.mean(test):9.2%} ({min(test):.2%} to {max(test):.2%})")

decided = [
    (winner, loser)
    for winner, loser in permutations(ranking, 2)
    if min(accuracies[winner]) > max(accuracies[loser])
]
print(f"{len(decided)} of 28 pairs are decided")
for name in ranking:
    if losers := [loser for winner, loser in decided if winner == name]:
        print(f"  {name} beats {', '.join(losers)}")

# %%
# Left: the tuning of the first run; a ring marks Keras's rate. From adam's best rate to adadelta's
# it is more than a thousandfold, so one common rate only shows for which optimizer it was chosen.
# Momentum's lies far left of sgd's: a velocity that keeps 0.9 of itself adds up to 1/(1 - 0.9) = 10
# gradients. Right: each dot is the test accuracy of one run, each bar a mean.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for row, (name, colour) in enumerate(zip(ranking, plt.colormaps["Dark2"].colors, strict=True)):
    valley = dict(sorted(valleys[name].items()))
    left.plot(valley.keys(), valley.values(), ".-", color=colour, label=name)
    left.plot(defaults[name], valley[defaults[name]], "o", color=colour, ms=9, fillstyle="none")
    percent = 100 * np.array(accuracies[name])
    right.plot(percent, [row] * len(percent), "o", color=colour, alpha=0.6)
    right.plot(percent.mean(), row, "|", color="black", ms=16)
left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="validation loss")
left.set_yticks(marks := [0.1, 0.2, 0.5, 1, 2], marks)
left.legend(fontsize=8)
right.set(xlabel="test accuracy (%)")
right.set_yticks(range(len(ranking)), ranking)
right.invert_yaxis()
right.grid(axis="x", alpha=0.3)
run.save_figure(figure, "race")

metrics = {"test_accuracy": np.mean(accuracies[ranking[0]]), "decided_pairs": len(decided)}
metrics |= {f"{name}_test_accuracy": np.mean(accuracies[name]) for name in OPTIMIZERS}
metrics |= {f"{name}_rate": np.median(rates[name]) for name in OPTIMIZERS}
parameters = model.count_params()
run.finish(metrics, data=data.describe(), train_seconds=train_seconds, parameters=parameters)
