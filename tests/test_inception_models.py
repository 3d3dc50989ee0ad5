"""models/inception_v3.py: what it finds and fetches, from a server in this process, and what it
refuses; the network's parts against second implementations."""

import functools
import hashlib
import io
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_program
from PIL import Image
from test_download import CONTENT as WHOLE
from test_download import HALF, KEPT, Server, breaks_once, sends

from models import inception_v3
from models.inception_v3 import (
    ARCHIVE,
    CLASS_INDEX,
    DIGESTS,
    GRAPH_DEF,
    KERAS_NOTOP,
    KERAS_TOP,
    LABEL_MAP,
    SYNSETS,
    URLS,
    find_file,
    find_weights,
)

MEMBERS = {GRAPH_DEF: b"the graph", LABEL_MAP: b"the label map", SYNSETS: b"the synsets"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server; everything is published there and has made-up content. Nothing is on the
    machine: ``models/inception_v3/`` is empty, and there is no COURSE_DATA."""
    for name in ("COURSE_OFFLINE", "COURSE_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(inception_v3, "CACHE", tmp_path / "cache")
    server = Server()
    for name, digest in DIGESTS.items():
        content = MEMBERS.get(name, WHOLE)
        kind = {32: hashlib.md5, 64: hashlib.sha256}[len(digest)]
        monkeypatch.setitem(DIGESTS, name, kind(content).hexdigest())
    for name in URLS:
        monkeypatch.setitem(URLS, name, [f"{server.url}/{place}/{name}" for place in ("a", "b")])
    yield server
    server.close()


@pytest.fixture
def cache(server: Server) -> Path:
    return inception_v3.CACHE


@pytest.fixture
def data(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``inception_v3/`` in COURSE_DATA."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "inception_v3").mkdir(parents=True)
    return tmp_path / "data" / "inception_v3"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# ---- one file ------------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "name"), [(True, KERAS_TOP), (False, KERAS_NOTOP)])
def test_good_weights_arrive_once(server, cache, top, name):
    server.answers[f"/a/{name}"] = sends()
    assert find_weights("imagenet", top, quick=True).stand_in
    assert find_weights("imagenet", top).path == cache / name
    found = find_weights("imagenet", top, quick=True)
    assert found.path == cache / name and found.published and not found.stand_in
    assert (cache / name).read_bytes() == WHOLE
    assert names(cache) == {name}
    assert server.requests == [(f"/a/{name}", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_cut_half_way_is_taken_up(server, cache, ranges):
    server.answers[f"/a/{KERAS_NOTOP}"] = breaks_once(ranges=ranges)
    assert find_file(KERAS_NOTOP).read_bytes() == WHOLE
    assert names(cache) == {KERAS_NOTOP}
    assert [asked for _, asked in server.requests] == [None, f"bytes={KEPT}-"]


def test_half_a_file_is_never_used_and_the_next_run_goes_on(server, cache, capsys):
    for place in ("a", "b"):
        server.answers[f"/{place}/{KERAS_NOTOP}"] = sends(ranges=False, stop=HALF)
    assert find_file(KERAS_NOTOP) is None
    assert names(cache) == {f"{KERAS_NOTOP}.part"}
    assert "the connection broke" in capsys.readouterr().err
    server.answers[f"/a/{KERAS_NOTOP}"] = sends()
    assert find_file(KERAS_NOTOP).read_bytes() == WHOLE
    assert server.requests[-1][1] == f"bytes={KEPT}-"


@pytest.mark.parametrize(("name", "kind"), [(KERAS_TOP, "SHA-256"), (KERAS_NOTOP, "MD5")])
def test_what_has_the_wrong_checksum_is_refused_and_told(server, cache, capsys, name, kind):
    for place in ("a", "b"):
        server.answers[f"/{place}/{name}"] = sends(WHOLE[:-1] + b"?")
    assert find_file(name) is None
    assert names(cache) == set()
    told = capsys.readouterr().err
    for place in ("a", "b"):
        assert f"{server.url}/{place}/{name}: what it sent has the wrong {kind}" in told
    assert f"The {kind} of {name} is {DIGESTS[name]}" in told
    assert f"put it into the folder {cache}" in told


def test_the_next_source_is_asked(server, cache):
    server.answers[f"/a/{CLASS_INDEX}"] = sends(b"<html>Please log in</html>")
    server.answers[f"/b/{CLASS_INDEX}"] = sends()
    assert find_file(CLASS_INDEX) == cache / CLASS_INDEX
    assert names(cache) == {CLASS_INDEX}


def test_without_network_the_message_says_all(server, cache, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{KERAS_TOP}"
        monkeypatch.setitem(URLS, KERAS_TOP, [url])
        assert find_file(KERAS_TOP) is None
    told = capsys.readouterr().err
    assert f"{url}: no connection" in told
    assert f"download {KERAS_TOP} (96 MB) from\n      {url}" in told
    assert DIGESTS[KERAS_TOP] in told
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert find_file(KERAS_NOTOP) is None
    assert "switched off by COURSE_OFFLINE" in capsys.readouterr().err
    assert server.requests == []


def test_course_data_comes_first_and_a_damaged_file_is_passed_over(server, cache, data, capsys):
    cache.mkdir()
    (cache / KERAS_TOP).write_bytes(WHOLE)
    assert find_file(KERAS_TOP) == cache / KERAS_TOP
    (data / KERAS_TOP).write_bytes(WHOLE[:-1])
    assert find_file(KERAS_TOP) == cache / KERAS_TOP
    told = capsys.readouterr().err
    assert f"{data / KERAS_TOP} has the wrong SHA-256: damaged, or another file" in told
    (data / KERAS_TOP).write_bytes(WHOLE)
    assert find_file(KERAS_TOP) == data / KERAS_TOP
    assert capsys.readouterr().err == ""
    assert server.requests == []
    (cache / KERAS_NOTOP).write_bytes(WHOLE[1:])
    assert find_file(KERAS_NOTOP, download=False) is None
    server.answers[f"/a/{KERAS_NOTOP}"] = sends()
    assert find_file(KERAS_NOTOP).read_bytes() == WHOLE


def test_partial_weights_are_never_found_by_themselves(server, data):
    partial = data / "inception_v3_notop_partial.weights.h5"
    partial.write_bytes(WHOLE)
    assert find_file(KERAS_NOTOP) is None
    assert find_file(KERAS_TOP) is None
    assert find_weights("imagenet", top=False, quick=True).path is None
    assert find_weights(str(partial), top=False).path == partial


# ---- Google's archive ----------------------------------------------------------------------


def make_archive(*members: tuple[str, bytes | str], whole: bool = True) -> bytes:
    """A .tgz: of Google's three files, if ``whole``, and more; a text is a link's target."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in (*members, *(MEMBERS.items() if whole else ())):
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_label_files_come_out_of_the_archive_which_is_fetched_once(server, cache):
    server.answers[f"/a/{ARCHIVE}"] = sends(make_archive(("LICENSE", b"l"), ("cropped.jpg", b"p")))
    for name in (LABEL_MAP, SYNSETS, GRAPH_DEF):
        assert find_file(name, download=name == LABEL_MAP).read_bytes() == MEMBERS[name]
    assert names(cache) == {ARCHIVE, *MEMBERS}, "and nothing else of it is unpacked"
    assert server.requests == [(f"/a/{ARCHIVE}", None)]


def test_a_damaged_archive_put_there_by_hand_is_passed_over(server, cache, data, capsys):
    (data / ARCHIVE).write_bytes(make_archive()[:-30])
    assert find_file(GRAPH_DEF, download=False) is None
    assert f"{data / ARCHIVE} can't be unpacked" in capsys.readouterr().err
    server.answers[f"/b/{ARCHIVE}"] = sends(make_archive())
    assert find_file(GRAPH_DEF).read_bytes() == MEMBERS[GRAPH_DEF]


def test_an_archive_cut_half_way_is_taken_up(server, cache, monkeypatch):
    padding = hashlib.shake_256(b"padding").digest(4 * KEPT)  # can't be compressed
    archive = make_archive(("cropped.jpg", padding))
    answers = iter([sends(archive, stop=HALF)])
    server.answers[f"/a/{ARCHIVE}"] = lambda handler: next(answers, sends(archive))(handler)
    assert find_file(LABEL_MAP).read_bytes() == MEMBERS[LABEL_MAP]
    assert [asked for _, asked in server.requests] == [None, f"bytes={KEPT}-"]
    assert names(cache) == {ARCHIVE, *MEMBERS}


@pytest.mark.parametrize(
    ("archive", "fault"),
    [
        (make_archive((SYNSETS, b"other words"), whole=False), f"holds no right {LABEL_MAP}, "),
        (make_archive(("README", b"r"), whole=False), "holds no right"),
        (make_archive()[:-30], "can't be unpacked"),
        (b"<html>Please log in</html>", "can't be unpacked"),
        (make_archive(*((name, "/etc/passwd") for name in MEMBERS), whole=False), "holds no right"),
    ],
    ids=["altered", "another", "cut", "no archive", "links"],
)
def test_a_wrong_archive_is_refused_and_not_kept(server, cache, capsys, archive, fault):
    server.answers[f"/a/{ARCHIVE}"] = sends(archive)
    assert find_file(SYNSETS) is None
    assert ARCHIVE not in names(cache) and SYNSETS not in names(cache)
    told = capsys.readouterr().err
    assert f"{server.url}/a/{ARCHIVE}: what it sent {fault}" in told
    assert f"SHA-256 of {SYNSETS} is {DIGESTS[SYNSETS]}" in told


def test_nothing_is_written_outside_the_folder(server, cache, tmp_path):
    evil = [(f"../../{LABEL_MAP}", MEMBERS[LABEL_MAP]), (f"{tmp_path}/{SYNSETS}", MEMBERS[SYNSETS])]
    evil += [("up", ".."), (f"up/{GRAPH_DEF}", MEMBERS[GRAPH_DEF]), ("../../evil", b"evil")]
    evil += [(LABEL_MAP, "../../evil")]
    server.answers[f"/a/{ARCHIVE}"] = sends(make_archive(*evil, whole=False))
    before = names(tmp_path)
    for name, content in MEMBERS.items():
        assert find_file(name) == cache / name
        assert (cache / name).read_bytes() == content
    assert names(tmp_path) == before | {"cache"}
    assert names(cache) == {ARCHIVE, *MEMBERS}
    assert not any((cache / name).is_symlink() for name in MEMBERS)


def test_an_archive_in_course_data_is_unpacked_elsewhere(server, cache, data):
    (data / ARCHIVE).write_bytes(make_archive())
    assert find_file(SYNSETS, download=False) == cache / SYNSETS
    assert names(data) == {ARCHIVE}


# ---- from the shell ------------------------------------------------------------------------


def test_the_program_lists_and_fails_where_something_is_missing(tmp_path):
    folder = tmp_path / "inception_v3"
    folder.mkdir()
    script = "models/inception_v3.py"
    (folder / CLASS_INDEX).write_bytes(b"{}")
    done = run_program(script, "--list", "index", COURSE_DATA=str(tmp_path))
    assert f"{folder / CLASS_INDEX} has the wrong MD5" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_program(script, "index", "nonsense")
    assert done.returncode == 2
    assert "there is no part 'nonsense': choose from top, notop, " in done.stderr


def test_main_fetches_what_is_asked_for(server, cache, monkeypatch, capsys):
    server.answers[f"/a/{ARCHIVE}"] = sends(make_archive())
    for arguments, status in (["--list", "graph"], 1), (["graph", "labels"], 0), (["--list"], 1):
        monkeypatch.setattr("sys.argv", ["inception_v3.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            inception_v3.main()
        assert ended.value.code == status
    told = capsys.readouterr().out
    assert told.count("MISSING") == 4, "the graph at first, in the end the three of Keras"
    assert server.requests == [(f"/a/{ARCHIVE}", None)], "the graph comes with the labels"


# ---- the network's parts -------------------------------------------------------------------

SMALL = 75  # pixels, the least that InceptionV3 takes


@pytest.fixture(scope="module")
def untrained():
    weights = find_weights("none", top=False, seed=3)
    return inception_v3.backbone(weights, SMALL)


def photo(height: int = 90, width: int = 120) -> np.ndarray:
    """Something with edges and noise in it, uint8 [height, width, 3]."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 200, (6, 8, 3)), np.ones((height // 6, width // 8, 1)))
    return (picture + rng.integers(0, 56, picture.shape)).astype(np.uint8)


@pytest.mark.parametrize("size", [40, 75, 200])
def test_resizing_is_what_keras_and_pillow_do(size):
    image = photo()
    resized = inception_v3.resize(image, size).numpy()
    layer = keras.layers.Resizing(size, size, antialias=True)
    np.testing.assert_allclose(resized, layer(image[np.newaxis].astype(np.float32))[0], atol=1e-3)
    pillow = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resized, np.asarray(pillow), atol=1.01)  # Pillow rounds


def test_scaling_is_kerass():
    image = photo().astype(np.float32)
    expected = keras.applications.inception_v3.preprocess_input(image.copy())
    np.testing.assert_allclose(inception_v3.scale(image), expected, atol=1e-6)


def test_the_blocks_hold_each_layer_once_in_order(untrained):
    blocks = inception_v3.blocks(untrained)
    assert list(blocks) == ["stem", *(f"mixed{i}" for i in range(11)), "pool3"]
    assert [layer for layers in blocks.values() for layer in layers] == untrained.layers
    convolutions = [sum("Conv2D" in type(layer).__name__ for layer in b) for b in blocks.values()]
    assert convolutions == [5, 7, 7, 7, 4, 10, 10, 10, 10, 6, 9, 9, 0]
    assert all(blocks[name][-1].name == name for name in list(blocks)[1:-1])


def test_an_untrained_network_is_the_same_for_a_seed_and_can_be_saved_and_named(
    server, untrained, tmp_path
):
    x = inception_v3.scale(photo(SMALL, SMALL)[np.newaxis][:, :72, :72])
    x = np.pad(x, ((0, 0), (0, 3), (0, 3), (0, 0)))
    features = untrained(x).numpy()
    assert features.shape == (1, 2048)
    saved = tmp_path / "mine.weights.h5"
    untrained.save_weights(saved)
    other = find_weights("none", top=False, seed=4)
    assert other.key != find_weights("none", top=False, seed=3).key
    model = inception_v3.backbone(other, SMALL)
    assert np.abs(model(x).numpy() - features).max() > 1e-3
    weights = find_weights(str(saved), top=False)
    assert not weights.published and not weights.stand_in
    assert weights.key.endswith(hashlib.sha256(saved.read_bytes()).hexdigest()[:12])
    inception_v3.load_weights(model, weights)
    np.testing.assert_array_equal(model(x).numpy(), features)
    build = functools.cache(lambda: inception_v3.backbone(weights, SMALL))
    built_while_tracing = tf.function(lambda x: build()(x))
    np.testing.assert_allclose(built_while_tracing(x), features, rtol=1e-4, atol=1e-6)
    (tmp_path / "text.h5").write_text("no weights", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"text\.h5 doesn't hold this network's weights"):
        inception_v3.load_weights(model, find_weights(str(tmp_path / "text.h5"), top=False))


def test_calibrated_filters_tell_pictures_apart(untrained):
    """The first layer's mean and variance are what NumPy says of them."""
    rng = np.random.default_rng(0)
    batches = [rng.uniform(-1, 1, (6, SMALL, SMALL, 3)).astype(np.float32) for _ in range(2)]
    weights = find_weights("none", top=False, seed=3)
    model = inception_v3.backbone(weights, SMALL, iter(batches))
    for before, after in zip(untrained.trainable_variables, model.trainable_variables, strict=True):
        if before.name != "beta":
            np.testing.assert_array_equal(before.numpy(), after.numpy())
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    values = [first(batch).numpy() for batch in batches]
    norm = next(layer for layer in model.layers if hasattr(layer, "moving_mean"))
    np.testing.assert_allclose(
        norm.moving_mean, np.mean([v.mean((0, 1, 2)) for v in values], 0), atol=1e-4
    )
    np.testing.assert_allclose(
        norm.moving_variance, np.mean([v.var((0, 1, 2)) for v in values], 0), rtol=1e-3
    )
    assert norm.momentum == 0.99
    features = model(np.concatenate(batches)).numpy()
    constant = untrained(np.concatenate(batches)).numpy()
    assert features.std(axis=0).mean() > 100 * constant.std(axis=0).mean()


def test_weights_that_are_nowhere(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    for quick in (False, True):
        assert find_weights("imagenet", top=True, quick=quick).stand_in
        told = capsys.readouterr()
        assert "STAND-IN: an untrained network" in told.out
        assert f"{KERAS_TOP} is missing" in told.err
    with pytest.raises(SystemExit, match=r"--weights: there is no file .*none\.h5"):
        find_weights(str(tmp_path / "none.h5"), top=True)


# ---- frozen graphs -------------------------------------------------------------------------


def frozen(*operations: str, variable: bool = False) -> bytes:
    with tf.Graph().as_default() as graph:
        for name in operations:
            tf.constant(1.0, name=name)
        if variable:
            tf.compat.v1.get_variable("weights", [1], use_resource=False)
    return graph.as_graph_def().SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 99, "can't read a GraphDef"),
        (b"", "has no jpeg, softmax"),
        (frozen("jpeg", "other"), "has no softmax"),
        (frozen("jpeg", "softmax", variable=True), "is not frozen"),
        (frozen("jpeg", "softmax").replace(b"Const", b"Xonst"), "can't import"),
    ],
)
def test_wrong_graphs_are_refused_in_a_sentence(tmp_path, content, message):
    (tmp_path / "graph.pb").write_bytes(content)
    with pytest.raises(SystemExit, match=f"--flag: .*{message}"):
        inception_v3.read_frozen(tmp_path / "graph.pb", ("jpeg", "softmax"), "--flag")


def test_a_good_graph_runs(tmp_path):
    (tmp_path / "graph.pb").write_bytes(frozen("jpeg", "softmax"))
    graph = inception_v3.read_frozen(tmp_path / "graph.pb", ("jpeg", "softmax"))
    with tf.compat.v1.Session(graph=graph) as session:
        assert session.run("softmax:0") == 1
