"""Activation functions
====================

You learn: nine activation functions and their derivatives, written in NumPy and set beside
``tf.nn`` and ``tf.GradientTape``. Why the formulas as printed in books overflow, and how they
are computed instead. What each derivative does to a gradient on its way through ten layers.

Run::

    python first_try/02_activation_function.py

You should see: the formulas agree with TensorFlow from -1000 to 1000. The largest derivative of
sigmoid is 0.25, and ten layers of it leave 4.8e-07 of a gradient; ten layers of relu leave
0.027, of selu 1.4. Three figures.

Time: 8 s on two CPU cores, most of it spent importing TensorFlow.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from utils.run import Run, make_parser
from utils.summary import variable_summaries

parser = make_parser(__doc__)
run = Run(parser, __file__)
args = run.args

# %%
# Why the formulas in books fail
# ------------------------------
# Softplus is :math:`\log(1 + e^x)`. A 64-bit float ends near :math:`e^{709}`, a 32-bit float
# near :math:`e^{88}`; beyond that ``exp`` gives infinity. The true value of softplus at 1000 is
# 1000 to all digits, yet the formula gives infinity; sigmoid and tanh, written as quotients,
# give infinity divided by infinity, which is ``nan``, "not a number". One ``nan`` in a loss
# spoils every weight in the next step.
#
# There is a quieter fault. Next to 1 a small number is rounded away, so that softplus at -40
# comes out as :math:`\log(1) = 0` instead of :math:`4 \cdot 10^{-18}`. ``np.log1p(z)`` is
# :math:`\log(1 + z)` and ``np.expm1(x)`` is :math:`e^x - 1`, each without that loss.

with np.errstate(over="ignore", invalid="ignore"):
    exp = np.exp(np.float64(1000))
    naive = {
        "softplus(1000) = log(1 + exp(x))": np.log(1 + exp),
        "sigmoid(1000) = exp(x) / (1 + exp(x))": exp / (1 + exp),
        "tanh(1000) = (exp(x) - exp(-x)) / (exp(x) + exp(-x))": (exp - 1 / exp) / (exp + 1 / exp),
        "softplus(-40) = log(1 + exp(x))": np.log(1 + np.exp(-40)),
        "elu(-1e-20) = exp(x) - 1": np.exp(-1e-20) - 1,
    }
correct = [1000, 1, 1, np.log1p(np.exp(-40)), np.expm1(-1e-20)]
print(f"{'The formula as printed in books':55}  gives  correct is")
for (formula, value), wanted in zip(naive.items(), correct, strict=True):
    print(f"{formula:55} {value:6.3g} {wanted:11.3g}")

# %%
# The trap inside ``where``
# -------------------------
# ``where(x > 0, x, exp(x) - 1)`` seems to avoid the overflow, since for large x the exponential
# is thrown away. Its value is right, its gradient is not: both branches are computed and both
# are differentiated. The branch not taken passes on 0 times infinity, which is ``nan``. The
# cure is to keep the argument harmless as well: ``exp(minimum(x, 0))``.

large = tf.constant([1000.0, -1.0])
with tf.GradientTape(persistent=True) as tape:
    tape.watch(large)
    careless = tf.where(large > 0, large, tf.exp(large) - 1)
    careful = tf.where(large > 0, large, tf.exp(tf.minimum(large, 0)) - 1)
careless_gradient = tape.gradient(careless, large).numpy()
careful_gradient = tape.gradient(careful, large).numpy()
np.testing.assert_array_equal(careless, careful)
assert np.isnan(careless_gradient[0]) and careful_gradient[0] == 1
print(f"\nelu by where, its derivative at 1000 and -1: {careless_gradient}")
print(f"the same with exp(minimum(x, 0)):            {careful_gradient}")

# %%
# The four classics
# -----------------
# Every formula below takes ``exp`` of negative numbers only. Then nothing overflows: the worst
# is a result too small for a float, which becomes 0, and 0 is what we want there. Each function
# takes an array of any shape, float32 or float64, and returns one of the same shape and dtype.
#
# Sigmoid squeezes any number between 0 and 1 (Rumelhart, Hinton, Williams, *Learning
# representations by back-propagating errors*, 1986). With :math:`z = e^{-|x|}`:
#
# .. math::
#
#    \sigma(x) = \frac{1}{1 + e^{-x}}
#    = \frac{1}{1 + z} \text{ for } x \ge 0, \quad \frac{z}{1 + z} \text{ for } x < 0 ,
#    \qquad \sigma'(x) = \sigma(x)\,(1 - \sigma(x)) = \frac{z}{(1 + z)^2} .
#
# Tanh is a sigmoid stretched to lie between -1 and 1, so that its outputs centre on zero
# (LeCun, Bottou, Orr, Müller, *Efficient BackProp*, 1998). With :math:`z = e^{-2|x|}`:
#
# .. math::
#
#    \tanh(x) = \frac{e^x - e^{-x}}{e^x + e^{-x}} = \pm \frac{1 - z}{1 + z} , \qquad
#    \tanh'(x) = 1 - \tanh^2(x) = \frac{4 z}{(1 + z)^2} .
#
# ReLU, the rectified linear unit (Nair, Hinton, *Rectified linear units improve restricted
# Boltzmann machines*, 2010; Glorot, Bordes, Bengio, *Deep sparse rectifier neural networks*,
# 2011), is linear where it is on. At 0 it has no derivative; TensorFlow takes 0.
#
# .. math:: \mathrm{relu}(x) = \max(x, 0) , \qquad \mathrm{relu}'(x) = 1 \text{ if } x > 0
#    \text{, else } 0 .
#
# Softplus is a ReLU with a rounded corner (Dugas et al., *Incorporating second-order functional
# knowledge for better option pricing*, 2000), and its derivative is the sigmoid:
#
# .. math:: \mathrm{softplus}(x) = \log(1 + e^x) = \max(x, 0) + \log(1 + e^{-|x|}) , \qquad
#    \mathrm{softplus}'(x) = \sigma(x) .


def sigmoid(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, z) / (1 + z)


def sigmoid_derivative(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))
    return z / (1 + z) ** 2


def tanh(x: np.ndarray) -> np.ndarray:
    minus = np.expm1(-2 * np.abs(x))  # z - 1, exact also where z is close to 1
    return np.copysign(minus / (2 + minus), x)


def tanh_derivative(x: np.ndarray) -> np.ndarray:
    z = np.exp(-2 * np.abs(x))
    return 4 * z / (1 + z) ** 2


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def relu_derivative(x: np.ndarray) -> np.ndarray:
    return (x > 0).astype(x.dtype)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# %%
# Later ones
# ----------
# A ReLU that is off for every example gets no gradient and stays off: a dead unit. Most later
# functions let a little through on the left.
#
# Leaky ReLU (Maas, Hannun, Ng, *Rectifier nonlinearities improve neural network acoustic
# models*, 2013) keeps a small slope a. Mind the default: ``tf.nn.leaky_relu`` and
# ``keras.activations.leaky_relu`` take 0.2, the layer ``keras.layers.LeakyReLU`` takes
# ``negative_slope=0.3``, and the paper 0.01. Say which you mean.
#
# .. math:: \mathrm{leaky}(x) = \max(x, 0) + a \min(x, 0) .
#
# ELU, the exponential linear unit (Clevert, Unterthiner, Hochreiter, *Fast and accurate deep
# network learning by exponential linear units*, 2015), levels off at -1:
#
# .. math:: \mathrm{elu}(x) = x \text{ for } x > 0, \quad e^x - 1 \text{ for } x \le 0 , \qquad
#    \mathrm{elu}'(x) = e^{\min(x, 0)} .
#
# SELU (Klambauer, Unterthiner, Mayr, Hochreiter, *Self-normalizing neural networks*, 2017) is an
# ELU scaled by two numbers, λ = 1.0507 and α = 1.6733. They are chosen so that standard normal
# numbers go in and numbers of mean 0 and variance 1 come out. Its derivative jumps at 0, from
# λα = 1.758 on the left to λ on the right; TensorFlow takes λ.
#
# .. math:: \mathrm{selu}(x) = \lambda x \text{ for } x > 0, \quad
#    \lambda \alpha (e^x - 1) \text{ for } x \le 0 .
#
# GELU (Hendrycks, Gimpel, *Gaussian error linear units*, 2016) weighs x by the probability Φ(x)
# that a standard normal number is smaller; φ is the normal density. This is the exact form,
# the default of ``tf.nn.gelu`` and of Keras. ``approximate=True`` is the paper's tanh formula,
# which is off by up to 0.0005; models trained with one want the same one when used.
#
# .. math:: \mathrm{gelu}(x) = x \Phi(x) = \tfrac{x}{2}\, \mathrm{erfc}(-x / \sqrt 2) , \qquad
#    \mathrm{gelu}'(x) = \Phi(x) + x \varphi(x) .
#
# SiLU, also called swish (Elfwing, Uchibe, Doya, *Sigmoid-weighted linear units for neural
# network function approximation in reinforcement learning*, 2017; Ramachandran, Zoph, Le,
# *Searching for activation functions*, 2017), weighs x by its sigmoid:
#
# .. math:: \mathrm{silu}(x) = x\, \sigma(x) , \qquad
#    \mathrm{silu}'(x) = \sigma(x) + x\, \sigma'(x) .

LEAKY_SLOPE = 0.2
SELU_SCALE = 1.0507009873554805  # λ
SELU_ALPHA = 1.6732632423543772  # α


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, LEAKY_SLOPE * x)


def leaky_relu_derivative(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, 1, LEAKY_SLOPE).astype(x.dtype)


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def elu_derivative(x: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(x, 0))


def selu(x: np.ndarray) -> np.ndarray:
    return SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0)))


def selu_derivative(x: np.ndarray) -> np.ndarray:
    return SELU_SCALE * np.where(x >= 0, 1, SELU_ALPHA * np.exp(np.minimum(x, 0)))


def normal_distribution(x: np.ndarray) -> np.ndarray:
    """Φ(x). By ``erfc``, since 1 + erf would lose all digits left of -8. NumPy has no erfc."""
    return (0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))).astype(x.dtype)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * normal_distribution(x)


def gelu_derivative(x: np.ndarray) -> np.ndarray:
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return normal_distribution(x) + x * density


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def silu_derivative(x: np.ndarray) -> np.ndarray:
    return sigmoid(x) + x * sigmoid_derivative(x)


class Activation(NamedTuple):
    """An activation function, its derivative, and TensorFlow's own."""

    function: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]
    tensorflow: Callable[[tf.Tensor], tf.Tensor]


ACTIVATIONS = {
    "sigmoid": Activation(sigmoid, sigmoid_derivative, tf.nn.sigmoid),
    "relu": Activation(relu, relu_derivative, tf.nn.relu),
    "tanh": Activation(tanh, tanh_derivative, tf.nn.tanh),
    "softplus": Activation(softplus, sigmoid, tf.nn.softplus),
    "leaky_relu": Activation(leaky_relu, leaky_relu_derivative, tf.nn.leaky_relu),
    "elu": Activation(elu, elu_derivative, tf.nn.elu),
    "selu": Activation(selu, selu_derivative, tf.nn.selu),
    "gelu": Activation(gelu, gelu_derivative, tf.nn.gelu),
    "silu": Activation(silu, silu_derivative, tf.nn.silu),
}

# %%
# NumPy beside TensorFlow
# -----------------------
# In TensorFlow 1 ``tf.nn.relu(x)`` was a node of a graph, and its values came out of
# ``session.run``; today the call gives the values. The functions are the same.
#
# Each is compared at 4,000 points: closely spaced in the middle, at 0 itself, and out to ±1000.
# NumPy is told to raise an error on overflow, on division by zero and on ``nan``. Underflow is
# let through: exp(-1000) is 0 in floating point, and the formulas above want that 0.
#
# The derivatives written by hand are compared with the tape's. An error counts as relative for
# results above 1 and as absolute below. Expect a few units in the last digit: 1e-7 for float32,
# 1e-16 for float64. Two functions are worse in float64, and the fault is TensorFlow's: it keeps
# the slope 0.2 of leaky ReLU and the :math:`\sqrt{1/2}` of GELU as float32 numbers even there,
# so that these two agree in eight digits only.

far = np.logspace(-6, 3, 1000)  # from a millionth to 1000
POINTS = np.concatenate([-far[::-1], np.linspace(-20, 20, 2001), far])  # [4001]
TOLERANCE = {np.float32: 2e-6, np.float64: 4e-15}
FLOAT32_CONSTANTS = {"leaky_relu", "gelu"}


def largest_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference; relative where the result is above 1. Refuses ``nan``."""
    assert ours.dtype == theirs.dtype and np.all(np.isfinite(ours)) and np.all(np.isfinite(theirs))
    return float(np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))))


errors = {np.float32: 0.0, np.float64: 0.0}
print(f"\n{'largest error against TensorFlow':32} {'float32':>9} {'float64':>9}")
for name, activation in ACTIVATIONS.items():
    row = []
    for dtype, tolerance in TOLERANCE.items():
        x = POINTS.astype(dtype)
        with np.errstate(over="raise", divide="raise", invalid="raise", under="ignore"):
            value, derivative = activation.function(x), activation.derivative(x)
        tensor = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            tf_value = activation.tensorflow(tensor)
        tf_derivative = tape.gradient(tf_value, tensor)
        error = max(
            largest_error(value, tf_value.numpy()),
            largest_error(derivative, tf_derivative.numpy()),
        )
        if dtype is np.float64 and name in FLOAT32_CONSTANTS:
            tolerance = 2e-8
        assert error <= tolerance, f"{name} differs from tf.nn.{name} by {error}"
        row.append(error)
        errors[dtype] = max(errors[dtype], error)
    print(f"{name:32} {row[0]:9.1e} {row[1]:9.1e}")

# %%
# Where the derivative vanishes
# -----------------------------
# A unit whose derivative is nearly 0 passes nearly no gradient on. The table gives the largest
# derivative, and the borders beyond which it stays below 0.001. Sigmoid and tanh die on both
# sides, since they level off on both. All others die at most on the left: ReLU at once, leaky
# ReLU never. GELU and SiLU rise a little above 1, GELU to 1.129 at √2, SiLU to 1.100 at 2.4.
#
# In float32 TensorFlow's derivative of tanh is exactly 0 from about 8 on: it is computed as
# :math:`1 - y^2` from the output y, which is rounded to 1 there.

x = np.union1d(np.linspace(-20, 20, 40_001), [-1e-9, 1e-9])  # also close to both sides of 0
largest = {}
print(f"\n{'':10} {'f(-1000)':>9} {'f(0)':>6} {'f(1000)':>8} {'largest f′':>11}  f′ below 0.001")
for name, activation in ACTIVATIONS.items():
    derivative = np.abs(activation.derivative(x))
    largest[name] = derivative.max()
    alive = x[derivative >= 0.001]
    sides = [f"x < {alive[0]:.1f}"] if alive[0] > x[0] else []
    sides += [f"x > {alive[-1]:.1f}"] if alive[-1] < x[-1] else []
    low, middle, high = activation.function(np.array([-1000.0, 0.0, 1000.0]))
    print(
        f"{name:10} {low:z9.2f} {middle:z6.2f} {high:8.1f} {largest[name]:11.4f}  "
        f"{', '.join(sides) or 'nowhere'}"
    )
np.testing.assert_allclose(largest["sigmoid"], 0.25, rtol=1e-12)

# %%
# What that means for ten layers
# ------------------------------
# By the chain rule a gradient is multiplied by the derivative of every layer it passes on its
# way back. For sigmoid that is at best a quarter each time: ten layers leave at most
# :math:`0.25^{10} \approx 10^{-6}` of it, and the first layers hardly learn. This is the
# vanishing gradient (Bengio, Simard, Frasconi, *Learning long-term dependencies with gradient
# descent is difficult*, 1994).
#
# To see it, standard normal inputs go through ten layers :math:`h_k = f(h_{k-1} W_k)` of 100
# units, and a random gradient comes back from the end:
#
# .. math:: g_{k-1} = \left( g_k \odot f'(h_{k-1} W_k) \right) W_k^\top .
#
# The weights are random orthogonal matrices. They turn vectors and keep their length, so what
# the gradient loses, it loses to f alone, and its length can't exceed
# :math:`(\max |f'|)^{10}` times what it was. The steps back are taken by hand with the NumPy
# derivatives; the tape has to agree.

LAYERS, UNITS, EXAMPLES = 10, 100, 200
rng = np.random.default_rng(args.seed)
weights = [np.linalg.qr(rng.normal(size=(UNITS, UNITS)))[0] for _ in range(LAYERS)]
inputs = rng.normal(size=(EXAMPLES, UNITS))
gradient_at_end = rng.normal(size=(EXAMPLES, UNITS))


def forward_and_back(activation: Activation) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Through the ten layers and back, by hand.

    Returns:
        the outputs, from the inputs to layer 10, and the gradients, from the end to the inputs;
        each a list of 11 arrays of shape [200, 100].
    """
    outputs, slopes = [inputs], []
    for w in weights:
        z = outputs[-1] @ w  # [200, 100]
        slopes.append(activation.derivative(z))
        outputs.append(activation.function(z))
    gradients = [gradient_at_end]
    for w, slope in zip(reversed(weights), reversed(slopes), strict=True):
        gradients.append((gradients[-1] * slope) @ w.T)
    return outputs, gradients


def gradient_by_tape(activation: Activation) -> np.ndarray:
    """The gradient that arrives at the inputs, by TensorFlow; [200, 100]."""
    start = h = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(start)
        for w in weights:
            h = activation.tensorflow(h @ w)
    return tape.gradient(h, start, output_gradients=tf.constant(gradient_at_end)).numpy()


left_over: dict[str, np.ndarray] = {}  # [11]: the gradient's length after 0 to 10 layers
print(f"\n{'after ten layers':14} {'gradient left':>14} {'at most':>9} {'output: mean':>13} stddev")
for name, activation in ACTIVATIONS.items():
    outputs, gradients = forward_and_back(activation)
    by_tape = gradient_by_tape(activation)
    scale = np.abs(by_tape).max()
    np.testing.assert_allclose(gradients[-1] / scale, by_tape / scale, rtol=0, atol=1e-6)
    lengths = np.array([np.linalg.norm(g) for g in gradients])
    left_over[name] = lengths / lengths[0]
    bound = largest[name] ** LAYERS
    assert left_over[name][-1] <= bound * (1 + 1e-12)
    print(
        f"{name:16} {left_over[name][-1]:14.2e} {bound:9.1e} "
        f"{outputs[-1].mean():z13.2f} {outputs[-1].std():6.2f}"
    )
    writer = tf.summary.create_file_writer(run.log_dir(f"ten_layers/{name}"))
    with writer.as_default():
        for layer in range(LAYERS + 1):
            tf.summary.scalar("gradient_left", left_over[name][layer], step=layer)
            if layer % 2 == 0:
                variable_summaries("output", outputs[layer], step=layer)
    writer.close()

# %%
# What to make of it
# ------------------
# Sigmoid stays below even its bound, since few units sit at 0 where its derivative is largest.
# Softplus loses gradient as well: its outputs are all positive, yet its slope there is below 1.
# ReLU loses the half of it that meets units which are off, so about :math:`\sqrt{1/2}` a layer
# in length; the usual cure is larger weights at the start (He et al., *Delving deep into
# rectifiers*, 2015). GELU and SiLU shrink signals that are small already, because their slope
# at 0 is a half; the networks that use them also normalise each layer's outputs and add skip
# connections. SELU keeps mean 0 and standard deviation 1, as it was designed to; its
# gradient grows, if slowly.
#
# In TensorBoard's Scalars tab the nine runs ``ten_layers/…`` share their tags, so that
# ``gradient_left`` and ``output/stddev`` are compared in one chart each. The horizontal axis is
# the number of layers passed: from the front for ``output``, from the end for
# ``gradient_left``, whose vertical axis should be set to logarithmic. The Histograms tab shows
# how the outputs change from layer to layer.

# %%
# What the figures show
# ---------------------
# ``classics.png`` shows the four classics. In ``functions_and_derivatives.png`` look at where
# a dashed line runs along zero: there the unit does not learn. ``ten_layers.png`` shows what
# is left of the gradient after each layer; on its logarithmic axis a constant loss per layer is
# a straight line.

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
x = np.linspace(-5, 5, 1001)

figure, all_axes = plt.subplots(2, 2, figsize=(8, 6), sharex=True, layout="constrained")
for axes, name in zip(all_axes.flat, ["sigmoid", "relu", "tanh", "softplus"], strict=True):
    axes.plot(x, ACTIVATIONS[name].function(x), color=BLUE, linewidth=2)
    axes.axhline(0, color="gray", linewidth=0.6)
    axes.axvline(0, color="gray", linewidth=0.6)
    axes.set(title=name, ylabel="f(x)")
for axes in all_axes[1]:
    axes.set_xlabel("x")
run.save_figure(figure, "classics")

figure, all_axes = plt.subplots(
    3, 3, figsize=(10, 8.5), sharex=True, sharey=True, layout="constrained"
)
for axes, (name, activation) in zip(all_axes.flat, ACTIVATIONS.items(), strict=True):
    axes.axhline(0, color="gray", linewidth=0.6)
    axes.axvline(0, color="gray", linewidth=0.6)
    axes.plot(x, activation.function(x), color=BLUE, linewidth=2, label="function")
    axes.plot(
        x, activation.derivative(x), "--", color=ORANGE, linewidth=2, label="derivative f′(x)"
    )
    axes.set(title=name, xlim=(-5, 5), ylim=(-2, 3))
all_axes[0, 0].legend(loc="upper left")
for axes in all_axes[-1]:
    axes.set_xlabel("x")
run.save_figure(figure, "functions_and_derivatives")

figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
styles = [(color, line) for line in ("-", "--", ":") for color in (BLUE, ORANGE, GREEN)]
in_order = sorted(left_over.items(), key=lambda item: item[1][-1], reverse=True)
for (name, lengths), (color, line) in zip(in_order, styles, strict=True):
    label = f"{name} {lengths[-1]:.1e}"
    axes.semilogy(lengths, line, color=color, marker="o", markersize=3, label=label)
axes.semilogy(0.25 ** np.arange(LAYERS + 1), color="black", linewidth=0.8, label="bound of sigmoid")
axes.set(
    xlabel="layers passed on the way back",
    ylabel="length of the gradient, 1 at the end",
    title="What ten layers leave of a gradient",
)
axes.legend(title="left after ten layers", loc="lower left")
run.save_figure(figure, "ten_layers")

run.finish(
    {
        "sigmoid_largest_derivative": largest["sigmoid"],
        **{f"{name}_gradient_left": left_over[name][-1] for name in ("sigmoid", "relu", "selu")},
        "largest_error_float32": errors[np.float32],
        "largest_error_float64": errors[np.float64],
    }
)
