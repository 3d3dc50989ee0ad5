"""Chapter first_try: what the lessons calculate, against second calculations."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import tensorflow as tf
from helpers import Lesson, run_lesson

tf1 = tf.compat.v1

# ---- 01_hello_world ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return run_lesson("first_try/01_hello_world.py", tmp_path_factory.mktemp("hello"))


def test_hello_gives_the_product_and_counts_three_times_to_five(hello):
    assert hello.metrics == {"product": 3 * 2 + 3 * 2, "counter": 5}
    assert hello.output.count("[1, 2, 3, 4, 5]") == 3
    assert hello.output.count("Python runs the lines") == 1, "traced once, run five times"


def test_hello_counts_anew_in_each_session_once_it_is_initialised(hello):
    script = hello.variables
    with tf1.Session(graph=script["counter_graph"]) as session:
        with pytest.raises(tf.errors.FailedPreconditionError, match="counter"):
            session.run(script["count_up"])
        session.run(script["initialise"])
        assert session.run(script["count_up"]) == 1


def test_hello_writes_its_graphs(hello):
    assert hello.events("product_tf1").graph_nodes() == {"hello", "row", "column", "product"}
    assert "counter" in hello.events("counter_tf1").graph_nodes()
    assert "AssignAddVariableOp" in hello.events("counter_tf2").graph_nodes()


# ---- 02_activation_function ----------------------------------------------------------------


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return run_lesson("first_try/02_activation_function.py", tmp_path_factory.mktemp("activations"))


# The formulas as books print them, in 60-digit decimal arithmetic, which knows no overflow here.
TEXTBOOK = {
    "relu": lambda x: max(x, Decimal(0)),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).ln(),
    "leaky_relu": lambda x: x if x > 0 else x / 5,
    "elu": lambda x: x if x > 0 else x.exp() - 1,
    "selu": lambda x: (
        Decimal("1.0507009873554804934193349852946")
        * (x if x > 0 else Decimal("1.6732632423543772848170429916717") * (x.exp() - 1))
    ),
    "silu": lambda x: x / (1 + (-x).exp()),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_activations_agree_with_the_textbook_formula_in_exact_arithmetic(activations, name):
    points = activations.variables["x"]
    chosen = [0, *range(7, len(points) - 1, 211), len(points) - 1]  # ±1000 among them, 0 not
    formula, h = TEXTBOOK[name], Decimal("1e-20")
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(float(x)) for x in points[chosen]]
        values = [float(formula(x)) for x in exact]
        slopes = [float((formula(x + h) - formula(x - h)) / (2 * h)) for x in exact]
    value, derivative = activations.variables["functions"][name]
    np.testing.assert_allclose(value[chosen], values, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(derivative[chosen], slopes, rtol=1e-13, atol=1e-15)


def test_gelu_weighs_by_the_normal_distribution_and_is_the_integral_of_its_derivative(activations):
    x = activations.variables["x"][1:-1]  # -5 to 5
    gelu, slope = (part[1:-1] for part in activations.variables["functions"]["gelu"])
    step = x[1] - x[0]
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    below = 2.866515719e-7  # of -5, from tables
    distribution = below + np.append(0, np.cumsum((density[1:] + density[:-1]) / 2) * step)
    np.testing.assert_allclose(gelu, x * distribution, atol=1e-6)
    integral = np.append(0, np.cumsum((slope[1:] + slope[:-1]) / 2) * step)
    np.testing.assert_allclose(gelu - gelu[0], integral, atol=1e-6)


def test_selu_turns_standard_normal_numbers_into_mean_0_and_variance_1(activations):
    x = activations.variables["x"][1:-1]
    y = activations.variables["functions"]["selu"][0][1:-1]
    weights = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])  # beyond ±5: 6e-7
    assert weights @ y == pytest.approx(0, abs=1e-5)
    assert weights @ y**2 == pytest.approx(1, abs=1e-4)


def test_printed_formulas_fail_where_the_notes_say(activations):
    printed = {name: value.numpy() for name, value in activations.variables["printed"].items()}
    assert printed["sigmoid"].tolist() == [0, 1]
    assert np.isnan(printed["tanh"]).all()
    assert printed["softplus"].tolist() == [0, np.inf]
    assert printed["elu"].tolist() == printed["elu, min(x, 0)"].tolist() == [-1, 1000]


def test_derivatives_by_tape_of_printed_formulas_are_nan_where_the_notes_say(activations):
    tape, far = activations.variables["far_tape"], activations.variables["far"]
    slopes = {
        name: tape.gradient(value, far).numpy()
        for name, value in activations.variables["printed"].items()
    }
    nan = {name: np.isnan(slope).tolist() for name, slope in slopes.items()}
    assert nan["sigmoid"] == [True, False]
    assert nan["tanh"] == [True, True]
    assert nan["softplus"] == nan["elu"] == [False, True]
    assert slopes["elu, min(x, 0)"].tolist() == [0, 1]


def test_softmax_and_its_derivatives_agree_with_complex_steps(activations):
    h = 1e-30
    logits = activations.variables["logits"] - 1000
    shifted = np.exp(logits + 1j * h * np.eye(3))  # a row for each logit that is moved
    softmax = shifted / shifted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(activations.variables["probabilities"], softmax[0].real, atol=1e-15)
    np.testing.assert_allclose(activations.variables["jacobian"], softmax.imag.T / h, atol=1e-15)


# ---- 03_fetch_and_feed ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return run_lesson("first_try/03_fetch_and_feed.py", tmp_path_factory.mktemp("fetching"))


def test_fetching_counts_what_the_notes_promise(fetching):
    assert fetching.metrics == {
        "squares_in_one_run": 1,
        "squares_in_two_runs": 2,
        "tracings_as_it_is": 4,
        "tracings_reduced": 3,
        "tracings_with_signature": 1,
    }
    assert fetching.output.count("tracing for") == 4 + 3 + 1 + 3
    average = fetching.variables["average_today"].numpy()
    assert average == pytest.approx(np.mean(fetching.variables["rows"] ** 2))


def test_the_graph_of_a_whole_number_is_used_for_an_equal_float(fetching):
    numbers = fetching.variables["numbers"]
    assert numbers(2.0).dtype == tf.int32
    assert numbers(tf.constant(2.0)).dtype == tf.float32


def test_fetching_writes_a_session_graph_that_runs_and_calculates_as_counted(fetching):
    """The graph is read back from the event file; what ran is told by the session's trace."""
    (file,) = (fetching.folder / "session").glob("events.out.tfevents.*")
    (text,) = (e.graph_def for e in tf1.train.summary_iterator(str(file)) if e.graph_def)

    def calculated(fetches: list[str], feed: dict[str, np.ndarray]) -> tuple[list, list[str]]:
        trace = tf1.RunMetadata()
        options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
        values = session.run(fetches, feed, options=options, run_metadata=trace)
        devices = trace.step_stats.dev_stats
        return values, [node.node_name for device in devices for node in device.node_stats]

    x = np.array([[1, 2, 4]], np.float32)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf.import_graph_def(tf1.GraphDef.FromString(text), name="")
        session.run("init")
        values, nodes = calculated(["total:0", "largest:0"], {"x:0": x})
        assert values == [21, 16]
        assert nodes.count("squares") == 1
        assert session.run("count/Read/ReadVariableOp:0") == 1
        values, nodes = calculated(["total:0", "largest:0"], {"squares:0": x})
        assert values == [7, 4]
        assert "squares" not in nodes
        assert session.run("count/Read/ReadVariableOp:0") == 1
        assert session.run("average/Read/ReadVariableOp:0") == 0


def test_fetching_writes_the_graph_of_the_function(fetching):
    assert {"x", "Square", "Sum", "Max"} <= fetching.events("function").graph_nodes()


# ---- 04_linear_regression_gd ---------------------------------------------------------------

REGRESSION = "first_try/04_linear_regression_gd.py"


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return run_lesson(REGRESSION, tmp_path_factory.mktemp("regression"))


def test_regression_agrees_with_polyfit_and_with_the_closed_form_of_descent(regression):
    rng = np.random.default_rng(1)
    x = rng.random(100, dtype=np.float32).astype(float)
    y = 0.1 * x + 0.2 + rng.normal(0, 0.01, 100)
    best = np.polyfit(x, y, 1)  # slope and intercept
    metrics = regression.metrics
    found = [metrics["least_squares_w"], metrics["least_squares_b"]]
    np.testing.assert_allclose(found, best, atol=1e-5)
    # Descent on a quadratic has a closed form: each step multiplies the distance to the minimum by
    # the matrix 1 - rate * (second derivatives).
    hessian = 2 / 100 * np.array([[x @ x, x.sum()], [x.sum(), 100]])
    step = np.eye(2) - 0.3 * hessian
    for path, start in (("by_hand", [0, 0]), ("slow", [-0.8, 0])):
        exact = [best + np.linalg.matrix_power(step, n) @ (start - best) for n in range(31)]
        np.testing.assert_allclose(regression.variables[path], exact, atol=1e-5)
    assert metrics["flat_part_done"] == pytest.approx(
        1 - (1 - 0.3 * np.linalg.eigvalsh(hessian)[0]) ** 30, abs=1e-4
    )


def test_all_four_ways_have_a_point_for_every_step(regression):
    for name in ("by_hand", "by_tape", "by_optimizer", "by_session"):
        assert np.shape(regression.variables[name]) == (31, 2)


def test_regression_logs_every_step(regression):
    events = regression.events()
    assert events.tags("scalars") == {"loss", "w", "b"}
    losses = list(events.values("loss").values())
    assert len(losses) == 30
    assert np.all(np.diff(losses) < 0), "gradient descent at this rate never goes uphill"
    by_hand = regression.variables["by_hand"]
    np.testing.assert_allclose([*events.values("w").values()], by_hand[:-1, 0], atol=1e-5)


@pytest.mark.parametrize("flags", [("--steps", "1"), ("--learning-rate", "0.9")])
def test_regression_takes_one_step_and_survives_a_rate_that_diverges(tmp_path, flags):
    run = run_lesson(REGRESSION, tmp_path, *flags)
    np.testing.assert_allclose(
        run.variables["by_session"], run.variables["by_hand"], rtol=1e-4, atol=1e-6
    )


# ---- 05_vanishing_gradient -----------------------------------------------------------------


@pytest.fixture(scope="module")
def vanishing(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return run_lesson("first_try/05_vanishing_gradient.py", tmp_path_factory.mktemp("vanishing"))


def test_sigmoid_gradient_by_tape_agrees_with_the_chain_rule_by_hand(vanishing):
    script = vanishing.variables
    h, slopes = script["inputs"].numpy(), []
    for w in script["weights"]:
        h = 1 / (1 + np.exp(-(h @ w)))
        slopes.append(h * (1 - h))
    gradient = script["gradient_at_end"].numpy()
    lengths = [np.linalg.norm(gradient)]
    for w, slope in zip(reversed(script["weights"]), reversed(slopes), strict=True):
        gradient = (gradient * slope) @ w.T
        lengths.append(np.linalg.norm(gradient))
    np.testing.assert_allclose(script["left"]["sigmoid"], np.divide(lengths, lengths[0]), rtol=1e-9)


def test_what_is_left_follows_from_the_derivatives(vanishing):
    left = vanishing.variables["left"]
    assert left["sigmoid"][-1] < 0.25**10
    assert left["relu"][1] == pytest.approx(np.sqrt(0.5), rel=0.02), "half of the units are off"
    ratio = left["relu_larger_weights"] / left["relu"]  # relu is the same at any scale
    np.testing.assert_allclose(ratio, np.sqrt(2) ** np.arange(11), rtol=1e-9)
    for name, lengths in left.items():
        assert lengths[0] == 1
        assert vanishing.metrics[f"{name}_left"] == pytest.approx(lengths[-1])


def test_vanishing_logs_ten_layers_of_each(vanishing):
    for name, lengths in vanishing.variables["left"].items():
        events = vanishing.events(name)
        logged = events.values("gradient_left")
        np.testing.assert_allclose(list(logged.values()), lengths, rtol=1e-6)
        assert list(logged) == list(range(11))
    selu = vanishing.events("selu")
    assert selu.values("outputs/stddev")[10] == pytest.approx(1, abs=0.05)
    assert selu.values("outputs/mean")[10] == pytest.approx(0, abs=0.05)
