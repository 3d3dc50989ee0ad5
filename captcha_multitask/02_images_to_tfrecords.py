"""From a folder of images to TFRecords
====================================

You learn: how to look over labelled images before you train on them; how to split them so that no
image is in two splits, today and after you have added more; what a ``tf.train.Example`` is; and how
to write and read TFRecords.

Run, after ``01_generate_images.py`` or with a folder of captchas from elsewhere::

    python captcha_multitask/02_images_to_tfrecords.py

You should see: a record as text, a table of the splits. The records are in ``data/captcha``.
``characters.png`` shows that each digit stands in each position about equally often.

Time: 40 s on two CPU cores. The text of ``0427.jpg`` and ``0427_any.png`` is 0427, the name up to
the first ``_`` or the ending. For other names there is ``--labels texts.csv``.
"""

import hashlib
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from joblib import Parallel, delayed
from PIL import Image
from rich.progress import track

from data import captchas
from data.captchas import FOLDER, load_image
from data.images import FORMATS, is_plain
from utils.run import CourseParser, Run, positive_int, readable, share, write_json
from utils.tfrecord import read_dataset, write_dataset

parser = CourseParser(__doc__)
add, quick = parser.add_argument, FOLDER / "quick"
add("--images", type=Path, metavar="DIR", default=FOLDER / "images", quick=quick / "images")
add("--out", type=Path, metavar="DIR", default=FOLDER / "records", quick=quick / "records")
add("--alphabet", type=captchas.parse_alphabet, help="characters (default: see the notes)")
add("--length", type=positive_int, help="characters in a text (default: see the notes)")
add("--labels", type=Path, metavar="CSV", help="the texts: a UTF-8 file with columns file,text")
add("--fold-case", action="store_true", help="make small letters of capitals")
add("--shares", type=share, nargs=2, metavar=("V", "T"), default=(0.1, 0.1), quick=(0.15, 0.15))
run = Run(parser, __file__)
args, seed = run.args, run.args.seed
folder, out = args.images.expanduser().resolve(), args.out.expanduser().resolve()
validation_share, test_share = args.shares
if validation_share + test_share > 1 + 1e-9:
    parser.error("--shares: validation and test are more than 1 together")

# %%
# The texts
# ---------
# Each image needs its text, from its name or from the CSV file. ``captchas.json`` says what the
# texts of drawn images are made of. For images from elsewhere we take the commonest length, and all
# characters in texts of that length. A character that occurs once or twice is often a typing
# mistake, and is too rare to be learned anyway.

try:
    settings = captchas.read_settings(folder)
    labels = captchas.read_texts(folder, args.labels)  # [(file, text), …]
except ValueError as error:
    parser.error(str(error))
if not any(text for _, text in labels):
    parser.error(f"no image in {folder} has a text. Run 01_generate_images.py for images")
alphabet = args.alphabet or settings.get("alphabet", "")
if args.fold_case:
    labels = [(name, text.lower()) for name, text in labels]
    alphabet = "".join(dict.fromkeys(alphabet.lower()))
lengths = Counter(len(text) for _, text in labels if text)
length = args.length or settings.get("length", lengths.most_common(1)[0][0])
if not alphabet:
    counts = Counter("".join(text for _, text in labels if len(text) == length))
    alphabet = "".join(sorted(counts))
    if rare := "".join(c for c in alphabet if counts[c] < 3):
        print(f"Warning: each of {rare!r} occurs fewer than 3 times. Are these right?")
print(f"{len(labels):,} files in {readable(folder)}: texts of {length} from {alphabet!r}")

# %%
# A look at every file
# --------------------
# A training that meets a broken image in its third hour stops there. One that meets a wrong text
# goes on and learns nonsense. So we look at every file now. Only decoding shows that an image is
# whole: a file that was cut short begins like any other. ``load_image`` gives grey pixels, as a
# captcha's colours say nothing about its text.
#
# Images with the same pixels and the same text count once. If their texts differ, one of them is
# wrong, and neither is used. Nothing else is compared: a JPEG beside its original is not found.


class Picture(NamedTuple):
    name: str  # of the file in the folder
    text: str
    size: tuple[int, int]  # width, height


def look_at(path: Path, text: str) -> tuple[str, tuple[int, int]] | str:
    """The hash of an image's pixels, and its size; or why the file can't be used."""
    if foreign := "".join(sorted(set(text) - set(alphabet))):
        return f"characters outside the alphabet: {foreign}"
    if len(text) != length:
        return f"text of another length: {text}" if text else "no text"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about oddities in files that it can read
        try:
            pixels = load_image(path)  # [height, width, 1]
            with Image.open(path, formats=FORMATS) as image:
                image.verify()  # checksums in a PNG, which decoding doesn't look at
        except Exception as error:  # a broken file may raise almost anything
            return "no whole image: " + str(error).replace(f" {str(path)!r}", "")
    height, width, _ = pixels.shape
    shaped = f"{seed}:{height}x{width}:".encode() + pixels.tobytes()
    return hashlib.sha256(shaped).hexdigest(), (width, height)


faults: dict[str, str] = {}  # by file
same: dict[str, list[Picture]] = {}  # pictures by the hash of their pixels
jobs = (delayed(look_at)(folder / name, text) for name, text in labels)
looks = track(Parallel(n_jobs=-1, return_as="generator")(jobs), "Decoding", len(labels))
for (name, text), look in zip(labels, looks, strict=True):
    if isinstance(look, str):
        faults[name] = look
    else:
        same.setdefault(look[0], []).append(Picture(name, text, look[1]))
pictures: dict[str, Picture] = {}
for digest, (first, *others) in same.items():
    if all(picture.text == first.text for picture in others):
        pictures[digest] = first
        faults |= {picture.name: f"a copy: of {first.name}" for picture in others}
    else:
        faults |= {p.name: f"one image, several texts: {first.name}" for p in (first, *others)}

rejected = run.path("rejected.json")
write_json(rejected, faults)
for kind, number in Counter(fault.split(":")[0] for fault in faults.values()).most_common():
    print(f"{number:8,} left out: {kind} (see {readable(rejected)})")
if not pictures:
    parser.error(f"no file in {folder} can be used: do --alphabet and --length fit the texts?")
sizes = Counter(picture.size for picture in pictures.values())
size = (settings["width"], settings["height"]) if settings else sizes.most_common(1)[0][0]
width, height = size
print(f"{len(pictures):,} images, {len(pictures) - sizes[size]:,} resized to {width}×{height}")

# %%
# Splits that stay
# ----------------
# Usually a shuffle with a seed chooses the test images. Add one image, and it chooses others. Then
# images that the network was trained on are in the test, which is worth nothing. Here each image
# has a number u from 0 to 1, a hash of the seed and its own pixels. If u is below a fixed threshold
# it is a test image, today and after you have added, removed or renamed others.
#
# A network should also read texts that it has never seen. So half of the test share t is chosen by
# the *text*: where the text's own u is below t/2, all its images go to the test, and no training
# image has this text. Of the other images, those with u < (t/2) / (1 - t/2) are test images too,
# which makes t in all. Their texts may occur in training as well.


def u(digest: str) -> float:
    """The hash's first 64 bits as a number from 0 to 1."""
    return int(digest[:16], 16) / 2**64


half = test_share / 2
to_test, to_validation = half / (1 - half), (half + validation_share) / (1 - half)
splits: dict[str, list[Picture]] = {"train": [], "validation": [], "test": []}
for digest, picture in sorted(pictures.items()):  # by hash, so the texts are mixed
    text_digest = hashlib.sha256(f"{seed}:{picture.text}".encode()).hexdigest()
    if u(text_digest) < half or u(digest) < to_test:
        splits["test"].append(picture)
    else:
        splits["validation" if u(digest) < to_validation else "train"].append(picture)
if not splits["train"] and validation_share + test_share < 1:
    parser.error(f"of {len(pictures)} images none is left for training: lower --shares")
splits = {split: some for split, some in splits.items() if some}

# %%
# What a record is
# ----------------
# A TFRecord file is a row of records: bytes with their length and checksums. The bytes here are a
# ``tf.train.Example``, a protobuf message that maps names to lists of bytes, int64 or float32. The
# format is TensorFlow 1's, only the names around it are new:
#
# ==========================================  ====================================
# TensorFlow 1                                today
# ==========================================  ====================================
# ``tf.python_io.TFRecordWriter``             ``tf.io.TFRecordWriter``
# ``tf.python_io.tf_record_iterator``         ``tf.data.TFRecordDataset``
# ``tf.parse_single_example``                 ``tf.io.parse_single_example``
# ``image.tobytes()`` and ``tf.decode_raw``   a PNG file and ``tf.io.decode_png``
# four features ``label0`` to ``label3``      one feature ``classes`` [length]
# ==========================================  ====================================
#
# A PNG says its shape itself, and takes a third of the space of bare pixels. A class is the
# character's place in the alphabet. We write two records by hand and read them back by hand.


def example_of(picture: Picture) -> tf.train.Example:
    """What a record holds: a grey PNG file, and the class of each character."""
    png = (folder / picture.name).read_bytes()
    grey = png[24:26] == b"\x08\x00" and is_plain(png)  # 8 bits a pixel, and one colour
    if not grey or picture.size != size:
        png = captchas.png_file(load_image(folder / picture.name, size))
    classes = captchas.encode_text(picture.text, alphabet)
    image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png]))
    classes = tf.train.Feature(int64_list=tf.train.Int64List(value=classes))
    features = tf.train.Features(feature={"image": image, "classes": classes})
    return tf.train.Example(features=features)


two, path = [*pictures.values()][:2], str(run.path("two.tfrecord"))
with tf.io.TFRecordWriter(path) as writer:
    for example in map(example_of, two):
        writer.write(example.SerializeToString())
png = example.features.feature["image"].bytes_list.value
print(f"The second record; of its image the first 16 of {len(png[0]):,} bytes:")
png[0] = png[0][:16]
print(example)

spec = {"image": tf.io.FixedLenFeature([], tf.string)}
spec["classes"] = tf.io.FixedLenFeature([length], tf.int64)
for record, picture in zip(tf.data.TFRecordDataset(path), two, strict=True):
    features = tf.io.parse_single_example(record, spec)
    pixels = tf.io.decode_png(features["image"], channels=1)  # [height, width, 1]
    assert np.array_equal(pixels, load_image(folder / picture.name, size))
    assert captchas.decode_classes(features["classes"], alphabet) == picture.text

# %%
# All records
# -----------
# ``utils/tfrecord.py`` does the same for all images. It writes several files for each split, the
# *shards*, and beside them ``dataset.json``, which says what a reader must know.

about = {"kind": "captcha", "alphabet": alphabet, "length": length, "width": width}
about |= {"height": height, "source": settings}
about["features"] = {"image": "bytes, a grey PNG file", "classes": f"int64 [{length}]"}
try:
    write_dataset(out, splits, example_of, threads=os.cpu_count(), about=about)
except (OSError, ValueError) as error:
    raise SystemExit(f"The records could not be written: {error}") from None

# %%
# Reading them back
# -----------------
# All records are read once, as in the training. Each must decode, and have its file's text.


def parse(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Images uint8 [b, height, width, 1] and classes int64 [b, length]."""
    features = tf.io.parse_example(records, spec)
    return captchas.decode_pngs(features["image"], height, width), features["classes"]


trained = {picture.text for picture in splits.get("train", ())}
print(f"\n{'split':12}{'images':>9}{'texts':>9}{'of them in train':>19}")
for split, (files, count) in read_dataset(out)[1].items():
    texts = []
    for _, classes in tf.data.TFRecordDataset(files).batch(200).map(parse, tf.data.AUTOTUNE):
        texts += [captchas.decode_classes(row, alphabet) for row in classes.numpy()]
    assert texts == [picture.text for picture in splits[split]]
    print(f"{split:12}{count:9,}{len({*texts}):9,}{len(trained & {*texts}):19,}")

# %%
# The figure
# ----------
# In texts drawn at random every character stands in every position equally often: among n texts
# and k characters n/k times, give or take :math:`\sqrt{n (1/k) (1 - 1/k)}`. The grey band is two
# such standard deviations to either side, and should hold 95 % of the dots. In captchas from
# elsewhere some may be more frequent, and a network can gain by guessing these.

expected = len(pictures) / len(alphabet)
spread = 2 * (expected * (1 - 1 / len(alphabet))) ** 0.5
figure, axes = plt.subplots(figsize=(max(6, 0.2 * len(alphabet)), 4), layout="constrained")
for position in range(min(length, 8)):
    text = "".join(picture.text[position] for picture in pictures.values())
    axes.plot([*alphabet], [*map(text.count, alphabet)], "o", label=f"position {position + 1}")
axes.axhspan(expected - spread, expected + spread, color="0.5", alpha=0.3, label="by chance")
axes.set(xlabel="character", ylabel="images")
axes.legend(ncols=2, fontsize=8)
run.save_figure(figure, "characters")

run.finish(
    {"images": len(pictures), "left_out": len(faults)}
    | {f"{split}_images": len(some) for split, some in splits.items()},
    data={"source": f"images in {readable(folder)}", "stand_in": False},
)
