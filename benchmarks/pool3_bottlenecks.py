"""How fast are bottlenecks computed, and found again?

Three measurements of what ``inception_v3/pool3_train/01_retrain.py`` does before it trains::

    python benchmarks/pool3_bottlenecks.py
    python benchmarks/pool3_bottlenecks.py --only found ready

computed: images per second from the files to the bottlenecks' files, and of the bare network on
batches that lie decoded in memory, by turns. The ratio is what reading, decoding, resizing and
writing cost. The weights don't matter for it, so the network is untrained. The photos are those
of ``--image-dir``, by default flower_photos.

found: seconds to load the features of 3,670 photos, from the pack, from a file for each photo,
and from the text files of Google's retrain.py, parsed as it did. The features are made up.

ready: seconds until a training can begin when everything is cached, for 3,670 small JPEG files
that are made for it: looking over the folder, splitting, loading, each time in a fresh process;
and the same from the start of Python, imports included.
"""

import argparse
import hashlib
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

CHAPTER = Path(__file__).resolve().parents[1] / "inception_v3" / "pool3_train"
sys.path.insert(0, str(CHAPTER))

from retraining import bottlenecks  # noqa: E402

from data.photos import Photo, PhotosError, find_photos, read, scan, split  # noqa: E402
from models import inception_v3  # noqa: E402
from utils.run import positive_int  # noqa: E402

COUNT, CLASSES = 3670, 5  # as flower_photos has
PARTS = ("computed", "found", "ready")
KEY = "made-up"


class Silent:
    """A network that must not be asked."""

    key = KEY

    def compute(self, photos: list[Photo], distortion: object = None) -> None:
        raise AssertionError(f"{len(photos)} photos were not found in the cache")


def quietly(function: Callable, *arguments: object) -> object:
    """Call a function without what it prints."""
    with redirect_stdout(StringIO()):
        return function(*arguments)


def computed(console: Console, folder: Path, photos: int, rounds: int) -> None:
    """The rate of extraction beside that of the bare network."""
    import tensorflow as tf

    network = bottlenecks.KerasNetwork(inception_v3.find_weights("none", False))
    some = scan(folder, per_class=-(-photos // CLASSES)).photos[:photos]
    decoded = [inception_v3.resize(inception_v3.decode(read(photo)), 299) for photo in some]
    starts = range(0, len(some), bottlenecks.BATCH)
    images = [inception_v3.scale(tf.stack(decoded[i : i + bottlenecks.BATCH])) for i in starts]
    for batch in images[:2]:
        network.pool3(batch)
    bare, whole = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        expected = np.concatenate([network.pool3(batch).numpy() for batch in images])
        bare.append(len(some) / (time.perf_counter() - started))
        with tempfile.TemporaryDirectory() as cache:
            started = time.perf_counter()
            found = quietly(bottlenecks.find_features, Path(cache), network, some)
            whole.append(len(some) / (time.perf_counter() - started))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    ratios = [a / b for a, b in zip(whole, bare, strict=True)]
    table = Table("", "images/s", "min – max", title=f"computed: {len(some)} photos of {folder}")
    for name, values in (("bare network", bare), ("files to files", whole)):
        spread = f"{min(values):.2f} – {max(values):.2f}"
        table.add_row(name, f"{statistics.median(values):.2f}", spread)
    spread = f"{min(ratios):.3f} – {max(ratios):.3f}"
    table.add_row("ratio, round by round", f"{statistics.median(ratios):.3f}", spread)
    console.print(table)


def as_retrain_did(paths: list[Path]) -> np.ndarray:
    """Google's retrain.py's way to read its text files."""
    rows = []
    for path in paths:
        with path.open(encoding="utf-8") as file:
            text = file.read()
        rows.append([float(x) for x in text.split(",")])
    return np.array(rows, np.float32)


def found(console: Console, rounds: int) -> None:
    """Loading from the pack, from files of one photo each, from text files."""
    rows = np.random.default_rng(1).gamma(0.6, 0.5, (COUNT, bottlenecks.FEATURES))
    rows = rows.astype(np.float32)
    digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]
    photos = [
        Photo(Path(f"{number}.jpg"), f"class {number % CLASSES}", digest, 1, 1)
        for number, digest in enumerate(digests)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = bottlenecks.Bottlenecks(folder, KEY)
        texts = [folder / photo.label / f"{photo.path.name}.txt" for photo in photos]
        for photo, row, path in zip(photos, rows, texts, strict=True):
            cache.put(photo, row)
            path.write_text(",".join(str(x) for x in row), encoding="utf-8")
        cache.write_pack()

        def load() -> np.ndarray:
            return quietly(bottlenecks.find_features, folder, Silent(), photos)

        def load_files() -> np.ndarray:
            cache.pack_path.unlink()
            started = time.perf_counter()
            single = bottlenecks.Bottlenecks(folder, KEY)
            features = np.stack([single.get(photo) for photo in photos])
            seconds["a file for each photo"].append(time.perf_counter() - started)
            single.write_pack()
            return features

        seconds: dict[str, list[float]] = {}
        ways = {
            "pack": load,
            "a file for each photo": load_files,
            "text files, as retrain.py": lambda: as_retrain_did(texts),
        }
        for _ in range(rounds):
            for name, way in ways.items():
                values = seconds.setdefault(name, [])
                started = time.perf_counter()
                features = way()
                if way is not load_files:
                    values.append(time.perf_counter() - started)
                np.testing.assert_array_equal(features, rows)
    table = Table("from", "seconds", "min – max", "times as fast")
    table.title = f"found: the features of {COUNT:,} photos, median of {rounds} rounds"
    slowest = statistics.median(seconds["text files, as retrain.py"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.3f} – {max(values):.3f}"
        table.add_row(name, f"{middle:.3f}", spread, f"{slowest / middle:.1f}")
    console.print(table)


def look_and_load(folder: Path, cache: Path) -> tuple[float, float, float]:
    """What a second run does before it trains; seconds for scan, split and loading."""
    marks = [time.perf_counter()]
    looked = scan(folder, cache=cache / "scan.json")
    marks.append(time.perf_counter())
    parts = split(looked.photos, 10, 10, memory=cache / "split.json")
    photos = [photo for name in ("train", "validation", "test") for photo in parts[name]]
    marks.append(time.perf_counter())
    quietly(bottlenecks.find_features, cache, Silent(), photos)
    marks.append(time.perf_counter())
    return tuple(np.diff(marks).tolist())


def ready(console: Console, rounds: int) -> None:
    """From nothing to features in memory, everything cached."""
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name, "photos"), Path(name, "cache")
        for number in range(COUNT):
            path = folder / f"class {number % CLASSES}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
            file = BytesIO()
            Image.fromarray(noise).resize((128, 96)).save(file, "JPEG")
            path.write_bytes(file.getvalue())
        photos = scan(folder, cache=cache / "scan.json").photos
        store, row = bottlenecks.Bottlenecks(cache, KEY), np.ones(bottlenecks.FEATURES, np.float32)
        for photo in photos:
            store.put(photo, row)
        store.write_pack()
        steps, whole = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            command = [sys.executable, __file__, "--load", str(folder), str(cache)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            whole.append(time.perf_counter() - started)
            steps.append([float(word) for word in done.stdout.split()])
    table = Table("", "seconds", "min – max")
    table.title = f"ready: {COUNT:,} photos, all in the cache, median of {rounds} rounds"
    columns = {
        "looking over": [row[0] for row in steps],
        "splitting": [row[1] for row in steps],
        "loading": [row[2] for row in steps],
        "all three": [sum(row) for row in steps],
        "with the start of Python": whole,
    }
    for name, values in columns.items():
        spread = f"{min(values):.2f} – {max(values):.2f}"
        table.add_row(name, f"{statistics.median(values):.2f}", spread)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--image-dir", type=Path, metavar="DIR", help="photos (default: flower_photos)")
    add("--photos", type=positive_int, default=160, help="to compute (default: 160)")
    add("--rounds", type=positive_int, default=3, help="turns of each (default: 3)")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    add("--load", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        importlib.import_module("01_retrain")  # with all that it imports
        print(*look_and_load(*args.load))
        return
    console = Console(width=max(100, Console().width))
    if "computed" in args.only:
        try:
            folder, _ = find_photos(args.image_dir)
        except PhotosError as error:
            parser.error(str(error))
        computed(console, folder, args.photos, args.rounds)
    if "found" in args.only:
        found(console, args.rounds)
    if "ready" in args.only:
        ready(console, args.rounds)


if __name__ == "__main__":
    main()
