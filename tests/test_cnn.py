"""Chapter cnn: both networks against each other, their arithmetic against second reckonings, and
what a run leaves against what other readers find in it."""

import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, Events, Finished, load_script, run_program, run_quick
from sklearn.metrics import log_loss

from data import mnist

LAYERS = "cnn/01_mnist_conv_layers.py"
BY_HAND = "cnn/02_mnist_conv_nn.py"
WINDOWS_LAYERS = ("conv1", "pool1", "conv2", "pool2")


@pytest.fixture(scope="module")
def layers_script():
    return load_script(LAYERS)


@pytest.fixture(scope="module")
def hand_script():
    return load_script(BY_HAND)


@pytest.fixture(scope="module")
def digits() -> mnist.Mnist:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_OFFLINE", "1")
        return mnist.load()


@pytest.fixture(scope="module")
def layers_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(LAYERS, tmp_path_factory.mktemp("runs") / "layers")


@pytest.fixture(scope="module")
def hand_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(BY_HAND, tmp_path_factory.mktemp("runs") / "hand", "--epochs", "2")


def small(m: mnist.Mnist, count: int) -> mnist.Mnist:
    """``count`` images of each part."""
    parts = ("train", "validation", "test")
    kept = {
        f"{part}_{what}": getattr(m, f"{part}_{what}")[:count]
        for part in parts
        for what in ("images", "labels")
    }
    return mnist.Mnist(**kept, source=m.source, stand_in=m.stand_in)


# ---- 01_mnist_conv_layers ------------------------------------------------------------------


def test_saved_model_read_back_gives_the_reported_result(layers_run, digits):
    model = keras.models.load_model(layers_run.folder / "model.keras")
    assert model.count_params() == layers_run.result["parameters"] == 3_274_634
    images = tf.data.Dataset.from_tensor_slices(digits.test_images).batch(500)  # raw bytes
    probabilities = model.predict(images, verbose=0).astype(np.float64)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # exact for log_loss
    answers = probabilities.argmax(axis=1)
    labels = digits.test_labels.astype(int)
    assert layers_run.metrics["test_accuracy"] == pytest.approx(np.mean(answers == labels))
    assert layers_run.metrics["test_loss"] == pytest.approx(
        log_loss(labels, probabilities, labels=range(10)), rel=1e-3
    )
    counted = np.bincount(labels * 10 + answers, minlength=100).reshape(10, 10)
    np.testing.assert_array_equal(layers_run.result["confusion_matrix"], counted)
    # The table printed for the first 20.
    rows = re.findall(r"│ +(\d+) +│ +(\d) +│ +(\d) +│ +([\d.]+)%", layers_run.output)
    assert [int(row[0]) for row in rows] == list(range(20))
    assert [int(row[1]) for row in rows] == labels[:20].tolist()
    assert [int(row[2]) for row in rows] == answers[:20].tolist()
    np.testing.assert_allclose(
        [float(row[3]) / 100 for row in rows], probabilities[:20].max(axis=1), atol=1e-4
    )


def test_layers_learn_and_leave_their_figures(layers_run):
    assert layers_run.metrics["test_accuracy"] > 0.85
    assert layers_run.result["train_seconds"] > 0
    assert set(layers_run.result["figures"]) == {
        "predictions.png",
        "worst_mistakes.png",
        "confusion_matrix.png",
    }
    assert not (layers_run.folder / "backup").exists()


def test_layers_events(layers_run):
    train, validation = layers_run.events("train"), layers_run.events("validation")
    assert {"epoch_loss", "epoch_accuracy", "epoch_learning_rate"} <= train.tags("scalars")
    assert {"epoch_loss", "epoch_accuracy"} <= validation.tags("scalars")
    (accuracy,) = validation.values("epoch_accuracy").values()
    assert accuracy == pytest.approx(layers_run.metrics["validation_accuracy"], abs=1e-6)
    nodes = layers_run.events("graph").graph_nodes()
    assert any("conv2" in node and node.endswith("convolution") for node in nodes), nodes


@pytest.mark.parametrize("script", ["layers_script", "hand_script"])
def test_learning_rate_rises_and_falls_by_the_formula(script, request):
    schedule = request.getfixturevalue(script).learning_rate_schedule(peak=2.0, steps=200)
    for step in range(0, 201, 10):
        falling = 1 + np.cos(np.pi * (step - 30) / 170)
        expected = 0.2 + 1.8 * step / 30 if step < 30 else falling
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-5), step


def test_interrupted_fit_goes_on_after_the_last_epoch(layers_script, digits, tmp_path, monkeypatch):
    # With a rate of next to nothing the weights stay as they began, so that those of the second
    # model tell whether the first model's were read.
    args = SimpleNamespace(epochs=2, batch_size=32, learning_rate=1e-20, seed=1, quick=False)
    run = SimpleNamespace(
        folder=tmp_path, backup=tmp_path / "backup", resuming=True, verbose=0, log_dir=str
    )
    few = small(digits, 64)

    class Stopped(Exception):
        pass

    def stop_in_second_epoch(self, epoch, logs=None):
        if epoch == 1:
            raise Stopped

    first, second = layers_script.build_model(), layers_script.build_model()
    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.TensorBoard, "on_epoch_begin", stop_in_second_epoch)
        with pytest.raises(Stopped):
            layers_script.train(first, few, args, run)
    epochs, seconds = layers_script.train(second, few, args, run)
    assert (epochs, seconds) == ([1], None)
    assert int(second.optimizer.iterations) == 4  # two of them by the first model
    for ours, theirs in zip(second.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)
    assert not run.backup.exists()


# ---- 02_mnist_conv_nn ----------------------------------------------------------------------


def test_both_networks_give_equal_outputs_for_equal_weights(layers_script, hand_script, digits):
    model, network = layers_script.build_model(), hand_script.ConvNet(seed=5)
    rng = np.random.default_rng(0)
    for name in ("conv1", "conv2", "hidden", "logits"):
        kernel, bias = model.get_layer(name).weights
        bias.assign(rng.normal(size=bias.shape))
        getattr(network, f"{name}_kernel").assign(kernel.numpy())
        getattr(network, f"{name}_bias").assign(bias.numpy())
    images = digits.validation_images[:40]
    theirs = model(images, training=False).numpy()
    ours = network.predict(images).numpy()
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    # The layers between, too.
    pixels = tf.constant(images[..., None] / 255, tf.float32)
    for output, name in zip(network.convolutions(pixels), ("conv1", "conv2", "pool2"), strict=True):
        part = keras.Model(model.inputs[0], model.get_layer(name).output)
        np.testing.assert_allclose(output, part(images), rtol=1e-4, atol=1e-4)


def test_layer_arithmetic_agrees_with_tensorflow(hand_script):
    for padding in ("SAME", "VALID"):
        for size, window, stride in [(28, 5, 1), (28, 2, 2), (9, 4, 3), (10, 5, 2), (7, 7, 1)]:
            image, kernel = tf.zeros([1, size, size, 1]), tf.zeros([window, window, 1, 1])
            made = tf.nn.conv2d(image, kernel, stride, padding).shape[1]
            assert hand_script.output_size(size, window, stride, padding) == made
    rows = {row[0]: row[1:] for row in hand_script.layer_table()}
    assert tuple(rows) == WINDOWS_LAYERS
    assert [rows[name][0] for name in WINDOWS_LAYERS] == [28, 14, 14, 7]
    assert [rows[name][1] for name in WINDOWS_LAYERS] == [24, 12, 8, 4]
    assert [rows[name][4] for name in WINDOWS_LAYERS] == [832, 0, 51_264, 0]


def test_receptive_fields_agree_with_the_gradient(hand_script):
    """Which pixels have a part in one number of the layer: those with a derivative."""
    network = hand_script.ConvNet(seed=1)
    for kernel in (network.conv1_kernel, network.conv2_kernel):
        kernel.assign(tf.abs(kernel))  # so that relu lets everything through
    pixels = tf.constant(np.random.default_rng(0).random((16, 28, 28, 1)), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pixels)
        conv1, conv2, pool2 = network.convolutions(pixels)
        middle = {"conv1": conv1[:, 14, 14], "conv2": conv2[:, 7, 7], "pool2": pool2[:, 3, 3]}
    fields = {row[0]: row[4] for row in hand_script.layer_table()}
    for name, numbers in middle.items():
        seen = np.abs(tape.gradient(numbers, pixels)).sum(axis=(0, 3)) > 0  # [28, 28]
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == fields[name], name


def test_initial_weights_have_hes_spread(hand_script):
    network = hand_script.ConvNet(seed=3)
    for kernel, inputs in [(network.hidden_kernel, 3136), (network.conv2_kernel, 800)]:
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / inputs), rel=0.01)
        reference = keras.initializers.HeNormal(seed=1)(kernel.shape)
        assert np.std(kernel) == pytest.approx(np.std(reference), rel=0.01)
    again, other = hand_script.ConvNet(seed=3), hand_script.ConvNet(seed=4)
    np.testing.assert_array_equal(again.hidden_kernel, network.hidden_kernel)
    assert not np.array_equal(other.hidden_kernel, network.hidden_kernel)


def test_slopes_of_the_costs_agree_with_finite_differences(hand_script):
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(0, 2, (6, 10)), rng.integers(0, 10, 6)
    truth = np.eye(10)[labels]

    def costs(z: np.ndarray) -> dict[str, np.ndarray]:
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return {
            "cross_entropy": -np.log(np.sum(p * truth, axis=1)),
            "quadratic": np.sum((p - truth) ** 2, axis=1) / 2,
        }

    slopes = hand_script.cost_slopes(logits, labels)
    for name, values in costs(logits).items():
        made = float(hand_script.COSTS[name](tf.constant(logits), tf.constant(labels)))
        assert made == pytest.approx(values.mean())
        for i in range(10):
            shift = 1e-6 * np.eye(10)[i]
            difference = costs(logits + shift)[name] - costs(logits - shift)[name]
            np.testing.assert_allclose(slopes[name][:, i], difference / 2e-6, atol=1e-8)
    # Two classes (the others have no weight): the error times 2 p (1 - p), as the notes say.
    logits = np.full((1, 10), -1e3)
    logits[0, :2] = 1.5, 0.0
    p = 1 / (1 + np.exp(-1.5))
    slope = hand_script.cost_slopes(logits, np.array([1]))["quadratic"][0, 0]
    assert slope == pytest.approx(2 * p * (1 - p) * p)
    # Surely wrong: the cross-entropy pulls with all its force, the quadratic cost with none.
    wrong, slopes = hand_script.slopes_when_wrong()
    assert wrong[-1] > 0.999
    assert slopes["cross_entropy"][-1] > 0.999
    assert slopes["quadratic"][-1] < 0.01 * slopes["quadratic"].max()


def test_dropout_follows_its_seed_and_is_off_without(hand_script, digits):
    network = hand_script.ConvNet(seed=1)
    images = digits.validation_images[:8]
    plain = network(images).numpy()
    np.testing.assert_allclose(network.predict(images), plain, rtol=1e-4, atol=1e-5)
    dropped = [network(images, tf.constant([1, step], tf.int64)).numpy() for step in (7, 7, 8)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 0.01
    assert np.abs(dropped[0] - plain).max() > 0.01
    # On average it changes nothing: the units that stay are doubled.
    mean = np.mean([network(images, tf.constant([2, s], tf.int64)) for s in range(200)], axis=0)
    assert np.abs(mean - plain).max() < 0.35 * np.abs(dropped[0] - plain).max()


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(hand_script):
    labels = np.arange(100, dtype=np.uint8)
    images = np.broadcast_to(labels[:, None, None], (100, 28, 28))

    def order(seed: int, epoch: int) -> list[int]:
        seen = []
        for image, label in hand_script.shuffled_batches(images, labels, 32, seed, epoch):
            np.testing.assert_array_equal(image[:, 0, 0], label)  # still together
            seen += label.numpy().tolist()
        return seen

    first = order(seed=4294967295, epoch=0)
    assert sorted(first) == list(range(100)) != first
    assert order(seed=4294967295, epoch=0) == first
    assert order(seed=4294967295, epoch=1) != first
    assert order(seed=1, epoch=0) != first


def test_score_agrees_with_scikit_learn(hand_script, digits):
    network = hand_script.ConvNet(seed=1)
    images, labels = digits.validation_images[:150], digits.validation_labels[:150]
    loss, accuracy = hand_script.score(network, images, labels)
    logits = network(images).numpy().astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-4)
    assert accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == labels))


def test_mosaic_lays_maps_out_row_by_row(hand_script):
    maps = np.arange(4 * 2 * 3, dtype=float).reshape(4, 2, 3)
    grid = hand_script.mosaic(maps, columns=2)
    assert grid.shape == (2 * 2 + 1, 2 * 3 + 1)
    np.testing.assert_array_equal(grid[:2, :3], maps[0])
    np.testing.assert_array_equal(grid[:2, 4:], maps[1])
    np.testing.assert_array_equal(grid[3:, :3], maps[2])
    assert np.isnan(grid[2]).all()
    assert np.isnan(grid[:, 3]).all()


def test_by_hand_learns_and_shows_what_the_costs_do(hand_run):
    assert hand_run.metrics["test_accuracy"] > 0.85
    assert hand_run.result["parameters"] == 3_274_634
    assert set(hand_run.result["figures"]) == {
        "costs.png",
        "curves.png",
        "filters.png",
        "feature_maps.png",
    }
    comparison = hand_run.result["comparison"]
    for start in ("normal_start", "wrong_start"):
        cross_entropy, quadratic = (
            comparison[start][cost] for cost in ("cross_entropy", "quadratic")
        )
        assert len(cross_entropy) == len(quadratic) == len(comparison["steps"])
        assert cross_entropy[0] == quadratic[0] < 0.3, "not the same start"
        assert cross_entropy[-1] > quadratic[-1]
    assert comparison["wrong_start"]["cross_entropy"][-1] > 0.4
    assert comparison["wrong_start"]["quadratic"][-1] < 0.3


def test_by_hand_events(hand_run):
    train, validation = hand_run.events("train"), hand_run.events("validation")
    assert {"loss", "accuracy", "batch_loss", "learning_rate"} <= train.tags("scalars")
    assert validation.tags("scalars") == {"loss", "accuracy"}
    assert "conv1_kernel/histogram" in train.tags("histograms")
    curves = np.array(hand_run.result["curves"])
    assert curves.shape == (3, 4)
    for column, (events, tag) in enumerate(
        [(train, "loss"), (train, "accuracy"), (validation, "loss"), (validation, "accuracy")]
    ):
        values = events.values(tag)
        assert len(values) == 3
        assert min(values) == 0
        np.testing.assert_allclose(list(values.values()), curves[:, column], rtol=1e-5)
    assert hand_run.metrics["validation_accuracy"] == curves[-1, 3]
    for cost in ("cross_entropy", "quadratic"):
        events = hand_run.events(f"compare/{cost}")
        for start in ("normal_start", "wrong_start"):
            np.testing.assert_allclose(
                list(events.values(f"compare_{start}/accuracy").values()),
                hand_run.result["comparison"][start][cost],
                rtol=1e-5,
            )
    nodes = hand_run.events("graph").graph_nodes()
    assert {"conv1/Conv2D", "pool2/MaxPool2d", "logits/MatMul"} <= nodes, nodes


def test_a_killed_training_goes_on_exactly(hand_run, tmp_path):
    folder = tmp_path / "run"
    flags = ["--quick", "--epochs", "2", "--compare-steps", "1", "--run-dir", str(folder)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / BY_HAND), *flags],
        env=os.environ | {"COURSE_OFFLINE": "1", "PYTHONUTF8": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not (folder / "backup" / "checkpoint").exists():
            assert process.poll() is None, "ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "result.json").exists()
    resumed = run_quick(BY_HAND, folder, "--epochs", "2", "--compare-steps", "1")
    assert "Going on after epoch 1 of the interrupted run." in resumed.output
    assert resumed.metrics == hand_run.metrics
    assert resumed.result["curves"] == hand_run.result["curves"]
    assert list(Events(folder / "validation").values("accuracy")) == list(
        hand_run.events("validation").values("accuracy")
    )
    assert not (folder / "backup").exists()


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (LAYERS, ["--epochs", "0"], "argument --epochs: '0' is not a whole number from 1"),
        (BY_HAND, ["--compare-steps", "x"], "argument --compare-steps: 'x' is not a whole number"),
    ],
)
def test_wrong_flags_are_refused_in_a_sentence(script, flags, message):
    done = run_program(script, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
