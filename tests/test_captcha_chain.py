"""Chapter captcha_multitask: all scripts in a row, from an empty folder. The network of this chain
is trained for about a minute of CPU, and has to read captchas that it has never seen."""

from pathlib import Path

import numpy as np
import pytest
from helpers import Finished, run_quick

from data.captchas import ALPHABETS
from models import captcha
from utils.tfrecord import read_dataset
from utils.training import warm_up_cosine

DIGITS = ALPHABETS["digits"]
COUNT, STEPS = 2_000, 144


def models() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in captcha.FOLDER.rglob("*.*")}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    folder = tmp_path_factory.mktemp("chain")
    images, records, model = (folder / name for name in ("images", "records", "model"))
    settings = ("--length", "2", "--size", "100", "60", "--count", str(COUNT))
    trained = ("--records", records, "--model", model)
    steps = {
        "01_generate_images": ("--out", images, *settings),
        "02_images_to_tfrecords": ("--images", images, "--out", records),
        "03_train": (*trained, "--steps", str(STEPS)),
        "04_test": trained,
        "04_test again": (*trained, "--split", "validation"),
        "05_recognize": (images, "--model", model),
        "06_stuck_at_chance": ("--records", records, "--looks", "1"),
    }
    done = {}
    for name, flags in steps.items():
        before = models()
        script = f"captcha_multitask/{name.split()[0]}.py"
        done[name] = run_quick(script, folder / name, *flags)
    assert models() == before, "06 touches no trained model"
    return done | {"records": records, "model": model}


def test_a_minute_of_training_is_enough_to_read_unseen_captchas(chain):
    test = chain["04_test"]
    assert test.result["data"]["test_images"] > 200
    assert test.metrics["whole_captcha_accuracy"] >= 0.9
    assert test.metrics["unseen_text_accuracy"] >= 0.9, "texts that are in no training image"
    assert chain["03_train"].metrics["steps"] <= STEPS


def test_each_script_takes_what_the_one_before_left(chain):
    drawn, written = chain["01_generate_images"].metrics, chain["02_images_to_tfrecords"].metrics
    assert drawn["images"] == COUNT == written["images"] + written["left_out"]
    for split, (_, count) in read_dataset(chain["records"])[1].items():
        assert count == written[f"{split}_images"]
    test, validation = chain["04_test"], chain["04_test again"]
    assert test.result["data"]["test_images"] == written["test_images"]
    assert validation.result["data"]["test_images"] == written["validation_images"]
    trained = chain["03_train"].metrics
    for name in ("whole_captcha_accuracy", "character_accuracy"):  # the same images and weights
        assert validation.metrics[name] == pytest.approx(trained[f"validation_{name}"], abs=1e-9)
    assert chain["05_recognize"].metrics["images"] == COUNT
    about = captcha.load_recogniser(chain["model"], DIGITS, 2).about
    best = min(chain["03_train"].result["history"], key=lambda row: row["loss"])
    assert (about["step"], about["width"], about["height"]) == (best["step"], 100, 60)


def test_tensorboard_gets_what_the_screen_shows(chain):
    trained = chain["03_train"]
    history = {row["step"]: row for row in trained.result["history"]}
    assert list(history) == list(range(STEPS // 12, STEPS + 1, STEPS // 12))
    events = trained.events("scores")
    wanted = {"train_loss", "loss", "whole_captcha_accuracy", "character_accuracy"}
    wanted |= {"position_1_accuracy", "position_2_accuracy"}
    assert events.tags("scalars") == wanted | {"learning_rate"}
    for tag in wanted:
        values = events.values(tag)
        assert list(values) == list(history)
        for step, value in values.items():
            assert float(value) == pytest.approx(history[step][tag], rel=1e-5)
    rate = warm_up_cosine(2e-3, STEPS, warm_up=0.05, start=0)
    for step, value in events.values("learning_rate").items():
        assert float(value) == pytest.approx(float(rate(step)), rel=1e-4, abs=1e-9)
    assert any("head_1" in name for name in trained.events("graph").graph_nodes())
    assert trained.figures == ["curves", "misread"]


def test_the_validation_accuracy_is_a_count_over_all_validation_images(chain):
    trained, written = chain["03_train"], chain["02_images_to_tfrecords"]
    share = trained.metrics["validation_whole_captcha_accuracy"]
    count = written.metrics["validation_images"]
    assert share * count == pytest.approx(round(share * count), abs=1e-6)


def test_slims_start_is_stuck_and_he_tells_images_apart(chain):
    stuck = chain["06_stuck_at_chance"].metrics
    assert stuck["slim_spread"] < 1e-3 < 0.1 < stuck["he_spread"]
    assert stuck["slim_loss"] == pytest.approx(2 * np.log(10), abs=0.1)
