"""Archives and file names from elsewhere: nothing is written outside the folder it is meant for,
and memory does not grow with what an archive says of itself."""

import bz2
import gzip
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from bench.errors import DataError
from bench.store.files import writing

MARK = "data/metadata.json"  # in the folder of every Minari dataset
MANY_FILES = 10_000
HEADERS = 4 << 20  # bytes of a zip's list of files, or of what a tar says of one file
RATIO = 200  # unpacked to packed: HDF5 of mostly zeros reaches 100
SMALL = 100 << 20  # bytes that are no bomb, whatever the ratio
_DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip
_ODD = re.compile(r"[\x00-\x1f\x7f\\:]")  # control characters, and what Windows takes for a path


def checked_name(source: str, name: object) -> str:
    """A relative path with `/` that stays below the folder it is joined to, else `DataError`."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or _ODD.search(part) or len(part) > 200 for part in parts):
        raise DataError(f"{source}: holds the file name {name!r}, which is not safe; not used")
    return str(name)


def is_archive(path: Path) -> bool:
    try:
        if _is_zip(path):
            return True
        with _decompressed(path) as file, tarfile.open(fileobj=file, mode="r:"):
            return True
    except _DAMAGE:
        return False


def unpack(archive: Path, target: Path) -> None:
    """Write what an archive (zip or tar) holds of one Minari dataset to `target/data/...`.

    The dataset's folder, the one with `data/metadata.json`, may lie anywhere in it; what is not in
    its `data` is left out. Raises `DataError` for unsafe names, links and devices, for archives
    that unpack to far more than they are, and for none or several datasets.
    """
    prefix = _root(archive, _names(archive)) + "data/"
    with _members(archive) as members:
        for name, size, content in members:
            if name.startswith(prefix):
                _write(content, target / "data" / name.removeprefix(prefix), size)


def _names(archive: Path) -> list[str]:
    """Of all files. Nothing was written when one is refused."""
    names: list[str] = []
    room = limit = max(SMALL, RATIO * archive.stat().st_size)
    with _members(archive) as members:
        for name, size, _ in members:
            names.append(name)
            room -= size
            if room < 0:
                _refuse(archive, f"unpacks to more than {limit:,} bytes, {RATIO} times its size")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        _refuse(archive, f"holds {twice[0]!r} twice")
    return names


def _root(archive: Path, names: list[str]) -> str:
    """The only dataset's folder, with a slash behind it; empty if that is the archive's own."""
    found = [name.removesuffix(MARK) for name in names if f"/{name}".endswith(f"/{MARK}")]
    if not found:
        held = ", ".join(map(repr, names[:3])) or "nothing"
        _refuse(archive, f"holds no Minari dataset (a folder with {MARK}) but {held}")
    if len(found) > 1:
        _refuse(archive, f"holds several datasets ({', '.join(map(repr, found[:3]))})")
    return found[0]


def _write(content: IO[bytes], path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, size), open(path, "xb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


class _Bounded:
    """A file that gives out no more than `left` bytes until it is told how many more may come."""

    def __init__(self, archive: Path, file: IO[bytes]) -> None:
        self.archive, self.file, self.left = archive, file, HEADERS

    def read(self, size: int | None = -1) -> bytes:
        most = self.left + 1
        data = self.file.read(most if size is None or size < 0 else min(size, most))
        self.left -= len(data)
        if self.left < 0:
            _refuse(self.archive, f"says more than {HEADERS:,} bytes about its files")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


_ANY = 1 << 62  # bytes: read as a file's content, in parts


@contextmanager
def _decompressed(archive: Path) -> Iterator[Any]:
    """Of a tar."""
    kinds: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"BZh": bz2.open,
        b"\xfd7zXZ": lzma.open,
    }
    with open(archive, "rb") as file:
        start = file.read(6)
    opened = next((kind for magic, kind in kinds.items() if start.startswith(magic)), open)
    with opened(archive, "rb") as file:
        yield _Bounded(archive, file)


def _is_zip(archive: Path) -> bool:
    with open(archive, "rb") as file:
        return zipfile.is_zipfile(file)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, int, IO[bytes]]]]:
    """Name, size and content of every file, read in order; damage becomes `DataError`."""
    try:
        if _is_zip(archive):
            with open(archive, "rb") as plain:
                bounded: Any = _Bounded(archive, plain)
                with zipfile.ZipFile(bounded) as opened:
                    bounded.left = _ANY
                    yield _zip_members(archive, opened)
        else:
            with _decompressed(archive) as file, tarfile.open(fileobj=file, mode="r:") as opened:
                yield _tar_members(archive, opened, file)
    except _DAMAGE as error:
        _refuse(archive, f"is damaged or of an unknown kind ({error})")


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for count, info in enumerate(opened.infolist()):
        _check_count(archive, count)
        if info.is_dir():
            checked_name(str(archive), info.filename.rstrip("/"))
            continue
        kind = info.external_attr >> 28  # of a Unix mode, 0 where there is none
        if kind not in (0, 8):
            _refuse(archive, f"{info.filename!r} is a link or a device")
        name = checked_name(str(archive), info.orig_filename)
        with opened.open(info) as content:
            yield name, info.file_size, content


def _tar_members(
    archive: Path, opened: tarfile.TarFile, file: _Bounded
) -> Iterator[tuple[str, int, IO[bytes]]]:
    for count, info in enumerate(opened):
        _check_count(archive, count)
        if info.size < 0:
            _refuse(archive, "is damaged (a file of negative size)")
        if not (info.isdir() and info.name == "."):
            name = checked_name(str(archive), info.name.removeprefix("./"))
            if not info.isdir():
                file.left = _ANY
                yield name, info.size, _tar_content(archive, opened, info, name)
        file.left = HEADERS
    file.left = _ANY
    _read_to_the_end(archive, file)


def _tar_content(
    archive: Path, opened: tarfile.TarFile, info: tarfile.TarInfo, name: str
) -> IO[bytes]:
    content = opened.extractfile(info) if info.isreg() else None
    if content is None:
        _refuse(archive, f"{name!r} is a link or a device")
    return content


def _check_count(archive: Path, count: int) -> None:
    if count >= MANY_FILES:
        _refuse(archive, f"holds more than {MANY_FILES:,} files")


def _read_to_the_end(archive: Path, file: _Bounded) -> None:
    """A tar ends before its gzip does, whose checksum comes last."""
    for _ in range(SMALL >> 20):
        if not file.read(1 << 20):
            return
    _refuse(archive, "goes on behind its end")


def _refuse(archive: Path, what: str) -> NoReturn:
    raise DataError(f"{archive.name}: {what}; refused, give another --from")
