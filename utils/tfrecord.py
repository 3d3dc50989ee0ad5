"""Data sets as TFRecords: a folder of shards ``<split>_00000-of-00002.tfrecord``, which hold
``tf.train.Example`` messages, and ``dataset.json``, which describes them and is written last."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from rich.progress import track

from utils.run import sha256, write_json

INFO = "dataset.json"


class DatasetError(ValueError):
    """A data set is missing or damaged; the message names the file and says what to do."""


def write_dataset(
    folder: Path,
    splits: Mapping[str, Sequence[Any]],
    to_example: Callable[[Any], Any],
    shards: int = 2,
    threads: int = 1,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a data set; one that is in ``folder`` already is replaced once this one is whole.
    The same items give the same bytes. Raises ValueError for an empty split, OSError when the disk
    is full or the like.

    ``to_example`` makes of an item its ``tf.train.Example``; where it draws or decodes, let several
    ``threads`` call it. ``about`` is what readers need, such as the features and the classes."""
    if empty := [split for split, items in splits.items() if not len(items)]:
        raise ValueError(f"no items in the split {empty[0]!r}: there is nothing to write")
    info = {"about": dict(about or {}), "splits": {split: [] for split in splits}}
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):  # by a writing that was killed
        shutil.rmtree(left, ignore_errors=True)
    items = [*chain(*splits.values())]
    jobs = (delayed(to_example)(item) for item in items)
    in_order = Parallel(threads, prefer="threads", return_as="generator")(jobs)
    examples = iter(track(in_order, "TFRecords", len(items)))
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as name:
        for split, items in splits.items():
            for i in range(count := min(shards, len(items))):
                path = Path(name, f"{split}_{i:05}-of-{count:05}.tfrecord")
                records = (len(items) + i) // count
                _write_shard(path, islice(examples, records))
                shard = {"file": path.name, "records": records, "sha256": sha256(path)}
                info["splits"][split].append(shard)
        next(examples, None)  # brings the progress bar to its end
        new = {path.name for path in Path(name).iterdir()}
        old = {path.name for s in splits for path in folder.glob(f"{s}_?????-of-?????.tfrecord")}
        write_json(Path(name, INFO), info)
        (folder / INFO).unlink(missing_ok=True)  # old and new shards mixed are no data set
        for file in [*new, INFO]:
            Path(name, file).replace(folder / file)
        for file in old - new:
            (folder / file).unlink()


def _write_shard(path: Path, examples: Iterable[Any]) -> None:
    import tensorflow as tf  # not at the top: who reads dataset.json needs none

    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in examples:
                writer.write(example.SerializeToString(deterministic=True))
    except tf.errors.OpError as error:  # what a full disk raises is no OSError
        raise OSError(f"can't write {path}: {error.message}") from error


def read_info(folder: Path) -> dict[str, Any]:
    """``dataset.json``: ``about`` (from the writer) and ``splits`` (each a list of shards: file,
    records, sha256). Raises DatasetError."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        return {name: dict(info[name]) for name in ("about", "splits")}
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
