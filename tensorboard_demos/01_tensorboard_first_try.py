"""A first graph in TensorBoard
============================

You learn: what TensorBoard's Graphs tab draws, and how a curve gets into the Scalars tab. The same
small model is built as a TensorFlow 1 graph and as a ``tf.function`` and trained in both.

Run::

    python tensorboard_demos/01_tensorboard_first_try.py

You should see: a loss that falls from 4.59 to 0.0000016 in both, then the operations of the two
forward passes, with the same MatMul, y and mse. TensorBoard shows the runs ``tf1`` and ``tf2``.

Time: 4 s on two CPU cores, nearly all of it to import TensorFlow.
"""

import numpy as np
import tensorflow as tf

from utils.run import CourseParser, Run

STEPS = 30
RATE = 0.3

run = Run(CourseParser(__doc__), __file__)

# %%
# The model
# ---------
# A row of the data has three inputs and two outputs, so each tensor has a shape of its own and can
# be recognised in the graph. The outputs have no noise: training can find W and b exactly.
#
# .. math:: \underset{[n, 2]}{y} = \underset{[n, 3]}{x}\;\underset{[3, 2]}{W} + \underset{[2]}{b}

rng = np.random.default_rng(run.args.seed)
TRUE_W = np.array([[1.0, -2.0], [0.5, 0.0], [-1.0, 1.5]], np.float32)
TRUE_B = np.array([0.5, -0.25], np.float32)
inputs = rng.normal(size=(100, 3)).astype(np.float32)  # [100, 3]
targets = inputs @ TRUE_W + TRUE_B  # [100, 2]

# %%
# The graph in TensorFlow 1
# -------------------------
# Building the graph calculates nothing. ``tf.matmul`` adds an operation and returns a tensor, the
# place where a value will be when ``session.run`` is called. Every operation has a name, and
# ``tf.name_scope`` puts a prefix before it, only for TensorBoard: each prefix becomes a box.

with tf.Graph().as_default() as tf1_graph:
    with tf.name_scope("input"):
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], name="x")
        y_true = tf.compat.v1.placeholder(tf.float32, [None, 2], name="y_true")
    with tf.name_scope("linear"):  # use_resource=False: the kind of variable that old graphs have
        W = tf.compat.v1.Variable(tf.zeros([3, 2]), name="W", use_resource=False)
        b = tf.compat.v1.Variable(tf.zeros([2]), name="b", use_resource=False)
        y = tf.add(tf.matmul(x, W), b, name="y")  # b is added to each of the n rows
    with tf.name_scope("loss"):
        mse = tf.reduce_mean(tf.square(y - y_true), name="mse")
    with tf.name_scope("train"):
        train = tf.compat.v1.train.GradientDescentOptimizer(RATE).minimize(mse)
    initialise = tf.compat.v1.global_variables_initializer()
    summary = tf.compat.v1.summary.scalar("mse", mse)  # an operation as well: its value is bytes

    writer = tf.compat.v1.summary.FileWriter(str(run.path("tf1")), tf1_graph)  # writes the graph
    tf1_losses = []
    with tf.compat.v1.Session() as session:
        session.run(initialise)
        for step in range(STEPS):
            feed = {x: inputs, y_true: targets}
            _, loss, content = session.run([train, mse, summary], feed)
            writer.add_summary(content, step)  # a point for the Scalars tab
            tf1_losses.append(loss)
        tf1_W = session.run(W)
    writer.close()

# %%
# The graph of a tf.function
# --------------------------
# In TensorFlow 2 these lines run at once, with no graph. ``tf.function`` makes one: it runs the
# lines once, with symbolic tensors, and keeps the operations. ``get_concrete_function`` returns it.

W = tf.Variable(tf.zeros([3, 2]), name="W")
b = tf.Variable(tf.zeros([2]), name="b")


@tf.function
def train_step(x: tf.Tensor, y_true: tf.Tensor) -> tf.Tensor:
    """One step of gradient descent on x [n, 3] and y_true [n, 2]; returns the loss before it."""
    with tf.GradientTape() as tape:
        with tf.name_scope("linear"):
            y = tf.add(tf.matmul(x, W), b, name="y")
        with tf.name_scope("loss"):
            mse = tf.reduce_mean(tf.square(y - y_true), name="mse")
    with tf.name_scope("train"):
        for variable, gradient in zip((W, b), tape.gradient(mse, (W, b)), strict=True):
            variable.assign_sub(RATE * gradient)
    return mse


specs = tf.TensorSpec([None, 3], name="x"), tf.TensorSpec([None, 2], name="y_true")
tf2_graph = train_step.get_concrete_function(*specs).graph
tf2_losses = []
with tf.summary.create_file_writer(str(run.folder / "tf2")).as_default() as writer:
    tf.summary.graph(tf2_graph)
    for step in range(STEPS):
        loss = train_step(tf.constant(inputs), tf.constant(targets))
        tf.summary.scalar("mse", loss, step)  # no operation to run: it writes at once
        tf2_losses.append(loss.numpy())
    writer.close()

np.testing.assert_allclose(tf2_losses, tf1_losses, rtol=1e-4, atol=1e-7)
np.testing.assert_allclose(W.numpy(), tf1_W, atol=1e-6)
print(f"Loss of both: {tf1_losses[0]:.2f} at step 0, {tf1_losses[-1]:.7f} at step {STEPS - 1}")

# %%
# Nodes and edges
# ---------------
# A *node* is an operation. Its type says what it does: MatMul, AddV2, Mean. A *tensor* is an output
# of a node: ``linear/MatMul:0`` is output 0 of ``linear/MatMul``. An *edge* leads from the node
# that makes a tensor to one that takes it, labelled with the tensor's shape. The unknown number of
# rows is None here, a question mark in TensorBoard. A dashed edge is a control dependency: it
# carries no tensor and says only what has to run first.
#
# In TensorFlow 1 a variable is a node of the graph, with its start value, an Assign and a read
# around it. In a ``tf.function`` it is an input, a handle of type resource, read by ReadVariableOp.

for name, graph in {"tf1": tf1_graph, "tf2": tf2_graph}.items():
    print(f"\n{name}: {len(graph.get_operations())} operations. The forward pass:")
    for operation in graph.get_operations():
        if operation.name.split("/")[0] in ("input", "x", "y_true", "linear", "loss"):
            shape = operation.outputs[0].shape.as_list()
            sources = ", ".join(tensor.name for tensor in operation.inputs)
            print(f"  {operation.name:36} {operation.type:14} {shape!s:9} {sources}")

run.finish(
    {
        "loss": tf2_losses[-1],
        "first_loss": tf2_losses[0],
        "tf1_operations": len(tf1_graph.get_operations()),
        "tf2_operations": len(tf2_graph.get_operations()),
    },
    parameters=TRUE_W.size + TRUE_B.size,
)

# %%
# What to look at in TensorBoard
# ------------------------------
# 1. Graphs, run ``tf1``: each name scope is a box, and data flow upwards. Double click ``linear``,
#    then ``W``. Click a node to see its attributes, inputs and outputs.
# 2. Graphs, run ``tf2``: no Assign of a start value and no ``init``. The backward pass is in the
#    box ``gradient_tape``. In ``tf1`` it is inside ``train``.
# 3. Scalars: one curve for two runs, since they lie on each other.
#
# Try it
# ------
# 1. Remove the three ``tf.name_scope`` lines of ``train_step``. Which boxes are left?
# 2. Set ``RATE`` to 1.6. Which way does the curve go now?
