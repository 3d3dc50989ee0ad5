"""Chapter cnn: both networks against each other, their arithmetic against other counts, and what a
run leaves against what other readers find in it."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Lesson, load_script, run_lesson
from sklearn.metrics import log_loss

from data import mnist

tf1 = tf.compat.v1


def lesson(script: str):
    @pytest.fixture(scope="module")
    def run(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
        return run_lesson(script, tmp_path_factory.mktemp("runs") / "run")

    return run


layers_run = lesson("cnn/01_mnist_conv_layers.py")
hand_run = lesson("cnn/02_mnist_conv_nn.py")
costs_run = lesson("cnn/03_two_costs.py")
small_run = lesson("cnn/04_small_and_fast.py")


def products(model: keras.Model) -> int:
    """The multiplications of the layers' weights for one image, counted by TensorFlow's profiler,
    which counts the additions, too."""
    image = tf.TensorSpec([1, 28, 28], tf.uint8)
    graph = tf.function(model).get_concrete_function(image).graph
    options = tf1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    nodes = tf1.profiler.profile(graph, options=options)
    return _products_below(nodes, {op.name: op.type for op in graph.get_operations()}) // 2


def _products_below(node, types: dict[str, str]) -> int:
    own = node.float_ops if types.get(node.name) in ("Conv2D", "MatMul") else 0
    return own + sum(_products_below(child, types) for child in node.children)


# ---- 01_mnist_conv_layers ------------------------------------------------------------------


def test_saved_network_read_back_gives_the_reported_result(layers_run):
    data, probabilities = layers_run.variables["data"], layers_run.variables["probabilities"]
    model = keras.models.load_model(layers_run.folder / "model.keras")
    np.testing.assert_allclose(model(data.test_images[:200]), probabilities[:200], atol=1e-5)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    labels = data.test_labels
    assert layers_run.metrics["test_accuracy"] == np.mean(exact.argmax(axis=1) == labels) > 0.8
    assert layers_run.metrics["test_loss"] == pytest.approx(log_loss(labels, exact), rel=1e-3)


def test_multiplications_as_the_profiler_counts_them(layers_run, small_run):
    for run in (layers_run, small_run):
        assert run.metrics["multiplications"] == products(run.variables["model"])


def test_receptive_fields_agree_with_the_gradient(layers_run):
    """Which pixels have a part in one number of a layer: those with a derivative."""
    model = keras.models.clone_model(layers_run.variables["model"])
    for name in ("conv1", "conv2"):
        kernel = model.get_layer(name).kernel
        kernel.assign(tf.abs(kernel))  # so that relu lets everything through
    pixels = tf.constant(np.random.default_rng(0).random((16, 28, 28, 1)), tf.float32)
    maps, outputs = pixels, {}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pixels)
        for name in ("conv1", "pool1", "conv2", "pool2"):
            maps = model.get_layer(name)(maps)
            outputs[name] = maps[:, 2, 2]
    for name, wanted in {"conv1": 5, "pool1": 6, "conv2": 14, "pool2": 16}.items():
        seen = np.abs(tape.gradient(outputs[name], pixels)).sum(axis=(0, 3)) > 0  # [28, 28]
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == wanted, name


def test_keras_takes_the_logits_behind_its_own_softmax():
    logits, labels = tf.constant([[2.0, -1.0, 0.5]]), tf.constant([1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    model.compile(loss=loss)
    with pytest.warns(UserWarning, match="from_logits=True"):
        seen = model.evaluate(logits, labels, verbose=0)
    assert seen == pytest.approx(float(loss(labels, logits)))
    assert seen != pytest.approx(float(loss(labels, tf.nn.softmax(logits))), abs=0.1)


def test_layers_events(layers_run):
    train, validation = layers_run.events("train"), layers_run.events("validation")
    assert {"epoch_loss", "epoch_accuracy", "epoch_learning_rate"} <= train.tags("scalars")
    last = validation.values("epoch_accuracy")[1]
    assert last == pytest.approx(layers_run.metrics["validation_accuracy"], abs=1e-6)
    nodes = layers_run.events("graph").graph_nodes()
    assert any("conv2" in node and node.endswith("convolution") for node in nodes), nodes


# ---- 02_mnist_conv_nn ----------------------------------------------------------------------


def test_both_networks_give_equal_outputs_for_equal_weights(layers_run, hand_run):
    model = keras.models.clone_model(layers_run.variables["model"])
    network = hand_run.variables["network"]
    for name in ("conv1", "conv2", "hidden", "logits"):
        for part in ("kernel", "bias"):
            value = getattr(network, f"{name}_{part}")
            getattr(model.get_layer(name), part).assign(value)
    images = hand_run.variables["data"].validation_images[:100]
    ours, theirs = network(images).numpy(), model(images).numpy()
    assert ours.std() > 0.5
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert hand_run.result["parameters"] == layers_run.result["parameters"]


def test_start_has_hes_spread(hand_run):
    network = hand_run.variables["ConvNet"]()
    for name, inputs, power in [("conv2", 800, 2), ("hidden", 1024, 2), ("logits", 256, 1)]:
        spread = np.std(getattr(network, f"{name}_kernel"))
        assert spread == pytest.approx(math.sqrt(power / inputs), rel=0.05), name
    assert 0 < hand_run.metrics["loss_at_start"] - math.log(10) < 1


def test_softmax_twice_can_not_lose_less_than_the_notes_say(hand_run):
    assert float(hand_run.variables["twice"]) == pytest.approx(math.log(1 + 9 / math.e), abs=1e-4)


def test_dropout_keeps_the_mean_and_is_off_in_the_saved_graph(hand_run):
    network = hand_run.variables["network"]
    images = hand_run.variables["data"].validation_images[:20]
    plain = network.forward(images, dropout=0).numpy()
    np.testing.assert_allclose(network(images), plain, rtol=1e-4, atol=1e-4)
    dropped = [network.forward(images, dropout=0.5).numpy() for _ in range(100)]
    distance = np.abs(dropped[0] - plain).max()
    assert np.abs(dropped[0] - dropped[1]).max() > 0.1
    assert np.abs(np.mean(dropped, axis=0) - plain).max() < 0.35 * distance


def test_saved_model_and_checkpoint_as_other_readers_find_them(hand_run):
    network = hand_run.variables["network"]
    images = hand_run.variables["data"].test_images[:100]
    with tf.Graph().as_default(), tf1.Session() as session:  # as a TensorFlow 1 program loads it
        loaded = tf1.saved_model.load(session, ["serve"], str(hand_run.folder / "saved_model"))
        signature = loaded.signature_def["serving_default"]
        (output,) = signature.outputs.values()
        old = session.run(output.name, {signature.inputs["images"].name: images})
    np.testing.assert_allclose(network(images), old, rtol=1e-4, atol=1e-4)
    reader = tf.train.load_checkpoint(str(hand_run.folder / "checkpoint" / "trained"))
    shapes = reader.get_variable_to_shape_map()
    assert shapes["network/hidden_kernel/.ATTRIBUTES/VARIABLE_VALUE"] == [1024, 256]
    kept = [shape for name, shape in shapes.items() if name.startswith("optimizer/")]
    assert kept.count([1024, 256]) == 2  # Adam's two averages


def test_score_agrees_with_scikit_learn(hand_run):
    data = hand_run.variables["data"]
    images, labels = data.test_images, data.test_labels
    loss, accuracy = hand_run.variables["score"](
        hand_run.variables["loaded"], images[:300], labels[:300]
    )
    logits = hand_run.variables["network"](images[:300]).numpy().astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(log_loss(labels[:300], probabilities), rel=1e-4)
    assert accuracy == np.mean(probabilities.argmax(axis=1) == labels[:300])
    assert hand_run.metrics["test_accuracy"] > 0.8


def test_by_hand_events(hand_run):
    train, validation = hand_run.events("train"), hand_run.events("validation")
    assert train.tags("scalars") >= {"loss", "learning_rate"}
    assert "conv1_kernel" in train.tags("histograms")
    values = validation.values("accuracy")
    assert len(values) == 2
    assert values[max(values)] == pytest.approx(hand_run.metrics["validation_accuracy"])
    assert any("conv2d" in node.lower() for node in hand_run.events("graph").graph_nodes())


# ---- 03_two_costs --------------------------------------------------------------------------


def costs(labels: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Both costs of each image, [n], once more."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.eye(10)[labels]
    return {
        "cross-entropy": -np.log(np.sum(p * truth, axis=1)),
        "quadratic": np.sum((p - truth) ** 2, axis=1) / 2,
    }


def test_costs_and_slopes_agree_with_finite_differences(costs_run):
    labels, slopes = costs_run.variables["digits"], costs_run.variables["slopes"]
    logits = costs_run.variables["some_logits"].numpy()
    for name, values in costs(labels, logits).items():
        cost = costs_run.variables["COSTS"][name](labels, tf.constant(logits))
        assert float(cost) == pytest.approx(values.mean())
        for i in range(10):
            shift = 1e-6 * np.eye(10)[i]
            difference = costs(labels, logits + shift)[name] - costs(labels, logits - shift)[name]
            np.testing.assert_allclose(slopes[name][:, i], difference / 2e-6, atol=1e-8)


def test_with_two_classes_the_quadratic_slope_is_the_error_times_2_p_1_minus_p(costs_run):
    logits = tf.Variable([[1.5, 0.0] + [-1e3] * 8], dtype=tf.float64)  # eight have no weight
    p = 1 / (1 + np.exp(-1.5))
    with tf.GradientTape() as tape:
        cost = costs_run.variables["quadratic"]([1], logits)
    assert float(tape.gradient(cost, logits)[0, 0]) == pytest.approx(p * 2 * p * (1 - p))


def test_only_the_quadratic_gradient_vanishes_at_a_sure_start(costs_run):
    lengths, sure = costs_run.variables["lengths"], costs_run.variables["SURE"]
    assert np.all(np.diff(lengths["cross-entropy"]) > 0)
    # Between the surest starts it falls as 1 - p(0) does.
    fallen = lengths["quadratic"][-1] / lengths["quadratic"][-2]
    assert fallen == pytest.approx(math.exp(sure[-2] - sure[-1]), rel=0.1)


def test_both_costs_start_alike(costs_run):
    start, model = costs_run.variables["start"], costs_run.variables["model"]
    start(5)
    first = model.get_weights()
    start(6)
    assert not np.array_equal(model.get_weights()[0], first[0])
    start(5, bias=12)
    *same, bias = model.get_weights()
    for weight, was in zip(same, first[:-1], strict=True):
        np.testing.assert_array_equal(weight, was)
    np.testing.assert_array_equal(bias, 12 * np.eye(10)[0])


def test_costs_learn_and_the_interval_holds_the_mean_difference(costs_run):
    tests, metrics = costs_run.variables["tests"], costs_run.metrics
    means = {name: np.mean(found) for name, found in tests.items()}
    assert min(means.values()) > 0.4
    low, high = metrics["lowest_difference_in_accuracy"], metrics["highest_difference_in_accuracy"]
    assert (low + high) / 2 == pytest.approx(means["cross-entropy"] - means["quadratic"])
    pairs = np.subtract(tests["cross-entropy"], tests["quadratic"])
    assert len(pairs) == 2
    half = 12.706 * np.std(pairs, ddof=1) / math.sqrt(2)  # Student's t for one degree of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=1e-4)


# ---- 04_small_and_fast ---------------------------------------------------------------------


def test_shifted_images_are_copies_moved_by_up_to_two_pixels_anew_in_each_epoch(small_run):
    rng = np.random.default_rng(0)
    images = np.pad(rng.integers(1, 256, (600, 24, 24), np.uint8), ((0, 0), (2, 2), (2, 2)))
    batches = mnist.batches(images, np.arange(600), 64, seed=1).map(small_run.variables["shifted"])
    places = []  # of each image, in each epoch
    for _ in range(2):
        found = {}
        for moved, numbers in batches:
            assert moved.dtype == tf.uint8
            for image, number in zip(moved.numpy(), numbers.numpy(), strict=True):
                down = np.flatnonzero(image.any(axis=1))[0] - 2
                right = np.flatnonzero(image.any(axis=0))[0] - 2
                moved_back = np.roll(image, (-down, -right), axis=(0, 1))
                np.testing.assert_array_equal(moved_back, images[number])
                found[int(number)] = (int(down), int(right))
        assert len(found) == 600
        assert len(set(found.values())) == 25
        places.append(found)
    unmoved = sum(places[0][number] == places[1][number] for number in range(600))
    assert unmoved < 60  # 24 by chance


def test_small_network_read_back_gives_the_reported_result(small_run):
    data = small_run.variables["data"]
    model = keras.models.load_model(small_run.folder / "model.keras")
    answers = small_run.variables["answers"]
    np.testing.assert_array_equal(model(data.test_images[:200]).numpy().argmax(1), answers[:200])
    assert small_run.metrics["test_accuracy"] == np.mean(answers == data.test_labels) > 0.5
    convolutions = 25 * 24 + 9 * (24 * 48 + 48 * 48 + 48 * 96 + 96 * 96)
    normalisation = 4 * (24 + 48 + 48 + 96 + 96)
    assert model.count_params() == convolutions + normalisation + 970
    assert small_run.result["parameters"] == model.count_params()


def test_benchmark_of_the_ideas_has_the_script_s_network(small_run):
    ideas = load_script("benchmarks/mnist_ideas.py")
    model, reference = ideas.build(), small_run.variables["model"]
    assert [layer.output.shape for layer in model.layers] == [
        layer.output.shape for layer in reference.layers
    ]
    weights = zip(model.weights, reference.weights, strict=True)
    assert all(ours.shape == theirs.shape for ours, theirs in weights)
    for variant in ideas.VARIANTS.values():
        assert ideas.build(**variant.get("network", {})).output_shape == (None, 10)
