"""Tables in four formats: exact text for a small case, and names that try to break out."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.report import compare, tables
from bench.report.aggregate import Summary, summarise
from bench.report.collect import collect
from bench.report.notes import QUICK
from tests.bench.report_runs import make_run

HOSTILE = "a|b`c*d_e<script>alert(1)</script>&amp;$x^2${}\\%#~\"'"


@pytest.fixture
def small(tmp_path: Path) -> Summary:
    for seed, final in enumerate((48.0, 50.0, 52.0)):
        make_run(tmp_path, "td3_bc", "a_b/c", seed, finals=final)
    make_run(tmp_path, "iql", "a_b/c", 0, finals=-0.01)
    make_run(tmp_path, "iql", "a_b/c", 1, finals=9.0, state="diverged")
    for seed, final in enumerate((20.0, 24.0)):
        make_run(tmp_path, "bc", "a_b/c", seed, finals=final)
    make_run(tmp_path, "iql", "d", 0, finals=-3.0, unit="return")
    return summarise(collect(tmp_path))


def test_markdown_is_exactly_this(small):
    lines = tables.markdown(small).splitlines()
    assert lines[:6] == [
        "| algorithm | a\\_b/c<br>normalized score | d<br>return |",
        "| --- | ---: | ---: |",
        "| BC | 22.0 [20.0, 24.0]<br>n=2, rank 2 of 2, 1 without a rank |  |",
        "| IQL | 0.0<br>1/2 seeds: 1 diverged, n=1, no interval, survivors only: no rank | "
        "−30.0<br>n=1, no interval, rank 1 of 1 |",
        "| TD3+BC | **50.0 ± 5.0**<br>n=3, rank 1 of 2, 1 without a rank |  |",
        "| *dataset (mean return of its behaviour)* | 46.0 | 460.0 |",
    ]
    said = lines[7]
    assert "mean ± 95 % interval (Student's t) from three seeds on" in said
    assert "mean and \\[lowest, highest\\] for two" in said and "Welch's t-test" in said
    assert "- 1 of 8 runs are not finished and in no mean: 1 diverged" in lines


def test_latex_is_exactly_this(small):
    lines = tables.latex(small).splitlines()
    start = lines.index(r"\toprule")
    assert lines[start - 1 : start + 9] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"Algorithm & a\_b/c & d \\",
        r" & {\scriptsize normalized score} & {\scriptsize return} \\",
        r"\midrule",
        r"BC & 22.0 [20.0, 24.0] {\scriptsize (n=2, rank 2 of 2, 1 without a rank)} &  \\",
        r"IQL & 0.0 {\scriptsize (1/2 seeds: 1 diverged, n=1, no interval, "
        r"survivors only: no rank)} & $-$30.0 {\scriptsize (n=1, no interval, rank 1 of 1)} \\",
        r"TD3+BC & \textbf{50.0 $\pm$ 5.0} {\scriptsize (n=3, rank 1 of 2, 1 without a rank)} "
        r"&  \\",
        r"\midrule",
        r"\emph{dataset (mean return of its behaviour)} & 46.0 & 460.0 \\",
    ]


def test_the_terminal_shows_the_best_first(small):
    text = tables.plain(small)
    assert text.splitlines()[2:7] == [
        "a_b/c (normalized score)",
        "  TD3+BC   50.0 ± 5.0        * n=3, rank 1 of 2, 1 without a rank, 10k steps",
        "  BC       22.0 [20.0, 24.0]   n=2, rank 2 of 2, 1 without a rank, 10k steps",
        "  IQL      0.0                 1/2 seeds: 1 diverged, n=1, no interval, "
        "survivors only: no rank, 10k steps",
        "  dataset  46.0",
    ]
    assert "note: 1 of 8 runs are not finished" in text


def test_table_csv_holds_the_numbers(small):
    rows = list(csv.DictReader(io.StringIO(tables.table_frame(small).to_csv(index=False))))
    td3 = next(row for row in rows if row["row"] == "TD3+BC")
    assert float(td3["mean"]) == pytest.approx(50) and float(td3["sd"]) == pytest.approx(2)
    assert float(td3["ci95_low"]) == pytest.approx(50 - 4.9683, abs=1e-4)
    assert (td3["n"], td3["seeds"], td3["rank"], td3["bold"]) == ("3", "3", "1", "True")
    assert (td3["reference_random"], td3["reference_expert"]) == ("0.0", "1000.0")
    bc = next(row for row in rows if row["row"] == "BC")
    assert (bc["ci95_low"], bc["ci95_high"]) == ("", "")  # two seeds have a range only
    assert (float(bc["lowest"]), float(bc["highest"])) == (pytest.approx(20), pytest.approx(24))
    iql = next(row for row in rows if row["row"] == "IQL" and row["dataset"] == "a_b/c")
    assert (iql["n"], iql["seeds"], iql["unfinished"], iql["ci95_low"]) == (
        "1",
        "2",
        "1 diverged",
        "",
    )
    reference = {r["dataset"]: r["mean"] for r in rows if r["row"] == "dataset"}
    assert reference == {"a_b/c": "46.0", "d": "460.0"}


def test_scores_csv_has_the_documented_columns_and_one_row_per_run(small, tmp_path):
    compare(tmp_path, echo=False)
    text = (tmp_path / "compare" / "scores.csv").read_text()
    header, *rows = text.splitlines()
    assert header == (
        "algorithm,config,dataset,env,seed,steps,profile,unit,final,last10,best,state"
    )
    assert len(rows) == 8
    diverged = next(row for row in csv.DictReader(io.StringIO(text)) if row["state"] == "diverged")
    assert float(diverged["final"]) == pytest.approx(9.0) and diverged["steps"] == "10000"
    assert len(re.findall(r"\btd3_bc,[0-9a-f]{12},a_b/c,Hopper-v5,[012],10000,paper", text)) == 3


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(-0.04, 1, "0.0"), (-0.05001, 1, "−0.1"), (1234.56, 1, "1234.6"), (None, 1, "–"),
     (float("nan"), 1, "–"), (float("inf"), 1, "–")],
)  # fmt: skip
def test_numbers(value, decimals, text):
    assert tables.number(value, decimals) == text


# -- names from outside --------------------------------------------------------------------------


def test_markdown_escapes():
    escaped = tables.escape_markdown("a|b `c` *d* <img src=x> [l](u) e_f\n# g & \\ $x$ ~~s~~")
    assert escaped == (
        "a\\|b \\`c\\` \\*d\\* &lt;img src=x&gt; \\[l\\](u) e\\_f \\# g &amp; "
        "\\\\ \\$x\\$ \\~\\~s\\~\\~"
    )


def test_latex_escapes_every_special_character():
    assert tables.escape_latex("\\input{/etc/passwd}") == (r"\textbackslash{}input\{/etc/passwd\}")
    assert tables.escape_latex('50%_a & b#c $x^2$ ~ <>|"\x00\n') == (
        r"50\%\_a \& b\#c \$x\textasciicircum{}2\$ \textasciitilde{} "
        r"\textless{}\textgreater{}\textbar{}\textquotedbl{} "
    )


def hostile_run(out: Path) -> None:
    """Every name that a file brings along, hostile at once."""
    make_run(out, "td3_bc", "we|ird <b>&_%$/x#v0", label=HOSTILE, profile="<i>|p_1", seed=0,
             hyper={"a": 1})  # fmt: skip
    make_run(out, "td3_bc", "we|ird <b>&_%$/x#v0", label=HOSTILE, profile="quick", seed=1,
             hyper={"a": 1}, state="diverged").set_status("diverged", reason="<u>|nan")  # fmt: skip


def test_hostile_names_stay_inside_their_markdown_cell(tmp_path):
    hostile_run(tmp_path)
    text = tables.markdown(summarise(collect(tmp_path)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}
    assert re.findall(r"<(?!br>)", text) == []


def test_a_hostile_state_stays_inside_its_cell(tmp_path):
    path = make_run(tmp_path, state="running").path / "status.json"
    path.write_text(path.read_text().replace('"running"', '"<u>|x_{}"'))
    table = summarise(collect(tmp_path))
    lines = [line for line in tables.markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "<u>" not in tables.markdown(table)
    assert r"1 \textless{}u\textgreater{}\textbar{}x\_\{\}" in tables.latex(table)


def test_hostile_names_leave_latex_balanced(tmp_path):
    hostile_run(tmp_path)
    text = tables.latex(summarise(collect(tmp_path)))
    bare = re.sub(r"\\[{}%&$#_\\]", "", text)
    assert bare.count("{") == bare.count("}")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    make_run(tmp_path, label="\x1b[2Jred\x07")
    assert "\x1b" not in tables.plain(summarise(collect(tmp_path)))


@pytest.mark.system
def test_latex_compiles_with_hostile_names(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    hostile_run(tmp_path)
    table = tables.latex(summarise(collect(tmp_path)))
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}"
        f"\\begin{{document}}{table}\\end{{document}}"
    )
    command = ["pdflatex", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


# -- the quick profile ---------------------------------------------------------------------------


def test_quick_results_say_so_in_every_output(tmp_path, capsys):
    make_run(tmp_path, profile="quick")
    target = compare(tmp_path)
    said = capsys.readouterr().out
    assert QUICK == "quick profile: not the paper's protocol"
    texts = {name: (target / name).read_text() for name in ("table.md", "table.tex", "table.csv")}
    for name, text in {**texts, "terminal": said}.items():
        assert QUICK[1:] in text, name
    assert ",quick," in (target / "scores.csv").read_text()
    page = (target / "report.html").read_text()
    assert '<p class="banner" role="note">Quick profile: not the paper&#x27;s protocol</p>' in page
    for svg in (target / "plots").glob("*.svg"):
        assert QUICK in svg.read_text()  # matplotlib keeps the words as a comment


def test_paper_results_do_not(tmp_path, capsys):
    make_run(tmp_path)
    target = compare(tmp_path)
    assert QUICK not in capsys.readouterr().out
    for name in ("table.md", "table.tex", "table.csv", "report.html"):
        assert "quick" not in (target / name).read_text().lower(), name
