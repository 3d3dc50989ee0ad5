"""data/images.py and data/photos.py: image files of every kind, the look at a folder, the split."""

import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import run_program
from PIL import Image

import data.photos
from data.download import DownloadError
from data.images import encoded, is_plain, load_image
from data.photos import (
    NEAR,
    Photo,
    PhotosError,
    draw_stand_in,
    example_photos,
    fetch_flowers,
    find_photos,
    fingerprint,
    near_copies,
    print_report,
    print_split,
    read,
    scan,
    split,
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
    import tensorflow as tf

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
        "nothing in it": "a class without a photo that can be used",
        "two": "a class with too few photos",
        "loose.jpg": "in no class's folder",
    }
    assert len(found.photos) == 22 + 22 + 5
    few, misnamed = found.warnings
    assert few.startswith("'few' has 5 photos")
    assert "few/0.png is a JPEG" in misnamed
    print_report(found)
    shown = capsys.readouterr().out
    assert "crosses/cut.jpg" in shown and "truncated" in shown and "49 photos" in shown


def test_copies_that_are_not_the_same_bytes_are_found(folder):
    again = file_of(draw_stand_in("crosses", 3).resize((200, 150)), "JPEG", quality=60)
    (folder / "红 圆" / "smaller.jpg").write_bytes(again)
    found = scan(folder)
    (note,) = found.warnings
    assert "nearly the same photo in two classes: crosses/照片 03.jpg and 红 圆/smaller.jpg" in note
    pairs = near_copies(found.photos)
    assert [{p.path.name for p in pair} for pair in pairs] == [{"照片 03.jpg", "smaller.jpg"}]


def test_fingerprints_differ_as_a_slow_second_implementation_says(folder):
    photos = scan(folder).photos[:12]
    for photo in photos:
        grey = Image.fromarray(load_image(photo.path)).convert("L")
        small = np.asarray(grey.resize((17, 16), Image.Resampling.BOX)).tolist()
        bits = "".join("01"[row[i + 1] > row[i]] for row in small for i in range(16))
        assert photo.fingerprint == int(bits, 2) == fingerprint(load_image(photo.path))
    wanted = {
        (a, b)
        for i, a in enumerate(photos)
        for b in photos[i + 1 :]
        if (a.fingerprint ^ b.fingerprint).bit_count() <= 100
    }
    assert set(near_copies(photos, 100)) == wanted != set()
    assert min((a.fingerprint ^ b.fingerprint).bit_count() for a, b in wanted) > NEAR


def test_a_second_look_reads_no_file_that_is_unchanged(folder, tmp_path, monkeypatch):
    cache = tmp_path / "scan.json"
    before = scan(folder, cache=cache)
    looked: list[Path] = []
    look = data.photos._look_at
    monkeypatch.setattr(data.photos, "_look_at", lambda paths: looked.extend(paths) or look(paths))
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
        (("crosses",), "holds photos of only one class, '红 圆'"),
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
    """Photos that exist in name only, their fingerprints far apart."""
    generator = np.random.default_rng(hash((label, start)) % 2**32)
    return [
        Photo(
            Path("photos", label, name.format(i)),
            label,
            f"{label}{i:063x}",
            1,
            1,
            int.from_bytes(generator.bytes(32), "big"),
        )
        for i in range(start, start + count)
    ]


def sets_of(parts: dict[str, list[Photo]]) -> dict[str, str]:
    return {photo.digest: name for name, photos in parts.items() for photo in photos}


def test_the_shares_are_roughly_as_asked_and_every_photo_is_in_one_set():
    photos = made_up(2000) + made_up(2000, "b")
    parts = split(photos, 10, 20)
    assert sum(map(len, parts.values())) == 4000 and len(sets_of(parts)) == 4000
    assert 320 < len(parts["validation"]) < 480  # 400, give or take four deviations of 19
    assert 700 < len(parts["test"]) < 900
    assert parts["left_out"] == []


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


def test_a_near_copy_of_a_test_photo_is_not_trained_on():
    photos = made_up(300) + made_up(300, "b")
    before = split(photos, 10, 10)
    train, test = before["train"][0], before["test"][0]
    changed = [
        photo._replace(fingerprint=test.fingerprint ^ 0b1011) if photo == train else photo
        for photo in photos
    ]
    after = split(changed, 10, 10)
    assert [photo.digest for photo in after["left_out"]] == [train.digest]
    assert len(after["test"]) == len(before["test"])
    assert len(after["train"]) == len(before["train"]) - 1


@pytest.mark.parametrize(
    ("photos", "percentages", "reason"),
    [
        (made_up(9), (50, 50), "leave nothing to train on"),
        (made_up(9), (-1, 10), "leave nothing to train on"),
        (made_up(2), (10, 10), "'a' has 2 different photos"),
        (made_up(9, name="one_nohash_{}.jpg"), (10, 10), "'a' has 1 different photos"),
        ([p._replace(fingerprint=7) for p in made_up(9)], (10, 10), "too much alike"),
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
