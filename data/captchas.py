"""Captchas: the images that the last chapter learns to read, made rather than fetched
====================================================================================

A captcha here is a text, such as ``0427``, drawn by the library captcha: every character in a
size of its own, turned and warped, dots and a curve over them. This module draws the image of
a seed and a number, always the same one, and reads image files as the chapter's networks see
them: grey. ``captcha_multitask/01_generate_images.py`` writes a folder of captchas.

Library: https://github.com/lepture/captcha, version 0.7.1.
"""

import argparse
import csv
import io
import json
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captcha.image
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data import images

SETTINGS = "captchas.json"  # in a folder of drawn captchas: how they were drawn
FOLDER = Path(__file__).resolve().parent / "captcha"  # images and records, git-ignored
ALPHABETS = {
    "digits": string.digits,
    "lower": string.ascii_lowercase,
    "upper": string.ascii_uppercase,
    "alnum": string.digits + string.ascii_letters,
}
KINDS = ("modern", "legacy", "grey", "noise", "lines", "dark")
STYLES = (*KINDS, "both", "mixed")  # both: modern or legacy; mixed: any of the kinds
SMALLEST, MOST_PIXELS = 16, 16_000_000  # a side that shows a character, and a bearable image
TEMPORARY = re.compile(r"\..*\.\d+\.tmp\.(png|json)")  # what written_whole leaves when killed
HARMLESS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # systems put these into any folder
NOT_IN_NAMES = '_. <>:"/\\|?*'  # "_" and "." end the text in a file's name, Windows forbids most


class AlphabetError(argparse.ArgumentTypeError, ValueError):
    """An alphabet can't be used; the message says why. argparse prints it as it is."""


class _Dice:
    """What captcha takes from ``secrets``, from a generator that has a seed."""

    def __init__(self, generator: random.Random) -> None:
        self.randbelow = generator.randrange
        self.randbits = generator.getrandbits
        self.choice = generator.choice


class LegacyImageCaptcha(captcha.image.ImageCaptcha):
    """Draws with the warp of captcha up to 0.7.0.

    A corner of a character w pixels wide is moved by up to :math:`w (r (b - a) + a)` pixels,
    r uniform in [0, 1], (a, b) = (0.1, 0.3) across and (0.2, 0.3) down. Version 0.7.1 lost the
    brackets and moves it by :math:`w r (b - a) + a`. Its formula gives the old one with
    :math:`a' = w a` and :math:`b' = w a + b - a`, so no code of the library is repeated here.
    """

    def _draw_character(
        self, c: str, draw: ImageDraw.ImageDraw, color: captcha.image.ColorTuple
    ) -> Image.Image:
        fonts = self.truefonts
        font = captcha.image.secrets.choice(fonts)
        *_, width, height = draw.multiline_textbbox((1, 1), c, font=font)
        across, down = type(self).character_warp_dx, type(self).character_warp_dy
        self.character_warp_dx = (width * across[0], width * across[0] + across[1] - across[0])
        self.character_warp_dy = (height * down[0], height * down[0] + down[1] - down[0])
        self._truefonts = [font]  # the only one to choose from
        try:
            return super()._draw_character(c, draw, color)
        finally:
            self._truefonts = fonts


@dataclass(frozen=True)
class Captchas:
    """An endless row of captchas: number ``index`` is the same on every machine and in every
    process, whatever was drawn before it.

    Attributes:
        alphabet: the characters that texts are made of, each once.
        length: characters in a text.
        width, height: of an image, in pixels.
        fonts: paths of TrueType files; none for the library's own, DroidSansMono.
        style: ``"modern"``, as captcha 0.7.1 draws; ``"legacy"``, with the warp up to 0.7.0;
            modern ones in ``"grey"``, with ``"noise"``, with ``"lines"``, or light on ``"dark"``.
            Each image is drawn in a style chosen by chance if this is ``"both"`` (modern or
            legacy) or ``"mixed"`` (any).
        seed: another seed, other captchas.
    """

    alphabet: str = string.digits
    length: int = 4
    width: int = 160
    height: int = 60
    fonts: tuple[str, ...] = ()
    style: str = "modern"
    seed: int = 1

    def text(self, index: int) -> str:
        """The text of captcha number ``index``."""
        return self._begin(index)[1]

    def _begin(self, index: int) -> tuple[random.Random, str]:
        generator = random.Random(f"{self.seed}:{index}")
        return generator, "".join(generator.choices(self.alphabet, k=self.length))

    def draw(self, index: int) -> tuple[str, Image.Image]:
        """The text and the image, RGB or (grey) L, of captcha number ``index``."""
        generator, text = self._begin(index)
        choices = {"both": ("modern", "legacy"), "mixed": KINDS}.get(self.style)
        style = generator.choice(choices) if choices else self.style
        painter = _painter(style == "legacy", self.width, self.height, self.fonts)
        secrets = captcha.image.secrets
        captcha.image.secrets = _Dice(generator)  # the library draws from secrets, unseeded
        try:
            image = painter.generate_image(text)
        finally:
            captcha.image.secrets = secrets
        return text, _EFFECTS[style](image, generator) if style in _EFFECTS else image

    def png(self, index: int) -> tuple[str, bytes]:
        """The text of captcha number ``index`` and its PNG file."""
        text, image = self.draw(index)
        return text, png_file(np.atleast_3d(image))


def _noise(image: Image.Image, generator: random.Random) -> Image.Image:
    """Every pixel lighter or darker, by up to 15 to 50 of 255."""
    strength = generator.randrange(15, 51)
    noise = np.frombuffer(generator.randbytes(image.width * image.height), np.int8)
    noise = noise.reshape(image.height, image.width, 1) * (strength / 128)  # all three colours
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _lines(image: Image.Image, generator: random.Random) -> Image.Image:
    """Two to five lines from the left border to the right, in dark colours."""
    draw = ImageDraw.Draw(image)
    for _ in range(generator.randrange(2, 6)):
        left, right = (generator.randrange(image.height) for _ in range(2))
        colour = tuple(generator.randrange(180) for _ in range(3))
        draw.line((0, left, image.width, right), colour, width=generator.randrange(1, 3))
    return image


_EFFECTS = {
    "grey": lambda image, generator: image.convert("L"),
    "noise": _noise,
    "lines": _lines,
    "dark": lambda image, generator: ImageOps.invert(image),
}
_painters: dict[tuple, captcha.image.ImageCaptcha] = {}  # keep their fonts loaded


def _painter(
    legacy: bool, width: int, height: int, fonts: tuple[str, ...]
) -> captcha.image.ImageCaptcha:
    key = (legacy, width, height, fonts)
    if key not in _painters:
        kind = LegacyImageCaptcha if legacy else captcha.image.ImageCaptcha
        _painters[key] = kind(width, height, list(fonts) or None)
    return _painters[key]


def check_drawable(captchas: Captchas) -> None:
    """Raise ValueError, with a sentence, if these captchas can't be drawn, named by their texts, or
    told apart."""
    alphabet, width, height = captchas.alphabet, captchas.width, captchas.height
    if min(width, height) < SMALLEST or width * height > MOST_PIXELS:
        raise ValueError(f"--size {width} {height}: from {SMALLEST}×{SMALLEST} to {MOST_PIXELS:,}")
    if unfit := "".join(sorted(set(alphabet) & set(NOT_IN_NAMES))):
        raise ValueError(f"--alphabet: {unfit!r} can't stand in a file's name")
    if captchas.length * max(len(c.encode()) for c in alphabet) > 200:
        raise ValueError(f"--length {captchas.length}: the text has to fit into a file's name")
    for path in captchas.fonts or captcha.image.DEFAULT_FONTS:
        font = ImageFont.truetype(path, 42)
        box = bytes(font.getmask("\uffff"))  # what fonts show for a character that they lack
        if lacking := "".join(c for c in alphabet if bytes(font.getmask(c)) == box):
            raise ValueError(
                f"the font {Path(path).name} has no {lacking!r}: all would look alike. "
                "Take other --fonts"
            )


def parse_font(name: str) -> str:
    """The path of a font file, given as it is or by a name that Matplotlib knows, such as
    ``DejaVu Serif:bold``; also an argparse type."""
    path = Path(name).expanduser().resolve()
    try:
        found = path if path.is_file() else Path(findfont(name, fallback_to_default=False))
        ImageFont.truetype(found, 42)
        return str(found)
    except ValueError:
        reason = "no such file, and Matplotlib knows no font of this name"
    except OSError as error:
        reason = f"no TrueType font ({error})"
    raise argparse.ArgumentTypeError(f"{name}: {reason}")


def parse_alphabet(text: str) -> str:
    """The characters of an alphabet given by name (``digits``, ``lower``, ``upper``, ``alnum``)
    or as they are; also an argparse type. Raises AlphabetError, with a sentence."""
    alphabet = ALPHABETS.get(text, text)
    twice = sorted({c for c in alphabet if alphabet.count(c) > 1})
    unfit = sorted({c for c in alphabet if not c.isprintable()})
    if not alphabet:
        raise AlphabetError("the alphabet is empty")
    if twice:
        raise AlphabetError(f"the alphabet {text!r} has {''.join(twice)!r} more than once")
    if unfit:
        raise AlphabetError(f"the alphabet {text!r} has {''.join(unfit)!r}, which can't be shown")
    return alphabet


def load_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of an image file as a recogniser takes them: grey, uint8 [height, width, 1],
    upright, transparent places white, the first frame of several, enlarged or shrunk to ``size``
    (width, height) if that is given.

    Raises OSError or ValueError, with a sentence, for a file that holds no whole image of an
    allowed format, or one of more than 16 million pixels (found in its header, before it is
    unpacked).
    """
    image = Image.fromarray(images.load_image(path, MOST_PIXELS))
    pixels = np.asarray(image.convert("L"))[..., np.newaxis]
    return pixels if size is None else resize(pixels, size)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grey image uint8 [height, width, 1] enlarged or shrunk to ``size`` (width, height)."""
    if pixels.shape[1::-1] == tuple(size):
        return pixels
    image = Image.fromarray(pixels[..., 0]).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)[..., np.newaxis]


def png_file(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels uint8 [height, width, 3], or grey [height, width, 1]."""
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    # Type 3, run lengths: nearly as small as by default, in half the time.
    image.save(file, "PNG", compress_level=1, compress_type=3)
    return file.getvalue()


def decode_pngs(files: Any, height: int, width: int) -> Any:
    """The pixels of a batch of grey PNG files of one size, as a tensor of strings [b]: a tensor
    uint8 [b, height, width, 1]."""
    import tensorflow as tf  # not at the top: processes that only draw need none

    image = tf.TensorSpec([height, width, 1], tf.uint8)
    return tf.map_fn(lambda f: tf.io.decode_png(f, 1), files, fn_output_signature=image)


def label_of(path: Path) -> str:
    """The text that a file's name states: ``0427`` for ``0427_000123.png`` and ``0427.jpg``."""
    return path.stem.split("_")[0]


def look_into(
    folder: Path, settings: Mapping[str, Any], file_name: Callable[[int], str]
) -> tuple[set[int], list[Path]]:
    """Which captchas of these ``settings`` are in ``folder``, by their numbers, and the files that
    a killed program left half-written. ``file_name`` gives a number's file.

    Raises ValueError, with a sentence, if the folder has captchas of other settings or files that
    are no captchas; OSError if it can't be read.
    """
    other = "Name another folder with --out, or remove this one."
    files = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
    before = None
    if SETTINGS in files:
        try:
            before = dict(json.loads(files.pop(SETTINGS).read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{folder / SETTINGS} is damaged. {other}") from None
        unlike = [k for k, value in settings.items() if before.get(k) != value]
        unlike = [f"{k} is {before.get(k)!r} there and {settings[k]!r} here" for k in unlike]
        if unlike:
            raise ValueError(f"{folder} has other settings: {'; '.join(unlike)}. {other}")
    there, left_over = set(), []
    for name, path in files.items():
        number = path.stem.rpartition("_")[2]
        if TEMPORARY.fullmatch(name):
            left_over.append(path)
        elif before and number.isdecimal() and name == file_name(int(number)):
            there |= {int(number)} if path.stat().st_size else set()  # a power cut empties files
        elif name not in HARMLESS:
            raise ValueError(f"{folder} holds {name!r}, which is not of these captchas. {other}")
    return there, left_over


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``01_generate_images.py`` says of the captchas in ``folder``: alphabet, length, width,
    height and more; nothing for images from elsewhere. Raises ValueError if that is damaged."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        parse_alphabet(settings["alphabet"])
        if all(settings[name] > 0 for name in ("length", "width", "height")):
            return settings
        reason = "a size below 1"
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error)
    raise ValueError(
        f"{folder / SETTINGS} is damaged ({reason}). Remove it, and use --alphabet and --length"
    )


def read_texts(folder: Path, labels: Path | None = None) -> list[tuple[str, str]]:
    """The image files in ``folder`` by their names there, each with its text: as its name says, or
    as the CSV file ``labels`` does (columns file and text; an image that isn't there has the text
    ""). Raises ValueError, with a sentence, for a CSV file that can't be used."""
    found = [path for path in images.find_images([folder]) if path != folder]
    texts = [(path.relative_to(folder).as_posix(), label_of(path)) for path in found]
    if labels is None:
        return texts
    try:
        with labels.open(encoding="utf-8-sig", newline="") as file:  # -sig: Excel begins with a BOM
            listed = [(row["file"] or "", row["text"] or "") for row in csv.DictReader(file)]
    except OSError as error:
        raise ValueError(f"--labels {labels}: {error.strerror}") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise ValueError(
            f"--labels {labels} is no UTF-8 CSV file with the columns file and text"
        ) from None
    names = {name for name, _ in listed}
    unlisted = [(name, "") for name, _ in texts if name not in names]
    return [(name, text.strip()) for name, text in listed] + unlisted


def encode_text(text: str, alphabet: str) -> list[int]:
    """The class of each character: its place in the alphabet. Raises ValueError for others."""
    return [alphabet.index(character) for character in text]


def decode_classes(classes: Sequence[int], alphabet: str) -> str:
    """The text whose characters are at these places in the alphabet."""
    return "".join(alphabet[int(c)] for c in classes)
