"""Folders of photos: a look at every file, and a split that stays
==================================================================

A data set of photos is a folder with a folder for each class in it, whose name is the label::

    my_photos/cat/*.jpg   my_photos/dog/*.jpg   …

This module finds such a folder or fetches one, looks at every file before any work is done, and
splits the photos into training, validation and test set. Run it to see what the scripts of
``inception_v3/`` will make of a folder, or to fetch TensorFlow's flower_photos beforehand (229
MB, 3,670 photos of five flowers, CC-BY, credits in its ``LICENSE.txt``)::

    python data/photos.py my_photos
    python data/photos.py
"""

import argparse
import hashlib
import importlib.resources
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from PIL import Image, ImageDraw
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from data.download import DownloadError, fetch
from data.images import SUFFIXES, encoded, load_image
from utils.run import positive_int, write_json, written_whole

CACHE = Path(__file__).resolve().parent
FLOWERS = "flower_photos"
FLOWERS_URLS = (
    "http://download.tensorflow.org/example_images/flower_photos.tgz",
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
)
FLOWERS_SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
STAND_IN = "photos_stand_in"  # generated pictures
STAND_IN_CLASSES = ("circles", "crosses", "stripes", "triangles")
STAND_IN_COUNT = 40  # of each class

JUNK = {"Thumbs.db", "desktop.ini", "Icon\r"}
FEW = 20  # photos of a class; Google's retrain.py warned below this number
FEWEST = 3  # one each to train on, to validate and to test
CHUNK = 50  # files a worker process looks at before it reports
SHOWN = 5  # names to print of each kind of fault
SIDE = 16  # of the fingerprint
NEAR = 32  # of 256 bits in which near-copies may differ; the nearest two of 600 flowers: 59
NOHASH = "_nohash_"


class PhotosError(ValueError):
    """A folder of photos can't be used; the message is a sentence for its owner."""


class Photo(NamedTuple):
    """A photo that can be used: its class, the SHA-256 of its file, its width and height in
    pixels, upright, and a fingerprint of what is to be seen on it."""

    path: Path
    label: str
    digest: str
    width: int
    height: int
    fingerprint: int


class Fault(NamedTuple):
    """A file or folder that is left out: the kind of its fault, and more to say about it."""

    path: Path
    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Scan:
    """What is in a folder of photos.

    Attributes:
        folder: the folder.
        classes: the labels, sorted; at least two.
        photos: those that can be used, by class and name.
        faults: all that is left out.
        warnings: sentences about what is used but may not be as its owner believes.
    """

    folder: Path
    classes: list[str]
    photos: list[Photo]
    faults: list[Fault]
    warnings: list[str]


# %%
# A look at every file
# --------------------
# Each file is decoded once: a photo that was cut short has a good header still. What the file is
# called doesn't matter, what it holds does. Two files of the same bytes count once; if they lie
# in different classes, one label is wrong, and neither is used.


def scan(
    folder: Path,
    workers: int | None = None,
    cache: Path | None = None,
    per_class: int | None = None,
) -> Scan:
    """Look at every file in a folder of class folders.

    Args:
        folder: holds a folder for each class.
        workers: processes that decode; by default as many as the machine has cores.
        cache: a JSON file that keeps what was found, by path, size and time of change, so that
            the next look takes no more than listing the files. It may be deleted any time.
        per_class: use only so many photos of each class, those with the smallest SHA-256.

    Raises:
        PhotosError: there is no such folder, or it doesn't hold photos of at least two classes.
        OSError: the folder can't be read, or the cache can't be written.
    """
    if not folder.is_dir():
        raise PhotosError(f"there is no folder {folder}")
    faults, named = _list_files(folder)
    looks = _look_at_all(
        folder, [path for paths in named.values() for path in paths], workers, cache
    )
    by_digest: dict[str, list[Photo]] = {}
    misnamed = []
    for label, paths in named.items():
        for path in paths:
            look = looks[path]
            if "kind" in look:
                faults.append(Fault(path, look["kind"], look["detail"]))
                continue
            photo = Photo(path, label, look["digest"], *look["size"], int(look["print"], 16))
            by_digest.setdefault(photo.digest, []).append(photo)
            if look["misnamed"]:
                misnamed.append(f"{_short(path)} is a {look['misnamed']}")
    good: dict[str, list[Photo]] = {label: [] for label in named}
    for first, *others in by_digest.values():
        if len({photo.label for photo in (first, *others)}) > 1:
            labels = " and ".join(sorted({photo.label for photo in (first, *others)}))
            kind = "one photo in several classes"
            faults += [Fault(photo.path, kind, labels) for photo in (first, *others)]
        else:
            good[first.label].append(first)
            faults += [Fault(p.path, "a copy", f"of {first.path.name}") for p in others]
    notes = []
    for label, photos in good.items():
        if not photos:
            faults.append(Fault(folder / label, "a class without a photo that can be used"))
        elif len(photos) < FEWEST:
            detail = f"{len(photos)}: training, validation and test need one each"
            faults.append(Fault(folder / label, "a class with too few photos", detail))
        elif len(photos) < FEW:
            notes.append(
                f"{label!r} has {len(photos)} photos. With fewer than {FEW} of a class neither the "
                "training nor the test is worth much"
            )
    classes = sorted(label for label, photos in good.items() if len(photos) >= FEWEST)
    if len(classes) < 2:
        raise PhotosError(_too_few_classes(folder, classes, faults))
    photos = [
        photo
        for label in classes
        for photo in sorted(
            sorted(good[label], key=lambda photo: photo.digest)[:per_class],
            key=lambda photo: photo.path.name,
        )
    ]
    if misnamed:
        notes.append(_some("of another format than their names say, used all the same", misnamed))
    strange = [
        f"{_short(a.path)} and {_short(b.path)}"
        for a, b in near_copies(photos)
        if a.label != b.label
    ]
    if strange:
        notes.append(_some("nearly the same photo in two classes", strange))
    return Scan(folder, classes, photos, sorted(faults), notes)


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _some(what: str, items: Sequence[str]) -> str:
    more = f" … ({len(items):,} in all)" if len(items) > SHOWN else ""
    return f"{what}: {', '.join(items[:SHOWN])}{more}"


def _too_few_classes(folder: Path, classes: list[str], faults: list[Fault]) -> str:
    found = f"photos of only one class, {classes[0]!r}" if classes else "no class with photos"
    reasons = [f"{f.path.relative_to(folder).as_posix()}: {f.kind} {f.detail}" for f in faults]
    why = f"\n  Left out: {'; '.join(reasons[:SHOWN])}" if reasons else ""
    return (
        f"{folder} holds {found}. It needs a folder for each of at least two classes, with photos "
        f"in it.{why}"
    )


def _list_files(folder: Path) -> tuple[list[Fault], dict[str, list[Path]]]:
    """The faults that names tell, and the files of each class that may be photos."""
    faults, named = [], {}
    for entry in sorted(folder.iterdir()):
        hidden = entry.name.startswith(".") or entry.name in JUNK or entry.name == "__MACOSX"
        if hidden:
            faults.append(Fault(entry, "hidden, or a system's own file"))
        elif not entry.is_dir():
            if entry.suffix.lower() in SUFFIXES:
                faults.append(Fault(entry, "in no class's folder"))
        else:
            named[entry.name] = []
            for path in sorted(entry.iterdir()):
                if path.name.startswith(".") or path.name in JUNK:
                    faults.append(Fault(path, "hidden, or a system's own file"))
                elif path.is_dir():
                    faults.append(Fault(path, "a folder inside a class's folder"))
                else:
                    named[entry.name].append(path)
    return faults, named


def _look_at_all(
    folder: Path, paths: Sequence[Path], workers: int | None, cache: Path | None
) -> dict[Path, dict[str, Any]]:
    """What ``_look_at`` says of each path, taken from the cache where it knows the file."""
    known: dict[str, Any] = {}
    if cache is not None:
        with suppress(OSError, ValueError):  # missing or damaged: look again
            known = dict(json.loads(cache.read_text(encoding="utf-8")))
    stamps = {}
    for path in paths:
        state = path.stat()
        stamps[path] = [state.st_size, state.st_mtime_ns]
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    looks = {
        path: look
        for path in paths
        if isinstance(look := known.get(names[path]), dict) and look.get("stamp") == stamps[path]
    }
    new = [path for path in paths if path not in looks]
    chunks = [new[i : i + CHUNK] for i in range(0, len(new), CHUNK)]
    workers = min(workers or os.cpu_count() or 1, len(chunks)) or 1
    results = Parallel(workers, return_as="generator")(delayed(_look_at)(c) for c in chunks)
    try:
        with closing(results):
            shown = track(results, "Looking at photos", len(chunks), disable=not new)
            for chunk, found in zip(chunks, shown, strict=True):
                looks |= {
                    path: look | {"stamp": stamps[path]}
                    for path, look in zip(chunk, found, strict=True)
                }
    finally:  # also after Ctrl-C: what was seen need not be seen again
        if cache is not None and new:
            write_json(cache, {names[path]: look for path, look in looks.items()})
    return looks


def _look_at(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Check files by decoding them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about oddities in files it can read
        return [_look_at_one(path) for path in paths]


def _look_at_one(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if not content:
            return {"kind": "an empty file", "detail": ""}
        pixels = load_image(content)
        with Image.open(path) as image:
            kind = image.format
    except Exception as error:  # a broken file may raise almost anything in some decoder
        return {"kind": "no whole image", "detail": str(error)}
    named = Image.registered_extensions().get(path.suffix.lower())
    same = {named, kind} <= {"JPEG", "MPO"} or named in (kind, None)
    return {
        "digest": hashlib.sha256(content).hexdigest(),
        "size": [pixels.shape[1], pixels.shape[0]],
        "print": f"{fingerprint(pixels):x}",
        "misnamed": "" if same else kind,
    }


# %%
# Copies that are not the same bytes
# ----------------------------------
# A photo saved again, or made smaller, is another file with the same picture. Shrunk to 17×16 grey
# pixels, the two differ little; and whether a pixel is darker than its right neighbour differs in
# still fewer places. These 256 answers are a fingerprint (dHash: N. Krawetz, *Kind of like that*,
# hackerfactor.com, 2013).


def fingerprint(pixels: np.ndarray) -> int:
    """The 256-bit difference hash of an image, uint8 [h, w, 3]."""
    grey = Image.fromarray(pixels).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    small = np.asarray(grey).astype(int)
    bits = small[:, 1:] > small[:, :-1]  # [16, 16]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_copies(photos: Sequence[Photo], most: int = NEAR) -> list[tuple[Photo, Photo]]:
    """The pairs of photos whose fingerprints differ in at most ``most`` bits."""
    return [(photos[a], photos[b]) for a, b in _near(tuple(p.fingerprint for p in photos), most)]


@lru_cache(maxsize=1)
def _near(fingerprints: tuple[int, ...], most: int) -> list[tuple[int, int]]:
    size = SIDE * SIDE // 8
    words = np.frombuffer(b"".join(f.to_bytes(size, "big") for f in fingerprints), np.uint64)
    words = words.reshape(len(fingerprints), -1)  # [n, 4]
    pairs = []
    for i in range(len(words) - 1):
        differ = np.bitwise_count(words[i + 1 :] ^ words[i]).sum(axis=1, dtype=np.int32)
        pairs += [(i, i + 1 + int(k)) for k in np.flatnonzero(differ <= most)]
    return pairs


# %%
# Splits that stay
# ----------------
# Which set a photo is in is decided by a hash of its content, as a number from 0 to 100: below
# the validation percentage it validates, then it tests, the rest trains. So neither a new name
# nor another folder nor more photos can move a photo from the training set to the test set, where
# it would be recognised rather than classified. Google's retrain.py did this with the name. From
# it comes this rule, too: photos whose names are equal up to ``_nohash_`` (of one plant, one
# person) belong together, and the hash of what they share decides.
#
# By chance a small class may have no photo in one of the sets. Then one is moved there, and a
# file remembers it, since the next photo added might make the move unnecessary. And a photo that
# is nearly the same as one of another set would give away the answer: it is left out, of the
# training before all.


def split(
    photos: Sequence[Photo],
    validation_percentage: float,
    testing_percentage: float,
    memory: Path | None = None,
) -> dict[str, list[Photo]]:
    """Split photos into ``train``, ``validation``, ``test``, and ``left_out``, near-copies.

    Args:
        photos: those of a scan.
        validation_percentage, testing_percentage: 0 to 100, of all photos, roughly. No set is
            empty in any class, except one of 0 %.
        memory: a JSON file that keeps which photos were moved, for later splits.

    Raises:
        PhotosError: the percentages leave nothing to train on, or a class is too small.
        OSError: the memory can't be written.
    """
    percentages = {"validation": validation_percentage, "test": testing_percentage}
    if min(percentages.values()) < 0 or sum(percentages.values()) >= 100:
        raise PhotosError(
            f"{validation_percentage:g} % for validation and {testing_percentage:g} % for the test "
            "leave nothing to train on"
        )
    wanted = [name for name, percentage in percentages.items() if percentage > 0] + ["train"]

    def by_hash(group: str) -> str:
        place = _place(group)
        if place < validation_percentage:
            return "validation"
        return "test" if place < validation_percentage + testing_percentage else "train"

    remembered: dict[str, Any] = {}
    if memory is not None:
        with suppress(OSError, ValueError):
            remembered = dict(json.loads(memory.read_text(encoding="utf-8")))
    setting = f"{validation_percentage:g} {testing_percentage:g}"
    moved = {g: s for g, s in dict(remembered.get(setting, {})).items() if s in wanted}
    known = dict(moved)
    groups = {photo: _group(photo) for photo in photos}
    sets = {group: moved.get(group) or by_hash(group) for group in groups.values()}
    for label in dict.fromkeys(photo.label for photo in photos):
        own = sorted({groups[photo] for photo in photos if photo.label == label}, key=_place)
        if len(own) < len(wanted):
            raise PhotosError(
                f"the class {label!r} has {len(own)} different photos: {', '.join(wanted)} need at "
                "least one each. Add photos, or take its folder away"
            )
        for name in wanted:
            counts = Counter(sets[group] for group in own)
            if not counts[name]:
                (most, _), *_ = counts.most_common(1)
                first = next(group for group in own if sets[group] == most)
                sets[first] = moved[first] = name
    if memory is not None and moved != known:
        write_json(memory, remembered | {setting: moved})

    chosen = {photo: sets[groups[photo]] for photo in photos}
    rank = {"test": 0, "validation": 1, "train": 2, "left_out": 3}
    for pair in near_copies(photos):
        first, second = sorted(pair, key=lambda photo: rank[chosen[photo]])
        if chosen[first] != chosen[second] and chosen[second] != "left_out":
            chosen[second] = "left_out"
    parts = {name: [p for p in photos if chosen[p] == name] for name in rank}
    for name in wanted:
        missing = {photo.label for photo in photos} - {photo.label for photo in parts[name]}
        if missing:
            raise PhotosError(
                f"the class {min(missing)!r} has no photo left for {name}: its photos are too "
                "much alike, or share what stands before _nohash_ in their names"
            )
    return {name: parts[name] for name in ("train", "validation", "test", "left_out")}


def _group(photo: Photo) -> str:
    """What the hash is taken of."""
    stem, nohash, _ = photo.path.name.partition(NOHASH)
    return f"name:{stem}" if nohash else photo.digest


def _place(group: str) -> float:
    """A number from 0 to 100, always the same for a group, otherwise as good as random."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64 * 100


def read(photo: Photo) -> bytes:
    """The photo as a JPEG or PNG file that TensorFlow decodes as it is seen (see ``encoded``).
    Raises OSError if the file was changed since it was looked at."""
    content = photo.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != photo.digest:
        raise OSError(f"{photo.path} was changed while it was in use: start again")
    return encoded(content)


# %%
# What a person gets to see of it
# -------------------------------


def print_report(scan: Scan) -> None:
    """The photos of each class, what was left out and why, and the warnings."""
    console = Console()
    counts = Counter(photo.label for photo in scan.photos)
    sizes = [f"{photo.width}×{photo.height}" for photo in scan.photos]
    common, _ = Counter(sizes).most_common(1)[0]
    table = Table("class", "photos", title=f"{len(scan.photos):,} photos, most of {common} pixels")
    for label in scan.classes:
        table.add_row(escape(label), f"{counts[label]:,}")
    console.print(table)
    kinds: dict[str, list[Fault]] = {}
    for fault in scan.faults:
        kinds.setdefault(fault.kind, []).append(fault)
    if kinds:
        table = Table("fault", "files", "which", title="Left out")
        for kind, some in sorted(kinds.items(), key=lambda item: -len(item[1])):
            names = [
                f"{fault.path.relative_to(scan.folder).as_posix()}: {fault.detail}".rstrip(": ")
                for fault in some[:SHOWN]
            ]
            names += ["…"] * (len(some) > SHOWN)
            table.add_row(kind, f"{len(some):,}", escape("\n".join(names)))
        console.print(table)
    for warning in scan.warnings:
        console.print(f"Note: {warning}.", markup=False, highlight=False)


def add_image_dir(parser: Any) -> None:
    """Add ``--image-dir`` and ``--per-class``, the flags of the scripts that train on photos."""
    parser.add_argument(
        "--image-dir",
        "--image_dir",
        type=Path,
        metavar="DIR",
        help="a folder with a folder of photos for each class (default: flower_photos, in the "
        "folder named by the environment variable COURSE_DATA or downloaded)",
    )
    parser.add_argument(
        "--per-class",
        "--per_class",
        type=positive_int,
        quick=20,
        metavar="N",
        help="use only N photos of each class (default: all; with --quick 20)",
    )


def find_photos(image_dir: Path | None, quick: bool = False) -> tuple[Path, dict[str, Any]]:
    """The folder to train on, and what ``result.json`` says of it.

    The places: ``image_dir``; ``flower_photos`` in the folder named by the environment variable
    COURSE_DATA; ``data/flower_photos``; the download, but not with ``quick``; at last generated
    pictures, which are announced.

    Raises:
        PhotosError: ``image_dir`` is not a folder.
    """
    if image_dir is not None:
        folder = image_dir.expanduser().resolve()
        if not folder.is_dir():
            raise PhotosError(f"--image-dir: there is no folder {folder}")
        return folder, {"source": f"photos in {folder}", "stand_in": False}
    folders = [CACHE / FLOWERS]
    if os.environ.get("COURSE_DATA"):
        folders.insert(0, Path(os.environ["COURSE_DATA"]).expanduser().resolve() / FLOWERS)
    for folder in folders:
        if folder.is_dir():
            return folder, {"source": f"flower_photos in {folder}", "stand_in": False}
    reason = "It is not downloaded with --quick."
    if not quick:
        try:
            folder = fetch_flowers()
            return folder, {"source": f"flower_photos in {folder}", "stand_in": False}
        except DownloadError as error:
            reason = str(error)
    print(
        "\n*** STAND-IN DATA: flower_photos is missing; generated pictures of circles, crosses, "
        f"stripes and triangles take its place ***\n{reason}\n"
        "  Or name a folder with a folder of photos for each class, by --image-dir.\n",
        file=sys.stderr,
    )
    source = "generated pictures (stand-in for flower_photos)"
    return make_stand_in(CACHE / STAND_IN), {"source": source, "stand_in": True}


def fetch_flowers() -> Path:
    """Download flower_photos into ``data/flower_photos``; the folder.

    Raises:
        DownloadError: no source delivers it, or it can't be unpacked here.
    """
    folder = CACHE / FLOWERS
    for left in CACHE.glob(".unpacking-*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    archive = fetch(FLOWERS_URLS, CACHE / f"{FLOWERS}.tgz", FLOWERS_SHA256)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".unpacking-", dir=CACHE) as temporary,
            tarfile.open(archive) as tar,
        ):
            members = track(tar.getmembers(), "Unpacking")
            tar.extractall(temporary, members=members, filter="data")
            Path(temporary, FLOWERS).replace(folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DownloadError(f"{archive} can't be unpacked: {error}") from error
    archive.unlink()
    return folder


# %%
# Pictures for when there are no photos
# -------------------------------------


def make_stand_in(folder: Path) -> Path:
    """Draw the stand-in's pictures, JPEG of 320×240, always the same, where they are missing."""
    for label in STAND_IN_CLASSES:
        for number in range(STAND_IN_COUNT):
            path = folder / label / f"{label}_{number:03}.jpg"
            if not path.exists():
                with written_whole(path) as temporary:
                    draw_stand_in(label, number).save(temporary, quality=90)
    return folder


def draw_stand_in(label: str, number: int) -> Image.Image:
    """A picture of some shapes before noise, of colours that say nothing of the class."""
    dice = random.Random(f"{label}:{number}")
    noise = np.random.default_rng(dice.getrandbits(32)).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(dice.randint(2, 5)):
        x, y, r = dice.randint(40, 280), dice.randint(40, 200), dice.randint(20, 60)
        colour = tuple(dice.randrange(256) for _ in range(3))
        if label == "circles":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif label == "crosses":
            draw.rectangle((x - r, y - r // 4, x + r, y + r // 4), fill=colour)
            draw.rectangle((x - r // 4, y - r, x + r // 4, y + r), fill=colour)
        elif label == "stripes":
            for k in range(-2, 3):
                draw.line((x - r, y + k * r // 2, x + r, y + k * r // 2), fill=colour, width=r // 5)
        else:
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    return image


def example_photos() -> list[Path]:
    """The photos that Matplotlib and scikit-learn carry: a woman in uniform (Grace Hopper), a
    temple in China, a flower."""
    from matplotlib import cbook

    images = Path(str(importlib.resources.files("sklearn.datasets") / "images"))
    grace = Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return [grace, images / "china.jpg", images / "flower.jpg"]


def print_split(parts: dict[str, list[Photo]], classes: Iterable[str]) -> None:
    """How many photos of each class are in each set."""
    table = Table("class", *(name.replace("_", " ") for name in parts), title="The split")
    counts = {name: Counter(photo.label for photo in photos) for name, photos in parts.items()}
    for label in classes:
        table.add_row(escape(label), *(f"{count[label]:,}" for count in counts.values()))
    table.add_row("all", *(f"{len(photos):,}" for photos in parts.values()), style="bold")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="a folder with a folder per class")
    args = parser.parse_args()
    try:
        folder, data = find_photos(args.folder)
        print(data["source"])
        found = scan(folder)
        print_report(found)
        print_split(split(found.photos, 10, 10), found.classes)
    except (PhotosError, OSError) as error:
        parser.error(str(error))
    if data["stand_in"]:
        sys.exit("flower_photos itself could not be had.")


if __name__ == "__main__":
    main()
