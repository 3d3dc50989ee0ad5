"""Linear regression by gradient descent
=====================================

You learn: what a training step is. A line is fitted with gradients by hand, by ``tf.GradientTape``,
by an optimizer, and by TensorFlow 1's ``minimize``. All four agree after every step.

Run::

    python first_try/04_linear_regression_gd.py

You should see: after 30 steps y = 0.107 x + 0.196. Least squares gives y = 0.108 x + 0.195.
``descent.png`` shows the way there, and the way from another start, which takes much longer.

Time: 4 s on two CPU cores, nearly all of it to import TensorFlow.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from utils.run import CourseParser, Run, positive_float, positive_int

parser = CourseParser(__doc__)
parser.add_argument("--steps", type=positive_int, default=30, help="steps of gradient descent")
parser.add_argument("--learning-rate", type=positive_float, default=0.3, help="size of a step")
run = Run(parser, __file__)
STEPS, RATE = run.args.steps, run.args.learning_rate
tf1 = tf.compat.v1

# %%
# The data
# --------
# 100 points near y = 0.1 x + 0.2. Training has to find the slope w and the intercept b from them.

rng = np.random.default_rng(run.args.seed)
x = rng.random(100, dtype=np.float32)  # [100], between 0 and 1
y = (0.1 * x + 0.2 + rng.normal(0, 0.01, 100)).astype(np.float32)  # [100]

# %%
# By hand
# -------
# The loss is the mean squared error of the line. Its derivatives follow from the chain rule:
#
# .. math::
#
#    L = \frac{1}{n} \sum_i (w x_i + b - y_i)^2, \qquad
#    \frac{\partial L}{\partial w} = \frac{2}{n} \sum_i (w x_i + b - y_i)\, x_i, \qquad
#    \frac{\partial L}{\partial b} = \frac{2}{n} \sum_i (w x_i + b - y_i)
#
# A step of gradient descent subtracts from each number its derivative times the learning rate.


def descend(w: float, b: float) -> np.ndarray:
    """Gradient descent from (w, b): w and b at the start and after each step, [STEPS + 1, 2]."""
    path = [(w, b)]
    for _ in range(STEPS):
        error = w * x + b - y  # [100]
        w, b = w - RATE * 2 * np.mean(error * x), b - RATE * 2 * np.mean(error)
        path.append((w, b))
    return np.array(path)


by_hand = descend(np.float32(0), np.float32(0))

# %%
# By tape
# -------
# A ``GradientTape`` records calculations with variables and applies the chain rule backwards.

w, b = tf.Variable(0.0), tf.Variable(0.0)
by_tape = [(w.numpy(), b.numpy())]
for _ in range(STEPS):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(w * x + b - y))
    dw, db = tape.gradient(loss, [w, b])
    w.assign_sub(RATE * dw)
    b.assign_sub(RATE * db)
    by_tape.append((w.numpy(), b.numpy()))

# %%
# By optimizer
# ------------
# An optimizer, from Keras, turns gradients into a step. ``tf.keras`` is another name for Keras.

w, b = tf.Variable(0.0), tf.Variable(0.0)
optimizer = keras.optimizers.SGD(RATE)
by_optimizer = [(w.numpy(), b.numpy())]
with tf.summary.create_file_writer(str(run.folder)).as_default():
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(w * x + b - y))
        for name, value in {"loss": loss, "w": w, "b": b}.items():
            tf.summary.scalar(name, value, step)
        optimizer.apply_gradients(zip(tape.gradient(loss, [w, b]), [w, b], strict=True))
        by_optimizer.append((w.numpy(), b.numpy()))

# %%
# By TensorFlow 1
# ---------------
# ``minimize`` added derivatives and assignments to the graph, as one operation: a run is a step.

with tf.Graph().as_default(), tf1.Session() as session:
    w, b = tf1.Variable(0.0), tf1.Variable(0.0)
    loss = tf.reduce_mean(tf.square(w * x + b - y))
    one_step = tf1.train.GradientDescentOptimizer(RATE).minimize(loss)
    session.run(tf1.global_variables_initializer())
    by_session = [session.run((w, b))]
    for _ in range(STEPS):
        session.run(one_step)
        by_session.append(session.run((w, b)))

# %%
# Four ways, one path
# -------------------
# They agree up to rounding. A line needs no descent: ``lstsq`` sets both derivatives to 0 and
# solves two linear equations. The difference is not due to noise; the descent is not finished.

for path in (by_tape, by_optimizer, by_session):
    np.testing.assert_allclose(path, by_hand, rtol=1e-4, atol=1e-6)

design = np.stack([x, np.ones_like(x)], axis=1)  # [100, 2]: a column for w, a column for b
best = np.linalg.lstsq(design, y, rcond=None)[0]  # [2]
w, b = by_hand[-1]
print(f"gradient descent: y = {w:.3f} x + {b:.3f}")
print(f"least squares:    y = {best[0]:.3f} x + {best[1]:.3f}")

# %%
# The start matters
# -----------------
# The loss is a bowl with a steep and a flat direction, the eigenvectors of its second derivatives.
# A step multiplies the distance along each by 1 - rate·λ with the eigenvalue λ. With a rate above 2
# / λ it grows. From (-0.8, 0) over half of the way is flat; 30 steps go 68 % of that part.

eigenvalues, directions = np.linalg.eigh(2 * design.T @ design / len(x))  # the flat one first
for eigenvalue in eigenvalues:
    left = abs(1 - RATE * eigenvalue)
    print(f"second derivative {eigenvalue:.3f}: a step leaves {left:.1%} of the distance")
print(f"largest rate that converges: {2 / eigenvalues[1]:.2f}")
slow = descend(np.float32(-0.8), np.float32(0))
start, end = (slow[[0, -1]] - best) @ directions[:, 0]  # distances in the flat direction
print(f"from (-0.8, 0): y = {slow[-1, 0]:.3f} x + {slow[-1, 1]:.3f}")
print(f"that is {1 - end / start:.0%} of the way in the flat direction")

# %%
# Left: the line rises to the points within three steps. Right: one path creeps along a valley.

figure, (line, bowl) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
line.scatter(x, y, s=10, color="tab:gray", label="data")
ends = np.array([0, 1])
for step in sorted({0, 1, min(2, STEPS), STEPS}):
    line.plot(ends, by_hand[step, 0] * ends + by_hand[step, 1], label=f"step {step}")
line.set(xlabel="x", ylabel="y", title="The line")
line.legend(loc=(0.65, 0.1))

grid_w, grid_b = np.meshgrid(np.linspace(-1, 0.6, 120), np.linspace(-0.2, 0.8, 120))
surface = np.mean((grid_w[..., None] * x + grid_b[..., None] - y) ** 2, axis=-1)  # [120, 120]
contours = bowl.contourf(grid_w, grid_b, np.log10(surface), levels=20)
figure.colorbar(contours, label="log10 of the loss")
bowl.plot(*by_hand.T, "w.-", label="from (0, 0)")
bowl.plot(*slow.T, ".-", color="tab:orange", label="from (-0.8, 0)")
bowl.plot(*best, "r*", markersize=12, label="least squares")
bowl.set(xlim=(-1, 0.6), ylim=(-0.2, 0.8), xlabel="w", ylabel="b", title="The way down the loss")
bowl.legend(facecolor="lightgray")
run.save_figure(figure, "descent")

run.finish(
    {
        "w": w,
        "b": b,
        "least_squares_w": best[0],
        "least_squares_b": best[1],
        "flat_part_done": 1 - end / start,
    },
    parameters=2,
)

# %%
# Try it
# ------
# 1. ``--steps 300``: do both paths arrive? And with ``--learning-rate 0.9``, in which direction?
# 2. Replace ``SGD`` by ``Adam``, without the comparison. After how many steps is the loss as small?
