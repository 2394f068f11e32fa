"""`make learning`: train every recipe on its embedded dataset and see whether it learns.

Finished runs in OUT are kept and interrupted ones go on. The page names every floor that is missed
with its diagnosis, from diagnoses.toml; one that is missed without any fails the command.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd

from bench.engine.cpu import model_name
from bench.errors import BenchError
from bench.provenance import spell_commit, versions
from bench.recipe import load_recipe
from bench.report.stats import mean, seeds_interval
from tests.learning.cells import CONTINUOUS, Found, cells, found
from tests.learning.floors import Floor, Verdict, floors

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MISSING = "–"


def train(out: Path) -> None:
    """Cell by cell, so that a table of what is there can be made at any time."""
    todo = list(cells())
    for n, cell in enumerate(todo, 1):
        print(f"[{n} of {len(todo)}] {cell.name} on {cell.dataset}", flush=True)
        command = [sys.executable, "-m", "bench", "run", *cell.arguments(out)]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code not in (0, 1):  # 1: a seed diverged, which the page says
            sys.exit(code)


def page(table: dict[str, Found], verdicts: list[tuple[Floor, Verdict | None]]) -> str:
    head = (HERE / "page_head.md").read_text(encoding="utf-8")
    commits = sorted(
        {spell_commit(c) for f in table.values() for run in f.runs for c in run.commits}
    )
    machine = (
        f"- {model_name()}, {os.cpu_count()} cores; {platform.system()} {platform.machine()}\n"
        f"- Python {platform.python_version()}, torch {versions()['torch']}\n"
        f"- trained at {', '.join(commits) or 'no commit'}\n"
    )
    return "\n".join([head, machine, "## Scores\n", scores(table), judged(verdicts)])


def scores(table: dict[str, Found]) -> str:
    rows = [
        "| algorithm | dataset | final score | seeds | the data | `bc` | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for f in table.values():
        data = {run.dataset_return for run in f.runs}
        label = load_recipe(f.cell.algorithm).label
        extra = "".join(f" `{k}={v}`" for k, v in f.cell.settings)
        clone = table["bc"].scores if f.cell.dataset == CONTINUOUS else []
        cells = [
            f"{label}{extra}",
            f"`{f.cell.dataset}`",
            interval(f.scores),
            seeds(f),
            *(f"{d:.1f}" for d in data),
            f"{mean(clone):.1f}" if clone else MISSING,
            f"{f.minutes:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |" if f.runs else missing(label + extra, f))
    return "\n".join(rows) + "\n"


def missing(label: str, f: Found) -> str:
    return f"| {label} | `{f.cell.dataset}` | not trained yet |{f' {MISSING} |' * 4}"


def interval(values: list[float]) -> str:
    if not values:
        return MISSING
    low, high = seeds_interval(values)
    return f"{mean(values):.1f} [{low:.1f}, {high:.1f}]"


def seeds(f: Found) -> str:
    shown = [f"{run.final:.1f}" if run.finished else "diverged" for run in f.runs]
    return ", ".join(shown)


def judged(verdicts: list[tuple[Floor, Verdict | None]]) -> str:
    rows = ["## Floors\n", "| floor | found | |", "|---|---|---|"]
    words = {True: "reached", False: "**missed**"}
    for floor, verdict in verdicts:
        text, reached = verdict or (MISSING, None)
        rows.append(f"| {floor.wanted} | {text} | {words.get(reached, 'not judged yet')} |")
    rows += [
        f"\n**{f.wanted}**: {diagnoses().get(f.key, 'no diagnosis yet.')}" for f in missed(verdicts)
    ]
    return "\n".join(rows) + "\n"


def missed(verdicts: list[tuple[Floor, Verdict | None]]) -> list[Floor]:
    return [floor for floor, verdict in verdicts if verdict and not verdict[1]]


def diagnoses() -> dict[str, str]:
    texts = tomllib.loads((HERE / "diagnoses.toml").read_text(encoding="utf-8"))
    return {key: " ".join(text.split()) for key, text in texts.items()}


def curves(table: dict[str, Found]) -> pd.DataFrame:
    """Every evaluation of every seed, as the scores are given."""
    records = [
        {"algorithm": f.cell.name, "dataset": f.cell.dataset, "seed": run.seed, "step": step,
         "score": round(score, 3)}
        for f in table.values()
        for run in f.runs
        for step, score in zip(run.curve_steps, run.curve, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(records, columns=["algorithm", "dataset", "seed", "step", "score"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make learning", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the runs")
    parser.add_argument("--report", action="store_true", help="of the runs so far; train nothing")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="write the page there, too")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    out = options.out.absolute()
    if not options.report:
        train(out)
    try:
        table = {cell.name: found(cell, out) for cell in cells()}
        verdicts = [(floor, floor.verdict(table)) for floor in floors()]
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = page(table, verdicts)
    print(text)
    for path in filter(None, (out / "learning.md", options.publish)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        curves(table).to_csv(path.with_suffix(".csv"), index=False)
    unjudged = [floor.wanted for floor, verdict in verdicts if verdict is None]
    unexplained = [floor.wanted for floor in missed(verdicts) if floor.key not in diagnoses()]
    for line in [f"not judged yet: {w}" for w in unjudged] + [f"missed: {w}" for w in unexplained]:
        print(line, file=sys.stderr)
    return 1 if unjudged or unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
