"""Chapter rnn: the saved LSTM read by others, its equations, its weights from TensorFlow 1, and the
gradient that comes back."""

import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Lesson, run_lesson

import utils.run

UNITS = 128


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    folder = tmp_path_factory.mktemp("runs") / "a folder, äöü"  # the second process finds it, too
    return run_lesson("rnn/01_mnist_lstm.py", folder)


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory, lstm: Lesson) -> Lesson:
    """Of a course in which a full run and then a quick one have saved a network."""
    root = tmp_path_factory.mktemp("course")
    runs = root / "runs" / "01_mnist_lstm"
    for name in ("20260101-120000", "20260102-120000", "20260103-120000-quick"):
        (runs / name).mkdir(parents=True)
        shutil.copyfile(lstm.folder / "model.keras", runs / name / "model.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.run, "ROOT", root)
        return run_lesson("rnn/02_inside_the_lstm.py", root / "run")


@pytest.fixture(scope="module")
def weights(lstm: Lesson) -> list[np.ndarray]:
    """Kernel, recurrent kernel and bias of the LSTM, kernel and bias of the dense layer, as another
    reader finds them in the saved file."""
    with (
        zipfile.ZipFile(lstm.folder / "model.keras") as archive,
        archive.open("model.weights.h5") as file,
        h5py.File(file) as stored,
    ):
        names = [f"layers/lstm/cell/vars/{n}" for n in range(3)]
        names += [f"layers/dense/vars/{n}" for n in range(2)]
        return [np.array(stored[name], np.float64) for name in names]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def reference_lstm(
    x: np.ndarray,
    kernel: np.ndarray,
    recurrent: np.ndarray,
    bias: np.ndarray,
    h: np.ndarray | float = 0,
    c: np.ndarray | float = 0,
) -> list[dict[str, np.ndarray]]:
    """Gates and states after each row by the equations on Keras's joined matrices."""
    h, c = (np.broadcast_to(np.asarray(s, x.dtype), (len(x), len(recurrent))) for s in (h, c))
    steps = []
    for t in range(x.shape[1]):
        i, f, candidate, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
        h = sigmoid(o) * np.tanh(c)
        steps.append({"f": sigmoid(f), "o": sigmoid(o), "c": c, "h": h})
    return steps


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    chosen = np.take_along_axis(logits, labels[:, None].astype(int), axis=1)[:, 0]
    return np.logaddexp.reduce(logits, axis=1) - chosen


# ---- 01_mnist_lstm.py ----------------------------------------------------------------------


def test_the_saved_file_read_by_another_reader_gives_the_stated_test_accuracy(lstm, weights):
    data = lstm.variables["data"]
    kernel, recurrent, bias, dense, dense_bias = (w.astype(np.float32) for w in weights)
    assert kernel.shape == (28, 4 * UNITS)
    images = data.test_images / np.float32(255)
    logits = reference_lstm(images, kernel, recurrent, bias)[-1]["h"] @ dense + dense_bias
    right = np.mean(logits.argmax(axis=1) == data.test_labels)
    # rounding may decide about an image that lies between two digits
    assert lstm.metrics["test_accuracy"] == pytest.approx(right, abs=2 / len(logits))
    loss = cross_entropy(logits, data.test_labels).mean()
    assert lstm.metrics["test_loss"] == pytest.approx(loss, abs=1e-4)
    assert lstm.result["data"]["test_images"] == len(logits) == len(lstm.variables["logits"])
    assert lstm.result["parameters"] == sum(weight.size for weight in weights)


def test_even_a_quick_run_learns(lstm):
    assert lstm.metrics["test_accuracy"] > 0.35, "guessing gives 0.1"


def test_had_reading_stopped_after_a_row_the_network_would_have_answered_so(lstm, weights):
    images = lstm.variables["data"].validation_images
    labels = lstm.variables["data"].validation_labels
    for row in (14, 28):
        h = reference_lstm(images[:, :row] / 255, *weights[:3])[-1]["h"]
        right = np.mean((h @ weights[3] + weights[4]).argmax(axis=1) == labels)
        assert lstm.variables["accuracy_by_row"][row - 1] == pytest.approx(right, abs=0.005)
    assert lstm.metrics["validation_accuracy"] == pytest.approx(right, abs=0.005)


def test_a_batch_is_moved_by_at_most_a_pixel_in_all_directions(lstm):
    images, labels = (part[:8] for part in (lstm.variables["data"].train_images, np.arange(8)))
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    keras.utils.set_random_seed(0)
    found = set()
    for _ in range(100):
        moved, same = lstm.variables["moved"](images, labels)
        assert np.array_equal(same, labels)
        (step,) = (s for s in steps if np.array_equal(np.roll(images, s, axis=(1, 2)), moved))
        found.add(step)
    assert found == set(steps)


def test_a_second_softmax_keeps_the_loss_above_the_stated_number(lstm):
    np.testing.assert_allclose(lstm.variables["twice"], np.log(1 + 9 / np.e), rtol=1e-6)


def test_tensorboard_gets_curves_weights_and_graph(lstm):
    epochs = lstm.result["arguments"]["epochs"]
    for name in ("train", "validation"):
        events = lstm.events(name)
        assert {"epoch_accuracy", "epoch_loss"} <= events.tags("scalars")
        assert set(events.values("epoch_loss")) == set(range(epochs))
    events = lstm.events("weights")
    names = {"lstm/kernel", "lstm/recurrent_kernel", "lstm/bias"}
    assert events.tags("histograms") == names
    # Before training a quarter of the biases is 1, the forget gate's; the others are 0.
    (left, _, zeros), *_, (_, right, ones) = events.values("lstm/bias")[0]
    assert (left, right, ones / (zeros + ones)) == (0, 1, 0.25)
    histograms = {events.values("lstm/kernel")[step].tobytes() for step in range(epochs + 1)}
    assert len(histograms) == epochs + 1, "at first and after each epoch"
    nodes = lstm.events("graph").graph_nodes()
    assert any("lstm" in node and node.endswith("MatMul") for node in nodes)


# ---- 02_inside_the_lstm.py: the network and its equations ----------------------------------


def test_the_network_of_the_newest_full_run_is_opened(inside, weights):
    assert "20260102-120000" in str(inside.variables["path"])
    for ours, theirs in zip(inside.variables["model"].get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))


def test_without_a_saved_network_one_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(utils.run, "ROOT", tmp_path)
    alone = run_lesson("rnn/02_inside_the_lstm.py", tmp_path / "run")
    assert "has saved no network yet" in alone.output
    data, model = alone.variables["data"], alone.variables["model"]
    _, accuracy = model.evaluate(data.validation_images, data.validation_labels, verbose=0)
    assert accuracy > 0.25, "guessing gives 0.1"


@pytest.mark.parametrize("content", [None, b"damaged", "another network"])
def test_what_is_no_model_of_01_is_refused_in_a_sentence(content, tmp_path, capfd):
    path = tmp_path / "model.keras"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
    with pytest.raises(SystemExit) as stop:
        run_lesson("rnn/02_inside_the_lstm.py", tmp_path / "run", "--model", path)
    assert stop.value.code == 2
    assert "model.keras is not a model that 01_mnist_lstm.py saved: " in capfd.readouterr().err


def test_the_six_equations_agree_with_a_second_implementation(inside, weights):
    steps = reference_lstm(inside.variables["images"] / 255, *weights[:3])
    np.testing.assert_allclose(inside.variables["h"], steps[-1]["h"], atol=1e-5)
    _, f, o, c = inside.variables["gates"]  # [200, 28, 128] each
    for name, value in (("f", f), ("o", o), ("c", c)):
        np.testing.assert_allclose(value, np.stack([s[name] for s in steps], axis=1), atol=1e-4)


def test_the_table_has_every_parameter_once(inside):
    rows = re.findall(r"^([WUb]_[ifco]) .*\) +([\d,]+) +-?\d", inside.output, re.MULTILINE)
    assert [name for name, _ in rows] == [f"{s}_{part}" for s in "WUb" for part in "ifco"]
    counts = [int(number.replace(",", "")) for _, number in rows]
    assert sum(counts) == 4 * (28 * UNITS + UNITS * UNITS + UNITS)


# ---- 02_inside_the_lstm.py: weights from TensorFlow 1 --------------------------------------


def test_the_saved_cell_calculates_what_tensorflow_s_own_operation_does(inside):
    rows = np.swapaxes(inside.variables["rows"], 0, 1)  # [28, 200, 28]
    checkpoint = inside.variables["checkpoint"]
    units = inside.variables["OLD_UNITS"]
    zero = np.zeros((rows.shape[1], units), np.float32)
    peephole = np.zeros(units, np.float32)  # a connection from c to the gates, not used here
    judge = tf.raw_ops.BlockLSTM(
        seq_len_max=tf.constant(28, tf.int64),
        x=rows,
        cs_prev=zero,
        h_prev=zero,
        w=checkpoint.get_tensor("rnn/basic_lstm_cell/kernel"),
        wci=peephole,
        wcf=peephole,
        wco=peephole,
        b=checkpoint.get_tensor("rnn/basic_lstm_cell/bias"),
        forget_bias=1.0,
        cell_clip=-1.0,  # do not cut the cell state off
    )
    assert np.abs(inside.variables["old"]).max() > 0.1
    np.testing.assert_allclose(inside.variables["old"], judge.h[-1], atol=1e-5)
    np.testing.assert_allclose(
        inside.variables["converted"](rows.swapaxes(0, 1)), judge.h[-1], atol=1e-5
    )


def test_the_old_graph_takes_one_number_of_images(inside):
    cell = inside.variables["BasicLSTMCell"]()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 28, 28])
        zeros = cell.zero_state(5, tf.float32)
        outputs, _ = tf.compat.v1.nn.dynamic_rnn(cell, x, initial_state=zeros)
        session.run(tf.compat.v1.global_variables_initializer())
        assert session.run(outputs, {x: np.zeros((5, 28, 28))}).shape[:2] == (5, 28)
        with pytest.raises(tf.errors.InvalidArgumentError):
            session.run(outputs, {x: np.zeros((4, 28, 28))})


# ---- 02_inside_the_lstm.py: the way back ---------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        (keras.layers.SimpleRNN, 0.8),
        (keras.layers.GRU, 0.5),  # its gate is half open
        (keras.layers.LSTM, 1 / (1 + np.exp(-1))),  # its forget gate's bias is 1
    ],
)
def test_the_gradient_in_closed_form(inside, kind, factor):
    layer = kind(3)
    layer.build((None, 28, 28))
    for weight in layer.cell.weights[:2]:
        weight.assign(tf.zeros_like(weight))
    if kind is keras.layers.SimpleRNN:
        layer.cell.recurrent_kernel.assign(factor * tf.eye(3))
    shares = inside.variables["gradient_by_row"](layer, keras.layers.Dense(10))
    np.testing.assert_allclose(shares, factor ** np.arange(27, -1, -1), rtol=1e-4)


def test_forget_gates_alone_leave_their_product(inside, weights):
    steps = reference_lstm(inside.variables["images"] / 255, *weights[:3])
    logits = steps[-1]["h"] @ weights[3] + weights[4]
    error = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    error -= np.eye(10)[inside.variables["labels"]]
    gradient = (error @ weights[3].T) * steps[-1]["o"] * (1 - np.tanh(steps[-1]["c"]) ** 2)
    sizes = [np.linalg.norm(gradient, axis=1)]
    for step in reversed(steps[1:]):
        gradient = gradient * step["f"]
        sizes.insert(0, np.linalg.norm(gradient, axis=1))
    shares = np.median(np.stack(sizes) / sizes[-1], axis=1)
    np.testing.assert_allclose(inside.variables["trained_gates"], shares, rtol=1e-3)


def test_the_whole_gradient_is_what_small_changes_of_the_memory_do(inside, weights, monkeypatch):
    measure = inside.variables["gradient_by_row"]
    for name in ("rows", "labels"):
        monkeypatch.setitem(measure.__globals__, name, inside.variables[name][:1])
    shares = measure(inside.variables["lstm"], inside.variables["logits"])
    x = np.repeat(inside.variables["images"][:1] / 255, 2 * UNITS, axis=0)
    label = np.repeat(inside.variables["labels"][:1], 2 * UNITS)
    steps = reference_lstm(x, *weights[:3])
    changes = 1e-5 * np.concatenate([np.eye(UNITS), -np.eye(UNITS)])
    sizes = []
    for row in (1, 20, 28):
        c = steps[row - 1]["c"] + changes
        h = steps[row - 1]["o"] * np.tanh(c)
        rest = reference_lstm(x[:, row:], *weights[:3], h, c)
        logits = (rest[-1]["h"] if rest else h) @ weights[3] + weights[4]
        up, down = np.split(cross_entropy(logits, label), 2)
        sizes.append(np.linalg.norm((up - down) / 2e-5))
    np.testing.assert_allclose(shares[[0, 19, 27]], np.array(sizes) / sizes[-1], rtol=1e-3)


def test_the_result_states_what_was_measured(inside):
    metrics = inside.metrics
    trained = inside.variables["trained"][0]
    assert metrics["gradient_at_row_1_trained_lstm"] == pytest.approx(trained)
    for name, key in (("LSTM", "lstm"), ("SimpleRNN", "simple_rnn"), ("GRU", "gru")):
        share = inside.variables["fresh"][name][0]
        assert metrics[f"gradient_at_row_1_fresh_{key}"] == pytest.approx(share)
    gates_alone = metrics["fresh_forget_gates_alone"]
    assert gates_alone == pytest.approx(sigmoid(np.array(1.0)) ** 27, rel=0.5), "27 factors"
    assert metrics["gradient_at_row_1_fresh_lstm"] > 5 * gates_alone, "the way through U counts"
