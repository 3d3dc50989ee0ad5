"""Bottlenecks: what a network says about photos, computed once and kept

A photo's features are kept by the SHA-256 of its file and a key of the network. So a new name or
folder changes nothing, and a photo that was edited is computed again. Any of the files may be
deleted at any time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.photos import Photo
from utils.run import readable, written_whole

FEATURES = 2048  # of InceptionV3's pool3
LOT = 256  # photos in a file


class Bottlenecks:
    """The features of photos in ``folder``, of the network ``key``.

    New ones go to a file of their own, a lot at a time and under a temporary name first, so after
    a kill all files are whole. A file that is damaged all the same is reported and not used.

    Attributes:
        rows: float32 [2048] each, by the photo's digest.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.rows: dict[str, np.ndarray] = {}
        self._new: list[str] = []
        for path in sorted(folder.glob(f"{key}_*.npz")):
            try:
                with np.load(path, allow_pickle=False) as lot:
                    digests, rows = lot["digests"].tolist(), lot["features"]
                if rows.shape != (len(digests), FEATURES) or not usable(rows):
                    raise ValueError
                self.rows |= zip(digests, rows, strict=True)
            except Exception:  # zip, zlib and NumPy raise many kinds
                print(f"Not used, damaged: {readable(path)}")

    def add(self, photos: Sequence[Photo], rows: np.ndarray) -> None:
        """Keep features, float32 [n, 2048]. Raises ValueError if one is no number, OSError if they
        can't be written."""
        if not usable(rows):
            raise ValueError(f"the features of {photos[0].path} or the next are no numbers")
        self.rows |= zip((photo.digest for photo in photos), rows, strict=True)
        self._new += [photo.digest for photo in photos]
        if len(self._new) >= LOT:
            self.save()

    def save(self) -> None:
        """Write what is not written yet."""
        if self._new:
            rows = np.stack([self.rows[digest] for digest in self._new])
            with written_whole(self.folder / f"{self.key}_{self._new[0][:16]}.npz") as temporary:
                np.savez(temporary, digests=np.array(self._new), features=rows)
            self._new = []


def usable(rows: np.ndarray) -> bool:
    """Whether these are features: float32, and each a number."""
    return rows.dtype == np.float32 and bool(np.isfinite(rows).all())


# %%
# Google's retrain.py wrote a text file for each photo: 2,048 numbers with commas between them. It
# is named after the photo, and says nothing of the photo's content or of the network.


def read_text(folder: Path, photo: Photo) -> np.ndarray | None:
    """The features in a photo's text file, float32 [2048]; None if there is none that can be used,
    which is reported if it is damaged."""
    for suffix in ("_inception_v3.txt", ".txt"):  # the later and the earlier retrain.py
        path = folder / photo.label / f"{photo.path.name}{suffix}"
        try:
            row = np.array(path.read_text(encoding="utf-8").split(","), np.float32)
            if row.shape == (FEATURES,) and usable(row):
                return row
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            pass
        print(f"Not used, damaged: {readable(path)}")
    return None


def write_text(folder: Path, photo: Photo, row: np.ndarray) -> None:
    """Write a photo's features, float32 [2048], as ``read_text`` reads them, to the last digit."""
    path = folder / photo.label / f"{photo.path.name}_inception_v3.txt"
    with written_whole(path) as temporary:
        temporary.write_text(",".join(map(str, row)), encoding="utf-8")
