"""Chapter captcha_multitask, its training: networks, batches, exact resuming, several workers and
devices, --init, bad input. Most runs train a tiny network on 60 images, under compact's name."""

import importlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, Lesson, make_example, run_lesson, start_child

from data.captchas import ALPHABETS, Captchas, encode_text, png_file
from models import captcha
from utils import training
from utils.tfrecord import read_dataset, write_dataset

SCRIPT = "captcha_multitask/03_train.py"
DIGITS = ALPHABETS["digits"]
TRAIN, VALIDATION, BATCH = 60, 20, 8
STEPS, EVERY = 36, 3  # a validation and a save after every third step

with mock.patch.object(sys, "path", [str(ROOT / "captcha_multitask"), *sys.path]):
    nets_factory = importlib.import_module("nets.nets_factory")  # the lesson finds the same one


def tiny(
    images: keras.KerasTensor,
    positions: int,
    classes: int,
    dropout: float = 0.2,
    synchronized: bool = False,
) -> list[keras.KerasTensor]:
    """A network with all that has a state, trained in an instant."""
    x = keras.layers.Conv2D(8, 5, 4, use_bias=False, name="conv")(images)
    x = keras.layers.BatchNormalization(momentum=0.9, synchronized=synchronized, name="norm")(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    x = keras.layers.Dropout(dropout)(x)
    far = {"bias_initializer": keras.initializers.RandomNormal(stddev=2.0)}  # so the loss falls
    return [keras.layers.Dense(classes, name=f"head_{i}", **far)(x) for i in range(positions)]


def small_compact(dropout: float) -> Any:
    net = nets_factory.Net(partial(tiny, dropout=dropout), lambda positions: (20, 48), BATCH, 3e-3)
    return mock.patch.dict(nets_factory.NETS, compact=net)


def write_records(folder: Path, alphabet: str = DIGITS, length: int = 4) -> Path:
    captchas = Captchas(alphabet, length)

    def record(number: int) -> tf.train.Example:
        text, image = captchas.draw(number)
        png = png_file(np.asarray(image.convert("L"))[..., np.newaxis])
        return make_example(image=png, classes=encode_text(text, alphabet))

    numbers = range(TRAIN + VALIDATION)
    about = {"kind": "captcha", "alphabet": alphabet, "length": length, "source": {}}
    splits = {"train": numbers[:TRAIN], "validation": numbers[TRAIN:]}
    write_dataset(folder, splits, record, about=about | {"width": 160, "height": 60})
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


def flags(records: Path, folder: Path) -> tuple[str | Path, ...]:
    return "--records", records, "--model", folder / "best", "--steps", str(STEPS)


def train(records: Path, folder: Path, *more: str | Path, dropout: float = 0.2) -> Lesson:
    """The whole lesson in this process; its run is in ``folder/run``, its model in ``best``."""
    with small_compact(dropout):
        return run_lesson(SCRIPT, folder / "run", *flags(records, folder), *more)


def state_of(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """All that changes: weights, moving averages, dropout's seed, Adam's averages."""
    found = [*variables["network"].variables, *variables["optimizer"].variables]
    return {f"{i} {v.path}": v.value.numpy() for i, v in enumerate(found)}


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in history]


def assert_equal_states(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name, mine in one.items():
        np.testing.assert_array_equal(mine, other[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lesson, dict]:
    """A training that nobody stopped, and its state at the end."""
    lesson = train(records, tmp_path_factory.mktemp("whole"))
    return lesson, state_of(lesson.variables)


@pytest.fixture(scope="module")
def steady(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lesson, dict]:
    """The same without dropout, whose dice are each replica's own."""
    lesson = train(records, tmp_path_factory.mktemp("steady"), dropout=0.0)
    return lesson, state_of(lesson.variables)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """16 captchas, uint8 [16, 60, 160, 1], and their classes, int64 [16, 4]."""
    some = [Captchas(seed=3).draw(i) for i in range(16)]
    images = np.stack([np.asarray(image.convert("L"))[..., np.newaxis] for _, image in some])
    return images, np.array([encode_text(text, DIGITS) for text, _ in some])


# ---- the networks --------------------------------------------------------------------------


def test_alexnet_has_the_layers_of_slims_alexnet_v2():
    network = nets_factory.build("alexnet_v2", 4, 10, 224, 224, (224, 224), start="slim")
    shapes = {layer.name: layer.output.shape[1:] for layer in network.layers}
    wanted = {"conv1": (54, 54, 64), "pool1": (26, 26, 64), "conv2": (26, 26, 192)}
    wanted |= {"pool2": (12, 12, 192), "conv3": (12, 12, 384), "conv4": (12, 12, 384)}
    wanted |= {"conv5": (12, 12, 256), "pool5": (5, 5, 256), "fc6": (4096,), "fc7": (4096,)}
    wanted |= {f"fc8_{i}": (10,) for i in range(4)}
    assert {name: shapes[name] for name in wanted} == wanted
    counts = {"conv1": (11 * 11 * 1 + 1) * 64, "conv2": (5 * 5 * 64 + 1) * 192}
    counts |= {"conv3": (9 * 192 + 1) * 384, "conv4": (9 * 384 + 1) * 384}
    counts |= {"conv5": (9 * 384 + 1) * 256, "fc6": (5 * 5 * 256 + 1) * 4096}
    counts |= {"fc7": 4097 * 4096, **{f"fc8_{i}": 4097 * 10 for i in range(4)}}
    assert {name: network.get_layer(name).count_params() for name in counts} == counts
    assert network.count_params() == sum(counts.values()) == 46_355_304
    kinds = [type(layer).__name__ for layer in network.layers]
    assert [kinds.count(kind) for kind in ("Conv2D", "MaxPooling2D", "Dropout")] == [5, 3, 2]
    for name in ("fc6", "fc7", "fc8_0", "fc8_3"):  # slim's start
        kernel, bias = network.get_layer(name).get_weights()
        assert np.abs(kernel).max() <= 0.01  # cut at two standard deviations
        assert kernel.std() == pytest.approx(0.005 * 0.8796, rel=0.02), name
        assert (bias == (0 if name.startswith("fc8") else np.float32(0.1))).all()


def test_hes_start_keeps_the_size_of_the_signal_and_slims_shrinks_it(drawn):
    spread = {}
    for start in ("he", "slim"):
        keras.utils.set_random_seed(1)
        network = nets_factory.build("alexnet_v2", 4, 10, 60, 160, (67, 67), start=start)
        outputs = [network.get_layer("standardize").output, network.get_layer("fc7").output]
        outputs = keras.Model(network.input, outputs)(drawn[0], training=False)
        spread[start] = [float(tf.reduce_mean(tf.math.reduce_std(x, axis=0))) for x in outputs]
    assert spread["he"][0] == spread["slim"][0]
    assert spread["he"][1] > spread["he"][0] / 10
    assert spread["slim"][1] < spread["slim"][0] / 1000


@pytest.mark.parametrize(("name", "size"), [("compact", (20, 48)), ("alexnet_v2", (67, 67))])
def test_a_loss_on_one_head_leaves_the_other_heads_alone(name, size, drawn, whole):
    network = nets_factory.build(name, 4, 10, 60, 160, size)
    losses_of = whole[0].variables["losses_of"]
    with tf.GradientTape() as tape:
        logits = network(drawn[0][:4], training=False)
        loss = tf.reduce_sum(losses_of(logits[:, 2:3], drawn[1][:4, 2:3]))
    gradients = tape.gradient(loss, network.trainable_variables)
    found = {"own": 0, "shared": 0, "others": 0}
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        layer = variable.path.split("/")[-2]
        head = re.match(r"(?:fc8|head)_(\d)", layer)
        kind = "shared" if head is None else "own" if head[1] == "2" else "others"
        found[kind] += 1
        if kind == "others":
            assert gradient is None or not np.any(gradient), variable.path
        elif variable.path.endswith("kernel") and layer != "head_2_where":
            assert np.any(gradient), variable.path
    assert found["others"] == 3 * found["own"] >= 6


def test_a_compact_head_reads_the_mean_of_the_columns_it_weighs(drawn):
    network = nets_factory.build("compact", 2, 5, 60, 160, (20, 48))
    weights, seen = (network.get_layer(f"head_1_{part}") for part in ("weights", "seen"))
    outputs = [seen.input[1], weights.output, seen.output, network.output]
    columns, weights, seen, logits = map(
        np.asarray, keras.Model(network.input, outputs)(drawn[0][:3], training=False)
    )
    assert weights.sum(axis=1) == pytest.approx(np.ones((3, 1)), abs=1e-5)
    mean = (weights * columns).sum(axis=1)
    np.testing.assert_allclose(seen[:, 0], mean, atol=1e-4)
    last = [x for x in network.layers if isinstance(x, keras.layers.Dense) and x.units == 5][-1]
    kernel, bias = last.get_weights()
    np.testing.assert_allclose(logits[:, 1], mean @ kernel + bias, atol=1e-3)


def test_the_factory_builds_other_alphabets_lengths_and_sizes():
    network = nets_factory.build("compact", 6, 62, 70, 200)
    assert network.input.dtype == "uint8"
    assert (network.input_shape, network.output_shape) == ((None, 70, 200, 1), (None, 6, 62))
    resized = [op.output.shape for op in network.operations if type(op).__name__ == "Resize"]
    assert resized == [(None, 60, 240, 1)]


def test_pixels_are_standardised_as_tf_image_does_it(drawn):
    network = nets_factory.build("compact", 4, 10, 60, 160, (20, 48))
    standardised = keras.Model(network.input, network.get_layer("standardize").output)(drawn[0])
    wanted = -tf.image.per_image_standardization(drawn[0]).numpy()  # ink is what is not paper
    np.testing.assert_allclose(standardised, wanted, atol=0.01)
    ink = (255 - drawn[0]) // 2 * 2
    dark, pale = (network(255 - some, training=False).numpy() for some in (ink, ink // 2))
    np.testing.assert_allclose(pale, dark, atol=0.02 * dark.std())
    white = np.full((1, 60, 160, 1), 255, np.uint8)
    assert np.isfinite(network(white, training=False)).all(), "an image without ink"


def test_the_loss_is_the_sum_of_the_heads_cross_entropies(whole):
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(7, 4, 10)).astype(np.float32) * 3
    classes = generator.integers(10, size=(7, 4))
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(p, classes[..., np.newaxis], axis=-1)).sum(axis=(1, 2))
    losses_of = whole[0].variables["losses_of"]
    np.testing.assert_allclose(losses_of(logits, classes), wanted, rtol=1e-5)
    # Smoothed, a tenth of the label is shared by all ten characters.
    smoothed = 0.9 * wanted - 0.1 * np.log(p).mean(axis=-1).sum(axis=1)
    np.testing.assert_allclose(losses_of(logits, classes, 0.1), smoothed, rtol=1e-5)


def test_scores_count_every_image_once(whole, monkeypatch):
    evaluate = whole[0].variables["evaluate"]
    classes = np.array([[0, 1], [1, 1], [2, 0], [0, 0], [2, 2]])
    read = np.array([[0, 1], [1, 0], [2, 0], [1, 1], [2, 1]])  # whole: 2 of 5; characters: 6 of 10
    logits = 2 * np.eye(3, dtype=np.float32)[read]
    batches = tf.data.Dataset.from_tensor_slices((logits, classes)).batch(2)  # 2, 2 and 1
    monkeypatch.setitem(evaluate.__globals__, "validation", batches)
    monkeypatch.setitem(evaluate.__globals__, "predict", lambda images: images)
    right, wrong = -np.log(np.exp([2, 0]) / (np.exp(2) + 2))
    monkeypatch.setitem(evaluate.__globals__, "alphabet", "abc")
    smoothed = 0.9 * (6 * right + 4 * wrong) / 5 + 0.1 * 2 * (right + 2 * wrong) / 3
    wanted = {"loss": smoothed, "whole_captcha_accuracy": 2 / 5}
    wanted |= {"character_accuracy": 6 / 10}
    wanted |= {"position_1_accuracy": 4 / 5, "position_2_accuracy": 2 / 5}
    assert evaluate() == pytest.approx(wanted, rel=1e-5)


# ---- the batches ---------------------------------------------------------------------------


def raw_records(records: Path) -> list[bytes]:
    return [*tf.data.TFRecordDataset(read_dataset(records)[1]["train"][0]).as_numpy_iterator()]


def test_each_epoch_has_each_record_once_in_an_order_of_seed_and_epoch(whole, records, monkeypatch):
    epoch, stored = whole[0].variables["epoch"], raw_records(records)
    assert len({*stored}) == TRAIN
    orders = {}
    for seed in (1, 2, 1):
        keras.utils.set_random_seed(seed)
        tf.random.uniform([3])  # no hidden state of TensorFlow's generator
        monkeypatch.setattr(whole[0].variables["args"], "seed", seed)
        numbers = tf.data.Dataset.range(3).flat_map(epoch).as_numpy_iterator()
        order = [stored.index(record) for record in numbers]
        assert orders.setdefault(seed, order) == order, "the same seed, the same order"
    for order in orders.values():
        epochs = [order[i : i + TRAIN] for i in range(0, 3 * TRAIN, TRAIN)]
        assert all(sorted(some) == list(range(TRAIN)) for some in epochs)
        assert len({tuple(some) for some in epochs}) == 3
        first_half = [[i for i in some if i < TRAIN // 2] for some in epochs]
        assert first_half[0] != first_half[1], "not the shards alone are shuffled"
    assert orders[1] != orders[2]
    assert [i for i in orders[1] if i < 30] != [i for i in orders[2] if i < 30]


def take(batches: tf.data.Dataset, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [*batches.take(count).as_numpy_iterator()]


def test_batches_skipped_are_those_of_a_whole_pass(whole):
    keras.utils.set_random_seed(1)
    batches = whole[0].variables["train_batches"]
    all_of_them = take(batches(0), 20)  # more than two epochs of 7.5 batches
    assert {images.shape for images, _ in all_of_them} == {(BATCH, 60, 160, 1)}
    for first in (1, 7, 8, 15):
        for mine, theirs in zip(take(batches(first), 5), all_of_them[first:], strict=False):
            assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_the_shares_of_two_workers_are_the_batch_and_each_decodes_its_own(whole, monkeypatch):
    keras.utils.set_random_seed(1)
    batches = whole[0].variables["train_batches"]
    names = batches.__globals__
    decode, decoded = names["decode_pngs"], []

    def counting(files: tf.Tensor, *size: int) -> tf.Tensor:
        tf.numpy_function(lambda files: decoded.append(len(files)), [files], [])
        return decode(files, *size)

    monkeypatch.setitem(names, "decode_pngs", counting)
    found = []
    for worker in (0, 1):
        run = object.__new__(training.TrainingRun)
        run.worker, run.workers, run.replicas = worker, 2, 2
        monkeypatch.setitem(names, "share", run.share(BATCH))
        found.append(take(batches(0), 10))
        assert {*decoded} == {BATCH // 2}
    monkeypatch.setitem(names, "share", slice(0, BATCH))
    for *parts, together in zip(*found, take(batches(0), 10), strict=True):
        for whole_batch, *halves in zip(together, *parts, strict=True):
            np.testing.assert_array_equal(whole_batch, np.concatenate(halves))


def test_moved_images_repeat_the_border(whole, drawn, monkeypatch):
    move = whole[0].variables["move"]
    monkeypatch.setitem(move.__globals__, "batch_size", 16)
    monkeypatch.setitem(move.__globals__, "share", slice(0, 16))
    moved = move(drawn[0], tf.constant(3, tf.int64)).numpy()
    for image, out in zip(drawn[0], moved, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "edge")
        shifts = [padded[i : i + 60, j : j + 160] for i in range(9) for j in range(9)]
        assert any(np.array_equal(out, shifted) for shifted in shifts)
    assert np.array_equal(moved, move(drawn[0], tf.constant(3, tf.int64)))
    assert not np.array_equal(moved, move(drawn[0], tf.constant(4, tf.int64)))
    monkeypatch.setattr(whole[0].variables["args"], "seed", 2)
    assert not np.array_equal(moved, move(drawn[0], tf.constant(3, tf.int64)))


def test_all_shifts_are_equally_likely(whole, monkeypatch):
    move, count = whole[0].variables["move"], 1800
    monkeypatch.setitem(move.__globals__, "batch_size", count)
    monkeypatch.setitem(move.__globals__, "share", slice(0, count))
    dots = np.zeros((count, 60, 160, 1), np.uint8)
    dots[:, 30, 80] = 1
    number, rows, columns, _ = np.nonzero(move(dots, tf.constant(3, tf.int64)))
    assert number.tolist() == list(range(count)), "one dot in each image"
    for shifts in (rows - 30, columns - 80):
        places, counts = np.unique(shifts, return_counts=True)
        assert places.tolist() == list(range(-4, 5))
        assert counts.min() > 200 - 5 * np.sqrt(200)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.12


# ---- killed and resumed --------------------------------------------------------------------


def strike_at(moment: str, strike: Callable[[], None]) -> None:
    """Call ``strike`` at a moment of the training to come, such as ``"saved 6"``: when step 6 is
    ``"done"``, when it is ``"noted"`` and the model is about to be saved, while ``"saving"`` and
    nothing is written yet, or when all is ``"written"`` under another name, or ``"saved"``."""
    kind, number = moment.split()
    run, struck, savez = training.TrainingRun, [], np.savez
    deal, note, save = run.deal, run.note, run.save

    def at(now: str, step: int) -> None:
        if (now, step) == (kind, int(number)) and not struck:
            struck.append(True)
            strike()

    def deal_(self: Any, *batch: Any) -> Any:
        at("done", self.step)
        return deal(self, *batch)

    def note_(self: Any, scores: Any) -> bool:
        at("noted", self.step)
        return note(self, scores)

    def save_(self: Any) -> None:
        def savez_(*args: Any, **arrays: Any) -> None:
            at("saving", self.step)
            savez(*args, **arrays)
            at("written", self.step)

        np.savez = savez_
        save(self)
        at("saved", self.step)

    run.deal, run.note, run.save = deal_, note_, save_


def kill() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no -9


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def fill_the_disk() -> None:
    import resource  # not on Windows

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file may be larger


def child(strike: str, moment: str, dropout: str, *flags: str) -> None:
    """The lesson in a process of its own, with a blow; its state goes into the run's folder."""
    if moment:
        strike_at(moment, globals()[strike])
    if "mirrored" in flags:
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        strategy = partial(tf.distribute.MirroredStrategy, ["CPU:0", "CPU:1"])
        training.STRATEGIES["mirrored"] = strategy
    path = str(ROOT / SCRIPT)
    sys.argv, sys.path[:0] = [path, "--quick", *flags], [str(Path(path).parent)]
    with small_compact(float(dropout)):
        variables = runpy.run_path(path, run_name="__main__")
    run = variables["run"]
    np.savez(run.folder / "state.npz", **state_of(variables), replicas=run.replicas)


def finished(process: subprocess.Popen[str]) -> str:
    """What the process printed until its end, which is forced after two minutes."""
    try:
        return process.communicate(timeout=120)[0]
    finally:
        process.kill()


def struck(strike: Callable[[], None], moment: str, records: Path, folder: Path) -> tuple[int, str]:
    """Exit status and output of a training that was hit."""
    run = ("--run-dir", folder / "run", *flags(records, folder))
    process = start_child("test_captcha_train", strike.__name__, moment, "0.2", *run)
    output = finished(process)
    assert not (folder / "run" / "result.json").exists(), output
    assert not any((folder / "best").iterdir())
    return process.returncode, output


def assert_goes_on_exactly(whole: tuple[Lesson, dict], records: Path, folder: Path) -> str:
    """The same command ends as if nothing had happened; returns what it printed."""
    lesson, state = whole
    resumed = train(records, folder)
    assert_equal_states(state, state_of(resumed.variables))
    assert without_times(resumed.result["history"]) == without_times(lesson.result["history"])
    assert resumed.metrics == lesson.metrics
    models = [captcha.load_recogniser(f / "best").model for f in (folder, lesson.folder.parent)]
    for mine, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not [*(folder / "run").glob("*.npz")]
    return resumed.output


@pytest.mark.parametrize(
    ("moment", "saved"), [("done 2", 0), ("done 8", 6), ("written 6", 3), (f"saved {STEPS}", STEPS)]
)
def test_killed_and_resumed_it_ends_as_if_it_had_not_been(moment, saved, whole, records, tmp_path):
    status, output = struck(kill, moment, records, tmp_path)
    assert status not in (0, 1, 2), output
    said = assert_goes_on_exactly(whole, records, tmp_path)
    assert (f"Going on after step {saved}" in said) == (saved > 0)
    steps = [int(step) for step in re.findall(r"^step (\d+) after", said, re.M)]
    assert steps == list(range(saved + EVERY, STEPS + 1, EVERY))


def test_after_ctrl_c_the_step_at_hand_is_saved(whole, records, tmp_path):
    status, output = struck(press_ctrl_c, "done 7", records, tmp_path)
    assert status not in (0, 1, 2), output  # as a program that Ctrl-C ended
    assert "Traceback" not in output
    commands = re.findall(r"To go on after a stop, add --run-dir (.*)", output)
    assert [Path(command.strip("'\"")).name for command in commands] == ["run", "run"]
    assert output.splitlines()[-1].startswith("Stopped. To go on")
    resumed = train(records, tmp_path)
    assert "Going on after step 8" in resumed.output
    assert_equal_states(whole[1], state_of(resumed.variables))
    rows = [without_times(some.result["history"]) for some in (resumed, whole[0])]
    for mine, theirs in zip(*rows, strict=True):  # its training loss at 9 is of fewer steps
        assert mine | {"train_loss": 0} == theirs | {"train_loss": 0}


@pytest.mark.parametrize("moment", ["noted 6", "saving 6"])
def test_a_full_disk_loses_nothing_that_was_saved(moment, whole, records, tmp_path):
    pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    status, output = struck(fill_the_disk, moment, records, tmp_path)
    assert status == 1, output
    assert "Traceback" not in output
    assert str(tmp_path / "run") in " ".join(output.split())
    assert "Going on after step 3" in assert_goes_on_exactly(whole, records, tmp_path)


def test_a_training_leaves_its_result_and_its_best_model(whole):
    lesson, _ = whole
    history = lesson.result["history"]
    assert [row["step"] for row in history] == list(range(EVERY, STEPS + 1, EVERY))
    best = min(history, key=lambda row: row["loss"])
    for folder in (lesson.folder.parent / "best", lesson.folder / "model"):
        about = captcha.load_recogniser(folder, DIGITS, 4).about
        assert (about["step"], about["net"], about["width"]) == (best["step"], "compact", 160)
    for name in ("whole_captcha_accuracy", "character_accuracy", "loss"):
        assert lesson.metrics[f"validation_{name}"] == best[name]
    assert best["loss"] < history[0]["loss"]


def test_it_stops_when_validation_brings_nothing_more(records, tmp_path, monkeypatch):
    losses = iter([5.0, 4.0, 4.5, 4.0, 4.2, 6.0, 5.0, 4.1, 1.0])
    note, save = training.TrainingRun.note, training.TrainingRun.save

    def note_(self: Any, scores: dict[str, float]) -> bool:
        return note(self, scores | {"loss": next(losses)})

    def save_(self: Any) -> None:
        save(self)
        if len(self.history) == 8:
            raise ZeroDivisionError  # in place of a kill

    monkeypatch.setattr(training.TrainingRun, "note", note_)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(training.TrainingRun, "save", save_)
        train(records, tmp_path)
    lesson = train(records, tmp_path)  # has nothing to do but its result
    assert lesson.metrics["steps"] == 8 * EVERY, "six validations after the second"
    assert next(losses) == 1.0
    assert captcha.load_recogniser(tmp_path / "best").about["step"] == 2 * EVERY


def refused(capsys: Any, records: Path, folder: Path, *more: str | Path) -> str:
    """The sentence that a run ends with instead of a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(records, folder, *more)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


# ---- several devices and machines ----------------------------------------------------------


def assert_near(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Equal but for the order of sums. Adam's averages are among it: its steps alone would be
    the same for a gradient twice as large."""
    for name, mine in one.items():
        if "seed_generator" not in name:
            scale = np.abs(mine).max()
            np.testing.assert_allclose(other[name], mine, atol=2e-3 * scale, err_msg=name)


def saved_state(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "state.npz") as arrays:
        return dict(arrays)


def test_two_devices_train_as_one_does(steady, records, tmp_path):
    run = ("--run-dir", tmp_path / "run", *flags(records, tmp_path), "--strategy", "mirrored")
    process = start_child("test_captcha_train", "", "", "0.0", *run)
    output = finished(process)
    assert process.returncode == 0, output
    state = saved_state(tmp_path / "run")
    assert state["replicas"] == 2
    assert_near(steady[1], state)
    history = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["history"]
    for mine, theirs in zip(history, steady[0].result["history"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


@pytest.fixture
def pair(records: Path, tmp_path: Path) -> Iterator[Callable[..., list[tuple[int, str]]]]:
    """Runs the lesson in two processes to their end and returns their exit status and output.
    None of them outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(moment: str, *kinds: str) -> list[tuple[int, str]]:
        with socket.socket() as one, socket.socket() as other:
            for some in (one, other):
                some.bind(("localhost", 0))
            addresses = [f"localhost:{some.getsockname()[1]}" for some in (one, other)]
        if "chief" in kinds:
            cluster = {"chief": addresses[:1], "worker": addresses[1:]}
            tasks = [{"type": "chief", "index": 0}, {"type": "worker", "index": 0}]
        else:
            cluster = {"worker": addresses}
            tasks = [{"type": "worker", "index": i} for i in (0, 1)]
        run = ("--run-dir", tmp_path / "run", *flags(records, tmp_path))
        processes[:] = [
            start_child(
                "test_captcha_train",
                *("kill", moment, "0.0", *run, "--strategy", "multi-worker"),
                TF_CONFIG=json.dumps({"cluster": cluster, "task": task}),
            )
            for task in tasks
        ]
        deadline = time.monotonic() + 120
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() for process in processes)  # the other waits for ever
            if failed or time.monotonic() > deadline:
                time.sleep(1)
                for process in processes:
                    process.kill()
            time.sleep(0.1)
        return [(process.returncode, process.communicate()[0]) for process in processes]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def test_two_workers_killed_and_resumed_end_with_equal_weights(pair, steady, tmp_path):
    killed = pair("done 8", "chief", "worker")
    assert all(status not in (0, 1, 2) for status, _ in killed), killed
    assert not list((tmp_path / "run").rglob("result.json"))
    resumed = pair("", "worker", "worker")  # the chief by another name
    assert [status for status, _ in resumed] == [0, 0], resumed
    assert all("Going on after step 6" in output for _, output in resumed)
    folders = [tmp_path / "run", tmp_path / "run" / "worker_1"]
    one, other = (saved_state(folder) for folder in folders)
    assert one["replicas"] == 2
    assert_equal_states(one, other)
    assert_near(steady[1], one)
    results = [json.loads((f / "result.json").read_text(encoding="utf-8")) for f in folders]
    histories = [without_times(result["history"]) for result in results]
    rows = zip(*histories, without_times(steady[0].result["history"]), strict=True)
    for mine, theirs, alone in rows:
        assert mine == theirs | {"train_loss": mine["train_loss"]}
        assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    models = [captcha.load_recogniser(f / "model").model for f in folders]
    for mine, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_batch_that_the_replicas_can_not_share_is_a_sentence(
    records, tmp_path, capsys, monkeypatch
):
    three = SimpleNamespace(num_replicas_in_sync=3)
    monkeypatch.setitem(training.STRATEGIES, "mirrored", lambda: three)
    said = refused(capsys, records, tmp_path, "--strategy", "mirrored")
    assert "3 replicas can't share a batch of 8 equally" in said


# ---- from another recogniser ---------------------------------------------------------------


def begun(records: Path, folder: Path, source: Path) -> tuple[keras.Model, str]:
    """The network that a training from ``source`` begins with, and the layers said to be new."""
    networks: list[keras.Model] = []
    start = training.TrainingRun.start

    def keep(self: Any, variables: Any) -> None:
        network = sys._getframe(1).f_globals["network"]
        networks.append(keras.models.clone_model(network))
        networks[0].set_weights(network.get_weights())
        start(self, variables)

    with mock.patch.object(training.TrainingRun, "start", keep):
        lesson = train(records, folder, "--init", source, "--steps", "1")
    (new,) = re.findall(r"^From .*new: (.*)", lesson.output, re.M)
    return networks[0], new


def test_init_takes_all_of_a_recogniser_of_the_same_texts(whole, records, tmp_path):
    source = whole[0].folder / "model"
    network, new = begun(records, tmp_path, source)
    assert "head" not in new
    trained = captcha.load_recogniser(source)
    for mine, theirs in zip(network.get_weights(), trained.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("alphabet", "length"), [(DIGITS, 5), ("9A8B7", 3)])
def test_init_takes_what_fits_other_texts(alphabet, length, whole, tmp_path):
    records = write_records(tmp_path / "records", alphabet, length)
    network, new = begun(records, tmp_path, whole[0].folder / "model")
    known = captcha.load_recogniser(whole[0].folder / "model").model
    assert ("head_4" in new) == (length == 5)
    assert not any(f"head_{i}" in new for i in range(min(length, 4)))
    for name in ("conv", "norm", *(f"head_{i}" for i in range(min(length, 4)))):
        pair = (model.get_layer(name).get_weights() for model in (network, known))
        for mine, theirs in zip(*pair, strict=True):
            if "head" in name:  # by characters
                here = [i for i, c in enumerate(alphabet) if c in DIGITS]
                mine, theirs = mine[..., here], theirs[..., [int(alphabet[i]) for i in here]]
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


# ---- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "damage"), [("train", "cut"), ("validation", "altered"), ("train", "missing")]
)
def test_damaged_records_are_named(records, tmp_path, capsys, split, damage):
    copy = shutil.copytree(records, tmp_path / "records")
    shard = copy / f"{split}_00001-of-00002.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data if damage == "altered" else data[: len(data) // 2])
    said = refused(capsys, copy, tmp_path)
    assert f"{shard.name} is {'missing' if damage == 'missing' else 'cut short or altered'}" in said
    assert not (tmp_path / "best").exists()


def test_records_and_models_that_do_not_fit(whole, records, tmp_path, capsys):
    said = refused(capsys, tmp_path / "nowhere", tmp_path)
    assert "dataset.json is missing" in said
    folder = tmp_path / "numbers"
    write_dataset(folder, {"train": [1], "validation": [2]}, lambda i: make_example(number=i))
    assert "has no 'alphabet': write captchas" in refused(capsys, folder, tmp_path)
    folder = tmp_path / "no_validation"
    about = read_dataset(records)[0]
    write_dataset(folder, {"train": [1]}, lambda i: make_example(number=i), about=about)
    assert "has no 'validation': write captchas" in refused(capsys, folder, tmp_path)
    assert "holds no model" in refused(capsys, records, tmp_path, "--init", tmp_path / "numbers")
    model = shutil.copytree(whole[0].folder / "model", tmp_path / "model")
    with (model / "model.keras").open("ab") as file:
        file.write(b"more")
    assert "altered or cut short" in refused(capsys, records, tmp_path, "--init", model)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    said = refused(capsys, records, tmp_path, "--model", tmp_path / "file" / "best")
    assert str(tmp_path / "file") in said
