"""InceptionV3: the graph of a large network, and a photo's way through it
=======================================================================

You learn: how to read a large graph block by block, what each block costs, how TensorFlow 1
imported a finished network, and what ``pool_3`` is.

Run::

    python tensorboard_demos/03_inception_v3_graph.py

Downloads: Keras's ImageNet weights of InceptionV3, 88 MB, once, into ``models/inception_v3/``; with
``--quick`` nothing. Without them the network is untrained, and the script leaves out what
``pool_3`` knows of a photo.

You should see: a table of 13 blocks with 94 convolutions, 21,802,784 parameters and 5,711 million
multiplications. ``costs.png`` shows in which blocks they are, and where the time goes. Keras and
the imported graph give the same 2,048 numbers for a photo.

Time: 12 s on two CPU cores, without the download.
"""

import math
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from data.photos import example_photos
from models import inception_v3
from utils.run import CourseParser, Run

SIZE = 299  # pixels, width and height of the network's input
REPEATS = 10  # of a block, to measure its time

parser = CourseParser(__doc__)
inception_v3.add_weights_flag(parser)
run = Run(parser, __file__)

# %%
# The network
# -----------
# InceptionV3 (C. Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, 2015)
# up to ``pool_3``, without the layer that names ImageNet's 1,000 classes.

choice = run.args.weights
if choice == "imagenet":
    found = inception_v3.find_file(inception_v3.KERAS_NOTOP, download=not run.args.quick)
    choice = "imagenet" if found else "none"
weights = inception_v3.find_weights(choice, top=False, seed=run.args.seed)
model = inception_v3.backbone(weights)
print(f"Weights: {weights.source}\n")

# %%
# The blocks
# ----------
# The *stem* makes 35×35 positions of the image, with five convolutions and two poolings. Eleven
# *mixed* blocks follow. Each calculates several branches from the same input, small and larger
# convolutions and a pooling, and joins their channels. ``mixed3`` and ``mixed8`` halve width and
# height. A 7×7 convolution has 49 weights for each pair of channels. ``mixed4`` to ``mixed7`` use a
# 1×7 and a 7×1 instead, with 14 together. Here each block becomes a model.

blocks = {}
end = model.inputs[0]
for name, layers in inception_v3.blocks(model).items():
    blocks[name] = keras.Model(end, layers[-1].output, name=name)
    end = layers[-1].output

# %%
# What a block costs
# ------------------
# A convolution multiplies each weight of its kernel once for each position of its output, so the
# multiplications can be counted from the shapes. The time is the shortest of ten passes of one
# photo. The stem applies few parameters at many positions: many multiplications. The last two
# blocks have half of all parameters, applied at 8×8 positions only.


def prepare(content: bytes) -> tf.Tensor:
    """A JPEG file to what the network takes, [1, 299, 299, 3]."""
    pixels = inception_v3.decode(content)  # [height, width, 3], from 0 to 255
    return inception_v3.scale(inception_v3.resize(pixels, SIZE))[tf.newaxis]


hopper, temple, flower = (prepare(photo.read_bytes()) for photo in example_photos())
calls = {name: tf.function(block) for name, block in blocks.items()}
milliseconds = {name: [] for name in blocks}
outputs = {}
for _ in range(REPEATS):
    x = flower
    for name, call in calls.items():
        started = time.perf_counter()
        x = outputs[name] = call(x)
        milliseconds[name].append(1000 * (time.perf_counter() - started))

ROW = "{:8}{:>12}{:14,.0f}{:12,.0f}{:11,.0f}{:7.1f}"
print(f"{'block':8}{'output':>12}{'convolutions':>14}{'parameters':>12}{'million ×':>11}{'ms':>7}")
costs = []
for name, block in blocks.items():
    kernels = [layer for layer in block.layers if isinstance(layer, keras.layers.Conv2D)]
    times = sum(math.prod(k.kernel.shape) * math.prod(k.output.shape[1:3]) for k in kernels)
    costs.append((len(kernels), block.count_params(), times / 1e6, min(milliseconds[name])))
    print(ROW.format(name, "×".join(map(str, block.output.shape[1:])), *costs[-1]))
costs = np.array(costs)  # [13, 4]
totals = costs.sum(axis=0)
print(ROW.format("all", "", *totals), end="\n\n")

figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
for column, label in ((1, "parameters"), (2, "multiplications"), (3, "time")):
    shares = 100 * costs[:, column] / totals[column]
    axes.bar(np.arange(len(blocks)) + 0.27 * (column - 2), shares, 0.27, label=label)
axes.set_xticks(range(len(blocks)), blocks)
axes.set_ylabel("share, %")
axes.legend()
run.save_figure(figure, "costs")

# %%
# The graph
# ---------
# TensorBoard draws a box for each name scope, and Keras makes a scope of each model and each layer.
# Thirteen models become thirteen boxes; ``model`` would be one with over 300 layers.


@tf.function
def network(images: tf.Tensor) -> tf.Tensor:
    """Images [b, 299, 299, 3] from -1 to 1 to features [b, 2048]."""
    for block in blocks.values():
        images = block(images, training=False)
    return tf.identity(images, name="pool_3")  # its name in Google's graph


traced = network.get_concrete_function(tf.TensorSpec([None, SIZE, SIZE, 3], name="images"))
run.write_graph("graph", traced)
operations = traced.graph.get_operations()
print(f"The graph: {len(operations):,} operations, {len(traced.variables)} variables outside it")

# %%
# The TensorFlow 1 way
# --------------------
# In 2015 Google published the network as one file, ``classify_image_graph_def.pb``, 96 MB. It is a
# *frozen* graph: each variable has become a constant with its trained value. It runs without the
# code that built it, but one must know which tensors to feed and fetch. We freeze ours.

frozen = convert_variables_to_constants_v2(traced).graph.as_graph_def().SerializeToString()
print(f"Frozen: {len(frozen):,} bytes, nearly all of them weights")

with tf.Graph().as_default():
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(frozen)  # the content of the file
    tf.compat.v1.import_graph_def(graph_def, name="")
    with tf.compat.v1.Session() as session:
        features = session.run("pool_3:0", {"images:0": flower.numpy()})  # [1, 2048]

assert np.abs(features - outputs["pool3"]).max() < 1e-4 * np.abs(features).max()

# %%
# What pool_3 knows
# -----------------
# The last block gives 8×8 positions of 2,048 channels. ``pool_3`` is the mean of each channel over
# all positions: 131,072 numbers become 2,048. Where something was in the photo is lost, and what it
# was stays. The chapter ``inception_v3`` trains a new last layer on these numbers.
#
# The cosine of two feature vectors is 1 if they have the same direction. Trained features are
# nearly the same for a photo and its mirror image, and differ for photos of different things.
# Untrained features are nearly the same for all.

photos = tf.concat([flower, flower[:, :, ::-1], temple, hopper], axis=0)
directions = tf.math.l2_normalize(network(photos), axis=1).numpy()  # [4, 2048]
mirrored, *others = directions[1:] @ directions[0]
metrics = {
    "parameters": model.count_params(),
    "convolutions": totals[0],
    "million_multiplications": totals[2],
    "operations": len(operations),
}
if weights.path is None:
    print(f"Untrained, different photos have features with a cosine of {min(others):.3f} or more.")
    print("What pool_3 knows of a photo needs the trained weights (88 MB). To get them:")
    print("python models/inception_v3.py notop")
else:
    print(f"Cosine of the features of a flower and its mirror image: {mirrored:.2f}")
    print(f"Cosine of a flower and a temple, a woman: {others[0]:.2f}, {others[1]:.2f}")
    inception_v3.warn_unpublished(weights)
    metrics |= {"cosine_of_mirror_image": mirrored, "largest_cosine_of_others": max(others)}

data = {"source": f"weights: {weights.source}", "stand_in": False}
run.finish(metrics, data=data, parameters=model.count_params())
