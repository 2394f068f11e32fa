"""The options of ``bench data``. What a command needs is imported when it is called: ``--help`` and
a mistyped option load neither torch nor gymnasium."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIST_HELP = """\
Show every dataset that is here or can be made: environment, transitions, episodes, mean return of
the data (normalised score in brackets), size, licence, and if it is not here how to get it.
"evaluated" scores are of evaluation episodes of the policy behind the data, where the data's own
episodes are others (bench data check says how).
Published sets that are not here are listed with --all or by name. "no evaluation" means that runs
cannot be scored (the card says why), "needs extra X" that pip install 'rlobj-bench[X]' is missing.
Rewards and the ends of episodes are read, nothing else: bench data check verifies a set.

examples:
  bench data list
  bench data list --all
  bench data list 'd4rl/hopper-*'"""
GET_HELP = """\
Download published datasets: Minari's from the Hugging Face Hub, D4RL's files from their address.
Interrupted downloads resume, and nothing is in its place before it is whole and verified.

The first download of an id writes sizes, sha256 and source into datasets/lock.toml (commit it);
later ones must be the same bytes, also from another source. To take over a change at the source,
use --update and commit the file again. What is here already is only verified.

Installed without a checkout, files and lock go to ~/.cache/rlobj-bench. BENCH_DATASETS names
another folder, for the cards as well.

environment: MINARI_DATASETS_PATH (where Minari's sets are kept), MINARI_REMOTE (hf://NAME),
HF_ENDPOINT (another Hub), HF_TOKEN (sent to that Hub alone, over https or to this machine; to no
--mirror), HF_HUB_OFFLINE, BENCH_MIRROR (like --mirror, for D4RL's files), HTTP_PROXY, HTTPS_PROXY.

examples:
  bench data get D4RL/pen/human-v2
  bench data get 'd4rl/hopper-*'
  bench data get d4rl/hopper-medium-v2 --mirror 'https://my.host/d4rl/{name}'
  bench data get d4rl/hopper-medium-v2 --from ~/Downloads/hopper_medium-v2.hdf5
  bench data get D4RL/pen/human-v2 --from pen-human.tar.gz"""
CHECK_HELP = """\
Load datasets and show what they hold and what is odd about them: counts, how episodes end, returns
and lengths, actions at their bounds, repeated rows and episodes, what was converted or clipped, the
score of the data, how much of their space observations and actions fill, and what the card says.
Exit code 1 if there are anomalies, 2 if one cannot be used at all (NaN, damage, missing keys).

examples:
  bench data check lite/hopper/medium-v0
  bench data check my-data.hdf5 --env-id Hopper-v4 --plots figures
  bench data check my-data.npz --observation-keys observation,desired_goal
  bench data check 'lite/*' --json > checks.json"""
IMPORT_HELP = """\
Write a dataset as one compressed flat HDF5 file, or, where OUT has no ending, as a folder of
memory-mapped arrays that TensorDict.load_memmap reads. Both keep the data's fingerprints, which
loading compares. Read are ids, flat HDF5 and .npz
files (D4RL's keys, or d3rlpy's old ones), Minari folders and folders of memory-mapped arrays.

examples:
  bench data import lite/hopper/medium-v0 hopper-medium.hdf5
  bench data import ~/.minari/datasets/my/set-v0 my-set.hdf5
  bench data import my-data.npz my-data"""
EXPORT_HELP = """\
Write a dataset as a Minari dataset, under MINARI_DATASETS_PATH or datasets/cache/minari.

examples:
  bench data export lite/hopper/medium-v0 lite/hopper/medium-v0 --root ~/.minari/datasets
  bench data export my-data.hdf5 mine/hopper-v0"""
COMBINE_HELP = """\
Write several datasets of one task, one after the other, as one flat HDF5 file, or, where OUT has
no ending, as a folder of arrays.

examples:
  bench data combine lite/hopper/medium-v0 lite/hopper/expert-v0 --to medium-expert.hdf5
  bench data combine mine/*.hdf5 --to all.hdf5"""
MAKE_HELP = """\
Make datasets: from their cards, or of any environment. Training resumes where it stopped; sets that
share a training run share its folder. What a file was made with (algorithm, hyper-parameters, seed,
policy, versions, commit) is in its attributes.

From a card the result is compared with the card's: bit-equal on the machine type that made it,
elsewhere within its tolerance. Such an own make is used by the set's id, with a warning; results
record its fingerprint, and tables flag a mix of several. Outside the tolerance (exit code 1) it is
written to OUT/make, not where the id is looked for. What is there already is kept without --force.

Of an environment, expert is the snapshot of the best ten evaluation episodes, medium the one before
it that is nearest to halfway there.

examples:
  bench data make lite/hopper/medium-replay-v0 --out /tmp/made
  bench data make 'lite/halfcheetah/*'
  bench data make --env-id Swimmer-v5 --kind medium-replay --steps 200000 --to swimmer.hdf5
  bench data make --env-id Acrobot-v1 --algo dqn --kind expert --steps 50000 --to acrobot.hdf5
  bench data make --env-id CartPole-v1 --algo ppo --kind medium --steps 30000 --to cartpole.hdf5
  bench data make --env-id PointMaze_Large-v3 --kind waypoints --transitions 1000000 --to m.hdf5"""


def register(subparsers: Any) -> None:
    """Add the parser `data` to the command line's subparsers; it sets `handler`."""
    parser = subparsers.add_parser("data", help="list, check, convert and combine datasets")
    parser.set_defaults(handler=_run)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    listing = _add(commands, "list", "show the datasets", LIST_HELP)
    listing.add_argument("patterns", nargs="*", metavar="ID", help="ids or globs (default: all)")
    listing.add_argument("--all", action="store_true", help="published sets that are not here, too")

    _add_get(commands)
    check = _add(commands, "check", "inspect datasets", CHECK_HELP)
    check.add_argument("refs", nargs="+", metavar="FILE|ID", help="ids, globs or paths")
    check.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    check.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="also draw returns and lengths as PNG files"
    )
    _load_options(check)

    importing = _add(commands, "import", "write a flat file", IMPORT_HELP)
    importing.add_argument("ref", metavar="ID|PATH", help="what to read")
    importing.add_argument("out", type=Path, metavar="OUT", help="file or folder to write")
    _load_options(importing)
    _force_option(importing)

    export = _add(commands, "export", "write a Minari dataset", EXPORT_HELP)
    export.add_argument("ref", metavar="ID|PATH", help="what to read")
    export.add_argument("minari_id", metavar="MINARI_ID", help="for example mine/hopper-v0")
    export.add_argument("--root", type=Path, help="folder of Minari datasets to write to")
    _load_options(export)

    _add_make(commands)

    combining = _add(commands, "combine", "join datasets in a file", COMBINE_HELP)
    combining.add_argument("refs", nargs="+", metavar="ID|PATH", help="what to join, in this order")
    combining.add_argument(
        "--to", type=Path, required=True, metavar="OUT.hdf5", help="file to write"
    )
    _load_options(combining)
    _force_option(combining)


def _add_make(commands: Any) -> None:
    making = _add(commands, "make", "make datasets", MAKE_HELP)
    making.add_argument("ids", nargs="*", metavar="ID", help="dataset ids or globs")
    making.add_argument("--env-id", help="instead of ids: a gymnasium environment")
    making.add_argument(
        "--kind",
        choices=("random", "medium", "medium-replay", "expert", "replay", "waypoints"),
        help="what to make of it: uniform actions; episodes of the half-trained policy; all that "
        "training saw until then; episodes of the best policy; all that training saw; the script "
        "that walks through a PointMaze",
    )
    making.add_argument(
        "--algo",
        default="sac",
        metavar="A",
        help="who trains: sac, td3, ddpg or redq; dqn or c51 for discrete actions; ppo for both "
        "(default: sac)",
    )
    making.add_argument(
        "--steps", type=int, default=300_000, metavar="N", help="of training (default: 300000)"
    )
    making.add_argument(
        "--transitions",
        type=int,
        default=0,
        metavar="N",
        help="rows of the dataset (default: 50000; of a replay all there are)",
    )
    making.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    making.add_argument(
        "--interval",
        type=int,
        default=5_000,
        metavar="N",
        help="steps between the policies to choose from (default: 5000)",
    )
    making.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="hyper-parameters of training"
    )
    making.add_argument(
        "--out", type=Path, default=Path("results"), help="training runs go to OUT/make "
        "(default: results)",
    )  # fmt: skip
    making.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="file to write (default: of embedded sets OUT/make/<name>.hdf5, of the others where "
        "their id is looked for)",
    )
    _force_option(making)


def _add_get(commands: Any) -> None:
    getting = _add(commands, "get", "download datasets", GET_HELP)
    getting.add_argument("ids", nargs="+", metavar="ID", help="ids, globs over cards, Minari ids")
    source = getting.add_mutually_exclusive_group()
    source.add_argument(
        "--from",
        dest="origin",
        metavar="FILE|URL",
        help="take one set from this file (Minari's: an archive of its folder) or address",
    )
    source.add_argument(
        "--mirror",
        metavar="URL",
        help="another server: a Hub for Minari's sets; for files a folder, or an address with "
        "{name} or {path} for that of the original",
    )
    getting.add_argument(
        "--offline", action="store_true", help="only verify; fail if one is missing"
    )
    getting.add_argument("--out", type=Path, metavar="FOLDER", help="default: the cache")
    getting.add_argument("--force", action="store_true", help="download again what is here")
    getting.add_argument(
        "--update",
        action="store_true",
        help="download what the source has now and record it in datasets/lock.toml",
    )
    getting.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="to wait for an answer (default: 30)",
    )


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
        help="fail on actions outside the bounds, on missing timeouts and on counts that are not "
        "the card's",
    )
    parser.add_argument(
        "--observation-keys",
        metavar="KEY,...",
        help="parts of observations that are dictionaries (default: all, alphabetically)",
    )


def _force_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace OUT.hdf5 if it exists")
