"""From a name or a path to a `Dataset`."""

from __future__ import annotations

import difflib
import fnmatch
import glob
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.data import envs
from bench.data.assemble import About, Outline, to_dataset, to_outline
from bench.data.card import Card, Space, cards
from bench.data.combine import combine
from bench.data.dataset import Dataset
from bench.data.flat import SUFFIXES, read_flat
from bench.data.memory_map import is_memory_map, read_memory_map
from bench.data.minari import (
    MINARI_ID,
    data_folder,
    local_sets,
    minari_root,
    read_metadata,
    read_minari,
)
from bench.data.raw import ActionSpec, Raw, warn
from bench.errors import DataError

_SOME_KEYS = "not all parts of its observations were chosen, and the environment shows them all"


@dataclass(frozen=True)
class _How:
    """The options of `load`; without `bulk` only rewards and flags are read."""

    env_id: str | None = None
    strict: bool = False
    keys: tuple[str, ...] | None = None
    bulk: bool = True

    @property
    def not_evaluated(self) -> str:
        return _SOME_KEYS if self.keys else ""


def load(
    ref: str,
    *,
    env_id: str | None = None,
    strict: bool = False,
    observation_keys: Iterable[str] | None = None,
) -> Dataset:
    """Load a dataset by id or path.

    `ref` is, in this order, an id that a card defines, a local Minari id, the path of a flat
    `.hdf5` or `.npz` file, of a Minari dataset folder, or of a folder that `TensorDict.memmap`
    wrote. `env_id` replaces the environment that the data names. `strict` makes an error of clipped
    actions and of guessed episode ends. `observation_keys` chooses parts of observations that are
    dictionaries (default: all of them, alphabetically).

    Raises `DataError` for unknown names (with the nearest ones) and for unusable data,
    `ConfigError` for a bad card or an unknown `env_id`.
    """
    if env_id is not None:
        envs.check_known(env_id)
    how = _How(env_id, strict, tuple(observation_keys) if observation_keys else None)
    if card := cards().get(ref):
        return _load_card(card, how)
    return to_dataset(*_read(ref, how))


def outline(ref: str) -> Outline:
    """Counts and returns of what `load` would load: the rest is neither read nor checked, and no
    environment is made. Raises as `load` does."""
    card = cards().get(ref)
    if card is None:
        return to_outline(*_read(ref, _How(bulk=False)))
    if card.combine:
        parts = [outline(part) for part in card.combine]
        lengths, returns = ([getattr(p, key) for p in parts] for key in ("lengths", "returns"))
        found = replace(parts[0], lengths=np.concatenate(lengths), returns=np.concatenate(returns))
    else:
        found = to_outline(*_read_card(card, _How(bulk=False)))
    ends = card.reference and (card.reference.random, card.reference.expert)
    return replace(found, reference=ends or found.reference, behaviour=card.behaviour)


def _read(ref: str, how: _How) -> tuple[Raw, About]:
    """The columns of what no card describes."""
    if folder := local_sets().get(ref):
        return _read_minari(folder, ref, how)
    path = Path(ref).expanduser()
    if path.is_dir() and data_folder(path):
        return _read_minari(path, None, how)
    if path.is_dir() and not is_memory_map(path):
        raise DataError(
            f"{path}: is a folder without data/metadata.json (Minari) and meta.json (TensorDict)"
        )
    if path.exists() or path.suffix in SUFFIXES:
        if path.is_dir():
            raw = read_memory_map(path, how.keys)
        else:
            raw = read_flat(path, how.keys, bulk=how.bulk)
        raw.env_id = how.env_id or raw.env_id
        return raw, About(path.stem, strict=how.strict, not_evaluated=how.not_evaluated)
    raise DataError(unknown(ref))


def _read_minari(path: Path, name: str | None, how: _How) -> tuple[Raw, About]:
    raw = read_minari(path, how.keys, bulk=how.bulk)
    raw.env_id = how.env_id or raw.env_id
    label = str(read_metadata(path).get("dataset_id") or path.name).replace("/", "-")
    return raw, About(label, name, how.strict, minari=True, not_evaluated=how.not_evaluated)


def _load_card(card: Card, how: _How) -> Dataset:
    """Load what a card describes and hold the data to the card's fingerprints and counts."""
    if card.combine:
        parts = [_load_card(cards()[part], how) for part in card.combine]
        dataset = combine(parts, card.id)
    else:
        raw, about = _read_card(card, how)
        dataset = to_dataset(raw, about)
        if card.made:
            _check_made(card, raw, dataset, how.strict)
    _check_counts(card, dataset, how.strict)
    _check_fingerprints(card, dataset)
    if how.env_id not in (None, card.env_id):
        return dataset
    if card.reference:
        ends = (card.reference.random, card.reference.expert)
        dataset = replace(dataset, reference=ends, reference_source=card.reference.source)
    return replace(dataset, behaviour=card.behaviour)


def _check_fingerprints(card: Card, dataset: Dataset) -> None:
    for key in ("fingerprint", "fingerprint_next"):
        found, said = getattr(dataset, key), getattr(card, key)
        if said not in ("", found):
            raise DataError(
                f"{card.path or card.id}: {key}: is {found}, the card of {card.id} says {said}; "
                "restore the file, or mend the card if the change is meant"
            )


def _check_made(card: Card, raw: Raw, dataset: Dataset, strict: bool) -> None:
    """The set was made on some machine: by the card's recipe, and as it should be or near to it."""
    from bench.data.build import Make

    make, anew = Make.of(card), f"make it anew: bench data make {card.id} --force"
    if not make.made(raw.attributes.get("recipe", make.text())):
        raise DataError(f"{card.path}: recipe: is not that of the card of {card.id}; {anew}")
    digests = (dataset.fingerprint, dataset.fingerprint_next)
    good, text = make.verdict(card, digests, dataset.stats["return_mean"])
    if not good:
        raise DataError(f"{card.path}: return_mean: {text}; {anew}, or load it by its path")
    if make.fingerprint in ("", dataset.fingerprint):
        return
    what = f"fingerprint: is {dataset.fingerprint}, the card says {make.fingerprint}: {text}"
    if strict:
        raise DataError(f"{card.path}: {what}; {anew}, or leave out --strict")
    warn(str(card.path), what)


def _read_card(card: Card, how: _How) -> tuple[Raw, About]:
    path = card_path(card)
    if not path.exists():
        raise DataError(f"{path}: the data of {card.id} is not here; {_advice(card)}")
    raw = (read_minari if card.minari else read_flat)(path, how.keys, bulk=how.bulk)
    if raw.env_id not in (None, card.env_id):
        raise DataError(
            f"{path}: env_id: is {raw.env_id}, the card of {card.id} says "
            f"{card.env_id}; mend the card or restore the file"
        )
    raw.env_id = how.env_id or card.env_id
    own = how.env_id in (None, card.env_id)
    if card.not_evaluated and card.action and not raw.actions_spec:
        raw.actions_spec = _action_spec(card.action)
    about = About(
        label=card.id,
        name=card.id,
        strict=how.strict,
        family=card.family if own else None,
        horizon=card.horizon,
        minari=bool(card.minari),
        not_evaluated=how.not_evaluated or ("" if how.env_id else card.not_evaluated),
        without_reference=bool(card.no_reference) and own,
    )
    return raw, about


def card_path(card: Card) -> Path:
    """Where the data of a card that combines no others is, or would be."""
    if card.minari:
        return minari_root() / card.minari
    assert card.path is not None
    return card.path


def _advice(card: Card) -> str:
    if card.published:
        return f"download it: bench data get {card.id}"
    made = f"run: bench data make {card.id}" if card.recipe.get("make") else "a backup"
    return f"restore it from git or {made}"


def _action_spec(space: Space) -> ActionSpec:
    """The card's action space, for data whose environment is not made."""
    if space.n is not None:
        return ActionSpec(n=space.n)
    low, high = (np.full(space.shape, end, np.float32) for end in (space.low, space.high))
    return ActionSpec(low=low, high=high)


def _check_counts(card: Card, dataset: Dataset, strict: bool) -> None:
    """Published sets have been replaced under the same id: say so, or with `strict` stop."""
    for key, expected in (("transitions", card.transitions), ("episodes", card.episodes)):
        found = int(dataset.stats[key])
        if expected in (None, found):
            continue
        what = f"{key}: has {found:,} where the card of {card.id} says {expected:,}"
        if strict:
            raise DataError(f"{card_path(card)}: {what}; download it again or leave out --strict")
        warn(str(card_path(card)), f"{what}: it is another version, or was cut")


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
        raise DataError(unknown(pattern))
    return matches


def unknown(ref: str) -> str:
    """One line with the nearest names."""
    known = names()
    near = difflib.get_close_matches(ref, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "bench data list shows what there is"
    if MINARI_ID.fullmatch(ref):
        hint += f"; if it is one of Minari's: bench data get {ref}"
    return f"{ref}: no such dataset, file or Minari folder; {hint}"
