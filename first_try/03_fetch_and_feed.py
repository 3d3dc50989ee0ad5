"""Fetch and feed
==============

You learn: how values came out of a TensorFlow 1 graph (fetches) and went into it (a feed
dictionary), and how the return values and arguments of a ``tf.function`` do both today. What
is computed once, what twice and what never, proved by counting.

Run::

    python first_try/03_fetch_and_feed.py

You should see: two results fetched in one ``run`` compute what they share once, two ``run``
calls compute it twice; the same holds for calls of a ``tf.function``. Inputs of two dtypes
and three shapes cost a ``tf.function`` four tracings, with an input signature one.

Time: 6 s on two CPU cores, nearly all of it spent importing TensorFlow.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from utils.run import Run, make_parser
from utils.summary import write_graph

parser = make_parser(__doc__)
run = Run(parser, __file__)
args = run.args
tf1 = tf.compat.v1

# %%
# A graph in the TensorFlow 1 way
# -------------------------------
# First the graph is described, and nothing is computed. ``x`` and ``scale`` are placeholders,
# holes in the graph with a dtype and a shape; None leaves the number of rows open. All results
# share the node ``squares``; only ``scaled`` depends on ``scale``.
#
# ``executions`` counts: the control dependency makes TensorFlow add 1 to it before each time
# that ``squares`` is computed. ``forgotten`` is a counter that no result depends on.
#
# The line "MLIR V1 optimization pass is not enabled", which the first session prints, is of no
# importance.

graph = tf.Graph()
with graph.as_default():
    x = tf1.placeholder(tf.float32, [None, 3], name="x")
    scale = tf1.placeholder(tf.float32, [], name="scale")
    executions = tf.Variable(0, name="executions")
    with tf.control_dependencies([executions.assign_add(1)]):
        squares = tf.square(x, name="squares")  # [rows, 3]
    total = tf.reduce_sum(squares, name="total")  # []
    largest = tf.reduce_max(squares, name="largest")  # []
    scaled = tf.multiply(total, scale, name="scaled")  # []
    forgotten = tf.Variable(0, name="forgotten")
    count_forgotten = forgotten.assign_add(1)
    draw = tf.random.uniform([3], seed=args.seed, name="draw")  # [3], new numbers at each run
    doubled_draw = tf.multiply(draw, 2, name="doubled_draw")
    initialize = tf1.global_variables_initializer()

session = tf1.Session(graph=graph)
session.run(initialize)
VALUES = np.array([[0, 1, 2], [3, 4, 5]], np.float32)  # [2, 3]; squares add up to 55

# %%
# Fetching
# --------
# ``run`` takes one thing to fetch, or lists, tuples and dictionaries of them, and returns NumPy
# values in the same structure. A tensor may be named by text, ``"total:0"`` being output 0 of
# the node ``total``. An operation, such as a training step, is run but has no value: None.

feed = {x: VALUES, scale: 10}
one = session.run(total, feed)
several = session.run([total, largest, scaled], feed)
structured = session.run({"sum": "total:0", "both": (total, largest), "op": executions.op}, feed)
print(f"one fetch:        {one}")
print(f"a list:           {several}")
print(f"a dictionary:     {structured}")
assert one == 55 and several == [55, 25, 550]
assert structured == {"sum": 55, "both": (55, 25), "op": None}

# %%
# Feeding
# -------
# The feed dictionary says which tensor has which value in this run only. A placeholder must be
# fed when a fetch depends on it, and only then: ``total`` needs ``x`` but no ``scale``, and
# ``executions`` is read without any feed.
#
# Not only placeholders can be fed. Nearly any tensor in the middle can, and then nothing before
# it is computed: with ``squares`` given, ``total`` needs no ``x`` either.

assert session.run(total, {x: VALUES}) == 55
given_squares = np.array([[1, 2, 3]], np.float32)  # [1, 3]
assert session.run(total, {squares: given_squares}) == 6
print(f"squares fed:      total = {session.run(total, {squares: given_squares})}, without any x")

# %%
# Three mistakes, and what TensorFlow says
# ----------------------------------------
# A missing feed is found only while the graph runs, hence the long message that names the node,
# and one more line on the console about an aborting "local rendezvous", which is the same
# error. The usual causes: a placeholder such as ``keep_prob`` or ``is_training`` that was
# forgotten for evaluation, or a summary that depends on one.
#
# A wrong shape and a wrong type are found before anything runs. A tensor can't be fed, only
# NumPy arrays and Python values: whatever is in a tensor has to be fetched first.


def refusal(error: type[Exception], call: Callable[[], Any]) -> str:
    """The message of the error that ``call`` is expected to raise."""
    try:
        call()
    except error as refused:
        return str(refused)
    raise AssertionError(f"expected {error.__name__}")


message = refusal(tf.errors.InvalidArgumentError, lambda: session.run(total))
missing_feed = next(line for line in message.splitlines() if line.startswith("You must feed"))
wrong_shape = refusal(ValueError, lambda: session.run(total, {x: VALUES[:, :2]}))
fed_tensor = refusal(TypeError, lambda: session.run(total, {x: tf.constant(VALUES)}))
print(f"no feed:          {missing_feed}")
print(f"two columns:      {wrong_shape}")
print(f"a tensor as feed: {fed_tensor.split('. ')[0]}")

# %%
# Once, twice or never
# --------------------
# One ``run`` computes every node that its fetches need once, however many of them share it. A
# second ``run`` starts afresh and remembers nothing but variables. What no fetch needs is not
# computed: ``forgotten`` stays 0. That was a well-known fault of TensorFlow 1 programs, whose
# batch normalisation never updated its averages since nobody fetched the update operations.


def executions_of(*fetches: Any, feed: dict[Any, np.ndarray]) -> int:
    """How often ``squares`` is computed when each of ``fetches`` gets a ``run`` of its own."""
    before = session.run(executions)
    for fetch in fetches:
        session.run(fetch, feed)
    return int(session.run(executions) - before)


session_counts = {
    "two results, one run or call": executions_of([total, largest], feed=feed),
    "two results, two runs or calls": executions_of(total, largest, feed=feed),
    "the squares given": executions_of([total, largest], feed={squares: given_squares}),
    "side effect not asked for": int(session.run(forgotten)),
}

# %%
# Why it matters: two runs see two different worlds
# -------------------------------------------------
# Time is the lesser reason to fetch together. Where the graph draws random numbers, applies
# dropout or takes the next batch from a queue, each ``run`` draws anew. A loss from one ``run``
# and an accuracy from another belong to different batches.

drawn, doubled = session.run([draw, doubled_draw])
np.testing.assert_array_equal(doubled, 2 * drawn)
drawn_first, doubled_later = session.run(draw), session.run(doubled_draw)
assert not np.array_equal(doubled_later, 2 * drawn_first)
print(f"\none run:  draw {drawn}, doubled {doubled}")
print(f"two runs: draw {drawn_first}, doubled {doubled_later}, not its double")

# %%
# The twin: arguments and return values
# -------------------------------------
# A ``tf.function`` is a graph with a Python signature. Arguments take the place of the feed
# dictionary, return values that of the fetches, and the input signature that of the
# placeholder: ``TensorSpec([None, 3], tf.float32)`` says just what ``x`` said above. To give a
# value in the middle, split the function there: ``summarize`` takes the squares.
#
# Two differences. Every argument must be given and every result is computed, needed or not; who
# wants less writes a smaller function. And a side effect happens even if nothing depends on it:
# ``tf.function`` keeps the order of the lines for everything that changes state, so control
# dependencies and forgotten updates are things of the past.

executed = tf.Variable(0, name="executed")
no_longer_forgotten = tf.Variable(0, name="no_longer_forgotten")
ROWS_OF_THREE = tf.TensorSpec([None, 3], tf.float32)
SCALAR = tf.TensorSpec([], tf.float32)


@tf.function(input_signature=[ROWS_OF_THREE])
def square(x: tf.Tensor) -> tf.Tensor:
    """[rows, 3] to [rows, 3]; counts its executions."""
    executed.assign_add(1)
    return tf.square(x)


@tf.function(input_signature=[ROWS_OF_THREE, SCALAR])
def summarize(squares: tf.Tensor, scale: tf.Tensor) -> dict[str, tf.Tensor]:
    """[rows, 3] and [] to three scalars."""
    total = tf.reduce_sum(squares)
    return {"total": total, "largest": tf.reduce_max(squares), "scaled": total * scale}


@tf.function(input_signature=[ROWS_OF_THREE, SCALAR])
def statistics(x: tf.Tensor, scale: tf.Tensor) -> dict[str, tf.Tensor]:
    """[rows, 3] and [] to three scalars, by way of the squares."""
    no_longer_forgotten.assign_add(1)
    return summarize(square(x), scale)


def executions_during(call: Callable[[], Any]) -> int:
    """How often ``square`` is executed during ``call``."""
    before = executed.numpy()
    call()
    return int(executed.numpy() - before)


def call_twice() -> tuple[tf.Tensor, tf.Tensor]:
    return statistics(VALUES, 10)["total"], statistics(VALUES, 10)["largest"]


function_counts = {
    "two results, one run or call": executions_during(lambda: statistics(VALUES, 10)),
    "two results, two runs or calls": executions_during(call_twice),
    "the squares given": executions_during(lambda: summarize(given_squares, 10)),
}
no_longer_forgotten.assign(0)
result = statistics(VALUES, 10)
function_counts["side effect not asked for"] = int(no_longer_forgotten.numpy())

assert [result[name].numpy() for name in ("total", "largest", "scaled")] == several
given = summarize(given_squares, 10)
assert given["total"].numpy() == session.run(total, {squares: given_squares})
print(f"\n{'how often it is computed':32} session tf.function")
for case, count in session_counts.items():
    print(f"{case:32} {count:7} {function_counts[case]:11}")
assert list(session_counts.values()) == [1, 2, 0, 0]
assert list(function_counts.values()) == [1, 2, 0, 1]

# %%
# The same mistakes
# -----------------
# A missing argument and a wrong shape are both refused before anything runs, as a TypeError,
# like any wrong call in Python.

missing_argument = refusal(TypeError, lambda: statistics(VALUES))
wrong_argument = refusal(TypeError, lambda: statistics(VALUES[:, :2], 10))
print(f"\nno argument: {missing_argument.split(' Received')[0]}")
print(f"two columns: {wrong_argument.split(' Received')[0]}")

# %%
# Tracing is not executing
# ------------------------
# On the first call Python runs through the function once and records a graph: the tracing.
# Later calls execute the graph, not the Python lines. So ``print``, ``list.append`` and
# ``random.random()`` happen when tracing, while TensorFlow's operations happen at each call.
# ``tf.numpy_function`` makes Python code an operation of the graph, which happens each time.
#
# Left to itself a ``tf.function`` makes one graph for each dtype and shape that it meets. With
# an input signature there is one, and NumPy arrays and lists are converted to suit it, as a
# feed was. ``reduce_retracing=True`` is the way between: the second shape that it meets makes
# it trace once more, with the sizes that differ left open.

traced: list[str] = []  # grows at each tracing
happened: list[str] = []  # grows at each execution


def recorded(x: Any) -> Any:
    """Note a tracing and an execution; return ``x + x``."""
    traced.append(str(x))
    tf.numpy_function(lambda: happened.append("executed") or np.int32(0), [], tf.int32)
    return x + x


INPUTS = {
    "float32, 2 rows": VALUES,
    "other values": VALUES + 1,
    "3 rows": np.ones([3, 3], np.float32),
    "4 rows": np.ones([4, 3], np.float32),
    "float64, 2 rows": VALUES.astype(np.float64),
}


def trace_counts(function: Callable[[Any], tf.Tensor], inputs: dict[str, Any]) -> list[int]:
    """Call ``function`` with each of ``inputs``: the number of tracings so far after each."""
    traced.clear()
    happened.clear()
    counts = []
    for value in inputs.values():
        output = function(value)
        np.testing.assert_allclose(output, np.add(value, value))
        counts.append(len(traced))
    assert len(happened) == len(inputs), "the graph is executed at every call"
    return counts


as_is = trace_counts(tf.function(lambda x: recorded(x)), INPUTS)
relaxed = trace_counts(tf.function(lambda x: recorded(x), reduce_retracing=True), INPUTS)
signed = trace_counts(tf.function(lambda x: recorded(x), input_signature=[ROWS_OF_THREE]), INPUTS)
print(f"\n{'tracings after each call':26} as it is  reduce_retracing  input_signature")
for case, *counts in zip(INPUTS, as_is, relaxed, signed, strict=True):
    print(f"{case:26} {counts[0]:8} {counts[1]:17} {counts[2]:16}")
assert (as_is, relaxed, signed) == ([1, 1, 2, 3, 4], [1, 1, 2, 2, 3], [1, 1, 1, 1, 1])

# %%
# Python numbers are part of the graph
# ------------------------------------
# A tensor is an input; a Python number is built into the graph as a constant, so each new one
# costs a tracing. A loop counter or a learning rate given as a Python number thus traces again
# and again, and TensorFlow warns after five ("triggered tf.function retracing"). Pass
# ``tf.constant(...)`` or a variable.
#
# There is a trap in it: the graph for 2 is found again for 2.0, since Python holds 2 == 2.0. The
# caller gets whole numbers back from a float. An input signature avoids this as well.

numbers = {"2": 2, "3": 3, "2.0": 2.0}
tensors = {f"tf.constant({name}.)": tf.constant(float(name)) for name in ("2", "3", "4")}
doubled_number = tf.function(lambda x: recorded(tf.convert_to_tensor(x)))
doubled_tensor = tf.function(lambda x: recorded(x))
number_traces = trace_counts(doubled_number, numbers)
tensor_traces = trace_counts(doubled_tensor, tensors)
print(f"\n{'argument':26} tracings  dtype of the result")
for case, count in zip(numbers, number_traces, strict=True):
    print(f"{case:26} {count:8}  {doubled_number(numbers[case]).dtype.name}")
for case, count in zip(tensors, tensor_traces, strict=True):
    print(f"{case:26} {count:8}  {doubled_tensor(tensors[case]).dtype.name}")
assert (number_traces, tensor_traces) == ([1, 2, 2], [1, 1, 1])
assert doubled_number(2.0).dtype == tf.int32

# %%
# Both graphs in TensorBoard
# --------------------------
# The Graphs tab shows two runs. ``session`` is the graph above, written by TensorFlow 1's
# ``FileWriter``, which works inside a graph only: look for the dotted line, the control
# dependency from the counter to ``squares``. ``function`` is the graph of ``statistics``; the
# two functions that it calls are nodes in it, named after ``PartitionedCall``.

with graph.as_default():
    tf1.summary.FileWriter(run.log_dir("session"), graph).close()
write_graph(run.log_dir("function"), statistics.get_concrete_function())
session.close()

run.finish(
    {
        "one_run_executions": session_counts["two results, one run or call"],
        "two_runs_executions": session_counts["two results, two runs or calls"],
        "one_call_executions": function_counts["two results, one run or call"],
        "two_calls_executions": function_counts["two results, two runs or calls"],
        "tracings_as_it_is": as_is[-1],
        "tracings_reduced": relaxed[-1],
        "tracings_with_signature": signed[-1],
        "total": result["total"],
        "largest": result["largest"],
        "scaled": result["scaled"],
    }
)
