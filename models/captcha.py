"""The captcha recogniser: a trained network with all that is needed to use it

``captcha_multitask/03_train.py`` saves it here, ``04_test.py`` and ``05_recognize.py`` load it.
A folder holds ``model.keras``, which takes pixels and gives probabilities, and ``model.json``,
which says what the probabilities stand for and how the network was trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.captchas import decode_classes
from utils.run import quoted, sha256, write_json, written_whole

FOLDER = Path(__file__).resolve().parent / "captcha"
MODEL, INFO = "model.keras", "model.json"
TRAIN = "python captcha_multitask/03_train.py"


class ModelError(ValueError):
    """A model is missing, damaged or does not fit; the message says which and what to do."""


@dataclass(frozen=True)
class Recogniser:
    """A trained network and its facts.

    Attributes:
        model: a Keras model, uint8 [n, height, width, 3] to float32 probabilities
            [n, length, len(alphabet)].
        folder: where it was loaded from.
        about: what the training wrote: alphabet, length, width, height, net, warp and more.
    """

    model: Any
    folder: Path
    about: dict[str, Any]

    @property
    def alphabet(self) -> str:
        return self.about["alphabet"]

    @property
    def length(self) -> int:
        return self.about["length"]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels, of the images it takes."""
        return self.about["width"], self.about["height"]

    def probabilities(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """The probability of every character at every position, float32 [n, length, classes],
        for images uint8 [n, height, width, 3]."""
        parts = [
            self.model(images[i : i + batch_size], training=False).numpy()
            for i in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts)

    def texts(self, probabilities: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Of each image the likeliest text and its confidence, float [n] from 0 to 1: the
        product of its characters' probabilities, as the heads judge independently."""
        texts = [decode_classes(row, self.alphabet) for row in probabilities.argmax(axis=-1)]
        return texts, probabilities.max(axis=-1).prod(axis=-1)


def save_recogniser(folder: Path, model: Any, about: Mapping[str, Any]) -> None:
    """Save ``model`` and ``about`` (with alphabet, length, width and height) in ``folder``.
    A model that is there already is replaced once this one is whole."""
    with written_whole(folder / MODEL) as temporary:
        model.save(temporary)
    write_json(folder / INFO, {**about, "sha256": sha256(folder / MODEL)})


def load_recogniser(
    folder: Path, alphabet: str | None = None, length: int | None = None
) -> Recogniser:
    """Load what ``save_recogniser`` saved. Raises ModelError where nothing whole is there, and
    where it does not read texts of this ``alphabet`` and ``length``, if given."""
    import keras

    try:
        about = json.loads((folder / INFO).read_text(encoding="utf-8"))
        kept = {name: about[name] for name in ("alphabet", "length", "width", "height", "sha256")}
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no model: train one with {TRAIN}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{folder / INFO} is damaged: train again with {TRAIN}") from error
    if alphabet is not None and alphabet != kept["alphabet"]:
        raise ModelError(
            f"the model in {folder} reads the alphabet {kept['alphabet']!r}, these are texts of "
            f"{alphabet!r}. Name another model, or train one: {TRAIN} --records DIR --model DIR"
        )
    if length is not None and length != kept["length"]:
        raise ModelError(
            f"the model in {folder} reads {kept['length']} characters, these are texts of "
            f"{length}. Name another model, or train one: {TRAIN} --records DIR --model DIR"
        )
    path = folder / MODEL
    if not path.is_file() or sha256(path) != kept["sha256"]:
        fault = "altered or cut short" if path.is_file() else "missing"
        raise ModelError(f"{quoted(path)} is {fault}: train again with {TRAIN}")
    model = keras.models.load_model(path, compile=False, safe_mode=True)  # runs no code in it
    return Recogniser(model, folder, about)
