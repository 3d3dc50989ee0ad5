"""Chapter captcha_multitask: all five scripts in a row, from an empty folder."""

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from helpers import Finished, run_quick

from data.captchas import ALPHABETS
from models import captcha
from utils.tfrecord import read_info

DIGITS = ALPHABETS["digits"]
COUNT = 600  # images


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("chain")
    images, records, model = (folder / name for name in ("images", "records", "model"))
    steps = {
        "01_generate_images": ("--out", images, "--count", COUNT),
        "02_images_to_tfrecords": ("--images", images, "--out", records),
        "03_train": ("--records", records, "--model", model, "--steps", 60),
        "04_test": ("--records", records, "--model", model, "--split", "validation"),
        "05_recognize": (images, "--model", model),
    }
    return {
        name: run_quick(f"captcha_multitask/{name}.py", folder / name, *flags)
        for name, flags in steps.items()
    } | {"records": records, "model": model}


def test_images_are_drawn_and_written_as_records(chain):
    drawn, written = chain["01_generate_images"], chain["02_images_to_tfrecords"]
    assert drawn.figures == ["samples", "warps"]
    assert drawn.metrics["images"] == COUNT
    assert drawn.metrics["images_per_second"] > 1
    assert written.figures == ["characters"]
    assert written.metrics == {
        "images": 600,
        "left_out": 0,
        "train_images": 420,
        "validation_images": 90,
        "test_images": 90,
    }
    assert json.loads((written.folder / "rejected.json").read_text(encoding="utf-8")) == {}
    splits = read_info(chain["records"])["splits"]
    shards = {split: len(some) for split, some in splits.items()}
    assert shards == {"train": 2, "validation": 2, "test": 2}


def test_the_chapter_runs_from_an_empty_folder(chain):
    _, written, trained, tested, read = (x for x in chain.values() if isinstance(x, Finished))
    history = trained.result["history"]
    assert trained.result["parameters"] == 508_748
    assert trained.result["steps"] == history[-1]["step"]
    assert trained.result["images_seen"] == 64 * history[-1]["step"] == history[-1]["images"]
    assert history[-1]["train_loss"] < 0.95 * 4 * np.log(10) < history[0]["train_loss"] * 1.1
    assert trained.metrics["validation_character_accuracy"] > 0.12
    best = max(row["whole_captcha_accuracy"] for row in history)
    assert trained.metrics["validation_whole_captcha_accuracy"] == best

    facts = captcha.load_recogniser(chain["model"]).about
    assert (facts["alphabet"], facts["length"]) == (DIGITS, 4)
    assert (facts["width"], facts["height"]) == (160, 60)
    assert (facts["net"], facts["parameters"], facts["warp"]) == ("compact", 508_748, "modern")
    first_best = next(row for row in history if row["whole_captcha_accuracy"] == best)
    assert (facts["step"], facts["images"]) == (first_best["step"], first_best["images"])

    assert tested.result["images"] == written.metrics["validation_images"]
    for name, value in trained.metrics.items():
        if name.endswith("_accuracy"):  # exactly: the same images, the same weights
            assert tested.metrics[name.removeprefix("validation_")] == value
    assert tested.metrics["validation_loss"] == pytest.approx(
        trained.metrics["validation_loss"], rel=1e-3
    )
    assert read.metrics["images"] == COUNT
    assert read.metrics["failed"] == 0


def test_tensorboard_gets_what_the_screen_shows(chain):
    trained = chain["03_train"]
    history = {row["step"]: row for row in trained.result["history"]}
    validation = trained.events("validation")
    positions = {f"position_{k}_accuracy" for k in (1, 2, 3, 4)}
    wanted = {"loss", "whole_captcha_accuracy", "character_accuracy"} | positions
    assert wanted <= validation.tags("scalars")
    for tag in wanted:
        values = validation.values(tag)
        assert list(values) == list(history)
        for step, value in values.items():
            assert float(value) == pytest.approx(history[step][tag], rel=1e-5)
    assert "misread" in validation.tags("images")
    for _, _, png in validation.values("misread").values():
        assert tf.io.decode_png(png).shape[0] > 200
    train_events = trained.events("train")
    for tag in ("images_per_second", "share_of_time_waiting"):
        assert list(train_events.values(tag)) == list(history)
    rates = {step: float(rate) for step, rate in train_events.values("learning_rate").items()}
    steps = trained.result["steps"]
    assert list(rates) == list(train_events.values("batch_loss")) == list(range(20, steps + 1, 20))
    warmup = max(1, steps // 20)
    for step, rate in rates.items():
        angle = np.pi * (step - warmup) / (steps - warmup)
        assert rate == pytest.approx(2e-3 * (1 + np.cos(angle)) / 2, rel=1e-3, abs=1e-8)
    graph = trained.events("graph")
    assert graph.has_graph
    assert any("head_3" in name for name in graph.graph_nodes())
    assert "by position" in trained.output
    assert "of the time waiting for images" in trained.output
