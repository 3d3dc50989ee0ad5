"""From a folder of images to TFRecords
====================================

You learn: how to look over a folder of labelled images before anything is trained on it; how to
split it so that no image is in two splits, today and after more were added; what a
``tf.train.Example`` is; and how to write and read TFRecords.

Run, after ``01_generate_images.py`` or with a folder of captchas from elsewhere::

    python captcha_multitask/02_images_to_tfrecords.py

You should see: a table of the splits, one record as text, and the records in
``data/captcha/records``: 55,200 images to train on, 1,800 for validation, 3,000 for the test.
``characters.png`` shows that each digit stands in each place about equally often.

Time: 40 seconds on two CPU cores. Images of other people need a name that begins with their text,
``0427.jpg`` or ``0427_whatever.png``, and one length: ``--images DIR --alphabet … --length …``.
"""

import hashlib
import io
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from data.captchas import (
    FOLDER,
    MOST_PIXELS,
    decode_classes,
    encode_text,
    label_of,
    load_image,
    parse_alphabet,
)
from utils.run import (
    CourseParser,
    Run,
    make_parser,
    positive_int,
    quoted,
    readable,
    share,
    write_json,
)
from utils.tfrecord import DatasetError, load_split, read_info, write_dataset

SETTINGS = "captchas.json"  # what 01_generate_images.py says of its images
JUNK = {SETTINGS, "Thumbs.db", "desktop.ini", "dataset.json"}
CHUNK = 100  # files a worker process looks at before it reports
SHOWN = 5  # names to print of each kind of fault
PNG, RGB8 = b"\x89PNG\r\n\x1a\n", b"\x08\x02"  # how a file begins; 8 bits a value, 3 values
MORE_THAN_PIXELS = (b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # may say transparent, or turn
BLUE, ORANGE = "#0072b2", "#d55e00"


def flags() -> CourseParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "--images",
        type=Path,
        metavar="DIR",
        default=FOLDER / "images",
        quick=FOLDER / "quick" / "images",
        help="a folder of images, which may have subfolders",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=FOLDER / "records",
        quick=FOLDER / "quick" / "records",
        help="the folder of the records",
    )
    said = f"(default: what {SETTINGS} in the folder says, else"
    add("--alphabet", type=parse_alphabet, help=f"the characters of the texts {said} digits)")
    add("--length", type=positive_int, help=f"characters in a text {said} 4)")
    add("--width", type=positive_int, help=f"of all images, in pixels {said} what most have)")
    add("--height", type=positive_int, help=f"of all images, in pixels {said} what most have)")
    add("--validation-share", type=share, default=0.03, quick=0.15, help="0 to 1, of all images")
    add("--test-share", type=share, default=0.05, quick=0.15, help="0 to 1, of all images")
    add("--shards", type=positive_int, default=2, help="files of each split")
    add("--workers", type=positive_int, default=os.cpu_count(), help="processes that decode")
    add("--strict", action="store_true", help="write nothing if any file can't be used")
    return parser


# %%
# A look at every file
# --------------------
# A training that meets a broken image in its third hour stops there; one that meets a wrong
# label goes on, and learns nonsense. So each file is looked at now. Its name must state a text
# of the right length, in characters of the alphabet. Its content must be a whole image, which is
# found out by decoding it: a file that was cut short has a good header still. What the name
# calls the format is not trusted, nor needed.
#
# Two files with the same bytes count once. If their names state different texts, one is wrong,
# and neither is used.


class Picture(NamedTuple):
    """A file that can be used: its text, the SHA-256 of its bytes, its width and height in
    pixels, and whether it is a plain RGB PNG that can be stored as it is."""

    path: Path
    text: str
    digest: str
    size: tuple[int, int]
    plain: bool


class Fault(NamedTuple):
    """A file that is left out: the kind of its fault, and more to say about it."""

    path: Path
    kind: str
    detail: str = ""


def image_files(folder: Path, out: Path) -> list[Path]:
    """The files below ``folder`` that may be images, in order of their names: none that are
    hidden or known junk, none in ``out`` if that is a folder below."""
    out_below = folder in out.parents
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        junk = path.name in JUNK or path.suffix == ".tfrecord" or "__MACOSX" in parts
        junk = junk or any(part.startswith(".") for part in parts)
        junk = junk or (out_below and out in path.parents)
        if not junk and path.is_file():
            found.append(path)
    return found


def look_at(paths: Sequence[Path], alphabet: str, length: int) -> list[Picture | Fault]:
    """Check files, each by name and by decoding it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about oddities in files it can read
        return [_look_at_one(path, alphabet, length) for path in paths]


def _look_at_one(path: Path, alphabet: str, length: int) -> Picture | Fault:
    text = label_of(path)
    if not text:
        return Fault(path, "no text in its name")
    if len(text) != length:
        return Fault(path, "wrong length", f"{len(text)} characters, not {length}")
    if foreign := "".join(sorted(set(text) - set(alphabet))):
        return Fault(path, "characters outside the alphabet", foreign)
    try:
        content = path.read_bytes()
        height, width, _ = load_image(path).shape
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # the checksums in a PNG, which decoding doesn't look at
    except Exception as error:  # a broken file may raise almost anything in some decoder
        return Fault(path, "no whole image", str(error).replace(f" {str(path)!r}", ""))
    plain = content.startswith(PNG) and content[24:26] == RGB8
    plain = plain and not any(name in content for name in MORE_THAN_PIXELS)
    return Picture(path, text, hashlib.sha256(content).hexdigest(), (width, height), plain)


def look_over(
    paths: Sequence[Path], alphabet: str, length: int, workers: int
) -> tuple[list[Picture], list[Fault]]:
    """All pictures that can be used, and the faults of all other files."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    jobs = (delayed(look_at)(chunk, alphabet, length) for chunk in chunks)
    results = Parallel(workers, return_as="generator")(jobs)
    pictures: dict[str, list[Picture]] = {}  # by their content
    faults = []
    with closing(results):
        for found in track(results, "Looking at files", total=len(chunks)):
            for one in found:
                if isinstance(one, Fault):
                    faults.append(one)
                else:
                    pictures.setdefault(one.digest, []).append(one)
    good = []
    for first, *others in pictures.values():
        if len({picture.text for picture in (first, *others)}) > 1:
            kind = "one image with several texts"
            faults += [Fault(p.path, kind, f"as {first.path.name}") for p in (first, *others)]
        else:
            good.append(first)
            faults += [Fault(p.path, "a copy", f"of {first.path.name}") for p in others]
    return good, sorted(faults)


def print_faults(faults: list[Fault], folder: Path) -> None:
    """How many files are left out and why, and the first names of each kind."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault)
    table = Table("fault", "files", "which", title="Left out")
    for kind, some in sorted(kinds.items(), key=lambda item: -len(item[1])):
        names = [
            f"{fault.path.relative_to(folder).as_posix()}: {fault.detail}".rstrip(": ")
            for fault in some[:SHOWN]
        ]
        names += ["…"] * (len(some) > SHOWN)
        table.add_row(kind, f"{len(some):,}", escape("\n".join(names)))
    Console().print(table)


# %%
# Splits that stay
# ----------------
# Training, validation and test images are usually told apart by a shuffle with a seed. Add one
# image, and that shuffle deals out all of them anew: images the network was trained on land in
# the test split, and the next test is worth nothing.
#
# Here the order is that of a hash of seed and content. SHA-256 scatters images as a shuffle
# does, but the place of an image depends on nothing but its own bytes. Renamed or moved, it stays
# where it was. When images are added, only those next to the borders between the splits move.
# Equal images have equal places, so that no copy of a training image is in the test.


def split_up(
    pictures: Sequence[Picture], validation_share: float, test_share: float, seed: int
) -> dict[str, list[Picture]]:
    """Train, validation and test split, those that are not empty."""

    def place(picture: Picture) -> str:
        return hashlib.sha256(f"{seed}:{picture.digest}".encode()).hexdigest()

    ordered = sorted(pictures, key=place)
    test_end = round(len(ordered) * test_share)
    validation_end = round(len(ordered) * min(test_share + validation_share, 1))
    splits = {
        "train": ordered[validation_end:],
        "validation": ordered[test_end:validation_end],
        "test": ordered[:test_end],
    }
    return {split: items for split, items in splits.items() if items}


# %%
# What a record is
# ----------------
# A ``tf.train.Example`` is a protobuf message: a dictionary from names to lists of bytes, of
# int64 or of float32. This has not changed since TensorFlow 1, and files of then can be read
# today. What changed is around it::
#
#     writer = tf.python_io.TFRecordWriter(path)           # today tf.io.TFRecordWriter
#     example = tf.train.Example(features=tf.train.Features(feature={
#         "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
#         "label0": tf.train.Feature(int64_list=tf.train.Int64List(value=[0])),
#         …                                                # label1, label2, label3
#     }))
#     writer.write(example.SerializeToString())
#     writer.close()
#
# and ``tf.python_io.tf_record_iterator`` is ``tf.data.TFRecordDataset``. ``utils/tfrecord.py``
# does the same in a few more lines, for several files and with a description beside them.
#
# ``image.tobytes()`` are bare pixels, and the reader has to know their shape. For 160×60 RGB
# that would be 28,800 bytes; the PNG has about 8,000 and says its shape itself. The reader calls
# ``tf.io.decode_png`` instead of ``tf.decode_raw``. And four labels are one list of four classes
# here, so that captchas of any length have the same features: ``image``, and ``classes``
# [length]. A class is the place of the character in the alphabet.


class ToFeatures(NamedTuple):
    """Makes of a Picture the features of its record; joblib sends it to worker processes."""

    alphabet: str
    size: tuple[int, int]

    def __call__(self, picture: Picture) -> dict[str, Any]:
        if picture.plain and picture.size == self.size:
            png = picture.path.read_bytes()
            if hashlib.sha256(png).hexdigest() != picture.digest:
                raise OSError(f"{picture.path} was changed while the records were written")
        else:
            file = io.BytesIO()
            Image.fromarray(load_image(picture.path, self.size)).save(file, "PNG")
            png = file.getvalue()
        return {"image": png, "classes": encode_text(picture.text, self.alphabet)}


# %%
# Reading them back
# -----------------
# A writer that nobody has read from is not finished. All records are read once, as the training
# reads them. Texts are compared with the files' names, and the pixels of each split's first
# batch with those of the files.


def read_back(folder: Path, splits: dict[str, list[Picture]], about: dict[str, Any]) -> None:
    """Raise DatasetError if the records in ``folder`` are not these pictures."""
    import tensorflow as tf

    size = (about["width"], about["height"])
    for split, pictures in splits.items():
        texts = []
        for batch in load_split(folder, split, batch_size=100):
            if not texts:  # the first batch: classes [100, length], image [100] of PNG files
                for png, picture in zip(batch["image"].numpy(), pictures, strict=False):
                    pixels = tf.io.decode_png(png, channels=3).numpy()  # [height, width, 3]
                    if not np.array_equal(pixels, load_image(picture.path, size)):
                        raise DatasetError(f"the record of {picture.path} has other pixels")
            texts += [decode_classes(row, about["alphabet"]) for row in batch["classes"].numpy()]
        if texts != [picture.text for picture in pictures]:
            raise DatasetError(f"the split {split!r} in {folder} has other texts than the files")


def first_example(path: Path) -> str:
    """The first ``tf.train.Example`` in a file in protobuf's text form, its image shortened."""
    import tensorflow as tf

    record = next(iter(tf.data.TFRecordDataset(str(path)))).numpy()
    example = tf.train.Example.FromString(record)
    (png,) = example.features.feature["image"].bytes_list.value
    example.features.feature["image"].bytes_list.value[0] = png[:16]
    return f"{example}(of the image's {len(png):,} bytes the first 16 are shown)"


# %%
# The figure
# ----------
# Texts drawn at random put every character in every place equally often: with n texts and k
# characters n/k times, give or take :math:`\sqrt{n (1/k) (1 - 1/k)}`. The grey band is two such
# standard deviations wide to either side, and 95 % of the bars should end in it. Captchas
# collected elsewhere may look otherwise. Then a network can be right more often than its
# reading deserves, by guessing what is frequent.


def show_characters(texts: list[str], alphabet: str, split: str) -> plt.Figure:
    """How often each character stands in each place (of the first eight)."""
    places = min(len(texts[0]), 8)
    figure, axes = plt.subplots(
        places,
        1,
        figsize=(max(6, 0.16 * len(alphabet)), 1 + 1.3 * places),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    expected = len(texts) / len(alphabet)
    deviation = (expected * (1 - 1 / len(alphabet))) ** 0.5
    for place, row in enumerate(axes[:, 0]):
        counts = Counter(text[place] for text in texts)
        row.bar(range(len(alphabet)), [counts[c] for c in alphabet], color=BLUE)
        row.axhspan(
            max(expected - 2 * deviation, 0), expected + 2 * deviation, color="0.5", alpha=0.4
        )
        row.axhline(expected, color=ORANGE, linestyle="--")
        row.set(ylabel=f"place {place + 1}", xticks=range(len(alphabet)))
    row.set_xticklabels(list(alphabet), parse_math=False)
    row.set_xlabel("character")
    figure.suptitle(
        f"How often each character stands in each place ({split}, {len(texts):,} texts)\n"
        "dashed: all equally often; grey: two standard deviations of chance"
    )
    return figure


# %%
# All together
# ------------


def read_settings(folder: Path) -> dict[str, Any]:
    """What the program that drew the images wrote of them; nothing for other people's images.
    Raises ValueError, with a sentence, if it is damaged."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        numbers = [settings[name] for name in ("length", "width", "height")]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("no sizes")
        return settings | {"alphabet": parse_alphabet(settings["alphabet"])}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / SETTINGS} is damaged. Remove it, and state what it said with "
            "--alphabet and --length"
        ) from error


def remove_old_shards(folder: Path, before: dict[str, Any]) -> None:
    """Remove shards of an earlier data set's splits that this one doesn't have."""
    kept = read_info(folder)["splits"]
    for split, shards in before.items():
        for shard in shards if split not in kept else ():
            (folder / Path(shard["file"]).name).unlink(missing_ok=True)


def main() -> None:
    parser = flags()
    run = Run(parser, __file__)
    args = run.args
    folder, out = args.images.expanduser().resolve(), args.out.expanduser().resolve()
    if args.validation_share + args.test_share > 1 + 1e-9:
        parser.error("--validation-share and --test-share are more than 1 together")
    command = ["captcha_multitask/01_generate_images.py"] + ["--quick"] * args.quick
    if args.images != parser.get_default("images"):
        command += ["--out", folder]
    hint = f"Draw some with: {quoted('python', *command)}"
    if not folder.is_dir():
        parser.error(f"there is no folder {folder}. {hint}")
    try:
        settings = read_settings(folder)
        paths = image_files(folder, out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not paths:
        parser.error(f"{folder} holds no images. {hint}")
    alphabet = args.alphabet or settings.get("alphabet", parse_alphabet("digits"))
    length = args.length or settings.get("length", 4)
    print(f"{len(paths):,} files in {readable(folder)}: texts of {length} from {alphabet!r}")

    started = time.perf_counter()
    pictures, faults = look_over(paths, alphabet, length, args.workers)
    names = {f.path.relative_to(folder).as_posix(): [f.kind, f.detail] for f in faults}
    write_json(run.path("rejected.json"), names)
    if faults:
        print_faults(faults, folder)
        print(f"All of them: {readable(run.path('rejected.json'))}")
    if not pictures:
        raise SystemExit(
            f"None of the {len(paths):,} files in {folder} can be used. Do --alphabet and --length "
            f"fit their names? {hint}"
        )
    if faults and args.strict:
        raise SystemExit(f"{len(faults):,} files can't be used: with --strict nothing is written")

    sizes = Counter(picture.size for picture in pictures)
    common = max(sizes, key=lambda size: (sizes[size], size))
    width = args.width or settings.get("width", common[0])
    height = args.height or settings.get("height", common[1])
    if width * height > MOST_PIXELS:
        parser.error(f"{width}×{height} pixels are too many for a captcha: at most {MOST_PIXELS:,}")
    resized = len(pictures) - sizes[width, height]
    encoded = sum(not (p.plain and p.size == (width, height)) for p in pictures)
    print(f"Images of {width}×{height} pixels: {resized:,} resized, {encoded:,} encoded anew")

    splits = split_up(pictures, args.validation_share, args.test_share, args.seed)
    about = {
        "kind": "captcha",
        "alphabet": alphabet,
        "length": length,
        "width": width,
        "height": height,
        "warp": settings.get("warp", "unknown"),
        "seed": settings.get("seed"),
        "captcha": settings.get("captcha"),
        "fonts": settings.get("fonts", []),
    }
    try:
        before = read_info(out)["splits"]
    except DatasetError:
        before = {}
    try:
        # To read a file that is stored as it is takes less than to send it between processes.
        workers = args.workers if encoded > len(pictures) // 10 else 1
        to_features = ToFeatures(alphabet, (width, height))
        write_dataset(out, splits, to_features, args.shards, workers, about)
        remove_old_shards(out, before)
        read_back(out, splits, about)
    except (OSError, ValueError) as error:
        raise SystemExit(f"The records could not be written: {error}") from None
    seconds = time.perf_counter() - started

    table = Table("split", "images", "texts", "of them in train", "MB", title=readable(out))
    known = {picture.text for picture in splits.get("train", ())}
    for split, shards in read_info(out)["splits"].items():
        texts = {picture.text for picture in splits[split]}
        size = sum((out / shard["file"]).stat().st_size for shard in shards) / 1e6
        seen = f"{len(texts & known) / len(texts):.0%}" if split != "train" else ""
        table.add_row(split, f"{len(splits[split]):,}", f"{len(texts):,}", seen, f"{size:.1f}")
    Console().print(table)
    first, items = next(iter(splits.items()))
    shard = out / read_info(out)["splits"][first][0]["file"]
    print(f"The first record of {shard.name}, text {items[0].text!r}:\n{first_example(shard)}")

    texts = [picture.text for picture in items]
    run.save_figure(show_characters(texts, alphabet, first), "characters")
    metrics = {f"{split}_images": len(items) for split, items in splits.items()}
    run.finish(
        {"images": len(pictures), "left_out": len(faults), **metrics},
        data={"source": f"images in {readable(folder)}", "stand_in": False},
        records_seconds=round(seconds, 3),
    )


if __name__ == "__main__":
    main()
