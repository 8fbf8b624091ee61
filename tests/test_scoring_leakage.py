"""The leakage matrix, on answers known by hand."""

import pandas as pd
from made_answers import GA, ORACLE, VANILLA, cell, choices, run, scored

from mllmu_nb.scoring.frames import ACROSS
from mllmu_nb.scoring.registry import metrics
from mllmu_nb.scoring.score import cells, item_scores, paired_facts

[LIKELIHOOD] = metrics(by_fact=True, scoring="likelihood")
[CLOZE] = metrics(by_fact=True, task="cloze")


def in_view(image: int, text: int):
    """Return a rule: this many of a person's two facts are right in each view."""
    return lambda person, view, number: number < {"image_text": image, "text": text}[view]


# with the image: vanilla 1, oracle 1/2, GA 0; in text: vanilla 1, oracle 0, GA 1
MODELS = {VANILLA: in_view(2, 2), ORACLE: in_view(1, 0), GA: in_view(0, 2)}


def test_the_matrix_by_hand():
    table = cells(scored(MODELS))
    assert cell(table, "vanilla", "oracle", view="image_text")["value"] == 0.5
    assert cell(table, "vanilla", "oracle", view="text")["value"] == 1
    assert cell(table, "ga", "oracle", view="image_text")["value"] == -0.5
    assert cell(table, "ga", "oracle", view="text")["value"] == 1
    across = cell(table, "ga", "oracle", view=ACROSS)
    assert across["value"] == 1.5 and across["low"] < 1.5 <= across["high"], "the gap in text less that with the image"
    assert (across["gate"], across["n_profiles"], across["verdict"]) == ("open", 30, "")


def test_a_closed_gate_of_one_view_closes_that_of_what_compares_both():
    table = cells(scored(MODELS | {ORACLE: in_view(1, 2)}))  # vanilla and oracle know the same when asked in text
    found = {view: cell(table, "ga", "oracle", view=view)["gate"] for view in ("image_text", "text", ACROSS)}
    assert found == {"image_text": "open", "text": "closed", ACROSS: "closed"}


def test_only_questions_about_one_fact_are_a_pair():
    items = scored(MODELS)
    second = (items["view"] == "text") & (items["question_id"].str.endswith("/1"))
    other = paired_facts(items.assign(value=items["value"].where(~second, "another fact")), LIKELIHOOD)
    assert set(other["number"]) == {"0"}
    written = paired_facts(items.assign(value=items["value"].where(~second, "FACT 1")), LIKELIHOOD)
    unknown = paired_facts(items.assign(value=""), LIKELIHOOD)
    assert len(written) == len(unknown) == len(paired_facts(items, LIKELIHOOD)) == 3 * 30 * 2
    assert paired_facts(items[items["view"] == "text"], LIKELIHOOD).empty and paired_facts(items, CLOZE).empty


def test_people_of_other_data_seeds_are_other_people():
    sets = ("forget", "celebrity")
    runs = [choices(right, 0, sets, **run(*model, data_seed=s)) for model, right in MODELS.items() for s in (0, 1)]
    for number, one in enumerate(runs):
        one["run"] += f"-{number}"
    table = cells(item_scores(pd.concat(runs, ignore_index=True)))
    assert cell(table, "ga")["n_profiles"] == 20 and cell(table, "ga")["n_replicates"] == 2
    assert cell(table, "ga", set="celebrity")["n_profiles"] == 10, "the base knows the same ones"
