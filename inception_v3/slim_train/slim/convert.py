"""From a photo's file to what a record holds.

This is a module of its own, and without TensorFlow, because each of the processes that convert
imports it. A class of the script itself would have to be sent to them as code, with every photo.
"""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.images import load_image
from data.photos import Photo, read


class ToFeatures(NamedTuple):
    """Makes of a Photo the features of its record; joblib sends it to worker processes."""

    classes: tuple[str, ...]
    shorter: int | None = None

    def __call__(self, photo: Photo) -> dict[str, Any]:
        content = read(photo)
        pixels = load_image(content)
        if self.shorter and min(pixels.shape[:2]) > self.shorter:
            content, pixels = shrink(pixels, self.shorter)
        height, width, _ = pixels.shape
        return {
            "image/encoded": content,
            "image/format": b"jpeg" if content.startswith(b"\xff\xd8") else b"png",
            "image/height": height,
            "image/width": width,
            "image/class/label": self.classes.index(photo.label),
            "image/class/text": photo.label.encode(),
            "image/filename": file_name(photo).encode(),
        }


def file_name(photo: Photo) -> str:
    """The folder and the name of the photo's file."""
    return f"{photo.path.parent.name}/{photo.path.name}"


def shrink(pixels: np.ndarray, shorter: int) -> tuple[bytes, np.ndarray]:
    """An image, uint8 [h, w, 3], made so small that its shorter side has ``shorter`` pixels: as a
    JPEG file, and as the pixels in it."""
    scale = shorter / min(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue(), np.asarray(small)
