"""Forget quality, truth ratios and taught sentences: cases by hand, and models known to know or not to know."""

import numpy as np
import pandas as pd
import pytest
from made_answers import cell, run

from mllmu_nb.scoring import sentences
from mllmu_nb.scoring.frames import PEOPLE
from mllmu_nb.scoring.registry import by_key
from mllmu_nb.scoring.score import cells, item_scores

FAR = 1e4  # largest stored deviation


def test_extraction_strength_counts_right_tokens_from_the_end():
    four = [[True, True, True, True], [True, True, True, False], [True, False, True, True]]  # only the last wrong: 0
    assert sentences.strength(np.array(four)) == pytest.approx([1, 0, 2 / 4])  # k = 2 of 4
    assert sentences.strength(np.array([[False, True, True, True, True]])) == pytest.approx([4 / 5])
    assert sentences.strength(np.array([[False], [True]])).tolist() == [0, 1]


def test_scores_of_a_sentence_by_hand():
    values = np.array([[-1.0, -9.0, -2.0, -3.0, -0.5, -7.0, -4.0, -0.1, -0.2, -0.3], np.arange(-10.0, 0.0)])
    assert sentences.least(values) == pytest.approx([-8.0, -9.5])  # the mean of two of ten
    assert sentences.least(values[:, :4]).tolist() == [-9.0, -10.0]  # a fifth of four is less than one: take one
    half = np.array([-1.0, -np.inf], np.float16)  # a value too small for half precision counts as its smallest
    frame = pd.DataFrame({"right": [np.array([True, False, True, True])], "log_probs": [half], "zlib_bytes": 2})
    assert sentences.exact_memorisation(frame).tolist() == [0.75]
    per_byte = by_key()["taught", "", "zlib"].function
    assert sentences.loss(frame).tolist() == [-65505 / 2] and per_byte(frame).tolist() == [-65505 / 4]


def test_sentences_of_any_length_keep_their_order():
    lengths = [3, 1, 3, 2]
    frame = pd.DataFrame(
        {"log_probs": [np.full(length, -float(n)) for n, length in enumerate(lengths)]}, index=[7, 5, 3, 1]
    )
    assert sentences.loss(frame).to_dict() == {7: 0, 5: -1, 3: -2, 1: -3}


def made(method: str, p_right: float, log_p: float, fresh: int = 25, people: int = 10):
    """Return choices and sentences of a run, whose model gives the true option ``p_right``, taught tokens ``log_p`` and
    tokens of fresh people −3."""
    rng = np.random.default_rng(len(method))
    columns = run(method, "multimodal" if method == "ga" else "none")
    rows, read = [], []
    for view in ("image_text", "text"):
        for n in range(people * 5):
            options = np.log([p_right, *[(1 - p_right) / 3] * 3]) + rng.normal(0, 0.1, 4)
            row = {"set": "forget", "task": "classification", "view": view, "scoring": "likelihood", "order": 0}
            row |= {"profile": f"{n // 5:03d}", "question_id": f"{n // 5:03d}/classification/{view}/{n % 5}"}
            row |= {"answer": "", "answer_true": "A", "value": "x", "attribute": "job"}
            rows.append(row | {f"option_{x}": v for x, v in zip("ABCD", options, strict=True)})
        for member, count, level in (("forget", people, log_p), ("fresh", fresh, -3.0)):
            for n in range(count * 14):
                values, who = rng.normal(level, 1, 6), f"{member}{n // 14}"
                row = {"profile": who, "member": member, "view": view, "zlib_bytes": 40}
                row |= {"question_id": f"{who}/finetuning/{view}/{n % 14}", "log_probs": values}
                read.append(row | {"spread": values, "right": values > -2})
    return pd.DataFrame(rows).assign(**columns), pd.DataFrame(read).assign(**columns)


def measured(*runs) -> pd.DataFrame:
    items, read = (pd.concat(frames, ignore_index=True) for frames in zip(*runs, strict=True))
    return cells(item_scores(items), read)


def quality(table: pd.DataFrame, method: str, metric: str, against: str = "", view: str = "text") -> dict:
    scoring = "likelihood" if metric in ("truth_ratio", "ks", "ks_log10_p", "js", "js_chance") else ""
    return cell(table, method, against, view=view, metric=metric, scoring=scoring)


@pytest.fixture(scope="module")
def knowing() -> pd.DataFrame:
    return measured(made("vanilla", 0.9, -0.1), made("ga", 0.25, -3.0), made("oracle", 0.25, -3.0))


def test_a_model_that_knows_is_told_from_the_oracle_by_every_metric(knowing):
    ratio = quality(knowing, "vanilla", "truth_ratio")
    assert ratio["value"] == pytest.approx(1 / (1 + 0.9 / (0.1 / 3)), abs=0.02)
    far, near = (quality(knowing, method, "ks_log10_p", "oracle")["value"] for method in ("vanilla", "ga"))
    assert far < -20 < -2 < near
    distance, chance = (quality(knowing, "vanilla", metric, "oracle") for metric in ("js", "js_chance"))
    assert distance["value"] > chance["value"] and distance["n_items"] == 50 and np.isnan(distance["low"])
    for metric in ("exact_memorisation", "extraction_strength", "loss", "auc_loss", "auc_zlib", "auc_min_k"):
        level, gap = quality(knowing, "vanilla", metric), quality(knowing, "vanilla", metric, "oracle")
        assert gap["low"] > 0 and level["low"] < level["value"] <= level["high"]
        gap = quality(knowing, "ga", metric, "oracle")
        assert gap["low"] < 0.1 and gap["high"] > -0.1
    assert quality(knowing, "vanilla", "tpr_1_loss")["value"] > 0.9
    assert quality(knowing, "oracle", "tpr_5_loss")["value"] < 0.15
    assert quality(knowing, "vanilla", "auc_loss")["n_items"] == 35 * 14
    assert knowing["value"].isna().eq(knowing["note"] != "").all(), "a value or a reason, never both or neither"


def test_a_metric_by_which_vanilla_knows_nothing_has_a_closed_gate():
    # choices know, sentences do not: there was something to forget by the truth ratio, but not by what was taught
    table = measured(made("vanilla", 0.9, -3.0), made("ga", 0.25, -3.0), made("oracle", 0.25, -3.0))
    for metric in ("ks", "js_chance", "truth_ratio"):
        assert {quality(table, method, metric, "oracle")["gate"] for method in ("vanilla", "ga")} == {"open"}
    for metric in ("extraction_strength", "loss", "auc_loss", "tpr_5_loss", "tpr_1_min_k_pp"):
        assert {quality(table, method, metric)["gate"] for method in ("vanilla", "ga", "oracle")} == {"closed"}
    assert set(measured(made("ga", 0.25, -3.0), made("oracle", 0.25, -3.0))["gate"]) == {""}


def test_distances_and_rates_have_limits_over_replicates():
    """Ten people each, whom three vanillas know more or less well; a single run has limits over people alone."""
    runs = []
    for replicate, (p_right, log_p) in enumerate([(0.3, -0.1), (0.27, -1.5), (0.25, -2.5)]):
        for one in (made("vanilla", p_right, log_p), made("oracle", 0.25, -3.0)):
            name = f"{one[0]['run'].iloc[0]}-{replicate}"
            runs.append(tuple(frame.assign(replicate=replicate, run=name) for frame in one))
    table, alone = measured(*runs), measured(*runs[:2])
    for metric, against in (("ks", "oracle"), ("js", "oracle"), ("tpr_5_loss", ""), ("tpr_5_loss", "oracle")):
        row, one = (quality(known, "vanilla", metric, against) for known in (table, alone))
        assert -1 <= row["low"] < row["value"] < row["high"] <= 1 and row["high"] - row["low"] > 0.1, metric
        assert one["value"] > row["value"] and np.isnan(one["low"]) == (metric in ("ks", "js"))
        assert (row["n_replicates"], one["n_replicates"]) == (3, 1) and row["n_items"] == 3 * one["n_items"]
    assert np.isnan(quality(table, "vanilla", "ks_log10_p", "oracle")["low"])


def test_a_gap_is_judged_by_its_margin():
    runs = [made("vanilla", 0.9, -0.1, people=40), made("ga", 0.25, -3.0, people=40)]
    table = measured(*runs, made("oracle", 0.25, -3.0, people=40))
    for metric in ("truth_ratio", "exact_memorisation", "extraction_strength", "auc_loss"):
        assert quality(table, "vanilla", metric, "oracle")["verdict"] == "outside"
        assert quality(table, "ga", metric, "oracle")["verdict"] == "inside"
    assert quality(table, "ga", "loss", "oracle")["verdict"] == "", "log p has no ends that would give a margin meaning"


@pytest.mark.parametrize("level", [-300.0, -np.inf])
def test_a_model_that_has_collapsed_stops_nothing(level):
    items, read = made("ga", 0.25, -3.0)
    read["log_probs"] = read["log_probs"].map(lambda values: np.full(len(values), level, np.float16))
    read["spread"] = read["spread"].map(lambda values: np.full(len(values), -FAR, np.float16))
    read["right"] = read["right"].map(np.zeros_like)
    items[[f"option_{x}" for x in "ABCD"]] = np.nan
    others = made("vanilla", 0.9, -0.1), made("oracle", 0.25, -3.0)
    table = measured(*others, (items, read))
    row = quality(table, "ga", "min_k_pp")
    assert row["value"] == -FAR and np.isnan([row["low"], row["high"]]).all()  # all are alike: no spread and no limits
    # next to an oracle that varies, the spread is the oracle's, around a far value that nothing clips
    row = quality(table, "ga", "min_k_pp", "oracle")
    assert row["low"] < row["value"] < row["high"] < -9000 and row["high"] - row["low"] < 10
    assert quality(table, "ga", "loss")["value"] == max(level, -65504)
    assert quality(table, "ga", "auc_loss")["value"] == 0.5
    assert quality(table, "ga", "ks", "oracle")["note"] == "The oracle or the model has no answer to these questions."
    read.at[0, "log_probs"] = np.append(read["log_probs"].iloc[0][:-1], np.float16(-1))
    one = quality(measured(*others, (items, read)), "ga", "loss", view="image_text")
    assert one["low"] < max(level, -65504), "a single sentence is not absurd either"


def test_a_sentence_without_a_likelihood_is_no_lost_pair():
    items, read = made("ga", 0.9, -0.1)
    read.at[0, "log_probs"] = np.full(len(read["log_probs"].iloc[0]), np.nan)
    table = measured(made("vanilla", 0.9, -0.1), made("oracle", 0.25, -3.0), (items, read))
    row = quality(table, "ga", "auc_loss", view=read["view"].iloc[0])
    assert np.isnan(row["value"]) and "it has diverged" in row["note"]


def test_without_fresh_people_only_the_difference_to_the_oracle_is_known():
    table = measured(made("vanilla", 0.9, -0.1, fresh=0), made("oracle", 0.25, -3.0, fresh=0))
    row = quality(table, "vanilla", "auc_loss")
    assert np.isnan(row["value"]) and "no model was taught" in row["note"]
    assert quality(table, "vanilla", "loss", "oracle")["value"] == pytest.approx(2.9, abs=0.1)
    assert quality(table, "vanilla", "extraction_strength", "oracle")["low"] > 0.5


def test_one_per_cent_of_few_is_not_measured():
    table = measured(made("vanilla", 0.9, -0.1, fresh=21), made("oracle", 0.25, -3.0, fresh=21))
    row = quality(table, "vanilla", "tpr_1_loss")
    assert np.isnan(row["value"]) and row["note"] == "1 % needs 300 fresh sentences: 294 there."
    assert quality(table, "vanilla", "tpr_5_loss")["note"] == ""


def test_runs_that_kept_no_sentences_say_so():
    (items, _), (oracle, read) = made("vanilla", 0.9, -0.1), made("oracle", 0.25, -3.0)
    table = cells(item_scores(pd.concat([items, oracle], ignore_index=True)), read)
    assert quality(table, "vanilla", "truth_ratio", "oracle")["high"] < 0
    for metric in ("auc_loss", "extraction_strength"):
        row = quality(table, "vanilla", metric)
        assert np.isnan(row["value"]) and row["note"] == "The run has no sentences.parquet."
    assert "taught" not in set(cells(item_scores(items))["task"])


def test_several_forget_sets_are_each_compared_with_their_own_oracle():
    apart = [made("vanilla", 0.9, -0.1), made("oracle", 0.25, -3.0)]
    moved = []
    for items, read in apart:  # another forget set, with models that find everything less likely
        read = read.assign(log_probs=read["log_probs"] - 50)
        moved.append([frame.assign(replicate=1, run=frame["run"] + "-1") for frame in (items, read)])
    assert "replicate" in PEOPLE
    one, both = measured(*apart), measured(*apart, *moved)
    for against in ("", "oracle"):
        first, second = (quality(table, "vanilla", "auc_loss", against) for table in (one, both))
        assert second["value"] == pytest.approx(first["value"]) and second["n_replicates"] == 2
    # the second vanilla without its oracle, as in a sweep that is not finished: a level of two, a distance of one
    unfinished = measured(*apart, moved[0])
    assert quality(unfinished, "vanilla", "auc_loss")["n_replicates"] == 2
    assert quality(unfinished, "vanilla", "ks", "oracle")["n_replicates"] == 1
