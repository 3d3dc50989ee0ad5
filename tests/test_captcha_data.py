"""Chapter captcha_multitask, its data: what is drawn, what is kept of a folder, what is written."""

import csv
import hashlib
import io
import itertools
import json
import random
import resource
import secrets
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import captcha.image
import cloudpickle
import matplotlib
import numpy as np
import pytest
from helpers import ROOT, Lesson, run_lesson
from PIL import Image, ImageDraw
from test_tfrecord import example_by_hand, framed_records

from data import captchas as lib
from data.captchas import Captchas, LegacyImageCaptcha, load_image, resize
from utils.tfrecord import read_dataset

GENERATE = "captcha_multitask/01_generate_images.py"
CONVERT = "captcha_multitask/02_images_to_tfrecords.py"
SERIF = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def drawn(captchas: Captchas, count: int) -> dict[str, bytes]:
    """What a folder of these captchas must hold, drawn one after the other in this process."""
    some = {number: captchas.png(number) for number in range(count)}
    return {f"{text}_{number:06}.png": png for number, (text, png) in some.items()}


@pytest.fixture
def mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script that must end with a sentence; return the sentence."""

    def run(script: str, *flags: object) -> str:
        with pytest.raises(SystemExit) as end:
            run_lesson(script, tmp_path / "run", *flags)
        assert end.value.code not in (0, None)
        said = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err
        return " ".join(said.split())

    return run


# ---- data/captchas.py ----------------------------------------------------------------------


@pytest.mark.parametrize("style", lib.STYLES)
def test_an_image_depends_on_its_seed_and_number_alone(style):
    captchas = Captchas(style=style)
    row = [captchas.png(index) for index in range(6)]
    random.seed(0)
    np.random.seed(0)
    assert [captchas.png(index) for index in (5, 2, 0)] == [row[5], row[2], row[0]]
    assert [text for text, _ in row] == [captchas.text(index) for index in range(6)]
    assert len({png for _, png in row}) == 6
    assert not {png for _, png in row} & {replace(captchas, seed=2).png(i)[1] for i in range(6)}


@pytest.mark.parametrize(
    ("style", "digest"),
    [
        ("modern", "32cc78671a6d816ccb2bb352f789310d0d30365e2bbb57155c39aecc6d29dc5b"),
        ("legacy", "53c622f956a718e3b8a68b639899537208529737b59f1c3d9856883f9e1e4f12"),
        ("both", "c3257c409910d50a7acf5094851b6d72c0c022b93a73754cf456e2ff76405efc"),
        ("grey", "f794e9d4f132fdab46f936837599a18f523bbf5a8203cde6d7b8d038c58174f7"),
        ("noise", "47b482c26eb4fac311f0ed81d5ad7c1874a1bb4801ce4f5c7d45725ab5dea9aa"),
        ("lines", "c844248248051a021b2b55dbb36991a4cff4fc53396a76407b0ce06dfe56e69d"),
        ("dark", "f6a484cea5d7d1eda08ffe1ea34a360f74db134353d8cd05156e8fa1ceef5cc3"),
        ("mixed", "1eed519fe4ab9e4b2040e53c0ea14158129a66f58ba9a176a2b1b946d0d044ef"),
    ],
)
def test_the_pixels_are_those_they_always_were(style, digest):
    some = [Captchas(style=style).draw(index) for index in range(2)]
    assert [text for text, _ in some] == ["7435", "7706"]
    pixels = b"".join(np.asarray(image).tobytes() for _, image in some)
    assert hashlib.sha256(pixels).hexdigest() == digest


def test_both_draws_each_warp_about_every_other_time(monkeypatch):
    drawn_by = []
    original = captcha.image.ImageCaptcha.generate_image

    def noted(self, text):
        drawn_by.append(type(self))
        return original(self, text)

    monkeypatch.setattr(captcha.image.ImageCaptcha, "generate_image", noted)
    for index in range(40):
        Captchas(style="both", width=40, height=30, length=1).draw(index)
    assert set(drawn_by) == {captcha.image.ImageCaptcha, LegacyImageCaptcha}
    assert 10 <= drawn_by.count(LegacyImageCaptcha) <= 30


def test_what_the_styles_add_to_the_same_image():
    for index in range(8):
        images = {style: Captchas(style=style).draw(index)[1] for style in lib.KINDS}
        modern = np.asarray(images["modern"]).astype(int)  # [60, 160, 3]
        assert np.array_equal(images["dark"], 255 - modern)
        assert np.median(images["dark"]) < 20
        assert images["grey"].mode == "L"
        assert np.array_equal(images["grey"], images["modern"].convert("L"))
        noise = (np.asarray(images["noise"]) - modern)[(modern > 50).all(2) & (modern < 205).all(2)]
        assert 5 < noise.std() < 35
        assert abs(noise.mean()) < 5
        assert abs(noise).max() <= 50
        covered = (np.asarray(images["lines"]) != modern).any(axis=2)
        assert 0.01 < covered.mean() < 0.15
        assert covered.any(axis=0).all(), "from border to border"


def test_mixed_takes_every_style():
    images = [Captchas(style="mixed").draw(index)[1] for index in range(40)]
    grey, dark = (
        sum(image.mode == "L" for image in images),
        sum(np.mean(image) < 100 for image in images),
    )
    assert 1 <= grey <= 16
    assert 1 <= dark <= 16


class Chances:
    """In place of ``secrets``: says beforehand what is drawn."""

    def __init__(self, shares: list[float]) -> None:
        self.shares = iter(shares)

    def randbits(self, bits: int) -> int:
        return int(next(self.shares) * 2**bits)

    def randbelow(self, end: int) -> int:
        return 0

    def choice(self, items: list) -> object:
        return items[0]


def corners(kind: type, shares: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple:
    """The size of a character and the corners it is stretched between."""
    seen = []
    transform = Image.Image.transform

    def noted(self, size, method, data=None, *args, **kwargs):
        if method == Image.Transform.QUAD:  # to turn an image is a transform as well
            seen.append((size, data))
        return transform(self, size, method, data, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "transform", noted)
        patch.setattr(captcha.image, "secrets", Chances(shares))
        draw = ImageDraw.Draw(Image.new("RGB", (160, 60)))
        kind(160, 60)._draw_character("8", draw, (0, 0, 0))
    ((size, data),) = seen
    return size, data


def test_the_legacy_warp_is_the_formula_of_0_7_0(monkeypatch):
    dice = random.Random(0)
    moved = {captcha.image.ImageCaptcha: [], LegacyImageCaptcha: []}
    for _ in range(50):
        shares = [dice.random() for _ in range(7)]
        _, across, down, *places = shares
        (w, h), data = corners(LegacyImageCaptcha, shares, monkeypatch)
        # captcha 0.7.0: dx = w * random.uniform(0.1, 0.3), x1 = int(random.uniform(-dx, dx)) …
        dx, dy = w * (0.1 + 0.2 * across), h * (0.2 + 0.1 * down)
        x1, y1, x2, y2 = (
            int(-d + 2 * d * p) for d, p in zip((dx, dy, dx, dy), places, strict=True)
        )
        w2, h2 = w + abs(x1) + abs(x2), h + abs(y1) + abs(y2)
        assert data == (x1, y1, -x1, h2 - y2, w2 + x2, h2 + y2, w2 - x2, -y1)
        for kind, some in moved.items():
            _, data = corners(kind, shares, monkeypatch)
            some.append([abs(data[0]) / w, abs(data[1]) / h])
    modern, legacy = (np.mean(some, axis=0) for some in moved.values())
    assert legacy[0] > 1.5 * modern[0]
    assert legacy[1] > 3 * modern[1]


@pytest.mark.parametrize("style", lib.STYLES)
def test_secrets_are_secret_again_afterwards(style):
    Captchas(style=style).draw(0)
    assert captcha.image.secrets is secrets
    with pytest.raises(OSError, match="cannot open resource"):
        Captchas(style=style, fonts=("no such font.ttf",)).draw(0)
    assert captcha.image.secrets is secrets


def test_alphabets_by_name_and_as_they_are():
    assert lib.parse_alphabet("digits") == "0123456789"
    assert len(lib.parse_alphabet("alnum")) == 62
    assert lib.parse_alphabet("acb/+") == "acb/+"
    assert lib.decode_classes(lib.encode_text("cab", "acb"), "acb") == "cab"
    for bad, reason in [("", "empty"), ("abca", "'a' more than once"), ("a\tb", "can't be shown")]:
        with pytest.raises(ValueError, match=reason):
            lib.parse_alphabet(bad)


def test_an_image_of_another_size_is_resized_in_one_way(tmp_path):
    (tmp_path / "a.png").write_bytes(Captchas().png(0)[1])
    pixels = load_image(tmp_path / "a.png")
    assert (pixels.shape, pixels.dtype) == ((60, 160, 1), np.uint8)
    assert load_image(tmp_path / "a.png", (160, 60)).tobytes() == pixels.tobytes()
    small = load_image(tmp_path / "a.png", (80, 30))
    assert small.shape == (30, 80, 1)
    assert np.array_equal(small, resize(pixels, (80, 30)))
    assert abs(small.mean() - pixels.mean()) < 1


# ---- 01_generate_images.py -----------------------------------------------------------------


def test_several_processes_write_what_one_draws(tmp_path):
    folder = tmp_path / "images"
    lesson = run_lesson(GENERATE, tmp_path / "run", "--out", folder, "--count", 60)
    found = files(folder)
    settings = json.loads(found.pop("captchas.json"))
    assert settings == {
        "seed": 1,
        "alphabet": "0123456789",
        "length": 4,
        "width": 160,
        "height": 60,
        "fonts": [],
        "style": "modern",
        "captcha": "0.7.1",
    }
    assert found == drawn(Captchas(), 60)
    assert lesson.metrics["images"] == 60
    assert lesson.figures == ["samples", "styles"]


def test_killed_in_the_middle_it_goes_on_to_the_same_folder(tmp_path):
    killed = tmp_path / "killed"
    command = [sys.executable, ROOT / GENERATE, "--count", "50000"]
    command += ["--out", killed, "--run-dir", tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        deadline = time.monotonic() + 120
        while len([*killed.glob("*.png")]) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        program.kill()
    time.sleep(1)  # its workers notice
    numbers = {int(path.stem[-6:]) for path in killed.glob("[!.]*.png")}
    assert 30 <= len(numbers) < 5_000
    (killed / ".1234_000000.99.tmp.png").write_bytes(b"half an ima")
    (killed / ".captchas.99.tmp.json").write_bytes(b"{")
    for path in [*killed.glob("[!.]*.png")][:2]:
        path.write_bytes(b"")  # as a power cut leaves files that were not on the disk yet
    count = max(numbers) + 10
    run_lesson(GENERATE, tmp_path / "run", "--out", killed, "--count", count)
    found = files(killed)
    del found["captchas.json"]
    assert found == drawn(Captchas(), count)
    again = run_lesson(GENERATE, tmp_path / "run", "--out", killed, "--count", 10)
    assert again.metrics == {"images": count, "images_per_second": 0}
    assert len(files(killed)) == count + 1


def test_a_folder_of_other_settings_is_refused_and_untouched(tmp_path, mistake):
    folder = tmp_path / "images"
    flags = ("--out", folder, "--count", 6, "--alphabet", "lower", "--length", 3)
    flags += ("--size", 100, 40, "--style", "dark", "--fonts")
    run_lesson(GENERATE, tmp_path / "run", *flags, "DejaVu Serif")  # as Matplotlib calls it
    captchas = Captchas(lib.ALPHABETS["lower"], 3, 100, 40, (str(SERIF),), "dark", 1)
    found = files(folder)
    settings = json.loads(found.pop("captchas.json"))
    assert found == drawn(captchas, 6)
    (font,) = settings["fonts"]
    digest = hashlib.sha256(SERIF.read_bytes()).hexdigest()
    assert font == {"file": SERIF.name, "sha256": digest}

    copy = shutil.copy(SERIF, tmp_path)  # a font is known by its content
    assert run_lesson(GENERATE, tmp_path / "run", *flags, copy).metrics["images_per_second"] == 0
    (folder / ".abc_000000.99.tmp.png").write_bytes(b"half an ima")
    before = files(folder)
    with Path(copy).open("ab") as file:
        file.write(b"\0")
    assert "has other settings: fonts is" in mistake(GENERATE, *flags, copy)
    said = mistake(GENERATE, "--out", folder, "--seed", 2)
    assert "style is 'dark' there and 'modern' here; seed is 1 there and 2 here" in said
    assert files(folder) == before
    (folder / "captchas.json").write_text("{", encoding="utf-8")
    assert "captchas.json is damaged" in mistake(GENERATE, "--out", folder)


@pytest.mark.parametrize("name", ["notes.txt", "0427.png", "7435_000001.png", "0427_1.png"])
@pytest.mark.parametrize("of_ours", [True, False])
def test_a_folder_that_holds_other_files_is_refused_and_untouched(tmp_path, mistake, name, of_ours):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / name).write_bytes(b"mine")
    if of_ours:
        settings = {"seed": 1, "alphabet": "0123456789", "length": 4, "width": 160, "height": 60}
        settings |= {"fonts": [], "style": "modern", "captcha": "0.7.1"}
        (folder / "captchas.json").write_text(json.dumps(settings), encoding="utf-8")
    before = files(folder)
    said = mistake(GENERATE, "--out", folder)
    assert f"holds {name!r}, which is not of these captchas" in said
    assert files(folder) == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--size", "1", "60"], "--size 1 60: from 16×16 to"),
        (["--size", "100000", "100000"], "--size 100000 100000: from 16×16 to 16,000,000"),
        (["--length", "500"], "--length 500: the text has to fit into a file's name"),
        (["--fonts", "missing.ttf"], "--fonts: missing.ttf: no such file, and Matplotlib knows"),
        (["--fonts", __file__], "no TrueType font (unknown file format)"),
        (["--alphabet", "01龍"], "the font DroidSansMono.ttf has no '龍'"),
        (["--alphabet", "龍", "--fonts", "DejaVu Serif"], "the font DejaVuSerif.ttf has no '龍'"),
        (["--alphabet", "0120"], "argument --alphabet: the alphabet '0120' has '0' more than once"),
        (["--alphabet", "a/b"], "'/' can't stand in a file's name"),
        (["--count", "0"], "argument --count: '0' is not a whole number from 1"),
        (["--style", "none"], "argument --style: invalid choice"),
    ],
)
def test_what_can_not_be_drawn_is_said_before_anything_is_written(
    tmp_path, mistake, flags, sentence
):
    assert sentence in mistake(GENERATE, "--out", tmp_path / "images", *flags)
    assert not (tmp_path / "images").exists()


def test_a_full_disk_leaves_whole_images_and_a_sentence(tmp_path):
    folder = tmp_path / "images"
    command = [sys.executable, ROOT / GENERATE, "--count", "40", "--out", folder]
    done = subprocess.run(
        [*command, "--run-dir", tmp_path / "run"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8_300, 8_300)),
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f"Can't write into {folder}: File too large. The images that are there are whole" in said
    assert "Traceback" not in said
    found = files(folder)
    del found["captchas.json"]
    assert found.items() < drawn(Captchas(), 40).items()


def test_a_folder_that_can_not_be_made_is_a_sentence(tmp_path, mistake):
    (tmp_path / "file").write_bytes(b"")
    said = mistake(GENERATE, "--out", tmp_path / "file" / "images", "--count", 1)
    assert f"Can't write into {tmp_path / 'file' / 'images'}: Not a directory" in said


# ---- 02_images_to_tfrecords.py: which files are taken ---------------------------------------


def picture(seed: int = 0, size: tuple[int, int] = (160, 60)) -> Image.Image:
    """An image, smooth enough for JPEG, of which no two are alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_header(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") * 2


def rgb16(image: Image.Image) -> bytes:
    """A PNG of 16 bits a value, which Pillow can't write."""
    values = np.asarray(image).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def altered(png: bytes) -> bytes:
    """One bit of the checksum of the pixels' chunk, turned: the pixels still decode."""
    at = png.index(b"IEND") - 5
    return png[:at] + bytes([png[at] ^ 1]) + png[at + 1 :]


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def transparent_corner(image: Image.Image) -> Image.Image:
    """The image with every pixel of the first one's colour white."""
    pixels = np.array(image)
    pixels[np.all(pixels == pixels[0, 0], axis=-1)] = 255
    return Image.fromarray(pixels)


# name of the file: its content, and the image that a person sees in it
GOOD = {
    "0001.png": (encoded(picture(1)), picture(1)),
    "0002_jpeg.png": (encoded(picture(2), "JPEG", quality=95), picture(2)),
    "0003.png": (encoded(picture(3).convert("RGBA")), picture(3)),
    "0004.png": (encoded(picture(4).quantize(64)), picture(4).quantize(64)),
    "0005.png": (encoded(picture(5).convert("L")), picture(5)),
    "0006.png": (rgb16(picture(6)), picture(6)),
    "0007.png": (
        encoded(Image.fromarray(np.asarray(picture(7).convert("L")).astype(np.uint16) * 257)),
        picture(7),
    ),
    "0008.gif": (encoded(picture(8).quantize(64), "GIF"), picture(8).quantize(64)),
    "0009.jpg": (encoded(picture(9), "WEBP", lossless=True), picture(9)),
    "0010.jpg": (
        encoded(picture(10, (60, 160)), "JPEG", quality=95, exif=exif_of(6)),
        picture(10, (60, 160)).rotate(-90, expand=True),
    ),
    "0011_验证码.png": (encoded(picture(11)), picture(11)),
    "子文件夹/0012_000012.bmp": (encoded(picture(12), "BMP"), picture(12)),
    "0013.tif": (encoded(picture(13), "TIFF"), picture(13)),
    "0015.png": (
        encoded(picture(15), transparency=picture(15).getpixel((0, 0))),
        transparent_corner(picture(15)),
    ),
    "0025.png": (encoded(picture(16), exif=exif_of(3)), picture(16).rotate(180)),
    "0026.png": (
        encoded(picture(17).convert("L"), exif=exif_of(3)),
        picture(17).rotate(180),
    ),
    "0014_small.png": (encoded(picture(14, (80, 30))), picture(14)),
}
JUNK = [".DS_Store", "Thumbs.db", "._0001.png", ".0001_000001.7.tmp.png", "notes.txt"]
BAD = {
    "_0001.png": (encoded(picture(30)), "no text", ""),
    "00015.png": (encoded(picture(31)), "text of another length", "00015"),
    "验证码.png": (encoded(picture(32)), "characters outside the alphabet", "码证验"),
    "00a1.png": (encoded(picture(33)), "characters outside the alphabet", "a"),
    "0016.png": (encoded(picture(34))[:1500], "no whole image", "truncated"),
    "0017.png": (b"no image but a text", "no whole image", "cannot identify"),
    "0018.png": (b"", "no whole image", "cannot identify"),
    "0019.png": (huge_header(10_000), "no whole image", "10000×10000 pixels are too many"),
    "0024.png": (huge_header(60_000), "no whole image", "exceeds limit"),
    "0020.png": (altered(encoded(picture(35))), "no whole image", "IDAT"),
    "0021.jpg": (encoded(picture(36), "JPEG")[:-400], "no whole image", "truncated"),
    "0027.png": (encoded(picture(38), "EPS"), "no whole image", "cannot identify"),
    "0001_copy.bmp": (encoded(picture(1), "BMP"), "a copy", "of 0001.png"),
    "0022.png": (encoded(picture(37)), "one image, several texts", "0022.png"),
    "0023.png": (encoded(picture(37)), "one image, several texts", "0022.png"),
}


def records_of(out: Path) -> dict[str, list[tuple[bytes, str]]]:
    """Each split's images, PNG files, and texts, read without TensorFlow."""
    (about, written), splits = read_dataset(out), {}
    for split, (names, _) in written.items():
        contents = [Path(name).read_bytes() for name in names]
        items = [example_by_hand(p) for content in contents for p in framed_records(content)]
        splits[split] = [
            (item["image"][0], lib.decode_classes(item["classes"], about["alphabet"]))
            for item in items
        ]
    return splits


def test_odd_files_are_read_as_a_person_sees_them_and_bad_ones_named(tmp_path):
    folder, out = tmp_path / "odd", tmp_path / "records"
    (folder / "子文件夹").mkdir(parents=True)
    for name, (content, *_) in (GOOD | BAD).items():
        (folder / name).write_bytes(content)
    for name in JUNK:
        (folder / name).write_bytes(b"junk")
    before = files(folder)
    flags = ("--images", folder, "--out", out, "--shares", 0, 0, "--alphabet", "digits")
    lesson = run_lesson(CONVERT, tmp_path / "run", *flags)
    assert files(folder) == before
    rejected = json.loads((tmp_path / "run" / "rejected.json").read_text(encoding="utf-8"))
    assert set(rejected) == set(BAD)
    for name, (_, kind, detail) in BAD.items():
        assert rejected[name].startswith(kind), name
        assert detail in rejected[name], name
        assert str(folder) not in rejected[name]
    assert lesson.metrics == {"images": 17, "left_out": 15, "train_images": 17}
    about = {"kind": "captcha", "alphabet": "0123456789", "length": 4, "width": 160}
    about |= {"features": {"image": "bytes, a grey PNG file", "classes": "int64 [4]"}}
    assert read_dataset(out)[0] == about | {"height": 60, "source": {}}

    stored = {text: png for png, text in records_of(out)["train"]}
    assert sorted(stored) == sorted(Path(name).stem[:4] for name in GOOD)
    for name, (content, seen) in GOOD.items():
        png = stored[Path(name).stem[:4]]
        assert (png == content) == (name == "0005.png"), f"{name}: only that is as we want it"
        with Image.open(io.BytesIO(png)) as image:
            assert (image.mode, image.size) == ("L", (160, 60))
            pixels = np.asarray(image).astype(int)
        difference = np.abs(pixels - np.asarray(seen.convert("RGB").convert("L")))
        if name in ("0002_jpeg.png", "0010.jpg", "0014_small.png"):
            assert difference.mean() < (12 if "small" in name else 4), name
        else:
            assert difference.max() <= 1, name


def test_texts_from_a_csv_file_and_folded(tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "records"
    (folder / "b").mkdir(parents=True)
    for number in range(8):
        (folder / "b" / f"scan {number}.png").write_bytes(encoded(picture(number)))
    rows = [
        (f"b/scan {n}.png", text) for n, text in enumerate(["A/b", "a/B", "b.a", "B.A", " a.. "])
    ]
    rows += [("b/scan 5.png", "a/bb"), ("b/missing.png", "a/b")]
    with (tmp_path / "texts.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("text", "note", "file"), *((t, "", f) for f, t in rows)])
    flags = ("--images", folder, "--out", out, "--shares", 0, 0)
    flags += ("--labels", tmp_path / "texts.csv")
    lesson = run_lesson(CONVERT, tmp_path / "run", *flags, "--fold-case")
    texts = [text for _, text in records_of(out)["train"]]
    assert sorted(texts) == ["a..", "a/b", "a/b", "b.a", "b.a"]
    assert read_dataset(out)[0]["alphabet"] == "./ab"
    assert "Warning: each of '/'" not in lesson.output
    rejected = json.loads((tmp_path / "run" / "rejected.json").read_text(encoding="utf-8"))
    assert {name: fault.split(":")[0] for name, fault in rejected.items()} == {
        "b/scan 5.png": "text of another length",
        "b/missing.png": "no whole image",
        "b/scan 6.png": "no text",
        "b/scan 7.png": "no text",
    }
    lesson = run_lesson(CONVERT, tmp_path / "run", *flags)
    texts = [text for _, text in records_of(out)["train"]]
    assert sorted(texts) == sorted(text.strip() for _, text in rows[:5])
    assert read_dataset(out)[0]["alphabet"] == "./ABab"
    assert "Warning: each of 'AB' occurs fewer than 3 times" in lesson.output


def test_what_the_second_script_can_not_do_is_a_sentence(tmp_path, mistake):
    folder, out = tmp_path / "images", tmp_path / "records"
    flags = ("--images", folder, "--out", out)
    assert f"no image in {folder} has a text" in mistake(CONVERT, *flags)
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"junk")
    assert f"no image in {folder} has a text" in mistake(CONVERT, *flags)
    (folder / "abcd.png").write_bytes(encoded(picture()))
    said = mistake(CONVERT, *flags, "--alphabet", "digits")
    assert f"no file in {folder} can be used: do --alphabet and --length fit" in said
    assert "of 1 images none is left for training" in mistake(
        CONVERT, *flags, "--shares", 0.9999, 0
    )
    assert "are more than 1 together" in mistake(CONVERT, *flags, "--shares", 0.6, 0.6)
    assert "'1.1' is not a number from 0 to 1" in mistake(CONVERT, *flags, "--shares", 0, 1.1)
    assert "argument --alphabet: the alphabet is empty" in mistake(CONVERT, "--alphabet", "")
    table = tmp_path / "texts.csv"
    assert f"--labels {table}: No such file" in mistake(CONVERT, *flags, "--labels", table)
    for content in (b"", b"name,text\na.png,1\n", "file,text\na,é\n".encode("latin-1")):
        table.write_bytes(content)
        said = mistake(CONVERT, *flags, "--labels", table)
        assert "is no UTF-8 CSV file with the columns file and text" in said or not content
    (folder / "captchas.json").write_text('{"alphabet": "abc"}', encoding="utf-8")
    assert "captchas.json is damaged" in mistake(CONVERT, *flags)
    (folder / "captchas.json").unlink()
    assert not out.exists()
    out.write_bytes(b"a file, not a folder")
    assert "The records could not be written" in mistake(CONVERT, *flags, "--shares", 0, 0)


# ---- 02_images_to_tfrecords.py: splits and records ------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """Captchas of the first script as the second has read them."""
    folder = tmp_path_factory.mktemp("chain")
    flags = ("--count", 60, "--alphabet", "abcXYZ", "--length", 5, "--size", 100, 40, "--seed", 7)
    run_lesson(GENERATE, folder / "run1", "--out", folder / "images", *flags, "--style", "both")
    flags = ("--images", folder / "images", "--out", folder / "records", "--shares", 0.2, 0.3)
    return run_lesson(CONVERT, folder / "run2", *flags)


def test_records_hold_the_files_as_two_other_readers_see_them(chain):
    import tensorflow as tf

    folder, out = chain.variables["folder"], chain.variables["out"]
    about = read_dataset(out)[0]
    source = about.pop("source")
    assert about.pop("features") == {"image": "bytes, a grey PNG file", "classes": "int64 [5]"}
    assert about == {
        "kind": "captcha",
        "alphabet": "abcXYZ",
        "length": 5,
        "width": 100,
        "height": 40,
    }
    assert (source["style"], source["seed"], source["captcha"]) == ("both", 7, "0.7.1")
    by_hand = records_of(out)
    assert chain.metrics == {"images": 60, "left_out": 0} | {
        f"{split}_images": len(some) for split, some in by_hand.items()
    }
    spec = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "classes": tf.io.FixedLenFeature([5], tf.int64),
    }
    found = set()
    for split, some in by_hand.items():
        paths = sorted(str(path) for path in out.glob(f"{split}_*.tfrecord"))
        for (png, text), record in zip(some, tf.data.TFRecordDataset(paths), strict=True):
            item = tf.io.parse_single_example(record, spec)
            assert item["image"] == png
            assert "".join("abcXYZ"[c] for c in item["classes"]) == text
            found.add((text, tf.io.decode_png(png).numpy().tobytes()))
    images = folder.glob("*.png")
    assert found == {(path.name[:5], load_image(path).tobytes()) for path in images}
    assert len(found) == 60
    first = [text[0] for _, text in by_hand["train"]]
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert changes > len(first) / 2, "the texts are mixed: a shuffle sees only a part of them"


def noise_images(folder: Path, count: int, seed: int, start: int = 0) -> None:
    """Grey images of 16×16 pixels with texts of three digits."""
    folder.mkdir(exist_ok=True)
    dice = np.random.default_rng(seed)
    for number in range(start, start + count):
        content = encoded(Image.fromarray(dice.integers(0, 256, (16, 16), dtype=np.uint8)))
        (folder / f"{dice.integers(1000):03}_{number}.png").write_bytes(content)


def test_the_split_of_an_image_depends_on_nothing_but_itself(tmp_path):
    folder, out = tmp_path / "images", tmp_path / "records"
    noise_images(folder, 1500, seed=0)
    out.mkdir()
    (out / "train_notes.txt").write_bytes(b"mine")
    (out / "train.tfrecord").write_bytes(b"mine, too")
    flags = ("--images", folder, "--out", out, "--shares", 0.1, 0.3)
    run_lesson(CONVERT, tmp_path / "run", *flags)
    splits = records_of(out)
    before = {item: split for split, some in splits.items() for item in some}
    on_disk = {(path.read_bytes(), path.name[:3]) for path in folder.iterdir()}
    assert set(before) == on_disk, "every image in one split, its file stored as it is"
    assert len(splits["validation"]) / 1500 == pytest.approx(0.1, abs=0.031)  # 4 deviations
    assert len(splits["test"]) / 1500 == pytest.approx(0.3, abs=0.06)

    def u(content: bytes) -> float:
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64

    held_out = {text for _, text in before if u(f"1:{text}".encode()) < 0.15}
    texts = {split: {text for _, text in some} for split, some in splits.items()}
    assert len(held_out) > 50
    assert held_out <= texts["test"]
    assert not held_out & (texts["train"] | texts["validation"])
    assert len(texts["test"] & texts["train"]) > 50, "the other half of the test is like training"

    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        path.rename(folder / f"{path.name[:3]}_renamed{number}.png")
    for path in sorted(folder.iterdir())[:200]:
        before.pop((path.read_bytes(), path.name[:3]))
        path.unlink()
    noise_images(folder, 300, seed=1, start=2000)
    run_lesson(CONVERT, tmp_path / "run", *flags)
    after = {item: split for split, some in records_of(out).items() for item in some}
    assert len(after) == 1600
    assert {item: after[item] for item in before} == before

    run_lesson(CONVERT, tmp_path / "run", *flags, "--seed", 2)
    other = {item: split for split, some in records_of(out).items() for item in some}
    assert sum(other[item] != after[item] for item in after) > 400
    run_lesson(CONVERT, tmp_path / "run", "--images", folder, "--out", out, "--shares", 0, 1)
    assert {split: len(some) for split, some in records_of(out).items()} == {"test": 1600}
    kept = files(out)
    assert kept["train_notes.txt"] == b"mine"
    assert kept["train.tfrecord"] == b"mine, too"


def test_worker_processes_import_no_tensorflow(chain):
    picture = next(iter(chain.variables["pictures"].values()))
    jobs = [
        (chain.variables["look_at"], chain.variables["folder"] / picture.name, picture.text),
    ]
    program = (
        "import pickle, sys\n"
        "for function, *items in pickle.load(sys.stdin.buffer):\n"
        "    assert len(function(*items)) == 2\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, input=cloudpickle.dumps(jobs)).returncode == 0
