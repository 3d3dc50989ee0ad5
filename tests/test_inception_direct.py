"""Chapter inception_v3/direct_apply: labels out of text files, and a trained network as it is.

The frozen graph of these tests has the interface of Google's and sums its picture up in twelve
numbers, so that what it must answer can be computed from the pixels without TensorFlow."""

import csv
import io
import json
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from helpers import Finished, load_script, run_quick
from PIL import Image, ImageDraw

from models import inception_v3
from models.inception_v3 import CLASS_INDEX, LABEL_MAP, SYNSETS, find_file

DESCRIBE = "inception_v3/direct_apply/01_id_to_description.py"
PREDICT = "inception_v3/direct_apply/02_predict_images.py"
OUTPUTS = 1008
WEIGHTS = np.random.default_rng(5).normal(size=(12, OUTPUTS)).astype(np.float32) * 3


@pytest.fixture(scope="module")
def describe() -> ModuleType:
    return load_script(DESCRIBE)


@pytest.fixture(scope="module")
def predict() -> ModuleType:
    return load_script(PREDICT)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file in ``models/inception_v3/``, none in COURSE_DATA, no download."""
    monkeypatch.setattr(inception_v3, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.delenv("COURSE_DATA", raising=False)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a script's ``main()`` in this process and return its result.json."""

    def main(script: ModuleType, *arguments: str | Path) -> dict[str, Any]:
        folder = tmp_path / "run"
        words = [script.__file__, "--run-dir", folder, *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        script.main()
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))

    return main


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


def write_files(folder: Path, label_map: str = MAP, synsets: str = WORDS) -> list[str | Path]:
    (folder / "map.pbtxt").write_bytes(label_map.encode())
    (folder / "synsets.txt").write_bytes(synsets.encode())
    return ["--label-map", folder / "map.pbtxt", "--synsets", folder / "synsets.txt"]


def parse_with_protobuf(text: str) -> dict[int, str]:
    """Node to synset, by Google's own parser of the format."""
    file = descriptor_pb2.FileDescriptorProto(name="label_map.proto", package="label_map")
    entry, whole = file.message_type.add(name="Entry"), file.message_type.add(name="LabelMap")
    entry.field.add(name="target_class", number=1, type=5, label=1)
    entry.field.add(name="target_class_string", number=2, type=9, label=1)
    whole.field.add(name="entry", number=1, type=11, label=3, type_name=".label_map.Entry")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("label_map.LabelMap"))
    found = text_format.Parse(text, kind())
    return {entry.target_class: entry.target_class_string for entry in found.entry}


@pytest.mark.parametrize("text", [MAP, MAP.replace("\n", "\r\n"), "\ufeff" + MAP])
def test_entries_are_read_however_they_are_laid_out(describe, call, tmp_path, text):
    out = tmp_path / "out"
    files = write_files(tmp_path, text, WORDS.replace("\n", "\r\n"))
    result = call(describe, *files, "--out", out)
    assert result["metrics"] == {"entries": 3, "bad_lines": 0}
    listed = json.loads((out / "id_desc.json").read_text(encoding="utf-8"))
    assert {int(k): v["synset"] for k, v in listed.items()} == parse_with_protobuf(MAP)
    assert list(listed) == ["3", "7", "169"]
    assert listed["169"]["description"] == "giant panda, panda"
    lines = (out / "id_desc.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{k}\t{v['synset']}\t{v['description']}" for k, v in listed.items()]
    assert {path.name for path in out.iterdir()} == {"id_desc.json", "id_desc.txt"}


GOOD = 'entry {\n  target_class: 3\n  target_class_string: "n00000003"\n}\n'


@pytest.mark.parametrize(
    ("bad", "line", "what"),
    [
        ("entry {\n  target_class: three\n  x\n}\n", 6, "target_class is three, not a number"),
        ('entry {\n  target_class: "7"\n}\n', 6, 'target_class is "7", not a number'),
        ("entry {\n  target_class:\n}\n", 6, "target_class is nothing, not a number"),
        ("entry {\n  target_class: 7\n}\n", 5, "has no target_class_string"),
        ('entry {\n\n  target_class_string: "cat"\n}\n', 7, 'target_class_string is "cat", not an'),
        ("entry {\n  target_class: 7\n  target_class: 8\n}\n", 7, "a second target_class"),
        ("entry {\n  colour: 7\n}\n", 6, "expected target_class: or target_class_string:"),
        ("entry {\n  target_class: 7\n", 5, "the entry that begins here has no end"),
        ("entry 7\n", 5, "expected { after entry"),
        (GOOD.replace("3", "7") + "oops\n", 9, "expected entry {, found oops"),
        (GOOD.replace("class: 3", "class: 7"), 5, "n00000003 is given a second time"),
        (GOOD.replace("n00000003", "n00000007"), 5, "node 3 is given a second time"),
        (GOOD.replace("3", "8"), 5, "n00000008 has no words in synsets.txt"),
    ],
)
def test_a_bad_line_of_the_label_map_is_named_and_costs_its_entry_alone(
    describe, call, tmp_path, capsys, bad, line, what
):
    last = 9 if "oops" in bad else 7
    files = write_files(tmp_path, GOOD + bad + GOOD.replace("3", str(last)))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as refused:
        call(describe, *files, "--out", out)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'map.pbtxt'}, line {line}: "), message
    assert what in message
    assert "1 bad lines: nothing is written. --skip-bad writes the good entries." in message
    assert not out.exists()
    result = call(describe, *files, "--out", out, "--skip-bad")
    assert result["metrics"]["bad_lines"] == 1
    assert f"line {line}: " in capsys.readouterr().out
    listed = json.loads((out / "id_desc.json").read_text(encoding="utf-8"))
    assert set(listed) == {"3", str(last)}


def test_bad_lines_of_the_synset_file_and_other_bytes_are_named(describe, call, tmp_path):
    words = "n00000003\tthree\nn7 seven\n\nn00000003\tdrei\nn00000009\t \n"
    files = write_files(tmp_path, GOOD, words)
    with (tmp_path / "synsets.txt").open("ab") as file:
        file.write(b"n00000010\tt\xe9n\n")
    with pytest.raises(SystemExit) as refused:
        call(describe, *files, "--out", tmp_path / "out")
    lines = [line.split("synsets.txt, ")[-1] for line in str(refused.value).splitlines()]
    assert [line.split(":")[0] for line in lines] == [
        "line 2", "line 4", "line 5", "line 6", "4 bad lines",
    ]  # fmt: skip
    assert "found 'n7 seven'" in lines[0]
    assert "a second line for n00000003" in lines[1]
    assert "is not UTF-8" in lines[3]


def test_files_that_are_missing_empty_or_something_else(describe, call, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"can't read .*none.*: No such file"):
        call(describe, "--label-map", tmp_path / "none", "--synsets", tmp_path / "none")
    with pytest.raises(SystemExit, match="has no entries"):
        call(describe, *write_files(tmp_path, "# nothing\n"), "--out", tmp_path / "out")
    with pytest.raises(SystemExit) as stopped:
        call(describe, "--out", tmp_path / "out")
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert LABEL_MAP in told and SYNSETS not in told, "the archive is told of once"
    assert "inception-2015-12-05.tgz" in told
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"can't write to .*file"):
        call(describe, *write_files(tmp_path), "--out", tmp_path / "file")


def test_quick_does_with_an_excerpt_that_says_so(tmp_path, monkeypatch, describe, call, capsys):
    result = call(describe, "--quick", "--out", tmp_path / "out")
    assert result["data"]["stand_in"] is True
    assert result["metrics"] == {"entries": 8, "bad_lines": 0}
    assert "*** STAND-IN" in capsys.readouterr().out
    listed = json.loads((tmp_path / "out" / "id_desc.json").read_text(encoding="utf-8"))
    assert listed["169"]["description"].startswith("giant panda")


def test_the_real_files_give_1000_entries(tmp_path, monkeypatch):
    monkeypatch.undo()
    if None in (find_file(LABEL_MAP, False), find_file(SYNSETS, False)):
        pytest.skip("the label files are not at hand")
    run = run_quick(DESCRIBE, tmp_path / "run", "--out", tmp_path)
    assert run.metrics == {"entries": 1000, "bad_lines": 0}
    assert run.result["data"]["stand_in"] is False
    assert "0, 1001, 1002, 1003, 1004, 1005, 1006, 1007" in run.output
    listed = json.loads((tmp_path / "id_desc.json").read_text(encoding="utf-8"))
    label_map = find_file(LABEL_MAP, False).read_text(encoding="utf-8")
    assert {int(k): v["synset"] for k, v in listed.items()} == parse_with_protobuf(label_map)
    assert list(listed) == [str(node) for node in range(1, 1001)]
    assert listed["169"]["description"].startswith("giant panda, panda, panda bear")
    classes = find_file(CLASS_INDEX, False)
    if classes is not None:  # what the notes say of the two orders
        keras_order = json.loads(classes.read_text(encoding="utf-8"))
        synsets = sorted(entry["synset"] for entry in listed.values())
        assert synsets == [keras_order[str(i)][0] for i in range(1000)]
        assert synsets.index("n02510455") == 388
        assert listed["105"]["synset"] == synsets[169] == "n02090622"


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


def test_the_frozen_graph_on_pictures_of_all_kinds(predict, call, zoo, broken, tmp_path, capsys):
    names = {str(node): {"synset": f"n{node:08}", "description": f"thing {node}, x"}
             for node in range(1, 1001)}  # fmt: skip
    (tmp_path / "id_desc.json").write_text(json.dumps(names), encoding="utf-8")
    graph = write_frozen(tmp_path / "graph.pb")
    result = call(
        predict, zoo, broken, "--graph-def", graph, "--id-desc", tmp_path / "id_desc.json"
    )
    assert result["metrics"] == {"images": 11, "failed": 4}
    assert result["data"]["stand_in"] is False
    assert "not Google’s own" in result["weights"]
    assert result["figures"] == [f"predictions_{page}.png" for page in (1, 2, 3)]
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
    told = capsys.readouterr().out
    assert all(f"Can't read {path}: " in told for path in bad)
    assert "which is not Google's own file" in told


def test_nothing_that_can_be_read_is_an_error(predict, call, broken, tmp_path, capsys):
    graph = write_frozen(tmp_path / "graph.pb")
    with pytest.raises(SystemExit, match="None of the 5 files could be read"):
        call(predict, broken, tmp_path / "missing.jpg", "--graph-def", graph)
    told = capsys.readouterr().out
    assert "missing.jpg: No such file or directory" in told
    assert "run python inception_v3/direct_apply/01_id_to_description.py" in told
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="None of the 1 files could be read"):
        call(predict, tmp_path / "empty", "--graph-def", graph)
    assert "no images in this folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2]", "is no list of names"), ("{", "is no list of names"), ('{"1": ["n1"]}', "no list")],
)
def test_wrong_lists_of_names_are_refused(predict, call, zoo, tmp_path, content, message):
    (tmp_path / "names.json").write_text(content, encoding="utf-8")
    for flags in (["--class-index"], ["--graph-def", write_frozen(tmp_path / "g.pb"), "--id-desc"]):
        with pytest.raises(SystemExit, match=message):
            call(predict, zoo / "png.png", *flags, tmp_path / "names.json")


def test_the_graph_must_have_googles_interface(predict, call, zoo, tmp_path):
    graph = write_frozen(tmp_path / "graph.pb", result="final_result")
    with pytest.raises(SystemExit, match=r"--graph-def: the graph in .* has no softmax"):
        call(predict, zoo / "png.png", "--graph-def", graph)
    with pytest.raises(SystemExit, match=r"--graph-def: there is no file .*none\.pb"):
        call(predict, zoo / "png.png", "--graph-def", tmp_path / "none.pb")


# ---- 02: Keras's network -------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    """InceptionV3 with random weights that tell pictures apart, and the file of its weights."""
    keras.utils.set_random_seed(7)
    model = keras.applications.InceptionV3(weights=None)
    last = model.layers[-1]
    last.kernel.assign(last.kernel * 30)
    path = tmp_path_factory.mktemp("weights") / "mine.weights.h5"
    model.save_weights(path)
    return model, path


def test_keras_answers_what_the_network_answers(predict, call, zoo, trained, tmp_path, capsys):
    model, weights = trained
    names = {str(i): [f"n{i:08}", f"great_thing_{i}"] for i in range(1000)}
    (tmp_path / "index.json").write_text(json.dumps(names), encoding="utf-8")
    flags = ["--weights", weights, "--class-index", tmp_path / "index.json", "--top", 3]
    photos = predict.example_photos()
    result = call(predict, *photos, zoo / "lying.jpg", *flags)
    assert result["weights"] == "mine.weights.h5, not published by Keras"
    assert "mine.weights.h5, which is not the file that Keras publishes" in capsys.readouterr().out
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


def test_weights_without_the_last_layer_are_refused(predict, call, zoo, tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(
        tmp_path / "other.weights.h5"
    )
    with pytest.raises(SystemExit, match=r"other\.weights\.h5 doesn't hold this network's weights"):
        call(predict, zoo / "png.png", "--weights", tmp_path / "other.weights.h5")


@pytest.fixture(scope="module")
def untrained(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    return run_quick(PREDICT, folder, zoo / "jpeg.jpg", "--weights", "none")


def test_an_untrained_network_says_so_loudly(untrained):
    assert untrained.result["data"]["stand_in"] is True
    assert "UNTRAINED" in untrained.output
    assert untrained.figures == ["predictions"]
    (lines,) = read_csv(untrained.folder).values()
    assert [float(line["probability"]) for line in lines] == pytest.approx([0.001] * 5, rel=0.3)
