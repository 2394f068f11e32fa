"""``bench perf``: what is counted, how numbers become a table, and programs that fail or are not
there. No other library is needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import ConfigError
from bench.perf import tables
from bench.perf.command import chosen_rivals
from bench.perf.environments import NotInstalled, build, is_built, python_of
from bench.perf.machine import slug
from bench.perf.measure import (
    Measurement,
    Result,
    Settings,
    environment,
    full_run,
    variants,
)
from bench.perf.protocol import ProgramError, Remote, Unavailable
from bench.perf.rivals import RIVALS, Rival
from bench.perf.work import Work
from tests.bench.test_perf_programs import EXPECTED

# A rival of 2 ms per step. Its argument or else its algorithm says how it goes wrong.
FAKE = """
import os, sys, time
from bench.perf.protocol import Program, Unavailable, serve

def build(work):
    kind, weights, runs = [*sys.argv[1:], work["algorithm"]][0], [1.0, 2.0], 0
    if kind == "absent":
        raise Unavailable("nothing here for absent")
    print("a library's greeting")

    def step():
        nonlocal runs
        runs += 1
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass
        if kind != "idle":
            weights[0] += 1.0
        if kind == "nan":
            weights[1] = float("nan")
        if kind == "raises":
            raise ValueError("one\\ntwo")
        if kind == "dies" and runs > 80:
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if kind == "sleeps":
            time.sleep(60)

    counters = {n: lambda updates: {"flops": 7.0, "launches": updates, "waits": 0}
                for n in ("step", "without_metrics")}
    if kind == "slow":
        step = lambda: time.sleep(0.2)
    return Program(step, lambda: weights, {"fake": "1.0"}, counters, counted=5)

sys.exit(serve(build))
"""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Remote]]:
    script, started = tmp_path / "fake.py", []
    script.write_text(FAKE)

    def start(*kind: str) -> Remote:
        started.append(Remote([sys.executable, script, *kind], environment(), tmp_path))
        return started[-1]

    yield start
    for remote in started:
        remote.close()


def built(fake: Callable[..., Remote], algorithm: str) -> Remote:
    remote = fake()
    remote.ask("build", timeout=60, work={"algorithm": algorithm}, core=None)
    return remote


def test_a_program_is_run_for_the_time_asked_and_looked_into(fake) -> None:
    remote = fake()
    answer = remote.ask("build", timeout=60, work={"algorithm": "fine"}, core=None)
    assert answer == {"versions": {"fake": "1.0"}}
    run = remote.ask("run", timeout=60, seconds=0.1, clock="cpu")
    assert 0.1 <= run["cpu"] < 0.2 and run["wall"] >= 0.1
    assert run["cpu"] / run["steps"] == pytest.approx(0.002, rel=0.4)
    assert run["device_memory"] is None
    if sys.platform == "linux":
        assert 1e6 < run["memory"] < 1e9
    assert remote.ask("check", timeout=60) == {"weights": 2, "changed": 1}
    assert remote.ask("count", timeout=60, what="step")["launches"] == 5
    with pytest.raises(Unavailable, match="other is not counted"):
        remote.ask("count", timeout=60, what="other")


def test_one_step_that_fills_a_turn_is_enough(fake) -> None:
    assert built(fake, "slow").ask("run", timeout=60, seconds=0.1, clock="wall")["steps"] == 1


@pytest.mark.parametrize(
    ("algorithm", "request_", "reason"),
    [
        ("idle", "check", "no weight has changed"),
        ("nan", "check", "no longer finite"),
        ("raises", "run", r"^ValueError: one$"),
        ("sleeps", "run", "no answer within 1 s"),
    ],
)
def test_a_program_that_does_not_train_says_so(fake, algorithm, request_, reason) -> None:
    remote = built(fake, algorithm)
    with pytest.raises(ProgramError, match=reason):
        if algorithm != "raises":
            remote.ask("run", timeout=1, seconds=0.02, clock="cpu")
        remote.ask(
            request_, timeout=1, **({"seconds": 0.02, "clock": "cpu"} if request_ == "run" else {})
        )


def test_what_cannot_be_started_is_an_error_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="No such file"):
        Remote([tmp_path / "python", "-V"], {}, tmp_path)


def test_absent_and_dying_programs_are_named_and_the_others_go_on(fake) -> None:
    rivals = [Rival(n, n, "") for n in ("dies", "absent", "missing", "failed")]

    def start(rival: Rival) -> Remote:
        if rival.name == "missing":
            raise NotInstalled("no environment")
        return fake(rival.name)

    said: list[str] = []
    settings = Settings(rounds=3, seconds=0.1, warm=0.05)  # some 25 steps, then 50 in a round
    one = Measurement("td3_bc", settings, said.append, start)
    results = one.run(variants(rivals, [1, 3]), {"failed": "no pip"})
    first, three, *others = results
    reasons = ["last words", "nothing here for absent", "no environment", "no pip"]
    assert [r.missing for r in others] == reasons and len(others[0].rates) == 1
    assert said.count("td3_bc: dies is left out: last words") == 1
    page = "\n".join(tables.table(results, 1e9))
    assert all(f"| {r.program} | not measured: {r.missing} |" in page for r in others)

    assert three.program == "engine, 3 seeds" and three.rates[0] == pytest.approx(1500, rel=0.4)
    assert first.program == "engine" and first.missing is None
    assert len(first.rates) == 3 and first.rates[0] == pytest.approx(500, rel=0.4)
    assert first.trained == {"weights": 2, "changed": 1} and first.versions == {"fake": "1.0"}
    assert first.counts == {"flops": 7.0, "launches": 5, "waits": 0}
    assert first.without_metrics == first.counts


def test_what_has_no_such_algorithm_is_named(fake) -> None:
    with pytest.raises(Unavailable, match="nothing here for absent"):
        built(fake, "absent")


def result(program: str, seeds: int, *rates: float, flops: float) -> Result:
    found = Result("td3_bc", program, seeds, rates=list(rates), memory=350_400_000)
    found.counts = {"flops": flops, "launches": 79.5, "waits": 0.0}
    return found


def report() -> tables.Report:
    machine = {"cpu": "CPU", "gpu": None, "cores": 2, "memory": 2**34, "system": "Linux"}
    machine |= {"python": "3.11", "torch": "2.13.0", "peaks": {"oneDNN": 2.5e11}, "peak": 2.5e11}
    found = tables.Report(machine, Settings(), "bench perf", "abc", "2026-01-01")
    fast = result("engine", 1, 100.0, 110.0, 90.0, flops=5e8)
    fast.without_metrics = {"launches": 78.0}
    found.results = [
        fast,
        result("engine, 4 seeds", 4, 200.0, 200.0, 200.0, flops=2e9),
        result("bare", 1, 50.0, 44.0, 60.0, flops=4e8),
        Result("td3_bc", "torchrl", 1, missing="pip: no | wheel"),
    ]
    return found


def test_numbers_of_a_table() -> None:
    rows = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in tables.table(report().results, 2.5e11)
    ]
    engine_, four, bare_, torchrl = rows[2:]
    assert engine_ == [
        "engine",
        "100 [90.0, 110]",
        "–",
        "500",
        "20%",
        "79.5 (78 without metrics)",
        "350",
    ]
    assert four == ["engine, 4 seeds", "200 [200, 200]", "–", "500", "40%", "79.5", "350"]
    # 100/50, 110/44, 90/60, round by round
    assert bare_ == ["bare", "50.0 [44.0, 60.0]", "2.00 [1.50, 2.50]", "400", "8%", "79.5", "350"]
    assert torchrl[0] == "torchrl" and torchrl[1] == "not measured: pip: no \\"


def test_an_overview_has_a_row_per_algorithm() -> None:
    found = report().results
    found += [Result("iql", "engine", 1, missing="no"), Result("iql", "bare", 1, rates=[1.0])]
    assert tables.overview(found, 2.5e11) == [
        "| algorithm | steps/s | of the peak | ÷ bare | ÷ torchrl |",
        "|---|---|---|---|---|",
        "| td3_bc | 100 | 20% | 2.00 | – |",
    ]


def test_page_and_json_say_the_same(tmp_path: Path) -> None:
    page, found = tmp_path / "perf.md", report()
    found.full_runs = [
        {"algorithm": "td3_bc", "dataset": "a", "seconds": 3725.2, "missing": None},
        {"algorithm": "sac", "dataset": "b", "seconds": 1.0, "missing": "trains online"},
    ]
    found.write(page)
    text, data = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    assert "Not measured here: a GPU's 1, 8 and 64 seeds" in text
    assert max(len(line) for line in text.splitlines() if line[:1].isalpha()) <= 110
    assert (
        "## td3_bc" in text
        and "250 GFLOP/s oneDNN" in text
        and "3 rounds of 2 s." in " ".join(text.split())
    )
    assert "| td3_bc | a | 1:02:05 h |" in text
    assert "| sac | b | not measured: trains online |" in text
    assert data["results"][2]["rates"] == [50.0, 44.0, 60.0]
    assert data["results"][3]["missing"] == "pip: no | wheel"
    assert data["settings"]["rounds"] == 3


def test_one_seed_per_process_where_a_library_trains_one() -> None:
    with pytest.raises(Unavailable, match="one seed"):
        Work("bc", seeds=2).only_one_seed()


def test_failed_installation_gives_pips_reason(tmp_path: Path, monkeypatch, capsys) -> None:
    def create(folder: Path, **_: bool) -> None:
        python = python_of(folder)
        python.parent.mkdir(parents=True)
        python.write_text(
            "#!/bin/sh\necho ERROR: no wheel for x >&2\necho hint >&2\nexit ${STATUS:-1}\n"
        )
        python.chmod(0o755)

    monkeypatch.setattr("venv.create", create)
    wanted = tmp_path / "x.txt"
    wanted.write_text("x==1\n")
    with pytest.raises(NotInstalled, match=r"^no wheel for x$"):
        build(tmp_path / "one", wanted)
    assert not is_built(tmp_path / "one", wanted)
    monkeypatch.setenv("STATUS", "0")
    assert build(tmp_path / "two", wanted) == python_of(tmp_path / "two")
    assert is_built(tmp_path / "two", wanted)
    wanted.write_text("x==2\n")
    assert not is_built(tmp_path / "two", wanted)
    assert "building two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--algo", "td3bc"], "unknown algorithm 'td3bc': did you mean td3_bc"),
        (["--rivals", "corl"], "--rivals corl: choose all, none, or some of bare, torchrl, d3rlpy"),
        (["--rivals", "none", "bare"], "--rivals none: choose"),
        (["--full-run", "ppoo"], "unknown algorithm 'ppoo': did you mean ppo"),
        (["--rows", "1500"], "--rows 1500: write a multiple of 1000"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: cannot be written"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path: Path, words: list[str], reason: str) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path)]
    assert main(["perf", "--device", "cpu", *words, *out]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {reason}")


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--seconds", "-1"], ["--seconds", "inf"], ["--seeds", "x"]]
)
def test_numbers_out_of_range_are_refused(capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["perf", *words])
    assert "is not a positive" in capsys.readouterr().err


def test_rivals_by_name() -> None:
    assert chosen_rivals(["all"]) == list(RIVALS) and chosen_rivals(["none"]) == []
    assert [r.name for r in chosen_rivals(["d3rlpy", "bare"])] == ["bare", "d3rlpy"]
    with pytest.raises(ConfigError):
        chosen_rivals(["all", "bare"])


def test_machine_as_a_file_name() -> None:
    assert slug({"gpu": None, "cpu": "Intel(R) Xeon(R) @ 2.5GHz"}) == "intel-xeon-2-5ghz"
    assert slug({"gpu": "NVIDIA H200", "cpu": "x"}) == "nvidia-h200"


@pytest.mark.slow
def test_a_measurement_from_the_command_line(tmp_path: Path, capsys) -> None:
    page = tmp_path / "perf.md"
    words = ["perf", "--algo", "bc", "--rivals", "bare", "--rounds", "2", "--seconds", "0.2"]
    assert main([*words, "--rows", "2000", "--device", "cpu", "--out", str(page)]) == 0
    data = json.loads(page.with_suffix(".json").read_text())
    ours, theirs = data["results"]
    assert ours["counts"]["flops"] == theirs["counts"]["flops"]
    assert ours["counts"]["flops"] / 1e6 == pytest.approx(EXPECTED["bc"], rel=1e-5)
    assert len(ours["rates"]) == len(theirs["rates"]) == 2 and data["machine"]["peak"] > 1e9
    assert page.read_text() == capsys.readouterr().out


@pytest.mark.slow
def test_a_whole_run_is_timed_or_says_why_not() -> None:
    short = ["--steps", "20", "--eval-interval", "20", "--eval-episodes", "1"]
    done = full_run("bc", "cpu", short)
    assert done["missing"] is None and done["seconds"] > 1
    assert "'x' is not a positive" in full_run("bc", "cpu", ["--steps", "x"])["missing"]
