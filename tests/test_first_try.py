"""Chapter first_try: each script end to end, and its numbers against a second reckoning."""

import re

import numpy as np
import pytest
from helpers import Finished, run_program, run_quick

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
