"""All committed results belong to one reference: the same people, base and vanilla in every run, table, figure, study
and notebook."""

import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import PIL.Image
import pytest
from fake_runs import make, write
from matplotlib.figure import Figure

import readme
from mllmu_nb import paths
from mllmu_nb.config import Config
from mllmu_nb.reporting import card, grid, plots, report
from mllmu_nb.reporting.beside import Beside
from mllmu_nb.reporting.grid import number_text
from mllmu_nb.reporting.runs import Scores, items_of, made_of, read_run
from mllmu_nb.scoring import health, path
from mllmu_nb.scoring.frames import MODEL, of_metric
from mllmu_nb.stages import RECORD, read_json, write_json

FIGURES = paths.checkout() / "figures" / "reference"
MARK = re.compile(r"people [\w-]+(?: and [\w-]+)*, base \w+(?: and \w+)*, vanilla \w+(?: and \w+)*")
FIRST = Config().base_model  # base of the studies
RUN = re.compile(r"^run ([a-z_]+-[a-z]+-(?:\w+-)?[0-9a-f]{8}), scale", re.MULTILINE)


def problems(results: Path, figures: Path, notebooks: Path) -> list[str]:
    """Return what does not belong to the reference with runs in ``results``; empty if all is well."""
    records = {file.parent.name: read_json(file) for file in sorted(paths.runs(results).glob(f"*/{RECORD}"))}
    mark, found = made_of(records.values()), []
    for family in sorted({record["parameters"]["base_model"] for record in records.values()}):
        own = made_of(record for record in records.values() if record["parameters"]["base_model"] == family)
        found += [f"the runs of {family} are of several references: {own}"] if " and " in own else []
    people = {record["data_hash"] for record in records.values()}
    stray = {file.stem.removesuffix("-facts") for file in paths.people(results).glob("*.parquet")} ^ people
    found += [f"people {name} have a table and no run, or runs and no table" for name in sorted(stray)]
    for file in sorted(paths.runs(results / "without_exams").glob(f"*/{RECORD}")):
        record, bases = read_json(file), {one["base_hash"] for one in records.values()}
        if record["parameters"]["exams"] or record["data_hash"] not in people or record["base_hash"] not in bases:
            found.append(f"{file.parent.name} is not the reference's vanilla without exams")
    first = made_of(one for one in records.values() if one["parameters"]["base_model"] == FIRST)
    for file in sorted((results / "studies").glob(f"*/runs/*/{RECORD}")):
        if (theirs := made_of([read_json(file)])) != first:
            found.append(f"the study {file.parents[2].name} is of {theirs}, the runs of {first}")
    for file in [*sorted((results / "tables").glob("*.md")), figures / "captions.md"]:
        theirs = MARK.findall(file.read_text(encoding="utf-8").split("\n")[0])
        found += [] if theirs == [mark] else [f"{file.name} is of {' '.join(theirs) or 'nobody knows what'}"]
    for file in sorted(one for one in figures.iterdir() if one.suffix in (".png", ".pdf")):
        theirs = MARK.findall(source(file))
        found += [] if theirs == [mark] else [f"{file.name} is of {' '.join(theirs) or 'nobody knows what'}"]
    for file in sorted(notebooks.glob("*.ipynb")):
        shown = {run for text in outputs(file) for run in RUN.findall(text) if not run.startswith("yours-")}
        found += [f"{file.name} shows the run {run}, which is not there" for run in sorted(shown - set(records))]
        marks = {theirs for text in outputs(file) for theirs in MARK.findall(text)}
        found += [f"{file.name} is of {theirs}" for theirs in sorted(marks - {mark, first})]
        if (shown_results(file) or reads_a_study(file)) and not marks:
            found.append(f"{file.name} shows results of nobody knows what")
        if "paths.reference()" in file.read_text(encoding="utf-8"):
            found.append(f"{file.name} does not say what the reference is made of: use show.reference()")
    return found


def source(picture: Path) -> str:
    """What a picture says that it was drawn from."""
    if picture.suffix == ".png":
        return PIL.Image.open(picture).info.get("Source", "")
    return b"".join(re.findall(rb"/Subject \((.*)\)", picture.read_bytes())).decode("latin-1")


def shown_results(notebook: Path) -> bool:
    """Whether a notebook shows results that come with the kit."""
    return any("the committed reference run: " in text for text in outputs(notebook))


def outputs(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    made = [output for cell in cells for output in cell.get("outputs", [])]
    return ["".join(output.get("text", [])) for output in made]


def reads_a_study(notebook: Path) -> bool:
    """Whether a notebook shows a study that comes with the kit."""
    return "studies.read(" in notebook.read_text(encoding="utf-8")


def test_all_that_is_committed_is_of_one_reference():
    assert not problems(paths.reference(), FIGURES, paths.notebooks())


def test_tables_of_benchmarks_were_measured_on_models_of_the_reference():
    """Where they measure again what the reference run has, the numbers are its own."""
    few = pd.read_csv(paths.checkout() / "benchmarks" / "path_points.csv").query("what == 'kept'")
    stored = pd.read_csv(paths.reference() / "tables" / "table_path.csv", dtype={"place": str})
    where = (
        "base_model == 'llava' and forget_ratio == 10 and place == '0.5' and what == 'kept' and closed_in == 'trained'"
    )
    stored = stored.query(where).set_index(["method", "variant", "modality"])["replicates"]
    assert len(few) == 4
    for row in few.itertuples():
        theirs = stored[row.method, row.variant, row.modality].split()[: row.few_n_replicates]
        assert row.few_value == pytest.approx(sum(map(float, theirs)) / row.few_n_replicates, abs=1e-4)
    asked = pd.read_csv(paths.checkout() / "benchmarks" / "shots.csv").set_index(["task", "set", "view"]).sort_index()
    vanillas = [Config(method="vanilla", replicate=number) for number in range(asked["n_replicates"].max())]
    items = items_of([read_run(paths.runs(paths.reference()) / config.run_id) for config in vanillas], [])
    for task, key in {"letter": ("classification", "letter"), "blank": ("cloze", "")}.items():
        right = of_metric(items, *key).groupby(["set", "view"], observed=True)["correct"].mean()
        assert right.to_dict() == pytest.approx(asked.loc[task, "default"].to_dict(), abs=1e-4)


@pytest.mark.slow
def test_tables_and_readme_are_what_the_code_makes_of_the_committed_runs(tmp_path, monkeypatch):
    """Compares all but the figures, whose pictures depend on the fonts' renderer."""
    committed, made = paths.reference(), tmp_path / "results" / "reference"
    made.mkdir(parents=True)
    for name in ("runs", "people", "studies"):
        (made / name).symlink_to(committed / name)
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    monkeypatch.setattr(report.figures, "write_all", lambda *given: [])
    report.write_all("reference")
    names = [file.name for file in sorted((committed / "tables").iterdir())]
    assert names == [file.name for file in sorted((made / "tables").iterdir())] and len(names) > 50
    for name in names:
        texts = [(folder / "tables" / name).read_text(encoding="utf-8") for folder in (made, committed)]
        if name.endswith(".csv"):  # the last digits may differ between versions of numpy
            pd.testing.assert_frame_equal(*(pd.read_csv(io.StringIO(text)) for text in texts), rtol=1e-9)
        else:
            assert texts[0] == texts[1], name
    text, scores = (paths.checkout() / "README.md").read_text(), Scores.read(committed)
    assert readme.fill(text, "finding", readme.finding(scores)) == text
    assert readme.fill(text, "main table", readme.main_table(scores)) == text
    assert readme.fill(text, "pairs", readme.pairs(scores)) == text
    clean, *_ = readme.clean_groups(scores)
    text = (paths.checkout() / "docs" / "limits.md").read_text().replace("\\", "")
    for sentence in (*numbers_of_steps(clean), cost_of_interpolation(clean), marks_by_form(clean.items)):
        assert sentence in " ".join(text.split())
    text = (paths.checkout() / "README.md").read_text().replace("\\", "")
    assert numbers_of_steps(clean)[1] in " ".join(text.split())
    text = " ".join((paths.checkout() / "docs" / "architecture.md").read_text().split())
    spec = importlib.util.spec_from_file_location("unpinned", paths.checkout() / "benchmarks" / "unpinned.py")
    spec.loader.exec_module(unpinned := importlib.util.module_from_spec(spec))
    for name, said in (
        ("unpinned", "{moved} of the {cells} cells of replicate 0's unlearned models and prompting changed on AVX-512. "
         "{other} of the cells lay in the 95 % prediction interval"),
        ("intel", "{moved} of the {cells} cells differ from the reference's, and {other} lie in the prediction "
         "interval (of the reference's own replicate 0: {own};"),
    ):  # fmt: skip
        _, rows, inside, _ = unpinned.compared(committed / "studies" / name, scores)
        moved = (rows["reference"] != rows["other bits"]).mean()
        shares = {"moved": moved, "other": inside["other bits"].mean(), "own": inside["reference"].mean()}
        assert said.format(cells=f"{len(rows):,}", **{key: f"{100 * n:.0f} %" for key, n in shares.items()}) in text


MODELS = {
    "03_ga": "ga",
    "04_grad_diff": "grad_diff",
    "05_kl_min": "kl_min",
    "06_npo": "npo",
    "07_prompting": "prompting",
}


@pytest.mark.parametrize("name", [*MODELS, "12_your_model"])
def test_what_a_notebook_concludes_is_what_the_reference_shows(name):
    """The stored output of a notebook that makes runs, compared with the committed runs of these parameters."""
    method = MODELS.get(name, "kl_min")  # notebook 12 makes this one where no model is given
    modality = "none" if method == "prompting" else "multimodal"
    configs = [Config(method=method, modality=modality), *(Config(method=one) for one in ("vanilla", "oracle"))]
    runs = [read_run(paths.runs(paths.reference()) / config.run_id) for config in configs]
    said = card.verdict(Beside.among(runs[0], runs)).removeprefix(runs[0].label)
    assert said in "".join(outputs(paths.notebooks() / f"{name}.ipynb"))


def least_and_most(numbers: dict[str, str]) -> str:
    """The smallest and the largest of some numbers with limits, each with its method, ``GA (text only)``."""
    ends = [end(numbers, key=lambda name: int(numbers[name].split()[0])) for end in (min, max)]
    models = [name.partition(" ‡")[0].strip(")").replace(" (", " on ") for name in ends]
    models = [model.replace(" on retain, ", " with its retain term on ") for model in models]
    return " to ".join(f"{numbers[name]} ({model})" for name, model in zip(ends, models, strict=True))


def numbers_of_steps(clean: Scores) -> tuple[str, str]:
    """What docs/limits.md says of how much is closed with the numbers of steps, and with fewer of them."""
    closed = {name: share.replace(" [", " % [") for name, share in readme.closed(clean).items()}
    edges = path.edges(clean.points, {run.id: run.train["steps"] for run in clean.runs}, clean.by)
    higher = {}
    for row in edges[edges["times"] == min(path.NEARBY)].to_dict("records"):
        higher[clean.named(tuple(row[name] for name in MODEL))] = number_text(row).replace(" [", " points [")
    return (
        f"the methods close on average {least_and_most(closed)} of the gap with these settings",
        f"With a fifth fewer steps the score on Forget would be {least_and_most(higher)} higher",
    )


def cost_of_interpolation(clean: Scores) -> str:
    """What docs/limits.md says of what GA and NPO would keep with fewer points of their paths."""
    changes = re.findall(r"((?:GA|NPO) \((?:image \+ text|text only)\)) −(\d+) (\[.*?\])", grid.coarser(clean)[0])
    (model, least, limits), (other, most, more) = (end(changes, key=lambda one: int(one[1])) for end in (min, max))
    first, second = (name.strip(")").replace(" (", " on ") for name in (model, other))
    assert len(changes) == 4
    return f"what they keep would change by −{least} points {limits} ({first}) to −{most} {more} ({second};"


def marks_by_form(items: pd.DataFrame) -> str:
    """What docs/limits.md says of the class gibberish, and of collapse if only the form of an answer counted."""
    items = items[items["variant"] == "canonical"]
    free, ascents = of_metric(items, "generation", ""), ["ga", "npo"]
    mine = free[(free["set"] == "retain") & free["method"].isin(ascents)]
    odd = mine[mine["state_gibberish"] == 1]
    shares = 100 * len(odd) / mine["broken"].sum(), 100 * odd["exact"].mean()
    by_form = health.broken_share(free.drop(columns="fluency")).reindex(items.index)
    counts = []
    for scored in (items.assign(broken=by_form), items):
        verdicts = health.judged(scored).groupby(["method", "modality"])["collapsed"].sum()
        counts += [verdicts[method, name] for method in ascents for name in ("multimodal", "unimodal")]
    assert min(counts) > 0, "else the ranking would leave out fewer methods"
    (*ga, npo, npo_text), (*ga_all, npo_all, npo_text_all) = counts[:4], counts[4:]
    return (
        f"Of the broken answers of GA and NPO about Retain (LLaVA, 10 %), {shares[0]:.0f} % are in this state, and "
        f"{shares[1]:.0f} % of these state the fact. If only the form of an answer counted (empty, repeated, mostly "
        f"symbols), fewer replicates would have collapsed: GA {ga[0]} and {ga[1]} of ten in place of {ga_all[0]} and "
        f"{ga_all[1]} (image + text, text only), NPO {npo} and {npo_text} in place of {npo_all} and {npo_text_all}. "
        "The ranking would leave the same methods out."
    )


@pytest.fixture
def whole(tmp_path):
    """A reference with a run, a study, a table, captions and a notebook."""
    results, [folder] = tmp_path / "results", write(tmp_path / "results", make("vanilla", sets=("forget",)))
    record = read_json(folder / RECORD)
    line = f"<!-- made from results/reference/runs ({made_of([record])}); do not edit -->\n"
    for place in ("results/studies/cliff/runs/one", "results/tables", "figures", "notebooks"):
        (tmp_path / place).mkdir(parents=True)
    write_json(results / "studies" / "cliff" / "runs" / "one" / RECORD, {**record, "key": ""})
    (results / "tables" / "cost.md").write_text(line)
    (tmp_path / "figures" / "captions.md").write_text(line)
    plots.save(Figure((1, 1)), tmp_path / "figures" / "blank", f"runs ({made_of([record])})")
    # a run's ID ends in a hash; made-up IDs do not
    shutil.move(folder, folder.with_name("vanilla-none-0123abcd"))
    cells = [{"outputs": [{"text": ["run vanilla-none-0123abcd, scale miniature\n", "numpy 2\n"]}]}]
    (tmp_path / "notebooks" / "02_finetune.ipynb").write_text(json.dumps({"cells": cells}))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "results/studies/cliff/runs/one/provenance.json",
            '"base_hash": "base"',
            '"base_hash": "older"',
            "the study cliff is of",
        ),
        ("results/tables/cost.md", "base base", "base older", "cost.md is of people"),
        ("figures/captions.md", "made from", "MADE", ""),
        ("figures/captions.md", "people ", "folk ", "captions.md is of nobody knows what"),
        ("figures/blank.pdf", "base base", "base older", "blank.pdf is of people"),
        ("figures/blank.pdf", "/Subject", "/Subjekt", "blank.pdf is of nobody knows what"),
        (
            "notebooks/02_finetune.ipynb",
            "0123abcd, scale",
            "0123abcd, study = studies.read(",
            "02_finetune.ipynb shows results of nobody",
        ),
        (
            "notebooks/02_finetune.ipynb",
            "0123abcd, scale",
            "0123abcd, paths.reference()",
            "02_finetune.ipynb does not say what the reference is made of",
        ),
        (
            "notebooks/02_finetune.ipynb",
            "0123abcd",
            "ffff0000",
            "02_finetune.ipynb shows the run vanilla-none-ffff0000",
        ),
    ],
)
def test_what_is_mixed_is_found(whole, file, old, new, said):
    text = (whole / file).read_bytes()
    assert old.encode() in text
    (whole / file).write_bytes(text.replace(old.encode(), new.encode()))
    found = problems(whole / "results", whole / "figures", whole / "notebooks")
    assert [said in one for one in found] == ([True] if said else []), found


def test_runs_of_two_bases_are_found(whole):
    [run] = (whole / "results" / "runs").iterdir()
    shutil.copytree(run, run.with_name("oracle-none-0123abcd"))
    record = read_json(run.with_name("oracle-none-0123abcd") / RECORD)
    write_json(run.with_name("oracle-none-0123abcd") / RECORD, {**record, "base_hash": "older"})
    first, *_ = problems(whole / "results", whole / "figures", whole / "notebooks")
    assert first.startswith("the runs of llava are of several references: people ") and "base base and older" in first


@pytest.mark.parametrize("source", ["runs (people older, base base, vanilla older)", ""])
def test_a_picture_of_another_reference_is_found(whole, source):
    (whole / "figures" / "blank.png").write_bytes(plots.png(Figure((1, 1)), source))
    [problem] = problems(whole / "results", whole / "figures", whole / "notebooks")
    assert problem.startswith(f"blank.png is of {'people older' if source else 'nobody knows what'}")


def test_one_reference_has_no_problem(whole):
    assert problems(whole / "results", whole / "figures", whole / "notebooks") == []
