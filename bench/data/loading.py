"""From a name or a path to a `Dataset`."""

import difflib
import fnmatch
import glob
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bench.data import envs
from bench.data.assemble import to_dataset
from bench.data.card import Card, cards
from bench.data.combine import combine
from bench.data.dataset import Dataset
from bench.data.flat import read_flat
from bench.data.minari import data_folder, local_sets, read_metadata, read_minari
from bench.errors import DataError


def load(ref: str, *, env_id: str | None = None, strict: bool = False) -> Dataset:
    """Load a dataset by id or path.

    `ref` is, in this order, an id that a card defines, a local Minari id, the path of a flat
    `.hdf5` file, or of a Minari dataset folder. `env_id` replaces the environment that the data
    names. `strict` makes an error of clipped actions and of guessed episode ends.

    Raises `DataError` for unknown names (with the nearest ones) and for unusable data,
    `ConfigError` for a bad card or an unknown `env_id`.
    """
    if env_id is not None:
        envs.check_known(env_id)
    if card := cards().get(ref):
        return _load_card(card, env_id, strict)
    if folder := local_sets().get(ref):
        return _load_minari(folder, ref, env_id, strict)
    path = Path(ref).expanduser()
    if path.is_dir() and data_folder(path):
        return _load_minari(path, None, env_id, strict)
    if path.is_dir():
        raise DataError(f"{path}: is a folder without data/metadata.json, so no Minari dataset")
    if path.exists() or path.suffix in (".hdf5", ".h5"):
        raw = read_flat(path)
        raw.env_id = env_id or raw.env_id
        return to_dataset(raw, name=None, label=path.stem, strict=strict)
    raise DataError(_unknown(ref))


def _load_minari(path: Path, name: str | None, env_id: str | None, strict: bool) -> Dataset:
    raw = read_minari(path)
    raw.env_id = env_id or raw.env_id
    label = str(read_metadata(path).get("dataset_id") or path.name).replace("/", "-")
    return to_dataset(raw, name=name, label=label, strict=strict, minari=True)


def _load_card(card: Card, env_id: str | None, strict: bool) -> Dataset:
    """Load what a card describes and hold the data to the card's fingerprint."""
    if card.combine:
        parts = [_load_card(cards()[part], env_id, strict) for part in card.combine]
        dataset = combine(parts, card.id)
    else:
        dataset = _load_card_file(card, env_id, strict)
    if card.fingerprint and dataset.fingerprint != card.fingerprint:
        raise DataError(
            f"{card.path or card.id}: fingerprint: is {dataset.fingerprint}, the card of {card.id} "
            f"says {card.fingerprint}; restore the file, or mend the card if the change is meant"
        )
    if card.reference and env_id in (None, card.env_id):
        ends = (card.reference.random, card.reference.expert)
        dataset = replace(dataset, reference=ends, reference_source=card.reference.source)
    return dataset


def _load_card_file(card: Card, env_id: str | None, strict: bool) -> Dataset:
    assert card.path is not None
    if not card.path.exists():
        advice = f"or run: bench data make {card.id}" if card.recipe.get("make") else "or a backup"
        raise DataError(
            f"{card.path}: the file of {card.id} is not here; restore it from git {advice}"
        )
    raw = read_flat(card.path)
    if raw.env_id not in (None, card.env_id):
        raise DataError(
            f"{card.path}: env_id: is {raw.env_id}, the card of {card.id} says "
            f"{card.env_id}; mend the card or restore the file"
        )
    raw.env_id = env_id or card.env_id
    family = None if env_id else card.family
    return to_dataset(
        raw, name=card.id, label=card.id, strict=strict, family=family, horizon=card.horizon
    )


def names() -> list[str]:
    """Every dataset id: those of the cards, then the local Minari sets."""
    known = dict.fromkeys(cards())
    return list(known | dict.fromkeys(local_sets()))


def expand(patterns: Iterable[str]) -> list[str]:
    """Ids and paths that the patterns stand for, each once, in the order of the patterns.

    A pattern is an id, a path, or a glob over ids (`lite/hopper/*`; `*` also matches `/`) or, where
    it matches no id, over files. Raises `DataError` for a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys(_expand_one(pattern))
    return list(found)


def _expand_one(pattern: str) -> list[str]:
    known = names()
    if pattern in known or Path(pattern).expanduser().exists():
        return [pattern]
    matches = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    if not matches and glob.has_magic(pattern):
        matches = sorted(glob.glob(str(Path(pattern).expanduser())))
    if not matches:
        raise DataError(_unknown(pattern))
    return matches


def _unknown(ref: str) -> str:
    """One line with the nearest names."""
    known = names()
    near = difflib.get_close_matches(ref, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "bench data list shows what there is"
    return f"{ref}: no such dataset, file or Minari folder; {hint}"
