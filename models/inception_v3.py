"""InceptionV3: where its files are looked for, and fetched from.

Google's archive ``inception-2015-12-05.tgz`` (88,931,400 bytes) holds the network of C. Szegedy
et al., *Rethinking the Inception Architecture for Computer Vision*, 2015, trained on ImageNet, as
one frozen graph: ``classify_image_graph_def.pb`` (95,673,916 bytes). OpenAI serves a copy of the
bare graph, for measuring the quality of generated images; its SHA-256 is published in several
projects that do so.
"""

import os
import sys
import tarfile
import tempfile
from pathlib import Path

from data.download import DownloadError, fetch

CACHE = Path(__file__).resolve().parent / "inception_v3"
GRAPH_DEF = "classify_image_graph_def.pb"
GRAPH_DEF_SHA256 = "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6"
GRAPH_DEF_URLS = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
    "classify_image_graph_def.pb",
)
ARCHIVE = "inception-2015-12-05.tgz"
ARCHIVE_URLS = (
    "http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz",
    "https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/"
    "inception-2015-12-05.tgz",
)


def find_graph_def(path: Path | None = None, download: bool = True) -> Path | None:
    """The frozen graph's file, from the first place that has it.

    The places: ``path``; ``inception_v3/`` in the folder named by the environment variable
    ``COURSE_DATA``; ``models/inception_v3/``, where Google's archive is unpacked if it was put
    there as it is; the download of the bare graph. The archive itself is not downloaded: no
    published SHA-256 of it is known to us, and what can't be checked is not to be used.

    Args:
        path: a file that the user named, used as it is.
        download: False to look on this machine only.

    Returns:
        The file, or None when it is nowhere, after saying on stderr how to supply it.

    Raises:
        SystemExit: ``path`` is not a file, or the archive can't be unpacked.
    """
    if path is not None:
        path = path.expanduser()
        if not path.is_file():
            raise SystemExit(f"--graph-def: there is no file {path}")
        return path
    folders = [CACHE]
    if os.environ.get("COURSE_DATA"):
        folders.insert(0, Path(os.environ["COURSE_DATA"]).expanduser() / "inception_v3")
    for folder in folders:
        if (folder / GRAPH_DEF).is_file():
            return folder / GRAPH_DEF
    if (CACHE / ARCHIVE).is_file():
        return unpack(CACHE / ARCHIVE, GRAPH_DEF)
    reason = "  It is not downloaded with --quick."
    if download:
        try:
            return fetch(GRAPH_DEF_URLS, CACHE / GRAPH_DEF, GRAPH_DEF_SHA256)
        except DownloadError as error:
            reason = f"  {error}"
    looked = "".join(f"\n  - {folder / GRAPH_DEF}" for folder in folders)
    urls = "".join(f"\n      {url}" for url in ARCHIVE_URLS)
    print(
        f"{GRAPH_DEF}, InceptionV3 as Google froze it, is missing. Looked for:{looked}\n{reason}\n"
        f"  Or download {ARCHIVE} (89 MB) from{urls}\n"
        f"  and put it, as it is, into the folder {CACHE}\n"
        "  or name an unpacked .pb file by --graph-def.",
        file=sys.stderr,
    )
    return None


def unpack(archive: Path, wanted: str) -> Path:
    """Unpack one file of a tar archive beside the archive; its path.

    It is unpacked to a temporary folder and renamed, so that a file cut short by Ctrl-C or a full
    disk never bears the final name. ``filter="data"`` refuses what could reach out of the folder.

    Raises:
        SystemExit: the archive is damaged, or doesn't hold ``wanted``, or can't be unpacked.
    """
    target = archive.with_name(wanted)
    try:
        with (
            tempfile.TemporaryDirectory(dir=archive.parent) as folder,
            tarfile.open(archive) as tar,
        ):
            member = next((m for m in tar if Path(m.name).name == wanted and m.isfile()), None)
            if member is None:
                raise SystemExit(f"{archive} holds no {wanted}: it is another archive")
            member.name = wanted
            tar.extract(member, folder, filter="data")
            (Path(folder) / wanted).replace(target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SystemExit(
            f"{archive} can't be unpacked ({error}).\n"
            "  If it is damaged, delete it and download it again."
        ) from error
    return target
