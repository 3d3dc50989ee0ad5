"""Fetch and feed
==============

You learn: how numbers were fed to a TensorFlow 1 graph and fetched from it, and how ``tf.function``
does it today; what is calculated once, twice or never; when a function is traced again.

Run::

    python first_try/03_fetch_and_feed.py

You should see: two results fetched in one ``run`` share their work, in two runs they don't. Five
inputs cost a ``tf.function`` four tracings, with an input signature only one.

Time: 4 s on two CPU cores, nearly all of it to import TensorFlow.
"""

import numpy as np
import tensorflow as tf

from utils.run import CourseParser, Run

run = Run(CourseParser(__doc__), __file__)
tf1 = tf.compat.v1

# %%
# The graph
# ---------
# A *placeholder* is a gap with a dtype and a shape; ``None`` leaves the number of rows open. By the
# control dependency, ``count`` counts how often the squares are calculated.

graph = tf.Graph()
with graph.as_default():
    x = tf1.placeholder(tf.float32, [None, 3], name="x")
    count = tf1.Variable(0, name="count")
    with tf.control_dependencies([count.assign_add(1)]):
        squares = tf.square(x, name="squares")  # [rows, 3]
    total = tf.reduce_sum(squares, name="total")  # []
    largest = tf.reduce_max(squares, name="largest")  # []
    average = tf1.Variable(0.0, name="average")
    update = average.assign(tf.reduce_mean(squares), name="update")
    noise = tf.random.uniform([], seed=run.args.seed, name="noise")  # []
    double_noise = tf.multiply(noise, 2, name="double_noise")  # []
    initialise = tf1.global_variables_initializer()
session = tf1.Session(graph=graph)
session.run(initialise)

# %%
# Fetch and feed
# --------------
# ``run`` fetches a tensor, or a list or dictionary of tensors, and returns NumPy values in the same
# structure. The feed dictionary is for this run only. Nearly every tensor can be fed, and nothing
# before it is calculated: with ``squares`` fed, ``total`` needs no ``x``.

rows = np.array([[0, 1, 2], [3, 4, 5]], np.float32)  # [2, 3]; the squares add up to 55
print("one fetch:   ", session.run(total, {x: rows}))
print("a list:      ", session.run([total, largest], {x: rows}))
print("a dictionary:", session.run({"sum": total, "squares": squares}, {x: rows[:1]}))
print("squares fed: ", session.run(total, {squares: [[1, 2, 3]]}))

# %%
# Two mistakes
# ------------
# A missing feed was often a ``keep_prob``, fed in the training and forgotten in the test.

try:
    session.run(total)
except tf.errors.InvalidArgumentError as error:
    print("\nno feed:     ", error.message.splitlines()[-2])
try:
    session.run(total, {x: rows[:, :2]})
except ValueError as error:
    print("two columns: ", error)

# %%
# The same today
# --------------
# The arguments of a ``tf.function`` are the feeds, its return values the fetches. ``TensorSpec``
# says what the placeholder said. To feed a value in the middle, make two functions.

average_today = tf.Variable(0.0)
rows_of_three = tf.TensorSpec([None, 3], tf.float32)


@tf.function(input_signature=[rows_of_three])
def statistics(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum and the largest of the squares of x, [rows, 3]; both []."""
    squares = tf.square(x)
    average_today.assign(tf.reduce_mean(squares))
    return tf.reduce_sum(squares), tf.reduce_max(squares)


print("\na function:  ", [value.numpy() for value in statistics(rows)])
assert session.run((total, largest), {x: rows}) == statistics(rows)

# %%
# Once, twice or never
# --------------------
# One ``run`` calculates a node once for all fetches. The next one starts again and knows only the
# variables. What no fetch needs is not calculated: ``average`` is still 0. So batch normalisation
# often kept its first averages. A ``tf.function`` changes them all, in the order of its lines.

session.run(initialise)  # count is 0 again
session.run([total, largest], {x: rows})
one_run = session.run(count)
session.run(total, {x: rows})
session.run(largest, {x: rows})
two_runs = session.run(count) - one_run
print(f"\nsquares: calculated {one_run} time in one run, {two_runs} times in two")
print(f"average: {session.run(average)} in the session, {average_today.numpy()} by function")

# %%
# Random numbers, dropout and the next batch of a queue are new in each ``run``, so a loss from one
# run and an accuracy from another belong to different batches.

one, its_double = session.run([noise, double_noise])
other_double = session.run(double_noise)
assert its_double == 2 * one != other_double
print(f"one run: {one:.3f} and its double {its_double:.3f}; in another run: {other_double:.3f}")

# %%
# Tracing
# -------
# *Tracing* runs the Python lines to record a graph; ``print`` is not in it. Normally there is one
# graph for each dtype and shape. With ``reduce_retracing=True`` the second shape makes one of open
# size. An input signature allows only one, and NumPy arrays are converted to its dtype.


def double(x: tf.Tensor) -> tf.Tensor:
    """x + x, of any shape."""
    print("  tracing for", x)
    return x + x


functions = {
    "as_it_is": tf.function(double),
    "reduced": tf.function(double, reduce_retracing=True),
    "with_signature": tf.function(double, input_signature=[rows_of_three]),
}
inputs = [rows, rows + 1, rows[:1], np.ones([4, 3], np.float32), rows.astype(np.float64)]
for name, function in functions.items():
    print(f"\n{name}:")
    for array in inputs:
        print(f"  call with {array.dtype} {array.shape}")
        function(array)

# %%
# Python numbers
# --------------
# A Python number is a constant in the graph. Each new one costs a tracing, so a learning rate
# should be a tensor. A trap: Python finds 2 and 2.0 equal, so 2.0 gets the graph traced for 2.

numbers = tf.function(double)
print("\nnumbers:")
for number in (2, 3, 2.0, tf.constant(2.0), tf.constant(3.0)):
    print(f"  call with {number!r}")
    print(f"  result {numbers(number)}")

# %%
# In the Graphs tab's ``session``, the dotted line to ``squares`` is the control dependency.

with graph.as_default():
    tf1.summary.FileWriter(run.path("session"), graph).close()
run.write_graph("function", statistics.get_concrete_function())
session.close()

tracings = {f"tracings_{n}": f.experimental_get_tracing_count() for n, f in functions.items()}
run.finish({"squares_in_one_run": one_run, "squares_in_two_runs": two_runs} | tracings)

# %%
# Try it
# ------
# 1. Call ``statistics(rows[:, :2])``. Compare the message with the session's.
# 2. Add ``random.random()``, Python's, to ``x + x``. How many numbers do the five calls draw?
