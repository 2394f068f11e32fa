"""The command line: ``bench run``, ``bench compare``, ``bench evaluate``, ``bench data``, ..."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import cli_data, cli_plan, cli_trained
from bench.cli_types import positive, whole
from bench.errors import BenchError, ConfigError
from bench.perf import command as perf
from bench.recipes import expand_names, recipe_names

_DATASET = "lite/hopper/medium-replay-v0"
_EXAMPLES = """examples:
  bench run --algo cql --dataset lite/hopper/medium-replay-v0
  bench run --algo td3_bc iql --dataset 'lite/hopper/*' --seeds 5
  bench run --algo bc --dataset my-file.hdf5 --env-id Hopper-v5 --set batch_size=512
  bench compare --out results
  bench data check lite/hopper/medium-v0
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Offline reinforcement learning: train, evaluate, compare.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    cli_plan.register(commands, _add_request, _request)
    _add_compare(commands)
    cli_trained.register(commands)
    cli_data.register(commands)
    perf.register(commands)
    sync = commands.add_parser("sync", help="bring MLflow up to date with the run folders")
    _add_out(sync)
    sync.set_defaults(handler=_sync)
    ui = commands.add_parser("ui", help="open MLflow's web interface on the results")
    _add_out(ui)
    ui.add_argument("--port", type=int, default=5000, help="default: 5000")
    ui.set_defaults(handler=_ui)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="results folder (default: results)"
    )


def _add_run(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "run",
        help="train algorithms on datasets, evaluate, and print the comparison",
        description="Trains every algorithm on every dataset with several seeds. Finished runs "
        "are skipped and interrupted ones go on from their last checkpoint: repeat the same "
        "command after any mishap.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_request(parser)
    parser.add_argument(
        "--retries",
        type=whole,
        default=2,
        metavar="N",
        help="how often a worker that died or hangs goes on from its checkpoint (default: 2)",
    )
    parser.add_argument("--no-report", action="store_true", help="train only")
    parser.add_argument("--no-mlflow", action="store_true", help="do not mirror into MLflow")
    parser.set_defaults(handler=_run)


def _add_request(parser: argparse.ArgumentParser) -> None:
    """What is to be trained, and how."""
    parser.add_argument(
        "--algo",
        nargs="+",
        required=True,
        metavar="A",
        help=f"names or globs; there are {', '.join(recipe_names())}",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[_DATASET],
        metavar="D",
        help=f"ids, globs, or paths to a flat HDF5 file or a Minari folder (default: {_DATASET})",
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help="seeds 0..N-1")
    parser.add_argument("--steps", type=positive, metavar="N", help="gradient steps per run")
    parser.add_argument(
        "--profile",
        choices=("quick", "paper"),
        default="quick",
        help="quick: small networks and few steps, minutes on two cores, not the papers' "
        "protocol; paper: the papers' networks, steps and evaluations (default: quick)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="pass losses and gradients through torch.compile: a minute or more before the first "
        "update, equal results up to rounding",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="products of matrices in TF32 (CUDA only; noted in config.json): faster, with 10 bits "
        "of mantissa instead of 23",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="hyper-parameters",
        dest="settings",
    )
    parser.add_argument("--env-id", help="environment to evaluate in, for bare files")
    parser.add_argument(
        "--eval-interval", type=positive, metavar="N", help="steps between evaluations"
    )
    parser.add_argument(
        "--eval-episodes", type=positive, metavar="N", help="episodes per evaluation and seed"
    )
    parser.add_argument(
        "--eval-workers",
        type=whole,
        metavar="N",
        help="processes that evaluate while training goes on; 0: the training process does it, "
        "with the same scores on a CPU (default: 0 on a CPU, up to 4 on a GPU)",
    )
    parser.add_argument(
        "--executor", choices=("local",), default="local", help="where to train (default: local)"
    )
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")
    parser.add_argument(
        "--data-memory",
        type=_size,
        metavar="SIZE",
        help="training data above this, like 500MB or 8GB, are streamed from a file in OUT/cache, "
        "with equal results (default: 70%% of a GPU's free memory; on a CPU half the memory, "
        "shared by the workers)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="actions outside the bounds are an error"
    )
    _add_out(parser)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compare", help="tables, plots and report.html from the run folders"
    )
    parser.add_argument("--algo", nargs="+", metavar="A", help="only these")
    parser.add_argument("--dataset", nargs="+", metavar="D", help="only these")
    parser.add_argument(
        "--fqe",
        action="store_true",
        help="also estimate what the policies are worth from their data alone (fitted Q "
        "evaluation), and how well that chooses among them: minutes per dataset",
    )
    parser.add_argument(
        "--fqe-steps", type=positive, default=20_000, metavar="N", help="updates (default: 20000)"
    )
    parser.add_argument("--device", default="auto", help="of --fqe: auto, cpu or cuda")
    _add_out(parser)
    parser.set_defaults(handler=_compare)


def _size(text: str) -> int:
    """Bytes; a GB is 10^9 of them, a GiB 2^30."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT]?)(i?)B)?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 500MB or 8GB")
    number, prefix, binary = match.groups(default="")
    power = " KMGT".index(prefix.upper() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key:
            raise ConfigError(f"--set {pair}: write KEY=VALUE")
        settings[key] = value
    return settings


def _request(args: argparse.Namespace) -> tuple[Any, int]:
    """The request and how many workers train at once."""
    algorithms, settings = tuple(expand_names(args.algo)), _settings(args.settings)
    from bench.executors.local import default_workers
    from bench.plan import Request, resolve_device

    request = Request(
        algorithms=algorithms,
        datasets=tuple(args.dataset),
        seeds=args.seeds,
        steps=args.steps,
        profile=args.profile,
        device=args.device,
        compile=args.compile,
        tf32=args.tf32,
        settings=settings,
        out=args.out,
        env_id=args.env_id,
        strict=args.strict,
        eval_interval=args.eval_interval,
        eval_episodes=args.eval_episodes,
        eval_workers=args.eval_workers,
        data_memory=args.data_memory,
    )
    return request, args.workers or default_workers(resolve_device(args.device))


def _run(args: argparse.Namespace) -> int:
    request, workers = _request(args)
    from bench.executors.local import LocalExecutor
    from bench.plan import make_plan

    plan = make_plan(request, workers)
    _check_writable(args.out)
    print("\n".join([plan.summary, *plan.notes]), file=sys.stderr)
    with _mirror(args.out, wanted=not args.no_mlflow and bool(plan.tasks)):
        outcome = LocalExecutor(workers, retries=args.retries).run(plan.tasks)
        trained = len(outcome.failed) < len(plan.tasks) or plan.finished
        if (
            trained and not outcome.interrupted and not args.no_report
        ):  # while the mirror still listens
            _report(args.out, None, None)
    if outcome.interrupted:
        print("interrupted: repeat the command to go on", file=sys.stderr)
        return 130
    if outcome.mistakes:
        return 2
    return 1 if outcome.failed or outcome.diverged or plan.diverged else 0


def _check_writable(out: Path) -> None:
    """Find out before anything trains whether results can be kept."""
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None


class _mirror:
    """MLflow follows the run folders while training goes on; it never holds training up."""

    def __init__(self, out: Path, wanted: bool) -> None:
        self.out, self.wanted = out, wanted
        self.follower: Any = None

    def __enter__(self) -> None:
        if not self.wanted:
            return
        from bench import track

        try:
            self.follower = track.Follower(self.out)
            self.follower.start()
        except BenchError as error:
            print(f"note: {error}", file=sys.stderr)

    def __exit__(self, *exc: object) -> None:
        if self.follower is not None:
            self.follower.stop()


def _report(out: Path, algorithms: Sequence[str] | None, datasets: Sequence[str] | None) -> None:
    from bench.report import compare

    compare(out, algos=algorithms, datasets=datasets)


def _compare(args: argparse.Namespace) -> int:
    if not args.fqe:
        _report(args.out, args.algo, args.dataset)
        return 0
    from bench.plan import resolve_device
    from bench.report import compare
    from bench.trained.fqe import Settings
    from bench.trained.offline import evaluate_offline

    settings, device = Settings(steps=args.fqe_steps), resolve_device(args.device)
    found = evaluate_offline(args.out, args.algo, args.dataset, settings, device)
    compare(args.out, algos=args.algo, datasets=args.dataset, offline=found)
    return 0


def _sync(args: argparse.Namespace) -> int:
    from bench import track

    print(track.sync(args.out))
    return 0


def _ui(args: argparse.Namespace) -> int:
    from bench import track

    return track.ui(args.out, args.port)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. A user's mistake is one line on stderr and status 2."""
    args = build_parser().parse_args(argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        return args.handler(args)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
