"""Two costs: cross-entropy and squared error
==========================================

You learn: why classifiers are trained with the cross-entropy. The slope of the quadratic cost
vanishes where a network is sure, even if it is wrong. And how to compare two costs fairly.

Run::

    python cnn/03_two_costs.py

You should see: with a rate tuned for each, the cross-entropy gets 98.00 % of the 10,000 test images
right and the quadratic cost 97.44 %, as means of five trainings. From a start that is sure and
wrong the cross-entropy gets as far, and the quadratic cost learns nothing. ``costs.png`` shows the
gradients, the tuning and the trainings.

Time: 150 s on two CPU cores.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn.metrics import brier_score_loss

from data import mnist
from utils.figures import BLUE, ORANGE
from utils.run import CourseParser, Run, positive_int
from utils.training import warm_up_cosine

RATES = (0.5, 1, 2, 4, 8)  # tried for each cost
SURE = (0, 4, 8, 12)  # biases of digit 0 at the start: from undecided to sure and wrong
BATCH_SIZE = 100

parser = CourseParser(__doc__)
mnist.add_data_dir(parser)
parser.add_argument(
    "--epochs", type=positive_int, default=3, quick=1, help="passes over the training images"
)
parser.add_argument(
    "--seeds", type=positive_int, default=5, quick=2, help="trainings with each tuned rate"
)
run = Run(parser, __file__)
keras.utils.set_random_seed(run.args.seed)
tf.config.experimental.enable_op_determinism()  # the same seed gives the same result

data = mnist.load(run.args.data_dir)
if run.args.quick:
    data = data.first(train=4_000, validation=1_000)
print(f"Data: {data.source}, {len(data.train_images):,} training images")

# %%
# Two costs
# ---------
# The network gives logits z, and the softmax makes them probabilities p. Let y be 1 for the true
# digit and 0 for the others. Both costs are least when p = y:
#
# .. math::
#
#    C_{\text{cross-entropy}} = -\sum_i y_i \ln p_i , \qquad
#
#    C_{\text{quadratic}} = \tfrac{1}{2} \sum_i (p_i - y_i)^2
#
# Weather forecasts have been scored since 1950 with the quadratic cost without its 1/2, the *Brier
# score*. Here we ask how well a network learns from it.


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The mean over the batch of the first cost; labels [b], logits [b, 10]."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def quadratic(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    errors = tf.nn.softmax(logits) - tf.one_hot(labels, 10, dtype=logits.dtype)  # p - y, [b, 10]
    return tf.reduce_mean(tf.reduce_sum(tf.square(errors), axis=1)) / 2


COSTS = {"cross-entropy": cross_entropy, "quadratic": quadratic}

# %%
# Their slopes
# ------------
# A step of gradient descent is the slope times the rate. With :math:`\partial p_j / \partial z_i =
# p_j (\delta_{ij} - p_i)`, the derivative of the softmax,
#
# .. math::
#
#    \frac{\partial C_{\text{cross-entropy}}}{\partial z_i} = p_i - y_i , \qquad
#    \frac{\partial C_{\text{quadratic}}}{\partial z_i}
#    = p_i \Bigl[ (p_i - y_i) - \sum_j p_j (p_j - y_j) \Bigr] .
#
# The logarithm cancels the derivative of the softmax, and the first slope is just the error. In the
# second the derivative stays. For two classes the second slope is the error times 2 p (1 - p): half
# of the error for p = 1/2, and next to nothing for p near 0 or 1, whether right or wrong.

digits, some_logits = np.arange(10), tf.random.normal([10, 10], stddev=3, dtype=tf.float64)
p = tf.nn.softmax(some_logits).numpy()  # [10, 10], one row for each image
error = p - np.eye(10)  # the true digits are 0 to 9
slopes = {
    "cross-entropy": error,
    "quadratic": p * (error - np.sum(p * error, axis=1, keepdims=True)),
}
for name, cost in COSTS.items():
    with tf.GradientTape() as tape:
        tape.watch(some_logits)
        mean_cost = cost(digits, some_logits)
    assert np.allclose(tape.gradient(mean_cost, some_logits), slopes[name] / 10)  # 10: of the mean
brier = brier_score_loss(digits, p, scale_by_half=False)
assert np.isclose(2 * quadratic(digits, some_logits), brier)

# %%
# A start that is sure and wrong
# ------------------------------
# A small network, 5,994 numbers, the same for both costs. Its convolutions move by two pixels at a
# time (``strides=2``) and need no pooling. It has tanh, because with relu some of the trainings
# below break down. The bias of digit 0 sets how sure it is at the start that every image is a 0. It
# is wrong for nine images of ten. We measure the length of the gradient.

model = keras.Sequential(
    [
        keras.Input((28, 28), dtype="uint8"),
        keras.layers.Reshape((28, 28, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(8, 5, strides=2, activation="tanh"),  # [b, 12, 12, 8]
        keras.layers.Conv2D(16, 5, strides=2, activation="tanh"),  # [b, 4, 4, 16]
        keras.layers.Flatten(),
        keras.layers.Dense(10, name="logits"),
    ]
)
weights = model.trainable_variables
assert model.count_params() == (25 * 8 + 8) + (25 * 8 * 16 + 16) + (256 * 10 + 10)


def start(seed: int, bias: float = 0) -> None:
    draw = keras.initializers.GlorotUniform(seed)  # Keras's default
    for weight in weights:
        weight.assign(draw(weight.shape) if weight.path.endswith("kernel") else 0 * weight)
    model.get_layer("logits").bias.assign(bias * tf.one_hot(0, 10))


images, labels = data.train_images[:1_000], data.train_labels[:1_000].astype(np.int32)
lengths = {name: [] for name in COSTS}  # of the gradient, for each bias
for bias in SURE:
    start(run.args.seed, bias)
    for name, cost in COSTS.items():
        with tf.GradientTape() as tape:
            mean_cost = cost(labels, model(images))
        lengths[name].append(float(tf.linalg.global_norm(tape.gradient(mean_cost, weights))))
    p_zero = float(tf.reduce_mean(tf.nn.softmax(model(images))[:, 0]))
    measured = ", ".join(f"{name} {length[-1]:.6f}" for name, length in lengths.items())
    print(f"bias {bias:2}, p(0) {p_zero:.5f}: length of the gradient: {measured}")

# %%
# A rate for each cost
# --------------------
# The slopes differ in size, so one rate for both would favour one of the costs. Each gets the rate
# with the best validation accuracy, as the mean of two starts. Both have the same choice of rates,
# starts and batches. The rate is the peak of the schedule that ``linear/02`` explains.

total = run.args.epochs * -(-len(data.train_images) // BATCH_SIZE)  # steps of a training


@tf.function  # recorded once for each name
def step(
    name: str, images: tf.Tensor, labels: tf.Tensor, peak: tf.Tensor, number: tf.Tensor
) -> None:
    rate = warm_up_cosine(peak, total)(number)
    with tf.GradientTape() as tape:
        mean_cost = COSTS[name](tf.cast(labels, tf.int32), model(images))
    for weight, gradient in zip(weights, tape.gradient(mean_cost, weights), strict=True):
        weight.assign_sub(rate * gradient)


def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(model(images).numpy().argmax(axis=1) == labels))


def train(name: str, peak: float, seed: int, bias: float = 0) -> float:
    start(seed, bias)
    batches = mnist.batches(data.train_images, data.train_labels, BATCH_SIZE, seed=seed)
    for number, (images, labels) in batches.repeat(run.args.epochs).enumerate():
        step(name, images, labels, tf.constant(peak, tf.float32), number)
    return accuracy(data.validation_images, data.validation_labels)


seed = run.args.seed
tuning = {
    name: [np.mean([train(name, rate, s) for s in (seed, seed + 1)]) for rate in RATES]
    for name in COSTS
}
tuned = {name: RATES[int(np.argmax(found))] for name, found in tuning.items()}
for name, found in tuning.items():
    tried = ", ".join(f"{rate:g} {value:.2%}" for rate, value in zip(RATES, found, strict=True))
    print(f"{name}, rate and validation accuracy: {tried}; chosen: {tuned[name]:g}")

# %%
# Both costs, trained in full
# ---------------------------
# Five trainings with each cost, at its own rate, from new starts. For each seed both costs have the
# same start and the same batches, so their difference is measured in pairs. If 0 were in the
# interval (Student's t), five trainings could not tell the costs apart. This holds for three epochs
# of plain gradient descent, with this network.

tests = {name: [] for name in COSTS}
for new_seed in range(seed + 2, seed + 2 + run.args.seeds):
    for name in COSTS:
        train(name, tuned[name], new_seed)
        tests[name].append(accuracy(data.test_images, data.test_labels))
pairs = np.subtract(tests["cross-entropy"], tests["quadratic"])
low, high = stats.t.interval(0.95, len(pairs) - 1, np.mean(pairs), stats.sem(pairs))
for name, found in tests.items():
    print(f"{name}: {np.mean(found):.2%} of the test images, {min(found):.2%} to {max(found):.2%}")
print(f"difference: {np.mean(pairs):.2%}, 95 % interval {low:.2%} to {high:.2%}")

# %%
# Trained from the sure starts
# ----------------------------
# The same two rates, from each of the starts above. Where the gradient of the quadratic cost is a
# hundred times smaller, three epochs are too short for it to get away.

sure = {name: [train(name, tuned[name], seed, bias) for bias in SURE] for name in COSTS}

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for name, colour in (("cross-entropy", BLUE), ("quadratic", ORANGE)):
    print(
        f"{name}, bias and accuracy: "
        + ", ".join(f"{b} {a:.2%}" for b, a in zip(SURE, sure[name], strict=True))
    )
    left.semilogy(SURE, lengths[name], ".-", color=colour, label=name)
    middle.plot([f"{rate:g}" for rate in RATES], tuning[name], ".-", color=colour, label=name)
    right.plot(SURE, sure[name], ".-", color=colour, label=name)
left.set(title="Gradient at the start", xlabel="bias of digit 0", ylabel="length")
middle.set(title="Tuning", xlabel="rate", ylabel="validation accuracy", ylim=(0.9, 1))
right.set(title="Trained", xlabel="bias of digit 0 at the start", ylabel="validation accuracy")
for axes in (left, middle, right):
    axes.grid(alpha=0.3)
    axes.legend()
run.save_figure(figure, "costs")

run.finish(
    {
        "cross_entropy_test_accuracy": np.mean(tests["cross-entropy"]),
        "quadratic_test_accuracy": np.mean(tests["quadratic"]),
        "lowest_difference_in_accuracy": low,
        "highest_difference_in_accuracy": high,
        "cross_entropy_from_sure_start_accuracy": sure["cross-entropy"][-1],
        "quadratic_from_sure_start_accuracy": sure["quadratic"][-1],
    },
    data=data.describe(),
    parameters=model.count_params(),
)
