"""Hello, TensorFlow
=================

You learn: constants and variables, graph and session. Each idea is shown as TensorFlow 2
calculates it at once and as TensorFlow 1 built a graph and ran it in a session. ``tf.function``
joins the two.

Run::

    python first_try/01_hello_world.py

You should see: "Hello, TensorFlow!", the product of two matrices, [[12.]], the error of a variable
that was not initialised, and a counter that goes from 1 to 5, three times.

Time: 6 s on two CPU cores, nearly all of it to import TensorFlow.
"""

import numpy as np
import tensorflow as tf

from utils.run import Run, make_parser
from utils.summary import write_graph

run = Run(make_parser(__doc__), __file__)
tf1 = tf.compat.v1  # what TensorFlow 2 keeps of TensorFlow 1

# %%
# The first constants
# -------------------
# A *tensor* is an array of numbers or of texts. It has a shape and a dtype. In TensorFlow 2 it also
# has a value from the moment it is made: ``tf.matmul`` calculates at once ("eagerly"), and
# ``numpy()`` gives the value. Texts are stored as UTF-8 bytes, hence ``decode()``.

hello = tf.constant("Hello, TensorFlow!")  # [], a single text
row = tf.constant([[3.0, 3.0]])  # [1, 2]
column = tf.constant([[2.0], [2.0]])  # [2, 1]
product = tf.matmul(row, column)  # [1, 1]
print(hello.numpy().decode())
print(f"Eagerly, the product has a value: {product.numpy()}")

# %%
# What TensorFlow prints on its own
# ---------------------------------
# About ten lines on the error stream. None of them means that something is wrong with your
# installation, not even the one marked E.
#
# - "All log messages before absl::InitializeLog()": logging starts before it is set up.
# - "oneDNN custom operations are on": Intel's library adds numbers in an order of its own, so the
#   last digits may differ from another machine's.
# - "Could not find cuda drivers" and "failed call to cuInit": there is no NVIDIA GPU to use.
# - "This TensorFlow binary is optimized": the processor has more instructions than TensorFlow was
#   compiled for.
# - "MLIR V1 optimization pass is not enabled": the first session says so.
# - "Local rendezvous is aborting": a session stopped at an error, here at the one that we provoke.

# %%
# The same in TensorFlow 1
# ------------------------
# A program had two halves. The first only described the calculation. Each call added an
# *operation* to a graph, and a tensor was the name of an operation's output, without a value. The
# second half opened a *session*, which calculated what it was asked for. Inside the ``with`` block
# of a session, ``tensor.eval()`` is short for ``session.run(tensor)``.

graph = tf.Graph()
with graph.as_default():
    hello_v1 = tf.constant("Hello, TensorFlow!", name="hello")
    row_v1 = tf.constant([[3.0, 3.0]], name="row")
    column_v1 = tf.constant([[2.0], [2.0]], name="column")
    product_v1 = tf.matmul(row_v1, column_v1, name="product")
    print(f"\nIn a graph, the product is a name: {product_v1}")
    with tf1.Session() as session:
        print(session.run(hello_v1).decode())
        product_value = product_v1.eval()
print(f"In a session, it has a value: {product_value}")
assert np.array_equal(product_value, product)

# %%
# A variable that counts
# ----------------------
# A constant never changes. A variable keeps its value until a new one is assigned to it. Training
# changes variables and nothing else.

counter = tf.Variable(0)
counts = [int(counter.assign_add(1)) for _ in range(5)]
print(f"\nCounted eagerly: {counts}")

# %%
# The variable that was not initialised
# -------------------------------------
# In a graph, an assignment is an operation like the others. Nothing happens until a session runs
# it, and each run adds one. Even the first value, 0, is stored by an operation, the *initialiser*.
# A program that did not run it stopped with a FailedPreconditionError. TensorFlow 1 wrote
# "Attempting to use uninitialized value counter"; the message today is the one that you see.
#
# The value belongs to the session and is lost with it. A second session has to initialise again.

counter_graph = tf.Graph()
with counter_graph.as_default():
    counter_v1 = tf1.Variable(0, name="counter")
    count_up = tf1.assign(counter_v1, counter_v1 + 1)
    initialise = tf1.global_variables_initializer()
    with tf1.Session() as session:
        try:
            session.run(count_up)
        except tf.errors.FailedPreconditionError as error:
            print(f"\nNot initialised: {error.message.splitlines()[-2].partition(' Debug')[0]}")
        session.run(initialise)
        counts_v1 = [int(session.run(count_up)) for _ in range(5)]
print(f"Counted in a session: {counts_v1}")

# %%
# The bridge: tf.function
# -----------------------
# ``tf.function`` turns a Python function into a graph. The first call runs the Python lines and
# records their operations. Every call then runs the graph: ``print`` prints once, the counter
# counts five times. No session is needed and no initialiser.

counter.assign(0)


@tf.function
def count_up_by_one() -> tf.Tensor:
    """Add one to the counter; return its new value, []."""
    print("\n(Python runs the lines of the function)")
    return counter.assign_add(1)


counts_function = [int(count_up_by_one()) for _ in range(5)]
print(f"Counted by tf.function: {counts_function}")
assert counts == counts_v1 == counts_function

# %%
# The graphs in TensorBoard
# -------------------------
# Type the command that is printed last and open the Graphs tab. Choose a run at the left.

for name, drawn in {"product_tf1": graph, "counter_tf1": counter_graph}.items():
    with drawn.as_default():
        tf1.summary.FileWriter(run.path(name), drawn).close()
write_graph(run.log_dir("counter_tf2"), count_up_by_one.get_concrete_function())

run.finish({"product": product_value.item(), "counter": counts_function[-1]})

# %%
# Try it
# ------
# 1. Call ``product_v1.eval()`` after the ``with`` block. What does it miss?
# 2. Make ``column_v1`` in a second ``tf.Graph()``. Which graph does an operation belong to?
# 3. Open a second session on ``counter_graph`` and run ``count_up`` in it.
