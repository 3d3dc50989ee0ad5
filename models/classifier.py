"""A trained photo classifier: its network, preprocessing and labels in two files

The trainings of ``inception_v3/`` save it; ``pool3_train/02_test_images.py`` and slim's test load
it. Beside ``NAME.keras``, which takes pixels and gives probabilities, lies ``NAME.json``, which
says what they stand for and how the network was trained.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
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
    """A network with all that belongs before and behind it: images float32 or uint8 [b, h, w, 3]
    from 0 to 255, of any size, to probabilities [b, classes]. ``network`` takes images [b, size,
    size, 3] in [-1, 1] and gives features for ``head``, or logits if that is None.

    (``keras.layers.Resizing`` would hand its ``training=True`` on to all layers behind it.)"""
    pixels = keras.Input((None, None, 3), name="pixels")
    x = keras.ops.image.resize(pixels, (size, size), "bilinear", antialias=True)
    logits = network(keras.layers.Rescaling(1 / 127.5, -1)(x))
    logits = logits if head is None else head(logits)
    if logits.shape[-1] != len(classes):
        raise ModelError(f"{logits.shape[-1]} logits don't fit {len(classes)} classes")
    return keras.Model(pixels, keras.layers.Softmax(name="final_result")(logits))


@dataclass(frozen=True)
class Classifier:
    """A ``whole_model`` and what the training wrote about it, as ``save_classifier`` says."""

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
        """The number of each image file, or its bytes, and its probabilities, float32 [classes].

        Threads read, decode and resize the next images while the network works on a batch. What
        can't be read is left out, and its reason is ``failed[number]``; without ``failed`` the
        OSError or ValueError is raised."""
        numbered = enumerate(sources)
        with ThreadPoolExecutor() as threads:

            def submit() -> list:
                some = islice(numbered, BATCH_SIZE)
                return [(number, threads.submit(self.load, source)) for number, source in some]

            waiting = deque([submit(), submit()])
            while batch := waiting.popleft():
                waiting.append(submit())
                images = {}
                for number, future in batch:
                    try:
                        images[number] = future.result()
                    except (OSError, ValueError) as error:
                        if failed is None:
                            raise
                        failed[number] = getattr(error, "strerror", None) or str(error)
                if images:
                    rows = self._graph(np.stack([*images.values()])).numpy()
                    yield from zip(images, rows, strict=True)

    def was_trained_on(self, content: bytes) -> bool:
        """Whether the bytes of a file are those of a training photo, wherever the file lies."""
        return hashlib.sha256(content).hexdigest() in self._trained_on

    @cached_property
    def _trained_on(self) -> frozenset[str]:
        return frozenset(self.about.get("training_photos", ()))


def save_classifier(path: Path, model: keras.Model, about: Mapping[str, Any]) -> None:
    """Save a ``whole_model`` as ``path``, which ends in .keras, and ``about`` beside it: classes,
    size, weights (in words), training_photos (their SHA-256) and more. What is there already is
    replaced once both files are whole. Raises OSError."""
    with written_whole(path.with_suffix(".json")) as info, written_whole(path) as temporary:
        model.save(temporary)
        write_json(info, {**about, "sha256": sha256(temporary)})


def load_classifier(path: str | Path) -> Classifier:
    """Load what ``save_classifier`` saved: the .keras file, or the folder that holds it. Raises
    ModelError where there is no whole model."""
    path = Path(path).expanduser()
    found = sorted(path.glob("[!.]*.keras")) if path.is_dir() else [path]
    if len(found) != 1 or not found[0].is_file():
        many = f"holds {len(found)} models: name one of them" if len(found) > 1 else "is no model"
        raise ModelError(f"{path} {many}")
    path, info = found[0], found[0].with_suffix(".json")
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


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval (Wilson's) for a share of which ``right`` of ``total`` were seen."""
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return float(low), float(high)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """McNemar's exact test: p if two models, right on the same n photos or not, are equally good.
    Photos that both get right, or both wrong, say nothing about that."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def print_test(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Print and return the ``accuracy`` on n photos, its ``interval``, and scikit-learn's report
    on the ``classes``."""
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
    side, names = min(4.5 + 0.45 * len(classes), 30), [shorten(label) for label in classes]
    figure, axes = plt.subplots(figsize=(side + 0.5, side), layout="constrained")
    look = {"cmap": "Blues", "colorbar": False, "xticks_rotation": 90, "display_labels": names}
    look |= {"labels": range(len(classes)), "include_values": len(classes) <= 30}
    ConfusionMatrixDisplay.from_predictions(truth, answers, ax=axes, **look)
    axes.set(xlabel="answer", ylabel="truth", title=f"{len(truth):,} photos")
    return figure


def draw_photos(
    sources: Sequence[Path | bytes], titles: Sequence[str], wrong: Sequence[bool] = ()
) -> plt.Figure:
    """Up to ``SHOWN`` photos with their titles, orange where wrong."""
    images = [load_image(source, shorter=240) for source in sources[:SHOWN]]
    columns = min(6, max(2, len(images)))
    figure = picture_grid(images, titles[:SHOWN], columns, wrong[:SHOWN])
    height = 2.1 * np.median([image.shape[0] / image.shape[1] for image in images]) + 0.5
    figure.set_size_inches(2.1 * columns, -(-len(images) // columns) * height)
    return figure


def shorten(text: str, most: int = 20) -> str:
    """A text of at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
