"""Handwritten digits, read row by row: an LSTM
============================================

You learn: how a recurrent network reads an image as a sequence of rows, what it knows after each
row, and how another process uses the trained model when it has nothing but the file.

Run::

    python rnn/01_mnist_lstm.py

You should see: 99.11 % of the 10,000 test images right, and a second process whose answers are
the same to the last bit. ``row_by_row.png`` shows how the network makes up its mind.

Time: 54 s on two CPU cores.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from data import mnist
from utils.run import CourseParser, Run, positive_int
from utils.training import warm_up_cosine

UNITS = 128  # of the LSTM
DROPOUT = 0.3  # share of the hidden state that is set to zero in training
SHIFT = 1  # pixels by which training images are moved at most
BATCH_SIZE = 128
PEAK_RATE = 6e-3  # of Adam; all settings were chosen on the validation images

parser = CourseParser(__doc__)
mnist.add_data_dir(parser)
parser.add_argument(
    "--epochs", type=positive_int, default=7, quick=4, help="passes over the training images"
)
run = Run(parser, __file__)
for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)  # leave memory to the second process
keras.utils.set_random_seed(run.args.seed)
tf.config.experimental.enable_op_determinism()  # the same seed gives the same result

# %%
# The data: 28 rows, one after the other
# --------------------------------------
# A recurrent network reads a sequence step by step and carries a *state* along: some numbers that
# sum up what it has read so far. Here a step is one row of the image. The array has the right order
# already: Keras's recurrent layers take [batch, steps, features], here [b, 28, 28].

data = mnist.load(run.args.data_dir)
if run.args.quick:
    data = data.first(train=4_000, validation=1_000)
print(f"Data: {data.source}, {len(data.train_images):,} training images")

# %%
# The network
# -----------
# An LSTM (*long short-term memory*: Hochreiter and Schmidhuber, 1997) carries two vectors from row
# to row, 128 numbers each: the *cell state*, which is its memory, and the *hidden state*, the part
# of the memory that it shows to the layers behind it. Both are zero before the first row. The same
# weights read every row: each of four parts has a matrix for the 28 pixels, a matrix for the hidden
# state and a bias. The next script opens the LSTM and calculates every number in it.

model = keras.Sequential(
    [
        keras.Input((28, 28), dtype="uint8"),
        keras.layers.Rescaling(1 / 255),  # [b, 28, 28], from 0 to 1
        keras.layers.LSTM(UNITS, name="lstm"),  # [b, 128]
        keras.layers.Dropout(DROPOUT),  # in training only
        keras.layers.Dense(10, name="logits"),  # [b, 10]
    ]
)
model.summary()
assert model.count_params() == 4 * (28 * UNITS + UNITS * UNITS + UNITS) + UNITS * 10 + 10

# %%
# One softmax, not two
# --------------------
# Many TensorFlow 1 scripts ended their network in ``tf.nn.softmax`` and then called
# ``softmax_cross_entropy_with_logits``, which takes a softmax itself. No error is raised, but the
# second softmax gets numbers between 0 and 1 only. A perfect network gives the true digit 1 and the
# nine others 0, and the second softmax makes e/(e + 9) = 23 % of that 1. So the loss never falls
# below -ln 0.23 = 1.46. Our network ends in logits, and the loss has the only softmax.

perfect = tf.one_hot(range(10), 10)  # [10, 10]: the probabilities of a network without a mistake
twice = tf.nn.softmax_cross_entropy_with_logits(labels=perfect, logits=perfect)  # [10]
print(f"The loss of a perfect network behind a second softmax: {twice[0]:.2f}")

batches = mnist.batches(data.train_images, data.train_labels, BATCH_SIZE, seed=run.args.seed)
model.compile(
    optimizer=keras.optimizers.Adam(warm_up_cosine(PEAK_RATE, run.args.epochs * len(batches))),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    steps_per_execution=10,  # such small steps cost less than the way from one to the next
)

# %%
# The training
# ------------
# A digit that lies one pixel further left is the same digit. So each training batch is moved by up
# to one pixel in both directions, at random. ``tf.roll`` brings back on the other side what it
# pushes out, but the edge of an MNIST image is nearly always blank.
#
# In TensorBoard's Histograms tab, look at ``lstm/bias``: at step 0 three quarters of the biases are
# 0 and one quarter, the forget gate's, is 1. The next script shows what the ones are good for.


def moved(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch, [b, 28, 28] and [b], with all images moved by the same random step."""
    step = tf.random.uniform([2], -SHIFT, SHIFT + 1, tf.int32)  # down, right
    return tf.roll(images, step, axis=[1, 2]), labels


writer = tf.summary.create_file_writer(str(run.folder / "weights"))


def look_at_weights(step: int) -> None:
    """Write a summary of the LSTM's weights to TensorBoard."""
    with writer.as_default():
        for weight in model.get_layer("lstm").weights:
            tf.summary.histogram(f"lstm/{weight.name}", weight, step)


look_at_weights(0)
images = tf.TensorSpec([None, 28, 28], tf.uint8, name="images")
run.write_graph("graph", tf.function(model).get_concrete_function(images))

started = time.perf_counter()
model.fit(
    batches.map(moved),
    validation_data=mnist.batches(data.validation_images, data.validation_labels, 500),
    epochs=run.args.epochs,
    shuffle=False,  # the data set shuffles, anew in each epoch
    verbose=run.verbose,
    callbacks=[
        keras.callbacks.TensorBoard(run.folder, write_graph=False),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: look_at_weights(epoch + 1)),
    ],
)
train_seconds = time.perf_counter() - started

# %%
# What it knows after each row
# ----------------------------
# An LSTM with ``return_sequences=True`` returns the hidden state after every row. We make one, give
# it the trained weights, and apply the dense layer to each of the 28 states: what would the network
# have answered, had it stopped reading there? It takes each of the three digits for another one
# first. The curve stays low for a long time, but that does not mean that nothing is known by then:
# the dense layer was trained on the last state only, and the earlier ones are not made for it.

every_row = keras.Sequential(
    [
        keras.Input((28, 28), dtype="uint8"),
        keras.layers.Rescaling(1 / 255),
        keras.layers.LSTM(UNITS, return_sequences=True),  # [b, 28, 128]
        keras.layers.Dense(10, activation="softmax"),  # [b, 28, 10]: it takes the last axis
    ]
)
every_row.set_weights(model.get_weights())
probabilities = every_row.predict(data.validation_images, batch_size=500, verbose=0)
right = probabilities.argmax(axis=-1) == data.validation_labels[:, np.newaxis]  # [5000, 28]
accuracy_by_row = right.mean(axis=0)  # [28]

figure, axes = plt.subplot_mosaic(
    "aAbBcC;rrrrrr", figsize=(11, 6.6), height_ratios=[5, 4], layout="constrained"
)
for picture, heat, digit in ("aA2", "bB5", "cC7"):
    n = np.flatnonzero(data.validation_labels == int(digit))[0]
    edges = (-0.5, 27.5, 28.5, 0.5)
    axes[picture].imshow(data.validation_images[n], cmap="gray_r", extent=edges, aspect="auto")
    axes[picture].set(title=f"a {digit}", xlabel="pixel", ylabel="row")
    edges = (-0.5, 9.5, 28.5, 0.5)
    shown = axes[heat].imshow(probabilities[n], vmin=0, vmax=1, extent=edges, aspect="auto")
    axes[heat].set(title="after each row", xlabel="digit", xticks=range(10))
figure.colorbar(shown, ax=axes["C"], label="probability")
axes["r"].plot(range(1, 29), accuracy_by_row, ".-")
axes["r"].axhline(0.1, color="grey", linestyle="--", label="guessing")
axes["r"].set(title="validation accuracy, had reading stopped here", xlabel="rows read")
axes["r"].legend()
run.save_figure(figure, "row_by_row")

# %%
# A file, and another process
# ---------------------------
# ``model.keras`` holds the layers, the scaling of the pixels, the weights and the optimizer. To see
# that it is enough, we start another Python. It runs the four lines below, and it gets nothing but
# the file and the images. A model file can also contain code: load only files that you trust.

path = run.path("model.keras")
model.save(path)

program = """
import sys, keras, numpy
model = keras.saving.load_model(sys.argv[1])
images = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], model.predict(images, batch_size=500, verbose=0))
"""
with tempfile.TemporaryDirectory() as folder:
    images_file, logits_file = Path(folder) / "images.npy", Path(folder) / "logits.npy"
    np.save(images_file, data.test_images)
    subprocess.run([sys.executable, "-c", program, path, images_file, logits_file], check=True)
    logits = np.load(logits_file)  # [10000, 10]
assert np.array_equal(logits, model.predict(data.test_images, batch_size=500, verbose=0))
print(f"Another process, the same logits for {len(logits):,} test images, to the last bit")

# %%
# The test
# --------
# What the other process answered is compared with the true digits: all 10,000 test images, once.

test_accuracy = np.mean(logits.argmax(axis=1) == data.test_labels)
test_loss = np.mean(model.loss(data.test_labels, logits))
run.finish(
    {
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "validation_accuracy": accuracy_by_row[-1],
        "half_read_accuracy": accuracy_by_row[13],
    },
    data=data.describe(),
    train_seconds=train_seconds,
    parameters=model.count_params(),
)
