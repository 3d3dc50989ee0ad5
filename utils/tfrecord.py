"""Data sets as TFRecords: a folder of shards ``<split>_00000-of-00002.tfrecord``, which hold
``tf.train.Example`` messages, and ``dataset.json``, which describes them and is written last."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from rich.progress import track

from utils.run import sha256, write_json

INFO = "dataset.json"
DTYPES = {"i": "int64", "u": "int64", "f": "float32"}  # by NumPy's kinds; others: bytes
FIELDS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}


class DatasetError(ValueError):
    """A data set is missing or damaged; the message names the file and says what to do."""


def write_dataset(
    folder: Path,
    splits: Mapping[str, Sequence[Any]],
    to_features: Callable[[Any], Mapping[str, Any]],
    shards: int = 2,
    workers: int = 1,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a data set; one that is in ``folder`` already is replaced once this one is whole.
    The same items give the same bytes. Raises ValueError for an empty split and for features
    that can't be stored or differ between items, OSError when the disk is full or the like.

    ``to_features`` makes of an item a dict of bytes (an image as its PNG or JPEG file), whole
    numbers (kept as int64), other numbers (float32), lists or arrays. Where it draws or decodes
    use several ``workers``, processes. ``about`` is what readers need, such as the classes."""
    if empty := [split for split, items in splits.items() if not len(items)]:
        raise ValueError(f"no items in the split {empty[0]!r}: there is nothing to write")
    info = {"about": dict(about or {}), "features": {}, "splits": {}}
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):  # by a writing that was killed
        shutil.rmtree(left, ignore_errors=True)
    items = [*chain(*splits.values())]
    in_order = Parallel(workers, return_as="generator")(delayed(to_features)(i) for i in items)
    examples = track(in_order, "TFRecords", total=len(items))
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as name, closing(examples):
        for split, items in splits.items():
            for i in range(count := min(shards, len(items))):
                path = Path(name, f"{split}_{i:05}-of-{count:05}.tfrecord")
                shard = _write_shard(path, examples, (len(items) + i) // count, info["features"])
                info["splits"].setdefault(split, []).append(shard)
        next(examples, None)  # brings the progress bar to its end
        new = {path.name for path in Path(name).iterdir()}
        old = {path.name for s in splits for path in folder.glob(f"{s}_?????-of-?????.tfrecord")}
        write_json(Path(name, INFO), info)
        (folder / INFO).unlink(missing_ok=True)  # old and new shards mixed are no data set
        for file in [*new, INFO]:
            Path(name, file).replace(folder / file)
        for file in old - new:
            (folder / file).unlink()


def _write_shard(path: Path, items: Iterator, count: int, features: dict) -> dict[str, Any]:
    """Write ``count`` items; the first of all fills ``features``, the others must agree."""
    import tensorflow as tf  # not at the top: worker processes need none

    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for item in islice(items, count):
                example, found = tf.train.Example(), {}
                for name, value in item.items():
                    try:
                        if (array := np.asarray(value)).dtype.kind == "S":  # cuts zeros off
                            array = np.asarray(value, object)
                        dtype = DTYPES.get(array.dtype.kind, "string")
                        field = getattr(example.features.feature[name], FIELDS[dtype])
                        field.value.extend(array.ravel().tolist())
                    except (TypeError, ValueError) as error:
                        raise ValueError(f"can't store {name} = {value!r:.60}: {error}") from error
                    found[name] = {"dtype": dtype, "shape": list(array.shape)}
                if found != (features or found):
                    raise ValueError(f"items differ in their features: {features} and {found}")
                features.update(found)
                writer.write(example.SerializeToString(deterministic=True))
    except tf.errors.OpError as error:  # what a full disk raises is no OSError
        raise OSError(f"can't write {path}: {error.message}") from error
    return {"file": path.name, "records": count, "sha256": sha256(path)}


def read_info(folder: Path) -> dict[str, Any]:
    """``dataset.json``: ``about`` (from the writer), ``features`` (each with dtype, shape) and
    ``splits`` (each a list of shards: file, records, sha256). Raises DatasetError."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        return {name: dict(info[name]) for name in ("about", "features", "splits")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        fault = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise DatasetError(f"{folder / INFO} is {fault}: write the data set again") from error


def shards(folder: Path, split: str) -> tuple[list[str], int]:
    """A split's files, checked, in the order of writing, and the number of their records. Raises
    DatasetError: TensorFlow takes a file that was cut between two records for a shorter one."""
    info = read_info(folder)
    shards = info["splits"].get(split, [])
    if not shards:
        raise DatasetError(f"{folder} has no split {split!r}, only {', '.join(info['splits'])}")
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file() or sha256(path) != shard["sha256"]:
            fault = "cut short or altered" if path.is_file() else "missing"
            raise DatasetError(f"{path} is {fault}: write the data set again")
    return [str(folder / s["file"]) for s in shards], sum(s["records"] for s in shards)
