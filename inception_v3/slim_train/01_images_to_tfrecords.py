"""From folders of photos to TFRecords
===================================

You learn: how photos of all sizes and formats become a data set that reads fast, what slim stored
with each photo and why, how to write it with several processes, and how to find out which photos
are broken before a training does.

Run::

    python inception_v3/slim_train/01_images_to_tfrecords.py
    python inception_v3/slim_train/01_images_to_tfrecords.py --image-dir my_photos

You should see: tables of the photos of each class, of what was left out, of the split, and of the
first record; and in ``data/slim/records`` the shards ``image_train_00000-of-00002.tfrecord`` and
so on with ``labels.txt`` beside them. ``records.png`` shows photos as they were read back,
``split.png`` how many there are of each class.

Time: 10 seconds for 600 photos on two CPU cores.

``my_photos`` has a folder for each class: ``my_photos/cat/*.jpg``, ``my_photos/dog/*.jpg``. Its
files stay as they are.
"""

import hashlib
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from slim import convert
from slim.records import FEATURES, FOLDER, KIND, PREFIX

from data import photos
from data.images import label_fonts
from data.photos import Photo
from utils.run import CourseParser, Run, make_parser, positive_int, readable, written_whole
from utils.tfrecord import DatasetError, read_info, shards, write_dataset

LABELS = "labels.txt"
PER_CLASS = 6  # photos in the figure
COLOURS = {"train": "#0072b2", "validation": "#d55e00", "test": "#009e73"}


def flags() -> CourseParser:
    """The flags of this script."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    photos.add_image_dir(parser)
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=FOLDER / "records",
        quick=FOLDER / "quick" / "records",
        help="the folder of the records",
    )
    for name in ("validation", "testing"):
        add(
            f"--{name}-percentage",
            f"--{name}_percentage",
            type=float,
            default=10.0,
            help=f"of the photos, for {name}",
        )
    add("--shards", type=positive_int, default=2, help="files of each split")
    add(
        "--resize-shorter",
        type=positive_int,
        metavar="PIXELS",
        help="store photos made so small that their shorter side has so many pixels: reads faster, "
        "takes less disk (default: store the files as they are)",
    )
    add("--workers", type=positive_int, default=os.cpu_count(), help="processes that decode")
    add("--strict", action="store_true", help="write nothing if any file can't be used")
    return parser


# %%
# What is in a record
# -------------------
# The converters that came with slim and Inception, ``download_and_convert_flowers.py`` and
# ``build_image_data.py``, gave a ``tf.train.Example`` of a photo these features:
#
# ======================  =======  ========================================================
# ``image/encoded``       bytes    the photo's file, JPEG or PNG
# ``image/format``        bytes    which of the two
# ``image/height``        int64    in pixels, so that a reader can choose before it decodes
# ``image/width``         int64
# ``image/class/label``   int64    the place of the class in ``labels.txt``, from 0
# ``image/class/text``    bytes    the class, UTF-8
# ``image/filename``      bytes    the photo's folder and name, UTF-8
# ======================  =======  ========================================================
#
# The file itself is stored, not its pixels. A photo of 500×333 takes 500 kB as pixels and
# some 60 kB as JPEG; encoding it anew would make it worse and larger. Only what TensorFlow would
# decode otherwise than a person sees it becomes a PNG: a photo turned by its EXIF note,
# transparent places, CMYK, WebP, GIF.
#
# The labels are in ``labels.txt``, one a line, in the order of the numbers. slim's had "0:daisy".
#
# What the processes do
# ---------------------
# ``build_image_data.py`` decoded each photo in a TensorFlow session, in several threads: to learn
# its size, and to stop at a broken one. Here a process decodes the very bytes that go into the
# record, since what was whole when the folder was looked over may be on a failing disk now.
# With ``--resize-shorter 320`` it makes them smaller too. That is for trainings on large
# photos: one of 12 megapixels takes some 70 ms to decode, each time it is seen.
#
# The code is in ``slim/convert.py``, a module that each process imports. A class of this script
# would be sent to them as code with every photo, which takes the main process three times as
# long as sending and fetching the photo.
#
# In which order
# --------------
# A reader shuffles what it has in a buffer, and the buffer is smaller than the data set. Photos
# written class by class would come out nearly class by class: hundreds of steps on daisies, then
# hundreds on roses. So they are mixed once here, by a hash of seed and content, which is a shuffle
# that gives the same order every time.


def mixed(some: list[Photo], seed: int) -> list[Photo]:
    """The photos in an order that depends on ``seed`` and on nothing but their content."""
    return sorted(some, key=lambda p: hashlib.sha256(f"{seed}:{p.digest}".encode()).digest())


# %%
# Reading them back
# -----------------
# A writer that nobody has read from is not finished. All records are read once, and what they
# hold is compared with the files: class and name of each, and of the first few of each class the
# bytes. These are decoded by TensorFlow, to be looked at in a figure.


def read_back(
    folder: Path, splits: dict[str, list[Photo]], classes: list[str], resized: bool
) -> dict[str, list[np.ndarray]]:
    """The first few photos of each class, uint8 [h, w, 3], as they come out of the records.
    Raises DatasetError if the records in ``folder`` are not these photos."""
    import tensorflow as tf

    from models.inception_v3 import decode

    first: dict[str, list[np.ndarray]] = {label: [] for label in classes}
    spec = FEATURES | {"image/filename": tf.io.FixedLenFeature([], tf.string)}
    for split, items in splits.items():
        found = []
        for record in tf.data.TFRecordDataset(shards(folder, split)[0]):
            example = tf.io.parse_single_example(record, spec)
            photo = items[min(len(found), len(items) - 1)]
            label = classes[example["image/class/label"]]
            found.append((label, example["image/filename"].numpy().decode()))
            if len(first[label]) < PER_CLASS:
                file = example["image/encoded"]
                first[label].append(decode(file).numpy())
                if not resized and file.numpy() != photos.read(photo):
                    raise DatasetError(f"the record of {photo.path} holds another file")
        if found != [(photo.label, convert.file_name(photo)) for photo in items]:
            raise DatasetError(f"the split {split!r} in {folder} holds other photos than the files")
    return first


def print_first_example(path: Path) -> None:
    """Print the first ``tf.train.Example`` in a file, of its image the first bytes."""
    import tensorflow as tf

    record = next(iter(tf.data.TFRecordDataset(str(path)))).numpy()
    table = Table("feature", "kind", "value", title=f"The first record of {path.name}")
    for name, feature in sorted(tf.train.Example.FromString(record).features.feature.items()):
        kind = feature.WhichOneof("kind")
        (value,) = getattr(feature, kind).value
        if kind == "bytes_list":
            more = f" … ({len(value):,} bytes)" if len(value) > 100 else ""
            value = f"{value[:12]!r}{more}" if more else value.decode()
        table.add_row(name, kind, escape(str(value)))
    Console().print(table)


# %%
# What the figures show
# ---------------------


def show_records(first: dict[str, list[np.ndarray]]) -> plt.Figure:
    """Photos read back from the records, a row for each of up to ten classes."""
    rows = dict(list(first.items())[:10])
    figure, grid = plt.subplots(
        len(rows),
        PER_CLASS,
        figsize=(1.9 * PER_CLASS, 1.9 * len(rows)),
        layout="constrained",
        squeeze=False,
    )
    for (label, images), row in zip(rows.items(), grid, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, image in zip(row, images, strict=False):
            axes.imshow(image)
        row[0].set_title(label, loc="left")
    figure.suptitle("The first photos of each class in the records")
    return figure


def show_split(splits: dict[str, list[Photo]], classes: list[str]) -> plt.Figure:
    """The photos of each class in each set, as bars."""
    height = max(2.5, 1 + 0.35 * len(classes))
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    left = np.zeros(len(classes), int)
    for name, items in splits.items():
        labels = [photo.label for photo in items]
        counts = np.array([labels.count(label) for label in classes])
        bars = axes.barh(classes, counts, left=left, color=COLOURS[name], label=name)
        if len(classes) <= 20:
            axes.bar_label(bars, label_type="center", color="white", fontsize=8)
        left += counts
    axes.invert_yaxis()
    axes.set(xlabel="photos", title=f"{left.sum():,} photos in {len(classes)} classes")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


# %%
# All together
# ------------
# The scan and the split are those of ``pool3_train/01_retrain.py``: a photo that tests there
# tests here.


def main() -> None:
    parser = flags()
    run = Run(parser, __file__)
    args = run.args
    label_fonts()
    out = args.out.expanduser().resolve()
    started = time.perf_counter()
    try:
        folder, data = photos.find_photos(args.image_dir, args.quick)
        if out == folder or folder in out.parents:
            parser.error(f"--out {out} lies inside the folder of the photos: name another")
        out.mkdir(parents=True, exist_ok=True)
        found = photos.scan(folder, args.workers, out / "scan.json", args.per_class)
        photos.print_report(found)
        if args.strict and found.faults:
            raise SystemExit(
                f"{len(found.faults):,} files can't be used: with --strict nothing is written"
            )
        percentages = args.validation_percentage, args.testing_percentage
        parts = photos.split(found.photos, *percentages, out / "split.json")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    photos.print_split(parts, found.classes)
    scanned = time.perf_counter()

    named = {n: mixed(parts[n], args.seed) for n in COLOURS if parts[n]}
    splits = {PREFIX + name: items for name, items in named.items()}
    about = {
        "kind": KIND,
        "classes": found.classes,
        "resize_shorter": args.resize_shorter,
        "seed": args.seed,
        **data,
    }
    try:
        before = set(out.glob(f"{PREFIX}*.tfrecord"))
        to_features = convert.ToFeatures(tuple(found.classes), args.resize_shorter)
        write_dataset(out, splits, to_features, args.shards, args.workers, about)
        shards = {
            s: [out / x["file"] for x in some] for s, some in read_info(out)["splits"].items()
        }
        for old in before.difference(*shards.values()):  # of splits that there are no more
            old.unlink()
        with written_whole(out / LABELS) as temporary:
            lines = "".join(f"{label}\n" for label in found.classes)
            temporary.write_text(lines, encoding="utf-8", newline="\n")
        written = time.perf_counter()
        first = read_back(out, splits, found.classes, args.resize_shorter is not None)
    except (OSError, ValueError) as error:
        raise SystemExit(f"The records could not be written: {error}") from None

    table = Table("split", "photos", "shards", "MB", title=readable(out))
    for split, files in shards.items():
        size = sum(file.stat().st_size for file in files) / 1e6
        table.add_row(split, f"{len(splits[split]):,}", str(len(files)), f"{size:.1f}")
    Console().print(table)
    print_first_example(next(iter(shards.values()))[0])
    run.save_figure(show_records(first), "records")
    run.save_figure(show_split(named, found.classes), "split")
    run.finish(
        {
            "images": sum(len(items) for items in splits.values()),
            **{f"{name}_images": len(items) for name, items in named.items()},
            "left_out": len(found.faults) + len(parts["left_out"]),
        },
        data=data,
        faults=[[str(f.path), f.kind, f.detail] for f in found.faults],
        scan_seconds=round(scanned - started, 3),
        writing_seconds=round(written - scanned, 3),
    )


if __name__ == "__main__":
    main()
