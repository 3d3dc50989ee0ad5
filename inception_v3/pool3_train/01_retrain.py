"""A classifier for your own photos: InceptionV3 with a new last layer
===================================================================

You learn: transfer learning, with a network that saw a million photos as a measuring instrument;
bottlenecks, its features computed once and kept; softmax regression and its gradient by hand; what
a test must be so that its number can be believed; and how one training becomes a graph for
TensorFlow 1 and a Keras model that give the same answers.

Run, with a folder that holds a folder of photos for each class::

    python inception_v3/pool3_train/01_retrain.py --image-dir my_photos

You should see: the photos looked over and split, their features computed, a table of the classes,
the mean accuracy of ten splits, and the figures ``curves.png``, ``confusion.png`` and
``mistakes.png``. The trained classifier is in ``models/pool3``, ready for ``02_test_images.py``.

Time: 1 minute for 600 photos on two CPU cores, of which the network takes 20 s. A second run finds
the features.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.progress import track
from sklearn.model_selection import StratifiedGroupKFold
from tensorflow.python.framework import convert_to_constants, op_def_registry

from data import photos as folders
from data.bottlenecks import FEATURES, Bottlenecks, read_text, write_text
from data.images import decode, label_fonts, orientation
from data.photos import Photo, PhotosError, read
from models import classifier, inception_v3
from utils.figures import curves
from utils.run import (
    ROOT,
    CourseParser,
    Run,
    positive_float,
    positive_int,
    readable,
    sha256,
    written_whole,
)

BATCH_SIZE = 16  # photos that go through InceptionV3 together
HIDDEN = 256  # units between the features and the logits
SMOOTHING = 0.1  # of the labels
PATIENCE = 8  # validations without a smaller loss, after which the training stops
SETS = ("train", "validation", "test")

# %%
# Flags
# -----
# Those of Google's ``retrain.py`` keep their names; each may be written with dashes, too. A few
# of them do nothing useful any more. They are accepted, and the script says why.

IDLE = {
    "architecture": "the network is InceptionV3",
    "validation_batch_size": "all validation photos are scored",
    "test_batch_size": "all test photos are scored",
    "random_crop": "slim_train/02_train_image_classifier.py distorts photos anew in each step",
    "intermediate_output_graphs_dir": "a training of ten seconds needs no intermediate graphs",
}
IDLE["random_scale"] = IDLE["random_brightness"] = IDLE["random_crop"]
IDLE["intermediate_store_frequency"] = IDLE["intermediate_output_graphs_dir"]
parser = CourseParser(__doc__)


def add(name: str, **settings: object) -> None:
    """A flag by its name with underscores and with dashes."""
    parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), **settings)


home, quick = ROOT / "models" / "pool3", ROOT / "models" / "pool3" / "quick"
file, percent = {"type": Path, "metavar": "PATH"}, {"type": positive_float, "default": 10.0}
folders.add_image_dir(parser)
inception_v3.add_weights_flag(parser)
add("bottleneck_dir", **file, default=ROOT / "data" / "bottlenecks", help="where features are kept")
add("summaries_dir", **file, help="for TensorBoard (default: the run's folder)")
add("output_graph", **file, default=home / "output_graph.pb", quick=quick / "output_graph.pb")
add("output_labels", **file, help="(default: output_labels.txt beside the graph)")
add("final_tensor_name", default="final_result", help="the graph's output")
add("model_dir", **file, help="use Google's frozen graph in this folder, not Keras's InceptionV3")
add("testing_percentage", **percent, help="of the photos")
add("validation_percentage", **percent, help="of the photos")
add("how_many_training_steps", type=positive_int, default=1500, quick=200)
add("learning_rate", type=positive_float, default=0.01, help="of the first step")
add("train_batch_size", type=positive_int, default=100, help="photos in a step")
add("eval_step_interval", type=positive_int, default=50, help="steps from validation to validation")
add("print_misclassified_test_images", action="store_true")
add("flip_left_right", action="store_true", help="train on the mirrored photos as well")
for name, reason in IDLE.items():
    add(name, help=f"does nothing: {reason}")
add("image_size", type=positive_int, default=299, quick=139, help="pixels that the network sees")
add("class_weights", choices=("none", "balanced"), default="none", help="balanced: all alike")
add("splits", type=positive_int, default=10, quick=3, help="splits to measure with, 1 for none")
add("write_text_bottlenecks", action="store_true", help="as retrain.py wrote them")
add("keep_near_copies", action="store_true", help="don't keep photos together that look alike")
run = Run(parser, __file__)
args = run.args
for name in IDLE:
    if getattr(args, name) is not None:
        print(f"--{name} does nothing: {IDLE[name]}.")
if not re.fullmatch(r"[A-Za-z0-9.][\w.\\/>-]*", args.final_tensor_name, re.ASCII):
    parser.error(f"--final_tensor_name: TensorFlow takes no name {args.final_tensor_name!r}")
if args.model_dir and args.flip_left_right:
    parser.error("--flip_left_right: Google's graph takes files, which can't be mirrored")
if args.image_size < 75:
    parser.error("--image_size: InceptionV3 needs at least 75 pixels")
labels_path = args.output_labels or args.output_graph.with_name("output_labels.txt")
model_path = args.output_graph.with_name("output_model.keras")
keras.utils.set_random_seed(args.seed)
tf.config.experimental.enable_op_determinism()
label_fonts()

# %%
# The photos
# ----------
# Every file is decoded once, so that nothing fails an hour later. Then each photo goes into one of
# three sets: to train on, to choose on (validation), and for the test. A hash of its content
# decides which. So no new name or folder can move a photo from the training to the test, where it
# would be recognised rather than classified. Photos that look alike stay together.

try:
    for folder in (args.bottleneck_dir, args.output_graph.parent, labels_path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    folder, data = folders.find_photos(args.image_dir, args.quick)
    scan = folders.scan(folder, cache=args.bottleneck_dir / "scan.json", per_class=args.per_class)
    folders.print_report(scan)
    parts = folders.split(
        scan.photos,
        args.validation_percentage,
        args.testing_percentage,
        memory=args.bottleneck_dir / "split.json",
        keep_near_copies=args.keep_near_copies,
    )
except (PhotosError, OSError) as error:
    parser.error(str(error))
classes = scan.classes
folders.print_split(parts, classes)
photos = [photo for name in SETS for photo in parts[name]]
labels = np.array([classes.index(photo.label) for photo in photos])  # [n]
ends = np.cumsum([len(parts[name]) for name in SETS])
train, validation, test = np.split(np.arange(len(photos)), ends[:-1])  # their places

# %%
# The network, up to pool3
# ------------------------
# InceptionV3 turns 268,203 numbers (299×299 pixels in three colours) into 2,048, called *pool3*
# after the layer. Only then does it decide on one of ImageNet's 1,000 classes, by one matrix. The
# 2,048 features say what is to be seen: textures, petals, eyes, wheels. They do so for classes that
# ImageNet never had, too. So we train only the matrix anew (J. Donahue et al., *DeCAF*, 2013, arXiv
# 1310.1531).
#
# A pipeline of tf.data reads, decodes and resizes the next photos in threads while the network is
# busy. A telephone's photo is unpacked at a fraction of its size, then turned upright.


def images_of(photos: Sequence[Photo], mirrored: bool = False) -> tf.data.Dataset:
    """Photos as the network wants them, in batches float32 [b, size, size, 3] in [-1, 1]."""

    def files() -> Iterator[tuple[bytes, int]]:
        for photo in photos:
            content = read(photo, turned=True)
            yield content, orientation(content)

    def prepare(content: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        pixels = decode(content, orientation, shorter=args.image_size)
        image = inception_v3.resize(pixels, args.image_size)
        return inception_v3.scale(image[:, ::-1] if mirrored else image)

    signature = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)
    dataset = tf.data.Dataset.from_generator(files, output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False  # it only delays the end
    images = dataset.map(prepare, num_parallel_calls=os.cpu_count()).batch(BATCH_SIZE)
    return images.prefetch(2).with_options(options)


# %%
# Without trained weights the filters are random. Then the batch normalisation at least has to fit:
# it learns each layer's mean and variance from training photos, in one pass. Random filters tell
# simple shapes apart well above chance. They show what training adds.
#
# ``--model_dir`` takes the network as Google froze it in 2015, in TensorFlow 1's way: a session, a
# name to feed and a name to fetch. It decodes a file by itself, one at a time.

if args.model_dir:
    contents, pool3 = "DecodeJpeg/contents", "pool_3/_reshape"
    path = args.model_dir.expanduser() / inception_v3.GRAPH_DEF
    google = inception_v3.read_frozen(path, (contents, pool3), "--model_dir")
    session = tf.compat.v1.Session(graph=google)
    key, source, untrained = f"google-{sha256(path)[:12]}", f"Google's {path.name}", False
else:
    weights = inception_v3.find_weights(args.weights, False, args.quick, args.seed)
    key, source = f"{weights.key}-{args.image_size}", weights.source
    if untrained := weights.stand_in:
        some = np.random.default_rng(args.seed).permutation(train)[:320]
        some = some[: max(BATCH_SIZE, len(some) // BATCH_SIZE * BATCH_SIZE)]  # whole batches
        key += f"-{np.bitwise_xor.reduce([int(photos[i].digest[:8], 16) for i in some]):08x}"
        source = "random filters, calibrated on the photos"
    calibrate = images_of([photos[i] for i in some]) if untrained else None
    network = inception_v3.backbone(weights, args.image_size, calibrate)
    apply = tf.function(lambda images: network(images, training=False), reduce_retracing=True)


def features_of(photos: Sequence[Photo], mirrored: bool) -> Iterator[np.ndarray]:
    """The features of photos, in batches float32 [b, 2048]."""
    if args.model_dir:
        for photo in photos:
            yield session.run(f"{pool3}:0", {f"{contents}:0": read(photo)})
    else:
        for images in images_of(photos, mirrored):
            yield apply(images).numpy()


# %%
# Bottlenecks
# -----------
# The network stays as it is, so each photo has to go through it only once. What comes out, its
# *bottleneck*, is kept. ``retrain.py`` wrote a text file for each. Such files are read here, too,
# if they are of this network: the first of them is computed again and compared.


def bottlenecks_of(photos: Sequence[Photo], mirrored: bool = False) -> np.ndarray:
    """The features of photos, float32 [n, 2048], kept ones or new ones."""
    kept = Bottlenecks(args.bottleneck_dir, key + "-mirrored" * mirrored)
    missing = [photo for photo in photos if photo.digest not in kept.rows]
    texts = {} if mirrored else {p: read_text(args.bottleneck_dir, p) for p in missing}
    if texts := {photo: row for photo, row in texts.items() if row is not None}:
        first, *_ = texts
        if np.corrcoef(texts[first], next(features_of([first], False))[0])[0, 1] > 0.99:
            kept.add([*texts], np.stack([*texts.values()]))
            missing = [photo for photo in missing if photo not in texts]
            print(f"{len(texts):,} bottlenecks from text files")
        else:
            print(f"{len(texts):,} text files are of another network: not used")
    done = 0
    try:
        steps = -(-len(missing) // (1 if args.model_dir else BATCH_SIZE))
        for rows in track(features_of(missing, mirrored), "Features", steps, disable=not missing):
            kept.add(missing[done : done + len(rows)], rows)
            done += len(rows)
        kept.save()
    except (tf.errors.OpError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(f"Stopped at {missing[done].path} or soon after: {reason}") from None
    finally:  # also after Ctrl-C: the next run goes on from here
        with suppress(OSError):
            kept.save()
    print(f"Bottlenecks: {len(photos) - len(missing):,} were there, {done:,} computed")
    return np.stack([kept.rows[photo.digest] for photo in photos])


features = bottlenecks_of(photos)  # [n, 2048]
if args.write_text_bottlenecks:
    for photo, row in zip(photos, features, strict=True):
        write_text(args.bottleneck_dir, photo, row)
mirrored = bottlenecks_of(photos, mirrored=True) if args.flip_left_right else None
if untrained:  # all photos have nearly the same features: only the differences tell something
    spread = 3 * features[train].std(axis=0) + 1e-6
    centre = keras.layers.Normalization(mean=features[train].mean(axis=0), variance=spread**2)
    features = centre(features).numpy()
    mirrored = centre(mirrored).numpy() if args.flip_left_right else None

# %%
# Softmax regression, and its gradient by hand
# --------------------------------------------
# The smallest head has a weight for each feature and class, W [2048, classes], and a bias b. For
# features x it gives the probabilities :math:`p = \operatorname{softmax}(x W + b)`. The loss of n
# photos is the mean cross-entropy :math:`L = -\frac{1}{n} \sum_i \ln p_{i, y_i}`. The derivatives
# of logarithm and softmax cancel each other but for a difference. With all x as rows of X, and the
# true classes y as rows of zeros with one 1:
#
# .. math:: \frac{\partial L}{\partial W} = \frac{1}{n} X^\top (p - y),
#           \qquad \frac{\partial L}{\partial b} = \frac{1}{n} \sum_i (p_i - y_i)
#
# This is all that ``retrain.py`` trained: plain gradient descent on batches of 100.

W, b = np.zeros((FEATURES, len(classes)), np.float32), np.zeros(len(classes), np.float32)
one_hot = np.eye(len(classes), dtype=np.float32)[labels]  # [n, classes]
dice = np.random.default_rng(args.seed)
for _ in range(args.how_many_training_steps):
    batch = dice.choice(train, args.train_batch_size)
    x, y = features[batch], one_hot[batch]
    powers = np.exp(x @ W + b - (x @ W + b).max(axis=1, keepdims=True))
    p = powers / powers.sum(axis=1, keepdims=True)  # [100, classes]
    dW, db = x.T @ (p - y) / len(x), (p - y).mean(axis=0)
    W, b = W - args.learning_rate * dW, b - args.learning_rate * db

kernel, bias = tf.Variable(W + args.learning_rate * dW), tf.Variable(b + args.learning_rate * db)
with tf.GradientTape() as tape:
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, x @ kernel + bias))
assert np.allclose(dW, tape.gradient(loss, kernel), atol=1e-5)  # TensorFlow finds the same
by_hand = ((features[validation] @ W + b).argmax(axis=1) == labels[validation]).mean()
print(f"Softmax regression by hand: {by_hand:.1%} of the validation photos right")

# %%
# A better head
# -------------
# 2,048 features of a few hundred photos are easily learned by heart. Four things help. A layer of
# 256 units bends the borders between the classes, with half of the units switched off at random in
# each step (dropout: G. Hinton et al., 2012, arXiv 1207.0580). The labels are *smoothed*: a tenth
# of the truth is spread over all classes, so the head isn't driven to be ever surer. The learning
# rate falls to zero along a cosine. And the weights of the smallest *validation* loss are kept, not
# the last ones.
#
# Where classes differ in size, ``--class_weights balanced`` gives each photo a weight, so that all
# classes have the same sum. The validation loss, which chooses the step, is weighted alike.


def train_head(train: np.ndarray, validation: np.ndarray, *callbacks: object) -> tuple:
    """A head, features [b, 2048] to logits [b, classes], trained on the photos at the places
    ``train``; the history of its training; and the number of the validation that was kept."""
    keras.utils.set_random_seed(args.seed)
    head = keras.Sequential(
        [
            keras.Input((FEATURES,), name="pool3"),
            keras.layers.Dense(HIDDEN, "relu", kernel_initializer="he_normal", name="hidden"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(len(classes), kernel_initializer="zeros", name="logits"),
        ]
    )
    steps, interval = args.how_many_training_steps, args.eval_step_interval
    rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)
    head.compile(
        keras.optimizers.SGD(rate, momentum=0.9, weight_decay=0.003),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SMOOTHING),
        weighted_metrics=["accuracy"],
    )
    weights = np.ones(len(labels), np.float32)
    if args.class_weights == "balanced":
        counts = np.bincount(labels[train], minlength=len(classes))
        weights = (len(train) / len(classes) / counts)[labels].astype(np.float32)
    rows, places = features[train], train
    if mirrored is not None:
        rows, places = np.concatenate([rows, mirrored[train]]), np.concatenate([train, train])
    truth = keras.ops.one_hot(labels, len(classes)).numpy()  # [n, classes]
    examples = tf.data.Dataset.from_tensor_slices((rows, truth[places], weights[places]))
    stop = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    history = head.fit(
        examples.shuffle(len(rows), args.seed).repeat().batch(args.train_batch_size).prefetch(2),
        steps_per_epoch=min(interval, steps),
        epochs=max(1, steps // interval),
        validation_data=tf.data.Dataset.from_tensors(
            (features[validation], truth[validation], weights[validation])
        ),
        callbacks=[stop, *callbacks],
        shuffle=False,  # by Keras: the pipeline does it
        verbose=0,
    ).history
    return head, history, stop.best_epoch


logs = (args.summaries_dir or run.folder).resolve()  # for TensorBoard
board = keras.callbacks.TensorBoard(logs, histogram_freq=1, write_graph=False)
head, history, best = train_head(train, validation, board)
steps = (np.arange(len(history["loss"])) + 1) * args.eval_step_interval
panels = {
    "Cross-entropy": {"training": history["loss"], "validation": history["val_loss"]},
    "Accuracy": {"training": history["accuracy"], "validation": history["val_accuracy"]},
}
figure = curves(panels, xlabel="step", x=steps)
for axes in figure.axes:
    axes.axvline(steps[best], color="grey", linestyle=":")  # the weights that are kept
run.save_figure(figure, "curves")

# %%
# The test, and how much luck is in it
# ------------------------------------
# The test photos had no part in anything: not in the weights, not in the choice of the step. They
# are scored once, all of them. Still, 52 test photos are a small sample, and another split might
# give five points more or less. Training the head takes seconds. So we do it for ten splits: each
# photo is in the test of one of them, photos that look alike in the same one. The mean is what this
# way of training is worth. The spread between the splits is the luck in any one of them. Ten seeds
# on *one* split would tell neither, as all of them have the same test photos.

scores = tf.nn.softmax(head(features)).numpy()  # [n, classes]
tested = classifier.print_test(labels[test], scores[test], classes)

accuracies = []  # of the splits
count = min(args.splits, np.bincount(labels).min())
if count > 2 and not any(photo.part for photo in photos):  # they lie in folders of sets
    together = folders.groups_of(photos, count, args.keep_near_copies)  # photos that look alike
    groups = [together[photo] for photo in photos]
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=args.seed)
    tests = [places for _, places in folds.split(features, labels, groups)]
    for k in track(range(count), "Splits"):
        kept_back = k, (k - 1) % count  # to test, and to choose the step
        rest = np.concatenate([tests[i] for i in range(count) if i not in kept_back])
        fold_head, *_ = train_head(rest, tests[k - 1])
        answers = fold_head(features[tests[k]]).numpy().argmax(axis=1)
        accuracies.append((answers == labels[tests[k]]).mean())
    spread = np.std(accuracies, ddof=1)
    print(f"{count} splits: {np.mean(accuracies):.1%} right, ± {spread:.1%} from split to split")

answers = scores[test].argmax(axis=1)
run.save_figure(classifier.draw_confusion(labels[test], answers, classes), "confusion")
wrong = test[np.argsort(-scores[test].max(axis=1))]
wrong = [i for i in wrong if scores[i].argmax() != labels[i]]  # the surest mistakes first
said = [f"{photos[i].label}: taken for {classes[scores[i].argmax()]}" for i in wrong]
if args.print_misclassified_test_images:
    print(*(f"{photos[i].path} {text}" for i, text in zip(wrong, said, strict=True)), sep="\n")
if wrong:
    shown = [photos[i].path for i in wrong]
    titles = [text.replace(": ", "\n", 1) for text in said]
    run.save_figure(classifier.draw_photos(shown, titles), "mistakes")

# %%
# A graph for TensorFlow 1
# ------------------------
# A graph of TensorFlow 1 is *frozen* when its variables have become constants: one file, fed and
# fetched by names. Programs that use the graphs of ``retrain.py`` feed the bytes of a JPEG file to
# ``DecodeJpeg/contents:0`` and fetch the probabilities from ``final_result:0``. The input of a
# ``tf.function`` can't have a slash in its name. So the graph is imported into another one, whose
# placeholder has the right name.
#
# TensorFlow 1.15 refuses an operation with an attribute that it doesn't know, such as MaxPool's
# ``explicit_paddings``. These were added later, with a default that means "as before". So all
# attributes at their defaults are left out.

v1 = tf.compat.v1
dense = [layer.get_weights() for layer in head.layers if layer.weights]  # kernels and biases
if not args.model_dir:
    whole = keras.Sequential([centre, head]) if untrained else head
    model = classifier.whole_model(network, whole, args.image_size, classes)
    function = tf.function(
        lambda content: model(inception_v3.decode(content)[tf.newaxis], training=False)
    ).get_concrete_function(tf.TensorSpec([], tf.string))
    frozen = convert_to_constants.convert_variables_to_constants_v2(function)
with tf.Graph().as_default() as graph:
    if args.model_dir:
        (x,) = tf.import_graph_def(google.as_graph_def(), None, [f"{pool3}:0"], "")
        x = tf.nn.relu(tf.nn.bias_add(tf.matmul(x, dense[0][0]), dense[0][1]))
        result = tf.nn.softmax(tf.nn.bias_add(tf.matmul(x, dense[1][0]), dense[1][1]))
    else:
        inputs = {frozen.inputs[0].name: v1.placeholder(tf.string, [], "DecodeJpeg/contents")}
        named = frozen.graph.as_graph_def(), inputs, [frozen.outputs[0].name]
        (result,) = tf.import_graph_def(*named, "network")
    tf.identity(result, args.final_tensor_name)
v1.logging.set_verbosity(v1.logging.ERROR)  # the next function says that it is deprecated
definition = v1.graph_util.extract_sub_graph(graph.as_graph_def(), [args.final_tensor_name])
for node in definition.node:
    for attribute in op_def_registry.get(node.op).attr:
        name, default = attribute.name, attribute.default_value
        if attribute.HasField("default_value") and node.attr.get(name) == default:
            del node.attr[name]

# %%
# The files
# ---------
# The Keras model takes pixels. Resizing, scaling and softmax are part of it, so nobody has to know
# how the training did them. Before the files get their names, the graph is read again and asked
# about test photos. It must say what the Keras model says, and what the head said of their
# bottlenecks. (A large JPEG, which the training unpacks at a fraction of its size, may differ a
# little.) Another way to resize, or colours in another order, would make a difference of 0.1.

about = {
    "classes": classes,
    "size": args.image_size,
    "weights": source,
    "stand_in": untrained or data["stand_in"],
    "final_tensor_name": args.final_tensor_name,
    "accuracy": tested["accuracy"],
    "interval": tested["interval"],
    "training_photos": [photos[i].digest for i in (*train, *validation)],
    "test_photos": [str(photos[i].path) for i in test],
}
with written_whole(args.output_graph) as graph_file, written_whole(labels_path) as labels_file:
    graph_file.write_bytes(definition.SerializeToString())
    labels_file.write_text("\n".join(classes) + "\n", encoding="utf-8", newline="\n")
    needed = "DecodeJpeg/contents", args.final_tensor_name
    with v1.Session(graph=inception_v3.read_frozen(graph_file, needed)) as session:
        files = [read(photos[i]) for i in test[:4]]
        feeds = [{"DecodeJpeg/contents:0": file} for file in files]
        rows = [session.run(f"{args.final_tensor_name}:0", feed)[0] for feed in feeds]
    if not args.model_dir:
        same = [model(decode(file)[tf.newaxis], training=False)[0] for file in files]
        assert np.allclose(rows, same, atol=1e-4)
        classifier.save_classifier(model_path, model, about)
        run.write_graph(logs / "graph", function)
gap = np.abs(rows - scores[test[:4]]).max()
print(f"The graph's probabilities differ from the training's by at most {gap:.1g}")
print(f"Trained: {readable(args.output_graph)}, {readable(labels_path)}")

metrics = {"test_accuracy": np.mean(accuracies), "spread": spread} if accuracies else {}
metrics |= {"test_accuracy_of_this_split" if accuracies else "test_accuracy": tested["accuracy"]}
metrics |= {
    "by_hand_validation_accuracy": by_hand,
    "macro_f1": tested["classes"]["macro avg"]["f1-score"],
}
if untrained:
    print("The network has random filters: these results are not InceptionV3's.")
elif not args.model_dir:
    inception_v3.warn_unpublished(weights)
run.finish(
    metrics,
    data=data | {"stand_in": about["stand_in"], "test_images": len(photos if accuracies else test)},
    parameters=head.count_params(),
    weights=source,
    largest_difference=gap,
    splits=accuracies,
    interval=tested["interval"],
    classes=tested["classes"],
    photos={name: len(parts[name]) for name in SETS},
)
