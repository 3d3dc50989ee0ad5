"""InceptionV3 with slim's two heads: one to classify with, one that helps to train.

The auxiliary head sits where the 17×17 maps of 768 channels end: ``mixed7`` in Keras's count,
``Mixed_6e`` in slim's. Its loss reaches the lower half of the network by a shorter way than the
other's. It takes part in training only.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import keras
from keras import layers

from models.inception_v3 import Weights, backbone, blocks

AUX_AT = "mixed7"
HEADS = ("logits", "aux_logits")
SCOPES = ("stem", *(f"mixed{i}" for i in range(11)), *HEADS)  # what --trainable-scopes may name
SMALLEST = 75  # pixels; what goes in may not shrink to nothing on its way


class Network(NamedTuple):
    """A network as it is trained and as it is used; the two share their layers.

    Attributes:
        whole: float32 [b, size, size, 3] in [-1, 1] to the logits of both heads, [b, classes]
            each (of the one head, if it has one only).
        inference: the same without the auxiliary head.
        scopes: the layers by ``SCOPES``.
        loaded: the scopes that begin with trained weights.
    """

    whole: keras.Model
    inference: keras.Model
    scopes: dict[str, list[layers.Layer]]
    loaded: tuple[str, ...]


def auxiliary_head(
    maps: keras.KerasTensor, classes: int, decay: float = 0.99
) -> tuple[keras.KerasTensor, list[layers.Layer]]:
    """The auxiliary logits, and the layers they come from. ``maps`` is [b, 17, 17, 768] for
    images of 299 pixels; on smaller maps the pooling and the second convolution are as large as
    these allow, as with slim's ``reduced_kernel_size_for_small_input``."""
    pool = min(5, maps.shape[1])
    left = (maps.shape[1] - pool) // 3 + 1  # 5 of 17
    start = keras.initializers.TruncatedNormal
    parts = [
        layers.AveragePooling2D(pool, 3, name="aux_pool"),  # [b, 5, 5, 768]
        layers.Conv2D(128, 1, use_bias=False, name="aux_conv1"),  # [b, 5, 5, 128]
        _norm(decay, "aux_norm1"),
        layers.ReLU(name="aux_relu1"),
        layers.Conv2D(
            768, left, use_bias=False, kernel_initializer=start(stddev=0.01), name="aux_conv2"
        ),  # [b, 1, 1, 768]
        _norm(decay, "aux_norm2"),
        layers.ReLU(name="aux_relu2"),
        layers.Flatten(name="aux_flat"),  # [b, 768]
        layers.Dense(classes, kernel_initializer=start(stddev=0.001), name="aux_logits"),
    ]
    for layer in parts:
        maps = layer(maps)
    return maps, parts


def _norm(decay: float, name: str) -> layers.BatchNormalization:
    return layers.BatchNormalization(momentum=decay, epsilon=1e-3, scale=False, name=name)


def build(
    weights: Weights,
    classes: int,
    size: int = 299,
    auxiliary: bool = True,
    dropout: float = 0.2,
    decay: float = 0.99,
    exclude: Collection[str] = (),
    synchronized: bool = False,
) -> Network:
    """InceptionV3 for so many ``classes`` and images of ``size`` pixels.

    Args:
        weights: what the body begins with; the heads are always new.
        auxiliary: with the auxiliary head.
        dropout: the share of the 2,048 features that is dropped before the logits.
        decay: of batch normalisation's moving averages.
        exclude: scopes that begin with new weights all the same.
        synchronized: for several replicas, which then normalise by the whole batch.

    Raises:
        ValueError: ``size`` is too small.
        SystemExit: the file of weights doesn't fit.
    """
    if size < SMALLEST:
        raise ValueError(f"InceptionV3 needs images of at least {SMALLEST}×{SMALLEST} pixels")
    body = backbone(weights, size)
    scopes = {name: some for name, some in blocks(body).items() if name in SCOPES}
    x = layers.Dropout(dropout, name="dropout")(body.output)
    start = keras.initializers.TruncatedNormal(stddev=0.001)
    logits = layers.Dense(classes, kernel_initializer=start, name="logits")
    scopes["logits"] = [logits]
    outputs = [logits(x)]
    inference = keras.Model(body.input, outputs[0], name="inception_v3")
    if auxiliary:
        maps = body.get_layer(AUX_AT).output
        output, scopes["aux_logits"] = auxiliary_head(maps, classes, decay)
        outputs.append(output)
    for layer in (layer for some in scopes.values() for layer in some):
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum, layer.synchronized = decay, synchronized
    for name in exclude:
        _begin_anew(scopes.get(name, ()))
    taken = weights.path is not None
    loaded = tuple(name for name in scopes if taken and name not in (*HEADS, *exclude))
    whole = keras.Model(body.input, outputs, name="with_auxiliary_head")
    return Network(whole, inference, scopes, loaded)


def _begin_anew(some: Sequence[layers.Layer]) -> None:
    """Give layers their initial weights."""
    for layer in some:
        if isinstance(layer, layers.BatchNormalization):
            for variable, value in (
                (layer.beta, 0.0),
                (layer.moving_mean, 0.0),
                (layer.moving_variance, 1.0),
            ):
                variable.assign(keras.ops.full(variable.shape, value))
        elif isinstance(layer, layers.Conv2D):
            layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape, layer.kernel.dtype))


def train_only(
    network: Network, scopes: Collection[str], freeze_norms: bool
) -> list[keras.Variable]:
    """Make only these scopes trainable, and return their variables.

    A layer that is not trainable keeps its weights, and a batch normalisation then uses its
    moving averages as they are. With ``freeze_norms`` those that began with trained weights do
    so in all scopes: a few photos are no better source of means and variances than ImageNet was.
    """
    for name, some in network.scopes.items():
        for layer in some:
            norm = isinstance(layer, layers.BatchNormalization)
            kept = norm and freeze_norms and name in network.loaded
            layer.trainable = name in scopes and not kept
    return network.whole.trainable_variables
