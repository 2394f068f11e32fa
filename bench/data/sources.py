"""Where the bytes of a published dataset come from: its card's address, a mirror of that, the
Hugging Face Hub, or a file or archive of the user's choice."""

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import requests

from bench.data import hub
from bench.data.fetch import TIMEOUT, Meter, Wanted, fetch
from bench.data.lockfile import Entry
from bench.data.minari import check_format, read_metadata
from bench.data.staging import discard
from bench.data.unpack import MARK, is_archive, unpack
from bench.errors import DataError


@dataclass(frozen=True)
class Options:
    """Of one command. `origin` is a file, archive or address that replaces the card's; `mirror`
    another server; `out` a folder instead of the cache; `again` downloads what is here already;
    `update` also lets the lock file change. `timeout` is in seconds without an answer."""

    origin: str | None = None
    mirror: str | None = None
    offline: bool = False
    out: Path | None = None
    again: bool = False
    update: bool = False
    timeout: float = TIMEOUT

    @property
    def address(self) -> bool:
        """Whether `origin` is to be downloaded."""
        return re.match(r"https?://", self.origin or "") is not None


@dataclass(frozen=True)
class Published:
    """A dataset to download: a flat file with an address, or Minari's set of files (`url` None)."""

    id: str
    target: Path
    url: str | None = None
    minari: str = ""


@dataclass(frozen=True)
class Job:
    """The download of one dataset into `folder`; `entry` is what the lock file says of it."""

    wish: Published
    options: Options
    entry: Entry | None
    folder: Path
    session: requests.Session
    meter: Meter

    @property
    def content(self) -> Path:
        """The file, or the folder that gets the set's name."""
        return self.folder / ("set" if self.wish.url is None else self.wish.target.name)

    def fill(self) -> tuple[str, str]:
        """Bring the bytes to `content`; where they came from, and the commit there or ''."""
        if self.options.origin:
            return self._from_origin(self.options.origin), ""
        if self.wish.url is not None:
            url = mirrored(self.wish.url, self.options.mirror)
            self._fetch([self._known(Wanted(self.wish.target.name, url))], self.folder)
            return url, ""
        return self._from_hub()

    def _from_hub(self) -> tuple[str, str]:
        wish, mirror = self.wish, self.options.mirror
        hub.authorise(self.session)
        if self.entry and self.entry.revision:
            commit = self.entry.revision
            wanted = [self._locked(f.name, commit) for f in self.entry.files]
        else:
            commit = hub.revision(wish.minari, mirror, self.session)
            wanted = hub.listing(wish.minari, commit, mirror, self.session)
        _keep_only(self.content, {self.content / one.name for one in wanted})
        _check_space(self.content, wanted)
        self._fetch([one for one in wanted if one.name == MARK], self.content)
        self._check_format()
        self._fetch(wanted, self.content)
        return f"{hub.endpoint(mirror)}/datasets/{hub.place(wish.minari)[0]}", commit

    def _check_format(self) -> None:
        """By its metadata, which come first: what could not be read is not downloaded."""
        try:
            if (self.content / MARK).exists():
                check_format(self.wish.id, read_metadata(self.content))
        except DataError as error:
            discard(self.content)
            raise DataError(f"{error} (nothing else was downloaded)") from error

    def _locked(self, name: str, commit: str) -> Wanted:
        address = hub.address(self.wish.minari, commit, name, self.options.mirror)
        return self._known(Wanted(name, address))

    def _known(self, wanted: Wanted) -> Wanted:
        """With the size and hash of the lock file."""
        for file in self.entry.files if self.entry else ():
            if file.name == wanted.name:
                return replace(wanted, size=file.size, sha256=file.sha256)
        return wanted

    def _fetch(self, files: Iterable[Wanted], folder: Path) -> None:
        files = list(files)
        _check_space(folder, files)
        for one in files:
            fetch(one, folder / one.name, self.session, self.meter, self.options.timeout)

    def _from_origin(self, origin: str) -> str:
        """Flat sets are one file, Minari's are packed into an archive."""
        flat = self.wish.url is not None
        here = self.content if flat else self.folder / "archive"
        if self.options.address:
            wanted = Wanted(here.name, origin)
            self._fetch([self._known(wanted) if flat else wanted], self.folder)
        else:
            _copy(Path(origin).expanduser(), here)
        if not flat:
            _unpack(origin, here, self.content)
        return origin if self.options.address else Path(origin).name


def mirrored(url: str, mirror: str | None) -> str:
    """The address of the same file at a mirror (else BENCH_MIRROR): `{name}` and `{path}` stand for
    those of `url`; without them the name is appended."""
    mirror = mirror or os.environ.get("BENCH_MIRROR")
    if not mirror:
        return url
    path = urlsplit(url).path.lstrip("/")
    name = path.rpartition("/")[2]
    if "{" not in mirror:
        return f"{mirror.rstrip('/')}/{name}"
    return mirror.replace("{name}", name).replace("{path}", path)


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise DataError(f"{source}: no such file; give --from a file or an address")
    _check_space(target.parent, [Wanted(source.name, "", source.stat().st_size)])
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


def _unpack(origin: str, archive: Path, content: Path) -> None:
    shutil.rmtree(content, ignore_errors=True)
    try:
        if not is_archive(archive):
            raise DataError(
                f"{origin}: is no zip or tar archive; a Minari set needs one that holds its folder"
            )
        unpack(archive, content)
    except DataError:
        shutil.rmtree(content, ignore_errors=True)
        raise
    finally:
        archive.unlink()


def _keep_only(folder: Path, files: set[Path]) -> None:
    """Remove what an earlier download of another revision left."""
    for path in folder.rglob("*"):
        if path.is_file() and path not in files:
            path.unlink()


def _check_space(folder: Path, files: list[Wanted]) -> None:
    """As far as the sizes are known."""
    held = [folder / one.name for one in files]
    missing = sum(one.size or 0 for one in files) - sum(
        p.stat().st_size for p in held if p.exists()
    )
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if missing > free:
        raise DataError(
            f"{folder}: {missing:,} bytes are needed and {free:,} are free; free space or choose "
            "another place with --out"
        )
