"""Regression with one hidden layer
================================

You learn: how ten tanh units bend a straight line into a parabola, how gradient descent trains
them in TensorFlow 2, in Keras and in TensorFlow 1, and what a bias of the wrong shape does.

Run::

    python linear/01_linear_activation_regression.py

You should see: points that lie 0.019 from x² (root mean square), and a curve learned from them that
lies 0.004 from it. ``fit.png`` shows it, ``hidden_units.png`` how ten units make it.

Time: 7 s on two CPU cores, more than half of it to import TensorFlow.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from utils.figures import BLUE, ORANGE
from utils.run import CourseParser, Run

POINTS, NOISE = 200, 0.02  # the noise's standard deviation
UNITS, RATE, STEPS = 10, 0.3, 10_000

run = Run(CourseParser(__doc__), __file__)

# %%
# The data
# --------
# Points of y = x² with random noise. Both arrays have one column (see "Try it") and 200 rows.

rng = np.random.default_rng(run.args.seed)
x = np.linspace(-0.5, 0.5, POINTS, dtype=np.float32)[:, np.newaxis]  # [200, 1]
truth = x**2  # [200, 1]
y = truth + rng.normal(0, NOISE, truth.shape).astype(np.float32)  # [200, 1]

# %%
# The network
# -----------
# A hidden layer of ten units, and a linear output:
#
# .. math:: h = \tanh(x W_1 + b_1), \qquad \hat y = h W_2 + b_2
#
# The biases are the same for all points. The units start with random weights and biases: units that
# start equal stay equal.

shapes = {"W₁": (1, UNITS), "b₁": (UNITS,), "W₂": (UNITS, 1), "b₂": (1,)}
sizes = {"W₁": 2, "b₁": 0.3, "W₂": 0.3, "b₂": 0}  # standard deviations
start = [rng.normal(0, sizes[name], shape).astype(np.float32) for name, shape in shapes.items()]


def network(x: np.ndarray, parameters: list[tf.Variable]) -> tf.Tensor:
    """The output [n, 1] for ``x`` [n, 1]; the parameters are W₁, b₁, W₂ and b₂."""
    w1, b1, w2, b2 = parameters
    return tf.tanh(x @ w1 + b1) @ w2 + b2


# %%
# Gradient descent
# ----------------
# The loss is the mean squared error. A step moves each parameter against its derivative.
# ``tf.function`` turns ``descend`` into a graph with the loop in it: 100 steps are one call.


def loss_of(parameters: list[tf.Variable]) -> tf.Tensor:
    """The mean squared error on all points, a scalar."""
    return tf.reduce_mean(tf.square(network(x, parameters) - y))


@tf.function
def descend(parameters: list[tf.Variable]) -> None:
    """Make 100 steps."""
    for _ in tf.range(100):
        with tf.GradientTape() as tape:
            loss = loss_of(parameters)
        for parameter, gradient in zip(parameters, tape.gradient(loss, parameters), strict=True):
            parameter.assign_sub(RATE * gradient)


def train(parameters: list[tf.Variable], name: str) -> np.ndarray:
    """Make all steps, log the loss as the TensorBoard run ``name``, return the output [200, 1]."""
    with tf.summary.create_file_writer(str(run.folder / name)).as_default():
        for step in range(0, STEPS, 100):
            tf.summary.scalar("loss", loss_of(parameters), step)
            descend(parameters)
    return network(x, parameters).numpy()


parameters = [tf.Variable(array) for array in start]
fit = train(parameters, "bias_per_unit")

# %%
# How good is it?
# ---------------
# Even x² has a loss above zero, because of the noise. A fit far below this *noise floor* has
# learned the noise. We want a small distance to x², which nobody knows with real data.

fits = {"network": fit, "x² (noise floor)": truth, "points": y}
print("                     loss   distance to x²")
for name, outputs in fits.items():
    loss, distance = np.mean((outputs - y) ** 2), np.sqrt(np.mean((outputs - truth) ** 2))
    print(f"{name:17s}{loss:8.5f} {distance:16.4f}")

# %%
# The same in Keras
# -----------------
# ``Dense`` is x W + b and an activation. SGD with all points in one batch is gradient descent.

model = keras.Sequential(
    [keras.Input((1,)), keras.layers.Dense(UNITS, "tanh"), keras.layers.Dense(1)]
)
model.set_weights(start)
model.compile(keras.optimizers.SGD(RATE), "mean_squared_error", steps_per_execution=500)
model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(STEPS), shuffle=False, verbose=0)
keras_fit = model.predict(x, verbose=0)

# %%
# The same in TensorFlow 1
# ------------------------
# The graph has placeholders for the data, ``minimize`` adds the derivatives and the step, and a
# session runs it. All three programs make the same 10,000 steps and end at the same curve.

v1 = tf.compat.v1
with tf.Graph().as_default(), v1.Session() as session:
    inputs = v1.placeholder(tf.float32, [None, 1])
    targets = v1.placeholder(tf.float32, [None, 1])
    w1, b1, w2, b2 = (v1.Variable(array) for array in start)
    outputs = tf.matmul(tf.tanh(tf.matmul(inputs, w1) + b1), w2) + b2
    loss = tf.reduce_mean(tf.square(outputs - targets))
    train_step = v1.train.GradientDescentOptimizer(RATE).minimize(loss)
    session.run(v1.global_variables_initializer())
    for _ in range(STEPS):
        session.run(train_step, feed_dict={inputs: x, targets: y})
    v1_fit = session.run(outputs, feed_dict={inputs: x})

assert np.allclose(fit, keras_fit, atol=1e-5)
assert np.allclose(fit, v1_fit, atol=1e-5)

# %%
# What the ten units do
# ---------------------
# Left: the outputs h, all pieces of the same tanh: steep or flat, rising or falling, and moved
# sideways by the bias. Right: each is multiplied by its weight. Their sum plus b₂ is the fit.

w1, b1, w2, b2 = (parameter.numpy() for parameter in parameters)
hidden = np.tanh(x @ w1 + b1)  # [200, 10]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.plot(x, hidden)
left.set(xlabel="x", title="h, the outputs of the ten units")
right.plot(x, hidden * w2[:, 0], alpha=0.7)
right.plot(x, hidden @ w2 + b2, color="black", linewidth=2.5, label="their sum + b₂")
right.set(xlabel="x", title="h · W₂")
right.legend()
run.save_figure(figure, "hidden_units")

# %%
# A bias of the wrong shape
# -------------------------
# Many scripts for TensorFlow 1 gave the bias the shape of what it is added to: [200, 10] for 200
# points. The loss falls to zero, but now every point has biases of its own, and they learn its
# noise. Only the distance to x² tells. And the network is of no use: it fails for 50 other points,
# and it gives 200 answers for a single one, without an error.

per_point = [tf.Variable(array) for array in start]
per_point[1] = tf.Variable(np.tile(start[1], (POINTS, 1)))  # b₁ [200, 10]
per_point[3] = tf.Variable(np.tile(start[3], (POINTS, 1)))  # b₂ [200, 1]
wrong_fit = train(per_point, "bias_per_point")
wrong_distance = np.sqrt(np.mean((wrong_fit - truth) ** 2))
print(f"a bias for each point: loss {np.mean((wrong_fit - y) ** 2):.5f}", end=", ")
print(f"distance {wrong_distance:.4f}; 1 point in, {len(network(x[:1], per_point))} out")
try:
    network(x[:50], per_point)
except tf.errors.InvalidArgumentError as error:
    print(f"50 points in:{error.message.split('}}')[-1]}")

figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
for panel, outputs, owner in zip(panels, (fit, wrong_fit), ("unit", "point"), strict=True):
    panel.scatter(x, y, s=8, color="0.7", label="points")
    panel.plot(x, outputs, color=BLUE, label="network")
    panel.plot(x, truth, ":", color=ORANGE, label="x²")
    panel.set(xlabel="x", title=f"A bias for each {owner}")
panels[0].legend()
run.save_figure(figure, "fit")

run.finish(
    {
        "loss": np.mean((fit - y) ** 2),
        "distance": np.sqrt(np.mean((fit - truth) ** 2)),
        "points_distance": np.sqrt(np.mean((y - truth) ** 2)),
        "bias_per_point_distance": wrong_distance,
    },
    parameters=model.count_params(),
)

# %%
# Try it
# ------
# 1. Set ``UNITS`` to 1, then to 2. How many units does it take to go down and up again?
# 2. Print ``np.mean((fit - y[:, 0]) ** 2)``. Why is it so large? (What is the shape of the
#    difference?) A network trained with such a loss ends as a nearly flat line.
