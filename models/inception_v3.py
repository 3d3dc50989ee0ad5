"""InceptionV3: its files, found on this machine or fetched
=======================================================

C. Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, 2015 (arXiv
1512.00567), trained on ImageNet's 1,000 classes. Run it to see which of its files are here, and
to fetch the others beforehand::

    python models/inception_v3.py --list          only look
    python models/inception_v3.py notop           the weights that retraining starts from
    python models/inception_v3.py                 all of them, 273 MB

A file is looked for in ``inception_v3/`` in the folder named by the environment variable
COURSE_DATA, then in ``models/inception_v3/``, then it is downloaded. What was published with a
checksum is used only if the checksum is right. COURSE_OFFLINE=1 forbids every download.

Keras publishes its weights, 23,851,784 parameters with the last layer and 21,802,784 without,
and the names of the classes. Google published the network in 2015 as one frozen graph, in
``inception-2015-12-05.tgz`` with the two label files; of the archive no checksum is published,
so each file that is taken out of it is checked by its own.
"""

import argparse
import hashlib
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
from data.images import decode as decode
from utils.run import sha256

CACHE = Path(__file__).resolve().parent / "inception_v3"

# %%
# The files, and where to get them
# --------------------------------

KERAS_TOP = "inception_v3_weights_tf_dim_ordering_tf_kernels.h5"
KERAS_NOTOP = "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
KERAS_FOLDERS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/",
    "https://github.com/fchollet/deep-learning-models/releases/download/v0.5/",
)
CLASS_INDEX = "imagenet_class_index.json"
CLASS_INDEX_URLS = (
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json",
    "https://s3.amazonaws.com/deep-learning-models/image-models/imagenet_class_index.json",
)
GRAPH_DEF = "classify_image_graph_def.pb"
GRAPH_DEF_SHA256 = "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6"
GRAPH_DEF_URLS = (  # OpenAI's copy, for measuring the quality of generated images
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
    "classify_image_graph_def.pb",
)
LABEL_MAP = "imagenet_2012_challenge_label_map_proto.pbtxt"
SYNSETS = "imagenet_synset_to_human_label_map.txt"
ARCHIVE = "inception-2015-12-05.tgz"
ARCHIVE_URLS = (
    "http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz",
    "https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/"
    "inception-2015-12-05.tgz",
)


class Published(NamedTuple):
    """A file that somebody published.

    Attributes:
        what: what it is, in words.
        size: of the file, in words.
        digest: its SHA-256, or its MD5 where Keras publishes no more.
        urls: where it is to be had by itself.
        archived: whether it is in Google's archive.
        flag: the flag by which scripts take a file in its place.
    """

    what: str
    size: str
    digest: str
    urls: tuple[str, ...]
    archived: bool
    flag: str


FILES = {
    KERAS_TOP: Published(
        what="Keras's InceptionV3 weights, last layer included",
        size="96 MB",
        digest="00c9ea4e4762f716ac4d300d6d9c2935639cc5e4d139b5790d765dcbeea539d0",
        urls=tuple(folder + KERAS_TOP for folder in KERAS_FOLDERS),
        archived=False,
        flag="--weights",
    ),
    KERAS_NOTOP: Published(
        what="Keras's InceptionV3 weights without the last layer",
        size="88 MB",
        digest="bcbd6486424b2319ff4ef7d526e38f63",
        urls=tuple(folder + KERAS_NOTOP for folder in KERAS_FOLDERS),
        archived=False,
        flag="--weights",
    ),
    CLASS_INDEX: Published(
        what="the names of the 1,000 classes in Keras's order",
        size="35 kB",
        digest="c2c37ea517e94d9795004a39431a14cb",
        urls=CLASS_INDEX_URLS,
        archived=False,
        flag="--class-index",
    ),
    GRAPH_DEF: Published(
        what="InceptionV3 as Google froze it",
        size="96 MB",
        digest=GRAPH_DEF_SHA256,
        urls=GRAPH_DEF_URLS,
        archived=True,
        flag="--graph-def",
    ),
    LABEL_MAP: Published(
        what="the frozen graph's node of each class",
        size="65 kB",
        digest="ad887453d527d9bec13ac0a1f078304d6705436a7e7e98dd7b1f673efcb0a444",
        urls=(),
        archived=True,
        flag="--label-map",
    ),
    SYNSETS: Published(
        what="the names of ImageNet's 21,842 synsets",
        size="741 kB",
        digest="5b8db22d2e2b0ad28b55c9c502eb45e018bc0c907524b8782958cca4805689ea",
        urls=(),
        archived=True,
        flag="--synsets",
    ),
}
PARTS = {  # what main() fetches, by the name that a user gives
    "top": (KERAS_TOP,),
    "notop": (KERAS_NOTOP,),
    "index": (CLASS_INDEX,),
    "labels": (LABEL_MAP, SYNSETS),  # before the graph, which comes in the same archive
    "graph": (GRAPH_DEF,),
}


# %%
# Finding and fetching
# --------------------


def find_keras_weights(top: bool, download: bool = True) -> Path | None:
    """Keras's published ImageNet weights, with the last layer or without: ``find_file``."""
    return find_file(KERAS_TOP if top else KERAS_NOTOP, download)


def find_graph_def(path: Path | None = None, download: bool = True) -> Path | None:
    """The frozen graph's file: ``path`` if given, else as ``find_file`` finds it.

    Args:
        path: a file that the user named, used as it is.
        download: False to look on this machine only.

    Returns:
        The file, or None when it is nowhere, after saying on stderr how to supply it. A file of
        this name that isn't Google's is used, after saying so: it may be one that the user froze.

    Raises:
        SystemExit: ``path`` is not a file, or the archive can't be unpacked.
    """
    if path is not None:
        path = path.expanduser()
        if not path.is_file():
            raise SystemExit(f"--graph-def: there is no file {path}")
        return path
    return find_file(GRAPH_DEF, download, as_it_is=True)


def find_file(name: str, download: bool = True, as_it_is: bool = False) -> Path | None:
    """One of ``FILES``, from the first place that has it right.

    The places: ``inception_v3/`` in the folder named by the environment variable ``COURSE_DATA``;
    ``models/inception_v3/``; Google's archive, put into either of them as it is; a download, of
    the file itself if it is to be had, else of the archive.

    Args:
        name: its file name, such as ``KERAS_NOTOP``.
        download: False to look on this machine only.
        as_it_is: True to use a file of that name even if its checksum is wrong.

    Returns:
        The file, or None when it is nowhere, after saying on stderr how to supply it.

    Raises:
        SystemExit: the archive is there, but can't be unpacked or is another one.
    """
    published = FILES[name]
    path = _local(name, as_it_is)
    if path is not None:
        return unpack(path, name) if path.name == ARCHIVE else path
    reasons = [] if download else ["It is not downloaded with --quick."]
    if download and published.urls:
        try:
            return fetch(published.urls, CACHE / name, published.digest)
        except DownloadError as error:
            reasons.append(error.tried)
    if download and published.archived:
        try:
            return unpack(fetch(ARCHIVE_URLS, CACHE / ARCHIVE, archive_fault), name)
        except DownloadError as error:
            reasons.append(error.tried)
    print(_missing(name, reasons), file=sys.stderr)
    return None


def is_published(path: Path, name: str) -> bool:
    """Whether a file, whatever it is called, is the one that was published as ``name``."""
    return _fault(path, FILES[name].digest) is None


def _folders() -> list[Path]:
    """Where files are looked for."""
    named = os.environ.get("COURSE_DATA")
    return [*([Path(named).expanduser() / "inception_v3"] if named else []), CACHE]


def _local(name: str, as_it_is: bool = False) -> Path | None:
    """The file, or the archive that should hold it, if it is on this machine."""
    for path in (folder / name for folder in _folders()):
        if path.is_file():
            fault = _fault(path, FILES[name].digest)
            if fault is None:
                return path
            if as_it_is:
                print(f"{path} {fault}: it is used, but is not the published file", file=sys.stderr)
                return path
            print(f"{path} {fault}: damaged, or another file. It is not used.", file=sys.stderr)
    archives = (folder / ARCHIVE for folder in _folders() if FILES[name].archived)
    return next((path for path in archives if path.is_file()), None)


def _fault(path: Path, digest: str) -> str | None:
    try:
        return find_fault(path, digest)
    except OSError as error:
        return f"can't be read ({error.strerror})"


def _missing(name: str, reasons: list[str]) -> str:
    """What is missing, why it was not fetched, and how to supply it by hand."""
    published = FILES[name]
    lines = [f"{name}, {published.what}, is missing. Looked for:"]
    lines += [f"  - {folder / name}" for folder in _folders()]
    lines += [f"  {reason}" for reason in reasons]
    if published.urls:
        lines += [f"  By hand: download it ({published.size}) from"]
        lines += [f"      {url}" for url in published.urls]
        lines += [
            f"  and put it into the folder {CACHE}",
            f"  Its {kind_of(published.digest)} is {published.digest}",
        ]
    if published.archived:
        lines += [f"  {'Or' if published.urls else 'By hand:'} download {ARCHIVE} (89 MB) from"]
        lines += [f"      {url}" for url in ARCHIVE_URLS]
        lines += [f"  and put it, as it is, into the folder {CACHE}"]
        if not published.urls:
            lines += [f"  The SHA-256 of the file in it is {published.digest}"]
    return "\n".join([*lines, f"  Or name a file of yours by {published.flag}."])


# %%
# Google's archive
# ----------------

UNPACKING = (tarfile.TarError, EOFError, OSError, zlib.error)  # what a damaged archive raises


def archive_fault(path: Path) -> str | None:
    """What is wrong with Google's archive, as the end of a sentence; None if all that is ever
    taken from it has the right SHA-256."""
    wanted = {name: file.digest for name, file in FILES.items() if file.archived}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in wanted and member.isfile():
                    found = hashlib.file_digest(tar.extractfile(member), "sha256").hexdigest()
                    if found == wanted[name]:
                        del wanted[name]
    except UNPACKING as error:
        return f"can't be unpacked ({error})"
    return f"holds no right {', '.join(wanted)}" if wanted else None


def unpack(archive: Path, wanted: str) -> Path:
    """Unpack one file of Google's archive into ``models/inception_v3/``; its path.

    It is unpacked to a temporary folder, checked and renamed, so that a file cut short by Ctrl-C
    or a full disk never bears the final name. Only a plain file is taken, under its bare name,
    and ``filter="data"`` refuses what else could reach out of the folder.

    Raises:
        SystemExit: the archive is damaged, or doesn't hold ``wanted``, or can't be unpacked.
    """
    target = CACHE / wanted
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder, tarfile.open(archive) as tar:
            member = next((m for m in tar if Path(m.name).name == wanted and m.isfile()), None)
            if member is None:
                raise SystemExit(f"{archive} holds no {wanted}: it is another archive")
            member.name = wanted
            tar.extract(member, folder, filter="data")
            fault = find_fault(Path(folder) / wanted, FILES[wanted].digest)
            if fault is not None:
                raise SystemExit(
                    f"The {wanted} in {archive} {fault}: it is another archive, or altered.\n"
                    "  Delete it, and download it again."
                )
            (Path(folder) / wanted).replace(target)
    except UNPACKING as error:
        raise SystemExit(
            f"{archive} can't be unpacked ({error}).\n"
            "  If it is damaged, delete it and download it again."
        ) from error
    return target


def read_frozen(path: Path, needs: Sequence[str], flag: str = "--graph-def") -> Any:
    """The graph in a frozen GraphDef, a ``tf.Graph``, as TensorFlow 1 read it.

    Args:
        path: the file.
        needs: names of the operations that it must have.
        flag: the flag that named the file, for what is said of a wrong one.

    Raises:
        SystemExit: the file is no such graph; the message says why.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except DecodeError:
        raise SystemExit(f"{flag}: {path} is not a GraphDef: damaged, or another file") from None
    except OSError as error:
        raise SystemExit(f"{flag}: can't read {path}: {error.strerror}") from error
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
    """What a network starts from.

    Attributes:
        path: a file of weights; None for an untrained network.
        key: short, for names of caches: other weights, other key.
        published: whether the file is one that Keras publishes, by its checksum.
        source: in words, for ``result.json``.
        seed: of the untrained network's initial weights.
    """

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
        help="imagenet: Keras's, found on this machine or downloaded (with --quick not downloaded; "
        "when absent the network is untrained, and says so); none: an untrained network; or a file "
        "of weights",
    )


def find_weights(choice: str, top: bool, quick: bool = False, seed: int = 1) -> Weights:
    """The weights that ``--weights`` asks for.

    Args:
        choice: ``"imagenet"``, ``"none"`` or the path of a file, which is used as it is.
        top: with the classifier of ImageNet's 1,000 classes on top.
        quick: never download; do with an untrained network, announced, where nothing is found.
        seed: of an untrained network.

    Raises:
        SystemExit: the file is missing, or ImageNet's weights are nowhere to be had.
    """
    untrained = Weights(None, f"untrained-{seed}", False, "none: an untrained network", seed)
    if choice == "none":
        return untrained
    if choice != "imagenet":
        path = Path(choice).expanduser()
        if not path.is_file():
            raise SystemExit(f"--weights: there is no file {path}")
    else:
        path = find_keras_weights(top, download=not quick)
        if path is None and quick:
            print(
                "\n*** STAND-IN: an untrained InceptionV3 takes the place of ImageNet's. All of it "
                "runs, and no result below says anything about InceptionV3 ***\n",
                file=sys.stderr,
            )
            return untrained
        if path is None:
            raise SystemExit("--weights imagenet: see above, or give --weights FILE or none")
    published = is_published(path, KERAS_TOP if top else KERAS_NOTOP)
    source = f"{path.name}, {'as Keras publishes it' if published else 'not published by Keras'}"
    return Weights(path, f"keras-{sha256(path)[:12]}", published, source, seed)


def warn_unpublished(weights: Weights) -> None:
    """Say of results what they were measured with, unless with the published weights."""
    if weights.stand_in:
        print("*** Measured with an UNTRAINED network: no result above is InceptionV3's ***")
    elif not weights.published:
        print(
            f"Measured with {weights.path.name}, which is not the file that Keras publishes: "
            "no result above is InceptionV3's own."
        )


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

    Raises:
        SystemExit: the file doesn't hold weights of this network.
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
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # what was measured before is forgotten
    normalise = tf.function(lambda images: model(images, training=True), reduce_retracing=True)
    measured = []
    for images in batches:
        normalise(images)
        measured.append([value.numpy() for value in model.non_trainable_variables])
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
    for variable, values in zip(
        model.non_trainable_variables, zip(*measured, strict=True), strict=True
    ):
        variable.assign(sum(values) / len(values))


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SystemExit(
            f"--weights: {weights.path} doesn't hold this network's weights ({reason})"
        ) from None


def blocks(model: Any) -> dict[str, list[Any]]:
    """The layers of Keras's InceptionV3 by block, in order: ``stem``, ``mixed0`` to ``mixed10``,
    ``pool3`` (with what is on top of it, if anything).

    Keras sorts layers by their distance to the output, and every path goes through each mixed
    block's end. So all that comes between two of these ends belongs to one block.
    """
    found: dict[str, list[Any]] = {"stem": []}
    name, pools = "stem", 0
    for layer in model.layers:
        found[name].append(layer)
        pools += type(layer).__name__ == "MaxPooling2D"
        if name == "stem" and pools == 2:  # the stem ends with its second pooling
            name = "mixed0"
            found[name] = []
        elif layer.name == name:
            number = int(name.removeprefix("mixed")) + 1
            name = f"mixed{number}" if number <= 10 else "pool3"
            found[name] = []
    return found


# %%
# From the shell
# --------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"what to find or fetch: {', '.join(PARTS)} (default: all of them)",
    )
    parser.add_argument("--list", action="store_true", help="look on this machine only")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    names = [name for part in PARTS if part in (args.parts or PARTS) for name in PARTS[part]]
    found = {name: _local(name) if args.list else find_file(name) for name in names}
    for name, path in found.items():
        print(f"{name}, {FILES[name].what} ({FILES[name].size}):\n    {path or 'MISSING'}")
    sys.exit(1 if None in found.values() else 0)


if __name__ == "__main__":
    main()
