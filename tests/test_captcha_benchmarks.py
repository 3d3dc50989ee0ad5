"""The captcha benchmarks: operations counted right, the same images from every pipeline."""

import sys
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import load_script

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


def test_steps_learn_and_waiting_is_part_of_the_time(throughput):
    images = keras.Input((4, 4, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    logits = keras.layers.Reshape((2, 10))(keras.layers.Dense(20)(x))
    step = throughput.make_step(keras.Model(images, logits))
    batch = tf.fill([8, 4, 4, 3], tf.constant(255, tf.uint8)), tf.fill([8, 2], 3)
    first = float(step(*batch))
    took, waited = throughput.fed(step, iter([batch] * 50), 50)
    assert 0 < waited < took
    assert float(step(*batch)) < first


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
    for text, pixels in map(captchas.pixels, range(60)):  # as drawn, with no record between
        wanted[tuple(encode_text(text, captchas.alphabet)), int(pixels.sum(dtype=np.int64))] += 1
    starts = reading.pipelines(folders[kind], kind == "raw", floats, 25, once=True)
    assert len(starts) == 7
    for name, start in starts.items():
        assert reading.contents(start()) == wanted, name


def test_endless_pipelines_end_when_closed(reading, folders):
    starts = reading.pipelines(folders["raw"], True, True, 25, once=False)
    for start in (starts[reading.QUEUE], starts["load_split, as 03_train.py"]):
        batches = start()
        seen = 0
        while seen <= 2 * 60:
            images, classes = next(batches)
            assert images.shape[1:] == (60, 160, 3)
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
