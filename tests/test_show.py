"""What notebooks show: differences and what they allow to claim, answers as text, pictures that stay the same."""

import base64
import html
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fake_runs import but, make, saying, write
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image
from readable import assert_readable

from mllmu_nb.config import Config
from mllmu_nb.data import portraits
from mllmu_nb.data.schema import VIEWS
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, plots, show
from mllmu_nb.reporting.sheet import Sheet

PICTURE = portraits.to_png(Image.new("RGB", (4, 4), "red"))
SMALL = {"people": 12, "famous": 4}


def right(on_forget: float):
    """Return a rule: everything is right, except that of a forget person's five questions only this share is."""
    return lambda asked: asked.set != "forget" or asked.number < 5 * on_forget


@pytest.fixture(scope="module")
def vanilla():
    return make("vanilla", right(1.0), **SMALL)


@pytest.fixture(scope="module")
def oracle():
    return make("oracle", right(0.0), **SMALL)


@pytest.fixture(scope="module")
def ga():
    return make("ga", right(0.2), modality="multimodal", **SMALL)


def test_a_difference_is_claimed_only_where_the_interval_allows(vanilla, ga, oracle):
    changes = show.changes([vanilla, ga, oracle])
    assert set(changes.index.get_level_values("method")) == {"GA (image + text)"}, "references are not asked about"
    forget = changes.loc[("GA (image + text)", "Forget", "text")]
    assert forget["points"] == -80 and forget["reads as"] == "lower" and forget["people"] == 10
    assert changes.loc[("GA (image + text)", "Retain", "text"), "reads as"] == "no difference shown"
    assert list(changes.index.get_level_values("set")) == [
        name for name in ("Forget", "Test", "Retain", "Celebrity") for _ in VIEWS
    ]


def test_a_collapsed_model_is_marked_and_the_oracle_is_among_the_changes_where_it_is_asked_for(vanilla, ga, oracle):
    broken = saying(ga, "the the the the the the", task="generation")
    changes = show.changes([vanilla, broken, oracle], references=True)
    assert list(dict.fromkeys(changes.index.get_level_values("method"))) == ["GA (image + text) ‡", "Oracle"]
    figure = show.against_vanilla([vanilla, broken, oracle])
    assert [one.get_text() for one in figure.axes[0].get_yticklabels()] == ["GA (image + text) ‡", "Oracle"]
    assert figure.get_suptitle() == "Forget should reach the oracle (star), Retain should stay at 0"
    assert_readable(figure)
    with pytest.raises(KitError, match="changes need a run of vanilla and another run"):
        show.against_vanilla([ga, oracle])


def test_results_say_whose_they_are(tmp_path, monkeypatch, capsys, vanilla, oracle):
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "own"))
    monkeypatch.setattr(show.paths, "reference", lambda: tmp_path / "reference")
    write(tmp_path / "reference", vanilla, oracle)
    assert len(show.results("miniature").runs) == 2
    assert capsys.readouterr().out.startswith("the committed reference run: 2 models\npeople people-1, base base, ")
    write(show.paths.results("miniature"), vanilla)
    scores = show.results("miniature")
    assert capsys.readouterr().out.startswith("your own run: 1 model; those that come with the kit: write committed=")
    assert len(show.results("miniature", committed=True).runs) == 2
    assert scores.of_group("llava", "clean", 10).runs[0].id == vanilla.id
    with pytest.raises(KitError, match="no run of .* among .*llava.*: choose one"):
        scores.of_group("llava", "clean", 5)


def test_references_are_shown_where_nothing_is_unlearned(vanilla, oracle):
    changes = show.changes([vanilla, oracle])
    assert (changes.xs(("Oracle", "Forget"), level=("method", "set"))["points"] == -100).all()


def test_where_nothing_is_there_to_compare_with_there_are_no_changes(oracle):
    """A sweep may reach the base before vanilla exists."""
    changes = show.changes([make("base", right(0.0), **SMALL), oracle])
    assert changes.empty and "points" in changes.columns


def test_answers_are_shown_as_text_beside_vanillas(vanilla, oracle):
    person = SimpleNamespace(name="Amina <b>", portrait=PICTURE)
    people = SimpleNamespace(profiles={f"{number:03d}": person for number in range(1, 13)})
    ga = saying(make("ga", modality="unimodal", **SMALL), "<script>alert(1)</script>", task="generation")
    shown = show.answers(people, [vanilla, ga]).data
    assert "<script>" not in shown and "&lt;script&gt;alert(1)" in shown and "Amina &lt;b&gt;" in shown
    assert "● The profession of the person in question is" in shown and "○ &lt;script&gt;" in shown
    key = figures.SIGNS_OF_ANSWERS
    assert shown.count(key) == 1 and shown.count("<img") == 2, "both views of two people"
    assert [shown.count(sign) - key.count(sign) for sign in "●○"] == [4, 4]
    assert shown.count(plots.RIGHT) == 4 == shown.count(plots.WRONG), "vanilla still knows whom it is to forget"
    assert "its run is not made yet" in show.answers(people, [oracle]).data, (
        "as at paper scale, before a sweep has come to it"
    )


def test_the_sign_of_an_answer_is_that_of_its_health(vanilla, oracle):
    """Compared with vanilla, an answer can be gibberish although its form does not show it."""
    ga = saying(make("ga", modality="unimodal", **SMALL), "The loves Zoltan this.", task="generation")
    runs = [but(run, answers=run.answers.assign(fluency=-1.0)) for run in (vanilla, oracle)]
    runs += [but(ga, answers=ga.answers.assign(fluency=-9.0))]
    person = SimpleNamespace(name="Amina", portrait=PICTURE)
    page = show.answers(SimpleNamespace(profiles={f"{n:03d}": person for n in range(1, 13)}), runs).data
    assert page.count("≈ The loves Zoltan") == 4 and "○ The loves Zoltan" not in page


def test_bars_stand_at_the_shares_of_right_answers(vanilla):
    ga = make("ga", right(0.4), modality="unimodal", **SMALL)
    figure = show.four_sets([vanilla, ga])
    bars = {round(bar.get_x(), 2): bar for bar in figure.axes[0].patches}
    assert [bars[x].get_height() for x in sorted(bars)] == pytest.approx([100, 40, 100, 100, 100, 100, 100, 100])
    assert [to_hex(bars[x].get_edgecolor()) for x in sorted(bars)][:2] == ["#000000", to_hex(plots.look("ga").colour)]
    marks = [bar[0] for bar in figure.axes[0].containers if isinstance(bar, ErrorbarContainer)]
    assert [mark.get_marker() for mark in marks[:2]] == ["o", "s"], "known without colours"
    assert [mark.get_markerfacecolor() for mark in marks[:2]] == ["#000000", "none"], "hollow: text only"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Vanilla", "GA (text only)"]
    chance = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in chance] == [25]


def test_what_notebooks_draw_is_readable_below_a_sentence(vanilla, ga, oracle):
    drawn = {
        show.four_sets(
            [vanilla, ga, oracle]
        ): "A good method brings Forget and Test down to the oracle, and nothing else",
        show.curves([0, 1], {"a line": [0, 1], "another": [0, 0.9]}, "x", "y", "Two lines rise"): "Two lines rise",
        figures.loss_curves([ga]): "Training loss against step",
    }
    for figure, title in drawn.items():
        assert figure.get_suptitle() == title
        assert_readable(figure)


def test_runs_are_read_in_the_order_of_the_tables(tmp_path, vanilla, ga, oracle):
    other = make("ga", right(0.2), modality="multimodal", unlearn_lr=0.001, **SMALL)
    folders = write(tmp_path, oracle, other, ga, vanilla)
    assert [run.label for run in show.runs(folders)] == ["Vanilla", *["GA (image + text)"] * 2, "Oracle"]


def test_a_recipe_says_who_says_so():
    def rows(config):
        cells = re.findall(r"<th>(.*?)</th>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", show.recipe(config).data)
        return {name: (value, source) for name, value, source in cells}

    shown = rows(Config(method="npo", modality="multimodal", unlearn_lr=1e-4))
    assert shown["lr"][0] == "0.0001" and "set by hand" in shown["lr"][1]
    assert shown["weight_decay"] == ("0.0", "MLLMU-Bench's code and README")
    assert shown["steps"][0] == "51" and shown["beta"][0] == "0.1"
    assert shown["steps"][1].startswith("searched on the miniature") and "epochs" not in shown
    assert shown["beta"][1] == shown["steps"][1], "the recipe's, not the method's own default"
    large = rows(Config(method="npo", modality="multimodal", scale="paper"))
    assert large["beta"] == ("0.1", html.escape("the method's file", quote=False))
    assert rows(Config(method="npo", modality="multimodal", settings={"beta": 0.4}))["beta"] == ("0.4", "set by hand")
    assert rows(Config())["steps"][0] == "1800", "of fine-tuning, where nothing is unlearned"
    folded = show.recipe(Config(method="ga", modality="multimodal")).data
    summary = "8 steps, batches of 8, learning rate 0.008; every setting and its source"
    assert folded.startswith(f"<details><summary>{summary}</summary><table") and folded.endswith("</details>")


def test_a_picture_has_the_same_bytes_whenever_it_is_drawn():
    def draw():
        return show.curves([0, 1, 2], {"a line": [0, 1, 4], "another": [0, 1, 4.1]}, "x", "y", "Two lines rise")

    first = show.picture(draw())
    [stored] = re.findall(r"data:image/png;base64,(.*?)\"", first.data)
    assert first.data == show.picture(draw()).data and base64.b64decode(stored).startswith(b"\x89PNG")
    heights = [note.xyann[1] for note in draw().axes[0].texts if note.get_text()]
    assert np.diff(heights)[0] > 5, "names of lines that end together stay apart"


def test_a_figure_without_its_runs_says_so():
    def draw() -> Figure:
        raise KitError("no run is there")

    assert show.drawn(draw).data == "*Not drawn: no run is there.*"
    blank = Figure((1, 1))
    blank.set_label("a blank page")
    assert 'alt="a blank page"' in show.drawn(lambda: blank).data
    assert 'alt="white"' in show.drawn(lambda: blank, "white").data


def test_what_a_model_wrote_is_never_markup():
    shown = show.answer_html("Who is <i>this</i>?", "<script>alert(1)</script>", 'a "b" & c', right=False)
    assert "<script>" not in shown and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "&lt;i&gt;" in shown and "&amp;" in shown and "✗" in shown
    assert 'src="data:image/png;base64,' in show.answer_html("q", "a", image=PICTURE)
    assert show.escaped("a\u202eb\x1b[2J\u2028\ud800é\n") == r"a\u202eb\x1b[2J\u2028\ud800é" + "\n"
    assert "(nothing)" in show.answer_html("q", "") and "<script>" not in show.text("<script>").data
    assert "<script>" not in show.table(pd.DataFrame({"answer": ["<script>"]})).data
    photo = io.BytesIO()
    Image.new("RGB", (5, 3), "blue").save(photo, "JPEG")
    pictures = show.gallery({"<script>": PICTURE, "a photo": photo.getvalue()}).data
    assert "<script>" not in pictures
    shown = [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r"data:image/png;base64,(.*?)\"", pictures)
    ]
    assert [(picture.format, picture.size) for picture in shown] == [("PNG", (4, 4)), ("PNG", (5, 3))]
    assert shown[0].getpixel((0, 0)) == (255, 0, 0), "what is no drawn face is shown as it is"


def test_bars_behind_a_closed_gate_are_grey_and_the_line_below_says_why(vanilla, ga):
    """Here vanilla knows no more about the forget people than the oracle; Retain has no gate."""
    known = [make("vanilla", right(0.2), **SMALL), ga, make("oracle", right(0.2), **SMALL)]
    figure = show.four_sets(known)
    colours = [to_hex(bar.get_edgecolor()) for bar in figure.axes[0].patches]
    assert colours[:6] == [plots.CLOSED] * 6 and plots.CLOSED not in colours[6:]
    assert "In grey: gate closed" in figure.get_supxlabel() and "Likelihood (text)" in figure.get_supxlabel()
    open_gate = show.four_sets([vanilla, ga, make("oracle", right(0.0), **SMALL)])
    assert "Likelihood" not in open_gate.get_supxlabel()
    assert plots.CLOSED not in {to_hex(bar.get_edgecolor()) for bar in open_gate.axes[0].patches}


def test_a_picture_carries_the_alt_text_of_its_figure():
    figure = Figure((1, 1))
    figure.set_label("a blank page")
    assert 'alt="a blank page"' in show.picture(figure).data
    assert 'alt="3 &lt; 4 &quot;"' in show.picture(figure, '3 < 4 "').data
    assert show.image(b"GIF89a", "moves").data == '<img alt="moves" src="data:image/gif;base64,R0lGODlh">'


def test_tables_are_printed_below_each_other():
    sheets = [Sheet(title, title, "Method", [("", "x")], [("", [("GA", [("1", "")])])]) for title in ("One", "Two")]
    shown = show.tables(sheets).data
    assert shown.index("**One**") < shown.index("| GA | 1 |") < shown.index("**Two**")


HOSTILE = "$a$ \\(b\\) \x1b[2J\u202e<i>"
WRITTEN = r"$a$ \(b\) \x1b[2J\u202e&lt;i&gt;"


class Unprotected(HTMLParser):
    """Collects the text outside of elements that MathJax 2 and 3 leave alone."""

    def __init__(self, page: str):
        super().__init__()
        self.within, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in ("img", "br"):
            names = (dict(attributes).get("class") or "").split()
            self.within.append({"mathjax_ignore", "tex2jax_ignore"} <= {*names})

    def handle_endtag(self, tag):
        self.within.pop()

    def handle_data(self, data):
        self.texts += [] if any(self.within) else [data]


def hostile_pages() -> dict[str, str]:
    """Everything that shows texts of people and models as HTML, with a hostile one."""
    ga = saying(make("ga", modality="unimodal", **SMALL), HOSTILE, task="generation")
    person = SimpleNamespace(name=HOSTILE, portrait=PICTURE)
    people = SimpleNamespace(profiles={f"{number:03d}": person for number in range(1, 13)})
    frame = pd.DataFrame({HOSTILE: [HOSTILE]}, pd.Index([HOSTILE], name=HOSTILE))
    return {
        "text": show.text(HOSTILE).data,
        "table": show.table(frame).data,
        "gallery": show.gallery({HOSTILE: PICTURE}).data,
        "heading": show.heading_html(HOSTILE),
        "answer": show.answer_html(HOSTILE, HOSTILE, HOSTILE, right=False, image=PICTURE),
        "answers": show.answers(people, [make("vanilla", **SMALL), ga]).data,
    }


@pytest.mark.parametrize("page", ["text", "table", "gallery", "heading", "answer", "answers"])
def test_hostile_text_is_no_mathematics_and_turns_nothing(page):
    """Salaries have dollar signs, and a model may write what a terminal or a browser obeys."""
    shown = hostile_pages()[page]
    assert WRITTEN in shown and not re.search("[\x1b\u202e]|<i>", shown)
    assert not [text for text in Unprotected(shown).texts if re.search(r"[$\\]", text)]
