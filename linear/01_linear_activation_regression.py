"""Regression with one hidden layer
================================

You learn: how ten tanh units bend a straight line into a parabola; how to write the network
and its gradient descent with nothing but ``tf.Variable`` and ``tf.GradientTape``; and why a
bias has one value for each unit, never one for each point of the batch.

Run::

    python linear/01_linear_activation_regression.py

You should see: after 10,000 steps a loss of 0.00035, where noise alone makes 0.00034, and a
curve 0.004 from x² (root mean square), with points that lie 0.019 from it. The network with a
bias for each point reaches a loss of zero, is as far from x² as the noisy points themselves,
and can't predict 50 points.

Time: 8 s on two CPU cores, of which 6 s go into importing TensorFlow.
"""

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from utils.run import Run, make_parser, positive_float, positive_int

parser = make_parser(__doc__)
parser.add_argument("--steps", type=positive_int, default=10_000, help="steps of gradient descent")
parser.add_argument("--learning-rate", type=positive_float, default=0.3, help="size of a step")
run = Run(parser, __file__)
args = run.args

# %%
# The data
# --------
# 200 points on the parabola y = x², each moved up or down by noise of standard deviation 0.02.
# In TensorFlow 1 both arrays went through ``tf.placeholder(tf.float32, [None, 1])``; today
# they are arguments. They stay matrices with one column: a row for each point.

POINTS, UNITS, NOISE = 200, 10, 0.02
rng = np.random.default_rng(args.seed)
x = np.linspace(-0.5, 0.5, POINTS, dtype=np.float32)[:, np.newaxis]  # [200, 1]
truth = np.square(x)  # [200, 1]
noise = rng.normal(0, NOISE, (POINTS, 1)).astype(np.float32)
y = truth + noise  # [200, 1]

# %%
# The network
# -----------
# One hidden layer and a linear output:
#
# .. math:: h = \tanh(x W_1 + b_1), \qquad \hat y = h W_2 + b_2 .
#
# The shapes are x [n, 1], W₁ [1, 10], b₁ [10], h [n, 10], W₂ [10, 1], b₂ [1], ŷ [n, 1]. The
# biases have no axis for the points: the same ten numbers are added to every row, however many
# rows there are. That is broadcasting, and it is what "bias" means.
#
# The output has no tanh. A tanh there would bend the result a second time and shut it in
# between -1 and 1: for values up to 0.25 one may get away with it, for y = 3 one could not.
#
# The start matters as well. tanh is odd, tanh(-a) = -tanh(a), so ten units with zero bias add
# up to an odd function, and x² is even. Small random biases break that tie at once; from zero
# biases, gradient descent has to find its own way out first.


def predict(inputs: np.ndarray | tf.Tensor, parameters: list[tf.Variable]) -> tf.Tensor:
    """The network's output.

    Args:
        inputs: float32 of shape [n, 1].
        parameters: W₁ [1, 10], b₁ [10], W₂ [10, 1], b₂ [1].

    Returns:
        float32 of shape [n, 1].
    """
    w1, b1, w2, b2 = parameters
    return tf.tanh(inputs @ w1 + b1) @ w2 + b2


start = [
    array.astype(np.float32)
    for array in (
        rng.normal(0, 2.0, (1, UNITS)),  # W₁: wide, so that the units bend at different slopes
        rng.normal(0, 0.3, UNITS),  # b₁
        rng.normal(0, 0.3, (UNITS, 1)),  # W₂
        np.zeros(1),  # b₂
    )
]

# %%
# Gradient descent
# ----------------
# The loss is the mean squared error. A step goes against each gradient by the learning rate.
#
# ``tf.function`` makes a graph of ``descend``, in which ``tf.range`` makes the loop itself part
# of the graph: a thousand steps are one call. TensorFlow 1 called ``sess.run(train_step)`` for
# each of them, and most of the time went into the calls.


def mean_squared_error(outputs: tf.Tensor, targets: np.ndarray) -> tf.Tensor:
    """The mean of the squared differences of two tensors [n, 1]; a scalar."""
    return tf.reduce_mean(tf.square(outputs - targets))


@tf.function
def descend(parameters: list[tf.Variable], count: tf.Tensor) -> None:
    """``count`` (int32 scalar) steps of gradient descent on all points, in place."""
    for _ in tf.range(count):
        with tf.GradientTape() as tape:
            loss = mean_squared_error(predict(x, parameters), y)
        gradients = tape.gradient(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.assign_sub(args.learning_rate * gradient)


SHOWN = sorted(step for step in {0, 30, 300, 3_000, args.steps} if step <= args.steps)
LOG_EVERY = 50


def train(values: list[np.ndarray], name: str) -> tuple[list[tf.Variable], dict[int, np.ndarray]]:
    """Train from ``values``, logging the loss to the TensorBoard run ``name``.

    Returns:
        The parameters after the last step, and the predictions [200, 1] at the steps SHOWN.
    """
    parameters = [tf.Variable(value) for value in values]
    predictions = {}
    writer = tf.summary.create_file_writer(run.log_dir(name))
    done = 0
    with writer.as_default():
        for step in sorted({*SHOWN, *range(0, args.steps, LOG_EVERY)}):
            descend(parameters, tf.constant(step - done))
            done = step
            outputs = predict(x, parameters)
            loss = mean_squared_error(outputs, y)
            if not np.isfinite(loss):
                raise SystemExit(
                    f"{name}: the loss is no finite number after {step} steps. "
                    f"--learning-rate {args.learning_rate:g} is too large: make it smaller."
                )
            tf.summary.scalar("loss", loss, step)
            if step in SHOWN:
                predictions[step] = outputs.numpy()
    writer.close()
    return parameters, predictions


parameters, predictions = train(start, "bias_per_unit")

# %%
# How good is it?
# ---------------
# Two second opinions. The noise floor is the loss of x² itself, which only noise keeps from
# zero: a fit far above it has more to learn, a fit far below it has learned the noise. And
# ``np.polyfit`` finds the best parabola at once; it is told what the network has to find out,
# that the curve is a parabola. The distance to x² is what we are after; with real data, where
# the truth is unknown, it can't be measured.


def distance(outputs: np.ndarray | tf.Tensor) -> float:
    """Root of the mean squared distance of ``outputs`` [200, 1] to x²."""
    return float(np.sqrt(mean_squared_error(outputs, truth)))


parabola = np.polyval(np.polyfit(x[:, 0], y[:, 0], 2), x)  # [200, 1]
noise_floor = float(np.mean(np.square(noise)))
print("                        loss    distance to x²")
for step, outputs in predictions.items():
    loss = mean_squared_error(outputs, y)
    print(f"after {step:6,d} steps  {loss:.6f}  {distance(outputs):.4f}")
print(f"best parabola       {mean_squared_error(parabola, y):.6f}  {distance(parabola):.4f}")
print(f"x² (noise floor)    {noise_floor:.6f}  0")

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
axes.scatter(x, y, s=8, color="0.7", label="data")
axes.plot(x, truth, color="black", linestyle=":", label="x²")
colors = plt.colormaps["viridis_r"](np.linspace(0.15, 1, len(SHOWN)))
for (step, outputs), color in zip(predictions.items(), colors, strict=True):
    axes.plot(x, outputs, color=color, label=f"step {step:,}")
axes.set(xlabel="x", ylabel="y", title="The fit during the descent", ylim=(-0.1, 0.35))
axes.legend(ncols=2)
run.save_figure(figure, "fit")

# %%
# What the ten units do
# ---------------------
# ``hidden_units.png`` takes the result apart. On the left stand the outputs h of the ten
# units: stretches of one and the same tanh, steep or flat, rising or falling, each moved
# sideways by its bias. On the right each is multiplied by its weight in W₂; their sum, plus
# b₂, is the fit. No unit looks like a parabola. What they share is slope: where falling units
# and rising units cancel, in the middle, the sum is flat; to the left the rising ones are
# saturated and the falling ones win, to the right it is the other way round.

w1, b1, w2, b2 = (parameter.numpy() for parameter in parameters)
hidden = np.tanh(x @ w1 + b1)  # [200, 10]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
colors = plt.colormaps["viridis"](np.linspace(0, 0.9, UNITS))
for unit, color in enumerate(colors):
    left.plot(x, hidden[:, unit], color=color)
    right.plot(x, hidden[:, unit] * w2[unit], color=color, alpha=0.7)
right.plot(x, hidden @ w2 + b2, color="black", linewidth=2.5, label="sum + b₂: the fit")
left.set(xlabel="x", ylabel="h", title="Outputs of the ten hidden units")
right.set(xlabel="x", ylabel="h · W₂", title="The same, times their weights")
right.legend()
run.save_figure(figure, "hidden_units")

# %%
# A bias with the batch's shape
# -----------------------------
# A fault that beginners' scripts for TensorFlow 1 passed on: the bias is made with the shape of
# what it is added to, ``tf.Variable(tf.zeros([200, 10]))`` for a batch of 200 points. All shapes
# agree, nothing complains, and the loss falls faster than before. But now every point owns
# ten hidden biases and an output bias, 2,200 numbers instead of 11, and gradient descent
# turns them until each point's noise is met. That is memory, not regression.
#
# Both networks start as the same function, since the biases start with equal rows.

per_point = [start[0], np.tile(start[1], (POINTS, 1)), start[2], np.tile(start[3], (POINTS, 1))]
faulty, faulty_predictions = train(per_point, "bias_per_point")
np.testing.assert_allclose(faulty_predictions[0], predictions[0], rtol=1e-5, atol=1e-6)

# %%
# The loss on the training points makes the fault look like a triumph. Measure the same 200
# places once more, with new noise, and it loses: its predictions carry the old noise, which
# adds to the new one, so the loss is about twice the noise's variance. The correlation of its
# error with the old noise says it outright.

y_again = truth + rng.normal(0, NOISE, (POINTS, 1)).astype(np.float32)
rows = []
for network, outputs in ((parameters, predictions), (faulty, faulty_predictions)):
    last = outputs[args.steps]
    rows.append(
        {
            "parameters": sum(int(np.prod(parameter.shape)) for parameter in network),
            "loss on the training points": float(mean_squared_error(last, y)),
            "loss on new noise": float(mean_squared_error(last, y_again)),
            "distance to x²": distance(last),
            "correlation with the noise": np.corrcoef((last - truth).T, noise.T)[0, 1],
        }
    )
print(f"\n{'':30s}{'bias per unit':>16s}{'bias per point':>16s}")
for row in rows[0]:
    texts = (f"{r[row]:,}" if row == "parameters" else f"{r[row]:.6f}" for r in rows)
    print(f"{row:30s}{next(texts):>16s}{next(texts):>16s}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
for axes, outputs, name in (
    (left, predictions, "Bias per unit: 31 parameters"),
    (right, faulty_predictions, f"Bias per point: {rows[1]['parameters']:,} parameters"),
):
    axes.scatter(x, y, s=8, color="0.7", label="data")
    axes.plot(x, outputs[args.steps], color="#0072B2", linewidth=1, label="prediction")
    axes.plot(x, truth, color="black", linestyle=":", label="x²")
    axes.set(xlabel="x", title=name)
left.set_ylabel("y")
left.legend()
run.save_figure(figure, "bias_per_point")

# %%
# And it can't be used: for 50 new points there are no biases. In TensorFlow 1 this showed
# only in ``sess.run``, when someone first fed another number of points, such as the last, smaller
# batch of an epoch. One new point alone is worse still: it is broadcast against all 200 biases,
# and 200 answers to one question come back without any error. (TensorFlow also logs the error
# that is caught here; the line with ``local_rendezvous`` is that.)

x_new = np.linspace(-0.5, 0.5, 50, dtype=np.float32)[:, np.newaxis]  # [50, 1]
print(f"\nbias per unit:  50 points in, {len(predict(x_new, parameters))} predictions out")
try:
    predict(x_new, faulty)
except tf.errors.InvalidArgumentError as error:
    reason = error.message.split("}} ")[-1].partition(" [Op")[0]
    print(f"bias per point: 50 points in: {reason}")
else:
    raise AssertionError("200 biases for 50 points should not have been accepted")
print(f"bias per point: 1 point in, {len(predict(x_new[:1], faulty))} predictions out")

run.finish(
    {
        "loss": rows[0]["loss on the training points"],
        "noise_floor": noise_floor,
        "parabola_loss": mean_squared_error(parabola, y),
        "distance": rows[0]["distance to x²"],
        "parabola_distance": distance(parabola),
        "new_noise_loss": rows[0]["loss on new noise"],
        "bias_per_point_loss": rows[1]["loss on the training points"],
        "bias_per_point_distance": rows[1]["distance to x²"],
        "bias_per_point_new_noise_loss": rows[1]["loss on new noise"],
        "bias_per_point_noise_correlation": rows[1]["correlation with the noise"],
    },
    parameters=rows[0]["parameters"],
)
