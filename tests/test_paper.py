"""Results for a paper: tables that LaTeX sets on a page, results in words, and figures that have not changed."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fake_runs import everybody, make, saying
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from mllmu_nb.data.schema import Profile
from mllmu_nb.reporting import figures, plots, report, tables
from mllmu_nb.reporting.runs import Scores
from mllmu_nb.reporting.sheet import latex_text

PICTURES = Path(__file__).with_name("pictures")
NEW = "MLLMU_NB_NEW_PICTURES"  # if set, the pictures are written anew instead of compared; look at them before a commit
NEEDED = "MLLMU_NB_NEEDS_LATEX"  # set by .ci/run: without a LaTeX engine tests fail instead of being skipped
ALIKE = 2.0  # root mean square over pixels from 0 to 255
FEW = {"asked": {"classification": 2, "generation": 1, "cloze": 1}, "people": 20, "famous": 3}


@pytest.fixture(scope="module")
def known() -> Scores:
    """Every model on two forget sets; NPO on image and text gives everybody the same answer."""
    runs = everybody(draws=range(2), **FEW)
    npo = ("npo", "canonical", "multimodal", "")
    return Scores.of([saying(run, "The The The", task="generation") if run.model == npo else run for run in runs])


# -- LaTeX ------------------------------------------------------------------------------------------------------


def typeset(folder: Path, body: str) -> str:
    """Set ``body`` and return the engine's log; the PDF, not compressed, is ``folder``/paper.pdf."""
    engine = shutil.which("pdflatex")
    if engine is None and os.environ.get(NEEDED):
        pytest.fail(f"{NEEDED} is set and there is no pdflatex: on Debian, apt install texlive-latex-recommended")
    if engine is None:
        pytest.skip("no pdflatex here: whether LaTeX sets the tables is not tested")
    lines = [r"\documentclass[10pt,letterpaper]{article}", r"\usepackage[margin=1in]{geometry}"]
    lines += [r"\usepackage{booktabs,rotating}", r"\pdfcompresslevel=0 \pdfobjcompresslevel=0 "]
    lines += [r"\begin{document}", body, r"\end{document}"]
    (folder / "paper.tex").write_text("\n".join(lines), encoding="utf-8")
    # by default, lines of a log are broken at 79 characters
    environment = os.environ | {"max_print_line": "1000"}
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)
    log = (folder / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, [line for line in log.splitlines() if line.startswith("!")]
    return log


def too_large(log: str) -> list[str]:
    return re.findall(r"Overfull \\hbox.*|.*Float too large.*", log)


def smallest(folder: Path) -> int:
    """Return the smallest font size of the text, in points."""
    fonts = re.findall(rb"/BaseFont\s*/[A-Z]{6}\+([A-Z]+)(\d+)", (folder / "paper.pdf").read_bytes())
    assert b"CMR" in {name for name, _ in fonts}
    return min(int(size) for _, size in fonts)


@pytest.fixture(scope="module")
def written(known, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    tables.write_tables(known, folder, "here")
    report.write_results(known, folder, "here")
    return folder


def test_the_check_of_what_is_too_large_can_fail(tmp_path):
    wide = r"{\tiny small}\rule{9in}{1pt}" + "\n\n" + r"\begin{table}[t]\rule{1pt}{12in}\end{table}"
    assert len(too_large(typeset(tmp_path, wide))) >= 2 and smallest(tmp_path) == 5


def test_the_tables_of_the_main_text_fit_a_page_in_eight_points(written):
    """Nothing reaches beyond the margins, and no letter is smaller than 8 pt."""
    assert too_large(typeset(written, r"\input{table2_paper}\clearpage\input{table2_compact}")) == []
    assert smallest(written) >= 8


def test_the_appendix_sets_every_table_in_eight_points(written):
    log = typeset(written, r"\newcommand{\tables}{.}\input{appendix}")
    read = {name for name in tables.TABLES if f"({name}.tex" in log or f"./{name}.tex" in log}
    assert read == set(tables.TABLES) - {"table2_paper", "table2_compact"}
    assert too_large(log) == [] and smallest(written) >= 8


def test_characters_that_latex_lacks_do_not_stop_it(tmp_path):
    everything = "".join(map(chr, [*range(0x20, 0x250), *range(0x370, 0x400), *range(0x2000, 0x2300), 0x6A21, 0x1F600]))
    sheet = tables.Sheet(everything, "t", "Row", [("", "θ₀")], [("α", [("λ = ½", [("μ ± 1", "")])])], [everything])
    paragraph = latex_text(everything)
    typeset(tmp_path, f"{sheet.latex()}\n\n{paragraph}")
    assert latex_text("θ₀ Łódź, Çelik ≈ ½ ąđ 模") == r"$\theta$0 Łódź, Çelik $\approx$ 1/2 a? ?"


def test_the_paragraph_compiles(written):
    assert too_large(typeset(written, r"\input{results}")) == []


def test_what_the_main_text_leaves_out_is_in_the_appendix(written):
    lines = (written / "appendix.tex").read_text().splitlines()
    assert [re.search(r"/(\w+)}", line)[1] for line in lines if line.startswith(r"\input")] == [
        name for name in tables.TABLES if name not in ("table2_paper", "table2_compact")
    ]


# -- the layout of the paper's table ----------------------------------------------------------------------------


def by_hand() -> list:
    """Vanilla knows all, the oracle nothing about forget people. Of two questions GA has forgotten none, KL Min. one,
    Grad. Diff. and NPO both. NPO gives everybody the same answer; KL Min. knows half about the others."""

    def run(method: str, gone: tuple[int, ...], kept: tuple[int, ...] = (0, 1), **more):
        forgotten = ("forget", "test")
        right = lambda q: q.number not in gone if q.set in forgotten else q.number in kept  # noqa: E731
        trained = {} if method in ("vanilla", "oracle") else {"modality": "multimodal"}
        return make(
            method, right, **trained, **{**FEW, "asked": {"classification": 2, "generation": 2, "cloze": 2}, **more}
        )

    runs = [run("vanilla", ()), run("oracle", (0, 1)), run("ga", ()), run("kl_min", (0,), (0,))]
    runs += [run("grad_diff", (0, 1)), saying(run("npo", (0, 1)), "The The The", task="generation")]
    return runs + [
        run("vanilla", (), forget_ratio=5),
        run("ga", (), forget_ratio=5),
        run("kl_min", (0,), (0,), forget_ratio=5),
    ]


@pytest.fixture(scope="module")
def paper() -> tables.Sheet:
    [sheet] = tables.sheets("table2_paper", Scores.of(by_hand()))
    return sheet


def test_the_papers_table_is_one_with_a_block_for_each_base_and_ratio(paper):
    assert [heading for heading, _ in paper.blocks] == [
        "LLaVA, forget 5 %. Unlearned on image + text", "LLaVA, forget 10 %. Unlearned on image + text"
    ]  # fmt: skip
    measures = ["Letter %", "ROUGE-L", "Factuality", "Cloze %"]
    goals = {"Forget": "→", "Test": "→", "Retain": "↑", "Celebrity": "↑"}
    assert paper.columns == [(name, f"{one} {goal}") for name, goal in goals.items() for one in measures]
    rows = ["Vanilla", "GA", "Grad. Diff.", "KL Min.", "NPO", "Prompting", "Oracle"]
    assert [name.replace(" ‡", "") for name, _ in paper.blocks[1][1]] == rows
    assert set(paper.frame["forget_ratio"]) == {5, 10} and paper.title.endswith(
        "layout of the paper's Table 2, views pooled"
    )


def test_the_best_are_marked_and_who_has_collapsed_is_not(paper):
    """On letters about forget people, Grad. Diff. and NPO equal the oracle, but NPO has collapsed. About the others,
    Grad. Diff. and GA know all, KL Min. half."""
    block = {name: [mark for _, mark in cells] for name, cells in paper.blocks[1][1]}
    letter = {name: (marks[0], marks[8]) for name, marks in block.items()}
    assert letter["Grad. Diff."] == ("best", "best") and letter["KL Min."] == ("second best", "second best")
    assert letter["GA"] == ("", "best") and letter["NPO ‡"] == letter["Vanilla"] == letter["Oracle"] == ("", "")
    line = next(line for line in paper.markdown().split("forget 10 %")[1].splitlines() if line.startswith("| KL Min."))
    assert line.split(" | ")[1].startswith(r"<u>50</u> \[")
    assert r"\textbf{0}" in paper.latex() and r"\underline{50}" in paper.latex()


def test_behind_a_closed_gate_and_without_an_oracle_nothing_to_be_forgotten_is_marked(paper):
    five = {name: cells for name, cells in paper.blocks[0][1]}
    assert [mark for text, mark in five["GA"][:8]] == [""] * 8 and five["GA"][8][1] == "best", "no oracle at 5 %"
    runs = [make(name, lambda q: True, modality="multimodal", **FEW) for name in ("ga", "npo")]
    runs += [make(name, lambda q: True, **FEW) for name in ("vanilla", "oracle")]
    [closed] = tables.sheets("table2_paper", Scores.of(runs))
    cells = dict(closed.blocks[0][1])["GA"]
    assert all(text.startswith("(") and not mark for text, mark in cells[:8]) and cells[8][1] == "best"
    [alone] = tables.sheets("table2_paper", Scores.of([runs[0], *runs[2:]]))
    assert not any(mark for text, mark in dict(alone.blocks[0][1])["GA"] if text), "nobody to be better than"


def test_a_table_that_is_too_wide_is_several_with_the_columns_under_one_heading_together():
    columns = [(f"set {number // 4}", f"score {number}") for number in range(24)]
    cells = [(f"{number}.0 [0.5, 2.0]", "" if number else "a reason") for number in range(24)]
    latex = tables.Sheet("T", "t", "Row", columns, [("", [("one", cells)])]).latex()
    pages = latex.split(r"\begin{sidewaystable*}")[1:]
    assert len(pages) == 2 and latex.count(r"\label{") == 1 and r"\resizebox" not in latex
    assert [re.findall(r"set \d", page) for page in pages] == [["set 0", "set 1", "set 2"], ["set 3", "set 4", "set 5"]]
    assert all(f"{number}.0\\" in latex for number in range(24)), "every column is somewhere"


def test_a_table_that_is_too_long_goes_on_over_the_page():
    rows = [(f"row {number}", [("1.0 [0.5, 2.0]", "")]) for number in range(60)]
    sheet = tables.Sheet("T", "t", "Row", [("", "a")], [("first", rows[:40]), ("second", rows[40:])])
    latex = sheet.latex()
    assert latex.count(r"\begin{table*}") == 2 and latex.count(r"\caption{T (continued)}") == 1
    assert latex.count(r"\label{") == 1 and all(f"{name} &" in latex for name, _ in rows)


# -- results in words -------------------------------------------------------------------------------------------


def test_every_number_of_the_paragraph_is_a_cell_and_names_its_runs(known, written):
    [(_, group)] = known.groups
    numbers = [part for part in report.paragraph(group) if isinstance(part, report.Number)]
    cell = known.cells.query("method == 'vanilla' and against == '' and set == 'forget' and view == 'both'")
    [cell] = cell.query("scoring == 'likelihood' and metric == 'accuracy'").to_dict("records")
    value, low, high = (f"{100 * cell[name]:.0f}" for name in ("value", "low", "high"))
    assert numbers[0].text == f"{value} % [{low}, {high}]" and numbers[0].row.startswith("table2_main.csv, vanilla")
    kept = group.kept.query("closed_in == 'trained' and what == 'kept' and place == 0.5 and modality == 'unimodal'")
    best = kept.loc[kept["value"].astype(float).idxmax()]
    [said] = [one for one in numbers if one.row == f"table_path.csv, {best['method']} unimodal trained kept 0.5"]
    assert said.text.startswith(f"{100 * best['value']:.0f} % [")
    assert said.runs == [
        run.id for run in group.runs if (run["method"], run["modality"]) == (best["method"], "unimodal")
    ]
    free = group.kept.query("closed_in == 'trained' and what == 'free' and place == 0.5 and modality == 'unimodal'")
    [free] = free[free["method"] == best["method"]]["value"]
    [said] = [one for one in numbers if one.row == f"table_path.csv, {best['method']} unimodal trained free 0.5"]
    assert said.text.startswith(f"{100 * free:.0f} %")
    text = (written / "results.md").read_text()
    assert "NPO (image + text) 2 of 2[^" in text and "GA (image + text) " not in text
    assert len(re.findall(r"\[\^\d+\](?!:)", text)) == len(re.findall(r"\n\[\^\d+\]:", text)) == len(numbers)
    linked = {run for one in numbers for run in one.runs}
    assert set(re.findall(r"\(\.\./runs/([^)]+)\)", text)) == linked <= {run.id for run in known.runs}
    assert (written / "results.tex").read_text().count(r"\footnote{") == len(numbers)


def test_the_paragraph_names_the_setting_that_keeps_most():
    runs = [make("vanilla", **FEW), make("oracle", **FEW)]
    # number of right answers among two questions about people to be kept
    for method, rate, right in (("ga", 0.001, 1), ("kl_min", 0.001, 0), ("kl_min", 0.004, 2)):
        knows = lambda q, right=right: q.set != "forget" and q.number < right  # noqa: E731
        runs.append(make(method, knows, modality="multimodal", unlearn_lr=rate, **FEW))
    [(_, group)] = Scores.of(runs).groups
    said = "".join(part if isinstance(part, str) else part.text for part in report.paragraph(group))
    assert "is closed, GA, unlearn_lr 0.001 still" in said and "KL Min., unlearn_lr 0.004 in" in said


def test_without_an_oracle_the_paragraph_claims_nothing():
    runs = [make("vanilla", **FEW), make("ga", modality="multimodal", **FEW)]
    [(_, group)] = Scores.of(runs).groups
    assert not any(isinstance(part, report.Number) for part in report.paragraph(group))


# -- figures ----------------------------------------------------------------------------------------------------


def person(number: int) -> Profile:
    """Return a person of the made-up runs, with a portrait in two colours."""
    shades = np.full((64, 64, 3), 90 + 8 * number, np.uint8)
    shades[16:48, 16:48] = (200, 120, 12 * number)
    file = io.BytesIO()
    PIL.Image.fromarray(shades).save(file, "PNG")
    known = {"name": f"Amina {number:03d}", "profession": "pilot", "residence": "Oslo, Norway"}
    return Profile(
        f"{number:03d}", known["name"], "fictitious", known, file.getvalue(), "", (), (), (file.getvalue(),) * 4
    )


@plots.styled
def small(figure: Figure) -> PIL.Image.Image:
    """Return a figure as a picture of a few kB."""
    file = io.BytesIO()
    plots.settle(figure)
    figure.savefig(file, format="png", dpi=72)
    return PIL.Image.open(file).convert("RGB").quantize(128, dither=PIL.Image.Dither.NONE)


@pytest.mark.parametrize("name", ["path", "oracle_gap", "forgetting_utility", "before_after", "profiles"])
def test_a_figure_looks_as_it_did(known, name, tmp_path):
    """The README's figures and those that represent the paper's, from made-up answers; NEW writes them anew."""
    [(_, group)] = known.groups
    people = [person(number) for number in range(1, 21)]
    if name == "profiles":
        made = figures.profile_sheet(people[:2])
    else:
        draw = figures.FIGURES.get(name)
        made = draw(group, people)
    expected = PICTURES / f"{name}.png"
    drawn = expected if os.environ.get(NEW) else tmp_path / expected.name
    drawn.parent.mkdir(exist_ok=True)
    small(made).save(drawn, optimize=True)
    assert compare_images(str(expected), str(drawn), tol=ALIKE) is None
