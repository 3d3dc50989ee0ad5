"""The captcha recogniser: a trained network with all that is needed to use it

``captcha_multitask/03_train.py`` saves it, ``04_test.py`` and ``05_recognize.py`` load it. A folder
holds ``model.keras``, which takes pixels and gives probabilities, and ``model.json``, which says
what the probabilities stand for and how the network was trained.
"""

import json
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.captchas import decode_classes
from utils.run import quoted, sha256, write_json, written_whole

FOLDER = Path(__file__).resolve().parent / "captcha"  # with a folder for each network
MODEL, INFO = "model.keras", "model.json"
TRAIN = "python captcha_multitask/03_train.py"
BATCH_SIZE = 256


class ModelError(ValueError):
    """A model is missing, damaged or does not fit; the message says which and what to do."""


class Recogniser:
    """A trained network and its facts.

    Attributes:
        model: a Keras model, uint8 [n, height, width, 1] to float32 probabilities
            [n, length, len(alphabet)].
        folder: where it was loaded from.
        about: what the training wrote: alphabet, length, width, height, net and more.
        alphabet, length: the characters of a text, and how many it has.
        size: width and height, in pixels, of the images it takes.
    """

    def __init__(self, model: Any, folder: Path, about: Mapping[str, Any]) -> None:
        self.model, self.folder, self.about = model, folder, dict(about)
        self.alphabet: str = about["alphabet"]
        self.length: int = about["length"]
        self.size: tuple[int, int] = about["width"], about["height"]

    @cached_property
    def _graph(self) -> Any:
        """The model as one graph: called layer by layer it is a fifth slower."""
        import tensorflow as tf

        width, height = self.size
        pixels = tf.TensorSpec([None, height, width, 1], tf.uint8)
        return tf.function(lambda images: self.model(images, training=False), [pixels])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of every character at every position, float32 [n, length, classes], for
        images uint8 [n, height, width, 1]."""
        starts = range(0, len(images), BATCH_SIZE)
        parts = [self._graph(images[i : i + BATCH_SIZE]).numpy() for i in starts]
        empty = np.empty((0, self.length, len(self.alphabet)), np.float32)
        return np.concatenate([empty, *parts])

    def read(self, images: np.ndarray) -> tuple[list[str], np.ndarray]:
        """The likeliest text of each image and its confidence, float64 [n] from 0 to 1."""
        return self.texts(self.probabilities(images))

    def texts(self, probabilities: np.ndarray) -> tuple[list[str], np.ndarray]:
        """What ``read`` returns, from probabilities. A text's confidence is the product of its
        characters' probabilities, as the heads judge independently."""
        texts = [decode_classes(row, self.alphabet) for row in probabilities.argmax(axis=-1)]
        return texts, probabilities.max(axis=-1).prod(axis=-1, dtype=float)


def save_recogniser(folder: str | Path, model: Any, about: Mapping[str, Any]) -> None:
    """Save ``model`` and ``about`` (with alphabet, length, width and height) in ``folder``.
    A model that is there already is replaced once this one is whole."""
    folder = Path(folder)
    with written_whole(folder / MODEL) as temporary:
        model.save(temporary)
    write_json(folder / INFO, {**about, "sha256": sha256(folder / MODEL)})


def load_recogniser(
    folder: str | Path, alphabet: str | None = None, length: int | None = None
) -> Recogniser:
    """Load what ``save_recogniser`` saved. Raises ModelError where nothing whole is there, and
    where it does not read texts of this ``alphabet`` and ``length``, if given."""
    import keras

    folder = Path(folder)
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


def export(recogniser: Recogniser, kind: str, images: np.ndarray) -> tuple[Path, float]:
    """Write ``model.onnx`` or ``model.tflite`` beside the model, as ``kind`` says, load it again
    and let it read ``images``, uint8 [n, h, w, 1]. Returns the file and the largest difference of
    its probabilities from the model's. Raises ImportError if a package for it is missing."""
    path = recogniser.folder / f"model.{kind}"
    with written_whole(path) as temporary, warnings.catch_warnings(action="ignore"):
        name = {"onnx": "onnx", "tflite": "litert"}[kind]
        recogniser.model.export(str(temporary), format=name, verbose=False)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        (probabilities,) = session.run(None, {session.get_inputs()[0].name: images})
    else:
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(path)).get_signature_runner()
        (probabilities,) = runner(**dict.fromkeys(runner.get_input_details(), images)).values()
    return path, float(abs(probabilities - recogniser.probabilities(images)).max())
