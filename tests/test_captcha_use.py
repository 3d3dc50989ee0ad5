"""Testing and using a captcha recogniser, with an oracle: a saved Keras model that finds in an
image's top rows which answer, right or wrong, it is to give, and how sure it is to be."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
from helpers import Finished, load_script, run_program, run_quick
from keras import ops
from PIL import Image
from scipy import stats

from data import captchas
from models import captcha
from utils.tfrecord import write_dataset

TEST, RECOGNIZE = "captcha_multitask/04_test.py", "captcha_multitask/05_recognize.py"
DIGITS = captchas.ALPHABETS["digits"]
COUNT = 60
ALTERED = {3: {1: 7}, 7: {0: 1, 2: 9}, 11: {1: 7}, 59: {3: 5}}  # image: position: shift of class
SURE = {3: 250, 7: 120, 11: 200}  # the probability of each character, in 255ths; others 240


@pytest.fixture(scope="module")
def test_script() -> ModuleType:
    return load_script(TEST)


@pytest.fixture(scope="module")
def use_script() -> ModuleType:
    return load_script(RECOGNIZE)


def oracle(length: int = 4, classes: int = 10) -> keras.Model:
    """Of ``length`` parts of the image's width, rows 0 to 9 hold 25 × the class and rows 10 to
    19 its probability × 255, as grey; blocks, so that resizing and JPEG leave them readable."""
    pixels = keras.Input((60, 160, 3), dtype="uint8")
    grey = ops.mean(ops.cast(pixels, "float32"), axis=-1)
    middles = slice(160 // length // 2, None, 160 // length)
    chosen = ops.one_hot(ops.cast((grey[:, 5, middles] + 12) // 25, "int32"), classes)
    p = grey[:, 15, middles, None] / 255
    return keras.Model(pixels, chosen * p + (1 - chosen) * (1 - p) / (classes - 1))


def coded(text: str, sure: int = 240, picture: Image.Image | None = None) -> Image.Image:
    """An image that the oracle reads as ``text``, each character with the probability
    ``sure``/255."""
    pixels = np.full((60, 160, 3), 200, np.uint8) if picture is None else np.array(picture)
    for k, character in enumerate(text):
        part = slice(160 // len(text) * k, 160 // len(text) * (k + 1))
        pixels[:10, part] = 25 * int(character)
        pixels[10:20, part] = sure
    return Image.fromarray(pixels)


def answer_to(index: int) -> tuple[str, str]:
    """Truth and planned answer for a test image."""
    truth, _ = captchas.Captchas().draw(index)
    classes = captchas.encode_text(truth, DIGITS)
    read = [(c + ALTERED.get(index, {}).get(k, 0)) % 10 for k, c in enumerate(classes)]
    return truth, captchas.decode_classes(read, DIGITS)


def record(index: int, size: tuple[int, int] = (160, 60)) -> dict[str, Any]:
    truth, read = answer_to(index)
    image = coded(read, SURE.get(index, 240), captchas.Captchas().draw(index)[1])
    file = io.BytesIO()
    image.resize(size).save(file, "PNG")
    return {"image": file.getvalue(), "classes": captchas.encode_text(truth, DIGITS)}


def write_records(folder: Path, numbers: Sequence[int], size: tuple[int, int] = (160, 60)) -> Path:
    about = {"kind": "captcha", "alphabet": DIGITS, "length": 4, "warp": "modern"}
    about |= {"width": size[0], "height": size[1], "seed": 1, "captcha": "0.7.1"}
    splits = {"train": [0], "validation": numbers[:2], "test": numbers}
    write_dataset(folder, splits, lambda i: record(i, size), about=about)
    return folder


def save_oracle(folder: Path, alphabet: str = DIGITS, length: int = 4) -> Path:
    about = {"alphabet": alphabet, "length": length, "width": 160, "height": 60, "warp": "legacy"}
    captcha.save_recogniser(folder, oracle(length, len(alphabet)), about)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_oracle(tmp_path_factory.mktemp("models") / "oracle")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), range(COUNT))


@pytest.fixture(scope="module")
def tested(records: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("runs") / "test"
    return run_quick(TEST, folder, "--records", records, "--model", model, "--batch-size", 7)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a script's ``main()`` in this process and return its result.json."""

    def main(script: ModuleType, *arguments: str | Path) -> dict[str, Any]:
        folder = tmp_path / "run"
        words = [script.__file__, "--run-dir", folder, *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Run replaces it
        try:
            script.main()
        finally:
            script.plt.close("all")
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))

    return main


# ---- 04: the formulas ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),  # R. G. Newcombe, Statistics in Medicine 17, 1998, table I
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(test_script, right, total, low, high):
    assert test_script.wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)
    other = test_script.wilson_interval(total - right, total)
    assert other == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_intervals_equal_scipys_and_hold_the_truth_in_19_of_20_cases(test_script):
    shares, total = np.linspace(0.01, 0.99, 99), 50
    intervals = np.array([test_script.wilson_interval(k, total) for k in range(total + 1)])
    for k in range(total + 1):
        other = stats.binomtest(k, total).proportion_ci(0.95, method="wilson")
        assert intervals[k] == pytest.approx([other.low, other.high], abs=1e-12)
    chances = stats.binom.pmf(np.arange(total + 1), total, shares[:, np.newaxis])
    low, high = intervals.T
    held = (low <= shares[:, np.newaxis]) & (shares[:, np.newaxis] <= high)
    coverage = (chances * held).sum(axis=1)  # exact, for each true share
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.85
    assert test_script.wilson_interval(1000, 1000) == (pytest.approx(0.99617, abs=1e-5), 1.0)


def test_calibration_error_by_hand(test_script):
    confidence = np.array([0.1, 0.3, 0.5, 0.9, 0.7, 1.0])
    right = np.array([False, True, False, True, True, True])
    error, counts, means, hits = test_script.calibration(confidence, right, bins=2)
    assert counts.tolist() == [3, 3]  # 0.5 still belongs to the lower bin
    assert hits.tolist() == [1, 3]
    assert means == pytest.approx([0.3, 2.6 / 3])
    assert error == pytest.approx(3 / 6 * (1 / 3 - 0.3) + 3 / 6 * (1 - 2.6 / 3))
    error, counts, *_ = test_script.calibration(np.array([0.0, 1.0]), np.array([False, True]))
    assert error == 0
    assert counts[[0, -1]].tolist() == [1, 1]


def test_refusing_by_hand(test_script):
    confidence = np.array([0.2, 0.5, 0.6, 0.9])
    right = np.array([False, True, False, True])
    rows = test_script.refusals(confidence, right, (0.0, 0.5, 0.7, 0.95))
    assert rows == [(0.0, 0, 4, 2), (0.5, 1, 3, 2), (0.7, 3, 1, 1), (0.95, 4, 0, 0)]


def test_the_confusion_matrix_shows_every_count_and_fits_62_characters(test_script):
    alphabet = captchas.ALPHABETS["alnum"]
    generator = np.random.default_rng(1)
    truth = generator.integers(62, size=(20_000, 4))
    read = np.where(generator.random(truth.shape) < 0.02, (truth * 7 + 3) % 62, truth)
    scores = test_script.Scores(truth, read, np.ones(len(truth)), np.zeros(len(truth)))
    figure = test_script.show_confusion(scores, alphabet)
    figure.canvas.draw()
    axes = figure.axes[0]
    by_hand = np.zeros((62, 62), int)
    np.add.at(by_hand, (truth.ravel(), read.ravel()), 1)
    shown = np.zeros((62, 62), int)
    cell = axes.get_window_extent().width / 62  # pixels
    for text in axes.texts:
        column, row = text.get_position()
        shown[row, column] = int(text.get_text())
        assert text.get_window_extent().width < cell, "numbers run into each other"
        assert text.get_fontsize() > 4
    assert (shown == by_hand).all()
    off = by_hand * (1 - np.eye(62, dtype=int))
    assert axes.images[0].get_clim() == (0, off.max()), "mistakes, not the diagonal, set the scale"
    commonest = test_script.commonest_mistakes(scores, alphabet, 1)[0]
    assert commonest[2] == off.max()
    row, column = (alphabet.index(c) for c in commonest[:2])
    assert off[row, column] == off.max()
    test_script.plt.close("all")


# ---- 04: the run ---------------------------------------------------------------------------


def test_known_answers_give_exactly_these_metrics(tested):
    metrics = tested.metrics
    assert metrics["whole_captcha_accuracy"] == (COUNT - 4) / COUNT
    assert metrics["character_accuracy"] == pytest.approx(1 - 5 / (4 * COUNT))
    for position, wrong in enumerate([1, 2, 1, 1], start=1):
        assert metrics[f"position_{position}_accuracy"] == pytest.approx(1 - wrong / COUNT)
    loss = 0
    for index in range(COUNT):
        p = SURE.get(index, 240) / 255
        wrong = len(ALTERED.get(index, ()))
        loss -= (4 - wrong) * np.log(p) + wrong * np.log((1 - p) / 9)
    assert metrics["test_loss"] == pytest.approx(loss / COUNT, rel=1e-5)
    # The confidences: 56 right and one wrong at (240/255)^4 = 0.785, wrong ones at 0.924 (bin 14
    # of 15), 0.049 (bin 1), 0.378 (bin 6).
    gap = abs(56 - 57 * (240 / 255) ** 4) + sum((s / 255) ** 4 for s in SURE.values())
    assert metrics["calibration_error"] == pytest.approx(gap / COUNT, rel=1e-5)
    assert tested.result["images"] == COUNT
    low, high = tested.result["intervals"]["whole_captcha_accuracy"]
    other = stats.binomtest(COUNT - 4, COUNT).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((other.low, other.high))
    assert set(tested.result["intervals"]) == {
        name for name in metrics if name.startswith(("whole", "position"))
    }
    assert tested.result["warp"] == {"records": "modern", "model": "legacy"}
    assert "trained on legacy" in tested.output
    product = np.prod([metrics[f"position_{k}_accuracy"] for k in (1, 2, 3, 4)])
    assert f"With independent mistakes {product:.2%}" in tested.output
    assert tested.figures == ["confusion", "calibration", "mistakes", "successes"]


def test_every_test_image_is_in_predictions_once_in_order(tested):
    with (tested.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(COUNT))
    assert [(row["truth"], row["prediction"]) for row in rows] == [*map(answer_to, range(COUNT))]
    sure = [(SURE.get(i, 240) / 255) ** 4 for i in range(COUNT)]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(sure, rel=1e-4)


def test_images_of_another_size_are_resized_and_a_test_without_mistakes_says_so(
    test_script, call, model, tmp_path, capsys
):
    numbers = [i for i in range(12) if i not in ALTERED]
    folder = write_records(tmp_path / "large", numbers, size=(240, 90))
    result = call(test_script, "--records", folder, "--model", model)
    assert result["metrics"]["whole_captcha_accuracy"] == 1
    output = capsys.readouterr().out
    assert "240×90, the model takes 160×60: they are resized" in output
    assert f"No mistakes in {len(numbers)} images" in output
    assert "mistakes.png" in result["figures"]


def test_a_test_with_nothing_right_and_the_validation_split(
    test_script, call, model, tmp_path, capsys
):
    folder = write_records(tmp_path / "wrong", [3, 7, 11])
    result = call(test_script, "--records", folder, "--model", model, "--split", "validation")
    assert result["metrics"]["whole_captcha_accuracy"] == 0
    assert "validation_loss" in result["metrics"]
    assert result["images"] == 2
    assert "Not one captcha was read right" in capsys.readouterr().out


# ---- 04 and 05: what does not fit or is damaged --------------------------------------------


def refused(call, script: ModuleType, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        call(script, *arguments)
    assert isinstance(stopped.value.code, str), "a sentence makes the exit status 1"
    return stopped.value.code


def test_a_model_of_another_alphabet_or_length_is_refused(test_script, call, records, tmp_path):
    backwards = save_oracle(tmp_path / "backwards", alphabet=DIGITS[::-1])
    message = refused(call, test_script, "--records", records, "--model", backwards)
    assert "'9876543210'" in message
    assert "'0123456789'" in message
    longer = save_oracle(tmp_path / "longer", length=5)
    message = refused(call, test_script, "--records", records, "--model", longer)
    assert "reads 5 characters, these are texts of 4" in message


def test_damaged_and_missing_models(test_script, use_script, call, records, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    image = tmp_path / "1234.png"
    coded("1234").save(image)
    content = bytearray((copy / "model.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.keras").write_bytes(content)
    both = [(test_script, "--records", records), (use_script, image)]
    for arguments in both:
        message = refused(call, *arguments, "--model", copy)
        assert "model.keras is altered" in message
        assert "03_train.py" in message
    (copy / "model.json").unlink()
    for arguments in both:
        assert "holds no model: train one" in refused(call, *arguments, "--model", copy)


def test_damaged_and_missing_records(test_script, call, records, model, tmp_path):
    copy = shutil.copytree(records, tmp_path / "copy")
    shard = next(copy.glob("test_00001*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    message = refused(call, test_script, "--records", copy, "--model", model)
    assert f"{shard.name} is cut short or altered" in message
    shard.unlink()
    message = refused(call, test_script, "--records", copy, "--model", model)
    assert f"{shard.name} is missing" in message
    message = refused(call, test_script, "--quick", "--records", tmp_path / "no", "--model", model)
    assert "dataset.json is missing" in message
    assert "02_images_to_tfrecords.py --quick" in message
    other = tmp_path / "other"
    write_dataset(other, {"test": [1]}, lambda i: {"number": i})
    message = refused(call, test_script, "--records", other, "--model", model)
    assert "holds no captchas" in message


# ---- 05 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good images of many kinds, all of which the oracle reads as 1234."""
    folder = tmp_path_factory.mktemp("zoo")
    image = coded("1234", 255)
    image.save(folder / "1234.png")
    image.save(folder / "1234_jpeg.jpg", quality=95)
    image.save(folder / "1234_gif.GIF")
    image.save(folder / "1234_webp.webp", lossless=True)
    image.save(folder / "1234_wrong_suffix.jpg", "PNG")
    image.convert("L").save(folder / "1234_grey.png")
    image.convert("RGBA").save(folder / "1234_rgba.png")
    sixteen = np.asarray(image.convert("L"), np.uint16) * 257
    Image.fromarray(sixteen).save(folder / "1234_sixteen.png")
    image.resize((480, 180)).save(folder / "1234_large.bmp")
    image.resize((80, 30), Image.Resampling.NEAREST).save(folder / "1234_small.tiff")
    lying = image.transpose(Image.Transpose.ROTATE_90)  # orientation 6: to be turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(folder / "1234_lying.jpg", quality=95, exif=exif)
    (folder / "验证码").mkdir()
    image.save(folder / "验证码" / "图片.png")
    image.save(folder / "12_short.png")
    image.save(folder / "12ab.png")
    coded("1239").save(folder / "1234_misread.png")
    (folder / "captchas.json").write_text("{}", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"no image")
    (folder / ".git").mkdir()
    (folder / ".git" / "1234.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    coded("1234").save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    file = io.BytesIO()
    coded("1234").save(file, "AVIF")
    content = bytearray(file.getvalue())
    content[-len(content) // 3 :: 2] = bytes(len(content[-len(content) // 3 :: 2]))
    (folder / "damaged.avif").write_bytes(content)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no image", encoding="utf-8")
    return folder


def test_a_folder_of_all_kinds_of_images(use_script, zoo, model, tmp_path):
    run = run_quick(RECOGNIZE, tmp_path / "run", zoo, "--model", model)
    answers = json.loads((run.folder / "readings.json").read_text(encoding="utf-8"))
    wanted = [p for p in sorted(zoo.rglob("*")) if p.is_file() and "/." not in p.as_posix()]
    wanted = [str(p) for p in wanted if p.suffix != ".json"]
    assert [answer["file"] for answer in answers] == wanted
    assert len(answers) == 15
    for answer in answers:
        name = Path(answer["file"]).name
        assert answer["error"] is answer["warning"] is None
        misread = name == "1234_misread.png"
        assert answer["text"] == ("1239" if misread else "1234"), name
        assert [c["character"] for c in answer["characters"]] == list(answer["text"])
        product = np.prod([c["probability"] for c in answer["characters"]])
        assert answer["confidence"] == pytest.approx(product)
        assert answer["confidence"] == pytest.approx((240 / 255) ** 4 if misread else 1, abs=0.05)
        labelled = name.startswith("1234")
        assert answer["label"] == ("1234" if labelled else None)
        assert answer["correct"] == (not misread if labelled else None)
    assert run.metrics == {"images": 15, "failed": 0, "whole_captcha_accuracy": 11 / 12}
    assert "wrong: 1234" in run.output
    assert "Of 12 images with a text in the name 11 are right." in run.output


def test_json_stands_alone_and_broken_files_do_not_stop_the_others(zoo, broken, model, tmp_path):
    files = [broken, zoo / "1234.png", zoo / "验证码", broken / "missing.png"]
    done = run_program(RECOGNIZE, "--json", *files, "--model", model, "--run-dir", tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    answers = json.loads(done.stdout)
    assert [Path(answer["file"]).name for answer in answers] == [
        "cut.png", "damaged.avif", "empty.png", "text.png", "1234.png", "图片.png", "missing.png",
    ]  # fmt: skip
    assert [answer["text"] for answer in answers] == [None, None, None, None, "1234", "1234", None]
    for answer in answers:
        assert (answer["error"] is None) == (answer["text"] is not None)
    assert "truncated" in answers[0]["error"]
    assert answers[-1]["error"] == "No such file or directory"
    assert "5 of 7 files could not be read" in done.stderr
    assert "text.png: " in done.stderr
    assert "Result: " in done.stderr


def test_a_batch_gives_what_one_image_at_a_time_gives(use_script, zoo, broken, tmp_path):
    recogniser = captcha.Recogniser(
        keras.Sequential(
            [
                keras.Input((60, 160, 3), dtype="uint8"),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Conv2D(4, 5, strides=4),
                keras.layers.Flatten(),
                keras.layers.Dense(40),
                keras.layers.Reshape((4, 10)),
                keras.layers.Softmax(),
            ]
        ),
        tmp_path,
        {"alphabet": DIGITS, "length": 4, "width": 160, "height": 60},
    )
    paths = [*broken.iterdir(), *use_script.find_images([str(zoo)])]
    together, images = use_script.read_batch(recogniser, paths)
    assert len(images) == 15
    assert len({answer["confidence"] for answer in together[4:]}) > 5, "images differ"
    for path, answer in zip(paths, together, strict=True):
        (alone,), _ = use_script.read_batch(recogniser, [path])
        assert alone["text"] == answer["text"]
        assert alone["error"] == answer["error"]
        if answer["error"] is None:
            assert alone["confidence"] == pytest.approx(answer["confidence"], rel=1e-4)


def test_more_images_than_a_batch_keep_their_order(use_script, model, tmp_path, monkeypatch):
    monkeypatch.setattr(use_script, "BATCH", 4)
    texts = [f"{number:04}" for number in range(0, 9999, 771)]
    for number, text in enumerate(texts):
        coded(text).save(tmp_path / f"{number:02}.png")
    paths = list(use_script.find_images([str(tmp_path)]))
    console = use_script.Console(file=io.StringIO())
    answers, images = use_script.read_all(captcha.load_recogniser(model), paths, console)
    assert [answer["text"] for answer in answers] == texts
    assert len(images) == use_script.SHOWN < len(texts)


def test_other_proportions_are_read_with_a_warning(use_script, call, model, tmp_path, capsys):
    path = tmp_path / "1234_[square].png"
    coded("1234").resize((160, 160)).save(path)
    assert call(use_script, path, "--model", model)["metrics"]["whole_captcha_accuracy"] == 1
    output = capsys.readouterr().out
    assert "1 of 1 images were squeezed" in output
    assert f"{path}: 160×160 has other proportions than the model's 160×60" in output


@pytest.mark.parametrize(("flags", "folder"), [((), "images"), (("--quick",), "quick/images")])
def test_what_is_read_when_nothing_is_named(
    use_script, call, model, tmp_path, monkeypatch, flags, folder
):
    monkeypatch.setattr(captchas, "FOLDER", tmp_path)
    message = refused(call, use_script, *flags, "--model", model)
    assert " ".join(("01_generate_images.py", *flags)) in message
    (tmp_path / folder).mkdir(parents=True)
    for number in range(20):
        coded(f"{number:04}").save(tmp_path / folder / f"{number:04}_{number:06}.png")
    result = call(use_script, *flags, "--model", model)
    expected = {"images": use_script.FEW, "failed": 0, "whole_captcha_accuracy": 1}
    assert result["metrics"] == expected


def test_an_empty_folder_is_an_error_of_its_own(use_script, call, model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        call(use_script, tmp_path / "empty", "--model", model)
    assert stopped.value.code == 1
    assert "no images in this folder" in capsys.readouterr().out
