"""One training, three files that give the same answers."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from data.photos import read
from models import inception_v3
from retraining.bottlenecks import DECODE, FEATURES, POOL3, GoogleNetwork, KerasNetwork, sweep
from retraining.results import Tested
from utils.run import readable, sha256, write_json, written_whole

# %%
# One training, three files
# -------------------------
# A graph of TensorFlow 1 is *frozen* when its variables have become constants: one file, to be fed
# and fetched from by names. Those of retrain.py are kept, ``DecodeJpeg/contents:0`` for the bytes
# of a JPEG (or PNG) file and ``final_result:0`` for the probabilities, so programs written for its
# graphs go on working. A ``tf.function``'s input can't have a slash in its name: it is traced with
# another, and imported into a graph whose placeholder has the right one.
#
# The Keras model takes pixels, uint8 [1, height, width, 3] of any size. Resizing and scaling are
# part of it, so that nobody has to know how the training did it. ``keras.layers.Resizing`` would
# be the obvious layer. But its ``training`` is True by default, for the augmentation it belongs
# to, and in Keras 3.15 all layers after it then take ``model(x)`` for training: dropout at work,
# and other answers each time. ``keras.ops.image.resize`` computes the same and has no such flag.


def cut(definition: tf.compat.v1.GraphDef, result: str) -> tf.compat.v1.GraphDef:
    """A graph without the operations on which ``result`` doesn't depend."""
    nodes = {node.name: node for node in definition.node}
    needed, found = set(), [result]
    while found:
        if (name := found.pop()) not in needed:
            needed.add(name)
            found += [source.lstrip("^").partition(":")[0] for source in nodes[name].input]
    for place in reversed(range(len(definition.node))):
        if definition.node[place].name not in needed:
            del definition.node[place]
    return definition


def frozen_graph(classify: Any, final_tensor_name: str) -> tf.compat.v1.GraphDef:
    """``classify``, a concrete function from a scalar string to [1, classes], with its variables
    made constants and retrain.py's names."""
    frozen = convert_to_constants.convert_variables_to_constants_v2(classify)
    with tf.Graph().as_default() as graph:
        contents = tf.compat.v1.placeholder(tf.string, [], DECODE)
        (result,) = tf.import_graph_def(
            frozen.graph.as_graph_def(),
            {frozen.inputs[0].name: contents},
            [frozen.outputs[0].name],
            "network",
        )
        tf.identity(result, final_tensor_name)
    return cut(graph.as_graph_def(), final_tensor_name)


def deployed(network: KerasNetwork, head: keras.Model) -> Any:
    """A concrete function from the bytes of a JPEG or PNG file to probabilities [1, classes]."""
    model, spec = network.model, tf.TensorSpec([], tf.string, "contents")

    @tf.function(input_signature=[spec])
    def classify(contents: tf.Tensor) -> tf.Tensor:
        pixels = inception_v3.decode(contents)[tf.newaxis]
        images = inception_v3.scale(inception_v3.resize(pixels, network.size))
        return tf.nn.softmax(head(model(images, training=False), training=False))

    return classify.get_concrete_function()


def whole_model(network: KerasNetwork, head: keras.Model) -> keras.Model:
    """Pixels uint8 [b, height, width, 3] to probabilities [b, classes]."""
    pixels = keras.Input((None, None, 3), dtype="uint8", name="pixels")
    x = keras.ops.cast(pixels, "float32")
    x = keras.ops.image.resize(x, (network.size, network.size), "bilinear", antialias=True)
    x = keras.layers.Rescaling(1 / 127.5, -1)(x)
    logits = head(network.model(x))
    return keras.Model(pixels, keras.layers.Softmax(name="final_result")(logits), name="retrained")


def extended_graph(
    network: GoogleNetwork, head: keras.Model, final_tensor_name: str
) -> tf.compat.v1.GraphDef:
    """Google's graph up to pool3, with the head on it."""
    layers = [layer for layer in head.layers if isinstance(layer, keras.layers.Dense)]
    values = [layer.get_weights() for layer in layers]
    with tf.Graph().as_default() as graph:
        definition = network.graph.as_graph_def()
        (x,) = tf.import_graph_def(definition, return_elements=[f"{POOL3}:0"], name="")
        for number, (kernel, bias) in enumerate(values, start=1):
            x = tf.nn.bias_add(tf.matmul(x, tf.constant(kernel)), tf.constant(bias))
            x = tf.nn.relu(x) if number < len(values) else tf.nn.softmax(x, name=final_tensor_name)
    return cut(graph.as_graph_def(), final_tensor_name)


# %%
# Before a run is called good, the files are loaded again and asked about test photos: the frozen
# graph in a session of TensorFlow 1, the Keras model with Keras's own loader. Both must give what
# the head gave for the cached features. Rounding makes the probabilities differ by about 0.000001.
# An image resized in another way, or colours in another order, would make it 0.1.

CHECKED, TOLERANCE = 8, 1e-3  # test photos, and the largest difference of a probability


def ask_graph(path: Path, result: str, contents: Sequence[bytes]) -> np.ndarray:
    """What a frozen graph says of image files: float32 [n, classes]."""
    graph = inception_v3.read_frozen(path, (DECODE, result), "--output_graph")
    with closing(tf.compat.v1.Session(graph=graph)) as session:
        answers = [session.run(f"{result}:0", {f"{DECODE}:0": content}) for content in contents]
    return np.concatenate(answers)


def ask_model(path: Path, contents: Sequence[bytes]) -> np.ndarray:
    """What a saved Keras model says of image files: float32 [n, classes]."""
    model = keras.models.load_model(path, compile=False, safe_mode=True)  # runs no code in it
    images = (inception_v3.decode(content)[tf.newaxis] for content in contents)
    return np.concatenate([model(image, training=False).numpy() for image in images])


def export(
    args: argparse.Namespace,
    network: KerasNetwork | GoogleNetwork,
    head: keras.Model,
    classes: Sequence[str],
    tested: Tested,
    facts: Mapping[str, Any],
) -> tuple[float, Any]:
    """Write graph, Keras model, labels and ``output.json``, after checking that they agree.

    Returns:
        The largest difference between their probabilities and those of the training's own way,
        and a concrete function whose graph is worth a look.

    Raises:
        SystemExit: they don't agree; nothing is written then.
        OSError: a file can't be written.
    """
    graph_path, labels_path = args.output_graph, args.output_labels
    model_path = graph_path.with_name("output_model.keras")
    shown = np.linspace(0, len(tested.photos) - 1, min(CHECKED, len(tested.photos))).astype(int)
    photos, expected, answers = [tested.photos[p] for p in shown], tested.scores[shown], {}
    contents = [read(photo) for photo in photos]
    for folder in {graph_path.parent, labels_path.parent}:
        sweep(folder)
    with ExitStack() as stack:  # they get their names at its end, output.json last
        info = stack.enter_context(written_whole(graph_path.with_name("output.json")))
        parts = {
            path: stack.enter_context(written_whole(path)) for path in (graph_path, labels_path)
        }
        parts[labels_path].write_text("\n".join(classes) + "\n", encoding="utf-8", newline="\n")
        if isinstance(network, KerasNetwork):
            function = deployed(network, head)
            definition = frozen_graph(function, args.final_tensor_name)
            parts[model_path] = stack.enter_context(written_whole(model_path))
            whole_model(network, head).save(parts[model_path])
            answers[model_path.name] = ask_model(parts[model_path], contents)
        else:
            spec = tf.TensorSpec([None, FEATURES], tf.float32)
            function = tf.function(head).get_concrete_function(spec)
            definition = extended_graph(network, head, args.final_tensor_name)
            fresh = np.concatenate([features for _, features in network.compute(photos)])
            again = tf.nn.softmax(head(fresh)).numpy()
            if (gap := np.abs(again - expected).max()) > TOLERANCE:
                print(
                    f"Note: the text files' bottlenecks are not quite what this graph gives: its "
                    f"probabilities differ by up to {gap:.4f}"
                )
            expected = again
        parts[graph_path].write_bytes(definition.SerializeToString())
        answers[graph_path.name] = ask_graph(parts[graph_path], args.final_tensor_name, contents)
        gaps = {name: float(np.abs(given - expected).max()) for name, given in answers.items()}
        for name, gap in gaps.items():
            print(f"{name}: probabilities differ by at most {gap:.1e} from the training's own")
            if not gap <= TOLERANCE:
                raise SystemExit(
                    f"{name} doesn't give what was trained, so nothing is written into "
                    f"{readable(graph_path.parent)}. This is a fault of the program"
                )
        digests = {path.name: sha256(part) for path, part in parts.items()}
        write_json(info, {"labels": list(classes), "files": digests, **facts})
    return max(gaps.values()), function
