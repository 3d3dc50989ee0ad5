"""Handwritten digits: a network of dense layers
=============================================

You learn: the whole way of a Keras training, from the pixels to the saved file: look at the data,
build, compile, fit, watch it in TensorBoard, test once, save, load, and look at the mistakes.

Run::

    python linear/02_linear_mnist.py

You should see: 98.46 % of the 10,000 test images right. ``curves.png`` shows a training loss that
begins above the validation loss, and why that is no mistake; ``mistakes.png`` shows digits that
the network gets wrong.

Time: 90 s on two CPU cores.
"""

import time

import keras
import numpy as np
import tensorflow as tf

from data import mnist
from utils.figures import curves, picture_grid
from utils.run import Run, make_parser, positive_int
from utils.summary import variable_summaries, write_graph
from utils.training import warm_up_cosine

HIDDEN = (500, 300)  # units of the two hidden layers
DROPOUT = 0.2  # share of the values set to zero in training
BATCH_SIZE = 128
PEAK_RATE = 1.5e-3  # of Adam; all settings were chosen on the validation images
MEAN, DEVIATION = 33.3, 78.6  # of MNIST's training pixels

parser = make_parser(__doc__)
mnist.add_data_dir(parser)
parser.add_argument(
    "--epochs", type=positive_int, default=12, quick=2, help="passes over the training images"
)
run = Run(parser, __file__)
keras.utils.set_random_seed(run.args.seed)
tf.config.experimental.enable_op_determinism()  # the same seed gives the same result

# %%
# The data
# --------
# MNIST has 60,000 training images. We hold back 5,000 of them for validation: all choices are made
# on these. The 10,000 test images are scored once, at the very end. A test set that you look at
# while you choose settings measures how well you chose, not how well the network reads new digits.

data = mnist.load(run.args.data_dir)
if run.args.quick:
    data = data.first(train=4_000, validation=1_000)
print(f"Data: {data.source}, {len(data.train_images):,} training images")
run.save_figure(picture_grid(data.train_images[:16], data.train_labels[:16]), "digits")

# %%
# The network
# -----------
# 784 pixels, 500 units, 300 units, 10 outputs. A unit multiplies every value of the layer before by
# a weight of its own, adds them up and adds a bias. The hidden units then apply relu, max(0, sum).
#
# - The pixels come in as bytes from 0 to 255. The model subtracts their mean and divides by their
#   standard deviation. Whoever loads the saved file can't forget this and can't do it twice.
# - Dropout sets a random fifth of the values to zero in each training step and multiplies the rest
#   by 1/0.8, so that the sums keep their size on average. ``fit`` turns it on; ``evaluate`` and
#   ``predict`` turn it off. TensorFlow 1 scripts fed the share to *keep* into a placeholder, and
#   those that forgot to feed 1.0 for the test measured a crippled network.
# - The last layer has no softmax. Its outputs are *logits*, and the loss below applies the softmax
#   itself, exactly once. The largest logit belongs to the most probable digit anyway.
#
# The weights of a layer start from random numbers with mean 0, since equal units would stay equal.
# Keras's default, ``glorot_uniform``, makes them smaller the more inputs and outputs a layer has,
# so that the signals keep about the same size from layer to layer.

model = keras.Sequential(
    [
        keras.Input((28, 28), dtype="uint8"),
        keras.layers.Flatten(),  # [b, 784]
        keras.layers.Normalization(axis=None, mean=MEAN, variance=DEVIATION**2),
        keras.layers.Dropout(DROPOUT),
        keras.layers.Dense(HIDDEN[0], activation="relu", name="hidden1"),  # [b, 500]
        keras.layers.Dropout(DROPOUT),
        keras.layers.Dense(HIDDEN[1], activation="relu", name="hidden2"),  # [b, 300]
        keras.layers.Dropout(DROPOUT),
        keras.layers.Dense(10, name="logits"),  # [b, 10]
    ]
)
model.summary()
assert model.count_params() == 784 * 500 + 500 + 500 * 300 + 300 + 300 * 10 + 10

# %%
# The loss and the optimizer
# --------------------------
# The cross-entropy of an image is -ln p(true digit). A network that knows nothing gives every digit
# 1/10 and has a loss of ln 10 = 2.30.
#
# The learning rate rises over the first 15 % of the steps and then falls to zero along half a
# cosine: large steps find the region, small steps settle in it. TensorFlow 1 scripts kept the rate
# in a variable and changed it from outside: ``sess.run(tf.assign(lr, 0.001 * 0.95 ** epoch))``.

steps = run.args.epochs * -(-len(data.train_images) // BATCH_SIZE)  # rounded up
model.compile(
    optimizer=keras.optimizers.Adam(warm_up_cosine(PEAK_RATE, steps)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    steps_per_execution=10,  # such small steps cost less than the way from one to the next
)

# %%
# The training, and what TensorBoard gets
# ---------------------------------------
# Keras's callback writes loss and accuracy of both sets. We add the graph, and after each epoch the
# mean, deviation, extremes and histogram of all weights and biases. In the Histograms tab, watch
# ``hidden1/kernel``: a flat block at step 0, a bell with long tails later. We also score the first
# 5,000 *training* images after each epoch, without dropout.

images = tf.TensorSpec([None, 28, 28], tf.uint8, name="images")
write_graph(run.log_dir("graph"), tf.function(model).get_concrete_function(images))
writer = tf.summary.create_file_writer(run.log_dir("weights"))
plain = mnist.batches(data.train_images[:5_000], data.train_labels[:5_000], 500)
plain_loss = []  # without dropout


def look(epoch: int) -> None:
    """Summarise all weights after so many epochs, and score training images without dropout."""
    plain_loss.append(model.evaluate(plain, verbose=0)[0])
    with writer.as_default():
        for weight in model.trainable_variables:
            variable_summaries(weight.path, weight, step=epoch)
        writer.flush()


look(0)

started = time.perf_counter()
history = model.fit(
    mnist.batches(data.train_images, data.train_labels, BATCH_SIZE, seed=run.args.seed),
    validation_data=mnist.batches(data.validation_images, data.validation_labels, 500),
    epochs=run.args.epochs,
    shuffle=False,  # the data set shuffles, anew in each epoch
    verbose=run.verbose,
    callbacks=[
        keras.callbacks.TensorBoard(run.folder, write_graph=False),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: look(epoch + 1)),
    ],
).history
train_seconds = time.perf_counter() - started

# %%
# Why the training loss begins above the validation loss
# ------------------------------------------------------
# The training loss is measured with dropout on, and it is the mean over an epoch in which the
# network was still learning. Validation comes at the end of the epoch, with dropout off. The third
# curve is the loss of training images under the same conditions. It falls below the validation
# loss, and the distance between these two is the overfitting.

figure = curves(
    {
        "cross-entropy": {
            "training, dropout on, mean over the epoch": history["loss"],
            "validation": history["val_loss"],
            "training, dropout off, after the epoch": plain_loss[1:],
        }
    },
    log=True,
)
run.save_figure(figure, "curves")

# %%
# Saved, and loaded
# -----------------
# One file holds the layers, the weights and the optimizer; nobody needs the code above to use it.
# TensorFlow 1's ``Saver`` stored numbers under names only, and the program that loaded them had to
# build the same graph first. Load only files that you trust.

path = run.path("model.keras")
model.save(path)
loaded = keras.saving.load_model(path)
some = data.validation_images[:1_000]
assert np.array_equal(model.predict(some, verbose=0), loaded.predict(some, verbose=0))

# %%
# The test
# --------
# The loaded model scores all 10,000 test images, once. Other 10,000 images would give a slightly
# different accuracy: by :math:`2 \sqrt{p (1 - p) / n}`, about a quarter of a percent, either way.
# So two networks that differ by a tenth of a percent here may well be equally good.

test = mnist.batches(data.test_images, data.test_labels, 500)
test_loss, test_accuracy = loaded.evaluate(test, verbose=0)

# %%
# The mistakes
# ------------
# The test images on which the network is surest of a wrong answer. "a 6: 99% 4" is a 6 that it took
# for a 4 with a probability of 99 %. Would you have read them right?

logits = loaded.predict(data.test_images, batch_size=500, verbose=0)  # [10000, 10]
probabilities = tf.nn.softmax(logits).numpy()
answers = logits.argmax(axis=1)  # [10000]
wrong = np.flatnonzero(answers != data.test_labels)
worst = wrong[np.argsort(-probabilities[wrong, answers[wrong]])][:24]
titles = [f"a {data.test_labels[n]}: {probabilities[n].max():.0%} {answers[n]}" for n in worst]
run.save_figure(picture_grid(data.test_images[worst], titles), "mistakes")

run.finish(
    {
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "validation_accuracy": history["val_accuracy"][-1],
        "training_loss_without_dropout": plain_loss[-1],
    },
    data=data.describe(),
    train_seconds=train_seconds,
    parameters=model.count_params(),
)

# %%
# Try it
# ------
# 1. Set ``DROPOUT`` to 0. What happens to the distance between the two lower curves?
# 2. Remove the activation of both hidden layers. The network is then one matrix in three pieces.
#    How much does it lose?
