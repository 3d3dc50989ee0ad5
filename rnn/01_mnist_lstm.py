"""MNIST read row by row: an LSTM
==============================

You learn: how a recurrent network reads an image as a sequence, what each gate of an LSTM
computes (one step written out in NumPy and asserted equal to Keras's), and how to save a
trained model and use it in another process.

Run::

    python rnn/01_mnist_lstm.py
    python rnn/01_mnist_lstm.py --predict runs/.../model.keras    # use a saved model

You should see: test accuracy 99.18 % on all 10,000 test images; the second process, which has
only the saved file, predicts the same to the last bit. ``gates.png`` shows the gates at work
over the 28 rows, ``row_by_row.png`` how the network makes up its mind.

Time: 3 minutes on two CPU cores, 150 s of it training.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from sklearn.metrics import confusion_matrix

from data import mnist
from data.download import OFFLINE_VARIABLE
from utils.run import (
    CourseParser,
    Run,
    make_parser,
    positive_float,
    positive_int,
    readable,
    written_whole,
)
from utils.summary import variable_summaries, write_graph

ROWS, COLUMNS, CLASSES = 28, 28, 10
UNITS = 128  # of the LSTM
EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 64, 3e-3
WARM_UP = 0.15  # the part of all steps in which the learning rate rises
QUICK_TRAIN, QUICK_VALIDATION = 5_000, 1_000  # --quick takes the first so many images
EVALUATION_BATCH = 500  # outside training the batch size matters for speed only


def make_flags() -> CourseParser:
    """The flags of this script."""
    parser = make_parser(__doc__)
    mnist.add_data_dir(parser)
    parser.add_argument(
        "--epochs", type=positive_int, default=EPOCHS, quick=2, help="passes over the training set"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=BATCH_SIZE, help="images in a training step"
    )
    parser.add_argument(
        "--learning-rate",
        type=positive_float,
        default=LEARNING_RATE,
        help="its peak, reached after the warm-up",
    )
    parser.add_argument(
        "--predict",
        type=model_file,
        metavar="MODEL",
        help="train nothing: classify the test images with this model.keras of an earlier run "
        "and save the answers as predictions.npz",
    )
    return parser


def model_file(text: str) -> Path:
    """An argparse type: a .keras file that exists."""
    path = Path(text).expanduser()
    if not path.is_file() or path.suffix != ".keras":
        raise argparse.ArgumentTypeError(
            f"{text} is not a .keras file; a run without --predict leaves model.keras in its folder"
        )
    return path


# %%
# The data: 28 rows, one after the other
# --------------------------------------
# A recurrent network reads a sequence step by step and carries a state along. Here a step is a
# row of the image: 28 steps of 28 pixels, top to bottom. The array [n, 28, 28] is already in
# the order [batch, time, features] that Keras's recurrent layers take.
#
# Shuffling spans the whole training set, and its order differs from epoch to epoch. Slicing,
# shuffling and batching all 55,000 images takes about 0.3 s, some 2 % of an epoch.


def pipeline(
    images: np.ndarray, labels: np.ndarray, batch_size: int, shuffle_seed: int | None = None
) -> tf.data.Dataset:
    """Batches of (images, labels), in order, or shuffled anew each epoch.

    Args:
        images: uint8 [n, 28, 28].
        labels: uint8 [n].
        batch_size: the last batch holds what is left, so it may be smaller.
        shuffle_seed: shuffle, with this seed; None keeps the order.

    Returns:
        A dataset of uint8 [batch, 28, 28] and uint8 [batch].
    """
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if shuffle_seed is not None:
        dataset = dataset.shuffle(len(images), seed=shuffle_seed, reshuffle_each_iteration=True)
    options = tf.data.Options()
    options.autotune.enabled = False  # on a CPU `fit` may wait for the tuner when an epoch ends
    return dataset.batch(batch_size).prefetch(2).with_options(options)


# %%
# The model
# ---------
# The pixels are scaled to 0 … 1 inside the model, so that the saved file takes raw bytes and
# nobody can scale twice. The LSTM returns its last hidden state only, [batch, 128]. The dense
# layer returns logits: the softmax is part of the loss (``from_logits=True``).
#
# The TensorFlow 1 script said ``BasicLSTMCell(128)``, ``cell.zero_state(batch_size)`` and
# ``tf.nn.dynamic_rnn(cell, x, initial_state=state)``. Two faults used to come with it:
#
# * The state had the batch's size built in, so the graph took batches of 128 and nothing else,
#   and the "test accuracy" was that of 128 test images. Keras makes the zero state in each
#   call, in the size of the batch that arrives.
# * ``tf.nn.softmax`` stood before ``softmax_cross_entropy_with_logits``, which takes a softmax
#   itself. Of ten numbers between 0 and 1 the second softmax can't make a probability above
#   e / (e + 9) = 23 %: the loss never falls below 1.46, and learning crawls.


def build_model(units: int = UNITS) -> keras.Model:
    """The untrained network: uint8 [batch, 28, 28] in, float32 logits [batch, 10] out."""
    return keras.Sequential(
        [
            keras.Input((ROWS, COLUMNS), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),  # [batch, 28, 28], float32
            keras.layers.LSTM(units, name="lstm"),  # [batch, units]: the hidden state at row 28
            keras.layers.Dense(CLASSES, name="logits"),  # [batch, 10]
        ],
        name="mnist_lstm",
    )


# %%
# Training
# --------
# Adam, at a learning rate that rises to its peak and then falls to zero along a half cosine.
# Gradients that come back through 28 steps are uneven at first, and a high rate at once would
# throw the weights about; the small steps at the end let them settle.
#
# An interrupted run (Ctrl-C, power) goes on after its last finished epoch when the same command
# is given with the same ``--run-dir``: ``BackupAndRestore`` keeps weights and optimizer of the
# latest epoch until training ends. A resumed run shuffles anew, so its result differs a little
# from an uninterrupted one.


class WeightSummaries(keras.callbacks.Callback):
    """Writes mean, deviation, extremes and histogram of the LSTM's weights to TensorBoard, at
    step 0 as they are made and then after each epoch. Watch ``lstm/bias``: Keras starts it at
    0, the forget gate's quarter at 1, and training spreads the two peaks."""

    def __init__(self, log_dir: str) -> None:
        super().__init__()
        self.writer = tf.summary.create_file_writer(log_dir)

    def write(self, step: int) -> None:
        with self.writer.as_default():
            for weight in self.model.get_layer("lstm").weights:
                variable_summaries(f"lstm/{weight.name}", weight, step)
        self.writer.flush()

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self.model.optimizer.iterations == 0:  # not when an interrupted run goes on
            self.write(step=0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.write(step=epoch + 1)

    def on_train_end(self, logs: dict | None = None) -> None:
        self.writer.close()


def learning_rate_schedule(peak: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """A tenth of ``peak`` at step 0, rising evenly to ``peak``, then falling to 0 at ``steps``."""
    warm_up = max(1, int(steps * WARM_UP))
    return keras.optimizers.schedules.CosineDecay(
        peak / 10, max(1, steps - warm_up), warmup_target=peak, warmup_steps=warm_up
    )


def train(model: keras.Model, images: mnist.Mnist, run: Run) -> keras.callbacks.History:
    """Train ``model`` in place; events go to the run's ``train``, ``validation``, ``weights``.

    Args:
        model: takes uint8 [batch, 28, 28], gives logits [batch, 10].
        images: its training part is learned, its validation part scored after each epoch.
        run: gives the flags and the folder.

    Returns:
        What ``fit`` returns: ``history["val_accuracy"]`` has a value for each epoch run now.
    """
    args = run.args
    steps = args.epochs * -(-len(images.train_images) // args.batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate_schedule(args.learning_rate, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    for name in ("train", "validation", "weights"):
        run.log_dir(name)
    if run.resuming and run.backup.exists():
        print("Going on after the last finished epoch of the interrupted run.")
    return model.fit(
        pipeline(images.train_images, images.train_labels, args.batch_size, args.seed),
        validation_data=pipeline(
            images.validation_images, images.validation_labels, EVALUATION_BATCH
        ),
        epochs=args.epochs,
        shuffle=False,  # the dataset shuffles already
        verbose=run.verbose,
        callbacks=[
            keras.callbacks.BackupAndRestore(run.backup, double_checkpoint=True),
            keras.callbacks.TensorBoard(run.folder, write_graph=False),
            WeightSummaries(str(run.folder / "weights")),
        ],
    )


# %%
# The LSTM's parameters, by their symbols
# ---------------------------------------
# An LSTM of :math:`m` units (here 128) on rows of :math:`n` pixels (28) has for each of its four
# parts, input gate :math:`i`, forget gate :math:`f`, candidate :math:`\tilde c` and output gate
# :math:`o`, a matrix :math:`W` for the row, a matrix :math:`U` for the previous hidden state and
# a bias :math:`b`. Keras stores them side by side, in the order i, f, c, o:
#
# .. math::
#
#    \text{kernel} = [W_i\ W_f\ W_c\ W_o]\ (28 \times 512), \quad
#    \text{recurrent kernel} = [U_i\ U_f\ U_c\ U_o]\ (128 \times 512), \quad
#    \text{bias} = [b_i\ b_f\ b_c\ b_o]\ (512).
#
# One matrix product then serves all four. ``unit_forget_bias`` starts :math:`b_f` at 1 and the
# rest at 0. With 0 the forget gate would begin half open, and after 28 rows
# :math:`\sigma(0)^{28} = 4 \cdot 10^{-9}` of the first row's trace would be left, in the memory
# and in the gradient that passes back; with 1 it is :math:`\sigma(1)^{28} = 2 \cdot 10^{-4}`,
# which is enough to learn from.

GATES = "ifco"  # Keras's order


def lstm_parameters(layer: keras.Layer) -> dict[str, np.ndarray]:
    """The weights of an LSTM layer (or ``LSTMCell``) by symbol: ``W_i W_f W_c W_o`` [n, m],
    ``U_i …`` [m, m], ``b_i …`` [m], float32."""
    kernel, recurrent_kernel, bias = layer.get_weights()
    parts = {"W": kernel, "U": recurrent_kernel, "b": bias}
    return {
        f"{symbol}_{gate}": quarter
        for symbol, joined in parts.items()
        for gate, quarter in zip(GATES, np.split(joined, 4, axis=-1), strict=True)
    }


def parameter_table(model: keras.Model) -> Table:
    """Every parameter: its symbol, where Keras keeps it, its shape and its trained values."""
    table = Table(
        title="The parameters, trained",
        caption="i input gate, f forget gate, c candidate, o output gate, y logits\n"
        "W takes the row (W_y the state), U the previous state, b is the bias",
    )
    table.add_column("symbol")
    table.add_column("in Keras", no_wrap=True)
    for heading in ("shape", "number", "mean", "std"):
        table.add_column(heading, justify="right", no_wrap=True)

    def add(symbol: str, place: str, value: np.ndarray) -> None:
        shape = " × ".join(map(str, value.shape))
        statistics = (f"{value.mean():.2f}", f"{value.std():.2f}")
        table.add_row(symbol, place, shape, f"{value.size:,}", *statistics)

    places = {"W": "kernel[:, {}:{}]", "U": "recurrent_kernel[:, {}:{}]", "b": "bias[{}:{}]"}
    for symbol, value in lstm_parameters(model.get_layer("lstm")).items():
        kind, gate = symbol.split("_")
        units = value.shape[-1]
        start = GATES.index(gate) * units
        add(symbol, places[kind].format(start, start + units), value)
    table.add_section()
    kernel, bias = model.get_layer("logits").get_weights()
    add("W_y", "kernel of the layer logits", kernel)
    add("b_y", "bias of the layer logits", bias)
    return table


# %%
# One step of the LSTM, written out
# ---------------------------------
# :math:`x_t` is row :math:`t` of the image, :math:`h_{t-1}` the hidden state and :math:`c_{t-1}`
# the cell state after the row before; both are zero before the first row. The input and output
# gate are due to Hochreiter and Schmidhuber (*Long Short-Term Memory*, 1997), the forget gate to
# Gers, Schmidhuber and Cummins (*Learning to Forget*, 2000). :math:`\sigma` is the logistic
# function, :math:`\odot` multiplies element by element.
#
# .. math::
#
#    i_t &= \sigma(x_t W_i + h_{t-1} U_i + b_i)         && \text{(1) how much to write} \\
#    f_t &= \sigma(x_t W_f + h_{t-1} U_f + b_f)         && \text{(2) how much to keep} \\
#    \tilde c_t &= \tanh(x_t W_c + h_{t-1} U_c + b_c)   && \text{(3) what to write} \\
#    o_t &= \sigma(x_t W_o + h_{t-1} U_o + b_o)         && \text{(4) how much to show} \\
#    c_t &= f_t \odot c_{t-1} + i_t \odot \tilde c_t    && \text{(5) the memory} \\
#    h_t &= o_t \odot \tanh(c_t)                        && \text{(6) what others see}
#
# Line (5) is the point of it all: the memory is added to, not multiplied by a matrix at each
# step, so that where :math:`f_t` is near 1 a gradient passes back through it undiminished.


def lstm_step(
    p: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray
) -> dict[str, np.ndarray]:
    """One LSTM step by equations (1) to (6).

    Args:
        p: the parameters by symbol, see ``lstm_parameters``.
        x: the step's input x_t, float32 [batch, n].
        h: the hidden state h_{t-1}, float32 [batch, m].
        c: the cell state c_{t-1}, float32 [batch, m].

    Returns:
        ``i``, ``f``, ``candidate``, ``o``, ``c`` and ``h`` at step t, float32 [batch, m] each.
    """
    i = sigmoid(x @ p["W_i"] + h @ p["U_i"] + p["b_i"])  # (1)
    f = sigmoid(x @ p["W_f"] + h @ p["U_f"] + p["b_f"])  # (2)
    candidate = np.tanh(x @ p["W_c"] + h @ p["U_c"] + p["b_c"])  # (3)
    o = sigmoid(x @ p["W_o"] + h @ p["U_o"] + p["b_o"])  # (4)
    c = f * c + i * candidate  # (5)
    h = o * np.tanh(c)  # (6)
    return {"i": i, "f": f, "candidate": candidate, "o": o, "c": c, "h": h}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), written so that no exp can overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def read_rows(p: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """Run ``lstm_step`` over all rows, from the zero state.

    Args:
        p: the parameters by symbol.
        images: uint8 or float [batch, steps, n], pixels from 0 to 255.

    Returns:
        As ``lstm_step``, with every step kept: float32 [batch, steps, m] each.
    """
    x = images.astype(np.float32) / 255
    h = c = np.zeros((len(x), len(p["b_i"])), np.float32)  # the TF1 script's zero_state
    steps = []
    for t in range(x.shape[1]):
        steps.append(lstm_step(p, x[:, t], h, c))
        h, c = steps[-1]["h"], steps[-1]["c"]
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


# %%
# The proof: 28 steps beside Keras's cell
# ---------------------------------------
# ``keras.layers.LSTMCell`` is one step of the layer ``LSTM``. Given the same trained weights, and
# its own states step after step, it has to agree with the six lines above at every row.


def largest_difference(
    layer: keras.layers.LSTM, by_hand: dict[str, np.ndarray], images: np.ndarray
) -> float:
    """Assert that Keras's cell and ``read_rows`` give the same h and c after every row.

    Args:
        layer: the layer whose weights both use.
        by_hand: what ``read_rows`` returned for ``images``.
        images: uint8 [batch, steps, n].

    Returns:
        The largest absolute difference found.

    Raises:
        AssertionError: one differs by more than 1e-5 and 1e-4 of its size.
    """
    x = images.astype(np.float32) / 255
    difference = 0.0
    with tf.device("CPU:0"):  # GPUs multiply matrices in a coarser format
        cell = keras.layers.LSTMCell(layer.units)
        cell.build((None, x.shape[-1]))
        cell.set_weights(layer.get_weights())
        states = [tf.zeros((len(x), layer.units)), tf.zeros((len(x), layer.units))]
        for t in range(x.shape[1]):
            _, states = cell(x[:, t], states)
            for name, state in zip("hc", states, strict=True):
                ours = by_hand[name][:, t]
                np.testing.assert_allclose(ours, state, rtol=1e-4, atol=1e-5)
                difference = max(difference, float(np.abs(ours - state).max()))
    return difference


# %%
# Weights from TensorFlow 1
# -------------------------
# ``BasicLSTMCell`` kept one matrix, for the row and the state joined into one vector
# :math:`[x_t, h_{t-1}]`, with the parts in another order, i, j, f, o (j is the candidate):
#
# .. math::
#
#    \text{kernel} = \begin{bmatrix} W_i & W_c & W_f & W_o \\ U_i & U_c & U_f & U_o \end{bmatrix}
#    \ (156 \times 512)
#
# and its bias started at zero everywhere, since ``forget_bias=1.0`` was added to the forget gate
# at run time. Whoever moves an old checkpoint to Keras has to cut the matrix, change the order
# and add the 1 to the bias. Forgetting the last raises no error: the network just forgets.
# The arrays of a checkpoint come by ``tf.train.load_checkpoint(prefix).get_tensor(name)``, under
# names such as ``rnn/basic_lstm_cell/kernel``.


def from_basic_lstm_cell(
    kernel: np.ndarray, bias: np.ndarray, forget_bias: float = 1.0
) -> list[np.ndarray]:
    """The weights of TensorFlow 1's ``BasicLSTMCell`` as ``keras.layers.LSTM`` takes them.

    Args:
        kernel: [n + m, 4 m], rows x then h, columns i, j, f, o.
        bias: [4 m], in the same order.
        forget_bias: what the cell was made with; it is not in the checkpoint.

    Returns:
        kernel [n, 4 m], recurrent kernel [m, 4 m] and bias [4 m], for ``layer.set_weights``.

    Raises:
        ValueError: the shapes are not those of one cell.
    """
    units = bias.size // 4
    if bias.shape != (4 * units,) or kernel.ndim != 2 or kernel.shape[1] != 4 * units:
        raise ValueError(f"kernel {kernel.shape} and bias {bias.shape} are not of one LSTM cell")
    if kernel.shape[0] <= units:
        raise ValueError(f"kernel {kernel.shape} has no rows for the input beside {units} units")
    i, j, f, o = np.split(kernel, 4, axis=1)
    b_i, b_j, b_f, b_o = np.split(bias, 4)
    joined = np.concatenate([i, f, j, o], axis=1)
    return [joined[:-units], joined[-units:], np.concatenate([b_i, b_f + forget_bias, b_j, b_o])]


# %%
# TensorFlow still has the operation that ran a whole TF1 LSTM at once, ``BlockLSTM``, with the
# same order of parts and ``forget_bias``. It judges the conversion, on random weights.


def check_conversion(images: np.ndarray, seed: int, units: int = 8) -> None:
    """Assert that ``BlockLSTM`` with TF1 weights and ``read_rows`` with converted ones agree.

    Args:
        images: uint8 [batch, steps, n].
        seed: of the random weights.
        units: of the small LSTM tried.
    """
    batch, steps, inputs = images.shape
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 0.3, (inputs + units, 4 * units)).astype(np.float32)
    bias = rng.normal(0, 0.3, 4 * units).astype(np.float32)
    zero = np.zeros((batch, units), np.float32)
    peephole = np.zeros(units, np.float32)  # a connection from c to the gates, not used here
    with tf.device("CPU:0"):
        old = tf.raw_ops.BlockLSTM(
            seq_len_max=tf.constant(steps, tf.int64),
            x=np.swapaxes(images, 0, 1).astype(np.float32) / 255,  # [steps, batch, n]
            cs_prev=zero,
            h_prev=zero,
            w=kernel,
            wci=peephole,
            wcf=peephole,
            wco=peephole,
            b=bias,
            forget_bias=1.0,
            cell_clip=-1.0,  # do not cut the cell state off
        )
    layer = keras.layers.LSTM(units)
    layer.build((None, steps, inputs))
    layer.set_weights(from_basic_lstm_cell(kernel, bias))
    new = read_rows(lstm_parameters(layer), images)
    np.testing.assert_allclose(new["h"], np.swapaxes(old.h, 0, 1), rtol=1e-4, atol=1e-5)


# %%
# A file, and a fresh process
# ---------------------------
# ``model.keras`` holds everything: the layers, the weights, the scaling of the pixels, even the
# optimizer's state. TensorFlow 1's ``Saver`` stored numbers under names only, and the program
# that restored them had to build the very same graph first; scripts that tested "the saved
# model" mostly went on using the one still in memory.
#
# So the test that counts is another process. It runs this script with ``--predict``, has nothing
# but the file, and must give the same logits bit for bit. Loading is safe: Keras refuses files
# that carry code, unless ``safe_mode`` is switched off.


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The logits, float32 [n, 10], for uint8 images [n, 28, 28]."""
    dataset = pipeline(images, np.zeros(len(images), np.uint8), EVALUATION_BATCH)
    return model.predict(dataset.map(lambda batch, _: batch), verbose=0)


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and mean cross-entropy of logits [n, 10] over all n labels."""
    loss = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return {
        "test_accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        "test_loss": float(np.mean(loss)),
    }


def load_model(path: Path) -> keras.Model:
    """Load a model that this script saved.

    Raises:
        SystemExit: the file is damaged, or holds another kind of model.
    """
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # zip, HDF5 and Keras each have their own kinds
        reason = str(error).strip().splitlines()
        raise SystemExit(
            f"--predict: {path} can't be loaded as a Keras model: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from None
    expected = ((None, ROWS, COLUMNS), (None, CLASSES))
    if (found := (model.input_shape, model.output_shape)) != expected:
        raise SystemExit(
            f"--predict: {path} maps {found[0]} to {found[1]}; wanted is a model that maps "
            f"{expected[0]} to {expected[1]}, such as this script's model.keras"
        )
    return model


def use_saved_model(run: Run) -> None:
    """What ``--predict MODEL`` does: classify the test images, save and score the answers."""
    model = load_model(run.args.predict)
    images = mnist.load(run.args.data_dir)
    logits = predict(model, images.test_images)
    path = run.folder / "predictions.npz"
    with written_whole(path) as temporary:
        np.savez(temporary, logits=logits, digits=logits.argmax(axis=1).astype(np.uint8))
    print(f"Predictions: {readable(path)}")
    run.finish(
        score(logits, images.test_labels),
        data=images.describe(),
        parameters=model.count_params(),
    )


def predict_in_fresh_process(model_path: Path, data_dir: Path | None) -> np.ndarray:
    """The test images' logits, [n, 10], from a new Python that has only the saved file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--predict", str(model_path), "--run-dir", folder]
        if data_dir is not None:
            command += ["--data-dir", str(data_dir)]
        # The data were fetched for this process if they could be; the second must not try again.
        environment = os.environ | {OFFLINE_VARIABLE: "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace"
        )
        if done.returncode != 0:
            raise SystemExit(f"The second process failed:\n{done.stdout}\n{done.stderr}")
        with np.load(Path(folder) / "predictions.npz", allow_pickle=False) as predictions:
            return predictions["logits"]


# %%
# What the figures show
# ---------------------
# ``gates.png``: the rows of one digit beside all gates while they are read. Each column of a
# panel is one of the 128 units, the same in every panel, sorted by its mean input gate.
# Over the blank rows at the top the gates stand where their biases put them: input and output
# near 1/2, forget near :math:`\sigma(1) = 0.73`. With the ink the units part: some take a row in,
# others shut. Towards the bottom more and more forget gates open wide, and the cell state
# grows: what was seen is kept until the end, where it is needed.
#
# ``row_by_row.png``: the dense layer applied to the hidden state after every row. Watch it take
# a digit for others before it is complete. The curve shows how many of the validation images
# would be right if reading stopped there. It stays near guessing for more than half of the
# rows, which does not mean that nothing is known by then: the dense layer was trained on the
# last state only, and the earlier ones are not made for it.


def draw_gates(image: np.ndarray, steps: dict[str, np.ndarray], label: int) -> plt.Figure:
    """The rows of ``image`` [28, 28] beside the gates and the cell state, each [28, m]."""
    order = np.argsort(-steps["i"].mean(axis=0))
    figure, panels = plt.subplots(1, 6, figsize=(15, 4), layout="constrained", sharey=True)
    ends = (0.5, ROWS + 0.5)
    edges = (-0.5, COLUMNS - 0.5, ROWS + 0.5, 0.5)
    panels[0].imshow(image, cmap="gray_r", extent=edges, aspect="auto")
    panels[0].set(title=f"a {label}", xlabel="pixel", ylabel="row read")
    edges = (0.5, len(order) + 0.5, ROWS + 0.5, 0.5)
    titles = {"i": "input gate $i_t$", "f": "forget gate $f_t$", "o": "output gate $o_t$"}
    for axes, (name, title) in zip(panels[1:4], titles.items(), strict=True):
        shown = axes.imshow(
            steps[name][:, order], cmap="viridis", vmin=0, vmax=1, extent=edges, aspect="auto"
        )
        axes.set(title=title, xlabel="unit")
    figure.colorbar(shown, ax=panels[3], label="0 shut, 1 open")
    most = np.abs(steps["c"]).max()
    shown = panels[4].imshow(
        steps["c"][:, order], cmap="PuOr", vmin=-most, vmax=most, extent=edges, aspect="auto"
    )
    panels[4].set(title="cell state $c_t$", xlabel="unit")
    figure.colorbar(shown, ax=panels[4], label="value")
    rows = np.arange(1, ROWS + 1)
    colours = {"i": "tab:blue", "f": "tab:orange", "o": "black"}
    for name, style in zip("ifo", ("-", "--", ":"), strict=True):
        mean = steps[name].mean(axis=1)
        panels[5].plot(mean, rows, style, color=colours[name], label=f"${name}_t$")
    panels[5].set(title="mean of all units", xlabel="openness", xlim=(0, 1), ylim=ends[::-1])
    panels[5].legend()
    return figure


def draw_row_by_row(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, accuracy: np.ndarray
) -> plt.Figure:
    """Some digits, the classes' probabilities after each of their rows, and the accuracy.

    Args:
        images: uint8 [k, 28, 28].
        labels: [k].
        probabilities: [k, 28, 10].
        accuracy: [28], of the validation images, had reading stopped after that row.
    """
    count = len(images)
    figure = plt.figure(figsize=(12, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 2 * count, height_ratios=[1.25, 1])
    heat = []
    for k in range(count):
        picture = figure.add_subplot(grid[0, 2 * k])
        edges = (-0.5, COLUMNS - 0.5, ROWS + 0.5, 0.5)
        picture.imshow(images[k], cmap="gray_r", extent=edges, aspect="auto")
        picture.set(title=f"a {labels[k]}", xlabel="pixel")
        if k == 0:
            picture.set_ylabel("row read")
        axes = figure.add_subplot(grid[0, 2 * k + 1], sharey=picture)
        edges = (-0.5, CLASSES - 0.5, ROWS + 0.5, 0.5)
        shown = axes.imshow(
            probabilities[k], cmap="viridis", vmin=0, vmax=1, extent=edges, aspect="auto"
        )
        axes.set(title="after each row", xlabel="class", xticks=range(CLASSES))
        axes.tick_params(labelleft=False)
        heat.append(axes)
    figure.colorbar(shown, ax=heat, label="probability", aspect=30)
    axes = figure.add_subplot(grid[1, :])
    axes.plot(np.arange(1, ROWS + 1), 100 * accuracy, "o-", color="tab:blue")
    axes.axhline(10, color="gray", linestyle="--", label="guessing")
    axes.set(
        title="Had reading stopped here: validation images classified right",
        xlabel="rows read",
        ylabel="accuracy in %",
        xlim=(0.5, ROWS + 0.5),
        ylim=(0, 102),
    )
    axes.legend()
    return figure


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities from logits, along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# %%
# All of it in order
# ------------------
# The validation images serve to look on while training; the test images are scored once, after
# everything is decided, and all of them.


def digit_table(logits: np.ndarray, labels: np.ndarray) -> tuple[Table, list[float]]:
    """For each digit: how many of its images are recognised, and what the others pass for."""
    matrix = confusion_matrix(labels, logits.argmax(axis=1), labels=range(CLASSES))
    counts = matrix.sum(axis=1)
    right = (matrix.diagonal() / np.maximum(counts, 1)).tolist()
    np.fill_diagonal(matrix, 0)
    table = Table(title="The test images, digit by digit")
    for heading in ("digit", "images", "recognised", "most often taken for"):
        table.add_column(heading, justify="right")
    for digit in range(CLASSES):
        worst = int(matrix[digit].argmax())
        times = matrix[digit, worst]
        mistake = f"{worst}, {times} times" if times else "nothing else"
        table.add_row(str(digit), f"{counts[digit]:,}", f"{right[digit]:.2%}", mistake)
    return table, right


def main() -> None:
    run = Run(make_flags(), __file__)
    args = run.args
    for gpu in tf.config.list_physical_devices("GPU"):
        # By default the first process takes a GPU's whole memory; the second needs some too.
        tf.config.experimental.set_memory_growth(gpu, True)
    keras.utils.set_random_seed(args.seed)
    tf.config.experimental.enable_op_determinism()  # add in a fixed order
    if args.predict:
        use_saved_model(run)
        return

    images = mnist.load(args.data_dir)
    if args.quick:
        images = dataclasses.replace(
            images,
            train_images=images.train_images[:QUICK_TRAIN],
            train_labels=images.train_labels[:QUICK_TRAIN],
            validation_images=images.validation_images[:QUICK_VALIDATION],
            validation_labels=images.validation_labels[:QUICK_VALIDATION],
        )
    model = build_model()
    write_graph(
        run.log_dir("graph"),
        tf.function(model).get_concrete_function(tf.TensorSpec((None, ROWS, COLUMNS), tf.uint8)),
    )
    started = time.perf_counter()
    train(model, images, run)
    train_seconds = time.perf_counter() - started

    path = run.folder / "model.keras"
    with written_whole(path) as temporary:
        model.save(temporary)
    print(f"Model: {readable(path)}")

    console = Console()
    console.print(parameter_table(model))
    layer = model.get_layer("lstm")
    parameters = lstm_parameters(layer)
    shown = images.validation_images[:64]
    by_hand = read_rows(parameters, shown)
    difference = largest_difference(layer, by_hand, shown)
    print(
        f"The six equations and keras.layers.LSTMCell, {ROWS} steps, {len(shown)} images: "
        f"largest difference {difference:.1e}"
    )
    wide_open = np.mean(by_hand["f"] > 0.9, axis=(0, 2))  # [28]
    print(
        f"Forget gates above 0.9: {wide_open[0]:.0%} in row 1, {wide_open[ROWS // 2 - 1]:.0%} in "
        f"row {ROWS // 2}, {wide_open[-1]:.0%} in row {ROWS}"
    )
    check_conversion(shown, args.seed)
    print("TensorFlow 1's BlockLSTM and its weights converted to Keras: equal")

    logits = predict(model, images.test_images)
    fresh = predict_in_fresh_process(path, args.data_dir)
    assert np.array_equal(fresh, logits), "the saved model predicts something else"
    print(f"A fresh process with {path.name}: {len(fresh):,} predictions, identical bit for bit")
    table, per_digit = digit_table(logits, images.test_labels)
    console.print(table)

    # The dense layer by hand as well, on the hidden state after every row: h_t W_y + b_y.
    weight, bias = model.get_layer("logits").get_weights()
    parts = np.array_split(images.validation_images, 10)  # 500 images at a time save memory
    by_row = np.concatenate([read_rows(parameters, part)["h"] @ weight + bias for part in parts])
    right = by_row.argmax(axis=-1) == images.validation_labels[:, np.newaxis]  # [n, 28]
    accuracy_by_row = right.mean(axis=0)
    by_keras = predict(model, images.validation_images).argmax(axis=1)
    validation_accuracy = np.mean(by_keras == images.validation_labels)
    print(
        f"Validation accuracy by Keras {validation_accuracy:.2%}, "
        f"by the six equations {accuracy_by_row[-1]:.2%}"
    )
    first = [int(np.argmax(images.test_labels == digit)) for digit in (2, 5, 7)]
    examples, labels = images.test_images[first], images.test_labels[first]
    steps = read_rows(parameters, examples)
    one = {name: value[1] for name, value in steps.items()}
    run.save_figure(draw_gates(examples[1], one, labels[1]), "gates")
    probabilities = softmax(steps["h"] @ weight + bias)
    run.save_figure(draw_row_by_row(examples, labels, probabilities, accuracy_by_row), "row_by_row")
    run.finish(
        {**score(logits, images.test_labels), "validation_accuracy": validation_accuracy},
        data=images.describe(),
        train_seconds=train_seconds,
        parameters=model.count_params(),
        per_digit_accuracy=per_digit,
    )


if __name__ == "__main__":
    main()
