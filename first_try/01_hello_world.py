"""Hello, TensorFlow
=================

You learn: constants and variables, graph and session, as TensorFlow 2 calculates them at once and
as TensorFlow 1 ran a graph in a session. ``tf.function`` joins the two.

Run::

    python first_try/01_hello_world.py

You should see: "Hello, TensorFlow!", the product of two matrices, [[12.]], the error of a variable
that was not initialised, and a counter that goes from 1 to 5, three times.

Time: 4 s on two CPU cores, nearly all of it to import TensorFlow.
"""

import numpy as np
import tensorflow as tf

from utils.run import CourseParser, Run

run = Run(CourseParser(__doc__), __file__)
tf1 = tf.compat.v1  # what TensorFlow 2 keeps of TensorFlow 1

# %%
# The first constants
# -------------------
# A *tensor* is an array of numbers or texts with a shape and a dtype. TensorFlow 2 calculates its
# value at once ("eagerly"), and ``numpy()`` returns it. Texts are UTF-8 bytes, hence ``decode()``.

hello = tf.constant("Hello, TensorFlow!")  # [], a single text
row = tf.constant([[3.0, 3.0]])  # [1, 2]
column = tf.constant([[2.0], [2.0]])  # [2, 1]
product = tf.matmul(row, column)  # [1, 1]
print(hello.numpy().decode())
print(f"Eagerly, the product has a value: {product.numpy()}")

# %%
# What TensorFlow prints on its own
# ---------------------------------
# About ten lines on the error stream. None of them, not even the one marked E, means a fault.
#
# - "oneDNN custom operations are on": the last digits may differ from another machine's.
# - "Could not find cuda drivers" and "failed call to cuInit": there is no NVIDIA GPU to use.
# - "This TensorFlow binary is optimized": it was compiled for fewer instructions than the CPU has.
# - "Local rendezvous is aborting": a session stopped at an error, here at the one that we provoke.

# %%
# The same in TensorFlow 1
# ------------------------
# A program first described the calculation: each call added an *operation* to a graph, and a tensor
# was the name of an operation's output, without a value. Then a *session* calculated what it was
# asked for. In its ``with`` block, ``tensor.eval()`` is short for ``session.run(tensor)``.

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
# A variable keeps its value until a new one is assigned to it. Training changes only variables.

counter = tf.Variable(0)
counts = [int(counter.assign_add(1)) for _ in range(5)]
print(f"\nCounted eagerly: {counts}")

# %%
# The variable that was not initialised
# -------------------------------------
# In a graph, an assignment is an operation, too: it happens when a session runs it. Even the first
# value, 0, is stored by one, the *initialiser*. A program that did not run it stopped with a
# FailedPreconditionError. The value is lost with the session; a second one has to initialise again.

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
# ``tf.function`` makes a graph of a Python function. The first call runs the Python lines to record
# it, and every call runs the graph: ``print`` prints once, the counter counts five times.

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
# Type the command that is printed last, open the Graphs tab and choose a run at the left.

for name, drawn in {"product_tf1": graph, "counter_tf1": counter_graph}.items():
    with drawn.as_default():
        tf1.summary.FileWriter(run.path(name), drawn).close()
run.write_graph("counter_tf2", count_up_by_one.get_concrete_function())

run.finish({"product": product_value.item(), "counter": counts_function[-1]})

# %%
# Try it
# ------
# 1. Call ``product_v1.eval()`` after the ``with`` block. What does it miss?
# 2. Open a second session on ``counter_graph`` and run ``count_up`` in it.
