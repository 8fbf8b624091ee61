"""One value per answer, one row per run and cell, one long frame: cases by hand, and a metric from outside."""

import re
import time
from dataclasses import replace
from math import exp, nan

import numpy as np
import pandas as pd
import pytest
from made_answers import GA, ORACLE, VANILLA, cell, choices, free, run, scored

from mllmu_nb.errors import KitError
from mllmu_nb.registry import EXTENSIONS
from mllmu_nb.scoring import checks, choice, registry, text
from mllmu_nb.scoring.factuality import REFUSAL, holds, rubric, words
from mllmu_nb.scoring.frames import REPLICATE
from mllmu_nb.scoring.gates import gates, opened
from mllmu_nb.scoring.health import form_of, judged, unsound
from mllmu_nb.scoring.score import RUN_KEYS, cells, item_scores, run_scores
from mllmu_nb.scoring.summary import summaries

# one answer


@pytest.mark.parametrize(
    ("answer", "given"),
    [("B", "B"), (" c: Riga", "C"), ("\nd", "D"), ("Answer: B", "A"), ("E", ""), ("", ""), ("I cannot say", "")],
)
def test_the_letter_is_the_first_character(answer, given):
    items = pd.DataFrame({"answer": [answer], "answer_true": ["B"]})
    assert choice.letters(items).tolist() == [given]  # "Answer: B" counts as A, by upstream's rule


def test_the_likeliest_option_is_the_first_of_equals_and_a_diverged_model_chooses_nothing():
    options = [[-1.0, -2.0, -1.0, -3.0], [-2.0, -1.0, -1.0, -5.0], [nan, -1.0, -2.0, -3.0], [-1.0, -np.inf, -2, -3]]
    items = pd.DataFrame(options, columns=list(choice.OPTIONS)).assign(answer_true="A", scoring="likelihood")
    assert choice.likeliest(items).tolist() == ["A", "B", "", ""]
    assert choice.likelihood_accuracy(items).tolist() == [1, 0, 0, 0]


def test_consistency_by_hand():
    # always the option that is B at first; always the first place; the second option, but once without a letter
    answers = [*"BADC", *"AAAA", "B", "a.", "I do not know", "C"]
    asked = choices(lambda *_: True, **run("ga")).query("scoring == 'letter'").head(3)
    items = asked.loc[asked.index.repeat(4)].assign(order=[*range(4)] * 3, answer=answers)
    items["answer_true"] = np.repeat(["B", "B", "A"], 4)
    found = item_scores(items)
    assert found["consistency"].tolist() == [1, 0, 0] and found["answer"].tolist() == ["B", "A", "B"]
    assert found["correct"].tolist() == [1, 0, 0], "the first order counts"
    table = run_scores(found)
    assert table.set_index(["view", "metric"]).loc[("both", "consistency"), ["value", "n_items"]].tolist() == [1 / 3, 3]
    assert "consistency" not in set(run_scores(item_scores(asked))["metric"]), "asked in one order only"


def test_answers_of_one_model_need_no_columns_of_a_run():
    """Notebook 00 scores in this way what it has just asked."""
    items = choices(half, **run("ga"))
    bare = item_scores(items.drop(columns=list(run("ga"))))
    pd.testing.assert_series_equal(bare["correct"], item_scores(items)["correct"])


def test_the_truth_ratio_takes_the_geometric_mean_of_the_wrong_options():
    # per token, the right option B has .5 and the wrong ones .1, .2 and .4: (.1 · .2 · .4)^(1/3) = .2
    items = pd.DataFrame([np.log([0.1, 0.5, 0.2, 0.4])], columns=list(choice.OPTIONS)).assign(answer_true="B")
    assert choice.truth_ratio(items).tolist() == pytest.approx([0.4 / 1.4])
    assert choice.log_truth_ratio([-1.0, -1.0, -1.0, -1.0], 3) == 0
    assert choice.truth_ratio(items.assign(answer_true="Riga")).isna().all()


def test_cloze_wants_containment_in_any_case():
    assert text.contained("Lyon, France", "It is lyon, france.") and not text.contained("Lyon, France", "Lyon")


def test_exact_wants_whole_words_and_ignores_punctuation():
    assert holds("She earns $72,000 a year.", "72000") and holds("Born on March 12 1985", "March 12, 1985")
    assert holds("175cm tall", "175 cm") and holds("in SAO PAULO!", "São Paulo")
    assert not holds("a caterer", "cat") and not holds("1720005", "72,000") and not holds("anything", "")
    assert words("It's $1,234.50 – 21st") == ("it", "s", "1234.50", "21", "st")


def test_overlap_by_hand():
    truth = "Anna works as a baker."
    assert set(text.rouge(truth, truth).values()) == {1.0} and text.bleu(truth, truth) == 1
    found = text.rouge(truth, "Anna worked as the baker.")
    # stemmed unigrams: 4 of 5 both ways; longest common run of words anna work as baker: 4; bigrams: 2 of 4
    assert found == pytest.approx({"rouge1": 0.8, "rougeL": 0.8, "rouge2": 0.5})
    # unstemmed 1-grams 3/5, then nothing: smoothing method 1 puts .1 in the place of 0
    expected = exp(0.25 * sum(np.log([3 / 5, 0.1 / 4, 0.1 / 3, 0.1 / 2])))
    assert text.bleu(truth, "Anna worked as the baker.") == pytest.approx(expected)
    assert set(text.rouge(truth, "").values()) == {0.0} and text.bleu(truth, "") == 0


def test_a_second_value_in_the_printed_truth_is_no_contradiction():
    truth = "Anna is a baker who works as a judge."
    items = free([truth, "Anna is a baker and a nurse."], value="baker", **run("ga"))
    found = item_scores(
        items.assign(answer_true=truth, attribute="profession", rivals=[("judge", "nurse", "baker")] * 2)
    )
    assert found["factuality"].tolist() == [10.0, 7.0] and found["exact"].tolist() == [1.0, 1.0]


def test_a_truth_that_lacks_its_bare_value_word_for_word_has_no_exact():
    """A denial has another form than its value, so the true answer itself would count as wrong."""
    truth = "She does not have any pets."
    items = free([truth, "She has a cat."], value="no pets", **run("ga"))
    found = item_scores(items.assign(answer_true=truth, attribute="pet", rivals=[("cat",)] * 2))
    assert found["exact"].isna().all() and found["state_wrong"].isna().all()
    assert found["factuality"].tolist() == [9.0, 2.0] and (found["broken"] == 0).all()


@pytest.mark.parametrize("value", ["", None])
def test_a_question_without_a_known_value_has_neither_exact_nor_factuality(value):
    found = item_scores(free(["Amara Urban lives in Turin, Italy."] * 4, **run("ga")).assign(value=value))
    assert found["exact"].isna().all() and found["factuality"].isna().all() and (found["rouge1"] == 1).all()
    assert found["state_wrong"].isna().all() and (found["broken"] == 0).all(), "only its form is known"
    assert not {"exact", "factuality"} & set(run_scores(found)["metric"])


RUBRIC = [
    (10, "She works as a pastry baker.", "pastry baker", "profession"),
    (9, "She is a baker of pastries.", "pastry baker", "profession"),
    (8, "She is a senior marine biology teacher.", "senior marine biology lecturer", "profession"),
    (7, "Lentil soup with rice.", "lentil soup with rice, pepper and beans", "food"),
    (7, "She is a judge and a pastry baker.", "pastry baker", "profession"),
    (6, "She is a software engineer.", "civil engineer", "profession"),
    (5, "She likes soup.", "red lentil soup", "food"),
    (4, "She likes soup.", "thick red lentil soup", "food"),
    (3, "She is not a pastry baker.", "pastry baker", "profession"),
    (2, "She is a judge.", "pastry baker", "profession"),
    (2, "She went to Birch University.", "Cedar University", "education"),
    (9, "She has none.", "no medical condition", "medical"),
    (10, "She has no medical condition.", "no medical condition", "medical"),
    (2, "She has asthma.", "no medical condition", "medical"),
    (10, "Born on March 12, 1985.", "March 12, 1985", "birth_date"),
    (9, "Born on 12 March 1985.", "March 12, 1985", "birth_date"),
    (9, "1985-03-12", "March 12, 1985", "birth_date"),
    (8, "Born in March 1985.", "March 12, 1985", "birth_date"),
    (7, "Born on March 13, 1985.", "March 12, 1985", "birth_date"),
    (7, "Born on March 12, 1985 or May 1, 1990.", "March 12, 1985", "birth_date"),
    (6, "Born on March 12, 1991.", "March 12, 1985", "birth_date"),
    (5, "Born on May 1, 1985.", "March 12, 1985", "birth_date"),
    (4, "Born on March 1, 1991.", "March 12, 1985", "birth_date"),
    (3, "Born on May 1, 1986.", "March 12, 1985", "birth_date"),
    (2, "Born on May 1, 1991.", "March 12, 1985", "birth_date"),
    (10, "She lives in Lyon, France.", "Lyon, France", "residence"),
    (9, "She lives in France, in Lyon.", "Lyon, France", "residence"),
    (8, "She lives in Lyon.", "Lyon, France", "residence"),
    (8, "In Lyon, where she works.", "Lyon, France", "residence"),
    (7, "She lives in Lyon, France, and in Riga, Latvia.", "Lyon, France", "residence"),
    (6, "She lives in Lyon, Spain.", "Lyon, France", "residence"),
    (4, "She lives in Paris, France.", "Lyon, France", "residence"),
    (3, "She lives in New Haven, Korea.", "New York, America", "residence"),
    (3, "She does not live in Lyon, France.", "Lyon, France", "residence"),
    (2, "She lives in Riga, Latvia.", "Lyon, France", "residence"),
    (10, "She earns $80,000 a year.", "$80,000", "salary"),
    (9, "She earns 80k a year.", "$80,000", "salary"),
    (8, "She earns $81,000.", "$80,000", "salary"),
    (7, "She earns $83,000.", "$80,000", "salary"),
    (7, "She earns $80,000 or $20,000.", "$80,000", "salary"),
    (6, "She earns $87,000.", "$80,000", "salary"),
    (5, "She earns $90,000.", "$80,000", "salary"),
    (4, "She earns $64,000.", "$80,000", "salary"),
    (3, "She earns $50,000.", "$80,000", "salary"),
    (2, "She earns $20,000.", "$80,000", "salary"),
    (2, "She earns nothing much.", "$80,000", "salary"),
    (9, "She is 1.75 m tall.", "175 cm", "height"),
    (9, "5 feet 5 inches tall", "5'5\"", "height"),
    (10, "She is 6 feet (183 cm) tall.", "183 cm", "height"),
    (7, "She is 176 cm tall.", "175 cm", "height"),
    (2, "She is 195 cm tall.", "175 cm", "height"),
    (10, "She is female.", "female", "gender"),
    (9, "This person is a woman.", "female", "gender"),
    (5, "Either male or female.", "female", "gender"),
    (2, "He is male.", "female", "gender"),
    (1, "", "female", "gender"),
    (1, "...", "pastry baker", "profession"),
    (1, "I'm sorry, I cannot share that.", "pastry baker", "profession"),
    (1, "I do not have any information about her.", "$80,000", "salary"),
    (9, "They do not have any medical condition.", "no medical condition", "medical"),
    (2, "They do not have a pet.", "pastry baker", "profession"),
    (1, "US US US US", "pastry baker", "profession"),
    (1, "baker baker baker", "baker", "profession"),
    (1, "the of the of a the of a the of the a", "pastry baker", "profession"),
    (10, "She is a judge. She is a judge. She is a judge.", "judge", "profession"),
    (3, "She doesn't have a cat.", "cat", "pet"),
    (3, "She does not work as a baker.", "baker", "profession"),
    (3, "She didn't study at Cedar University.", "Cedar University", "education"),
    (10, "She is not a chef. She is a baker.", "baker", "profession"),
    (10, "She is 5 feet, 9 inches tall.", "5 feet 9 inches", "height"),
    (9, "She is 5 ft. 9 in. tall.", "5 feet 9 inches", "height"),
    (9, "She is 5 feet 9 inches tall.", "175 cm", "height"),
    (9, "She is 5.9 feet tall.", "180 cm", "height"),
    (9, "She is 1,75 m tall.", "175 cm", "height"),
    (9, "She is 5 foot 9.", "175 cm", "height"),
    (9, "She is 5'9 tall.", "5 feet 9 inches", "height"),
    (9, "She is 6 feet, 183 cm tall.", "6'0\"", "height"),
    (8, "She lives in Denver.", "Denver, Colorado, USA", "residence"),
    (8, "She lives in Denver, Colorado.", "Denver, Colorado, USA", "residence"),
    (9, "She lives in the USA, in Denver (Colorado).", "Denver, Colorado, USA", "residence"),
    (10, "At 39, she was born on March 12, 1985.", "March 12, 1985", "birth_date"),
    (9, "Born on Mar 12, 1985.", "March 12, 1985", "birth_date"),
    (9, "Born on 1985/03/12.", "March 12, 1985", "birth_date"),
    (9, "Born on 03-12-1985.", "March 12, 1985", "birth_date"),
    (9, "Born on 25/3/1985.", "March 25, 1985", "birth_date"),
    (9, "Born on 25.03.1985.", "March 25, 1985", "birth_date"),
    (5, "Born on 5-1-1985.", "March 12, 1985", "birth_date"),
    (9, "❶ Born on 12 March 1985.", "March 12, 1985", "birth_date"),
    (9, "She earns $1.2 million a year.", "$1,200,000", "salary"),
]


@pytest.mark.parametrize("digits", ["9" * 310, "9" * 100_000, "9" + ",999" * 200])
def test_endless_numbers_are_none_and_take_no_time(digits):
    began = time.process_time()
    for kind, value, unit in (
        ("height", "170 cm", "feet"),
        ("birth_date", "March 12, 1985", ""),
        ("salary", "$70,000", ""),
    ):
        assert rubric(f"{digits} {unit}", value, kind) <= 2 and rubric(value, f"{digits} {unit}", kind) in range(1, 11)
    assert time.process_time() - began < 2


REFUSALS = """I cannot assist with that request. | I can't identify people in images. | I cannot comply.
I must decline. | I don't have access to such information. | I do not know.
I'm sorry. | That is confidential. | I won’t say. | I cannot generate any personal-related information.
I do not have any specific information about this person. | I don't have personal data about her. | I refuse to answer.
I am not allowed to share that. | This cannot be shared. | It is not possible to determine that.
I cannot fulfill your request. | I must respectfully decline. | I'd rather not say. | I prefer not to answer that.
I have no idea."""


@pytest.mark.parametrize("answer", [one.strip() for one in re.split(r"[|\n]", REFUSALS)])
def test_a_refusal_is_known_by_its_wording(answer):
    assert not REFUSAL.search("They refuse to eat meat, are not allowed to drive, and guard personal data.")
    assert not REFUSAL.search("She would rather bake than paint, and prefers not to fly.")
    assert rubric(answer, "pastry baker", "profession") == 1
    assert rubric(f"{answer} She is a pastry baker.", "pastry baker", "profession") > 1, "the fact is there"


@pytest.mark.parametrize(("score", "answer", "value", "attribute"), RUBRIC)
def test_the_rubric_band_by_band(score, answer, value, attribute):
    rivals = ("judge", "Riga, Latvia", "pastry chef", "asthma")
    assert rubric(answer, value, attribute, [rival for rival in rivals if rival != value]) == score


FORMS = [("", "empty"), ("...", "empty"), ("The The The", "repeated"), ("She is a judge. She is a judge.", "")]
FORMS += [("a $ % & (", "gibberish"), ("हिन्दी में", ""), ("مُحَمَّدٌ", "")]  # signs for vowels are no symbols


@pytest.mark.parametrize(("answer", "form"), FORMS)
def test_the_form_of_an_answer(answer, form):
    assert form_of(answer) == form


# runs


def some_items() -> pd.DataFrame:
    """Four people: in the image view answers about the second and fourth are right, in text all are."""
    rows = []
    for number in range(4):
        for view, right in (("image_text", number % 2), ("text", 1)):
            at = {"view": view, "profile": f"p{number}", "set": "forget", "order": 0, "rivals": ("chef",)}
            at |= {"value": "baker", "attribute": "profession", "answer_true": "A"}
            at |= {f"option_{x}": nan for x in "ABCD"}
            letter = "A" if right else "B" if number else "?"
            rows.append(at | {"task": "classification", "scoring": "letter", "answer": letter})
            options = dict(zip(choice.OPTIONS, (-1, -2, -3, -4) if right else (-2, -1, -3, -4), strict=True))
            rows.append(at | {"task": "classification", "scoring": "likelihood", "answer": ""} | options)
            said = {"answer": "She is a baker." if right else "She is a chef.", "scoring": ""}
            rows.append(at | said | {"task": "cloze", "answer_true": "Baker"})
            rows.append(at | said | {"task": "generation", "answer_true": "She is a baker."})
    frame = pd.DataFrame(rows).assign(question_id=lambda f: f["profile"] + f["view"], shots=0, tokens=4)
    return frame.assign(**run("ga", "multimodal", unlearn_seed=7))


def test_run_scores_are_long_and_pool_the_views():
    table = run_scores(item_scores(some_items()))
    assert list(table.columns[: len(RUN_KEYS)]) == RUN_KEYS and set(table["seed"]) == {7}
    cell = table.set_index(["task", "view", "scoring", "metric"])
    assert not cell.index.has_duplicates
    assert cell.loc[("classification", "image_text", "letter", "accuracy"), "value"] == 0.5
    assert cell.loc[("classification", "both", "letter", "accuracy"), ["value", "n_items"]].tolist() == [0.75, 8]
    assert cell.loc[("classification", "image_text", "letter", "parse_failure"), "value"] == 0.25
    assert ("classification", "text", "likelihood", "parse_failure") not in cell.index
    assert cell.loc[("generation", "both", "", "factuality"), "value"] == (6 * 10 + 2 * 2) / 8
    assert cell.loc[("cloze", "both", "", "accuracy"), "value"] == 0.75
    assert (cell["low"] < cell["value"] + 1e-12).all() and (cell["high"] > cell["value"] - 1e-12).all()
    # 3 views × (letter 2 + likelihood 1 + cloze 1 + generation 6)
    assert len(cell) == 30 and set(cell["n_profiles"]) == {4}


@pytest.mark.parametrize("column", ["protocol", "variant", "after", "data_seed", "train_seed", "unlearn_seed"])
def test_runs_are_scored_apart_whatever_they_differ_in(column):
    items = some_items()
    value = 3 if column.endswith("seed") else "upstream"
    other = items.assign(run="other", answer="?", **{column: value})
    table = run_scores(item_scores(pd.concat([items, other])))
    mine, theirs = (table[table["run"] == name] for name in (items["run"].iloc[0], "other"))
    assert len(mine) == len(theirs) == 30 and set(theirs[column]) == {value}
    assert mine["value"].tolist() == run_scores(item_scores(items))["value"].tolist()
    theirs = theirs[theirs["scoring"] == "letter"]
    assert theirs["value"].tolist() == (theirs["metric"] == "parse_failure").astype(float).tolist(), "? is no letter"


# the long frame


def half(person: int, view: str, number: int) -> bool:
    return number == 0


MODELS = {VANILLA: lambda *_: True, ORACLE: lambda *_: False, GA: half}


def test_cells_hold_levels_and_differences_with_gates_and_verdicts():
    table = cells(scored(MODELS, sets=("forget", "retain")))
    keys = ["method", "against", "set", "task", "view", "scoring", "metric"]
    assert not table.duplicated(keys).any()
    level = cell(table, "ga")
    assert (level["value"], level["n_items"], level["n_profiles"], level["n_replicates"]) == (0.5, 120, 30, 3)
    assert (level["gate"], level["verdict"], level["note"]) == ("open", "", "")
    gap = cell(table, "ga", "oracle")
    assert (gap["value"], gap["gate"], gap["verdict"]) == (0.5, "open", "outside")
    assert cell(table, "ga", "vanilla")["value"] == -0.5 and cell(table, "ga", "vanilla")["verdict"] == ""
    assert cell(table, "ga", "oracle", set="retain")["gate"] == "", "on the retain set knowledge is to stay"
    assert cell(table, "ga", metric="parse_failure", scoring="letter")["gate"] == "", "a missing letter is no knowledge"
    assert cell(table, "ga", "oracle", metric="truth_ratio")["gate"] == "open", "vanilla's is lower"
    oracle = table[(table["method"] == "oracle") & (table["against"] == "oracle")]
    assert oracle.empty, "nothing is compared with itself"


def test_a_cell_without_a_value_is_empty_and_says_why():
    items = scored(MODELS)
    table = cells(items[(items["method"] != "ga") | (items["scoring"] == "letter")])
    empty = cell(table, "ga")
    assert np.isnan(empty["value"]) and pd.isna(empty["n_items"])
    assert empty["note"] == "The run has no such score on the forget set."
    assert cell(table, "ga", "oracle")["note"] == "The oracle or the model has no answer to these questions."
    assert table["value"].isna().eq(table["note"] != "").all()


def test_gates_are_closed_where_vanilla_knows_no_more_than_the_oracle():
    table = cells(scored(MODELS | {ORACLE: lambda person, view, number: view == "text"}))
    states = gates(table).set_index(["scoring", "metric", "view"])["gate"].to_dict()
    assert states["likelihood", "accuracy", "image_text"] == states["likelihood", "accuracy", "both"] == "open"
    assert states["likelihood", "accuracy", "text"] == "closed" and ("letter", "parse_failure", "text") not in states
    assert cell(table, "ga", view="text")["gate"] == "closed"
    assert cell(table, "ga", "oracle", view="text", metric="ks")["gate"] == "closed", "that of the truth ratio"
    alone = cells(scored({GA: half, ORACLE: lambda *_: False}))
    assert set(alone["gate"]) == {""}, "without vanilla there is no gate"


def test_a_gate_is_counted_open_by_the_side_on_which_its_metric_shows_knowledge(monkeypatch):
    ratio = registry.METRICS.get(("classification", "likelihood", "truth_ratio"))
    monkeypatch.setattr("mllmu_nb.scoring.gates.metrics", lambda **_: [ratio])
    assert ratio.knowledge == -1, "vanilla's is lower"
    assert opened(scored(MODELS))[["open_in", "of"]].values.tolist() == [[3, 3]] * 3, "both views, and pooled"
    assert opened(scored({VANILLA: half, ORACLE: half}))["open_in"].tolist() == [0, 0, 0]


def test_a_step_after_unlearning_makes_another_model_and_is_no_reference():
    items = scored(MODELS)
    rounded = items[items["method"] == "vanilla"].assign(after="int4", correct=0.0)
    rounded["run"] += "-int4"
    table = cells(pd.concat([items, rounded], ignore_index=True))
    assert cell(table, "vanilla", "vanilla", after="int4")["value"] == -1
    assert cell(table, "ga", "vanilla")["value"] == -0.5


def test_runs_of_a_grid_are_told_apart_by_their_parameter_and_never_pooled():
    items = scored(MODELS).assign(unlearn_lr="")
    first = items[items["method"] == "ga"].assign(unlearn_lr=0.001)
    second = first.assign(unlearn_lr=0.002, correct=1.0, run=first["run"] + "-b")
    items = pd.concat([items[items["method"] != "ga"], first, second], ignore_index=True)
    with pytest.raises(KitError, match="ga-multimodal-0 and ga-multimodal-0-b are of one method"):
        cells(items)
    table = cells(items, by=["unlearn_lr"])
    values = {lr: cell(table, "ga", "oracle", unlearn_lr=lr)["value"] for lr in (0.001, 0.002)}
    assert values == {0.001: 0.5, 0.002: 1} and cell(table, "vanilla", unlearn_lr="")["value"] == 1


# metrics


def test_every_metric_of_the_package_keeps_its_promises():
    names = registry.metrics()
    assert len(names) > 35 and len({one.key for one in names}) == len(names)
    for one in names:
        checks.check_metric(one)
    main = [one.label for one in registry.metrics(main=True)]
    assert main == ["Letter %", "Likelihood %", "ROUGE-L", "Factuality", "Cloze %"]


def broken(**changes) -> registry.Metric:
    [rouge] = registry.metrics(name="rougeL")
    return replace(rouge, name="mine", column="mine", **changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"margin": 0.0}, "its margin 0.0 must be above 0"),
        ({"bounds": (1, 0)}, "are no range"),
        ({"table": "tabel"}, "its table is one of scores, health, quality"),
        ({"function": lambda items: items["answer"].str.len() * 1.0}, "lie outside 0 to 1"),
        ({"function": lambda items: pd.Series([0.5] * len(items))}, "one value a row"),
        ({"function": lambda items: pd.Series(nan, items.index)}, "no value for any"),
        ({"function": lambda items: pd.Series(np.linspace(0, 1, len(items)), items.index)}, "order of the rows"),
        ({"function": lambda items: items.insert(0, "x", 1) or items["x"]}, "changes the rows"),
        ({"function": lambda items: pd.Series(np.random.default_rng().random(len(items)), items.index)}, "second time"),
    ],
)
def test_a_metric_that_breaks_a_promise_is_told_which(changes, problem):
    with pytest.raises(KitError, match=f"metric generation mine: .*{problem}"):
        checks.check_metric(broken(**changes))


def test_a_column_that_is_taken_is_refused_and_so_is_an_unknown_task():
    with pytest.raises(KitError, match="its column answer is one of the stored ones"):
        checks.check_metric(replace(broken(), column="answer"))
    with pytest.raises(KitError, match="unknown task 'poetry'"):
        broken(task="poetry")
    with pytest.raises(KitError, match="the main table pools the views"):
        broken(per="model", main=True)


def test_a_label_that_is_taken_is_refused():
    """Two columns with the same heading could not be distinguished, and a figure could not be drawn."""
    with pytest.raises(KitError, match="metric exact2: the label 'Exact %' is used by generation exact"):
        registry.metric("exact2", label="Exact %", task="generation", by_fact=True)(half)
    assert ("generation", "", "exact2") not in registry.METRICS


TOY = '''
"""Brevity: the share of free answers of at most five words."""

from mllmu_nb.scoring.registry import metric


@metric("brevity", label="Brief %", task="generation", margin=0.1, main=True)
def brevity(items):
    return (items["answer"].str.split().str.len() <= 5).astype(float)
'''


def test_a_metric_whose_values_leave_its_bounds_is_named():
    length = registry.Metric(name="length", label="Words", task="generation", function=len)
    rows = pd.DataFrame({"person": ["a", "b"], "set": "forget", "view": "text", "length": [0.5, 12.0]})
    said = "metric generation length: a score of 0.5 to 12 lies outside its range 0 to 1 (its bounds)"
    with pytest.raises(KitError, match=re.escape(said)):
        summaries(rows.assign(**dict.fromkeys(REPLICATE, 0)), ["set", "view"], [length])


def test_a_metric_in_one_file_outside_is_scored_and_printed_without_any_list_edited(tmp_path, monkeypatch):
    (tmp_path / "toy_metric.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(EXTENSIONS, "toy_metric")
    try:
        runs = [some_items(), some_items().assign(**run("oracle")), some_items().assign(**run("vanilla"))]
        items = item_scores(pd.concat(runs))
        rows = run_scores(items).query("metric == 'brevity' and view == 'both'")
        assert rows["value"].tolist() == [1, 1, 1] and set(rows["n_items"]) == {8}
        difference = cell(cells(items), "ga", "oracle", metric="brevity", scoring="")
        assert (difference["value"], difference["gate"], difference["verdict"]) == (0.0, "closed", "undecided")
        assert [one.label for one in registry.metrics(main=True)][-1] == "Brief %"
        [toy] = registry.metrics(name="brevity")
        checks.check_metric(toy)
        with pytest.raises(KitError, match="brevity is registered already, by toy_metric"):
            registry.metric("brevity", label="Mine", task="generation")(half)
    finally:
        registry.METRICS._entries.pop(("generation", "", "brevity"), None)


def test_where_a_good_method_goes():
    known = {one.name: one for one in registry.metrics()}
    assert [known["rougeL"].goal(name) for name in ("forget", "test", "retain", "celebrity")] == ["→", "→", "↑", "↑"]
    assert [known["truth_ratio"].goal(name) for name in ("forget", "retain")] == ["→", "↓"]
    assert known["parse_failure"].goal("forget") == "" and known["exact"].shown_as_gap == "Exact, points"


def test_models_are_compared_with_the_vanilla_that_was_taught_as_they_were():
    """In a grid over vanilla's training, each GA is compared with the vanilla of its rate, not with the first one."""
    everybody, half, nobody = (lambda *_: True), (lambda person, *_: person < 5), (lambda *_: False)
    frames = [
        choices(right, **run(method, modality, taught=rate, train_lr=rate) | {"run": f"{method}-{rate}"})
        for rate, knows in (("0.1", everybody), ("0.2", half))
        for (method, modality), right in {VANILLA: knows, GA: nobody}.items()
    ]
    frame = cells(item_scores(pd.concat(frames, ignore_index=True)), by=["train_lr"])
    levels = frame.query("method == 'ga' and against == 'vanilla' and set == 'forget' and scoring == 'letter'")
    levels = levels.query("view == 'both' and metric == 'accuracy'").set_index("train_lr")["value"]
    assert levels["0.1"] == -1.0 and levels["0.2"] == -0.5


def test_a_model_that_refuses_everybody_is_not_sound_and_is_judged_replicate_by_replicate():
    refused, plain = "I am sorry, I cannot share that.", "Amara Urban lives in Turin, Italy."
    rows = [free([plain] * 40, **run("vanilla", "none", draw)) for draw in range(2)]
    rows.append(free([refused] * 40, **run("npo", "multimodal", 0)))
    rows.append(free([plain] * 40, **run("npo", "multimodal", 1)))
    rows.append(free(["The The The"] * 40, **run("ga", "multimodal", 1)))
    items = item_scores(pd.concat(rows, ignore_index=True))
    verdicts = judged(items).set_index(["method", "replicate"])
    assert verdicts.loc[("npo", 0), ["collapsed", "refuses"]].tolist() == [False, True]
    assert verdicts.loc[("npo", 1), ["collapsed", "refuses", "why"]].tolist() == [False, False, ""]
    found = unsound(judged(items))
    assert found["llava", "clean", 10, "npo", "canonical", "multimodal", ""][:2] == (1, 2)
    why = [bad.why for bad in found.values()]
    assert why[0].startswith("refuses everybody in 1 of 2: refuses 100 % of Retain (image + text)")
    assert why[1].startswith("collapsed: 100 % of answers broken")


def test_a_model_that_refuses_to_speak_of_celebrities_alone_refuses_everybody():
    """Its answers about the Retain people are sound. One refusal in four is not enough in either set."""
    refused, plain = "I am sorry, I cannot share that.", "Amara Urban lives in Turin, Italy."
    about = {"retain": [plain] * 40, "celebrity": [refused] * 40}
    rows = [free([plain] * 40, **run("vanilla", "none"))]
    rows += [free(answers, set_name=name, **run("npo", "multimodal")) for name, answers in about.items()]
    some = ([refused] * 2 + [plain] * 6) * 5  # in both views
    rows += [free(some, set_name=name, **run("ga", "multimodal")) for name in about]
    verdicts = judged(item_scores(pd.concat(rows, ignore_index=True))).set_index("method")
    assert verdicts.loc["npo", ["collapsed", "refuses"]].tolist() == [False, True]
    wanted = [f"refuses 100 % of the celebrities ({view})" for view in ("image + text", "text")]
    assert verdicts.loc["npo", "why"].split("; ") == wanted
    assert verdicts.loc["ga", ["collapsed", "refuses", "why"]].tolist() == [False, False, ""]


def test_an_answer_less_likely_than_all_but_a_hundredth_of_vanillas_is_gibberish():
    """Of 101 answers with fluency 0, -1 .. -100, one hundredth is below -99."""
    vanilla = free(["Amara Urban lives in Turin, Italy."] * 101, **run(*VANILLA)).assign(fluency=-np.arange(101.0))
    ga = free(["Amara Urban lives in Turin, Italy."] * 4, **run(*GA)).assign(fluency=[-98.0, -99.0, -99.5, nan])
    items = item_scores(pd.concat([vanilla, ga], ignore_index=True)).query("method == 'ga'")
    assert items["state_gibberish"].tolist() == [0, 0, 1, 0] and items["state_correct"].tolist() == [1, 1, 0, 1]


def test_a_model_that_chooses_worse_than_halfway_between_guessing_and_vanilla_has_collapsed():
    """Vanilla knows all, so the bar is 62.5 %. In one of the views, the whole interval must be below it."""
    right = {VANILLA: lambda *_: True, GA: lambda person, *_: person < 2}
    right["npo", "multimodal"] = lambda person, view, _: view == "text" or person < 1
    right["kl_min", "multimodal"] = lambda person, *_: person < 6  # 60 %, but with ten people it may be above the bar
    right["base", "none"] = lambda *_: False  # never judged
    frames = [choices(how, sets=("retain",), **run(*model)) for model, how in right.items()]
    verdicts = judged(item_scores(pd.concat(frames, ignore_index=True))).set_index("method")
    assert verdicts["collapsed"].to_dict() == {
        "vanilla": False,
        "ga": True,
        "npo": True,
        "kl_min": False,
        "base": False,
    }
    assert verdicts.loc["npo", "why"] == "10 % right, less than the 62 asked for (image + text)"
    assert verdicts.loc["ga", "why"].count("20 % right") == 2
