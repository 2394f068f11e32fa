"""What a result was made with: versions of packages, the commit, and the source of its program."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.envs import package

ROOT = Path(__file__).resolve().parents[1]
_OURS = ("bench", "rlobj")
# Parts of `bench` that compute nothing: what they hand over (data, configuration) is recorded.
_NOT_THE_PROGRAM = ("bench.data", "bench.errors", "bench.store")


def versions(env_id: str = "") -> dict[str, str]:
    """Versions of what a result depends on, its environment's package included."""
    found = {"python": sys.version.split()[0]}
    names = ["torch", "tensordict", "gymnasium", "mujoco", "numpy", "rlobj-bench"]
    if brought_by := package(env_id):
        names.append(brought_by)
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {("project" if k == "rlobj-bench" else k): v for k, v in found.items()}


def git_commit() -> str | None:
    """The checkout's commit, with ``+`` when code differs from it; None outside a checkout."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(ROOT), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", "bench", "rlobj")  # new files count too
        return git("rev-parse", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def spell_commit(commit: str | None) -> str:
    """Ten digits, and the ``+`` of a changed checkout."""
    return "unknown" if commit is None else commit[:10] + "+" * commit.endswith("+")


def code_fingerprint(
    algorithm: str, root: Path = ROOT, *, program: str = "bench.engine.worker"
) -> str:
    """sha256 (hex) of the sources of an algorithm's program: its recipe, the engine, and what these
    import of ``rlobj`` and ``bench``. A new algorithm or command does not change the others'."""
    digest = hashlib.sha256()
    for file in sorted(_program(root, f"bench.recipes.{algorithm}", program)):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _program(root: Path, *modules: str) -> set[Path]:
    """The files of the modules and of everything of ours that they import."""
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        file = _source(root, module)
        if file is None or file in found or module.startswith(_NOT_THE_PROGRAM):
            continue
        found.add(file)
        package = module if file.name == "__init__.py" else _parent(module)
        waiting += _imports(file.read_bytes(), package)
        waiting.append(_parent(module))  # a package is imported before what is in it
    return found


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _source(root: Path, module: str) -> Path | None:
    """The file of a module of ours, None for others' and for names inside a module."""
    if module.partition(".")[0] not in _OURS:
        return None
    path = root.joinpath(*module.split("."))
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in candidates if file.is_file()), None)


@cache
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Absolute names of all that a module in ``package`` imports, also inside functions."""
    return tuple(_imported(ast.parse(source), package))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
