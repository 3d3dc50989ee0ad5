"""Chapter inception_v3/slim_train: its scripts in a row, with a tiny network in place of
InceptionV3, and what calls them in a shell."""

import csv
import os
import re
import subprocess
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, Lesson, assert_costs_nothing, foreign_files, run_lesson
from test_slim_train import small_network

from data import photos
from models.classifier import load_classifier, save_classifier, whole_model

FOLDER = "inception_v3/slim_train"
CLASSES = ("circles", "crosses", "red stripes", "三角形")
STEPS = ("01_images_to_tfrecords", "02_train_image_classifier", "03_eval_image_classifier")
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # where no font has Chinese


def run(name: str, folder: Path, *flags: Any) -> Lesson:
    """A script, in a folder that holds other files."""
    for file, content in foreign_files(f"{FOLDER}/{name}.py").items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    with small_network():
        lesson = run_lesson(f"{FOLDER}/{name}.py", folder, *flags)
    assert_costs_nothing(folder, foreign_files(f"{FOLDER}/{name}.py"))
    assert len(lesson.figures) <= 3
    return lesson


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("chain")
    pictures, records, model = (folder / name for name in ("my photos", "records", "model"))
    for i, label in enumerate(photos.STAND_IN_CLASSES):
        (pictures / CLASSES[i]).mkdir(parents=True)
        for k in range(20):
            image = photos.draw_stand_in(label, k).resize((160, 120))
            image.save(pictures / CLASSES[i] / f"{k}.jpg")
    shares = ("--testing-percentage", 30)
    used = ("--records", records, "--model", model)
    none = ("--weights", "none")
    return {
        "01": run(STEPS[0], folder / "01", "--image-dir", pictures, "--out", records, *shares),
        "fit": run("02_fine_tune_with_fit", folder / "fit", *used[:3], model / "fit", *none),
        "02": run(STEPS[1], folder / "02", *used, *none),
        "03": run(STEPS[2], folder / "03", *used),
        "model": model,
        "records": records,
    }


def rows_of(lesson: Lesson) -> list[dict[str, str]]:
    with (lesson.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def test_the_numbers_follow_from_the_predictions(chain):
    tested, rows = chain["03"], rows_of(chain["03"])
    assert len(rows) == tested.result["data"]["test_images"] == chain["01"].metrics["test_images"]
    assert all(row["photo"].startswith(f"{row['truth']}/") for row in rows)
    right = [row["truth"] == row["prediction"] for row in rows]
    assert tested.metrics["test_accuracy"] == pytest.approx(np.mean(right))
    low, high = tested.result["interval"]
    assert low <= np.mean(right) <= high
    for label in CLASSES:
        called, is_one = ([row[key] == label for row in rows] for key in ("prediction", "truth"))
        both = sum(a and b for a, b in zip(called, is_one, strict=True))
        report = tested.result["per_class"][label]
        assert report["support"] == sum(is_one)
        assert report["recall"] == pytest.approx(both / sum(is_one))
        assert report["precision"] == pytest.approx(both / sum(called) if any(called) else 0)


def mcnemar(b: int, c: int) -> float:
    """The exact test in so many words: how often b + c coins fall at least as unevenly."""
    n = b + c
    uneven = sum(comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= abs(b - n / 2))
    return uneven / 2**n


def test_two_models_are_compared_on_the_same_photos(chain, tmp_path):
    """One that is right about all photos, with its classes in another order, and the trained."""
    first = chain["03"]
    assert "fit" in first.output, "the model of the script before is the default"
    order = [2, 0, 3, 1]
    truth = {}
    for file in chain["records"].glob("test_*"):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            content = features["image/encoded"].bytes_list.value[0]
            truth[content] = features["image/class/label"].int64_list.value[0]
    trained = load_classifier(chain["model"])
    rows = rows_of(first)
    fit = load_classifier(chain["model"] / "fit")
    answers = np.stack([row for _, row in fit.probabilities([*truth])]).argmax(axis=1)
    of_fit = dict(zip(truth, answers == np.array([*truth.values()]), strict=True))
    answers = np.stack([row for _, row in trained.probabilities([*truth])]).argmax(axis=1)
    of_trained = dict(zip(truth, answers == np.array([*truth.values()]), strict=True))
    assert sum(of_trained.values()) == sum(row["truth"] == row["prediction"] for row in rows)
    b = sum(of_trained[c] and not of_fit[c] for c in truth)
    c = sum(of_fit[c] and not of_trained[c] for c in truth)
    assert first.metrics["mcnemar_p"] == pytest.approx(mcnemar(b, c))
    network = next(layer for layer in trained.model.layers if hasattr(layer, "layers"))
    logits = network.layers[-1]
    kernel, bias = logits.get_weights()
    logits.set_weights([kernel[:, order], bias[order]])
    other = [CLASSES[i] for i in order]
    about = trained.about | {"classes": other}
    model = whole_model(network, None, trained.size, other)
    save_classifier(tmp_path / "other" / "model.keras", model, about)
    flags = ("--records", chain["records"], "--model", chain["model"])
    lesson = run(STEPS[2], tmp_path / "run", *flags, "--compare", tmp_path / "other")
    assert lesson.metrics["mcnemar_p"] == 1, "the same model"
    assert lesson.metrics["other_accuracy"] == lesson.metrics["test_accuracy"]


def test_the_fit_version_reports_both_of_its_trainings(chain):
    metrics, model = chain["fit"].metrics, load_classifier(chain["model"] / "fit")
    for name in ("head", "tuned"):
        history = chain["fit"].variables[name]
        best = history["val_accuracy"][np.argmin(history["val_loss"])]
        assert metrics[f"{name}_validation_accuracy"] == pytest.approx(best)
    assert model.classes == sorted(CLASSES)
    assert len(model.about["training_photos"]) == chain["01"].metrics["train_images"]
    validation = chain["01"].metrics["validation_images"]
    for name in ("head_validation_accuracy", "tuned_validation_accuracy"):
        assert metrics[name] * validation == pytest.approx(round(metrics[name] * validation))


def test_what_can_not_be_tested_is_a_sentence(chain, tmp_path):
    other = chain["model"] / "fit"
    copy = load_classifier(other)
    about = copy.about | {"classes": ["a", "b", "c", "d"]}
    save_classifier(tmp_path / "other" / "model.keras", copy.model, about)
    records, model = ("--records", chain["records"]), ("--model", chain["model"])
    for flags, sentence in (
        ((*records, "--model", tmp_path), "no model"),
        ((*model, "--records", tmp_path), "dataset.json is missing"),
        ((*records, "--model", tmp_path / "other"), "other classes than the records hold: a, b"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            run_lesson(f"{FOLDER}/{STEPS[2]}.py", tmp_path / "run", *flags)


def flags_of(script: str) -> set[str]:
    """The flags that a script has, by its source."""
    source = (ROOT / FOLDER / f"{script}.py").read_text(encoding="utf-8")
    return {*re.findall(r'"(--[a-z-]+)"', source), "--image-dir", "--weights", "--quick", "--seed"}


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("more", [(), ("my photos",), ("my photos/", "--quick", "--epochs", "2")])
def test_train_sh_forwards_its_flags_and_pins_none(tmp_path, more):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" ""\n', encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "my photos").mkdir()
    done = subprocess.run(
        ["bash", ROOT / FOLDER / "train.sh", *more],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = [call.splitlines() for call in done.stdout.split("\n\n")[:3]]
    assert [Path(call[0]).stem for call in calls] == [*STEPS]
    records, model = ("--records", "data/slim/my_records"), ("--model", "models/slim/my_model")
    image_dir = ["--image-dir", str(tmp_path / "my photos")] if more else []
    quick = ["--quick"] if "--quick" in more else []
    assert calls[0][1:] == ["--out", records[1], *image_dir, *quick]
    assert calls[1][1:] == [*records, *model, *more[1:]]
    assert calls[2][1:] == [*records, *model, *quick]


def test_train_bat_does_the_same():
    sh, bat = ((ROOT / FOLDER / f"train.{end}").read_bytes().decode() for end in ("sh", "bat"))
    assert bat.count("\r\n") == bat.count("\n"), "cmd.exe wants both"
    lines = bat.replace("\r\n", "\n").splitlines()
    calls = [line for line in lines if ".py" in line and line.startswith('"%PYTHON%"')]
    assert [re.search(r"(\w+)\.py", call)[1] for call in calls] == [*STEPS]
    for script, call in zip(STEPS, calls, strict=True):
        flags = re.findall(r"--[a-z-]+", call)
        assert {*flags} <= flags_of(script)
        theirs = re.search(rf"{script}\.py\"(?:.*\\\n)*.*", sh)[0]
        assert flags == re.findall(r"--[a-z-]+", theirs), "as in train.sh"
        assert lines[lines.index(call) + 1] == "if errorlevel 1 exit /b 1"
        for part in re.findall(r"%[A-Z]+%\S*", call.replace('"', " ")):
            name = part.strip("%").split("%")[0]
            assert f'"%{name}%' in call or name in ("PHOTOS", "FLAGS", "QUICK"), "quoted"
    paths = {re.sub(r"\\", "/", v) for v in re.findall(r'set "(?:RECORDS|MODEL)=(\S+)"', bat)}
    assert paths == {*re.findall(r"^(?:RECORDS|MODEL)=(\S+)", sh, re.MULTILINE)}
    (photos_set,) = (line for line in lines if line.startswith("set PHOTOS="))
    assert photos_set == 'set PHOTOS=--image-dir "%FIRST%"'
    before = lines[lines.index(photos_set) - 1]
    assert before == r'if "%FIRST:~-1%"=="\" set "FIRST=%FIRST%."', "or it would escape the quote"
    labels = {line[1:] for line in lines if line.startswith(":")}
    assert {*re.findall(r"goto (\w+)", bat)} == labels
