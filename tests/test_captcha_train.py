"""Chapter captcha_multitask, its training: networks, augmentation, scores, exact resuming, several
devices, bad input. Most runs train a tiny network on 60 images."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, load_script

from data.captchas import ALPHABETS, Captchas, encode_text
from models import captcha
from utils import run as run_module
from utils import training as training_module
from utils.tfrecord import write_dataset

SCRIPT = "captcha_multitask/03_train.py"
DIGITS = ALPHABETS["digits"]
TRAIN, VALIDATION = 60, 20  # images
FLAGS = ("--net", "tiny", "--steps", "8", "--batch-size", "8", "--validate-every", "3")
TIMES = ("seconds", "images_per_second", "share_of_time_waiting")  # differ from run to run


def tiny(
    images: keras.KerasTensor,
    positions: int,
    classes: int,
    dropout: float = 0.2,
    synchronized: bool = False,
) -> list[keras.KerasTensor]:
    """A network with all that has a state, trained in an instant."""
    x = keras.layers.Conv2D(8, 5, 4)(images)
    x = keras.layers.BatchNormalization(momentum=0.9, synchronized=synchronized)(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Dropout(dropout)(keras.layers.Flatten()(x))
    return [keras.layers.Dense(classes, name=f"head_{i}")(x) for i in range(positions)]


def load() -> ModuleType:
    """The script as a module whose functions joblib's worker processes can run too."""
    if (chapter := str(ROOT / "captcha_multitask")) not in sys.path:
        sys.path.insert(0, chapter)  # where Python itself looks, when it runs the script
    module = load_script(SCRIPT)
    cloudpickle.register_pickle_by_value(module)
    module.nets_factory.NETS["tiny"] = module.nets_factory.Net(tiny, (20, 48), 8, 8, 1e-2)
    return module


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path, module = list(sys.path), load()
    yield module
    cloudpickle.unregister_pickle_by_value(module)
    sys.path[:] = path


@pytest.fixture(scope="module")
def nets(script: ModuleType) -> ModuleType:
    return script.nets_factory


def record(number: int) -> dict[str, Any]:
    text, png = Captchas().png(number)
    return {"image": png, "classes": encode_text(text, DIGITS)}


def about(**changes: Any) -> dict[str, Any]:
    known = {"kind": "captcha", "alphabet": DIGITS, "length": 4, "width": 160, "height": 60}
    return known | {"warp": "modern", "seed": 1, "captcha": "0.7.1"} | changes


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    numbers = range(TRAIN + VALIDATION)
    splits = {"train": numbers[:TRAIN], "validation": numbers[TRAIN:]}
    write_dataset(folder, splits, record, about=about())
    return folder


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """64 captchas, uint8 [64, 60, 160, 3], and their classes, int32 [64, 4]."""
    some = [Captchas(seed=3).pixels(i) for i in range(64)]
    classes = [encode_text(text, DIGITS) for text, _ in some]
    return np.stack([pixels for _, pixels in some]), np.array(classes, np.int32)


# ---- the networks --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faithful(nets: ModuleType) -> Iterator[keras.Model]:
    keras.utils.set_random_seed(1)
    yield nets.build("alexnet_v2", 4, 10, 224, 224, (224, 224), start="slim")
    keras.backend.clear_session()


def test_alexnet_has_the_layers_of_slims_alexnet_v2(faithful):
    shapes = {layer.name: layer.output.shape for layer in faithful.layers}
    wanted = {
        "conv1": (None, 54, 54, 64),
        "pool1": (None, 26, 26, 64),
        "conv2": (None, 26, 26, 192),
        "pool2": (None, 12, 12, 192),
        "conv3": (None, 12, 12, 384),
        "conv4": (None, 12, 12, 384),
        "conv5": (None, 12, 12, 256),
        "pool5": (None, 5, 5, 256),
        "fc6": (None, 4096),
        "dropout6": (None, 4096),
        "fc7": (None, 4096),
        "dropout7": (None, 4096),
        **{f"fc8_{i}": (None, 10) for i in range(4)},
    }
    assert {name: shapes[name] for name in wanted} == wanted
    assert faithful.output_shape == (None, 4, 10)
    assert faithful.input.dtype == "uint8"
    counts = {"conv1": (11 * 11 * 1 + 1) * 64, "conv2": (5 * 5 * 64 + 1) * 192}
    counts |= {"conv3": (9 * 192 + 1) * 384, "conv4": (9 * 384 + 1) * 384}
    counts |= {"conv5": (9 * 384 + 1) * 256, "fc6": (5 * 5 * 256 + 1) * 4096}
    counts |= {"fc7": 4097 * 4096, **{f"fc8_{i}": 4097 * 10 for i in range(4)}}
    assert {name: faithful.get_layer(name).count_params() for name in counts} == counts
    assert faithful.count_params() == sum(counts.values()) == 46_355_304
    kinds = [type(layer).__name__ for layer in faithful.layers]
    assert kinds.count("Conv2D") == 5
    assert kinds.count("MaxPooling2D") == 3
    assert "BatchNormalization" not in kinds
    dropouts = [layer for layer in faithful.layers if isinstance(layer, keras.layers.Dropout)]
    assert [(layer.name, layer.rate) for layer in dropouts] == [
        ("dropout6", 0.5),
        ("dropout7", 0.5),
    ]
    for name, activation in {
        "conv1": "relu",
        "conv5": "relu",
        "fc7": "relu",
        "fc8_2": "linear",
    }.items():
        assert faithful.get_layer(name).activation.__name__ == activation


def test_slims_start_is_narrow_and_its_biases_are_a_tenth(faithful):
    for name in ("fc6", "fc7", "fc8_0", "fc8_3"):
        kernel, bias = faithful.get_layer(name).get_weights()
        assert np.abs(kernel).max() <= 0.01  # cut at two standard deviations
        assert kernel.std() == pytest.approx(0.005 * 0.8796, rel=0.02), name  # of one cut at two
        assert (bias == (0 if name.startswith("fc8") else np.float32(0.1))).all()
    assert not np.array_equal(*(faithful.get_layer(f"fc8_{i}").get_weights()[0] for i in (0, 1)))


@pytest.fixture(scope="module", params=["compact", "alexnet_v2"])
def network(request: pytest.FixtureRequest, nets: ModuleType) -> keras.Model:
    """Each network at about its smallest."""
    keras.utils.set_random_seed(1)
    size = {"compact": (20, 48), "alexnet_v2": (67, 67)}[request.param]
    return nets.build(request.param, 4, 10, 60, 160, size)


def test_hes_start_keeps_the_size_of_the_signal(network, drawn):
    for layer in network.layers:
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            continue
        if network.name == "compact" and isinstance(layer, keras.layers.Dense):
            continue  # its short heads begin in Keras's way
        kernel, *bias = layer.get_weights()
        fan_in = np.prod(kernel.shape[:-1])
        tolerance = 4 / np.sqrt(kernel.size)  # far beyond chance
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=tolerance), layer.name
        assert not np.any(bias)
    logits = network(drawn[0][:16], training=False).numpy()
    assert logits.std(axis=0).mean() > 0.02, "the answers depend on the image"


def test_a_loss_on_one_head_leaves_the_other_heads_alone(network, drawn, script):
    images, classes = drawn[0][:4], drawn[1][:4]
    with tf.GradientTape() as tape:
        logits = network(images, training=False)
        loss = tf.reduce_sum(script.losses_of(logits[:, 2:3], classes[:, 2:3]))
    gradients = tape.gradient(loss, network.trainable_variables)
    found = {"own": 0, "shared": 0, "others": 0}
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        layer = variable.path.split("/")[-2]
        head = next((k for k in range(4) if layer.startswith((f"fc8_{k}", f"head_{k}"))), None)
        kind = "shared" if head is None else "own" if head == 2 else "others"
        found[kind] += 1
        if kind == "others":
            assert gradient is None or not np.any(gradient), variable.path
        elif variable.path.endswith("kernel") and layer != "head_2_where":
            assert np.any(gradient), variable.path
    each = found["own"]
    assert each == {"alexnet_v2": 2, "compact": 4}[network.name]
    assert found["others"] == 3 * each
    assert found["shared"] == len(network.trainable_variables) - 4 * each > 10


def test_compact_has_the_layers_its_notes_tell(nets):
    network = nets.build("compact", 4, 10, 60, 160)
    assert network.count_params() == 508_748
    shapes = [layer.output.shape[1:] for layer in network.layers]
    for shape in [(15, 40, 32), (8, 20, 64), (8, 20, 128), (1, 20, 128), (20, 128)]:
        assert shape in shapes
    assert network.get_layer("head_3_weights").output.shape == (None, 20, 1)
    assert network.get_layer("head_3_seen").output.shape == (None, 1, 128)
    assert network.output_shape == (None, 4, 10)
    seeds = [v for v in network.non_trainable_variables if "seed_generator" in v.path]
    assert len(seeds) == 1, "the checkpoint finds the state of the dropout by this name"


def test_a_compact_head_reads_the_mean_of_the_columns_it_weighs(nets, drawn):
    network = nets.build("compact", 2, 5, 60, 160, (20, 48))
    layers = [network.get_layer(f"head_1_{part}") for part in ("weights", "seen")]
    columns = network.get_layer("head_1_seen").input[1]
    outputs = [columns, *(layer.output for layer in layers), network.output]
    columns, weights, seen, logits = map(
        np.asarray, keras.Model(network.input, outputs)(drawn[0][:3], training=False)
    )
    assert weights.sum(axis=1) == pytest.approx(np.ones((3, 1)), abs=1e-5)
    mean = (weights * columns).sum(axis=1)
    np.testing.assert_allclose(seen[:, 0], mean, atol=1e-4)
    kernel, bias = network.get_layer("head_1").get_weights()
    np.testing.assert_allclose(logits[:, 1], mean @ kernel + bias, atol=1e-3)


def resized_to(network: keras.Model) -> list[tuple]:
    """The shapes that the network resizes its images to."""
    found = (op for op in network.operations if type(op).__name__ == "Resize")
    return [op.output.shape for op in found]


def test_the_factory_builds_other_alphabets_lengths_and_sizes(nets):
    network = nets.build("compact", 6, 62, 70, 200)
    assert network.input_shape == (None, 70, 200, 3)
    assert network.output_shape == (None, 6, 62)
    assert resized_to(network) == [(None, 60, 160, 1)]
    assert resized_to(nets.build("tiny", 1, 2, 20, 48)) == []
    network = nets.build("tiny", 1, 2, 60, 160, (16, 24), dropout=0.7)
    assert resized_to(network) == [(None, 16, 24, 1)]
    assert [layer.rate for layer in network.layers if "dropout" in layer.name] == [0.7]


def test_the_factory_refuses_what_it_can_not_build(nets):
    with pytest.raises(ValueError, match="no network 'lenet', only compact, alexnet_v2"):
        nets.build("lenet", 4, 10, 60, 160)
    for name, size in [("compact", (15, 160)), ("alexnet_v2", (224, 66))]:
        smallest = nets.NETS[name].smallest
        with pytest.raises(ValueError, match=rf"{name} needs .* {smallest}×{smallest} pixels"):
            nets.build(name, 4, 10, 60, 160, size)
    for name in ("compact", "alexnet_v2"):
        assert min(nets.NETS[name].input_size) >= nets.NETS[name].smallest


def test_pixels_are_standardised_as_tf_image_does_it(nets, drawn):
    network = nets.build("tiny", 4, 10, 60, 160)
    inner = keras.Model(network.input, network.get_layer("standardize").output)
    images = drawn[0][:8]
    grey = tf.image.rgb_to_grayscale(tf.cast(images, tf.float32))
    wanted = -tf.image.per_image_standardization(grey).numpy()  # ink is what is not paper
    np.testing.assert_allclose(inner(images), wanted, atol=0.01)
    white = np.full((1, 60, 160, 3), 255, np.uint8)
    assert np.isfinite(network(white, training=False)).all(), "an image without ink"


def test_a_pale_captcha_is_read_as_a_dark_one(nets, drawn):
    network = nets.build("tiny", 4, 10, 60, 160)
    ink = (255 - drawn[0][:8]) // 2 * 2
    dark, pale = (network((255 - some).astype(np.uint8)).numpy() for some in (ink, ink // 2))
    np.testing.assert_allclose(pale, dark, atol=0.02 * dark.std())


def test_a_saved_recogniser_gives_equal_outputs(nets, drawn, tmp_path):
    network = nets.build("compact", 4, 10, 60, 160, (20, 48))
    recogniser = keras.Model(network.input, keras.layers.Softmax()(network.output))
    captcha.save_recogniser(tmp_path, recogniser, about())
    loaded = captcha.load_recogniser(tmp_path, DIGITS, 4)
    images = drawn[0][:4]
    probabilities = loaded.probabilities(images)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(probabilities, recogniser(images, training=False))
    np.testing.assert_array_equal(loaded.model(images), probabilities, "no training unasked")
    logits = network(images, training=False).numpy().astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(probabilities, softmax, atol=1e-6)


# ---- loss and scores -----------------------------------------------------------------------


def test_the_loss_is_the_sum_of_the_heads_cross_entropies(script):
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(7, 4, 10)).astype(np.float32) * 3
    classes = generator.integers(10, size=(7, 4)).astype(np.int32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(p, classes[..., np.newaxis], axis=-1)).sum(axis=(1, 2))
    losses = script.losses_of(logits, classes)
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    at_chance = script.losses_of(np.zeros((7, 4, 10), np.float32), classes)
    np.testing.assert_allclose(at_chance, 4 * np.log(10), rtol=1e-6)


def test_evaluate_counts_every_image_once_by_hand(script):
    classes = np.array([[0, 1], [1, 1], [2, 0], [0, 0], [2, 2]], np.int32)
    read = np.array([[0, 1], [1, 0], [2, 0], [1, 1], [2, 1]])  # whole: 2 of 5; characters: 6 of 10
    logits = 2 * np.eye(3, dtype=np.float32)[read]
    batches = tf.data.Dataset.from_tensor_slices((logits, classes)).batch(2)  # 2, 2 and 1
    scores = script.evaluate(lambda images: images, batches)
    assert scores["whole_captcha_accuracy"] == pytest.approx(2 / 5)
    assert scores["character_accuracy"] == pytest.approx(6 / 10)
    assert scores["position_1_accuracy"] == pytest.approx(4 / 5)
    assert scores["position_2_accuracy"] == pytest.approx(2 / 5)
    right, wrong = -np.log(np.exp([2, 0]) / (np.exp(2) + 2))
    assert scores["loss"] == pytest.approx((6 * right + 4 * wrong) / 5, rel=1e-5)
    assert all(type(value) is float for value in scores.values())


# ---- augmentation --------------------------------------------------------------------------


def seed(*numbers: int) -> tf.Tensor:
    return tf.constant(numbers, tf.int64)


def test_augmentation_follows_seed_and_step(script, drawn):
    images = drawn[0][:16]
    one = script.augment(images, seed(1, 700)).numpy()
    assert one.dtype == np.uint8
    assert one.shape == images.shape
    assert np.array_equal(one, script.augment(images, seed(1, 700)))
    for other in (seed(1, 701), seed(2, 700)):
        assert not np.array_equal(one, script.augment(images, other))
    graph = tf.function(script.augment)(images, seed(1, 700))
    assert np.array_equal(one, graph)
    assert (
        len({image.tobytes() for image in script.augment(images[[0] * 16], seed(1, 1)).numpy()})
        > 12
    )


def test_shifts_and_contrast_are_uniform_within_their_bounds(script):
    images = np.full((2000, 11, 13, 3), 255, np.uint8)
    images[:, 5, 6] = 155  # 100 of ink
    out = 255 - script.augment(images, seed(1, 1)).numpy().astype(int)
    assert (out[..., 0] == out[..., 1]).all()
    assert ((out[..., 0] > 0).sum(axis=(1, 2)) == 1).all(), "one dot, still within the image"
    _, rows, columns = np.nonzero(out[..., 0])
    moves = np.stack([rows - 5, columns - 6])
    for move in moves:
        places, counts = np.unique(move, return_counts=True)
        assert places.tolist() == list(range(-4, 5))
        assert counts.min() > 2000 / 9 - 5 * np.sqrt(2000 / 9)
    assert abs(np.corrcoef(moves)[0, 1]) < 0.1
    ink = out[..., 0].max(axis=(1, 2)) / 100
    assert ink.min() >= 0.69
    assert ink.max() <= 1.31
    assert ink.mean() == pytest.approx(1, abs=0.02)
    assert ink.std() == pytest.approx(0.6 / np.sqrt(12), rel=0.05)


def test_what_comes_in_repeats_the_border(script, drawn, monkeypatch):
    monkeypatch.setattr(script, "CONTRAST", 0.0)
    images = drawn[0][:32, :20, :30]
    for image, out in zip(images, script.augment(images, seed(3, 4)).numpy(), strict=True):
        rows = [np.clip(np.arange(20) + d, 0, 19) for d in range(-4, 5)]
        columns = [np.clip(np.arange(30) + d, 0, 29) for d in range(-4, 5)]
        shifted = [image[r][:, c] for r in rows for c in columns]
        assert any(np.array_equal(out, some) for some in shifted)


def test_ink_never_wraps_around(script):
    images = np.zeros((64, 5, 5, 3), np.uint8)
    out = script.augment(images, seed(1, 1)).numpy()
    assert (out[::, 0, 0, 0] <= 255 * 0.31).all()
    assert (out == 0).all(axis=(1, 2, 3)).any()


def test_augmentation_can_be_left_out(script, nets, drawn, monkeypatch):
    def refuse(images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        raise RuntimeError("augmented")

    monkeypatch.setattr(script, "augment", refuse)
    network, alone = nets.build("tiny", 4, 10, 60, 160), tf.distribute.get_strategy()
    images, classes = drawn[0][:8], drawn[1][:8]
    optimizer = keras.optimizers.SGD(0.0)
    step = script.make_step(network, optimizer, alone, 8, 1, True)
    with pytest.raises(RuntimeError, match="augmented"):
        step(images, classes, tf.constant(0, tf.int64))
    step = script.make_step(network, optimizer, alone, 8, 1, False)
    assert float(step(images, classes, tf.constant(0, tf.int64))) == pytest.approx(9.2, abs=4)


# ---- it learns -----------------------------------------------------------------------------


def test_compact_learns_64_images_by_heart(script, nets, drawn):
    keras.utils.set_random_seed(1)
    network = nets.build("compact", 4, 10, 60, 160, (20, 56), dropout=0.0)
    optimizer = keras.optimizers.Adam(
        training_module.warm_up_cosine(3e-3, 100, warm_up=0.05, start=0)
    )
    step = script.make_step(network, optimizer, tf.distribute.get_strategy(), 64, 1, False)
    predict = tf.function(lambda images: network(images, training=False))
    batches = tf.data.Dataset.from_tensor_slices(drawn).batch(64)
    assert script.evaluate(predict, batches)["character_accuracy"] < 0.3
    losses = []
    for number in range(100):
        losses.append(float(step(*drawn, tf.constant(number, tf.int64))))
        if number % 10 == 9:
            scores = script.evaluate(predict, batches)
            if scores["whole_captcha_accuracy"] == 1:
                break
    assert scores["whole_captcha_accuracy"] == 1, scores
    assert losses[-1] < 0.1 < 4 < losses[0]


# ---- a training, called in this process ----------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is written any more."""


def train(
    script: ModuleType,
    folder: Path,
    *flags: str | Path,
    before_step: Callable[[int], None] = lambda done: None,
) -> Any:
    """Call ``main()`` with ``--run-dir folder`` (unless it is None) and return its Training;
    ``before_step`` is called with the number of steps done."""
    made = []

    class Training(script.Training):
        def __init__(self, *args: Any) -> None:
            made.append(self)
            super().__init__(*args)

    class Feed(script.Feed):
        def next(self) -> tuple[tf.Tensor, tf.Tensor]:
            before_step(int(made[0].done))
            return super().next()

    with pytest.MonkeyPatch.context() as patch:
        run_dir = () if folder is None else ("--run-dir", folder)
        patch.setattr(sys, "argv", [script.__file__, *map(str, (*run_dir, *flags))])
        patch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        patch.setattr(script, "Training", Training)
        patch.setattr(script, "Feed", Feed)
        try:
            script.main()
        except KeyboardInterrupt as error:
            sys.excepthook(KeyboardInterrupt, error, None)  # as Python does at its end
            raise
        finally:
            script.plt.close("all")
    return made[0]


def kill_at(step: int) -> Callable[[int], None]:
    """Kills this process, as kill -9 does, when so many steps are done."""

    def kill(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no -9

    return kill


def drop_at(step: int) -> Callable[[int], None]:
    def drop(done: int) -> None:
        if done == step:
            raise Killed

    return drop


def interrupt_at(step: int) -> Callable[[int], None]:
    def interrupt(done: int) -> None:
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return interrupt


def in_a_process(call: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start Python on a function of this file, with texts as its arguments."""
    program = f"import sys, test_captcha_train as t; t.{call}(*sys.argv[1:])"
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
    """All that changed: weights, moving averages, dropout's seed, Adam's averages."""
    variables = [*training.network.variables, *training.optimizer.variables]
    return {f"{i} {v.path}": v.numpy() for i, v in enumerate(variables)}


def without_times(history: list[dict[str, float]], *more: str) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in (*TIMES, *more)} for row in history]


def assert_equal_states(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert len(one) == len(other)
    for (name, mine), theirs in zip(one.items(), other.values(), strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(script, records, tmp_path_factory) -> tuple[Any, Path]:
    """A training that nobody stopped, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    flags = (*FLAGS, "--records", records, "--model", folder / "best")
    return train(script, folder / "run", *flags), folder


def test_a_training_leaves_its_result_and_its_best_model(whole):
    training, folder = whole
    result = result_of(folder / "run")
    assert [row["step"] for row in result["history"]] == [3, 6, 8]
    assert (result["steps"], result["images_seen"]) == (8, 64)
    assert result["parameters"] == training.network.count_params()
    assert not (folder / "run" / "backup").exists()
    best = max(result["history"], key=lambda row: row["whole_captcha_accuracy"])
    for place in (folder / "best", folder / "run" / "model"):
        facts = captcha.load_recogniser(place, DIGITS, 4).about
        assert facts["step"] == best["step"]
        assert facts["net"] == "tiny"
        assert facts["warp"] == "modern"
    for name in ("whole_captcha_accuracy", "character_accuracy", "position_4_accuracy"):
        assert result["metrics"][f"validation_{name}"] == best[name]
    assert result["metrics"]["validation_loss"] == pytest.approx(best["loss"], rel=1e-4)


def train_and_kill(records: str, folder: str, step: str) -> None:
    flags = (*FLAGS, "--records", records, "--model", Path(folder, "best"))
    train(load(), Path(folder, "run"), *flags, before_step=kill_at(int(step)))


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(script, whole, records, tmp_path):
    process = in_a_process("train_and_kill", records, tmp_path, 7)  # after 6 there is a checkpoint
    _, errors = process.communicate(timeout=300)
    assert process.returncode not in (0, 1), errors[-3000:]
    folder = tmp_path / "run"
    assert not (folder / "result.json").exists()
    assert (folder / "backup").exists()
    flags = (*FLAGS, "--records", records, "--model", tmp_path / "best")
    seen = []
    resumed = train(script, folder, *flags, "--resume", before_step=seen.append)
    assert seen == [6, 7]
    assert_equal_states(state(whole[0]), state(resumed))
    assert without_times(resumed.history) == without_times(whole[0].history)
    metrics = result_of(folder)["metrics"]
    assert metrics == result_of(whole[1] / "run")["metrics"]
    models = [captcha.load_recogniser(f / "best").model for f in (tmp_path, whole[1])]
    for mine, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ctrl_c_saves_the_step_at_hand_and_resume_goes_on(script, whole, records, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = (*FLAGS, "--records", records, "--model", tmp_path / "best")
    with pytest.raises(KeyboardInterrupt):
        train(script, folder, *flags, before_step=interrupt_at(4))
    said = " ".join(capsys.readouterr().out.split())
    assert "Stopped. To go on: the same command with --run-dir" in said
    assert not (folder / "result.json").exists()
    assert not any((tmp_path / "best").iterdir())
    seen = []
    resumed = train(script, folder, *flags, "--resume", before_step=seen.append)
    assert "Going on after step 5 of 8" in capsys.readouterr().out
    assert seen == [5, 6, 7]
    assert_equal_states(state(whole[0]), state(resumed))
    rows = [without_times(t.history, "train_loss") for t in (resumed, whole[0])]
    assert rows[0] == rows[1]


class Serial:
    """In place of joblib's Parallel: the same work, in this process."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, jobs: Any) -> Iterator[Any]:
        return (function(*arguments) for function, arguments, _ in jobs)


@pytest.mark.parametrize("share", ["0.5", "1"])
def test_with_fresh_images_resuming_is_exact_too(script, records, tmp_path, monkeypatch, share):
    monkeypatch.setattr(script, "Parallel", Serial)
    copy = shutil.copytree(records, tmp_path / "records")
    if share == "1":
        for shard in copy.glob("train_*"):
            shard.unlink()  # nothing of it is read
    flags = (*FLAGS, "--records", copy, "--online", share)
    flags = (*flags, "--steps", 5, "--model", tmp_path / "best")
    uninterrupted = train(script, tmp_path / "whole", *flags)
    assert (uninterrupted.feed.stored is None) == (share == "1")
    with pytest.raises(Killed):
        train(script, tmp_path / "run", *flags, before_step=drop_at(4))
    resumed = train(script, tmp_path / "run", *flags, "--resume")
    assert_equal_states(state(uninterrupted), state(resumed))
    assert without_times(resumed.history) == without_times(uninterrupted.history)


def refused(script: ModuleType, folder: Path | None, capsys: Any, *flags: str | Path) -> str:
    """The sentence that a run ends with instead of a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(script, folder, *flags)
    code, printed = stopped.value.code, capsys.readouterr()
    assert code not in (0, None)
    assert "Traceback" not in printed.err
    return " ".join((code if isinstance(code, str) else printed.err).split())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def stopped(script: ModuleType, records: Path, tmp_path: Path) -> tuple[Path, tuple[Any, ...]]:
    """The folder of a run that was killed after its first checkpoint, and its flags."""
    flags = (*FLAGS, "--records", records, "--model", tmp_path / "best")
    with pytest.raises(Killed):
        train(script, tmp_path / "run", *flags, before_step=drop_at(4))
    return tmp_path / "run", flags


def test_resuming_with_other_settings_is_refused_and_loses_nothing(script, stopped, capsys, whole):
    folder, flags = stopped
    before = content(folder)
    for other in (("--learning-rate", "0.1"), ("--seed", "2"), ("--no-augment",)):
        assert "--resume" in refused(script, folder, capsys, *flags, "--resume", *other)
        assert content(folder) == before
    assert_equal_states(state(whole[0]), state(train(script, folder, *flags, "--resume")))


def test_nothing_to_resume_is_a_sentence(script, whole, capsys, records, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "ROOT", tmp_path)
    flags = (*FLAGS, "--records", records, "--model", tmp_path / "best", "--resume")
    assert "--resume" in refused(script, None, capsys, *flags)
    assert "--resume" in refused(script, tmp_path / "empty", capsys, *flags)
    finished = whole[1] / "run"
    before = content(finished)
    assert "--resume" in refused(script, finished, capsys, *flags)
    assert content(finished) == before, "a finished run keeps its result"


def test_two_validations_at_the_target_end_the_training(script, records, tmp_path):
    flags = (*FLAGS, "--records", records, "--model", tmp_path / "best", "--target-accuracy", "0")
    short = train(script, tmp_path / "run0", *flags, "--steps", 2, "--validate-every", 1)
    assert int(short.held) == 0, "0 is no target"
    flags = (*flags, "--target-accuracy", "0.000001", "--validate-every", 1)
    held = []

    def wholes(done: int) -> None:
        held.append(done)

    with pytest.MonkeyPatch.context() as patch:
        shares = iter([0.5, 0.0, 0.5, 0.5])
        evaluate = script.evaluate
        patch.setattr(
            script,
            "evaluate",
            lambda *some: evaluate(*some) | {"whole_captcha_accuracy": next(shares, 0.5)},
        )
        training = train(script, tmp_path / "run", *flags, before_step=wholes)
    assert int(training.done) == 4, "one at the target, one below, two at it"
    assert captcha.load_recogniser(tmp_path / "best").about["step"] == 1, "the first of equals"


# ---- images drawn while training -----------------------------------------------------------


def test_online_batches_depend_on_their_number_alone(script, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    captchas = Captchas(warp="both", seed=5)

    def take(count: int, *where: int) -> list[tuple[np.ndarray, np.ndarray]]:
        batches = script.online_batches(captchas, 3, *where)
        taken = [next(batches) for _ in range(count)]
        batches.close()
        return taken

    run = take(4, 0, 0, 1)
    for mine, theirs in zip(run[2:], take(2, 2, 0, 1), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    images, classes = run[2]
    assert images.shape == (3, 60, 160, 3)
    assert images.dtype == np.uint8
    assert classes.dtype == np.int32
    for i in range(3):
        text, pixels = captchas.pixels(10**9 + 2 * 3 + i)
        assert np.array_equal(images[i], pixels)
        assert encode_text(text, DIGITS) == classes[i].tolist()


def test_two_workers_draw_other_captchas(script, monkeypatch):
    class Numbers(Captchas):
        def pixels(self, index: int) -> tuple[str, np.ndarray]:
            numbers.append(index)
            return "0000", np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(script, "Parallel", Serial)
    found = {}
    for worker in (0, 1):
        numbers = []
        batches = script.online_batches(Numbers(), 5, 0, worker, 2)
        for _ in range(4):
            next(batches)
        found[worker] = numbers
    both = found[0] + found[1]
    assert sorted(both) == list(range(10**9, 10**9 + 40))
    assert min(both) >= 10**9


# ---- bad input -----------------------------------------------------------------------------


def flags_for(folder: Path, tmp_path: Path, *more: str | Path) -> tuple[Any, ...]:
    return (*FLAGS, "--records", folder, "--model", tmp_path / "best", *more)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_damaged_records_are_named(script, records, tmp_path, capsys, split, damage):
    copy = shutil.copytree(records, tmp_path / "records")
    shard = copy / f"{split}_00001-of-00002.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data if damage == "altered" else data[: len(data) // 2])
    said = refused(script, tmp_path / "run", capsys, *flags_for(copy, tmp_path))
    assert f"{shard.name} is {'missing' if damage == 'missing' else 'cut short or altered'}" in said
    assert not any((tmp_path / "best").iterdir())


def test_records_that_do_not_fit(script, records, tmp_path, capsys):
    def said(folder: Path, *more: str) -> str:
        return refused(script, tmp_path / "run", capsys, *flags_for(folder, tmp_path, *more))

    message = said(tmp_path / "nowhere")
    assert "dataset.json is missing" in message
    assert "02_images_to_tfrecords.py" in message
    folder = tmp_path / "numbers"
    write_dataset(folder, {"train": [1], "validation": [2]}, lambda i: {"number": i})
    assert "holds no captchas" in said(folder)
    folder = tmp_path / "no_validation"
    write_dataset(folder, {"train": [1], "test": [2]}, record, about=about())
    message = said(folder)
    assert "needs train and validation" in message
    assert "02_images_to_tfrecords.py" in message
    message = said(records, "--batch-size", "61")
    assert "60 images to train on" in message
    assert "lower --batch-size" in message
    for changes in ({"warp": "unknown"}, {"fonts": ["/fonts/one.ttf"]}):
        folder = tmp_path / "of_others"
        write_dataset(
            folder, {"train": range(8), "validation": [8]}, record, about=about(**changes)
        )
        assert "--online" in said(folder, "--online", "0.5")
    assert "alexnet_v2 needs an input of at least 67×67" in said(
        records, "--net", "alexnet_v2", "--input-size", "66", "200"
    )


def test_without_tf_config_several_workers_are_refused(
    script, records, tmp_path, capsys, monkeypatch
):
    flags = flags_for(records, tmp_path, "--strategy", "multi-worker")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert "needs TF_CONFIG" in refused(script, tmp_path / "run", capsys, *flags)
    monkeypatch.setenv("TF_CONFIG", "{")
    assert "TF_CONFIG can't be used" in refused(script, tmp_path / "run", capsys, *flags)


def test_a_model_folder_that_can_not_be_written_loses_no_training(
    script, records, tmp_path, capsys
):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    flags = (*FLAGS, "--records", records, "--model", tmp_path / "file" / "best")
    said = refused(script, tmp_path / "run", capsys, *flags)
    assert str(tmp_path / "file") in said
    begun = (tmp_path / "run" / "history.json").exists()
    if begun:  # then what was trained is to be had
        assert captcha.load_recogniser(tmp_path / "run" / "model", DIGITS, 4)


def test_a_disk_full_while_the_model_is_saved(
    script, records, whole, tmp_path, capsys, monkeypatch
):
    def fail(self: keras.Model, path: Path) -> None:
        Path(path).write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    shutil.copytree(whole[1] / "best", tmp_path / "best")
    before = content(tmp_path / "best")
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save", fail)
        flags = (*FLAGS, "--records", records, "--model", tmp_path / "best")
        said = refused(script, tmp_path / "run", capsys, *flags)
    assert os.strerror(errno.ENOSPC) in said
    assert content(tmp_path / "best") == before, "the model of the run before"
    assert not [*(tmp_path / "run").rglob("*.keras"), *(tmp_path / "run").rglob("*.tmp*")]


@contextmanager
def small_files(resource: ModuleType, size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_full_while_a_checkpoint_is_written(script, records, whole, tmp_path, capsys):
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    flags = (*FLAGS, "--records", records, "--model", tmp_path / "best")
    save = tf.train.CheckpointManager.save
    calls = []

    def save_or_fail(manager: tf.train.CheckpointManager, *some: Any, **named: Any) -> Any:
        calls.append(manager)
        if len(calls) < 2:
            return save(manager, *some, **named)
        with small_files(resource, 10_000):
            return save(manager, *some, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, "save", save_or_fail)
        said = refused(script, tmp_path / "run", capsys, *flags)
    assert "backup" in said
    assert len(calls) == 2
    seen = []
    resumed = train(script, tmp_path / "run", *flags, "--resume", before_step=seen.append)
    assert seen[0] == 3, "the checkpoint before is whole"
    assert_equal_states(state(whole[0]), state(resumed))


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
    batches = script.Captcha(Path(records)).batches("train", 8)
    found = []
    for name in ("none", "mirrored"):
        keras.utils.set_random_seed(1)
        place = training_module.Place(name)
        with place.strategy.scope():
            images = keras.Input((60, 160, 3), dtype="uint8")
            x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
            x = keras.layers.Dense(8, activation="tanh")(x)
            heads = keras.layers.Reshape((4, 10))(keras.layers.Dense(40)(x))
            network = keras.Model(images, heads)
            optimizer = keras.optimizers.SGD(0.1)  # Adam would hide a gradient twice as large
            optimizer.build(network.trainable_variables)
        step = script.make_step(network, optimizer, place.strategy, 8, 1, False)
        begin = network.get_weights()
        losses = [
            float(step(*place.deal(*batch), tf.constant(i, tf.int64)))
            for i, batch in enumerate(batches.take(3))
        ]
        found.append((place.replicas, losses, begin, network.get_weights()))
    (_, _, begin, alone), (_, _, other, mirrored) = found
    pairs = {"begin": (begin, other), "moved": (begin, alone), "apart": (alone, mirrored)}
    distances = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(*pair, strict=True))
        for name, pair in pairs.items()
    }
    replicas, losses, *_ = zip(*found, strict=True)
    print(json.dumps({"replicas": replicas, "losses": losses, **distances}))


def test_two_devices_train_as_one_does(records):
    process = in_a_process("mirrored_and_alone", records)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    found = json.loads(output.splitlines()[-1])
    assert found["replicas"] == [1, 2]
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-4)
    assert found["begin"] == 0
    assert found["moved"] > 0.01
    assert found["apart"] < 1e-4 * found["moved"]


def train_as_worker(records: str, folder: str) -> None:
    flags = (*FLAGS, "--records", records, "--model", Path(folder, "best"))
    training = train(load(), Path(folder, "run"), *flags, "--strategy", "multi-worker")
    np.savez(Path(folder, "state.npz"), **state(training))
    history = json.dumps(training.history)
    Path(folder, "history.json").write_text(history, encoding="utf-8")


def test_two_workers_end_with_equal_weights(records, tmp_path):
    with socket.socket() as one, socket.socket() as other:
        for some in (one, other):
            some.bind(("localhost", 0))
        ports = [some.getsockname()[1] for some in (one, other)]
    processes = []
    try:
        for index in (0, 1):
            (tmp_path / f"worker{index}").mkdir()
            cluster = {"worker": [f"localhost:{port}" for port in ports]}
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            processes.append(
                in_a_process(
                    "train_as_worker",
                    records,
                    tmp_path / f"worker{index}",
                    TF_CONFIG=json.dumps(config),
                )
            )
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    states = []
    for index in (0, 1):
        with np.load(tmp_path / f"worker{index}" / "state.npz") as arrays:
            # The dropout of each worker has dice of its own.
            states.append({k: arrays[k] for k in arrays.files if "seed_generator" not in k})
    assert_equal_states(*states)
    assert any("moving_mean" in name for name in states[0])
    folders = [tmp_path / f"worker{index}" for index in (0, 1)]
    histories = [json.loads((f / "history.json").read_text(encoding="utf-8")) for f in folders]
    assert without_times(histories[0]) == without_times(histories[1])
    assert [row["images"] for row in histories[0]] == [48, 96, 128], "8 of each worker a step"
    assert captcha.load_recogniser(folders[0] / "best", DIGITS, 4)
    assert not any((folders[1] / "best").iterdir()), "the chief alone saves"
