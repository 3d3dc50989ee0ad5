"""Linear regression by gradient descent
=====================================

You learn: what one training step is made of. The gradients of a straight line's loss are
worked out by hand, then by ``tf.GradientTape``, then left to an optimizer: three ways, one
result.

Run::

    python first_try/04_linear_regression_gd.py

You should see: after 30 steps y = 0.107 x + 0.196, the same for all three ways; least squares
gives y = 0.108 x + 0.195. ``loss_surface.png`` shows the path, and how another start would
have got stuck in a valley for long.

Time: 6 s on two CPU cores, nearly all of it spent importing TensorFlow.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from utils.run import Run, make_parser, positive_float, positive_int

parser = make_parser(__doc__)
parser.add_argument("--steps", type=positive_int, default=30, help="steps of gradient descent")
parser.add_argument("--learning-rate", type=positive_float, default=0.3, help="size of a step")
run = Run(parser, __file__)
args = run.args

# %%
# The data
# --------
# 100 points on the line y = 0.1 x + 0.2, each moved up or down by a little noise. Training has
# to find the two numbers again, knowing only the points.

rng = np.random.default_rng(args.seed)
x = rng.random(100, dtype=np.float32)  # [100], between 0 and 1
y = (0.1 * x + 0.2 + rng.normal(0, 0.01, 100)).astype(np.float32)  # [100]
START = (0.0, 0.0)  # the first guess of slope w and intercept b

# %%
# The loss and its gradient, by hand
# ----------------------------------
# The loss is the mean squared error of the line's predictions,
#
# .. math:: L(w, b) = \frac{1}{n} \sum_i (w x_i + b - y_i)^2 ,
#
# and its derivatives follow from the chain rule:
#
# .. math::
#
#    \frac{\partial L}{\partial w} = \frac{2}{n} \sum_i (w x_i + b - y_i)\, x_i , \qquad
#    \frac{\partial L}{\partial b} = \frac{2}{n} \sum_i (w x_i + b - y_i) .
#
# A step of gradient descent moves both numbers against their derivative, by the learning rate.


def loss_of(w: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The mean squared error of the line ``w x + b``; a scalar."""
    return tf.reduce_mean(tf.square(w * x + b - y))


def descend_by_hand(start: tuple[float, float] = START) -> np.ndarray:
    """Gradient descent by the two formulas above: (w, b) at the start and after each step."""
    w, b = np.float32(start)
    path = [(w, b)]
    for _ in range(args.steps):
        error = w * x + b - y  # [100]
        w, b = (
            w - args.learning_rate * 2 * np.mean(error * x),
            b - args.learning_rate * 2 * np.mean(error),
        )
        path.append((w, b))
    return np.array(path)  # [steps + 1, 2]


# %%
# The same by GradientTape
# ------------------------
# A tape records what happens to variables and plays it backwards to differentiate, so the
# formulas need not be known. In TensorFlow 1 ``tf.gradients(loss, [w, b])`` added operations to
# a graph, to be run later; the tape works on numbers that exist already.


def descend_by_tape() -> np.ndarray:
    """As ``descend_by_hand``, with the derivatives taken by ``tf.GradientTape``."""
    w, b = tf.Variable(START[0]), tf.Variable(START[1])
    path = [(w.numpy(), b.numpy())]
    for _ in range(args.steps):
        with tf.GradientTape() as tape:
            loss = loss_of(w, b)
        dw, db = tape.gradient(loss, [w, b])
        w.assign_sub(args.learning_rate * dw)
        b.assign_sub(args.learning_rate * db)
        path.append((w.numpy(), b.numpy()))
    return np.array(path)


# %%
# The same by an optimizer
# ------------------------
# An optimizer knows how to turn gradients into a step. ``apply`` is what remains of TensorFlow
# 1's ``GradientDescentOptimizer(0.3).minimize(loss)``; exchanging plain descent for another
# rule is now a change of one word. What happens is written to TensorBoard step by step.


def descend_by_optimizer() -> np.ndarray:
    """As ``descend_by_hand``, with Keras's plain gradient descent; logged to TensorBoard."""
    w, b = keras.Variable(START[0], name="w"), keras.Variable(START[1], name="b")
    optimizer = keras.optimizers.SGD(args.learning_rate)
    writer = tf.summary.create_file_writer(run.log_dir())
    path = [(w.numpy(), b.numpy())]
    for step in range(args.steps):
        with tf.GradientTape() as tape:
            loss = loss_of(w.value, b.value)
        gradients = tape.gradient(loss, [w.value, b.value])
        with writer.as_default():
            tf.summary.scalar("loss", loss, step)
            tf.summary.scalar("w", w.value, step)
            tf.summary.scalar("b", b.value, step)
        optimizer.apply(gradients, [w, b])
        path.append((w.numpy(), b.numpy()))
    writer.close()
    return np.array(path)


# %%
# Three ways, one path
# --------------------
# Not only do all three arrive at the same line: they agree after every step, up to the
# rounding of 32-bit numbers.

by_hand = descend_by_hand()
by_tape = descend_by_tape()
by_optimizer = descend_by_optimizer()
np.testing.assert_allclose(by_tape, by_hand, rtol=1e-4, atol=1e-6)
np.testing.assert_allclose(by_optimizer, by_hand, rtol=1e-4, atol=1e-6)

print("step        w        b      loss")
for step in sorted({0, 1, 2, 3, 5, 10, 20, args.steps}):
    if step <= args.steps:
        w, b = by_hand[step]
        print(f"{step:4d} {w:8.4f} {b:8.4f} {loss_of(w, b):9.6f}")

# %%
# Where it should end
# -------------------
# For a straight line nobody needs to descend: the loss is least where both derivatives are
# zero, two linear equations which ``lstsq`` solves at once. The distance left after the last
# step is not the noise's fault, it is unfinished descent.

design = np.stack([x, np.ones_like(x)], axis=1)  # [100, 2]: a column for w, a column for b
best_w, best_b = np.linalg.lstsq(design, y, rcond=None)[0]
w, b = by_hand[-1]
print(f"gradient descent, {args.steps} steps: y = {w:.3f} x + {b:.3f}, loss {loss_of(w, b):.6f}")
print(
    f"least squares:              y = {best_w:.3f} x + {best_b:.3f}, "
    f"loss {loss_of(best_w, best_b):.6f}"
)

# %%
# Why the start matters: the shape of the loss
# --------------------------------------------
# The loss is a quadratic bowl, and the eigenvalues of its second derivative tell how steep it
# is in each direction. Along the eigenvector of eigenvalue λ each step multiplies the distance
# to the minimum by 1 - rate·λ: quick where λ is large, slow where it is small, and growing
# without end once the rate exceeds 2 / λ. The start (0, 0) happens to lie straight up the steep
# side; from (-0.8, 0) the same 30 steps end half-way along the valley. Try
# ``--learning-rate 0.9`` to watch it leave, and ``--steps 300`` to see both arrive.

eigenvalues = np.linalg.eigvalsh(2 * design.T @ design / len(x))  # ascending
for eigenvalue in eigenvalues:
    print(
        f"curvature {eigenvalue:5.3f}: a step leaves "
        f"{abs(1 - args.learning_rate * eigenvalue):.1%} of the distance"
    )
print(f"largest learning rate that still converges: {2 / eigenvalues[-1]:.3f}")
unlucky = descend_by_hand(start=(-0.8, 0.0))
w_end, b_end = unlucky[-1]
print(f"from (-0.8, 0), {args.steps} steps: y = {w_end:.3f} x + {b_end:.3f}")

# %%
# What the figures show
# ---------------------
# In ``fit.png`` the line rises from zero to the points within three steps. In
# ``loss_surface.png`` one path drops straight to the minimum; the other drops to the floor of
# a long valley as fast, then creeps along it.

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.scatter(x, y, s=10, color="tab:gray", label="data")
ends = np.array([0, 1])
for step in sorted({0, 1, 2, args.steps}):
    if step <= args.steps:
        axes.plot(ends, by_hand[step, 0] * ends + by_hand[step, 1], label=f"step {step}")
axes.plot(ends, best_w * ends + best_b, "k--", label="least squares")
axes.set(xlabel="x", ylabel="y", title="The line during the descent")
axes.legend()
run.save_figure(figure, "fit")

figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
grid_w, grid_b = np.meshgrid(np.linspace(-1, 0.6, 120), np.linspace(-0.2, 0.8, 120))
errors = grid_w[..., None] * x + grid_b[..., None] - y  # [120, 120, 100]
surface = np.mean(np.square(errors), axis=-1)  # [120, 120]
contours = axes.contourf(grid_w, grid_b, np.log10(surface), levels=20, cmap="viridis")
figure.colorbar(contours, label="log10 of the loss")
axes.plot(by_hand[:, 0], by_hand[:, 1], "w.-", label="from (0, 0)")
axes.plot(unlucky[:, 0], unlucky[:, 1], ".-", color="tab:orange", label="from (-0.8, 0)")
axes.plot(best_w, best_b, "r*", markersize=12, label="least squares")
axes.set(xlim=(-1, 0.6), ylim=(-0.2, 0.8), xlabel="w", ylabel="b", title="The path on the loss")
axes.legend(loc="upper right")
run.save_figure(figure, "loss_surface")

run.finish(
    {
        "loss": loss_of(w, b),
        "w": w,
        "b": b,
        "least_squares_loss": loss_of(best_w, best_b),
        "least_squares_w": best_w,
        "least_squares_b": best_b,
    },
    parameters=2,
)
