"""Cards: `datasets/cards/*.toml` say what each dataset id is. One file may hold a family.

A card says where its data is in exactly one of four ways: `file` (in git), `combine` (ids of other
cards), `url` (a flat HDF5 file elsewhere) or `minari` (a dataset id of Minari's servers). The last
two are published sets, whose cards must say more (`PUBLISHED`): `bench data get` downloads them. A
card that says none of them but how its set is made (`recipe.make`) is of one that is not in git:
`bench data make` puts it into the cache.

The cards and the embedded files come with the package (`shipped_root`); what is written, the cache
and the lock file, goes where the user may write (`data_root`). In a checkout both are `datasets/`.
"""

import os
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.errors import ConfigError

NUMBER = (int, float)
REQUIRED: dict[str, Any] = {"env_id": str, "family": str, "licence": str, "description": str}
SOURCES: dict[str, Any] = {"file": str, "combine": list, "url": str, "minari": str}
# What a published card must say besides; `reference` may be replaced by `no_reference`.
PUBLISHED: dict[str, Any] = {
    "recorded_in": str,
    "horizon": int,
    "observation": dict,
    "action": dict,
    "preprocessing": dict,
    "not_comparable_with": list,
}
OPTIONAL: dict[str, Any] = {
    "fingerprint": str,
    "fingerprint_next": str,
    "reference": dict,
    "behaviour": dict,
    "licence_source": str,
    "no_reference": str,
    "not_evaluated": str,
    "requires": str,
    "cautions": list,
    "transitions": int,
    "episodes": int,
    "recipe": dict,
}
KNOWN = REQUIRED | SOURCES | PUBLISHED | OPTIONAL
REFERENCE = {"random": NUMBER, "expert": NUMBER, "source": str}
BEHAVIOUR = {"note": str, "mean_return": NUMBER, "source": str}
EXTRAS = {"robotics": "gymnasium_robotics", "minigrid": "minigrid", "atari": "ale_py"}
SPACE: dict[str, Any] = {"shape": list, "dtype": str, "low": NUMBER, "high": NUMBER, "n": int}
_STRINGS = ("combine", "not_comparable_with", "cautions")


@dataclass(frozen=True)
class Reference:
    """Mean raw returns of a random and an expert policy, and where the numbers come from."""

    random: float
    expert: float
    source: str


@dataclass(frozen=True)
class Behaviour:
    """What evaluation episodes of the policy behind the data return, for data whose own episodes
    are others: `note` says how they differ. `mean_return` None: nobody measured it."""

    note: str
    mean_return: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Space:
    """What the file holds per row: `shape` and `dtype`, within `low` and `high` where bounded;
    `n` actions 0..n-1 where discrete. `keys` are the parts of a dictionary, by name."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    keys: dict[str, "Space"] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """One dataset id.

    `path` is the flat file (of a `url`: its place in the cache), None for a set that only combines
    others (`combine`) or is Minari's (`minari`, its id there). `fingerprint` and `fingerprint_next`
    are checked on load when not empty (see `bench.data.dataset`); `transitions` and `episodes` are
    the published counts. `env_id` is the environment for evaluation, `recorded_in` the one of the
    data; `not_evaluated` says why runs
    cannot be scored. `behaviour` replaces the returns of the data as the behaviour's where
    they are not on the scale of evaluations. `licence_source` is where the licence was read, or
    looked for. `requires` is the extra of this package (of `EXTRAS`, which name the
    modules behind them) that brings the environment.
    `preprocessing` is what papers and reference code do to the data before training, by name;
    nothing of it is applied on load. `recipe` holds how the set was made: its table `make` is what
    `bench data make` reads, and where there is no other source the set is `made`.
    """

    id: str
    env_id: str
    family: str
    licence: str
    description: str
    path: Path | None
    combine: tuple[str, ...] = ()
    url: str | None = None
    minari: str | None = None
    horizon: int | None = None
    fingerprint: str = ""
    fingerprint_next: str = ""
    reference: Reference | None = None
    no_reference: str = ""
    behaviour: Behaviour | None = None
    licence_source: str = ""
    not_comparable_with: tuple[str, ...] = ()
    recorded_in: str = ""
    not_evaluated: str = ""
    requires: str = ""
    cautions: tuple[str, ...] = ()
    observation: Space | None = None
    action: Space | None = None
    preprocessing: dict[str, str] = field(default_factory=dict)
    transitions: int | None = None
    episodes: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    made: bool = False

    @property
    def published(self) -> bool:
        """Whether the data has to be downloaded."""
        return self.url is not None or self.minari is not None


def shipped_root() -> Path:
    """Where `cards/` and `embedded/` are: BENCH_DATASETS if set, else the checkout's `datasets`,
    else their copies in the installed package."""
    return _folder() or Path(__file__).parents[1] / "shipped-datasets"


def data_root() -> Path:
    """Where `cache/` and `lock.toml` are: BENCH_DATASETS if set, else the checkout's `datasets`,
    else `rlobj-bench` among the user's caches (XDG_CACHE_HOME, by default ~/.cache)."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return _folder() or Path(caches) / "rlobj-bench"


def _folder() -> Path | None:
    """The one folder for both, where there is one."""
    if given := os.environ.get("BENCH_DATASETS"):
        return Path(given)
    beside = Path(__file__).parents[2] / "datasets"  # of an installed package: somebody else's
    return beside if (beside / "cards").is_dir() else None


def cards() -> dict[str, Card]:
    """All cards by id, in file and then in written order. Raises `ConfigError` for a bad card."""
    files = sorted((shipped_root() / "cards").glob("*.toml"))
    return _read_all(data_root(), tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=4)
def _read_all(root: Path, files: tuple[tuple[Path, int], ...]) -> dict[str, Card]:
    """`files` carries the time of change, so that an edited card is read again; `root` holds the
    cache."""
    found: dict[str, Card] = {}
    for path, _ in files:
        for card in _read(path, root):
            if card.id in found:
                raise ConfigError(f"{path}: {card.id}: is defined twice; rename or remove one")
            found[card.id] = card
    for card in found.values():
        _check_parts(card, found)
    return found


def _check_parts(card: Card, known: dict[str, Card]) -> None:
    """A combined set names sets that have files of their own."""
    for part in card.combine:
        if part not in known or known[part].path is None:
            raise ConfigError(
                f"card {card.id}: combine: {part} has no file of its own; mend the id"
            )


def _read(path: Path, root: Path) -> list[Card]:
    """The cards of one file; its table `defaults` is what all of them share."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as TOML ({error}); mend the file") from error
    shared = tables.pop("defaults", {})
    for name, table in [("defaults", shared), *tables.items()]:
        if not isinstance(table, dict):
            raise ConfigError(f'{path}: {name}: must be a table ["{name}"]; mend the file')
    return [_card(path, root, name, shared | table) for name, table in tables.items()]


def _card(path: Path, root: Path, name: str, table: dict[str, Any]) -> Card:
    where = f"{path}: {name}"
    _check_keys(where, table, REQUIRED, KNOWN)
    for key in ("horizon", "transitions", "episodes"):
        if table.get(key, 1) < 1:
            raise ConfigError(f"{where}: {key}: must be at least 1; mend the value")
    if table.get("requires", "robotics") not in EXTRAS:
        raise ConfigError(f"{where}: requires: must be one of {', '.join(EXTRAS)}; mend the value")
    _check_source(where, table)
    plain = ("url", "minari", "horizon", "fingerprint", "fingerprint_next", "no_reference",
             "recorded_in", "requires", "not_evaluated", "transitions", "episodes", "recipe",
             "licence_source")  # fmt: skip
    lists: dict[str, Any] = {key: _strings(where, key, table) for key in _STRINGS}
    return Card(
        id=name,
        path=_path(path.parents[1], root, name, table),
        made=_made(table),
        reference=_reference(where, table.get("reference")),
        behaviour=_behaviour(where, table.get("behaviour")),
        observation=_space(f"{where}: observation", table.get("observation")),
        action=_space(f"{where}: action", table.get("action")),
        preprocessing=_texts(f"{where}: preprocessing", table.get("preprocessing", {})),
        **lists,
        **{key: table[key] for key in REQUIRED},
        **{key: table[key] for key in plain if key in table},
    )


def _path(shipped: Path, root: Path, name: str, table: dict[str, Any]) -> Path | None:
    if "url" in table:
        return root / "cache" / "d4rl" / urlsplit(table["url"]).path.rpartition("/")[2]
    if "file" in table:
        return shipped / table["file"]
    return root / "cache" / "made" / f"{name.replace('/', '-')}.hdf5" if _made(table) else None


def _made(table: dict[str, Any]) -> bool:
    """Whether `bench data make` is the only source."""
    return "make" in table.get("recipe", {}) and not any(key in table for key in SOURCES)


def _check_source(where: str, table: dict[str, Any]) -> None:
    """One source, and for a published set everything that a reader of its scores needs."""
    given = [key for key in SOURCES if key in table]
    if _made(table):
        return
    if len(given) != 1:
        raise ConfigError(
            f"{where}: file: give one of file, combine, url and minari, not {given or 'none'}"
        )
    if given[0] in ("file", "combine"):
        return
    _check_keys(where, table, PUBLISHED, KNOWN)
    if ("reference" in table) == ("no_reference" in table):
        raise ConfigError(f"{where}: reference: give it, or no_reference with the reason")
    parts = urlsplit(table.get("url", "https://host/name"))
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.endswith("/"):
        raise ConfigError(f"{where}: url: {table['url']!r} names no file at a web address")


def _check_keys(
    where: str, table: dict[str, Any], required: dict[str, Any], known: dict[str, Any]
) -> None:
    for key in table.keys() - known.keys():
        raise ConfigError(f"{where}: {key}: unknown key; known are {', '.join(sorted(known))}")
    for key in required.keys() - table.keys():
        raise ConfigError(f"{where}: {key}: missing key; add it")
    for key, value in table.items():
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise ConfigError(f"{where}: {key}: {value!r} has the wrong type; mend the value")


def _strings(where: str, key: str, table: dict[str, Any]) -> tuple[str, ...]:
    values = table.get(key, [])
    if not all(isinstance(value, str) for value in values):
        what = "texts" if key == "cautions" else "ids"
        raise ConfigError(f"{where}: {key}: {values!r} must be a list of {what}; mend the value")
    return tuple(values)


def _texts(where: str, table: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in table.values()):
        raise ConfigError(f"{where}: {table!r} must map names to texts; mend the values")
    return dict(table)


def _reference(where: str, table: dict[str, Any] | None) -> Reference | None:
    if table is None:
        return None
    _check_keys(f"{where}: reference", table, REFERENCE, REFERENCE)
    if table["random"] >= table["expert"]:
        raise ConfigError(f"{where}: reference: random must be below expert; mend the values")
    return Reference(float(table["random"]), float(table["expert"]), table["source"])


def _behaviour(where: str, table: dict[str, Any] | None) -> Behaviour | None:
    if table is None:
        return None
    _check_keys(f"{where}: behaviour", table, {"note": str}, BEHAVIOUR)
    if ("mean_return" in table) != ("source" in table):
        raise ConfigError(f"{where}: behaviour: mean_return and source belong together; add both")
    return Behaviour(**table)


def _space(where: str, table: dict[str, Any] | None) -> Space | None:
    """A space, or a table of spaces by key."""
    if table is None:
        return None
    if table and all(isinstance(value, dict) for value in table.values()):
        parts = {key: _space(f"{where}: {key}", value) for key, value in table.items()}
        return Space(keys={key: part for key, part in parts.items() if part})
    _check_keys(where, table, {} if "n" in table else {"shape": list, "dtype": str}, SPACE)
    shape = table.get("shape", [])
    if not all(isinstance(size, int) and size > 0 for size in shape) or table.get("n", 1) < 1:
        raise ConfigError(f"{where}: shape: sizes must be whole numbers from 1; mend the values")
    return Space(**{**table, "shape": tuple(shape)})
