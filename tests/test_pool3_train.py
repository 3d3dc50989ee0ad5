"""inception_v3/pool3_train/01_retrain.py: features and their cache, the head, a kill, the
exported files, bad input. One run is that of a user, with InceptionV3 at 75 pixels; the others,
in this process, get their features from something that takes no time."""

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from helpers import ROOT, Events, Finished, load_script, run_quick
from PIL import Image
from sklearn.linear_model import LogisticRegression
from tensorboard.plugins import projector

from data.images import load_image
from data.photos import Photo, draw_stand_in, read, scan
from models import inception_v3
from utils.run import sha256

SCRIPT = "inception_v3/pool3_train/01_retrain.py"
CHAPTER = ROOT / "inception_v3" / "pool3_train"
CLASSES = ["it's round", "条纹 图", "交叉"]  # in the order of the folders
SHAPES = dict(zip(CLASSES, ("circles", "stripes", "crosses"), strict=True))
COUNT = 13  # photos of a class
SIZE = 75  # pixels


def load() -> ModuleType:
    if str(CHAPTER) not in sys.path:
        sys.path.insert(0, str(CHAPTER))  # where Python itself looks, when it runs the script
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path = list(sys.path)
    yield load()
    sys.path[:] = path


@pytest.fixture(scope="module")
def bottlenecks(script: ModuleType) -> ModuleType:
    return sys.modules["retraining.bottlenecks"]


@pytest.fixture(scope="module")
def exports(script: ModuleType) -> ModuleType:
    return sys.modules["retraining.exports"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in class folders; one of another format than it says, one cut short, one a copy."""
    folder = tmp_path_factory.mktemp("photos") / "我的 photos"
    for label, shape in SHAPES.items():
        (folder / label).mkdir(parents=True)
        for number in range(COUNT):
            small = draw_stand_in(shape, number).resize((120, 90))
            small.save(folder / label / f"照片 {number}.jpg", quality=95)
    webp = folder / CLASSES[0] / "照片 0.jpg"
    draw_stand_in("circles", 0).resize((90, 120)).save(webp, "WEBP", lossless=True)
    whole = (folder / CLASSES[1] / "照片 1.jpg").read_bytes()
    (folder / CLASSES[1] / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / CLASSES[1] / "copy.jpg").write_bytes(whole)
    return folder


@pytest.fixture(scope="module")
def photos(folder: Path) -> list[Photo]:
    return scan(folder).photos


# ---- a run of a user's -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrain")


@pytest.fixture(scope="module")
def finished(folder: Path, place: Path) -> Finished:
    flags = ["--image_dir", folder, "--weights", "none", "--image-size", SIZE]
    flags += ["--bottleneck_dir", place / "bottlenecks", "--output_labels", place / "labels.txt"]
    flags += ["--output_graph", place / "out" / "flowers.pb", "--how_many_training_steps", "40"]
    flags += ["--flip_left_right", "--distorted-copies", "1", "--print_misclassified_test_images"]
    return run_quick(SCRIPT, place / "run", *flags)


def test_a_run_leaves_its_files_and_says_how_good_it_is(finished, place):
    assert "27 computed" in finished.output or "39 computed" in finished.output
    assert (place / "labels.txt").read_text("utf-8").splitlines() == sorted(CLASSES)
    facts = json.loads((place / "out" / "output.json").read_text("utf-8"))
    assert facts["labels"] == sorted(CLASSES)
    for path in (place / "out" / "flowers.pb", place / "out" / "output_model.keras"):
        assert facts["files"][path.name] == sha256(path)
    assert facts["files"]["labels.txt"] == sha256(place / "labels.txt")
    assert not [*place.rglob("*.tmp*")]
    assert not [*finished.folder.rglob("ckpt-*")]
    result, metrics = finished.result, finished.metrics
    assert result["photos"]["left_out"] == 0
    assert sum(result["photos"].values()) == 3 * COUNT
    assert result["test_photos"] == result["photos"]["test"]
    right = round(metrics["test_accuracy"] * result["test_photos"])
    low, high = result["test_interval"]
    assert low <= metrics["test_accuracy"] <= high
    assert f"{right} of {result['test_photos']} test photos right" in finished.output
    assert finished.output.count(": taken for ") == result["test_photos"] - right
    recalls = [row["recall"] * row["photos"] for row in result["classes"].values()]
    assert round(sum(recalls)) == right
    assert result["largest_difference"] < 1e-3
    assert "UNTRAINED" in finished.output
    assert "no whole image" in finished.output
    assert "a copy" in finished.output


def test_tensorboard_gets_curves_variables_figures_graph_and_projector(finished, photos, place):
    for name in ("train", "validation"):
        events = finished.events(name)
        assert events.tags("scalars") >= {"cross_entropy", "accuracy"}
        assert sorted(events.values("accuracy")) == [10, 20, 30, 40]
    layers = {"final_training_ops/weights/histogram", "hidden/weights/histogram", "final_result"}
    assert finished.events("train").tags("histograms") >= layers
    assert finished.events("graph").has_graph
    assert any("mixed10" in node for node in finished.events("graph").graph_nodes())

    folder = finished.folder / "projector"
    Events(folder)  # a folder without event files would not be listed
    config = text_format.Parse(
        (folder / "projector_config.pbtxt").read_text("utf-8"), projector.ProjectorConfig()
    )
    (embedding,) = config.embeddings
    assert not config.model_checkpoint_path, "TensorBoard would look for it where it was started"
    checkpoint = tf.train.latest_checkpoint(folder)  # as TensorBoard does instead
    points = tf.train.load_checkpoint(checkpoint).get_tensor(embedding.tensor_name)
    lines = (folder / embedding.metadata_path).read_text("utf-8").splitlines()
    assert lines[0].split("\t") == ["class", "set", "photo"]
    assert len(points) == len(lines) - 1 == 3 * COUNT
    with np.load(next((place / "bottlenecks").glob("untrained-1-75.npz"))) as pack:
        rows = dict(zip(pack["digests"].tolist(), pack["features"], strict=True))
    by_name = {(p.label, p.path.name): p for p in photos}
    width, height = embedding.sprite.single_image_dim
    with Image.open(folder / embedding.sprite.image_path) as sprite:
        assert sprite.width == 7 * width  # 39 thumbnails, seven in a row
        assert sprite.height == 6 * height
        for number, (point, line) in enumerate(zip(points, lines[1:], strict=True)):
            label, part, name = line.split("\t")
            photo = by_name[label, name]
            assert part in ("train", "validation", "test")
            np.testing.assert_array_equal(point, rows[photo.digest[:32]])
            left, top = number % 7 * width, number // 7 * height
            shown = np.asarray(sprite.crop((left, top, left + width, top + height)), np.float32)
            wanted = Image.fromarray(load_image(photo.path)).resize((width, height))
            assert np.abs(shown - np.asarray(wanted)).mean() < 12


@pytest.fixture(scope="module")
def network(bottlenecks: ModuleType) -> Any:
    return bottlenecks.KerasNetwork(inception_v3.find_weights("none", False), SIZE)


def test_cached_features_are_those_of_the_network(finished, place, network, photos, bottlenecks):
    keras.utils.set_random_seed(1)
    shape = (SIZE, SIZE, 3)
    model = keras.applications.InceptionV3(
        include_top=False, weights=None, pooling="avg", input_shape=shape
    )
    cache = bottlenecks.Bottlenecks(place / "bottlenecks", network.key)
    some = photos[::9]
    assert some[0].path.read_bytes()[:4] == b"RIFF"  # the WebP is among them
    resize = keras.layers.Resizing(SIZE, SIZE, antialias=True)
    for photo in some:
        pixels = load_image(photo.path).astype(np.float32)
        image = keras.applications.inception_v3.preprocess_input(resize(pixels).numpy())
        computed = model(image[np.newaxis], training=False).numpy()[0]
        np.testing.assert_allclose(np.load(cache.path(photo)), computed, rtol=2e-3, atol=1e-6)
        np.testing.assert_array_equal(cache.get(photo), np.load(cache.path(photo)))
    again = np.concatenate([rows for _, rows in network.compute(some)])
    np.testing.assert_allclose(again, [cache.get(p) for p in some], rtol=1e-4, atol=1e-7)


def decisive_head(script: ModuleType, rows: np.ndarray) -> keras.Model:
    """A head that answers differently for each of these features, as a trained one does."""
    head = script.build_head("linear", 3, seed=1)
    spread = rows.std(axis=0)
    kernel = np.random.default_rng(5).normal(size=(2048, 3)) / np.maximum(spread, 1e-5)[:, None]
    kernel *= (spread > 1e-5)[:, None] * 2 / np.sqrt(2048)
    head.set_weights([kernel, -rows.mean(axis=0) @ kernel])
    return head


def scored(script: ModuleType, head: keras.Model, some: list[Photo], rows: np.ndarray) -> Any:
    scores = tf.nn.softmax(head(rows)).numpy()
    return script.Tested(some, np.zeros(len(some), np.int32), scores)


def output_flags(folder: Path, **more: Any) -> SimpleNamespace:
    paths = {"output_graph": folder / "output_graph.pb", "output_labels": folder / "labels.txt"}
    return SimpleNamespace(**paths, final_tensor_name="final_result", **more)


def test_graph_and_model_give_what_the_training_gave(
    script, exports, finished, place, network, photos, bottlenecks, tmp_path, monkeypatch, capsys
):
    cache = bottlenecks.Bottlenecks(place / "bottlenecks", network.key)
    some = photos[::9]
    rows = np.stack([cache.get(photo) for photo in some])
    head = decisive_head(script, rows)
    tested = scored(script, head, some, rows)
    assert np.ptp(tested.scores, axis=0).max() > 0.2, "all answers alike would prove nothing"
    args = output_flags(tmp_path)
    gap, _ = exports.export(args, network, head, CLASSES, tested, {"test_accuracy": 0.5})
    assert gap < 1e-3
    model = keras.models.load_model(tmp_path / "output_model.keras")
    graph = tf.compat.v1.GraphDef.FromString(args.output_graph.read_bytes())
    assert [n.op for n in graph.node if n.op in ("Placeholder", "VarHandleOp")] == ["Placeholder"]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph, name="")
        for photo, scores in zip(some, tested.scores, strict=True):
            feed = {"DecodeJpeg/contents:0": read(photo)}
            answer = session.run("final_result:0", feed)
            np.testing.assert_allclose(answer, scores[np.newaxis], atol=1e-3)
    for photo, scores in zip(some[:2], tested.scores, strict=False):
        answer = model(load_image(photo.path)[np.newaxis])  # training not mentioned
        np.testing.assert_allclose(answer, scores[np.newaxis], atol=1e-3)

    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    empty = SimpleNamespace(save=lambda path: path.write_bytes(b"a model"))
    monkeypatch.setattr(exports, "deployed", lambda *_: None)
    monkeypatch.setattr(exports, "frozen_graph", lambda *_: tf.compat.v1.GraphDef())
    monkeypatch.setattr(exports, "whole_model", lambda *_: empty)
    monkeypatch.setattr(exports, "ask_model", lambda *_: tested.scores)
    monkeypatch.setattr(exports, "ask_graph", lambda *_: tested.scores[::-1])
    with pytest.raises(SystemExit, match="doesn't give what was trained"):
        exports.export(args, network, head, CLASSES[::-1], tested, {})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exports, "ask_graph", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        exports.export(args, network, head, CLASSES[::-1], tested, {})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- features from nowhere -------------------------------------------------------------------


def made_up(photo: Photo, copy: int = 0) -> np.ndarray:
    """Features that tell the class, with noise."""
    dice = np.random.default_rng([int(photo.digest[:8], 16), copy])
    row = dice.gamma(1.0, 0.3, 2048).astype(np.float32)
    row[sorted(CLASSES).index(photo.label) :: 40] += 0.5
    return row


def fake(
    bottlenecks: ModuleType, before: Callable[[int], None] = lambda done: None, batch: int = 4
) -> Any:
    """A Keras network that computes ``made_up``; ``before`` is called with the number of photos
    done before each batch. It has the list of all that were computed as ``computed``."""

    class Fake(bottlenecks.KerasNetwork):
        def compute(self, photos: Sequence[Photo], distortion: Any = None) -> Iterator[Any]:
            for start in range(0, len(photos), batch):
                before(len(self.computed))
                some = photos[start : start + batch]
                self.computed += some
                copy = distortion.copy if distortion else 0
                yield some, np.stack([made_up(photo, copy) for photo in some])

    network = Fake(inception_v3.Weights(None, "made-up", False, "made up"), SIZE)
    network.computed = []
    return network


def retrain(
    script: ModuleType, folder: Path, *flags: str | Path, network: Any = None, export: bool = False
) -> Any:
    """Call ``main()`` with its files in ``folder``, and return its Training."""
    made = []

    class Training(script.Training):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    own = ["--bottleneck_dir", folder / "cache", "--output_graph", folder / "out" / "graph.pb"]
    own += ["--run-dir", folder / "run", "--how_many_training_steps", "60"]
    with pytest.MonkeyPatch.context() as patch:
        words = [script.__file__, *own, *flags]
        patch.setattr(sys, "argv", [*map(str, words)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        patch.setattr(script, "Training", Training)
        if network:
            patch.setattr(script, "find_network", lambda args: (network, "made up"))
        if not export:
            function = tf.function(lambda x: x).get_concrete_function(tf.TensorSpec([], tf.float32))
            patch.setattr(script, "export", lambda *_: (0.0, function))
        try:
            script.main()
        except KeyboardInterrupt as error:
            sys.excepthook(KeyboardInterrupt, error, None)  # as Python does at its end
            raise
        finally:
            sys.modules["matplotlib.pyplot"].close("all")
    return made[0]


def refused(
    script: ModuleType, folder: Path, capsys: Any, *flags: str | Path, network: Any = None
) -> str:
    """What a run says that ends with a sentence."""
    with pytest.raises(SystemExit) as caught:
        retrain(script, folder, *flags, network=network)
    assert caught.value.code not in (0, None)
    said = str(caught.value.code) if caught.value.code != 2 else ""
    output = capsys.readouterr()
    return " ".join(f"{output.out} {output.err} {said}".split())


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))


def assert_equal_weights(one: keras.Model, other: keras.Model) -> None:
    for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture(scope="module")
def whole(script, bottlenecks, folder, tmp_path_factory) -> tuple[Any, Path, Any]:
    """A training that nobody stopped, its folder, and its network."""
    place, network = tmp_path_factory.mktemp("whole"), fake(bottlenecks)
    return retrain(script, place, "--image-dir", folder, network=network), place, network


def test_features_that_tell_the_class_are_learned(whole):
    training, place, network = whole
    assert len(network.computed) == 3 * COUNT
    result = result_of(place)
    assert result["metrics"]["test_accuracy"] > 0.8
    assert result["best_step"] == training.best_step
    losses = {row["step"]: row["validation_cross_entropy"] for row in result["history"]}
    assert min(losses, key=losses.get) == result["best_step"]
    assert [*losses] == [*range(10, 61, 10)]


def test_a_second_run_computes_nothing_and_ends_the_same(
    script, whole, folder, bottlenecks, capsys
):
    training, place, _ = whole
    network = fake(bottlenecks)
    again = retrain(script, place, "--image-dir", folder, network=network)
    assert not network.computed
    assert f"{3 * COUNT} from the cache" in capsys.readouterr().out
    assert_equal_weights(training.head, again.head)


def test_the_cache_mends_what_is_damaged(bottlenecks, photos, tmp_path, capsys):
    network = fake(bottlenecks)
    expected = bottlenecks.find_features(tmp_path, network, photos)
    cache = bottlenecks.Bottlenecks(tmp_path, network.key)
    for damage in (b"", b"no archive", cache.pack_path.read_bytes()[:-200]):
        cache.pack_path.write_bytes(damage)
        found = bottlenecks.find_features(tmp_path, network, photos)
        np.testing.assert_array_equal(found, expected)
        assert "damaged" in capsys.readouterr().out
    assert len(network.computed) == len(photos), "a pack is only a copy"
    np.savez(cache.pack_path, digests=[p.digest[:32] for p in photos], features=expected * np.nan)
    np.testing.assert_array_equal(bottlenecks.find_features(tmp_path, network, photos), expected)

    cache.pack_path.unlink()
    row = expected[0]
    damages = [row[:7], row.astype(np.float64), np.full_like(row, np.nan), np.array([{}])]
    for photo, damage in zip(photos, damages, strict=False):
        np.save(cache.path(photo), damage, allow_pickle=True)
    cache.path(photos[4]).write_bytes(b"")
    cache.path(photos[5]).write_bytes(cache.path(photos[5]).read_bytes()[:5000])
    network.computed.clear()
    np.testing.assert_array_equal(bottlenecks.find_features(tmp_path, network, photos), expected)
    assert network.computed == photos[:6]
    assert capsys.readouterr().out.count(": damaged") == 7  # the pack of before, too
    assert not bottlenecks.Bottlenecks(tmp_path, "another")._digests

    moved = photos[7]._replace(label="other", path=Path("new name.jpg"))
    network.computed.clear()
    bottlenecks.find_features(tmp_path, network, [moved])
    assert not network.computed, "the content counts, not the name"


def test_what_a_killed_run_left_half_written_goes(bottlenecks, photos, tmp_path):
    place = tmp_path / photos[0].label
    place.mkdir()
    for name, age in (("old", 3600), ("young", 0)):
        path = place / f".{name}.99.tmp.npy"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    bottlenecks.find_features(tmp_path, fake(bottlenecks), photos)
    assert [path.name for path in place.glob(".*")] == [".young.99.tmp.npy"]


# ---- distorted copies ------------------------------------------------------------------------


def test_distortions_do_what_they_say(bottlenecks):
    image = np.asarray(draw_stand_in("crosses", 3))

    def distorted(seed: int = 0, **settings: Any) -> np.ndarray:
        known = {"flip": False, "crop": 0.0, "scale": 0.0, "brightness": 0.0, "seed": 1}
        distortion = bottlenecks.Distortion(**(known | settings))
        dice = tf.constant([seed, 7], tf.int64)
        return bottlenecks.distort(tf.constant(image), 60, distortion, dice).numpy()

    plain = inception_v3.resize(image, 60).numpy()
    np.testing.assert_allclose(distorted(), plain, atol=0.01)
    flipped = [np.allclose(distorted(s, flip=True), plain[:, ::-1], atol=0.01) for s in range(20)]
    assert 4 < sum(flipped) < 16
    large = inception_v3.resize(image, 90).numpy()
    cropped = distorted(3, crop=50.0)
    places = [
        (y, x)
        for y in range(31)
        for x in range(31)
        if np.allclose(large[y : y + 60, x : x + 60], cropped, atol=0.01)
    ]
    assert len(places) == 1
    assert len({distorted(s, scale=80.0).tobytes() for s in range(5)}) == 5
    inside = (plain > 1) & (plain < 150)
    for seed in range(5):
        factors = distorted(seed, brightness=30.0)[inside] / plain[inside]
        assert 0.7 <= factors.mean() <= 1.3
        assert np.ptp(factors) < 0.01
    np.testing.assert_array_equal(distorted(4, scale=50.0), distorted(4, scale=50.0))


def test_distorted_copies_are_trained_on_and_cached(script, bottlenecks, folder, tmp_path):
    network = fake(bottlenecks)
    flags = ["--image-dir", folder, "--random_scale", "10", "--distorted_copies", "2"]
    training = retrain(script, tmp_path, *flags, network=network)
    counts = result_of(tmp_path)["photos"]
    assert len(training.train.labels) == 3 * counts["train"]
    assert len(training.validation.labels) == counts["validation"]
    assert len(network.computed) == 3 * COUNT + 2 * counts["train"]
    count = counts["train"]
    first, copy = training.train.features[:count], training.train.features[count : 2 * count]
    np.testing.assert_array_equal(training.train.labels[:count], training.train.labels[-count:])
    assert not np.array_equal(first, copy)
    network.computed.clear()
    retrain(script, tmp_path, *flags, network=network)
    assert not network.computed
    retrain(script, tmp_path, *flags, "--seed", "2", network=network)
    assert len(network.computed) == 2 * counts["train"], "another seed, other copies"


# ---- the head --------------------------------------------------------------------------------


@pytest.mark.parametrize("balanced", [False, True])
def test_the_gradient_by_hand_is_the_tapes_and_the_slope_of_the_loss(script, balanced):
    dice = np.random.default_rng(3)
    labels = dice.permutation(np.repeat([0, 1, 2], (20, 5, 3))).astype(np.int32)
    features = dice.gamma(1.0, 0.3, (28, 2048)).astype(np.float32)
    examples = script.Examples(features, labels, script.weigh(labels, 3, balanced))
    head = script.build_head("linear", 3, seed=1)
    head.set_weights([dice.normal(0, 0.05, w.shape) for w in head.get_weights()])
    parts = [tf.constant(part) for part in examples]
    with tf.GradientTape() as tape:
        loss, _, _ = script.loss_of(head, parts, 0.01)
    taped = tape.gradient(loss, head.trainable_variables)
    by_hand = script.gradient_by_hand(*examples, *head.get_weights(), 0.01)
    for mine, tapes in zip(by_hand, taped, strict=True):
        np.testing.assert_allclose(mine, tapes, atol=2e-6)
    assert script.check_gradient(head, examples, 0.01) < 2e-6
    assert script.check_gradient(script.build_head("hidden", 3, 1), examples, 0.01) < 2e-6

    kernel, bias = (w.astype(np.float64) for w in head.get_weights())

    def loss_at(kernel: np.ndarray) -> float:
        z = features @ kernel + bias
        logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        cost = -(examples.weights * logs[np.arange(28), labels]).mean()
        return cost + 0.005 * (kernel**2).sum()

    np.testing.assert_allclose(float(loss), loss_at(kernel), rtol=1e-5)
    step = np.zeros_like(kernel)
    step[17, 1] = 1e-5
    slope = (loss_at(kernel + step) - loss_at(kernel - step)) / 2e-5
    assert by_hand[0][17, 1] == pytest.approx(slope, rel=1e-4)


def test_weights_of_photos(script):
    labels = np.repeat([0, 1, 2], (20, 5, 3))
    weights = script.weigh(labels, 3, True)
    sums = [weights[labels == k].sum() for k in range(3)]
    np.testing.assert_allclose(sums, 28 / 3, rtol=1e-6)
    assert (script.weigh(labels, 3, False) == 1).all()


def test_each_photo_comes_once_an_epoch_whatever_the_batch(script):
    for batch in (7, 10, 25):
        rows = np.concatenate([script.choose(step, 10, batch, seed=3) for step in range(20)])
        epochs = rows[: len(rows) // 10 * 10].reshape(-1, 10)
        assert (np.sort(epochs, axis=1) == np.arange(10)).all()
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert (script.choose(0, 10, 10, 3) != script.choose(0, 10, 10, 4)).any()


def head_run(script: ModuleType, folder: Path, *flags: str) -> SimpleNamespace:
    """What a Training needs of a run."""
    return SimpleNamespace(
        args=script.flags().parse_args([*flags]),
        log_dir=lambda name: str(folder / name),
    )


def test_a_linear_head_ends_where_scikit_learns_does(script, tmp_path):
    dice = np.random.default_rng(1)
    labels = np.tile(np.arange(3, dtype=np.int32), 20)
    features = np.zeros((60, 2048), np.float32)
    features[:, :8] = dice.normal(size=(60, 8)) + np.eye(3, 8)[labels]
    examples = script.Examples(features, labels, script.weigh(labels, 3, False))
    decay = 0.05
    flags = ["--head", "linear", "--weight_decay", str(decay), "--learning_rate", "0.3"]
    flags += ["--train_batch_size", "60", "--how_many_training_steps", "300"]
    flags += ["--eval_step_interval", "300"]  # one validation: the last weights are kept
    run = head_run(script, tmp_path, *flags)
    training = script.Training(run, {"train": examples, "validation": examples}, 3)
    training.run_steps()
    known = LogisticRegression(C=1 / (60 * decay), tol=1e-8, max_iter=1000).fit(features, labels)
    scores = tf.nn.softmax(training.head(features)).numpy()
    np.testing.assert_allclose(scores, known.predict_proba(features), atol=2e-3)


def test_early_stopping_stops_and_keeps_the_best(script, tmp_path):
    dice = np.random.default_rng(1)
    parts = {}
    for name, count in (("train", 30), ("validation", 20)):
        labels = dice.integers(0, 3, count).astype(np.int32)  # nothing to be learned
        rows = dice.gamma(1.0, 0.3, (count, 2048)).astype(np.float32)
        parts[name] = script.Examples(rows, labels, script.weigh(labels, 3, False))
    flags = ["--early-stopping", "40", "--weight_decay", "0", "--eval_step_interval", "7"]
    training = script.Training(head_run(script, tmp_path, *flags), parts, 3)
    training.run_steps()
    best = min(training.history, key=lambda row: row["validation_cross_entropy"])
    assert training.best_step == best["step"]
    assert 40 <= training.done - best["step"] < 47
    _, entropy, right = script.loss_of(training.head, parts["validation"], 0.0)
    assert float(entropy) == pytest.approx(best["validation_cross_entropy"], rel=1e-6)
    assert float(right) == pytest.approx(best["validation_accuracy"])


# ---- killed, and again -----------------------------------------------------------------------


def run_and_kill(folder: str, place: str) -> None:
    """In a process of its own: retrain, and kill it when 20 photos are computed."""
    script = load()

    def kill(done: int) -> None:
        if done >= 20:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no -9

    network = fake(sys.modules["retraining.bottlenecks"], kill)
    retrain(script, Path(place), "--image-dir", folder, network=network)


def test_killed_while_computing_the_next_run_has_the_features(
    script, bottlenecks, whole, folder, tmp_path, capsys
):
    program = "import sys, test_pool3_train as t; t.run_and_kill(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, folder, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode not in (0, 1, 2), done.stdout[-2000:] + done.stderr[-3000:]
    assert not (tmp_path / "run" / "result.json").exists()
    assert len([*(tmp_path / "cache").rglob("*.npy")]) == 20
    network = fake(bottlenecks)
    training = retrain(script, tmp_path, "--image-dir", folder, network=network)
    assert len(network.computed) == 3 * COUNT - 20
    assert "20 from the cache; 19 computed" in capsys.readouterr().out
    assert_equal_weights(whole[0].head, training.head)
    assert training.history == whole[0].history
    assert result_of(tmp_path)["metrics"] == result_of(whole[1])["metrics"]


# ---- Google's graph and text files -----------------------------------------------------------


def write_google(folder: Path) -> Path:
    """A frozen graph with the names of Google's, of a network that is small."""
    kernel = np.random.default_rng(2).normal(0, 0.2, (23, 23, 3, 2048)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        v1 = tf.compat.v1
        contents = v1.placeholder(tf.string, [], "DecodeJpeg/contents")
        pixels = tf.io.decode_jpeg(contents, channels=3, name="DecodeJpeg")
        images = tf.expand_dims(tf.cast(pixels, tf.float32), 0)
        images = v1.image.resize_bilinear(images, [299, 299], name="ResizeBilinear")
        maps = tf.nn.relu(tf.nn.conv2d((images - 128) / 128, kernel, 138, "VALID"))
        pool = tf.reduce_mean(maps, [1, 2], keepdims=True, name="pool_3")
        features = tf.reshape(pool, [1, 2048], name="pool_3/_reshape")
        tf.nn.softmax(features[:, :1008], name="softmax")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / inception_v3.GRAPH_DEF
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def write_texts(folder: Path, photos: Sequence[Photo], rows: Sequence[np.ndarray]) -> None:
    for number, (photo, row) in enumerate(zip(photos, rows, strict=True)):
        suffix = ".txt" if number % 2 else "_inception_v3.txt"
        path = folder / photo.label / f"{photo.path.name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(str(x) for x in row), encoding="utf-8")


def test_text_bottlenecks_are_read_as_they_are_and_bad_ones_computed(
    script, bottlenecks, folder, photos, tmp_path, capsys
):
    network = bottlenecks.GoogleNetwork(write_google(tmp_path / "model"))
    rows = np.concatenate([features for _, features in network.compute(photos)])
    write_texts(tmp_path / "cache", photos[:10], 2 * rows[:10])  # they differ from the graph's
    texts = sorted((tmp_path / "cache").rglob("*.txt"))
    texts[0].write_text("0.5,0.5", encoding="utf-8")
    texts[1].write_text(texts[1].read_text("utf-8").replace(",", ",nan,", 1), encoding="utf-8")
    texts[2].write_bytes(b"")
    bad = {path.name.partition(".jpg")[0] + ".jpg" for path in texts[:3]}
    flags = ["--image-dir", folder, "--network", "google", "--model_dir", tmp_path / "model"]
    retrain(script, tmp_path, *flags, "--flip_left_right", "--distorted_copies", "1", export=True)
    said = capsys.readouterr().out
    assert "7 from text files; 32 computed" in said
    assert said.count("Not used: ") == 3
    cache = bottlenecks.Bottlenecks(tmp_path / "cache", network.key)
    for number, (photo, row) in enumerate(zip(photos, rows, strict=True)):
        texted = number < 10 and photo.path.name not in bad
        np.testing.assert_allclose(cache.get(photo), row * (2 if texted else 1), rtol=1e-6)
    assert not (tmp_path / "out" / "output_model.keras").exists()
    with np.load(tmp_path / "run" / "head.npz") as head:
        hidden, hidden_bias, kernel, bias = (head[name] for name in head.files if name != "labels")
    graph = tf.compat.v1.GraphDef.FromString((tmp_path / "out" / "graph.pb").read_bytes())
    assert "softmax" not in {node.name for node in graph.node}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph, name="")
        feed = {"DecodeJpeg/contents:0": read(photos[20])}
        given, result = session.run(["pool_3/_reshape:0", "final_result:0"], feed)
    np.testing.assert_allclose(given[0], rows[20], rtol=1e-4, atol=1e-6)
    z = np.maximum(rows[20] @ hidden + hidden_bias, 0) @ kernel + bias
    np.testing.assert_allclose(result[0], np.exp(z) / np.exp(z).sum(), rtol=1e-3)


def test_with_all_text_bottlenecks_no_graph_is_needed(
    script, folder, photos, bottlenecks, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(inception_v3, "find_graph_def", lambda path, download: None)
    flags = ["--image-dir", folder, "--network", "google"]
    write_texts(tmp_path / "cache", photos[:-1], [made_up(photo) for photo in photos[:-1]])
    said = refused(script, tmp_path, capsys, *flags)
    assert f"{photos[-1].path} has no bottleneck" in said
    write_texts(tmp_path / "cache", photos[-1:], [made_up(photos[-1])])
    retrain(script, tmp_path, *flags, export=True)
    assert "No output_graph.pb" in capsys.readouterr().out
    assert not [*(tmp_path / "out").iterdir()]
    assert result_of(tmp_path)["metrics"]["test_accuracy"] > 0.8
    args = SimpleNamespace(network="keras", weights="none", quick=True, seed=1, image_size=None)
    script.find_network(SimpleNamespace(**vars(args), bottleneck_dir=tmp_path / "cache"))
    assert "--network google reads them" in capsys.readouterr().out


DATA = Path(os.environ.get("COURSE_DATA", "")) / "inception_v3"


@pytest.mark.skipif(not (DATA / "bottleneck_txt").is_dir(), reason="COURSE_DATA has no text files")
def test_googles_own_text_files(bottlenecks):
    with np.load(DATA / "flower_photos_pool3.npz", allow_pickle=False) as file:
        rows = dict(zip(file["names"].tolist(), file["features"], strict=True))
    paths = [*(DATA / "bottleneck_txt").glob("*/*.txt")]
    assert len(paths) == 100
    for path in paths:
        name = f"{path.parent.name}/{path.name.removesuffix('.txt')}"
        np.testing.assert_allclose(bottlenecks.read_text(path), rows[name], rtol=1e-6)


# ---- bad input -------------------------------------------------------------------------------


def test_photos_that_are_no_data_set(script, folder, bottlenecks, tmp_path, capsys):
    network = fake(bottlenecks)
    for name, plan in {"empty": {}, "one": {CLASSES[0]: 5}, "few": {CLASSES[0]: 5, "b": 1}}.items():
        (tmp_path / name).mkdir()
        for label, count in plan.items():
            (tmp_path / name / label).mkdir()
            for number in range(count):
                picture = draw_stand_in("circles", number + 40 * len(label))
                picture.save(tmp_path / name / label / f"{number}.jpg")
        said = refused(
            script, tmp_path / "r", capsys, "--image-dir", tmp_path / name, network=network
        )
        assert "at least two classes" in said, name
    said = refused(script, tmp_path / "r", capsys, "--image-dir", tmp_path / "nowhere")
    assert "no folder" in said
    said = refused(
        script, tmp_path / "r", capsys, "--image-dir", folder, "--strict", network=network
    )
    assert "--strict: stopped" in said
    assert not network.computed


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--testing_percentage", "0"], "can't be 0"),
        (["--validation_percentage", "60", "--testing-percentage", "40"], "nothing to train on"),
        (["--random_crop", "101"], "not a number from 0 to 100"),
        (["--how_many_training_steps", "0"], "a whole number from 1"),
        (["--final_tensor_name", "a b"], "no name 'a b'"),
        (["--test_batch_size", "0"], "-1 for all photos"),
        (["--network", "google", "--weights", "none"], "Google's graph has its own"),
        (["--network", "google", "--image-size", "139"], "takes 299 pixels"),
        (["--network", "google", "--model_dir", "nowhere"], "there is neither"),
        (["--model_dir", "somewhere"], "--weights"),
        (["--output_labels", "output.json", "--output_graph", "graph.pb"], "of another file"),
        (["--weights", "nowhere.h5"], "no file nowhere.h5"),
        (["--resume"], "unrecognized arguments: --resume"),
    ],
)
def test_flags_that_make_no_sense(script, folder, tmp_path, capsys, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(script, tmp_path, capsys, "--image-dir", folder, *flags)


def test_folders_that_cannot_be_written_into(script, folder, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    names = ("--bottleneck_dir", "--output_graph", "--output_labels", "--summaries_dir")
    for name in names:
        where = tmp_path / "file" / "below" / "it"
        said = refused(script, tmp_path, capsys, "--image-dir", folder, name, where)
        assert f"{name}: can't write into the folder" in said


def test_a_full_disk_is_a_sentence_and_what_was_written_stays(
    script, bottlenecks, folder, tmp_path, capsys, monkeypatch
):
    save, calls = np.save, []

    def full(path: Path, row: np.ndarray) -> None:
        calls.append(path)
        if len(calls) > 9:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, row)

    flags = ["--image-dir", folder]
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        said = refused(script, tmp_path, capsys, *flags, network=fake(bottlenecks))
    assert os.strerror(errno.ENOSPC) in said
    assert "the same command finds them" in said
    assert len([*(tmp_path / "cache").rglob("*.npy")]) == 9
    network = fake(bottlenecks)
    retrain(script, tmp_path, *flags, network=network)
    assert len(network.computed) == 3 * COUNT - 9


def test_a_photo_that_changes_or_that_tensorflow_cannot_decode(
    bottlenecks, photos, tmp_path, monkeypatch
):
    network = bottlenecks.KerasNetwork(inception_v3.find_weights("none", False), SIZE)
    network.pool3 = lambda images: tf.zeros([len(images), 2048])
    gone = photos[3]._replace(digest=hashlib.sha256(b"other").hexdigest())
    with pytest.raises(OSError, match="changed"):
        [*network.compute([*photos[:3], gone, *photos[4:6]])]
    contents = {
        photo: b"\xff\xd8\xff\xe0 no picture" if photo == photos[3] else read(photo)
        for photo in photos[:6]
    }
    monkeypatch.setattr(bottlenecks, "read", contents.get)
    with pytest.raises(bottlenecks.PhotosError, match="照片") as caught:
        [*network.compute(photos[:6])]
    assert str(photos[3].path) in str(caught.value)
    google = bottlenecks.GoogleNetwork(write_google(tmp_path))
    with pytest.raises(bottlenecks.PhotosError, match="can't be decoded"):
        [*google.compute(photos[3:4])]


def test_summaries_dir_gets_the_event_files(script, bottlenecks, folder, tmp_path, capsys):
    flags = ["--image-dir", folder, "--summaries_dir", tmp_path / "logs"]
    flags += ["--head", "linear", "--class-weights", "balanced", "--test_batch_size", "2"]
    retrain(script, tmp_path, *flags, network=fake(bottlenecks))
    folders = ("train", "validation", "projector", "figures", "graph")
    files = {name: [*(tmp_path / "logs" / name).glob("events.*")] for name in folders}
    assert [len(some) for some in files.values()] == [1, 1, 1, 1, 1]
    retrain(script, tmp_path, *flags, network=fake(bottlenecks))
    assert all(path.exists() for some in files.values() for path in some), "of another run"
    assert not [*(tmp_path / "run").rglob("events.*")]
    assert result_of(tmp_path)["test_photos"] == 2
    assert f"--logdir {tmp_path / 'logs'}" in capsys.readouterr().out


def test_the_shell_scripts_call_it_with_flags_it_has(script, tmp_path):
    shell, batch = (CHAPTER / f"retrain.{kind}" for kind in ("sh", "bat"))
    values = {}
    for path in (shell, batch):
        text = path.read_text(encoding="utf-8")
        settings = dict(re.findall(r"^(?:set )?([A-Z_]+)=([0-9.]+)$", text, re.MULTILINE))
        assert len(settings) == 5
        words = re.sub(r'["$%]', "", text[text.index("--image_dir") :].replace("^", ""))
        words = [settings.get(word, word) for word in words.replace("\\\n", " ").split()]
        values[path.suffix] = vars(
            script.flags().parse_args(
                words[: words.index(words[-1]) + 1]
                if path == shell
                else words[: words.index("exit")]
            )
        )
    assert values[".sh"] == values[".bat"]
    defaults = vars(script.flags().parse_args([]))
    for name in ("how_many_training_steps", "train_batch_size", "learning_rate"):
        assert values[".sh"][name] == defaults[name]
    if os.name == "posix":
        done = subprocess.run(
            ["sh", shell, "my photos"],
            env=os.environ | {"PYTHON": "echo"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "01_retrain.py --image_dir my photos --bottleneck_dir" in done.stdout
