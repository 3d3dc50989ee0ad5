"""What a test shows: figures, and the features in TensorBoard's projector."""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import ConfusionMatrixDisplay
from tensorboard.plugins import projector

from data.photos import Photo, read
from utils.run import written_whole

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


class Tested(NamedTuple):
    """The test: its photos, the true classes int [n], and probabilities float32 [n, classes]."""

    photos: list[Photo]
    labels: np.ndarray
    scores: np.ndarray

    @property
    def answers(self) -> np.ndarray:
        """The classes said, int [n]."""
        return self.scores.argmax(axis=1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        right = int((self.answers == self.labels).sum())
        found = binomtest(right, len(self.labels)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


def wrong_answers(tested: Tested) -> list[int]:
    """The places of the misclassified test photos, the surest mistake first."""
    wrong = np.flatnonzero(tested.answers != tested.labels)
    return sorted(wrong.tolist(), key=lambda place: -tested.scores[place].max())


def shorten(text: str, most: int = 24) -> str:
    """A text of at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def show_curves(history: Sequence[Mapping[str, float]], best_step: int) -> plt.Figure:
    """Loss and accuracy while training; what was kept is marked."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = [row["step"] for row in history]
    for place, name in zip(axes, ("cross_entropy", "accuracy"), strict=True):
        for part, colour, width in (("train", ORANGE, 0.7), ("validation", BLUE, 1.8)):
            values = [row[f"{part}_{name}"] for row in history]
            label = "training batches" if part == "train" else "validation, all photos"
            place.plot(steps, values, color=colour, linewidth=width, label=label)
        place.axvline(best_step, color="grey", linestyle=":", label=f"kept: step {best_step:,}")
        place.set(xlabel="step", title=name.replace("_", "-").capitalize())
        place.xaxis.set_major_formatter("{x:,.0f}")
        place.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    axes[1].yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes[0].legend(loc="upper right")
    return figure


def show_confusion(tested: Tested, classes: Sequence[str]) -> plt.Figure:
    """The confusion matrix of the test, readable for 2 to some 100 classes."""
    side = min(4.5 + 0.45 * len(classes), 30)
    figure, axes = plt.subplots(figsize=(side + 0.4, side), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        tested.labels,
        tested.answers,
        labels=range(len(classes)),
        display_labels=[shorten(label) for label in classes],
        cmap="Blues",
        ax=axes,
        include_values=len(classes) <= 30,
        xticks_rotation=45 if max(map(len, classes)) > 5 or len(classes) > 8 else "horizontal",
        colorbar=len(classes) > 30,
    )
    plt.setp(
        axes.get_xticklabels(), ha="right" if axes.get_xticklabels()[0].get_rotation() else "center"
    )
    axes.set(xlabel="answer", ylabel="truth", title=f"{len(tested.labels):,} test photos")
    return figure


def show_mistakes(tested: Tested, classes: Sequence[str], columns: int = 6) -> plt.Figure:
    """Up to 24 misclassified photos: truth, answer and its score; the surest mistakes first."""
    wrong = wrong_answers(tested)
    shown = wrong[: 4 * columns]
    columns = min(columns, max(2, len(shown)))
    rows = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.4 * columns, 2.3 * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, place in zip(grid.flat, shown, strict=False):
        axes.imshow(thumbnail(tested.photos[place], 240, square=False))
        answer, score = tested.answers[place], tested.scores[place].max()
        truth = shorten(classes[tested.labels[place]])
        title = f"{truth}\ntaken for {shorten(classes[answer])} ({score:.0%})"
        axes.set_title(title, color=ORANGE, fontsize=9)
    some = "" if len(shown) == len(wrong) else f"; the {len(shown)} surest mistakes"
    figure.suptitle(f"{len(wrong)} of {len(tested.labels):,} test photos misclassified{some}")
    return figure


# %%
# The features in TensorBoard's projector
# ---------------------------------------
# The Projector tab shows the 2,048 dimensions in three, by PCA, t-SNE or UMAP, each photo as its
# thumbnail. Colour by ``class``: clouds that lie apart are easy, the photos where clouds meet are
# those to be misclassified, and a photo in another class's cloud may be labelled wrongly.
#
# It wants a checkpoint with the features, a table of what each one is, and one image of all the
# thumbnails in rows, of at most 8,192 pixels a side.

MOST_POINTS, SPRITE = 5000, 8192
EMBEDDING = "embedding/.ATTRIBUTES/VARIABLE_VALUE"  # what a checkpoint calls it


def thumbnail(photo: Photo, side: int, square: bool = True) -> Image.Image:
    """A small picture of the photo, ``side`` pixels or less; if ``square``, squeezed into one."""
    with Image.open(BytesIO(read(photo))) as image:
        image.draft("RGB", (side, side))  # a JPEG is decoded at a fraction of its size
        image = image.convert("RGB")
    if square:
        return image.resize((side, side), Image.Resampling.BOX)
    image.thumbnail((side, side))
    return image


def write_projector(
    folder: Path, photos: Sequence[Photo], sets: Sequence[str], features: np.ndarray
) -> None:
    """Write what the Projector tab needs, of up to 5,000 photos, evenly drawn."""
    chosen = np.linspace(0, len(photos) - 1, min(len(photos), MOST_POINTS)).round().astype(int)
    columns = int(np.ceil(np.sqrt(len(chosen))))
    side = min(64, SPRITE // columns)
    sprite = Image.new("RGB", (columns * side, -(-len(chosen) // columns) * side), "white")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        pictures = threads.map(lambda place: thumbnail(photos[place], side), chosen)
        for number, picture in enumerate(pictures):
            sprite.paste(picture, (number % columns * side, number // columns * side))
    with written_whole(folder / "thumbnails.png") as temporary:
        sprite.save(temporary, compress_level=1)
    lines = ["class\tset\tphoto"]
    for place in chosen:
        words = (photos[place].label, sets[place], photos[place].path.name)
        lines.append("\t".join(re.sub(r"\s", " ", word) for word in words))
    with written_whole(folder / "metadata.tsv") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    checkpoint = tf.train.Checkpoint(embedding=tf.Variable(features[chosen]))
    manager = tf.train.CheckpointManager(checkpoint, folder, 1, checkpoint_name="embedding")
    try:
        manager.save()
    except tf.errors.OpError as error:
        raise OSError(f"can't write {folder}: {error.message}") from error
    # Without a path in it the tab takes the latest checkpoint of the run, wherever the run lies; a
    # path would be looked for in the folder that TensorBoard was started in.
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(tensor_name=EMBEDDING, metadata_path="metadata.tsv")
    embedding.sprite.image_path = "thumbnails.png"
    embedding.sprite.single_image_dim.extend([side, side])
    with written_whole(folder / "projector_config.pbtxt") as temporary:
        temporary.write_text(text_format.MessageToString(config), encoding="utf-8", newline="\n")
    with tf.summary.create_file_writer(str(folder)).as_default() as writer:  # or it isn't listed
        tf.summary.text("projector", "The photos' pool3 features: see the Projector tab.", 0)
        writer.close()
