"""Chapter linear: what the lessons calculate, against second calculations and other readers."""

import io
import math
import re
import zipfile
from itertools import pairwise

import h5py
import keras
import numpy as np
import pytest
from helpers import Lesson, run_lesson
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from data import mnist

# ---- 01_linear_activation_regression -------------------------------------------------------


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    script = "linear/01_linear_activation_regression.py"
    return run_lesson(script, tmp_path_factory.mktemp("regression"))


def test_regression_equals_back_propagation_by_hand(regression):
    x, y = (regression.variables[name].astype(np.float64) for name in ("x", "y"))
    w1, b1, w2, b2 = (array.astype(np.float64) for array in regression.variables["start"])
    for step in range(10_000):
        h = np.tanh(x @ w1 + b1)
        error = h @ w2 + b2 - y
        if step == 0:
            first_loss = np.mean(error**2)
        d_output = 2 / 200 * error
        d_hidden = d_output @ w2.T * (1 - h**2)
        w2 = w2 - 0.3 * h.T @ d_output
        b2 = b2 - 0.3 * d_output.sum(0)
        w1 = w1 - 0.3 * x.T @ d_hidden
        b1 = b1 - 0.3 * d_hidden.sum(0)
    fit = np.tanh(x @ w1 + b1) @ w2 + b2
    np.testing.assert_allclose(regression.variables["fit"], fit, atol=1e-4)
    assert regression.metrics["loss"] == pytest.approx(np.mean((fit - y) ** 2), rel=1e-3)
    distance = np.sqrt(np.mean((fit - x**2) ** 2))
    assert regression.metrics["distance"] == pytest.approx(distance, rel=1e-2)
    assert regression.result["parameters"] == w1.size + b1.size + w2.size + b2.size == 31
    for name in ("bias_per_unit", "bias_per_point"):  # both start as the same function
        logged = regression.events(name).values("loss")
        assert list(logged) == list(range(0, 10_000, 100))
        assert logged[0] == pytest.approx(first_loss, rel=1e-5)


def test_regression_comes_near_the_parabola(regression):
    x, y = (regression.variables[name].astype(np.float64) for name in ("x", "y"))
    noise_floor = np.mean((y - x**2) ** 2)
    assert regression.metrics["points_distance"] == pytest.approx(noise_floor**0.5, rel=1e-4)
    assert regression.metrics["loss"] < 1.05 * noise_floor
    assert regression.metrics["distance"] < 0.25 * noise_floor**0.5


def test_a_bias_for_each_point_learns_the_noise_and_nothing_else(regression):
    script = regression.variables
    assert sum(parameter.numpy().size for parameter in script["per_point"]) == 10 + 2000 + 10 + 200
    np.testing.assert_allclose(script["wrong_fit"], script["y"], atol=1e-4)
    points = regression.metrics["points_distance"]
    assert regression.metrics["bias_per_point_distance"] == pytest.approx(points, rel=1e-3)
    assert script["network"](script["x"][:1], script["per_point"]).shape == (200, 1)
    assert "[50,10] vs. [200,10]" in regression.output
    assert script["network"](script["x"][:50], script["parameters"]).shape == (50, 1)


def test_without_its_column_y_is_compared_with_every_output(regression):
    fit, y = (regression.variables[name].astype(np.float64) for name in ("fit", "y"))
    every_pair = np.mean((fit - y[:, 0]) ** 2)  # what "Try it" asks for
    assert (fit - y[:, 0]).shape == (200, 200)
    means = (fit.mean() - y.mean()) ** 2
    assert every_pair == pytest.approx(fit.var() + y.var() + means)  # least for a flat line
    assert every_pair > 20 * regression.metrics["loss"]


# ---- 02_linear_mnist -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return run_lesson("linear/02_linear_mnist.py", tmp_path_factory.mktemp("digits"))


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and accuracy."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    accuracy = np.mean(logits.argmax(axis=1) == labels)
    return -log_softmax[np.arange(len(labels)), labels].mean(), accuracy


def test_every_reported_figure_follows_from_the_numbers_in_the_file(digits):
    with zipfile.ZipFile(digits.folder / "model.keras") as file:
        content = io.BytesIO(file.read("model.weights.h5"))
    with h5py.File(content) as weights:
        names = [name for name in weights["layers"] if name.startswith("dense")]
        layers = [weights["layers"][name]["vars"] for name in sorted(names)]
        kernels, biases = zip(*[(v["0"][()], v["1"][()]) for v in layers], strict=True)
    assert [kernel.shape for kernel in kernels] == [(784, 500), (500, 300), (300, 10)]
    assert digits.result["parameters"] == sum(array.size for array in (*kernels, *biases))

    def logits(images: np.ndarray) -> np.ndarray:
        h = images.reshape(len(images), 784)
        h = (h - digits.variables["MEAN"]) / digits.variables["DEVIATION"]
        for kernel, bias in zip(kernels[:2], biases[:2], strict=True):
            h = np.maximum(h @ kernel + bias, 0)
        return h @ kernels[2] + biases[2]

    data, metrics = digits.variables["data"], digits.metrics
    loss, accuracy = score(logits(data.test_images), data.test_labels)
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["test_accuracy"] == pytest.approx(accuracy, abs=1.5 / len(data.test_labels))
    assert accuracy > 0.6, "it has learned"
    count = len(data.validation_labels)
    _, accuracy = score(logits(data.validation_images), data.validation_labels)
    assert metrics["validation_accuracy"] == pytest.approx(accuracy, abs=1.5 / count)
    loss, _ = score(logits(data.train_images[:5_000]), data.train_labels[:5_000])
    assert metrics["training_loss_without_dropout"] == pytest.approx(loss, rel=1e-3)


def test_pixels_are_standardised_by_the_numbers_of_mnist(digits, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    images = mnist.load().train_images
    counts = np.bincount(images.ravel(), minlength=256) / images.size
    mean = counts @ np.arange(256)
    deviation = math.sqrt(counts @ (np.arange(256) - mean) ** 2)
    loose = 10 if digits.result["data"]["stand_in"] else 0.05  # other digits, written alike
    assert digits.variables["MEAN"] == pytest.approx(mean, abs=loose)
    assert digits.variables["DEVIATION"] == pytest.approx(deviation, abs=loose)


def test_the_saved_model_can_be_trained_on(digits):
    model = keras.saving.load_model(digits.folder / "model.keras")
    steps = 2 * math.ceil(len(digits.variables["data"].train_images) / 128)
    assert model.loss.get_config()["from_logits"] is True
    assert int(model.optimizer.iterations) == steps
    assert float(model.optimizer.learning_rate) == pytest.approx(0, abs=1e-8), "at its end"


def test_tensorboard_has_curves_histograms_and_the_graph(digits):
    history = digits.variables["history"]
    for name, prefix in (("train", ""), ("validation", "val_")):
        for metric in ("loss", "accuracy"):
            values = digits.events(name).values(f"epoch_{metric}").values()
            assert [float(v) for v in values] == pytest.approx(history[prefix + metric])
    weights = digits.events("weights")
    for layer in ("hidden1", "hidden2", "logits"):
        for kind in ("kernel", "bias"):
            (tag,) = (t for t in weights.tags("histograms") if f"{layer}/{kind}" in t)
            assert list(weights.values(tag)) == [0, 1, 2]
    (tag,) = (t for t in weights.tags("histograms") if "hidden1/kernel" in t)
    limit = math.sqrt(6 / (784 + 500))  # glorot_uniform
    start = weights.values(tag)[0]  # [bins, (left, right, count)]
    assert start[:, 2].sum() == 784 * 500
    assert start[0, 0] == pytest.approx(-limit, rel=1e-3)
    assert start[-1, 1] == pytest.approx(limit, rel=1e-3)
    share = np.diff(np.interp([0.1 * limit, 0.4 * limit], start[:, 1], start[:, 2].cumsum()))
    assert share / (784 * 500) == pytest.approx(0.15, abs=0.01), "a flat block"
    nodes = digits.events("graph").graph_nodes()
    assert "images" in nodes
    for layer in ("hidden1", "hidden2", "logits"):
        assert any(layer in node and node.endswith("MatMul") for node in nodes), nodes


# ---- 03_optimizer_race ---------------------------------------------------------------------

NAMES = ["sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamw"]


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return run_lesson("linear/03_optimizer_race.py", tmp_path_factory.mktemp("race"))


def step(name: str, g: np.ndarray, w: np.ndarray, memory: dict, rate: float) -> np.ndarray:
    """One step of an optimizer, from its paper, with Keras's settings: ``w`` after it."""
    m, v = (memory.setdefault(key, np.zeros_like(w)) for key in "mv")
    memory["t"] = t = memory.get("t", 0) + 1
    if name == "sgd":
        return w - rate * g
    if name in ("momentum", "nesterov"):
        memory["m"] = m = 0.9 * m + rate * g
        return w - (m if name == "momentum" else 0.9 * m + rate * g)
    if name == "adagrad":
        memory["v"] = v = v + g**2 + (0.1 if t == 1 else 0)
        return w - rate * g / np.sqrt(v + 1e-7)
    if name == "rmsprop":
        memory["v"] = v = 0.9 * v + 0.1 * g**2
        return w - rate * g / np.sqrt(v + 1e-7)
    if name == "adadelta":
        memory["v"] = v = 0.95 * v + 0.05 * g**2
        delta = g * np.sqrt(m + 1e-7) / np.sqrt(v + 1e-7)
        memory["m"] = 0.95 * m + 0.05 * delta**2
        return w - rate * delta
    if name == "adamw":
        w = w * (1 - rate * 0.004)
    memory["m"], memory["v"] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    rate *= math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    return w - rate * m / (np.sqrt(v) + 1e-7)  # the paper's "epsilon hat"


@pytest.mark.parametrize("name", NAMES)
def test_a_training_equals_one_in_numpy(race, name):
    script = race.variables
    images = script["data"].train_images.reshape(-1, 784) / 255
    labels = script["data"].train_labels
    weights, batches = script["starts"][1]
    weights, batches = [w.astype(np.float64) for w in weights], batches.numpy()
    memories = [{} for _ in weights]
    rate, total = 4 * script["defaults"][name], len(batches)
    rising = max(1, total * 15 // 100)
    for t, batch in enumerate(batches):
        w1, b1, w2, b2 = weights
        x, sums = images[batch], images[batch] @ w1 + b1
        h = np.maximum(sums, 0)
        z = h @ w2 + b2
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        d_logits = (p - np.eye(10)[labels[batch]]) / len(batch)
        d_hidden = d_logits @ w2.T * (sums > 0)
        gradients = [x.T @ d_hidden, d_hidden.sum(0), h.T @ d_logits, d_logits.sum(0)]
        if t < rising:  # from a tenth of the rate to the whole
            now = rate * (0.1 + 0.9 * t / rising)
        else:
            now = rate * (1 + math.cos(math.pi * (t - rising) / (total - rising))) / 2
        weights = [
            step(name, g, w, memory, now)
            for g, w, memory in zip(gradients, weights, memories, strict=True)
        ]
    for other in ("momentum", name):  # nothing of the training before is left
        script["train"](other, rate, 1)
    way = zip(script["starts"][1][0], weights, script["model"].get_weights(), strict=True)
    for start, ours, theirs in way:  # where a gradient is nearly 0, rounding decides its sign
        assert np.linalg.norm(theirs - ours) < 0.01 * np.linalg.norm(ours - start)


def test_first_steps_are_those_of_the_formulas(race):
    for name in NAMES:
        printed = re.search(rf"^{name} +(\S+) +(\S+)$", race.output, re.MULTILINE).groups()
        for gradient, text in zip((1.0, 0.01), printed, strict=True):
            expected = -step(name, np.array(gradient), np.array(0.0), {}, rate=1.0)
            assert float(text) == pytest.approx(expected, abs=6e-5)


def test_every_start_has_each_image_once_an_epoch(race):
    starts = race.variables["starts"]
    count = len(race.variables["images"])
    for _, batches in starts:
        numbers = batches.numpy().ravel()
        assert len(numbers) == count // 128 * 128
        assert len(set(numbers)) == len(numbers)
    (first, _), (second, _) = starts
    assert not np.array_equal(first[0], second[0])


def test_the_best_rate_has_two_worse_ones_on_either_side(race):
    script = race.variables
    for name in NAMES:
        valley = sorted(script["valleys"][name].items())
        ratios = [b / a for (a, _), (b, _) in pairwise(valley)]
        assert ratios == pytest.approx([2] * len(ratios))
        losses = [loss for _, loss in valley]
        best = int(np.argmin(losses))
        assert 2 <= best <= len(losses) - 3
        assert valley[best] == (script["rates"][name][0], script["losses"][name][0])
        assert script["defaults"][name] in script["valleys"][name]


def test_only_the_best_network_of_a_run_reads_the_test_images(race):
    script = race.variables
    trials = sorted((race.folder / "trials").iterdir())
    assert len(trials) >= 2 * 5 * len(NAMES), "two runs, at least five rates in each"
    tested = {name: {} for name in NAMES}
    for folder in trials:
        reader = EventAccumulator(str(folder))
        reader.Reload()
        plugin = reader.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        session = plugin_data_pb2.HParamsPluginData.FromString(plugin).session_start_info
        name = session.hparams["optimizer"].string_value
        rate, start = (session.hparams[key].number_value for key in ("rate", "start"))
        (loss,) = race.events(f"trials/{folder.name}").values("validation_loss").values()
        if start == 0:
            assert script["valleys"][name][rate] == pytest.approx(loss)
        if "test_accuracy" in reader.PluginTagToContent("scalars"):
            (accuracy,) = race.events(f"trials/{folder.name}").values("test_accuracy").values()
            tested[name][int(start)] = (rate, float(loss), float(accuracy))
    for name in NAMES:
        runs = zip(*(script[key][name] for key in ("rates", "losses", "accuracies")), strict=True)
        for start, values in enumerate(runs):
            assert tested[name].pop(start) == pytest.approx(values)
        assert not tested[name]
        accuracy = race.metrics[f"{name}_test_accuracy"]
        assert accuracy == pytest.approx(np.mean(script["accuracies"][name]))


def test_a_pair_is_decided_when_no_run_of_the_loser_reaches_one_of_the_winner(race):
    accuracies, decided = race.variables["accuracies"], race.variables["decided"]
    for one in NAMES:
        for other in NAMES:
            wins = all(a > b for a in accuracies[one] for b in accuracies[other])
            assert wins == ((one, other) in decided)
    means = {name: np.mean(losses) for name, losses in race.variables["losses"].items()}
    best = min(means, key=means.get)
    assert race.metrics["test_accuracy"] == pytest.approx(np.mean(accuracies[best]))
    # Five runs of each of two equals, in random order: all five of one come first how often?
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(10) < 5, (200_000, 1)), axis=1)
    firsts = orders[:, :5].sum(axis=1)
    assert np.mean((firsts == 0) | (firsts == 5)) == pytest.approx(2 / 252, rel=0.1)
