"""Handwritten digits: a network of dense layers
=============================================

You learn: the whole way of a Keras training, from the pixels to the saved file: look at the data,
build, compile, fit, watch it in TensorBoard, test once, save, load, and look at the mistakes.

Run::

    python linear/02_linear_mnist.py

You should see: 98.61 % of the 10,000 test images right. ``curves.png`` shows why a training loss
may begin above the validation loss; ``mistakes.png`` shows digits that the network gets wrong.

Time: 25 s on two CPU cores.
"""

import time

import keras
import numpy as np
import tensorflow as tf

from data import mnist
from utils.figures import curves, picture_grid
from utils.run import CourseParser, Run, positive_int
from utils.training import warm_up_cosine

HIDDEN = (500, 300)  # units of the two hidden layers
DROPOUT = 0.2  # share of the values set to zero in training
BATCH_SIZE = 128
PEAK_RATE = 1.5e-3  # of Adam; all settings were chosen on the validation images
MEAN, DEVIATION = 33.3, 78.6  # of MNIST's training pixels

parser = CourseParser(__doc__)
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
# Of MNIST's 60,000 training images we hold back 5,000, on which all choices are made. The 10,000
# test images are scored once, at the very end, because choosing by them would flatter the result.

data = mnist.load(run.args.data_dir)
if run.args.quick:
    data = data.first(train=4_000, validation=1_000)
print(f"Data: {data.source}, {len(data.train_images):,} training images")
run.save_figure(picture_grid(data.train_images[:16], data.train_labels[:16]), "digits")

# %%
# The network
# -----------
# A unit adds its bias to a weighted sum of the layer before. Hidden units apply relu, max(0, sum).
#
# - The model itself subtracts the mean of the pixels and divides by their standard deviation.
#   Whoever loads the saved file can't forget this and can't do it twice.
# - Dropout sets a random fifth of the values to zero in each training step and multiplies the rest
#   by 1/0.8, which keeps the average. ``evaluate`` and ``predict`` turn it off. TensorFlow 1
#   scripts that forgot to feed 1.0, the share to *keep*, in the test measured a crippled network.
# - The last layer has no softmax. Its outputs are *logits*; the loss applies the softmax, once.
#
# The weights start random, since equal units would stay equal. Keras's ``glorot_uniform`` makes
# them smaller the more inputs and outputs a layer has, so that the signals keep about their size.

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
# The cross-entropy of an image is -ln p(true digit), ln 10 = 2.30 for a network that knows nothing.
# The learning rate rises over the first 15 % of the steps and then falls to zero along half a
# cosine: large steps find the region, small steps settle in it. TensorFlow 1 scripts changed it
# from outside: ``sess.run(tf.assign(lr, 0.001 * 0.95 ** epoch))``.

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
# Keras's callback writes loss and accuracy. We add the graph and, after each epoch, the statistics
# and histograms of all weights (``hidden1/kernel``: a flat block at step 0, a bell with long tails
# later) and the loss of the first 5,000 *training* images, without dropout.
images = tf.TensorSpec([None, 28, 28], tf.uint8, name="images")
run.write_graph("graph", tf.function(model).get_concrete_function(images))
writer = tf.summary.create_file_writer(str(run.folder / "weights"))
plain = mnist.batches(data.train_images[:5_000], data.train_labels[:5_000], 500)
plain_loss = []  # without dropout


def look(epoch: int) -> None:
    """Summarise all weights after so many epochs, and score training images without dropout."""
    plain_loss.append(model.evaluate(plain, verbose=0)[0])
    with writer.as_default():
        for weight in model.trainable_variables:
            tf.summary.histogram(weight.path, weight, step=epoch)
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
# The training loss is a mean over the epoch, while the network learns, with dropout on. Validation
# comes at its end, with dropout off. The third curve is the loss of training images under these
# conditions. It falls below the validation loss, and the distance is the overfitting.

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
# The file holds layers, weights and optimizer and needs none of the code above. TensorFlow 1's
# ``Saver`` stored only numbers under names. Load only files that you trust.

path = run.path("model.keras")
model.save(path)
loaded = keras.saving.load_model(path)
some = data.validation_images[:1_000]
assert np.array_equal(model.predict(some, verbose=0), loaded.predict(some, verbose=0))

# %%
# The test
# --------
# Other 10,000 images would change the accuracy by about :math:`2 \sqrt{p (1 - p) / n}`, a quarter
# of a percent. So two networks that differ by a tenth of a percent may well be equally good.

test = mnist.batches(data.test_images, data.test_labels, 500)
test_loss, test_accuracy = loaded.evaluate(test, verbose=0)

# %%
# The mistakes
# ------------
# The surest wrong answers. "a 6: 99% 4" is a 6 taken for a 4 with a probability of 99 %.

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
