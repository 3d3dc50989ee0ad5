"""What is in the picture? InceptionV3 as it was trained
=====================================================

You learn: to use a trained network as it is, in Keras and in TensorFlow 1's way from a frozen
graph; what its input must look like; and what the probabilities do and do not say.

Run, with images or folders of images (without any, with three photos that Matplotlib and
scikit-learn carry)::

    python inception_v3/direct_apply/02_predict_images.py panda.jpg my_photos/
    python inception_v3/direct_apply/02_predict_images.py --graph-def classify_image_graph_def.pb

You should see: the five likeliest of ImageNet's 1,000 classes for each image, as a table, in
``predictions.csv`` and, for the first four images, in ``predictions.png``.

The first command needs Keras's weights (96 MB), which are found on this machine or downloaded, but
not with ``--quick``. The second needs Google's frozen graph of 2015 (``python
models/inception_v3.py graph``) and the list that ``01_id_to_description.py`` writes. Without
trained weights there is nothing to see, and the script says so.

Time: 15 s for three images on two CPU cores.
"""

import csv
import json
import sys
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from rich.progress import track

from data.images import encoded, find_images, label_fonts, load_image
from data.photos import example_photos
from models import inception_v3
from utils.figures import BLUE
from utils.run import SKIPPED, CourseParser, Run, positive_int, written_whole

SIZE = 299  # pixels, width and height of what the network sees
DRAWN = 4  # images in the figure
JPEG, PROBABILITIES = "DecodeJpeg/contents", "softmax"  # of Google's graph: in and out

parser = CourseParser(__doc__)
parser.add_argument("paths", nargs="*", metavar="IMAGE|FOLDER", help="with all subfolders")
inception_v3.add_weights_flag(parser)
parser.add_argument("--graph-def", type=Path, metavar="FILE", help="a frozen graph, not Keras's")
parser.add_argument("--top", type=positive_int, default=5, help="classes to name")
run = Run(parser, __file__)

# %%
# The same picture for the network as for us
# ------------------------------------------
# TensorFlow decodes JPEG and PNG, and gives the pixels as they lie in the file. Many photos of
# telephones lie on their side in it, with a note (EXIF) to turn them. A PNG may be transparent,
# and what is below the transparency is often black. Then there are CMYK from printing, 16 bits a
# channel, WebP, GIF. ``load_image`` gives the pixels as a person sees them, and ``encoded`` a JPEG
# or PNG file with these pixels. Both refuse an image of 30,000×30,000 pixels by its header.

paths = list(find_images(run.args.paths or example_photos()))

# %%
# Keras's way
# -----------
# ``keras.applications.InceptionV3`` is the network with its last layer: 1,000 numbers that softmax
# turns into probabilities. It takes a batch of 299×299 pixels, scaled from 0 … 255 to -1 … 1:
#
# .. math:: x = \text{pixel} / 127.5 - 1
#
# This scaling is not in the network. Without it you get answers all the same, bad ones. The photo
# is squeezed into the square, whatever its proportions. A trained network doesn't mind much.
#
# The names come in a list of their own, from 0 in the order of Keras's outputs.

if run.args.graph_def is None:
    weights = inception_v3.find_weights(run.args.weights, top=True, quick=run.args.quick)
    index = inception_v3.find_file(inception_v3.CLASS_INDEX, download=not run.args.quick)
    if weights.stand_in or index is None:
        print(
            "Skipped: an untrained network can't name photos, and Keras's weights or names are "
            "missing. `python models/inception_v3.py top index` fetches them (96 MB)."
        )
        sys.exit(SKIPPED)
    network = keras.applications.InceptionV3(weights=None)
    inception_v3.load_weights(network, weights)
    words = {
        int(i): name.replace("_", " ") for i, (_, name) in json.loads(index.read_text()).items()
    }
    source = weights.source
    run_network = tf.function(lambda images: network(images, training=False))

    def predict(path: Path, pixels: np.ndarray) -> np.ndarray:
        """The probabilities [1000] for an image file's pixels, uint8 [h, w, 3]."""
        image = inception_v3.scale(inception_v3.resize(pixels, SIZE))  # [299, 299, 3]
        return run_network(image[tf.newaxis])[0].numpy()


# %%
# TensorFlow 1's way
# ------------------
# A frozen graph brings everything: decoding, resizing and scaling are operations in it, before the
# convolutions. In go the bytes of one JPEG file, at ``DecodeJpeg/contents:0`` (the operation reads
# PNG, too), out come the probabilities, at ``softmax:0``. There is nothing to forget, but these
# names have to be known. ``read_frozen`` parses the file and calls ``import_graph_def``, which puts
# its nodes into a graph of ours; a ``Session`` runs what it is asked for.
#
# The graph was made for one image at a time: ``softmax:0`` has the shape [1, 1008]. And it shrinks
# photos by looking at four pixels for each new one, without averaging over those between. For this
# alone its answers differ a little from Keras's.

if run.args.graph_def is not None:
    file = run.args.graph_def.expanduser()
    graph = inception_v3.read_frozen(file, (JPEG, PROBABILITIES))
    session = tf.compat.v1.Session(graph=graph)
    descriptions = inception_v3.CACHE / "id_desc.json"
    words = {}
    if descriptions.is_file():
        listed = json.loads(descriptions.read_text(encoding="utf-8"))
        words = {int(node): entry["description"] for node, entry in listed.items()}
    else:
        print("The outputs have no names, only numbers: 01_id_to_description.py writes the list.")
    source = f"{file.name}, a frozen graph"

    def predict(path: Path, pixels: np.ndarray) -> np.ndarray:
        """The probabilities [1008] for an image file."""
        return session.run(f"{PROBABILITIES}:0", {f"{JPEG}:0": encoded(path)})[0]


# %%
# What a probability says
# -----------------------
# The 1,000 probabilities add up to 1, so something is always the likeliest, also in a photo of a
# thing that is none of the classes: there is no output for "something else". If there are two
# things in a photo, they share the 1 between them. And the training rewarded probabilities of 0.9
# for the right class rather than 1 (label smoothing), so a sure answer looks less sure than with
# other networks. Compare the first with the second: a large gap means more than a large first.
#
# A file that can't be read is named, and the others go on.

answers, failed = {}, {}
for path in track(paths, "Looking", disable=len(paths) < 20):
    try:
        pixels = load_image(path, shorter=SIZE)  # large JPEGs at a fraction
        answers[path] = predict(path, pixels)
    except (OSError, ValueError) as error:
        failed[path] = "no images in this folder" if path.is_dir() else str(error)
    except tf.errors.OpError as error:
        parser.error(f"--graph-def: {run.args.graph_def} can't be run on {path}: {error.message}")

rows = []
for path, probabilities in answers.items():
    best = np.argsort(-probabilities, kind="stable")[: run.args.top]
    rows += [(path, int(k), words.get(int(k), f"output {k}"), probabilities[k]) for k in best]
for path, output, name, probability in rows[: 20 * run.args.top]:
    print(f"{path.name[:30]:30}  {probability:6.4f}  {output:>4}  {name}")
for path, reason in failed.items():
    print(f"Can't read {path}: {reason}")
with (
    written_whole(run.path("predictions.csv")) as temporary,
    temporary.open("w", encoding="utf-8", newline="") as lines,
):
    table = csv.writer(lines)
    table.writerow(("file", "output", "class", "probability", "error"))
    table.writerows((path, k, name, f"{p:.6g}", "") for path, k, name, p in rows)
    table.writerows((path, "", "", "", reason) for path, reason in failed.items())

if drawn := list(answers)[:DRAWN]:
    label_fonts()
    figure, grid = plt.subplots(
        len(drawn), 2, figsize=(10, 2.6 * len(drawn)), layout="constrained", squeeze=False
    )
    for path, (photo, bars) in zip(drawn, grid, strict=True):
        photo.imshow(load_image(path, shorter=SIZE))
        photo.set_title(path.name[:40], fontsize=10)
        photo.axis("off")
        of_photo = [row for row in rows if row[0] == path]
        bars.barh(range(len(of_photo)), [row[3] for row in of_photo], color=BLUE)
        bars.set_yticks(range(len(of_photo)), [row[2].split(",")[0][:32] for row in of_photo])
        bars.invert_yaxis()
        bars.set(xlim=(0, 1), xlabel="probability")
    run.save_figure(figure, "predictions")

if run.args.graph_def is None:
    inception_v3.warn_unpublished(weights)
else:
    session.close()
data = {"source": ", ".join(run.args.paths) or "example photos", "stand_in": False}
run.finish({"images": len(answers), "failed": len(failed)}, data=data, weights=source)
if not answers:
    sys.exit(f"None of the {len(failed):,} files could be read.")
