"""Chapter tensorboard_demos: each script end to end, and what it left for TensorBoard."""

import hashlib
import io
import math
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import Finished, load_script, run_quick

import models.inception_v3
from models.inception_v3 import (
    ARCHIVE,
    ARCHIVE_URLS,
    FILES,
    GRAPH_DEF,
    GRAPH_DEF_SHA256,
    GRAPH_DEF_URLS,
    find_graph_def,
)


def graph_of(run: Finished, name: str) -> tf.compat.v1.GraphDef:
    return run.events(name)._reader.Graph()


# ---- 01_tensorboard_first_try --------------------------------------------------------------

FIRST_TRY = "tensorboard_demos/01_tensorboard_first_try.py"


@pytest.fixture(scope="module")
def first_try(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(FIRST_TRY, tmp_path_factory.mktemp("runs") / "first_try")


@pytest.mark.parametrize("name", ["tf1_graph", "tf2_graph"])
def test_first_try_losses_follow_the_closed_form_of_descent(first_try, name):
    x = np.random.default_rng(1).normal(size=(100, 3))
    design = np.concatenate([x, np.ones((100, 1))], axis=1)  # a column for the bias
    best = np.array([[1, -2], [0.5, 0], [-1, 1.5], [0.5, -0.25]])
    shrink = np.eye(4) - 0.3 * 2 / 200 * design.T @ design  # 200 outputs are averaged
    losses = [
        np.mean((design @ np.linalg.matrix_power(shrink, step) @ best) ** 2) for step in range(10)
    ]
    events = first_try.events(name)
    if name == "tf1_graph":  # TensorFlow 1 writes scalars as plain numbers, not as tensors
        written = {event.step: event.value for event in events._reader.Scalars("mse")}
    else:
        written = events.values("mse")
    assert list(written) == list(range(10))
    np.testing.assert_allclose(list(written.values()), losses, rtol=1e-3)


def test_first_try_graphs_hold_what_the_notes_point_at(first_try):
    types = {node.name: node.op for node in graph_of(first_try, "tf1_graph").node}
    assert types["input/x"] == "Placeholder"
    assert (types["linear/W"], types["linear/W/read"]) == ("VariableV2", "Identity")
    assert (types["linear/W/Assign"], types["init"]) == ("Assign", "NoOp")
    assert len(types) == first_try.metrics["tf1_operations"]
    nodes = {node.name: node for node in graph_of(first_try, "tf2_graph").node}
    assert nodes["x"].op == "Placeholder"
    assert nodes["linear/MatMul/ReadVariableOp"].op == "ReadVariableOp"
    assert not any(node.op in ("Assign", "AssignVariableOp") for node in nodes.values())
    assert len(nodes) == first_try.metrics["tf2_operations"]
    for shared in ("linear/MatMul", "linear/y", "loss/mse"):
        assert types[shared] == nodes[shared].op
    shape = nodes["linear/MatMul"].attr["_output_shapes"].list.shape[0]
    assert [dim.size for dim in shape.dim] == [-1, 2], "edges are labelled with shapes"


def test_first_try_prints_names_roles_and_shapes(first_try):
    assert "names given by name scopes: a, a_1, part/a, part/inner/a, part_1/a, part/c" in (
        first_try.output
    )
    assert re.search(r"linear/W/read +│ Identity +│ read +│ linear/W:0 +│ 3×2", first_try.output)
    assert re.search(r"│ x +│ Placeholder +│ input +│ +│ \?×3", first_try.output)


# ---- 02_variable_analysis ------------------------------------------------------------------

VARIABLES = "tensorboard_demos/02_variable_analysis.py"
PROGRESS = np.arange(10) / 9  # of the steps of a quick run


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quick(VARIABLES, tmp_path_factory.mktemp("runs") / "variables")


def integral(function, density, low: float, high: float) -> float:
    """The mean of ``function`` under ``density``, by the midpoint rule."""
    x = low + (np.arange(200_000) + 0.5) / 200_000 * (high - low)
    return float(np.mean(function(x) * density(x)) * (high - low))


def normal(x: np.ndarray) -> np.ndarray:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def rectified(p: float) -> tuple[float, float]:
    """Mean and standard deviation of max(0, z - a), integrated numerically."""
    a = 2.5 * p - 0.5
    mean = integral(lambda z: np.maximum(z - a, 0), normal, -8, 8)
    square = integral(lambda z: np.maximum(z - a, 0) ** 2, normal, -8, 8)
    return mean, math.sqrt(square - mean**2)


def squashed(p: float) -> float:
    """The standard deviation of tanh(g u), u even between -1 and 1, integrated numerically."""
    gain = 0.5 * 40**p
    return math.sqrt(integral(lambda u: np.tanh(gain * u) ** 2, lambda u: 0.5 + 0 * u, -1, 1))


EXPECTED = {  # progress to mean and standard deviation
    "1_steady": lambda p: (0, 0.1 + 0.02 * math.sqrt(p)),
    "2_drifting": lambda p: (4 * p, 1),
    "3_widening": lambda p: (0, 0.5 + 2 * p),
    "4_narrowing": lambda p: (0, math.exp(-3 * p)),
    "5_dead_units": lambda p: (0, math.sqrt((20 - round(20 * p)) / 20)),
    "6_stuck_at_zero": rectified,
    "7_saturating": lambda p: (0, squashed(p)),
    "8_splitting": lambda p: (0, math.hypot(1, 2 * p)),
    "9_exploding": lambda p: (0, 10 ** (4 * p)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_variables_are_written_with_the_statistics_of_their_formulas(variables, name):
    events = variables.events("variables")
    means, deviations = np.array([EXPECTED[name](p) for p in PROGRESS]).T
    written = {key: np.array(list(events.values(f"{name}/{key}").values()), float)
               for key in ("mean", "stddev", "max", "min")}  # fmt: skip
    scale = max(1, *deviations)
    np.testing.assert_allclose(written["mean"], means, atol=2e-3 * scale)
    np.testing.assert_allclose(written["stddev"], deviations, rtol=2e-3, atol=2e-3)
    for rows, low, high in zip(
        events.values(f"{name}/histogram").values(), written["min"], written["max"], strict=True
    ):
        assert rows[:, 2].sum() == 1000
        if low < high:  # TensorFlow draws the bins from the minimum to the maximum
            assert rows[0, 0] == pytest.approx(low, rel=1e-5)
            assert rows[-1, 1] == pytest.approx(high, rel=1e-5)


def test_variables_extremes_tell_what_the_notes_say(variables):
    events = variables.events("variables")
    peaks = list(events.values("5_dead_units/max").values())
    assert len(set(map(float, peaks[:-1]))) == 1, "the maximum sees no unit die"
    assert peaks[-1] == 0, "until the last"
    assert all(value == 0 for value in events.values("6_stuck_at_zero/min").values())
    assert list(events.values("7_saturating/max").values())[-1] == pytest.approx(1, abs=1e-6)
    first, last = (events.values("8_splitting/histogram")[step][:, 2] for step in (0, 9))
    assert first[14:16].min() > 0.9 * first.max(), "the middle two of 30 bins are the top"
    assert last[14:16].max() < 0.5 * last.max(), "and a valley when the hill has parted"
    assert variables.metrics["tensors"] == 9
    assert variables.metrics["largest_error"] < 2e-3


def test_variables_key_figures_are_there(variables):
    assert variables.result["figures"] == ["distributions.png", "histograms.png"]


# ---- 03_inception_v3_graph -----------------------------------------------------------------

INCEPTION = "tensorboard_demos/03_inception_v3_graph.py"
MIXED_SHAPES = ["35×35×256"] + ["35×35×288"] * 2 + ["17×17×768"] * 5 + [
    "8×8×1280", "8×8×2048", "8×8×2048",
]  # fmt: skip


def write_frozen(path: Path, **changes: str) -> Path:
    """A small frozen graph with the interface, the names and the age (graph version 8, with the
    batch normalisation of its day) of Google's; ``changes`` replaces types of operations."""
    graph = tf.compat.v1.GraphDef()
    graph.versions.producer = 8
    rng = np.random.default_rng(0)

    def node(name: str, op: str, *inputs: str, **attributes: object) -> str:
        new = graph.node.add(name=name, op=changes.get(name, op), input=inputs)
        for key, value in attributes.items():
            attribute = new.attr[key]
            if isinstance(value, tf.DType):
                attribute.type = value.as_datatype_enum
            elif isinstance(value, list):
                attribute.list.i.extend(value)
            elif isinstance(value, bytes):
                attribute.s = value
            elif isinstance(value, bool):
                attribute.b = value
            elif isinstance(value, int):
                attribute.i = value
            elif isinstance(value, float):
                attribute.f = value
            else:
                attribute.tensor.CopyFrom(value)
        return name

    def constant(name: str, value: object, dtype: tf.DType = tf.float32) -> str:
        return node(name, "Const", dtype=dtype, value=tf.make_tensor_proto(value, dtype))

    def convolution(scope: str, source: str, size: int, channels: tuple[int, int], stride: int):
        kernel = rng.normal(size=(size, size, *channels)) / (size * math.sqrt(channels[0]))
        out = np.ones(channels[1])
        filtered = node(
            f"{scope}/Conv2D", "Conv2D", source, constant(f"{scope}/conv2d_params", kernel),
            T=tf.float32, strides=[1, stride, stride, 1], padding=b"VALID",
        )  # fmt: skip
        statistics = [
            constant(f"{scope}/batchnorm/{name}", value)
            for name, value in {
                "moving_mean": 0 * out, "moving_variance": out, "beta": 0 * out, "gamma": out
            }.items()
        ]  # fmt: skip
        normal = node(
            f"{scope}/batchnorm", "BatchNormWithGlobalNormalization", filtered, *statistics,
            T=tf.float32, variance_epsilon=0.001, scale_after_normalization=False,
        )  # fmt: skip
        return node(scope, "Relu", normal, T=tf.float32)

    def pool(name: str, op: str, source: str, size: int, stride: int) -> str:
        return node(
            name, op, source, T=tf.float32,
            ksize=[1, size, size, 1], strides=[1, stride, stride, 1], padding=b"VALID",
        )  # fmt: skip

    jpeg = constant("DecodeJpeg/contents", b"", tf.string)
    pixels = node("DecodeJpeg", "DecodeJpeg", jpeg, channels=3)
    floats = node("Cast", "Cast", pixels, SrcT=tf.uint8, DstT=tf.float32)
    batch = node("ExpandDims", "ExpandDims", floats, constant("ExpandDims/dim", 0, tf.int32),
                 T=tf.float32)  # fmt: skip
    size = constant("ResizeBilinear/size", [39, 39], tf.int32)
    x = node("ResizeBilinear", "ResizeBilinear", batch, size, T=tf.float32)
    x = convolution("conv", x, 3, (3, 4), 2)  # 19×19×4
    x = convolution("conv_1", x, 3, (4, 16), 1)  # 17×17×16, its kernel is a large constant
    x = pool("pool", "MaxPool", x, 3, 2)  # 8×8×16
    channels = 16
    for i in range(11):
        scope = f"mixed_{i}" if i else "mixed"
        left = convolution(f"{scope}/conv", x, 1, (channels, 4), 1)
        right = convolution(f"{scope}/tower/conv", x, 1, (channels, 2), 1)
        axis = constant(f"{scope}/join/concat_dim", 3, tf.int32)
        x = node(f"{scope}/join", "Concat", axis, left, right, T=tf.float32, N=2)
        channels = 6
    x = pool("pool_3", "AvgPool", x, 8, 1)
    x = node("pool_3/_reshape", "Reshape", x,
             constant("pool_3/_reshape/shape", [1, 6], tf.int32), T=tf.float32)  # fmt: skip
    weights = constant("softmax/weights", rng.normal(size=(6, 10)))
    x = node("softmax/logits/MatMul", "MatMul", x, weights, T=tf.float32)
    node("softmax", "Softmax", x, T=tf.float32)
    path.write_bytes(graph.SerializeToString())
    return path


@pytest.fixture(scope="module")
def keras_graph(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    if find_graph_def(download=False) is not None:
        pytest.skip("the frozen graph is at hand, so no stand-in is used")
    return run_quick(INCEPTION, tmp_path_factory.mktemp("runs") / "keras")


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Found through COURSE_DATA, as a user's own file would be."""
    data = tmp_path_factory.mktemp("data")
    (data / "inception_v3").mkdir()
    write_frozen(data / "inception_v3" / GRAPH_DEF)
    before = os.environ.get("COURSE_DATA")
    os.environ["COURSE_DATA"] = str(data)
    try:
        return run_quick(INCEPTION, tmp_path_factory.mktemp("runs") / "frozen")
    finally:
        os.environ.pop("COURSE_DATA")
        if before is not None:
            os.environ["COURSE_DATA"] = before


def test_keras_stand_in_is_announced_and_labelled(keras_graph):
    assert keras_graph.result["data"]["stand_in"] is True
    assert "STAND-IN" in keras_graph.output


def test_keras_blocks_have_the_shapes_of_the_paper(keras_graph):
    shapes = keras_graph.result["block_shapes"]
    stem = ["149×149×32", "147×147×32", "147×147×64", "73×73×64", "73×73×80", "71×71×192"]
    expected = [f"1×{shape}" for shape in [*stem, "35×35×192", *MIXED_SHAPES]]
    assert list(shapes.values()) == [*expected, "1×2048", "1×1000"]
    assert list(shapes)[7:] == [*(f"mixed{i}" for i in range(11)), "pool3", "softmax"]
    assert keras_graph.result["parameters"] == 23_851_784
    assert keras_graph.metrics["bottleneck"] == 2048
    assert keras_graph.metrics["convolutions"] == 94
    counted = [
        int(found[1]) for found in re.finditer(r"× *\d+ │ +[\d,]+ │ +(\d+) │", keras_graph.output)
    ]
    branches = [7, 7, 7, 4, 10, 10, 10, 10, 6, 9, 9]  # convolutions of each mixed block
    assert counted == [1, 1, 1, 0, 1, 1, 0, *branches, 0, 0]
    assert "131,072 values after mixed10 → 2,048 after pool3" in keras_graph.output


def test_keras_graph_is_the_same_under_both_sets_of_names(keras_graph):
    plain, by_block = (graph_of(keras_graph, name) for name in ("graph", "graph_by_block"))
    assert len(plain.node) == len(by_block.node) == keras_graph.metrics["operations"]
    place = [{node.name: i for i, node in enumerate(g.node)} for g in (plain, by_block)]

    def edges(graph: tf.compat.v1.GraphDef, places: dict[str, int]) -> list[list[int]]:
        names = [[text.removeprefix("^").split(":")[0] for text in n.input] for n in graph.node]
        return [[places[name] for name in inputs] for inputs in names]

    assert edges(plain, place[0]) == edges(by_block, place[1])
    scopes = {name.split("/")[0] for name in place[1] if "/" in name}
    assert scopes == {"stem", "pool3", "softmax", *(f"mixed{i}" for i in range(11))}


def test_frozen_graph_is_read_by_googles_names(frozen):
    assert frozen.result["data"]["stand_in"] is False
    assert GRAPH_DEF in frozen.result["data"]["source"]
    mixed = {f"mixed{i}": "1×8×8×6" for i in range(11)}
    assert frozen.result["block_shapes"] == {
        "conv": "1×19×19×4",
        "conv_1": "1×17×17×16",
        "pool": "1×8×8×16",
        **mixed,
        "pool3": "1×1×1×6",
        "softmax": "1×10",
    }
    assert frozen.metrics["bottleneck"] == 6
    types = frozen.result["operations_by_type"]
    assert types["Conv2D"] == types["BatchNormWithGlobalNormalization"] == 24
    assert types["Concat"] == 11
    assert "384 values after mixed10 → 6 after pool3" in frozen.output


def test_frozen_graph_is_written_without_large_constants(frozen):
    nodes = {node.name: node for node in graph_of(frozen, "graph").node}
    assert {"DecodeJpeg/contents", "mixed_10/join", "pool_3", "softmax"} <= set(nodes)
    large = nodes["conv_1/conv2d_params"].attr["value"].tensor
    assert not large.tensor_content and not large.float_val
    assert [dim.size for dim in large.tensor_shape.dim] == [3, 3, 4, 16]
    small = nodes["ResizeBilinear/size"].attr["value"].tensor
    assert tf.make_ndarray(small).tolist() == [39, 39]


def test_frozen_graph_of_the_test_runs(tmp_path):
    graph = load_script(INCEPTION).read_frozen(write_frozen(tmp_path / "graph.pb"))
    photo = tf.io.encode_jpeg(np.full((20, 30, 3), 128, np.uint8)).numpy()
    with tf.compat.v1.Session(graph=graph) as session:
        pool3, softmax = session.run(["pool_3:0", "softmax:0"], {"DecodeJpeg/contents:0": photo})
    assert pool3.shape == (1, 1, 1, 6)
    assert softmax.sum() == pytest.approx(1)


def other_graph(path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.constant(1.0, name="softmax")
    path.write_bytes(graph.as_graph_def().SerializeToString())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"\xff" * 999), "is not a GraphDef"),
        (lambda path: path.write_bytes(b""), "holds no operations"),
        (other_graph, "not Google's InceptionV3: it has no DecodeJpeg/contents, pool_3"),
        (lambda path: write_frozen(path, Cast="VariableV2"), "is not frozen"),
        (lambda path: write_frozen(path, softmax="NoSuchOperation"), "can't import"),
    ],
)
def test_wrong_graph_files_are_refused_in_a_sentence(tmp_path, write, message):
    path = tmp_path / "graph.pb"
    write(path)
    with pytest.raises(SystemExit, match=message) as refusal:
        load_script(INCEPTION).read_frozen(path)
    assert str(path) in str(refusal.value)


# ---- models/inception_v3.py ----------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty models/inception_v3/, and no COURSE_DATA."""
    monkeypatch.setattr(models.inception_v3, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("COURSE_DATA", raising=False)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def publish(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Have Google's graph consist of ``content``."""
    published = FILES[GRAPH_DEF]._replace(digest=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(FILES, GRAPH_DEF, published)


def write_archive(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_graph_def_is_downloaded_last_and_only_if_allowed(cache, monkeypatch, capsys):
    asked = []

    def fetch(urls, target, digest):
        asked.append((urls, target, digest))
        target.write_bytes(b"downloaded")
        return target

    monkeypatch.setattr(models.inception_v3, "fetch", fetch)
    assert find_graph_def(download=False) is None
    assert "not downloaded with --quick" in capsys.readouterr().err
    assert find_graph_def().read_bytes() == b"downloaded"
    assert find_graph_def() == cache / GRAPH_DEF
    assert asked == [(GRAPH_DEF_URLS, cache / GRAPH_DEF, GRAPH_DEF_SHA256)], "fetched once"


def test_graph_def_is_looked_for_in_the_promised_order(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert find_graph_def() is None
    told = capsys.readouterr().err
    assert all(url in told for url in ARCHIVE_URLS)
    assert str(cache) in told and "--graph-def" in told
    publish(monkeypatch, b"from the archive")
    write_archive(cache / ARCHIVE, ("LICENSE", b"l"), (f"./{GRAPH_DEF}", b"from the archive"))
    assert find_graph_def().read_bytes() == b"from the archive"
    assert {path.name for path in cache.iterdir()} == {ARCHIVE, GRAPH_DEF}
    data = tmp_path / "data" / "inception_v3"
    data.mkdir(parents=True)
    monkeypatch.setenv("COURSE_DATA", str(data.parent))
    assert find_graph_def() == cache / GRAPH_DEF
    assert capsys.readouterr().err == ""
    (data / GRAPH_DEF).write_bytes(b"from COURSE_DATA")
    assert find_graph_def() == data / GRAPH_DEF
    assert "it is used, but is not the published file" in capsys.readouterr().err
    (tmp_path / "mine.pb").write_bytes(b"mine")
    assert find_graph_def(tmp_path / "mine.pb") == tmp_path / "mine.pb"
    with pytest.raises(SystemExit, match=r"--graph-def: there is no file .*none\.pb"):
        find_graph_def(tmp_path / "none.pb")


def test_bad_archives_are_refused_and_leave_nothing(cache):
    archive = cache / ARCHIVE
    write_archive(archive, ("other.pb", b"x"))
    with pytest.raises(SystemExit, match=f"holds no {GRAPH_DEF}"):
        find_graph_def()
    write_archive(archive, (GRAPH_DEF, os.urandom(100_000)))
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(SystemExit, match="can't be unpacked"):
        find_graph_def()
    write_archive(archive, (GRAPH_DEF, b"not Google's"))
    with pytest.raises(SystemExit, match=f"{GRAPH_DEF} in .* has the wrong SHA-256"):
        find_graph_def()
    with tarfile.open(archive, "w:gz") as tar:  # a link out of the folder
        link = tarfile.TarInfo(GRAPH_DEF)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(SystemExit, match=f"holds no {GRAPH_DEF}"):
        find_graph_def()
    assert [path.name for path in cache.iterdir()] == [ARCHIVE]


def test_archive_members_cannot_climb_out_of_the_folder(cache, monkeypatch):
    publish(monkeypatch, b"climber")
    write_archive(cache / ARCHIVE, (f"../../{GRAPH_DEF}", b"climber"))
    assert find_graph_def() == cache / GRAPH_DEF
    assert not (cache.parent.parent / GRAPH_DEF).exists()
