"""utils/tfrecord.py: what it writes, read back by two other readers; damage; order; kills."""

import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from helpers import make_example

from utils.tfrecord import read_dataset, write_dataset

# ---- made-up items, and two readers that owe nothing to utils/tfrecord.py ------------------


def values_of(number: int) -> dict[str, Any]:
    """Every kind of value."""
    return {
        "image": f"picture {number}".encode() + b"\0\xff\0\0",
        "label": number,
        "digits": [number % 10, -number, 2**62 + number, 1],
        "weight": number / 4,
        "grid": np.arange(6, dtype=np.float64).reshape(2, 3) + number,
        "names": [b"", f"n{number}\0".encode()],
    }


def example_of(number: int) -> tf.train.Example:
    return make_example(**values_of(number))


def numbered(number: int) -> tf.train.Example:
    return make_example(number=number)


def crc32c(data: bytes) -> int:
    """The CRC of RFC 3720, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def framed_records(content: bytes) -> Iterator[bytes]:
    """The payloads of a TFRecord file: length (8 bytes), its CRC, payload, its CRC."""

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    at = 0
    while at < len(content):
        head = content[at : at + 8]
        (length,) = struct.unpack("<Q", head)
        payload = content[at + 12 : at + 12 + length]
        assert content[at + 8 : at + 12] == masked(head)
        assert content[at + 12 + length : at + 16 + length] == masked(payload)
        yield payload
        at += 16 + length


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A protobuf varint and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that has only length-delimited ones."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        assert tag & 7 == 2, "length-delimited"
        length, at = varint(message, at)
        yield tag >> 3, message[at : at + length]
        at += length


def example_by_hand(message: bytes) -> dict[str, list]:
    """A serialised tf.train.Example as name to list of values."""
    result = {}
    ((_, features),) = fields(message)
    for _, entry in fields(features):
        parts = dict(fields(entry))
        ((kind, value_list),) = fields(parts[2])
        values = [value for _, value in fields(value_list)]
        if kind == 2:  # float_list, packed
            values = list(struct.unpack(f"<{len(values[0]) // 4}f", values[0]))
        elif kind == 3:  # int64_list, packed
            packed, at, values = values[0], 0, []
            while at < len(packed):
                value, at = varint(packed, at)
                values.append(value - (1 << 64) if value >> 63 else value)
        result[parts[1].decode()] = values
    return result


def numbers(folder: Path) -> list[int]:
    """What TensorFlow reads from the split ``train``, whose shards are checked first."""
    names, count = read_dataset(folder)[1]["train"]
    spec = {"number": tf.io.FixedLenFeature([], tf.int64)}
    records = tf.data.TFRecordDataset(names)
    found = [int(tf.io.parse_single_example(r, spec)["number"]) for r in records]
    assert len(found) == count
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def numbers_0_to_99(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "numbers", {"train": range(100)}, numbered, shards=3)
    return tmp_path / "numbers"


# ---- what is written -----------------------------------------------------------------------


def test_plain_tf_data_reads_it(tmp_path):
    write_dataset(tmp_path, {"train": range(10), "test": [30, 20]}, example_of, shards=3)
    spec = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "digits": tf.io.FixedLenFeature([4], tf.int64),
        "weight": tf.io.FixedLenFeature([], tf.float32),
        "grid": tf.io.FixedLenFeature([2, 3], tf.float32),
        "names": tf.io.FixedLenFeature([2], tf.string),
    }
    for split, wanted in {"train": [*range(10)], "test": [30, 20]}.items():
        paths = sorted(str(path) for path in tmp_path.glob(f"{split}_*.tfrecord"))
        records = tf.data.TFRecordDataset(paths)
        assert len(list(records)) == len(wanted)
        for record, number in zip(records, wanted, strict=True):
            example = tf.io.parse_single_example(record, spec)
            expected = values_of(number)
            assert example["image"].numpy() == expected["image"]
            assert example["names"].numpy().tolist() == expected["names"]
            for name in ("label", "digits", "weight", "grid"):
                np.testing.assert_array_equal(example[name], expected[name])


def test_the_file_format_read_by_hand(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283, "the check value of the CRC's definition"
    write_dataset(tmp_path, {"train": range(5)}, example_of)
    info = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    number = 0
    for shard in info["splits"]["train"]:
        content = (tmp_path / shard["file"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        payloads = list(framed_records(content))
        assert shard["records"] == len(payloads)
        for payload in payloads:
            for name, values in example_by_hand(payload).items():
                expected = np.asarray(values_of(number)[name], object).ravel().tolist()
                assert values == expected, name
            number += 1
    assert number == 5


def test_dataset_json_describes_the_data(tmp_path):
    about = {"classes": ["daisy", "Löwenzahn"], "height": 60}
    write_dataset(tmp_path, {"train": range(7), "one": [4]}, example_of, shards=2, about=about)
    told, splits = read_dataset(tmp_path)
    assert told == about
    found = {split: [Path(name).name for name in names] for split, (names, _) in splits.items()}
    assert found == {
        "train": ["train_00000-of-00002.tfrecord", "train_00001-of-00002.tfrecord"],
        "one": ["one_00000-of-00001.tfrecord"],  # no empty shards
    }
    assert sorted(files(tmp_path)) == sorted(["dataset.json", *found["train"], *found["one"]])


def test_more_threads_write_the_same_bytes(tmp_path):
    splits = {"train": range(300), "test": range(500, 510)}
    write_dataset(tmp_path / "one", splits, example_of, shards=3, threads=1)
    write_dataset(tmp_path / "two", splits, example_of, shards=3, threads=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_threads_share_the_items(tmp_path):
    met, both = set(), threading.Barrier(2)

    def example(number: int) -> tf.train.Example:
        met.add(threading.get_ident())
        if number < 2:
            both.wait(timeout=60)  # ends only if two threads are here at the same time
        return numbered(number)

    write_dataset(tmp_path, {"train": range(100)}, example, threads=2)
    assert len(met) == 2
    assert numbers(tmp_path) == list(range(100))


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no items in the split 'test'"):
        write_dataset(tmp_path, {"train": [1], "test": []}, numbered)


def test_an_error_in_a_thread_keeps_its_kind_and_message(tmp_path):
    with pytest.raises(TypeError, match="string formatting"):
        write_dataset(tmp_path, {"train": [1, 2, "three"]}, example_of, threads=2)
    assert files(tmp_path) == {}


# ---- writing over an older data set --------------------------------------------------------


def test_rewriting_replaces_the_split_and_nothing_else(numbers_0_to_99):
    folder = numbers_0_to_99
    foreign = ["flowers_train_00000-of-00003.tfrecord", "train.tfrecord", "notes.txt"]
    for name in foreign:
        (folder / name).write_bytes(b"not ours")
    (folder / ".writing-killed").mkdir()
    (folder / ".writing-killed" / "train_00000-of-00003.tfrecord").write_bytes(b"half")
    write_dataset(folder, {"train": range(7)}, numbered, shards=1)
    assert sorted(files(folder)) == sorted(
        [*foreign, "dataset.json", "train_00000-of-00001.tfrecord"]
    )
    assert numbers(folder) == list(range(7))


def test_a_rewriting_that_fails_leaves_the_old_data_set(numbers_0_to_99):
    before = files(numbers_0_to_99)

    def failing(item: int) -> tf.train.Example:
        if item == 1090:
            raise RuntimeError("item 1090 is broken")
        return numbered(item)

    with pytest.raises(RuntimeError, match="item 1090 is broken"):
        write_dataset(numbers_0_to_99, {"train": range(1000, 1100)}, failing, shards=3)
    assert files(numbers_0_to_99) == before


def test_a_full_disk_is_an_oserror_and_leaves_the_old_data_set(numbers_0_to_99):
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    before = files(numbers_0_to_99)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"can't write .*train_00000-of-00002\.tfrecord"):
            write_dataset(
                numbers_0_to_99,
                {"train": range(400)},
                lambda item: make_example(image=bytes(10_000)),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(numbers_0_to_99) == before


def test_broken_off_while_renaming_it_is_no_data_set(numbers_0_to_99, monkeypatch):
    done = []

    def replace_once(path: Path, target: Path) -> None:
        if path.suffix == ".tfrecord":
            if done:
                raise OSError("the disk has gone")
            done.append(path.name)
        os.replace(path, target)  # noqa: PTH105 (Path.replace is what is replaced)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_once)
        with pytest.raises(OSError, match="the disk has gone"):
            write_dataset(numbers_0_to_99, {"train": range(200, 300)}, numbered, shards=3)
    with pytest.raises(ValueError, match=r"dataset\.json is missing: write the data set again"):
        read_dataset(numbers_0_to_99)
    write_dataset(numbers_0_to_99, {"train": range(4)}, numbered)
    assert numbers(numbers_0_to_99) == [0, 1, 2, 3]


WRITER = """
import sys, time
from pathlib import Path
from helpers import make_example
from utils.tfrecord import write_dataset

def slow(number):
    if number == 1020:
        Path(sys.argv[2]).touch()
    if number >= 1020:
        time.sleep(0.2)
    return make_example(number=number)

if __name__ == "__main__":
    items = range(1000, 100_000)  # it would take hours
    write_dataset(Path(sys.argv[1]), {"train": items}, slow, threads=2)
"""


@pytest.fixture
def start_writer() -> Iterator[Any]:
    """Start programs, each in a process group of its own, none of which outlives the test."""
    started = []

    def start(*command: object) -> subprocess.Popen[str]:
        texts = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        texts |= {"env": os.environ | {"PYTHONPATH": str(Path(__file__).parent)}}  # for helpers
        words = [sys.executable, *map(str, command)]
        started.append(subprocess.Popen(words, start_new_session=True, **texts))
        return started[-1]

    yield start
    for program in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals")
def test_killed_or_interrupted_in_the_middle_the_old_data_set_stays(tmp_path, start_writer):
    script = tmp_path / "writer.py"
    script.write_text(WRITER, encoding="utf-8")
    writers = {}
    for how in (signal.SIGKILL, signal.SIGINT):
        folder, mark = tmp_path / how.name, tmp_path / f"{how.name}.mark"
        write_dataset(folder, {"train": range(100)}, numbered)
        writers[how] = (start_writer(script, folder, mark), folder, mark)
    for how, (writer, folder, mark) in writers.items():
        deadline = time.monotonic() + 120
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        if how == signal.SIGINT:
            writer.send_signal(how)
            errors = writer.communicate(timeout=60)[1]
        else:
            writer.kill()
            writer.wait(timeout=60)
        assert writer.returncode == -how
        if how == signal.SIGINT:
            assert "KeyboardInterrupt" in errors
        left = [path.name for path in folder.iterdir() if path.name.startswith(".writing-")]
        assert len(left) == (1 if how == signal.SIGKILL else 0)
        assert numbers(folder) == list(range(100))
        write_dataset(folder, {"train": range(3)}, numbered, shards=1)
        assert sorted(files(folder)) == ["dataset.json", "train_00000-of-00001.tfrecord"]


# ---- damage --------------------------------------------------------------------------------

SHARD = "train_00001-of-00003.tfrecord"


def record_ends(content: bytes) -> list[int]:
    return [*np.cumsum([len(payload) + 16 for payload in framed_records(content)])]


@pytest.mark.parametrize("place", ["after a record", "in a header", "in a payload", "to nothing"])
def test_a_cut_shard_is_named(numbers_0_to_99, place):
    path = numbers_0_to_99 / SHARD
    content = path.read_bytes()
    ends = record_ends(content)
    length = {
        "after a record": ends[-2],
        "in a header": ends[-2] + 5,
        "in a payload": ends[-1] - 6,
        "to nothing": 0,
    }[place]
    path.write_bytes(content[:length])
    if place != "in a payload":  # why the check is needed
        left = list(tf.data.TFRecordDataset(str(path)))
        assert len(left) == (0 if place == "to nothing" else len(ends) - 1)
    with pytest.raises(
        ValueError, match=f"{SHARD} is cut short or altered: write the data set again"
    ):
        read_dataset(numbers_0_to_99)


def test_any_altered_or_added_byte_of_a_shard_is_noticed(numbers_0_to_99):
    path = numbers_0_to_99 / SHARD
    content = path.read_bytes()
    for at in (0, 9, len(content) // 2, len(content) - 1):
        altered = bytearray(content)
        altered[at] ^= 1
        path.write_bytes(altered)
        with pytest.raises(
            ValueError, match=f"{SHARD} is cut short or altered: write the data set again"
        ):
            read_dataset(numbers_0_to_99)
    path.write_bytes(content + b"\0")
    with pytest.raises(
        ValueError, match=f"{SHARD} is cut short or altered: write the data set again"
    ):
        read_dataset(numbers_0_to_99)


def test_a_missing_shard_is_named(numbers_0_to_99):
    (numbers_0_to_99 / SHARD).unlink()
    with pytest.raises(ValueError, match=f"{SHARD} is missing: write the data set again"):
        read_dataset(numbers_0_to_99)


def test_a_damaged_dataset_json_is_refused(numbers_0_to_99):
    path = numbers_0_to_99 / "dataset.json"
    content = path.read_bytes()
    for broken in (b"", content[: len(content) // 2], b"[]", b"7", b"{}", b"\xff\xfe"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
            read_dataset(numbers_0_to_99)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.json is missing: write the data set again"):
        read_dataset(tmp_path / "nowhere")


def test_the_shards_come_in_the_order_of_writing(numbers_0_to_99):
    names, count = read_dataset(numbers_0_to_99)[1]["train"]
    assert names == [str(numbers_0_to_99 / f"train_{i:05}-of-00003.tfrecord") for i in range(3)]
    assert count == 100
    assert numbers(numbers_0_to_99) == list(range(100))
