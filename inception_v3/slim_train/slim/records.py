"""The data set of photos: what 01 writes, and 02 and 03 read."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from data.photos import CACHE
from utils.tfrecord import DatasetError, read_info, shards

FOLDER = CACHE / "slim"  # in data/
KIND = "photos"
PREFIX = "image_"  # of the splits' names: image_train_00000-of-00002.tfrecord
SPLITS = ("train", "validation", "test")
WRITE = "python inception_v3/slim_train/01_images_to_tfrecords.py"
FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}


def parse(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Records, strings [b], as files, JPEG or PNG, strings [b], and classes, int64 [b]."""
    examples = tf.io.parse_example(records, FEATURES)
    return examples["image/encoded"], examples["image/class/label"]


class Records:
    """A data set of photos.

    Attributes:
        folder: where it is.
        about: what ``dataset.json`` says of it.
        classes: the labels; a photo's class is its place among them.
        counts: photos by split.
    """

    def __init__(self, folder: Path) -> None:
        """Raises DatasetError if there is no such data set."""
        info = read_info(folder)
        self.folder, self.about = folder, info["about"]
        if self.about.get("kind") != KIND:
            raise DatasetError(f"{folder} holds no photos: --records names another data set")
        self.classes: list[str] = self.about["classes"]
        self.counts = {
            split.removeprefix(PREFIX): sum(shard["records"] for shard in shards)
            for split, shards in info["splits"].items()
        }

    @property
    def source(self) -> dict[str, Any]:
        """What ``result.json`` says under ``data``."""
        return {
            "source": f"{self.folder}, from {self.about['source']}",
            "stand_in": self.about["stand_in"],
        }

    def files(self, split: str) -> list[str]:
        """The names of a split's shards, checked. Raises DatasetError."""
        return shards(self.folder, PREFIX + split)[0]

    def batches(self, split: str, batch_size: int) -> tf.data.Dataset:
        """A split's photos once, in the order of writing: files, strings [b], and classes, int64
        [b]. Raises DatasetError."""
        return tf.data.TFRecordDataset(self.files(split)).batch(batch_size).map(parse).prefetch(2)
