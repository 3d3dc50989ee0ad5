"""A trained photo classifier: its network, preprocessing and labels in two files

``pool3_train/01_retrain.py`` and ``slim_train/02_train_image_classifier.py`` save it,
``pool3_train/02_test_images.py`` and ``slim_train/03_eval_image_classifier.py`` load it. Beside
``NAME.keras``, which takes pixels and gives probabilities, lies ``NAME.json``, which says what they
stand for and how the network was trained.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import ConfusionMatrixDisplay, classification_report

from data.images import load_image
from models.inception_v3 import resize
from utils.figures import picture_grid
from utils.run import quoted, sha256, write_json, written_whole

BATCH_SIZE = 16
SHOWN = 24  # photos in a figure


class ModelError(ValueError):
    """A model is missing, damaged or doesn't fit; the message says which and what to do."""


def whole_model(
    network: keras.Model, head: keras.Model | None, size: int, classes: Sequence[str]
) -> keras.Model:
    """A network with all that belongs before and behind it: images float32 or uint8 [b, h, w, 3],
    from 0 to 255 and of any size, to probabilities [b, classes]. It shares the weights.

    ``network`` takes images [b, size, size, 3] in [-1, 1]. It gives features, of which ``head``
    makes logits, or logits itself if ``head`` is None.

    ``keras.layers.Resizing`` is not used: its ``training`` is True by default, and Keras 3.15 hands
    that on to all layers behind it. ``keras.ops.image.resize`` computes the same.
    """
    pixels = keras.Input((None, None, 3), name="pixels")
    x = keras.ops.image.resize(pixels, (size, size), "bilinear", antialias=True)
    logits = network(keras.layers.Rescaling(1 / 127.5, -1)(x))
    logits = logits if head is None else head(logits)
    if logits.shape[-1] != len(classes):
        raise ModelError(f"{logits.shape[-1]} logits don't fit {len(classes)} classes")
    return keras.Model(pixels, keras.layers.Softmax(name="final_result")(logits))


@dataclass(frozen=True)
class Classifier:
    """A trained network and its facts: ``model`` is a ``whole_model``, ``about`` what the training
    wrote: classes, size, weights, training_photos and more."""

    model: keras.Model
    classes: list[str]
    about: dict[str, Any]

    @property
    def size(self) -> int:
        """The side of the square that the network sees."""
        return self.about["size"]

    @cached_property
    def _graph(self) -> Any:
        spec = tf.TensorSpec([None, self.size, self.size, 3], tf.float32)
        return tf.function(lambda images: self.model(images, training=False), [spec])

    def load(self, source: str | Path | bytes) -> np.ndarray:
        """An image file, or its bytes, as the network sees it: float32 [size, size, 3], from 0 to
        255. Raises OSError or ValueError, with the reason."""
        source = source if isinstance(source, bytes) else Path(source)
        return resize(load_image(source, shorter=self.size), self.size).numpy()

    def probabilities(
        self, sources: Iterable[str | Path | bytes], failed: dict[int, str] | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """For each image file, or its bytes, its number and its probabilities, float32 [classes].

        Threads read, decode and resize the next images while the network works on a batch. What
        can't be read is left out, and ``failed`` gets the reason by its number; without ``failed``
        the OSError or ValueError is raised.
        """
        with ThreadPoolExecutor() as threads:
            waiting: deque = deque()
            for pair in enumerate(sources):
                waiting.append((pair[0], threads.submit(self.load, pair[1])))
                if len(waiting) == 3 * BATCH_SIZE:
                    yield from self._ask([waiting.popleft() for _ in range(BATCH_SIZE)], failed)
            while waiting:
                count = min(BATCH_SIZE, len(waiting))
                yield from self._ask([waiting.popleft() for _ in range(count)], failed)

    def _ask(self, batch: list, failed: dict[int, str] | None) -> Iterator[tuple[int, np.ndarray]]:
        images = {}
        for number, future in batch:
            try:
                images[number] = future.result()
            except (OSError, ValueError) as error:
                if failed is None:
                    raise
                failed[number] = getattr(error, "strerror", None) or str(error)
        if images:
            yield from zip(images, self._graph(np.stack([*images.values()])).numpy(), strict=True)

    def was_trained_on(self, content: bytes) -> bool:
        """Whether the bytes of a file are those of a training photo, wherever the file lies."""
        return hashlib.sha256(content).hexdigest() in self._training_photos

    @cached_property
    def _training_photos(self) -> frozenset[str]:
        return frozenset(self.about.get("training_photos", ()))


def save_classifier(path: Path, model: keras.Model, about: Mapping[str, Any]) -> None:
    """Save a ``whole_model`` as ``path``, a name that ends in .keras, and ``about`` beside it, with
    ``classes``, ``size``, ``weights`` (in words) and ``training_photos``, their SHA-256. What is
    there already is replaced once both files are whole. Raises OSError."""
    with ExitStack() as stack:
        info = stack.enter_context(written_whole(path.with_suffix(".json")))
        temporary = stack.enter_context(written_whole(path))  # gets its name first
        model.save(temporary)
        write_json(info, {**about, "sha256": sha256(temporary)})


def load_classifier(path: str | Path) -> Classifier:
    """Load what ``save_classifier`` saved: the .keras file, or the folder that holds it. Raises
    ModelError where there is no whole model."""
    path = Path(path).expanduser()
    if path.is_dir():
        found = sorted(path.glob("[!.]*.keras"))
        if len(found) != 1:
            many = f"{len(found)} models: name one of them" if found else "no model: train one"
            raise ModelError(f"{path} holds {many}")
        (path,) = found
    if not path.is_file():
        raise ModelError(f"there is no model {path}: train one")
    info = path.with_suffix(".json")
    try:
        about = json.loads(info.read_text(encoding="utf-8"))
        classes, _, digest = (about[name] for name in ("classes", "size", "sha256"))
    except (OSError, ValueError, LookupError, TypeError):
        raise ModelError(f"{quoted(info)} is missing or damaged: train again") from None
    if sha256(path) != digest:
        raise ModelError(f"{quoted(path)} is altered, or not of one training with {info.name}")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)  # runs no code in it
    except Exception as error:  # zip, JSON, HDF5 and Keras raise many kinds
        raise ModelError(f"{quoted(path)} can't be loaded: {error}") from error
    return Classifier(model, classes, about)


# %%
# What a test says
# ----------------


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval (Wilson's) for a share of which ``right`` of ``total`` were seen."""
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return float(low), float(high)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """McNemar's exact test: p if two models, right or wrong on the same photos, bool [n] each, are
    equally good. Photos that both get right, or both wrong, say nothing about that."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def print_test(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Print how many of n photos are right, and precision, recall and F1 of each class; return
    ``accuracy``, its ``interval``, and scikit-learn's report as ``classes``."""
    answers = probabilities.argmax(axis=1)
    settings = {"labels": range(len(classes)), "target_names": classes, "zero_division": 0}
    print(classification_report(truth, answers, **settings, digits=3))
    right, total = int((answers == truth).sum()), len(truth)
    low, high = wilson(right, total)
    print(f"{right:,} of {total:,} photos right: {right / total:.1%} ({low:.1%} to {high:.1%})")
    report = classification_report(truth, answers, **settings, output_dict=True)
    return {"accuracy": right / total, "interval": (low, high), "classes": report}


def draw_confusion(truth: np.ndarray, answers: np.ndarray, classes: Sequence[str]) -> plt.Figure:
    """The confusion matrix: rows are the truth, columns the answers."""
    side = min(4.5 + 0.45 * len(classes), 30)
    figure, axes = plt.subplots(figsize=(side + 0.5, side), layout="constrained")
    look = {"cmap": "Blues", "xticks_rotation": 45, "colorbar": len(classes) > 30}
    look |= {"include_values": len(classes) <= 30, "display_labels": [shorten(c) for c in classes]}
    labels = range(len(classes))
    ConfusionMatrixDisplay.from_predictions(truth, answers, labels=labels, ax=axes, **look)
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    axes.set(xlabel="answer", ylabel="truth", title=f"{len(truth):,} photos")
    return figure


def draw_photos(
    sources: Sequence[Path | bytes], titles: Sequence[str], wrong: Sequence[bool] = ()
) -> plt.Figure:
    """Up to ``SHOWN`` photos with their titles, orange where wrong."""
    thumbnails = []
    for source in sources[:SHOWN]:
        thumbnails.append(Image.fromarray(load_image(source, shorter=240)))
        thumbnails[-1].thumbnail((240, 240))
    columns = min(6, max(2, len(thumbnails)))
    return picture_grid(thumbnails, titles[:SHOWN], columns, wrong[:SHOWN], size=2.1)


def shorten(text: str, most: int = 20) -> str:
    """A text of at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
