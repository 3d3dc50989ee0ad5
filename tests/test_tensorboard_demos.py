"""Chapter tensorboard_demos: what the lessons calculate, and what they leave for TensorBoard."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import Events, Lesson, run_lesson

STATISTICS = ("mean", "stddev", "max", "min")


def graph_of(lesson: Lesson, name: str) -> tf.compat.v1.GraphDef:
    return lesson.events(name)._reader.Graph()


def scalar(events: Events, tag: str) -> dict[int, float]:
    return {step: float(value) for step, value in events.values(tag).items()}


# ---- 01_tensorboard_first_try --------------------------------------------------------------


@pytest.fixture(scope="module")
def first_try(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    script = "tensorboard_demos/01_tensorboard_first_try.py"
    return run_lesson(script, tmp_path_factory.mktemp("first_try"))


@pytest.mark.parametrize("name", ["tf1", "tf2"])
def test_first_try_losses_follow_the_closed_form_of_descent(first_try, name):
    x = np.random.default_rng(1).normal(size=(100, 3))
    design = np.concatenate([x, np.ones((100, 1))], axis=1)  # a column for the bias
    best = np.array([[1, -2], [0.5, 0], [-1, 1.5], [0.5, -0.25]])
    shrink = np.eye(4) - 0.3 * 2 / 200 * design.T @ design  # 200 outputs are averaged
    losses = [
        np.mean((design @ np.linalg.matrix_power(shrink, step) @ best) ** 2) for step in range(30)
    ]
    events = first_try.events(name)
    if name == "tf1":  # TensorFlow 1 writes scalars as plain numbers, not as tensors
        written = {event.step: event.value for event in events._reader.Scalars("mse")}
    else:
        written = scalar(events, "mse")
    assert list(written) == list(range(30))
    np.testing.assert_allclose(list(written.values()), losses, rtol=2e-3)
    assert first_try.metrics["first_loss"] == pytest.approx(losses[0], rel=1e-5)
    assert first_try.metrics["loss"] == pytest.approx(losses[-1], rel=2e-3)


def test_first_try_graphs_hold_what_the_notes_point_at(first_try):
    types = {node.name: node.op for node in graph_of(first_try, "tf1").node}
    assert types["input/x"] == "Placeholder"
    assert (types["linear/W"], types["linear/W/read"]) == ("VariableV2", "Identity")
    assert (types["linear/W/Assign"], types["init"]) == ("Assign", "NoOp")
    assert any(name.startswith("train/gradients/") for name in types)
    assert len(types) == first_try.metrics["tf1_operations"]
    nodes = {node.name: node for node in graph_of(first_try, "tf2").node}
    handle = nodes["linear/MatMul/ReadVariableOp/resource"]
    assert (handle.op, handle.attr["dtype"].type) == ("Placeholder", tf.resource.as_datatype_enum)
    assert nodes["linear/MatMul/ReadVariableOp"].op == "ReadVariableOp"
    assert not any(node.op in ("Assign", "AssignVariableOp") for node in nodes.values())
    assert any(name.startswith("gradient_tape/") for name in nodes)
    assert len(nodes) == first_try.metrics["tf2_operations"]
    for shared in ("linear/MatMul", "linear/y", "loss/mse"):
        assert types[shared] == nodes[shared].op
    shape = nodes["linear/MatMul"].attr["_output_shapes"].list.shape[0]
    assert [dim.size for dim in shape.dim] == [-1, 2], "edges are labelled with shapes"


# ---- 02_variable_analysis ------------------------------------------------------------------


@pytest.fixture(scope="module")
def illnesses(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    script = "tensorboard_demos/02_variable_analysis.py"
    return run_lesson(script, tmp_path_factory.mktemp("illnesses"))


def test_both_summaries_are_numpys(illnesses):
    values = illnesses.variables["values"].numpy()
    expected = values.mean(), values.std(), values.max(), values.min()
    today = illnesses.events("summary_today")
    assert today.tags("scalars") == {f"example/{s}" for s in STATISTICS}
    found = [scalar(today, f"example/{name}")[0] for name in STATISTICS]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
    tf1 = illnesses.events("summary_tf1")._reader
    found = [tf1.Scalars(f"example/{name}")[0].value for name in ("mean_1", "stddev", "max_1")]
    assert found == pytest.approx(expected[:3], rel=1e-4, abs=1e-7)


def test_histograms_count_the_same_values_in_the_bins_that_the_notes_tell(illnesses):
    values = illnesses.variables["values"].numpy().ravel()
    bins = illnesses.variables["today"]["example/histogram"]  # rows of left, right, count
    counts, edges = np.histogram(values, 30)
    np.testing.assert_allclose(bins[:, 1], edges[1:], atol=1e-6)
    assert np.abs(bins[:, 2] - counts).sum() <= 4, "but for rounding at the edges"
    bins = illnesses.variables["tf1"]["example/histogram"]
    assert bins[:, 2].sum() == values.size
    far = bins[(bins[:, 0] > 0.01) & (bins[:, 1] < values.max())]
    np.testing.assert_allclose(far[:, 1] / far[:, 0], 1.1, rtol=1e-5)
    assert len(far) > 10


def test_four_trainings_start_as_the_notes_say(illnesses):
    def start(name: str, tensor: str) -> np.ndarray:
        events = illnesses.events(name)
        return np.array([scalar(events, f"{tensor}/{number}")[0] for number in STATISTICS])

    healthy = {tensor: start("healthy", tensor) for tensor in ("weights", "outputs", "logits")}
    assert healthy["weights"][0] == pytest.approx(0, abs=1e-3)
    assert healthy["weights"][1] == pytest.approx(math.sqrt(2 / 784), rel=0.01)  # He's
    for tensor, factor in {"weights": 10, "outputs": 10, "logits": 1000}.items():
        found = start("large_weights", tensor)
        np.testing.assert_allclose(found, factor * healthy[tensor], rtol=1e-3)
    np.testing.assert_array_equal(start("high_rate", "logits"), healthy["logits"])
    np.testing.assert_array_equal(start("dead_relus", "weights"), healthy["weights"])
    assert illnesses.metrics["dead_relus_first_loss"] == pytest.approx(math.log(10), abs=0.03)
    assert illnesses.metrics["large_weights_first_loss"] > 100


def test_illness_shows_in_the_figures(illnesses):
    metrics, names = illnesses.metrics, illnesses.variables["trainings"]
    assert list(names) == ["healthy", "large_weights", "high_rate", "dead_relus"]
    for name in list(names)[1:]:
        assert metrics[f"{name}_test_accuracy"] < metrics["healthy_test_accuracy"] - 0.1
        assert metrics[f"{name}_last_loss"] > metrics["healthy_last_loss"] + 0.2
    assert metrics["healthy_dead_at_first"] == metrics["high_rate_dead_at_first"] < 5
    assert metrics["dead_relus_dead_at_last"] >= metrics["dead_relus_dead_at_first"] > 70
    assert metrics["high_rate_dead_at_last"] > 70
    assert metrics["high_rate_largest_loss"] > 2 * metrics["high_rate_first_loss"]
    assert metrics["large_weights_change_of_weights"] < 0.5 * metrics["healthy_change_of_weights"]


@pytest.mark.parametrize("name", ["healthy", "large_weights", "high_rate", "dead_relus"])
def test_tensorboard_has_every_step_and_the_looks(illnesses, name):
    events = illnesses.events(name)
    losses = scalar(events, "loss")
    steps = math.ceil(len(illnesses.variables["data"].train_images) / 100)
    assert list(losses) == list(range(steps))
    assert losses[0] == pytest.approx(illnesses.metrics[f"{name}_first_loss"])
    assert max(losses.values()) == pytest.approx(illnesses.metrics[f"{name}_largest_loss"])
    _, lines, outputs = illnesses.variables["curves"][name]
    for tensor, size in {"weights": 78_400, "gradient": 78_400, "outputs": outputs.size}.items():
        rows = events.values(f"{tensor}/histogram")
        assert len(rows) == len(lines) >= 10
        assert all(bins[:, 2].sum() == size for bins in rows.values())
    for number, column in {"min": 0, "max": -1}.items():
        written = list(scalar(events, f"weights/{number}").values())
        assert written == pytest.approx([line[column] for line in lines], rel=1e-5)


# ---- 03_inception_v3_graph -----------------------------------------------------------------

INCEPTION = "tensorboard_demos/03_inception_v3_graph.py"
SHAPES = ["35×35×192", "35×35×256"] + ["35×35×288"] * 2 + ["17×17×768"] * 5 + [
    "8×8×1280", "8×8×2048", "8×8×2048", "2048",
]  # fmt: skip


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    folder = tmp_path_factory.mktemp("inception")
    return run_lesson(INCEPTION, folder, "--weights", "none")


def test_blocks_have_the_shapes_of_the_paper(inception):
    rows = [line.split() for line in inception.output.splitlines() if "×" in line]
    table = [row for row in rows if row[0] in inception.variables["blocks"]]
    assert [row[1] for row in table] == SHAPES[:-1]
    features = inception.variables["outputs"]["pool3"]
    assert features.shape == (1, 2048)
    assert inception.result["parameters"] == inception.metrics["parameters"] == 21_802_784
    branches = [7, 7, 7, 4, 10, 10, 10, 10, 6, 9, 9]  # convolutions of each mixed block
    assert inception.variables["costs"][:, 0].tolist() == [5, *branches, 0]


def test_multiplications_counted_from_the_graph_are_those_of_the_table(inception):
    products = dict.fromkeys(inception.variables["blocks"], 0)
    kernels = {name: set() for name in products}
    for operation in inception.variables["operations"]:
        if operation.type == "Conv2D":
            block = operation.name.split("/")[0].removesuffix("_1")
            kernel, output = operation.inputs[1].shape, operation.outputs[0].shape
            products[block] += math.prod(kernel) * output[1] * output[2]
            kernels[block].add(tuple(kernel[:2]))
    counted = np.array(list(products.values())) / 1e6
    np.testing.assert_allclose(counted, inception.variables["costs"][:, 2])
    assert round(sum(counted)) == round(inception.metrics["million_multiplications"]) == 5711
    for number in range(4, 8):
        assert {(1, 7), (7, 1)} <= kernels[f"mixed{number}"]
    assert (7, 7) not in set().union(*kernels.values())


def test_the_graph_tab_gets_a_box_for_each_block_and_no_weights(inception):
    graph = graph_of(inception, "graph")
    assert len(graph.node) == inception.metrics["operations"]
    scopes = {node.name.split("/")[0] for node in graph.node if "/" in node.name}
    assert scopes == {f"{name}_1" for name in inception.variables["blocks"]}
    assert graph.ByteSize() < 5e6
    assert {"images", "pool_3"} <= {node.name for node in graph.node}


def test_the_frozen_graph_has_all_weights_and_no_variables(inception):
    graph = tf.compat.v1.GraphDef.FromString(inception.variables["frozen"])
    types = {node.op for node in graph.node}
    assert "Const" in types and not types & {"VarHandleOp", "ReadVariableOp", "VariableV2"}
    floats = [
        tf.make_ndarray(node.attr["value"].tensor)
        for node in graph.node
        if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum
    ]
    # each layer's epsilon is a constant as well
    assert sum(array.size for array in floats if array.ndim) == pytest.approx(21_802_784, abs=200)


def test_pool3_is_the_mean_over_all_positions(inception):
    last = inception.variables["outputs"]["mixed10"].numpy()
    assert last.size == 131_072
    features = inception.variables["features"]
    scale = np.abs(features).max()
    np.testing.assert_allclose(features, last.mean(axis=(1, 2)), atol=1e-4 * scale)


def test_an_untrained_network_is_said_to_be_untrained(inception):
    assert "Untrained" in inception.output
    assert "cosine_of_mirror_image" not in inception.metrics
    assert "untrained" in inception.result["data"]["source"]
    assert min(inception.variables["others"]) > 0.99, "all photos look the same to it"


def test_trained_features_know_a_mirror_image(tmp_path):
    partial = Path(
        os.environ.get("COURSE_DATA", "none"), "inception_v3/inception_v3_notop_partial.weights.h5"
    )
    if not partial.exists():
        pytest.skip("there are no trained weights in COURSE_DATA")
    lesson = run_lesson(INCEPTION, tmp_path, "--weights", partial)
    assert lesson.metrics["cosine_of_mirror_image"] > 0.9
    assert lesson.metrics["largest_cosine_of_others"] < 0.8
    assert "not the file that Keras publishes" in lesson.output
