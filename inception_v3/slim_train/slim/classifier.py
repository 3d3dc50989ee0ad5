"""The trained classifier: a network with all that is needed to use it.

``02_train_image_classifier.py`` saves it, ``03_eval_image_classifier.py`` loads it. A folder holds
``model.keras``, which takes pixels of a photo of any size and gives probabilities; ``labels.txt``,
their names, one a line; and ``model.json``, which says how the network was trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models.inception_v3 import CACHE
from utils.run import quoted, sha256, write_json, written_whole

from .preprocessing import evaluation_view

FOLDER = CACHE.parent / "slim"  # in models/
MODEL, LABELS, INFO = "model.keras", "labels.txt", "model.json"
TRAIN = "python inception_v3/slim_train/02_train_image_classifier.py"


class ModelError(ValueError):
    """A model is missing, damaged or doesn't fit; the message says which and what to do."""


class Classifier:
    """A trained network and its facts.

    Attributes:
        model: a Keras model, uint8 [n, h, w, 3] of any height and width to float32 [n, classes].
        about: what the training wrote: classes, image_size, weights, validation and more.
    """

    def __init__(self, model: keras.Model, about: dict[str, Any]) -> None:
        self.model, self.about = model, about
        signature = [tf.TensorSpec([1, None, None, 3], tf.uint8)]  # traced once, for all sizes
        self._apply = tf.function(lambda x: model(x, training=False), input_signature=signature)

    @property
    def classes(self) -> list[str]:
        return self.about["classes"]

    def probabilities(self, pixels: Any) -> np.ndarray:
        """Of each class for one photo, uint8 [h, w, 3]: float32 [classes]."""
        return self._apply(tf.expand_dims(pixels, 0)).numpy()[0]


def make_model(inference: keras.Model, size: int) -> keras.Model:
    """The network with its preprocessing before and a softmax behind it; it shares the weights."""
    pixels = keras.Input((None, None, 3), dtype="uint8", name="pixels")
    logits = inference(evaluation_view(pixels, size))
    probabilities = keras.layers.Softmax(name="probabilities")(logits)
    return keras.Model(pixels, probabilities, name="classifier")


def save_classifier(folder: Path, model: keras.Model, about: Mapping[str, Any]) -> None:
    """Save ``model`` and ``about`` (with classes and image_size) in ``folder``. A model that is
    there already is replaced once this one is whole. Raises OSError."""
    with written_whole(folder / MODEL) as temporary:
        model.save(temporary)
    with written_whole(folder / LABELS) as temporary:
        lines = "".join(f"{label}\n" for label in about["classes"])
        temporary.write_text(lines, encoding="utf-8", newline="\n")
    write_json(folder / INFO, {**about, "sha256": sha256(folder / MODEL)})


def load_classifier(folder: Path) -> Classifier:
    """Load what ``save_classifier`` saved. Raises ModelError where nothing whole is there."""
    try:
        about = json.loads((folder / INFO).read_text(encoding="utf-8"))
        wanted = [about[name] for name in ("classes", "image_size", "sha256")][-1]
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no model: train one with {TRAIN}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{folder / INFO} is damaged: train again with {TRAIN}") from error
    path = folder / MODEL
    if not path.is_file() or sha256(path) != wanted:
        fault = "altered or cut short" if path.is_file() else "missing"
        raise ModelError(f"{quoted(path)} is {fault}: train again with {TRAIN}")
    model = keras.models.load_model(path, compile=False, safe_mode=True)  # runs no code in it
    return Classifier(model, about)
