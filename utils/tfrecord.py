"""Data sets as TFRecords: a folder of shards ``<split>_00000-of-00002.tfrecord``, which hold
``tf.train.Example`` messages, and ``dataset.json``, which describes them and is written last."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import tensorflow as tf
from joblib import Parallel, delayed
from rich.progress import track

from utils.run import sha256, write_json

INFO = "dataset.json"


def write_dataset(
    folder: Path,
    splits: Mapping[str, Sequence[Any]],
    to_example: Callable[[Any], Any],
    shards: int = 2,
    threads: int = 1,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a data set; one that is in ``folder`` already is replaced once this one is whole. The
    same items give the same bytes. ValueError for an empty split, OSError for a full disk.
    ``to_example`` makes of an item its ``tf.train.Example``; where it draws or decodes, let several
    ``threads`` call it. ``about`` is what readers need, such as the classes."""
    if empty := [split for split, items in splits.items() if not len(items)]:
        raise ValueError(f"no items in the split {empty[0]!r}: there is nothing to write")
    info = {"about": dict(about or {}), "splits": {split: [] for split in splits}}
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):  # by a writing that was killed
        shutil.rmtree(left, ignore_errors=True)
    jobs = [delayed(to_example)(item) for item in chain(*splits.values())]
    in_order = Parallel(threads, prefer="threads", return_as="generator")(jobs)
    examples = iter(track(in_order, "TFRecords", len(jobs)))
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as name:
        for split, items in splits.items():
            for i in range(count := min(shards, len(items))):
                path = Path(name, f"{split}_{i:05}-of-{count:05}.tfrecord")
                records = (len(items) + i) // count
                try:
                    with tf.io.TFRecordWriter(str(path)) as writer:
                        for example in islice(examples, records):
                            writer.write(example.SerializeToString(deterministic=True))
                except tf.errors.OpError as error:  # what a full disk raises is no OSError
                    raise OSError(f"can't write {path}: {error.message}") from error
                shard = {"file": path.name, "records": records, "sha256": sha256(path)}
                info["splits"][split].append(shard)
        next(examples, None)  # brings the progress bar to its end
        write_json(Path(name, INFO), info)
        (folder / INFO).unlink(missing_ok=True)  # old and new shards mixed are no data set
        for split, new in info["splits"].items():
            for old in folder.glob(f"{split}_?????-of-?????.tfrecord"):
                old.unlink()
            for shard in new:
                Path(name, shard["file"]).replace(folder / shard["file"])
        Path(name, INFO).replace(folder / INFO)


def read_dataset(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[list[str], int]]]:
    """What the writer said ``about`` a data set; for each split its files, in the order of writing,
    and the number of their records. Raises ValueError for what is missing or damaged: TensorFlow
    takes a file that was cut between two records for a shorter one."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        about, splits = dict(info["about"]), info["splits"].items()
        digests = {folder / s["file"]: s["sha256"] for _, shards in splits for s in shards}
        files = {split: [str(folder / s["file"]) for s in shards] for split, shards in splits}
        counts = {split: sum(s["records"] for s in shards) for split, shards in splits}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        fault = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise ValueError(f"{folder / INFO} is {fault}: write the data set again") from error
    for path, digest in digests.items():
        if not path.is_file() or sha256(path) != digest:
            fault = "cut short or altered" if path.is_file() else "missing"
            raise ValueError(f"{path} is {fault}: write the data set again")
    return about, {split: (files[split], counts[split]) for split in files}
