"""Train a network that reads a captcha, all positions at once
===========================================================

You learn: multi-task learning, one network with a head for each character and one loss; how
TensorFlow 1's queue runners became ``tf.data``; and how to write a long training that can be killed
at any moment and ends with the same weights.

Run, after ``02_images_to_tfrecords.py``::

    python captcha_multitask/03_train.py

You should see: at the end 99.82 % of the validation captchas read as a whole, and the best model in
``models/captcha/compact``. ``curves.png`` shows the training, ``misread.png`` what is misread.

Time: 5 minutes on two CPU cores. After Ctrl-C or a kill it goes on by the same command with
``--run-dir`` and the folder that the first line names.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from nets import nets_factory

from data.captchas import FOLDER, decode_classes, decode_pngs
from models import captcha
from utils.figures import curves, picture_grid
from utils.run import CourseParser, positive_int, readable
from utils.tfrecord import read_dataset
from utils.training import STRATEGIES, TrainingRun, warm_up_cosine

SHIFT = 4  # pixels by which a training image is moved, at most
SMOOTHING = 0.1  # of the labels
BUFFER = 10_000  # records that wait to be drawn from
VALIDATIONS = 12  # in a whole training
PATIENCE = 6  # validations without a smaller loss, after which the training stops

parser = CourseParser(__doc__)
add, quick = parser.add_argument, FOLDER / "quick"
add("--records", type=Path, metavar="DIR", default=FOLDER / "records", quick=quick / "records")
add("--net", choices=nets_factory.NETS, default="compact", help="the network")
add("--model", type=Path, metavar="DIR", help="for the best model (default: models/captcha/NET)")
add("--steps", type=positive_int, quick=120, help="(default: four passes, but at least 1,500)")
add("--init", type=Path, metavar="DIR", help="begin with the weights of this trained model")
add("--strategy", choices=STRATEGIES, default="none", help="one device, all GPUs, or many machines")
run = TrainingRun(parser, __file__)
args = run.args
model_folder = args.model or captcha.FOLDER / f"{args.net}{'-quick' * args.quick}"
try:
    share = run.share(batch_size := nets_factory.NETS[args.net].batch_size)
    about, splits = read_dataset(args.records)
    alphabet, length = about["alphabet"], about["length"]
    height, width = about["height"], about["width"]
    (train_files, train_count), (validation_files, _) = splits["train"], splits["validation"]
    start = captcha.load_recogniser(args.init) if args.init else None
    model_folder.mkdir(parents=True, exist_ok=True)
except (ValueError, OSError) as error:
    parser.error(str(error))
except KeyError as error:
    parser.error(f"{args.records} has no {error}: write captchas with 02_images_to_tfrecords.py")
steps = args.steps or max(1_500, 4 * train_count // batch_size)
validate_every = max(1, steps // VALIDATIONS)
keras.utils.set_random_seed(args.seed)

# %%
# From queue runners ...
# ----------------------
# TensorFlow 1 fed a network with threads that fill queues inside the graph. One queue holds the
# names of the files, in random order. A reader takes records from the file whose turn it is. Each
# record is decoded and goes into a second queue, from which ``shuffle_batch`` draws a batch at
# random. ``min_after_dequeue`` says how many must stay in that queue: the more, the better the
# images are mixed. ``capacity`` is the most it may hold, and so how far the threads may run ahead.
# A ``Coordinator`` stops the threads, and the end of the data arrives as an exception. This code
# still runs. It reads the validation records once.

FEATURES = {"image": tf.io.FixedLenFeature([], tf.string)}
FEATURES |= {"classes": tf.io.FixedLenFeature([length], tf.int64)}
v1 = tf.compat.v1
v1.logging.set_verbosity(v1.logging.ERROR)  # each of these functions says that it is deprecated
then = []
with tf.Graph().as_default(), v1.Session() as session:
    names = v1.train.string_input_producer(validation_files, num_epochs=1)
    _, record = v1.TFRecordReader().read(names)
    example = tf.io.parse_single_example(record, FEATURES)
    pixels = tf.reshape(tf.io.decode_png(example["image"], 1), [height, width, 1])
    queue = {"capacity": 2_000, "min_after_dequeue": 1_000, "allow_smaller_final_batch": True}
    batch = v1.train.shuffle_batch([pixels, example["classes"]], batch_size=50, **queue)
    session.run(v1.local_variables_initializer())  # the count of epochs
    coordinator = v1.train.Coordinator()
    threads = v1.train.start_queue_runners(session, coordinator)
    try:
        while not coordinator.should_stop():
            then += zip(*session.run(batch), strict=True)
    except tf.errors.OutOfRangeError:
        coordinator.request_stop()
    coordinator.join(threads)

# %%
# ... to tf.data
# --------------
# Today each of these steps is a method of a ``Dataset``: ``shuffle`` with a buffer in place of
# ``min_after_dequeue``, ``batch``, ``map`` to decode, ``prefetch`` in place of the queue of
# batches. Iterating starts the threads, and an exception reaches the loop.


def read(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Records, string [b], as images uint8 [b, height, width, 1] and classes int64 [b, length]."""
    examples = tf.io.parse_example(records, FEATURES)
    return decode_pngs(examples["image"], height, width), examples["classes"]


validation = tf.data.TFRecordDataset(validation_files).batch(250).map(read).prefetch(2)
now = [*validation.unbatch().as_numpy_iterator()]
old, new = (sorted(i.tobytes() + c.tobytes() for i, c in pairs) for pairs in (then, now))
assert old == new
print(f"{len(now):,} validation images: queue runners and tf.data give the same ones")

# %%
# The training batches
# --------------------
# A training of hours has to survive a kill. It then goes on from a checkpoint, and the batches have
# to go on too. Nothing of the pipeline is saved for that: **the seed and the number of the step
# decide everything that is random**. The order of the records depends on the seed and the epoch.
# ``skip`` passes over the batches of the steps that are done, before anything is decoded.
#
# Each training image is moved by up to four pixels, so that the network never sees it twice at the
# same place. Here, too, the random numbers come from the seed and the step: TensorFlow's
# ``stateless`` functions have no hidden state. With several workers each decodes only its ``share``
# of the batch.


def epoch(number: tf.Tensor) -> tf.data.Dataset:
    """All training records once, shuffled."""
    files = tf.random.experimental.stateless_shuffle(train_files, [args.seed, number])
    records = tf.data.TFRecordDataset(files)
    return records.shuffle(BUFFER, seed=number, reshuffle_each_iteration=False)


def move(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Images uint8 [b, height, width, 1], each moved; what comes in at a border repeats it."""
    moves = tf.random.stateless_uniform(
        [batch_size, 2, 1], [args.seed, step], -SHIFT, SHIFT + 1, tf.int32
    )[share]
    rows = tf.clip_by_value(tf.range(height) + moves[:, 0], 0, height - 1)  # [b, height]
    columns = tf.clip_by_value(tf.range(width) + moves[:, 1], 0, width - 1)  # [b, width]
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def prepare(step: tf.Tensor, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """This worker's images and classes of a batch of records."""
    images, classes = read(records[share])
    return move(images, step), classes


def train_batches(first_step: int) -> tf.data.Dataset:
    """The batches from ``first_step`` on, without end."""
    records = tf.data.Dataset.range(10**9).flat_map(epoch).batch(batch_size)
    records = records.skip(first_step).enumerate(first_step)
    return records.map(prepare, num_parallel_calls=2).prefetch(2)


# %%
# One network, four heads, one loss
# ---------------------------------
# Up to its heads the network is shared. Each head answers one question, such as "what is the second
# character?", by logits for all characters of the alphabet. TensorFlow 1 programs wrote one loss
# for each head and added them up. ``nets/`` has two networks and says what is in them.

with run.strategy.scope():
    several = {"synchronized": True} if args.net == "compact" and run.replicas > 1 else {}
    network = nets_factory.build(args.net, length, len(alphabet), height, width, **several)
predict = tf.function(lambda images: network(images, training=False))
print(f"{args.net}: {network.count_params():,} parameters, {steps:,} steps of {batch_size} images")

crossentropy = tf.nn.sparse_softmax_cross_entropy_with_logits
images, classes = next(iter(validation))
logits = predict(images)  # [b, 4, 10]
labels_of_heads = tf.unstack(classes, axis=1)  # four labels for each image: 4 × [b]
pairs = zip(labels_of_heads, tf.unstack(logits, axis=1), strict=True)
losses_of_heads = [tf.reduce_mean(crossentropy(*pair)) for pair in pairs]
print("Losses of the heads, untrained:", *(f"{loss:.2f}" for loss in losses_of_heads))

# %%
# The same in one line. The loss of an image is the sum over the positions k:
#
# .. math:: L = \sum_k -\ln p_k(y_k)
#
# The weights of a head get a gradient from their own term only, the shared layers from all terms. A
# network that knows nothing gives each of ten digits 1/10, so its loss is 4 ln 10 = 9.21.
#
# In training the labels are *smoothed*: the true character gets a probability below 1, the others
# share the rest (C. Szegedy et al., 2016, arXiv 1512.00567). So the network isn't driven to be ever
# surer of images that it has seen often, and with few images it reads others better.


def losses_of(logits: tf.Tensor, classes: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """The loss of each image [b], for logits [b, positions, characters]."""
    truth = (1 - smoothing) * tf.one_hot(classes, len(alphabet)) + smoothing / len(alphabet)
    return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(truth, logits), axis=1)


assert np.isclose(tf.add_n(losses_of_heads), tf.reduce_mean(losses_of(logits, classes)))

# %%
# ``--init`` takes over the weights of another recogniser, layer by layer, where name and shape are
# the same. The layers that tell characters apart are taken over character by character, so the
# other alphabet may have other characters, too.

if start:
    known = [c for c in alphabet if c in start.alphabet]
    here, there = ([text.index(c) for c in known] for text in (alphabet, start.alphabet))
    taken, fresh = [], []
    for layer in filter(lambda layer: layer.weights, network.layers):
        try:
            weights = start.model.get_layer(layer.name).get_weights()
            if isinstance(layer, keras.layers.Dense) and layer.units == len(alphabet):
                of_start, weights = weights, layer.get_weights()
                for new, trained in zip(weights, of_start, strict=True):
                    new[..., here] = trained[..., there]
            layer.set_weights(weights)
            taken.append(layer.name)
        except ValueError:  # no such layer, or another shape
            fresh.append(layer.name)
    told = f"{len(taken)} layers, {len(known)} of {len(alphabet)} characters"
    print(f"From {readable(args.init)}: {told}; new: {', '.join(fresh) or 'no layer'}")

# %%
# The optimizer and its learning rate
# -----------------------------------
# TensorFlow 1 programs for this task used Adam with a rate that drops every 2,000 steps:
# ``tf.train.exponential_decay(0.001, global_step, 2000, 0.5, staircase=True)``. Today it is
# ``keras.optimizers.schedules.ExponentialDecay`` with the same arguments. A staircase has to be
# fitted to the length of the training. The schedule here does that by itself: a short warm-up,
# then half a cosine that reaches 0 with the last step. The last steps are very small. They average
# out the noise of the batches, and the network gains its last tenths of a percent there.

with run.strategy.scope():
    rate = warm_up_cosine(nets_factory.NETS[args.net].learning_rate, steps, warm_up=0.05, start=0)
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(network.trainable_variables)

# %%
# One step
# --------
# ``strategy.run`` makes the usual custom step work for several devices: each replica computes the
# gradient for its part of the batch, and ``apply_gradients`` adds them up. So each divides its sum
# of losses by the size of the *whole* batch.


@tf.function
def train_step(images: Any, classes: Any) -> tf.Tensor:
    """Train on one batch; its mean loss, before the step and with dropout on."""

    def on_one_replica(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.reduce_sum(losses_of(logits, classes, SMOOTHING)) / batch_size
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return loss

    parts = run.strategy.run(on_one_replica, args=(images, classes))
    return run.strategy.reduce("SUM", parts, axis=None)


# %%
# Whole captchas
# --------------
# A captcha is read if *all* its characters are right. That is the accuracy to report: with 99 % of
# the characters right, only about 96 % of the captchas are. It is taken over all validation images,
# with the weights as they are and dropout off. The best model is the one with the smallest *loss*,
# with smoothed labels as in training. The accuracy would be a poor judge: with few images it ties.


def evaluate() -> dict[str, float]:
    """Loss and accuracies over all validation images."""
    pairs = [(predict(images), classes) for images, classes in validation]
    logits, classes = (tf.concat(part, axis=0) for part in zip(*pairs, strict=True))
    right = logits.numpy().argmax(axis=-1) == classes.numpy()  # [n, positions]
    scores = {"loss": tf.reduce_mean(losses_of(logits, classes, SMOOTHING))}
    scores |= {"whole_captcha_accuracy": right.all(axis=1).mean()}
    scores |= {"character_accuracy": right.mean()}
    scores |= {f"position_{k + 1}_accuracy": a for k, a in enumerate(right.mean(axis=0))}
    return {name: float(score) for name, score in scores.items()}


# %%
# The training
# ------------
# A checkpoint holds the weights, Adam's averages and the step. After a kill ``run.start`` reads it,
# and ``train_batches`` begins where it was. The training stops early when six validations in a row
# brought no smaller loss.

tf.config.experimental.enable_op_determinism()
run.start([*network.variables, *optimizer.variables])
writer = tf.summary.create_file_writer(str(run.folder / "scores"))
spec = tf.TensorSpec([None, height, width, 1], tf.uint8)
run.write_graph("graph", predict.get_concrete_function(spec))
probabilities = keras.Model(network.input, keras.layers.Softmax()(network.output))
losses = []

for images, classes in train_batches(run.step).take(steps - run.step):
    if run.stopped or any(row is run.best for row in run.history[:-PATIENCE]):
        break
    losses.append(float(train_step(*run.deal(images, classes))))
    run.step += 1
    if run.step % validate_every == 0 or run.step == steps:
        scores = {"train_loss": float(np.mean(losses)), **evaluate()}
        if run.note(scores):  # the smallest validation loss so far
            facts = {"net": args.net, "step": run.step, "validation": scores}
            captcha.save_recogniser(run.path("model"), probabilities, about | facts)
        with writer.as_default(run.step):
            tf.summary.scalar("learning_rate", optimizer.learning_rate)
            for name, value in scores.items():
                tf.summary.scalar(name, value)
        read_whole = f"whole captchas {scores['whole_captcha_accuracy']:.2%}"
        told = f"loss {np.mean(losses):.4f}, validation: loss {scores['loss']:.4f}, {read_whole}"
        print(f"step {run.step:,} after {run.train_seconds:,.0f} s: {told}", flush=True)
        losses = []
        run.save()
run.end()

# %%
# The result
# ----------
# The best model is loaded from its files and reads the validation images once more. It was chosen
# on these images, so its accuracy is a little flattered: ``04_test.py`` has others.

trained = captcha.load_recogniser(run.path("model"))
images, classes = (np.stack(part) for part in zip(*now, strict=True))  # all validation images
texts = [decode_classes(row, alphabet) for row in classes]
answers, _ = trained.read(images)
wrong = [i for i, (text, answer) in enumerate(zip(texts, answers, strict=True)) if text != answer]
best = run.best
assert abs(best["whole_captcha_accuracy"] - (1 - len(wrong) / len(texts))) < 1e-3
if run.worker == 0:
    captcha.save_recogniser(model_folder, trained.model, trained.about)
print(f"The best model, of step {best['step']:,}: {readable(model_folder)}")

rows = {name: [row[name] for row in run.history] for name in best}
missed = {"validation": [max(1 - a, 1e-4) for a in rows["whole_captcha_accuracy"]]}
loss = {"training": rows["train_loss"], "validation": rows["loss"]}
panels = {"Loss, sum of the heads": loss, "Share of captchas misread": missed}
run.save_figure(curves(panels, xlabel="step", log=True, x=rows["step"]), "curves")
shown = wrong[:24] or range(min(24, len(texts)))
titles = [f"{texts[i]} read as {answers[i]}" for i in shown]
figure = picture_grid(images[shown, ..., 0], titles, columns=6, cmap="gray")
run.save_figure(figure, "misread")
names = ("whole_captcha_accuracy", "character_accuracy", "loss")
run.finish(
    {f"validation_{name}": best[name] for name in names} | {"steps": run.step},
    data={"source": readable(args.records), "stand_in": False},
    train_seconds=run.train_seconds,
    parameters=network.count_params(),
    history=run.history,
)
