"""The layout that everything else relies on, as rules over the source text.

Each rule takes the root of a tree and returns one line per violation. The rules run on this
project, and each of them on small trees in which its violation is planted.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
# Files that may be longer, with their present length: it may fall, never rise.
LONG_FILES: dict[str, int] = {}

DATA_FOLDERS = ("datasets", "results")
# Ignored by git: what users download or produce there is not ours to judge.
UNTRACKED = ("datasets/cache", "results/runs", "results/compare", "results/mlartifacts")
TRAINING = (
    "bench/engine",
    "bench/online",
    "bench/recipes",
    "bench/store",
    "bench/evaluate.py",
    "bench/nets.py",
    "bench/recipe.py",
)
# What turns text or bytes into running code; naming it is enough, called or not.
UNSAFE = {
    *(f"{m}.{f}" for m in ("pickle", "_pickle", "dill") for f in ("load", "loads", "Unpickler")),
    *(f"{module}.{f}" for module in ("cloudpickle", "marshal") for f in ("load", "loads")),
    *("joblib.load", "pandas.read_pickle", "shelve.open"),
    *("eval", "exec", "builtins.eval", "builtins.exec", "os.popen", "os.system"),
    *("yaml.full_load", "yaml.load", "yaml.load_all", "yaml.unsafe_load"),
}
# Keywords with the only value that is safe.
SAFE_KEYWORDS = {"weights_only": True, "allow_pickle": False, "shell": False}

Rule = Callable[[Path], list[str]]


def sources(root: Path, *places: str) -> Iterator[tuple[str, Path]]:
    """Python files at or below the places, with their path relative to the root."""
    for place in places:
        path = root / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            yield file.relative_to(root).as_posix(), file


def trees(root: Path, *places: str) -> Iterator[tuple[str, ast.Module]]:
    for name, file in sources(root, *places):
        yield name, ast.parse(file.read_text(encoding="utf-8"), name)


def imported(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def below(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def forbidden_imports(root: Path, places: tuple[str, ...], *modules: str) -> list[str]:
    return [
        f"{name}:{line} imports {module}"
        for name, tree in trees(root, *places)
        for line, module in imported(name, tree)
        if below(module, *modules)
    ]


def root_is_no_package(root: Path) -> list[str]:
    """A root that is a package turns every folder in it into importable names."""
    return ["__init__.py at the root"] if (root / "__init__.py").exists() else []


def data_folders_hold_no_python(root: Path) -> list[str]:
    return [
        f"{name} is Python in a data folder"
        for name, _ in sources(root, *DATA_FOLDERS)
        if not name.startswith(tuple(f"{folder}/" for folder in UNTRACKED))
    ]


def datasets_stays_importable_for_others(root: Path) -> list[str]:
    """A regular package of ours would hide Hugging Face's `datasets`; a plain folder does not."""
    PathFinder.invalidate_caches()
    specs = {name: PathFinder.find_spec(name, [str(root)]) for name in DATA_FOLDERS}
    return [f"{name} is a package" for name, spec in specs.items() if spec and spec.loader]


def packages_are_packages(root: Path) -> list[str]:
    """A folder without __init__.py would be left out of a built package."""
    folders = {file.parent for _, file in sources(root, "rlobj", "bench")}
    missing = (folder for folder in sorted(folders) if not (folder / "__init__.py").exists())
    return [f"{folder.relative_to(root).as_posix()} has no __init__.py" for folder in missing]


def rlobj_stands_alone(root: Path) -> list[str]:
    allowed = {"rlobj", "torch", "tensordict", *sys.stdlib_module_names}
    return [
        f"{name}:{line} imports {module}"
        for name, tree in trees(root, "rlobj")
        for line, module in imported(name, tree)
        if module.partition(".")[0] not in allowed
    ]


def training_imports_nothing_heavy(root: Path) -> list[str]:
    heavy = ("mlflow", "pandas", "seaborn", "bench.track", "bench.report")
    return forbidden_imports(root, TRAINING, *heavy)


def only_track_knows_mlflow(root: Path) -> list[str]:
    found = forbidden_imports(root, ("bench", "rlobj"), "mlflow")
    return [line for line in found if not line.startswith("bench/track/")]


def report_never_trains(root: Path) -> list[str]:
    return forbidden_imports(root, ("bench/report",), "bench.engine", "bench.train", "torch")


def nothing_runs_what_it_reads(root: Path) -> list[str]:
    return [
        f"{name}:{line} {what}"
        for name, tree in trees(root, "rlobj", "bench")
        for line, what in unsafe(name, tree)
    ]


def unsafe(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    yield from ((line, f"imports {what}") for line, what in imported(name, tree) if what in UNSAFE)
    aliases = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            used = aliases.get(first, first) + dot + rest
            if used in UNSAFE:
                yield node.lineno, f"uses {used}"
        elif isinstance(node, ast.keyword):
            safe = SAFE_KEYWORDS.get(node.arg or "")
            if safe is not None and ast.unparse(node.value) != str(safe):
                yield node.value.lineno, f"passes {node.arg}={ast.unparse(node.value)}"


def files_are_short(root: Path, long_files: dict[str, int] | None = None) -> list[str]:
    known = LONG_FILES if long_files is None else long_files
    found = []
    for name, file in sources(root, "rlobj", "bench", "tests"):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > known.get(name, MAX_LINES):
            found.append(f"{name} has {lines} lines, {known.get(name, MAX_LINES)} are allowed")
        elif name in known and lines < known[name]:
            found.append(f"{name} has {lines} lines: lower its {known[name]} in LONG_FILES")
    return found


def recipes_are_tried(root: Path) -> list[str]:
    """Every recipe is named by a test or by the smoke suite."""
    places = [file for _, file in sources(root, "tests")]
    smoke = root / "bench/suites/smoke.toml"
    text = "\n".join(
        file.read_text(encoding="utf-8") for file in places if file.name != Path(__file__).name
    )
    text += smoke.read_text(encoding="utf-8") if smoke.exists() else ""
    return [
        f"{name} is in no test and not in the smoke suite"
        for name, file in sources(root, "bench/recipes")
        if not file.stem.startswith("_") and not re.search(rf"\b{file.stem}\b", text)
    ]


RULES: dict[Rule, tuple[str, ...]] = {
    root_is_no_package: (),
    data_folders_hold_no_python: (),
    datasets_stays_importable_for_others: (),
    packages_are_packages: ("rlobj", "bench"),
    rlobj_stands_alone: ("rlobj",),
    training_imports_nothing_heavy: ("bench/engine", "bench/recipes"),
    only_track_knows_mlflow: ("bench/track/mirror.py",),
    report_never_trains: ("bench/report",),
    nothing_runs_what_it_reads: ("rlobj", "bench"),
    files_are_short: ("rlobj", "bench"),
    recipes_are_tried: ("bench/recipes",),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_project(rule: Rule) -> None:
    assert rule(ROOT) == []
    missing = [place for place in RULES[rule] if not (ROOT / place).exists()]
    if missing:
        pytest.skip(f"not written yet: {', '.join(missing)}")


LONG = "x = 1\n" * (MAX_LINES + 1)
# rule, file, text, whether that breaks the rule
PLANTED = [
    (root_is_no_package, "__init__.py", "", True),
    (root_is_no_package, "bench/__init__.py", "", False),
    (data_folders_hold_no_python, "datasets/__init__.py", "", True),
    (data_folders_hold_no_python, "datasets/cards/make.py", "", True),
    (data_folders_hold_no_python, "results/published/plot.py", "", True),
    (data_folders_hold_no_python, "results/published/table.md", "", False),
    (data_folders_hold_no_python, "results/mlartifacts/1/code.py", "", False),
    (datasets_stays_importable_for_others, "datasets/__init__.py", "", True),
    (datasets_stays_importable_for_others, "datasets.py", "", True),
    (datasets_stays_importable_for_others, "datasets/cards/a.toml", "", False),
    (packages_are_packages, "bench/recipes/td3.py", "", True),
    (packages_are_packages, "bench/__init__.py", "", False),
    (rlobj_stands_alone, "rlobj/a.py", "import numpy", True),
    (rlobj_stands_alone, "rlobj/a.py", "def f():\n    from bench.nets import mlp", True),
    (rlobj_stands_alone, "rlobj/a.py", "import importlib\nimportlib.import_module('bench')", True),
    (rlobj_stands_alone, "rlobj/value/a.py", "from ... import bench", True),
    (rlobj_stands_alone, "rlobj/value/a.py", "import torch.nn\nfrom ..utils import x", False),
    (training_imports_nothing_heavy, "bench/engine/a.py", "import pandas as pd", True),
    (training_imports_nothing_heavy, "bench/recipes/a.py", "def f():\n    import mlflow.x", True),
    (training_imports_nothing_heavy, "bench/evaluate.py", "from seaborn import lineplot", True),
    (training_imports_nothing_heavy, "bench/nets.py", "from . import track", True),
    (training_imports_nothing_heavy, "bench/engine/a.py", "from ..report.stats import x", True),
    (training_imports_nothing_heavy, "bench/report/a.py", "import pandas", False),
    (training_imports_nothing_heavy, "bench/nets.py", "import pandas_free", False),
    (only_track_knows_mlflow, "bench/cli.py", "def f():\n    from mlflow import log", True),
    (only_track_knows_mlflow, "bench/track/mirror.py", "import mlflow", False),
    (report_never_trains, "bench/report/a.py", "from bench.engine import run", True),
    (report_never_trains, "bench/report/a.py", "from .. import engine", True),
    (report_never_trains, "bench/report/a.py", "import torch.nn as nn", True),
    (report_never_trains, "bench/report/a.py", "import pandas\nfrom . import stats", False),
    (nothing_runs_what_it_reads, "bench/a.py", "import pickle as p\nload = p.loads", True),
    (nothing_runs_what_it_reads, "rlobj/a.py", "from pickle import loads", True),
    (nothing_runs_what_it_reads, "bench/a.py", "from pickle import UnpicklingError", False),
    (nothing_runs_what_it_reads, "bench/a.py", "torch.load(f, weights_only=False)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "torch.load(f, weights_only=flag)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "np.load(f, allow_pickle=True)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "subprocess.run(c, shell=True)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "from os import system", True),
    (nothing_runs_what_it_reads, "bench/a.py", "x = eval(text)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "exec(text)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "import yaml\nyaml.load(f, yaml.Loader)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "import pandas as pd\npd.read_pickle(f)", True),
    (nothing_runs_what_it_reads, "bench/a.py", "import yaml\nyaml.safe_load(f)", False),
    (nothing_runs_what_it_reads, "bench/a.py", "net.eval(); torch.load(f)", False),
    (nothing_runs_what_it_reads, "bench/a.py", "torch.load(f, weights_only=True)", False),
    (files_are_short, "bench/a.py", LONG, True),
    (files_are_short, "tests/bench/test_a.py", LONG, True),
    (files_are_short, "rlobj/a.py", LONG[6:], False),
    (recipes_are_tried, "bench/recipes/foo.py", "", True),
    (recipes_are_tried, "bench/recipes/_shared.py", "", False),
]


@pytest.mark.parametrize(("rule", "file", "text", "broken"), PLANTED)
def test_rule_on_planted_tree(
    tmp_path: Path, rule: Rule, file: str, text: str, broken: bool
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert bool(rule(tmp_path)) == broken


def test_every_rule_is_planted_both_ways() -> None:
    assert {(rule, broken) for rule, _, _, broken in PLANTED} == {
        (rule, broken) for rule in RULES for broken in (True, False)
    }


@pytest.mark.parametrize("place", ["tests/rlobj/test_foo.py", "bench/suites/smoke.toml"])
def test_recipe_is_tried_where_it_is_named(tmp_path: Path, place: str) -> None:
    for name in ("bench/recipes/foo.py", place):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('algo = ["foo"]', encoding="utf-8")
    assert recipes_are_tried(tmp_path) == []
    (tmp_path / place).write_text('algo = ["foo_bar"]', encoding="utf-8")
    assert recipes_are_tried(tmp_path) != []


def test_long_files_only_shrink(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/a.py").write_text("x = 1\n" * 500, encoding="utf-8")
    assert files_are_short(tmp_path, {"bench/a.py": 500}) == []
    assert files_are_short(tmp_path, {"bench/a.py": 499}) != []
    assert files_are_short(tmp_path, {"bench/a.py": 501}) != []


def test_other_peoples_datasets_package_wins_over_our_folder(tmp_path: Path) -> None:
    theirs = tmp_path / "site" / "datasets" / "__init__.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("", encoding="utf-8")
    PathFinder.invalidate_caches()
    spec = PathFinder.find_spec("datasets", [str(ROOT), str(tmp_path / "site")])
    assert spec is not None
    assert spec.origin == str(theirs)
