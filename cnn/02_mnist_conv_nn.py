"""The same network by hand
========================

You learn: what the layers of the script before are made of. The network is eight variables and six
operations, the training step is written out, and the result is saved as a checkpoint, which has the
numbers, and as a SavedModel, which has the calculation as well.

Run::

    python cnn/02_mnist_conv_nn.py

You should see: 99.33 % of the 10,000 test images right. ``filters.png`` shows the first layer's
filters before and after the training.

Time: 36 s on two CPU cores.
"""

import math
import time

import keras
import numpy as np
import tensorflow as tf

from data import mnist
from utils.figures import picture_grid
from utils.run import CourseParser, Run, positive_int
from utils.training import warm_up_cosine

HIDDEN = 256  # the settings are those of cnn/01
DROPOUT = 0.5
BATCH_SIZE = 128
PEAK_RATE = 2e-3

parser = CourseParser(__doc__)
mnist.add_data_dir(parser)
parser.add_argument(
    "--epochs", type=positive_int, default=5, quick=2, help="passes over the training images"
)
run = Run(parser, __file__)
keras.utils.set_random_seed(run.args.seed)
tf.config.experimental.enable_op_determinism()  # the same seed gives the same result

data = mnist.load(run.args.data_dir)
if run.args.quick:
    data = data.first(train=4_000, validation=1_000)
print(f"Data: {data.source}, {len(data.train_images):,} training images")

# %%
# The network
# -----------
# A ``tf.Module`` replaces TensorFlow 1's collections: each variable that is assigned to an
# attribute appears in ``trainable_variables`` and in checkpoints.
#
# **The start.** A unit adds up n products of an input and a weight. If the weights have the
# deviation σ, the sum has n σ² times the power (the mean square) of the inputs. Then relu sets half
# of the sums to zero, which halves the power. So with n σ² = 2 a signal keeps its size from layer
# to layer (He et al., *Delving deep into rectifiers*, 2015). No relu follows the logits, so they
# get n σ² = 1. TensorFlow 1's tutorials took σ = 0.1 everywhere, cut at 2 σ, which leaves 0.088.
# For ``hidden`` that is twice as much as :math:`\sqrt{2/1024}`.
#
# **Dropout** sets a share of the units to zero and multiplies the others, so that the sum keeps its
# size on average. ``rate`` is the share that is dropped; TensorFlow 1 took the share to *keep*.


def weights(*shape: int, power: int = 2) -> tf.Variable:
    """Random weights [..., units] with n σ² = ``power``, where n are the inputs of one unit."""
    inputs = math.prod(shape[:-1])  # conv1: 25, conv2: 800, hidden: 1024, logits: 256
    return tf.Variable(tf.random.normal(shape, stddev=math.sqrt(power / inputs)))


class ConvNet(tf.Module):
    def __init__(self) -> None:
        super().__init__(name="conv_net")
        self.conv1_kernel, self.conv1_bias = weights(5, 5, 1, 32), tf.Variable(tf.zeros(32))
        self.conv2_kernel, self.conv2_bias = weights(5, 5, 32, 64), tf.Variable(tf.zeros(64))
        self.hidden_kernel, self.hidden_bias = weights(1024, HIDDEN), tf.Variable(tf.zeros(HIDDEN))
        self.logits_kernel = weights(HIDDEN, 10, power=1)
        self.logits_bias = tf.Variable(tf.zeros(10))

    def forward(self, images: tf.Tensor, dropout: float) -> tf.Tensor:
        """The logits, float32 [b, 10], of images, uint8 [b, 28, 28]."""
        pixels = tf.cast(images, tf.float32)[..., tf.newaxis] / 255  # [b, 28, 28, 1]
        maps = tf.nn.conv2d(pixels, self.conv1_kernel, strides=1, padding="VALID") + self.conv1_bias
        maps = tf.nn.max_pool2d(tf.nn.relu(maps), 2, 2, "VALID")  # [b, 12, 12, 32]
        maps = tf.nn.conv2d(maps, self.conv2_kernel, strides=1, padding="VALID") + self.conv2_bias
        maps = tf.nn.max_pool2d(tf.nn.relu(maps), 2, 2, "VALID")  # [b, 4, 4, 64]
        row = tf.reshape(maps, [-1, 1024])
        hidden = tf.nn.relu(tf.matmul(row, self.hidden_kernel) + self.hidden_bias)  # [b, 256]
        hidden = tf.nn.dropout(hidden, rate=dropout)
        return tf.matmul(hidden, self.logits_kernel) + self.logits_bias

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28], tf.uint8, name="images")])
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return self.forward(images, dropout=0)


network = ConvNet()
parameters = sum(math.prod(variable.shape) for variable in network.trainable_variables)
assert parameters == 317_066  # as many as in cnn/01
run.write_graph("graph", network.__call__.get_concrete_function())

# %%
# The loss
# --------
# The operation below takes logits and does softmax and logarithm in one. If it gets probabilities
# by mistake, the softmax is applied twice, and nothing warns you. The second one sees only numbers
# from 0 to 1, so even the loss of a perfect answer is ln(1 + 9/e) = 1.46.


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The mean cross-entropy of labels, [b], and logits, [b, 10]."""
    labels = tf.cast(labels, tf.int32)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


perfect = 15 * tf.one_hot([7], 10)  # a network that is sure that the digit is a 7, and right
twice = cross_entropy([7], tf.nn.softmax(perfect))
print(f"Loss of a perfect answer: {cross_entropy([7], perfect):.2f}, softmax twice: {twice:.2f}")


def score(network: ConvNet, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on all the images, with all units on."""
    batches = mnist.batches(images, labels, 500)
    logits = np.concatenate([network(some_images) for some_images, _ in batches])  # [n, 10]
    return float(cross_entropy(labels, logits)), float(np.mean(logits.argmax(axis=1) == labels))


loss_at_start, _ = score(network, data.validation_images, data.validation_labels)
print(f"Loss at the start: {loss_at_start:.2f}; ln 10 = {math.log(10):.2f}")

# %%
# The training step
# -----------------
# The loss with dropout, its gradient by each of the eight variables, one step of the optimizer.
# ``tf.function`` records the operations at the first call and runs them as a graph from then on.
# TensorFlow 1 had ``train_op = tf.train.AdamOptimizer(1e-4).minimize(loss)`` and, step by step,
# ``sess.run(train_op, feed_dict={x: batch[0], y: batch[1], keep_prob: 0.5})``.

steps_per_epoch = -(-len(data.train_images) // BATCH_SIZE)  # rounded up
optimizer = keras.optimizers.Adam(warm_up_cosine(PEAK_RATE, run.args.epochs * steps_per_epoch))


@tf.function
def train_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        loss = cross_entropy(labels, network.forward(images, dropout=DROPOUT))
    gradients = tape.gradient(loss, network.trainable_variables)
    optimizer.apply(gradients, network.trainable_variables)
    return loss


# %%
# The training
# ------------
# TensorBoard gets every twentieth loss, and each epoch's validation scores and weight summaries.

filters_at_start = network.conv1_kernel.numpy()
batches = mnist.batches(data.train_images, data.train_labels, BATCH_SIZE, seed=run.args.seed)
writer = tf.summary.create_file_writer(str(run.folder / "train"))
validation_writer = tf.summary.create_file_writer(str(run.folder / "validation"))
started = time.perf_counter()
for epoch in range(run.args.epochs):
    for images, labels in batches:
        loss = train_step(images, labels)
        step = int(optimizer.iterations)
        if step % 20 == 0:
            with writer.as_default(step):
                tf.summary.scalar("loss", loss)
                tf.summary.scalar("learning_rate", optimizer.learning_rate)
    validation_loss, validation_accuracy = score(
        network, data.validation_images, data.validation_labels
    )
    print(f"epoch {epoch + 1}: validation loss {validation_loss:.4f}, {validation_accuracy:.2%}")
    with validation_writer.as_default(step):
        tf.summary.scalar("loss", validation_loss)
        tf.summary.scalar("accuracy", validation_accuracy)
    with writer.as_default():
        for name in ("conv1", "conv2", "hidden", "logits"):
            tf.summary.histogram(f"{name}_kernel", getattr(network, f"{name}_kernel"), step)
train_seconds = time.perf_counter() - started

# %%
# What the first filters have learned
# -----------------------------------
# Two rows at the start, two rows after the training; red weights are above zero, blue ones below. A
# filter has changed only a little: noise became an edge or a spot; much still looks like noise.

filters = np.concatenate([filters_at_start, network.conv1_kernel], axis=3)  # [5, 5, 1, 64]
largest = np.abs(filters).max()
figure = picture_grid(
    filters[:, :, 0].transpose(2, 0, 1),
    columns=16,
    cmap="RdBu_r",
    vmin=-largest,
    vmax=largest,
)
figure.suptitle("32 filters of 5×5, at the start and after the training", fontsize=10)
run.save_figure(figure, "filters")

# %%
# Saved in two ways, and loaded
# -----------------------------
# A *checkpoint* has numbers only: the variables, and the optimizer's averages, so that a training
# can go on. It needs the class ``ConvNet``. TensorFlow 1's ``Saver`` did the same. A *SavedModel*
# has the numbers and the graph of ``__call__``, without the training step. It needs no class.

checkpoint_path = tf.train.Checkpoint(network=network, optimizer=optimizer).write(
    run.path("checkpoint") / "trained"
)
restored = ConvNet()  # other random numbers, until they are overwritten
tf.train.Checkpoint(network=restored).read(checkpoint_path).assert_existing_objects_matched()

saved_model = str(run.path("saved_model"))
tf.saved_model.save(network, saved_model)
loaded = tf.saved_model.load(saved_model)

some_images = data.validation_images[:500]
logits = network(some_images).numpy()  # [500, 10]
assert np.array_equal(logits, restored(some_images))
assert np.array_equal(logits, loaded(some_images))

# %%
# The same network in TensorFlow 1
# --------------------------------
# The graph is built first and run later, in a session. Images are fed into a placeholder, and so is
# the share of units to keep: 0.5 in training, 1.0 in the test. Programs that forgot the 1.0 tested
# a network without half of its units. With the weights from above, the old program gives the same
# logits.

tf1 = tf.compat.v1
values = [variable.numpy() for variable in network.trainable_variables]  # in the order of names
with tf.Graph().as_default(), tf1.Session() as session:
    tf1.set_random_seed(run.args.seed)
    b1, W1, b2, W2, b3, W3, b4, W4 = (tf1.Variable(value) for value in values)
    x = tf1.placeholder(tf.float32, [None, 28, 28, 1])
    keep_prob = tf1.placeholder(tf.float32)
    h = tf.nn.relu(tf1.nn.conv2d(x, W1, strides=[1, 1, 1, 1], padding="VALID") + b1)
    h = tf1.nn.max_pool(h, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID")
    h = tf.nn.relu(tf1.nn.conv2d(h, W2, strides=[1, 1, 1, 1], padding="VALID") + b2)
    h = tf1.nn.max_pool(h, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID")
    h = tf.nn.relu(tf.matmul(tf.reshape(h, [-1, 4 * 4 * 64]), W3) + b3)
    y = tf.matmul(tf1.nn.dropout(h, keep_prob), W4) + b4
    session.run(tf1.global_variables_initializer())
    feed = {x: some_images[..., np.newaxis] / 255, keep_prob: 1.0}
    old_logits = session.run(y, feed_dict=feed)
assert np.allclose(logits, old_logits, rtol=1e-4, atol=1e-4)

# %%
# **The test.** The loaded SavedModel scores all 10,000 images, once.

test_loss, test_accuracy = score(loaded, data.test_images, data.test_labels)
run.finish(
    {
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "validation_accuracy": validation_accuracy,
        "loss_at_start": loss_at_start,
    },
    data=data.describe(),
    train_seconds=train_seconds,
    parameters=parameters,
)
