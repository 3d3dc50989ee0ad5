"""The vanishing gradient
======================

You learn: what ten layers leave of a gradient, and what the activation function has to do with it.

Run::

    python first_try/05_vanishing_gradient.py

You should see: ten layers of sigmoid leave less than a millionth of the gradient, relu leaves
0.027, with larger weights 0.86. ``gradient.png`` shows it layer by layer.

Time: 4 s on two CPU cores, nearly all of it to import TensorFlow.
"""

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from utils.run import CourseParser, Run

LAYERS, UNITS, EXAMPLES = 10, 100, 200

run = Run(CourseParser(__doc__), __file__)

# %%
# The way back
# ------------
# A training step needs the gradient of the loss L for each weight. On its way back from the loss,
# each layer multiplies it by the derivative of its activation function f and by its weights:
#
# .. math:: h_k = f(h_{k-1} W_k), \qquad
#    \frac{\partial L}{\partial h_{k-1}}
#    = \left( \frac{\partial L}{\partial h_k} \odot f'(h_{k-1} W_k) \right) W_k^\top
#
# To see f alone, the weights are random *orthogonal* matrices, which keep a vector's length.

rng = np.random.default_rng(run.args.seed)
weights = [np.linalg.qr(rng.normal(size=(UNITS, UNITS)))[0] for _ in range(LAYERS)]
inputs = tf.constant(rng.normal(size=(EXAMPLES, UNITS)))  # [200, 100]
gradient_at_end = tf.constant(rng.normal(size=(EXAMPLES, UNITS)))  # [200, 100]

# %%
# Ten layers forwards and back
# ----------------------------
# The tape gives the gradient behind every layer. TensorBoard's steps are the layers passed.

cases = {
    "sigmoid": (tf.nn.sigmoid, 1),
    "tanh": (tf.nn.tanh, 1),
    "softplus": (tf.nn.softplus, 1),
    "relu": (tf.nn.relu, 1),
    "gelu": (tf.nn.gelu, 1),
    "selu": (tf.nn.selu, 1),
    "relu_larger_weights": (tf.nn.relu, np.sqrt(2)),
}
left = {}  # by case: the length of the gradient from the end to the inputs, [11], at first 1
print("after ten layers     gradient left  outputs: mean, standard deviation")
for name, (activation, scale) in cases.items():
    outputs = [inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        for w in weights:
            outputs.append(activation(outputs[-1] @ (scale * w)))
    gradients = tape.gradient(outputs[-1], outputs, output_gradients=gradient_at_end)
    lengths = np.array([np.linalg.norm(gradient) for gradient in reversed(gradients)])
    left[name] = lengths / lengths[0]
    mean, deviation = np.mean(outputs[-1]), np.std(outputs[-1])
    print(f"{name:20} {left[name][-1]:14.2g} {mean:14.2f} {deviation:8.2f}")
    with tf.summary.create_file_writer(str(run.folder / name)).as_default():
        for layer in range(LAYERS + 1):
            tf.summary.scalar("gradient_left", left[name][layer], step=layer)
            tf.summary.scalar("outputs/mean", tf.reduce_mean(outputs[layer]), step=layer)
            tf.summary.scalar("outputs/stddev", tf.math.reduce_std(outputs[layer]), step=layer)

# %%
# What to make of it
# ------------------
# - Sigmoid's derivative is 1/4 at most, so ten layers leave at most (1/4)^10, about a millionth.
#   The first layers hardly learn. Tanh has the derivative 1 at 0 and loses much less.
# - Relu stops the gradient at about half of the units: each layer multiplies its length by √(1/2).
#   Weights that are √2 times as large, as Keras's ``he_normal`` makes them, balance it.
# - Gelu has the derivative 1/2 at 0. Its outputs shrink, so its derivatives get close to 1/2.
# - Selu was made to keep the mean 0 and the standard deviation 1. Its gradient grows a little.

assert left["sigmoid"][-1] < 0.25**LAYERS
figure, axes = plt.subplots(layout="constrained")
for name, lengths in left.items():
    axes.semilogy(lengths, ".-", label=name)
axes.set(title="What is left of the gradient", xlabel="layers passed on the way back")
axes.grid(alpha=0.3)
axes.legend()
run.save_figure(figure, "gradient")

run.finish({f"{name}_left": lengths[-1] for name, lengths in left.items()})

# %%
# Try it
# ------
# 1. Remove the ``assert``, and give sigmoid weights that are four times as large. Is it enough?
# 2. Let each layer add its inputs, ``outputs[-1] + activation(...)``. This is a skip connection.
