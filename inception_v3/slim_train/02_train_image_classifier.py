"""Train InceptionV3 as slim did, in a loop that survives a kill
=============================================================

You learn: what slim's recipe adds to fine-tuning with ``fit``: distorted photos, an auxiliary head,
smoothed labels, weight decay, RMSprop with momentum, a moving average of the weights, each in a few
lines; and how such a training goes on after a kill, or runs on several machines.

Run, after ``01_images_to_tfrecords.py``::

    python inception_v3/slim_train/02_train_image_classifier.py
    python inception_v3/slim_train/02_train_image_classifier.py --head models/pool3

You should see: a line for each validation, with its loss and the share of the photos that are
right, and at the end the best model in ``models/slim``. ``curves.png`` shows the training,
``distorted.png`` what the network gets to see of a photo.

Time: 6 minutes for 490 photos on two CPU cores. After Ctrl-C or a kill it goes on by the same
command with ``--run-dir`` and the folder that the first line names.
"""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from data.images import decode
from models import inception_v3
from models.classifier import load_classifier, save_classifier, whole_model
from models.inception_v3 import add_weights_flag, backbone, blocks, find_weights, resize, scale
from utils.figures import curves, picture_grid
from utils.run import ROOT, CourseParser, positive_float, positive_int, readable
from utils.tfrecord import read_dataset
from utils.training import STRATEGIES, TrainingRun

BUFFER = 256 * 2**20  # bytes of photos that wait to be drawn from
CROP = 0.3  # least share of a photo that a crop keeps
DROPOUT = 0.2  # share of the 2,048 features
SMOOTHING = 0.1  # of the labels
WEIGHT_DECAY = 0.00004
AUXILIARY = 0.4  # weight of the auxiliary head's loss
AVERAGE = 0.99  # of the weights' moving average
VALIDATIONS = 15  # in a whole training
PARTS = ("stem", *(f"mixed{i}" for i in range(11)), "head")  # of the network, from below
RATES = {  # for heads alone, for a body with trained weights, for one without
    "rmsprop": (0.002, 0.003, 0.003),
    "momentum": (0.002, 0.003, 0.003),
    "adam": (0.001, 0.0001, 0.001),
}

parser = CourseParser(__doc__)
add, records, models = parser.add_argument, ROOT / "data" / "slim", ROOT / "models" / "slim"
folder = {"type": Path, "metavar": "DIR"}
add("--records", **folder, default=records / "records", quick=records / "quick" / "records")
add("--model", **folder, default=models, quick=models / "quick", help="for the best model")
add_weights_flag(parser)
add("--head", type=Path, metavar="MODEL", help="begin with the head that pool3_train trained")
add("--image-size", type=positive_int, quick=75, help="pixels (default: 224, without weights 75)")
add("--epochs", type=positive_int, quick=2, help="passes over the photos (default: 15 or 60)")
add("--head-epochs", type=int, help="of these, for the heads alone (default: 3, with --head 0)")
add("--train-from", choices=PARTS, default="stem", help="the lowest part to train")
add("--batch-size", type=positive_int, quick=8, help="(default: 32, without weights 16)")
add("--optimizer", choices=RATES, help="(default: rmsprop, without weights adam)")
add("--learning-rate", type=positive_float, help="of the body, at first (default: see RATES)")
add("--decay", choices=("cosine", "exponential"), default="cosine", help="how the rate falls")
add("--strategy", choices=STRATEGIES, default="none", help="one device, all GPUs, or many machines")
run = TrainingRun(parser, __file__)
args = run.args
weights = find_weights(args.weights, top=False, quick=args.quick, seed=args.seed)
scratch = weights.stand_in
size = args.image_size or (75 if scratch else 224)
batch_size = args.batch_size or (16 if scratch else 32)
kind = args.optimizer or ("adam" if scratch else "rmsprop")
try:
    share = run.share(batch_size)
    about, splits = read_dataset(args.records)
    classes, training_photos = about["classes"], about["training_photos"]
    train_files, train_count = splits["train"]
    validation_files, validation_count = splits["validation"]
    pool3 = load_classifier(args.head) if args.head else None
    args.model.mkdir(parents=True, exist_ok=True)
except KeyError as error:
    parser.error(f"{args.records} has no {error}: write photos with 01_images_to_tfrecords.py")
except (ValueError, OSError) as error:  # also what the model is found to lack
    parser.error(str(error))
if size < 75:
    parser.error("--image-size: of less than 75 pixels InceptionV3 leaves nothing")
keras.utils.set_random_seed(args.seed)

# %%
# How long, and in which phases
# -----------------------------
# A body that comes with weights has seen 1.2 million photos, a new head none. At first the head's
# gradients are large and wrong, and would spoil what the body knows. So heads are trained alone
# first, then the body with them, from the part ``--train-from`` upwards. With ``--head`` the head
# is one that ``pool3_train/01_retrain.py`` has trained, and the first phase is left out.
#
# Without weights there is nothing to spoil, and everything is trained from the first step.

epoch_steps = max(1, train_count // batch_size)
steps = (args.epochs or (60 if scratch else 15)) * epoch_steps
head_epochs = (0 if scratch or args.head else 3) if args.head_epochs is None else args.head_epochs
head_steps = min(max(0, head_epochs) * epoch_steps, steps)
validate_every = max(1, steps // VALIDATIONS)
trained_parts = PARTS[PARTS.index(args.train_from) :]

# %%
# Photos in an order that follows from seed and step
# --------------------------------------------------
# slim had three objects with queues and threads: ``DatasetDataProvider``, ``tf.train.batch`` and
# ``prefetch_queue``. Today that is one expression, in ``train_batches``. The seed and the number of
# the step decide all that is random, as in ``captcha_multitask/03_train.py``. So a training that
# was killed skips the batches that it had, before anything is decoded, and goes on with those that
# it would have had. Of several workers each decodes its ``share`` of a batch.
#
# In the shuffle buffer photos wait as files, not as pixels. A telephone's file has megabytes, so
# the buffer is bounded in bytes, not in photos.

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/orientation": tf.io.FixedLenFeature([], tf.int64),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}
photo_bytes = sum(Path(file).stat().st_size for file in train_files) / train_count
buffer = max(1, min(train_count, int(BUFFER / photo_bytes)))


def epoch(number: tf.Tensor) -> tf.data.Dataset:
    """All training records once, shuffled."""
    files = tf.random.experimental.stateless_shuffle(train_files, [args.seed, number])
    photos = tf.data.TFRecordDataset(files)
    return photos.shuffle(buffer, seed=number, reshuffle_each_iteration=False)


# %%
# A photo is never the same twice
# -------------------------------
# This is slim's Inception preprocessing. Some part of the photo is cut out and squeezed into a
# square, perhaps mirrored, made lighter or darker, paler or more colourful. TensorFlow's
# ``stateless`` operations draw the random numbers from a seed that they are given: here it is the
# training's seed and the photo's number in the training.
#
# In validation, test and use the network sees the whole photo, squeezed into the square, as in
# ``pool3_train``.


def distort(photo: tuple[tf.Tensor, ...]) -> tf.Tensor:
    """A file, its orientation, its number in the training: float32 [size, size, 3] in [-1, 1]."""
    file, orientation, number = photo
    pixels = decode(file, orientation, 2 * size)  # uint8 [h, w, 3]
    seeds = tf.unstack(tf.random.split(tf.stack([args.seed, number]), 4))
    corner, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(pixels),
        [[[0.0, 0.0, 1.0, 1.0]]],  # the object that may not be lost: the whole photo
        seeds[0],
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(CROP, 1.0),
    )
    image = resize(tf.slice(pixels, corner, extent), size) / 255
    image = tf.image.stateless_random_flip_left_right(image, seeds[1])
    image = tf.image.stateless_random_brightness(image, 32 / 255, seeds[2])
    image = tf.image.stateless_random_saturation(image, 0.5, 1.5, seeds[3])
    return tf.clip_by_value(image, 0, 1) * 2 - 1


def prepare(step: tf.Tensor, photos: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """This worker's share of a batch: images float32 [b, size, size, 3], labels int64 [b]."""
    found = tf.io.parse_example(photos[share], FEATURES)
    numbers = (step * batch_size + tf.range(batch_size, dtype=tf.int64))[share]
    todo = found["image/encoded"], found["image/orientation"], numbers
    images = tf.map_fn(distort, todo, fn_output_signature=tf.TensorSpec([size, size, 3]))
    return images, found["image/class/label"]


def train_batches(first_step: int) -> tf.data.Dataset:
    """The batches from ``first_step`` on, without end."""
    photos = tf.data.Dataset.range(10**9).flat_map(epoch).batch(batch_size)
    photos = photos.skip(first_step).enumerate(first_step)
    return photos.map(prepare, num_parallel_calls=2).prefetch(2)


def view(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A record as validation sees it: its image and its label."""
    found = tf.io.parse_single_example(record, FEATURES)
    pixels = decode(found["image/encoded"], found["image/orientation"], size)
    return scale(resize(pixels, size)), found["image/class/label"]


validation = tf.data.TFRecordDataset(validation_files).map(view, num_parallel_calls=2)
validation = validation.batch(batch_size).prefetch(1)

# %%
# The network, and a head that only helps to train
# ------------------------------------------------
# The gradient reaches the lowest layers through all others. C. Szegedy et al. (2015, arXiv
# 1512.00567) gave it a second, shorter way: an *auxiliary head* with a loss of its own, on the maps
# with which slim's ``Mixed_6e`` ends, Keras's ``mixed7``. It takes part in training only. Its loss
# says nothing to the layers above it, so it is built only if some below it are trained.
#
# Batch normalisation keeps the means and variances that came with the weights. Those of 32 flowers
# would be worse. In Keras a normalisation that is not ``trainable`` uses them as they are. Without
# weights there is nothing to keep.

truncated = keras.initializers.TruncatedNormal  # slim's start for heads
norm = {"momentum": 0.9, "synchronized": run.replicas > 1}
with run.strategy.scope():
    body = backbone(weights, size)
    parts = blocks(body)
    logits = layers.Dense(len(classes), kernel_initializer=truncated(stddev=0.001))
    head = keras.Sequential([layers.Dropout(DROPOUT), logits])
    if pool3:
        head = keras.models.clone_model(pool3.model.layers[-2])  # before the softmax
    network = keras.Model(body.input, head(body.output))
    parts["head"], outputs = [head], [network.output]
    if PARTS.index(args.train_from) <= PARTS.index("mixed7"):
        maps = body.get_layer("mixed7").output  # [b, 17, 17, 768] of 299 pixels
        pool = min(5, maps.shape[1])
        left = (maps.shape[1] - pool) // 3 + 1  # 5 of 17
        auxiliary = [
            layers.AveragePooling2D(pool, 3),  # [b, 5, 5, 768]
            layers.Conv2D(128, 1, use_bias=False),  # [b, 5, 5, 128]
            layers.BatchNormalization(scale=False, **norm),
            layers.ReLU(),
            layers.Conv2D(768, left, use_bias=False, kernel_initializer=truncated(stddev=0.01)),
            layers.BatchNormalization(scale=False, **norm),
            layers.ReLU(),
            layers.Flatten(),  # [b, 768]
            layers.Dense(len(classes), kernel_initializer=truncated(stddev=0.001)),
        ]
        for layer in auxiliary:
            maps = layer(maps)
        parts["head"] += auxiliary
        outputs.append(maps)
    whole = keras.Model(body.input, outputs)
norms = [layer for layer in body.layers if isinstance(layer, layers.BatchNormalization)]
for layer in norms:
    layer.momentum, layer.synchronized = norm.values()
predict = tf.function(lambda images: network(images, training=False))

if pool3:
    if {*classes} != {*pool3.classes}:
        parser.error(f"--head {args.head} knows other classes: {', '.join(pool3.classes[:10])}")
    *others, kernel, bias = pool3.model.layers[-2].get_weights()
    places = [pool3.classes.index(label) for label in classes]
    head.set_weights([*others, kernel[:, places], bias[places]])


def train_only(names: tuple[str, ...]) -> list[keras.Variable]:
    """Make these parts trainable and no others; their variables."""
    for name, some in parts.items():
        for layer in some:
            layer.trainable = name in names and (scratch or layer not in norms)
    return whole.trainable_variables


# %%
# Three losses
# ------------
# **Cross-entropy with smoothed labels.** A network that is asked for a probability of 1 makes its
# logits larger for ever. With a smoothing of ε it is asked for a little less, and for a little of
# each of the K classes:
#
# .. math:: q_k = (1 - \varepsilon)\,[k = y] + \varepsilon / K, \qquad L = -\sum_k q_k \ln p_k
#
# **The auxiliary loss**, the same of the auxiliary head's logits, times 0.4.
#
# **Weight decay**, :math:`\lambda/2 \sum w^2` over all kernels that are trained. As in slim it is a
# part of the loss, so its gradient λw goes through the optimizer like the others.


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Of each photo, float32 [b], for logits [b, classes] and labels int64 [b]."""
    wanted = tf.one_hot(labels, len(classes)) * (1 - SMOOTHING) + SMOOTHING / len(classes)
    return tf.nn.softmax_cross_entropy_with_logits(wanted, logits)


def weight_decay(variables: list[keras.Variable]) -> tf.Tensor:
    """The loss of those among the variables that are kernels."""
    kernels = [variable.value for variable in variables if variable.name == "kernel"]
    return WEIGHT_DECAY * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])


# %%
# The optimizer and its rate
# --------------------------
# RMSprop divides each gradient by a running mean of its size; with momentum, as slim had it:
#
# .. math:: v \leftarrow 0.9\,v + 0.1\,g^2, \qquad
#           m \leftarrow 0.9\,m + \eta\, g / \sqrt{v + \epsilon}, \qquad w \leftarrow w - m
#
# With slim's ε = 1 it divides by hardly more than 1 as long as gradients are small: it is momentum
# with a brake for large gradients. (TensorFlow 1 began with v = 1, Keras begins with 0.) Without
# weights the default is Adam: on a few photos it gets going sooner.
#
# The rate is constant while heads are trained alone. Then it falls to 0 along half a cosine, or by
# 6 % every two epochs, as slim's did. A head from ``pool3_train`` has large weights, which make the
# gradients below it large. It begins with a tenth of the rate: at the whole rate the network forgot
# all that it knew in the first epoch.

variables = train_only((*trained_parts, "head"))
with run.strategy.scope():
    kinds = keras.optimizers
    optimizer = {
        "rmsprop": lambda: kinds.RMSprop(rho=0.9, momentum=0.9, epsilon=1.0),
        "momentum": lambda: kinds.SGD(momentum=0.9),
        "adam": kinds.Adam,
    }[kind]()
    optimizer.build(variables)
    averages = [tf.Variable(variable.value, trainable=False) for variable in variables]


def rate(step: int) -> float:
    """The learning rate of a step."""
    heads, tuning, from_scratch = RATES[kind]
    if step < head_steps:
        return heads
    first = args.learning_rate or (from_scratch if scratch else tuning / (10 if pool3 else 1))
    if args.decay == "exponential":
        return first * 0.94 ** ((step - head_steps) // (2 * epoch_steps))
    return first * (1 + math.cos(math.pi * (step - head_steps) / (steps - head_steps))) / 2


# %%
# A moving average of the weights
# -------------------------------
# The weights after any one step are where the last few batches pushed them. Their moving average is
# quieter, and most often better. It is what is validated, saved and used; the training goes on with
# the weights themselves. After the step t it becomes
#
# .. math:: \bar w \leftarrow d\,\bar w + (1 - d)\,w, \qquad
#           d = \min\left(0.99, \frac{1 + t}{10 + t}\right)
#
# The fraction lets it follow quickly at first, or it would consist of initial weights for long.


def average(step: tf.Tensor) -> None:
    """Take the weights into their average, after the step of this number."""
    step = tf.cast(step, tf.float32)
    decay = tf.minimum(AVERAGE, (1 + step) / (10 + step))
    for mean, variable in zip(averages, variables, strict=True):
        mean.assign(decay * mean + (1 - decay) * variable.value)


def swap() -> None:
    """Exchange the weights and their average."""
    for mean, variable in zip(averages, variables, strict=True):
        value = variable.numpy()
        variable.assign(mean.numpy())
        mean.assign(value)


# %%
# One step
# --------
# Each replica computes its part of the batch's mean loss, and ``apply_gradients`` adds up their
# gradients. The tape watches what is trained in this phase and nothing else. So the layers below
# need no backward pass, which would be two thirds of their work.


def step_of(trained: list[keras.Variable]) -> Any:
    """A function that trains these variables on a batch; the main loss, before the step."""

    def on_one_replica(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in trained])
            logits, *others = tf.nest.flatten(whole(images, training=True))
            main = tf.reduce_sum(cross_entropy(logits, labels)) / batch_size
            loss = main + weight_decay(trained) / run.replicas
            for other in others:
                loss += AUXILIARY * tf.reduce_sum(cross_entropy(other, labels)) / batch_size
        gradients = tape.gradient(loss, [variable.value for variable in trained])
        optimizer.apply_gradients(zip(gradients, trained, strict=True))
        return main

    @tf.function
    def step(number: tf.Tensor, images: Any, labels: Any) -> tf.Tensor:
        parts = run.strategy.run(on_one_replica, args=(images, labels))
        average(number)
        return run.strategy.reduce("SUM", parts, axis=None)

    return step


def evaluate() -> dict[str, float]:
    """Loss and accuracy over all validation photos, each once."""
    pairs = [(predict(images), labels) for images, labels in validation]
    logits, labels = (tf.concat(part, axis=0) for part in zip(*pairs, strict=True))
    right = tf.math.in_top_k(labels, logits, 1).numpy().mean()
    scores = {"loss": tf.reduce_mean(cross_entropy(logits, labels)), "accuracy": right}
    return {name: float(score) for name, score in scores.items()}


# %%
# The training
# ------------
# A checkpoint holds the weights, their average, the optimizer's means and the step. After a kill
# ``run.start`` reads it, and ``train_batches`` begins where it was. The best model is the one with
# the smallest validation loss: with few photos accuracies tie.

tf.config.experimental.enable_op_determinism()
run.start([*whole.variables, *optimizer.variables, *averages])
writer = tf.summary.create_file_writer(str(run.folder / "scores"))
spec = tf.TensorSpec([None, size, size, 3])
run.write_graph("graph", predict.get_concrete_function(spec))
model = whole_model(network, None, size, classes)
told = f"{network.count_params():,} parameters, {size}×{size} pixels, {train_count:,} photos"
print(f"InceptionV3, {told}; {steps:,} steps, {head_steps:,} of them of the heads alone")
losses, step = [], None

for images, labels in train_batches(run.step).take(steps - run.step):
    if run.stopped:
        break
    number = run.step
    if step is None or number == head_steps:  # a phase begins
        step = step_of(train_only(("head",) if number < head_steps else (*trained_parts, "head")))
    optimizer.learning_rate = rate(number)
    losses.append(float(step(tf.constant(number, tf.int64), *run.deal(images, labels))))
    if not math.isfinite(losses[-1]):
        raise SystemExit(f"Step {number}: the loss is no number. Try a smaller --learning-rate")
    run.step += 1
    if run.step % validate_every == 0 or run.step == steps:
        swap()
        scores = {"train_loss": float(np.mean(losses)), **evaluate()}
        if run.note(scores):  # the smallest validation loss so far
            facts = {"classes": classes, "size": size, "weights": weights.source}
            facts |= {"step": run.step, "validation": scores, "records": about["source"]}
            facts |= {"training_photos": training_photos}
            save_classifier(run.path("model") / "model.keras", model, facts)
        swap()
        with writer.as_default(run.step):
            tf.summary.scalar("learning_rate", rate(number))
            for name, value in scores.items():
                tf.summary.scalar(name, value)
        told = f"loss {scores['loss']:.3f}, {scores['accuracy']:.1%} right"
        speed = f"step {run.step:,} after {run.train_seconds:,.0f} s"
        print(f"{speed}: loss {scores['train_loss']:.3f}, validation: {told}", flush=True)
        losses = []
        run.save()
run.end()

# %%
# The result
# ----------
# The best model is loaded from its files, as ``03_eval_image_classifier.py`` will load it, and sees
# the validation photos once more, now from their files. It was chosen on these photos, so its
# accuracy there is a little flattered. The test photos had no part in any choice.

trained, best = load_classifier(run.path("model")), run.best
records = tf.data.TFRecordDataset(validation_files).batch(validation_count)
found = tf.io.parse_example(next(iter(records)), FEATURES)
answers = dict(trained.probabilities(found["image/encoded"].numpy()))
right = [answers[i].argmax() == label for i, label in enumerate(found["image/class/label"].numpy())]
assert abs(np.mean(right) - best["accuracy"]) < 1.5 / validation_count
if run.worker == 0:
    save_classifier(args.model / "model.keras", trained.model, trained.about)
print(f"The best model, of step {best['step']:,}: {readable(args.model)}")
if not scratch:
    inception_v3.warn_unpublished(weights)

rows = {name: [row[name] for row in run.history] for name in best}
loss = {"training": rows["train_loss"], "validation": rows["loss"]}
panels = {"Loss, labels smoothed": loss, "Share right": {"validation": rows["accuracy"]}}
run.save_figure(curves(panels, xlabel="step", x=rows["step"]), "curves")
pictures = []
for file, orientation in zip(found["image/encoded"][:3], found["image/orientation"], strict=False):
    pictures.append(scale(resize(decode(file, orientation), size)))
    numbers = len(pictures) + tf.range(5, dtype=tf.int64)
    pictures += [distort((file, orientation, number)) for number in numbers]
pictures = np.clip((np.stack(pictures) + 1) / 2, 0, 1)
titles = ["as in use", *["in training"] * 5] * 3
run.save_figure(picture_grid(pictures, titles, columns=6), "distorted")
run.finish(
    {f"validation_{name}": best[name] for name in ("accuracy", "loss")} | {"steps": run.step},
    data={"source": about["source"], "stand_in": about["stand_in"]},
    train_seconds=run.train_seconds,
    parameters=network.count_params(),
    weights=weights.source,
    history=run.history,
)
