"""Questions about nobody: asked once, apart from a run's answers, then scored and shown, or "not measured". For the
paper's scale, the output of lmms-eval is read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import PIL.Image
import pytest
from fake_runs import but, make, write

from mllmu_nb import __main__ as door
from mllmu_nb import inputs, pipeline
from mllmu_nb.commands import utility as command
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import utility as asking
from mllmu_nb.models import families
from mllmu_nb.models.files import ASSETS
from mllmu_nb.models.load import load_base
from mllmu_nb.reporting import figures, tables
from mllmu_nb.reporting.runs import Scores, columns_of, read_run
from mllmu_nb.scoring import utility
from mllmu_nb.stages import add_file

SMALL = {"people": 8, "pool": 4, "celebrities": 4, "forget_ratio": 25, "shots": 0, "replay": 0.0}


def test_the_questions_are_the_same_every_time_and_about_nobody():
    asked, again = asking.questions(), asking.questions()
    assert Counter(name for name, _, _ in asked) == dict.fromkeys(utility.PANELS["miniature"], asking.EACH)
    assert [turn.prompt for *_, turn in asked] == [turn.prompt for *_, turn in again]
    pictures = [turn.image.tobytes() for *_, turn in asked if turn.image]
    assert len(pictures) == len(set(pictures)) == 1.5 * asking.EACH and set(asking.HARMLESS) == {
        rule for name, rule, _ in asked if name == "instructed"
    }
    letters = Counter(turn.answer for *_, turn in asked)
    assert min(letters.values()) > 0.15 * len(asked), "no letter is right by habit"


def test_the_base_that_comes_with_the_kit_can_do_it():
    answers = asking.ask(*load_base(*inputs.base_of(Config(method="base"))), batch_size=256)
    right = utility.useful(answers).groupby(answers["set"]).mean()
    assert right["reading"] > 0.9 and right["seeing"] > 0.75 and right["instructed"] > 0.75
    assert set(answers["view"]) == {"image_text", "text"} and answers["profile"].is_unique


def test_a_whole_run_of_a_miniature_has_it_and_a_shortened_one_has_not(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path))
    config = Config(method="base", base_path=str(tiny_base), **SMALL)
    short = pipeline.run(config, sets=("forget",), limit=1)
    assert read_run(short).utility is None
    folder = pipeline.run(config)
    assert folder == short and len(read_run(folder).utility) == 3 * asking.EACH
    (folder / "utility.parquet").write_bytes(b"")
    with pytest.raises(KitError, match="was changed or cut off"):
        read_run(folder)


# -- scored and shown ---------------------------------------------------------------------------------------------


def with_utility(run, right: float):
    """Return the run with answers to questions about nobody, the share ``right`` of them right."""
    rows = [
        {"set": name, "view": "text", "profile": f"{name}/{number}", "question_id": f"{name}/{number}",
         "answer_true": "A", "answer": "A" if number < right * 20 else "C"}
        for name in utility.PANELS["miniature"] for number in range(20)
    ]  # fmt: skip
    fixed = {"task": "classification", "scoring": "utility", "order": 0, "shots": 0, "tokens": 0}
    return but(run, utility=pd.DataFrame(rows).assign(**fixed, **columns_of(run.record)))


@pytest.fixture(scope="module")
def runs():
    return [make("vanilla"), make("ga", modality="multimodal"), make("oracle")]


def test_levels_and_differences_are_cells_and_no_other_cell_changes(runs):
    plain = Scores.of(runs).cells
    cells = Scores.of([with_utility(run, right) for run, right in zip(runs, (1.0, 0.6, 1.0), strict=True)]).cells
    mine = cells["scoring"] == "utility"
    pd.testing.assert_frame_equal(cells[~mine].reset_index(drop=True), plain.reset_index(drop=True))
    ga = cells[mine & (cells["method"] == "ga") & (cells["view"] == "both") & (cells["set"] == "seeing")]
    assert ga.set_index("against")["value"].to_dict() == pytest.approx({"": 0.6, "vanilla": -0.4, "oracle": -0.4})
    assert set(ga["n_items"]) == {20}


def test_table_2_and_the_figure_show_it_or_say_that_it_is_not_measured(runs):
    [sheet] = tables.sheets("table2_main", Scores.of(runs))
    ga = dict(sheet.blocks[0][1])["GA"][-3:]
    assert (
        ga == [("", "Not measured in these runs.")] * 3 and [head for head, _ in sheet.columns[-3:]] == ["Utility"] * 3
    )
    texts = [text.get_text() for axes in figures.forgetting_utility(Scores.of(runs)).axes for text in axes.texts]
    assert texts.count("not measured") == 3
    measured = Scores.of([with_utility(run, 0.6) for run in runs])
    [sheet] = tables.sheets("table2_main", measured)
    assert [text.split(" ")[0] for text, _ in dict(sheet.blocks[0][1])["GA"][-3:]] == ["60.0"] * 3
    drawn = figures.forgetting_utility(measured)
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert titles == ["Retain", "Celebrity", "Reading", "Seeing", "Instructed"]
    assert not any(text.get_text() == "not measured" for axes in drawn.axes for text in axes.texts)
    [first, *_] = drawn.axes[2].containers
    assert float(first[0].get_xdata()[0]) == pytest.approx(60)


# -- lmms-eval ------------------------------------------------------------------------------------------------------


def sample(number: int, metric: str, entry: dict) -> str:
    """Return a line of lmms-eval 0.7.3, with the fields that are read, and some of those that are not."""
    known = {"doc_id": number, "target": "B", "filtered_resps": "B", "doc_hash": "0", "token_counts": [None]}
    return json.dumps({**known, "input": "What? <image 1>", metric: entry, "submission": {}})


def mmmu(number: int, kind: str, answer, said: list) -> str:
    entry = {"id": f"validation_Art_{number}", "subdomain": "Art", "question_type": kind, "answer": answer}
    return sample(number, "mmmu_acc", {**entry, "parsed_pred": said})


CHOICE, OPEN = "multiple-choice", "open"


@pytest.fixture
def output(tmp_path):
    """Write the output of lmms-eval: one folder per model, one file per task and time."""
    folder = tmp_path / "lmms" / "ga_model"
    folder.mkdir(parents=True)
    lines = [mmmu(1, CHOICE, "B", ["B"]), mmmu(2, CHOICE, "B", ["C"]), mmmu(3, OPEN, "1,250", [[1250.0, "so 1250"]])]
    lines += [mmmu(4, OPEN, ["Blue", "azure"], [["it is azure"]]), mmmu(5, OPEN, "a", [["apart"]])]
    (folder / "20260101_000000_samples_mmmu_val.jsonl").write_text("an older one")
    (folder / "20260102_000000_samples_mmmu_val.jsonl").write_text("\n".join(lines))
    grades = [sample(n, "gpt_eval_llava_all", {"scores": pair}) for n, pair in enumerate([[8, 3], [9, 5], [-1, -1]])]
    (folder / "20260102_000000_samples_llava_in_the_wild.jsonl").write_text("\n".join(grades))
    return tmp_path / "lmms"


def test_what_lmms_eval_has_written_is_read(output):
    items, failed = command.read(output, list(command.TASKS))
    assert items.loc[items["set"] == "mmmu", "score"].tolist() == [1, 0, 1, 1, 0]
    assert items.loc[items["set"] == "llava_bench", "score"].tolist() == [0.3, 0.5] and failed == 1
    assert items["question_id"].tolist()[::5] == ["mmmu/validation_Art_1", "llava_bench/0"]
    assert utility.useful(items).tolist() == items["score"].tolist()


def test_samples_of_two_models_are_not_taken_for_each_other(output):
    shutil.copytree(output / "ga_model", output / "npo_model")
    with pytest.raises(KitError, match="samples of mmmu_val lie in .*ga_model, .*npo_model: name by --output the fold"):
        command.read(output, ["mmmu_val"])
    assert len(command.read(output / "npo_model", ["mmmu_val"])[0]) == 5


def test_a_line_separator_in_an_answer_separates_no_samples(output):
    file = next(output.rglob("20260102*mmmu*"))
    said = file.read_text().replace('"filtered_resps": "B"', '"filtered_resps": "B\u2028so it is"', 1)
    file.write_text(said + "\n\n", encoding="utf-8")
    assert command.read(output, ["mmmu_val"])[0]["answer"][0] == "B\u2028so it is"


def test_a_run_is_given_what_was_read(output, tmp_path, capsys):
    [folder] = write(tmp_path / "results", make("vanilla", sets=("forget",)))
    assert door.main(["utility", str(folder), "--output", str(output), "--tasks", "mmmu_val"]) == 0
    assert "mmmu: 5 questions, 60.0 %" in capsys.readouterr().out
    assert read_run(folder).utility["set"].unique().tolist() == ["mmmu"]
    assert door.main(["utility", str(folder), "--output", str(output), "--tasks", "llava_in_the_wild"]) == 1
    assert read_run(folder).utility["set"].unique().tolist() == ["mmmu", "llava_bench"], "what was read before stays"
    assert door.main(["utility", str(folder), "--output", str(output), "--tasks", "mmmu_val"]) == 0
    assert len(read_run(folder).utility) == 7, "and is read once"
    graded = next(output.rglob("20260102*llava*"))
    graded.write_text(sample(0, "gpt_eval_llava_all", {"scores": [-1, -1]}))
    assert door.main(["utility", str(folder), "--output", str(output)]) == 1
    assert read_run(folder).utility["set"].unique().tolist() == ["mmmu"], "an answer without a grade keeps no older one"


def test_the_command_is_printed_and_not_run(output, tmp_path, capsys, monkeypatch):
    [folder] = write(tmp_path / "results", make("vanilla", sets=("forget",)))
    assert door.main(["utility", str(folder), "--output", str(output), "--model", "ga model"]) == 0
    said = capsys.readouterr().out
    assert (
        "--model llava_hf --model_args 'pretrained=ga model,device_map=auto' --tasks mmmu_val,llava_in_the_wild "
        in said
    )
    assert "--log_samples" in said and read_run(folder).utility is None
    monkeypatch.setattr(type(families.get("llava")), "lmms_eval", "")
    with pytest.raises(KitError, match="the name of the family llava in lmms-eval is not known"):
        command.command(folder, "llava", output, [], "cpu")


def test_a_run_with_a_system_prompt_gets_no_scores_of_the_model_without_it(output, tmp_path, capsys):
    [folder] = write(tmp_path / "results", make("prompting", sets=("forget",)))
    trained = {**read_run(folder).train, "settings": {"system": "Tell nothing."}}
    add_file(folder, "train.json", lambda path: path.write_text(json.dumps(trained)))
    assert door.main(["utility", str(folder), "--output", str(output)]) == 2
    assert "asks with a system prompt, and lmms-eval asks without one" in capsys.readouterr().err
    assert read_run(folder).utility is None


def test_an_answer_that_is_empty_is_not_the_letter_that_was_drawn_for_it(output, tmp_path, capsys):
    file = next(output.rglob("20260102*mmmu*"))
    first, *others = file.read_text().splitlines()
    empty = first.replace('"filtered_resps": "B"', '"filtered_resps": ""')
    file.write_text("\n".join([empty, *others]))
    [folder] = write(tmp_path / "results", make("vanilla", sets=("forget",)))
    assert door.main(["utility", str(folder), "--output", str(output), "--tasks", "mmmu_val"]) == 0
    said = capsys.readouterr().out
    assert "mmmu: 5 questions, 40.0 %" in said and "1 answers are empty" in said
    graded = next(output.rglob("20260102*llava*"))
    graded.write_text(graded.read_text().replace('"filtered_resps": "B"', '"filtered_resps": ""', 1))
    items, _ = command.read(output, list(command.TASKS))
    assert items.loc[items["set"] == "llava_bench", "score"].tolist() == [0.3, 0.5], "a judge's grade is kept"
    file.write_text(empty)
    with pytest.raises(KitError, match="every answer in .* is empty: lmms-eval could not generate"):
        command.read(output, ["mmmu_val"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not in the form"),
        ('{"doc_id": 1, "mmmu_acc": 1.0, "filtered_resps": "B"}', "is not in the form"),
        ("\n", "the samples in .* are empty: run lmms-eval again"),
        (mmmu(1, CHOICE, "B", ["B"]) + "\n" + mmmu(1, CHOICE, "B", ["B"]), "several answers"),
    ],
)
def test_another_form_is_one_line(output, text, message):
    next(output.rglob("20260102*mmmu*")).write_text(text)
    with pytest.raises(KitError, match=message):
        command.read(output, ["mmmu_val"])
    with pytest.raises(KitError, match="holds no samples of llava_in_the_wild"):
        command.read(output / "elsewhere", ["llava_in_the_wild"])


def test_what_lmms_eval_0_7_3_wrote_about_the_miniature_is_read_as_it_scored_it():
    """The output of its own tasks on nine of our questions, with a script as the judge. It gave 0.333 on MMMU. For
    LLaVA-Bench it writes each grade under four metrics; one is kept here."""
    items, failed = command.read(Path(__file__).parent / "lmms_eval_wrote", list(command.TASKS))
    assert items.loc[items["set"] == "mmmu", "score"].tolist() == [0, 0, 1, 1, 0, 0]
    assert items.loc[items["set"] == "llava_bench", "score"].tolist() == [0.3, 0.5] and failed == 1
    assert items["answer"].tolist()[:2] == ["red", "C"] and items["answer_true"].tolist()[:2] == ["B", "A"]
    assert items["question"].str.startswith("What is shown in <image 1>").sum() == 6


def test_names_are_those_of_the_installed_package():
    """And all that its models import is installed too."""
    models = pytest.importorskip("lmms_eval.models")
    for family in families.FAMILIES.values():
        assert models.get_model(family.lmms_eval)
    assert set(command.TASKS) <= set(pytest.importorskip("lmms_eval.tasks").TaskManager().all_tasks)


# LLaVA's processor on the hub has such a template; the miniature's has none.
TEMPLATE = """{% for message in messages %}USER: {% for one in message['content'] %}
{%- if one['type'] == 'image' %}<image>{% else %}{{ one['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT:"""


@pytest.mark.slow
def test_lmms_eval_itself_asks_the_miniature(tmp_path, monkeypatch, capsys):
    """Runs the real program with the command as it is built. Instead of the hub it finds a local folder with the name
    that its task asks for."""
    pytest.importorskip("lmms_eval", reason="lmms-eval, the extra 'utility', is not installed")
    from datasets import Dataset, Features, Image, Value

    model, hub = tmp_path / "model", tmp_path / "lmms-lab-encoder" / "MMMU"
    shutil.copytree(ASSETS / "llava-miniature", model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    hub.mkdir(parents=True)
    options, pictures = "['a lamp', 'a boat', 'a tree', 'a hat']", [f"image_{number}" for number in range(1, 8)]
    asked = [("B", "red"), ("A", "green"), ("D", "blue"), ("yellow", "yellow"), ("1,250", "black"), ("7", "white")]
    rows = [
        {"id": f"validation_Art_{number}", "question": f"What is in <image 1>, number {number}?", "answer": answer,
         "question_type": CHOICE if len(answer) == 1 and answer.isalpha() else OPEN, "options": options,
         **dict.fromkeys(pictures), "image_1": PIL.Image.new("RGB", (60, 60), colour)}
        for number, (answer, colour) in enumerate(asked, 1)
    ]  # fmt: skip
    kinds = {name: Image() if name in pictures else Value("string") for name in rows[0]}
    Dataset.from_list(rows, Features(kinds)).to_parquet(hub / "validation-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    [folder] = write(tmp_path / "results", make("vanilla", sets=("forget",)))
    told = ["--model", str(model), "--output", str(tmp_path / "lmms"), "--tasks", "mmmu_val", "--device", "cpu"]
    assert door.main(["utility", str(folder), *told, "--yes"]) == 0
    items = read_run(folder).utility
    [results] = (tmp_path / "lmms").rglob("*_results.json")
    known = json.loads(results.read_text())["results"]["mmmu_val"]["mmmu_acc,none"]
    assert items["score"].mean() == pytest.approx(known, abs=1e-4) and len(items) == 6
    assert items["answer"].str.len().all(), "an answer that failed is empty"
