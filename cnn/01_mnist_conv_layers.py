"""A convolutional network from Keras layers
=========================================

You learn: what a convolution and a pooling layer calculate, what they do to the shape of an image,
and which layer has the parameters and which does the work.

Run::

    python cnn/01_mnist_conv_layers.py

You should see: 99.40 % of the 10,000 test images right. ``feature_maps.png`` shows what the filters
find in a digit, ``confusion.png`` which digits are taken for which.

Time: 35 s on two CPU cores.
"""

import math
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.metrics import ConfusionMatrixDisplay

from data import mnist
from utils.figures import picture_grid
from utils.run import CourseParser, Run, positive_int
from utils.training import warm_up_cosine

HIDDEN = 256  # units of the dense layer behind the convolutions
DROPOUT = 0.5  # share of these units set to zero in training
BATCH_SIZE = 128
PEAK_RATE = 2e-3  # of Adam; all settings were chosen on the validation images

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
# Convolution and pooling
# -----------------------
# A dense unit has one weight for each pixel. A stroke that is moved by a pixel meets other weights
# and has to be learned again. A *filter* of a convolution has 5×5 weights w and one bias b. It is
# laid on every place of the image, and gives one number at each:
#
# .. math:: y_{ij} = b + \sum_{u=0}^{4} \sum_{v=0}^{4} w_{uv}\, x_{i+u,\,j+v}
#
# The numbers form a new image, the filter's *map*: high where the pixels look like the weights. The
# same 25 weights find a stroke wherever it lies. The filters of ``conv2`` do the same with all 32
# maps of the layer before, so each has 5·5·32 weights. A row of 28 pixels has 28 - 5 + 1 = 24
# places for a filter of 5, so the map is smaller than the image. This is ``padding="valid"``, the
# default; ``"same"`` adds a border of zeros, and 28 stays 28. MNIST's digits have a margin already.
# *Pooling* keeps the largest of every 2×2 numbers: the exact place of a stroke matters less.

model = keras.Sequential(
    [
        keras.Input((28, 28), dtype="uint8"),
        keras.layers.Reshape((28, 28, 1), name="channel"),  # grey: one number a pixel
        keras.layers.Rescaling(1 / 255, name="rescaling"),
        keras.layers.Conv2D(32, 5, activation="relu", name="conv1"),
        keras.layers.MaxPooling2D(2, name="pool1"),
        keras.layers.Conv2D(64, 5, activation="relu", name="conv2"),
        keras.layers.MaxPooling2D(2, name="pool2"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(HIDDEN, activation="relu", name="hidden"),
        keras.layers.Dropout(DROPOUT, name="dropout"),
        keras.layers.Dense(10, name="logits"),
    ]
)

image = data.train_images[0] / 255  # [28, 28]
window = image[12:17, 12:17]  # the 5×5 pixels from row 12 and column 12 on
conv1 = model.get_layer("conv1")
kernel, bias = conv1.kernel.numpy(), conv1.bias.numpy()  # [5, 5, 1, 32], [32]
by_hand = [max(0, np.sum(window * kernel[:, :, 0, f]) + bias[f]) for f in range(32)]  # max: relu
by_layer = conv1(image[np.newaxis, :, :, np.newaxis])[0, 12, 12]  # of [1, 24, 24, 32]
assert np.allclose(by_hand, by_layer, atol=1e-6)

# %%
# Where the parameters are, and where the work is
# -----------------------------------------------
# A layer uses each of its weights once at every place of its output: a dense layer has one place,
# ``conv1`` has 24·24 = 576. This gives the multiplications for one image, the work. ``hidden`` has
# 83 % of the parameters, ``conv2`` does 82 % of the work. To make a network small, look at its
# dense layers; to make it fast, at its convolutions.

print(f"{'layer':10} {'output':>12} {'parameters':>11} {'multiplications':>16}")
multiplications = 0
for layer in model.layers:
    *side, channels = layer.output.shape[1:]  # [24, 24] and 32, or [] and 256
    products = math.prod(side) * math.prod(layer.kernel.shape) if hasattr(layer, "kernel") else 0
    shape = "×".join(map(str, [*side, channels]))
    print(f"{layer.name:10} {shape:>12} {layer.count_params():11,} {products:16,}")
    multiplications += products
parameters = model.count_params()
print(f"{'together':10} {'':12} {parameters:11,} {multiplications:16,}")
assert parameters == (25 * 32 + 32) + (25 * 32 * 64 + 64) + (1024 * 256 + 256) + (256 * 10 + 10)

# %%
# What one number sees, and what the loss gets
# --------------------------------------------
# A number of ``conv1`` depends on 5×5 pixels, and one of ``pool1`` on 6×6. Neighbours in ``pool1``
# are 2 pixels apart, so the five in a row that a filter of ``conv2`` looks at see 6 + 4·2 = 14
# pixels. For ``pool2`` it is 16 of the image's 28. This is the *receptive field*: the first layer
# can only find strokes and edges, the second can find loops and crossings.
#
# ``from_logits=True`` tells the loss to apply the softmax. If the model has a softmax layer as
# well, Keras warns and takes the logits. Hand-written code applies it twice, see ``cnn/02``.

steps = run.args.epochs * -(-len(data.train_images) // BATCH_SIZE)  # rounded up
model.compile(
    optimizer=keras.optimizers.Adam(warm_up_cosine(PEAK_RATE, steps)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    steps_per_execution=10,  # ten steps in one call of the graph
)
images = tf.TensorSpec([None, 28, 28], tf.uint8, name="images")
run.write_graph("graph", tf.function(model).get_concrete_function(images))

# %%
# The training
# ------------
# ``accuracy`` is a mean over the epoch, taken while the network was still learning and with half of
# ``hidden`` switched off. ``val_accuracy`` is the fair number. TensorFlow 1's
# ``tf.metrics.accuracy`` was a mean too, over everything since the program began.

started = time.perf_counter()
history = model.fit(
    mnist.batches(data.train_images, data.train_labels, BATCH_SIZE, seed=run.args.seed),
    validation_data=mnist.batches(data.validation_images, data.validation_labels, 500),
    epochs=run.args.epochs,
    shuffle=False,  # the data set shuffles, anew in each epoch
    verbose=run.verbose,
    callbacks=[keras.callbacks.TensorBoard(run.folder, write_graph=False)],
).history
train_seconds = time.perf_counter() - started

# %%
# What the filters find
# ---------------------
# Top: eight of the 32 filters of ``conv1``, yellow where a weight is large. Middle: the map that
# each makes of the same 4, yellow where the filter fits. Many answer to one side or direction of a
# stroke. Bottom: eight maps of ``conv2``, which answer at fewer places.

four = data.validation_images[data.validation_labels == 4][:1]  # [1, 28, 28]
outputs = [model.get_layer(name).output for name in ("conv1", "conv2")]
maps1, maps2 = keras.Model(model.inputs, outputs).predict(four, verbose=0)
filters = conv1.kernel.numpy()  # [5, 5, 1, 32]; the maps are [1, 24, 24, 32] and [1, 8, 8, 64]
pictures = [stack[..., n].squeeze() for stack in (filters, maps1, maps2) for n in range(8)]
titles = [f"{name} {n}" for name in ("filter", "map", "conv2") for n in range(8)]
run.save_figure(picture_grid(pictures, titles, cmap="viridis"), "feature_maps")

# %%
# Saved with its softmax, and loaded
# ----------------------------------
# Users want probabilities, so a softmax is put behind the network after the training.

path = run.path("model.keras")
classifier = keras.Sequential([model, keras.layers.Softmax(name="probabilities")])
classifier.save(path)
loaded = keras.saving.load_model(path)
assert np.array_equal(classifier.predict(four, verbose=0), loaded.predict(four, verbose=0))

# %%
# The test
# --------
# All 10,000 images, once, with the loaded file. ``confusion.png`` counts the wrong answers.

probabilities = loaded.predict(data.test_images, batch_size=500, verbose=0)  # [10000, 10]
answers = probabilities.argmax(axis=1)  # [10000]
losses = -np.log(probabilities[np.arange(len(answers)), data.test_labels])  # [10000]

wrong = answers != data.test_labels
figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
ConfusionMatrixDisplay.from_predictions(
    data.test_labels[wrong], answers[wrong], labels=range(10), ax=axes, cmap="Blues"
)
axes.set(xlabel="the network says", ylabel="the label says")
run.save_figure(figure, "confusion")

run.finish(
    {
        "test_accuracy": np.mean(answers == data.test_labels),
        "test_loss": np.mean(losses),
        "validation_accuracy": history["val_accuracy"][-1],
        "multiplications": multiplications,
    },
    data=data.describe(),
    train_seconds=train_seconds,
    parameters=parameters,
)
