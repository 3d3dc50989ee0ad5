"""inception_v3/pool3_train/02_test_images.py, on a frozen graph and a Keras model that these tests
make: small ones, whose answers can be computed from the pixels."""

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
from helpers import Finished, load_script, run_quick
from PIL import Image
from test_inception_direct import base_picture, expected, write_frozen

from data import photos
from utils.run import sha256

TEST = "inception_v3/pool3_train/02_test_images.py"
LABELS = ["daisy", "红 玫瑰", "tulips"]
COLOURS = [(220, 30, 30), (30, 220, 30), (30, 30, 220)]  # of the classes
WEIGHTS = np.tile(10 * np.eye(3, dtype=np.float32), (4, 1))  # [12, 3]: the strongest colour wins
PLAN = [4, 3, 2]  # photos of each class
WRONG = {("daisy", 0): 1, ("daisy", 1): 2, ("红 玫瑰", 0): 2}  # and what they are taken for


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(TEST)


def make_keras(path: Path, classes: int = 3) -> Path:
    """A model with its preprocessing inside: uint8 pixels of any size to softmax of the means."""
    pixels = keras.Input((None, None, 3), dtype="uint8")
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    layer = keras.layers.Dense(classes, activation="softmax")
    model = keras.Model(pixels, layer(means))
    layer.set_weights([20 * np.eye(3, classes, dtype=np.float32), np.zeros(classes)])
    model.save(path)
    return path


def write_model(folder: Path, **facts: Any) -> Path:
    """What 01_retrain.py writes: graph, Keras model, labels, facts."""
    folder.mkdir()
    write_frozen(folder / "output_graph.pb", WEIGHTS, "final_result")
    make_keras(folder / "output_model.keras")
    (folder / "output_labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    files = {path.name: sha256(path) for path in folder.iterdir()}
    facts |= {"labels": LABELS, "files": files, "final_tensor_name": "final_result"}
    text = json.dumps({"weights": "made up"} | facts)
    (folder / "output.json").write_text(text, encoding="utf-8")
    return folder


def write_photos(folder: Path, plan: list[int] = PLAN) -> Path:
    """Class folders of photos, each in the colour of the class that it will be taken for, and
    each different."""
    for label, count in zip(LABELS, plan, strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            colour = COLOURS[WRONG.get((label, number), LABELS.index(label))]
            pixels = np.full((64, 96, 3), colour, np.uint8)
            noise = np.random.default_rng([len(label), number]).integers(0, 30, (64, 96, 3))
            Image.fromarray(pixels + noise.astype(np.uint8)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "照片")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "pool3")


@pytest.fixture(scope="module")
def tested(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = tmp_path_factory.mktemp("runs") / "test"
    return run_quick(TEST, run, folder, "--output_graph", model / "output_graph.pb")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: ModuleType):
    """Run ``main()`` in this process and return its result.json."""

    def main(*arguments: str | Path) -> dict[str, Any]:
        words = [script.__file__, "--run-dir", tmp_path / "run", *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        try:
            script.main()
        finally:
            script.plt.close("all")
        return json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))

    return main


def read_csv(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---- the run -------------------------------------------------------------------------------


def test_accuracy_interval_and_table_are_those_of_the_plan(tested):
    right, total = sum(PLAN) - len(WRONG), sum(PLAN)
    assert tested.metrics == {"test_accuracy": right / total, "images": total, "failed": 0}
    p, z = right / total, 1.959964
    middle, half = p + z * z / (2 * total), z * np.sqrt(p * (1 - p) / total + (z / 2 / total) ** 2)
    low, high = (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)
    assert tested.result["interval"] == pytest.approx([low, high], abs=1e-5)
    assert f"{right} of {total} photos right, {p:.1%}; 95 % interval {low:.1%}" in tested.output
    # Called daisy: 2 of its 4, no other; 红 玫瑰: 2 of its 3, a daisy; tulips: both, two others.
    table = [" ".join(line.replace("│", " ").split()) for line in tested.output.splitlines()]
    for row in ("daisy 4 100.0% 50.0% 66.7%", "红 玫瑰 3 66.7% 66.7% 66.7%"):
        assert row in table
    assert "tulips 2 50.0% 100.0% 66.7%" in table
    assert tested.result["weights"] == "made up"
    assert tested.figures == ["predictions"]


def test_predictions_hold_each_image_and_all_scores(tested, folder):
    rows = read_csv(tested.folder)
    assert [row["file"] for row in rows] == [str(path) for path in sorted(folder.rglob("*.png"))]
    for row in rows:
        path = Path(row["file"])
        scores = expected(Image.open(path), WEIGHTS)
        given = [float(row[f"score of {label}"]) for label in LABELS]
        np.testing.assert_allclose(given, scores, rtol=1e-3, atol=1e-6)
        label, number = path.parent.name, int(path.stem)
        assert row["truth"] == label
        assert LABELS.index(row["class"]) == WRONG.get((label, number), LABELS.index(label))
        assert row["right"] == str(int((label, number) not in WRONG))
        assert float(row["score"]) == max(given)


def test_the_keras_model_is_asked_in_its_own_way(call, folder, model, tmp_path):
    base_picture().rotate(90, expand=True).save(tmp_path / "other_size.webp", lossless=True)
    result = call(folder, tmp_path / "other_size.webp", "--model", model / "output_model.keras")
    assert result["metrics"]["test_accuracy"] == pytest.approx(6 / 9)
    for row in read_csv(tmp_path / "run"):
        means = np.asarray(Image.open(row["file"]).convert("RGB")).mean(axis=(0, 1)) / 255
        powers = np.exp(20 * means - 20 * means.max())
        given = [float(row[f"score of {label}"]) for label in LABELS]
        np.testing.assert_allclose(given, powers / powers.sum(), rtol=1e-3, atol=1e-6)
    assert (row["truth"], row["right"]) == ("", "")


def test_images_of_other_kinds_and_broken_ones(call, model, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    picture = base_picture().transpose(Image.Transpose.ROTATE_90)
    picture.save(tmp_path / "lying.jpg", quality=95, exif=exif)
    base_picture().save(tmp_path / "photo.webp", lossless=True)
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "empty.jpg").write_bytes(b"")
    graph = ["--output-graph", model / "output_graph.pb"]
    result = call(*sorted(tmp_path.glob("*.*")), tmp_path / "none.jpg", *graph)
    assert result["metrics"] == {"images": 2, "failed": 3}
    rows = {Path(row["file"]).name: row for row in read_csv(tmp_path / "run")}
    for name in ("lying.jpg", "photo.webp"):
        scores = [float(rows[name][f"score of {label}"]) for label in LABELS]
        np.testing.assert_allclose(scores, expected(base_picture(), WEIGHTS), rtol=0.1)
    for name in ("text.jpg", "empty.jpg", "none.jpg"):
        assert rows[name]["error"]
    assert "none.jpg: No such file or directory" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="None of the 1 files could be read"):
        call(tmp_path / "text.jpg", *graph)


# ---- photos of the training ----------------------------------------------------------------


def test_photos_of_the_training_folder_are_told_and_test_photos_found(
    call, script, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(script, "SHOWN", 4)
    shown = write_photos(tmp_path / "mine", [12, 12, 12])
    data = {"source": "mine", "stand_in": False}
    kept = {"settings": {"bottleneck_dir": str(tmp_path)}, "per_class": 10, "data": data}
    kept |= {"validation_percentage": 10.0, "testing_percentage": 30.0}
    model = write_model(tmp_path / "model", image_dir=str(shown), **kept)
    graph = ["--output_graph", model / "output_graph.pb"]
    result = call(shown / "daisy", *graph)
    assert "accuracy" in result["metrics"] and "test_accuracy" not in result["metrics"]
    told = " ".join(capsys.readouterr().out.split())
    assert "12 of the images lie in the folder that this network was trained on" in told
    assert result["figures"] == ["predictions.png", "mistakes.png"]

    result = call(*graph)
    found = photos.scan(shown, workers=1, per_class=10).photos
    test = photos.split(found, 10, 30)["test"]
    assert 3 <= len(test) < 30
    assert [row["file"] for row in read_csv(tmp_path / "run")] == [str(p.path) for p in test]
    wrong = sum((p.label, int(p.path.stem)) in WRONG for p in test)
    assert result["metrics"]["test_accuracy"] == pytest.approx(1 - wrong / len(test))
    assert result["data"] == data
    assert "which had no part in the training" in capsys.readouterr().out


def test_untrained_features_are_told_loudly(call, folder, tmp_path, capsys):
    model = write_model(tmp_path / "model", weights="none: an untrained network")
    call(folder / "daisy" / "0.png", "--output_graph", model / "output_graph.pb")
    assert "UNTRAINED" in capsys.readouterr().out


def test_truth_is_found_under_other_spellings(script):
    labels = ["café", "red rose", "Tulips"]
    for name, truth in {
        "cafe\u0301": "café",  # as macOS writes it
        "Red-Rose": "red rose",  # as Google's retrain.py made a label of it
        "Tulips": "Tulips",
        "tulip": None,
    }.items():
        assert script.truth_of(Path("/somewhere") / name / "1.jpg", labels) == truth


# ---- what doesn't fit ----------------------------------------------------------------------


def refused(call, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert isinstance(stopped.value.code, str), "a sentence makes the exit status 1"
    return stopped.value.code


def test_missing_and_altered_files(call, folder, model, tmp_path):
    message = refused(call, folder, "--quick", "--output_graph", tmp_path / "none.pb")
    assert "--output_graph: there is no file" in message
    assert "01_retrain.py --quick" in message
    copy = write_model(tmp_path / "copy")
    graph = ["--output_graph", copy / "output_graph.pb"]
    (copy / "output_labels.txt").write_text("a\nb\nc\n", encoding="utf-8")
    assert "output_labels.txt is altered, or of another training" in refused(call, folder, *graph)
    (copy / "output.json").write_text("{", encoding="utf-8")
    assert call(folder, *graph)["labels"] == ["a", "b", "c"]
    (copy / "output.json").unlink()
    (copy / "output_labels.txt").write_text("a\nb\n", encoding="utf-8")
    assert "gives 3 scores and there are 2 labels" in refused(call, folder, *graph)
    other = [*graph, "--output-labels", model / "output_labels.txt"]
    assert call(folder, *other)["labels"] == LABELS
    (copy / "output_labels.txt").unlink()
    assert "--output_labels: there is no file" in refused(call, folder, *graph)
    assert "no final" in refused(call, folder, *other, "--final_tensor_name", "final")


@pytest.mark.parametrize("content", [b"", b"no zip archive", b"PK\x03\x04"])
def test_a_file_that_is_no_keras_model(call, folder, model, tmp_path, content):
    (tmp_path / "model.keras").write_bytes(content)
    flags = ["--model", tmp_path / "model.keras", "--output_labels", model / "output_labels.txt"]
    assert "--model: " in (message := refused(call, folder, *flags))
    assert "can't be loaded" in message


def test_a_model_for_pixels_of_one_size_is_told(call, folder, model, tmp_path):
    keras.Sequential(
        [keras.Input((8, 8, 3), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(3)]
    ).save(tmp_path / "model.keras")
    flags = ["--model", tmp_path / "model.keras", "--output_labels", model / "output_labels.txt"]
    assert "can't be run on" in refused(call, folder, *flags)
