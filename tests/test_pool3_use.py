"""inception_v3/pool3_train/02_test_images.py and the benchmark of the head, on a Keras model and a
frozen graph that these tests make: small ones, whose answers follow from the pixels."""

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import load_script, run_program
from PIL import Image
from scipy.stats import binom

from models.classifier import save_classifier, whole_model
from utils.run import SKIPPED

SCRIPT = "inception_v3/pool3_train/02_test_images.py"
CLASSES = ["daisy", "红 玫瑰", "tulips"]
COLOURS = [(220, 30, 30), (30, 220, 30), (30, 30, 220)]  # of the classes
SIZE = 24
PLAN = [4, 3, 2]  # photos of each class
WRONG = {("daisy", 0): 1, ("daisy", 1): 2, ("红 玫瑰", 0): 2}  # and what they are taken for
UNSURE = ("tulips", 1)  # a pale one
KNOWN = ("daisy", 3)  # a photo of the training


def write_model(path: Path, training_photos: list[str], factor: float = 4.0) -> Path:
    """A classifier that takes the strongest colour, and a frozen graph that does the same."""
    images = keras.Input((SIZE, SIZE, 3))
    network = keras.Model(images, factor * keras.layers.GlobalAveragePooling2D()(images))
    about = {"classes": CLASSES, "size": SIZE, "weights": "made up"}
    about |= {"training_photos": training_photos, "test_photos": []}
    save_classifier(path, whole_model(network, None, SIZE, CLASSES), about)
    with tf.Graph().as_default() as graph:
        contents = tf.compat.v1.placeholder(tf.string, [], "DecodeJpeg/contents")
        pixels = tf.cast(tf.io.decode_jpeg(contents, channels=3), tf.float32)
        means = tf.reduce_mean(pixels / 127.5 - 1, [0, 1])[tf.newaxis]
        tf.nn.softmax(factor * means, name="final_result")
    path.with_name("graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    labels = "\n".join(CLASSES) + "\n"
    path.with_name("output_labels.txt").write_text(labels, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of photos, each in the colour of the class that it will be taken for."""
    folder = tmp_path_factory.mktemp("photos") / "照片"
    for label, count in zip(CLASSES, PLAN, strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            colour = COLOURS[WRONG.get((label, number), CLASSES.index(label))]
            if (label, number) == UNSURE:
                colour = (128, 128, 140)
            pixels = np.full((64, 96, 3), colour, np.uint8)
            noise = np.random.default_rng([len(label), number]).integers(0, 30, (64, 96, 3))
            Image.fromarray(pixels + noise.astype(np.uint8)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    known = folder / KNOWN[0] / f"{KNOWN[1]}.png"
    digest = hashlib.sha256(known.read_bytes()).hexdigest()
    return write_model(tmp_path_factory.mktemp("models") / "pool3" / "model.keras", [digest])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: ModuleType):
    """Run ``main()`` in this process and return what it left: answers of the CSV, result."""

    def main(*words: str | Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
        run = tmp_path / "run"
        monkeypatch.setattr(sys, "argv", [SCRIPT, "--run-dir", str(run), *map(str, words)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        try:
            script.main()
        except SystemExit as error:
            if error.code != 1:
                raise
        with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return rows, json.loads((run / "result.json").read_text(encoding="utf-8"))

    return main


def expected(path: Path) -> np.ndarray:
    means = np.asarray(Image.open(path).convert("RGB"), float).mean(axis=(0, 1)) / 127.5 - 1
    powers = np.exp(4 * means)
    return powers / powers.sum()


def test_answers_accuracy_and_a_training_photo_wherever_it_lies(
    call, folder, model, tmp_path, capsys
):
    moved = tmp_path / "tulips"
    moved.mkdir()
    shutil.copy(folder / KNOWN[0] / f"{KNOWN[1]}.png", moved / "another name.png")
    rows, result = call(folder, moved, "--model", model.parent)
    files = [*sorted(folder.rglob("*.png")), moved / "another name.png"]
    assert [row["file"] for row in rows] == [str(path) for path in files]
    for row in rows:
        path = Path(row["file"])
        given = [float(row[label]) for label in CLASSES]
        np.testing.assert_allclose(given, expected(path), atol=2e-3)
        assert float(row["confidence"]) == max(given)
        if path.parent != moved:
            number = int(path.stem)
            taken = WRONG.get((path.parent.name, number), CLASSES.index(path.parent.name))
            assert row["class"] == row["guess"] == CLASSES[taken]
            assert row["right"] == str((path.parent.name, number) not in WRONG)
            assert row["trained_on"] == str((path.parent.name, number) == KNOWN)
        assert row["truth"] == path.parent.name
    assert rows[-1]["trained_on"] == "True"
    right, total = sum(PLAN) - len(WRONG) - 1, sum(PLAN) - 1
    assert result["metrics"]["test_accuracy"] == right / total
    assert result["metrics"]["trained_on"] == 2
    said = capsys.readouterr().out
    assert f"{right} of {total} photos right" in said
    assert "2 of the photos were in the training" in said


def test_a_frozen_graph_answers_alike(call, folder, model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.open(folder / "tulips" / "0.png")
    picture.save(tmp_path / "upside down.jpg", quality=95, exif=exif)
    files = [folder, tmp_path / "upside down.jpg"]
    ours, _ = call(*files, "--model", model)
    graphs, result = call(*files, "--graph", model.with_name("graph.pb"))
    assert len(graphs) == sum(PLAN) + 1
    for one, other in zip(ours, graphs, strict=True):
        assert one["class"] == other["class"]
        for label in CLASSES:
            assert float(one[label]) == pytest.approx(float(other[label]), abs=0.01)
    assert result["metrics"]["test_accuracy"] == pytest.approx(6 / 9)


def test_below_the_confidence_no_answer_is_given(call, folder, model, capsys):
    rows, result = call(folder, "--model", model, "--at-least", "0.6")
    unsure = [row for row in rows if not row["class"]]
    assert [(Path(r["file"]).parent.name, int(Path(r["file"]).stem)) for r in unsure] == [UNSURE]
    assert unsure[0]["guess"] == "tulips"
    metrics = result["metrics"]
    assert metrics["none_of_these"] == 1
    total = sum(PLAN) - 1  # without the training's
    assert metrics["test_accuracy"] == (total - len(WRONG)) / total
    assert metrics["given_accuracy"] == (total - len(WRONG) - 1) / (total - 1)
    assert "none of these" in capsys.readouterr().out


def test_two_models_are_compared_in_pairs(call, folder, model, tmp_path, capsys):
    worse = write_model(tmp_path / "worse" / "model.keras", [], factor=-4.0)
    _, result = call(folder, "--model", model, "--against", worse)
    counted = sum(PLAN) - 1
    alone = counted - len(WRONG)  # the other takes the weakest colour: right only by luck
    said = " ".join(capsys.readouterr().out.split())
    assert f"On {counted} photos: right {alone} and" in said
    other = int(said.partition(f"right {alone} and ")[2].split()[0])
    only = int(said.partition(" only the first, ")[2].split()[0])
    assert only <= other
    pairs = int(said.partition("times; ")[2].split()[0]), only
    p = min(1.0, 2 * binom.cdf(min(pairs), sum(pairs), 0.5))
    assert result["metrics"]["p"] == pytest.approx(p)


def test_json_stands_alone_and_broken_files_do_not_stop_the_others(folder, model, tmp_path):
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "none").mkdir()
    files = [tmp_path / "text.jpg", tmp_path / "empty.jpg", folder / "红 玫瑰", tmp_path / "none"]
    files.append(tmp_path / "missing.jpg")
    flags = ["--json", "--model", model, "--run-dir", tmp_path / "run", "--at-least", "0.5"]
    done = run_program(SCRIPT, *files, *flags)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    answers = json.loads(done.stdout)
    assert [answer["class"] for answer in answers] == [
        None, None, "tulips", "红 玫瑰", "红 玫瑰", None, None,
    ]  # fmt: skip
    for answer in answers:
        assert (answer["error"] is None) == (answer["guess"] is not None)
        if answer["guess"]:
            assert [*answer["probabilities"]] == CLASSES
            assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert [answer["right"] for answer in answers[2:5]] == [False, True, True]
    assert "Result: " in done.stderr


def test_truth_is_found_under_other_spellings(script):
    classes = ["café", "red rose", "Tulips"]
    for name, truth in {
        "cafe\u0301": "café",  # as macOS writes it
        "Red-Rose": "red rose",  # as Google's retrain.py made a label of it
        "Tulips": "Tulips",
        "tulip": None,
    }.items():
        assert script.truth_of(Path("/somewhere") / name / "1.jpg", classes) == truth


def test_without_images_the_test_photos_of_the_training_are_read(call, folder, tmp_path):
    path = write_model(tmp_path / "model.keras", [])
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    kept = [str(folder / "daisy" / "2.png"), str(folder / "tulips" / "0.png"), "/gone.jpg"]
    path.with_suffix(".json").write_text(json.dumps(facts | {"test_photos": kept}), "utf-8")
    rows, result = call("--model", path)
    assert [row["file"] for row in rows] == kept[:2]
    assert result["metrics"]["test_accuracy"] == 1
    path.with_suffix(".json").write_text(json.dumps(facts), "utf-8")
    with pytest.raises(SystemExit, match="Name images or folders"):
        call("--model", path)


def test_what_is_missing_or_does_not_fit_is_a_sentence(call, folder, model, tmp_path):
    def refused(*words: str | Path) -> str:
        with pytest.raises(SystemExit) as stopped:
            call(folder, *words)
        assert isinstance(stopped.value.code, str) and stopped.value.code != SKIPPED
        return stopped.value.code

    message = refused("--quick", "--model", tmp_path / "none.keras")
    assert "is no model" in message
    assert "01_retrain.py --quick" in message
    graph = ["--graph", model.with_name("graph.pb")]
    (tmp_path / "two.txt").write_text("a\nb\n", encoding="utf-8")
    assert "gives 3 probabilities, there are 2 labels" in refused(
        *graph, "--labels", tmp_path / "two.txt"
    )
    assert "can't read" in refused(*graph, "--labels", tmp_path / "none.txt")
    assert "no final" in refused(*graph, "--final_tensor_name", "final")
    assert "can't read" in refused(
        "--graph", tmp_path / "none.pb", "--labels", model.with_name("output_labels.txt")
    )


def test_the_benchmark_trains_the_lessons_head_and_compares_in_pairs(tmp_path, monkeypatch, capsys):
    bench = load_script("benchmarks/pool3_head.py")
    dice = np.random.default_rng(1)
    labels = np.repeat(np.arange(3, dtype=np.int32), 40)
    features = dice.gamma(1.0, 0.3, (120, 2048)).astype(np.float32)
    features[np.arange(120), labels] += 8
    features[:6, :3] = features[6:12, 2::-1]  # these can't be told apart
    path = tmp_path / "made_up.npz"
    np.savez(path, features=features, labels=labels, classes=["a", "b", "c"])
    words = ["--features", path, "--splits", "4", "--steps", "60", "--record", "made_up"]
    monkeypatch.setattr(sys, "argv", ["pool3_head.py", *map(str, words)])
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    bench.main()
    record = json.loads((tmp_path / "made_up.json").read_text(encoding="utf-8"))
    for name in ("head", "ridge"):
        metric = record["metrics"][f"{name}_accuracy"]
        assert len(metric["values"]) == 4
        assert metric["mean"] == pytest.approx(np.mean(metric["values"])) and metric["mean"] > 0.7
    difference = record["pairs"]["only_head"] - record["pairs"]["only_ridge"]
    means = [record["metrics"][f"{name}_accuracy"]["mean"] for name in ("head", "ridge")]
    assert difference == pytest.approx(120 * (means[0] - means[1]))
    assert "120 photos of 3 classes, features from" in capsys.readouterr().out
