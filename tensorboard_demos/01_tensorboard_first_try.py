"""A first graph in TensorBoard
============================

You learn: what the Graphs tab draws. The model y = Wx + b is built in named parts, once as a
TensorFlow 1 graph and once as a ``tf.function``; both are trained for a few steps, written for
TensorBoard, and listed here operation by operation.

Run::

    python tensorboard_demos/01_tensorboard_first_try.py

You should see: two tables of operations, one for each graph, with the same MatMul, y and mse
in both, and a loss that falls from 4.59 to 0.0000016 in both, the same at every step. In
TensorBoard the Graphs tab has two runs, ``tf1_graph`` and ``tf2_graph``.

Time: 6 s on two CPU cores, nearly all of it spent importing TensorFlow.
"""

from collections import Counter

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from utils.run import Run, make_parser, positive_float, positive_int
from utils.summary import write_graph

parser = make_parser(__doc__)
parser.add_argument(
    "--steps", type=positive_int, default=30, quick=10, help="steps of gradient descent"
)
parser.add_argument("--learning-rate", type=positive_float, default=0.3, help="size of a step")
run = Run(parser, __file__)
args = run.args
console = Console()

# %%
# The model
# ---------
# Each row of the data holds three inputs and two outputs, so that the shapes of all tensors
# differ and can be told apart in the graph:
#
# .. math:: \underset{[n, 2]}{y} = \underset{[n, 3]}{x}\;\underset{[3, 2]}{W} +
#           \underset{[2]}{b} .
#
# The bias has one number for each output and none for the rows: the addition repeats it over
# all n rows. The outputs are made without noise, so training can find W and b exactly.

rng = np.random.default_rng(args.seed)
TRUE_W = np.array([[1.0, -2.0], [0.5, 0.0], [-1.0, 1.5]], np.float32)  # [3, 2]
TRUE_B = np.array([0.5, -0.25], np.float32)  # [2]
x_data = rng.normal(size=(100, 3)).astype(np.float32)  # [100, 3]
y_data = x_data @ TRUE_W + TRUE_B  # [100, 2]

# %%
# Names and name scopes
# ---------------------
# Every operation in a graph has a name, unique in that graph. ``tf.name_scope`` puts a prefix
# and a slash before the names of all that is created inside it. A name used before gets a
# number, and so does a scope that is entered again; a scope name that ends in a slash is taken
# as it is, which is how one goes on with an earlier scope.
#
# Names change nothing in what is computed. They are for people: TensorBoard makes a box of all
# operations with the same prefix.

with tf.Graph().as_default():
    first = tf.constant(1.0, name="a")
    second = tf.constant(2.0, name="a")
    with tf.name_scope("part"):
        third = tf.constant(3.0, name="a")
        with tf.name_scope("inner"):
            fourth = tf.constant(4.0, name="a")
    with tf.name_scope("part"):
        fifth = tf.constant(5.0, name="a")
    with tf.name_scope("part/"):
        sixth = tf.constant(6.0, name="c")
    names = [tensor.op.name for tensor in (first, second, third, fourth, fifth, sixth)]
print("names given by name scopes:", ", ".join(names))

# %%
# The graph in TensorFlow 1
# -------------------------
# Nothing is computed while a graph is built: ``tf.matmul`` adds an operation to it and returns
# a tensor, which is a place where a value will be. Placeholders are fed from outside at each
# ``session.run``. The variables are asked for in TensorFlow 1's own kind (``use_resource=False``),
# since older material shows graphs with them.
#
# The summary stands outside all scopes because TensorFlow 1 puts the scopes into the tag.

LOSS = "mse"  # the tag in the Scalars tab, for both runs

tf1_graph = tf.Graph()
with tf1_graph.as_default():
    with tf.name_scope("input"):
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], name="x")
        y_true = tf.compat.v1.placeholder(tf.float32, [None, 2], name="y_true")
    with tf.name_scope("linear"):
        w = tf.compat.v1.Variable(tf.zeros([3, 2]), name="W", use_resource=False)
        b = tf.compat.v1.Variable(tf.zeros([2]), name="b", use_resource=False)
        y = tf.add(tf.matmul(x, w), b, name="y")
    with tf.name_scope("loss"):
        loss = tf.reduce_mean(tf.square(y - y_true), name=LOSS)
    with tf.name_scope("train"):
        optimizer = tf.compat.v1.train.GradientDescentOptimizer(args.learning_rate)
        train_step = optimizer.minimize(loss)
    initialise = tf.compat.v1.global_variables_initializer()
    summary = tf.compat.v1.summary.scalar(LOSS, loss)

    # The writer takes the whole graph, hence after everything is in it.
    writer = tf.compat.v1.summary.FileWriter(run.log_dir("tf1_graph"), tf1_graph)
    tf1_losses = []
    with tf.compat.v1.Session() as session:
        session.run(initialise)
        for step in range(args.steps):
            _, value, summary_bytes = session.run(
                [train_step, loss, summary], {x: x_data, y_true: y_data}
            )
            writer.add_summary(summary_bytes, step)
            tf1_losses.append(value)
        tf1_w = session.run(w)
    writer.close()

# %%
# The graph of a tf.function
# --------------------------
# Today the same lines run at once, with no graph to show. ``tf.function`` runs them once with
# symbolic tensors and keeps the graph that this leaves. ``get_concrete_function`` does so for
# inputs of given shapes; ``utils.summary.write_graph`` hands its graph to TensorBoard.
#
# The variables live outside the function. Inside its graph each appears as a Placeholder of
# type ``resource``, a handle through which ReadVariableOp reads and AssignSubVariableOp writes.
# The operations that ``GradientTape`` adds are named ``gradient_tape/…`` after the operations
# they differentiate.

w = tf.Variable(tf.zeros([3, 2]), name="W")
b = tf.Variable(tf.zeros([2]), name="b")


@tf.function
def train(x: tf.Tensor, y_true: tf.Tensor) -> tf.Tensor:
    """One step of gradient descent on x [n, 3] and y_true [n, 2]; the loss before it."""
    with tf.GradientTape() as tape:
        with tf.name_scope("linear"):
            y = tf.add(tf.matmul(x, w), b, name="y")
        with tf.name_scope("loss"):
            loss = tf.reduce_mean(tf.square(y - y_true), name=LOSS)
    with tf.name_scope("train"):
        dw, db = tape.gradient(loss, [w, b])
        w.assign_sub(args.learning_rate * dw)
        b.assign_sub(args.learning_rate * db)
    return loss


concrete = train.get_concrete_function(
    tf.TensorSpec([None, 3], tf.float32, name="x"), tf.TensorSpec([None, 2], tf.float32, "y_true")
)
tf2_graph = concrete.graph
tf2_folder = run.log_dir("tf2_graph")
write_graph(tf2_folder, concrete)

writer = tf.summary.create_file_writer(tf2_folder)
tf2_losses = []
with writer.as_default():
    for step in range(args.steps):
        value = train(tf.constant(x_data), tf.constant(y_data))
        tf.summary.scalar(LOSS, value, step)
        tf2_losses.append(value.numpy())
writer.close()

np.testing.assert_allclose(tf2_losses, tf1_losses, rtol=1e-4, atol=1e-7)
np.testing.assert_allclose(w.numpy(), tf1_w, rtol=1e-4, atol=1e-6)
print(
    f"loss of both graphs: {tf1_losses[0]:.4f} at step 0, {tf1_losses[-1]:.2e} at step "
    f"{args.steps - 1}"
)

# %%
# Nodes, tensors and edges
# ------------------------
# A **node** is an operation: it has a name, a type (which says what it does), inputs and
# outputs. A **tensor** is an output: ``linear/MatMul:0`` is output 0 of the operation
# ``linear/MatMul``. An **edge** is drawn where a tensor goes from the operation that makes it
# to one that takes it; its label is the tensor's shape, with a question mark where the size is
# known only when fed, and its width grows with the tensor's size. A dashed edge is a **control
# dependency**: no tensor passes, it only says what has to run first.
#
# The roles in the tables:
#
# - *input*: what is fed, or a function's argument.
# - *constant*: a value stored in the graph itself, here mostly shapes and the numbers 0 and 2.
# - *variable*: keeps its value from one run to the next. The value is not in the graph.
# - *read*: passes on what a variable holds now: Identity in TensorFlow 1, ReadVariableOp today.
# - *write*: sets a variable, at the start or in training.
# - *operation*: everything else.


def role_of(operation: tf.Operation) -> str:
    """What an operation is for, in a word of the list above."""
    if operation.type == "Const":
        return "constant"
    if operation.type == "Placeholder":
        return "variable" if operation.outputs[0].dtype == tf.resource else "input"
    if operation.type in ("VariableV2", "VarHandleOp"):
        return "variable"
    if operation.type == "ReadVariableOp":
        return "read"
    if operation.type == "Identity" and operation.inputs[0].op.type == "VariableV2":
        return "read"
    if operation.type.startswith(("Assign", "Apply")):
        return "write"
    return "operation"


def shape_of(tensor: tf.Tensor) -> str:
    """A tensor's shape as TensorBoard writes it on an edge, e.g. ``?×3``."""
    if tensor.dtype == tf.resource:
        return "handle"
    if tensor.shape.rank is None:
        return "unknown"
    return "×".join("?" if size is None else str(size) for size in tensor.shape) or "scalar"


def print_operations(graph: tf.Graph, title: str, scopes: tuple[str, ...]) -> None:
    """Print the operations in the named scopes one by one, and count the others."""
    table = Table(title=title, title_justify="left")
    for column in ("operation", "type", "role", "inputs", "output"):
        table.add_column(column, overflow="fold")
    others = Counter()
    for operation in graph.get_operations():
        scope = operation.name.split("/")[0]
        if scope not in scopes:
            others[scope] += 1
            continue
        table.add_row(
            operation.name,
            operation.type,
            role_of(operation),
            "\n".join(tensor.name for tensor in operation.inputs),
            "\n".join(shape_of(tensor) for tensor in operation.outputs),
        )
    console.print(table)
    console.print(
        f"{len(graph.get_operations())} operations in all; outside the table: "
        + ", ".join(f"{scope} {count}" for scope, count in others.items())
    )


SHOWN = ("input", "linear", "loss", "x", "y_true")
print_operations(tf1_graph, "tf1_graph: forward computation and loss", SHOWN)
print_operations(tf2_graph, "tf2_graph: forward computation and loss", SHOWN)

# %%
# What to look at in TensorBoard
# ------------------------------
# Start TensorBoard with the command in the last line of the output and open the Graphs tab.
#
# 1. Choose the run ``tf1_graph`` at the left. Each scope is a box, and data flow upwards. Double
#    click ``linear``, then W: TensorFlow 1 made a scope of the variable, with its start value
#    (zeros), Assign and read. Click a node for its attributes, inputs and outputs.
# 2. ``init`` stands at the right, among the auxiliary nodes. TensorBoard sets apart NoOp
#    operations and nodes with very many edges, which would cover the picture, and draws a small
#    dashed copy wherever an edge would go. "Remove from main graph", in the box that a click
#    opens, does so by hand.
# 3. Choose ``tf2_graph``. x and y_true stand outside all scopes, for the arguments of a function
#    are made before its first line runs. There is no Assign of a start value and no ``init``:
#    the variables had their values before the function was traced. Each read sits in the box
#    of the operation that needed it: open ``linear``, then MatMul.
# 4. The backward pass is the larger part in both: ``train`` in the first, ``gradient_tape`` in
#    the second. ``NoOp``, among the auxiliary nodes, makes the function wait for its
#    assignments before it returns.
# 5. The Scalars tab shows one curve for the two runs, since they lie on each other. The pale
#    curve is the data; the strong one is smoothed, which the slider at the right turns off.
#
# With "Color by: Structure" a coloured box has a twin with the same structure, here W and b; grey
# boxes are unlike all others.

run.finish(
    {
        "loss": tf2_losses[-1],
        "largest_weight_error": np.max(np.abs(w.numpy() - TRUE_W)),
        "tf1_operations": len(tf1_graph.get_operations()),
        "tf2_operations": len(tf2_graph.get_operations()),
    },
    parameters=TRUE_W.size + TRUE_B.size,
)
