"""data/images.py and data/photos.py: image files of every kind, the look at a folder, the split."""

import io
import json
import os
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import run_program
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import data.images
import data.photos
from data.download import DownloadError
from data.images import encoded, is_plain, load_image
from data.photos import (
    Photo,
    PhotosError,
    draw_stand_in,
    example_photos,
    fetch_flowers,
    find_photos,
    near_copies,
    print_report,
    print_split,
    read,
    scan,
    split,
    thumbnail,
)
from models.inception_v3 import decode


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def huge_png(side: int) -> bytes:
    """A PNG of a few bytes whose header promises side×side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\0" * 100)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


PICTURE = draw_stand_in("triangles", 0)  # 320×240, smooth colours with edges in them
FEW_COLOURS = PICTURE.quantize(200)  # what a palette has room for
KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: file_of(PICTURE, "JPEG"),
    "progressive": lambda: file_of(PICTURE, "JPEG", progressive=True),
    "grey jpeg": lambda: file_of(PICTURE.convert("L"), "JPEG"),
    "cmyk": lambda: file_of(PICTURE.convert("CMYK"), "JPEG"),
    "png": lambda: file_of(PICTURE, "PNG"),
    "grey png": lambda: file_of(PICTURE.convert("L"), "PNG"),
    "palette": lambda: file_of(FEW_COLOURS, "PNG"),
    "gif": lambda: file_of(FEW_COLOURS, "GIF"),
    "webp": lambda: file_of(PICTURE, "WEBP", quality=95),
    "tiff": lambda: file_of(PICTURE, "TIFF"),
    "bmp": lambda: file_of(PICTURE, "BMP"),
}
SHOWN = {  # what is to be seen, where that is not PICTURE
    "grey jpeg": PICTURE.convert("L"),
    "grey png": PICTURE.convert("L"),
    "palette": FEW_COLOURS,
    "gif": FEW_COLOURS,
}
PLAIN = {"jpeg", "progressive", "grey jpeg", "png", "grey png"}


# ---- data/images.py ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tensorflow_decodes_what_a_person_sees(kind):
    content = KINDS[kind]()
    assert is_plain(content) == (kind in PLAIN)
    given = encoded(content)
    assert (given == content) == (kind in PLAIN)
    seen = decode(tf.constant(given)).numpy()
    wanted = np.asarray(SHOWN.get(kind, PICTURE).convert("RGB"))
    assert seen.shape == (240, 320, 3)
    assert np.abs(seen.astype(int) - wanted).mean() < 4
    assert np.array_equal(seen, load_image(content)), "Pillow's pixels, TensorFlow's pixels"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_any_way_gives_an_upright_picture(orientation):
    ways = {  # what the camera stored, as the EXIF standard numbers it
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.transpose(a, (1, 0, 2)),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(PICTURE)
    stored = Image.fromarray(np.ascontiguousarray(ways[orientation](upright)))
    content = file_of(stored, "PNG", exif=turned(orientation))
    assert np.array_equal(load_image(content), upright)
    assert np.array_equal(load_image(encoded(content)), upright)
    assert is_plain(content) == (orientation == 1)
    kept = encoded(content, turned=True)
    assert kept == content and data.images.orientation(kept) == orientation
    turned_by_tensorflow = data.images.decode(kept, tf.constant(orientation)).numpy()
    assert np.array_equal(turned_by_tensorflow, upright)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("shorter", [0, 299, 100, 30])
def test_a_telephones_photo_is_decoded_at_a_fraction_and_turned(shorter, kind):
    large = PICTURE.resize((1280, 960), Image.Resampling.BICUBIC)
    content = file_of(large, kind, exif=turned(6), quality=90)
    assert encoded(content, turned=True) == content and not is_plain(content)
    pillow = load_image(content, shorter=shorter)
    ratio = {0: 1, 299: 2, 100: 8, 30: 8}[shorter]
    assert pillow.shape == (1280 // ratio, 960 // ratio, 3)
    graph = tf.function(lambda file, turn: data.images.decode(file, turn, shorter))
    seen = graph(content, data.images.orientation(content)).numpy()
    assert np.abs(seen.astype(int) - pillow).max() <= 3
    small = large.transpose(Image.Transpose.ROTATE_270).resize(pillow.shape[1::-1])
    assert np.abs(seen.astype(int) - np.asarray(small)).mean() < 4
    png = file_of(PICTURE, "PNG")
    assert np.array_equal(graph(png, 1), np.asarray(PICTURE)), "other files are decoded whole"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_files_of_sixteen(bits):
    grey = np.asarray(PICTURE.convert("L")).astype(np.uint16)
    grey[0, 0] = 255  # somewhere it is white
    for kind in ("PNG", "TIFF"):
        deep = file_of(Image.fromarray(grey << (bits - 8)), kind)
        assert np.array_equal(load_image(deep)[..., 0], grey)


def test_sixteen_bits_and_transparency_become_what_is_seen():
    grey = np.asarray(PICTURE.convert("L"))
    deep = file_of(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    assert np.array_equal(load_image(deep)[..., 0], grey)
    holes = PICTURE.convert("RGBA")
    holes.putalpha(Image.fromarray(np.where(grey > 128, 255, 0).astype(np.uint8)))
    seen = load_image(file_of(holes, "PNG"))
    assert (seen[grey <= 128] == 255).all()
    assert np.array_equal(seen[grey > 128], np.asarray(PICTURE)[grey > 128])


def test_an_animation_shows_its_first_frame():
    frames = [FEW_COLOURS, FEW_COLOURS.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    content = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(load_image(encoded(content)), np.asarray(FEW_COLOURS.convert("RGB")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify"),
        (b"a text that was named .jpg", "cannot identify"),
        (file_of(PICTURE, "JPEG")[:2000], "truncated"),
        (file_of(PICTURE, "PNG")[:2000], "truncated"),
        (huge_png(9_500), "9500×9500 pixels are too many: at most 89,000,000"),
        (huge_png(30_000), "too many pixels"),
    ],
)
def test_what_is_no_bearable_image_is_refused_with_a_reason(content, reason):
    with pytest.raises((ValueError, OSError), match=reason):
        load_image(content)


# ---- the look at a folder ------------------------------------------------------------------


def photo_of(label: str, number: int) -> bytes:
    return file_of(draw_stand_in(label, number), "JPEG", quality=90)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 22 good photos each; one name is Chinese and has a space."""
    folder = tmp_path / "photos"
    for label, kind in (("红 圆", "circles"), ("crosses", "crosses")):
        (folder / label).mkdir(parents=True)
        for i in range(22):
            (folder / label / f"照片 {i:02}.jpg").write_bytes(photo_of(kind, i))
    return folder


def test_a_good_folder_has_nothing_left_out(folder):
    found = scan(folder)
    assert found.classes == ["crosses", "红 圆"]
    assert [photo.label for photo in found.photos] == ["crosses"] * 22 + ["红 圆"] * 22
    assert found.faults == [] and found.warnings == []
    first = found.photos[0]
    assert (first.width, first.height) == (320, 240)
    assert read(first) == photo_of("crosses", 0)


BAD = {
    "empty.jpg": (b"", "an empty file"),
    "text.jpg": (b"this is a text", "no whole image"),
    "cut.jpg": (photo_of("circles", 30)[:3000], "no whole image"),
    "huge.png": (huge_png(30_000), "no whole image"),
    "照片 00_copy.jpg": (photo_of("crosses", 0), "a copy"),
    "both.jpg": (photo_of("stripes", 1), "one photo in several classes"),
    ".DS_Store": (b"junk", "hidden, or a system's own file"),
    "._照片 00.jpg": (b"junk", "hidden, or a system's own file"),
    "Thumbs.db": (b"junk", "hidden, or a system's own file"),
}


def test_every_fault_is_found_and_named(folder, capsys):
    for name, (content, _) in BAD.items():
        (folder / "crosses" / name).write_bytes(content)
    (folder / "红 圆" / "both too.jpg").write_bytes(photo_of("stripes", 1))
    (folder / "crosses" / "deeper").mkdir()
    (folder / "nothing in it").mkdir()
    (folder / "two").mkdir()
    for i in range(2):
        (folder / "two" / f"{i}.jpg").write_bytes(photo_of("stripes", 10 + i))
    (folder / "few").mkdir()
    for i in range(5):
        (folder / "few" / f"{i}.png").write_bytes(photo_of("triangles", i))  # JPEG named .png
    (folder / "loose.jpg").write_bytes(photo_of("stripes", 2))
    (folder / "LICENSE.txt").write_text("not looked at", encoding="utf-8")
    found = scan(folder)
    assert found.classes == ["crosses", "few", "红 圆"]
    kinds = {f.path.relative_to(folder).as_posix(): f.kind for f in found.faults}
    assert kinds == {f"crosses/{name}": kind for name, (_, kind) in BAD.items()} | {
        "红 圆/both too.jpg": "one photo in several classes",
        "crosses/deeper": "a folder inside a class's folder",
        "nothing in it": "a class with too few photos",
        "two": "a class with too few photos",
        "loose.jpg": "in no class's folder",
    }
    assert len(found.photos) == 22 + 22 + 5
    (few,) = found.warnings
    assert few.startswith("'few' has 5 photos")
    print_report(found)
    shown = capsys.readouterr().out
    assert "crosses/cut.jpg" in shown and "truncated" in shown and "49 photos" in shown


def saved_again(image: Image.Image) -> dict[str, Image.Image]:
    """The same picture as other files hold it."""
    third = image.resize((image.width // 3, image.height // 3), Image.Resampling.BICUBIC)
    ways = {
        "coarse": (image, 30),
        "smaller": (third, 60),
        "mirrored": (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 75),
        "darker": (image.point(lambda level: int(0.8 * level)), 75),
    }
    return {
        how: Image.open(io.BytesIO(file_of(changed, "JPEG", quality=quality)))
        for how, (changed, quality) in ways.items()
    }


def photo_from(image: Image.Image, name: str, label: str = "a") -> Photo:
    pixels = np.asarray(image.convert("RGB"))
    return Photo(Path(label, name), label, f"{name}-digest", *image.size, thumbnail(pixels))


def pairs_of(photos: list[Photo]) -> set[frozenset[str]]:
    return {frozenset(photo.path.name for photo in pair) for pair in near_copies(photos)}


def test_a_photo_saved_again_smaller_mirrored_or_darker_is_found():
    photos, wanted = [], set()
    for number, label in enumerate(("circles", "crosses", "stripes", "triangles") * 3):
        image = draw_stand_in(label, number)
        photos.append(photo_from(image, str(number)))
        copies = saved_again(image)
        photos += [photo_from(copy, f"{number} {how}") for how, copy in copies.items()]
        names = [str(number), *(f"{number} {how}" for how in copies)]
        wanted |= {frozenset((a, b)) for a in names for b in names if a < b}
    assert pairs_of(photos) == wanted


def test_likeness_is_what_a_slow_second_implementation_says(monkeypatch):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (9, 24, 24))
    mixed = [  # of three pictures, in shares that make all degrees of likeness
        (k * base[i] + (8 - k) * base[j]) // 8 for i in range(3) for j in range(3) for k in range(9)
    ]
    mixed += [image[:, ::-1] for image in mixed[::5]]
    photos = [
        Photo(Path(str(i)), "a", str(i), 1, 1, m.astype(np.uint8).tobytes())
        for i, m in enumerate(mixed)
    ]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        steps = [
            np.concatenate([np.diff(x, axis=1)[:-1].ravel(), np.diff(x, axis=0)[:, :-1].ravel()])
            for x in (a, b)
        ]
        return steps[0] @ steps[1] / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1])

    wanted = {
        frozenset((str(i), str(j)))
        for i, a in enumerate(mixed)
        for j, b in enumerate(mixed[:i])
        if max(cosine(a, b), cosine(b, a[:, ::-1])) >= data.photos.NEAR
    }
    monkeypatch.setattr(data.photos, "BLOCK", 7)
    assert pairs_of(photos) == wanted
    assert len(mixed) < len(wanted) < len(mixed) ** 2 / 4


def bolt(number: int) -> Image.Image:
    """A bolt or a nut, grey, in the middle of a white page."""
    dice = random.Random(number)
    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    x, y = dice.randint(300, 340), dice.randint(220, 260)
    length, width, grey = dice.randint(60, 120), dice.randint(10, 18), (dice.randint(80, 140),) * 3
    if number % 2:
        draw.rectangle((x - length, y - width, x + length, y + width), fill=grey)
        draw.rectangle((x - length - 20, y - 2 * width, x - length, y + 2 * width), fill=grey)
    else:
        draw.regular_polygon((x, y, length // 2), 6, rotation=dice.randint(0, 59), fill=grey)
        draw.ellipse((x - width, y - width, x + width, y + width), fill="white")
    return image


def test_small_things_on_plain_ground_are_told_apart_and_their_copies_found():
    photos = [photo_from(bolt(i), str(i), "ab"[i % 2]) for i in range(200)]
    assert len(near_copies(photos)) < 5
    parts = split(photos, 10, 10)
    assert all({photo.label for photo in photos} == {"a", "b"} for photos in parts.values())
    copies = [photo_from(copy, f"3 {how}") for how, copy in saved_again(bolt(3)).items()]
    assert pairs_of([photos[3], *copies]) >= {frozenset(("3", copy.path.name)) for copy in copies}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's 1,797 digits of 8×8 pixels as PNG files in ten folders."""
    folder = tmp_path_factory.mktemp("digits")
    loaded = load_digits()
    for number, (image, label) in enumerate(zip(loaded.images, loaded.target, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        grey = Image.fromarray((image * 255 / 16).astype(np.uint8))
        grey.save(folder / str(label) / f"{number}.png")
    return folder


def test_tiny_pictures_are_split_and_a_head_on_them_trains(digits):
    found = scan(digits)
    assert len(found.photos) == 1797 and found.faults == [] and found.warnings == []
    parts = split(found.photos, 10, 10)
    x, y = {}, {}
    for name, photos in parts.items():
        assert {photo.label for photo in photos} == set("0123456789")
        x[name] = np.stack([load_image(photo.path)[..., 0].ravel() for photo in photos])
        y[name] = [photo.label for photo in photos]
    head = LogisticRegression(max_iter=300).fit(x["train"] / 255, y["train"])
    assert head.score(x["test"] / 255, y["test"]) > 0.9


def test_digits_made_larger_are_split_as_well(digits, tmp_path):
    for path in sorted(digits.glob("*/*.png"))[::4]:
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        larger = Image.open(path).resize((64, 64), Image.Resampling.BICUBIC)
        larger.save(tmp_path / path.parent.name / path.name)
    found = scan(tmp_path)
    assert len(near_copies(found.photos)) < 50
    parts = split(found.photos, 10, 10)
    assert all(len({photo.label for photo in photos}) == 10 for photos in parts.values())


def test_near_copies_are_listed(folder):
    again = file_of(draw_stand_in("crosses", 3).resize((200, 150)), "JPEG", quality=60)
    (folder / "红 圆" / "smaller.jpg").write_bytes(again)
    (folder / "crosses" / "smaller too.jpg").write_bytes(again + b"\0")
    one, two = scan(folder).warnings
    assert "in one class, kept in one set: crosses/smaller too.jpg and crosses/照片 03.jpg" in one
    assert "nearly the same photo in two classes: " in two and "红 圆/smaller.jpg" in two


def test_a_second_look_reads_no_file_that_is_unchanged(folder, tmp_path, monkeypatch):
    cache = tmp_path / "scan.json"
    before = scan(folder, cache=cache)
    looked: list[Path] = []
    look = data.photos._look_at
    monkeypatch.setattr(data.photos, "_look_at", lambda path: looked.append(path) or look(path))
    assert scan(folder, workers=1, cache=cache) == before and looked == []
    changed, added = folder / "crosses" / "照片 05.jpg", folder / "crosses" / "new.jpg"
    changed.write_bytes(photo_of("crosses", 35))
    added.write_bytes(photo_of("crosses", 36))
    after = scan(folder, workers=1, cache=cache)
    assert set(looked) == {changed, added}
    assert len(after.photos) == len(before.photos) + 1
    for damaged in ("", "[1, 2", json.dumps({"crosses/new.jpg": "nonsense"})):
        cache.write_text(damaged, encoding="utf-8")
        assert scan(folder, workers=1, cache=cache).photos == after.photos


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        (("crosses", "红 圆"), "holds no class with photos"),
        (("crosses",), "holds only one class, '红 圆'"),
    ],
)
def test_a_folder_without_two_classes_is_refused(folder, remove, reason):
    for label in remove:
        shutil.rmtree(folder / label)
    with pytest.raises(PhotosError, match=reason):
        scan(folder)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(PhotosError, match="there is no folder"):
        scan(tmp_path / "missing")
    with pytest.raises(PhotosError, match="--image-dir: there is no folder"):
        find_photos(tmp_path / "missing")


def test_per_class_takes_the_same_photos_whatever_they_are_called(folder):
    before = {photo.digest for photo in scan(folder, per_class=5).photos}
    for i, path in enumerate(sorted((folder / "crosses").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed {i}.jpg"))
    assert {photo.digest for photo in scan(folder, per_class=5).photos} == before
    assert len(before) == 10


def test_a_photo_changed_after_the_look_is_noticed(folder):
    photo = scan(folder).photos[0]
    photo.path.write_bytes(photo_of("stripes", 9))
    with pytest.raises(OSError, match="was changed while it was in use"):
        read(photo)


# ---- the split -----------------------------------------------------------------------------


def made_up(count: int, label: str = "a", start: int = 0, name: str = "{}.jpg") -> list[Photo]:
    """Photos that exist in name only, and show noise."""
    generator = np.random.default_rng(sum(map(ord, label)) + start)
    return [
        Photo(
            path=Path("photos", label, name.format(i)),
            label=label,
            digest=f"{label}{i:063x}",
            width=1,
            height=1,
            thumbnail=generator.bytes(576),
        )
        for i in range(start, start + count)
    ]


PLAID = np.kron(np.indices((4, 4)).sum(0) % 2 * 200, np.ones((6, 6))).astype(np.uint8).tobytes()


def sets_of(parts: dict[str, list[Photo]]) -> dict[str, str]:
    return {photo.digest: name for name, photos in parts.items() for photo in photos}


def test_the_shares_are_roughly_as_asked_and_every_photo_is_in_one_set():
    photos = made_up(2000) + made_up(2000, "b")
    parts = split(photos, 10, 20)
    assert sum(map(len, parts.values())) == 4000 and len(sets_of(parts)) == 4000
    assert 320 < len(parts["validation"]) < 480  # 400, give or take four deviations of 19
    assert 700 < len(parts["test"]) < 900


def test_adding_moving_and_renaming_move_no_photo_to_another_set():
    photos = made_up(300) + made_up(300, "b")
    before = sets_of(split(photos, 10, 10))
    moved = [
        photo._replace(path=Path("elsewhere", photo.label, f"renamed {i}.jpg"))
        for i, photo in enumerate(photos)
    ]
    after = sets_of(split(moved + made_up(100, start=1000) + made_up(50, "c"), 10, 10))
    assert {digest: after[digest] for digest in before} == before


def test_names_that_share_what_stands_before_nohash_stay_together():
    photos = made_up(300) + made_up(300, "b")
    series = [
        photo._replace(path=Path(f"photos/a/plant{i // 6}_nohash_{i}.jpg"))
        for i, photo in enumerate(photos)
    ]
    found = sets_of(split(series, 20, 20))
    for i in range(0, 600, 6):
        assert len({found[photo.digest] for photo in photos[i : i + 6]}) == 1
    assert set(found.values()) == {"train", "validation", "test"}


def test_no_set_of_a_small_class_is_empty_and_what_was_moved_stays(tmp_path):
    memory = tmp_path / "split.json"
    for seed in range(20):
        memory.unlink(missing_ok=True)
        small, large = made_up(4, f"s{seed}"), made_up(200, "large")
        before = sets_of(split(small + large, 10, 10, memory))
        assert {before[photo.digest] for photo in small} == {"train", "validation", "test"}
        more = made_up(60, f"s{seed}", start=50)
        after = sets_of(split(small + more + large, 10, 10, memory))
        assert {digest: after[digest] for digest in before} == before


def test_near_copies_come_into_one_set_unless_they_are_to_be_kept_apart():
    photos = made_up(300) + made_up(300, "b")
    copies = [
        photo._replace(digest=f"{photo.digest}z{k}", path=Path("copies", f"{i} {k}.jpg"))
        for i, photo in enumerate(photos[:200])
        for k in range(2)
    ]
    found = sets_of(split(photos + copies, 20, 20))
    assert len(found) == 1000
    assert all(
        found[photo.digest] == found[f"{photo.digest}z{k}"]
        for photo in photos[:200]
        for k in range(2)
    )
    assert 140 < sum(name == "test" for name in found.values()) < 260
    apart = sets_of(split(photos + copies, 20, 20, keep_near_copies=True))
    assert len({(apart[p.digest], apart[f"{p.digest}z0"]) for p in photos[:200]}) > 4


def test_a_class_of_one_picture_is_split_all_the_same(capsys):
    photos = made_up(100) + [p._replace(thumbnail=PLAID) for p in made_up(60, "film")]
    parts = split(photos, 20, 20)
    assert sum(map(len, parts.values())) == 160
    assert all({photo.label for photo in photos} == {"a", "film"} for photos in parts.values())
    assert "'film' are so much alike" in capsys.readouterr().out


def test_folders_of_sets_are_used_as_they_are(folder, tmp_path):
    deep = tmp_path / "deep"
    for part, numbers in (("Train", range(16)), ("test", range(16, 22))):
        for label in ("crosses", "红 圆"):
            (deep / part / label).mkdir(parents=True)
            for i in numbers:
                shutil.copy(folder / label / f"照片 {i:02}.jpg", deep / part / label)
    copied = deep / "Train" / "crosses" / "a copy.jpg"
    shutil.copy(folder / "crosses" / "照片 20.jpg", copied)
    found = scan(deep)
    assert [(fault.path, fault.kind) for fault in found.faults] == [(copied, "a copy")]
    parts = split(found.photos, 20, 30)
    assert {photo.path.parents[1].name for photo in parts["test"]} == {"test"}
    assert len(parts["test"]) == 12
    assert len(parts["train"]) + len(parts["validation"]) == 32 and len(parts["validation"]) >= 2
    (deep / "validation" / "crosses").mkdir(parents=True)
    shutil.copy(folder / "crosses" / "照片 15.jpg", deep / "validation" / "crosses" / "x.jpg")
    with pytest.raises(PhotosError, match="none in validation"):
        scan(deep)
    (deep / "validation" / "红 圆").mkdir()
    shutil.copy(folder / "红 圆" / "照片 15.jpg", deep / "validation" / "红 圆" / "y.jpg")
    parts = split(scan(deep).photos, 0, 10)
    assert {photo.path.name for photo in parts["validation"]} == {"x.jpg", "y.jpg"}
    assert (len(parts["train"]), len(parts["test"])) == (30, 12)


def test_classes_may_be_called_train_and_test(folder):
    (folder / "crosses").rename(folder / "train")
    (folder / "红 圆").rename(folder / "test")
    found = scan(folder)
    assert found.classes == ["test", "train"] and {photo.part for photo in found.photos} == {""}


def test_a_csv_file_names_the_photos(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes(photo_of("stripes", 1))
    rows = [f"photos/{p.parent.name}/{p.name},{p.parent.name}!" for p in folder.glob("*/*.jpg")]
    rows += [f"{elsewhere},crosses!", "missing.jpg,crosses!", "", f'"{elsewhere}","红 圆!"']
    table = tmp_path / "labels.csv"
    for head in ("\ufefffile,label\n", ""):
        table.write_text(head + "\n".join(rows[:-1]), encoding="utf-8")
        found = scan(find_photos(table)[0], cache=tmp_path / "cache.json")
        assert found.classes == ["crosses!", "红 圆!"] and len(found.photos) == 45
        (missing,) = found.faults
        assert missing.path.name == "missing.jpg" and missing.kind == "a file that can't be read"
    print_report(found)
    table.write_text("\n".join(rows), encoding="utf-8")
    assert "one photo in several classes" in {fault.kind for fault in scan(table).faults}
    for bad in ("one word", "a.jpg,b,c", "a.jpg,"):
        table.write_text(f"file,label\na.jpg,a\n{bad}\n", encoding="utf-8")
        with pytest.raises(PhotosError, match=r"labels\.csv: expected file,label, found"):
            scan(table)


def test_a_link_to_nothing_is_left_out(folder):
    try:
        (folder / "crosses" / "link.jpg").symlink_to(folder / "nothing.jpg")
    except OSError:
        pytest.skip("this system makes no links")
    (fault,) = scan(folder).faults
    assert fault.path.name == "link.jpg" and fault.detail == "a link to nothing"


def test_a_backslash_before_the_closing_quotation_mark(folder):
    assert find_photos(Path(f'{folder}"'))[0] == folder
    with pytest.raises(PhotosError, match="no backslash before the closing quote"):
        find_photos(Path(f'{folder}" --epochs 3'))


@pytest.mark.parametrize(
    ("photos", "percentages", "reason"),
    [
        (made_up(9), (50, 50), "leave nothing to train on"),
        (made_up(9), (-1, 10), "leave nothing to train on"),
        (made_up(2), (10, 10), "'a' has 2 different photos"),
        (made_up(9, name="one_nohash_{}.jpg"), (10, 10), "'a' has 1 different photos"),
    ],
)
def test_a_split_that_can_not_be_is_refused(photos, percentages, reason):
    with pytest.raises(PhotosError, match=reason):
        split(photos, *percentages)


def test_a_set_of_no_percent_is_empty_and_that_is_all_right(capsys):
    photos = made_up(2) + made_up(3, "b")
    parts = split(photos, 0, 10)
    assert parts["validation"] == [] and len(parts["test"]) >= 2
    print_split(parts, ["a", "b"])
    assert "validation" in capsys.readouterr().out


# ---- where the photos come from ------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(data.photos, "CACHE", tmp_path / "data")
    monkeypatch.delenv("COURSE_DATA", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def make_archive(path: Path, files: dict[str, bytes], link: str = "") -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("flower_photos/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)


def test_the_archive_is_unpacked_whole_and_removed(cache, monkeypatch):
    files = {
        f"flower_photos/{label}/{i}.jpg": photo_of("circles", i)
        for i, label in enumerate(("daisy", "roses"))
    }

    def fetch(urls, target, digest):
        assert len(urls) > 1 and len(digest) == 64
        make_archive(target, files)
        return target

    monkeypatch.setattr(data.photos, "fetch", fetch)
    (cache / ".unpacking-killed").mkdir()
    folder, said = find_photos(None)
    assert folder == cache / "flower_photos" and not said["stand_in"]
    assert (folder / "roses" / "1.jpg").read_bytes() == photo_of("circles", 1)
    assert [path.name for path in cache.iterdir()] == ["flower_photos"]
    monkeypatch.delattr(data.photos, "fetch")
    assert find_photos(None)[0] == folder, "fetched once"


@pytest.mark.parametrize("name", ["../outside.jpg", "flower_photos/../../outside.jpg"])
def test_an_archive_can_not_write_outside_its_folder(cache, monkeypatch, name):
    def fetch(urls, target, digest):
        make_archive(target, {"flower_photos/daisy/0.jpg": b"x", name: b"evil"})
        return target

    monkeypatch.setattr(data.photos, "fetch", fetch)
    with pytest.raises(DownloadError, match="can't be unpacked"):
        fetch_flowers()
    assert not (cache.parent / "outside.jpg").exists() and not (cache / "outside.jpg").exists()
    assert not (cache / "flower_photos").exists(), "nothing half-unpacked bears the name"


def test_course_data_comes_before_the_download_and_the_stand_in_last(
    cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(data.photos, "STAND_IN_COUNT", 2)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    folder, said = find_photos(None)
    assert said["stand_in"] and len(list(folder.rglob("*.jpg"))) == 2 * 4
    announced = capsys.readouterr().err
    assert "*** STAND-IN DATA" in announced and data.photos.FLOWERS_SHA256 in announced
    first = {path: path.read_bytes() for path in folder.rglob("*.jpg")}
    shutil.rmtree(folder)
    find_photos(None, quick=True)
    assert "not downloaded with --quick" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*.jpg")} == first
    (tmp_path / "mine" / "flower_photos").mkdir(parents=True)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "mine"))
    folder, said = find_photos(None)
    assert folder == tmp_path / "mine" / "flower_photos" and not said["stand_in"]


def test_the_examples_exist():
    for path in example_photos():
        assert load_image(path).ndim == 3


def test_run_as_a_program_it_reports_on_a_folder(folder, tmp_path):
    (folder / "crosses" / "text.jpg").write_text("no image", encoding="utf-8")
    done = run_program("data/photos.py", folder)
    assert done.returncode == 0, done.stderr
    assert "红 圆" in done.stdout and "crosses/text.jpg" in done.stdout
    done = run_program("data/photos.py", tmp_path / "missing")
    assert done.returncode == 2 and "there is no folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.environ.get("COURSE_DATA"), reason="needs the real photos")
def test_real_photos_are_all_good_and_all_different():
    found = scan(Path(os.environ["COURSE_DATA"]) / "flower_photos")
    assert found.classes == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert found.faults == [] and found.warnings == []
    assert near_copies(found.photos) == []
