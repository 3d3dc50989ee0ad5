"""Stuck at chance: why a deep network may learn nothing at first
==============================================================

You learn: how much of the difference between two images is left at the top of a deep network
before it has learned anything, how that depends on the initial weights, and why it decides whether
the network learns.

Run, after ``02_images_to_tfrecords.py``::

    python captcha_multitask/06_stuck_at_chance.py

You should see: AlexNet twice, with the initial weights that TensorFlow 1's slim gave it and with
He's. With slim's the loss stays at 4 ln 10 = 9.21, what guessing costs. With He's it falls to 4.41.

Time: 4 minutes on two CPU cores.
"""

import itertools
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from nets import nets_factory

from data.captchas import FOLDER, decode_pngs
from utils.figures import curves
from utils.run import CourseParser, Run, positive_int, readable
from utils.tfrecord import read_dataset

BATCH_SIZE = 64
STEPS = 50  # between two looks at the network
SIZE = (67, 160)  # the smallest height that AlexNet's layers allow, so that it is fast
LAYERS = ("standardize", "conv1", "conv5", "fc6", "fc7", "logits")

parser = CourseParser(__doc__)
parser.add_argument(
    "--records",
    type=Path,
    metavar="DIR",
    default=FOLDER / "records",
    quick=FOLDER / "quick" / "records",
    help="the data set that 02_images_to_tfrecords.py wrote",
)
parser.add_argument("--looks", type=positive_int, default=6, quick=1, help="of 50 steps each")
run = Run(parser, __file__)
args = run.args
try:
    about, splits = read_dataset(args.records)
except ValueError as error:
    quick = " --quick" * args.quick
    parser.error(f"{error}\nFirst run captcha_multitask/02_images_to_tfrecords.py{quick}")
(train_files, _), (validation_files, _) = splits["train"], splits["validation"]
length, characters = about["length"], len(about["alphabet"])
chance = length * np.log(characters)  # the loss of a network that guesses
tf.config.experimental.enable_op_determinism()

# %%
# The images
# ----------


def read(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Records, string [b], as images uint8 [b, height, width, 1] and classes int64 [b, length]."""
    image, classes = tf.io.FixedLenFeature([], tf.string), tf.io.FixedLenFeature([length], tf.int64)
    examples = tf.io.parse_example(records, {"image": image, "classes": classes})
    return decode_pngs(examples["image"], about["height"], about["width"]), examples["classes"]


records = tf.data.TFRecordDataset(train_files).shuffle(10_000, seed=args.seed).repeat()
batches = records.batch(BATCH_SIZE).map(read, num_parallel_calls=2).prefetch(2)
validation = tf.data.TFRecordDataset(validation_files).batch(250).map(read).prefetch(2)
images, _ = next(iter(validation))
images = images[:BATCH_SIZE]  # [64, height, width, 1]

# %%
# Two ways to begin
# -----------------
# AlexNet has eight layers in a row, and nothing in it keeps the signal at one size. slim drew its
# weights so that the signal shrinks: in the full layers with a standard deviation of 0.005. He's
# initial weights have the standard deviation :math:`\sqrt{2 / n}` for a unit with n inputs. With
# them each layer passes on about as much as it gets (K. He et al., 2015, arXiv 1502.01852).
#
# The table shows by how much the outputs of a layer differ from one image to the next: their
# standard deviation over 64 captchas, on average over the layer's units. Nothing is trained yet.

networks = {}
for start in ("slim", "he"):
    keras.utils.set_random_seed(args.seed)
    networks[start] = nets_factory.build(
        "alexnet_v2", length, characters, about["height"], about["width"], SIZE, start=start
    )

spreads = {}
print(f"{'untrained, layer':20}{'slim':>10}{'He':>10}")
for layer in LAYERS:
    for start, network in networks.items():
        output = network.output if layer == "logits" else network.get_layer(layer).output
        values = keras.Model(network.input, output)(images, training=False)  # [64, ...]
        spreads[start, layer] = float(tf.reduce_mean(tf.math.reduce_std(values, axis=0)))
    print(f"{layer:20}{spreads['slim', layer]:10.4f}{spreads['he', layer]:10.4f}")

# %%
# What that does to the training
# ------------------------------
# With slim's weights the logits are the same for all images. The best constant answer is "all
# characters are equally likely". The biases learn it at once, and there the loss stays: the
# gradient of the lower layers comes down through the same small weights and is as small. Adam
# divides each gradient by its usual size, but even that does not help within these steps. With He's
# weights the loss begins to fall as soon as the logits tell images apart.
#
# ``compact`` needs no such care. Batch normalisation measures the signal after every layer and
# scales it.

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)  # the mean over the heads
history = {start: {"loss": [], "spread": []} for start in networks}
seen = [BATCH_SIZE * STEPS * (look + 1) for look in range(args.looks)]
for start, network in networks.items():
    keras.utils.set_random_seed(args.seed)
    network.compile(keras.optimizers.Adam(3e-4), loss)
    writer = tf.summary.create_file_writer(str(run.folder / start))
    stream = iter(batches)
    for number in seen:
        for images_of_step, classes in itertools.islice(stream, STEPS):
            network.train_on_batch(images_of_step, classes)
        scores = {
            "loss": length * network.evaluate(validation, verbose=0),
            "spread": float(tf.reduce_mean(tf.math.reduce_std(network(images), axis=0))),
        }
        with writer.as_default(number):
            for name, value in scores.items():
                tf.summary.scalar(name, value)
                history[start][name].append(value)
        print(
            f"{start}, {number:,} images: loss {scores['loss']:.3f} (chance {chance:.3f}), logits "
            f"differ by {scores['spread']:.4f}",
            flush=True,
        )

panels = {
    "Validation loss, sum of the heads": {s: rows["loss"] for s, rows in history.items()},
    "Standard deviation of the logits": {s: rows["spread"] for s, rows in history.items()},
}
run.save_figure(curves(panels, xlabel="images seen", log=True, x=seen), "stuck")
run.finish(
    {
        "slim_loss": history["slim"]["loss"][-1],
        "he_loss": history["he"]["loss"][-1],
        "slim_spread": spreads["slim", "logits"],
        "he_spread": spreads["he", "logits"],
        "chance_loss": chance,
    },
    data={"source": readable(args.records), "stand_in": False},
    parameters=networks["he"].count_params(),
)
