"""Chapter inception_v3/slim_train, its training and its test: preprocessing, auxiliary head,
losses, rates, averages, exact resuming, several devices, bad input, and the three scripts in a
row. Most runs train a tiny network with InceptionV3's blocks in place of InceptionV3."""

import colorsys
import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, Events, load_script
from keras import layers
from PIL import Image

from data import photos
from models.inception_v3 import Weights
from utils import training as training_module
from utils.tfrecord import write_dataset

FOLDER = "inception_v3/slim_train"
SCRIPT = f"{FOLDER}/02_train_image_classifier.py"
SIZE = 75
CLASSES = ("circles", "crosses", "red stripes", "三角形")
TRAIN, VALIDATION, TEST = 24, 8, 6  # photos
FLAGS = ("--weights", "none", "--image-size", SIZE, "--batch-size", 4, "--epochs", 2)
TIMES = ("seconds", "images_per_second", "share_of_time_waiting")  # differ from run to run
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # where no font has Chinese


def tiny(weights: Weights, size: int = 299) -> keras.Model:
    """A network with the blocks of InceptionV3, trained in an instant."""
    if weights.path is None:
        keras.utils.set_random_seed(weights.seed)
    images = keras.Input((size, size, 3))
    x = images
    for _ in range(2):
        x = layers.Conv2D(4, 3, 2, use_bias=False)(x)
        x = layers.BatchNormalization(scale=False)(x)
        x = layers.MaxPooling2D(3, 2)(layers.ReLU()(x))
    for i in range(11):
        y = layers.Conv2D(4, 1, use_bias=False)(x)
        y = layers.BatchNormalization(scale=False)(y)
        x = layers.Add(name=f"mixed{i}")([x, layers.ReLU()(y)])
    return keras.Model(images, layers.GlobalAveragePooling2D(name="avg_pool")(x))


def load(script: str = SCRIPT, small: bool = True) -> ModuleType:
    """The script as a module; if ``small``, with the tiny network."""
    if (chapter := str(ROOT / FOLDER)) not in sys.path:
        sys.path.insert(0, chapter)  # where Python itself looks, when it runs the script
    module = load_script(script)
    if small:
        module.network.backbone = tiny
        module.find_weights = lambda choice, **_: (
            Weights(None, "none", False, "none")
            if choice == "none"
            else Weights(Path(choice), "tiny", False, f"{choice}, not published by Keras")
        )
    return module


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path, module = list(sys.path), load()
    real = sys.modules["models.inception_v3"].backbone
    yield module
    module.network.backbone = real
    sys.path[:] = path


@pytest.fixture(scope="module")
def preprocessing(script: ModuleType) -> ModuleType:
    return script.preprocessing


def record(number: int) -> dict[str, Any]:
    label = number % 4
    image = photos.draw_stand_in(photos.STAND_IN_CLASSES[label], number).resize((120, 90))
    file = Path(os.environ["SLIM_TEST_PHOTOS"]) / f"{number}.jpg"
    image.save(file)
    return {"image/encoded": file.read_bytes(), "image/class/label": label}


def write_records(folder: Path, **changes: Any) -> None:
    bounds = np.cumsum([0, TRAIN, VALIDATION, TEST])
    names = ("image_train", "image_validation", "image_test")
    splits = {n: range(*bounds[i : i + 2]) for i, n in enumerate(names)}
    about = {"kind": "photos", "classes": CLASSES, "source": "a test", "stand_in": True}
    write_dataset(folder, splits, record, about=about | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_TEST_PHOTOS", str(tmp_path_factory.mktemp("files")))
        write_records(folder)
    return folder


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Pixels with edges and colours, uint8 [90, 120, 3]."""
    return np.asarray(photos.draw_stand_in("crosses", 3).resize((120, 90)))


# ---- preprocessing -------------------------------------------------------------------------


def crops(count: int, height: int, width: int, least: float) -> np.ndarray:
    """How TensorFlow's kernel draws a crop, in NumPy: [count, 2] of heights and widths."""
    dice = np.random.default_rng(1)
    found = []
    while len(found) < count:
        aspect = dice.uniform(0.75, 1.33)
        low = round(math.sqrt(least * height * width / aspect))
        high = round(math.sqrt(height * width / aspect))
        if round(high * aspect) > width:
            high = int((width + 0.5 - 1e-7) / aspect)
        high = min(high, height)
        h = int(dice.integers(min(low, high), high + 1))
        w = round(h * aspect)
        if least * height * width <= h * w <= height * width and 0 < w <= width:
            found.append((h, w))
    return np.array(found)


def test_crops_flips_and_shifts_have_the_wanted_distribution(preprocessing):
    height, width, count = 333, 500, 3000
    shape = tf.constant([height, width, 3])

    @tf.function
    def draw_all(seeds: tf.Tensor) -> Any:
        kinds = [*[tf.int32] * 4, tf.bool, tf.int32, *[tf.float32] * 4]
        spec = preprocessing.Distortion(*(tf.TensorSpec([], kind) for kind in kinds))
        draw = lambda s: preprocessing.draw_distortion(s, shape)  # noqa: E731
        return tf.map_fn(draw, seeds, fn_output_signature=spec)

    seeds = tf.stack([tf.ones(count, tf.int64), tf.range(count, dtype=tf.int64)], axis=1)
    drawn = preprocessing.Distortion(*(value.numpy() for value in draw_all(seeds)))
    areas = drawn.height * drawn.width / (height * width)
    assert 0.05 <= areas.min() < 0.052, "slim's op would not go below 0.1"
    assert areas.max() > 0.87, "at 4:3 no crop of a 3:2 photo is larger"
    aspects = drawn.width / drawn.height
    assert aspects.min() > 0.745
    assert aspects.max() < 1.34
    wanted = crops(count, height, width, 0.05)
    for mine, theirs in ((drawn.height, wanted[:, 0]), (drawn.width, wanted[:, 1])):
        quantiles = np.linspace(0.02, 0.98, 25)
        np.testing.assert_allclose(
            np.quantile(mine, quantiles), np.quantile(theirs, quantiles), atol=0.04 * width
        )
    assert (drawn.top + drawn.height <= height).all()
    assert (drawn.left + drawn.width <= width).all()
    free = drawn.top / np.maximum(height - drawn.height, 1)
    assert free.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.flip.mean() == pytest.approx(0.5, abs=0.04)
    assert np.bincount(drawn.order).min() > count / 4 * 0.85
    for values, low, high in (
        (drawn.brightness, -32 / 255, 32 / 255),
        (drawn.saturation, 0.5, 1.5),
        (drawn.hue, -0.2, 0.2),
        (drawn.contrast, 0.5, 1.5),
    ):
        assert low <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03)
    shifts = np.stack([drawn.brightness, drawn.saturation, drawn.hue, drawn.contrast, drawn.flip])
    assert np.abs(np.corrcoef(shifts) - np.eye(5)).max() < 0.08


def test_the_least_area_can_be_raised(preprocessing):
    shape = tf.constant([90, 120, 3])
    for number in range(20):
        how = preprocessing.draw_distortion(tf.constant([1, number], tf.int64), shape, 0.6)
        assert int(how.height) * int(how.width) >= 0.6 * 90 * 120


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """float32 [size, size, 3], by Pillow, each channel as floating point numbers."""
    channels = [
        Image.fromarray(pixels[..., c].astype(np.float32)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def shifted(image: np.ndarray, name: str, value: float) -> np.ndarray:
    """A colour shift of an image, float [h, w, 3] of 0 to 1, in NumPy and colorsys."""
    if name == "brightness":
        return image + value
    if name == "contrast":
        mean = image.mean(axis=(0, 1))
        return (image - mean) * value + mean
    out = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*image[place])
        if name == "hue":
            h = (h + value) % 1
        else:
            s = min(max(s * value, 0), 1)
        out[place] = colorsys.hsv_to_rgb(h, s, v)
    return out


@pytest.mark.parametrize("order", range(4))
def test_a_distortion_is_what_numpy_and_pillow_make_of_it(preprocessing, photo, order):
    how = preprocessing.Distortion(7, 20, 60, 70, order % 2 == 0, order, 0.05, 0.8, 0.1, 1.2)
    mild = photo // 2 + 50  # so that no order leaves 0 to 1 before its end
    image = resized(mild[7:67, 20:90], 24) / 255
    image = image[:, ::-1] if how.flip else image
    for name in preprocessing.ORDERS[order]:
        image = shifted(image, name, getattr(how, name))
    image = np.clip(image, 0, 1) * 2 - 1
    tensors = [tf.constant(value) for value in how]
    out = preprocessing.distort(tf.constant(mild), preprocessing.Distortion(*tensors), 24)
    assert out.dtype == tf.float32
    np.testing.assert_allclose(out, image, atol=4e-3)


def test_colours_can_be_left_alone(preprocessing, photo):
    values = (0, 0, 90, 120, False, 2, 0.1, 1.4, 0.2, 0.6)
    how = preprocessing.Distortion(*(tf.constant(value) for value in values))
    plain = resized(photo, 30) / 127.5 - 1
    out = preprocessing.distort(photo, how, 30, "none")
    np.testing.assert_allclose(out, plain, atol=4e-3)
    fast = preprocessing.distort(photo, how, 30, "fast")
    image = shifted(shifted((plain + 1) / 2, "brightness", 0.1), "saturation", 1.4)
    assert np.abs(fast - (np.clip(image, 0, 1) * 2 - 1)).mean() < 0.01
    assert np.abs(fast - preprocessing.distort(photo, how, 30, "full")).mean() > 0.05


def test_evaluation_sees_the_central_part(preprocessing, photo):
    for size in (75, 139, 299):
        whole = preprocessing.enlarged(size)
        assert size / whole == pytest.approx(0.875, abs=0.004)
        view = preprocessing.evaluation_image(tf.constant(photo), size).numpy()
        assert view.shape == (size, size, 3)
        margin = (whole - size) // 2
        middle = resized(photo, whole)[margin : margin + size, margin : margin + size]
        np.testing.assert_allclose(view, middle / 127.5 - 1, atol=4e-3)
        x = preprocessing.evaluation_view(tf.constant(photo[np.newaxis]), size)
        np.testing.assert_allclose(x[0], view, atol=1e-5, err_msg="the saved model's")
    ramp = np.tile(np.linspace(0, 255, 800)[:, np.newaxis, np.newaxis], (1, 400, 3))
    view = (preprocessing.evaluation_image(ramp.astype(np.uint8), 299).numpy() + 1) / 2
    assert view.min() == pytest.approx(1 / 16, abs=0.005)
    assert view.max() == pytest.approx(15 / 16, abs=0.005)
    slims = tf.image.central_crop(tf.constant(ramp), 0.875)
    slims = tf.image.resize(slims, [299, 299], antialias=True).numpy() / 255
    assert np.abs(slims - view).max() < 0.01, "slim's order of the two"


def test_a_plain_call_of_the_saved_model_is_no_training(script, photo, tmp_path):
    start = Weights(None, "none", False, "none")
    net = script.network.build(start, 3, 75, dropout=0.9)
    net.inference.get_layer("logits").kernel.assign(np.linspace(-0.05, 0.05, 12).reshape(4, 3))
    made = script.classifier.make_model(net.inference, 75)
    made.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    pixels = photo[np.newaxis]
    wanted = made(pixels, training=False).numpy()
    assert np.ptp(wanted) > 0.01
    for _ in range(3):
        np.testing.assert_allclose(model(pixels), wanted, atol=1e-6)
    assert np.abs(made(pixels, training=True) - wanted).max() > 1e-4, "there is dropout in it"


def test_a_photo_is_distorted_by_its_number_in_the_training(preprocessing, photo):
    other = np.asarray(photos.draw_stand_in("circles", 1).resize((100, 100)))
    files = tf.stack([tf.io.encode_png(photo), tf.io.encode_png(other), tf.io.encode_png(photo)])
    batch = preprocessing.training_images(files, tf.constant(7), 5, 24)
    assert batch.shape == (3, 24, 24, 3)
    for i, pixels in enumerate((photo, other, photo)):
        seed = tf.constant([5, 7 * 3 + i], tf.int64)
        how = preprocessing.draw_distortion(seed, tf.shape(pixels))
        np.testing.assert_allclose(batch[i], preprocessing.distort(pixels, how, 24), atol=1e-5)
    assert not np.allclose(batch[0], batch[2])
    again = tf.function(preprocessing.training_images)(files, tf.constant(7), 5, 24)
    np.testing.assert_allclose(again, batch, atol=1e-5)
    for number, seed in ((8, 5), (7, 6)):
        assert not np.allclose(preprocessing.training_images(files, number, seed, 24), batch)
    assert float(tf.reduce_min(batch)) >= -1
    assert float(tf.reduce_max(batch)) <= 1


# ---- losses, optimizers, rates, averages ---------------------------------------------------


def test_cross_entropy_with_smoothed_labels_by_its_formula(script):
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(6, 7)).astype(np.float32) * 3
    labels = generator.integers(7, size=6)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    for smoothing in (0.0, 0.1, 0.3):
        q = np.full((6, 7), smoothing / 7)
        q[np.arange(6), labels] += 1 - smoothing
        wanted = -(q * np.log(p)).sum(axis=1)
        found = script.cross_entropy(tf.constant(logits), tf.constant(labels), smoothing)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        library = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=smoothing, reduction=None
        )
        np.testing.assert_allclose(found, library(np.eye(7)[labels], logits), rtol=1e-5)


def test_weight_decay_is_of_the_kernels_and_pulls_them_to_zero(script):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
    kernel = model.layers[0].kernel
    variables = model.trainable_variables
    assert len(variables) == 4
    with tf.GradientTape() as tape:
        loss = script.weight_decay_loss(variables, 0.02)
    assert float(loss) == pytest.approx(0.01 * float(np.square(kernel).sum()), rel=1e-5)
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    np.testing.assert_allclose(gradients[0], 0.02 * kernel.numpy(), rtol=1e-5)
    assert gradients[1:] == [None] * 3


def test_learning_rates_by_their_formulas_and_by_keras(script):
    rate = script.learning_rate
    library = keras.optimizers.schedules
    falls = library.ExponentialDecay(0.01, 20, 0.94, staircase=True)
    line = library.PolynomialDecay(0.01, 100, 0.001)
    cosine = library.CosineDecay(0.01, 100, alpha=0.1)
    for step in (0, 1, 19, 20, 33, 50, 99, 100, 250):
        assert rate("fixed", step, 0.01) == 0.01
        found = rate("exponential", step, 0.01, decay_steps=20)
        assert found == pytest.approx(0.01 * 0.94 ** (step // 20))
        assert found == pytest.approx(float(falls(step)), rel=1e-5)
        found = rate("polynomial", step, 0.01, 0.001, 100)
        assert found == pytest.approx(float(line(step)), rel=1e-5)
        found = rate("cosine", step, 0.01, 0.001, 100)
        assert found == pytest.approx(float(cosine(step)), rel=1e-4)
    assert rate("polynomial", 50, 0.01, 0.001, 100) == pytest.approx(0.0055)
    assert rate("cosine", 50, 0.01, 0.0, 100) == pytest.approx(0.005)
    assert rate("cosine", 100, 0.01, 0.0, 100) == pytest.approx(0, abs=1e-12)


def test_two_steps_of_rmsprop_by_the_formula(script):
    optimizer = script.make_optimizer(script.flags().parse_args(["--optimizer", "rmsprop"]))
    variable = keras.Variable([1.0, -2.0, 3.0])
    optimizer.build([variable])
    optimizer.learning_rate = 0.1
    w, v, m = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for g in (np.array([0.5, -4.0, 0.0]), np.array([1.0, 2.0, -3.0])):
        optimizer.apply_gradients([(tf.constant(g, tf.float32), variable)])
        v = 0.9 * v + 0.1 * g**2
        m = 0.9 * m + 0.1 * g / np.sqrt(v + 1.0)
        w = w - m
        np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5)


def test_every_optimizer_goes_downhill_and_takes_its_flags(script):
    for name in script.RATES:
        args = script.flags().parse_args(["--optimizer", name])
        optimizer, variable = script.make_optimizer(args), keras.Variable([2.0])
        optimizer.build([variable])
        for _ in range(3):
            optimizer.apply_gradients([(2 * variable.value, variable)])
        assert 0 < float(variable.numpy()[0]) < 2, name
    named = (
        ("rmsprop", "--rmsprop_decay", "rho"),
        ("rmsprop", "--rmsprop-momentum", "momentum"),
        ("rmsprop", "--opt_epsilon", "epsilon"),
        ("momentum", "--momentum", "momentum"),
        ("adam", "--adam-beta1", "beta_1"),
        ("adam", "--adam_beta2", "beta_2"),
        ("adam", "--opt-epsilon", "epsilon"),
        ("adadelta", "--adadelta_rho", "rho"),
        ("adagrad", "--adagrad_initial_accumulator_value", "initial_accumulator_value"),
        ("ftrl", "--ftrl_l1", "l1_regularization_strength"),
    )
    for name, flag, attribute in named:
        args = script.flags().parse_args(["--optimizer", name, flag, "0.625"])
        assert getattr(script.make_optimizer(args), attribute) == 0.625
    args = script.flags().parse_args(["--optimizer", "sgd"])
    assert script.make_optimizer(args).momentum == 0


def test_the_moving_average_by_its_formula(script):
    variable = keras.Variable([1.0, 2.0])
    averages = script.Averages([variable], 0.3)
    wanted, update = np.array([1.0, 2.0]), tf.function(averages.update)
    for step in range(8):
        variable.assign(np.array([step, -step], np.float32))
        update(tf.constant(step, tf.int64))
        decay = min(0.3, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * variable.numpy()
        np.testing.assert_allclose(averages.shadows[0], wanted, rtol=1e-5)
    with averages.in_use():
        np.testing.assert_allclose(variable.numpy(), wanted, rtol=1e-5)
    assert variable.numpy().tolist() == [7, -7]
    assert script.Averages([variable], 0.0).shadows == []


def test_scores_by_hand(script):
    logits = np.array([[3, 1, 0], [0, 2, 1], [0, 1, 2], [1, 1, 1], [np.nan] * 3], np.float32)
    labels = np.array([0, 1, 1, 1, 0])
    batches = tf.data.Dataset.from_tensor_slices((logits, labels)).batch(2)
    scores = script.evaluate(lambda images: images, batches)
    assert scores["accuracy"] == pytest.approx(2 / 5), "a tie goes to the first; NaN is no answer"
    assert "top_5_accuracy" not in scores
    logits = np.tile(np.arange(8, dtype=np.float32), (4, 1))
    batches = tf.data.Dataset.from_tensor_slices((logits, np.array([7, 3, 2, 0]))).batch(4)
    scores = script.evaluate(lambda images: images, batches)
    assert scores["accuracy"] == 0.25
    assert scores["top_5_accuracy"] == 0.5
    p = np.exp(np.arange(8)) / np.exp(np.arange(8)).sum()
    assert scores["loss"] == pytest.approx(-np.log(p[[7, 3, 2, 0]]).mean(), rel=1e-5)


# ---- the network ---------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "pool", "left"), [(17, 5, 5), (7, 5, 1), (3, 3, 1), (12, 5, 3)])
def test_the_auxiliary_head_has_slims_shapes(script, side, pool, left):
    maps = keras.Input((side, side, 768))
    logits, parts = script.network.auxiliary_head(maps, 5)
    assert logits.shape == (None, 5)
    assert parts[0].pool_size == (pool, pool)
    assert parts[0].output.shape == (None, (side - pool) // 3 + 1, (side - pool) // 3 + 1, 768)
    shapes = {part.name: part.kernel.shape for part in parts if hasattr(part, "kernel")}
    assert shapes == {
        "aux_conv1": (1, 1, 768, 128),
        "aux_conv2": (left, left, 128, 768),
        "aux_logits": (768, 5),
    }
    counts = 768 * 128 + 3 * 128 + left**2 * 128 * 768 + 3 * 768 + 768 * 5 + 5
    assert sum(part.count_params() for part in parts) == counts


@pytest.fixture(scope="module")
def inception(script: ModuleType) -> Any:
    """InceptionV3 itself, untrained, for images of 75 pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.network, "backbone", sys.modules["models.inception_v3"].backbone)
        return script.network.build(Weights(None, "none", False, "none"), 4, SIZE, decay=0.9)


def test_the_auxiliary_loss_reaches_the_lower_blocks_and_no_others(inception):
    images = tf.random.stateless_normal([2, SIZE, SIZE, 3], [1, 2])
    variables = {
        (name, variable.path): variable.value
        for name, some in inception.scopes.items()
        for layer in some
        for variable in layer.trainable_variables
    }
    with tf.GradientTape() as tape:
        logits, auxiliary = inception.whole(images, training=True)
        loss = tf.reduce_sum(tf.square(auxiliary - 1))
    gradients = dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))
    assert logits.shape == auxiliary.shape == (2, 4)
    reached = {"stem", *(f"mixed{i}" for i in range(8)), "aux_logits"}
    for (name, path), gradient in gradients.items():
        assert (gradient is not None) == (name in reached), path
        if gradient is not None and path.endswith("kernel"):
            assert np.any(gradient), path
    assert {name for name, _ in gradients} == {*reached, "mixed8", "mixed9", "mixed10", "logits"}
    assert inception.inference.count_params() == 21_802_784 + 2049 * 4


def test_a_few_photos_are_learned_by_heart_from_scratch(script, inception, data):
    args = script.flags().parse_args(["--optimizer", "adam"])
    variables = script.network.train_only(inception, script.network.SCOPES, True)
    optimizer = script.make_optimizer(args)
    optimizer.build(variables)
    averages = script.Averages(variables, 0.0)
    alone = tf.distribute.get_strategy()
    step = script.make_step(inception, optimizer, alone, variables, averages, 8, args)
    files, labels = next(iter(script.Records(data).batches("train", 8)))
    images = script.preprocessing.evaluation_images(files, SIZE)
    values = []
    for number in range(40):
        some = step(images, labels, tf.constant(number, tf.int64))
        values.append({name: float(value) for name, value in some.items()})
        first, last = values[0], values[-1]
        fallen = all(last[name] < 0.6 * first[name] for name in ("main", "auxiliary"))
        if last["accuracy"] == 1 and fallen:
            break
    assert last["accuracy"] == 1
    for name in ("main", "auxiliary"):
        assert first[name] == pytest.approx(math.log(4), abs=0.5), "at chance"
        assert last[name] < 0.6 * first[name], values
    kernels = [v for v in variables if v.path.endswith("kernel")]
    wanted = 0.00002 * sum(float(np.square(v.numpy()).sum()) for v in kernels)
    assert last["regularisation"] == pytest.approx(wanted, rel=0.02)


def state_of(net: Any) -> dict[str, np.ndarray]:
    return {f"{i} {v.path}": v.numpy() for i, v in enumerate(net.whole.variables)}


def norms(net: Any) -> dict[str, np.ndarray]:
    return {name: value for name, value in state_of(net).items() if "moving_" in name}


def test_only_the_named_scopes_are_trained(script, data, tmp_path):
    named = "mixed8,mixed9,mixed10,logits"
    flags = (*FLAGS, "--records", data, "--model", tmp_path / "best", "--epochs", 1)
    before = state_of(script.network.build(Weights(None, "", False, ""), 4, SIZE, auxiliary=False))
    training = train(script, tmp_path / "run", *flags, "--trainable-scopes", named)
    after = state_of(training.net)
    assert len(after) == len(before)
    trained = {
        id(variable)
        for scope in named.split(",")
        for layer in training.net.scopes[scope]
        for variable in layer.variables
    }
    changed = 0
    for (name, new), old, variable in zip(
        after.items(), before.values(), training.net.whole.variables, strict=True
    ):
        if "seed" in name:
            continue
        assert np.array_equal(new, old) == (id(variable) not in trained), name
        changed += id(variable) in trained
    assert changed == 3 * 4 + 2, "kernel, beta, mean and variance of three blocks; the logits"


# ---- a training, called in this process ----------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is written any more."""


def train(
    script: ModuleType,
    folder: Path,
    *flags: Any,
    before_step: Callable[[int], None] = lambda done: None,
) -> Any:
    """Call ``main()`` with ``--run-dir folder`` and return its Training; ``before_step`` is
    called with the number of steps done."""
    made = []

    class Training(script.Training):
        def __init__(self, *args: Any) -> None:
            made.append(self)
            super().__init__(*args)

    class Feed(script.Feed):
        def next(self) -> tuple[tf.Tensor, tf.Tensor]:
            before_step(made[0].resumable.step)
            return super().next()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__file__, "--run-dir", str(folder), *map(str, flags)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        patch.setattr(script, "Training", Training)
        patch.setattr(script, "Feed", Feed)
        try:
            script.main()
        finally:
            script.plt.close("all")
    return made[0]


def kill_at(step: int) -> Callable[[int], None]:
    """Kills this process, as kill -9 does, when so many steps are done."""

    def kill(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no -9

    return kill


def in_a_process(call: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
    """Start Python on a function of this file, with texts as its arguments."""
    program = f"import sys, test_slim_train as t; t.{call}(*sys.argv[1:])"
    known = {"PYTHONPATH": str(Path(__file__).parent), "PYTHONUTF8": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | known | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def state(training: Any) -> dict[str, np.ndarray]:
    """All that changed: weights, moving averages, dropout's seed, the optimizer's, the averages."""
    variables = [*training.net.whole.variables, *training.optimizer.variables]
    found = {f"{i} {v.path}": v.numpy() for i, v in enumerate(variables)}
    shadows = {f"shadow {i}": v.numpy() for i, v in enumerate(training.averages.shadows)}
    return found | shadows


def without_times(history: list[dict[str, Any]], *more: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in (*TIMES, *more)} for row in history]


def assert_equal_states(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert len(one) == len(other)
    for (name, mine), theirs in zip(one.items(), other.values(), strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_the_batches_follow_from_seed_and_step(script, data):
    def batches(seed: int, first: int = 0, worker: int = 0, workers: int = 1) -> list[list[Any]]:
        place = object.__new__(script.Place)
        place.worker, place.workers, place.replicas = worker, workers, workers
        some = script.training_batches(
            script.Records(data), 8, seed, place, lambda files, n: (files, n), first
        )
        steps = some.take(9 - first).as_numpy_iterator()  # three epochs
        return [[[*files], int(number), [*labels]] for (files, number), labels in steps]

    whole = batches(1)
    seen = [file for files, *_ in whole for file in files]
    epochs = [seen[k : k + TRAIN] for k in range(0, 3 * TRAIN, TRAIN)]
    assert len({*epochs[0]}) == TRAIN
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3, "each in an order of its own"
    assert [number for _, number, _ in whole] == [*range(9)]
    for first in (1, 3, 8):
        assert batches(1, first) == whole[first:]
    assert batches(2)[0] != whole[0]
    one, other = (batches(1, 2, worker, 2) for worker in (0, 1))
    for wanted, mine, theirs in zip(whole[2:], one, other, strict=True):
        assert [mine[0] + theirs[0], mine[2] + theirs[2]] == [wanted[0], wanted[2]]
    assert [number for _, number, _ in one] == [*range(4, 18, 2)]
    assert [number for _, number, _ in other] == [*range(5, 18, 2)]


TUNING = (*FLAGS, "--head-epochs", 1, "--validate-every", 4)  # of 12 steps 6 are of the heads


@pytest.fixture(scope="module")
def whole(script, data, tmp_path_factory) -> tuple[Any, Path]:
    """A fine-tuning that nobody stopped, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    flags = (*TUNING, "--weights", "tiny", "--records", data, "--model", folder / "best")
    return train(script, folder / "run", *flags), folder


def test_a_training_leaves_its_result_and_its_best_model(script, whole):
    folder = whole[1]
    result = result_of(folder / "run")
    assert [(row["step"], row["stage"]) for row in result["history"]] == [
        (4, "heads"),
        (8, "all"),
        (12, "all"),
    ]
    assert (result["steps"], result["images_seen"]) == (12, 48)
    assert result["weights"] == "tiny, not published by Keras"
    assert result["data"]["stand_in"] is True
    assert not (folder / "run" / "backup").exists()
    best = max(result["history"], key=lambda row: (row["accuracy"], -row["loss"]))
    for place in (folder / "best", folder / "run" / "model"):
        about = script.classifier.load_classifier(place).about
        assert about["classes"] == [*CLASSES]
        assert about["step"] == best["step"]
        assert about["validation"] == {n: best[n] for n in ("loss", "accuracy")}
        labels = (place / "labels.txt").read_text(encoding="utf-8")
        assert labels.splitlines() == [*CLASSES]
    assert result["metrics"]["validation_accuracy"] == best["accuracy"], "from the saved model"
    assert result["metrics"]["validation_loss"] == pytest.approx(best["loss"], rel=1e-3)


def test_tensorboard_gets_losses_rates_images_and_the_graph(whole):
    folder = whole[1] / "run"
    train_events, validation = Events(folder / "train"), Events(folder / "validation")
    wanted = {"loss/main", "loss/auxiliary", "loss/regularisation", "learning_rate", "accuracy"}
    wanted |= {"images_per_second", "share_of_time_waiting"}
    assert wanted <= train_events.tags("scalars")
    assert "augmented" in train_events.tags("images")
    assert {"loss", "accuracy"} <= validation.tags("scalars")
    assert list(validation.values("accuracy")) == [4, 8, 12]
    rates = {step: float(rate) for step, rate in train_events.values("learning_rate").items()}
    assert list(rates) == [10]  # every tenth step; the fourth of six after the heads' six
    angle = math.pi * (9 - 6) / 6
    start = whole[0].rate(6)
    assert (whole[0].rate(5), start) == (0.002, 0.003), "of the heads, of everything"
    assert rates[10] == pytest.approx(start * (1 + math.cos(angle)) / 2, rel=1e-4)
    assert Events(folder / "graph").has_graph


def test_fine_tuning_keeps_the_means_and_variances_that_came_with_the_weights(script, whole):
    training = whole[0]
    own = [
        layer
        for scope in training.net.loaded
        for layer in training.net.scopes[scope]
        if isinstance(layer, layers.BatchNormalization)
    ]
    assert len(own) == 13
    for layer in own:
        assert not np.any(layer.moving_mean.numpy())
        assert (layer.moving_variance.numpy() == 1).all()
        assert not np.any(layer.beta.numpy())
    aux = [
        layer
        for layer in training.net.scopes["aux_logits"]
        if isinstance(layer, layers.BatchNormalization)
    ]
    assert all(np.any(layer.moving_mean.numpy()) for layer in aux), "new ones learn theirs"


def test_heads_first_then_everything_and_blocks_can_begin_anew(script, data, tmp_path):
    flags = (*TUNING, "--weights", "tiny", "--records", data, "--model", tmp_path / "best")
    flags = (*flags, "--exclude-scopes", "mixed9,mixed10")
    kernels: dict[int, list[np.ndarray]] = {}

    def note(done: int) -> None:
        if made:
            kernels[done] = [layer.get_weights()[0] for layer in convolutions(made[0].net)]

    def convolutions(net: Any) -> list[Any]:
        some = (layer for name in net.loaded for layer in net.scopes[name])
        return [layer for layer in some if isinstance(layer, layers.Conv2D)]

    made: list[Any] = []
    begin = script.Training.__init__

    def remember(self: Any, *args: Any) -> None:
        begin(self, *args)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.Training, "__init__", remember)
        training = train(script, tmp_path / "run", *flags, before_step=note)
    assert "mixed9" not in training.net.loaded
    for first, sixth, last in zip(kernels[0], kernels[6], kernels[11], strict=True):
        np.testing.assert_array_equal(first, sixth, err_msg="the heads alone were trained")
        assert not np.array_equal(sixth, last)
    for layer in training.net.scopes["mixed9"]:
        if isinstance(layer, layers.BatchNormalization):
            assert np.any(layer.moving_mean.numpy()), "begun anew, so it learns its own"


def train_and_kill(records: str, folder: str, step: str) -> None:
    flags = (*TUNING, "--weights", "tiny", "--records", records, "--model", Path(folder, "best"))
    train(load(), Path(folder, "run"), *flags, before_step=kill_at(int(step)))


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(script, whole, data, tmp_path):
    process = in_a_process("train_and_kill", data, tmp_path, 10)  # a checkpoint every 4 steps
    _, errors = process.communicate(timeout=300)
    assert process.returncode not in (0, 1), errors[-3000:]
    folder = tmp_path / "run"
    assert not (folder / "result.json").exists()
    flags = (*TUNING, "--weights", "tiny", "--records", data, "--model", tmp_path / "best")
    seen = []
    resumed = train(script, folder, *flags, "--resume", before_step=seen.append)
    assert seen == [8, 9, 10, 11]
    assert_equal_states(state(whole[0]), state(resumed))
    assert without_times(resumed.history) == without_times(whole[0].history)
    assert result_of(folder)["metrics"] == result_of(whole[1] / "run")["metrics"]
    models = [script.classifier.load_classifier(f / "best").model for f in (tmp_path, whole[1])]
    for mine, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ctrl_c_saves_the_step_at_hand(script, whole, data, tmp_path):
    flags = (*TUNING, "--weights", "tiny", "--records", data, "--model", tmp_path / "best")

    def interrupt(done: int) -> None:
        if done == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(script, tmp_path / "run", *flags, before_step=interrupt)
    seen = []
    resumed = train(script, tmp_path / "run", *flags, "--resume", before_step=seen.append)
    assert seen == [*range(5, 12)], "one more of the heads, then everything"
    assert_equal_states(state(whole[0]), state(resumed))
    rows = [without_times(t.history, "train_loss", "train_accuracy") for t in (resumed, whole[0])]
    assert rows[0] == rows[1]


def test_the_saved_model_takes_photos_of_any_size(script, whole):
    folder = whole[1]
    trained = script.classifier.load_classifier(folder / "run" / "model")
    config = trained.model.to_json()
    assert "Lambda" not in config
    for size in ((40, 300), (500, 333), (75, 75)):
        pixels = np.asarray(photos.draw_stand_in("circles", 5).resize(size))
        probabilities = trained.probabilities(pixels)
        assert probabilities.shape == (4,)
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        view = script.preprocessing.evaluation_image(pixels, SIZE)
        network = next(layer for layer in trained.model.layers if isinstance(layer, keras.Model))
        logits = network(view[np.newaxis], training=False).numpy()
        softmax = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(probabilities, softmax[0], atol=1e-5)


# ---- bad input -----------------------------------------------------------------------------


def refused(script: ModuleType, folder: Path, capsys: Any, *flags: Any) -> str:
    """The sentence that a run ends with instead of a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(script, folder, *flags)
    code, printed = stopped.value.code, capsys.readouterr()
    assert code not in (0, None)
    assert "Traceback" not in printed.err
    return " ".join((code if isinstance(code, str) else printed.err).split())


def test_settings_that_can_not_be(script, data, tmp_path, capsys, monkeypatch):
    def said(*flags: Any, records: Path = data) -> str:
        flags = (*FLAGS, "--records", records, "--model", tmp_path / "best", *flags)
        return refused(script, tmp_path / "run", capsys, *flags)

    message = said(records=tmp_path / "nowhere")
    assert "dataset.json is missing" in message
    assert "01_images_to_tfrecords.py" in message
    assert "there is no scope 'mixed11'" in said("--trainable-scopes", "mixed11")
    assert "there is no scope 'Mixed_7a'" in said("--checkpoint_exclude_scopes", "Mixed_7a")
    assert "nothing that could be trained" in said("--trainable-scopes", ",")
    assert "at least 75×75" in said("--image-size", 74)
    assert "--crop-area 0" in said("--crop-area", 0)
    assert "below 0" in said("--weight-decay", -1)
    monkeypatch.setenv("SLIM_TEST_PHOTOS", str(tmp_path))
    write_records(tmp_path / "others", kind="captcha")
    assert "holds no photos" in said(records=tmp_path / "others")
    about = {"kind": "photos", "classes": CLASSES, "source": "", "stand_in": True}
    write_dataset(tmp_path / "alone", {"image_train": range(8)}, record, about=about)
    message = said(records=tmp_path / "alone")
    assert "no photos for validation" in message
    assert not any((tmp_path / "best").iterdir())


def test_weights_that_grow_without_bounds_are_a_sentence(script, data, tmp_path, capsys):
    flags = (*FLAGS, "--records", data, "--model", tmp_path / "best")
    flags = (*flags, "--optimizer", "sgd", "--learning-rate", 1e30, "--validate-every", 1)
    message = refused(script, tmp_path / "run", capsys, *flags)
    assert "no number any more" in message
    assert "smaller --learning-rate" in message
    assert not any((tmp_path / "best").iterdir())


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: writing fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_costs_no_more_than_the_last_checkpoint(script, data, tmp_path):
    flags = (*TUNING, "--weights", "tiny", "--records", data, "--model", tmp_path / "best")
    save, calls = tf.train.CheckpointManager.save, []

    def save_or_fail(manager: Any, *some: Any, **named: Any) -> Any:
        calls.append(manager)
        if len(calls) < 2:
            return save(manager, *some, **named)
        with small_files(10_000):
            return save(manager, *some, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="backup"):
        patch.setattr(tf.train.CheckpointManager, "save", save_or_fail)
        train(script, tmp_path / "run", *flags)

    def stop(done: int) -> None:
        assert done == 4, "the checkpoint before is whole"
        raise Killed

    with pytest.raises(Killed):
        train(script, tmp_path / "run", *flags, "--resume", before_step=stop)


def test_a_full_disk_while_the_model_is_saved(script, whole, tmp_path):
    def fail(self: keras.Model, path: Path) -> None:
        Path(path).write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    trained = script.classifier.load_classifier(whole[1] / "best")
    script.classifier.save_classifier(tmp_path, trained.model, trained.about)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "save", fail)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            script.classifier.save_classifier(tmp_path, trained.model, trained.about)
    assert script.classifier.load_classifier(tmp_path), "the one of before"
    assert {path.name for path in tmp_path.iterdir()} == {"labels.txt", "model.json", "model.keras"}


def test_a_damaged_model_is_named(script, whole, tmp_path):
    error, load_one = script.classifier.ModelError, script.classifier.load_classifier
    with pytest.raises(error, match="holds no model: train one with python"):
        load_one(tmp_path)
    for file in (whole[1] / "best").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = (tmp_path / "model.keras").read_bytes()
    (tmp_path / "model.keras").write_bytes(content[:-1])
    with pytest.raises(error, match="altered or cut short"):
        load_one(tmp_path)
    (tmp_path / "model.json").write_text("{", encoding="utf-8")
    with pytest.raises(error, match="damaged"):
        load_one(tmp_path)


# ---- several devices and machines ----------------------------------------------------------


def mirrored_and_alone(records: str) -> None:
    """Train three steps on one device and on two of the same machine; print losses and the
    largest difference of weights."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    training_module.STRATEGIES["mirrored"] = lambda: tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"]
    )
    script = load()
    args = script.flags().parse_args(["--optimizer", "sgd"])
    files, labels = next(iter(script.Records(Path(records)).batches("train", 8)))
    images = script.preprocessing.evaluation_images(files, SIZE)
    found = []
    for name in ("none", "mirrored"):
        place = training_module.Place(name)
        keras.utils.set_random_seed(1)
        with place.strategy.scope():
            several = place.replicas > 1
            weights = Weights(None, "none", False, "none")
            net = script.network.build(weights, 4, SIZE, dropout=0.0, synchronized=several)
            variables = script.network.train_only(net, script.network.SCOPES, True)
            optimizer = script.make_optimizer(args)
            optimizer.build(variables)
            averages = script.Averages(variables, 0.5)
        step = script.make_step(net, optimizer, place.strategy, variables, averages, 8, args)
        begin = net.whole.get_weights()
        losses = []
        for i in range(3):
            values = step(*place.deal(images, labels), tf.constant(i, tf.int64))
            losses.append([float(values[k]) for k in sorted(values)])
        shadows = [shadow.numpy() for shadow in averages.shadows]
        found.append((place.replicas, losses, begin, net.whole.get_weights() + shadows))
    (_, _, begin, alone), (_, _, other, mirrored) = found
    moved = alone[: len(begin)]
    pairs = {"begin": (begin, other), "moved": (begin, moved), "apart": (alone, mirrored)}
    distances = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(*pair, strict=True))
        for name, pair in pairs.items()
    }
    replicas, losses, *_ = zip(*found, strict=True)
    print(json.dumps({"replicas": replicas, "losses": losses, **distances}))


def test_two_devices_train_as_one_does(data):
    process = in_a_process("mirrored_and_alone", data)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    found = json.loads(output.splitlines()[-1])
    assert found["replicas"] == [1, 2]
    np.testing.assert_allclose(*found["losses"], rtol=1e-3)
    assert found["begin"] == 0
    assert found["moved"] > 0.01
    assert found["apart"] < 1e-3 * found["moved"]


def train_as_worker(records: str, folder: str) -> None:
    flags = (*FLAGS, "--records", records, "--model", Path(folder, "best"))
    run = Path(folder).parent / "run"  # all workers name the same
    training = train(load(), run, *flags, "--strategy", "multi-worker")
    np.savez(
        Path(folder, "state.npz"), **{k.replace("/", "|"): v for k, v in state(training).items()}
    )
    history = json.dumps(training.history)
    Path(folder, "history.json").write_text(history, encoding="utf-8")


def test_two_workers_end_with_equal_weights(script, data, tmp_path):
    with socket.socket() as one, socket.socket() as other:
        for some in (one, other):
            some.bind(("localhost", 0))
        ports = [some.getsockname()[1] for some in (one, other)]
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    processes, folders = [], [tmp_path / "worker0", tmp_path / "worker1"]
    try:
        for index, folder in enumerate(folders):
            folder.mkdir()
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            environment = {"TF_CONFIG": json.dumps(config)}
            processes.append(in_a_process("train_as_worker", data, folder, **environment))
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    states = []
    for folder in folders:
        with np.load(folder / "state.npz") as arrays:
            # The dropout of each worker has dice of its own.
            states.append({k: arrays[k] for k in arrays.files if "seed_generator" not in k})
    assert_equal_states(*states)
    histories = [json.loads((f / "history.json").read_text(encoding="utf-8")) for f in folders]
    assert without_times(histories[0]) == without_times(histories[1])
    assert [row["images"] for row in histories[0]] == [24, 48], "4 of each worker a step"
    assert script.classifier.load_classifier(folders[0] / "best")
    assert not any((folders[1] / "best").iterdir()), "the chief alone saves"


# ---- the test's script ----------------------------------------------------------------------


def test_what_can_not_be_tested_is_a_sentence(script, whole, data, tmp_path, capsys):
    module = load(f"{FOLDER}/03_eval_image_classifier.py", small=False)
    best = whole[1] / "best"
    write_dataset(
        tmp_path / "others",
        {"image_test": range(4)},
        lambda i: {"image/encoded": b"", "image/class/label": i},
        about={"kind": "photos", "classes": ["a", "b"], "source": "", "stand_in": True},
    )
    for flags, sentence in (
        ((tmp_path / "nothing.jpg", "--model", best), "none of the files named is an image"),
        (("--model", tmp_path), "holds no model: train one with"),
        (("--model", best, "--records", tmp_path), "dataset.json is missing"),
        (("--model", best, "--records", tmp_path / "others"), "the records hold a, b"),
    ):
        arguments = ["03", "--run-dir", tmp_path / "run", *flags]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match=sentence):
            patch.setattr(sys, "argv", list(map(str, arguments)))
            patch.setattr(sys, "excepthook", sys.excepthook)
            module.main()
    assert "nothing.jpg can't be read" in capsys.readouterr().err


def test_top_5_and_the_figures_of_many_classes():
    script = load(f"{FOLDER}/03_eval_image_classifier.py", small=False)
    dice = np.random.default_rng(1)
    probabilities = dice.dirichlet(np.ones(12), size=300)
    truth = dice.integers(12, size=300)
    thumbnails = list(dice.integers(0, 256, (300, 20, 30, 3), np.uint8))
    scores = script.Scores(truth, probabilities, thumbnails)
    found = script.accuracies(scores)
    five = [t in np.argsort(p)[::-1][:5] for t, p in zip(truth, probabilities, strict=True)]
    np.testing.assert_array_equal(found["top_5_accuracy"], five)
    np.testing.assert_array_equal(found["accuracy"], probabilities.argmax(axis=1) == truth)
    few = script.Scores(truth % 5, probabilities[:, :5], thumbnails)
    assert list(script.accuracies(few)) == ["accuracy"]
    low, high = script.interval(45, 52)
    z, p, n = 1.959964, 45 / 52, 52
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert low == pytest.approx((middle - half) / (1 + z**2 / n), rel=1e-5)
    assert high == pytest.approx((middle + half) / (1 + z**2 / n), rel=1e-5)
    classes = [f"a class of a rather long name, {i}" for i in range(12)]
    for figure in (
        script.show_confusion(scores, classes),
        script.show_photos(range(7), scores, classes, "seven"),
    ):
        figure.canvas.draw()
        script.plt.close(figure)
