"""Bottlenecks: the features of photos, computed once and kept.

Each photo's features are 8 kB, in a file of its own, under its class's folder. The file's name is
made of the SHA-256 of the photo and of the network's weights. Rename a photo, and its features are
still found; change it, and they are not.

3,670 small files take a while to open, so a copy of all is kept in one file, the *pack*. It is
read first and may be missing. Every file is written under another name and then renamed: after
kill -9, or with a disk that is full, there is either a whole file or none. What is damaged
otherwise (cut, or not a number in it) is computed again.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.photos import Photo, PhotosError, read
from models import inception_v3
from utils.run import readable, sha256, written_whole

FEATURES = 2048  # of pool3
BATCH = 16  # photos
DECODE, POOL3, RESIZED = "DecodeJpeg/contents", "pool_3/_reshape", "ResizeBilinear"


class Bottlenecks:
    """The cache of features in ``folder``, of one network (and one way to distort): ``key``.

    Attributes:
        damaged: files that could not be used.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key, self.damaged = folder, key, []
        self._new: dict[str, np.ndarray] = {}
        self._digests, self._rows = self._read_pack()
        self._places = {digest: place for place, digest in enumerate(self._digests)}

    @property
    def pack_path(self) -> Path:
        return self.folder / f"{self.key}.npz"

    def path(self, photo: Photo) -> Path:
        """The file of one photo's features."""
        return self.folder / photo.label / f"{photo.digest[:32]}_{self.key}.npy"

    def _read_pack(self) -> tuple[list[str], np.ndarray]:
        with suppress(FileNotFoundError):
            try:
                with np.load(self.pack_path, allow_pickle=False) as pack:
                    digests, rows = pack["digests"].tolist(), pack["features"]
                if rows.shape == (len(digests), FEATURES) and usable(rows):
                    return digests, rows
            except FileNotFoundError:
                raise
            except Exception:  # zip, zlib and NumPy raise many kinds
                pass
            self.damaged.append(self.pack_path)
        return [], np.empty((0, FEATURES), np.float32)

    def get(self, photo: Photo) -> np.ndarray | None:
        """A photo's features, float32 [2048]; None if they have to be computed."""
        if (digest := photo.digest[:32]) in self._places:
            return self._rows[self._places[digest]]
        try:
            row = np.load(self.path(photo), allow_pickle=False)
        except FileNotFoundError:
            return None
        except Exception:  # an empty file is an EOFError, a cut one a ValueError, and so on
            row = np.empty(0)
        if row.shape != (FEATURES,) or not usable(row):
            self.damaged.append(self.path(photo))
            return None
        self._new[digest] = row
        return row

    def put(self, photo: Photo, row: np.ndarray) -> None:
        """Keep a photo's features, float32 [2048]."""
        with written_whole(self.path(photo)) as temporary:
            np.save(temporary, row)
        self._new[photo.digest[:32]] = row

    def write_pack(self) -> None:
        """Write the pack again if it lacks anything that ``get`` and ``put`` have met."""
        if self._new:
            digests = [*self._digests, *self._new]
            rows = np.concatenate([self._rows, np.stack([*self._new.values()])])
            with written_whole(self.pack_path) as temporary:
                np.savez(temporary, digests=np.array(digests), features=rows)


def sweep(folder: Path, age: float = 600) -> None:
    """Remove what runs that were killed left half-written in a folder; not what is younger than
    ``age`` seconds, which another run may be writing."""
    for left in folder.glob(".*.tmp.*"):
        with suppress(OSError):  # gone meanwhile
            if time.time() - left.stat().st_mtime > age:
                left.unlink()


def usable(features: np.ndarray) -> bool:
    """Whether these are features: float32, and each a number."""
    return features.dtype == np.float32 and bool(np.isfinite(features).all())


# %%
# Google's retrain.py wrote a text file for each photo: 2,048 numbers with commas between them, in
# ``<bottleneck_dir>/<class>/<photo>.jpg.txt``, later ``….jpg_inception_v3.txt``. They are of
# Google's network, so they are read with ``--network google``. The name says nothing of the
# photo's content or of the network, so it is up to you that they belong together.


def find_text(folder: Path, photo: Photo) -> Path | None:
    """The text file of a photo's bottleneck; None if there is none."""
    names = (f"{photo.path.name}.txt", f"{photo.path.name}_inception_v3.txt")
    paths = (folder / photo.label / name for name in names)
    return next((path for path in paths if path.is_file()), None)


def read_text(path: Path) -> np.ndarray:
    """The features in a text file, float32 [2048]. Raises ValueError, with the reason."""
    values = path.read_text(encoding="utf-8").split(",")
    if len(values) != FEATURES:
        raise ValueError(f"{len(values):,} numbers, not {FEATURES:,}")
    row = np.array(values, np.float32)
    if not usable(row):
        raise ValueError("one of the numbers is not finite")
    return row


# %%
# Distorted copies
# ----------------
# A flower in a mirror is still that flower. Google's retrain.py could mirror, crop, enlarge and
# brighten the training photos, afresh at each step, and each time all of the network had to run:
# 4,000 steps of 100 photos are 11 hours on two CPU cores. Here each training photo gets
# ``--distorted_copies`` fixed copies, whose features are kept like those of the photo itself,
# which stays in the training as well. Four copies make four times the work, once.
#
# The percentages mean what they meant there. ``--random_crop 10``: the photo is made 10 % larger
# than the network's square, and a square is cut out of it anywhere. ``--random_scale 10``: the
# same, by up to 10 %. ``--random_brightness 10``: all values times 0.9 to 1.1.


class Distortion(NamedTuple):
    """How a copy differs from its photo; percentages, and what the dice depend on."""

    flip: bool
    crop: float
    scale: float
    brightness: float
    seed: int
    copy: int = 0

    @property
    def key(self) -> str:
        """For names of files."""
        settings = repr(tuple(self._replace(copy=0)))
        return f"distorted-{hashlib.sha256(settings.encode()).hexdigest()[:8]}-{self.copy}"

    def dice(self, photo: Photo) -> tuple[int, int]:
        """A seed for this copy of this photo, whatever other photos there are."""
        return self.seed * 1000 + self.copy, int(photo.digest[:15], 16)


def distort(image: tf.Tensor, size: int, distortion: Distortion, seed: tf.Tensor) -> tf.Tensor:
    """A distorted copy, float32 [size, size, 3] in 0 … 255, of an image uint8 [h, w, 3]; ``seed``
    is int64 [2]."""
    scale_seed, crop_seed, flip_seed, light_seed = tf.unstack(tf.random.split(seed, 4))
    largest = 1 + distortion.scale / 100
    factor = tf.random.stateless_uniform([], scale_seed, 1.0, largest + 1e-6)
    side = tf.cast(tf.round((1 + distortion.crop / 100) * factor * size), tf.int32)
    image = inception_v3.resize(image, side)
    image = tf.image.stateless_random_crop(image, [size, size, 3], crop_seed)
    if distortion.flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    spread = distortion.brightness / 100
    light = tf.random.stateless_uniform([], light_seed, 1 - spread, 1 + spread + 1e-6)
    return tf.clip_by_value(image * light, 0.0, 255.0)


# %%
# Two networks
# ------------
# Keras's InceptionV3 is the default. Photos are read, decoded and resized in threads of their own
# while the network is busy with the batch before, so it hardly ever waits. Each batch's
# bottlenecks are written as they come.
#
# ``--network google`` is the frozen graph of 2015 that retrain.py used: one photo at a time, its
# bytes fed to ``DecodeJpeg/contents``, its features fetched from ``pool_3/_reshape``. The two were
# trained apart and their features have nothing to do with each other.


class Network(Protocol):
    """What computes features; ``key`` names it in the cache."""

    key: str

    def compute(
        self, photos: Sequence[Photo], distortion: Distortion | None = None
    ) -> Iterator[tuple[Sequence[Photo], np.ndarray]]:
        """Batches of the photos, in order, with their features, float32 [b, 2048].

        Raises:
            PhotosError: TensorFlow can't decode a photo.
            OSError: a photo can't be read any more.
        """
        ...


class KerasNetwork:
    """Keras's InceptionV3, built when it is needed: that takes some seconds."""

    def __init__(self, weights: inception_v3.Weights, size: int = 299) -> None:
        self.weights, self.size = weights, size
        self.key = weights.key if size == 299 else f"{weights.key}-{size}"

    @cached_property
    def model(self) -> keras.Model:
        """Images float32 [b, size, size, 3] in [-1, 1] to features [b, 2048]."""
        return inception_v3.backbone(self.weights, self.size)

    @cached_property
    def pool3(self) -> Any:
        """The model as one call into TensorFlow."""
        model = self.model  # built out here: in the function it would get no weights
        spec = tf.TensorSpec([None, self.size, self.size, 3], tf.float32)
        return tf.function(lambda images: model(images, training=False), input_signature=[spec])

    def images(self, photos: Sequence[Photo], distortion: Distortion | None) -> tf.data.Dataset:
        """The photos as the network wants them, in batches float32 [b, size, size, 3]. It ends
        early at a photo that can't be read."""

        def contents() -> Iterator[tuple[bytes, tuple[int, int]]]:
            for photo in photos:
                with suppress(OSError, ValueError):
                    yield read(photo), distortion.dice(photo) if distortion else (0, 0)
                    continue
                return

        def prepare(content: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            image = inception_v3.decode(content)
            if distortion:
                return inception_v3.scale(distort(image, self.size, distortion, seed))
            return inception_v3.scale(inception_v3.resize(image, self.size))

        signature = (tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int64))
        dataset = tf.data.Dataset.from_generator(contents, output_signature=signature)
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = dataset.map(prepare, os.cpu_count()).batch(BATCH).prefetch(2)
        return dataset.with_options(options)

    def compute(
        self, photos: Sequence[Photo], distortion: Distortion | None = None
    ) -> Iterator[tuple[Sequence[Photo], np.ndarray]]:
        """See ``Network``."""
        done = 0
        try:
            for images in self.images(photos, distortion):
                features = self.pool3(images).numpy()
                yield photos[done : done + len(features)], features
                done += len(features)
        except tf.errors.InvalidArgumentError:
            for photo in photos[done:]:
                try:
                    inception_v3.decode(read(photo))
                except tf.errors.InvalidArgumentError as error:
                    raise undecodable(photo, error) from None
            raise
        for photo in photos[done : done + 1]:  # ended early: what is wrong with this one?
            read(photo)


class GoogleNetwork:
    """Google's frozen graph; ``path`` is None if there is none, and then nothing is computed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.key = f"google-{sha256(path)[:12] if path else inception_v3.GRAPH_DEF_SHA256[:12]}"

    @cached_property
    def graph(self) -> tf.Graph:
        return inception_v3.read_frozen(self.path, (DECODE, POOL3, RESIZED), "--model_dir")

    def compute(
        self, photos: Sequence[Photo], distortion: Distortion | None = None
    ) -> Iterator[tuple[Sequence[Photo], np.ndarray]]:
        """See ``Network``. PhotosError also if there is no graph."""
        if self.path is None:
            raise PhotosError(
                f"{photos[0].path} has no bottleneck in a text file that can be used, and to "
                "compute it Google's graph is needed"
            )
        with closing(tf.compat.v1.Session(graph=self.graph)) as session:
            for photo in photos:
                try:
                    feed = {f"{DECODE}:0": read(photo)}
                    if distortion:
                        image, seed = (
                            inception_v3.decode(feed[f"{DECODE}:0"]),
                            distortion.dice(photo),
                        )
                        seed = tf.constant(seed, tf.int64)
                        image = distort(image, 299, distortion, seed)
                        feed = {f"{RESIZED}:0": image.numpy()[np.newaxis]}
                    features = session.run(f"{POOL3}:0", feed)
                except tf.errors.InvalidArgumentError as error:
                    raise undecodable(photo, error) from None
                yield [photo], features


def undecodable(photo: Photo, error: tf.errors.InvalidArgumentError) -> PhotosError:
    reason = error.message.splitlines()[0]
    return PhotosError(
        f"{photo.path} can't be decoded by TensorFlow ({reason}): save it anew with an image "
        "program, or take it away"
    )


def progress_bar(title: str, unit: str) -> Progress:
    """A bar with the count done and the time left; its task has the field ``note``."""
    return Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[note]}}"),
        TimeRemainingColumn(),
    )


def find_features(
    folder: Path,
    network: Network,
    photos: Sequence[Photo],
    distortion: Distortion | None = None,
    texts: bool = False,
) -> np.ndarray:
    """The features of photos, float32 [n, 2048], from the cache in ``folder``, from retrain.py's
    text files if ``texts``, or computed and put there.

    Raises:
        PhotosError: a photo can't be decoded, or the network gives something that is no number.
        OSError: a photo can't be read, or the cache not written.
    """
    key = f"{network.key}-{distortion.key}" if distortion else network.key
    cache = Bottlenecks(folder, key)
    found = {photo.digest: cache.get(photo) for photo in photos}
    missing = [photo for photo in photos if found[photo.digest] is None]
    cached = len(photos) - len(missing)
    bad = [f"{readable(path)}: damaged" for path in cache.damaged]
    for photo in missing if texts else ():
        if path := find_text(folder, photo):
            try:
                found[photo.digest] = read_text(path)
                cache.put(photo, found[photo.digest])
            except (ValueError, UnicodeDecodeError) as error:
                bad.append(f"{readable(path)}: {error}")
    missing, texted = [p for p in missing if found[p.digest] is None], len(missing)
    texted -= len(missing)
    for line in bad[:10]:
        print(f"Not used: {line}")
    if len(bad) > 10:
        print(f"Not used: {len(bad) - 10:,} more")
    started = time.perf_counter()
    if missing:
        for place in (folder, *{cache.path(photo).parent for photo in missing}):
            sweep(place)
        with progress_bar("bottlenecks", "photos") as progress:
            bar = progress.add_task("", total=len(photos), completed=cached + texted, note="")
            done = 0
            for some, features in network.compute(missing, distortion):
                for photo, row in zip(some, features, strict=True):
                    if not usable(row):
                        raise PhotosError(f"the network's features of {photo.path} are no numbers")
                    found[photo.digest] = row
                    cache.put(photo, row)
                done += len(some)
                rate = done / (time.perf_counter() - started)
                progress.update(bar, advance=len(some), note=f"({rate:.1f} a second)")
    seconds = time.perf_counter() - started
    cache.write_pack()
    parts = [f"{cached:,} from the cache"] if cached else []
    parts += [f"{texted:,} from text files"] if texted else []
    if missing:
        parts += [f"{len(missing):,} computed, {len(missing) / seconds:.1f} a second"]
    what = f"Bottlenecks of distorted copies {distortion.copy}" if distortion else "Bottlenecks"
    print(f"{what}: {'; '.join(parts)}")
    return np.stack([found[photo.digest] for photo in photos])
