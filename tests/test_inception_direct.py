"""Chapter inception_v3/direct_apply: labels out of text files, and a trained network as it is.

The frozen graph of these tests has the interface of Google's and sums its picture up in twelve
numbers, so that what it must answer can be computed from the pixels without TensorFlow."""

import csv
import hashlib
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Lesson, run_lesson
from PIL import Image, ImageDraw

from data.photos import example_photos
from models import inception_v3
from models.inception_v3 import CLASS_INDEX, DIGESTS, LABEL_MAP, SYNSETS, find_file
from utils.run import SKIPPED

DESCRIBE = "inception_v3/direct_apply/01_id_to_description.py"
PREDICT = "inception_v3/direct_apply/02_predict_images.py"
OUTPUTS = 1008
WEIGHTS = np.random.default_rng(5).normal(size=(12, OUTPUTS)).astype(np.float32) * 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in place of ``models/inception_v3/``, and no COURSE_DATA."""
    folder = tmp_path_factory.mktemp("cache")
    with mock.patch.object(inception_v3, "CACHE", folder), mock.patch.dict(os.environ):
        os.environ.pop("COURSE_DATA", None)
        yield folder


# ---- 01: the label files -------------------------------------------------------------------

MAP = """\
# A comment
entry {
  target_class: 169
  target_class_string: "n02510455"
}
entry { target_class: 7 target_class_string: "n00000007" }  # on one line
entry{target_class_string:"n00000003"
target_class:3}
"""
WORDS = (
    "n00000003\tthree, trois\nn00000007\tseven\nn00000009\tnine\nn02510455\tgiant panda, panda\n"
)


def describe(folder: Path, label_map: str = MAP, synsets: str = WORDS) -> Lesson:
    (folder / "map.pbtxt").write_bytes(label_map.encode())
    (folder / "synsets.txt").write_bytes(synsets.encode())
    flags = ["--label-map", folder / "map.pbtxt", "--synsets", folder / "synsets.txt"]
    return run_lesson(DESCRIBE, folder / "run", *flags)


@pytest.mark.parametrize("text", [MAP, MAP.replace("\n", "\r\n"), "\ufeff" + MAP])
def test_entries_are_read_however_they_are_laid_out(cache, tmp_path, text):
    lesson = describe(tmp_path, text, WORDS.replace("\n", "\r\n"))
    assert lesson.metrics == {"entries": 3}
    listed = json.loads((cache / "id_desc.json").read_text(encoding="utf-8"))
    assert list(listed) == ["3", "7", "169"]
    assert [entry["description"] for entry in listed.values()] == [
        "three, trois",
        "seven",
        "giant panda, panda",
    ]
    lines = (cache / "id_desc.txt").read_text(encoding="utf-8").splitlines()
    assert lines[2] == "169\tn02510455\tgiant panda, panda\tNone"


GOOD = 'entry {\n  target_class: 3\n  target_class_string: "n00000003"\n}\n'


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (GOOD + "entry {\n  target_class: three\n}\n", r"map\.pbtxt, line 6:17"),
        (GOOD + "entry {\n  colour: 7\n}\n", r"line 6:3 : .* no field named \"colour\""),
        (GOOD + "entry {\n  target_class: 7\n", r"map\.pbtxt, line [67]"),
        (GOOD.replace("class: 3", "class: 7") + GOOD, "n00000003 occurs 2 times"),
        (GOOD.replace("n00000003", "n00000007") + GOOD, "3 occurs 2 times"),
        (GOOD.replace("3", "8"), "n00000008 has no words in the synset file"),
        ("# nothing\n", "it has no entries"),
    ],
)
def test_a_damaged_label_map_writes_nothing(cache, tmp_path, capsys, label_map, message):
    (cache / "id_desc.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit):
        describe(tmp_path, label_map)
    assert re.search(message, capsys.readouterr().err)
    assert not (cache / "id_desc.json").exists()


def test_files_that_can_not_be_read(cache, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_lesson(DESCRIBE, tmp_path, "--label-map", tmp_path / "none", "--synsets", tmp_path)
    assert "can't read" in capsys.readouterr().err


def test_without_the_files_an_excerpt_says_so_and_is_true(cache, tmp_path, capsys):
    lesson = run_lesson(DESCRIBE, tmp_path)
    assert lesson.result["data"]["stand_in"] is True and lesson.metrics == {"entries": 6}
    assert "*** STAND-IN" in lesson.output
    assert not (cache / "id_desc.json").exists(), "no list of six in the place of 1,000"
    assert capsys.readouterr().err.count("is missing") == 1, "the archive is told of once"
    excerpt = json.loads((tmp_path / "id_desc.json").read_text(encoding="utf-8"))
    with mock.patch.dict(os.environ, {"COURSE_DATA": REAL}):
        if None in (find_file(LABEL_MAP, False), find_file(SYNSETS, False)):
            pytest.skip("the label files are not at hand")
        run_lesson(DESCRIBE, tmp_path / "real")
    real = json.loads((cache / "id_desc.json").read_text(encoding="utf-8"))
    for node, entry in excerpt.items():
        assert entry | {"keras_index": 0} == real[node] | {"keras_index": 0}


REAL = os.environ.get("COURSE_DATA", "none")


def test_the_real_files_give_1000_entries_in_keras_order(cache, tmp_path):
    with mock.patch.dict(os.environ, {"COURSE_DATA": REAL}):
        classes = find_file(CLASS_INDEX, False)
        if None in (find_file(LABEL_MAP, False), find_file(SYNSETS, False), classes):
            pytest.skip("the label files are not at hand")
        lesson = run_lesson(DESCRIBE, tmp_path)
    assert lesson.metrics == {"entries": 1000} and lesson.result["data"]["stand_in"] is False
    assert "0, 1001, 1002, 1003, 1004, 1005, 1006, 1007" in lesson.output
    listed = json.loads((cache / "id_desc.json").read_text(encoding="utf-8"))
    assert list(listed) == [str(node) for node in range(1, 1001)]
    keras_order = json.loads(classes.read_text(encoding="utf-8"))
    for entry in listed.values():
        assert keras_order[str(entry["keras_index"])][0] == entry["synset"]
    assert (listed["169"]["keras_index"], listed["105"]["keras_index"]) == (388, 169)


# ---- 02: pictures of all kinds -------------------------------------------------------------


def base_picture() -> Image.Image:
    """96×64, four quarters of four colours, so that lying on a side makes a difference."""
    image = Image.new("RGB", (96, 64))
    draw = ImageDraw.Draw(image)
    for k, colour in enumerate([(200, 40, 40), (40, 160, 80), (60, 60, 220), (230, 210, 120)]):
        x, y = 48 * (k % 2), 32 * (k // 2)
        draw.rectangle((x, y, x + 47, y + 31), fill=colour)
    return image


def expected(image: Image.Image, weights: np.ndarray = WEIGHTS) -> np.ndarray:
    """What the frozen graph has to answer: softmax of the quarters' mean colours, weighted."""
    pixels = np.asarray(image.convert("RGB"), np.float64) / 255
    h, w, _ = pixels.shape
    quarters = pixels.reshape(2, h // 2, 2, w // 2, 3).mean(axis=(1, 3)).ravel()
    powers = np.exp((quarters @ weights) - (quarters @ weights).max())
    return powers / powers.sum()


def write_frozen(path: Path, weights: np.ndarray = WEIGHTS, result: str = "softmax") -> Path:
    """A frozen graph: JPEG bytes in at DecodeJpeg/contents:0, ``result``:0 [1, classes] out."""
    with tf.Graph().as_default() as graph:
        contents = tf.constant(b"", name="DecodeJpeg/contents")
        pixels = tf.raw_ops.DecodeJpeg(contents=contents, channels=3)
        batch = tf.cast(pixels, tf.float32)[tf.newaxis] / 255
        means = tf.compat.v1.image.resize_area(batch, [2, 2])
        logits = tf.matmul(tf.reshape(means, [1, 12]), tf.constant(weights))
        tf.nn.softmax(logits, name=result)
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says it has so many pixels, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images of many kinds, all with the same picture; and some that can't be read."""
    folder = tmp_path_factory.mktemp("zoo")
    image = base_picture()
    image.save(folder / "jpeg.jpg", quality=95)
    image.save(folder / "png.png")
    image.save(folder / "webp.webp", lossless=True)
    image.save(folder / "gif.gif")
    image.save(folder / "wrong suffix.jpg", "PNG")
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)  # orientation 6: to be turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "lying.jpg", quality=95, exif=exif)
    clear = image.convert("RGBA")
    clear.putalpha(255)
    clear.save(folder / "rgba.png")
    sixteen = np.asarray(image.convert("L"), np.uint16) * 257
    Image.fromarray(sixteen).save(folder / "sixteen.png")
    (folder / "照片 与 空格").mkdir()
    image.save(folder / "照片 与 空格" / "大熊猫 1.png")
    (folder / ".hidden.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    (folder / "cut.jpg").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "huge.png").write_bytes(png_header(30_000, 30_000))
    (folder / "text.jpg").write_text("this is no image", encoding="utf-8")
    return folder


def read_csv(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The lines of ``predictions.csv`` by file."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["file"], []).append(row)
    return rows


def test_the_frozen_graph_on_pictures_of_all_kinds(cache, zoo, broken, tmp_path):
    names = {str(node): {"synset": f"n{node:08}", "description": f"thing {node}, x"}
             for node in range(1, 1001)}  # fmt: skip
    (cache / "id_desc.json").write_text(json.dumps(names), encoding="utf-8")
    graph = write_frozen(tmp_path / "graph.pb")
    lesson = run_lesson(PREDICT, tmp_path / "run", zoo, broken, "--graph-def", graph)
    assert lesson.metrics == {"images": 11, "failed": 4}
    assert lesson.result["data"]["stand_in"] is False
    assert lesson.result["weights"] == "graph.pb, a frozen graph"
    assert lesson.figures == ["predictions"]
    rows = read_csv(tmp_path / "run")
    found = sorted(path for path in zoo.rglob("*") if path.suffix not in (".txt", ""))
    found = [path for path in found if not path.name.startswith(".")]
    bad = sorted(broken.iterdir())
    assert list(rows) == [str(path) for path in (*found, *bad)]
    assert len(found) == 11
    for path in found:
        picture = base_picture() if path.name != "sixteen.png" else base_picture().convert("L")
        right = expected(picture)
        order = np.argsort(-right)[:5]
        lines = rows[str(path)]
        assert [int(line["output"]) for line in lines] == list(order), path.name
        given = [float(line["probability"]) for line in lines]
        lossy = path.suffix == ".jpg" and path.name != "wrong suffix.jpg"
        np.testing.assert_allclose(given, right[order], rtol=0.15 if lossy else 0.02)
        for line in lines:
            node = int(line["output"])
            assert line["class"] == (f"thing {node}, x" if 1 <= node <= 1000 else f"output {node}")
    errors = {path.name: rows[str(path)][0]["error"] for path in bad}
    assert "truncated" in errors["cut.jpg"]
    assert "pixels" in errors["huge.png"]
    assert all(f"Can't read {path}: " in lesson.output for path in bad)


def test_nothing_that_can_be_read_is_an_error(cache, broken, tmp_path, capsys):
    (cache / "id_desc.json").unlink(missing_ok=True)
    graph = write_frozen(tmp_path / "graph.pb")
    (tmp_path / "empty").mkdir()
    flags = [broken, tmp_path / "missing.jpg", tmp_path / "empty", "--graph-def", graph]
    with pytest.raises(SystemExit, match="None of the 6 files could be read"):
        run_lesson(PREDICT, tmp_path / "run", *flags)
    told = capsys.readouterr().out
    assert "missing.jpg'" in told and "no images in this folder" in told
    assert "01_id_to_description.py writes the list" in told


def test_the_graph_must_have_googles_interface(cache, zoo, tmp_path, capsys):
    graph = write_frozen(tmp_path / "graph.pb", result="final_result")
    flags = [zoo / "png.png", "--graph-def"]
    with pytest.raises(SystemExit, match=r"--graph-def: the graph in .* has no softmax"):
        run_lesson(PREDICT, tmp_path / "run", *flags, graph)
    with pytest.raises(SystemExit, match=r"--graph-def: can't read a GraphDef from .*none\.pb"):
        run_lesson(PREDICT, tmp_path / "run", *flags, tmp_path / "none.pb")


# ---- 02: Keras's network -------------------------------------------------------------------


@pytest.fixture
def index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of names in the place of Keras's."""
    names = {str(i): [f"n{i:08}", f"great_thing_{i}"] for i in range(1000)}
    (cache / CLASS_INDEX).write_text(json.dumps(names), encoding="utf-8")
    digest = hashlib.md5((cache / CLASS_INDEX).read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(DIGESTS, CLASS_INDEX, digest)


def test_keras_answers_what_the_network_answers(index, zoo, tmp_path):
    keras.utils.set_random_seed(7)
    model = keras.applications.InceptionV3(weights=None)  # its answers differ from photo to photo
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 30)
    model.save_weights(tmp_path / "mine.weights.h5")
    photos = example_photos()
    flags = ["--weights", tmp_path / "mine.weights.h5", "--top", 3]
    lesson = run_lesson(PREDICT, tmp_path / "run", *photos, zoo / "lying.jpg", *flags)
    assert lesson.result["weights"] == "mine.weights.h5, not published by Keras"
    assert "Measured with mine.weights.h5, not the file that Keras publishes" in lesson.output
    rows = read_csv(tmp_path / "run")
    images = [Image.open(path).convert("RGB") for path in photos] + [base_picture()]
    squares = [np.asarray(i.resize((299, 299), Image.Resampling.BILINEAR)) for i in images]
    scaled = keras.applications.inception_v3.preprocess_input(np.stack(squares).astype(np.float32))
    answers = model.predict(scaled, verbose=0)
    assert len({int(row.argmax()) for row in answers}) > 1, "the pictures are told apart"
    for lines, row in zip(rows.values(), answers, strict=True):
        assert len(lines) == 3
        for line in lines:
            output = int(line["output"])
            assert float(line["probability"]) == pytest.approx(row[output], rel=0.2)
            assert line["class"] == f"great thing {output}"
        assert int(lines[0]["output"]) == row.argmax()


def test_weights_of_another_network_are_refused(index, zoo, tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(SystemExit, match=r"other\.weights\.h5 doesn't hold this network's weights"):
        run_lesson(PREDICT, tmp_path / "run", "--weights", tmp_path / "other.weights.h5")


@pytest.mark.parametrize("flags", [[], ["--weights", "none"]])
def test_without_trained_weights_it_is_skipped_with_a_sentence(index, tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as ended:
        run_lesson(PREDICT, tmp_path, *flags)
    assert ended.value.code == SKIPPED
    told = capsys.readouterr().out
    assert "Skipped: an untrained network can't name photos" in told
    assert "python models/inception_v3.py top index" in told
