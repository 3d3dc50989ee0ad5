"""Chapter inception_v3/slim_train, its training: distortions, losses, rates, the auxiliary head,
the phases, bad input. All runs train a tiny network with the blocks of InceptionV3."""

import colorsys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Lesson, assert_costs_nothing, foreign_files, make_example, run_lesson
from keras import layers
from PIL import Image

from data import photos
from models import inception_v3
from models.classifier import load_classifier, save_classifier, whole_model
from models.inception_v3 import Weights
from utils import training
from utils.tfrecord import read_dataset, write_dataset

SCRIPT = "inception_v3/slim_train/02_train_image_classifier.py"
CLASSES = ("circles", "crosses", "red stripes", "三角形")
TRAIN, VALIDATION, BATCH, SIZE = 24, 8, 8, 75
CHANNELS, FULL = 6, (0, 7, 8, 9, 10)  # of the tiny network, and its blocks with layers in them
STEPS, HEADS, EVERY = 30, 6, 2  # ten epochs, two of the heads; a validation after two steps


def tiny(weights: Weights, size: int = 299, calibrate: Any = None) -> keras.Model:
    """A network with the blocks of InceptionV3, trained in an instant."""
    keras.utils.set_random_seed(weights.seed)
    images = keras.Input((size, size, 3))
    x = images
    for _ in range(2):
        x = layers.Conv2D(CHANNELS, 3, 2, use_bias=False)(x)
        x = layers.BatchNormalization(scale=False)(x)
        x = layers.MaxPooling2D(3, 2)(layers.ReLU()(x))
    for i in range(11):
        if i not in FULL:
            x = layers.Identity(name=f"mixed{i}")(x)
            continue
        y = layers.Conv2D(CHANNELS, 1, use_bias=False)(x)
        y = layers.BatchNormalization(scale=False)(y)
        x = layers.Add(name=f"mixed{i}")([x, layers.ReLU()(y)])
    return keras.Model(images, layers.GlobalAveragePooling2D(name="avg_pool")(x))


def found_weights(choice: str, top: bool, **_: Any) -> Weights:
    path = None if choice == "none" else Path(choice)
    return Weights(path, "tiny", False, "made for a test")


@contextmanager
def small_network(body: Any = tiny, dropout: bool = True) -> Iterator[None]:
    """The scripts train ``body``; without dropout, whose dice are each replica's own."""
    identity = layers.Dropout if dropout else lambda rate: layers.Identity()
    with (
        mock.patch.object(inception_v3, "backbone", body),
        mock.patch.object(inception_v3, "find_weights", found_weights),
        mock.patch.object(layers, "Dropout", identity),
    ):
        yield


def picture(number: int) -> Image.Image:
    return photos.draw_stand_in(photos.STAND_IN_CLASSES[number % 4], number).resize((120, 90))


def write_records(folder: Path, draw: Callable[[int], Image.Image] = picture) -> Path:
    def record(number: int) -> tf.train.Example:
        path = folder / "picture.png"
        draw(number).save(path)
        features = {"image/encoded": path.read_bytes(), "image/orientation": 1}
        return make_example(**features, **{"image/class/label": number % 4})

    about = {"classes": CLASSES, "source": "a test", "stand_in": True, "training_photos": ["ab"]}
    numbers = range(TRAIN + VALIDATION)
    folder.mkdir(exist_ok=True)
    splits = {"train": numbers[:TRAIN], "validation": numbers[TRAIN:]}
    write_dataset(folder, splits, record, about=about)
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


def flags(records: Path, folder: Path) -> tuple[str, ...]:
    files = ("--records", str(records), "--model", str(folder / "best"))
    return (*files, "--epochs", "10", "--weights", "tiny", "--head-epochs", "2")


def train(records: Path, folder: Path, *more: str | Path, **network: Any) -> Lesson:
    """The whole lesson in this process; its run is in ``folder/run``, its model in ``best``."""
    with small_network(**network):
        return run_lesson(SCRIPT, folder / "run", *flags(records, folder), *more)


STEM = ("--train-from", "stem")


def state_of(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """All that changes: weights, statistics, dropout's seed, the optimizer's means, the average."""
    found = [*variables["whole"].variables, *variables["optimizer"].variables]
    averages = {f"average {i}": v.numpy() for i, v in enumerate(variables["averages"])}
    return {f"{i} {v.path}": v.value.numpy() for i, v in enumerate(found)} | averages


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in history]


@pytest.fixture(scope="module")
def whole(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lesson, dict]:
    """A training that nobody stopped, in a folder that holds other files, and its end's state."""
    folder = tmp_path_factory.mktemp("whole")
    for name, content in foreign_files(SCRIPT).items():
        (folder / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "run" / name).write_bytes(content)
    lesson = train(records, folder, *STEM)
    return lesson, state_of(lesson.variables)


# ---- what the network gets to see ----------------------------------------------------------


def distorted(whole: tuple[Lesson, dict], pixels: np.ndarray, count: int, turn: int = 1) -> Any:
    """So many distortions of a photo, float32 [count, size, size, 3] from 0 to 1."""
    distort, file = whole[0].variables["distort"], tf.io.encode_png(pixels)
    one = lambda number: distort((file, tf.constant(turn, tf.int64), number))  # noqa: E731
    numbers = tf.range(count, dtype=tf.int64)
    images = tf.map_fn(one, numbers, fn_output_signature=tf.TensorSpec([SIZE, SIZE, 3]))
    return (images.numpy() + 1) / 2


@pytest.mark.parametrize("turn", [1, 6])
def test_crops_and_flips_are_found_in_a_photo_of_coordinates(whole, turn, monkeypatch):
    height, width, count = 120, 160, 150
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)  # red: the column, green: the row
    same = lambda image, *_: image  # noqa: E731
    monkeypatch.setattr(tf.image, "stateless_random_brightness", same)
    monkeypatch.setattr(tf.image, "stateless_random_saturation", same)
    images = distorted(whole, pixels, count, turn) * 255
    if turn == 6:  # a quarter turn clockwise: columns from the right are now rows from the top
        images = images.transpose(0, 2, 1, 3)[:, ::-1]
    columns, rows = images[..., 0].mean(axis=1), images[..., 1].mean(axis=2)  # [n, size]
    step = np.abs(np.diff(columns)).mean(axis=1) * SIZE, np.abs(np.diff(rows)).mean(axis=1) * SIZE
    areas = step[0] * step[1] / (width * height)
    assert 0.27 < areas.min() < 0.4
    assert areas.max() > 0.8
    aspects = step[0] / step[1]
    assert 0.7 < aspects.min() < 0.85
    assert 1.2 < aspects.max() < 1.4
    direction = rows if turn == 6 else columns
    flipped = (np.diff(direction).mean(axis=1) < 0).mean()
    assert flipped == pytest.approx(0.5, abs=0.13)
    other = columns if turn == 6 else rows
    assert (np.diff(other).mean(axis=1) > 0).all(), "mirrored, but never upside down"


def test_colours_are_shifted_by_as_much_as_slim_did(whole):
    pixels = np.full((90, 120, 3), (90, 120, 150), np.uint8)
    images = distorted(whole, pixels, 150)
    assert np.ptp(images, axis=(1, 2)).max() < 1e-3
    shifts, factors = [], []
    for rgb in images[:, 0, 0]:
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        shifts.append(v - 150 / 255)
        before = colorsys.rgb_to_hsv(*(c / 255 + shifts[-1] for c in (90, 120, 150)))
        assert h == pytest.approx(before[0], abs=0.01)
        factors.append(s / before[1])
    assert -0.126 < min(shifts) < -0.1
    assert 0.1 < max(shifts) < 0.126
    assert 0.49 < min(factors) < 0.6
    assert 1.4 < max(factors) < 1.51


def take(batches: tf.data.Dataset, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [*batches.take(count).as_numpy_iterator()]


def test_the_batches_follow_from_seed_and_step(whole, records, monkeypatch):
    variables = whole[0].variables
    epoch, batches = variables["epoch"], variables["train_batches"]
    stored = [*tf.data.TFRecordDataset(read_dataset(records)[1]["train"][0]).as_numpy_iterator()]
    orders = [[stored.index(r) for r in epoch(tf.constant(k, tf.int64)).as_numpy_iterator()]
              for k in (0, 1, 0)]  # fmt: skip
    assert sorted(orders[0]) == [*range(TRAIN)]
    assert orders[0] == orders[2] != orders[1]
    tf.random.uniform([3])  # no hidden state of TensorFlow's generator
    all_of_them = take(batches(0), 7)  # more than two epochs of three batches
    assert {images.shape for images, _ in all_of_them} == {(BATCH, SIZE, SIZE, 3)}
    for mine, theirs in zip(take(batches(4), 3), all_of_them[4:], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    found = []
    for share in (slice(0, 4), slice(4, 8)):  # two workers
        monkeypatch.setitem(batches.__globals__, "share", share)
        found.append(take(batches(2), 3))
    for *parts, together in zip(*found, all_of_them[2:5], strict=True):
        for whole_batch, *halves in zip(together, *parts, strict=True):
            np.testing.assert_array_equal(whole_batch, np.concatenate(halves))


# ---- losses, rates, averages ---------------------------------------------------------------


def test_losses_by_their_formulas(whole):
    variables, generator = whole[0].variables, np.random.default_rng(1)
    logits = generator.normal(size=(6, 4)).astype(np.float32) * 3
    labels = generator.integers(4, size=6)
    library = keras.losses.CategoricalCrossentropy(True, label_smoothing=0.1, reduction=None)
    found = variables["cross_entropy"](tf.constant(logits), tf.constant(labels))
    np.testing.assert_allclose(found, library(np.eye(4)[labels], logits), rtol=1e-5)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
    kernel, some = model.layers[0].kernel, model.trainable_variables
    with tf.GradientTape() as tape:
        loss = variables["weight_decay"](some)
    gradients = tape.gradient(loss, [variable.value for variable in some])
    np.testing.assert_allclose(gradients[0], 0.00004 * kernel.numpy(), rtol=1e-5)
    assert gradients[1:] == [None] * 3, "no bias, no gamma, no beta"


def test_rates_by_keras(whole, monkeypatch):
    rate = whole[0].variables["rate"]
    cosine = keras.optimizers.schedules.CosineDecay(0.003, STEPS - HEADS)
    falls = keras.optimizers.schedules.ExponentialDecay(0.003, 6, 0.94, staircase=True)
    for kind, library in (("cosine", cosine), ("exponential", falls)):
        monkeypatch.setattr(whole[0].variables["args"], "decay", kind)
        assert [rate(step) for step in range(HEADS)] == [0.002] * HEADS
        for step in range(HEADS, STEPS):
            assert rate(step) == pytest.approx(float(library(step - HEADS)), rel=1e-4)


def test_two_steps_of_rmsprop_and_of_the_average_by_the_formulas(whole, monkeypatch):
    variable = keras.Variable([1.0, -2.0, 3.0])
    optimizer = type(o := whole[0].variables["optimizer"]).from_config(o.get_config())
    optimizer.build([variable])
    optimizer.learning_rate = 0.1
    average = whole[0].variables["average"]
    mean = tf.Variable(variable.value)
    monkeypatch.setitem(average.__globals__, "averages", [mean])
    monkeypatch.setitem(average.__globals__, "variables", [variable])
    w, v, m = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    wanted = w.copy()
    steps = (3, [0.5, -4.0, 0.0]), (10_000, [1.0, 2.0, -3.0])
    for (number, gradient), d in zip(steps, (4 / 13, 0.99), strict=True):
        g = np.array(gradient)
        optimizer.apply_gradients([(tf.constant(g, tf.float32), variable)])
        average(tf.constant(number, tf.int64))
        v = 0.9 * v + 0.1 * g**2
        m = 0.9 * m + 0.1 * g / np.sqrt(v + 1.0)
        w = w - m
        wanted = d * wanted + (1 - d) * w
        np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5)
        np.testing.assert_allclose(mean.numpy(), wanted, rtol=1e-5)
    whole[0].variables["swap"].__globals__["swap"]()
    np.testing.assert_allclose(variable.numpy(), wanted, rtol=1e-5)
    np.testing.assert_allclose(mean.numpy(), w, rtol=1e-5)


def test_scores_count_every_photo_once(whole, monkeypatch):
    evaluate = whole[0].variables["evaluate"]
    logits = np.array([[3, 1, 0, 0], [0, 2, 1, 0], [0, 1, 2, 0], [0, 0, 0, 5], [9, 0, 0, 0]])
    labels = np.array([0, 1, 1, 3, 1])
    batches = tf.data.Dataset.from_tensor_slices((logits.astype(np.float32), labels)).batch(2)
    monkeypatch.setitem(evaluate.__globals__, "validation", batches)
    monkeypatch.setitem(evaluate.__globals__, "predict", lambda images: images)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    q = 0.9 * np.eye(4)[labels] + 0.1 / 4
    wanted = {"loss": -(q * np.log(p)).sum(axis=1).mean(), "accuracy": 3 / 5}
    assert evaluate() == pytest.approx(wanted, rel=1e-5)


# ---- the network and its phases ------------------------------------------------------------


def test_the_auxiliary_head_reaches_what_lies_below_it(whole):
    variables = whole[0].variables
    network, parts = variables["whole"], variables["parts"]
    maps = variables["body"].get_layer("mixed7").output.shape[1]
    left = (maps - min(5, maps)) // 3 + 1
    _, *auxiliary = parts["head"]
    count = CHANNELS * 128 + 3 * 128 + left**2 * 128 * 768 + 3 * 768 + 768 * 4 + 4
    assert sum(layer.count_params() for layer in auxiliary) == count
    kernels = {(part, layer.name): layer.kernel.value for part, some in parts.items()
               for layer in some if hasattr(layer, "kernel")}  # fmt: skip
    with tf.GradientTape() as tape:
        tape.watch([*kernels.values()])
        loss = tf.reduce_sum(network(tf.ones([2, SIZE, SIZE, 3]))[1])
    gradients = tape.gradient(loss, [*kernels.values()])
    reached = {part for (part, name), g in zip(kernels, gradients, strict=True)
               if g is not None}  # fmt: skip
    assert reached == {"stem", "mixed0", "mixed7", "head"}


def layers_of(body: keras.Model, kind: type) -> list[Any]:
    return [layer for layer in body.layers if isinstance(layer, kind)]


def test_heads_first_then_the_upper_parts_and_statistics_stay(records, tmp_path):
    kernels: list[list[np.ndarray]] = []
    bodies: list[keras.Model] = []
    deal = training.TrainingRun.deal

    def body(*args: Any) -> keras.Model:
        bodies.append(tiny(*args))
        return bodies[-1]

    def note(self: Any, *batch: Any) -> Any:
        kernels.append([c.get_weights()[0] for c in layers_of(bodies[0], layers.Conv2D)])
        return deal(self, *batch)

    with mock.patch.object(training.TrainingRun, "deal", note):
        lesson = train(records, tmp_path, "--train-from", "mixed9", "--epochs", "3", body=body)
    start = [c.get_weights()[0] for c in layers_of(tiny(found_weights("x", False)), layers.Conv2D)]
    after_heads = kernels[HEADS]  # before the step of this number
    end = [c.get_weights()[0] for c in layers_of(bodies[0], layers.Conv2D)]
    assert len(start) == 2 + len(FULL)
    changed = [not np.array_equal(*pair) for pair in zip(start, end, strict=True)]
    assert changed == [False] * 5 + [True] * 2
    assert all(np.array_equal(*pair) for pair in zip(start, after_heads, strict=True))
    assert len(lesson.variables["outputs"]) == 1, "nothing below the auxiliary head is trained"
    for norm in layers_of(bodies[0], layers.BatchNormalization):
        assert not np.any(norm.moving_mean.numpy())
        assert (norm.moving_variance.numpy() == 1).all()
    assert lesson.metrics["steps"] == 9


def blind(*args: Any) -> keras.Model:
    """The same network, whose first filters see the sum of the colours only."""
    body = tiny(*args)
    kernel = layers_of(body, layers.Conv2D)[0].kernel
    kernel.assign(np.repeat(kernel.numpy().mean(axis=2, keepdims=True), 3, axis=2))
    return body


def coloured(number: int) -> Image.Image:
    """Plain pictures of four colours of the same sum."""
    colours = [(160, 80, 60), (60, 160, 80), (80, 60, 160), (100, 100, 100)]
    return Image.new("RGB", (40, 30), tuple(c + number // 4 for c in colours[number % 4]))


def test_fine_tuning_beats_a_frozen_body_that_misses_the_point(tmp_path):
    folder = write_records(tmp_path / "records", coloured)
    more = ("--epochs", "30", "--optimizer", "adam", "--learning-rate", "0.01")
    frozen = train(folder, tmp_path / "frozen", *more, "--train-from", "head", body=blind)
    tuned = train(folder, tmp_path / "tuned", *more, *STEM, body=blind)
    assert frozen.metrics["validation_accuracy"] <= 0.5
    assert tuned.metrics["validation_accuracy"] >= 0.75


def test_a_head_from_pool3_is_taken_class_by_class(whole, records, tmp_path, capsys):
    start = found_weights("x", False)
    head = keras.Sequential([keras.Input((CHANNELS,)), layers.Dense(5, "relu"), layers.Dense(4)])
    other = [CLASSES[i] for i in (2, 0, 3, 1)]
    about = {"classes": other, "size": SIZE, "weights": "none"}
    path = tmp_path / "pool3" / "output_model.keras"
    save_classifier(path, whole_model(tiny(start, SIZE), head, SIZE, other), about)
    more = ("--head", path.parent, "--train-from", "head", "--learning-rate", "1e-12")
    lesson = train(records, tmp_path, *more, "--head-epochs", "0", "--epochs", "1")
    kernel = lesson.variables["head"].get_weights()[-2]
    for place, label in enumerate(CLASSES):
        theirs = other.index(label)
        np.testing.assert_allclose(kernel[:, place], head.get_weights()[-2][:, theirs], atol=1e-6)
    save_classifier(path, whole_model(tiny(start, SIZE), head, SIZE, other), about | {
        "classes": ["a", "b", "c", "d"]})  # fmt: skip
    assert "other classes: a, b, c, d" in refused(capsys, records, tmp_path / "r", *more)


def test_a_training_leaves_its_best_model_its_curves_and_no_checkpoint(whole):
    lesson, _ = whole
    folder, history = lesson.folder, lesson.result["history"]
    assert [row["step"] for row in history] == list(range(EVERY, STEPS + 1, EVERY))
    best = min(history, key=lambda row: row["loss"])
    for place in (folder.parent / "best", folder / "model"):
        about = load_classifier(place).about
        assert (about["step"], about["classes"], about["size"]) == (best["step"], [*CLASSES], SIZE)
        assert about["training_photos"] == ["ab"]
    assert lesson.metrics["validation_loss"] == best["loss"]
    assert not [*folder.glob("*.npz")]
    assert lesson.figures == ["curves", "distorted"]
    assert lesson.events("graph").has_graph
    rates = lesson.events("scores").values("learning_rate")
    assert list(rates) == [row["step"] for row in history]
    assert float(rates[HEADS]) == pytest.approx(0.002)
    assert_costs_nothing(folder, foreign_files(SCRIPT))


# ---- bad input -----------------------------------------------------------------------------


def refused(capsys: Any, records: Path, folder: Path, *more: str | Path) -> str:
    """The sentence that a run ends with instead of a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(records, folder, *more)
    code, printed = stopped.value.code, capsys.readouterr()
    assert code not in (0, None)
    return " ".join((code if isinstance(code, str) else printed.err).split())


def test_settings_that_can_not_be(records, tmp_path, capsys):
    assert "dataset.json is missing" in refused(capsys, tmp_path / "nowhere", tmp_path)
    write_dataset(tmp_path / "numbers", {"train": [1]}, lambda i: make_example(number=i))
    assert "has no 'classes': write photos" in refused(capsys, tmp_path / "numbers", tmp_path)
    assert "less than 75" in refused(capsys, records, tmp_path, "--image-size", "74")
    assert "x.keras is no model" in refused(
        capsys, records, tmp_path, "--head", tmp_path / "x.keras"
    )
    grown = ("--optimizer", "momentum", "--learning-rate", "1e30", *STEM, "--head-epochs", "0")
    assert "Try a smaller --learning-rate" in refused(capsys, records, tmp_path / "g", *grown)
    assert not any((tmp_path / "g" / "best").iterdir())
