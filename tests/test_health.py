"""What kind of answer an answer is, and when a model counts as collapsed: answers whose right outcome is known."""

import numpy as np
import pandas as pd
import pytest

from mllmu_nb import paths
from mllmu_nb.reporting import Run, all_items, health, read_runs

GOOD = "Amara Urban lives in Turin, Italy."


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
    found = health.answers(free("mine", [answer]))
    assert found["state"].tolist() == [state]


def test_an_answer_that_the_base_finds_unlikely_is_gibberish_and_a_refusal_is_not():
    """Vanilla's 1st percentile of -1.00, -1.01 .. -2.00 is -1.99."""
    vanilla = free("vanilla", [GOOD] * 101, fluency=np.linspace(-1, -2, 101))
    said = [GOOD, GOOD, "in Turin, Italy home isle.", "I cannot share personal information.", ""]
    mine = free("mine", said, fluency=[-1.98, -3.0, -4.0, -6.0, np.nan])
    both = pd.concat([vanilla, mine], ignore_index=True)
    states = health.answers(both).groupby("method")["state"].apply(list)
    assert states["mine"] == ["correct", "gibberish", "gibberish", "refusal", "empty"]
    assert states["vanilla"].count("gibberish") == 1
    elsewhere = both.assign(forget_ratio=both["method"].map({"vanilla": 5, "mine": 10}))  # no vanilla to compare with
    states = health.answers(elsewhere).groupby("method")["state"].apply(list)
    assert states["mine"] == ["correct", "correct", "correct", "refusal", "empty"]


def test_shares_add_up_to_one_and_have_intervals():
    answers = ["", "The The The", "I cannot share personal information.", "Amara lives in Oslo.", GOOD] * 8
    found = health.shares(free("mine", answers))
    assert set(found["state"]) == set(health.STATES) and set(found["view"]) == {"image_text", "text", "both"}
    assert found.groupby("view")["value"].sum().tolist() == pytest.approx([1, 1, 1])
    values = found[found["view"] == "both"].set_index("state")["value"]
    assert values.to_dict() == pytest.approx(dict.fromkeys(health.STATES, 0.2) | {"gibberish": 0.0})
    assert (found["low"] <= found["value"]).all() and (found["high"] > found["low"]).all()


def test_a_model_that_repeats_one_word_has_collapsed_and_one_that_only_forgets_has_not():
    judged = health.collapsed(
        [run_of("vanilla"), run_of("base", said="Amara lives in Oslo.", kept=0.25), run_of("ga", said="The The The")]
        + [run_of("npo", said="Amara lives in Oslo.", kept=0.8), run_of("prompting", kept=0.4)]
    )
    flat = judged.reset_index().set_index("method")
    assert flat["collapsed"].to_dict() == {
        "vanilla": False,
        "base": False,  # was never taught them: not judged
        "ga": True,
        "npo": False,
        "prompting": True,
    }
    assert flat.loc["ga", "why"].startswith("100 % of answers broken (image + text)")
    # chance is .25 and vanilla 1: the floor lies at .625
    assert flat.loc["prompting", "why"] == "40 % right, floor 62 (image + text); 40 % right, floor 62 (text)"
    assert flat.loc["npo", ["broken_text", "retain_text", "floor_text", "why"]].tolist() == [0, 0.8, 0.625, ""]
    assert list(judged.index.names) == health.KEY


def test_one_wrecked_view_is_enough_and_the_border_is_not():
    half = run_of("ga")
    text = half.items["view"] == "text"
    half.items.loc[text & (half.items["task"] == "generation"), "answer"] = "The The The"
    border = run_of("npo", said="Amara lives in Oslo.", kept=0.6)  # under the floor of .625, but it may be chance
    judged = health.collapsed([run_of("vanilla"), half, border]).reset_index().set_index("method")
    assert judged["collapsed"].to_dict() == {"vanilla": False, "ga": True, "npo": False}
    assert judged.loc["ga", "why"] == "100 % of answers broken (text)"
    alone = health.collapsed([border])
    assert not alone["collapsed"].any() and alone["floor_text"].isna().all()


def test_the_floor_is_an_estimate_too():
    """Of ten people, vanilla knows five wholly and five not at all: the floor is .375 and as unsure as that."""
    vanilla, mine = run_of("vanilla"), run_of("ga", said="Amara lives in Oslo.", kept=1.0)
    chosen, number = (run.items["task"] == "classification" for run in (vanilla, mine)), vanilla.items["profile"]
    of_vanilla, of_mine = chosen
    vanilla.items.loc[of_vanilla, "correct"] = (number[of_vanilla].astype(int) < 5).astype(float)
    nth = mine.items.loc[of_mine, "question_id"].str[1:].astype(int) // 20
    mine.items.loc[of_mine, "correct"] = (nth < 2).astype(float)  # .2 of everybody's: Wilson ends below .375
    judged = health.collapsed([vanilla, mine]).reset_index().set_index("method")
    # .2 − .125 for five, .2 − .625 for five: −.175 with a spread of .264, t of nine 2.262, so ± .189
    assert judged.loc["ga", ["retain_text", "floor_text"]].tolist() == pytest.approx([0.2, 0.375])
    assert not judged.loc["ga", "collapsed"]
    vanilla.items.loc[of_vanilla, "correct"] = 1.0
    judged = health.collapsed([vanilla, mine]).reset_index().set_index("method")
    assert judged.loc["ga", "why"].startswith("20 % right, floor 62")


def test_the_rules_of_form_spare_the_sound_models_of_the_reference_run():
    runs = read_runs(paths.committed_runs("miniature"))
    sound = all_items([run for run in runs if run["method"] in ("base", "vanilla")])
    states = sound.loc[sound["task"] == "generation", "answer"].map(health.form_of)
    assert len(states) > 1000 and (states != "").mean() < 0.001


def free(method, answers, value="Turin, Italy", **columns):
    """Free answers about ten people on the retain set, the views by turns."""
    rows = []
    for number, answer in enumerate(answers):
        at = {"set": "retain", "task": "generation", "view": ("image_text", "text")[number % 2], "scoring": ""}
        at |= {"profile": f"{number // 2 % 10:03d}", "question_id": f"g{number}", "value": value, "answer": answer}
        rows.append(at | {"exact": float(health.holds(answer, value)), "correct": np.nan})
    shared = {"run": method, "base_model": "llava", "forget_ratio": 10, "forget_draw": 0, "method": method}
    shared |= {"protocol": "clean", "variant": "canonical", "modality": "none"}
    return pd.DataFrame(rows).assign(**shared, data_seed=0, train_seed=0, **columns)


def run_of(method, said=GOOD, kept=1.0, questions=10):
    """A run that answers every retain question ``said`` and of the choices about each person a share of ``kept``."""
    answers = free(method, [said] * 40)
    choices = []
    for number in range(20 * questions):
        at = {"view": ("image_text", "text")[number % 2], "profile": f"{number // 2 % 10:03d}"}
        # people differ, or there would be no doubt at all: 2 more of ten right, 2 fewer
        share = kept + (0.2 if kept < 1 else 0) * (1 if number // 2 % 2 else -1)
        choices.append(at | {"question_id": f"c{number}", "correct": float(number // 20 < round(share * questions))})
    shared = answers.iloc[0].drop(["view", "profile", "question_id", "correct", "answer", "exact"]).to_dict()
    shared |= {"task": "classification", "scoring": "likelihood", "answer": "A", "exact": np.nan}
    items = pd.concat([answers, pd.DataFrame(choices).assign(**shared)], ignore_index=True)
    return Run(method, items, {}, {})
