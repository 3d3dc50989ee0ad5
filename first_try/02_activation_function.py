"""Activation functions
====================

You learn: the activation functions and their derivatives in NumPy, compared with ``tf.nn`` and
``tf.GradientTape``. Which formulas overflow as books print them, and what to write instead.

Run::

    python first_try/02_activation_function.py

You should see: every function agrees with TensorFlow from -1000 to 1000. The largest derivative of
sigmoid is 0.25, of selu 1.76. ``activations.png`` shows where each of them learns nothing.

Time: 4 s on two CPU cores, most of it to import TensorFlow.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from utils.figures import BLUE, ORANGE
from utils.run import CourseParser, Run

run = Run(CourseParser(__doc__), __file__)

# %%
# The comparison
# --------------
# An activation function f is applied to each output of a layer. Without it, ten layers are no more
# than one matrix. We compare f and its derivative f′, which training needs, with TensorFlow's.

x = np.concatenate([[-1000], np.linspace(-5, 5, 10_001), [1000]])  # [10003], float64
functions = {}  # by name: f(x) and f′(x), both [10003]


def compare(name: str, value: np.ndarray, derivative: np.ndarray) -> None:
    """Check f(x) against ``tf.nn.<name>`` and f′(x) against its gradient by tape; keep both."""
    points = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(points)
        wanted = getattr(tf.nn, name)(points)
    np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=2e-8)
    np.testing.assert_allclose(derivative, tape.gradient(wanted, points), rtol=1e-7, atol=2e-8)
    functions[name] = value, derivative
    print(f"{name:10} agrees with tf.nn.{name}, its largest derivative is {derivative.max():.2f}")


# %%
# The four classics
# -----------------
# Relu, the rectified linear unit, stops negative numbers; TensorFlow takes 0 as its derivative at
# 0. Sigmoid lies between 0 and 1, tanh between -1 and 1. Softplus is a relu with a round corner.
#
# .. math::
#
#    \begin{aligned}
#    \mathrm{relu}(x) &= \max(x, 0) & \mathrm{relu}'(x) &= 1 \text{ if } x > 0 \text{, else } 0 \\
#    \sigma(x) &= 1 / (1 + e^{-x}) & \sigma'(x) &= \sigma(x)\,(1 - \sigma(x)) \\
#    \tanh(x) &= (e^x - e^{-x}) / (e^x + e^{-x}) & \tanh'(x) &= 1 - \tanh^2(x) \\
#    \mathrm{softplus}(x) &= \ln(1 + e^x) & \mathrm{softplus}'(x) &= \sigma(x)
#    \end{aligned}
#
# z lies between 0 and 1 and can't overflow. ``np.log1p(z)`` is ln(1 + z), right to all digits.

z = np.exp(-np.abs(x))
sigmoid = np.where(x >= 0, 1, z) / (1 + z)
tanh = np.sign(x) * (1 - z**2) / (1 + z**2)
compare("relu", np.maximum(x, 0), np.where(x > 0, 1, 0))
compare("sigmoid", sigmoid, sigmoid * (1 - sigmoid))
compare("tanh", tanh, 1 - tanh**2)
compare("softplus", np.maximum(x, 0) + np.log1p(z), sigmoid)

# %%
# Where the printed formulas fail
# -------------------------------
# A 32-bit number ends near e^88, a 64-bit number near e^709. ``exp`` of more is infinity. Infinity
# divided by infinity, or times 0, is nan. One nan in the loss makes all weights nan. At ±1000:
#
# - Sigmoid is right at both ends, but its gradient by tape at -1000 is 0 times infinity.
# - Tanh is ∞ / ∞ at both ends. Softplus is infinite at 1000, where it should be 1000.
# - Elu is right, since ``tf.where`` chooses between two values. But the tape differentiates both,
#   and the other one adds 0 times infinity. ``min(x, 0)`` in the exponent prevents it.

far = tf.constant([-1000.0, 1000.0])  # float32
with tf.GradientTape(persistent=True) as far_tape:
    far_tape.watch(far)
    printed = {
        "sigmoid": 1 / (1 + tf.exp(-far)),
        "tanh": (tf.exp(far) - tf.exp(-far)) / (tf.exp(far) + tf.exp(-far)),
        "softplus": tf.math.log(1 + tf.exp(far)),
        "elu": tf.where(far > 0, far, tf.exp(far) - 1),
        "elu, min(x, 0)": tf.where(far > 0, far, tf.exp(tf.minimum(far, 0)) - 1),
    }
print("\nas printed       f(-1000), f(1000)   by tape f′(-1000), f′(1000)")
for name, value in printed.items():
    print(f"{name:16} {value.numpy()!s:19} {far_tape.gradient(value, far)}")
print()

# %%
# The newer ones
# --------------
# A relu that is off for every example gets no gradient and stays off: it is *dead*. Newer functions
# let something through on the left. Leaky relu has a slope of 0.2 there (0.3 in Keras's layer), and
# elu goes to -1. Selu scales elu so that standard normal numbers keep mean 0 and variance 1. Gelu
# multiplies x by Φ(x), the probability that a standard normal number is smaller, silu by σ(x).
#
# .. math::
#
#    \begin{aligned}
#    \mathrm{leaky}(x) &= \max(x, 0) + 0.2 \min(x, 0)
#    & \mathrm{leaky}'(x) &= 1 \text{ if } x > 0 \text{, else } 0.2 \\
#    \mathrm{elu}(x) &= \max(x, 0) + e^{\min(x, 0)} - 1 & \mathrm{elu}'(x) &= e^{\min(x, 0)} \\
#    \mathrm{selu}(x) &= \lambda \max(x, 0) + \lambda \alpha\,(e^{\min(x, 0)} - 1)
#    & \mathrm{selu}'(x) &= \lambda \text{ if } x \ge 0 \text{, else } \lambda \alpha\,e^x \\
#    \mathrm{gelu}(x) &= x\,\Phi(x) & \mathrm{gelu}'(x) &= \Phi(x) + x\,\varphi(x) \\
#    \mathrm{silu}(x) &= x\,\sigma(x) & \mathrm{silu}'(x) &= \sigma(x) + x\,\sigma'(x)
#    \end{aligned}

left, right = np.minimum(x, 0), np.maximum(x, 0)
scale, alpha = 1.0507009873554805, 1.6732632423543772  # λ and α of selu
normal = np.array([math.erfc(-t / math.sqrt(2)) / 2 for t in x])  # Φ(x)
density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)  # φ(x)
selu = scale * right + scale * alpha * np.expm1(left)  # np.expm1(x) is e^x - 1 to all digits
compare("leaky_relu", right + 0.2 * left, np.where(x > 0, 1, 0.2))
compare("elu", right + np.expm1(left), np.exp(left))
compare("selu", selu, np.where(x >= 0, scale, scale * alpha * np.exp(left)))
compare("gelu", x * normal, normal + x * density)
compare("silu", x * sigmoid, sigmoid + x * sigmoid * (1 - sigmoid))

# %%
# Where a dashed line runs along zero, a unit learns nothing. Only leaky relu has no such place.

figure, grid = plt.subplots(3, 3, figsize=(9, 7), sharex=True, sharey=True, layout="constrained")
for axes, (name, (value, derivative)) in zip(grid.flat, functions.items(), strict=True):
    axes.plot(x, value, color=BLUE, label="f(x)")
    axes.plot(x, derivative, "--", color=ORANGE, label="f′(x)")
    axes.set(title=name, xlim=(-5, 5), ylim=(-2, 3))
    axes.grid(alpha=0.3)
grid[0, 0].legend()
run.save_figure(figure, "activations")

# %%
# Softmax
# -------
# Softmax turns a whole row of numbers, the *logits* z, into probabilities. Each one depends on each
# logit, so the derivatives form a matrix, the *Jacobian*. [k = j] is 1 for k = j, and else 0:
#
# .. math:: p_k = \frac{e^{z_k}}{\sum_j e^{z_j}}, \qquad
#    \frac{\partial p_k}{\partial z_j} = p_k\,([k = j] - p_j)
#
# Adding a number to all logits changes nothing, so we subtract the largest before ``exp``.
logits = np.array([1000.0, 999.0, 0.0])  # e^1000 is infinity
exponentials = np.exp(logits - logits.max())
probabilities = exponentials / exponentials.sum()
jacobian = np.diag(probabilities) - np.outer(probabilities, probabilities)  # [3, 3]
points = tf.constant(logits)
with tf.GradientTape() as tape:
    tape.watch(points)
    wanted = tf.nn.softmax(points)
np.testing.assert_allclose(probabilities, wanted, atol=1e-12)
np.testing.assert_allclose(jacobian, tape.jacobian(wanted, points), atol=1e-12)
print(f"softmax of {logits}: {probabilities.round(4)}")

names = ("sigmoid", "selu", "gelu", "silu")
run.finish({f"{name}_largest_derivative": functions[name][1].max() for name in names})

# %%
# Try it
# ------
# 1. Give ``compare`` the tanh as it is printed. At which points does it fail?
# 2. Print ``tf.nn.tanh(8.0)`` and ``np.tanh(np.float32(8))``. Which one is right?
