"""Fine-tune InceptionV3 with ``fit``
==================================

You learn: fine-tuning in its shortest form. A network that was trained on other photos gets a new
head, which is trained first, alone. Then the upper layers of the body are trained with it.

Run, after ``01_images_to_tfrecords.py``::

    python inception_v3/slim_train/02_fine_tune_with_fit.py

You should see: two trainings, a line for each epoch, and what each of them reached on the
validation photos. ``curves.png`` shows both.

Time: 2.5 minutes for 490 photos on two CPU cores.
"""

from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

from data.images import decode
from models import inception_v3
from models.classifier import save_classifier, whole_model
from models.inception_v3 import add_weights_flag, backbone, blocks, find_weights, resize
from utils.figures import curves
from utils.run import ROOT, CourseParser, Run, positive_int, readable
from utils.tfrecord import read_dataset

UPPER = ("mixed8", "mixed9", "mixed10")  # the blocks that are trained with the head
BATCH_SIZE = 16

parser = CourseParser(__doc__)
add, records, models = parser.add_argument, ROOT / "data" / "slim", ROOT / "models" / "slim"
folder = {"type": Path, "metavar": "DIR"}
add("--records", **folder, default=records / "records", quick=records / "quick" / "records")
add("--model", **folder, default=models / "fit", quick=models / "quick" / "fit")
add_weights_flag(parser)
add("--image-size", type=positive_int, quick=75, help="pixels (default: 224, without weights 75)")
add("--epochs", type=positive_int, default=5, quick=1, help="of the head, and again of both")
run = Run(parser, __file__)
args = run.args
try:
    about, splits = read_dataset(args.records)
    classes = about["classes"]
    train_files, train_count = splits["train"]
    validation_files, validation_count = splits["validation"]
except KeyError as error:
    parser.error(f"{args.records} has no {error}: write photos with 01_images_to_tfrecords.py")
except ValueError as error:
    parser.error(f"{error}\nRecords are written by 01_images_to_tfrecords.py")
weights = find_weights(args.weights, top=False, quick=args.quick, seed=args.seed)
size = args.image_size or (75 if weights.stand_in else 224)
keras.utils.set_random_seed(args.seed)
tf.config.experimental.enable_op_determinism()

# %%
# Photos from records
# -------------------
# A record becomes an image and a label. Shuffled are the records, before they are decoded.

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/orientation": tf.io.FixedLenFeature([], tf.int64),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}


def read(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The photo of a record, float32 [size, size, 3] from 0 to 255, and its label."""
    found = tf.io.parse_single_example(record, FEATURES)
    pixels = decode(found["image/encoded"], found["image/orientation"], size)
    return resize(pixels, size), found["image/class/label"]


def batches(files: list[str], count: int, buffer: int = 1) -> tf.data.Dataset:
    """Batches of the photos in records; Keras wants to know their number."""
    records = tf.data.TFRecordDataset(files).shuffle(buffer, seed=args.seed)
    photos = records.apply(tf.data.experimental.assert_cardinality(count))
    return photos.map(read, num_parallel_calls=2).batch(BATCH_SIZE).prefetch(2)


train = batches(train_files, train_count, buffer=200)
validation = batches(validation_files, validation_count)

# %%
# A new head on a body that stays
# -------------------------------
# The body has seen 1.2 million photos and makes 2,048 features of an image. ``trainable = False``
# keeps its weights, and lets its batch normalisation use the means and variances that came with
# them. The head is softmax regression on the features. The two layers in front are at work in
# training only: they show each photo a little differently each time.
#
# Without weights the body has random filters, whose batch normalisation is calibrated on the
# training photos. Even such features tell something.

body = backbone(weights, size, (images / 127.5 - 1 for images, _ in train))
body.trainable = False
logits = layers.Dense(len(classes), name="logits")(layers.Dropout(0.2)(body.output))
network = keras.Model(body.input, logits)
model = keras.Sequential(
    [
        keras.Input((size, size, 3)),
        layers.RandomFlip("horizontal"),
        layers.RandomZoom(0.2),
        layers.Rescaling(1 / 127.5, -1),  # from -1 to 1, what the body was trained on
        network,
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
fit = {"epochs": args.epochs, "validation_data": validation, "shuffle": False}


def train_with(rate: float) -> dict[str, list[float]]:
    """Train what is trainable; keep the weights of the epoch with the smallest validation loss."""
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    keep = keras.callbacks.EarlyStopping(patience=args.epochs, restore_best_weights=True)
    return model.fit(train, **fit, verbose=run.verbose, callbacks=[keep]).history


head = train_with(0.001)
head_loss, head_accuracy = model.evaluate(validation, verbose=0)

# %%
# The upper layers too
# --------------------
# Now the head's gradients are small, and the body can be trained with it, at a tenth of the rate.
# (Larger steps undo what it knows: at the head's own rate of 0.001, 230 validation photos were read
# worse than by the head alone.) Upper layers see parts of objects, lower ones edges and colours,
# which are the same in all photos. So only the upper three blocks are trained, and a step costs
# less. Batch normalisation stays as it came. A model has to be compiled again when ``trainable``
# was changed.
#
# Random filters are all equally poor, so there everything is trained, with larger steps.

for name, some in blocks(body).items():
    for layer in some:
        norm = isinstance(layer, layers.BatchNormalization)
        layer.trainable = weights.stand_in or (name in UPPER and not norm)
tuned = train_with(0.001 if weights.stand_in else 0.0001)
tuned_loss, tuned_accuracy = model.evaluate(validation, verbose=0)

# %%
# The model, and both trainings
# -----------------------------
# What is saved takes pixels of any size and gives probabilities. The grey part of the figure is the
# head's training.

facts = {"classes": classes, "size": size, "weights": weights.source, "records": about["source"]}
facts |= {"training_photos": about["training_photos"]}
save_classifier(args.model / "model.keras", whole_model(network, None, size, classes), facts)
print(f"The model: {readable(args.model)}")
if not weights.stand_in:
    inception_v3.warn_unpublished(weights)
names = {"training": "loss", "validation": "val_loss"}
panels = {"Loss": {label: head[name] + tuned[name] for label, name in names.items()}}
names = {"training": "accuracy", "validation": "val_accuracy"}
panels["Share right"] = {label: head[name] + tuned[name] for label, name in names.items()}
figure = curves(panels)
for axes in figure.axes:
    axes.axvspan(0.5, args.epochs + 0.5, color="0.93")
run.save_figure(figure, "curves")
run.finish(
    {"head_validation_accuracy": head_accuracy, "tuned_validation_accuracy": tuned_accuracy},
    data={"source": about["source"], "stand_in": about["stand_in"]},
    parameters=network.count_params(),
    weights=weights.source,
)

# %%
# What is still missing
# ---------------------
# ``02_train_image_classifier.py`` adds slim's recipe: an auxiliary head, smoothed labels, weight
# decay, a rate that falls, averaged weights. And it has a loop of its own, which goes on after a
# kill and runs on several machines.
