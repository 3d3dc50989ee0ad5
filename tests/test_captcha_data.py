"""Chapter captcha_multitask, its data: what is drawn, what is kept of a folder, what is written."""

import errno
import hashlib
import io
import json
import random
import secrets
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import captcha.image
import cloudpickle
import numpy as np
import pytest
from helpers import ROOT, load_script
from PIL import Image, ImageDraw
from test_tfrecord import example_by_hand, framed_records

from data import captchas as lib
from data.captchas import Captchas, LegacyImageCaptcha, load_image
from utils.tfrecord import load_split, read_info

GENERATE = "captcha_multitask/01_generate_images.py"
CONVERT = "captcha_multitask/02_images_to_tfrecords.py"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def script(name: str) -> ModuleType:
    module = load_script(name)
    cloudpickle.register_pickle_by_value(module)  # workers could not import it by its name
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return script(GENERATE)


@pytest.fixture(scope="module")
def convert() -> ModuleType:
    return script(CONVERT)


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Call a script's ``main()`` with flags; return what it printed, or the sentence it ended
    with."""

    def run(module: ModuleType, *flags: str | Path) -> str:
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        monkeypatch.setattr(
            sys, "argv", ["script", "--run-dir", str(tmp_path / "run"), *map(str, flags)]
        )
        capsys.readouterr()
        try:
            module.main()
        except SystemExit as end:
            assert end.code not in (0, None)
            printed = capsys.readouterr()
            sentence = end.code if isinstance(end.code, str) else printed.err
            assert "Traceback" not in printed.err
            return " ".join(f"{printed.out}\n{sentence}".split())
        return " ".join(capsys.readouterr().out.split())

    return run


# ---- data/captchas.py ----------------------------------------------------------------------


def test_an_image_depends_on_its_seed_and_number_alone():
    captchas = Captchas(warp="both")
    row = [captchas.png(index) for index in range(6)]
    assert [captchas.png(index) for index in (5, 2, 0)] == [row[5], row[2], row[0]]
    random.seed(0)
    assert captchas.png(3) == row[3]
    assert len({png for _, png in row}) == 6
    assert not {png for _, png in row} & {replace(captchas, seed=2).png(i)[1] for i in range(6)}


@pytest.mark.parametrize(
    ("warp", "texts", "digest"),
    [
        (
            "modern",
            ["7435", "7706"],
            "32cc78671a6d816ccb2bb352f789310d0d30365e2bbb57155c39aecc6d29dc5b",
        ),
        (
            "legacy",
            ["7435", "7706"],
            "53c622f956a718e3b8a68b639899537208529737b59f1c3d9856883f9e1e4f12",
        ),
    ],
)
def test_the_pixels_are_those_they_always_were(warp, texts, digest):
    drawn = [Captchas(warp=warp).pixels(index) for index in range(2)]
    assert [text for text, _ in drawn] == texts
    pixels = np.stack([pixels for _, pixels in drawn])
    assert pixels.shape == (2, 60, 160, 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest


def test_both_draws_each_warp_about_every_other_time(monkeypatch):
    drawn_by = []
    original = captcha.image.ImageCaptcha.generate_image

    def noted(self, text):
        drawn_by.append(type(self))
        return original(self, text)

    monkeypatch.setattr(captcha.image.ImageCaptcha, "generate_image", noted)
    for index in range(40):
        Captchas(warp="both", width=40, height=30, length=1).draw(index)
    assert set(drawn_by) == {captcha.image.ImageCaptcha, LegacyImageCaptcha}
    assert 10 <= drawn_by.count(LegacyImageCaptcha) <= 30


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


@pytest.mark.parametrize("warp", lib.WARPS)
def test_secrets_are_secret_again_afterwards(warp):
    Captchas(warp=warp).draw(0)
    assert captcha.image.secrets is secrets
    with pytest.raises(OSError, match="cannot open resource"):
        Captchas(warp=warp, fonts=("no such font.ttf",)).draw(0)
    assert captcha.image.secrets is secrets


def test_alphabets_by_name_and_as_they_are():
    assert lib.parse_alphabet("digits") == "0123456789"
    assert len(lib.parse_alphabet("alnum")) == 62
    assert lib.parse_alphabet("acb") == "acb"
    assert lib.decode_classes(lib.encode_text("cab", "acb"), "acb") == "cab"
    for bad, reason in [
        ("", "empty"),
        ("abca", "'a' more than once"),
        ("a/b_", "'/_'"),
        ("a b", " "),
    ]:
        with pytest.raises(ValueError, match=reason):
            lib.parse_alphabet(bad)


# ---- 01_generate_images.py -----------------------------------------------------------------


def test_one_worker_and_two_write_the_same_files(generate, tmp_path):
    captchas = Captchas()
    assert generate.draw_missing(captchas, tmp_path / "one", 60, workers=1) == 60
    assert generate.draw_missing(captchas, tmp_path / "two", 60, workers=2) == 60
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(files(tmp_path / "one")) == 61
    for index in (0, 59):
        text, png = captchas.png(index)
        assert (tmp_path / "one" / f"{text}_{index:06}.png").read_bytes() == png
    settings = json.loads((tmp_path / "one" / "captchas.json").read_text(encoding="utf-8"))
    assert settings == {
        "seed": 1,
        "alphabet": "0123456789",
        "length": 4,
        "width": 160,
        "height": 60,
        "fonts": [],
        "warp": "modern",
        "captcha": "0.7.1",
    }


def test_killed_in_the_middle_it_goes_on_to_the_same_folder(generate, tmp_path):
    killed = tmp_path / "killed"
    command = [sys.executable, ROOT / GENERATE, "--count", "50000", "--workers", "1"]
    command += ["--out", killed, "--run-dir", tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        deadline = time.monotonic() + 120
        while len([*killed.glob("*.png")]) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        program.kill()
    whole = len([*killed.glob("[!.]*.png")])
    assert 30 <= whole < 50_000
    (killed / ".1234_000000.99.tmp.png").write_bytes(b"half an ima")
    (killed / ".captchas.99.tmp.json").write_bytes(b"{")
    for path in [*killed.glob("[!.]*.png")][:2]:
        path.write_bytes(b"")  # as a power cut leaves files that were not on the disk yet
    assert generate.draw_missing(Captchas(), killed, whole + 20, workers=1) == 22
    generate.draw_missing(Captchas(), tmp_path / "whole", whole + 20, workers=1)
    assert files(killed) == files(tmp_path / "whole")
    assert generate.draw_missing(Captchas(), killed, 10, workers=1) == 0, "a smaller --count"
    assert len(files(killed)) == whole + 21


def test_a_folder_of_other_settings_is_refused_and_untouched(generate, tmp_path, call):
    generate.draw_missing(Captchas(), tmp_path / "images", 3, workers=1)
    (tmp_path / "images" / ".1234_000000.99.tmp.png").write_bytes(b"half an ima")
    before = files(tmp_path / "images")
    said = call(generate, "--out", tmp_path / "images", "--seed", 2, "--warp", "both")
    assert "has other settings: seed is 1 there and 2 here; warp is 'modern' there" in said
    assert files(tmp_path / "images") == before
    (tmp_path / "images" / "captchas.json").write_text("{", encoding="utf-8")
    assert "captchas.json is damaged" in call(generate, "--out", tmp_path / "images")


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "0427.png",
        "12345_000001.png",
        "abcd_000001.png",
        "0427_1.png",
        "7435_000000.png",
    ],
)
def test_a_folder_that_holds_other_files_is_refused_and_untouched(generate, tmp_path, call, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(b"mine")
    said = call(generate, "--out", tmp_path / "images")
    assert f"holds {name!r}, which is not of these captchas" in said
    assert files(tmp_path / "images") == {name: b"mine"}


def test_a_font_is_known_by_its_content(generate, tmp_path):
    font = Path(captcha.image.DEFAULT_FONTS[0])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(font, tmp_path / name / font.name)
        captchas = Captchas(fonts=(str(tmp_path / name / font.name),))
        generate.draw_missing(captchas, tmp_path / "images", 2, workers=1)
    with (tmp_path / "b" / font.name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="has other settings: fonts is"):
        generate.draw_missing(captchas, tmp_path / "images", 2, workers=1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--width", "1"], "nothing can be read in 1×60 pixels"),
        (["--width", "100000", "--height", "100000"], "100000×100000 pixels are too many"),
        (["--length", "500"], "--length 500: the text has to fit into a file's name"),
        (["--fonts", "missing.ttf"], "missing.ttf: no such file"),
        (["--fonts", __file__], "no TrueType font (unknown file format)"),
        (["--alphabet", "01龍"], "the font DroidSansMono.ttf has no '龍'"),
        (["--alphabet", "0120"], "argument --alphabet: the alphabet '0120' has '0' more than once"),
        (["--count", "0"], "argument --count: '0' is not a whole number from 1"),
        (["--warp", "none"], "argument --warp: invalid choice"),
    ],
)
def test_what_can_not_be_drawn_is_said_before_anything_is_written(
    generate, tmp_path, call, flags, sentence
):
    assert sentence in call(generate, "--out", tmp_path / "images", *flags)
    assert not (tmp_path / "images").exists()


def test_a_full_disk_leaves_whole_images_and_a_sentence(generate, tmp_path, call, monkeypatch):
    write_bytes = Path.write_bytes
    written = []

    def on_a_small_disk(path: Path, data: bytes) -> int:
        if len(written) == 7:
            write_bytes(path, data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write_bytes(path, data)

    folder = tmp_path / "images"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", on_a_small_disk)
        said = call(generate, "--out", folder, "--count", 30, "--workers", 1)
    assert f"Can't write into {folder}: No space left on device" in said
    assert "the same command draws the others" in said
    assert len(files(folder)) == 8
    assert not [name for name in files(folder) if name.startswith(".")]
    assert generate.draw_missing(Captchas(), folder, 30, workers=1) == 23


def test_a_folder_that_can_not_be_made_is_a_sentence(generate, tmp_path, call):
    (tmp_path / "file").write_bytes(b"")
    said = call(generate, "--out", tmp_path / "file" / "images", "--count", 1)
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


GREY = picture(1).convert("L")
# name of the file: its content, and the image that a person sees in it
GOOD = {
    "0001.png": (encoded(picture(1)), picture(1)),
    "0002_jpeg.png": (encoded(picture(2), "JPEG", quality=95), picture(2)),
    "0003.png": (encoded(picture(3).convert("RGBA")), picture(3)),
    "0004.png": (encoded(picture(4).quantize(64)), picture(4).quantize(64).convert("RGB")),
    "0005.png": (encoded(GREY), GREY.convert("RGB")),
    "0006.png": (rgb16(picture(6)), picture(6)),
    "0007.png": (
        encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)),
        GREY.convert("RGB"),
    ),
    "0008.gif": (
        encoded(picture(8).quantize(64), "GIF"),
        picture(8).quantize(64).convert("RGB"),
    ),
    "0009.jpg": (encoded(picture(9), "WEBP", lossless=True), picture(9)),
    "0010.jpg": (
        encoded(picture(10, (60, 160)), "JPEG", quality=95, exif=exif_of(6)),
        picture(10, (60, 160)).rotate(-90, expand=True),
    ),
    "0011_验证码.png": (encoded(picture(11)), picture(11)),
    "子文件夹/0012_000012.bmp": (encoded(picture(12), "BMP"), picture(12)),
    "0013": (encoded(picture(13), "TIFF"), picture(13)),
    "0015.png": (
        encoded(picture(15), transparency=picture(15).getpixel((0, 0))),
        transparent_corner(picture(15)),
    ),
    "0025.png": (
        encoded(picture(16), exif=exif_of(3)),
        picture(16).rotate(180),
    ),
    "0014_small.png": (encoded(picture(14, (80, 30))), picture(14)),
}
JUNK = ["captchas.json", ".DS_Store", "Thumbs.db", "._0001.png", ".0001_000001.7.tmp.png"]
BAD = {
    "_0001.png": (encoded(picture(30)), "no text in its name", ""),
    "00015.png": (encoded(picture(31)), "wrong length", "5 characters, not 4"),
    "验证码.png": (encoded(picture(32)), "wrong length", "3 characters, not 4"),
    "00a1.png": (encoded(picture(33)), "characters outside the alphabet", "a"),
    "0016.png": (encoded(picture(34))[:1500], "no whole image", "truncated"),
    "0017.png": (b"no image but a text", "no whole image", "cannot identify"),
    "0018.png": (b"", "no whole image", "cannot identify"),
    "0019.png": (huge_header(10_000), "no whole image", "10000×10000 pixels are too many"),
    "0024.png": (huge_header(60_000), "no whole image", "exceeds limit"),
    "0020.png": (altered(encoded(picture(35))), "no whole image", "IDAT"),
    "0021.jpg": (encoded(picture(36), "JPEG")[:-400], "no whole image", "truncated"),
    "0001_copy.png": (encoded(picture(1)), "a copy", "of 0001.png"),
    "0022.png": (encoded(picture(37)), "one image with several texts", "as 0022.png"),
    "0023.png": (encoded(picture(37)), "one image with several texts", "as 0022.png"),
}
ARGUMENTS = ["--validation-share", "0", "--test-share", "0", "--workers", "1"]


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "子文件夹").mkdir()
    for name, (content, *_) in (GOOD | BAD).items():
        (folder / name).write_bytes(content)
    for name in JUNK[1:]:
        (folder / name).write_bytes(b"junk")
    return folder


def test_odd_files_are_read_as_a_person_sees_them_and_bad_ones_named(
    convert, odd_folder, tmp_path, call
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = call(convert, "--images", odd_folder, "--out", tmp_path / "records", *ARGUMENTS)
    rejected = json.loads((tmp_path / "run" / "rejected.json").read_text(encoding="utf-8"))
    assert set(rejected) == set(BAD)
    for name, (_, kind, detail) in BAD.items():
        assert rejected[name][0] == kind, name
        assert detail in rejected[name][1], name
        assert str(odd_folder) not in rejected[name][1]
    assert "no whole image" in said
    assert "00a1.png: a" in said
    assert "Images of 160×60 pixels: 1 resized" in said

    import tensorflow as tf

    (batch,) = load_split(tmp_path / "records", "train", 100)
    texts = [lib.decode_classes(row, "0123456789") for row in batch["classes"].numpy()]
    stored = dict(zip(texts, batch["image"].numpy(), strict=True))
    assert sorted(stored) == sorted(Path(name).stem[:4] for name in GOOD)
    for name, (content, seen) in GOOD.items():
        png = stored[Path(name).stem[:4]]
        assert (png == content) == (name in ("0001.png", "0011_验证码.png")), name
        pixels = tf.io.decode_image(png, expand_animations=False).numpy().astype(int)
        assert pixels.shape == (60, 160, 3), name
        difference = np.abs(pixels - np.asarray(seen))
        if name in ("0002_jpeg.png", "0010.jpg", "0014_small.png"):
            assert difference.mean() < (12 if "small" in name else 4), name
        else:
            assert difference.max() <= 1, name
    about = read_info(tmp_path / "records")["about"]
    assert about == {
        "kind": "captcha",
        "alphabet": "0123456789",
        "length": 4,
        "width": 160,
        "height": 60,
        "warp": "unknown",
        "seed": None,
        "captcha": None,
        "fonts": [],
    }


def test_strict_writes_nothing(convert, odd_folder, tmp_path, call):
    out = tmp_path / "records"
    said = call(convert, "--images", odd_folder, "--out", out, "--strict", *ARGUMENTS)
    assert f"{len(BAD)} files can't be used: with --strict nothing is written" in said
    assert not out.exists()


def test_folders_without_images_are_told_what_to_do(convert, tmp_path, call):
    folder, out = tmp_path / "images", tmp_path / "records"
    command = f"Draw some with: python captcha_multitask/01_generate_images.py --out {folder}"
    assert f"there is no folder {folder}. {command}" in call(
        convert, "--images", folder, "--out", out
    )
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"junk")
    assert f"{folder} holds no images. {command}" in call(convert, "--images", folder, "--out", out)
    (folder / "abcd.png").write_bytes(encoded(picture()))
    said = call(convert, "--images", folder, "--out", out, "--workers", 1)
    assert "None of the 1 files" in said
    assert "Do --alphabet and --length fit their names?" in said
    (folder / "captchas.json").write_text('{"alphabet": "abc"}', encoding="utf-8")
    assert "captchas.json is damaged" in call(convert, "--images", folder, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--test-share", "1.1"], "'1.1' is not a number from 0 to 1"),
        (["--test-share", "0.6", "--validation-share", "0.6"], "are more than 1 together"),
        (["--alphabet", ""], "argument --alphabet: the alphabet is empty"),
    ],
)
def test_wrong_flags_of_the_second_script(convert, tmp_path, call, flags, sentence):
    assert sentence in call(convert, "--images", tmp_path, "--out", tmp_path / "out", *flags)


# ---- 02_images_to_tfrecords.py: splits and records ------------------------------------------


@pytest.fixture(scope="module")
def images(generate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "images"
    captchas = Captchas(alphabet="abcXYZ", length=5, width=100, height=40, seed=7, warp="both")
    generate.draw_missing(captchas, folder, 60, workers=1)
    return folder


def split_of(convert: ModuleType, folder: Path, *shares: float, seed: int = 1) -> dict[str, set]:
    paths = convert.image_files(folder, folder / "records")
    good, faults = convert.look_over(paths, "abcXYZ", 5, workers=1)
    assert not faults
    splits = convert.split_up(good, *shares, seed)
    return {split: {p.digest for p in pictures} for split, pictures in splits.items()}


def test_splits_are_disjoint_and_stay_when_files_are_renamed_and_added(
    convert, generate, images, tmp_path
):
    before = split_of(convert, images, 0.2, 0.3)
    assert {split: len(some) for split, some in before.items()} == {
        "train": 30,
        "validation": 12,
        "test": 18,
    }
    assert len(set.union(*before.values())) == 60
    assert split_of(convert, images, 0.2, 0.3, seed=2) != before
    other = shutil.copytree(images, tmp_path / "images")
    for number, path in enumerate(sorted(other.glob("*.png"), reverse=True)):
        path.rename(other / f"{path.name[:5]}_renamed{number}.png")
    assert split_of(convert, other, 0.2, 0.3) == before
    captchas = Captchas(alphabet="abcXYZ", length=5, width=100, height=40, seed=8)
    for number in range(3):
        text, png = captchas.png(number)
        (other / f"{text}_new{number}.png").write_bytes(png)
    after = split_of(convert, other, 0.2, 0.3)
    stayed = sum(len(before[split] & after[split]) for split in before)
    assert stayed >= 60 - 6


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ((0, 0), {"train": 60}),
        ((0, 1), {"test": 60}),
        ((0.5, 0.5), {"validation": 30, "test": 30}),
        ((0.33, 0.67), {"validation": 20, "test": 40}),
        ((0.001, 0.1), {"train": 54, "test": 6}),
    ],
)
def test_a_split_of_no_images_is_left_out(convert, images, shares, sizes):
    splits = split_of(convert, images, *shares)
    assert {split: len(some) for split, some in splits.items()} == sizes


def test_records_hold_the_files_as_two_other_readers_see_them(convert, images, tmp_path, call):
    import tensorflow as tf

    out = tmp_path / "records"
    said = call(convert, "--images", images, "--out", out, "--workers", 2, "--test-share", 0.2)
    assert "60 files" in said
    assert "texts of 5 from 'abcXYZ'" in said
    assert "Images of 100×40 pixels: 0 resized, 0 encoded anew" in said
    about = read_info(out)["about"]
    assert (about["alphabet"], about["length"]) == ("abcXYZ", 5)
    assert (about["width"], about["height"]) == (100, 40)
    assert (about["warp"], about["seed"], about["captcha"]) == ("both", 7, "0.7.1")

    by_hand = [
        example_by_hand(payload)
        for path in sorted(out.glob("*.tfrecord"))
        for payload in framed_records(path.read_bytes())
    ]
    spec = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "classes": tf.io.FixedLenFeature([5], tf.int64),
    }
    records = tf.data.TFRecordDataset([str(path) for path in sorted(out.glob("*.tfrecord"))])
    by_tensorflow = [tf.io.parse_single_example(record, spec) for record in records]
    on_disk = {path.read_bytes(): path.name[:5] for path in images.glob("*.png")}
    found = {}
    for mine, theirs in zip(by_hand, by_tensorflow, strict=True):
        assert mine["image"] == [theirs["image"].numpy()]
        assert mine["classes"] == theirs["classes"].numpy().tolist()
        found[mine["image"][0]] = "".join("abcXYZ"[c] for c in mine["classes"])
    assert found == on_disk

    # All of them to one split, of another size: no shard of the others is left.
    said = call(
        convert, "--images", images, "--out", out, "--test-share", 1, "--validation-share", 0,
        "--width", 50, "--height", 20, "--workers", 2, "--shards", 1,
    )  # fmt: skip
    assert "60 resized, 60 encoded anew" in said
    assert sorted(files(out)) == ["dataset.json", "test_00000-of-00001.tfrecord"]
    (batch,) = load_split(out, "test", 100)
    for png, classes in zip(batch["image"].numpy(), batch["classes"].numpy(), strict=True):
        pixels = tf.io.decode_png(png).numpy()
        assert pixels.shape == (20, 50, 3)
        same = [
            path
            for path in images.glob(f"{lib.decode_classes(classes, 'abcXYZ')}_*.png")
            if np.array_equal(load_image(path, (50, 20)), pixels)
        ]
        assert len(same) == 1


def test_records_may_lie_in_above_or_below_the_images(convert, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    expected = sorted(folder.glob("*.png"))
    for name in ("records/notes.txt", "train_00000-of-00001.tfrecord", "dataset.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of an earlier run")
    assert convert.image_files(folder, folder / "records") == expected
    (folder / "records" / "notes.txt").unlink()
    assert convert.image_files(folder, folder) == expected
    assert convert.image_files(folder, tmp_path) == expected


def test_reading_back_finds_wrong_pixels_and_texts(convert, images, tmp_path, call):
    out = tmp_path / "records"
    call(convert, "--images", images, "--out", out, "--workers", 1, *ARGUMENTS[:4])
    good, _ = convert.look_over(convert.image_files(images, out), "abcXYZ", 5, workers=1)
    splits, about = convert.split_up(good, 0, 0, 1), read_info(out)["about"]
    convert.read_back(out, splits, about)
    first, second, *others = splits["train"]
    with pytest.raises(ValueError, match="has other pixels"):
        convert.read_back(out, {"train": [second, first, *others]}, about)
    wrong = first._replace(text="aaaaa" if first.text != "aaaaa" else "bbbbb")
    with pytest.raises(ValueError, match="has other texts than the files"):
        convert.read_back(out, {"train": [wrong, second, *others]}, about)


# ---- both scripts end to end ---------------------------------------------------------------


def test_what_worker_processes_import_has_no_tensorflow():
    program = (
        "import runpy, sys\n"
        "for script in sys.argv[1:]:\n"
        "    runpy.run_path(script, run_name='in_a_worker')\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    scripts = [ROOT / GENERATE, ROOT / CONVERT]
    assert subprocess.run([sys.executable, "-c", program, *scripts]).returncode == 0
