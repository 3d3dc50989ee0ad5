"""Folders of photos: a look at every file, and a split that stays
==================================================================

A data set of photos is a folder with a folder for each class in it, whose name is the label::

    my_photos/cat/*.jpg   my_photos/dog/*.jpg   …

or the same below ``train/``, ``validation/`` and ``test/``, or a CSV file with a line
``file,label`` for each photo. This module finds such a folder or fetches one, looks at every file
before any work is done, and splits the photos into training, validation and test set. To see what
will be made of a folder, or to fetch flower_photos (229 MB, 3,670 photos, CC-BY)::

    python data/photos.py my_photos
    python data/photos.py
"""

import argparse
import base64
import csv
import hashlib
import importlib.resources
import io
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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track

from data.download import DownloadError, fetch
from data.images import SUFFIXES, encoded, load_image, orientation
from utils.run import positive_int, write_json, written_whole

CACHE = Path(__file__).resolve().parent
FLOWERS = "flower_photos"
FLOWERS_PATH = "download.tensorflow.org/example_images/flower_photos.tgz"
FLOWERS_URLS = (f"http://{FLOWERS_PATH}", f"https://storage.googleapis.com/{FLOWERS_PATH}")
FLOWERS_SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
STAND_IN = "photos_stand_in"  # generated pictures
STAND_IN_CLASSES = ("circles", "crosses", "stripes", "triangles")
STAND_IN_COUNT = 40  # of each class

JUNK = {"Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX"}
FEW = 20  # photos of a class; Google's retrain.py warned below this number
FEWEST = 3  # one each to train on, to validate and to test
BLOCK = 512  # photos that are compared with all others at a time
SHOWN = 5  # names to print of each kind of fault
SIDE = 24  # of the thumbnail
NEAR = 0.98  # least likeness of near-copies; of the 600 flowers no two are above 0.67
NEAR_FLAT = 0.995  # of pictures with little in them
FLAT, STEP = 0.1, 8  # these have less than this share of steps of 8 of 256 levels
NOHASH = "_nohash_"
SETS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SETS |= {"val": "validation", "test": "test", "testing": "test"}  # names of folders, in any case


class PhotosError(ValueError):
    """A folder of photos can't be used; the message is a sentence for its owner."""


class Photo(NamedTuple):
    """A photo that can be used: its class, the SHA-256 of its file, its width and height in
    pixels, upright, 24×24 grey pixels to find its near-copies by (none of a tiny one), and the
    set whose folder it lies in, if any."""

    path: Path
    label: str
    digest: str
    width: int
    height: int
    thumbnail: bytes = b""
    part: str = ""


class Fault(NamedTuple):
    """A file or folder that is left out: the kind of its fault, and more to say about it."""

    path: Path
    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Scan:
    """What is in a folder of photos: the labels, sorted; the photos that can be used, by class and
    name; what is left out; and sentences about what may not be as its owner believes."""

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
    """Look at every file in a folder of class folders, or in a CSV file.

    Args:
        folder: as described at the top of this file.
        workers: threads that decode; by default as many as the machine has cores.
        cache: a JSON file that keeps what was found, by name, size and time of change, so that the
            next look takes no more than listing the files.
        per_class: use only so many photos of each class (and set), those with the smallest SHA-256.

    Raises PhotosError, unless there are photos of at least two classes, and OSError.
    """
    faults, named = _list_csv(folder) if folder.is_file() else _list_files(folder)
    folder = folder.parent if folder.is_file() else folder
    looks = _look_at_all(folder, [path for path, _, _ in named], workers, cache)
    by_digest: dict[str, list[Photo]] = {}
    for path, label, part in named:
        look = looks[path]
        if "kind" in look:
            faults.append(Fault(path, look["kind"], look["detail"]))
            continue
        grey = base64.b64decode(look["thumbnail"])
        photo = Photo(path, label, look["digest"], *look["size"], grey, part)
        by_digest.setdefault(photo.digest, []).append(photo)
    good: dict[str, list[Photo]] = {label: [] for _, label, _ in named}
    for first, *others in by_digest.values():
        if len(labels := {photo.label for photo in (first, *others)}) > 1:
            kind, detail = "one photo in several classes", " and ".join(sorted(labels))
            faults += [Fault(photo.path, kind, detail) for photo in (first, *others)]
        else:
            good[first.label].append(first)
            faults += [Fault(p.path, "a copy", f"of {first.path.name}") for p in others]
    notes = []
    parts = {part for _, _, part in named}
    for label, photos in good.items():
        lacking = parts - {photo.part for photo in photos}
        if lacking or len(photos) < FEWEST:
            detail = f"none in {min(lacking)}" if any(lacking) else f"{len(photos)}"
            faults.append(Fault(folder / label, "a class with too few photos", detail))
            good[label] = []
        elif len(photos) < FEW:
            notes.append(f"{label!r} has {len(photos)} photos: too few to train and to test well")
    classes = sorted(label for label, photos in good.items() if photos)
    if len(classes) < 2:
        reasons = [f"{_name(f.path, folder)}: {f.kind} {f.detail}" for f in faults]
        found = f"only one class, {classes[0]!r}" if classes else "no class with photos"
        raise PhotosError(
            f"{folder} holds {found}. It needs a folder for each of at least two classes, with "
            "photos in it." + (f"\n  {_some('Left out', reasons)}" if reasons else "")
        )
    photos = []
    for label in classes:
        chosen = sorted(good[label], key=lambda photo: photo.digest)
        chosen = [p for part in parts for p in [q for q in chosen if q.part == part][:per_class]]
        photos += sorted(chosen, key=lambda photo: (photo.part, photo.path.name))
    pairs: dict[str, list[str]] = {}
    for a, b in near_copies(photos):
        where = "one class, kept in one set" if a.part == b.part else f"{a.part} and {b.part}"
        what = f"nearly the same photo in {where if a.label == b.label else 'two classes'}"
        pairs.setdefault(what, []).append(f"{_name(a.path, folder)} and {_name(b.path, folder)}")
    notes += [_some(what, found) for what, found in pairs.items()]
    return Scan(folder, classes, photos, sorted(faults), notes)


def _name(path: Path, folder: Path) -> str:
    """The path in the folder; all of it if it is elsewhere, where a CSV file may point."""
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _some(what: str, items: Sequence[str]) -> str:
    more = f" … ({len(items):,} in all)" if len(items) > SHOWN else ""
    return f"{what}: {', '.join(items[:SHOWN])}{more}"


Named = list[tuple[Path, str, str]]  # files that may be photos: path, label, set


def _list_files(folder: Path) -> tuple[list[Fault], Named]:
    """The faults that names tell, and the files that may be photos."""
    if not folder.is_dir():
        raise PhotosError(f"there is no folder {folder}")
    faults: list[Fault] = []
    named: Named = []
    for part, place in _sets(folder):
        for entry in _visible(place, faults):
            if not entry.is_dir():
                if entry.suffix.lower() in SUFFIXES:
                    faults.append(Fault(entry, "in no class's folder"))
                continue
            files = _visible(entry, faults)
            deeper = {path for path in files if path.is_dir()}
            faults += [Fault(path, "a folder inside a class's folder") for path in deeper]
            named += [(path, entry.name, part) for path in files if path not in deeper]
            if len(files) == len(deeper):
                faults.append(Fault(entry, "a class with too few photos", "none"))
    return faults, named


def _sets(folder: Path) -> list[tuple[str, Path]]:
    """The folders of the sets, the test's first (of two equal files it keeps one); without such
    folders the folder itself."""
    inside = [path for path in _visible(folder, []) if path.is_dir()]
    found = {SETS.get(path.name.lower()): path for path in inside}
    deep = all(any(entry.is_dir() for entry in path.iterdir()) for path in inside)
    if len(found) == len(inside) > 1 and "train" in found and None not in found and deep:
        return [(part, found[part]) for part in ("test", "validation", "train") if part in found]
    return [("", folder)]


def _visible(folder: Path, faults: list[Fault]) -> list[Path]:
    """What is in a folder, sorted; hidden and system files are added to ``faults``."""
    inside = sorted(folder.iterdir())
    hidden = [path for path in inside if path.name.startswith(".") or path.name in JUNK]
    faults += [Fault(path, "hidden, or a system's own file") for path in hidden]
    return [path for path in inside if path not in hidden]


def _list_csv(file: Path) -> tuple[list[Fault], Named]:
    """The photos that a CSV file names, by lines of ``file,label``; paths begin at its folder."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = [[word.strip() for word in row] for row in csv.reader(lines) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise PhotosError(f"{file} is no CSV file in UTF-8: {error}") from None
    for row in rows:
        if len(row) != 2 or not all(row):
            raise PhotosError(f"{file}: expected file,label, found {','.join(row)}")
    if rows[:1] == [["file", "label"]]:
        del rows[0]
    return [], [(file.parent / name, label, "") for name, label in rows]


def _look_at_all(
    folder: Path, paths: Sequence[Path], workers: int | None, cache: Path | None
) -> dict[Path, dict[str, Any]]:
    """What ``_look_at`` says of each path, taken from the cache where it knows the file."""
    known: dict[str, Any] = {}
    if cache is not None:
        with suppress(OSError, ValueError, TypeError):  # missing or damaged: look again
            known = dict(json.loads(cache.read_text(encoding="utf-8")))
    keys = {}
    for path in paths:
        state = path.stat() if path.exists() else None  # None: a link to nothing
        keys[path] = f"{_name(path, folder)} {state and (state.st_size, state.st_mtime_ns)}"
    looks = {path: known[key] for path, key in keys.items() if isinstance(known.get(key), dict)}
    new = [path for path in keys if path not in looks]
    try:
        with ThreadPool(workers) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about oddities in files it can read
            results = pool.imap(_look_at, new)
            shown = track(results, "Looking at photos", len(new), disable=not new)
            looks |= zip(new, shown, strict=True)
    finally:  # also after Ctrl-C: what was seen need not be seen again
        if cache is not None and new:
            write_json(cache, {keys[path]: look for path, look in looks.items()})
    return looks


def _look_at(path: Path) -> dict[str, Any]:
    """Check a file by decoding it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        detail = "a link to nothing" if path.is_symlink() else error.strerror
        return {"kind": "a file that can't be read", "detail": detail}
    try:
        pixels = load_image(content, shorter=8 * SIDE)  # reads a JPEG to its end, but quickly
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
    except Exception as error:  # a broken file may raise almost anything in some decoder
        return {"kind": "no whole image" if content else "an empty file", "detail": str(error)}
    return {
        "digest": hashlib.sha256(content).hexdigest(),
        "size": size[::-1] if orientation(content) >= 5 else size,
        "thumbnail": base64.b64encode(thumbnail(pixels)).decode(),
    }


# %%
# Copies that are not the same bytes
# ----------------------------------
# A photo saved again, made smaller or mirrored is another file with the same picture. Shrunk to
# 24×24 grey pixels the two hardly differ. What is compared are the steps from each pixel to its
# right and its lower neighbour, 1,058 numbers: their cosine is 1 for the same picture, brighter or
# darker too, and near 0 for two pictures that have nothing in common.
#
# Pictures of a small thing on plain ground have few steps, and two bolts in the same place are
# much alike, so more is asked of these. Pictures with fewer than 24 pixels on a side are not
# compared. Even so two photos may be taken for one, so nothing is thrown away for it: near-copies
# come into the same set, and are listed.


def thumbnail(pixels: np.ndarray) -> bytes:
    """24×24 grey pixels of an image, uint8 [h, w, 3]; none of an image smaller than that."""
    if min(pixels.shape[:2]) < SIDE:
        return b""
    grey = Image.fromarray(pixels).convert("L")
    return grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR).tobytes()


def near_copies(photos: Sequence[Photo]) -> list[tuple[Photo, Photo]]:
    """The pairs of photos that show the same, also mirrored."""
    seen = [photo for photo in photos if photo.thumbnail]
    return [(seen[a], seen[b]) for a, b in _near(tuple(photo.thumbnail for photo in seen))]


@lru_cache(maxsize=1)
def _near(thumbnails: tuple[bytes, ...]) -> list[tuple[int, int]]:
    grey = np.frombuffer(b"".join(thumbnails), np.uint8).astype(np.float32)
    grey = grey.reshape(-1, SIDE, SIDE)
    steps, mirrored = _steps(grey), _steps(grey[:, :, ::-1])  # [n, 1058]
    flat = (np.abs(steps) > STEP).mean(axis=1) < FLAT
    least = np.where(flat, NEAR_FLAT, NEAR).astype(np.float32)
    for vectors in steps, mirrored:  # to length 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    pairs = []
    for start in range(0, len(steps), BLOCK):
        rows = slice(start, start + BLOCK)
        alike = np.maximum(steps[rows] @ steps[start:].T, steps[rows] @ mirrored[start:].T)
        enough = alike >= np.maximum(least[rows, np.newaxis], least[start:])
        first, second = np.nonzero(np.triu(enough, 1))
        pairs += zip((first + start).tolist(), (second + start).tolist(), strict=True)
    return pairs


def _steps(grey: np.ndarray) -> np.ndarray:
    """From each pixel but the last to its right and its lower neighbour: [n, 2 (SIDE - 1)²]."""
    here = grey[:, :-1, :-1]
    steps = np.stack([grey[:, :-1, 1:] - here, grey[:, 1:, :-1] - here], axis=1)
    return steps.reshape(len(grey), 2 * (SIDE - 1) ** 2)


# %%
# Splits that stay
# ----------------
# Which set a photo is in is decided by a hash of its content, as a number from 0 to 100: below
# the validation percentage it validates, then it tests, the rest trains. So neither a new name
# nor another folder nor more photos can move a photo from the training set to the test set, where
# it would be recognised rather than classified. Google's retrain.py did this with the name. From
# it comes this rule, too: photos whose names are equal up to ``_nohash_`` (of one plant, one
# person) belong together, and the hash of what they share decides. Near-copies belong together in
# the same way. (One that is added later can move its group.)
#
# By chance a small class may have no photo in one of the sets. Then one is moved there, and a
# file remembers it, since the next photo added might make the move unnecessary.
#
# Photos that lie in folders of sets are not moved. What has no folder, mostly the validation set,
# is taken from the training photos in the same way.


def split(
    photos: Sequence[Photo],
    validation_percentage: float,
    testing_percentage: float,
    memory: Path | None = None,
    keep_near_copies: bool = False,
) -> dict[str, list[Photo]]:
    """Split photos into ``train``, ``validation`` and ``test``.

    Args:
        photos: those of a scan.
        validation_percentage, testing_percentage: 0 to 100, of all photos, roughly. No set is
            empty in any class, except one of 0 %.
        memory: a JSON file that keeps which photos were moved, for later splits.
        keep_near_copies: treat near-copies as any other photos.

    Raises PhotosError if the percentages leave nothing to train on, or a class is too small.
    """
    percentages = {"validation": validation_percentage, "test": testing_percentage}
    if min(percentages.values()) < 0 or sum(percentages.values()) >= 100:
        raise PhotosError(
            f"{validation_percentage:g} % for validation and {testing_percentage:g} % for the test "
            "leave nothing to train on"
        )
    for part in {photo.part for photo in photos} & percentages.keys():
        percentages[part] = 0  # it has its folder
    wanted = [name for name, percentage in percentages.items() if percentage > 0] + ["train"]

    def by_hash(group: str) -> str:
        places = zip(accumulate(percentages.values()), percentages, strict=True)
        return next((name for end, name in places if _place(group) < end), "train")

    remembered: dict[str, Any] = {}
    if memory is not None:
        with suppress(OSError, ValueError):
            remembered = dict(json.loads(memory.read_text(encoding="utf-8")))
    setting = f"{percentages['validation']:g} {percentages['test']:g}"
    moved = {g: s for g, s in dict(remembered.get(setting, {})).items() if s in wanted}
    known = dict(moved)
    free = [photo for photo in photos if photo.part in ("", "train")]
    groups = groups_of(free, len(wanted), keep_near_copies)
    sets = {group: moved.get(group) or by_hash(group) for group in groups.values()}
    for label in dict.fromkeys(photo.label for photo in free):
        own = sorted({groups[photo] for photo in free if photo.label == label}, key=_place)
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
    chosen = {photo: sets[groups[photo]] if photo in groups else photo.part for photo in photos}
    return {n: [p for p in photos if chosen[p] == n] for n in ("train", "validation", "test")}


def groups_of(photos: Sequence[Photo], least: int, keep_near_copies: bool) -> dict[Photo, str]:
    """What the hash is taken of, for each photo: the same for photos that belong together.

    A class of which almost all belongs together (the frames of one film), so that there are fewer
    than ``least`` groups or one holds more than half, is split by its photos one by one."""
    groups = {}
    for photo in photos:
        stem, nohash, _ = photo.path.name.partition(NOHASH)
        groups[photo] = f"name:{stem}" if nohash else photo.digest
    if keep_near_copies:
        return groups
    parents = {group: group for group in groups.values()}

    def first(group: str) -> str:
        while parents[group] != group:
            group = parents[group] = parents[parents[group]]
        return group

    for a, b in near_copies(photos):
        one, other = sorted((first(groups[a]), first(groups[b])))
        parents[other] = one
    joined = {photo: first(group) for photo, group in groups.items()}
    for label in dict.fromkeys(photo.label for photo in photos):
        own = [photo for photo in photos if photo.label == label]
        sizes = Counter(joined[photo] for photo in own)
        if len(sizes) < least or max(sizes.values()) > max(FEW, len(own) / 2):
            if len(sizes) < len({groups[photo] for photo in own}):
                print(f"Note: photos of {label!r} are so much alike that every set has near-copies")
            joined |= {photo: groups[photo] for photo in own}
    return joined


def _place(group: str) -> float:
    """A number from 0 to 100, always the same for a group, otherwise as good as random."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64 * 100


def read(photo: Photo, turned: bool = False) -> bytes:
    """The photo as a JPEG or PNG file that TensorFlow decodes as it is seen, or, with ``turned``,
    as ``images.decode`` does (see ``images.encoded``). Raises OSError if the file was changed
    since it was looked at."""
    content = photo.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != photo.digest:
        raise OSError(f"{photo.path} was changed while it was in use: start again")
    return encoded(content, turned)


# %%
# What a person gets to see of it
# -------------------------------


def print_report(scan: Scan) -> None:
    """How many photos there are of each class, what was left out and why, and the warnings."""
    counts = Counter(photo.label for photo in scan.photos)
    listed = ", ".join(f"{label} {counts[label]:,}" for label in scan.classes)
    print(f"{len(scan.photos):,} photos of {len(scan.classes)} classes: {listed}")
    kinds: dict[str, list[str]] = {}
    for path, kind, detail in scan.faults:
        kinds.setdefault(kind, []).append(f"{_name(path, scan.folder)} {detail}".strip())
    for kind, names in kinds.items():
        print(f"Left out, {_some(kind, names)}")
    for warning in scan.warnings:
        print(f"Note: {warning}.")


def add_image_dir(parser: Any) -> None:
    """Add ``--image-dir`` and ``--per-class``, the flags of the scripts that train on photos."""
    image_dir = "a folder with a folder of photos for each class, or a CSV file of file,label"
    image_dir += " (default: flower_photos, found in COURSE_DATA or downloaded)"
    per_class = "use only N photos of each class (default: all; with --quick 20)"
    add, names = parser.add_argument, ("--per-class", "--per_class")
    add("--image-dir", "--image_dir", type=Path, metavar="DIR", help=image_dir)
    add(*names, type=positive_int, quick=20, metavar="N", help=per_class)


def find_photos(image_dir: Path | None, quick: bool = False) -> tuple[Path, dict[str, Any]]:
    """The folder or CSV file to train on, and what ``result.json`` says of it.

    The places: ``image_dir``; ``flower_photos`` in the folder named by the environment variable
    COURSE_DATA; ``data/flower_photos``; the download, but not with ``quick``; at last generated
    pictures, which are announced. Raises PhotosError if ``image_dir`` is not a folder.
    """
    if image_dir is not None:
        # On Windows the argument "C:\\photos\\" --quick is C:\\photos" --quick
        name, quote, more = str(image_dir).partition('"')
        if quote and more.strip() and not image_dir.exists():
            raise PhotosError(f"--image-dir: {image_dir}: no backslash before the closing quote")
        folder = (image_dir if image_dir.exists() else Path(name)).expanduser().resolve()
        if not (folder.is_dir() or (folder.is_file() and folder.suffix.lower() == ".csv")):
            raise PhotosError(f"--image-dir: there is no folder {folder}")
        return folder, {"source": f"photos in {folder}", "stand_in": False}
    named = os.environ.get("COURSE_DATA")
    folders = [*([Path(named).expanduser().resolve()] if named else []), CACHE]
    for folder in (folder / FLOWERS for folder in folders):
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
    """Download flower_photos into ``data/flower_photos``. Raises DownloadError."""
    folder = CACHE / FLOWERS
    for left in CACHE.glob(".unpacking-*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    archive = fetch(FLOWERS_URLS, CACHE / f"{FLOWERS}.tgz", FLOWERS_SHA256)
    try:
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=CACHE) as temporary:
            shutil.unpack_archive(archive, temporary, filter="data")
            Path(temporary, FLOWERS).replace(folder)
    except (tarfile.TarError, shutil.ReadError, EOFError, zlib.error, OSError) as error:
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
            draw.circle((x, y), r, fill=colour)
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


def print_split(parts: dict[str, list[Photo]], classes: Sequence[str]) -> None:
    """How many photos of each class are in each set."""
    counts = {name: Counter(photo.label for photo in photos) for name, photos in parts.items()}
    width = max(map(len, (*classes, "all")))
    print(" " * width, *(f"{name:>10}" for name in parts))
    for label in classes:
        print(f"{label:{width}}", *(f"{count[label]:>10,}" for count in counts.values()))
    print(f"{'all':{width}}", *(f"{len(photos):>10,}" for photos in parts.values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="or a CSV file")
    args = parser.parse_args()
    try:
        folder, data = find_photos(args.folder)
        print(data["source"])
        found = scan(folder)
        print_report(found)
        print_split(split(found.photos, 10, 10), found.classes)
    except (PhotosError, OSError) as error:
        parser.error(str(error))
    sys.exit("flower_photos itself could not be had." if data["stand_in"] else 0)


if __name__ == "__main__":
    main()
