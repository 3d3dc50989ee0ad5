"""models/classifier.py: a trained classifier saved, loaded and asked, with a network so small that
its answers can be computed from the pixels."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, norm

from models import classifier
from models.classifier import ModelError, load_classifier, save_classifier, whole_model

CLASSES = ["red", "绿 green", "blue"]
SIZE = 32
FILES = ("red.png", "green.jpg", "telephone.jpg", "blue.webp", "see-through.png")


def tiny() -> keras.Model:
    """Images [b, size, size, 3] in [-1, 1] to the means of the colours, times 4."""
    images = keras.Input((SIZE, SIZE, 3))
    return keras.Model(images, 4 * keras.layers.GlobalAveragePooling2D()(images))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pool3" / "output_model.keras"
    head = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5)])  # off when it is used
    about = {"classes": CLASSES, "size": SIZE, "weights": "made up"}
    about |= {"training_photos": [hashlib.sha256(b"a photo").hexdigest()]}
    save_classifier(path, whole_model(tiny(), head, SIZE, CLASSES), about)
    assert sorted(p.name for p in path.parent.iterdir()) == ["output_model.json", path.name]
    return path.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of many kinds. The upper half is of the colour in the name, the lower one grey."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.full((60, 90, 3), 100, np.uint8)
    pixels += np.random.default_rng(1).integers(0, 30, pixels.shape, np.uint8)
    pictures = []
    for channel in range(3):
        picture = pixels.copy()
        picture[:30, :, channel] += 120
        pictures.append(Image.fromarray(picture))
    red, green, blue = pictures
    red.save(folder / "red.png")
    green.save(folder / "green.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = green.transpose(Image.Transpose.ROTATE_90)
    lying.save(folder / "telephone.jpg", quality=95, exif=exif)
    blue.save(folder / "blue.webp", lossless=True)
    page = red.convert("RGBA")
    page.paste((0, 0, 255, 0), (0, 0, 90, 30))  # transparent: to be seen as white
    page.save(folder / "see-through.png")
    return folder


def expected(picture: Image.Image) -> np.ndarray:
    means = np.asarray(picture.convert("RGB"), float).mean(axis=(0, 1)) / 127.5 - 1
    powers = np.exp(4 * means)
    return powers / powers.sum()


def test_probabilities_are_those_of_the_pixels_whatever_the_file(folder, photos):
    trained = load_classifier(folder)
    assert (trained.classes, trained.size) == (CLASSES, SIZE)
    sources = [photos / name for name in FILES] + [(photos / "red.png").read_bytes()]
    rows = dict(trained.probabilities(sources))
    assert [*rows] == [*range(6)]
    white = Image.new("RGB", (90, 60), "white")
    white.paste(Image.open(photos / "red.png").crop((0, 30, 90, 60)), (0, 30))
    green = Image.open(photos / "green.jpg")
    pictures = [Image.open(photos / "red.png"), green, green, Image.open(photos / "blue.webp")]
    for number, picture in enumerate([*pictures, white, pictures[0]]):
        np.testing.assert_allclose(rows[number], expected(picture), atol=0.01, err_msg=str(number))
    np.testing.assert_array_equal(rows[5], rows[0])
    upper = trained.load(photos / "telephone.jpg")[: SIZE // 2 - 2]
    assert upper[..., 1].min() > upper[..., [0, 2]].max(), "turned upright"


def test_the_model_takes_whole_images_as_well_as_resized_ones(folder, photos):
    trained = load_classifier(folder / "output_model.keras")
    pixels = np.asarray(Image.open(photos / "red.png"))
    small = trained.load(photos / "red.png")
    whole = trained.model(pixels[np.newaxis]).numpy()  # training not mentioned
    np.testing.assert_allclose(trained.model(small[np.newaxis]).numpy(), whole, atol=1e-5)
    keras_resized = keras.layers.Resizing(SIZE, SIZE, antialias=True)(pixels.astype(np.float32))
    np.testing.assert_allclose(small, keras_resized, atol=1e-3)
    ((_, row),) = trained.probabilities([photos / "red.png"])
    np.testing.assert_allclose(row, whole[0], atol=1e-5)


def test_a_hundred_files_of_which_some_are_broken(folder, photos, tmp_path):
    trained = load_classifier(folder)
    content = (photos / "green.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    names = [photos / FILES[i % 5] for i in range(100)]
    names[7], names[50], names[99] = (tmp_path / n for n in ("cut.jpg", "text.jpg", "none.jpg"))
    failed: dict[int, str] = {}
    rows = dict(trained.probabilities(iter(names), failed))
    assert [*rows] == [i for i in range(100) if i not in (7, 50, 99)]
    assert [*failed] == [7, 50, 99]
    assert failed[99] == "No such file or directory"
    for i in range(5, 100):
        if i in rows and i - 5 in rows:
            np.testing.assert_allclose(rows[i], rows[i % 5], rtol=1e-4)
    with pytest.raises(ValueError, match="no image"):
        list(trained.probabilities([tmp_path / "text.jpg"]))
    assert list(trained.probabilities([])) == []


def test_a_training_photo_is_known_by_its_content(folder):
    trained = load_classifier(folder)
    assert trained.was_trained_on(b"a photo")
    assert not trained.was_trained_on(b"another photo")


def test_what_is_missing_altered_or_does_not_fit_is_a_sentence(folder, tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(ModelError) as caught:
            load_classifier(path)
        return str(caught.value)

    assert "is no model" in refused(tmp_path / "none.keras")
    assert "is no model" in refused(tmp_path)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copy(copy / "output_model.keras", copy / "second.keras")
    assert "holds 2 models" in refused(copy)
    assert "second.json is missing" in refused(copy / "second.keras")
    (copy / "second.keras").unlink()
    content = (copy / "output_model.keras").read_bytes()
    (copy / "output_model.keras").write_bytes(content[:-9])
    assert "is altered" in refused(copy)
    facts = json.loads((copy / "output_model.json").read_text(encoding="utf-8"))
    facts["sha256"] = hashlib.sha256(content[:-9]).hexdigest()
    (copy / "output_model.json").write_text(json.dumps(facts), encoding="utf-8")
    assert "can't be loaded" in refused(copy)
    (copy / "output_model.json").write_text("{", encoding="utf-8")
    assert "damaged" in refused(copy)
    with pytest.raises(ModelError, match="3 logits don't fit 2 classes"):
        whole_model(tiny(), None, SIZE, CLASSES[:2])


def test_a_save_that_fails_leaves_what_was_there(folder, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = {path: path.read_bytes() for path in copy.iterdir()}
    model = whole_model(tiny(), None, SIZE, CLASSES)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(classifier, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save_classifier(copy / "output_model.keras", model, {"classes": CLASSES, "size": SIZE})
    assert {path: path.read_bytes() for path in copy.iterdir()} == before


def test_wilson_solves_its_equation():
    for right, total in ((48, 52), (0, 10), (10, 10)):
        for end in classifier.wilson(right, total):
            z = norm.ppf(0.975)
            gap = abs(right / total - end) - z * np.sqrt(end * (1 - end) / total)
            assert abs(gap) < 1e-9


def test_mcnemar_counts_only_photos_on_which_the_models_differ():
    right_a = np.array([True] * 300 + [False] * 40 + [True] * 40 + [False] * 20)
    right_b = np.array([True] * 300 + [True] * 40 + [False] * 40 + [False] * 20)
    assert classifier.mcnemar(right_a, right_b) == 1
    assert classifier.mcnemar(right_a, right_a) == 1
    right_b[340:365] = True  # now 40 against 15
    p = classifier.mcnemar(right_a, right_b)
    assert p == pytest.approx(2 * sum(math.comb(55, k) for k in range(16)) / 2**55)
    unpaired = chi2_contingency([[right_a.sum(), (~right_a).sum()], [365, 35]]).pvalue
    assert p < unpaired, "pairs tell more than two shares"


def test_a_test_is_counted_and_drawn(photos, capsys):
    truth = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    answers = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    found = classifier.print_test(truth, np.eye(3)[answers], CLASSES)
    assert found["accuracy"] == 6 / 8
    assert found["classes"]["red"] == {
        "precision": 1.0, "recall": 0.75, "f1-score": pytest.approx(6 / 7), "support": 4.0,
    }  # fmt: skip
    assert found["classes"]["绿 green"]["precision"] == 0.5
    assert "6 of 8 photos right: 75.0%" in capsys.readouterr().out
    (axes,) = classifier.draw_confusion(truth, answers, CLASSES).axes
    assert [int(text.get_text()) for text in axes.texts] == [3, 1, 0, 0, 2, 0, 0, 1, 1]
    files = [photos / name for name in FILES]
    figure = classifier.draw_photos(files, FILES, [name == "red.png" for name in FILES])
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles == list(FILES)
    assert figure.axes[0].title.get_color() != figure.axes[1].title.get_color()
    shown = figure.axes[2].images[0].get_array()
    assert shown.shape[0] < shown.shape[1], "the telephone's photo stands upright"
