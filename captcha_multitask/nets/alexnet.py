"""AlexNet in its second version, the ``alexnet_v2`` of TensorFlow 1's slim.

Source: A. Krizhevsky, *One weird trick for parallelizing convolutional neural networks*, 2014,
arXiv 1404.5997.

slim's file built it from ``slim.conv2d`` and ``slim.max_pool2d`` inside a ``slim.arg_scope``, which
gave all layers relu, biases of 0.1 and a weight decay of 0.0005. It returned the logits of fc8 and
a dictionary of all outputs. Programs for captchas replaced fc8 by four layers side by side, from
``logits0`` to ``logits3``, one for each character. So does this file, in Keras layers and without
the weight decay.

Why four heads, and not one over all texts? A layer for 10,000 texts on the 4,096 units of fc7 has
41 million parameters and learns each text by itself. Four layers for ten digits have 163,880, and
can read a text that was in no training image.
"""

import keras
from keras import layers


def alexnet_v2(
    images: keras.KerasTensor, positions: int, classes: int, start: str = "he", dropout: float = 0.5
) -> list[keras.KerasTensor]:
    """The heads' logits, ``positions`` tensors [n, classes].

    ``images`` is float32 [n, height, width, channels], height and width at least 67. The first
    convolution and the poolings are not padded, so 224×224 shrinks to 54, 26, 12 and 5. slim
    writes fc6 as a convolution over all that is left, 5×5, and fc7 as one of 1×1. The full layers
    here are the same numbers, and on a CPU their products take a 20th of the time.

    ``start`` says how weights and biases begin: ``"he"`` (K. He et al., 2015, arXiv 1502.01852)
    keeps the size of the signal from layer to layer. ``"slim"`` are slim's own: Glorot's in the
    convolutions, truncated normal of 0.005 in the full layers, biases of 0.1. With these the
    differences between images fade on their way up to almost nothing, and the network gives all
    of them the same answer for a long time.
    """

    def begin(full: bool, bias: float = 0.1) -> dict[str, keras.Initializer]:
        if start == "he":
            return {"kernel_initializer": keras.initializers.HeNormal()}
        thin = keras.initializers.TruncatedNormal(stddev=0.005)
        return {
            "kernel_initializer": thin if full else keras.initializers.GlorotUniform(),
            "bias_initializer": keras.initializers.Constant(bias),
        }

    def convolution(
        name: str, filters: int, size: int, stride: int = 1, padding: str = "same"
    ) -> layers.Layer:
        options = {"activation": "relu", "name": name, **begin(full=False)}
        return layers.Conv2D(filters, size, stride, padding=padding, **options)

    def dense(name: str) -> layers.Layer:
        return layers.Dense(4096, activation="relu", name=name, **begin(full=True))

    x = convolution("conv1", 64, 11, 4, "valid")(images)  # [n, 54, 54, 64]
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)  # [n, 26, 26, 64]
    x = convolution("conv2", 192, 5)(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)  # [n, 12, 12, 192]
    x = convolution("conv3", 384, 3)(x)
    x = convolution("conv4", 384, 3)(x)
    x = convolution("conv5", 256, 3)(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)  # [n, 5, 5, 256]
    x = layers.Flatten(name="flatten")(x)  # [n, 6400]
    x = dense("fc6")(x)
    x = layers.Dropout(dropout, name="dropout6")(x)
    x = dense("fc7")(x)
    x = layers.Dropout(dropout, name="dropout7")(x)  # [n, 4096]
    return [
        layers.Dense(classes, name=f"fc8_{i}", **begin(full=True, bias=0.0))(x)
        for i in range(positions)
    ]
