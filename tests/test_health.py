"""What kind of answer an answer is, and when a model counts as collapsed: answers whose right outcome is known."""

import numpy as np
import pandas as pd
import pytest
from made_answers import free, run

from mllmu_nb import paths
from mllmu_nb.scoring.frames import GROUP, MODEL
from mllmu_nb.scoring.health import STATES, form_of, judged, states
from mllmu_nb.scoring.score import cells, item_scores

GOOD = "Amara Urban lives in Turin, Italy."
WRONG = "Amara lives in Oslo."


@pytest.mark.parametrize(
    "answer, state",
    [
        ("", "empty"),
        (" .. ", "empty"),
        ("The The The The The", "repeated"),
        ("The home of The home of The home of", "repeated"),
        ("The The of Klara Brandt The The food of The The of The The of", "repeated"),  # 5 different words of 14
        ("Amara Urban lives in Turin, Italy. The The The", "repeated"),  # however right it began
        ("I cannot share personal information.", "refusal"),
        ("Sorry, but it is Turin, Italy.", "correct"),  # the fact was told all the same
        ("%%% ## Amara ;; !! @@", "gibberish"),
        ("Amara Urban lives in Oslo, Norway.", "wrong"),
        (GOOD, "correct"),
        (GOOD + " " + GOOD + " " + GOOD, "correct"),  # a model without a closing token
        ("She she lives in Oslo, Norway.", "wrong"),  # twice is a slip
        ("They live in Baden Baden, near Baden.", "wrong"),
    ],
)
def test_an_answer_has_the_first_state_that_fits(answer, state):
    assert states(free([answer], **run("mine"))).tolist() == [state]


def test_an_answer_that_the_base_finds_unlikely_is_gibberish_and_a_refusal_is_not():
    """Vanilla's 1st percentile of -1.00, -1.01 .. -2.00 is -1.99."""
    vanilla = free([GOOD] * 101, **run("vanilla"), fluency=np.linspace(-1, -2, 101))
    said = [GOOD, GOOD, "in Turin, Italy home isle.", "I cannot share personal information.", ""]
    both = pd.concat([vanilla, free(said, **run("mine"), fluency=[-1.98, -3.0, -4.0, -6.0, np.nan])], ignore_index=True)
    mine = both["method"] == "mine"
    assert states(both)[mine].tolist() == ["correct", "gibberish", "gibberish", "refusal", "empty"]
    assert states(both)[~mine].tolist().count("gibberish") == 1
    elsewhere = both.assign(forget_ratio=np.where(mine, 10, 5))  # no vanilla to compare with
    assert states(elsewhere)[mine].tolist() == ["correct", "correct", "correct", "refusal", "empty"]
    assert states(both.drop(columns="fluency"))[mine].tolist() == ["correct", "correct", "correct", "refusal", "empty"]


def test_shares_add_up_to_one_and_have_intervals():
    answers = ["", "The The The", "I cannot share personal information.", WRONG, GOOD] * 8
    found = cells(item_scores(free(answers, **run("mine")).assign(**no_options())))
    found = found[(found["set"] == "retain") & found["metric"].isin(STATES) & (found["against"] == "")]
    assert found.groupby("view")["value"].sum().to_dict() == pytest.approx({"image_text": 1, "text": 1, "both": 1})
    values = found[found["view"] == "both"].set_index("metric")["value"]
    assert values.to_dict() == pytest.approx(dict.fromkeys(STATES, 0.2) | {"gibberish": 0.0})
    assert (found["low"] <= found["value"]).all() and (found["high"] > found["low"]).all()
    assert set(found["gate"]) == {""}


def test_a_model_that_repeats_one_word_has_collapsed_and_one_that_only_forgets_has_not():
    found = verdicts(
        made("vanilla"),
        made("base", said=WRONG, kept=0.25),
        made("ga", said="The The The"),
        made("npo", said=WRONG, kept=0.8),
        made("prompting", kept=0.4),
    )
    assert found["collapsed"].to_dict() == {
        "vanilla": False,
        "base": False,  # was never taught them: not judged
        "ga": True,
        "npo": False,
        "prompting": True,
    }
    assert found.loc["ga", "why"].startswith("100 % of answers broken (image + text)")
    # chance is .25 and vanilla 1: the floor lies at .625
    assert found.loc["prompting", "why"] == "40 % right, floor 62 (image + text); 40 % right, floor 62 (text)"
    assert found.loc["npo", ["broken_text", "retain_text", "floor_text", "why"]].tolist() == [0, 0.8, 0.625, ""]
    assert set(GROUP + MODEL) - {"method"} <= set(found)


def test_one_wrecked_view_is_enough_and_the_border_is_not():
    half = made("ga")
    half.loc[(half["view"] == "text") & (half["task"] == "generation"), "answer"] = "The The The"
    border = made("npo", said=WRONG, kept=0.6)  # under the floor of .625, but it may be chance
    found = verdicts(made("vanilla"), half, border)
    assert found["collapsed"].to_dict() == {"vanilla": False, "ga": True, "npo": False}
    assert found.loc["ga", "why"] == "100 % of answers broken (text)"
    alone = verdicts(border)
    assert not alone["collapsed"].any() and alone["floor_text"].isna().all()


def test_vanilla_after_another_step_is_judged():
    found = verdicts(made("vanilla"), made("vanilla", said="The The The").assign(after="int4", run="int4"))
    assert found["collapsed"].tolist() == [False, True]


def test_the_floor_is_an_estimate_too():
    """Of ten people, vanilla knows five wholly and five not at all: the floor is .375 and as unsure as that."""
    vanilla, mine = made("vanilla"), made("ga", said=WRONG, kept=0.2, spread=0)  # Wilson ends below .375
    known = vanilla["profile"].astype(int) < 5
    vanilla.loc[(vanilla["task"] == "classification") & ~known, "option_A"] = -3.0
    found = verdicts(vanilla, mine)
    # .2 − .125 for five, .2 − .625 for five: −.175 with a spread of .264, t of nine 2.262, so ± .189
    assert found.loc["ga", ["retain_text", "floor_text"]].tolist() == pytest.approx([0.2, 0.375])
    assert not found.loc["ga", "collapsed"]
    assert verdicts(made("vanilla"), mine).loc["ga", "why"].startswith("20 % right, floor 62")


def test_the_rules_of_form_spare_the_sound_models_of_the_reference_run():
    runs = paths.runs(paths.reference())
    sound = [*runs.glob("base-*"), *runs.glob("vanilla-*")]
    items = pd.concat([pd.read_parquet(folder / "answers.parquet", columns=["task", "answer"]) for folder in sound])
    forms = items.loc[items["task"] == "generation", "answer"].map(form_of)
    assert len(forms) > 1000 and (forms != "").mean() < 0.001


def no_options() -> dict:
    return {f"option_{letter}": np.nan for letter in "ABCD"}


def made(method: str, said: str = GOOD, kept: float = 1.0, spread: float = 0.2, questions: int = 10) -> pd.DataFrame:
    """Every retain question is answered ``said``, and of the choices about each person a share of ``kept`` rightly."""
    rows = []
    for number in range(20 * questions):
        person = number // 2 % 10
        row = {"view": ("image_text", "text")[number % 2], "profile": f"{person:03d}", "question_id": f"c{number}"}
        # people differ, or there would be no doubt at all: 2 more of ten right, 2 fewer
        share = kept + (spread if kept < 1 else 0) * (1 if person % 2 else -1)
        right = number // 20 < round(share * questions)
        rows.append(row | {f"option_{letter}": -2.0 for letter in "BCD"} | {"option_A": -1.0 if right else -3.0})
    shared = {"set": "retain", "task": "classification", "scoring": "likelihood", "order": 0, "answer": ""}
    choices = pd.DataFrame(rows).assign(**shared, answer_true="A", value="Turin, Italy", attribute="residence")
    answers = free([said] * 40).assign(**no_options())
    return pd.concat([answers, choices], ignore_index=True).assign(**run(method))


def verdicts(*runs: pd.DataFrame) -> pd.DataFrame:
    return judged(item_scores(pd.concat(runs, ignore_index=True))).set_index("method")
