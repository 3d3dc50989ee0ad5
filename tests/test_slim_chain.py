"""Chapter inception_v3/slim_train: the three scripts in a row, and what calls them in a shell."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, Finished, load_script, run_lesson, run_quick

from data import photos

FOLDER = "inception_v3/slim_train"
CLASSES = ("circles", "crosses", "red stripes", "三角形")
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # where no font has Chinese


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("chain")
    pictures, records, model = (folder / name for name in ("my photos", "records", "model"))
    for i, label in enumerate(photos.STAND_IN_CLASSES):
        (pictures / CLASSES[i]).mkdir(parents=True)
        for k in range(20):
            image = photos.draw_stand_in(label, k).resize((160, 120))
            image.save(pictures / CLASSES[i] / f"{k}.jpg")
    steps = {
        "01_images_to_tfrecords": ("--image-dir", pictures, "--out", records),
        "02_train_image_classifier": ("--records", records, "--model", model, "--epochs", 1),
        "03_eval_image_classifier": ("--records", records, "--model", model),
    }
    done: dict[str, Any] = {
        name: run_quick(f"{FOLDER}/{name}.py", folder / name, *flags)
        for name, flags in steps.items()
    }
    return done | {"model": model, "records": records, "pictures": pictures}


def test_the_chapter_runs_from_a_folder_of_photos(chain):
    written, trained, tested = (done for done in chain.values() if isinstance(done, Finished))
    assert written.metrics["images"] == 80
    assert trained.result["parameters"] == 21_802_784 + 2049 * 4
    assert "UNTRAINED" in trained.output or "untrained" in trained.output
    assert tested.result["images"] == written.metrics["test_images"]
    rows = (tested.folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == written.metrics["test_images"] + 1
    truth, answers = zip(*(row.split(",")[1:3] for row in rows[1:]), strict=True)
    right = sum(t == a for t, a in zip(truth, answers, strict=True)) / len(truth)
    assert tested.metrics["test_accuracy"] == pytest.approx(right)
    low, high = tested.result["intervals"]["accuracy"]
    assert low <= right <= high
    for label, row in tested.result["per_class"].items():
        called, is_one = (np.array([x == label for x in some]) for some in (answers, truth))
        both = (called & is_one).sum()
        assert row["images"] == is_one.sum()
        assert row["recall"] == pytest.approx(both / is_one.sum())
        assert row["precision"] == pytest.approx(both / called.sum() if called.any() else 0)
    assert "precision" in tested.output


def test_photos_are_classified_as_the_test_classifies_them(chain, tmp_path):
    lost = tmp_path / "elsewhere" / "a photo.png"
    lost.parent.mkdir()
    photos.draw_stand_in("circles", 3).save(lost)
    (tmp_path / "elsewhere" / "text.jpg").write_text("no photo", encoding="utf-8")
    script = f"{FOLDER}/03_eval_image_classifier.py"
    some = chain["pictures"] / CLASSES[3]
    flags = (lost.parent, some, "--model", chain["model"])
    done = run_lesson(script, tmp_path / "run", *flags)
    assert done.metrics["images"] == 21
    assert done.metrics["failed"] == 1
    assert "a photo.png: " in done.output
    assert "Where the folder names the truth" in done.output
    answers = done.result["answers"]
    assert all(sum(row.values()) == pytest.approx(1, abs=1e-4) for row in answers.values())
    mine = {k: max(row, key=row.get) for k, row in answers.items() if Path(k).parent == some}
    right = np.mean([answer == CLASSES[3] for answer in mine.values()])
    assert done.metrics["accuracy"] == pytest.approx(right)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_train_sh_and_train_bat_call_the_scripts_with_flags_they_have(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" ""\n', encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "my photos").mkdir()
    done = subprocess.run(
        ["bash", ROOT / FOLDER / "train.sh", "my photos", "--epochs", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = [call.splitlines() for call in done.stdout.split("\n\n")[:3]]
    numbers = ("01_images_to_tfrecords", "02_train_image_classifier", "03_eval_image_classifier")
    assert [Path(call[0]).stem for call in calls] == [*numbers]
    monkeypatch.syspath_prepend(ROOT / FOLDER)
    parsed = [load_script(call[0]).flags().parse_args(call[1:]) for call in calls]
    assert parsed[0].image_dir == tmp_path / "my photos"
    assert parsed[0].out == parsed[1].records == parsed[2].records
    assert parsed[1].model == parsed[2].model
    assert (parsed[1].epochs, parsed[1].image_size, parsed[2].split) == (2, 224, "test")
    files = [(ROOT / FOLDER / f"train.{end}").read_bytes().decode() for end in ("sh", "bat")]
    flags = [re.findall(r"^ {4}(--\S+ \S+)", text, re.MULTILINE) for text in files]
    assert len(flags[0]) == 16
    assert [flag.split()[0] for flag in flags[0]] == [flag.split()[0] for flag in flags[1]]
    for one, other in zip(*flags, strict=True):
        assert one == other or '"' in one
