"""Fetch a file from the first source that delivers it whole. Until its checksum is found right it
is called ``<name>.part``; a connection that broke is taken up there, also by the next run."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import requests
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

OFFLINE_VARIABLE = "COURSE_OFFLINE"
TIMEOUT = (5, 30)  # seconds to connect (a blocked server never answers), and between two chunks
TRIES = 4  # of one source, as long as each brings some more of the file


class DownloadError(Exception):
    """No source delivered the file; the message says what each did and what to do by hand.

    Attributes:
        tried: only what each did.
    """

    def __init__(self, tried: str, by_hand: str = "") -> None:
        super().__init__(tried + by_hand)
        self.tried = tried


def kind_of(digest: str) -> str:
    """What a checksum in hexadecimal digits is: 32 of them an MD5, 64 a SHA-256."""
    return "MD5" if len(digest) == 32 else "SHA-256"


def find_fault(path: Path, digest: str) -> str | None:
    """What is wrong with a file, as the end of a sentence; None if its checksum is ``digest``."""
    kind = kind_of(digest)
    new = partial(hashlib.new, kind.replace("-", ""), usedforsecurity=False)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, new).hexdigest()
    return None if found == digest else f"has the wrong {kind}"


def fetch(urls: Sequence[str], target: Path, digest: str | Callable[[Path], str | None]) -> Path:
    """Return ``target``, downloaded first if it is missing or its checksum is not ``digest``.

    ``urls`` are sources of the same file, tried in this order. ``digest`` is a SHA-256, or an
    MD5 where no more is published; for a file that has no published checksum, a function that
    looks into it, as ``find_fault`` does. Raises DownloadError if no source delivers the file,
    or if the environment variable ``COURSE_OFFLINE`` forbids to try.
    """
    check = digest if callable(digest) else partial(find_fault, digest=digest)
    if target.is_file():
        fault = check(target)
        if fault is None:
            return target
        print(f"{target} is damaged (it {fault}): fetching it again")
    reasons = []
    if os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0"):
        reasons.append(f"downloads are switched off by {OFFLINE_VARIABLE}")
        urls = ()
    part = target.with_name(target.name + ".part")
    for url in urls:
        for _ in range(TRIES):
            before = _size(part)
            reason = _download(url, part)
            if reason is None:
                fault = check(part)
                if fault is None:
                    part.replace(target)
                    return target
                reason = f"what it sent {fault}"
                part.unlink()
                if before:  # what an earlier try left may be to blame: from zero, then
                    continue
            if _size(part) <= before:  # else the connection broke half-way: go on from there
                break
        reasons.append(f"{url}: {reason}")
    by_hand = f"\n  By hand: put the file at {target}"
    if not callable(digest):
        by_hand += f"\n  its {kind_of(digest)} is {digest}"
    raise DownloadError("\n  - ".join([f"can't get {target.name}:", *reasons]), by_hand)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(url: str, part: Path) -> str | None:
    """Download ``url`` to the end of ``part``; the reason if it failed, None if it is whole."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        have = _size(part)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if have and response.status_code == 416:  # nothing beyond it: the digest judges
                return None
            if not response.ok:
                return f"the server answered {response.status_code} {response.reason}"
            have = have if response.status_code == 206 else 0  # not "partial": it sends all
            total = have + int(response.headers.get("Content-Length", 0))
            columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
            with part.open("ab" if have else "wb") as file, Progress(*columns) as progress:
                task = progress.add_task(part.stem, completed=have, total=total or None)
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    progress.update(task, advance=len(chunk))
    except requests.RequestException:  # while sending, or before
        why = "no connection (is the network on, is the site blocked?)"
        return why if _size(part) <= have else "the connection broke"
    except OSError as error:  # a full disk, a folder that can't be written
        raise DownloadError(f"can't write {part}: {error.strerror}") from error
    return None if _size(part) >= total else f"the connection broke after {_size(part)} bytes"
