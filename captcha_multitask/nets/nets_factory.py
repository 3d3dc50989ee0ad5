"""From a name to a network, as slim's nets_factory: another network is one file and one line."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import layers

from . import alexnet, compact


class Net(NamedTuple):
    """A network and how it is trained.

    Attributes:
        heads: makes of images, float32 [n, height, width, 1], the heads' logits.
        input_size: from the number of positions to the height and width that the network sees.
        batch_size, learning_rate: found by trial on four digits, 60×160.
    """

    heads: Callable[..., list[keras.KerasTensor]]
    input_size: Callable[[int], tuple[int, int]]
    batch_size: int
    learning_rate: float


NETS = {
    "compact": Net(compact.compact, lambda positions: (60, max(160, 40 * positions)), 64, 2e-3),
    "alexnet_v2": Net(alexnet.alexnet_v2, lambda positions: (96, 224), 64, 3e-4),
}


def build(
    name: str,
    positions: int,
    classes: int,
    height: int,
    width: int,
    input_size: tuple[int, int] | None = None,
    **options: Any,
) -> keras.Model:
    """The network ``name``: pixels uint8 [n, height, width, 1] to logits [n, positions, classes].

    Everything that happens to the pixels is part of the network, so training and use can't differ:
    each image minus its mean, divided by its standard deviation, which makes a pale captcha as
    strong as a dark one (TensorFlow 1's ``tf.image.per_image_standardization``); then resized to
    ``input_size`` (height, width), by default the network's own. ``options`` go to the network.
    """
    net = NETS[name]
    input_size = input_size or net.input_size(positions)
    images = keras.Input((height, width, 1), dtype="uint8", name="images")
    x = layers.Rescaling(-1 / 255, offset=1.0, name="ink")(images)  # paper 0, ink up to 1
    x = layers.LayerNormalization(
        axis=(1, 2, 3), center=False, scale=False, epsilon=1e-5, name="standardize"
    )(x)
    if input_size != (height, width):
        # Not layers.Resizing: its ``training`` is True by default, and all layers behind it would
        # take a plain call of the saved model for training.
        x = keras.ops.image.resize(x, input_size, "bilinear")
    heads = net.heads(x, positions, classes, **options)  # each [n, classes]
    logits = keras.ops.stack(heads, axis=1)  # [n, positions, classes]
    return keras.Model(images, logits, name=name)
