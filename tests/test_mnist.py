"""data/mnist.py: where it looks, in which order; what it refuses; the splits; the stand-in."""

import argparse
import functools
import gzip
import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from helpers import run_program

from data import mnist

PARTS = ("train", "validation", "test")


def idx(array: np.ndarray) -> bytes:
    """A uint8 array in the idx format, written here a second time."""
    sizes = b"".join(struct.pack(">i", size) for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_mnist(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(gzip.compress(idx(array), mtime=0))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def alter(path: Path) -> None:
    """Change one pixel: still a good gzip and idx file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content, mtime=0))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def tiny() -> dict[str, np.ndarray]:
    """A made-up MNIST of 5,020 + 20 images; the first pixel of each is its number, modulo 251."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 5_020), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 5:8, 5:8] = rng.integers(0, 256, (count, 3, 3))
        images[:, 0, 0] = np.arange(count) % 251
        arrays[f"{part}-images-idx3-ubyte.gz"] = images
        arrays[f"{part}-labels-idx1-ubyte.gz"] = (np.arange(count) % 10).astype(np.uint8)
    return arrays


@pytest.fixture
def world(
    tiny: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with ``mirror/mnist`` behind a server and an empty cache, where the made-up
    MNIST is the true one."""
    write_mnist(tmp_path / "mirror" / "mnist", tiny)
    digests = {
        name: hashlib.sha256((tmp_path / "mirror" / "mnist" / name).read_bytes()).hexdigest()
        for name in tiny
    }
    handler = functools.partial(_Quiet, directory=tmp_path / "mirror")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(mnist, "FILES", digests)
    monkeypatch.setattr(mnist, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(mnist, "MIRRORS", (f"{url}/no-such-folder/", f"{url}/mnist/"))
    monkeypatch.delenv("COURSE_DATA", raising=False)
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield tmp_path
    server.shutdown()
    server.server_close()


def assert_is(data: mnist.Mnist, tiny: dict[str, np.ndarray]) -> None:
    """``data`` is the made-up MNIST, its training images split 20/5,000 in their order."""
    assert [len(getattr(data, f"{part}_images")) for part in PARTS] == [20, 5_000, 20]
    train = np.concatenate([data.train_images, data.validation_images])
    labels = np.concatenate([data.train_labels, data.validation_labels])
    np.testing.assert_array_equal(train, tiny["train-images-idx3-ubyte.gz"])
    np.testing.assert_array_equal(labels, tiny["train-labels-idx1-ubyte.gz"])
    np.testing.assert_array_equal(data.test_images, tiny["t10k-images-idx3-ubyte.gz"])
    np.testing.assert_array_equal(data.test_labels, tiny["t10k-labels-idx1-ubyte.gz"])
    assert data.stand_in is False


# ---- the order of the search ---------------------------------------------------------------


def test_a_local_folder_comes_first(world, tiny, monkeypatch):
    write_mnist(world / "mine" / "mnist", tiny)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    data = mnist.load(world / "mine")
    assert_is(data, tiny)
    source = f"MNIST in {world / 'mine' / 'mnist'}"
    assert data.describe() == {"source": source, "stand_in": False, "test_images": 20}
    monkeypatch.setenv("COURSE_DATA", str(world / "mine"))
    assert mnist.load().source == data.source
    shutil.copytree(world / "mine", world / "other")
    assert mnist.load(world / "other").source == f"MNIST in {world / 'other' / 'mnist'}"
    assert not (world / "cache").exists()


def test_the_mirrors_fill_the_cache_which_is_used_from_then_on(world, tiny, monkeypatch):
    data = mnist.load()
    assert_is(data, tiny)
    assert data.source == f"MNIST in {world / 'cache'}"
    assert sorted(path.name for path in (world / "cache").iterdir()) == sorted(tiny)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert_is(mnist.load(), tiny)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "train-images-idx3-ubyte.gz is damaged: it is cut short or altered (wrong SHA-256)"),
        (alter, "train-images-idx3-ubyte.gz is damaged: it is cut short or altered"),
        (Path.unlink, "train-images-idx3-ubyte.gz is missing"),
    ],
)
def test_a_folder_without_the_four_files_is_told_and_passed_over(
    world, tiny, capsys, monkeypatch, damage, message
):
    write_mnist(world / "mine" / "mnist", tiny)
    damage(world / "mine" / "mnist" / "train-images-idx3-ubyte.gz")
    data = mnist.load(world / "mine")
    assert_is(data, tiny)
    assert data.source == f"MNIST in {world / 'cache'}"
    errors = capsys.readouterr().err
    assert errors.startswith(f"--data-dir: {world / 'mine' / 'mnist'} does not hold MNIST")
    assert message in errors
    assert "labels" not in errors, "only the file at fault is named"
    monkeypatch.setenv("COURSE_DATA", str(world / "mine"))
    mnist.load()
    assert capsys.readouterr().err.startswith("COURSE_DATA: ")


@pytest.mark.parametrize("damage", [cut, alter])
def test_a_damaged_file_in_the_cache_is_fetched_again(world, tiny, capsys, damage):
    mnist.load()
    path = world / "cache" / "t10k-images-idx3-ubyte.gz"
    good = path.read_bytes()
    damage(path)
    capsys.readouterr()
    assert_is(mnist.load(), tiny)
    assert f"{path} is damaged" in capsys.readouterr().out
    assert path.read_bytes() == good


def test_a_damaged_file_in_the_cache_is_never_half_read(world, monkeypatch):
    mnist.load()
    cut(world / "cache" / "t10k-images-idx3-ubyte.gz")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert mnist.load().stand_in


def test_the_stand_in_comes_last_and_is_loud(world, monkeypatch, capsys):
    monkeypatch.setattr(mnist, "MIRRORS", mnist.MIRRORS[:1])
    data = mnist.load()
    assert data.describe() == {
        "source": "scikit-learn's digits (stand-in for MNIST)",
        "stand_in": True,
        "test_images": 300,
    }
    errors = capsys.readouterr().err
    (loud,) = [line for line in errors.splitlines() if "STAND-IN DATA" in line]
    assert loud.startswith("*** STAND-IN DATA: MNIST is missing")
    assert "the server answered 404" in errors
    assert f"put the file at {world / 'cache' / 'train-images-idx3-ubyte.gz'}" in errors
    assert "--data-dir" in errors
    assert "COURSE_DATA" in errors


# ---- the idx format ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5), (0, 28, 28)])
def test_an_idx_file_is_read(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "file.gz").write_bytes(gzip.compress(idx(array)))
    read = mnist.read_idx(tmp_path / "file.gz")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


GOOD = idx(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD)[:-9], "not a whole gzip file"),
        (gzip.compress(GOOD) + b"more", "not a whole gzip file"),
        (GOOD, "not a whole gzip file"),
        (b"", "not an idx file of bytes|not a whole gzip file"),
        (gzip.compress(b""), "not an idx file of bytes"),
        (gzip.compress(b"\0\0\x0d" + GOOD[3:]), r"not an idx file of bytes \(it begins 00000d02\)"),
        (gzip.compress(b"PNG" + GOOD[3:]), "not an idx file of bytes"),
        (gzip.compress(GOOD[:4]), "ends inside its header"),
        (gzip.compress(GOOD[:11]), "ends inside its header"),
        (gzip.compress(GOOD[:12]), "6 bytes announced, 0 found"),
        (gzip.compress(GOOD[:-1]), "6 bytes announced, 5 found"),
        (gzip.compress(GOOD + b"\0"), "6 bytes announced, 7 found"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_another_file_is_named_and_refused(tmp_path, content, message):
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        mnist.read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")


# ---- the data themselves -------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("COURSE_DATA"), reason="COURSE_DATA names no MNIST")
def test_the_real_mnist():
    data = mnist.load()
    assert not data.stand_in
    assert [len(getattr(data, f"{part}_images")) for part in PARTS] == [55_000, 5_000, 10_000]
    # The counts of each digit in MNIST's two files, and its mean grey, as published.
    labels = np.concatenate([data.train_labels, data.validation_labels])
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(labels).tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(data.test_labels).tolist() == counts
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    images = np.concatenate([data.train_images, data.validation_images])
    assert images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert images.std() / 255 == pytest.approx(0.3081, abs=5e-5)


def test_the_stand_in_is_like_mnist():
    data = mnist.stand_in()
    assert data.stand_in
    seen: dict[bytes, str] = {}
    for part, count in zip(PARTS, (1_297, 200, 300), strict=True):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        assert images.dtype == labels.dtype == np.uint8
        assert images.shape == (count, 28, 28)
        assert labels.shape == (count,)
        assert np.bincount(labels, minlength=10).min() >= 10, "every digit is in every part"
        assert images.max() > 200, "ink is near 255"
        frame = np.ones((28, 28), bool)
        frame[4:24, 4:24] = False
        assert not images[:, frame].any(), "paper is 0, and surrounds the digit"
        for image in images:
            assert seen.setdefault(image.tobytes(), part) == part, "an image is in two parts"
    again = mnist.stand_in()
    np.testing.assert_array_equal(data.train_images, again.train_images)


def test_the_stand_in_images_belong_to_their_labels():
    """Shrunk again they are scikit-learn's digits, with scikit-learn's labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = mnist.stand_in()
    images = data.test_images[:, 4:24, 4:24].astype(float)
    small = images[:, 1::5, 1::5] / 255 * 16  # [300, 4, 4], about the pixels (0, 2, 4, 6)
    places = []
    for image, label in zip(small, data.test_labels, strict=True):
        places.append(np.abs(digits.images[:, ::2, ::2] - image).sum(axis=(1, 2)).argmin())
        assert digits.target[places[-1]] == label
    assert min(places) < 100, "the parts are mixed: scikit-learn has the digits writer by writer"
    assert max(places) > 1_700


def test_the_first_images_and_the_whole_test_set():
    data = mnist.stand_in()
    few = data.first(train=30, validation=20)
    for part, count in zip(PARTS, (30, 20, 300), strict=True):
        for kind in ("images", "labels"):
            whole = getattr(data, f"{part}_{kind}")
            np.testing.assert_array_equal(getattr(few, f"{part}_{kind}"), whole[:count])
    assert few.describe() == data.describe()
    assert len(data.first(train=10**6, validation=10**6).train_images) == 1_297


def test_batches_hold_every_image_once_an_epoch_with_its_label():
    images = np.arange(50, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    labels = np.arange(50, dtype=np.uint8)

    def epochs(count: int, seed: int | None) -> list[list[int]]:
        dataset = mnist.batches(images, labels, 16, seed)
        assert len(dataset) == 4
        found = []
        for _ in range(count):
            batches = [(some.numpy(), y.numpy()) for some, y in dataset]
            assert [len(y) for _, y in batches] == [16, 16, 16, 2]
            assert all((some == y[:, None, None]).all() for some, y in batches)
            found.append(np.concatenate([y for _, y in batches]).tolist())
        return found

    in_order = list(range(50))
    assert epochs(2, None) == [in_order, in_order]
    first, second = epochs(2, seed=1)
    assert sorted(first) == sorted(second) == in_order
    assert len({tuple(x) for x in (in_order, first, second)}) == 3, "shuffled anew each epoch"
    assert epochs(2, seed=1) == [first, second], "the same seed, the same order"
    assert epochs(1, seed=2)[0] != first


def test_as_a_script_it_says_which_mnist_is_used(tmp_path):
    if os.environ.get("COURSE_DATA"):
        done = run_program("data/mnist.py")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("MNIST in ")
        assert "test: 10,000 images (28, 28), of each digit: 980 1135 1032" in lines[3]
    else:
        done = run_program("data/mnist.py", "--data-dir", tmp_path)
        assert f"--data-dir: {tmp_path / 'mnist'} does not hold MNIST" in done.stderr
        if done.returncode:  # else an earlier download is in data/mnist
            assert "STAND-IN" in done.stdout
            assert "train:  1,297 images (28, 28)" in done.stdout
            assert "MNIST itself could not be had" in done.stderr


def test_as_a_script_it_refuses_a_folder_that_is_not_there(tmp_path):
    done = run_program("data/mnist.py", "--data-dir", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_dir_must_be_a_folder(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    mnist.add_data_dir(parser)
    assert parser.parse_args([]).data_dir is None
    assert parser.parse_args(["--data-dir", str(tmp_path)]).data_dir == tmp_path
    with pytest.raises(SystemExit):
        parser.parse_args(["--data-dir", str(tmp_path / "nowhere")])
    assert re.search(r"argument --data-dir: .*nowhere.* is not a folder", capsys.readouterr().err)
