"""Chapter inception_v3/slim_train, its records: what is in them by another reader's account, what
is left out, several processes, bad input, a full disk, and a writing that was killed."""

import errno
import io
import json
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, load_script
from joblib.externals.loky import get_reusable_executor
from PIL import Image

from data import photos
from data.images import load_image
from utils.tfrecord import read_info

SCRIPT = "inception_v3/slim_train/01_images_to_tfrecords.py"
CLASSES = ("daisy", "red rose", "郁金香")
EACH = 12  # photos of a class
SPLITS = ("train", "validation", "test")
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # where no font has Chinese


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / "inception_v3" / "slim_train"))  # as Python does for a script
    yield load_script(SCRIPT)
    sys.path[:] = path


def picture(number: int, size: tuple[int, int] = (60, 44)) -> Image.Image:
    """A picture unlike all others."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 good photos, two of which TensorFlow would decode otherwise than a person sees them."""
    folder = tmp_path_factory.mktemp("my photos")
    for i, label in enumerate(CLASSES):
        (folder / label).mkdir()
        for k in range(EACH):
            picture(100 * i + k).save(folder / label / f"照片 {k}.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, taken on its side
    picture(0).save(folder / "daisy" / "照片 0.jpg", exif=exif)
    alpha = picture(1).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    alpha.save(folder / "daisy" / "clear.png")
    (folder / "daisy" / "照片 1.jpg").unlink()
    return folder


def call(script: ModuleType, folder: Path, run: Path, out: Path, *flags: Any) -> dict[str, Any]:
    """Call ``main()`` with one process, and return ``result.json``."""
    arguments = [script.__file__, "--image-dir", folder, "--run-dir", run, "--out", out]
    if "--workers" not in flags:
        arguments += ["--workers", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(argument) for argument in (*arguments, *flags)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        try:
            script.main()
        finally:
            script.plt.close("all")
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def records(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, read by their format: length, its checksum, data, its checksum."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        example = tf.train.Example.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]
        yield {
            name: getattr(feature, feature.WhichOneof("kind")).value[0]
            for name, feature in example.features.feature.items()
        }


def contents(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each split, shard after shard."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(out.glob("*.tfrecord")):
        found.setdefault(file.name.rsplit("_", 1)[0], []).extend(records(file))
    return found


@pytest.fixture(scope="module")
def written(script, folder, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("records")
    return out, call(script, folder, tmp_path_factory.mktemp("run"), out)


def test_another_reader_finds_every_photo_once(written, folder):
    out, result = written
    names = {file.name for file in out.glob("*.tfrecord")}
    assert {f"image_{s}_0000{i}-of-00002.tfrecord" for s in SPLITS for i in (0, 1)} >= names
    assert "image_train_00000-of-00002.tfrecord" in names
    assert (out / "labels.txt").read_bytes().decode() == "daisy\nred rose\n郁金香\n"
    about = read_info(out)["about"]
    assert (about["kind"], about["classes"], about["stand_in"]) == ("photos", [*CLASSES], False)
    found = contents(out)
    everything = [record for some in found.values() for record in some]
    files = [f"{path.parent.name}/{path.name}" for path in folder.rglob("*.*")]
    assert sorted(r["image/filename"].decode() for r in everything) == sorted(files)
    assert result["metrics"]["images"] == len(files) == 36
    for split, some in found.items():
        assert result["metrics"][f"{split.removeprefix('image_')}_images"] == len(some)
    for record in everything:
        label, name = record["image/filename"].decode().split("/")
        assert record["image/class/text"].decode() == label
        assert record["image/class/label"] == CLASSES.index(label)
        content = (folder / label / name).read_bytes()
        special = name in ("clear.png", "照片 0.jpg") and label == "daisy"
        assert (record["image/encoded"] == content) != special
        assert record["image/format"] == (b"png" if special else b"jpeg")
        pixels = load_image(folder / label / name)
        assert (record["image/height"], record["image/width"]) == pixels.shape[:2]
        stored = tf.io.decode_image(record["image/encoded"], 3).numpy().astype(int)
        assert np.abs(stored - pixels).mean() < 3, "as a person sees it"


def test_the_split_is_that_of_pool3_train(written, folder):
    parts = photos.split(photos.scan(folder, 1).photos, 10, 10)
    for split, some in contents(written[0]).items():
        names = {record["image/filename"].decode() for record in some}
        wanted = parts[split.removeprefix("image_")]
        assert names == {f"{p.label}/{p.path.name}" for p in wanted}
        assert {record["image/class/label"] for record in some} == {0, 1, 2}


def test_classes_are_mixed_in_the_order_of_a_seed(script, written, folder):
    labels = [r["image/class/label"] for r in contents(written[0])["image_train"]]
    changes = np.count_nonzero(np.diff(labels))
    assert changes > len(labels) / 3, labels
    some = photos.scan(folder, 1).photos
    one = script.mixed(some, 1)
    assert one == script.mixed(some[::-1], 1)
    assert one != script.mixed(some, 2)


def test_two_processes_write_the_same_bytes(script, written, folder, tmp_path):
    # Processes that an earlier test started would not find the chapter's modules.
    get_reusable_executor().shutdown(wait=True)
    call(script, folder, tmp_path / "run", tmp_path / "out", "--workers", 2)
    for file in (*written[0].glob("*.tfrecord"), written[0] / "labels.txt"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_large_photos_can_be_stored_small(script, folder, tmp_path):
    call(script, folder, tmp_path / "run", tmp_path / "out", "--resize-shorter", 22, "--shards", 1)
    (shard,) = (tmp_path / "out").glob("image_train*")
    assert shard.name == "image_train_00000-of-00001.tfrecord"
    for record in records(shard):
        with Image.open(io.BytesIO(record["image/encoded"])) as image:
            assert image.format == "JPEG"
            assert sorted(image.size) == [22, 30]
            assert image.size == (record["image/width"], record["image/height"])
            name = record["image/filename"].decode()
            whole = Image.fromarray(load_image(folder / name)).resize(image.size)
            assert np.abs(np.asarray(image).astype(int) - whole).mean() < 6
    content, pixels = script.convert.shrink(np.full((1000, 3, 3), 7, np.uint8), 1)
    assert pixels.shape == (333, 1, 3)
    assert Image.open(io.BytesIO(content)).size == (1, 333)


def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, with files in it that are no photos."""
    copy = tmp_path / "photos"
    for path in folder.rglob("*.*"):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    good = (copy / "red rose" / "照片 3.jpg").read_bytes()
    (copy / "daisy" / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (copy / "daisy" / "text.jpg").write_text("no photo", encoding="utf-8")
    (copy / "郁金香" / "空 的.jpg").write_bytes(b"")
    (copy / "red rose" / "Thumbs.db").write_bytes(b"junk")
    return copy


def test_broken_photos_are_listed_and_not_fatal(script, folder, tmp_path, capsys):
    copy = broken(folder, tmp_path)
    result = call(script, copy, tmp_path / "run", tmp_path / "out")
    assert result["metrics"]["images"] == 36
    assert result["metrics"]["left_out"] == 4
    said = capsys.readouterr().out
    for name in ("truncated.jpg", "text.jpg", "空 的.jpg", "Thumbs.db"):
        assert name in said
        assert any(Path(path).name == name for path, *_ in result["faults"])


def refused(script: ModuleType, capsys: Any, folder: Path, tmp_path: Path, *flags: Any) -> str:
    """The sentence that a run ends with instead of a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(script, folder, tmp_path / "run", tmp_path / "out", *flags)
    code, printed = stopped.value.code, capsys.readouterr()
    assert code not in (0, None)
    assert "Traceback" not in printed.err
    return " ".join((code if isinstance(code, str) else printed.err).split())


def test_strict_writes_nothing(script, folder, tmp_path, capsys):
    copy = broken(folder, tmp_path)
    assert "4 files can't be used" in refused(script, capsys, copy, tmp_path, "--strict")
    assert not [*(tmp_path / "out").rglob("*.tfrecord"), *(tmp_path / "out").rglob("dataset*")]


def test_folders_that_make_no_data_set(script, folder, tmp_path, capsys):
    assert "there is no folder" in refused(script, capsys, tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no class" in refused(script, capsys, tmp_path / "empty", tmp_path)
    for k in range(5):
        path = tmp_path / "single" / "only" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(path)
    assert "only one class" in refused(script, capsys, tmp_path / "single", tmp_path)
    inside = refused(script, capsys, folder, tmp_path, "--out", folder / "records")
    assert "inside the folder of the photos" in inside
    shares = ("--validation-percentage", 60, "--testing-percentage", 40)
    assert "nothing to train on" in refused(script, capsys, folder, tmp_path, *shares)
    assert not [*(tmp_path / "out").rglob("*.tfrecord")]


def test_without_a_test_set_none_is_left_from_before(script, folder, tmp_path):
    call(script, folder, tmp_path / "run", tmp_path / "out")
    assert list((tmp_path / "out").glob("image_test_*"))
    call(script, folder, tmp_path / "run", tmp_path / "out", "--testing_percentage", 0)
    assert not list((tmp_path / "out").glob("image_test_*"))
    assert list(read_info(tmp_path / "out")["splits"]) == ["image_train", "image_validation"]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def test_a_killed_writing_is_begun_again(script, written, folder, tmp_path, monkeypatch):
    read, calls = script.convert.read, []

    def read_or_die(photo: photos.Photo) -> bytes:
        calls.append(photo)
        if len(calls) == 20:
            raise Killed
        return read(photo)

    with monkeypatch.context() as patch:
        patch.setattr(script.convert, "read", read_or_die)
        with pytest.raises(Killed):
            call(script, folder, tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    (tmp_path / "out" / ".writing-left").mkdir()  # what a real kill -9 leaves
    call(script, folder, tmp_path / "run", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(written[0])
    assert not list((tmp_path / "out").glob(".*"))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: writing fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_records_of_before(script, written, folder, tmp_path, capsys):
    out = tmp_path / "out"
    call(script, folder, tmp_path / "run", out)
    largest = max(file.stat().st_size for file in out.glob("*.tfrecord"))
    with small_files(largest // 2):
        said = refused(script, capsys, folder, tmp_path, "--seed", 2)
    assert "could not be written" in said
    assert os.strerror(errno.EFBIG) in said
    assert contents(out) == contents(written[0])
    assert not list(out.glob(".*")), "nothing half-written"


def test_a_photo_that_changes_meanwhile_is_noticed(script, folder, tmp_path, capsys, monkeypatch):
    copy = broken(folder, tmp_path)
    split = photos.split

    def change(*some: Any, **named: Any) -> Any:
        parts = split(*some, **named)
        parts["train"][0].path.write_bytes(b"other bytes")
        return parts

    monkeypatch.setattr(photos, "split", change)
    assert "was changed" in refused(script, capsys, copy, tmp_path)
