"""Cards: `datasets/cards/*.toml` say what each dataset id is. One file may hold a family."""

import os
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.errors import ConfigError

REQUIRED = {"env_id": str, "family": str, "licence": str, "description": str}
OPTIONAL = {
    "file": str,
    "combine": list,
    "horizon": int,
    "fingerprint": str,
    "reference": dict,
    "not_comparable_with": list,
    "recipe": dict,
}
REFERENCE = {"random": (int, float), "expert": (int, float), "source": str}


@dataclass(frozen=True)
class Reference:
    """Mean raw returns of a random and an expert policy, and where the numbers come from."""

    random: float
    expert: float
    source: str


@dataclass(frozen=True)
class Card:
    """One dataset id.

    `path` is the flat file, None for a set that only combines others (`combine`). `fingerprint` is
    checked on load when not empty. `recipe` holds how the set was made: its table `make` is what
    `bench data make` reads.
    """

    id: str
    env_id: str
    family: str
    licence: str
    description: str
    path: Path | None
    combine: tuple[str, ...] = ()
    horizon: int | None = None
    fingerprint: str = ""
    reference: Reference | None = None
    not_comparable_with: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)


def data_root() -> Path:
    """The `datasets` folder: BENCH_DATASETS if set, else the one beside the package `bench`."""
    return Path(os.environ.get("BENCH_DATASETS") or Path(__file__).parents[2] / "datasets")


def cards() -> dict[str, Card]:
    """All cards by id, in file and then in written order. Raises `ConfigError` for a bad card."""
    root = data_root()
    files = sorted((root / "cards").glob("*.toml"))
    return _read_all(root, tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=4)
def _read_all(root: Path, files: tuple[tuple[Path, int], ...]) -> dict[str, Card]:
    """`files` carries the time of change, so that an edited card is read again."""
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
    _check_keys(where, table, REQUIRED, REQUIRED | OPTIONAL)
    if table.get("horizon", 1) < 1:
        raise ConfigError(f"{where}: horizon: must be at least 1; mend the value")
    if ("file" in table) == ("combine" in table):
        raise ConfigError(f"{where}: file: give either file or combine, not both or neither")
    return Card(
        id=name,
        path=root / table["file"] if "file" in table else None,
        combine=_strings(where, "combine", table),
        not_comparable_with=_strings(where, "not_comparable_with", table),
        reference=_reference(where, table.get("reference")),
        **{key: table[key] for key in REQUIRED},
        **{key: table[key] for key in ("horizon", "fingerprint", "recipe") if key in table},
    )


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
        raise ConfigError(f"{where}: {key}: {values!r} must be a list of ids; mend the value")
    return tuple(values)


def _reference(where: str, table: dict[str, Any] | None) -> Reference | None:
    if table is None:
        return None
    _check_keys(f"{where}: reference", table, REFERENCE, REFERENCE)
    if table["random"] >= table["expert"]:
        raise ConfigError(f"{where}: reference: random must be below expert; mend the values")
    return Reference(float(table["random"]), float(table["expert"]), table["source"])
