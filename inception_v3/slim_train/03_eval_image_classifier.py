"""How well are photos classified? The test, and two models side by side
=====================================================================

You learn: what an accuracy from a few hundred photos is worth; why each class has to be looked at
in two ways; how two models are compared on the same photos; and how to look at mistakes.

Run, after ``02_train_image_classifier.py``::

    python inception_v3/slim_train/03_eval_image_classifier.py
    python inception_v3/slim_train/03_eval_image_classifier.py --compare models/pool3

You should see: a table of the classes, the share of the test photos that are right with the range
that this number is good for, and whether the model is better than the other one.
``confusion.png`` shows which classes are taken for which, ``mistakes.png`` the photos.

Time: 11 s for 52 test photos on two CPU cores. For photos of your own there is
``pool3_train/02_test_images.py --model models/slim``.
"""

import csv
from pathlib import Path

import numpy as np
import tensorflow as tf

from data.images import label_fonts
from models import classifier
from models.classifier import Classifier, ModelError
from utils.run import ROOT, CourseParser, Run, readable
from utils.tfrecord import read_dataset

parser = CourseParser(__doc__)
add, records, models = parser.add_argument, ROOT / "data" / "slim", ROOT / "models" / "slim"
folder = {"type": Path, "metavar": "DIR"}
add("--records", **folder, default=records / "records", quick=records / "quick" / "records")
add("--model", **folder, default=models, quick=models / "quick", help="what 02 saved")
add("--compare", **folder, help="another model (default: that of 02_fine_tune_with_fit.py)")
add("--split", choices=("test", "validation", "train"), default="test", help="the photos")
run = Run(parser, __file__)
args = run.args
label_fonts()

# %%
# Every photo, once
# -----------------
# slim's ``eval_image_classifier.py`` took ``ceil(photos / batch_size)`` batches from a queue that
# began again at the first photo. Of 52 photos in batches of 100, 48 counted twice. Here the records
# are read in order, to their end. The model resizes and scales by itself.


def load(path: Path) -> Classifier:
    """A model of the classes in the records."""
    found = classifier.load_classifier(path)
    if {*found.classes} != {*classes}:
        some = ", ".join(found.classes[:5])
        raise ModelError(f"{path} knows other classes than the records hold: {some}")
    return found


def ask(model: Classifier) -> np.ndarray:
    """The probabilities of the classes, in the order of the records', float32 [n, classes]."""
    rows = np.stack([row for _, row in model.probabilities(photos)])
    return rows[:, [model.classes.index(label) for label in classes]]


try:
    about, splits = read_dataset(args.records)
    classes = about["classes"]
    model = load(args.model)
    default = args.model / "fit"
    compare = args.compare or (default if default.exists() else None)
    other = load(compare) if compare else None
    files, count = splits[args.split]
except KeyError as error:
    parser.error(f"{args.records} has no {error}: write photos with 01_images_to_tfrecords.py")
except ValueError as error:  # what the records or the models are found to lack
    made = "Records are written by 01_images_to_tfrecords.py, models by 02_train_image_classifier"
    raise SystemExit(f"{error}\n{made}.py{', both with --quick' * args.quick}.") from None

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    "image/filename": tf.io.FixedLenFeature([], tf.string),
}
batch = next(iter(tf.data.TFRecordDataset(files).batch(count)))  # of all photos, as files
found = {name: value.numpy() for name, value in tf.io.parse_example(batch, FEATURES).items()}
photos, truth = found["image/encoded"], found["image/class/label"]
names = [name.decode() for name in found["image/filename"]]
probabilities = ask(model)
answers = probabilities.argmax(axis=1)
right = answers == truth
sure = probabilities.max(axis=1)

rows = zip(names, (classes[i] for i in truth), (classes[i] for i in answers), sure, strict=True)
with run.path("predictions.csv").open("w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([("photo", "truth", "prediction", "probability"), *rows])

# %%
# The number, and how sure it is
# ------------------------------
# A test is a sample: other photos would give another number. Wilson's interval holds the true
# shares for which the measured one is no surprise (``captcha_multitask/04_test.py`` derives it).
# With 52 photos it is some 20 points wide.
#
# "Roses: 90 %" may mean two things. *Recall*: of the photos of roses, 90 % were called roses.
# *Precision*: of the photos that were called roses, 90 % were roses. A classifier that calls
# everything a rose has a recall of 1 for it and tells nothing apart. F1 is their harmonic mean,
# which is small as soon as one of the two is:
#
# .. math:: F_1 = \frac{2 P R}{P + R}

report = classifier.print_test(truth, probabilities, classes)
print(f"The training began with these weights: {model.about.get('weights')}")
metrics = {f"{args.split}_accuracy": report["accuracy"]}
if len(classes) > 5:
    five = np.argsort(-probabilities, axis=1)[:, :5] == truth[:, np.newaxis]
    metrics[f"{args.split}_top_5_accuracy"] = five.any(axis=1).mean()

# %%
# Two models on the same photos
# -----------------------------
# Is this model better than another one? Two intervals that overlap don't say it isn't: most photos
# are easy for both models or hard for both, which makes both intervals wide and says nothing about
# the difference. What does, are the photos that one model gets right and the other wrong. Let b be
# right with the first model only, c with the second only. If the models were equally good, each of
# these b + c photos would fall to either side like a coin. McNemar's test asks how often a fair
# coin gives a result at least as uneven as this one. That share is p. Below 0.05 one usually calls
# the models different. Above, the test was too small to tell: they need not be equal.

if other:
    right_of_other = ask(other).argmax(axis=1) == truth
    p = classifier.mcnemar(right, right_of_other)
    only, only_other = (right & ~right_of_other).sum(), (right_of_other & ~right).sum()
    print(f"\n{readable(compare)}: {right_of_other.sum():,} of {count:,} photos right")
    print(f"Right with the first model only {only}, with the second only {only_other}: p = {p:.3f}")
    metrics |= {"other_accuracy": right_of_other.mean(), "mcnemar_p": p}
else:
    print("\nNo other model to compare with: 02_fine_tune_with_fit.py trains one, or --compare DIR")

# %%
# Which class is taken for which, and the photos
# ----------------------------------------------
# No number replaces looking. Mistakes come with the surest first: an answer that the model would
# swear to may be yours, too, or the folder has a photo that doesn't belong there. If there are few
# mistakes, the least sure of the right answers follow.

run.save_figure(classifier.draw_confusion(truth, answers, classes), "confusion")
order = np.lexsort((np.where(right, sure, -sure), right))[: classifier.SHOWN]  # mistakes first
titles = [f"{classifier.shorten(classes[answers[i]])} {sure[i]:.0%}" for i in order]
titles = [
    title if right[i] else f"{title}\nis {classifier.shorten(classes[truth[i]])}"
    for title, i in zip(titles, order, strict=True)
]
run.save_figure(classifier.draw_photos(photos[order], titles, ~right[order]), "mistakes")
run.finish(
    metrics,
    data={"source": about["source"], "stand_in": about["stand_in"], "test_images": count},
    interval=report["interval"],
    per_class=report["classes"],
    weights=model.about.get("weights"),
)
