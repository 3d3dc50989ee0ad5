"""From folders of photos to TFRecords
===================================

You learn: what slim stored with each photo and why; how photos of all sizes and formats become a
data set that reads fast; and why a telephone's photo is turned after decoding, not before.

Run, with a folder of photos for each class, or with flower_photos::

    python inception_v3/slim_train/01_images_to_tfrecords.py --image-dir my_photos
    python inception_v3/slim_train/01_images_to_tfrecords.py

You should see: tables of the photos, of what was left out and of the split; a record as text; and
the records in ``data/slim/records``. ``records.png`` shows photos as they were read back.

Time: 6 s for 600 photos on two CPU cores. Your files stay as they are.
"""

import io
import os
import random
from pathlib import Path

import tensorflow as tf
from PIL import Image

from data import photos
from data.images import decode, label_fonts, load_image, orientation
from utils.figures import picture_grid
from utils.run import ROOT, CourseParser, Run, readable
from utils.tfrecord import read_dataset, write_dataset

SHARDS = 2  # files of each split
SHOWN = 24  # photos in the figure

parser = CourseParser(__doc__)
add, folder = parser.add_argument, ROOT / "data" / "slim"
photos.add_image_dir(parser)
quick = folder / "quick" / "records"
add("--out", type=Path, metavar="DIR", default=folder / "records", quick=quick, help="for them")
for name in ("validation", "testing"):
    add(f"--{name}-percentage", type=float, default=10.0, help="of the photos")
add("--resize-shorter", type=int, default=320, help="the shorter side of large photos; 0: as is")
add("--keep-near-copies", action="store_true", help="don't keep them together in one split")
add("--strict", action="store_true", help="write nothing if any file can't be used")
run = Run(parser, __file__)
args, out = run.args, run.args.out.expanduser().resolve()
label_fonts()  # names of folders may be Chinese

# %%
# Looking at every photo, and a split that stays
# ----------------------------------------------
# These two calls are those of ``pool3_train/01_retrain.py``: a photo that tests there tests here.
# Each file is decoded once, since a training that meets a broken photo in its third hour stops
# there. A hash of its content decides in which set a photo is.

try:
    image_dir, data = photos.find_photos(args.image_dir, args.quick)
    if out == image_dir or image_dir in out.parents:
        parser.error(f"--out {out} lies inside the folder of the photos: name another")
    out.mkdir(parents=True, exist_ok=True)
    found = photos.scan(image_dir, cache=out / "scan.json", per_class=args.per_class)
    photos.print_report(found)
    if args.strict and found.faults:
        raise SystemExit(f"{len(found.faults):,} files can't be used, and --strict was given")
    percentages = args.validation_percentage, args.testing_percentage
    splits = photos.split(found.photos, *percentages, out / "split.json", args.keep_near_copies)
except (ValueError, OSError) as error:
    parser.error(str(error))
photos.print_split(splits, found.classes)

# %%
# The order
# ---------
# A reader shuffles what it has in a buffer, and the buffer may be smaller than the data set. Photos
# that were written class by class would come out nearly class by class: hundreds of steps on
# daisies, then hundreds on roses. So they are mixed here, once, in an order that the seed gives.

dice = random.Random(args.seed)
splits = {
    split: dice.sample(sorted(some, key=lambda photo: photo.digest), len(some))
    for split, some in splits.items()
    if some
}

# %%
# What is in a record
# -------------------
# The converters that came with slim and Inception, ``download_and_convert_flowers.py`` and
# ``build_image_data.py``, gave the ``tf.train.Example`` of a photo these features. The orientation
# is new:
#
# ======================  =======  ==========================================================
# ``image/encoded``       bytes    the photo's file, JPEG or PNG
# ``image/format``        bytes    which of the two
# ``image/orientation``   int64    how to turn it after decoding, from 1 to 8; 1: as it is
# ``image/height``        int64    in pixels, upright, so that a reader can choose before decoding
# ``image/width``         int64
# ``image/class/label``   int64    the place of the class among the classes, from 0
# ``image/class/text``    bytes    the class, UTF-8
# ``image/filename``      bytes    the photo's folder and name, UTF-8
# ======================  =======  ==========================================================
#
# The file itself is stored, not its pixels. A photo of 500×333 takes 500 kB as pixels and some 60
# kB as JPEG. Encoding it anew would make it worse, and often larger.
#
# A telephone that is held upright stores the picture lying on its side, and a note, "turn it by
# 90°". TensorFlow's decoder ignores the note. Turned here, the file would have to be encoded anew,
# as a JPEG of less quality or a PNG of 20 MB. So it stays, and its number is a feature.
#
# A photo of 12 megapixels has 70 times as many pixels as one of 500×333. All of them would be
# decoded each time it is seen, to become 224×224. So large photos are stored with a shorter side of
# 320 pixels. For those that are at most a quarter larger it would not be worth the quality.


def example_of(photo: photos.Photo) -> tf.train.Example:
    """A photo's record."""
    content, shorter = photos.read(photo, turned=True), args.resize_shorter
    height, width, turn = photo.height, photo.width, orientation(content)
    if 0 < 1.25 * shorter < min(height, width):
        image = Image.fromarray(load_image(content, shorter=shorter))  # upright
        scale = shorter / min(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        file, turn = io.BytesIO(), 1
        image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
        content = file.getvalue()
    example = tf.train.Example()  # a protobuf message
    for name, value in {
        "image/encoded": content,
        "image/format": b"jpeg" if content.startswith(b"\xff\xd8") else b"png",
        "image/class/text": photo.label.encode(),
        "image/filename": f"{photo.path.parent.name}/{photo.path.name}".encode(),
    }.items():
        example.features.feature[name].bytes_list.value.append(value)
    for name, value in {
        "image/orientation": turn,
        "image/height": height,
        "image/width": width,
        "image/class/label": found.classes.index(photo.label),
    }.items():
        example.features.feature[name].int64_list.value.append(value)
    return example


example = example_of(splits["train"][0])
file = example.features.feature["image/encoded"].bytes_list
print(f"A record; of its photo the first 12 of {len(file.value[0]):,} bytes:")
file.value[0] = file.value[0][:12]
print(example)

# %%
# All records
# -----------
# A TFRecord file is a row of such messages as bytes, each with its length and checksums.
# ``utils/tfrecord.py`` writes them, in several files for each split, the *shards*, and beside them
# ``dataset.json``, which says what a reader must know. Threads read, decode and encode; Pillow lets
# them run side by side.

about = {"kind": "photos", "classes": found.classes, "resize_shorter": args.resize_shorter, **data}
about["training_photos"] = [photo.digest for photo in splits["train"]]  # to know them again
try:
    write_dataset(out, splits, example_of, SHARDS, os.cpu_count(), about)
except (OSError, ValueError) as error:
    raise SystemExit(f"The records could not be written: {error}") from None
for path in out.glob("*_?????-of-?????.tfrecord"):  # of splits that there are no more
    if path.name.split("_")[0] not in splits:
        path.unlink()

# %%
# Reading them back
# -----------------
# A writer that nobody has read from is not finished. Every photo is decoded once by TensorFlow and
# turned, and must have the size that its record states.

FEATURES = {
    name: tf.io.FixedLenFeature([], tf.int64)
    for name in ("image/orientation", "image/height", "image/width", "image/class/label")
}
FEATURES |= {"image/encoded": tf.io.FixedLenFeature([], tf.string)}


def read(record: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The pixels of a record's photo, uint8 [height, width, 3], and its features."""
    features = tf.io.parse_single_example(record, FEATURES)
    return decode(features["image/encoded"], features["image/orientation"]), features


images, titles = [], []  # for the figure
print(f"{'split':12}{'photos':>8}{'MB':>8}")
for split, (files, count) in read_dataset(out)[1].items():
    for pixels, features in tf.data.TFRecordDataset(files).map(read, tf.data.AUTOTUNE):
        assert pixels.shape == (features["image/height"], features["image/width"], 3)
        if len(images) < SHOWN:
            images.append(pixels)
            titles.append(found.classes[features["image/class/label"]])
    print(f"{split:12}{count:8,}{sum(Path(file).stat().st_size for file in files) / 1e6:8.1f}")
print(f"The records are in {readable(out)}")

run.save_figure(picture_grid(images, titles, columns=6), "records")
run.finish(
    {"images": sum(map(len, splits.values())), "left_out": len(found.faults)}
    | {f"{split}_images": len(some) for split, some in splits.items()},
    data=data,
    faults=[[str(fault.path), fault.kind, fault.detail] for fault in found.faults],
)
