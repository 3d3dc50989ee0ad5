"""Chapter rnn: the LSTM end to end, its equations against other implementations, its files."""

import re
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Events, Finished, load_script, run_program, run_quick

from data import mnist
from utils.run import Run

LSTM = "rnn/01_mnist_lstm.py"
UNITS = 128


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(LSTM, tmp_path_factory.mktemp("runs") / "lstm")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(LSTM)


@pytest.fixture
def test_part(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels that the scripts are scored on."""
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    images = mnist.load()
    return images.test_images, images.test_labels


def make_run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: str | Path) -> Run:
    monkeypatch.setattr(sys, "argv", [LSTM, *map(str, flags)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
    return Run(script.make_flags(), script.__file__)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x)))


def reference_lstm(
    x: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """The last hidden state by the equations on Keras's joined matrices, in 64 bits."""
    h = c = np.zeros((len(x), recurrent.shape[0]))
    for t in range(x.shape[1]):
        i, f, candidate, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
        h = sigmoid(o) * np.tanh(c)
    return h


# ---- the run -------------------------------------------------------------------------------


def test_the_saved_file_read_by_another_reader_gives_the_stated_test_accuracy(finished, test_part):
    images, labels = test_part
    with (
        zipfile.ZipFile(finished.folder / "model.keras") as archive,
        archive.open("model.weights.h5") as file,
        h5py.File(file) as weights,
    ):
        lstm = [np.array(weights[f"layers/lstm/cell/vars/{n}"], np.float64) for n in range(3)]
        dense = [np.array(weights[f"layers/dense/vars/{n}"], np.float64) for n in range(2)]
    assert [w.shape for w in lstm] == [(28, 4 * UNITS), (UNITS, 4 * UNITS), (4 * UNITS,)]
    logits = reference_lstm(images / 255.0, *lstm) @ dense[0] + dense[1]
    right = logits.argmax(axis=1) == labels
    # 32 and 64 bits may part company over an image that lies between two classes
    assert finished.metrics["test_accuracy"] == pytest.approx(right.mean(), abs=2 / len(images))
    log_sum = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
    chosen = logits[np.arange(len(labels)), labels] - logits.max(axis=1)
    assert finished.metrics["test_loss"] == pytest.approx(np.mean(log_sum - chosen), abs=1e-4)
    of_each = finished.result["per_digit_accuracy"]
    assert of_each == pytest.approx([right[labels == k].mean() for k in range(10)], abs=0.03)
    together = np.average(of_each, weights=np.bincount(labels, minlength=10))
    assert together == pytest.approx(finished.metrics["test_accuracy"])


def test_even_a_quick_run_learns(finished):
    assert finished.metrics["test_accuracy"] > 0.35, "guessing gives 0.1"
    assert finished.result["parameters"] == 4 * UNITS * (28 + UNITS + 1) + (UNITS + 1) * 10


def test_it_says_what_was_proved(finished, test_part):
    count = len(test_part[0])
    assert f"{count:,} predictions, identical bit for bit" in finished.output
    difference = float(
        re.search(r"28 steps, 64 images: largest difference (\S+)", finished.output)[1]
    )
    assert 0 < difference < 1e-4, "0 would mean that something was compared with itself"
    assert "BlockLSTM and its weights converted to Keras: equal" in finished.output
    by_keras, by_hand = re.search(
        r"by Keras (.*)%, by the six equations (.*)%", finished.output
    ).groups()
    assert float(by_keras) == pytest.approx(float(by_hand), abs=0.5)
    assert finished.metrics["validation_accuracy"] == pytest.approx(float(by_keras) / 100, abs=1e-4)


def test_the_parameter_table_fits_a_narrow_terminal(finished):
    row = next(
        line for line in finished.output.splitlines() if "recurrent_kernel[:, 384:512]" in line
    )
    assert "128 × 128" in row
    assert "16,384" in row
    assert "…" not in row


def test_tensorboard_gets_curves_weights_and_graph(finished):
    for name in ("train", "validation"):
        events = finished.events(name)
        assert {"epoch_accuracy", "epoch_loss"} <= events.tags("scalars")
        assert set(events.values("epoch_loss")) == {0, 1}
    assert "epoch_learning_rate" in finished.events("train").tags("scalars")
    weights = finished.events("weights")
    names = {"lstm/kernel", "lstm/recurrent_kernel", "lstm/bias"}
    assert weights.tags("histograms") == {f"{name}/histogram" for name in names}
    # Before training a quarter of the biases is 1, the forget gate's; the others are 0.
    assert weights.values("lstm/bias/mean")[0] == pytest.approx(0.25)
    assert weights.values("lstm/bias/stddev")[0] == pytest.approx(np.sqrt(0.25 * 0.75))
    assert set(weights.values("lstm/bias/mean")) == {0, 1, 2}
    assert weights.values("lstm/kernel/stddev")[2] != weights.values("lstm/kernel/stddev")[0]
    graph = finished.events("graph")
    assert graph.has_graph
    assert any("lstm" in node and node.endswith("MatMul") for node in graph.graph_nodes())


def test_no_backup_is_left_after_a_run_that_ended(finished):
    assert not list(finished.folder.glob("backup*"))


# ---- using the saved model -----------------------------------------------------------------


def test_predict_classifies_the_whole_test_set(finished, script, tmp_path, monkeypatch, test_part):
    images, labels = test_part
    folder = tmp_path / "run"
    model = finished.folder / "model.keras"
    script.use_saved_model(make_run(script, monkeypatch, "--predict", model, "--run-dir", folder))
    with np.load(folder / "predictions.npz", allow_pickle=False) as predictions:
        logits, digits = predictions["logits"], predictions["digits"]
    assert logits.shape == (len(images), 10)
    assert np.array_equal(digits, logits.argmax(axis=1))
    assert np.mean(digits == labels) == finished.metrics["test_accuracy"]


def test_predict_refuses_what_is_no_model_of_this_script(script, finished, tmp_path):
    damaged = tmp_path / "damaged.keras"
    content = (finished.folder / "model.keras").read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit, match=r"--predict: .*damaged\.keras can't be loaded"):
        script.load_model(damaged)
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(other)
    with pytest.raises(SystemExit, match=r"maps \(None, 4\) to \(None, 2\); wanted"):
        script.load_model(other)
    code = tmp_path / "code.keras"
    keras.Sequential([keras.Input((28, 28)), keras.layers.Lambda(lambda x: x)]).save(code)
    with pytest.raises(SystemExit, match=r"code\.keras can't be loaded"):
        script.load_model(code)


def test_predict_without_a_file_says_where_to_get_one():
    done = run_program(LSTM, "--predict", "nowhere.keras")
    assert done.returncode == 2
    assert "--predict: nowhere.keras is not a .keras file; a run without --predict" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number from 1"),
        (["--batch-size", "many"], "argument --batch-size: 'many' is not a whole number from 1"),
        (["--learning-rate", "nan"], "argument --learning-rate: 'nan' is not a number above 0"),
    ],
)
def test_wrong_flags_are_refused_in_a_sentence(script, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        script.make_flags().parse_args(flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# ---- the equations -------------------------------------------------------------------------


def random_cell(inputs: int, units: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((inputs, 4 * units), (units, 4 * units), (4 * units,))
    return [rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes]


def lstm_layer(weights: list[np.ndarray]) -> keras.layers.LSTM:
    inputs, units = weights[0].shape[0], weights[1].shape[0]
    layer = keras.layers.LSTM(units)
    layer.build((None, None, inputs))
    layer.set_weights(weights)
    return layer


def test_the_equations_agree_with_a_second_implementation_and_with_the_whole_layer(script):
    weights = random_cell(inputs=5, units=7)
    layer = lstm_layer(weights)
    images = np.random.default_rng(1).integers(0, 256, (3, 11, 5), dtype=np.uint8)
    steps = script.read_rows(script.lstm_parameters(layer), images)
    assert {name: value.shape for name, value in steps.items()} == dict.fromkeys(
        ("i", "f", "candidate", "o", "c", "h"), (3, 11, 7)
    )
    last = reference_lstm(images / 255.0, *weights)
    np.testing.assert_allclose(steps["h"][:, -1], last, atol=1e-5)
    np.testing.assert_allclose(layer(images.astype(np.float32) / 255), last, atol=1e-5)


def test_a_step_in_closed_form(script):
    p = {f"{s}_{g}": np.zeros((2, 2), np.float32) for s in "WU" for g in "ifco"}
    p |= {f"b_{g}": np.zeros(2, np.float32) for g in "ifco"}
    x, h, c = (np.array([row], np.float32) for row in ([3, -2], [0.4, 0.1], [2, -4]))
    step = script.lstm_step(p, x, h, c)
    # No weights: every gate is half open, nothing is written, the memory halves.
    np.testing.assert_allclose(step["c"], c / 2)
    np.testing.assert_allclose(step["h"], np.tanh(c / 2) / 2, rtol=1e-6)
    # Forget gate open and input gate shut: the memory passes unchanged, whatever is read.
    p |= {"b_f": p["b_f"] + 1000, "b_i": p["b_i"] - 1000, "W_c": p["W_c"] + 1}
    np.testing.assert_array_equal(script.lstm_step(p, x, h, c)["c"], c)


def test_the_comparison_with_keras_notices_exchanged_gates(script):
    layer = lstm_layer(random_cell(inputs=5, units=7))
    p = script.lstm_parameters(layer)
    images = np.random.default_rng(1).integers(0, 256, (3, 11, 5), dtype=np.uint8)
    assert script.largest_difference(layer, script.read_rows(p, images), images) < 1e-5
    for first, second in (("i", "f"), ("c", "o")):
        exchanged = p | {f"{s}_{first}": p[f"{s}_{second}"] for s in "WUb"}
        exchanged |= {f"{s}_{second}": p[f"{s}_{first}"] for s in "WUb"}
        with pytest.raises(AssertionError):
            script.largest_difference(layer, script.read_rows(exchanged, images), images)


def test_weights_from_tensorflow_1(script):
    rng = np.random.default_rng(2)
    inputs, units, forget_bias = 5, 7, 0.6
    kernel = rng.normal(0, 0.5, (inputs + units, 4 * units)).astype(np.float32)
    bias = rng.normal(0, 0.5, 4 * units).astype(np.float32)
    x = rng.normal(0, 1, (3, 11, inputs)).astype(np.float32)
    h = c = np.zeros((3, units))
    for t in range(11):  # BasicLSTMCell's own lines
        joined = np.concatenate([x[:, t], h], axis=1) @ kernel + bias
        i, j, f, o = np.split(joined, 4, axis=1)
        c = c * sigmoid(f + forget_bias) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
    converted = script.from_basic_lstm_cell(kernel, bias, forget_bias)
    np.testing.assert_allclose(lstm_layer(converted)(x), h, atol=1e-5)


def test_the_check_of_the_conversion_notices_a_lost_forget_bias(script, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (3, 11, 5), dtype=np.uint8)
    script.check_conversion(images, seed=0)
    convert = script.from_basic_lstm_cell
    monkeypatch.setattr(script, "from_basic_lstm_cell", lambda k, b: convert(k, b, forget_bias=0))
    with pytest.raises(AssertionError):
        script.check_conversion(images, seed=0)


@pytest.mark.parametrize(
    ("kernel", "bias"), [((12, 28), (27,)), ((12, 24), (28,)), ((7, 28), (28,)), ((12,), (12,))]
)
def test_weights_of_no_lstm_are_refused(script, kernel, bias):
    with pytest.raises(ValueError, match="kernel"):
        script.from_basic_lstm_cell(np.zeros(kernel), np.zeros(bias))


# ---- training ------------------------------------------------------------------------------


def test_the_pipeline_gives_every_image_once_an_epoch_in_a_new_order(script):
    images = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    labels = np.arange(10, dtype=np.uint8)

    def epoch(dataset: tf.data.Dataset) -> list[int]:
        batches = list(dataset.as_numpy_iterator())
        assert [len(batch[1]) for batch in batches] == [4, 4, 2]
        for batch_images, batch_labels in batches:
            assert batch_images.dtype == np.uint8
            assert np.array_equal(batch_images[:, 5, 5], batch_labels)
        return np.concatenate([batch[1] for batch in batches]).tolist()

    plain = script.pipeline(images, labels, 4)
    assert epoch(plain) == epoch(plain) == list(range(10))
    shuffled = script.pipeline(images, labels, 4, shuffle_seed=3)
    first, second = epoch(shuffled), epoch(shuffled)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert epoch(script.pipeline(images, labels, 4, shuffle_seed=3)) == first


def test_the_learning_rate_rises_then_falls_to_zero(script):
    rate = script.learning_rate_schedule(0.5, 1000)
    warm_up = int(1000 * script.WARM_UP)
    assert float(rate(0)) == pytest.approx(0.05)
    assert float(rate(warm_up)) == pytest.approx(0.5)
    assert float(rate((1000 + warm_up) / 2)) == pytest.approx(0.25), "the cosine's middle"
    assert float(rate(1000)) == pytest.approx(0, abs=1e-7)
    assert np.isfinite(float(script.learning_rate_schedule(0.5, 1)(1)))


def test_an_interrupted_run_goes_on_after_its_last_epoch(script, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 90, dtype=np.uint8)
    part = (images[:60], labels[:60], images[60:75], labels[60:75], images[75:], labels[75:])
    data = mnist.Mnist(*part, source="noise")
    flags = ("--run-dir", tmp_path / "run", "--batch-size", "20")

    def epochs_run(epochs: int) -> int:
        run = make_run(script, monkeypatch, *flags, "--epochs", str(epochs))
        model = script.build_model(units=4)
        done = script.train(model, data, run).history["loss"]
        assert model.optimizer.iterations == 3 * epochs
        return len(done)

    class Stops(script.WeightSummaries):
        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            super().on_epoch_end(epoch, logs)
            if epoch == 1:
                raise KeyboardInterrupt

    for epochs, left in ((3, 1), (2, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(script, "WeightSummaries", Stops)
            with pytest.raises(KeyboardInterrupt):
                epochs_run(3)
        # With the same settings the third epoch is left; with others all are to be done.
        assert epochs_run(epochs) == left
        assert set(Events(tmp_path / "run/train").values("epoch_loss")) == set(range(epochs))
        steps = set(Events(tmp_path / "run/weights").values("lstm/bias/mean"))
        assert steps == set(range(epochs + 1))
        assert not (tmp_path / "run" / "backup").exists()
    assert capsys.readouterr().out.count("Going on after the last finished epoch") == 1


def test_the_digit_table(script):
    labels = np.array([0, 0, 0, 0, 1, 1], np.uint8)
    logits = np.eye(10)[[0, 0, 7, 3, 1, 1]]
    logits[3, 7] = 2
    table, right = script.digit_table(logits, labels)
    assert right == [0.5, 1.0] + [0.0] * 8
    cells = [list(column.cells)[:2] for column in table.columns]
    assert cells == [["0", "1"], ["4", "2"], ["50.00%", "100.00%"], ["7, 2 times", "nothing else"]]


def test_the_loss_of_a_softmax_taken_twice_can_not_fall_below_the_stated_number(script):
    certain = np.eye(10, dtype=np.float32)  # probabilities of a network that is never wrong
    assert script.score(certain, np.arange(10))["test_loss"] == pytest.approx(1.46, abs=0.005)
