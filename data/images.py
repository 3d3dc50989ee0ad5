"""Image files of any kind as pixels, and as bytes that TensorFlow decodes to those very pixels.

TensorFlow's decoder knows nothing of the EXIF note "hold the camera's picture upright", takes
transparent places for what lies under them, and reads no WebP or TIFF by the name of a JPEG.
So every file goes through ``encoded`` before a network sees it, in training, test and use alike.

A telephone's photo has 12 million pixels and such a note. Unpacked, turned and packed again as
PNG it takes more than a second and 20 MB. So a pipeline takes ``encoded(file, turned=True)`` and
``orientation(file)``, and lets ``decode`` do both after the file was read: turn the pixels, and
unpack a JPEG at a half, a quarter or an eighth of its size, which skips most of the work.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MOST_PIXELS = 89_000_000  # 267 MB unpacked; beyond this Pillow warns of a trap
PNG = b"\x89PNG\r\n\x1a\n"
# Pillow opens what the content says, also such as EPS, for which it starts another program. An MPO
# (two JPEGs in one file) is opened as a JPEG.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".pbm", ".pgm", ".pnm", ".ppm"}
CJK_FONTS = (  # what systems have for Chinese, from Windows, macOS and Linux
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti TC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the name under which Matplotlib finds the collection's first font
    "Noto Sans SC",
    "Source Han Sans SC",
    "Droid Sans Fallback",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Arial Unicode MS",
)


def load_image(
    source: Path | bytes, most_pixels: int = MOST_PIXELS, shorter: int = 0
) -> np.ndarray:
    """The pixels of an image file of any of the ``FORMATS``: uint8 [height, width, 3], upright,
    transparent places white, the first frame of several, 16 bits scaled to 8.

    ``shorter`` is the least length of the shorter side that will do: a JPEG is unpacked at an
    eighth, a quarter or a half of its size if that leaves so many pixels. 0: as it is.

    Raises OSError or ValueError, with a sentence, for a file that holds no whole image, or one
    of more than ``most_pixels`` (found in its header, before it is unpacked).
    """
    try:
        with _opened(source, most_pixels) as image:
            if shorter:
                image.draft(None, (shorter, shorter))  # for JPEG; other formats know no fraction
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # more than 8 bits a pixel: Pillow would cut, not scale
                image = Image.fromarray(_eight_bits(np.asarray(image)))
            if image.mode in ("RGB", "L", "CMYK", "YCbCr") and "transparency" not in image.info:
                return np.asarray(image.convert("RGB"))
            image = image.convert("RGBA")
    except (RuntimeError, SyntaxError, struct.error) as error:
        raise ValueError(f"no whole image: {error}") from error
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return np.asarray(page.convert("RGB"))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale by the fewest of 8, 10, 12, 14, 16 … bits that hold the brightest pixel: scientific
    cameras put 12 bits into files of 16, which would come out black."""
    bits = max(8, int(pixels.max(initial=0)).bit_length())
    return (np.maximum(pixels, 0) >> (bits + bits % 2 - 8)).astype(np.uint8)


def _opened(source: Path | bytes, most_pixels: int) -> Image.Image:
    """The image, its header read and its size found bearable."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        image = Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError("no image: cannot identify its format") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"too many pixels: {error}") from error
    if image.width * image.height > most_pixels:
        image.close()
        raise ValueError(
            f"{image.width}×{image.height} pixels are too many: at most {most_pixels:,} in all"
        )
    return image


def encoded(source: Path | bytes, turned: bool = False) -> bytes:
    """A JPEG or PNG file from which ``tf.io.decode_jpeg(…, channels=3)`` gives the picture as a
    person sees it: the file itself where it does, else ``load_image``'s pixels as a PNG. With
    ``turned`` also a file that has only to be turned is given as it is.

    Raises what ``load_image`` raises. A file that passes as it is, is not decoded here.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    if is_plain(content, turned):
        return content
    file = io.BytesIO()
    Image.fromarray(load_image(content)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def is_plain(content: bytes, turned: bool = False) -> bool:
    """Whether TensorFlow decodes a file as it should be seen: a JPEG, grey or of three colours, or
    a PNG, grey or RGB of 8 bits without transparency; without a note to turn it, unless
    ``turned``. Raises ValueError or OSError if it holds no image or has too many pixels."""
    with _opened(content, MOST_PIXELS) as image:
        if not turned and _turn_of(image) != 1:
            return False
        if image.format in ("JPEG", "MPO"):  # of an MPO's two JPEGs the first is decoded
            return image.mode in ("RGB", "L")
        if image.format == "PNG":
            eight_bits = content.startswith(PNG) and content[24] == 8
            return eight_bits and image.mode in ("RGB", "L") and "transparency" not in image.info
    return False


def orientation(content: bytes) -> int:
    """How ``upright`` has to turn the pixels of what ``encoded(…, turned=True)`` gave: EXIF's
    number, 1 to 8, where 1 is upright already."""
    with _opened(content, MOST_PIXELS) as image:
        return _turn_of(image)


def _turn_of(image: Image.Image) -> int:
    number = image.getexif().get(0x0112, 1)
    return number if number in range(1, 9) else 1


def upright(pixels: Any, orientation: Any) -> Any:
    """Turn and mirror pixels [h, w, 3], in TensorFlow, as an EXIF orientation demands."""
    import tensorflow as tf

    def turn(quarters: int, transposed: bool = False, mirrored: bool = False) -> Any:
        image = tf.transpose(pixels, [1, 0, 2]) if transposed else pixels
        image = image[:, ::-1] if mirrored else image
        return tf.image.rot90(image, quarters) if quarters else image

    ways = [
        lambda: turn(0),
        lambda: turn(0, mirrored=True),
        lambda: turn(2),
        lambda: turn(2, mirrored=True),
        lambda: turn(0, transposed=True),
        lambda: turn(3),
        lambda: turn(2, transposed=True),
        lambda: turn(1),
    ]
    return tf.ensure_shape(
        tf.switch_case(tf.cast(orientation, tf.int32) - 1, ways), [None] * 2 + [3]
    )


def decode(contents: Any, orientation: Any = 1, shorter: int = 0) -> Any:
    """A JPEG or PNG file as ``encoded`` gives it, a scalar string tensor, to pixels, uint8
    [height, width, 3], those that ``load_image`` gives; ``shorter`` is as there.

    ``decode_jpeg``, Google's ``DecodeJpeg``, takes PNG as well. By default it does a JPEG's cosine
    transform in a fast way, and pixels are off by up to 20 of 255; whoever gave Pillow's pixels to
    a model trained on those would give it other photos.
    """
    import tensorflow as tf

    def at(ratio: int) -> Any:
        pixels = tf.io.decode_jpeg(contents, 3, ratio, dct_method="INTEGER_ACCURATE")
        return tf.ensure_shape(pixels, [None, None, 3])

    if shorter:
        side = tf.cond(
            tf.io.is_jpeg(contents),
            lambda: tf.reduce_min(tf.io.extract_jpeg_shape(contents)[:2]),
            lambda: tf.constant(0),
        )
        fractions = [(side >= ratio * shorter, partial(at, ratio)) for ratio in (8, 4, 2)]
        pixels = tf.case(fractions, default=partial(at, 1))
    else:
        pixels = at(1)
    return (
        pixels
        if isinstance(orientation, int) and orientation == 1
        else upright(pixels, orientation)
    )


def find_images(paths: Sequence[str | Path]) -> Iterator[Path]:
    """The files that are named, and the image files in the folders that are named, sorted and
    without hidden ones. A folder that has none, or that doesn't exist, is given as it is."""
    for path in map(Path, paths):
        inside = path.rglob("*") if path.is_dir() else ()
        images = sorted(
            file
            for file in inside
            if file.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
        yield from images or [path]


def label_fonts() -> None:
    """Let Matplotlib draw names of folders as they are: Chinese where a font for it is installed,
    and "$" as a dollar."""
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    default = [font for font in plt.rcParamsDefault["font.sans-serif"] if font in installed]
    plt.rcParams["font.family"] = "sans-serif"
    plt.rcParams["font.sans-serif"] = default + [font for font in CJK_FONTS if font in installed]
    plt.rcParams["text.parse_math"] = False
