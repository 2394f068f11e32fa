"""The tool that plants bugs (tests/mutants): what each operator makes of a line, how a mutant gets
into a process, and a whole run over a project of one module."""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutants import forks, install, plan, record, report
from tests.mutants.operators import OPERATORS

HERE = Path(__file__).resolve().parent

# operator, the body of a function, what the operator makes of it
EXAMPLES = [
    ("sign", "return -x", ["x"]),
    ("sign", "return x.sum(-1)", []),
    ("arithmetic", "return a + b / c", ["a - b / c", "b * c"]),
    ("arithmetic", "return shape + (1,)", []),
    ("dropped_term", "return a + b", ["a", "b"]),
    ("dropped_term", "return 1 - x", ["x"]),
    ("dropped_term", "return x - 1", ["x"]),
    ("extreme", "return q.min(0)", ["q.max(0)"]),
    ("extreme", "return q.clamp(max=c)", ["q.clamp(min=c)"]),
    ("comparison", "return x < y", ["x <= y", "x > y"]),
    ("comparison", "return x is None", ["x is not None"]),
    ("condition", "return a if b else c", ["a if not b else c"]),
    ("condition", "return not a and b", ["not a or b", "a and b"]),
    ("constant", "return 0.5 * x.pow(2)", ["1.0 * x.pow(2)", "x.pow(3)"]),
    ("constant", "return x[1] + y[-1].sum(0)", ["x[0]", "y[0]", "y[-1].sum(1)"]),
    ("flag", "return net(x, target=True)", ["net(x, target=False)"]),
    ("flag", "return zip(x, y, strict=True)", []),
    ("detached", "return q.detach() + q", ["q"]),
    ("grad_mode", "with torch.no_grad(): y = x\nreturn y", ["torch.enable_grad()"]),
    ("swapped", "return f(a + b, c)", ["f(c, a + b)"]),
    ("swapped", "return f(tensordict, c) + torch.minimum(a, b)", []),
    ("confused", "low, high = x\nreturn low", ["high"]),
    ("confused", "return low", []),
    ("confused", "return td.done * eps.tau", []),
    ("confused", "y = td.done\nreturn self.terminated", ["td.terminated", "self.done"]),
    ("reduction", "return x.sum(0)", ["x.mean(0)"]),
    ("dropped_call", "return x.exp() + torch.log(y)", ["x", "y"]),
    ("dropped_statement", "x.copy_(y)\nself.n += 1", ["pass", "pass"]),
    ("dropped_statement", "y = x", []),
]


def planned(body: str, name: str = "f") -> list[plan.Mutant]:
    lines = "\n    ".join(body.splitlines())
    return plan.mutants_of("rlobj/a.py", ast.parse(f"def {name}(x):\n    {lines}"))


@pytest.mark.parametrize(("operator", "body", "expected"), EXAMPLES)
def test_operator(operator: str, body: str, expected: list[str]) -> None:
    assert [m.after for m in planned(body) if m.operator == operator] == expected


def test_every_operator_has_an_example() -> None:
    tried = {name for name, _, expected in EXAMPLES if expected}
    assert tried | {"other_network"} == set(OPERATORS)  # that one needs a class, below


def test_networks_and_losses() -> None:
    text = """
class Loss:
    def _q(self, x, **which): return self.run_network("q", x, **which)
    @torch.no_grad()
    def _target(self, x): return self._q(x)
    def q_loss(self, x) -> tuple: return self._q(x).pow(k), {"y": self.other(x)}
    """
    found = plan.mutants_of("rlobj/a.py", ast.parse(text))
    assert [(m.where, m.after) for m in found if m.operator == "other_network"] == [
        ("Loss._target", "self._q(x, target=True)"),
        ("Loss.q_loss", "self._q(x, target=True)"),
        ("Loss.q_loss", "self._q(x, detach=True)"),
    ]
    assert [m.after for m in found if m.operator == "detached"] == [
        "return (self._q(x).pow(k).detach(), {'y': self.other(x)})"
    ]
    assert [m.before for m in found if m.operator == "grad_mode"] == [
        "def _target with no gradients"
    ]


@pytest.mark.parametrize(
    "body",
    [
        '"""Text with 1 + 1."""',
        "if x < 0:\n    raise ValueError(f'{x + 1}')",
        "if x < 0:\n    warnings.warn('below 0')",
        "assert x > 0",
        "def inner(y: Tensor = 1 + 1) -> Tensor[0]: pass",
    ],
)
def test_checks_texts_and_signatures_are_no_maths(body: str) -> None:
    assert planned(body) == []


def test_plumbing_is_no_maths() -> None:
    assert planned("return x + 1", "in_keys") == []
    assert planned("return x + 1", "monkeys_loss") != []


def test_same_list_each_time_with_names_that_differ() -> None:
    first, second = ([m for _, ms in plan.plan(plan.files()) for m in ms] for _ in range(2))
    assert [m.key for m in first] == [m.key for m in second]
    assert len({m.key for m in first}) == len(first) > 1000
    assert {"rlobj/sac.py", "rlobj/value/functional.py"} <= {m.file for m in first}
    assert not {m.file for m in first} & {"rlobj/specs.py", "rlobj/modules/mlp.py"}


def test_a_mutant_leaves_no_trace_in_the_tree() -> None:
    tree = plan.parse("rlobj/noise.py")
    before = ast.unparse(tree)
    for mutant in plan.mutants_of("rlobj/noise.py", tree):
        with plan.applied(mutant):
            assert ast.unparse(tree) != before
        assert ast.unparse(tree) == before


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rlobj").mkdir()
    (tmp_path / "rlobj/a.py").write_text("def f(:")
    with pytest.raises(SyntaxError):
        list(plan.plan(plan.files(tmp_path), tmp_path))
    with pytest.raises(FileNotFoundError):
        list(plan.plan(["rlobj/b.py"], tmp_path))


SOURCE = """
import contextlib
import functools
FACTOR = 3.0
class torch:
    no_grad = staticmethod(lambda: lambda method: method)
    enable_grad = staticmethod(contextlib.nullcontext)
@torch.no_grad()
def held(x):
    return x
def twice(method):
    @functools.wraps(method)
    def wrapper(x):
        y = x
        y += method(x)
        return y
    return wrapper
@twice
def scaled(x):
    return FACTOR * x
class Base:
    weight = 0.5
    def f(self, x):
        return x
class Child(Base):
    def f(self, x):
        if x:
            x = super().f(x)
        return self.weight * x
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "rlobj").mkdir()
    file = tmp_path / "rlobj/sample.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("rlobj.sample", file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rlobj.sample", made)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("y += method(x) -> pass", (2.0, 1.0)),  # a wrapper loses its only free variable
        ("FACTOR * x -> FACTOR / x", (3.5, 1.0)),
        ("FACTOR = 3.0 -> FACTOR = 6.0", (14.0, 1.0)),
        ("weight = 0.5 -> weight = 1.0", (8.0, 2.0)),
        ("self.weight * x -> x", (8.0, 2.0)),
    ],
)
def test_mutant_in_a_process(
    module: ModuleType, tmp_path: Path, change: str, expected: tuple[float, float]
) -> None:
    assert (module.scaled(2.0), module.Child().f(2.0)) == (8.0, 1.0)
    tree = plan.parse("rlobj/sample.py", tmp_path)
    (mutant,) = (
        m for m in plan.mutants_of("rlobj/sample.py", tree) if m.key.endswith(f": {change}")
    )
    functions = install.functions_of(tmp_path / "rlobj")
    assert install.callers(tree, mutant, functions, tmp_path)
    install.install(tree, mutant, functions, tmp_path)
    assert (module.scaled(2.0), module.Child().f(2.0)) == expected


def test_every_mutant_of_a_module_can_be_installed(module: ModuleType, tmp_path: Path) -> None:
    tree, functions = plan.parse("rlobj/sample.py", tmp_path), install.functions_of(tmp_path)
    before = [f.__code__ for f in functions]
    for mutant in plan.mutants_of("rlobj/sample.py", tree):
        install.install(tree, mutant, functions, tmp_path)
        assert mutant.constant or [f.__code__ for f in functions] != before
        for function, code in zip(functions, before, strict=True):
            function.__code__ = code


def test_code_that_nothing_runs_is_an_error(module: ModuleType, tmp_path: Path) -> None:
    tree = plan.parse("rlobj/sample.py", tmp_path)
    mutant = next(m for m in plan.mutants_of("rlobj/sample.py", tree) if not m.constant)
    with pytest.raises(RuntimeError, match="no function runs this code"):
        install.install(tree, mutant, [], tmp_path)


def _spin() -> dict:
    while True:
        pass


def _die() -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_forks() -> None:
    def ends(*args: object, **kwargs: object) -> tuple[str, dict]:
        found = forks.in_fork(*args, **kwargs)
        return found["end"], found["value"]

    assert ends(lambda: {"x": 1}) == ("done", {"x": 1})
    assert ends(_spin, seconds=0.2) == ("timeout", {})
    assert forks.in_fork(_spin, seconds=0.2)["seconds"] > 0.1
    assert ends(lambda: time.sleep(60) or {}, seconds=0.05) == ("timeout", {})
    assert ends(_die) == ("signal 9", {})
    with pytest.raises(RuntimeError, match="a fork failed"):
        forks.in_fork(lambda: {}["x"], quiet=True)


def test_what_a_record_holds(tmp_path: Path) -> None:
    def known(text: str, suite: str, *equivalent: str) -> list[record.Result | None]:
        tree = ast.parse(text)
        held = record.Record(tmp_path, suite, fresh=False, equivalent=equivalent)
        return [held.result(m, tree) for m in plan.mutants_of("rlobj/a.py", tree)]

    text = "def f(x): return a - b\ndef g(x): return -x\n"
    tree = ast.parse(text)
    caught, survivor = record.Result(test="t", tests=1), record.Result(tests=9)
    held = record.Record(tmp_path, "suite", fresh=False, equivalent=[])
    results = [caught, survivor, caught]
    for mutant, result in zip(plan.mutants_of("rlobj/a.py", tree), results, strict=True):
        held.add(mutant, tree, result)
    assert known(text, "suite") == results
    assert known(f"# lines move\n\n{text}", "suite") == results
    assert known(text, "other tests") == [caught, None, caught]
    assert known(text, "other tests", "rlobj/a.py f: a - b -> a") == results
    assert known(text.replace("f(x)", "f(x, y)"), "suite") == [None, None, caught]
    record.Record(tmp_path, "suite", fresh=True, equivalent=[])
    assert known(text, "suite") == [None, None, None]


def test_shares_and_reasons(tmp_path: Path) -> None:
    mutants = planned("return a + b - c")
    results = [record.Result(test="t") for _ in mutants]
    results[0] = results[1] = record.Result()  # survivors; the last of three has a reason, too
    file = tmp_path / "survivors.toml"
    entry = (
        '[[survivor]]\nkind = "equivalent"\nreason = """\nno\n  matter"""\nmutants = [{!r}, {!r}]'
    )
    file.write_text(entry.format(mutants[0].key, mutants[2].key))
    tally = report.Tally(list(zip(mutants, results, strict=True)), report.reasons(file))
    assert tally.raw == 1 - 2 / len(mutants)
    assert tally.share == 1 - 1 / (len(mutants) - 1)
    assert tally.stale == [mutants[2].key]
    assert tally.reasons[mutants[0].key] == {"kind": "equivalent", "reason": "no matter"}
    file.write_text(entry.format(mutants[0].key, mutants[0].key))
    with pytest.raises(ValueError, match="twice"):
        report.reasons(file)
    with pytest.raises(ValueError, match="unknown kind"):
        file.write_text(entry.replace("equivalent", "whatever").format("a", "b"))
        report.reasons(file)


TESTS = """
from rlobj import thing
def test_add(): assert thing.add(2, 3) == 5
def test_count(): assert [thing.count(0), thing.count(3)] == [0, 3]
"""
THING = """
def add(a, b):
    return a + b
def count(n):
    i = 0
    while i < n:
        i += 1
    return i
def scaled(x):
    return 2.0 * x
"""


def test_a_whole_run(tmp_path: Path) -> None:
    """Caught, hung and unseen mutants; a second run tries nothing again."""
    shutil.copytree(HERE / "mutants", tmp_path / "tests/mutants")
    (tmp_path / "tests/mutants/survivors.toml").write_text("")
    for name, text in {
        "rlobj/__init__.py": "",
        "rlobj/thing.py": THING,
        "tests/rlobj/test_thing.py": TESTS,
        "pytest.ini": "[pytest]\npythonpath = .\naddopts = --import-mode=importlib",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "tests.mutants.run", "--out", tmp_path / "out"]

    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *more], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    first = run("--spare", "0.3")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "survives  thing.py:10:arithmetic  2.0 * x -> 2.0 / x" in first.stdout
    assert "thing.py:3:arithmetic" not in first.stdout
    text = (tmp_path / "out/mutants/report.md").read_text()
    assert "`thing.py:10:constant` scaled: `2.0 * x` → `4.0 * x`" in text
    lines = (tmp_path / "out/mutants/record.jsonl").read_text()
    assert '"end": "timeout"' in lines
    assert run("--report").returncode == 1
    second = run()
    assert second.returncode == 1
    assert (tmp_path / "out/mutants/record.jsonl").read_text() == lines
    (tmp_path / "tests/rlobj/test_thing.py").write_text(
        f"{TESTS}def test_scaled(): assert thing.scaled(3.0) == 6.0\n"
    )
    third = run("--spare", "0.3")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "survives" not in third.stdout
    (tmp_path / "tests/rlobj/test_thing.py").write_text("def test_add(): assert False\n")
    failing = run()
    assert failing.returncode == 4
    assert "tests fail without any bug" in failing.stdout + failing.stderr
