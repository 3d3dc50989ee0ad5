"""How well are captchas read? The test
====================================

You learn: what one number for a recogniser has to count, how sure you can be of it, whether the
network reads texts that it never saw, and which answers it had better keep to itself.

Run, after ``03_train.py``::

    python captcha_multitask/04_test.py

You should see: 99.84 % of the test captchas are read right as a whole, with the range that this
number is good for, and the confidence below which ``05_recognize.py`` should not answer. Three
figures show which characters are mixed up, what a confidence is worth, and the mistakes.

Time: 10 s for 6,000 images on two CPU cores.
"""

import csv
import math
from pathlib import Path
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from data import captchas
from models import captcha
from utils.figures import BLUE, ORANGE, picture_grid
from utils.run import CourseParser, Run, quoted, share
from utils.tfrecord import read_dataset

BATCH_SIZE = 256
THRESHOLDS = (0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
BINS = 15  # of confidence, as in Guo et al.
SHOWN = 24  # images in the figure of mistakes
plt.rcParams["text.parse_math"] = False  # "$" may be a character of the alphabet

parser = CourseParser(__doc__)
add, folder = parser.add_argument, {"type": Path, "metavar": "DIR"}
records, quick = captchas.FOLDER / "records", captchas.FOLDER / "quick" / "records"
add("--records", **folder, default=records, quick=quick, help="the images, as TFRecords")
model, quick = captcha.FOLDER / "compact", captcha.FOLDER / "compact-quick"
add("--model", **folder, default=model, quick=quick, help="what 03_train.py saved")
add("--split", choices=("test", "validation"), default="test", help="the images to score")
add("--wrong", type=share, default=0.001, help="share of answers that may be wrong, for 05")
run = Run(parser, __file__)
args = run.args

try:
    about, splits = read_dataset(args.records)
    if about.get("kind") != "captcha":
        raise ValueError(f"{args.records} holds no captchas: name another folder, --records DIR")
    recogniser = captcha.load_recogniser(args.model, about["alphabet"], about["length"])
    if args.split not in splits:
        raise ValueError(f"{args.records} has no split {args.split!r}")
except ValueError as error:  # also what the records or the model are found to lack
    made = "Records are written by 02_images_to_tfrecords.py, models by 03_train.py"
    raise SystemExit(f"{error}\n{made}{', both with --quick' * args.quick}.") from None
alphabet, length = recogniser.alphabet, recogniser.length
size = about["width"], about["height"]
if size != recogniser.size:
    print("The images are {}×{}, the model takes {}×{}: resized.".format(*size, *recogniser.size))

# %%
# Every image, once
# -----------------
# The test images had no part in the training, not even in the choice of the best step. All of them
# are read, each once. TensorFlow 1 examples often tested on a few batches from a shuffling queue:
# some images came twice, others never, and the accuracy changed from run to run. Images of another
# size are resized by the function that ``05_recognize.py`` uses, so both read the same.

FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "classes": tf.io.FixedLenFeature([length], tf.int64),
}


def parsed(split: str) -> tf.data.Dataset:
    """Batches of PNG files [b] and true classes, int64 [b, length], in the order written."""
    records = tf.data.TFRecordDataset(splits[split][0]).batch(BATCH_SIZE)
    examples = records.map(lambda batch: tf.io.parse_example(batch, FEATURES))
    return examples.map(lambda example: (example["image"], example["classes"]))


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """True classes, int64 [n, length], and probabilities, float32 [n, length, characters]."""
    width, height = size
    decoded = parsed(split).map(lambda pngs, c: (captchas.decode_pngs(pngs, height, width), c))
    truths, probabilities = [], []
    for images, classes in decoded.prefetch(2).as_numpy_iterator():
        if size != recogniser.size:
            images = np.stack([captchas.resize(image, recogniser.size) for image in images])
        truths.append(classes)
        probabilities.append(recogniser.probabilities(images))
    return np.concatenate(truths), np.concatenate(probabilities)


truth, probabilities = read(args.split)
answers = probabilities.argmax(axis=-1)  # [n, length]
hits = answers == truth  # [n, length]
right = hits.all(axis=1)  # [n]
texts, confidence = recogniser.texts(probabilities)  # [n], [n]
true_texts = [captchas.decode_classes(row, alphabet) for row in truth]

rows = zip(true_texts, texts, confidence, strict=True)
with run.path("predictions.csv").open("w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([("truth", "prediction", "confidence"), *rows])

# %%
# The honest number, and how sure it is
# -------------------------------------
# A captcha with three of four characters right is a wrong answer: at 99 % a character only
# 0.99⁴ = 96 % of the captchas may be right. So the number to state is the share of captchas read
# right as a whole.
#
# A test is a sample: another 1,000 images would give another number. The usual
# :math:`\hat p \pm 1.96 \sqrt{\hat p (1 - \hat p) / n}` fails where a recogniser is good: after
# 1,000 right of 1,000 it claims 100 % ± 0. Wilson's interval holds all true shares p for which the
# measured one is no surprise, :math:`|\hat p - p| \le z \sqrt{p (1 - p) / n}`. Solved for p:
#
# .. math:: \frac{\hat p + z^2 / 2n \;\pm\; z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4 n^2}}
#                {1 + z^2 / n}
#
# 1,000 of 1,000 then means 99.6 to 100 %. It is about images like these, not another site's.


def wilson(hit: int, n: int) -> tuple[float, float]:
    """The 95 % interval for a share of which ``hit`` of ``n`` were seen."""
    z, p = NormalDist().inv_cdf(0.975), hit / n  # z = 1.96
    middle = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


# %%
# Texts that were held out
# ------------------------
# There are only 10,000 texts of four digits, so most texts of the test occur in training too, and a
# network could learn texts by heart. So ``02_images_to_tfrecords.py`` keeps some texts out of the
# training altogether. A network that reads these as well as the others reads characters.

groups = {"whole captcha": right, "character": hits.ravel()}
if "train" in splits:
    train_classes = parsed("train").map(lambda pngs, classes: classes).as_numpy_iterator()
    trained = {row.tobytes() for classes in train_classes for row in classes}
    unseen = np.array([row.tobytes() not in trained for row in truth])
    groups |= {"unseen text": right[unseen], "seen text": right[~unseen]}
else:
    print("The data set has no training images, so no text can be called unseen.")
groups |= {f"position {k + 1}": hits[:, k] for k in range(length)}

metrics, intervals = {}, {}
print(f"\n{'read right':15} {'of':>9} {'accuracy':>10}   95 % interval")
for name, hit in groups.items():
    if len(hit):
        key = f"{name.replace(' ', '_')}_accuracy"
        metrics[key], interval = hit.mean(), ""
        if name != "character":  # those of one image are not independent
            intervals[key] = wilson(int(hit.sum()), len(hit))
            interval = "{:.2%} to {:.2%}".format(*intervals[key])
        print(f"{name:15} {len(hit):9,} {metrics[key]:10.2%}   {interval}")

# %%
# Which character is taken for which
# ----------------------------------
# Row: the truth; column: what was read. What was read right would fill the diagonal and hide the
# rest, so only the mistakes are counted.

mixed_up = confusion_matrix(truth.ravel(), answers.ravel(), labels=range(len(alphabet)))
np.fill_diagonal(mixed_up, 0)
few = len(alphabet) <= 20  # with more characters the numbers would be too small: colours alone
inches = 6 if few else 3 + 0.2 * len(alphabet)
figure, axes = plt.subplots(figsize=(inches, inches), layout="constrained")
display = ConfusionMatrixDisplay(mixed_up, display_labels=list(alphabet))
display.plot(ax=axes, cmap="Oranges", include_values=few, colorbar=not few)
axes.set(title=f"{mixed_up.sum():,} of {truth.size:,} characters taken for another")
axes.set(xlabel="read as", ylabel="truth")
run.save_figure(figure, "confusion")

# %%
# Answers that are better not given
# ---------------------------------
# The confidence of a text is the product of its characters' probabilities. A program can refuse
# answers below a confidence, and ask for another captcha. A high threshold refuses right answers
# too, a low one lets wrong ones pass. ``--wrong`` says which share of the answers given may be
# wrong, and the lowest threshold that keeps to it is chosen, on the *validation* images: chosen on
# the test images, it would fit just these and promise too much. With n answers, a share of wrong
# ones below 1/n can't be told from none.


def given(least: float, confidence: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """How many answers have at least the confidence ``least``, and how many of them are wrong."""
    kept = confidence >= least
    return int(kept.sum()), int((~right[kept]).sum())


chosen = {}
if "validation" in splits:
    truth_v, probabilities_v = read("validation")
    right_v = (probabilities_v.argmax(axis=-1) == truth_v).all(axis=1)
    _, confidence_v = recogniser.texts(probabilities_v)
    print(f"\nconfidence     read     wrong   of {len(right_v):,} validation images")
    for least in THRESHOLDS:
        number, wrong = given(least, confidence_v, right_v)
        if not chosen and number and wrong <= args.wrong * number:
            chosen = {"at_least": least}
        mark = "  <- chosen" if chosen.get("at_least") == least else ""
        print(f"{least:<8g} {number / len(right_v):10.2%} {wrong / max(1, number):9.3%}{mark}")
if chosen:
    number, wrong = given(chosen["at_least"], confidence, right)
    low, high = wilson(wrong, max(1, number))
    chosen |= {"share_read": number / len(right), "share_wrong": wrong / max(1, number)}
    print(
        f"Chosen for at most {args.wrong:.3%} wrong. Of the {args.split} images it reads "
        f"{chosen['share_read']:.2%};\n{wrong:,} of {number:,} answers are wrong, "
        f"{chosen['share_wrong']:.3%} ({low:.3%} to {high:.3%}). To use it:\n  "
        + quoted("python", "captcha_multitask/05_recognize.py", "--model", args.model)
        + f" --at-least {chosen['at_least']} IMAGE"
    )
elif "validation" in splits:
    print(f"No threshold keeps to {args.wrong:.3%} wrong: the model needs more training.")
else:
    print("The data set has no validation images, so no threshold is chosen.")

# %%
# What a confidence is worth
# --------------------------
# A recogniser is *calibrated* if of all readings with a confidence near 0.8 eight in ten are right.
# Most networks are too sure of themselves (Guo et al., 2017, arXiv 1706.04599). Ours is the
# opposite: smoothed labels taught it that no character is quite certain. So its confidence is no
# probability of being right. But it is larger where more is right, and refusing needs no more.

figure, (left, side) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
CalibrationDisplay.from_predictions(right, confidence, n_bins=BINS, ax=left, color=BLUE)
left.set(xlabel="confidence of the text", ylabel="share right")
number = np.arange(1, len(right) + 1)  # of answers, given from the surest on
wrong = np.cumsum(~right[np.argsort(-confidence, kind="stable")]) / number
side.plot(1 - number / len(right), wrong, color=ORANGE)
if chosen:
    side.plot(1 - chosen["share_read"], chosen["share_wrong"], "o", color=BLUE)
side.set(title="Refusing answers below a confidence (dot: chosen)", xlabel="share refused")
side.set(ylabel="share wrong of the answers given")
run.save_figure(figure, "calibration")

# %%
# The images themselves
# ---------------------
# No number replaces looking. The surest mistakes come first: you may read them wrong too, or find a
# false label. If there are few mistakes, the least sure of the right readings follow.

order = np.lexsort((np.where(right, confidence, -confidence), right))[:SHOWN]  # mistakes first
pngs = np.concatenate([pngs for pngs, _ in parsed(args.split).as_numpy_iterator()])[order]
pictures = [tf.io.decode_png(png, 1).numpy() for png in pngs]
titles = [f"{texts[i]} ({confidence[i]:.4f})" for i in order]
titles = [t if right[i] else f"{t}\nis {true_texts[i]}" for t, i in zip(titles, order, strict=True)]
look = {"wrong": ~right[order], "cmap": "gray", "vmin": 0, "vmax": 255}
figure = picture_grid(pictures, titles, columns=4, **look)
figure.set_size_inches(10, -(-len(order) // 4) * (2.5 * size[1] / size[0] + 0.5))
run.save_figure(figure, "mistakes")

run.finish(
    metrics | chosen,
    data={"source": str(args.records), "stand_in": False, "test_images": len(right)},
    intervals=intervals,
)
