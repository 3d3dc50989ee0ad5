"""A small network for captchas, made for two CPU cores.

Three ideas make it learn from few images. Batch normalisation after every convolution keeps
the signal's size, whatever the start. The height is folded away early: what is left is a row
of columns, read as one reads a line. And a head does not get everything flattened, but
*chooses* the columns of its character: it gives every column a weight, the weights sum to 1,
and classifies the weighted mean. So what a 7 looks like is learned once, not anew for each place at
which a 7 may stand; where the third character begins is a question of its own, which the wide
convolution over neighbouring columns answers.

Such pooling by weights is attention: D. Bahdanau et al., 2015, arXiv 1409.0473.
"""

import keras
from keras import layers


def compact(
    images: keras.KerasTensor,
    positions: int,
    classes: int,
    dropout: float = 0.2,
    synchronized: bool = False,
) -> list[keras.KerasTensor]:
    """The heads' logits, ``positions`` tensors [n, classes]; ``images`` is float32
    [n, height, width, channels]. The shapes below are those of 60×160. ``synchronized`` is for
    several replicas: they normalise by the whole batch, not each by its own part, and so end
    with the same moving averages."""

    def convolution(
        x: keras.KerasTensor,
        filters: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: str = "same",
    ) -> keras.KerasTensor:
        x = layers.Conv2D(
            filters, size, stride, padding=padding, use_bias=False, kernel_initializer="he_normal"
        )(x)
        x = layers.BatchNormalization(momentum=0.9, synchronized=synchronized)(x)
        return layers.ReLU()(x)

    def pool(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.MaxPooling2D(2, padding="same")(x)

    x = pool(convolution(images, 32, 5, 2))  # [n, 15, 40, 32]
    x = convolution(x, 64, 3)
    x = pool(convolution(x, 64, 3))  # [n, 8, 20, 64]
    x = convolution(x, 96, 3)
    x = convolution(x, 128, 3)  # [n, 8, 20, 128]
    x = convolution(x, 128, (x.shape[1], 1), padding="valid")  # [n, 1, 20, 128]
    x = layers.Add()([x, convolution(x, 128, (1, 9))])  # each column learns of its neighbours
    x = layers.Dropout(dropout)(x)
    columns = layers.Reshape((-1, 128))(x)  # [n, 20, 128]
    return [_head(columns, classes, f"head_{i}") for i in range(positions)]


def _head(columns: keras.KerasTensor, classes: int, name: str) -> keras.KerasTensor:
    weights = layers.Dense(1, name=f"{name}_where")(columns)  # [n, 20, 1]
    weights = layers.Softmax(axis=1, name=f"{name}_weights")(weights)
    seen = layers.Dot(axes=1, name=f"{name}_seen")([weights, columns])  # [n, 1, 128]
    seen = layers.Flatten(name=f"{name}_flat")(seen)
    return layers.Dense(classes, name=name)(seen)
