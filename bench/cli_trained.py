"""The options of ``bench evaluate`` and ``bench export``. What they need is imported when they are
called: ``--help`` and a mistyped option load neither torch nor gymnasium."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.cli_types import positive, whole

FORMATS = ("pt2", "torchscript", "onnx", "safetensors")
EVALUATE_HELP = """\
Evaluate the policies of runs again: more episodes, other start states, another environment. The
policy comes from the run's checkpoint with its observation normalisation, and acts as in training's
evaluations: deterministically, actions cut at the bounds.

Printed are mean and standard deviation of returns over episodes, Student's 95 % interval of the
mean, the normalised score where the dataset has one, and lengths. They say how well this policy is
known; how much training scatters, only seeds can say. RUN/evaluations/*.json gets every episode and
what it was made with; the run's own scores stay as they are.

Episodes are counted from those of training: with the run's own seed and environment, the first ones
are those that training evaluated at this step, and must return the same."""
EVALUATE_EXAMPLES = """examples:
  bench evaluate results/runs/lite/hopper/medium-v0/td3_bc/*/seed-0 --episodes 100
  bench evaluate results --episodes 50 --out again.json        every run in results
  bench evaluate RUN --env-id Hopper-v4 --horizon 500
  bench evaluate RUN --checkpoint best --seed 1000             not those that it was chosen by
  bench evaluate RUN --target-return 1800                      DT, online DT
  MUJOCO_GL=egl bench evaluate RUN --episodes 1 --video hopper.mp4
"""
EXPORT_HELP = """\
Write the policy of a run as a file that needs nothing of this project: raw observations in, actions
out, as evaluated, with the normalisation of observations and the bounds of actions inside. Any
number of rows goes in at once. Policies that remember (DT, online DT, Dreamer) take and give what
they remember as tensors that start as zeros.

  pt2          torch.export's format: for PyTorch in Python, and to compile with AOTInductor
  torchscript  for libtorch in C++; torch has deprecated it in favour of torch.export
  onnx         for ONNX Runtime and all that reads ONNX; needs the extra 'export'
  safetensors  the tensors, and in policy.json the operations on them: to read anywhere or to write
               the network anew in another framework; needs the extra 'export'

policy.json beside it: run, algorithm, dataset, shapes, bounds, normalisation, recorded score,
sha256. Then a Python without this project reads the file and acts on 256 observations of the
dataset: actions that differ by more than 1e-5 are an error (exit code 1, nothing is removed).

A short program that reads the file is printed."""
EXPORT_EXAMPLES = """examples:
  bench export results/runs/lite/hopper/medium-v0/td3_bc/*/seed-0
  bench export RUN --format onnx --to deploy/hopper
  bench export RUN --format safetensors --checkpoint best
"""


def register(commands: Any) -> None:
    """Add both parsers to the command line's subparsers; they set ``handler``."""
    evaluating = _add(
        commands, "evaluate", "evaluate trained policies again", EVALUATE_HELP, EVALUATE_EXAMPLES
    )
    evaluating.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of seeds, folders above them, or globs"
    )
    evaluating.add_argument(
        "--episodes", type=positive, metavar="N", help="default: as many as training evaluated"
    )
    evaluating.add_argument("--env-id", help="environment (default: the run's)")
    evaluating.add_argument(
        "--horizon",
        type=positive,
        metavar="N",
        help="longest episode (default: the run's in its own environment, else the environment's)",
    )
    evaluating.add_argument(
        "--seed", type=whole, metavar="S", help="of the start states (default: the run's)"
    )
    evaluating.add_argument(
        "--video", type=Path, metavar="FILE.mp4", help="film the first episode; extra 'video'"
    )
    evaluating.add_argument(
        "--out", type=Path, metavar="FILE.json", help="also write all evaluations there, as a list"
    )
    evaluating.add_argument(
        "--target-return",
        type=float,
        metavar="R",
        help="the return that DT and online DT are asked for (default: the run's first)",
    )
    _policy_options(evaluating)
    evaluating.set_defaults(handler=_evaluate)

    exporting = _add(
        commands, "export", "write a trained policy for use elsewhere", EXPORT_HELP, EXPORT_EXAMPLES
    )
    exporting.add_argument("run", metavar="RUN", help="folder of a seed")
    exporting.add_argument("--format", choices=FORMATS, default="pt2", help="default: pt2")
    exporting.add_argument(
        "--to", type=Path, metavar="FOLDER", help="default: RUN/export/CHECKPOINT-FORMAT"
    )
    _policy_options(exporting)
    exporting.set_defaults(handler=_export)


def _policy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="last: the newest one; best: of the evaluation with the largest mean return "
        "(default: last)",
    )
    parser.add_argument(
        "--dataset",
        metavar="ID|FILE",
        help="where the run's data are, if they were a file (default: as the run names them)",
    )


def _add(commands: Any, name: str, short: str, text: str, more: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=text,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    from bench.trained.commands import run_evaluate

    return run_evaluate(args)


def _export(args: argparse.Namespace) -> int:
    from bench.trained.commands import run_export

    return run_export(args)
