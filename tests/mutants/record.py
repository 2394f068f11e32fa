"""What is known about mutants: one line of JSON for each that was tried."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.mutants.plan import Mutant


@dataclass(frozen=True)
class Result:
    end: str = "done"  # or "timeout", or the signal that killed the tests
    tests: int = 0  # how many ran
    test: str | None = None  # which failed
    error: str | None = None  # and with which exception
    seconds: float = 0.0  # CPU time

    @property
    def caught(self) -> bool:
        return self.end != "done" or self.test is not None

    @property
    def outcome(self) -> str:
        if self.end != "done":
            return self.end
        return "caught" if self.test is not None else "survives"


class Record:
    """Results by mutant. One that was caught holds as long as its function reads the same; one
    that was not, as long as the tests do, too, unless it is ``equivalent``: no test can tell."""

    def __init__(self, folder: Path, tests: str, fresh: bool, equivalent: Iterable[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._tests, self._equivalent = folder, tests, set(equivalent)
        self._file, self._known = folder / "record.jsonl", {}
        if fresh:
            self._file.unlink(missing_ok=True)
        for line in self._file.read_text().splitlines() if self._file.exists() else ():
            entry = json.loads(line)
            self._known[entry.pop("mutant")] = entry

    def result(self, mutant: Mutant, tree: ast.Module) -> Result | None:
        entry = self._known.get(mutant.key, {})
        wanted = _digest(mutant, tree)
        if entry.get("code") != wanted:
            return None
        result = Result(**entry["result"])
        lasting = result.caught or mutant.key in self._equivalent
        return result if lasting or entry["suite"] == self._tests else None

    def holds(self, mutant: Mutant, tree: ast.Module) -> bool:
        return self.result(mutant, tree) is not None

    def add(self, mutant: Mutant, tree: ast.Module, result: Result) -> None:
        found = {"code": _digest(mutant, tree), "suite": self._tests, "result": asdict(result)}
        self._known[mutant.key] = found
        with self._file.open("a") as file:
            file.write(json.dumps({"mutant": mutant.key, **found}) + "\n")

    def profile(self, digests: dict[str, str]) -> dict[str, Any]:
        """By test file its profile; of those whose digest is another, none."""
        path = self.folder / "profile.json"
        held = json.loads(path.read_text()) if path.exists() else {}
        return {k: v["tests"] for k, v in held.items() if digests.get(k) == v["of"]}

    def set_profile(self, digests: dict[str, str], profile: dict[str, Any]) -> None:
        held = {file: {"of": digests[file], "tests": tests} for file, tests in profile.items()}
        (self.folder / "profile.json").write_text(json.dumps(held))


def _digest(mutant: Mutant, tree: ast.Module) -> str:
    """Of the outermost function or statement that holds the mutant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.lineno <= mutant.line <= node.end_lineno:
            return hashlib.sha1(ast.unparse(node).encode()).hexdigest()
    return hashlib.sha1(mutant.before.encode()).hexdigest()
