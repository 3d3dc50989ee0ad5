"""Fetch a file from the first source that delivers it whole. Until its SHA-256 is found right it
is called ``<name>.part``; a connection that broke is taken up there, also by the next run."""

import os
from collections.abc import Sequence
from pathlib import Path

import requests
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from utils.run import sha256

OFFLINE_VARIABLE = "COURSE_OFFLINE"
TIMEOUT = (5, 30)  # seconds to connect (a blocked server never answers), and between two chunks
TRIES = 4  # of one source, as long as each brings some more of the file


class DownloadError(Exception):
    """No source delivered the file; the message says what each did and what to do by hand."""


def fetch(urls: Sequence[str], target: Path, digest: str) -> Path:
    """Return ``target``, downloaded first if it is missing or its SHA-256 is not ``digest``.

    ``urls`` are sources of the same file, tried in this order. Raises DownloadError if none
    delivers it, or if the environment variable ``COURSE_OFFLINE`` forbids to try.
    """
    if target.is_file():
        if sha256(target) == digest:
            return target
        print(f"{target} is damaged (its SHA-256 is wrong): fetching it again")
    reasons = []
    if os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0"):
        reasons.append(f"downloads are switched off by {OFFLINE_VARIABLE}")
        urls = ()
    part = target.with_name(target.name + ".part")
    for url in urls:
        for _ in range(TRIES):
            before = _size(part)
            reason = _download(url, part)
            if reason is None and sha256(part) == digest:
                part.replace(target)
                return target
            if reason is None:
                reason = "what it sent has the wrong SHA-256"
                part.unlink()
                if before:  # what an earlier try left may be to blame: from zero, then
                    continue
            if _size(part) <= before:  # else the connection broke half-way: go on from there
                break
        reasons.append(f"{url}: {reason}")
    raise DownloadError(
        "\n  - ".join([f"can't get {target.name}:", *reasons])
        + f"\n  By hand: put the file at {target}\n  its SHA-256 is {digest}"
    )


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
