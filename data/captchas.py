"""Captchas: the images that the last chapter learns to read, made rather than fetched
====================================================================================

A captcha here is a text, such as ``0427``, drawn by the library captcha: every character in a
size of its own, turned and warped, dots and a curve over them. This module draws the image of
a seed and a number, always the same one. ``captcha_multitask/01_generate_images.py`` writes a
folder of them, ``captcha_multitask/03_train.py --online`` draws them while it trains. Run it
to see what a seed gives, as text::

    python data/captchas.py

Library: https://github.com/lepture/captcha, version 0.7.1.
"""

import argparse
import io
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captcha.image
import numpy as np
from PIL import Image, ImageDraw

from data import images

FOLDER = Path(__file__).resolve().parent / "captcha"  # images and records, git-ignored
ALPHABETS = {
    "digits": string.digits,
    "lower": string.ascii_lowercase,
    "upper": string.ascii_uppercase,
    "alnum": string.digits + string.ascii_letters,
}
WARPS = ("modern", "legacy", "both")
MOST_PIXELS = 16_000_000
BILINEAR = Image.Resampling.BILINEAR
NOT_IN_NAMES = '_.<>:"/\\|?*'  # "_" and "." end the text in a file's name, others Windows forbids


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
        warp: ``"modern"`` (captcha 0.7.1), ``"legacy"`` (up to 0.7.0) or ``"both"``, each
            image one of the two by chance.
        seed: another seed, other captchas.
    """

    alphabet: str = string.digits
    length: int = 4
    width: int = 160
    height: int = 60
    fonts: tuple[str, ...] = ()
    warp: str = "modern"
    seed: int = 1

    def draw(self, index: int) -> tuple[str, Image.Image]:
        """The text and the image, RGB, of captcha number ``index``."""
        generator = random.Random(f"{self.seed}:{index}")
        text = "".join(generator.choices(self.alphabet, k=self.length))
        warp = generator.choice(("modern", "legacy")) if self.warp == "both" else self.warp
        painter = _painter(warp, self.width, self.height, self.fonts)
        secrets = captcha.image.secrets
        captcha.image.secrets = _Dice(generator)  # the library draws from secrets, unseeded
        try:
            return text, painter.generate_image(text)
        finally:
            captcha.image.secrets = secrets

    def png(self, index: int) -> tuple[str, bytes]:
        """The text of captcha number ``index`` and its PNG file."""
        text, image = self.draw(index)
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)  # a tenth larger than by default, in less time
        return text, file.getvalue()

    def pixels(self, index: int) -> tuple[str, np.ndarray]:
        """The text of captcha number ``index`` and its pixels, uint8 [height, width, 3]."""
        text, image = self.draw(index)
        return text, np.asarray(image)


_painters: dict[tuple, captcha.image.ImageCaptcha] = {}  # keep their fonts loaded


def _painter(
    warp: str, width: int, height: int, fonts: tuple[str, ...]
) -> captcha.image.ImageCaptcha:
    kind = {"modern": captcha.image.ImageCaptcha, "legacy": LegacyImageCaptcha}[warp]
    key = (warp, width, height, fonts)
    if key not in _painters:
        _painters[key] = kind(width, height, list(fonts) or None)
    return _painters[key]


def parse_alphabet(text: str) -> str:
    """The characters of an alphabet given by name (``digits``, ``lower``, ``upper``, ``alnum``)
    or as they are; also an argparse type. Raises AlphabetError, with a sentence."""
    alphabet = ALPHABETS.get(text, text)
    twice = sorted({c for c in alphabet if alphabet.count(c) > 1})
    unfit = sorted({c for c in alphabet if c in NOT_IN_NAMES or not c.isprintable() or c == " "})
    if not alphabet:
        raise AlphabetError("the alphabet is empty")
    if twice:
        raise AlphabetError(f"the alphabet {text!r} has {''.join(twice)!r} more than once")
    if unfit:
        raise AlphabetError(
            f"{''.join(unfit)!r} can't stand in a file's name, so not in an alphabet"
        )
    return alphabet


def load_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of an image file of any format Pillow reads, as a recogniser takes them:
    uint8 [height, width, 3], upright, transparent places white, the first frame of several,
    enlarged or shrunk to ``size`` (width, height) if that is given.

    Raises OSError or ValueError, with a sentence, for a file that holds no whole image, or one
    of more than 16 million pixels (found in its header, before it is unpacked).
    """
    image = Image.fromarray(images.load_image(path, MOST_PIXELS))
    return np.asarray(image if size in (None, image.size) else image.resize(size, BILINEAR))


def decode_pngs(files: Any, height: int, width: int) -> Any:
    """The pixels of a batch of PNG files of one size, as a tensor of strings [b]: a tensor
    uint8 [b, height, width, 3]."""
    import tensorflow as tf  # not at the top: processes that only draw need none

    image = tf.TensorSpec([height, width, 3], tf.uint8)
    return tf.map_fn(lambda f: tf.io.decode_png(f, 3), files, fn_output_signature=image)


def label_of(path: Path) -> str:
    """The text that a file's name states: ``0427`` for ``0427_000123.png`` and ``0427.jpg``."""
    return path.stem.split("_")[0]


def encode_text(text: str, alphabet: str) -> list[int]:
    """The class of each character: its place in the alphabet. Raises ValueError for others."""
    return [alphabet.index(character) for character in text]


def decode_classes(classes: Sequence[int], alphabet: str) -> str:
    """The text whose characters are at these places in the alphabet."""
    return "".join(alphabet[int(c)] for c in classes)


if __name__ == "__main__":
    for number in range(5):
        print(f"seed 1, number {number}:", *Captchas().draw(number))
