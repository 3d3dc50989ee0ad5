"""A small network for captchas, made for two CPU cores.

Three ideas make it learn from few images. Batch normalisation after every convolution keeps the
signal's size, whatever the weights begin with. The height is folded away early: what is left is a
row of columns, read as one reads a line. And a head does not get everything flattened. It
*chooses* the columns of its character: it gives every column a weight, the weights sum to 1, and it
takes the weighted mean. All heads share the layer that says which character that is. So the network
learns only once what a 7 looks like, from all positions. Where the third character begins is a
question of its own, which the wide convolution over neighbouring columns answers.

Such pooling by weights is attention: D. Bahdanau et al., 2015, arXiv 1409.0473.

Two choices make it fast. Pooling comes before normalisation and relu, so both work on a quarter of
the numbers. And only one convolution of 64 channels works before the second pooling, at the larger
size.
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
        name: str,
        filters: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: str = "same",
        pool: bool = False,
    ) -> keras.KerasTensor:
        options = {"padding": padding, "use_bias": False, "kernel_initializer": "he_normal"}
        x = layers.Conv2D(filters, size, stride, name=name, **options)(x)
        if pool:
            x = layers.MaxPooling2D(2, padding="same", name=f"{name}_pool")(x)
        norm = {"momentum": 0.9, "synchronized": synchronized, "name": f"{name}_norm"}
        x = layers.BatchNormalization(**norm)(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    x = convolution(images, "conv1", 32, 5, stride=2, pool=True)  # [n, 15, 40, 32]
    x = convolution(x, "conv2", 64, 3, pool=True)  # [n, 8, 20, 64]
    x = convolution(x, "conv3", 64, 3)
    x = convolution(x, "conv4", 96, 3)
    x = convolution(x, "conv5", 128, 3)  # [n, 8, 20, 128]
    x = convolution(x, "fold", 128, (x.shape[1], 1), padding="valid")  # [n, 1, 20, 128]
    neighbours = convolution(x, "neighbours", 128, (1, 9))
    x = layers.Add(name="columns")([x, neighbours])  # each column learns of those around it
    x = layers.Dropout(dropout, name="dropout")(x)
    columns = layers.Reshape((-1, 128), name="row")(x)  # [n, 20, 128]
    characters = layers.Dense(classes, name="characters")  # one for all heads
    heads = []
    for i in range(positions):
        weights = layers.Dense(1, name=f"head_{i}_where")(columns)  # [n, 20, 1]
        weights = layers.Softmax(axis=1, name=f"head_{i}_weights")(weights)
        seen = layers.Dot(axes=1, name=f"head_{i}_seen")([weights, columns])  # [n, 1, 128]
        heads.append(characters(layers.Flatten(name=f"head_{i}")(seen)))
    return heads
