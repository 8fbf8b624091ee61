"""The report card: what it claims, that it shows text as text, and that it needs a run alone."""

import json
import re
from math import isnan
from types import SimpleNamespace

import pytest
from fake_runs import but, make, saying
from test_show import PICTURE, SMALL, right

from mllmu_nb import inputs, paths
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import card
from mllmu_nb.reporting.beside import Beside
from mllmu_nb.reporting.grid import select
from mllmu_nb.reporting.runs import Run, Scores, read_run
from mllmu_nb.scoring.frames import LIKELIHOOD_KEY
from mllmu_nb.scoring.registry import by_key

PEOPLE = SimpleNamespace(
    profiles={f"{number:03d}": SimpleNamespace(name=f"Amina <b>{number}", portrait=PICTURE) for number in range(1, 13)}
)


@pytest.fixture(scope="module")
def references():
    return {"vanilla": make("vanilla", right(1.0), **SMALL), "oracle": make("oracle", right(0.0), **SMALL)}


def test_the_verdict_says_what_fell_and_what_was_kept(references):
    """Of the five questions about each forget person GA still answers two, vanilla all, and the oracle none."""
    ga = make("ga", right(0.4), modality="multimodal", **SMALL)
    said = card.verdict(Beside(ga, **references))
    fell = r"lost 60 points \[(\d+), (\d+)\] on the people to be forgotten, 60 % \[\1, \2\] of the 100 points"
    assert re.match(rf"GA \(image \+ text\) {fell}", said), "nobody differs, so the limits are those of the change"
    assert "shows no change (+0 points" in said and "collapsed" not in said


def test_the_share_that_is_closed_has_its_limits_by_hand(references):
    """Of ten people, half still answer one of five questions, half three: residuals ± .2 around a share of .6."""

    def half(asked):
        return asked.set != "forget" or asked.number < 1 + 2 * (asked.person % 2)

    ga = make("ga", half, modality="multimodal", **SMALL)
    reach = 100 * 2.262 * 0.2 / 9**0.5  # t of 9 degrees, sd / sqrt(n)
    said = card.verdict(Beside(ga, **references))
    assert f"60 % [{60 - reach:.0f}, {60 + reach:.0f}] of the 100 points" in said


def test_health_that_nobody_can_tell_is_no_number(references):
    """Nothing is known of the celebrities, so that no answer about them is right or wrong."""

    def unknown(run):
        about = (run.answers["set"] == "celebrity") & (run.answers["task"] == "generation")
        return but(run, answers=run.answers.assign(value=run.answers["value"].mask(about, "")))

    ga = make("ga", right(0.4), modality="multimodal", **SMALL)
    beside = Beside(unknown(ga), **{name: unknown(run) for name, run in references.items()})
    health = card._health(beside)
    assert health["Celebrity"].isna().any() and health["Forget"].notna().all()
    page = card.card(beside, PEOPLE).split("Health")[1]
    assert "<td>–</td>" in page and "NaN" not in page and ".0</td>" not in page


def test_one_point_is_one_point():
    assert card._points({"value": -0.012, "low": -0.02, "high": -0.001}) == "lost 1 point [0, 2]"
    for value in (0.0, -0.002):
        assert card._points({"value": value, "low": -0.02, "high": 0.01}) == "shows no change (+0 points [-2, 1])"
    assert card._points({"value": -0.003, "low": -0.004, "high": -0.001}) == "lost 0 points [0, 0]"


def test_a_collapsed_model_is_called_one(references):
    broken = make("ga", lambda asked: False, modality="multimodal", **SMALL)
    broken = saying(broken, "no no no no no no no no no", task="generation")
    said = card.verdict(Beside(broken, **references))
    assert "This is no forgetting (collapsed: 100 % of answers broken" in said


def test_a_model_that_refuses_everybody_is_called_one(references):
    """It chooses the right options, but says nothing about anybody."""
    silent = make("ga", right(0.0), modality="multimodal", **SMALL)
    beside = Beside(saying(silent, "I am sorry, I cannot share that.", task="generation"), **references)
    assert "lost 100 points" in card.verdict(beside)
    assert "This is no forgetting (refuses everybody: refuses 100 % of Retain" in card.verdict(beside)
    assert any("is no forgetting (refuses everybody: " in remark for remark in beside.remarks())


def test_the_card_of_vanilla_itself_claims_nothing(references):
    beside = Beside(references["vanilla"], **references)
    assert card.verdict(beside) == "Vanilla is the model before unlearning: others are compared with it."
    cells = beside.scores.cells.query("method == 'vanilla' and against == '' and set == 'forget' and view == 'both'")
    assert cells.query("scoring == 'likelihood' and metric == 'accuracy'")["n_items"].item() == 100, "it counts once"
    assert "Vanilla is the model before" in card.card(beside, PEOPLE)


def test_the_share_is_of_the_people_whom_the_model_was_asked_about(references):
    """As with `evaluate --limit`: six of ten people. On these the oracle has one of five questions right by chance."""
    oracle = make("oracle", lambda asked: asked.set != "forget" or (asked.person < 6 and asked.number == 0), **SMALL)
    ga = make("ga", lambda asked: asked.set != "forget" or asked.number == 0, modality="multimodal", **SMALL)
    few = ga.answers[(ga.answers["set"] != "forget") | (ga.answers["profile"] <= "006")]
    said = card.verdict(Beside(but(ga, answers=few), references["vanilla"], oracle))
    assert "lost 80 points" in said and "100 % [" in said and "of the 80 points that separate" in said


def test_a_model_that_was_asked_by_letter_alone_has_no_verdict_by_likelihood(references):
    """The upstream protocol asks this way."""
    ga, *others = (
        but(run, answers=run.answers[run.answers["scoring"] != "likelihood"])
        for run in (make("ga", right(0.0), modality="multimodal", **SMALL), references["vanilla"], references["oracle"])
    )
    said = card.verdict(Beside(ga, *others))
    assert said.startswith("GA (image + text) was asked by letter alone")
    assert "asked by letter alone" in card.card(Beside(ga, *others), PEOPLE)


def test_a_model_that_was_asked_other_questions_stands_beside_nobody(references):
    ga = make("ga", right(0.0), modality="multimodal", **SMALL)
    others = [make("base", right(0.0), **SMALL), make("vanilla", right(0.0), after="halved", **SMALL)]
    assert Beside.among(ga, [ga, *references.values(), *others]) == Beside(ga, **references)
    assert Beside.among(ga, [ga]) == Beside(ga)
    fewer = but(ga, answers=ga.answers[ga.answers["profile"] <= "006"])
    with pytest.raises(KitError, match="GA .image . text. and Vanilla were asked different questions"):
        Beside.among(fewer, references.values())


def test_a_model_is_compared_with_its_references_whatever_its_seeds(references):
    ga = make("ga", right(0.4), modality="multimodal", **SMALL, train_seed=9)
    where = {"method": "ga", "against": "oracle", "set": "forget", "view": "both"}
    alone, beside = (
        select(scores, [by_key()[LIKELIHOOD_KEY]], **where)["value"].item()
        for scores in (Scores.of([ga, *references.values()]), Beside(ga, **references).scores)
    )
    assert isnan(alone) and beside == 0.4


def test_health_counts_as_gibberish_what_the_verdict_does(references):
    """Answers less likely than nearly all of vanilla's are gibberish, even if they look fluent."""
    ga = make("ga", right(0.0), modality="multimodal", **SMALL)
    fluency = {"vanilla": -1.0, "oracle": -1.0, "own": -9.0}
    runs = {
        name: but(run, answers=run.answers.assign(fluency=fluency[name]))
        for name, run in {**references, "own": ga}.items()
    }
    beside = Beside(runs.pop("own"), **runs)
    assert card._health(beside).loc["Gibberish", "Retain"] == 100 and "100 % of answers broken" in card.verdict(beside)


def test_without_references_nothing_is_claimed(references):
    ga = make("ga", right(0.4), modality="multimodal", **SMALL)
    said = card.verdict(Beside(ga))
    assert said == "GA (image + text): Without vanilla and oracle nobody can say whether a low score is forgetting."
    page = card.card(Beside(ga), PEOPLE)
    assert "What it says" not in page and "Gap to the oracle" not in page
    short = make("ga", right(0.4), modality="multimodal", sets=("forget",), **SMALL)
    with pytest.raises(KitError, match="was not asked about the retain people"):
        card.verdict(Beside(short, **references))


def test_the_page_shows_text_as_text_and_pictures_with_words(references):
    ga = saying(make("ga", right(0.4), modality="multimodal", **SMALL), "<script>alert(1)</script>", task="generation")
    page = card.card(Beside(ga, **references), PEOPLE)
    assert "<script" not in page and "&lt;script&gt;" in page and "Amina &lt;b&gt;" in page
    pictures = re.findall(r"<img[^>]*>", page)
    assert pictures and all(re.search(r'alt="[^"]+"', one) for one in pictures)
    for heading in ("What it says", "Gap to the oracle", "Health", "Leakage", "Cost"):
        assert f"<h2>{heading}</h2>" in page
    assert "http" not in re.sub(r"data:[^\"]*", "", page), "the page needs nothing from elsewhere"
    assert "1,234,567" in page and "@page" in page


def test_no_character_of_a_card_acts(references, monkeypatch):
    """Neither one of an answer, nor one of the name that a user gave to the model, nor one of a table."""
    hostile = "a\x1b[2J\u202e<i>"
    ga = saying(make("ga", right(0.4), modality="multimodal", **SMALL), hostile, task="generation")
    table = Beside.score_table
    monkeypatch.setattr(Run, "label", hostile)
    monkeypatch.setattr(Beside, "score_table", lambda *given: table(*given).rename(columns=lambda name: hostile))
    page = card.card(Beside(ga, **references), PEOPLE)
    shown = r"a\x1b[2J\u202e&lt;i&gt;"
    assert not re.search("[\x1b\u202e]|<i>", page)
    for part in ("<h1>Report card: {}</h1>", "<p class=verdict>{} ", "<th>{}</th>", "≈ {}</div>"):
        assert part.format(shown) in page


BEYOND = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.textContent)"


@pytest.fixture(scope="module")
def collapsed():
    """Return the card of a collapsed run of the reference, which has the longest answers and the most remarks."""
    config, runs = Config(method="npo", modality="multimodal"), {}
    for folder in paths.runs(paths.reference()).iterdir():
        made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["parameters"]
        same = all(made[name] == getattr(config, name) for name in ("base_model", "forget_ratio", "replicate"))
        if same and f"{made['method']} {made['modality']}" in ("vanilla none", "oracle none", "npo multimodal"):
            runs[made["method"]] = read_run(folder)
    return card.card(Beside(runs.pop("npo"), **runs), inputs.population(config))


@pytest.mark.browser
@pytest.mark.parametrize(("paper", "width"), [("A4", 210), ("Letter", 215.9)])
def test_a_card_is_printed_on_one_page(browser, collapsed, paper, width):
    """The PDF has one page, and the browser did not shrink it: nothing is wider than the space between the margins."""
    inside = int((width - 2 * 11) / 25.4 * 96)
    page = browser.new_page(viewport={"width": inside, "height": 900})
    page.set_content(collapsed)
    page.emulate_media(media="print")
    assert page.locator("body *").evaluate_all(BEYOND) == []
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format=paper))) == 1
    page.set_content(collapsed.replace("</footer></html>", "</footer>" + "<p>one line more</p>" * 9 + "</html>"))
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format=paper))) == 2, "pages are counted"
