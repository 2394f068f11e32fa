"""The options of ``bench data``. What a command needs is imported when it is called: ``--help`` and
a mistyped option load neither torch nor gymnasium."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
  bench data import lite/hopper/medium-v0 hopper-medium.hdf5
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
MAKE_HELP = """\
Make embedded datasets from their cards: train online and write the dataset as its card says.
Training resumes where it stopped; datasets that share a training run share its folder.

example:
  bench data make lite/hopper/medium-replay-v0 --out /tmp/made"""


def register(subparsers: Any) -> None:
    """Add the parser `data` to the command line's subparsers; it sets `handler`."""
    parser = subparsers.add_parser("data", help="list, check, convert and combine datasets")
    parser.set_defaults(handler=_run)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    listing = _add(commands, "list", "show the datasets", LIST_HELP)
    listing.add_argument("patterns", nargs="*", metavar="ID", help="ids or globs (default: all)")

    check = _add(commands, "check", "inspect datasets", CHECK_HELP)
    check.add_argument("refs", nargs="+", metavar="FILE|ID", help="ids, globs or paths")
    check.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    _load_options(check)

    importing = _add(commands, "import", "write a flat file", IMPORT_HELP)
    importing.add_argument("ref", metavar="ID|PATH", help="what to read")
    importing.add_argument("out", type=Path, metavar="OUT.hdf5", help="file to write")
    _load_options(importing)
    _force_option(importing)

    export = _add(commands, "export", "write a Minari dataset", EXPORT_HELP)
    export.add_argument("ref", metavar="ID|PATH", help="what to read")
    export.add_argument("minari_id", metavar="MINARI_ID", help="for example mine/hopper-v0")
    export.add_argument("--root", type=Path, help="folder of Minari datasets to write to")
    _load_options(export)

    making = _add(commands, "make", "make embedded datasets", MAKE_HELP)
    making.add_argument("ids", nargs="+", metavar="ID", help="dataset ids or globs")
    making.add_argument("--out", type=Path, default=Path("results"), help="default: results")
    making.add_argument("--to", type=Path, help="file to write (default: OUT/make/<name>.hdf5)")

    combining = _add(commands, "combine", "join datasets in a file", COMBINE_HELP)
    combining.add_argument("out", type=Path, metavar="OUT.hdf5", help="file to write")
    combining.add_argument("refs", nargs="+", metavar="ID|PATH", help="what to join, in this order")
    _load_options(combining)
    _force_option(combining)


def _run(args: argparse.Namespace) -> int:
    from bench.data import commands

    handler: Callable[[argparse.Namespace], int] = getattr(commands, f"run_{args.data_command}")
    return handler(args)


def _add(commands: Any, name: str, short: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
