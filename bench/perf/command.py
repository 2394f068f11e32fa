"""The options of ``bench perf`` and its course."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.errors import ConfigError
from bench.perf.rivals import RIVALS, Rival
from bench.recipes import check_name, expand_names, recipe_names

_NAMES = [rival.name for rival in RIVALS]
_ABOUT = """\
Measures how fast the engine trains, and other libraries on the same work beside it, in one
interleaved run: gradient steps per CPU second (on a GPU: per second), FLOPs per step and their
share of this machine's own matrix-product peak, operations launched per step, peak memory.

Compare numbers of one run only: how fast a machine is changes by the minute. Other work on the
machine makes every program slower; ratios suffer less."""
_EXAMPLES = """examples:
  bench perf                                  every algorithm, about 25 minutes
  bench perf --algo td3_bc iql --rivals bare  two algorithms, against the hand-written loop
  bench perf --install                        build the rivals' environments first (make perf)
  bench perf --device cuda --seeds 1 8 64     how many seeds a GPU trains at once
  bench perf --rounds 1 --seconds 1           does everything run? no numbers to keep"""


def register(commands: Any) -> None:
    """Add the parser ``perf`` to the command line's subparsers; it sets ``handler``."""
    parser = commands.add_parser(
        "perf",
        help="measure training speed beside other libraries",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--algo",
        nargs="+",
        default=["*"],
        metavar="A",
        help=f"names or globs; there are {', '.join(recipe_names())} (default: all)",
    )
    parser.add_argument(
        "--rounds", type=_whole, default=3, metavar="N", help="turns of every program (default: 3)"
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=2.0,
        metavar="S",
        help="of one turn: CPU seconds, on a GPU seconds (default: 2); a step may take longer",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=_whole,
        metavar="N",
        help="how many seeds the engine trains at once (default: 1; on a GPU: 1 8 64)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="default: auto; its developers have not been able to execute cuda yet",
    )
    parser.add_argument(
        "--rivals",
        nargs="+",
        default=["all"],
        metavar="R",
        help=f"all, none, or some of {', '.join(_NAMES)} (default: all)",
    )
    parser.add_argument(
        "--rows",
        type=_whole,
        default=1_000_000,
        metavar="N",
        help="transitions in memory, a multiple of 1000 (default: 1000000)",
    )
    parser.add_argument(
        "--install",
        action="store_true",
        help="first build .venv-perf-torchrl and .venv-perf-d3rlpy (1.3 GB each) if they are not "
        "there; one that cannot be built is named in the tables",
    )
    parser.add_argument(
        "--full-run",
        nargs="*",
        metavar="A",
        help="also time five seeds of the whole paper profile of these (default: td3_bc on a GPU)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="a .md file, or a results folder: then published/perf-<machine>.md in it "
        "(default: results)",
    )
    parser.set_defaults(handler=run)


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def chosen_rivals(names: Sequence[str]) -> list[Rival]:
    """Raises ConfigError for a name that is none."""
    if list(names) in (["all"], ["none"]):
        return list(RIVALS) if names[0] == "all" else []
    unknown = [n for n in names if n not in _NAMES]
    if unknown:
        known = ", ".join(_NAMES)
        raise ConfigError(f"--rivals {unknown[0]}: choose all, none, or some of {known}")
    return [r for r in RIVALS if r.name in names]


def spell(args: argparse.Namespace, device: str) -> str:
    """The command with everything that decides what is measured."""
    words = ["bench", "perf", "--algo", *args.algo, "--rounds", args.rounds, "--seconds"]
    words += [f"{args.seconds:g}", "--rows", args.rows, "--device", device]
    words += ["--rivals", *args.rivals, "--seeds", *args.seeds]
    words += ["--full-run", *args.full_run]
    return shlex.join(str(w) for w in words)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check(args: argparse.Namespace) -> None:
    """Refuse before anything is measured what cannot be kept or done."""
    for name in args.full_run:
        check_name(name)
    if args.rows % 1000:
        raise ConfigError(f"--rows {args.rows}: write a multiple of 1000, the steps of an episode")
    folder = args.out.parent if args.out.suffix == ".md" else args.out / "published"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out {args.out}: cannot be written ({error.strerror})") from None


def run(args: argparse.Namespace) -> int:
    """``bench perf``. What was measured is written after every algorithm."""
    from bench.perf.measure import Settings, environment, install
    from bench.perf.tables import Report
    from bench.plan import resolve_device
    from bench.provenance import git_commit, spell_commit

    algorithms, rivals = expand_names(args.algo), chosen_rivals(args.rivals)
    device = resolve_device(args.device)
    args.seeds = args.seeds or ([1] if device == "cpu" else [1, 8, 64])
    if args.full_run is None:
        args.full_run = ["td3_bc"] if device != "cpu" else []
    _check(args)
    failed = install(rivals) if args.install else {}
    from bench.perf.machine import probe, slug

    machine = probe(device, environment())
    page = args.out
    if page.suffix != ".md":
        page = page / "published" / f"perf-{slug(machine)}.md"
    settings = Settings(args.rounds, args.seconds, args.rows, device)
    commit, now = spell_commit(git_commit()), datetime.now(UTC)
    report = Report(machine, settings, spell(args, device), commit, f"{now:%Y-%m-%d}")
    _say(f"{machine['gpu'] or machine['cpu']}: {machine['peak'] / 1e9:.0f} GFLOP/s")
    try:
        _measure_all(report, algorithms, rivals, args, failed, page)
    except KeyboardInterrupt:
        _say(f"interrupted: finished algorithms are in {page}" if report.results else "interrupted")
        return 130
    print(page.read_text(encoding="utf-8"), end="")
    _say(f"\n{page}\n{page.with_suffix('.json')}")
    failures = [r for r in report.results if r.program.startswith("engine") and r.missing]
    return 1 if failures else 0


def _measure_all(
    report: Any,
    algorithms: Sequence[str],
    rivals: Sequence[Rival],
    args: argparse.Namespace,
    failed: dict[str, str],
    page: Path,
) -> None:
    from bench.perf.machine import probe
    from bench.perf.measure import Measurement, environment, full_run, variants

    for algorithm in algorithms:
        one = Measurement(algorithm, report.settings, _say)
        report.results += one.run(variants(rivals, args.seeds), failed)
        report.write(page)
    again = probe(report.settings.device, environment())
    peaks = report.machine["peaks"]
    report.machine["peaks"] = {k: max(v, again["peaks"][k]) for k, v in peaks.items()}
    report.machine["peak"] = max(report.machine["peak"], again["peak"])
    for algorithm in args.full_run:
        _say(f"{algorithm}: a whole run")
        report.full_runs.append(full_run(algorithm, report.settings.device))
        report.write(page)
    report.write(page)
