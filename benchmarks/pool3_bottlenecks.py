"""How fast do photos go through InceptionV3, beside the bare network?

Images a second, by turns: of the bare network, on batches that lie decoded in memory; of
``inception_v3/pool3_train/01_retrain.py``, from the files to the features; and of a saved
classifier, from the files to the probabilities. The ratios are what reading, decoding, turning and
resizing cost. The weights don't matter for that, so the network is untrained::

    python benchmarks/pool3_bottlenecks.py
    python benchmarks/pool3_bottlenecks.py --photos 1000 --rounds 1

Flower photos have some 160,000 pixels. Telephone photos are the same ones, enlarged to 12
megapixels and lying on their side.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from pool3_head import RESULTS, lesson

from data.photos import Photo, PhotosError, find_photos, scan
from models import inception_v3
from models.classifier import Classifier, whole_model
from utils.run import positive_int, quoted, write_json


def enlarge(photos: list[Photo], folder: Path) -> None:
    """Write the photos as a telephone would: 4032×3024 pixels, with a note to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, photo in enumerate(photos):
        (folder / photo.label).mkdir(parents=True, exist_ok=True)
        with Image.open(photo.path) as image:
            large = image.convert("RGB").resize((4032, 3024), Image.Resampling.BICUBIC)
        large.save(folder / photo.label / f"{number}.jpg", quality=90, exif=exif)


def measure(photos: list[Photo], rounds: int, size: int) -> dict[str, list[float]]:
    """Images a second of each way, a value for each round."""
    network = inception_v3.backbone(inception_v3.find_weights("none", False), size)
    spec = [tf.TensorSpec([None, size, size, 3], tf.float32)]
    apply = tf.function(lambda images: network(images, training=False), spec)
    known = lesson("images_of", "features_of", apply=apply)
    known["args"].image_size = size
    head = keras.Sequential([keras.Input((2048,)), keras.layers.Dense(5)])
    about = {"classes": [*"abcde"], "size": size}
    trained = Classifier(whole_model(network, head, size, [*"abcde"]), [*"abcde"], about)
    images = [*known["images_of"](photos)]
    paths = [photo.path for photo in photos]
    ways: dict[str, Callable[[], object]] = {
        "bare network": lambda: [apply(batch).numpy() for batch in images],
        "features": lambda: [*known["features_of"](photos, False)],
        "classifier": lambda: [*trained.probabilities(paths)],
    }
    next(trained.probabilities(paths[:1]))  # traces it
    expected = np.concatenate(ways["bare network"]())
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            found = way()
            rates[name].append(len(photos) / (time.perf_counter() - started))
            if name == "features":
                np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-3, atol=1e-4)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--image-dir", type=Path, metavar="DIR", help="photos (default: flower_photos)")
    add("--photos", type=positive_int, default=200, help="(default: 200)")
    add("--rounds", type=positive_int, default=3, help="turns of each (default: 3)")
    add("--size", type=positive_int, default=299, help="pixels that the network sees")
    add("--record", metavar="NAME", help="keep the figures in docs/results/inception_v3")
    args = parser.parse_args()
    try:
        folder, _ = find_photos(args.image_dir)
        some = scan(folder).photos
    except PhotosError as error:
        parser.error(str(error))
    places = np.linspace(0, len(some) - 1, args.photos).astype(int)
    some = [some[place] for place in places]  # the same one more than once, if there are few
    metrics = {}
    with tempfile.TemporaryDirectory() as name:
        enlarge([*dict.fromkeys(some)][:: max(1, len({*some}) // 200)][: args.photos], Path(name))
        for kind, photos in {"flowers": some, "telephone": scan(Path(name)).photos}.items():
            rates = measure(photos, args.rounds, args.size)
            print(
                f"{len(photos):,} photos, {kind}; images a second, and the share of the network's"
            )
            for way, values in rates.items():
                ratios = [a / b for a, b in zip(values, rates["bare network"], strict=True)]
                rate, ratio = statistics.median(values), statistics.median(ratios)
                spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
                print(f"  {way:12} {rate:8.2f} {ratio:8.3f}  ({spread})", flush=True)
                metrics[f"{kind}, {way}"] = {"images_a_second": rate, "ratio": ratio}
    if args.record:
        command = quoted("python", "benchmarks/pool3_bottlenecks.py", *sys.argv[1:])
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        record = {"command": command, "metrics": metrics, "machine": machine}
        write_json(RESULTS / f"{args.record}.json", record)


if __name__ == "__main__":
    main()
