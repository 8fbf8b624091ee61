"""The form of the notebooks, without a kernel, and one run by papermill. nbmake executes all of them."""

import ast
import difflib
import io
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import yaml
from fake_runs import make
from test_pinning import reason_to_skip as other_bits

from mllmu_nb import paths, pinning, pipeline
from mllmu_nb.commands.sweep import notebook_for
from mllmu_nb.config import REFERENCES, Config
from mllmu_nb.models import families
from mllmu_nb.reporting import noise, show
from mllmu_nb.reporting.runs import Scores
from mllmu_nb.unlearning import names, variants

CONFIGS = paths.checkout() / "configs"
BOOKS = sorted(paths.notebooks().glob("*.ipynb"))
PAPER = "00_start_here 01_data 02_finetune 03_ga 04_grad_diff 05_kl_min 06_npo 07_prompting 08_evaluate 09_tables"
LINES, BYTES = 30, 600_000
TYPES = {"int": int, "float": float, "str": str, "bool": bool}
SETTINGS = {setting for name in names() for method in variants(name).values() for setting in method.hyper_parameters()}
NAMES = {*Config.model_fields, *SETTINGS} - {"settings"}
DEFAULTS = {name: field.default for name, field in Config.model_fields.items()} | dict.fromkeys(SETTINGS)
DEFAULTS = {**DEFAULTS, **yaml.safe_load((CONFIGS / "miniature.yaml").read_text(encoding="utf-8"))}
TRAINS = re.compile(r"pipeline\.(beside|run|finetuned|unlearned|evaluated)\(|ask\.models\(")
TRAINED = [name for name in names() if any(one.streams for one in variants(name).values())]
ELSEWHERE = re.compile(r"(?<![\w.:/<])/(home|Users|root|tmp|usr|opt|var|mnt|srv|private)/|\b[A-Z]:\\")


@pytest.fixture(params=BOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def book(path):
    return nbformat.read(path, as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def parameters_cell(book):
    [place] = [i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    return place


def parameters(book):
    """Return name → (type, default) of the parameters cell. Each must be an annotated literal with its meaning."""
    source = book.cells[parameters_cell(book)].source
    found = {}
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign), f"not of the form `name: type = literal`: {ast.unparse(node)}"
        line = source.split("\n")[node.lineno - 1]
        assert node.lineno == node.end_lineno and len(line.partition("  # ")[2]) > 5, f"{line!r} says no meaning"
        found[node.target.id] = (node.annotation.id, ast.literal_eval(node.value))
    return found


def assigned(book):
    """Return the names that a notebook sets in its own namespace."""
    names = set()
    for cell in book.cells[parameters_cell(book) + 1 :]:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                inner = () if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else ast.walk(node)
                comprehended = {n for c in inner if isinstance(c, ast.comprehension) for n in ast.walk(c.target)}
                inner = () if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else ast.walk(node)
                stored = [n for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
                names |= {n.id for n in stored if n not in comprehended}
    return names


def test_the_papers_notebooks_are_there_and_numbered():
    names = [path.stem for path in BOOKS]
    assert {*PAPER.split(), "10_figures"} <= set(names)
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", name) for name in names)
    numbers = [name[:2] for name in names]
    assert len(set(numbers)) == len(numbers), "a number is taken twice"


def test_every_model_and_method_has_a_notebook():
    for name in (*REFERENCES, *names()):
        modality = "none" if name in REFERENCES or not unlearns(name) else "multimodal"
        assert notebook_for(Config(method=name, modality=modality)) in BOOKS


def test_format(book):
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert book.metadata.kernelspec.name == "python3"
    ids = [cell["id"] for cell in book.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9-]+", ident) and not re.fullmatch(r"[0-9a-f]{8}.*", ident) for ident in ids)


def unlearns(method: str) -> bool:
    return method in TRAINED


def test_torch_is_imported_after_the_kit(book):
    """The kit pins the bits, which works only before torch first computes."""
    sources = [cell.source for cell in code_cells(book)]
    torch, kit = (
        [n for n, s in enumerate(sources) if re.search(p, s, re.M)] for p in ("^import torch", "^from mllmu_nb")
    )
    assert kit and all(kit[0] < place for place in torch)


def test_title_says_what_it_makes(path, book):
    title = book.cells[0]
    assert title.cell_type == "markdown" and title.source.startswith(f"# {path.stem[:2]} · ")
    for row in ("makes", "in the paper", "needs", "minutes"):
        assert f"| **{row}** |" in title.source
    assert "2410.22108" in title.source


def test_parameters_are_annotated_literals_of_the_kit(path, book):
    found = parameters(book)
    assert found and set(found) <= set(NAMES)
    for name, (kind, default) in found.items():
        assert default is None or type(default) is TYPES[kind], name
        chosen = name == "modality" and unlearns(path.stem[3:])
        assert default == ("multimodal" if chosen else DEFAULTS[name]), f"{name}: not as in configs/miniature.yaml"


def test_every_notebook_that_trains_trains_briefly_in_tests():
    """nbmake sets what the metadata of the parameters cell say; different lengths would need several vanillas.
    Two steps of unlearning give a path of five points (the race's four: nine), which takes half the time of eleven."""
    books = {path.stem: nbformat.read(path, as_version=4) for path in BOOKS}
    sources = {name: "\n".join(cell.source for cell in code_cells(book)) for name, book in books.items()}
    for name, book in books.items():
        mock = book.cells[parameters_cell(book)].metadata.get("nbmake")
        steps = {name: 2 for name in ("03_ga", "04_grad_diff", "05_kl_min", "06_npo", "12_your_model", "16_ask")}
        steps |= {"17_your_method": 2, "18_race": 4}  # the others unlearn nothing
        brief = {"people": 12, "celebrities": 12, "train_steps": 30}
        brief |= {"unlearn_steps": steps[name]} if name in steps else {}
        assert mock == ({"mock": brief} if TRAINS.search(sources[name]) else None), name


@pytest.mark.full_length
@pytest.mark.parametrize("name", ["02_finetune", "03_ga"])
def test_a_notebook_of_full_length_keeps_its_promises(name, tmp_path_factory, monkeypatch):
    """The last cell asserts what holds only with the kit's own settings. If the bits are the same, it prints the same
    as the committed one. Notebook 03 takes vanilla and the oracle from 02."""
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.getbasetemp() / "full_length"))
    path = paths.notebooks() / f"{name}.ipynb"
    book = papermill.execute_notebook(path, None, cwd=path.parent, progress_bar=False)
    if not (other_bits() or pinning.INTEL):  # the committed one is from an AMD CPU
        committed = nbformat.read(path, as_version=4)
        assert book.cells[-1].outputs[0].text == committed.cells[-1].outputs[0].text


def test_papermill_reads_every_parameter_with_type_and_meaning(path, book):
    told = papermill.inspect_notebook(str(path))
    assert {name: told[name]["inferred_type_name"] for name in told} == {n: k for n, (k, _) in parameters(book).items()}
    assert all(entry["help"] for entry in told.values())


def test_the_guard_follows_and_story_leaves_parameters_alone(book):
    place = parameters_cell(book)
    before, guard = book.cells[:place], book.cells[place + 1]
    assert [cell.cell_type for cell in before] == ["markdown", "code"], "title and imports come before the parameters"
    assert "Config.from_notebook(globals()" in guard.source
    assert not assigned(book) & set(parameters(book))
    # if the cell runs again, the guard must not take a variable of the notebook for a misspelt parameter
    others = assigned(book) - set(NAMES)
    assert not {name: near for name in others if (near := difflib.get_close_matches(name, NAMES, 1, cutoff=0.8))}


@pytest.mark.parametrize("name", ["02_finetune", *sorted(path.stem for path in BOOKS if path.stem[3:] in TRAINED)])
def test_code_and_settings_that_are_shown_are_those_of_today(name, capsys):
    """A notebook keeps what it showed when it was executed, also if the code has changed since."""
    book = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4)
    place, known = parameters_cell(book), {"Config": Config}
    exec(book.cells[place].source, known)
    exec(book.cells[place + 1].source.split("\n")[0], known)
    show.method(known["config"]) if name[3:] in TRAINED else None
    texts = "\n".join(map(outputs_text, code_cells(book)))
    assert capsys.readouterr().out in texts and show.recipe(known["config"]).data in texts


def outputs_text(cell):
    made = [output.get("text") or output.get("data", {}).get("text/html", "") for output in cell.outputs]
    return "\n".join(made)


def held_while_another_is_made(book):
    """Return the names that hold a model while a run is made, because two models of 7B do not fit on a card. Code under
    an ``if`` (for the miniature only) or inside a function does not count."""
    held, found = set(), []
    for cell in code_cells(book):
        for node in ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.M)).body:
            if isinstance(node, ast.Delete):
                held -= {name.id for name in node.targets}
            if isinstance(node, (ast.If, ast.FunctionDef, ast.ClassDef)):
                continue
            calls = {ast.unparse(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)}
            if calls & {"pipeline.run", "pipeline.beside"}:
                found += sorted(held)
            if calls & {"pipeline.model", "pipeline.vanilla", "pipeline.filled"} and isinstance(node, ast.Assign):
                held.add(ast.unparse(node.targets[0]).strip("()").split(", ")[0])
    return found


def test_no_model_is_held_while_another_one_is_made(book):
    assert held_while_another_is_made(book) == []


def test_a_model_that_is_held_is_seen():
    cells = ["base, processor = pipeline.model(config)", "folder = pipeline.run(config)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    assert held_while_another_is_made(book) == ["base"]
    book.cells[0].source += "\ndel base"
    assert held_while_another_is_made(book) == []


def test_cells_are_short(book):
    assert all(cell.source.count("\n") < LINES for cell in code_cells(book))


def test_the_last_cell_says_what_the_run_shows(book):
    last = book.cells[-1]
    assert last.cell_type == "code" and "print(" in last.source


def test_cells_are_numbered_as_they_were_run(book):
    counts = [cell.execution_count for cell in code_cells(book)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_sound_and_the_same_everywhere(path, book):
    assert path.stat().st_size < BYTES
    assert "papermill" not in book.metadata and not any("execution" in cell.metadata for cell in book.cells)
    for cell in code_cells(book):
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell["id"]
    text = json.dumps([{**cell, "outputs": [_text(o) for o in cell.get("outputs", [])]} for cell in book.cells])
    text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text)
    for place in (ELSEWHERE, *(re.compile(re.escape(p)) for p in _here())):
        assert not place.search(text), f"a path of this machine: {place.search(text)}"
    assert not re.search(r"\b\d\d:\d\d:\d\d\b", text), "a time of day"


def test_every_picture_has_an_alt_text(book):
    """JupyterLab shows an output of type image/png without an alt text, whatever its metadata say."""
    for output in (output for cell in code_cells(book) for output in cell.outputs):
        data = output.get("data", {})
        assert not [kind for kind in data if kind.startswith("image/")]
        for picture in re.findall(r"<img[^>]*>", data.get("text/html", "")):
            assert re.search(r' alt="[^"]+"', picture), picture[:80]


ANSWERS = {"08_evaluate": 3, "16_ask": 1}  # notebook → prints of what people and models wrote
HOSTILE = "a\x1b[2J\u202e"


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_notebook_prints_of_an_answer_does_nothing_to_a_terminal(name, capsys):
    """Every print that names a question, an answer or a truth, with hostile ones."""
    book = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4)
    nodes = [node for cell in code_cells(book) for node in ast.walk(ast.parse(cell.source))]
    prints = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"]
    prints = [text for text in map(ast.unparse, prints) if re.search(r"question\.text|\{answer\}|true_answer\(", text)]
    assert len(prints) == ANSWERS[name]
    question = SimpleNamespace(text=HOSTILE, answer=HOSTILE)
    known = {
        "show": show,
        "item": SimpleNamespace(question=question),
        "answer": HOSTILE,
        "truth": HOSTILE,
        "chosen": "A",
    }
    known |= {"ask": SimpleNamespace(true_answer=lambda *given: HOSTILE), "person": None, "about_work": str}
    for text in prints:
        exec(text, dict(known))
        said = capsys.readouterr().out
        assert r"a\x1b[2J\u202e" in said and not re.search("[\x1b\u202e]", said)


def _text(output):
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return {**output, "data": data}


def _here():
    return {str(paths.checkout()), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}


def run_papermill(tmp_path, *given):
    book, out = paths.notebooks() / "01_data.ipynb", tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(book), str(out), "--cwd", str(book.parent), "--no-progress-bar"]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=600)
    return done, nbformat.read(out, as_version=4)


def test_papermill_takes_a_configuration_file(tmp_path):
    done, book = run_papermill(tmp_path, "-f", str(CONFIGS / "ci.yaml"), "-p", "seed", "5")
    assert done.returncode == 0, done.stderr
    injected = next(c for c in book.cells if "injected-parameters" in c.metadata.get("tags", []))
    assert "seed = 5" in injected.source and "people = 20" in injected.source
    assert "44 people: all sound" in book.cells[-1].outputs[0].text  # 20, 12 of the pool, 12 celebrities


def test_a_misspelt_parameter_stops_at_the_guard(tmp_path):
    done, book = run_papermill(tmp_path, "-p", "forget_ratoi", "5")
    assert done.returncode == 1
    message = "KitError: unknown parameter 'forget_ratoi': did you mean 'forget_ratio'?"
    assert done.stderr.strip().splitlines()[-1] == message
    assert done.stderr.count("Traceback") == 1, "papermill's own, and none of the kit's"
    executed = [cell["id"] for cell in book.cells if cell.get("execution_count")]
    assert "guard" in executed and "people" not in executed


def test_the_tables_notebook_shows_the_committed_reference_run():
    book = nbformat.read(paths.notebooks() / "09_tables.ipynb", as_version=4)
    said = "".join(output.get("text", "") for cell in code_cells(book) for output in cell.outputs)
    count = len(list(paths.runs(paths.reference()).glob("*/answers.parquet")))
    assert f"the committed reference run: {count} models" in said
    shown = [cell.source for cell in code_cells(book) if "show.tables(" in cell.source]
    assert len(shown) == 4, "Tables 1 and 2, the gap to the oracle and the ranking; the others are linked"


FORMS = [
    ("03_ga", {"protocol": "upstream"}),
    ("04_grad_diff", {"protocol": "upstream"}),
    ("05_kl_min", {"protocol": "upstream"}),
    ("06_npo", {"protocol": "upstream"}),
    ("06_npo", {"variant": "retain", "unlearn_steps": 3}),
    ("07_prompting", {"protocol": "upstream"}),
]


def executed(name, **then):
    """Execute the code cells of a notebook. ``then``: id of a cell → variables that are set after it."""
    cells = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4).cells
    space: dict = {}
    for cell in (one for one in cells if one.cell_type == "code"):
        exec(compile(cell.source, cell["id"], "exec"), space)
        space |= then.get(cell["id"], {})
    return space


TABLES = {
    "method,accuracy,people\nOurs,60,300\nTheirs,40,300\n": "Ours and Theirs, accuracy: 300 people, 5 questions each",
    "method,forget accuracy,people\nA,52,1000\nB,40,1000\n": "A and B, forget accuracy: 1000 people",
    "method,forget accuracy\nA,52\nB,40\n": "A and B, forget accuracy: 49 people",
    "method,accuracy\nA,52\nB,40\n": "accuracy: nothing can be said",
    "method,accuracy,people,sd\nA,52,49,9\nB,40,49,9\n": "accuracy: 1 of 1 gaps exceed the noise",
}


@pytest.mark.parametrize("pasted", TABLES)
def test_the_audit_takes_any_table(pasted, capsys):
    executed("19_audit", table={"table": noise.read(io.StringIO(pasted))})
    assert TABLES[pasted] in capsys.readouterr().out


def test_the_race_starts_at_the_vanilla_that_is_given_and_in_one_precision():
    source = "\n".join(cell.source for cell in code_cells(nbformat.read(paths.notebooks() / "18_race.ipynb", 4)))
    code = "def likelihoods" + source.partition("def likelihoods")[2].partition("runners = {}")[0]
    config, loaded = Config(scale="paper", method="ga", modality="multimodal", vanilla_path="a/b"), []

    def load(one, precision=None):
        loaded.append((one.vanilla_path, precision or one.eval_precision))
        raise InterruptedError

    exec(code, space := {"config": config, "replace": replace, "pipeline": SimpleNamespace(vanilla=load, model=load)})
    for function, given in (("stands", ["vanilla"]), ("run", [config, None])):
        with pytest.raises(InterruptedError):
            space[function](*given)
    assert loaded == [("a/b", "bf16")] * 2


@pytest.mark.parametrize("protocol", ["clean", "upstream"])
@pytest.mark.parametrize("method", ["ga", "grad_diff", "kl_min", "npo"])
def test_every_racer_can_run_the_length_of_the_race(protocol, method):
    source = "".join(cell.source for cell in code_cells(nbformat.read(paths.notebooks() / "18_race.ipynb", 4)))
    [line] = re.findall(r"runner = config\.but\(.*\)", source)
    config = Config(method="ga", modality="multimodal", protocol=protocol)
    exec(line, space := {"config": config, "name": method, "LENGTH": 200, "RATE": 5e-4})
    pipeline.unlearned(space["runner"])  # it takes this length
    assert not space["runner"].objective.other_reference, "the race has no second reference"


def test_the_form_of_notebook_16_holds_every_preset_length():
    source = (paths.notebooks() / "16_ask.ipynb").read_text()
    lengths = [Config(method="grad_diff", modality=how).unlearning.steps for how in ("multimodal", "unimodal")]
    assert int(re.search(r"BoundedIntText\(.*max=([\d_]+)", source)[1]) >= max(lengths) > 200


def test_the_cell_by_hand_of_notebook_09_is_of_one_setting_of_a_grid(capsys):
    runs = [make(method, draw=draw) for method in ("vanilla", "oracle") for draw in range(2)]
    for rate, right in ((0.001, None), (0.004, lambda asked: False)):
        runs += [make("ga", right, modality="multimodal", draw=draw, unlearn_lr=rate) for draw in range(2)]
    cells = {cell["id"]: cell.source for cell in nbformat.read(paths.notebooks() / "09_tables.ipynb", 4).cells}
    space = {"known": Scores.of(runs)}
    for name in ("imports", "gap-hand"):
        exec(compile(cells[name], name, "exec"), space)
    assert space["gap"] == pytest.approx(space["one"]["value"]) and len(space["units"]) == 2
    assert "unlearn_lr" in capsys.readouterr().out


def test_notebook_12_leads_to_the_command_that_asks_the_anchor():
    yours, scale = (
        "".join(cell.source for cell in nbformat.read(paths.notebooks() / name, 4).cells)
        for name in ("12_your_model.ipynb", "14_paper_scale.ipynb")
    )
    llava = families.get("llava")
    assert re.search(rf'--model {llava.released}`[^#]*"A known number" in notebook 14', yours)
    command = re.search(r"\*\*A known number\.\*\*[^#]*?`(papermill [^`]*)`", scale)[1].split()
    given = dict(zip(command[1:], command[2:], strict=False))
    assert given["vanilla_path"] == llava.released and given["forget_ratio"] == str(pipeline.ANCHOR_RATIO)
    assert yaml.safe_load((paths.checkout() / given["-f"]).read_text(encoding="utf-8"))["data_source"]


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory):
    """One folder for all forms, because they share vanilla and the oracle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLMU_NB_OUT", str(tmp_path_factory.mktemp("forms")))
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"), FORMS, ids=[f"{name}-{next(iter(given.values()))}" for name, given in FORMS]
)
def test_a_notebook_makes_a_run_of_every_form_of_its_method(name, given, tiny_base, shared_out):
    """A sweep of the paper's configuration runs them with the released code's protocol, so no cell may depend on the
    canonical form."""
    small = {
        "people": 12,
        "celebrities": 8,
        "forget_ratio": 25,
        "train_steps": 2,
        "replay": 0.0,
        "exams": 0.0,
        "shots": 0,
    }
    cells = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4).cells
    space: dict = {}
    for cell in (one for one in cells if one.cell_type == "code"):
        exec(compile(cell.source, cell["id"], "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= small | {"base_path": str(tiny_base)} | given
    assert space["mine"]["method"] == space["config"].method and given.items() <= space["config"].parameters().items()
