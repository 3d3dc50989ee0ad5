"""Inside the LSTM: six equations and the way back
===============================================

You learn: what each gate of an LSTM calculates, how the weights of a TensorFlow 1 checkpoint get
into Keras, and how much of a gradient comes back from the last row of an image to the first.

Run::

    python rnn/01_mnist_lstm.py
    python rnn/02_inside_the_lstm.py

You should see: the six equations, written in NumPy, give the same numbers as Keras's layer, and
so do the weights that a TensorFlow 1 program saved. ``gates.png`` shows the gates at work, and
``gradients.png`` how much of a gradient comes back to the first row: 0.0053 of it in a fresh LSTM,
0.78 in the trained one.

Time: 8 s on two CPU cores.
"""

from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from data import mnist
from utils.figures import curves
from utils.run import CourseParser, Run, readable

OLD_UNITS = 32  # of the TensorFlow 1 cell
NETWORKS = 5  # fresh networks of each kind, in the last part

parser = CourseParser(__doc__)
mnist.add_data_dir(parser)
parser.add_argument(
    "--model",
    type=Path,
    metavar="FILE",
    help="a model.keras that 01_mnist_lstm.py saved (default: that of its newest full run)",
)
run = Run(parser, __file__)
keras.utils.set_random_seed(run.args.seed)
tf.config.experimental.enable_op_determinism()  # the same seed gives the same result

# %%
# The trained network
# -------------------
# We open the network that ``01_mnist_lstm.py`` saved. If there is none, we train one here for an
# epoch. That is enough to see the gates at work.

data = mnist.load(run.args.data_dir)
if run.args.quick:
    data = data.first(train=4_000, validation=1_000)

saved = run.runs.with_name("01_mnist_lstm").glob("*/model.keras")  # full runs before quick ones
newest = max(saved, key=lambda p: ("quick" not in p.parent.name, p.stat().st_mtime), default=None)
if path := run.args.model or newest:
    try:
        model = keras.saving.load_model(path)
        lstm, logits = model.get_layer("lstm"), model.get_layer("logits")
    except ValueError as error:
        parser.error(f"{path} is not a model that 01_mnist_lstm.py saved: {error}")
    print(f"The network: {readable(path)}")
else:
    print("01_mnist_lstm.py has saved no network yet: one is trained here for an epoch.")
    scaling = keras.layers.Rescaling(1 / 255)
    lstm, logits = keras.layers.LSTM(128, name="lstm"), keras.layers.Dense(10, name="logits")
    model = keras.Sequential([keras.Input((28, 28), dtype="uint8"), scaling, lstm, logits])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(data.train_images, data.train_labels, batch_size=128, verbose=run.verbose)

# %%
# The parameters, by their symbols
# --------------------------------
# An LSTM has four parts: input gate i, forget gate f, candidate c and output gate o. Each has a
# matrix W for the row, a matrix U for the hidden state and a bias b. Keras stores the four side by
# side: the kernel is [W_i W_f W_c W_o], 28×512, the recurrent kernel [U_i U_f U_c U_o], 128×512.

units = lstm.units
W, U, b = (
    dict(zip("ifco", np.split(joined, 4, axis=-1), strict=True)) for joined in lstm.get_weights()
)
print("symbol  part of           shape       number   mean    std")
for symbol, name, parts in ("W", "kernel", W), ("U", "recurrent kernel", U), ("b", "bias", b):
    for part, value in parts.items():
        size = f"{value.shape!s:<11}{value.size:>7,}"
        print(f"{symbol}_{part}     {name:<17} {size} {value.mean():6.2f} {value.std():6.2f}")

# %%
# Six equations
# -------------
# :math:`x_t` is row t of the image, :math:`h_{t-1}` the hidden state and :math:`c_{t-1}` the cell
# state after the row before. :math:`\sigma` is the logistic function, and :math:`\odot` multiplies
# number by number. So a gate is a row of 128 taps, each between shut (0) and open (1).
#
# .. math::
#
#    i_t &= \sigma(x_t W_i + h_{t-1} U_i + b_i)         && \text{(1) how much to write} \\
#    f_t &= \sigma(x_t W_f + h_{t-1} U_f + b_f)         && \text{(2) how much to keep} \\
#    \tilde c_t &= \tanh(x_t W_c + h_{t-1} U_c + b_c)   && \text{(3) what to write} \\
#    o_t &= \sigma(x_t W_o + h_{t-1} U_o + b_o)         && \text{(4) how much to show} \\
#    c_t &= f_t \odot c_{t-1} + i_t \odot \tilde c_t    && \text{(5) the memory} \\
#    h_t &= o_t \odot \tanh(c_t)                        && \text{(6) what others see}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


images, labels = data.validation_images[:200], data.validation_labels[:200].astype(np.int32)
rows = images / np.float32(255)  # [200, 28, 28]
h = c = np.zeros((len(rows), units), np.float32)
gates = []  # after each row
for t in range(28):
    x = rows[:, t]  # [200, 28]
    i = sigmoid(x @ W["i"] + h @ U["i"] + b["i"])  # (1), [200, 128] like the five below
    f = sigmoid(x @ W["f"] + h @ U["f"] + b["f"])  # (2)
    candidate = np.tanh(x @ W["c"] + h @ U["c"] + b["c"])  # (3)
    o = sigmoid(x @ W["o"] + h @ U["o"] + b["o"])  # (4)
    c = f * c + i * candidate  # (5)
    h = o * np.tanh(c)  # (6)
    gates.append((i, f, o, c))

by_keras = lstm(rows).numpy()  # [200, 128]: h after the last row
assert np.allclose(h, by_keras, rtol=1e-4, atol=1e-5)
print(f"NumPy and Keras, h after 28 rows: largest difference {np.abs(h - by_keras).max():.0e}")

# %%
# The gates at work
# -----------------
# Each column of a panel is one of the 128 units. Over the blank rows at the top the gates stand
# where their biases put them: input and output gate near 1/2, forget gate near σ(1) = 0.73. When
# the ink comes, some units let a row in, others shut. Towards the bottom more and more forget gates
# are wide open: what was read is kept until the end.

gates = np.stack(gates, axis=2)  # [4, 200, 28, 128]
wide_open = (gates[1] > 0.9).mean(axis=(0, 2))  # [28]
print(f"Forget gates above 0.9: {wide_open[0]:.0%} at row 1, {wide_open[-1]:.0%} at row 28")

n = np.flatnonzero(labels == 5)[0]
order = np.argsort(-gates[0, n].mean(axis=0))  # units that write most come first
most = np.abs(gates[3, n]).max()
figure, axes = plt.subplots(1, 5, figsize=(13, 4), sharey=True, layout="constrained")
axes[0].imshow(images[n], cmap="gray_r", extent=(0, 28, 28.5, 0.5), aspect="auto")
axes[0].set(title="a 5", xlabel="pixel", ylabel="row")
for panel, title, values in zip(
    axes[1:], ("input gate", "forget gate", "output gate", "cell state"), gates[:, n], strict=True
):
    look = {"cmap": "viridis", "vmin": 0, "vmax": 1}
    if title == "cell state":
        look = {"cmap": "PuOr", "vmin": -most, "vmax": most}
    shown = panel.imshow(values[:, order], extent=(0, units, 28.5, 0.5), aspect="auto", **look)
    panel.set(title=title, xlabel="unit")
    if title in ("output gate", "cell state"):
        figure.colorbar(shown, ax=panel)
run.save_figure(figure, "gates")

# %%
# An LSTM from TensorFlow 1
# -------------------------
# A TensorFlow 1 script wrote ``cell = tf.contrib.rnn.BasicLSTMCell(32)``. That class is gone, but
# what it did fits in a few lines. Three things differ from Keras:
#
# - One kernel serves row and hidden state, in the order i, j, f, o, where j is the candidate.
# - The cell adds ``forget_bias``, 1.0 by default, in each call. It is not in the saved bias.
# - ``zero_state(batch_size)`` had the size of the batch built in, here 200 images, so many scripts
#   measured their "test accuracy" on one batch. Keras makes the state in each call.

v1 = tf.compat.v1


class BasicLSTMCell:
    """What ``tf.contrib.rnn.BasicLSTMCell(OLD_UNITS)`` was."""

    output_size, state_size = OLD_UNITS, (OLD_UNITS, OLD_UNITS)

    def zero_state(self, batch_size: int, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros([batch_size, OLD_UNITS], dtype), tf.zeros([batch_size, OLD_UNITS], dtype)

    def __call__(self, x: tf.Tensor, state: tuple[tf.Tensor, tf.Tensor]) -> tuple:
        c, h = state
        with v1.variable_scope("basic_lstm_cell"):
            kernel = v1.get_variable("kernel", [x.shape[1] + OLD_UNITS, 4 * OLD_UNITS])
            start = v1.random_normal_initializer()  # was 0; here it stands for a trained bias
            bias = v1.get_variable("bias", [4 * OLD_UNITS], initializer=start)
        i, j, f, o = tf.split(tf.concat([x, h], axis=1) @ kernel + bias, 4, axis=1)
        c = tf.sigmoid(f + 1.0) * c + tf.sigmoid(i) * tf.tanh(j)
        h = tf.sigmoid(o) * tf.tanh(c)
        return h, (c, h)


folder = run.path("tensorflow_1")
folder.mkdir()
with tf.Graph().as_default(), v1.Session() as session:
    v1.set_random_seed(run.args.seed)
    x = v1.placeholder(tf.float32, [None, 28, 28])
    cell = BasicLSTMCell()
    zeros = cell.zero_state(len(rows), tf.float32)
    outputs, state = v1.nn.dynamic_rnn(cell, x, initial_state=zeros)  # [200, 28, 32]
    session.run(v1.global_variables_initializer())
    prefix = v1.train.Saver().save(session, str(folder / "lstm"))
    old = session.run(outputs, {x: rows})[:, -1]  # [200, 32]: h after the last row

# %%
# And into Keras
# --------------
# A checkpoint is numbers under names. We read the two arrays, bring the parts into Keras's order,
# cut the kernel between row and hidden state, and add the 1 to the bias of the forget gate. Without
# the 1 nothing complains: the network forgets faster, and its answers are wrong.

checkpoint = tf.train.load_checkpoint(prefix)
print(checkpoint.get_variable_to_shape_map())
i, j, f, o = np.split(checkpoint.get_tensor("rnn/basic_lstm_cell/kernel"), 4, axis=1)
b_i, b_j, b_f, b_o = np.split(checkpoint.get_tensor("rnn/basic_lstm_cell/bias"), 4)
kernel = np.concatenate([i, f, j, o], axis=1)  # [28 + 32, 128]

converted = keras.layers.LSTM(OLD_UNITS)
converted.build((None, 28, 28))
for forget_bias in 0, 1:
    bias = np.concatenate([b_i, b_f + forget_bias, b_j, b_o])
    converted.set_weights([kernel[:28], kernel[28:], bias])
    difference = np.abs(converted(rows) - old).max()
    print(f"TensorFlow 1 and Keras, forget bias {forget_bias}: largest difference {difference:.0e}")
assert difference < 1e-5

# %%
# The way back
# ------------
# A network can learn from the first rows only if some of the gradient comes back to them. Equation
# (5) multiplies the memory by a forget gate at every row: 27 factors from the first to the last.
#
# .. math:: \frac{\partial c_{28}}{\partial c_1} = f_{28} \odot f_{27} \odot \cdots \odot f_2
#           \ + \ \text{what goes through } h \text{ and } U
#
# The forget gate of a fresh network is near :math:`\sigma(b_f)`. Keras starts this bias at 1, and
# :math:`\sigma(1)^{27} = 2 \cdot 10^{-4}`. With a bias of 0 it would be :math:`\sigma(0)^{27} =
# 7 \cdot 10^{-9}`. There is a second way, though: the memory decides the hidden state, and through
# U the hidden state decides the gates and the candidate of the next row.
#
# We measure the gradient with respect to what the cell remembers after each row. In an LSTM that is
# c. A ``SimpleRNN`` has only h, and so has a ``GRU``, with a gate that decides how much of it is
# kept. ``stop_gradient`` closes the second way and leaves the forget gates alone.


def gradient_by_row(
    layer: keras.layers.RNN, logits: keras.layers.Dense, second_way: bool = True
) -> np.ndarray:
    """The size of the gradient after each row, as a share of the last row's: [28], the median of
    the images."""
    states = layer.cell.get_initial_state(batch_size=len(rows))  # [h, c] or [h], zeros
    memory = []
    with tf.GradientTape() as tape:
        for t in range(28):
            if not second_way:
                states[0] = tf.stop_gradient(states[0])
            h, states = layer.cell(rows[:, t], states)
            memory.append(states[-1])  # [200, 128]
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits(h))
    sizes = [tf.norm(gradient, axis=1) for gradient in tape.gradient(loss, memory)]
    return np.median(np.stack(sizes) / sizes[-1], axis=1)


fresh = {}  # the mean of the networks by kind, [28] each
print(f"Share of the gradient that comes back to row 1, {NETWORKS} fresh networks of each kind:")
for name, kind, second_way in (
    ("SimpleRNN", keras.layers.SimpleRNN, True),
    ("LSTM", keras.layers.LSTM, True),
    ("LSTM, forget gates alone", keras.layers.LSTM, False),
    ("GRU", keras.layers.GRU, True),
):
    shares = []
    for seed in range(run.args.seed, run.args.seed + NETWORKS):
        keras.utils.set_random_seed(seed)
        layer = kind(units)
        layer.build((None, 28, 28))
        shares.append(gradient_by_row(layer, keras.layers.Dense(10), second_way))
    fresh[name] = np.mean(shares, axis=0)
    low, high = np.sort([share[0] for share in shares])[[0, -1]]
    print(f"  {name:<25}{fresh[name][0]:.2g} ({low:.2g} to {high:.2g})")
trained = gradient_by_row(lstm, logits)
trained_gates = gradient_by_row(lstm, logits, second_way=False)
print(f"The trained LSTM: {trained[0]:.2g}, its forget gates alone {trained_gates[0]:.2g}")

# %%
# What comes back
# ---------------
# - The scale is logarithmic, and most curves are nearly straight: every row leaves about the same
#   part of the gradient. The forget gates of a fresh LSTM leave about :math:`\sigma(1)` of it, as
#   calculated. With the second way open, some twenty times as much arrives at the first row.
# - Of the fresh networks the ``SimpleRNN`` passes most. Keras starts its U as an orthogonal matrix,
#   which keeps the length of every vector, so only the slope of tanh takes something away.
# - The GRU passes least. Its biases start at 0, so its gate keeps half of h at every row.
# - In the trained LSTM most of the gradient comes back. The forget gates have opened, but they
#   alone would still leave little: the way through U does the rest.

lstms = {"fresh": fresh["LSTM"], "trained": trained, "trained, forget gates alone": trained_gates}
figure = curves({"fresh networks": fresh, "the LSTM": lstms}, xlabel="after row", log=True)
run.save_figure(figure, "gradients")

run.finish(
    {
        "gradient_at_row_1_fresh_lstm": fresh["LSTM"][0],
        "gradient_at_row_1_trained_lstm": trained[0],
        "gradient_at_row_1_fresh_simple_rnn": fresh["SimpleRNN"][0],
        "gradient_at_row_1_fresh_gru": fresh["GRU"][0],
        "fresh_forget_gates_alone": fresh["LSTM, forget gates alone"][0],
        "trained_forget_gates_alone": trained_gates[0],
        "wide_open_forget_gates_at_row_28": wide_open[-1],
    },
    data=data.describe(),
)

# %%
# Try it
# ------
# Put one of these lines behind ``layer.build((None, 28, 28))`` in the last part.
#
# 1. ``layer.cell.bias.assign(0 * layer.cell.bias)`` takes the ones out of the LSTM's bias. To which
#    curve does the LSTM's fall?
# 2. ``layer.cell.recurrent_kernel.assign(0.8 * layer.cell.recurrent_kernel)`` makes U smaller. The
#    ``SimpleRNN`` now passes less than a hundredth of what it passed. How far does the LSTM's move?
