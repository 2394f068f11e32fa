"""`make mutants`: plant bugs one by one and see that the fast tests of rlobj notice.

One process imports torch, rlobj and the tests, and notes which functions each test calls. Then, for
each mutant, a fork of it gets the changed code and runs the tests that call that code, the cheapest
and narrowest first, until one fails. The record in OUT/mutants is kept: a run that was stopped goes
on where it was, and after a change only what it touches runs again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from tests.mutants.forks import Failures, Profile, in_fork, profile, try_tests
from tests.mutants.install import callers, functions_of, install
from tests.mutants.plan import ROOT, Mutant, files, plan
from tests.mutants.record import Record, Result
from tests.mutants.report import Tally, markdown, reasons, summary

TESTS = "tests/rlobj"
FAST = "not compile"  # by name: those that compile take half of the time
ENOUGH = 0.95
LIMIT = "CPU time that a test may take besides five times its usual one [10]"


@dataclass
class Runner:
    """The plugin that runs mutants instead of tests."""

    options: argparse.Namespace
    record: Record
    failures: Failures = field(default_factory=Failures)
    profile: Profile = field(default_factory=dict)
    functions: list[FunctionType] = field(default_factory=list)
    items: dict[str, Any] = field(default_factory=dict)
    tried: int = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        if session.testsfailed or not self.items:
            raise pytest.UsageError("the tests cannot be imported")
        self.functions = functions_of()
        self._learn_calls()
        todo, began = list(selected(self.options)), time.time()
        for n, (tree, mutant) in enumerate(todo):
            if not self.record.holds(mutant, tree) or self.options.only:
                result = self._try(tree, mutant)
                self.record.add(mutant, tree, result)
                self.tried += 1
                self._progress(mutant, result)
                if self.tried % 25 == 0:
                    pace = (time.time() - began) / self.tried / 60
                    say(f"{n + 1} of {len(todo)}, about {pace * (len(todo) - n):.0f} min to go")
        return True

    def _learn_calls(self) -> None:
        """Which functions each test calls: of files of tests that are new, from a clean run."""
        by_file: dict[str, dict[str, Any]] = {}
        for name, item in self.items.items():
            by_file.setdefault(name.split("::")[0], {})[name] = item
        files = {Path(TESTS) / p.name for p in (ROOT / TESTS).glob("*.py")}
        helpers = [p for p in files if p.as_posix() not in by_file]
        digests = {name: digest("rlobj", *helpers, name) for name in by_file}
        found = self.record.profile(digests)
        new = {n: i for f, items in by_file.items() if f not in found for n, i in items.items()}
        say(f"{len(self.items)} tests; trying {len(new)} without a bug")
        profiled = in_fork(lambda: profile(new, self.failures), quiet=True)["value"]
        failed = [name for name, entry in profiled.items() if entry["error"]]
        if failed:
            raise pytest.UsageError(f"tests fail without any bug: {failed}")
        for name, entry in profiled.items():
            found.setdefault(name.split("::")[0], {})[name] = entry
        self.record.set_profile(digests, found)
        self.profile = {n: e for tests in found.values() for n, e in tests.items()}

    def _try(self, tree: Any, mutant: Mutant) -> Result:
        tests = self._tests(callers(tree, mutant, self.functions))
        spare = self.options.spare
        limits = [spare + 5 * self.profile[name]["seconds"] for name in tests]

        def attempt() -> dict:
            install(tree, mutant, self.functions)
            items = [self.items[name] for name in tests]
            return try_tests(list(zip(items, limits, strict=True)), self.failures)

        if not tests:  # it may not even have been imported
            return Result()
        found = in_fork(attempt, spare, quiet=not self.options.only)
        return Result(**found["value"], end=found["end"], seconds=found["seconds"])

    def _tests(self, called: set[str]) -> list[str]:
        """Those that call one of the functions: what is cheap and calls little else comes first."""
        fit = {n: e for n, e in self.profile.items() if called & set(e["calls"])}
        return sorted(fit, key=lambda n: fit[n]["seconds"] * len(fit[n]["calls"]))

    def _progress(self, mutant: Mutant, result: Result) -> None:
        if not result.caught or self.options.only:
            say(f"{result.outcome:9} {mutant.name}  {mutant.key.split(': ', 1)[1]}")
            say(f"          {result.tests} tests, {result.seconds} s  {result.test or ''}")


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def selected(options: argparse.Namespace) -> Iterator[tuple[Any, Mutant]]:
    for tree, mutants in plan(options.files or files()):
        for mutant in mutants:
            if not options.only or {mutant.name, mutant.key} & set(options.only):
                yield tree, mutant


def digest(*places: str | Path) -> str:
    """Of files, and of the Python files in folders."""
    paths = [ROOT / place for place in places]
    found = sorted(f for p in paths for f in ([p] if p.is_file() else p.rglob("*.py")))
    return hashlib.sha1(b"".join(p.read_bytes() for p in found)).hexdigest()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument(
        "--files", nargs="+", metavar="FILE", help="of these only, e.g. rlobj/sac.py"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these only, showing the tests")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder for the record")
    parser.add_argument("--spare", type=float, default=10.0, metavar="SECONDS", help=LIMIT)
    parser.add_argument("--report", action="store_true", help="of what was tried so far, and stop")
    parser.add_argument("--fresh", action="store_true", help="forget the record")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="write the report there, too")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.list:
        for _, mutant in selected(options):
            say(f"{mutant.name:45} {mutant.key.split(': ', 1)[1]}")
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    known = reasons()
    equivalent = [key for key, why in known.items() if why["kind"] == "equivalent"]
    record = Record(options.out / "mutants", digest(TESTS), options.fresh, equivalent)
    if not options.report:
        runner = Runner(options, record)
        quiet = ["-q", "-s", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", FAST]
        code = pytest.main([*quiet, f"{ROOT / TESTS}"], plugins=[runner, runner.failures])
        if code != pytest.ExitCode.OK or options.only:
            return int(code)
    tally = Tally([(m, record.result(m, t)) for t, m in selected(options)], known)
    say(summary(tally))
    text = markdown(tally, record)
    for path in filter(None, (options.out / "mutants/report.md", options.publish)):
        path.write_text(text, encoding="utf-8")
    return 0 if tally.share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
