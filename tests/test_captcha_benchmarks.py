"""The captcha benchmarks: operations counted right, the same images from every pipeline, and what
the one that makes the headline figures states."""

import csv
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, load_script, run_program

from data.captchas import Captchas, encode_text


@pytest.fixture(scope="module")
def throughput():
    path = list(sys.path)
    yield load_script("benchmarks/captcha_throughput.py")
    sys.path[:] = path


@pytest.fixture(scope="module")
def reading():
    return load_script("benchmarks/captcha_reading.py")


# ---- captcha_throughput.py -----------------------------------------------------------------


def small_model() -> keras.Model:
    layers = keras.layers
    images = keras.Input((9, 12, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Conv2D(5, (3, 2), strides=2, padding="valid", name="first")(x)  # [n, 4, 6, 5]
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(10, 3, padding="same", groups=5, name="grouped")(x)  # [n, 4, 6, 10]
    x = layers.Reshape((4, 60))(x)
    x = layers.Dense(7, name="rows")(x)  # [n, 4, 7]
    return keras.Model(images, layers.Dense(2, name="head")(layers.Flatten()(x)))


def test_operations_counted_by_hand(throughput):
    wanted = {
        "first": 2 * (4 * 6 * 5) * (3 * 2 * 3),
        "grouped": 2 * (4 * 6 * 10) * (3 * 3 * 1),
        "rows": 2 * (4 * 7) * 60,
        "head": 2 * 2 * 28,
    }
    assert throughput.forward_flops(small_model()) == wanted
    assert throughput.step_flops(small_model()) == 3 * sum(wanted.values()) - 4_320
    assert throughput.convolution_flops(2, 5, 6, 3, 4, 3) == 2 * (2 * 5 * 6 * 4) * 27


def test_operations_of_a_model_in_a_model(throughput):
    images = keras.Input((9, 12, 3), dtype="uint8")
    logits = keras.layers.Dense(3, name="last")(small_model()(images))
    flops = throughput.forward_flops(keras.Model(images, logits))
    assert list(flops.values()) == [4_320, 4_320, 3_360, 112, 12]


def test_a_layer_that_can_not_be_counted(throughput):
    model = keras.Sequential([keras.Input((4, 4)), keras.layers.LSTM(2, name="memory")])
    with pytest.raises(TypeError, match="memory, a LSTM"):
        throughput.forward_flops(model)


def test_tensorflow_counts_the_same_for_a_convolution(throughput):
    """TensorFlow's own count of the operations in a graph."""
    with tf.Graph().as_default() as graph:
        tf.nn.conv2d(tf.zeros([2, 5, 6, 3]), tf.zeros([3, 3, 3, 4]), 1, "SAME")
        v1 = tf.compat.v1
        options = v1.profiler.ProfileOptionBuilder.float_operation()
        options["output"] = "none"
        counted = v1.profiler.profile(graph, options=options).total_float_ops
    assert counted == throughput.convolution_flops(2, 5, 6, 3, 4, 3)


def test_a_step_learns(throughput):
    images = keras.Input((4, 4, 1), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    logits = keras.layers.Reshape((2, 10))(keras.layers.Dense(20)(x))
    step = throughput.make_step(keras.Model(images, logits))
    batch = tf.fill([8, 4, 4, 1], tf.constant(255, tf.uint8)), tf.fill([8, 2], 3)
    losses = [float(step(*batch)) for _ in range(20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_waiting_is_the_time_until_a_batch_comes(throughput, monkeypatch):
    clock = [100.0]

    def batches():
        while True:
            clock[0] += 2  # it takes two seconds to make a batch
            yield ()

    def step():
        clock[0] += 5

    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert throughput.fed(step, batches(), 3) == (3 * (2 + 5), 3 * 2)


def test_records_hold_what_the_network_takes(throughput):
    files = [throughput.example_of(index).SerializeToString() for index in range(3)]
    images, classes = throughput.decode(tf.constant(files))
    for index, (image, row) in enumerate(zip(images.numpy(), classes.numpy(), strict=True)):
        text, drawn = Captchas().draw(index)
        np.testing.assert_array_equal(image[..., 0], np.asarray(drawn.convert("L")))
        assert "".join(map(str, row)) == text


# ---- captcha_reading.py --------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(reading, tmp_path_factory) -> dict[str, Path]:
    return reading.write_files(tmp_path_factory.mktemp("captchas"), 60, workers=1)


@pytest.mark.parametrize(
    ("kind", "floats"), [("png", False), ("raw", False), ("raw", True)], ids=str
)
def test_every_pipeline_gives_the_same_images(reading, folders, kind, floats):
    captchas = Captchas()
    wanted: Counter = Counter()
    for text, image in map(captchas.draw, range(60)):  # as drawn, with no record between
        pixels = np.asarray(image.convert("L"))
        wanted[tuple(encode_text(text, captchas.alphabet)), int(pixels.sum(dtype=np.int64))] += 1
    starts = reading.pipelines(folders[kind], kind == "raw", floats, 25, once=True)
    assert len(starts) == 7
    for name, start in starts.items():
        assert reading.contents(start()) == wanted, name


def test_endless_pipelines_end_when_closed(reading, folders):
    starts = reading.pipelines(folders["raw"], True, True, 25, once=False)
    for start in (starts[reading.QUEUE], starts[reading.AS_03]):
        batches = start()
        seen = 0
        while seen <= 2 * 60:
            images, classes = next(batches)
            assert images.shape[1:] == (60, 160, 1)
            assert images.dtype == np.float32
            assert classes.shape == (len(images), 4)
            seen += len(images)
        batches.close()
        with pytest.raises(StopIteration):
            next(batches)


@pytest.mark.parametrize("name", ["reading", "throughput"])
def test_help(name, request, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"captcha_{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        request.getfixturevalue(name).main()
    assert stopped.value.code == 0
    assert "--rounds" in capsys.readouterr().out


# ---- captcha_time_to_accuracy.py -----------------------------------------------------------


def test_the_accuracy_stated_is_that_of_04(tmp_path):
    """The readings that 04_test.py left are counted again, the interval is Wilson's."""
    counts = ("--count", "200", "--test-count", "60", "--steps", "2", "--test-style", "legacy")
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/captcha_time_to_accuracy.py",
            "--keep",
            tmp_path / "in",
            *counts,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "in" / "run_04" / "predictions.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 60
    right = [row["truth"] == row["prediction"] for row in rows]
    pairs = [p for row in rows for p in zip(row["truth"], row["prediction"], strict=True)]
    share, n, z = sum(right) / 60, 60, 1.959964
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    stated = re.search(
        r"Test on 60 fresh images \(legacy\): whole captchas (\S+)% \((\S+)% to (\S+)%\), "
        r"characters (\S+)%\.",
        done.stdout,
    )
    assert stated, done.stdout
    characters = sum(truth == read for truth, read in pairs) / len(pairs)
    wanted = [share, max(0, middle - half), middle + half, characters]
    assert [float(x) / 100 for x in stated.groups()] == pytest.approx(wanted, abs=6e-5)
    result = json.loads((tmp_path / "in" / "run_04" / "result.json").read_text("utf-8"))
    low, high = result["intervals"]["whole_captcha_accuracy"]
    accuracy = result["metrics"]["whole_captcha_accuracy"]
    assert f"{accuracy:.2%} ({low:.2%} to {high:.2%})" in done.stdout
    assert 0 < characters < 1, "else nothing would be compared"


def test_foreign_captchas_are_drawn_repeatably_and_tested_by_the_readme_s_commands():
    foreign = load_script("benchmarks/captcha_foreign.py")
    one, again, other, hard = (
        np.asarray(foreign.draw(np.random.default_rng(seed), "2bmw8", is_hard))
        for seed, is_hard in ((1, False), (1, False), (2, False), (1, True))
    )
    assert (one.shape, one.dtype) == ((50, 200), np.uint8)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, hard)

    flags = ("--count", "80", "--splits", "1", "--", "--steps", "12")
    done = run_program("benchmarks/captcha_foreign.py", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    told = re.search(r"seed 1: ([\d.]+)% of (\d+) test images, .*, (\d+) steps", done.stdout)
    assert told and 6 < int(told[3]) <= 12, done.stdout  # patience may end it early
    right = float(told[1]) / 100 * int(told[2])
    assert right == pytest.approx(round(right), abs=0.01), "a whole number of images"
    assert f"80 images: {told[1]}%" in done.stdout
