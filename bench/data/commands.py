"""What the subcommands of `bench data` do; `bench/cli_data.py` has their options. Each returns an
exit code."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.data.build import Make, make_dataset, write_made
from bench.data.card import cards
from bench.data.checks import render, report
from bench.data.combine import combine
from bench.data.dataset import Dataset
from bench.data.flat import write_flat
from bench.data.loading import expand, load, names
from bench.data.minari import local_sets
from bench.data.minari_export import export_minari
from bench.data.raw import DataWarning
from bench.errors import BenchError, ConfigError, DataError


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print what the loaders warn of as `warning: ...`, each text once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(w.message) for w in caught):
                print(f"warning: {text}", file=sys.stderr)


def run_list(args: argparse.Namespace) -> int:
    """`bench data list`: a damaged set shows its error in its row and the exit code is 2."""
    ids = expand(args.patterns) if args.patterns else names()
    header = ["id", "environment", "transitions", "episodes", "return", "size", "licence", "local"]
    rows, problems = [], []
    for name in ids:
        try:
            rows.append(_list_row(name))
        except BenchError as error:
            rows.append([name, *["-"] * 6, "damaged"])
            problems.append(str(error))
    print(_table([header, *rows]))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _list_row(name: str) -> list[str]:
    card = cards().get(name)
    licence = card.licence if card else "see its source"
    paths = _files(name)
    if not all(path.exists() for path in paths):
        assert card is not None
        return [name, card.env_id, "-", "-", "-", "-", licence, "no"]
    with warnings.catch_warnings():  # check shows them; here they would tear the table
        warnings.simplefilter("ignore", DataWarning)
        dataset = load(name)
    counts = [f"{dataset.stats[key]:,}" for key in ("transitions", "episodes")]
    size = f"{sum(map(_size, paths)) / 1e6:.1f} MB"
    env_id = dataset.recorded_env_id or "unknown"
    return [name, env_id, *counts, _behaviour(dataset), size, licence, "yes"]


def _files(name: str) -> list[Path]:
    """The files or folders that hold a dataset."""
    card = cards().get(name)
    if card is None:
        found = local_sets().get(name, Path(name))
        return [found]
    own = [card.path] if card.path else []
    return own + [path for part in card.combine for path in _files(part)]


def _size(path: Path) -> int:
    """Bytes in a file or folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _behaviour(dataset: Dataset) -> str:
    mean = dataset.stats["return_mean"]
    score = dataset.normalize(mean)
    return f"{mean:z.1f}" if score is None else f"{mean:z.1f} ({score:z.1f})"  # z: no "-0.0"


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def run_check(args: argparse.Namespace) -> int:
    """`bench data check`: one unusable dataset does not hide the others."""
    reports, failed = [], False
    for ref in expand(args.refs):
        try:
            with _warnings_on_stderr():
                reports.append(report(load(ref, env_id=args.env_id, strict=args.strict)))
        except BenchError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps(reports, indent=2))
    else:
        print("\n\n".join(map(render, reports)))
    return 2 if failed else int(any(r["anomalies"] for r in reports))


def run_import(args: argparse.Namespace) -> int:
    """`bench data import`."""
    with _warnings_on_stderr():
        _write(load(args.ref, env_id=args.env_id, strict=args.strict), args.out, args.force)
    return 0


def run_export(args: argparse.Namespace) -> int:
    """`bench data export`."""
    with _warnings_on_stderr():
        dataset = load(args.ref, env_id=args.env_id, strict=args.strict)
        print(export_minari(dataset, args.minari_id, args.root))
    return 0


def run_make(args: argparse.Namespace) -> int:
    """`bench data make`."""
    status = 0
    for name in expand(args.ids):
        card = cards().get(name)
        if card is None:
            raise ConfigError(f"{name} has no card: only datasets with a card can be made")
        if card.combine:
            print(f"{card.id}: combines {' and '.join(card.combine)}, nothing to make")
            continue
        made = make_dataset(card, args.out / "make", lambda text: print(text, flush=True))
        path = args.to or args.out / "make" / Path(str(card.path)).name
        write_made(made, card, path)
        good, text = made.verdict(card, Make.of(card))
        print(f"{card.id}: {path}\n  fingerprint {made.fingerprint}\n  {text}")
        status = status if good else 1
    return status


def run_combine(args: argparse.Namespace) -> int:
    """`bench data combine`."""
    with _warnings_on_stderr():
        refs = expand(args.refs)
        parts = [load(ref, env_id=args.env_id, strict=args.strict) for ref in refs]
        _write(combine(parts), args.out, args.force)
    return 0


def _write(dataset: Dataset, out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise DataError(f"{out}: exists already; choose another name or add --force")
    write_flat(
        out,
        dataset.transitions,
        env_id=dataset.recorded_env_id,
        max_episode_steps=dataset.horizon,
        attributes={"source": dataset.name, "fingerprint": dataset.fingerprint},
    )
    print(f"{out}: {dataset.stats['transitions']:,} transitions, {dataset.fingerprint}")
