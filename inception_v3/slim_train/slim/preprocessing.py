"""What happens to a photo before the network sees it: slim's Inception preprocessing.

In training a photo is never the same twice: some part of it is cut out, squeezed into a square,
perhaps mirrored, and its colours are shifted. In validation, test and use it is always the same:
the middle of it. TensorFlow 1's dice had a state that no checkpoint held. These have none: a seed
and the number of the photo in the training give the distortion, so that a resumed training sees
what the uninterrupted one would have seen.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from models.inception_v3 import decode, resize, scale

CENTRAL = 0.875  # of height and width, what evaluation looks at
ASPECTS = (0.75, 1.33)  # width to height of a crop
BRIGHTNESS, HUE = 32 / 255, 0.2  # added, up to this much either way
FACTORS = (0.5, 1.5)  # of saturation and contrast
ORDERS = (  # in which the colours are shifted; the result depends on it
    ("brightness", "saturation", "hue", "contrast"),
    ("saturation", "brightness", "contrast", "hue"),
    ("contrast", "hue", "brightness", "saturation"),
    ("hue", "saturation", "contrast", "brightness"),
)
COLOURS = {  # what --colour shifts
    "full": ("brightness", "saturation", "hue", "contrast"),
    "fast": ("brightness", "saturation"),  # slim's fast_mode
    "none": (),
}
ADJUST = {
    "brightness": tf.image.adjust_brightness,
    "saturation": tf.image.adjust_saturation,
    "hue": tf.image.adjust_hue,
    "contrast": tf.image.adjust_contrast,
}


class Distortion(NamedTuple):
    """One way to distort a photo, all of it scalars.

    Attributes:
        top, left, height, width: the part that is cut out, in pixels, int32.
        flip: whether it is mirrored, bool.
        order: the row of ``ORDERS``, int32.
        brightness, saturation, hue, contrast: how the colours are shifted, float32.
    """

    top: Any
    left: Any
    height: Any
    width: Any
    flip: Any
    order: Any
    brightness: Any
    saturation: Any
    hue: Any
    contrast: Any


def draw_distortion(seed: tf.Tensor, shape: tf.Tensor, crop_area: float = 0.05) -> Distortion:
    """The distortion that ``seed``, int64 [2], gives for an image of ``shape``, int32 [3].

    The crop has at least the share ``crop_area`` of the image's area, and sides that are at most
    4:3 either way. slim asked for 5 % too, but left the operation's ``min_object_covered`` at
    0.1. With the whole image as the object, that made it 10 %.
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seeds[0],
        min_object_covered=0.0,
        aspect_ratio_range=ASPECTS,
        area_range=(crop_area, 1.0),
        max_attempts=100,
    )
    flip = tf.random.stateless_uniform([], seeds[1]) < 0.5
    order = tf.random.stateless_uniform([], seeds[2], 0, len(ORDERS), tf.int32)
    low = [-BRIGHTNESS, FACTORS[0], -HUE, FACTORS[0]]
    high = [BRIGHTNESS, FACTORS[1], HUE, FACTORS[1]]
    shifts = tf.random.stateless_uniform([4], seeds[3], low, high)
    return Distortion(begin[0], begin[1], size[0], size[1], flip, order, *tf.unstack(shifts))


def distort(pixels: tf.Tensor, how: Distortion, size: int, colour: str = "full") -> tf.Tensor:
    """An image, uint8 [h, w, 3], distorted and resized: float32 [size, size, 3] in [-1, 1].
    ``colour`` is one of ``COLOURS``."""
    part = tf.image.crop_to_bounding_box(pixels, how.top, how.left, how.height, how.width)
    image = resize(part, size) / 255.0  # 0 to 1
    image = tf.where(how.flip, image[:, ::-1], image)
    if COLOURS[colour]:

        def shift(order: tuple[str, ...]) -> tf.Tensor:
            shifted = image
            for name in order:
                if name in COLOURS[colour]:
                    shifted = ADJUST[name](shifted, getattr(how, name))
            return shifted

        branches = [lambda order=order: shift(order) for order in ORDERS]
        image = tf.clip_by_value(tf.switch_case(how.order, branches), 0.0, 1.0)
    return image * 2.0 - 1.0


def training_images(
    files: tf.Tensor,
    number: tf.Tensor,
    seed: int,
    size: int,
    crop_area: float = 0.05,
    colour: str = "full",
) -> tf.Tensor:
    """The ``number``-th batch of a training, JPEG or PNG files as strings [b], distorted by
    ``seed`` and the photos' numbers in the training: float32 [b, size, size, 3] in [-1, 1]."""
    count = tf.size(files, tf.int64)

    def one(element: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        file, place = element
        pixels = decode(file)
        dice = tf.stack([tf.constant(seed, tf.int64), place])
        return distort(pixels, draw_distortion(dice, tf.shape(pixels), crop_area), size, colour)

    places = tf.cast(number, tf.int64) * count + tf.range(count)
    image = tf.TensorSpec([size, size, 3], tf.float32)
    return tf.map_fn(one, (files, places), fn_output_signature=image)


# %%
# Evaluation's view
# -----------------
# slim cut out the central 87.5 % and resized that. The other way round gives the same picture, to
# within a pixel at its border: resize all of it, to 342 for 299, and cut out the middle. So it
# can be done by Keras's own operations, on images of any size, inside the saved model.


def enlarged(size: int) -> int:
    """The side to resize to, of whose middle ``size`` is the central 87.5 %."""
    return round(size / CENTRAL)


def evaluation_image(pixels: tf.Tensor, size: int) -> tf.Tensor:
    """Images, uint8 [..., h, w, 3], as evaluation sees them: float32 [..., size, size, 3] in
    [-1, 1]."""
    margin = (enlarged(size) - size) // 2
    middle = slice(margin, margin + size)
    return scale(resize(pixels, enlarged(size))[..., middle, middle, :])


def evaluation_images(files: tf.Tensor, size: int) -> tf.Tensor:
    """``evaluation_image`` of JPEG or PNG files, strings [b]."""
    image = tf.TensorSpec([size, size, 3], tf.float32)
    view = lambda file: evaluation_image(decode(file), size)  # noqa: E731
    return tf.map_fn(view, files, fn_output_signature=image)


def evaluation_view(pixels: Any, size: int) -> Any:
    """``evaluation_image`` for the saved model, of a Keras input [b, h, w, 3].

    Not ``keras.layers.Resizing``: it belongs to the layers that augment, so ``training`` is True by
    default, and a network behind it would take ``model(x)`` for training, with dropout at work.
    """
    side, margin = enlarged(size), (enlarged(size) - size) // 2
    images = keras.ops.cast(pixels, "float32") / 127.5 - 1.0
    images = keras.ops.image.resize(images, (side, side), "bilinear", antialias=True)
    return images[:, margin : margin + size, margin : margin + size]
