"""Image files of any kind as pixels, and as bytes that TensorFlow decodes to those very pixels.

TensorFlow's decoder knows nothing of the EXIF note "hold the camera's picture upright", takes
transparent places for what lies under them, and reads no WebP or TIFF by the name of a JPEG.
So every file goes through ``encoded`` before a network sees it, in training, test and use alike.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def load_image(source: Path | bytes, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The pixels of an image file of any of the ``FORMATS``: uint8 [height, width, 3], upright,
    transparent places white, the first frame of several, 16 bits scaled to 8.

    Raises OSError or ValueError, with a sentence, for a file that holds no whole image, or one
    of more than ``most_pixels`` (found in its header, before it is unpacked).
    """
    try:
        with _opened(source, most_pixels) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would cut, not scale
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("RGB", "L", "CMYK", "YCbCr") and "transparency" not in image.info:
                return np.asarray(image.convert("RGB"))
            image = image.convert("RGBA")
    except (RuntimeError, SyntaxError, struct.error) as error:
        raise ValueError(f"no whole image: {error}") from error
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return np.asarray(page.convert("RGB"))


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


def encoded(source: Path | bytes) -> bytes:
    """A JPEG or PNG file from which ``tf.io.decode_jpeg(…, channels=3)`` gives the picture as a
    person sees it: the file itself where it does, else ``load_image``'s pixels as a PNG.

    Raises what ``load_image`` raises. A file that passes as it is, is not decoded here.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    if is_plain(content):
        return content
    file = io.BytesIO()
    Image.fromarray(load_image(content)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def is_plain(content: bytes) -> bool:
    """Whether TensorFlow decodes a file as it should be seen: a JPEG, grey or of three colours, or
    a PNG, grey or RGB of 8 bits without transparency; neither with a note to turn it. Raises
    ValueError or OSError if it holds no image or has too many pixels."""
    with _opened(content, MOST_PIXELS) as image:
        if image.format == "MPO":  # two JPEGs in one file, as some telephones take them
            return False
        if image.getexif().get(0x0112, 1) != 1:  # the orientation
            return False
        if image.format == "JPEG":
            return image.mode in ("RGB", "L")
        if image.format == "PNG":
            eight_bits = content.startswith(PNG) and content[24] == 8
            return eight_bits and image.mode in ("RGB", "L") and "transparency" not in image.info
    return False


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
