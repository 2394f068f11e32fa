"""`bench data list`: what there is, and what of it is here.

It reads rewards and flags alone, without torch and without environments, so that it answers at once
however large the sets are; `bench data check` is what verifies them.
"""

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path

from bench.data.assemble import Outline
from bench.data.card import EXTRAS, Card, cards
from bench.data.dataset import normalized
from bench.data.loading import card_path, expand, names, outline
from bench.data.minari import local_sets
from bench.data.raw import DataWarning
from bench.errors import BenchError

HEADER = ["id", "environment", "transitions", "episodes", "return", "size", "licence", "local"]


def run_list(args: argparse.Namespace) -> int:
    """`bench data list`: a damaged set shows its error in its row and the exit code is 2.

    Without patterns and `--all`, published sets that are not here are only counted.
    """
    ids = expand(args.patterns) if args.patterns else names()
    hidden = [] if args.patterns or args.all else [name for name in ids if _elsewhere(name)]
    rows, problems = [], []
    for name in (name for name in ids if name not in set(hidden)):
        try:
            rows.append(_row(name))
        except BenchError as error:
            rows.append([name, *["-"] * 6, "damaged"])
            problems.append(str(error))
    print(_table([HEADER, *rows]))
    if hidden:
        print(f"\n{len(hidden)} published sets are not here; bench data list --all shows them")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _elsewhere(name: str) -> bool:
    card = cards().get(name)
    return card is not None and card.published and not card_path(card).exists()


def _row(name: str) -> list[str]:
    card = cards().get(name)
    licence = card.licence if card else "see its source"
    paths = _files(name)
    if not all(path.exists() for path in paths):
        assert card is not None
        counts = ["-" if n is None else f"{n:,}" for n in (card.transitions, card.episodes)]
        return [name, _environment(card.env_id, card), *counts, "-", "-", licence, _source(card)]
    with warnings.catch_warnings():  # check shows them; here they would tear the table
        warnings.simplefilter("ignore", DataWarning)
        found = outline(name)
    counts = [f"{number:,}" for number in (found.lengths.sum(), len(found.lengths))]
    size = f"{sum(map(_size, paths)) / 1e6:.1f} MB"
    env_id = _environment(found.env_id or "unknown", card)
    return [name, env_id, *counts, _behaviour(found), size, licence, "yes"]


def _source(card: Card) -> str:
    """How to get what is not here."""
    if card.published:
        return "bench data get"
    parts = [cards()[part] for part in card.combine or (card.id,)]
    return "bench data make" if all("make" in part.recipe for part in parts) else "no"


def _environment(env_id: str, card: Card | None) -> str:
    """With why runs cannot be scored: not at all, or not with what is installed."""
    if card and card.not_evaluated:
        return f"{env_id} (no evaluation)"
    if card and card.requires and not importlib.util.find_spec(EXTRAS[card.requires]):
        return f"{env_id} (needs extra {card.requires})"
    return env_id


def _files(name: str) -> list[Path]:
    """The files or folders that hold a dataset."""
    card = cards().get(name)
    if card is None:
        return [local_sets().get(name, Path(name))]
    if card.combine:
        return [path for part in card.combine for path in _files(part)]
    return [card_path(card)]


def _size(path: Path) -> int:
    """Bytes in a file or folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _behaviour(found: Outline) -> str:
    mean, other = float(found.returns.mean()), found.behaviour
    evaluated = other.mean_return if other else mean
    score = None if evaluated is None else normalized(evaluated, found.reference)
    if score is None:
        return f"{mean:z.1f}"  # z: no "-0.0"
    return f"{mean:z.1f} ({'evaluated ' if other else ''}{score:z.1f})"


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
