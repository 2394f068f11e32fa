"""`bench data get`: from an id to verified files in the cache.

The first download of an id records its bytes in the lock file; every later one, from any source,
must be the same. Bytes lie in a folder `.NAME.part` beside their place until they are verified, and
are then renamed, so that the cache never holds a part of a dataset.
"""

import fnmatch
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.data import hub
from bench.data.card import Card, cards
from bench.data.fetch import Meter, Wanted, mismatch, new_session, sha256
from bench.data.flat import open_hdf5
from bench.data.loading import unknown
from bench.data.lockfile import Entry, LockedFile, lock_path, locked, record
from bench.data.minari import MINARI_ID, check_format, minari_root, read_metadata
from bench.data.sources import Job, Options, Published
from bench.data.staging import commit, discard, staging
from bench.errors import ConfigError, DataError

Say = Callable[[str], None]


def get(ids: Iterable[str], options: Options, say: Say, meter: Meter) -> list[Path]:
    """Have every dataset on disk and verified; returns their places.

    `ids` are card ids, globs over them, or Minari ids. Raises `DataError` for what cannot be had
    or is not what the lock file records, `RunError` where the disk refuses.
    """
    wishes = [_published(name, options) for name in _expand(ids)]
    if options.origin and len(wishes) != 1:
        raise ConfigError(f"--from: is for one dataset, not for {len(wishes)}; name one id")
    if options.offline or hub.offline():
        _check_offline(wishes, options)
    return [_get(wish, options, say, meter) for wish in wishes]


_OWN = ("d4rl/", "lite/")


def _expand(patterns: Iterable[str]) -> list[str]:
    """Ids, each once; a set that combines others stands for its parts."""
    known, found = cards(), dict[str, None]()
    for pattern in patterns:
        ours = pattern.startswith(_OWN)  # no id of Minari's: a misspelt one is not looked for there
        if pattern in known or (MINARI_ID.fullmatch(pattern) and not ours):
            names = [pattern]
        else:
            names = [n for n, c in known.items() if c.published and fnmatch.fnmatchcase(n, pattern)]
        if not names:
            raise DataError(unknown(pattern))
        for name in names:
            parts = known[name].combine if name in known else ()
            found |= dict.fromkeys(parts or [name])
    return list(found)


def _published(name: str, options: Options) -> Published:
    card = cards().get(name)
    if card and not card.published:
        raise DataError(f"{name}: {_embedded(card)}")
    if card and card.url:
        assert card.path is not None
        target = options.out / card.path.name if options.out else card.path
        return Published(name, target, card.url)
    minari = card.minari if card and card.minari else name
    hub.place(minari)  # checks the id
    return Published(name, (options.out or minari_root()) / minari, None, minari)


def _embedded(card: Card) -> str:
    made = f", or make it: bench data make {card.id}" if card.recipe.get("make") else ""
    return f"comes with the repository, there is nothing to download; restore it from git{made}"


def _check_offline(wishes: list[Published], options: Options) -> None:
    """Without a network there is only what is here, or in a file that the user names."""
    if options.origin and not options.address:
        return
    renew = options.again or options.update
    missing = [wish for wish in wishes if renew or not wish.target.exists()]
    if missing:
        ids = " ".join(wish.id for wish in missing)
        places = ", ".join(str(wish.target) for wish in missing)
        raise DataError(
            f"offline (--offline or HF_HUB_OFFLINE), and not here: {ids}; where there is a network "
            f"run: bench data get {ids}, and copy it to {places}"
        )


def _get(wish: Published, options: Options, say: Say, meter: Meter) -> Path:
    renew = options.again or options.update
    if wish.target.exists() and not renew:
        return _present(wish, say)
    with staging(wish.target, lambda: say(f"{wish.id}: waiting for another process")) as folder:
        if wish.target.exists() and not renew:  # the other process got it
            return _present(wish, say)
        entry = None if options.update else locked().get(wish.id)
        with new_session() as session:
            job = Job(wish, options, entry, folder, session, meter)
            source, revision = job.fill()
        try:
            found = _entry(source, revision, job.content)
            _compare(wish, entry, found)
            _inspect(wish, source, job.content)
        except DataError:
            discard(job.content)
            raise
        if entry is None:
            record(wish.id, found)
            say(f"{wish.id}: recorded in {lock_path()}")
        commit(folder, job.content, wish.target)
    size = sum(file.size for file in found.files)
    say(f"{wish.id}: {size:,} bytes, verified, in {wish.target}")
    return wish.target


def _present(wish: Published, say: Say) -> Path:
    """What is here already is held to the lock file."""
    entry = locked().get(wish.id)
    if entry is None:
        say(
            f"{wish.id}: is here already ({wish.target}), but its bytes were never recorded; "
            f"to download and record it: bench data get {wish.id} --force"
        )
        return wish.target
    for file in entry.files:
        path = wish.target / file.name if wish.url is None else wish.target
        known = Wanted(file.name, "", file.size, file.sha256)
        if wrong := mismatch(known, path) if path.is_file() else "is missing":
            raise DataError(
                f"{path}: {wrong} ({lock_path()}); download it again: bench data get {wish.id} "
                "--force, or, if the source was changed for good: --update"
            )
    say(f"{wish.id}: is here already, verified, in {wish.target}")
    return wish.target


def _entry(source: str, revision: str, content: Path) -> Entry:
    """What was downloaded, as the lock file records it."""
    paths = sorted(p for p in content.rglob("*") if p.is_file()) or [content]
    root = content if content.is_dir() else content.parent
    files = (LockedFile(p.relative_to(root).as_posix(), p.stat().st_size, sha256(p)) for p in paths)
    return Entry(source, revision, tuple(files))


def _compare(wish: Published, entry: Entry | None, found: Entry) -> None:
    """Refuse other bytes than the lock file's, wherever they come from."""
    if entry is None:
        return
    known, now = ({(f.name, f.size, f.sha256) for f in e.files} for e in (entry, found))
    if known != now:
        names = ", ".join(sorted({name for name, *_ in known ^ now}))
        raise DataError(
            f"{wish.id}: {names}: {found.source} is not what {lock_path()} records (from "
            f"{entry.source}); nothing was kept. Give another source (--from, --mirror), or take "
            f"the change over: bench data get {wish.id} --update"
        )


def _inspect(wish: Published, source: str, content: Path) -> None:
    """A page that says "not found", or a file cut short, is no dataset."""
    try:
        if wish.url is not None:
            open_hdf5(content).close()
        else:
            check_format(str(content), read_metadata(content))
            open_hdf5(content / "data" / "main_data.hdf5").close()
    except DataError as error:
        raise DataError(f"{wish.id}: {source} gave no dataset: {error}") from error
