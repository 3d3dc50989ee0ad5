"""InceptionV3: its files, found on this machine or fetched
=======================================================

C. Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, 2015 (arXiv
1512.00567), trained on ImageNet's 1,000 classes. To fetch its files beforehand::

    python models/inception_v3.py --list          only look which are here
    python models/inception_v3.py notop           the weights that retraining starts from
    python models/inception_v3.py                 all of them, 273 MB

A file is looked for in ``inception_v3/`` in the folder named by the environment variable
COURSE_DATA, then in ``models/inception_v3/``, then it is downloaded, and used if its checksum is
right. COURSE_OFFLINE=1 forbids every download.

Keras publishes its weights, 23,851,784 parameters with the last layer and 21,802,784 without.
Google published the network in 2015 as one frozen graph, in an archive with two label files.
"""

import argparse
import os
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.download import DownloadError, fetch, find_fault, kind_of
from data.images import decode as decode  # used by the scripts from here, beside resize and scale
from utils.run import sha256

# Added to what an untrained network's batch normalisation gives. With 0 half of all values end at
# each relu, and after 94 layers features tell little of a picture.
LIFT = 3.0
CACHE = Path(__file__).resolve().parent / "inception_v3"

# %%
# The files, and where to get them
# --------------------------------

KERAS_TOP = "inception_v3_weights_tf_dim_ordering_tf_kernels.h5"
KERAS_NOTOP = "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
CLASS_INDEX = "imagenet_class_index.json"
GRAPH_DEF = "classify_image_graph_def.pb"
LABEL_MAP = "imagenet_2012_challenge_label_map_proto.pbtxt"
SYNSETS = "imagenet_synset_to_human_label_map.txt"
ARCHIVE = "inception-2015-12-05.tgz"

GOOGLE = "https://storage.googleapis.com/"
KERAS_FOLDERS = (
    f"{GOOGLE}tensorflow/keras-applications/inception_v3/",
    "https://github.com/fchollet/deep-learning-models/releases/download/v0.5/",
)
DIGESTS = {  # SHA-256, or MD5 where Keras publishes no more
    KERAS_TOP: "00c9ea4e4762f716ac4d300d6d9c2935639cc5e4d139b5790d765dcbeea539d0",
    KERAS_NOTOP: "bcbd6486424b2319ff4ef7d526e38f63",
    CLASS_INDEX: "c2c37ea517e94d9795004a39431a14cb",
    LABEL_MAP: "ad887453d527d9bec13ac0a1f078304d6705436a7e7e98dd7b1f673efcb0a444",
    SYNSETS: "5b8db22d2e2b0ad28b55c9c502eb45e018bc0c907524b8782958cca4805689ea",
    GRAPH_DEF: "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6",
}
URLS = {
    KERAS_TOP: [folder + KERAS_TOP for folder in KERAS_FOLDERS],
    KERAS_NOTOP: [folder + KERAS_NOTOP for folder in KERAS_FOLDERS],
    CLASS_INDEX: [
        f"{GOOGLE}download.tensorflow.org/data/{CLASS_INDEX}",
        f"https://s3.amazonaws.com/deep-learning-models/image-models/{CLASS_INDEX}",
    ],
    ARCHIVE: [
        f"http://download.tensorflow.org/models/image/imagenet/{ARCHIVE}",
        f"{GOOGLE}download.tensorflow.org/models/image/imagenet/{ARCHIVE}",
    ],
}
SIZES = {KERAS_TOP: "96 MB", KERAS_NOTOP: "88 MB", CLASS_INDEX: "35 kB", ARCHIVE: "89 MB"}
ARCHIVED = (LABEL_MAP, SYNSETS, GRAPH_DEF)  # each is checked, as the archive has no known checksum
PARTS = {  # what main() fetches, by the name that a user gives
    "top": (KERAS_TOP,),
    "notop": (KERAS_NOTOP,),
    "index": (CLASS_INDEX,),
    "labels": (LABEL_MAP, SYNSETS),
    "graph": (GRAPH_DEF,),
}


# %%
# Finding and fetching
# --------------------


def find_file(name: str, download: bool = True) -> Path | None:
    """A published file, from the first place that has it right: this machine, a download. None,
    after saying on stderr how to supply it, when it is nowhere."""
    if (path := on_this_machine(name)) is not None:
        return path
    reason = "It is not downloaded with --quick."
    if download:
        try:
            source = ARCHIVE if name in ARCHIVED else name
            fetch(URLS[source], CACHE / source, DIGESTS.get(source, unpack))
            return CACHE / name
        except DownloadError as error:
            reason = error.tried
    print(_missing(name, reason), file=sys.stderr)
    return None


def on_this_machine(name: str) -> Path | None:
    """The file, whole, if it is here or in Google's archive; what is damaged is named."""
    for path in (folder / name for folder in _folders()):
        if path.is_file():
            if (fault := find_fault(path, DIGESTS[name])) is None:
                return path
            print(f"{path} {fault}: damaged, or another file. It is not used.", file=sys.stderr)
    for archive in (folder / ARCHIVE for folder in _folders() if name in ARCHIVED):
        if archive.is_file():
            if (fault := unpack(archive)) is None:
                return CACHE / name
            print(f"{archive} {fault}. It is not used.", file=sys.stderr)
    return None


def is_published(path: Path, name: str) -> bool:
    """Whether a file, whatever it is called, is the one that was published as ``name``."""
    return find_fault(path, DIGESTS[name]) is None


def _folders() -> list[Path]:
    """Where files are looked for."""
    named = os.environ.get("COURSE_DATA")
    return [*([Path(named).expanduser() / "inception_v3"] if named else []), CACHE]


def _missing(name: str, reason: str) -> str:
    """What is missing, why it was not fetched, and how to supply it by hand."""
    source = ARCHIVE if name in ARCHIVED else name
    lines = [f"{name} is missing. Looked for:", *(f"  - {f / name}" for f in _folders())]
    lines += [f"  {reason}", f"  By hand: download {source} ({SIZES[source]}) from"]
    lines += [*(f"      {url}" for url in URLS[source]), f"  and put it into the folder {CACHE}"]
    return "\n".join([*lines, f"  The {kind_of(DIGESTS[name])} of {name} is {DIGESTS[name]}"])


def unpack(archive: Path) -> str | None:
    """Take the three files that are wanted out of Google's archive into ``models/inception_v3/``.
    What is wrong with it, as the end of a sentence; None if each has the right checksum.

    Each is checked before it gets its name. Only plain files are taken, under their bare names.
    """
    wanted = [*ARCHIVED]
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder, tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in wanted and member.isfile():
                    member.name = name
                    tar.extract(member, folder, filter="data")
                    if is_published(Path(folder) / name, name):
                        (Path(folder) / name).replace(CACHE / name)
                        wanted.remove(name)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        return f"can't be unpacked ({error})"
    return f"holds no right {', '.join(wanted)}" if wanted else None


def read_frozen(path: Path, needs: Sequence[str], flag: str = "--graph-def") -> Any:
    """The graph in a frozen GraphDef, a ``tf.Graph``, as TensorFlow 1 read it. It must have the
    operations ``needs``. Raises SystemExit if it is no such graph: ``flag`` named the file."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise SystemExit(f"{flag}: can't read a GraphDef from {path}: {error}") from None
    types = {node.name: node.op for node in graph_def.node}
    if lacking := [name for name in needs if name not in types]:
        raise SystemExit(f"{flag}: the graph in {path} has no {', '.join(lacking)}")
    if {"Variable", "VariableV2", "VarHandleOp"} & set(types.values()):
        raise SystemExit(f"{flag}: {path} is not frozen: it has variables, without their values")
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.compat.v1.import_graph_def(graph_def, name="")
    except (ValueError, tf.errors.OpError) as error:
        raise SystemExit(f"{flag}: TensorFlow can't import {path}: {error}") from error
    return graph


# %%
# The network, as all scripts of the chapter use it
# -------------------------------------------------


class Weights(NamedTuple):
    """What a network starts from: a file, None for random weights of a seed; a short key for names
    of caches; whether Keras published the file; what it is in words, for ``result.json``."""

    path: Path | None
    key: str
    published: bool
    source: str
    seed: int = 1

    @property
    def stand_in(self) -> bool:
        """True for an untrained network."""
        return self.path is None


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``, the flag of every script that has Keras's InceptionV3 in it."""
    parser.add_argument(
        "--weights",
        default="imagenet",
        metavar="imagenet|none|FILE",
        help="imagenet: Keras's, downloaded (not with --quick); none: untrained; or a file of them",
    )


def find_weights(choice: str, top: bool, quick: bool = False, seed: int = 1) -> Weights:
    """The weights that ``--weights`` asks for; none, announced, if ImageNet's can't be had.

    ``choice`` is ``"imagenet"``, ``"none"`` or a file, which is used as it is (SystemExit if it is
    missing); ``top``: with the last layer, for ImageNet's 1,000 classes; ``quick``: no download.
    """
    name = KERAS_TOP if top else KERAS_NOTOP
    path = None
    if choice not in ("imagenet", "none"):
        path = Path(choice).expanduser()
        if not path.is_file():
            raise SystemExit(f"--weights: there is no file {path}")
    elif choice == "imagenet" and (path := find_file(name, download=not quick)) is None:
        print("\n*** STAND-IN: an untrained network takes InceptionV3's place ***\n")
    if path is None:
        return Weights(None, f"untrained-{seed}", False, "none: an untrained network", seed)
    published = is_published(path, name)
    source = f"{path.name}, {'as Keras publishes it' if published else 'not published by Keras'}"
    return Weights(path, f"keras-{sha256(path)[:12]}", published, source, seed)


def warn_unpublished(weights: Weights) -> None:
    """Say of results what they were measured with, unless with the published weights."""
    if weights.stand_in:
        print("*** Measured with an UNTRAINED network: no result above is InceptionV3's ***")
    elif not weights.published:
        fault = "not the file that Keras publishes: no result above is InceptionV3's own."
        print(f"Measured with {weights.path.name}, {fault}")


def resize(images: Any, size: int) -> Any:
    """Images [..., h, w, 3] to float32 [..., size, size, 3] of the same range, bilinear. Shrinking
    averages over all pixels (antialias), as ``keras.layers.Resizing(size, size, antialias=True)``
    does; Google's network of 2015 took four pixels and left out those between them."""
    import tensorflow as tf

    return tf.image.resize(images, [size, size], "bilinear", antialias=True)


def scale(images: Any) -> Any:
    """Pixels from [0, 255] to [-1, 1], what InceptionV3 was trained on; float32."""
    import tensorflow as tf

    return tf.cast(images, tf.float32) / 127.5 - 1.0


def backbone(weights: Weights, size: int = 299, calibrate: Iterable[Any] | None = None) -> Any:
    """InceptionV3 up to pool3: float32 [b, size, size, 3] in [-1, 1] to features [b, 2048].

    An untrained one has the same random filters each time (``weights.seed``, which becomes Keras's
    seed). Its batch normalisation takes the mean and variance of ``calibrate``, batches of images
    as the network gets them, each a mixture of classes. Without it the signal fades from layer to
    layer, and the features of all pictures are nearly the same. Trained weights need none.
    """
    import keras
    import tensorflow as tf

    if weights.path is None:
        keras.utils.set_random_seed(weights.seed)
    build = keras.applications.InceptionV3
    with tf.init_scope():  # within a tf.function that is traced, loading would do nothing, silently
        model = build(include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3))
        load_weights(model, weights)
    if weights.path is None and calibrate is not None:
        _calibrate(model, calibrate)
    return model


def _calibrate(model: Any, batches: Iterable[Any]) -> None:
    """Set the batch normalisation's means and variances to what they are in ``batches``, on
    average. In training a layer normalises by its own batch, so one pass does for all layers."""
    import keras
    import tensorflow as tf

    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.beta.assign(tf.fill(norm.beta.shape, LIFT))
        norm.momentum = 0.0  # what was measured before is forgotten
    statistics = model.non_trainable_variables
    normalise = tf.function(lambda images: model(images, training=True), reduce_retracing=True)
    measured = []
    for images in batches:
        normalise(images)
        measured.append([value.numpy() for value in statistics])
    for variable, *values in zip(statistics, *measured, strict=True):
        variable.assign(sum(values) / len(values))
    for norm in norms:
        norm.momentum = 0.99  # as Keras has it


def load_weights(model: Any, weights: Weights) -> None:
    """Load ``weights`` into Keras's InceptionV3, with or without top as the file has it; nothing
    for an untrained one. Raises SystemExit if the file doesn't fit."""
    if weights.path is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras's, of each layer, before it refuses the file
            model.load_weights(weights.path)
    except Exception as error:  # h5py and Keras raise many kinds
        what = f"--weights: {weights.path} doesn't hold this network's weights"
        raise SystemExit(f"{what}: {str(error).strip().partition('. ')[0]}") from None


def blocks(model: Any) -> dict[str, list[Any]]:
    """The layers of Keras's InceptionV3 by block, in order: ``stem``, ``mixed0`` to ``mixed10``,
    ``pool3`` (with what is on top of it, if anything).

    Keras sorts layers by their distance to the output, and every path goes through each block's
    end. So all that comes between two ends belongs to one block.
    """
    names = ["stem", *(f"mixed{number}" for number in range(11)), "pool3"]
    found: dict[str, list[Any]] = {name: [] for name in names}
    block, pools = 0, 0
    for layer in model.layers:
        found[names[block]].append(layer)
        pools += type(layer).__name__ == "MaxPooling2D"
        block += layer.name == names[block] or (block == 0 and pools == 2)  # the stem's last layer
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{known} (default: all of them)")
    parser.add_argument("--list", action="store_true", help="look on this machine only")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: choose from {known}")
    names = [name for part in args.parts or PARTS for name in PARTS[part]]
    found = {name: on_this_machine(name) if args.list else find_file(name) for name in names}
    for name, path in found.items():
        print(f"{name}: {path or 'MISSING'}")
    sys.exit(1 if None in found.values() else 0)


if __name__ == "__main__":
    main()
