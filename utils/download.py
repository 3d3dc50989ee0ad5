"""Fetch a file from the first source that delivers it whole.

A file is used only when its SHA-256 is right; until then it is called ``<name>.part``. A
connection that breaks is taken up where it broke, also by the next run of the program.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

OFFLINE_VARIABLE = "COURSE_OFFLINE"
TIMEOUT = (5, 30)  # seconds to connect (a blocked server never answers), and between two chunks
CHUNK = 1 << 16


class DownloadError(Exception):
    """No source delivered the file; the message says what each did and what to do by hand."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(urls: Sequence[str], target: Path, digest: str) -> Path:
    """Return ``target``, downloading it when it is missing or not what it should be.

    Args:
        urls: sources of the same file, tried in this order.
        target: where the file goes; its folder is made.
        digest: the SHA-256 that the file must have.

    Raises:
        DownloadError: no source delivered the file, or the environment variable
            ``COURSE_OFFLINE`` forbids to try.
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
        for _ in range(2):  # the second try is for a connection that broke half-way
            reason = _download(url, part)
            if reason is None and sha256(part) != digest:
                reason = "what it sent has the wrong SHA-256"
                part.unlink()
            if reason is None:
                part.replace(target)
                return target
            if not part.exists():
                break
        reasons.append(f"{url}: {reason}")
    listed = "".join(f"\n  - {reason}" for reason in reasons)
    raise DownloadError(
        f"can't get {target.name}:{listed}\n"
        f"  By hand: put the file at {target}\n  its SHA-256 is {digest}"
    )


def _download(url: str, part: Path) -> str | None:
    """Download ``url`` to the end of ``part``; the reason if it failed, None if it is whole."""
    import requests
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing beyond what we have: let the digest judge
                return None
            response.raise_for_status()
            if response.status_code != 206:  # no partial content: the server sends all of it
                have = 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
            with part.open("ab" if have else "wb") as file, Progress(*columns) as progress:
                task = progress.add_task(part.stem, completed=have, total=total)
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    progress.update(task, advance=len(chunk))
        if total is not None and part.stat().st_size < total:
            return f"the connection broke after {part.stat().st_size} of {total} bytes"
    except requests.RequestException as error:
        return _in_short(error)
    except OSError as error:  # a full disk, a folder that can't be written
        raise DownloadError(f"can't write {part}: {error.strerror}") from error
    return None


def _in_short(error: Exception) -> str:
    """One line for a failed request, without the names of the libraries' classes."""
    import requests

    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return "no answer (is the network on, is the site blocked?)"
    if isinstance(error, requests.ReadTimeout):
        return "the server stopped sending"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, requests.ConnectionError):
        return "no connection (is the network on, is the site blocked?)"
    return str(error)
