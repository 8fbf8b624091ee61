"""Which published gaps exceed the noise: numbers by hand, and a simulation of the promised power."""

from math import sqrt

import numpy as np
import pandas as pd
import pytest

from mllmu_nb.reporting import noise, published

PAPER = {"base_model": "LLaVA-1.5-7B", "forget_ratio": 5, "set": "Forget", "view": "image_text", "source": "a paper"}


def printed(metric: str, values: dict[str, float], **cell) -> pd.DataFrame:
    rows = [PAPER | cell | {"metric": metric, "method": method, "value": value} for method, value in values.items()]
    return pd.DataFrame(rows)


@pytest.fixture
def items():
    """Three people, two generated answers each: means .5, .7, .9, standard deviation .2."""
    rows = [("a", 0.4), ("a", 0.6), ("b", 0.7), ("b", 0.7), ("c", 0.9), ("c", 0.9)]
    answers = pd.DataFrame(rows, columns=["profile", "rougeL"])
    return answers.assign(set=["forget", "forget", *["retain"] * 4], task="generation", view=["image_text", "text"] * 3)


@pytest.mark.parametrize(
    ("set_name", "ratio", "task", "people"),
    [
        ("Forget", 5, "classification", 24),
        ("Forget", 5, "cloze", 23),
        ("Test", 15, "generation", 75),
        ("Retain", 10, "classification", 449),
        ("Real Celebrity", 5, "classification", 153),
        ("Real Celebrity", 5, "cloze", 153),
    ],
)
def test_people_behind_a_figure(set_name, ratio, task, people):
    assert noise.people_behind(set_name, ratio, task) == people


def test_detectable_differences_by_hand():
    # (1.959964 + .841621) · sqrt(2 · .25 / 120) = 18 points, the known value of the 5 % forget set; 12.7 at 10 %
    assert noise.detectable(0.5, 0.5, 24, 5, 0.0) == pytest.approx(0.18084, abs=1e-5)
    assert noise.detectable(0.5, 0.5, 49, 5, 0.0) == pytest.approx(0.127, abs=5e-4)
    # five correlated answers are worth 5/1.4 or 5/2.6; with models that agree, the noise between them is smaller
    assert noise.detectable(0.5, 0.5, 24, 5, 0.1) == pytest.approx(0.18084 * sqrt(1.4), abs=1e-5)
    assert noise.detectable(0.5, 0.5, 24, 5, 0.4) == pytest.approx(0.18084 * sqrt(2.6), abs=1e-5)
    assert noise.detectable(0.5, 0.5, 24, 5, 0.0, model_correlation=0.75) == pytest.approx(0.18084 / 2, abs=1e-5)
    # .9 and .7 have the variance of .8
    assert noise.detectable(0.9, 0.7, 24, 5, 0.0) == pytest.approx(0.18084 * 0.4 / 0.5, abs=1e-5)


@pytest.mark.parametrize("correlation", [0.1, 0.4])
def test_the_detectable_difference_is_found_four_times_in_five(correlation):
    rng, runs, people, each = np.random.default_rng(2), 4000, 49, 5
    gap = noise.detectable(0.5, 0.5, people, each, correlation)
    scale = (1 - correlation) / correlation
    scores = []
    for share in (0.5 + gap / 2, 0.5 - gap / 2):
        own = rng.beta(share * scale, (1 - share) * scale, (runs, people))
        scores.append(rng.binomial(each, own) / each)
    apart = scores[0].mean(1) - scores[1].mean(1)
    error = np.sqrt((scores[0].var(1, ddof=1) + scores[1].var(1, ddof=1)) / people)
    assert (np.abs(apart) > 1.96 * error).mean() == pytest.approx(0.8, abs=0.04)


def test_the_spread_is_that_of_the_peoples_means(items):
    assert noise.spread(items, "Forget", "both", "rougeL") == pytest.approx(0.2)
    text = noise.spread(items, "Retain", "text", "rougeL")
    assert text == pytest.approx(np.std([0.6, 0.7, 0.9], ddof=1))


def test_gaps_of_accuracies(items):
    figures = printed("classification_acc", {"Vanilla": 60.0, "GA": 40.0, "NPO": 38.0})
    table = noise.gaps(figures, items).set_index(["first", "second", "correlation"])
    table = table.sort_index()
    assert len(table) == 9 and set(table["people"]) == {24} and set(table["questions"]) == {5}
    assert table.loc[("Vanilla", "GA", 0.0), "gap"] == pytest.approx(0.2)
    # 20 points at a mean of .5: more than 12.65 and 12.65 · sqrt(1.4) = 14.97, less than 12.65 · sqrt(2.6) = 20.4
    assert table["noise"].xs(("Vanilla", "GA")).tolist() == pytest.approx([0.1265, 0.1497, 0.204], abs=1e-4)
    assert table["verdict"].xs(("Vanilla", "GA")).tolist() == [noise.EXCEEDS, noise.EXCEEDS, noise.COULD]
    assert set(table["verdict"].xs(("GA", "NPO"))) == {noise.COULD}
    pooled = noise.gaps(figures.assign(view="unstated"), items)
    assert set(pooled["questions"]) == {10}


def test_gaps_of_rouge_use_the_measured_spread(items):
    # 2.8016 · .2 · sqrt(2/25) = .1585 for every assumed correlation
    table = noise.gaps(printed("rouge", {"Vanilla": 0.6, "GA": 0.4, "NPO": 0.5}, view="unstated"), items)
    assert table["detectable"].tolist() == pytest.approx([0.15848] * 9, abs=1e-5)
    verdicts = table.drop_duplicates(["first", "second"]).set_index(["first", "second"])["verdict"]
    assert verdicts.tolist() == [noise.EXCEEDS, noise.COULD, noise.COULD]


def test_what_cannot_be_said_is_said_and_only_one_source_is_compared(items):
    unknown = printed("aggregate", {"GA": 61.0, "NPO": 62.0}, set="all")
    table = noise.gaps(unknown, items)
    assert set(table["verdict"]) == {noise.UNKNOWN} and table["detectable"].isna().all()
    apart = pd.concat([printed("rouge", {"GA": 0.5}), printed("rouge", {"NPO": 0.4}, source="another")])
    assert noise.gaps(apart, items).empty


def test_shares_count_pairs_and_not_rows(items):
    figures = printed("classification_acc", {"Vanilla": 60.0, "GA": 40.0, "NPO": 38.0})
    table = noise.gaps(pd.concat([figures, printed("aggregate", {"GA": 1.0, "NPO": 2.0})]), items)
    counted = noise.shares(table, ["task"])
    # both gaps to vanilla exceed it with correlation 0 and .1; with .4 only the one of 22 points
    assert counted.loc["classification"].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 3])


def test_the_published_figures_are_judged():
    table = noise.gaps(published.load(), noise.vanilla_items())
    assert set(table["verdict"]) == {noise.EXCEEDS, noise.COULD, noise.UNKNOWN}
    assert (table["detectable"].isna() == (table["verdict"] == noise.UNKNOWN)).all()
    # more correlation never makes a difference easier to detect, and makes it harder if the correlation is assumed
    cells = [*noise.CELL, "first", "second"]
    more = table.groupby(cells, sort=False)["detectable"].diff().dropna()
    assert (more >= 0).all() and (more[table["task"] == "cloze"] > 0).any()
