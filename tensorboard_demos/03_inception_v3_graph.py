"""The graph of InceptionV3
========================

You learn: to find your way in a large network's graph. InceptionV3 is read block by block, from
299×299 pixels to the 2,048 numbers of its bottleneck, and its graph is written for TensorBoard.

Run::

    python tensorboard_demos/03_inception_v3_graph.py
    python tensorboard_demos/03_inception_v3_graph.py --graph-def classify_image_graph_def.pb

You should see: a table of the blocks (stem, eleven mixed blocks, pool3, softmax) with their
output shapes, 94 convolutions in all, the place where pool3 makes 2,048 numbers of 131,072, and
how many operations there are of each type. The first command looks for the frozen graph that
Google published in 2015 (``--help`` tells where); without it, Keras's InceptionV3 stands in,
untrained, and says so.

Time: 9 s on two CPU cores with Keras's network.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table

from models.inception_v3 import find_graph_def
from utils.run import Run, make_parser
from utils.summary import write_graph

# %%
# What a GraphDef holds
# ---------------------
# A ``GraphDef`` is TensorFlow's format for a graph: a list of nodes, each with a name, the type
# of its operation, the names of its inputs, and attributes such as a type or a stride. It is a
# protocol buffer and the same in TensorFlow 1 and 2. The values of variables are not in it; in
# TensorFlow 1 a checkpoint beside it held them, and whoever used the model needed both, and
# Python code that knew the names.
#
# **Freezing** made one file of the two: each variable becomes a constant with the trained value,
# and nodes that only training needed are left out. ``classify_image_graph_def.pb`` is such a file,
# 96 MB, nearly all of it constants. The price: the variables are gone, so it can't be trained
# further; the graph is fixed, with its batch size of 1; and nothing says which tensors to feed and
# to fetch. One has to know that ``DecodeJpeg/contents:0`` takes the bytes of a JPEG file, that
# ``pool_3:0`` is the bottleneck and ``softmax:0`` holds the probabilities.
#
# TensorFlow 2 has SavedModel instead: a folder with graphs, variables kept as variables, files
# such as vocabularies, and named signatures that say what goes in and what comes out.
#
# ``tf.compat.v1.import_graph_def`` puts a GraphDef's nodes into a graph of ours and works out the
# shapes of all tensors as it does so, for the file does not hold them.

JPEG, BOTTLENECK, PROBABILITIES = "DecodeJpeg/contents", "pool_3", "softmax"  # operations
VARIABLES = {"Variable", "VariableV2", "VarHandleOp"}
WANTED = "\n  Name Google's classify_image_graph_def.pb (95,673,916 bytes) by --graph-def."


def read_frozen(path: Path) -> tf.Graph:
    """The graph in a frozen GraphDef with the interface of Google's InceptionV3.

    Raises:
        SystemExit: the file is no such graph; the message says why.
    """
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except DecodeError:
        raise SystemExit(
            f"{path} is not a GraphDef: damaged, or another kind of file.{WANTED}"
        ) from None
    except OSError as error:
        raise SystemExit(f"can't read {path}: {error.strerror}") from error
    types = {node.name: node.op for node in graph_def.node}
    if not types:
        raise SystemExit(
            f"{path} holds no operations: it is empty or another kind of file "
            f"(a SavedModel's saved_model.pb is not a frozen graph).{WANTED}"
        )
    missing = [name for name in (JPEG, BOTTLENECK, PROBABILITIES) if name not in types]
    if missing:
        lacks = ", ".join(missing)
        raise SystemExit(
            f"{path} is a graph, but not Google's InceptionV3: it has no {lacks}.{WANTED}"
        )
    if VARIABLES & set(types.values()):
        raise SystemExit(
            f"{path} is not frozen: it has variables, whose values lie elsewhere.{WANTED}"
        )
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.compat.v1.import_graph_def(graph_def, name="")
    except (ValueError, tf.errors.OpError) as error:
        raise SystemExit(f"TensorFlow can't import {path}: {error}{WANTED}") from error
    return graph


# %%
# A graph for TensorBoard, without the weights
# --------------------------------------------
# The Graphs tab draws no weights, and 96 MB of them make it slow: such a graph took 84 s to appear,
# and 5 s without the values on the same machine. So large constants are written without their
# values; shape and type stay.

LARGE = 1024  # bytes of a constant that are worth leaving out


def without_weights(graph: tf.Graph) -> tf.compat.v1.GraphDef:
    """The graph's GraphDef with shapes, and without the values of large constants."""
    graph_def = graph.as_graph_def(add_shapes=True)
    for node in graph_def.node:
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor is not None and tensor.ByteSize() > LARGE:
            emptied = tf.compat.v1.NodeDef().attr["value"].tensor
            emptied.dtype = tensor.dtype
            emptied.tensor_shape.CopyFrom(tensor.tensor_shape)
            tensor.CopyFrom(emptied)
    return graph_def


# %%
# The same network in Keras
# -------------------------
# ``keras.applications.InceptionV3`` is the same architecture, with 1,000 classes where Google's
# graph has 1,008 (eight of them unused), and without the decoding of JPEG files. ``weights=None``
# draws random weights: good for looking at the graph, useless for recognising anything.
#
# The weights are variables, so in the graph of the traced function each is a Placeholder for a
# handle, and a ReadVariableOp.

# The model is called on a symbolic image while ``tf.function`` traces it. What passes through the
# layers at that moment are tensors of the graph, so we can note where each block ends.

SIZE = 299  # pixels, width and height
STEM = ("conv", "conv_1", "conv_2", "pool", "conv_3", "conv_4", "pool_1")  # Google's names
MIXED = tuple(f"mixed{i}" for i in range(11))


def trace_keras() -> tuple[tf.types.experimental.ConcreteFunction, dict[str, tf.Tensor], int]:
    """Keras's InceptionV3, untrained, traced for one image: the function, the tensor at the end
    of each block, and the number of parameters."""
    model = keras.applications.InceptionV3(weights=None)
    pools = (layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D))
    next(pools)
    stem_end = model.layers.index(next(pools))  # the stem ends at the second pooling
    kinds = (keras.layers.Activation, keras.layers.MaxPooling2D)
    stem = [layer for layer in model.layers[: stem_end + 1] if isinstance(layer, kinds)]
    layers = dict(zip(STEM, stem, strict=True)) | {name: model.get_layer(name) for name in MIXED}
    layers |= {"pool3": model.get_layer("avg_pool"), "softmax": model.get_layer("predictions")}
    all_ends = keras.Model(
        model.inputs, {name: layer.output for name, layer in layers.items()}, name="inception_v3"
    )
    ends = {}

    @tf.function
    def classify(image: tf.Tensor) -> tf.Tensor:
        outputs = all_ends(image, training=False)
        ends.update({name: outputs[name] for name in layers})  # runs once, while tracing
        return outputs["softmax"]

    spec = tf.TensorSpec([1, SIZE, SIZE, 3], tf.float32, name="image")
    return classify.get_concrete_function(spec), ends, model.count_params()


# %%
# The blocks
# ----------
# The stem shrinks the image to 35×35 positions of 192 channels with plain convolutions and two
# poolings. An Inception block then computes several branches from the same input (1×1
# convolutions, larger ones, pooling) and joins their channels. Names differ: Google's scopes are
# ``mixed``, ``mixed_1``, … ``mixed_10``, each with its branches inside and a ``join`` at the end;
# Keras's layers ``mixed0`` … ``mixed10`` are only the joins.
#
# Which operations belong to a block can be read from the edges alone: those that its output needs
# and that no block before it needed.


@dataclass(frozen=True)
class Block:
    """A part of the network: the tensor at its end and the operations that are new in it."""

    name: str
    output: tf.Tensor
    operations: list[tf.Operation]


def frozen_ends(graph: tf.Graph) -> dict[str, tf.Tensor]:
    """The tensor at the end of each block of Google's graph; blocks it lacks are left out."""
    names = {name: [name] for name in STEM}
    for i, name in enumerate(MIXED):
        scope = f"mixed_{i}" if i else "mixed"
        names[name] = [f"{scope}/join", scope]
    names |= {"pool3": [BOTTLENECK], "softmax": [PROBABILITIES]}
    outputs = {op.name: op.outputs[0] for op in graph.get_operations() if op.outputs}
    found = {}
    for name, candidates in names.items():
        output = next((outputs[c] for c in candidates if c in outputs), None)
        if output is not None:
            found[name] = output
    return found


def split_into_blocks(ends: dict[str, tf.Tensor]) -> list[Block]:
    """Share the operations out to the blocks, by walking backwards from each block's end."""
    seen, blocks = set(), []
    for name, output in ends.items():
        new, todo = [], [output.op]
        while todo:
            operation = todo.pop()
            if operation.name not in seen:
                seen.add(operation.name)
                new.append(operation)
                todo += [tensor.op for tensor in operation.inputs] + operation.control_inputs
        blocks.append(Block(name, output, new))
    return blocks


def shape_of(tensor: tf.Tensor) -> str:
    """A shape as TensorBoard writes it, e.g. ``1×35×35×192``."""
    if tensor.shape.rank is None:
        return "unknown"
    return "×".join("?" if size is None else str(size) for size in tensor.shape) or "scalar"


def print_blocks(blocks: list[Block], console: Console) -> None:
    """The table of the blocks, and how far pool3 narrows."""
    table = Table(title="InceptionV3 block by block", title_justify="left")
    table.add_column("block")
    for column in ("output", "values", "convolutions", "operations"):
        table.add_column(column, justify="right")
    before, bottleneck = None, "of unknown shape"
    for block in blocks:
        values = block.output.shape.num_elements()
        table.add_row(
            f"stem: {block.name}" if block.name in STEM else block.name,
            shape_of(block.output),
            "?" if values is None else f"{values:,}",
            str(sum(operation.type == "Conv2D" for operation in block.operations)),
            str(len(block.operations)),
            style="bold" if block.name == "pool3" else None,
        )
        if block.name == "pool3" and before is not None and None not in (values, before[1]):
            bottleneck = f"{before[1]:,} values after {before[0]} → {values:,} after pool3"
        before = (block.name, values)
    console.print(table)
    console.print(f"The bottleneck: {bottleneck}")


# %%
# pool3, the bottleneck
# ---------------------
# The last mixed block gives 8×8 positions of 2,048 channels. pool3 averages each channel over all
# positions: 131,072 values become 2,048. Where something was in the image is lost, what it was
# stays. One linear layer with softmax is all that follows. That is why retraining works: the 2,048
# numbers describe any photo well enough that a new last layer alone can tell new classes apart.
#
# Names are enough for a picture
# ------------------------------
# Keras's names know nothing of blocks: the layers lie side by side in one scope. Since TensorBoard
# goes by names alone, putting the block's name in front of each operation's name makes a box of
# each block, and changes nothing else.


def named_by_block(graph_def: tf.compat.v1.GraphDef, blocks: list[Block]) -> None:
    """Rename the nodes of ``graph_def`` so that the blocks become the outermost scopes."""
    scopes = {
        operation.name: "stem" if block.name in STEM else block.name
        for block in blocks
        for operation in block.operations
    }

    def renamed(name: str) -> str:
        scope = scopes.get(name)
        inner = name.removeprefix("inception_v3_1/").removeprefix("inception_v3/")
        return name if scope is None or inner == name else f"{scope}/{inner}"

    for node in graph_def.node:
        node.name = renamed(node.name)
        for i, text in enumerate(node.input):  # "^name" is a control edge, "name:1" an output
            mark = "^" if text.startswith("^") else ""
            name, colon, output = text.removeprefix("^").partition(":")
            node.input[i] = f"{mark}{renamed(name)}{colon}{output}"


def write_graph_def(log_dir: str, graph_def: tf.compat.v1.GraphDef) -> None:
    """Write a GraphDef for the Graphs tab."""
    writer = tf.summary.create_file_writer(log_dir)
    with writer.as_default():
        tf.summary.graph(graph_def)
    writer.close()


# %%
# What to look at in TensorBoard
# ------------------------------
# In the Graphs tab choose the run ``graph_by_block`` (Keras) or ``graph`` (frozen), and press "Fit
# to screen". Follow the edges upwards from the image: their labels tell how positions get fewer and
# channels more. Grey boxes are unlike all others: the stem, ``mixed3`` and ``mixed8``, which halve
# width and height, and what follows the mixed blocks. Double click ``mixed0``: four branches leave
# its input and meet again at the top. Then compare the run ``graph``, which has Keras's own names:
# one box with a long row of some 300 layers in it.


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--graph-def",
        type=Path,
        metavar="FILE",
        help="Google's frozen classify_image_graph_def.pb (default: inception_v3/ in the folder "
        "named by the environment variable COURSE_DATA, then models/inception_v3/, where Google's "
        "inception-2015-12-05.tgz may lie as well, then a download of 96 MB, not with --quick)",
    )
    run = Run(parser, __file__)
    path = find_graph_def(run.args.graph_def, download=not run.args.quick)
    if path is not None:
        graph = read_frozen(path)
        ends, parameters = frozen_ends(graph), None
        blocks = split_into_blocks(ends)
        write_graph_def(run.log_dir("graph"), without_weights(graph))
        data = {"source": f"frozen graph in {path}", "stand_in": False}
        print(f"InceptionV3 from {path}")
    else:
        print(
            "\n*** STAND-IN: Keras's InceptionV3, untrained, takes the place of Google's frozen "
            "graph. Same architecture, other names, random weights. ***\n",
            file=sys.stderr,
        )
        function, ends, parameters = trace_keras()
        graph, blocks = function.graph, split_into_blocks(ends)
        write_graph(run.log_dir("graph"), function)
        by_block = without_weights(graph)
        named_by_block(by_block, blocks)
        write_graph_def(run.log_dir("graph_by_block"), by_block)
        data = {"source": "keras.applications.InceptionV3, untrained", "stand_in": True}

    console = Console()
    print_blocks(blocks, console)
    types = Counter(operation.type for operation in graph.get_operations())
    table = Table(title="Operations by type", title_justify="left")
    table.add_column("type")
    table.add_column("number", justify="right")
    for name, count in types.most_common():
        table.add_row(name, str(count))
    console.print(table)
    run.finish(
        {
            "operations": sum(types.values()),
            "convolutions": types["Conv2D"],
            "blocks": len(blocks),
            "bottleneck": ends["pool3"].shape.num_elements() or 0,
        },
        data=data,
        parameters=parameters,
        operations_by_type=dict(types.most_common()),
        block_shapes={block.name: shape_of(block.output) for block in blocks},
    )


if __name__ == "__main__":
    main()
