"""inception_v3/pool3_train/01_retrain.py: one run as a user makes it, on drawn pictures, with
random filters at 75 pixels; one with a graph of Google's interface; its parts on numbers that can
be computed otherwise; bottlenecks on the disk; the shell scripts."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, Lesson, run_lesson
from PIL import Image
from scipy.stats import binomtest

from data.bottlenecks import Bottlenecks, read_text
from data.images import load_image
from data.photos import Photo, draw_stand_in, read
from models import inception_v3
from models.classifier import load_classifier

SCRIPT = "inception_v3/pool3_train/01_retrain.py"
CHAPTER = ROOT / "inception_v3" / "pool3_train"
CLASSES = ["it's round", "交叉", "条纹 图"]  # in the order of the folders
SHAPES = dict(zip(CLASSES, ("circles", "crosses", "stripes"), strict=True))
PLAN = (24, 24, 16)  # photos of each
SIZE = 75  # pixels
# The attributes of these operations in TensorFlow 1.15.5, from TF_GetAllOpList.
TENSORFLOW_1_15 = {
    "AddV2": "T",
    "AvgPool": "T data_format ksize padding strides",
    "BiasAdd": "T data_format",
    "Cast": "DstT SrcT Truncate",
    "ConcatV2": "N T Tidx",
    "Const": "dtype value",
    "Conv2D": "T data_format dilations explicit_paddings padding strides use_cudnn_on_gpu",
    "DecodeJpeg": "acceptable_fraction channels dct_method fancy_upscaling ratio "
    "try_recover_truncated",
    "EnsureShape": "T shape",
    "ExpandDims": "T Tdim",
    "Identity": "T",
    "MatMul": "T transpose_a transpose_b",
    "MaxPool": "T data_format ksize padding strides",
    "Maximum": "T",
    "Mean": "T Tidx keep_dims",
    "Mul": "T",
    "NoOp": "",
    "Pack": "N T axis",
    "Placeholder": "dtype shape",
    "RealDiv": "T",
    "Relu": "T",
    "Reshape": "T Tshape",
    "ResizeBilinear": "T align_corners half_pixel_centers",
    "Rsqrt": "T",
    "ScaleAndTranslate": "T antialias kernel_type",
    "Shape": "T out_type",
    "Softmax": "T",
    "Sqrt": "T",
    "StridedSlice": "Index T begin_mask ellipsis_mask end_mask new_axis_mask shrink_axis_mask",
    "Sub": "T",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in class folders. Among them are a WebP by the name of a JPEG, one that lies on its
    side, one in a mirror, a copy, and half a file."""
    folder = tmp_path_factory.mktemp("photos") / "我的 photos"
    for count, (label, shape) in zip(PLAN, SHAPES.items(), strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            picture = draw_stand_in(shape, number).resize((160, 120))
            picture.save(folder / label / f"照片 {number}.jpg", quality=95)
    first = folder / CLASSES[0]
    draw_stand_in("circles", 0).resize((120, 160)).save(first / "照片 0.jpg", "WEBP", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = draw_stand_in("circles", 1).resize((800, 600)).transpose(Image.Transpose.ROTATE_90)
    lying.save(first / "照片 1.jpg", quality=95, exif=exif)
    mirrored = draw_stand_in("circles", 2).resize((160, 120)).transpose(Image.Transpose(0))
    mirrored.save(first / "照片 3.jpg", quality=95)  # of number 2
    whole = (folder / CLASSES[1] / "照片 1.jpg").read_bytes()
    (folder / CLASSES[1] / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / CLASSES[1] / "copy.jpg").write_bytes(whole)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrain")


def flags(folder: Path, place: Path) -> list[str | Path]:
    """Of a run whose files go below ``place``."""
    paths = ["--image_dir", folder, "--bottleneck_dir", place / "kept"]
    paths += ["--output_graph", place / "out" / "flowers.pb"]
    return [*paths, "--output_labels", place / "labels.txt", "--image-size", str(SIZE)]


@pytest.fixture(scope="module")
def lesson(folder: Path, place: Path) -> Lesson:
    more = ["--weights", "none", "--write-text-bottlenecks", "--flip_left_right", "--splits", "4"]
    more += ["--how_many_training_steps", "150", "--eval_step_interval", "25"]
    more += ["--per-class", "24", "--random_crop", "10", "--print_misclassified_test_images"]
    return run_lesson(SCRIPT, place / "run", *flags(folder, place), *more)


def names_of(lesson: Lesson) -> dict[str, Any]:
    """The names that the lesson's functions see."""
    return lesson.variables["train_head"].__globals__


# ---- the run -------------------------------------------------------------------------------


def test_it_says_how_good_it_is_and_names_what_it_left_out(lesson, place):
    known = lesson.variables
    assert lesson.result["photos"] == {name: len(known["parts"][name]) for name in known["SETS"]}
    assert sum(lesson.result["photos"].values()) == sum(PLAN)
    truth, answers = known["labels"][known["test"]], known["answers"]
    assert lesson.metrics["test_accuracy_of_this_split"] == (truth == answers).mean()
    assert lesson.result["classes"]["accuracy"] == (truth == answers).mean()
    assert lesson.output.count("taken for") == (truth != answers).sum()
    assert "no whole image" in lesson.output
    assert "a copy" in lesson.output
    assert "--random_crop does nothing" in lesson.output
    assert "random filters" in lesson.output
    assert lesson.figures == ["curves", "confusion", "mistakes"]
    assert not [*place.rglob("*.tmp*")]


def test_the_splits_test_each_photo_once_and_keep_alike_ones_together(lesson):
    known = lesson.variables
    assert len(known["accuracies"]) == 4
    assert lesson.metrics["test_accuracy"] == pytest.approx(np.mean(known["accuracies"]))
    assert lesson.metrics["spread"] == pytest.approx(np.std(known["accuracies"], ddof=1))
    assert sorted(np.concatenate(known["tests"])) == [*range(sum(PLAN))]
    where = {
        photo.path.stem: i for i, photo in enumerate(known["photos"]) if "round" in photo.label
    }
    pair = {where["照片 2"], where["照片 3"]}
    assert [len(pair & set(places)) for places in known["tests"]].count(2) == 1
    for places in known["tests"]:
        counts = np.bincount(known["labels"][places], minlength=3)
        assert (abs(counts - np.array(PLAN) / 4) <= 2).all()
    assert not set(known["rest"]) & {*known["tests"][3], *known["tests"][2]}, "the last split's"


def test_random_filters_are_worth_something(lesson):
    right = round(lesson.metrics["test_accuracy"] * sum(PLAN))
    guessing = max(PLAN) / sum(PLAN)
    assert binomtest(right, sum(PLAN), guessing, alternative="greater").pvalue < 1e-3


def test_bottlenecks_are_what_the_network_says_of_the_pictures(lesson, place):
    network, photos = lesson.variables["network"], lesson.variables["photos"]
    resize = keras.layers.Resizing(SIZE, SIZE, antialias=True)
    kept = Bottlenecks(place / "kept", lesson.variables["key"])
    assert len(kept.rows) == sum(PLAN)
    mirrored = Bottlenecks(place / "kept", lesson.variables["key"] + "-mirrored")
    assert len(mirrored.rows) == sum(PLAN)
    by_name = {photo.path.name: photo for photo in photos if "round" in photo.label}
    odd = [by_name["照片 0.jpg"], by_name["照片 1.jpg"]]
    assert odd[0].path.read_bytes()[:4] == b"RIFF" and odd[1].width > odd[1].height
    for photo in [*odd, photos[20], photos[40]]:
        pixels = load_image(photo.path).astype(np.float32)
        for rows, image in ((kept.rows, pixels), (mirrored.rows, pixels[:, ::-1])):
            scaled = keras.applications.inception_v3.preprocess_input(resize(image).numpy())
            computed = network(scaled[np.newaxis], training=False).numpy()[0]
            far = 0.2 if photo in odd[1:2] else 2e-3  # that one is unpacked at a fraction
            np.testing.assert_allclose(rows[photo.digest], computed, rtol=2e-3, atol=far)
        np.testing.assert_array_equal(read_text(place / "kept", photo), kept.rows[photo.digest])


def test_the_gradient_by_hand_is_the_slope_of_the_loss(lesson):
    known = lesson.variables
    x, y = known["x"].astype(float), known["y"].astype(float)
    rate = known["args"].learning_rate
    W = known["W"].astype(float) + rate * known["dW"]
    b = known["b"].astype(float) + rate * known["db"]

    def loss_at(W: np.ndarray, b: np.ndarray) -> float:
        z = x @ W + b
        return (np.log(np.exp(z).sum(axis=1)) - (z * y).sum(axis=1)).mean()

    steepest = np.unravel_index(abs(known["dW"]).argmax(), W.shape)
    for values, gradient, where in ((W, known["dW"], steepest), (b, known["db"], 1)):
        step = np.zeros_like(values)
        step[where] = 1e-4
        ends = [
            loss_at(W + sign * step, b) if values is W else loss_at(W, b + sign * step)
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / 2e-4
        assert gradient[where] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_the_step_is_chosen_by_the_weighted_loss(lesson, monkeypatch):
    known, dice = names_of(lesson), np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], (60, 12, 6))
    rows = dice.gamma(1.0, 0.3, (78, 2048)).astype(np.float32)
    rows[:, :3] += np.eye(3)[labels] * 3
    places = dice.permutation(78)
    train, validation = places[:50], places[50:]
    for name, value in {"features": rows, "labels": labels, "mirrored": None}.items():
        monkeypatch.setitem(known, name, value)
    monkeypatch.setattr(known["args"], "class_weights", "balanced")
    monkeypatch.setattr(known["args"], "how_many_training_steps", 100)
    head, history, best = known["train_head"](train, validation)
    logs = tf.nn.log_softmax(head(rows[validation])).numpy()
    smoothed = 0.9 * np.eye(3)[labels[validation]] + 0.1 / 3
    entropy = -(smoothed * logs).sum(axis=1)
    weights = 50 / 3 / np.bincount(labels[train])[labels[validation]]
    assert best == np.argmin(history["val_loss"])
    assert history["val_loss"][best] == pytest.approx((weights * entropy).mean(), rel=1e-4)
    assert (weights * entropy).mean() != pytest.approx(entropy.mean(), rel=0.01)


def test_graph_model_and_head_give_the_same(lesson, place):
    known = lesson.variables
    classes = (place / "labels.txt").read_text("utf-8").splitlines()
    assert classes == CLASSES
    trained = load_classifier(place / "out")
    assert (trained.classes, trained.size) == (CLASSES, SIZE)
    photos = [known["photos"][i] for i in known["test"]]
    expected = known["scores"][known["test"]]
    assert np.ptp(expected, axis=0).max() > 0.2, "all answers alike would prove nothing"
    rows = np.stack([row for _, row in trained.probabilities([p.path for p in photos])])
    np.testing.assert_allclose(rows, expected, atol=2e-3)
    graph = tf.compat.v1.GraphDef.FromString((place / "out" / "flowers.pb").read_bytes())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph, name="")
        for photo, row in zip(photos, rows, strict=True):
            answer = session.run("final_result:0", {"DecodeJpeg/contents:0": read(photo)})
            np.testing.assert_allclose(answer, row[np.newaxis], atol=2e-2)
    content = known["photos"][known["train"][0]].path.read_bytes()
    assert trained.was_trained_on(content)
    assert not trained.was_trained_on(photos[0].path.read_bytes())
    assert lesson.result["largest_difference"] < 1e-2


def assert_tensorflow_1_15_knows(path: Path) -> None:
    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    assert not graph.library.function
    for node in graph.node:
        known = {*TENSORFLOW_1_15[node.op].split()}
        unknown = {name for name in node.attr if not name.startswith("_")} - known
        assert not unknown, f"{node.op}: {unknown}"


def test_the_graph_has_only_what_tensorflow_1_15_knows(place, lesson):
    assert_tensorflow_1_15_knows(place / "out" / "flowers.pb")


def test_tensorboard_gets_curves_variables_and_graph(lesson):
    for name in ("train", "validation"):
        assert lesson.events(name).tags("scalars") >= {"epoch_loss", "epoch_accuracy"}
    assert any("hidden" in tag for tag in lesson.events("train").tags("histograms"))
    assert any("mixed10" in node for node in lesson.events("graph").graph_nodes())


# ---- bottlenecks on the disk -----------------------------------------------------------------


def made_up(count: int) -> tuple[list[Photo], np.ndarray]:
    digests = [hashlib.sha256(bytes([i // 256, i % 256])).hexdigest() for i in range(count)]
    photos = [Photo(Path(f"{i}.jpg"), "a", digest, 9, 9) for i, digest in enumerate(digests)]
    return photos, np.random.default_rng(1).random((count, 2048), np.float32)


def test_bottlenecks_are_kept_and_damaged_files_are_not_used(tmp_path, capsys):
    photos, rows = made_up(600)
    kept = Bottlenecks(tmp_path, "key")
    for start in range(0, 590, 10):
        kept.add(photos[start : start + 10], rows[start : start + 10])
    assert len([*tmp_path.iterdir()]) == 2, "what was added since is not written yet"
    kept.save()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    again = Bottlenecks(tmp_path, "key")
    np.testing.assert_array_equal([again.rows[p.digest] for p in photos[:590]], rows[:590])
    assert not Bottlenecks(tmp_path, "another").rows
    whole, lost = files[0].read_bytes(), len(np.load(files[0])["digests"])
    for damage in (b"", b"no archive", whole[:-100], whole[:3000] + b"x" + whole[3001:]):
        files[0].write_bytes(damage)
        assert len(Bottlenecks(tmp_path, "key").rows) == 590 - lost
        assert "Not used, damaged" in capsys.readouterr().out
    np.savez(files[0], digests=["a"], features=np.full((1, 2048), np.nan, np.float32))
    assert "a" not in Bottlenecks(tmp_path, "key").rows
    with pytest.raises(ValueError, match="no numbers"):
        kept.add(photos[:1], rows[:1] * np.inf)


def test_stopped_while_computing_what_was_done_is_there(lesson, tmp_path, monkeypatch):
    known = names_of(lesson)
    photos, rows = made_up(64)
    asked = []

    def features_of(some: list[Photo], mirrored: bool) -> Iterator[np.ndarray]:
        for start in range(0, len(some), 16):
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append(start)
            yield rows[[photos.index(p) for p in some[start : start + 16]]]

    monkeypatch.setattr(known["args"], "bottleneck_dir", tmp_path)
    monkeypatch.setitem(known, "features_of", features_of)
    with pytest.raises(KeyboardInterrupt):
        known["bottlenecks_of"](photos)
    assert len(Bottlenecks(tmp_path, known["key"]).rows) == 48
    asked.clear()
    np.testing.assert_array_equal(known["bottlenecks_of"](photos), rows)
    assert len(asked) == 1


def test_text_files_are_used_if_they_are_of_this_network(
    lesson, place, tmp_path, monkeypatch, capsys
):
    known = names_of(lesson)
    photos = known["photos"]
    kept = Bottlenecks(place / "kept", known["key"]).rows
    monkeypatch.setattr(known["args"], "bottleneck_dir", tmp_path)
    for photo in photos:
        old = place / "kept" / photo.label / f"{photo.path.name}_inception_v3.txt"
        new = tmp_path / photo.label / f"{photo.path.name}.txt"  # as the earlier retrain.py
        new.parent.mkdir(exist_ok=True)
        new.write_bytes(old.read_bytes())
    bad = sorted(tmp_path.rglob("*.txt"))[-3:]
    for path, text in zip(
        bad, ("", "0.5,0.5", old.read_text().replace(",", ",nan,", 1)), strict=True
    ):
        path.write_text(text)
    rows = known["bottlenecks_of"](photos)
    np.testing.assert_allclose(rows, [kept[p.digest] for p in photos], rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().out
    assert f"{len(photos) - 3} bottlenecks from text files" in said
    assert said.count("Not used, damaged") == 3

    for path in tmp_path.glob("*.npz"):
        path.unlink()
    row = np.random.default_rng(1).gamma(1.0, 0.3, 2048).astype(np.float32)
    for photo in photos:
        path = tmp_path / photo.label / f"{photo.path.name}.txt"
        path.write_text(",".join(map(str, row)))
    np.testing.assert_allclose(known["bottlenecks_of"](photos), rows, rtol=1e-4, atol=1e-4)
    assert "of another network: not used" in capsys.readouterr().out


DATA = Path(os.environ.get("COURSE_DATA", "")) / "inception_v3"


@pytest.mark.skipif(not (DATA / "bottleneck_txt").is_dir(), reason="COURSE_DATA has no text files")
def test_googles_own_text_files():
    with np.load(DATA / "flower_photos_pool3.npz", allow_pickle=False) as file:
        rows = dict(zip(file["names"].tolist(), file["features"], strict=True))
    paths = [*(DATA / "bottleneck_txt").glob("*/*.txt")]
    assert len(paths) == 100
    for path in paths:
        name = f"{path.parent.name}/{path.name.removesuffix('.txt')}"
        photo = Photo(Path(name), path.parent.name, "", 1, 1)
        row = read_text(DATA / "bottleneck_txt", photo)
        np.testing.assert_allclose(row, rows[name], rtol=1e-6)


# ---- other networks --------------------------------------------------------------------------


def write_google(folder: Path) -> Path:
    """A frozen graph with the names of Google's, of a network that is small."""
    kernel = np.random.default_rng(2).normal(0, 0.2, (23, 23, 3, 2048)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        v1 = tf.compat.v1
        contents = v1.placeholder(tf.string, [], "DecodeJpeg/contents")
        pixels = tf.io.decode_jpeg(contents, channels=3, name="DecodeJpeg")
        images = tf.expand_dims(tf.cast(pixels, tf.float32), 0)
        images = v1.image.resize_bilinear(images, [299, 299], name="ResizeBilinear")
        maps = tf.nn.relu(tf.nn.conv2d((images - 128) / 128, kernel, 138, "VALID"))
        pool = tf.reduce_mean(maps, [1, 2], keepdims=True, name="pool_3")
        features = tf.reshape(pool, [1, 2048], name="pool_3/_reshape")
        tf.nn.softmax(features[:, :1008], name="softmax")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / inception_v3.GRAPH_DEF).write_bytes(graph.as_graph_def().SerializeToString())
    return folder


def test_a_graph_of_googles_interface_gets_a_head(folder, tmp_path):
    more = ["--model_dir", write_google(tmp_path / "google"), "--splits", "1"]
    more += ["--how_many_training_steps", "50", "--final_tensor_name", "flower/answer"]
    lesson = run_lesson(SCRIPT, tmp_path / "run", *flags(folder, tmp_path), *more)
    known = lesson.variables
    assert set(lesson.metrics) >= {"test_accuracy"} and "spread" not in lesson.metrics
    assert not [*tmp_path.rglob("*.keras")]
    path = tmp_path / "out" / "flowers.pb"
    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    assert "softmax" not in {node.name for node in graph.node}
    assert_tensorflow_1_15_knows(path)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph, name="")
        for i in (0, 30, 50):
            feed = {"DecodeJpeg/contents:0": read(known["photos"][i])}
            row, answer = session.run(["pool_3/_reshape:0", "flower/answer:0"], feed)
            np.testing.assert_allclose(row[0], known["features"][i], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(answer[0], known["scores"][i], atol=1e-4)


PARTIAL = DATA / "inception_v3_notop_partial.weights.h5"


@pytest.mark.skipif(not PARTIAL.is_file(), reason="COURSE_DATA has no trained weights")
def test_trained_weights_recognise_flowers(tmp_path):
    folder = DATA.parent / "flower_photos"
    more = ["--weights", PARTIAL, "--per-class", "40", "--splits", "6"]
    more += ["--how_many_training_steps", "300", *flags(folder, tmp_path), "--image_size", "203"]
    lesson = run_lesson(SCRIPT, tmp_path / "run", *more)
    assert lesson.metrics["test_accuracy"] > 0.75


# ---- what makes no sense ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--testing_percentage", "0"], "a number above 0"),
        (["--validation_percentage", "60", "--testing-percentage", "40"], "nothing to train on"),
        (["--how_many_training_steps", "0"], "a whole number from 1"),
        (["--final_tensor_name", "a b"], "no name 'a b'"),
        (["--image_size", "60"], "at least 75"),
        (["--model_dir", "nowhere", "--flip_left_right"], "can't be mirrored"),
        (["--model_dir", "nowhere"], "can't read"),
        (["--weights", "nowhere.h5"], "no file nowhere.h5"),
        (["--image_dir", "nowhere"], "no folder"),
        (["--bottleneck_dir", "file/below"], "file"),
    ],
)
def test_flags_that_make_no_sense(folder, tmp_path, capsys, monkeypatch, more, sentence):
    (tmp_path / "file").write_bytes(b"")
    more = [str(tmp_path / word) if word == "file/below" else word for word in more]
    with pytest.raises(SystemExit) as caught:
        run_lesson(SCRIPT, tmp_path / "run", *flags(folder, tmp_path), *more)
    assert caught.value.code not in (0, None)
    assert sentence in f"{caught.value.code} {' '.join(capsys.readouterr().err.split())}"


# ---- the shell scripts -----------------------------------------------------------------------


def call(kind: str) -> list[str]:
    """The words of the command line in ``retrain.sh`` or ``.bat``, continued lines joined."""
    text = (CHAPTER / f"retrain.{kind}").read_text(encoding="utf-8")
    text = text.replace("\\\n" if kind == "sh" else "^\n", " ")
    (line,) = (line for line in text.splitlines() if "01_retrain.py" in line and "PYTHON" in line)
    return shlex.split(line.replace("\\", "/"))


def test_the_two_shell_scripts_say_the_same_and_pin_nothing():
    assert [Path(word).name for word in call("sh")[1:]] == ["$PYTHON", "01_retrain.py", "$@"]
    assert [Path(word).name for word in call("bat")] == [
        "%PYTHON%",
        "01_retrain.py",
        "%FLAG%",
        "%*",
    ]
    texts = [(CHAPTER / f"retrain.{kind}").read_text(encoding="utf-8") for kind in ("sh", "bat")]
    code = [re.sub(r"(?m)^(#|rem\b).*", "", text) for text in texts]
    flags = [set(re.findall(r"--\w+", text)) - {"---"} for text in code]
    assert flags[0] == flags[1] == {"--image_dir"}
    for line in code[1].splitlines():  # a path may hold blanks, so it stands in quotes
        for variable in re.finditer(r"%(~dp0|~1|ROOT|PYTHON|FIRST)", line):
            assert line[: variable.start()].count('"') % 2, line


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell's script")
def test_the_shell_script_hands_on_its_words(tmp_path):
    python = tmp_path / "my python"
    python.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n", encoding="utf-8")
    python.chmod(0o755)
    script = [str(CHAPTER / "01_retrain.py")]
    for given, handed in (
        ([], []),
        (["my photos"], ["--image_dir", "my photos"]),
        (["my photos", "--splits", "5"], ["--image_dir", "my photos", "--splits", "5"]),
        (["--quick", "--seed", "2"], ["--quick", "--seed", "2"]),
    ):
        done = subprocess.run(
            ["sh", CHAPTER / "retrain.sh", *given],
            env=os.environ | {"PYTHON": str(python)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(script + handed)
