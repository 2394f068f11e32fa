"""The figures of a run as a table for the terminal and as Markdown."""

from __future__ import annotations

import os
import platform
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutants.operators import OPERATORS
from tests.mutants.plan import Mutant, files
from tests.mutants.record import Record, Result

REASONS = Path(__file__).parent / "survivors.toml"
HEAD = Path(__file__).parent / "report_head.md"


def reasons(path: Path = REASONS) -> dict[str, dict[str, str]]:
    """Mutants known to survive: ``{key: {"kind": "equivalent" | "accepted", "reason": ...}}``.

    Raises:
        ValueError: on another kind, or an entry twice.
    """
    found: dict[str, dict[str, str]] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []):
        for key in entry["mutants"]:
            if entry["kind"] not in ("equivalent", "accepted") or key in found:
                raise ValueError(f"{path.name}: {key!r} twice, or of an unknown kind")
            found[key] = {"kind": entry["kind"], "reason": " ".join(entry["reason"].split())}
    return found


@dataclass
class Tally:
    results: list[tuple[Mutant, Result | None]]
    reasons: dict[str, dict[str, str]]

    @property
    def tried(self) -> list[tuple[Mutant, Result]]:
        return [(m, r) for m, r in self.results if r is not None]

    @property
    def survivors(self) -> list[tuple[Mutant, Result]]:
        return [(m, r) for m, r in self.tried if not r.caught]

    def of_kind(self, kind: str | None) -> list[tuple[Mutant, Result]]:
        """The survivors of a kind; None: without a reason so far."""
        return [
            (m, r) for m, r in self.survivors if self.reasons.get(m.key, {}).get("kind") == kind
        ]

    @property
    def raw(self) -> float:
        """Caught among all."""
        return 1 - len(self.survivors) / max(1, len(self.tried))

    @property
    def share(self) -> float:
        """Caught among those that change what rlobj computes."""
        real = len(self.tried) - len(self.of_kind("equivalent"))
        return (len(self.tried) - len(self.survivors)) / max(1, real)

    @property
    def stale(self) -> list[str]:
        """Reasons for mutants that are caught or do not exist any more."""
        files = {m.file for m, _ in self.results}
        open_ = {m.key for m, r in self.results if r is None or not r.caught}
        return [k for k in self.reasons if k.split(" ")[0] in files and k not in open_]


def rows(tally: Tally, of: Callable[[Mutant], str]) -> list[tuple[str, int, int, int, int]]:
    """Per group: its name, mutants, caught, equivalent, other survivors."""
    counts: dict[str, Counter] = {}
    for mutant, result in tally.tried:
        count = counts.setdefault(of(mutant), Counter())
        kind = tally.reasons.get(mutant.key, {}).get("kind", "open")
        count["caught" if result.caught else kind] += 1
    return [
        (name, c.total(), c["caught"], c["equivalent"], c["accepted"] + c["open"])
        for name, c in counts.items()
    ]


def summary(tally: Tally) -> str:
    lines = [f"{'':28}{'mutants':>8}{'caught':>8}{'equivalent':>12}{'others':>8}"]
    for name, *figures in rows(tally, lambda m: m.file):
        lines.append(f"{name:28}{figures[0]:8}{figures[1]:8}{figures[2]:12}{figures[3]:8}")
    left = len(tally.results) - len(tally.tried)
    lines += [
        f"caught {tally.raw:.1%} of {len(tally.tried)}; without equivalent ones {tally.share:.1%}"
    ]
    lines += [f"{len(tally.of_kind(None))} survivors have no reason in {REASONS.name}"]
    lines += [f"stale in {REASONS.name}: {key}" for key in tally.stale]
    return "\n".join(lines + ([f"{left} were not tried"] if left else []))


def markdown(tally: Tally, record: Record) -> str:
    text = HEAD.read_text(encoding="utf-8")
    for name, value in _figures(tally).items():
        text = text.replace(f"<{name}>", str(value))
    tables = [_table("file", rows(tally, lambda m: m.file.removeprefix("rlobj/")))]
    by_operator = {name: (name, *rest) for name, *rest in rows(tally, lambda m: m.operator)}
    kinds = [by_operator[name] for name in OPERATORS if name in by_operator]
    doc = {name: " ".join((f.__doc__ or "").split()) for name, f in OPERATORS.items()}
    tables.append(_table("operator", kinds, doc))
    parts = [text, "## By file", tables[0], "## By operator", tables[1], "## Survivors"]
    for kind, title in (("equivalent", "Equivalent"), ("accepted", "Accepted"), (None, "Open")):
        found = tally.of_kind(kind)
        if found:
            parts += [f"### {title}", _listed(found, tally)]
    return "\n\n".join(p.strip() for p in parts) + "\n"


def _figures(tally: Tally) -> dict[str, Any]:
    errors = Counter(r.error if r.end == "done" else r.end for _, r in tally.tried if r.caught)
    wrong, other = errors.pop("AssertionError", 0), errors.pop("timeout", 0)
    return {
        "planned": len(tally.results),
        "absent": ", ".join(sorted(set(files()) - {m.file for m, _ in tally.results})) or "none",
        "mutants": len(tally.tried),
        "caught": len(tally.tried) - len(tally.survivors),
        "raw": f"{tally.raw:.1%}",
        "share": f"{tally.share:.1%}",
        "equivalent": len(tally.of_kind("equivalent")),
        "accepted": len(tally.of_kind("accepted")),
        "open": len(tally.of_kind(None)),
        "assertions": wrong,
        "timeouts": other,
        "exceptions": errors.total(),
        "minutes": round(sum(r.seconds for _, r in tally.tried) / 60),
        "cpu": f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _table(title: str, found: list[tuple], doc: dict[str, str] | None = None) -> str:
    """Counts per group, with what the group is where that is known."""
    lines = [
        f"| {title} | mutants | caught | equivalent | accepted, open |" + " what |" * bool(doc)
    ]
    lines += ["|---" * (5 + bool(doc)) + "|"]
    for name, *figures in found:
        cells = [name, *map(str, figures), *([doc[name].replace("|", "\\|")] if doc else [])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _listed(found: list[tuple[Mutant, Result]], tally: Tally) -> str:
    """One by one, those that share a reason below it."""
    by_reason: dict[str, list[Mutant]] = {}
    for mutant, _ in found:
        why = tally.reasons.get(mutant.key, {}).get("reason", "No reason yet.")
        by_reason.setdefault(why, []).append(mutant)
    lines = []
    for why, mutants in by_reason.items():
        lines.append(f"- {why}")
        for m in mutants:
            lines.append(f"  - `{m.name}` {m.where}: `{m.before}` → `{m.after}`")
    return "\n".join(lines)
