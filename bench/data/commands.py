"""The subcommands of `bench data`. Each handler returns an exit code."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.data import build
from bench.data.card import cards
from bench.data.checks import render, report
from bench.data.combine import combine
from bench.data.dataset import Dataset
from bench.data.flat import write_flat
from bench.data.loading import expand, load, names
from bench.data.minari import local_sets
from bench.data.minari_export import export_minari
from bench.data.raw import DataWarning
from bench.errors import BenchError, DataError

LIST_HELP = """\
Show every dataset that has a card or lies in the local Minari folder: environment, transitions,
episodes, mean return of the data (normalised score in brackets), size, licence, local or not.

examples:
  bench data list
  bench data list 'lite/hopper/*'"""
CHECK_HELP = """\
Load datasets and show what they hold and what is odd about them. Exit code 1 if there are
anomalies, 2 if one cannot be used at all.

examples:
  bench data check lite/hopper/medium-v0
  bench data check my-data.hdf5 --env-id Hopper-v4
  bench data check 'lite/*' --json > checks.json"""
IMPORT_HELP = """\
Write a dataset (a Minari id or folder, or any other id or path) as one compressed flat HDF5 file.

examples:
  bench data import mujoco/hopper/medium-v0 hopper-medium.hdf5
  bench data import ~/.minari/datasets/my/set-v0 my-set.hdf5"""
EXPORT_HELP = """\
Write a dataset as a Minari dataset, under MINARI_DATASETS_PATH or datasets/cache/minari.

examples:
  bench data export lite/hopper/medium-v0 lite/hopper/medium-v0 --root ~/.minari/datasets
  bench data export my-data.hdf5 mine/hopper-v0"""
COMBINE_HELP = """\
Write several datasets of one task, one after the other, as one flat HDF5 file.

example:
  bench data combine medium-expert.hdf5 medium.hdf5 expert.hdf5"""


def register(subparsers: Any) -> None:
    """Add the parser `data` to the command line's subparsers; it sets `handler`."""
    parser = subparsers.add_parser("data", help="list, check, convert and combine datasets")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    listing = _add(commands, "list", "show the datasets", LIST_HELP, run_list)
    listing.add_argument("patterns", nargs="*", metavar="ID", help="ids or globs (default: all)")

    check = _add(commands, "check", "inspect datasets", CHECK_HELP, run_check)
    check.add_argument("refs", nargs="+", metavar="FILE|ID", help="ids, globs or paths")
    check.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    _load_options(check)

    importing = _add(commands, "import", "write a flat file", IMPORT_HELP, run_import)
    importing.add_argument("ref", metavar="ID|PATH", help="what to read")
    importing.add_argument("out", type=Path, metavar="OUT.hdf5", help="file to write")
    _load_options(importing)
    _force_option(importing)

    export = _add(commands, "export", "write a Minari dataset", EXPORT_HELP, run_export)
    export.add_argument("ref", metavar="ID|PATH", help="what to read")
    export.add_argument("minari_id", metavar="MINARI_ID", help="for example mine/hopper-v0")
    export.add_argument("--root", type=Path, help="folder of Minari datasets to write to")
    _load_options(export)

    build.register(commands)

    combining = _add(commands, "combine", "join datasets in a file", COMBINE_HELP, run_combine)
    combining.add_argument("out", type=Path, metavar="OUT.hdf5", help="file to write")
    combining.add_argument("refs", nargs="+", metavar="ID|PATH", help="what to join, in this order")
    _load_options(combining)
    _force_option(combining)


def _add(commands: Any, name: str, short: str, text: str, handler: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def _load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env-id", help="gymnasium environment, instead of the one the data names")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="fail on actions outside the bounds and on missing timeouts",
    )


def _force_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace OUT.hdf5 if it exists")


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
    return f"{mean:.1f}" if score is None else f"{mean:.1f} ({score:.1f})"


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
