"""Chapter inception_v3/slim_train, its records: what is in them by another reader's account, large
photos and photos held upright, what is left out, and bad input."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from helpers import Lesson, assert_costs_nothing, foreign_files, run_lesson
from PIL import Image

from data import photos
from data.images import load_image
from utils.tfrecord import read_dataset

SCRIPT = "inception_v3/slim_train/01_images_to_tfrecords.py"
CLASSES = ("daisy", "red rose", "郁金香")
EACH = 12  # photos of a class
SPLITS = ("train", "validation", "test")
UPRIGHT, LARGE, CLEAR = "照片 0.jpg", "照片 2.jpg", "clear.png"  # of the daisies
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # where no font has Chinese


def picture(number: int, size: tuple[int, int] = (60, 44)) -> Image.Image:
    """A picture unlike all others."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 good photos. One is turned by a note, one large and turned, one has transparent places."""
    folder = tmp_path_factory.mktemp("my photos")
    for i, label in enumerate(CLASSES):
        (folder / label).mkdir()
        for k in range(EACH):
            picture(100 * i + k).save(folder / label / f"照片 {k}.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, taken on its side
    picture(0).save(folder / "daisy" / UPRIGHT, exif=exif)
    picture(2, (900, 600)).save(folder / "daisy" / LARGE, exif=exif)
    alpha = picture(1).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    alpha.save(folder / "daisy" / CLEAR)
    (folder / "daisy" / "照片 1.jpg").unlink()
    return folder


def convert(folder: Path, here: Path, *flags: Any) -> Lesson:
    """The lesson, its run in ``here/run``, its records in ``here/records``."""
    return run_lesson(
        SCRIPT, here / "run", "--image-dir", folder, "--out", here / "records", *flags
    )


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
        found.setdefault(file.name.split("_")[0], []).extend(records(file))
    return found


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lesson]:
    here = tmp_path_factory.mktemp("written")
    (here / "run").mkdir()
    for name, content in foreign_files(SCRIPT).items():
        (here / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "run" / name).write_bytes(content)
    return here / "records", convert(folder, here)


def test_another_reader_finds_every_photo_once(written, folder):
    out, lesson = written
    found = contents(out)
    assert set(found) == {*SPLITS}
    everything = [record for some in found.values() for record in some]
    files = [f"{path.parent.name}/{path.name}" for path in folder.rglob("*.*")]
    assert sorted(r["image/filename"].decode() for r in everything) == sorted(files)
    assert lesson.metrics["images"] == len(files) == 36
    for split, some in found.items():
        assert lesson.metrics[f"{split}_images"] == len(some)
    for record in everything:
        label, name = record["image/filename"].decode().split("/")
        assert record["image/class/text"].decode() == label
        assert record["image/class/label"] == CLASSES.index(label)
        content = (folder / label / name).read_bytes()
        special = label == "daisy" and name in (LARGE, CLEAR)
        assert (record["image/encoded"] == content) != special
        turned = label == "daisy" and name == UPRIGHT
        assert record["image/orientation"] == (6 if turned else 1)
        with Image.open(io.BytesIO(record["image/encoded"])) as image:
            assert image.format == record["image/format"].decode().upper()
            stored = image.convert("RGB")
        stored = stored.transpose(Image.Transpose.ROTATE_270) if turned else stored
        assert stored.size == (record["image/width"], record["image/height"])
        pixels = Image.fromarray(load_image(content))
        if label == "daisy" and name == LARGE:
            assert stored.size == (320, 480), "900×600, lying on its side"
            pixels = pixels.resize(stored.size)
        difference = np.asarray(stored).astype(int) - np.asarray(pixels)
        assert np.abs(difference).mean() < 3, "as a person sees it"
    assert_costs_nothing(lesson.folder, foreign_files(SCRIPT))


def test_the_split_is_that_of_pool3_train_and_the_training_photos_are_known(written, folder):
    scan = photos.scan(folder, 1)
    parts = photos.split(scan.photos, 10, 10)
    about = read_dataset(written[0])[0]
    for split, some in contents(written[0]).items():
        names = {record["image/filename"].decode() for record in some}
        assert names == {f"{photo.label}/{photo.path.name}" for photo in parts[split]}
        assert {record["image/class/label"] for record in some} == {0, 1, 2}
    assert {*about["training_photos"]} == {photo.digest for photo in parts["train"]}
    assert (about["classes"], about["stand_in"]) == ([*CLASSES], False)


def test_classes_are_mixed_in_the_order_of_a_seed(written, folder, tmp_path):
    before = contents(written[0])["train"]
    labels = [record["image/class/label"] for record in before]
    assert np.count_nonzero(np.diff(labels)) > len(labels) / 3, labels
    convert(folder, tmp_path, "--seed", 2, "--resize-shorter", 0, "--testing-percentage", 0)
    found = contents(tmp_path / "records")
    names = [[r["image/filename"] for r in some] for some in (before, found["train"])]
    order = {name: i for i, name in enumerate(names[1])}
    common = [order[name] for name in names[0] if name in order]
    assert common != sorted(common)
    (large,) = (
        record
        for some in found.values()
        for record in some
        if record["image/filename"].decode() == f"daisy/{LARGE}"
    )
    assert large["image/encoded"] == (folder / "daisy" / LARGE).read_bytes(), "0: as it is"
    assert large["image/orientation"] == 6
    assert (large["image/width"], large["image/height"]) == (600, 900)


def test_the_same_photos_give_the_same_bytes_and_no_split_is_left_from_before(
    written, folder, tmp_path, monkeypatch
):
    convert(folder, tmp_path, "--testing-percentage", 20)
    assert list((tmp_path / "records").glob("test_*"))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    convert(folder, tmp_path, "--testing-percentage", 0)
    assert not list((tmp_path / "records").glob("test_*"))
    assert set(read_dataset(tmp_path / "records")[1]) == {"train", "validation"}
    convert(folder, tmp_path)
    for file in written[0].glob("*.tfrecord"):
        assert (tmp_path / "records" / file.name).read_bytes() == file.read_bytes()


def refused(capsys: Any, folder: Path, here: Path, *flags: Any) -> str:
    """The sentence that a run ends with instead of a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        convert(folder, here, *flags)
    code, printed = stopped.value.code, capsys.readouterr()
    assert code not in (0, None)
    assert not [*(here / "records").rglob("*.tfrecord")]
    return " ".join((code if isinstance(code, str) else printed.err).split())


def test_folders_that_make_no_data_set(folder, tmp_path, capsys):
    assert "there is no folder" in refused(capsys, tmp_path / "nowhere", tmp_path)
    inside = refused(capsys, folder, tmp_path, "--out", folder / "records")
    assert "inside the folder of the photos" in inside
    shares = ("--validation-percentage", 60, "--testing-percentage", 40)
    assert "nothing to train on" in refused(capsys, folder, tmp_path, *shares)
    copy = tmp_path / "copy"
    for path in folder.rglob("*.*"):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / path.parent.name / path.name).write_bytes(path.read_bytes())
    (copy / "daisy" / "text.jpg").write_text("no photo", encoding="utf-8")
    assert "1 files can't be used" in refused(capsys, copy, tmp_path, "--strict")
    lesson = convert(copy, tmp_path)
    assert (lesson.metrics["images"], lesson.metrics["left_out"]) == (36, 1)
    assert lesson.result["faults"][0][0].endswith("text.jpg")


def test_a_photo_that_changes_meanwhile_is_noticed(folder, tmp_path, capsys, monkeypatch):
    split = photos.split

    def change(*some: Any, **named: Any) -> Any:
        parts = split(*some, **named)
        fake = parts["train"][-1]._replace(digest="0" * 64)
        return parts | {"train": [*parts["train"][:-1], fake]}

    monkeypatch.setattr(photos, "split", change)
    assert "was changed" in refused(capsys, folder, tmp_path)
