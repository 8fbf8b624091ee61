"""The audit of any table: reading, judging and drawing it."""

import io

import pandas as pd
import pytest
from readable import assert_readable

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import noise

WIDE = "method,accuracy,ROUGE\nVanilla,52,61\nA,44.5,48\nB,12,\n"


def read(text):
    return noise.read(io.StringIO(text))


def test_a_papers_layout_and_one_row_a_figure_are_the_same_table():
    long = "method,measure,value\nVanilla,accuracy,52\nA,accuracy,44.5\nB,accuracy,12\nVanilla,ROUGE,61\nA,ROUGE,48\n"
    columns = ["method", "measure", "value"]
    assert read(WIDE)[columns].values.tolist() == read(long)[columns].values.tolist()


@pytest.mark.parametrize(
    "text, message",
    [
        ("model,accuracy\nA,1\n", "has no column 'method', only model, accuracy"),
        ("method;accuracy\nA;1\n", "has no column 'method', only method;accuracy: separate columns by commas"),
        ("method,accuracy\nA,twelve\n", "'twelve' in the column value is not a number"),
        ("method,accuracy,people\nA,12,many\n", "'many' in the column people is not a number"),
        ("method,accuracy\nA,12\nA,13\n", "'A' has two figures for 'accuracy': keep one"),
        ("method,accuracy\n", "has no score: it needs one row per method and one column per measure"),
        ("", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(KitError, match=message):
        read(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KitError, match="cannot read .*none.csv: No such file"):
        noise.read(tmp_path / "none.csv")


def test_the_verdict_is_that_of_the_rule_by_people_and_questions():
    table = read("method,accuracy,people,questions\nVanilla,52,49,5\nA,44.5,49,5\nB,12,49,5\n")
    gaps = noise.audit(table).set_index(["first", "second"])
    limit = 100 * noise.detectable(0.52, 0.445, 49, 5, noise.LIKELY)
    assert gaps.loc[("Vanilla", "A"), "detectable"] == pytest.approx(limit)
    chance = gaps.loc[("Vanilla", "A"), "noise"]
    assert chance == pytest.approx(100 * 1.96 * (2 * 0.4825 * 0.5175 / (49 * 5) * 1.4) ** 0.5, abs=0.01)  # 10.5
    assert 7.5 < chance < limit and gaps["verdict"].tolist() == [noise.COULD, noise.EXCEEDS, noise.EXCEEDS]
    assert (gaps["least"] < gaps["noise"]).all() and (gaps["noise"] < gaps["most"]).all()
    between = noise.audit(read("method,accuracy,people,questions\nA,52,49,5\nB,40,49,5\n"))
    assert between["gap"].item() < between["detectable"].item() and between["verdict"].item() == noise.EXCEEDS
    many = noise.audit(table.assign(people=4900))
    assert many["verdict"].tolist() == [noise.EXCEEDS] * 3, "a hundred times the people"
    assert noise.audit(table, model_correlation=0.9)["detectable"].iloc[0] == pytest.approx(limit * 0.1**0.5)


def test_long_names_are_wrapped_in_the_figure():
    long = "A long name of a method with something in brackets (ours, number {}) and more"
    table = pd.DataFrame({"method": [long.format(n) for n in range(4)], "value": [30, 40, 50, 60], "people": 50})
    assert_readable(noise.figure(noise.audit(table.assign(measure="accuracy"))))


def test_without_people_nothing_can_be_said():
    gaps = noise.audit(read(WIDE))
    assert set(gaps["verdict"]) == {noise.UNKNOWN} and gaps["detectable"].isna().all()
    with pytest.raises(KitError, match="no gap has a known number of people"):
        noise.figure(gaps)


def test_a_standard_deviation_judges_what_is_no_share():
    table = read("method,ROUGE,people,sd\nA,61,50,10\nB,48,50,10\nC,57,50,10\n")
    gaps = noise.audit(table)
    assert gaps["detectable"].tolist() == pytest.approx([noise.REACH * 10 * (2 / 50) ** 0.5] * 3)  # 5.6
    assert gaps["noise"].tolist() == pytest.approx([1.96 * 10 * (2 / 50) ** 0.5] * 3, abs=1e-3)  # 3.9
    assert gaps["verdict"].tolist() == [noise.EXCEEDS, noise.EXCEEDS, noise.EXCEEDS]
    # the difference of two correlated figures has the variance 10² + 20² - 2 · .8 · 10 · 20 = 180
    unequal = noise.audit(table.head(2).assign(sd=[10, 20]), model_correlation=0.8)
    assert unequal["noise"].tolist() == pytest.approx([1.96 * (180 / 50) ** 0.5], abs=1e-3)
    assert noise.audit(table.assign(sd=11))["verdict"].tolist() == [noise.EXCEEDS, noise.COULD, noise.EXCEEDS]


@pytest.mark.parametrize(
    "values, assumed, message",
    [
        ("52,61", {"top": 1.0}, "a value of 'accuracy' lies outside 0 to 1: name its best value"),
        (".9,.3", {}, "all values of 'accuracy' lie between 0 and 1: say that its best value is 1"),
        ("52,61", {"people": -5}, "people of 'A' is below 2"),
        ("52,61", {"people": 0}, "people of 'A' is below 2"),
        ("52,61", {"people": 1}, "people of 'A' is below 2"),
        ("52,61", {"people": float("inf")}, "people of 'A' is below 2 or infinite"),
        ("52,61", {"questions": 0}, "questions of 'A' is below 1"),
        ("52,61", {"model_correlation": 3}, "model_correlation is a share from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(values, assumed, message):
    first, second = values.split(",")
    between = {"model_correlation": assumed.pop("model_correlation", 0.0)}
    table = read(f"method,accuracy\nA,{first}\nB,{second}\n").assign(**{"people": 50, **assumed})
    with pytest.raises(KitError, match=message):
        noise.audit(table, **between)


MIXED = "method,measure,value\nVanilla,accuracy,52\nGA,accuracy,44.5\nVanilla,ROUGE-L,.571\nGA,ROUGE-L,.402\n"


def test_each_measure_has_its_own_best_value():
    """Papers print accuracies in per cent next to ROUGE from 0 to 1."""
    table = read(MIXED).assign(people=49)
    with pytest.raises(KitError, match="all values of 'ROUGE-L' lie between 0 and 1"):
        noise.audit(table)
    top = table["measure"].map({"ROUGE-L": 1.0})
    gaps = noise.audit(table.assign(top=top)).set_index("measure")
    alone = noise.audit(table[table["measure"] == "ROUGE-L"].assign(top=1.0))
    assert gaps.loc["ROUGE-L", "noise"] == pytest.approx(alone["noise"].item()) and gaps.loc["ROUGE-L", "noise"] < 0.3
    assert gaps.loc["accuracy", "noise"] > 10
    with pytest.raises(KitError, match="'accuracy' has several best values"):
        noise.audit(table.assign(top=[100.0, 99.0, 1.0, 1.0]))


def test_a_measure_with_a_standard_deviation_needs_no_best_value():
    gaps = noise.audit(read("method,perplexity,people,sd\nA,250,49,30\nB,120,49,30\n"))
    assert gaps["verdict"].tolist() == [noise.EXCEEDS]


def test_a_method_may_be_called_none_or_have_a_number_and_a_measure_may_have_no_name():
    gaps = noise.audit(read("method,measure,value\nNone,,52\n1,,12\nNone,x,50\n1,x,20\n").assign(people=49))
    assert gaps[["measure", "first", "second"]].values.tolist() == [["", "None", "1"], ["x", "None", "1"]]
    assert noise.figure(gaps).axes[0].get_yticklabels()[0].get_text() == "None − 1"
    unnamed = read("method,value\nA,52\nB,12\n").assign(measure=float("nan"), people=49)
    assert len(noise.audit(unnamed)) == 1


def test_per_cent_signs_are_read():
    assert read("method,accuracy\nA,12 %\nB,50%\n")["value"].tolist() == [12, 50]


def test_the_figure_says_by_form_what_it_says_by_colour():
    gaps = noise.audit(read(WIDE).assign(people=49), questions=5)
    figure = noise.figure(gaps)
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    faces = {line.get_markerfacecolor() for line in marks}
    assert "none" in faces and len(faces) == 2
    assert "Vanilla − A, accuracy" in [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
