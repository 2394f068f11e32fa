"""One file over HTTP: resumed where it was cut, tried again where that helps, then verified.

The bytes are written to a path of the caller's choice, which is no place that anything loads from;
what lies there already is resumed. Bytes are joined only where they can be told to be of the same
file: its hash is known, or the server names its version (ETag or Last-Modified, sent back as
If-Range). Otherwise the download begins again.
"""

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import requests
from requests.exceptions import ChunkedEncodingError, SSLError

from bench.errors import DataError
from bench.store.files import writing

TIMEOUT = 30.0  # seconds until a connection or the next bytes
FAILURES = 5  # in a row, each without PROGRESS more bytes
PROGRESS = 1 << 20
PAUSE = 1.0  # seconds before the second attempt; then twice as long each time
LONGEST_PAUSE = 60.0
CHUNK = 1 << 16  # so much of what arrived just before a cut may be fetched again
AGAIN_LATER = (408, 425, 429)  # besides 5xx

T = TypeVar("T")
Meter = Callable[[str, int, int | None], None]  # name, bytes so far, bytes in all


@dataclass(frozen=True)
class Wanted:
    """A file to download: its name within the dataset and what is known of it beforehand.

    `git_oid` is git's name of the content, the only hash that the Hub gives of small files.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_oid: str | None = None

    @property
    def hashed(self) -> bool:
        return self.sha256 is not None or self.git_oid is not None


class _Transient(Exception):
    """A failure that may be gone at the next attempt; `wait` as the server asked, in seconds."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


def new_session() -> requests.Session:
    """Proxies and certificates as the environment says; bytes as they are, never compressed."""
    session = requests.Session()
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "rlobj-bench"})
    return session


def fetch(
    wanted: Wanted, path: Path, session: requests.Session, meter: Meter, timeout: float = TIMEOUT
) -> str:
    """Make `path` hold the file, verified and on disk; returns its sha256.

    Raises `DataError` where the server refuses, gives up, or serves other bytes than expected;
    wrong bytes are removed, those of an interrupted download stay for the next call. `RunError`
    where the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    resumed = _download(wanted, path, session, meter, timeout)
    wrong = mismatch(wanted, path)
    if wrong and resumed:  # what was here before may have been at fault
        _forget(path)
        _download(wanted, path, session, meter, timeout)
        wrong = mismatch(wanted, path)
    if wrong:
        _forget(path)
        raise DataError(
            f"{wanted.url}: {wrong}; the bytes were removed. Try again later or elsewhere "
            "(--mirror, --from); if the source has changed for good, add --update"
        )
    _validator_file(path).unlink(missing_ok=True)
    return sha256(path)


def mismatch(wanted: Wanted, path: Path) -> str | None:
    """What differs from what is known of the file; None where nothing does."""
    size = path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        return f"is {size:,} bytes where {wanted.size:,} are expected"
    if wanted.sha256 is not None and (found := sha256(path)) != wanted.sha256:
        return f"has the sha256 {found} where {wanted.sha256} is expected"
    if wanted.git_oid is not None and (found := _git_oid(path)) != wanted.git_oid:
        return f"has the git hash {found} where {wanted.git_oid} is expected"
    return None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_oid(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def get_json(url: str, session: requests.Session, timeout: float = TIMEOUT) -> requests.Response:
    """The answer to a question to a server, asked again like `fetch` does."""

    def ask() -> requests.Response:
        response = _request(session, url, {}, timeout, stream=False)
        _check_status(response, url, 0)
        return response

    return _patiently(url, ask, lambda: 0)


def _patiently(url: str, attempt: Callable[[], T], held: Callable[[], int]) -> T:
    """Repeat `attempt` after transient failures; bytes that `held` counts are progress."""
    failures, best = 0, held()
    while True:
        try:
            return attempt()
        except _Transient as error:
            failures = 1 if held() >= best + PROGRESS else failures + 1
            best = max(best, held())
            if failures >= FAILURES:
                kept = f"; {held():,} bytes are kept, the same command resumes" if held() else ""
                raise DataError(
                    f"{url}: {error}, gave up after {failures} attempts{kept}. Try again later or "
                    "elsewhere (--mirror, --from)"
                ) from error
            pause = PAUSE * 2 ** (failures - 1) * random.uniform(1, 1.5)
            time.sleep(min(LONGEST_PAUSE, max(error.wait, pause)))


def _download(
    wanted: Wanted, path: Path, session: requests.Session, meter: Meter, timeout: float
) -> bool:
    """Append to `path` until it is whole; whether something lay there before."""
    before = _held(wanted, path)
    if wanted.size is None or before < wanted.size or not path.exists():
        _patiently(
            wanted.url,
            lambda: _stream(wanted, path, session, meter, timeout),
            lambda: _held(wanted, path),
        )
    meter(wanted.name, path.stat().st_size, wanted.size)
    return before > 0


def _held(wanted: Wanted, path: Path) -> int:
    """Bytes at `path` that may be continued; others are removed."""
    if not path.exists():
        return 0
    size = path.stat().st_size
    if not wanted.hashed and not _validator(wanted, path):
        return _forget(path)
    if wanted.size is not None and size > wanted.size:
        return _forget(path)
    return size


def _stream(
    wanted: Wanted, path: Path, session: requests.Session, meter: Meter, timeout: float
) -> None:
    """One request, from where `path` ends to the end of the file."""
    start, headers = _held(wanted, path), {}
    if start:
        headers = {"Range": f"bytes={start}-"}
        if validator := _validator(wanted, path):
            headers["If-Range"] = validator
    with _request(session, wanted.url, headers, timeout, stream=True) as response:
        if response.status_code == 416:
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return  # all of it is here
            _forget(path)
            raise _Transient("has no bytes where the download stopped")
        _check_status(response, wanted.url, start)
        start = _agreed_start(wanted, path, response, start)
        total = _announced(wanted, response, start)
        if not start:
            _remember(wanted, path, response)
        with writing(path, total or 0), open(path, "ab" if start else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                start += len(chunk)
                if wanted.size is not None and start > wanted.size:
                    break  # it never ends well; the size is reported
                meter(wanted.name, start, total)
            file.flush()
            os.fsync(file.fileno())


def _request(
    session: requests.Session, url: str, headers: dict[str, str], timeout: float, *, stream: bool
) -> requests.Response:
    try:
        response = session.get(url, headers=headers, timeout=timeout, stream=stream)
    except SSLError as error:
        _refused(url, f"the connection is not safe ({_reason(error)})", "check the address")
    except (requests.ConnectionError, requests.Timeout, ChunkedEncodingError) as error:
        raise _Transient(_reason(error)) from error
    except (requests.RequestException, ValueError) as error:
        _refused(url, f"cannot be asked for ({_reason(error)})", "check the address")
    if url.startswith("https:") and not response.url.startswith("https:"):
        _refused(url, f"leads to the unencrypted {response.url}", "give another source by --from")
    return response


def _chunks(response: requests.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_content(CHUNK)
    except (requests.RequestException, OSError) as error:
        raise _Transient(f"the connection broke ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The innermost cause, on one line."""
    while error.args and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    inner = getattr(error, "reason", None)
    if isinstance(inner, Exception):
        return _reason(inner)
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _check_status(response: requests.Response, url: str, start: int) -> None:
    code, said = response.status_code, f"answers {response.status_code} {response.reason or ''}"
    if code in (200, 206):
        if response.headers.get("Content-Encoding", "identity") != "identity":
            _refused(url, "is sent compressed although that was not asked for", "use --mirror")
        return
    if code in AGAIN_LATER or code >= 500:
        raise _Transient(said.strip(), _retry_after(response))
    if code in (401, 403, 404) and (start or response.history):
        raise _Transient(said.strip())  # a signed link that has expired: ask for a new one
    closed = (
        "if the set is not public set HF_TOKEN (sent to HF_ENDPOINT alone, by https), or give "
        "another source (--mirror, --from)"
    )
    unknown = "check the id, or give another source (--mirror, --from)"
    mend = {401: closed, 403: closed, 404: unknown}
    _refused(url, said.strip(), mend.get(code, "give another source (--mirror, --from)"))


def _refused(url: str, what: str, mend: str) -> NoReturn:
    raise DataError(f"{url}: {what}; {mend}")


def _retry_after(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _agreed_start(wanted: Wanted, path: Path, response: requests.Response, start: int) -> int:
    """Where the body begins: 0 where the server ignores the range or has another version."""
    if response.status_code != 206:
        return 0
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", response.headers.get("Content-Range", ""))
    stored = _validator(wanted, path)
    if not found or int(found[1]) != start or (stored and stored != _version(response)):
        _forget(path)
        raise _Transient("does not continue where the download stopped")
    return start


def _announced(wanted: Wanted, response: requests.Response, start: int) -> int | None:
    """Size of the whole file, as known or as the server says."""
    whole = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and whole and not wanted.size:
        return int(whole[1])
    length = response.headers.get("Content-Length", "")
    return wanted.size if wanted.size or not length.isdigit() else start + int(length)


# ------------------------------------------------------ which version the bytes on disk are of


def _validator_file(path: Path) -> Path:
    return path.with_name(path.name + ".version")


def _version(response: requests.Response) -> str | None:
    """What If-Range takes: an ETag (not a weak one) or the time of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _remember(wanted: Wanted, path: Path, response: requests.Response) -> None:
    version = _version(response)
    file = _validator_file(path)
    if wanted.hashed or not version:
        file.unlink(missing_ok=True)
    else:
        file.write_text(f"{wanted.url}\n{version}\n", encoding="utf-8")


def _validator(wanted: Wanted, path: Path) -> str | None:
    """The version whose first bytes lie at `path`, if they are this address's and need one."""
    try:
        url, version, *_ = _validator_file(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return version if url == wanted.url and not wanted.hashed else None


def _forget(path: Path) -> int:
    path.unlink(missing_ok=True)
    _validator_file(path).unlink(missing_ok=True)
    return 0
