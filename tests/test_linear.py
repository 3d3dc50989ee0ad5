"""Chapter linear: each script end to end, and its numbers against a second reckoning."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from math import cos, pi
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import ROOT, Events, Finished, load_script, run_program, run_quick
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

# ---- 01_linear_activation_regression -------------------------------------------------------

REGRESSION = "linear/01_linear_activation_regression.py"


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(REGRESSION, tmp_path_factory.mktemp("runs") / "regression")


@pytest.fixture(scope="module")
def points() -> dict[str, np.ndarray]:
    """The script's data and start for seed 1, drawn again."""
    rng = np.random.default_rng(1)
    x = np.linspace(-0.5, 0.5, 200)[:, np.newaxis]
    y = x**2 + rng.normal(0, 0.02, (200, 1))
    w1, b1, w2 = rng.normal(0, 2, (1, 10)), rng.normal(0, 0.3, 10), rng.normal(0, 0.3, (10, 1))
    y_again = x**2 + rng.normal(0, 0.02, (200, 1))
    return {"x": x, "y": y, "w1": w1, "b1": b1, "w2": w2, "y_again": y_again}


def test_regression_equals_back_propagation_by_hand(regression, points):
    x, y, w1, b1, w2 = (points[name] for name in ("x", "y", "w1", "b1", "w2"))
    b2 = np.zeros(1)
    for _ in range(10_000):
        h = np.tanh(x @ w1 + b1)
        d_output = 2 / 200 * (h @ w2 + b2 - y)
        d_hidden = d_output @ w2.T * (1 - h**2)
        w2 = w2 - 0.3 * h.T @ d_output
        b2 = b2 - 0.3 * d_output.sum(0)
        w1 = w1 - 0.3 * x.T @ d_hidden
        b1 = b1 - 0.3 * d_hidden.sum(0)
    fit = np.tanh(x @ w1 + b1) @ w2 + b2
    assert regression.metrics["loss"] == pytest.approx(np.mean((fit - y) ** 2), rel=2e-3)
    distance = np.sqrt(np.mean((fit - x**2) ** 2))
    assert regression.metrics["distance"] == pytest.approx(distance, rel=2e-2)
    assert regression.result["parameters"] == w1.size + b1.size + w2.size + b2.size == 31


def test_regression_is_near_the_best_parabola_and_the_noise_floor(regression, points):
    x, y = points["x"], points["y"]
    # A parabola's least squares by the normal equations.
    design = np.hstack([x**2, x, np.ones_like(x)])
    best = design @ np.linalg.solve(design.T @ design, design.T @ y)
    metrics = regression.metrics
    assert metrics["parabola_loss"] == pytest.approx(np.mean((best - y) ** 2), rel=1e-4)
    assert metrics["noise_floor"] == pytest.approx(np.mean((y - x**2) ** 2), rel=1e-4)
    assert metrics["loss"] < 1.05 * metrics["noise_floor"]
    assert metrics["distance"] < 0.25 * 0.02, "far closer to x² than the points are"


def test_regression_with_a_bias_per_point_memorises_the_noise(regression, points):
    metrics = regression.metrics
    assert metrics["bias_per_point_loss"] < 1e-9
    assert metrics["bias_per_point_noise_correlation"] > 0.9999
    # It predicts y itself, so its loss on new noise is that of one sample against the other.
    expected = np.mean((points["y_again"] - points["y"]) ** 2)
    assert metrics["bias_per_point_new_noise_loss"] == pytest.approx(expected, rel=1e-3)
    assert metrics["new_noise_loss"] < 0.6 * expected
    assert "Incompatible shapes: [50,10] vs. [200,10]" in regression.output
    assert "bias per unit:  50 points in, 50 predictions out" in regression.output
    assert "bias per point: 1 point in, 200 predictions out" in regression.output


def test_regression_logs_both_losses_from_a_common_start(regression):
    right = regression.events("bias_per_unit").values("loss")
    wrong = regression.events("bias_per_point").values("loss")
    assert list(right) == list(wrong) == sorted({30, *range(0, 10_001, 50)})
    assert right[0] == pytest.approx(wrong[0], rel=1e-5)
    assert right[10_000] == pytest.approx(regression.metrics["loss"])
    assert wrong[10_000] == pytest.approx(regression.metrics["bias_per_point_loss"])


def test_regression_says_so_when_the_rate_is_too_large(tmp_path):
    done = run_program(REGRESSION, "--learning-rate", "5", "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert "--learning-rate 5 is too large" in done.stderr
    assert "Traceback" not in done.stderr


# ---- 02_linear_mnist -----------------------------------------------------------------------

MNIST = "linear/02_linear_mnist.py"
OPTIMIZERS = [
    "sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamw"
]  # fmt: skip


@pytest.fixture(scope="module")
def lesson() -> ModuleType:
    return load_script(MNIST)


@pytest.fixture(scope="module")
def adam(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two seeds of the default optimizer."""
    return run_quick(MNIST, tmp_path_factory.mktemp("runs") / "adam", "--seeds", "2")


@pytest.fixture(scope="module")
def digits(lesson):
    """What a quick run trains, validates and tests on."""
    return lesson.load_data(None, quick=True)


def read_trial(folder: Path) -> dict:
    return json.loads((folder / "trial.json").read_text(encoding="utf-8"))


def predict(folder: Path, images: np.ndarray, train_images: np.ndarray) -> np.ndarray:
    """The network in NumPy, from ``parameters.npz``: logits of shape [n, 10]."""
    with np.load(folder / "parameters.npz", allow_pickle=False) as arrays:
        p = {name: arrays[name].astype(np.float64) for name in arrays}
    h = (images.reshape(-1, 784) - train_images.mean()) / train_images.std()
    h = np.tanh(h @ p["mlp/hidden1/kernel"] + p["mlp/hidden1/bias"])
    h = np.tanh(h @ p["mlp/hidden2/kernel"] + p["mlp/hidden2/bias"])
    return h @ p["mlp/logits/kernel"] + p["mlp/logits/bias"]


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and accuracy."""
    logits = logits - logits.max(1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_softmax[np.arange(len(labels)), labels].mean()
    return loss, np.mean(logits.argmax(1) == labels)


def test_every_reported_figure_follows_from_the_saved_parameters(adam, digits):
    for seed in (1, 2):
        folder = adam.folder / "adam" / f"seed_{seed}"
        trial = read_trial(folder)
        plain = tuple(part[:5_000] for part in digits.train)
        for part, loss, accuracy in (
            (digits.test, trial["metrics"]["test_loss"], trial["metrics"]["test_accuracy"]),
            (
                digits.validation,
                trial["metrics"]["validation_loss"],
                trial["metrics"]["validation_accuracy"],
            ),
            # The training loss without dropout, after the last epoch.
            (plain, trial["history"][-1]["plain_loss"], trial["history"][-1]["plain_accuracy"]),
        ):
            logits = predict(folder, part[0], digits.train[0])
            expected_loss, expected_accuracy = score(logits, part[1])
            assert loss == pytest.approx(expected_loss, rel=1e-3)
            assert accuracy == pytest.approx(expected_accuracy, abs=1.5 / len(part[1]))
        assert trial["parameters"] == 784 * 500 + 500 + 500 * 300 + 300 + 300 * 10 + 10
        assert trial["metrics"]["test_accuracy"] > 0.6, "it has learned"


def test_the_saved_model_takes_raw_pixels_in_another_process(adam, digits):
    import keras

    folder = adam.folder / "adam" / "seed_1"
    model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    logits = model(digits.test[0][:100], training=False).numpy()
    expected = predict(folder, digits.test[0][:100], digits.train[0])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    # Loss, optimizer and schedule are in the file: it can be scored and trained on.
    steps = -(-len(digits.train[0]) // 128)
    assert model.loss.get_config()["from_logits"] is True
    assert int(model.optimizer.iterations) == 2 * steps
    schedule = keras.optimizers.schedules.serialize(model.optimizer._learning_rate)
    assert schedule["config"]["boundaries"] == [steps - 1, 2 * steps - 1]


def test_mean_and_spread_are_over_the_seeds(adam, lesson):
    trials = adam.result["trials"]
    assert [trial["seed"] for trial in trials] == [1, 2]
    for name in ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss"):
        values = [trial["metrics"][name] for trial in trials]
        assert adam.metrics[name] == pytest.approx(statistics.mean(values))
        assert adam.metrics[f"{name}_std"] == pytest.approx(statistics.stdev(values))
    first, second = (trial["metrics"]["test_loss"] for trial in trials)
    assert first != second, "another seed, another network"
    mean, spread = lesson.mean_and_spread([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    np.testing.assert_allclose(mean, [3, 5])
    np.testing.assert_allclose(spread, [statistics.stdev([1, 2, 6]), 0])
    assert lesson.mean_and_spread([0.5]) == (0.5, None)


def test_tensorboard_has_curves_histograms_and_the_graph(adam):
    trial = adam.folder / "adam" / "seed_1"
    history = read_trial(trial)["history"]
    assert [record["epoch"] for record in history] == [1, 2]
    for name, key in (
        ("train", "loss"),
        ("validation", "val_loss"),
        ("train_without_dropout", "plain_loss"),
    ):
        events = Events(trial / name)
        assert {"epoch_loss", "epoch_accuracy"} <= events.tags("scalars")
        losses = [float(loss) for loss in events.values("epoch_loss").values()]
        assert losses == pytest.approx([record[key] for record in history])

    events = Events(trial / "variables")
    for layer in ("hidden1", "hidden2", "logits"):
        for kind in ("weights", "biases", "activations"):
            if (layer, kind) == ("logits", "activations"):
                continue
            assert f"{layer}/{kind}/histogram" in events.tags("histograms")
            assert f"{layer}/{kind}/mean" in events.tags("scalars")
            assert list(events.values(f"{layer}/{kind}/histogram")) == [0, 1, 2]
    with np.load(trial / "parameters.npz") as arrays:
        kernel = arrays["mlp/hidden2/kernel"]
    assert events.values("hidden2/weights/stddev")[2] == pytest.approx(kernel.std(), rel=1e-4)
    start = events.values("hidden1/weights/histogram")[0]  # [bins, (left, right, count)]
    assert start[:, 2].sum() == 784 * 500
    assert start[0, 0] >= -0.08 and start[-1, 1] <= 0.08, "cut off at two standard deviations"
    rates = [float(rate) for rate in events.values("learning_rate").values()]
    assert rates == pytest.approx([0.001, 0.0005])

    graph = adam.events("graph")
    assert graph.has_graph
    nodes = graph.graph_nodes()
    for part in ("hidden1", "hidden2", "logits"):
        assert any(part in node and node.endswith("MatMul") for node in nodes), nodes
    assert "pixels" in nodes


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_the_learning_rate_falls_once_an_epoch(lesson, epochs):
    schedule = lesson.learning_rate_schedule(0.4, epochs, steps_per_epoch=5)
    rates = [float(schedule(step)) for step in range(5 * epochs + 3)]
    expected = [0.2 * (1 + cos(pi * (step // 5) / epochs)) for step in range(5 * epochs)] + [0] * 3
    assert rates == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_follows_the_schedule(lesson, name):
    import keras

    schedule = lesson.learning_rate_schedule(0.1, epochs=2, steps_per_epoch=1)
    optimizer = lesson.OPTIMIZERS[name][1](schedule)
    variable = keras.Variable([1.0, -2.0])
    moves, rates = [], []
    for _ in range(3):
        before = variable.numpy()
        rates.append(float(optimizer.learning_rate))
        optimizer.apply([variable.value * 0 + [3.0, -3.0]], [variable])
        moves.append(np.abs(variable.numpy() - before).max())
    assert rates == pytest.approx([0.1, 0.05, 0])
    assert moves[0] > 0
    assert moves[1] > 0
    # At a rate of zero nothing moves but the velocity, which has 0.9 of itself left: after
    # 0.3 and 0.9 * 0.3 + 0.15 = 0.42 that is 0.378, and 0.9 of it, looking ahead.
    expected = {"momentum": 0.378, "nesterov": 0.9 * 0.378}.get(name, 0)
    assert moves[2] == pytest.approx(expected, rel=1e-5)


def test_the_model_standardises_pixels_once_and_drops_only_in_training(lesson, digits):
    images = digits.train[0][:500]
    model = lesson.build_model(images, initial_seed=1)
    standardised = images.reshape(-1, 784)
    for layer in model.layers[:2]:
        standardised = layer(standardised)
    assert float(np.mean(standardised)) == pytest.approx(0, abs=1e-4)
    assert float(np.std(standardised)) == pytest.approx(1, rel=1e-4)
    first, again = (model(images, training=False).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    dropped = model.layers[4](np.ones((100, 500), np.float32), training=True).numpy()
    assert np.mean(dropped == 0) == pytest.approx(lesson.DROPOUT, abs=0.02)
    np.testing.assert_allclose(dropped[dropped > 0], 1 / (1 - lesson.DROPOUT), rtol=1e-6)
    same, other = lesson.build_model(images, initial_seed=1), lesson.build_model(images, 2)
    assert np.array_equal(model.get_weights()[0], same.get_weights()[0])
    assert not np.array_equal(model.get_weights()[0], other.get_weights()[0])


def test_training_batches_cover_every_image_in_a_new_order_each_epoch(lesson):
    part = (np.zeros((10, 28, 28), np.uint8), np.arange(10, dtype=np.int32))

    def epochs(seed: int | None) -> list[list[int]]:
        dataset = lesson.make_dataset(part, 4, seed)
        return [[int(y) for _, labels in dataset for y in labels] for _ in range(2)]

    first, second = epochs(3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert epochs(3) == [first, second]
    assert epochs(None) == [list(range(10))] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer", "lion"], "argument --optimizer: invalid choice: 'lion'"),
        (["--optimizer", "all", "--learning-rate", "0.1"], "no single rate is fair"),
        (["--seeds", "0"], "argument --seeds: '0' is not a whole number from 1"),
        (["--seed", "4294967295", "--seeds", "2"], "2 seeds go beyond 4294967295"),
        (["--batch-size", "-3"], "argument --batch-size: '-3' is not a whole number from 1"),
    ],
)
def test_mnist_refuses_flags_in_a_sentence(lesson, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", [MNIST, *flags])
    with pytest.raises(SystemExit) as stopped:
        lesson.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# ---- the race: stopped in its second trial, then finished by the same command -----------------


@pytest.fixture(scope="module")
def stopped_race(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, dict]]:
    """The folder of a race stopped after the first epoch of its second trial, what it printed,
    and the two trials as they were then."""
    folder = tmp_path_factory.mktemp("runs") / "race"
    command = [sys.executable, str(ROOT / MNIST), "--quick", "--optimizer", "all"]
    process = subprocess.Popen(
        [*command, "--run-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"COURSE_OFFLINE": "1", "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    saved = folder / "backup" / "momentum" / "seed_1" / "training_metadata.json"
    deadline = time.monotonic() + 300
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert not (folder / "result.json").exists(), "it was stopped before its end"
    trials = {name: read_trial(folder / name / "seed_1") for name in ("sgd", "momentum")}
    return folder, output, trials


@pytest.fixture(scope="module")
def race(stopped_race) -> Finished:
    return run_quick(MNIST, stopped_race[0], "--optimizer", "all")


def test_a_stopped_race_goes_on_where_it_stopped(stopped_race, race):
    folder, output, before = stopped_race
    if os.name != "nt":
        assert "Stopped. To go on: the same command with --run-dir" in output
    assert before["sgd"]["metrics"], "the first trial was finished"
    assert read_trial(folder / "sgd" / "seed_1") == before["sgd"], "and was not run again"
    assert not before["momentum"]["metrics"]
    history = read_trial(folder / "momentum" / "seed_1")["history"]
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[0] == before["momentum"]["history"][0], "the first epoch was not run again"
    assert "Going on with the stopped run" in race.output
    assert not (folder / "unfinished.json").exists()


def test_the_race_is_won_by_validation_accuracy(race):
    assert [trial["optimizer"] for trial in race.result["trials"]] == OPTIMIZERS
    best = max(race.result["trials"], key=lambda trial: trial["metrics"]["validation_accuracy"])
    assert race.result["winner"] == best["optimizer"]
    assert race.metrics["test_accuracy"] == best["metrics"]["test_accuracy"]
    for trial in race.result["trials"]:
        name = trial["optimizer"]
        assert race.metrics[f"{name}_test_accuracy"] == trial["metrics"]["test_accuracy"]
        accuracy = trial["metrics"]["validation_accuracy"]
        assert race.metrics[f"{name}_validation_accuracy"] == accuracy
        assert f"{100 * accuracy:.2f}" in race.output
    assert f"{best['optimizer']} *" in race.output
    assert race.result["figures"] == ["race.png", "curves.png"]


def test_all_start_from_the_same_network_and_a_trial_does_not_depend_on_the_others(race, adam):
    starts = {
        float(Events(race.folder / name / "seed_1" / "variables").values(tag)[0])
        for name in OPTIMIZERS
        for tag in ("hidden1/weights/mean",)
    }
    assert len(starts) == 1
    in_race, alone = (read_trial(run.folder / "adam" / "seed_1") for run in (race, adam))
    assert in_race["metrics"] == alone["metrics"], "same seed, same result"


def test_the_hparams_tab_has_every_trial(race):
    def contents(folder: Path) -> dict[str, plugin_data_pb2.HParamsPluginData]:
        reader = EventAccumulator(str(folder))
        reader.Reload()
        parse = plugin_data_pb2.HParamsPluginData.FromString
        return {tag: parse(c) for tag, c in reader.PluginTagToContent("hparams").items()}

    experiment = contents(race.folder)["_hparams_/experiment"].experiment
    assert [info.name for info in experiment.hparam_infos] == [
        "optimizer", "learning_rate", "seed"
    ]  # fmt: skip
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"validation_accuracy", "test_accuracy"}
    for name in OPTIMIZERS:
        trial = race.folder / name / "seed_1"
        session = contents(trial)["_hparams_/session_start_info"].session_start_info
        assert session.hparams["optimizer"].string_value == name
        rate = read_trial(trial)["settings"]["learning_rate"]
        assert session.hparams["learning_rate"].number_value == rate
        events = Events(trial)
        for metric in metrics:
            (value,) = events.values(metric).values()
            assert value == pytest.approx(race.metrics[f"{name}_{metric}"])
