"""Chapter first_try: each script end to end, and its numbers against a second reckoning."""

import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal, localcontext
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, Finished, load_script, run_program, run_quick
from packaging.requirements import Requirement

# ---- 01_hello_world ------------------------------------------------------------------------

HELLO = "first_try/01_hello_world.py"


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(HELLO, tmp_path_factory.mktemp("runs") / "hello")


def test_hello_shows_a_tensor_and_its_value_and_counts_three_times_to_five(hello):
    assert hello.metrics == {"product": 12, "counter": 5}
    assert 'Tensor("product:0", shape=(1, 1), dtype=float32)' in hello.output
    assert hello.output.count("[1, 2, 3, 4, 5]") == 3
    assert hello.output.count("Python is reading count_up_by_one") == 1, "traced once, run 5 times"


def test_hello_writes_its_graphs(hello):
    assert hello.events("product_tf1").graph_nodes() == {"row", "column", "product"}
    assert "counter" in hello.events("counter_tf1").graph_nodes()
    assert "AssignAddVariableOp" in hello.events("counter_tf2").graph_nodes()


def test_check_reports_every_pinned_package_and_that_the_course_can_run():
    done = run_program(HELLO, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line:
            requirement = Requirement(line)  # pip's own reading of the line
            if requirement.marker is None or requirement.marker.evaluate():
                (pin,) = requirement.specifier
                assert f"[ok]\t{requirement.name}: {pin.version}\n" in done.stdout
    assert "The course can run." in done.stdout
    assert "FAIL" not in done.stdout


def test_check_in_a_python_without_packages_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / HELLO), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(
        r"\[FAIL\]\tnot installed: tensorflow, keras, .*tensorflow-course", done.stdout
    )
    assert "-m pip install -r" in done.stdout


# ---- 02_activation_function ----------------------------------------------------------------

ACTIVATIONS = "first_try/02_activation_function.py"
NAMES = ["sigmoid", "relu", "tanh", "softplus", "leaky_relu", "elu", "selu", "gelu", "silu"]


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(ACTIVATIONS, tmp_path_factory.mktemp("runs") / "activations")


@pytest.fixture(scope="module")
def activation_script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The script run in this process, without drawing, to call the functions it defines."""
    folder = tmp_path_factory.mktemp("runs") / "in_process"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", "--seed", "7", "--run-dir", str(folder)])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr("utils.run.Run.save_figure", lambda run, figure, name: None)
        yield load_script(ACTIVATIONS)


# The formulas as books print them, in 60-digit decimal arithmetic, which knows no overflow here.
TEXTBOOK = {
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "relu": lambda x: max(x, Decimal(0)),
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
def test_activations_agree_with_the_textbook_formula_in_exact_arithmetic(activation_script, name):
    points = np.array([-1000, -700, -40, -9, -1.5, -0.3, -1e-3, 1e-3, 0.4, 2, 9, 40, 700, 1000.0])
    activation = activation_script.ACTIVATIONS[name]
    formula, h = TEXTBOOK[name], Decimal("1e-20")
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(float(x)) for x in points]
        values = [float(formula(x)) for x in exact]
        slopes = [float((formula(x + h) - formula(x - h)) / (2 * h)) for x in exact]
    with np.errstate(over="raise", divide="raise", invalid="raise", under="ignore"):
        np.testing.assert_allclose(activation.function(points), values, rtol=1e-14, atol=1e-300)
        np.testing.assert_allclose(activation.derivative(points), slopes, rtol=1e-13, atol=1e-38)


def test_gelu_is_the_integral_of_its_derivative_and_weighs_by_the_normal_distribution(
    activation_script,
):
    gelu = activation_script.ACTIVATIONS["gelu"]
    x, steps = np.linspace(-12, 12, 240_001, retstep=True)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    distribution = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * steps])
    np.testing.assert_allclose(gelu.function(x), x * distribution, atol=1e-8)
    slope = gelu.derivative(x)
    integral = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2) * steps])
    np.testing.assert_allclose(gelu.function(x), integral, atol=1e-8)
    tail = gelu.function(np.array([-30.0]))  # Φ(-30) = 4.906714e-198, known from tables
    np.testing.assert_allclose(tail, -30 * 4.906714e-198, rtol=1e-6)


def test_selu_turns_standard_normal_numbers_into_mean_0_and_variance_1(activation_script):
    x, steps = np.linspace(-12, 12, 240_001, retstep=True)
    weights = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * steps
    y = activation_script.ACTIVATIONS["selu"].function(x)
    assert weights @ y == pytest.approx(0, abs=1e-8)
    assert weights @ y**2 == pytest.approx(1, abs=1e-8)


def test_sigmoid_gradient_after_ten_layers_agrees_with_complex_steps(activation_script):
    script, h, few = activation_script, 1e-30, 10
    # The derivative by one input is an imaginary part: [input, example, unit].
    y = script.inputs[:few] + 1j * h * np.eye(script.UNITS)[:, None, :]
    for w in script.weights:
        y = 1 / (1 + np.exp(-(y @ w)))
    by_steps = np.einsum("ieu,eu->ei", y.imag / h, script.gradient_at_end[:few])
    _, gradients = script.forward_and_back(script.ACTIVATIONS["sigmoid"])
    np.testing.assert_allclose(gradients[-1][:few], by_steps, rtol=1e-9, atol=1e-16)
    left = np.linalg.norm(gradients[-1]) / np.linalg.norm(gradients[0])
    assert script.left_over["sigmoid"][-1] == pytest.approx(left)
    assert left < 0.25**10


def test_activations_report_what_the_notes_promise(activations):
    assert activations.metrics["sigmoid_largest_derivative"] == pytest.approx(0.25)
    assert f"{activations.metrics['sigmoid_gradient_left']:.1e}" == "4.8e-07"
    assert f"{activations.metrics['relu_gradient_left']:.3f}" == "0.027"
    assert f"{activations.metrics['selu_gradient_left']:.1f}" == "1.4"
    assert re.search(r"softplus\(1000\) = log.* inf +1e\+03", activations.output)
    assert re.search(r"sigmoid\(1000\) = exp.* nan +1\n", activations.output)
    # s(1 - s) = 0.001 at x = log(s / (1 - s)), with s from the quadratic equation
    s = (1 + np.sqrt(1 - 0.004)) / 2
    border = np.log(s / (1 - s))
    assert re.search(rf"sigmoid .* x < -{border:.1f}, x > {border:.1f}\n", activations.output)


def test_activations_log_ten_layers_of_each(activations):
    parts = ["mean", "stddev", "max", "min", "histogram"]
    for name in NAMES:
        events = activations.events(f"ten_layers/{name}")
        assert events.tags("scalars") | events.tags("histograms") == {
            "gradient_left",
            *(f"output/{part}" for part in parts),
        }
        assert list(events.values("gradient_left")) == list(range(11))
    selu = activations.events("ten_layers/selu")
    assert selu.values("output/stddev")[10] == pytest.approx(1, abs=0.05)
    assert selu.values("output/mean")[10] == pytest.approx(0, abs=0.05)
    relu = activations.events("ten_layers/relu").values("gradient_left")
    assert relu[1] == pytest.approx(np.sqrt(0.5), rel=0.02), "half of the units are off"


# ---- 03_fetch_and_feed ---------------------------------------------------------------------

FETCHING = "first_try/03_fetch_and_feed.py"


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(FETCHING, tmp_path_factory.mktemp("runs") / "fetching")


def test_fetching_counts_what_the_notes_promise(fetching):
    assert fetching.metrics == {
        "one_run_executions": 1,
        "two_runs_executions": 2,
        "one_call_executions": 1,
        "two_calls_executions": 2,
        "tracings_as_it_is": 4,
        "tracings_reduced": 3,
        "tracings_with_signature": 1,
        "total": 55,
        "largest": 25,
        "scaled": 550,
    }


def test_fetching_shows_the_errors_it_explains(fetching):
    for message in (
        "You must feed a value for placeholder tensor 'x' with dtype float and shape [?,3]",
        "Cannot feed value of shape (2, 2) for Tensor x:0, which has shape (None, 3)",
        "The value of a feed cannot be a tf.Tensor object",
        "missing a required argument: 'scale'",
        "Can not cast TensorSpec(shape=(2, 2)",
    ):
        assert message in fetching.output


def test_fetching_writes_a_session_graph_that_runs_and_executes_as_counted(fetching):
    """The graph is read back from the event file; what ran is told by the session's trace."""
    tf1 = tf.compat.v1
    (file,) = (fetching.folder / "session").glob("events.out.tfevents.*")
    (text,) = (e.graph_def for e in tf1.train.summary_iterator(str(file)) if e.graph_def)

    def executed(fetches: list[str], feed: dict[str, np.ndarray]) -> tuple[list, list[str]]:
        trace = tf1.RunMetadata()
        options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
        values = session.run(fetches, feed, options=options, run_metadata=trace)
        devices = trace.step_stats.dev_stats
        return values, [node.node_name for device in devices for node in device.node_stats]

    x = np.array([[1, 2, 4]], np.float32)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf.import_graph_def(tf1.GraphDef.FromString(text), name="")
        session.run("init")
        values, nodes = executed(["total:0", "largest:0"], {"x:0": x})
        assert values == [21, 16]
        assert nodes.count("squares") == 1
        assert session.run("executions/Read/ReadVariableOp:0") == 1
        values, nodes = executed(["total:0", "largest:0"], {"squares:0": x})
        assert values == [7, 4]
        assert "squares" not in nodes
        assert session.run("executions/Read/ReadVariableOp:0") == 1


def test_fetching_writes_the_graph_of_the_function(fetching):
    nodes = fetching.events("function").graph_nodes()
    assert {"x", "scale", "Square", "Sum", "Max", "StatefulPartitionedCall"} <= nodes


# ---- 04_linear_regression_gd ---------------------------------------------------------------

REGRESSION = "first_try/04_linear_regression_gd.py"


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(REGRESSION, tmp_path_factory.mktemp("runs") / "regression")


def test_regression_agrees_with_polyfit_and_with_the_closed_form_of_descent(regression):
    rng = np.random.default_rng(1)
    x = rng.random(100, dtype=np.float32)
    y = 0.1 * x + 0.2 + rng.normal(0, 0.01, 100)
    slope, intercept = np.polyfit(x, y, 1)
    assert regression.metrics["least_squares_w"] == pytest.approx(slope, abs=1e-5)
    assert regression.metrics["least_squares_b"] == pytest.approx(intercept, abs=1e-5)
    # Descent on a quadratic has a closed form: the distance to the minimum is multiplied by
    # (I - rate * Hessian) at each step.
    hessian = 2 / 100 * np.array([[x @ x, x.sum()], [x.sum(), 100]])
    shrink = np.linalg.matrix_power(np.eye(2) - 0.3 * hessian, 30)
    w, b = np.array([slope, intercept]) + shrink @ (np.zeros(2) - [slope, intercept])
    assert regression.metrics["w"] == pytest.approx(w, abs=1e-5)
    assert regression.metrics["b"] == pytest.approx(b, abs=1e-5)


def test_regression_logs_every_step(regression):
    events = regression.events()
    assert events.tags("scalars") == {"loss", "w", "b"}
    losses = list(events.values("loss").values())
    assert len(losses) == 30
    assert np.all(np.diff(losses) < 0), "gradient descent at this rate never goes uphill"


def test_regression_prints_the_result_its_notes_promise(regression):
    assert re.search(r"gradient descent, 30 steps: y = 0\.107 x \+ 0\.196", regression.output)


def test_regression_survives_a_rate_that_diverges(tmp_path):
    done = run_program(REGRESSION, "--learning-rate", "5", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "argument --steps: '0' is not a whole number from 1"),
        (["--learning-rate", "-1"], "argument --learning-rate: '-1' is not a number above 0"),
        (["--seed", "x"], "argument --seed: 'x' is not a whole number from 0"),
    ],
)
def test_regression_refuses_flags_in_a_sentence(flags, message):
    done = run_program(REGRESSION, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
