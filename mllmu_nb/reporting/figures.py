"""The figures: each selects cells of a group of runs, and draws them with the helpers of :mod:`.plots`.

A figure is one function, registered with its alt text; its docstring is its caption: a sentence that is its title, then
what it shows and how to read it. It takes the :class:`~.runs.Scores` of one base model, protocol and forget ratio, and
raises KitError, with the reason, if its runs are missing.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mllmu_nb.data.schema import ATTRIBUTES, Profile
from mllmu_nb.errors import KitError
from mllmu_nb.registry import Registry
from mllmu_nb.reporting import grid, plots
from mllmu_nb.reporting.plots import CLOSED, GREY, INK, LINE, NORMAL, PAGE, PALE, RIGHT, SMALL, WRONG
from mllmu_nb.reporting.runs import MODALITIES, Run, Scores, label, models_in_order
from mllmu_nb.scoring import gates, path, utility
from mllmu_nb.scoring.frames import KEY, LIKELIHOOD_KEY, MODEL, POOLED, VIEWS, has, is_model
from mllmu_nb.scoring.health import BROKEN as BROKEN_STATES
from mllmu_nb.scoring.health import BROKEN_SHARE, CHANCE, STATES
from mllmu_nb.scoring.registry import FORGOTTEN, Metric, by_key, metrics

ORACLE_KEY = (
    "Difference to the oracle (0), with 95 % intervals. Band: the margin; = the interval lies inside it, ≠ outside, ? "
    "neither. Filled: unlearned on image + text; hollow: on text only."
)
FIGURES = Registry("figure")


def figure(name: str, alt: str, portraits: bool = False) -> Callable[[Callable], Callable]:
    """Register the decorated function as a figure, whose file names begin with ``name``. It draws from the scores of
    one group of models, and from people too if it shows ``portraits``. The figure has ``alt`` as its label."""

    def register(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @plots.styled
        @functools.wraps(draw)
        def drawn(scores: Scores, people: Sequence[Profile] = (), **named) -> Figure:
            made = draw(scores, people, **named) if portraits else draw(scores, **named)
            made.set_label(alt)
            plots.corner(made, grid.group_title(scores).removesuffix(", clean protocol"))
            return made

        return FIGURES.add(name, drawn)

    return register


def title(draw: Callable[..., Figure]) -> str:
    """The title of a figure: the first sentence of its caption."""
    return " ".join(draw.__doc__.split()).partition(". ")[0]


def write_all(scores: Scores, people: Sequence[Profile], folder: Path, source: str) -> list[str]:
    """Write every figure of every group of runs into ``folder``, and the profile sheet if there are ``people``; returns
    one line per figure for ``captions.md``: its caption, or why it is not drawn. Each file names its ``source``."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [("profiles", profile_sheet, [people])] if people else []
    for (_, group), name in itertools.product(scores.groups, FIGURES):
        wanted.append((grid.sheet_label(name, group).replace("-", "_"), FIGURES.get(name), [group, people]))
    captions = []
    for stem, draw, content in wanted:
        try:
            plots.save(draw(*content), folder / stem, source)
            captions.append(f"- `{stem}`: {' '.join(draw.__doc__.split())}")
        except KitError as reason:
            captions.append(f"- `{stem}` is not drawn: {reason}.")
    return captions


# -- what figures ask of the scores ---------------------------------------------------------------------------------


def rows(
    scores: Scores,
    wanted: Sequence[Metric],
    sets: Collection[str],
    views: Collection[str],
    against: str = "",
    percent: bool = False,
) -> pd.DataFrame:
    """Return the cells that have a value, by sets, views, ``wanted`` metrics and models in this order, in printed units
    or all in per cent.

    Columns of the cells and: model (tuple), name (with ‡ if it is unsound), look (grey if the gate is closed), margin,
    sign (of the verdict), the printed names of set, view and metric as set_label, view_label and metric_label, and
    gap_label, the metric's name for a difference.
    """
    cells = grid.select(scores, wanted, against=against, set=list(sets), view=list(views)).dropna(subset=["value"])
    known = {metric.key: metric for metric in wanted}
    metric = [known[key] for key in cells[KEY].itertuples(index=False, name=None)]
    model = list(cells[[*MODEL, *scores.by]].itertuples(index=False, name=None))
    times = np.array([100 if percent else one.times for one in metric], float)
    texts = {  # column → what it names in each row, and the names in the order in which they are drawn
        "set_label": (cells["set"], {name: name.capitalize() for name in sets}),
        "view_label": (cells["view"], {view: VIEWS.get(view, "") for view in views}),
        "metric_label": (metric, {one: one.heading for one in wanted}),
        "name": (model, {one: scores.named(one) for one in scores.models()}),
        "gap_label": (metric, {one: one.shown_as_gap for one in wanted}),
    }
    shut = cells["gate"] == gates.CLOSED
    result = cells.assign(
        **{end: cells[end] * times for end in ("value", "low", "high")},
        dots=[np.multiply(each, scale) for each, scale in zip(cells["dots"], times, strict=True)],
        look=[plots.look(*one[:3], closed=grey) for one, grey in zip(model, shut, strict=True)],
        model=model,
        margin=times * [one.margin or math.nan for one in metric],
        sign=cells["verdict"].map(grid.VERDICT_SIGNS).fillna(""),
    )
    for column, (of, names) in texts.items():
        result[column] = pd.Categorical([names[one] for one in of], list(dict.fromkeys(names.values())))
    return result.sort_values(list(texts), ignore_index=True)


def notes(scores: Scores, shown: pd.DataFrame) -> list[str]:
    """The lines below a figure of ``shown`` :func:`rows`."""
    gates_shut = grid.closed_gates(scores, shown, "In grey")
    return [*gates_shut, of_whom(scores, shown), *grid.collapse_note(scores, shown["name"])]


def of_whom(scores: Scores, shown: pd.DataFrame) -> str:
    """The number of people, what the intervals are over, and what the dots are, if there are dots."""
    return grid.sample(scores, shown) + " Dots: replicates." * has_dots(shown)


def has_dots(shown: pd.DataFrame) -> bool:
    return bool(shown["dots"].map(len).any())


# -- people and their answers ---------------------------------------------------------------------------------------


@plots.styled
def profile_sheet(people: Sequence[Profile]) -> Figure:
    """A person is a portrait, facts, and questions for three tasks. Portrait, the transformed portraits of the Test
    set, facts, and a question a task (the right answer in blue)."""
    page, y = plots.Page(title(profile_sheet)), 0.3
    for number, person in enumerate(people[:3]):
        if number:
            page.rule(y - 0.06, 0.1, PAGE - 0.1)
        y = _person(page, person, y + 0.05) + 0.12
    return page.cut(y)


def _person(page: plots.Page, person: Profile, top: float) -> float:
    """Draw one person from ``top`` downwards, in four columns; returns the y below."""
    left, portrait, small = 0.1, 1.15, 0.56
    tests, fact, value, ask = left + portrait + 0.12, 2.75, 3.53, 4.78
    page.picture(person.portrait, left, top, portrait)
    y = page.write(left, top + portrait + 0.05, plots.wrap(person.name, portrait, weight="bold"), fontweight="bold")
    bottoms = [page.write(left, y, [f"{person.id}, {person.kind}"], color=GREY)]
    pictures = person.test_portraits[:4]
    y = page.write(tests, top, ["Test portraits"] if pictures else [], color=GREY) + 0.03
    for number, data in enumerate(pictures):
        page.picture(data, tests + number % 2 * small, y + number // 2 * small, small - 0.06)
    bottoms.append(y + math.ceil(len(pictures) / 2) * small)
    y = top
    for attribute in [name for name in ATTRIBUTES if name != "name" and person.attributes.get(name)][:11]:
        page.write(fact, y, [attribute.replace("_", " ")], color=GREY)
        y = page.write(value, y, plots.wrap(person.attributes[attribute], ask - value - 0.12, most=2))
    bottoms.append(y)
    y, room = top, PAGE - ask - 0.1
    for task, view in (("classification", "image_text"), ("generation", "text"), ("cloze", "image_text")):
        question = next((q for q in person.questions if (q.task, q.view) == (task, view)), None)
        if question is None:
            continue
        y = page.write(ask, y, plots.wrap(question.text, room))
        for letter, option in zip("ABCD", question.options, strict=False):
            how = {"fontweight": "bold", "color": RIGHT} if letter == question.answer else {"fontweight": "normal"}
            line = plots.wrap(f"{letter}  {option}", room - 0.3, weight=how["fontweight"], most=1)
            y = page.write(ask + 0.1, y, line, **how)
        if not question.options:
            y = page.write(ask + 0.1, y, plots.wrap(question.answer, room - 0.1, most=2), color=RIGHT)
        y += 0.06
    return max(*bottoms, y)


SAYS, SILENT, BROKEN = "●", "○", "≈"  # signs before an answer
SIGNS_OF_ANSWERS = (
    f"{SAYS} the fact is in the answer, {SILENT} it is not (the answer may still make no sense), {BROKEN} the answer "
    "is broken: empty, repeated, mostly symbols, or less likely to the base model than 99 % of vanilla's answers. "
    f"Blue: as it should be after unlearning ({SILENT} of the person to be forgotten, {SAYS} of the one to be kept); "
    "vermillion: as it should not be."
)


@figure("before_after", "what every model answers about one person to be forgotten and one to be kept", portraits=True)
def before_after(scores: Scores, people: Sequence[Profile] = ()) -> Figure:
    """A good model no longer says the first fact and still says the second. The first person to be forgotten
    and the first to be kept that vanilla answers rightly in both views, asked with image + text and with text. ● the
    fact is in the answer, ○ it is not, ≈ the answer is broken (empty, repeated, gibberish). Blue: as it should be after
    unlearning; vermillion: as it should not be."""
    by_model = _side_by_side(scores)
    vanilla = next((answers for model, answers in by_model.items() if model[0] == "vanilla"), None)
    if vanilla is None:
        raise KitError("the before-and-after figure needs a run of vanilla beside the unlearned ones")
    pairs = [(kind, example(vanilla, name)) for kind, name in (("To be forgotten", "forget"), ("To be kept", "retain"))]
    questions = [question for _, pair in pairs for question in pair]
    names = list(map(scores.named, by_model))
    left, gap, portrait = 0.1, 0.1, 0.62
    first = left + max(map(plots.width_of, [*names, "Asked with"])) + 0.15
    column = (PAGE - first - 0.1 - 3 * gap) / 4
    places = [first + number * (column + gap) for number in range(4)]
    page, y = plots.Page(title(before_after)), 0.58
    for x, (kind, (question, by_name)) in zip(places[::2], pairs, strict=True):
        asked = [p for p in people if p.id == question["profile"] and p.name in by_name["question"]]
        name = asked[0].name if asked else f"person {question['profile']}"
        page.write(x, 0.35, [f"{kind}: {name}"], fontsize=NORMAL, fontweight="bold")
        page.rule(0.52, x, x + 2 * column + gap, GREY)
        for person in asked[:1]:
            page.picture(person.portrait, x, 0.58, portrait)
            y = 0.58 + portrait + 0.05
    truths = [plots.wrap(q["value"] or q["answer_true"], column, weight="bold", most=2) for q in questions]
    for name, texts, how in (
        ("Asked with", [[VIEWS[q["view"]]] for q in questions], {"color": GREY}),
        ("Question", [plots.wrap(q["question"], column, most=4) for q in questions], {}),
        ("Truth", truths, {"fontweight": "bold"}),
    ):
        page.write(left, y, [name], color=GREY)
        y = max(page.write(x, y, text, **how) for x, text in zip(places, texts, strict=True)) + 0.04
    for name, answers in zip(names, by_model.values(), strict=True):
        page.rule(y - 0.005, left, PAGE - 0.1)
        page.write(left, y + 0.03, [name])
        signed = [signed_answer(answers, question) for question in questions]
        lines = zip(places, signed, strict=True)
        y = max(page.write(x, y + 0.03, plots.wrap(text, column), color=colour) for x, (text, colour) in lines) + 0.03
    key = f"{SIGNS_OF_ANSWERS} All answers are of one replicate, and any model may err."
    y = page.write(left, y + 0.05, plots.below_lines([key, *grid.collapse_note(scores, names)]), color=GREY)
    return page.cut(y + 0.05)


def _side_by_side(scores: Scores) -> dict[tuple, pd.DataFrame]:
    """Model → its free answers, with the replicate and seeds of the first vanilla."""
    free = scores.items[(scores.items["task"] == "generation") & (scores.items["method"] != "base")]
    same = ["replicate", "data_seed", "train_seed"]
    first = free[free["method"] == "vanilla"].sort_values(same)[same].head(1)
    by_model: dict[tuple, pd.DataFrame] = {}
    for _, answers in free.merge(first, on=same).groupby("run"):
        by_model.setdefault(tuple(answers[column].iloc[0] for column in (*MODEL, *scores.by)), answers)
    return {model: by_model[model] for model in scores.models() if model in by_model}


def example(vanilla: pd.DataFrame, set_name: str) -> list[dict]:
    """Return two questions for a free answer (image view, text view) about one fact: the first one, by id, that vanilla
    answers rightly in both views, else the very first. ``vanilla`` are the scored answers of one run."""
    asked = vanilla[(vanilla["set"] == set_name) & (vanilla["task"] == "generation")]
    asked = asked.assign(number=asked["question_id"].str.rsplit("/", n=1).str[-1]).sort_values("question_id")
    pairs = [
        pair.set_index("view", drop=False).loc[list(VIEWS)]
        for _, pair in asked.groupby(["profile", "number"])
        if set(pair["view"]) == set(VIEWS)
    ]
    if not pairs:
        raise KitError(f"vanilla has no generation question asked in both views of the {set_name} set")
    return next((pair for pair in pairs if (pair["exact"] >= 0.5).all()), pairs[0]).to_dict("records")


def signed_answer(answers: pd.DataFrame, question: dict) -> tuple[str, str]:
    """The answer of a run to a question, with its sign in front, and its colour; a dash if the run was not asked."""
    given = answers[(answers["question_id"] == question["question_id"]) & (answers["set"] == question["set"])]
    if given.empty:
        return "–", GREY
    one = given.iloc[0]
    says, broken = one["exact"] >= 0.5, any(one[f"state_{state}"] == 1 for state in BROKEN_STATES)
    wanted = says == (question["set"] not in FORGOTTEN) and not broken
    text = f"{BROKEN if broken else SAYS if says else SILENT} {one['answer'] or '(nothing)'}"
    return text, RIGHT if wanted else WRONG


# -- scores ---------------------------------------------------------------------------------------------------------


@figure("forgetting_utility", "what each model forgot against what it kept, and against what is about nobody")
def forgetting_utility(scores: Scores) -> Figure:
    """A good method climbs to the oracle's height and stays on the right. Fall from vanilla on the forget set against
    accuracy on Retain and on the celebrities, by likelihood, views pooled, and against what a model can do that is
    about nobody. Dotted: the oracle's fall. Filled: unlearned on image + text; hollow: on text only. Bars: 95 %
    intervals, which may go on below; dots: replicates."""
    wanted, further = [by_key()[LIKELIHOOD_KEY]], utility.PANELS[scores.runs[0]["scale"]]
    fall = rows(scores, wanted, ["forget"], [POOLED], against="vanilla").query("method != 'base'")
    kept = rows(scores, wanted, ["retain", "celebrity"], [POOLED]).query("method != 'base'")
    if fall.empty or kept.empty:
        raise KitError("it needs vanilla and another model, asked by likelihood about forget and another set")
    ends = ("value", "high", "low", "dots")
    heights = {row["model"]: [np.negative(row[end]) for end in ends] for row in fall.to_dict("records")}
    heights |= dict.fromkeys(kept.loc[is_model(kept, "vanilla"), "model"], [0.0] * 4)
    upper = {name: name.capitalize() for name in dict.fromkeys(kept["set"])}
    kept = pd.concat([kept, rows(scores, [by_key()[utility.UTILITY_KEY]], list(further), [POOLED])])
    shown = kept[kept["model"].isin(heights)]
    if (fall["gate"] == gates.CLOSED).any():
        shown = shown.assign(look=[look._replace(colour=CLOSED) for look in shown["look"]])
    names = shown.drop_duplicates("model").to_dict("records")
    size = PAGE, 1.75 + max(1.75, 0.5 + 1.3 * SMALL / 72 * len(names))
    below = [
        "Retain, Celebrity: right by likelihood. The others: utility, about nobody. Filled: unlearned on image + text; "
        "hollow: on text only. Some bars continue below.",
        *notes(scores, pd.concat([fall, shown])),
    ]
    sharing = {"sharey": True, "sharex": True}
    drawn, axes = plots.panels(2, max(len(upper), len(further)), size, below, title(forgetting_utility), **sharing)
    lines = (itertools.zip_longest(*line) for line in zip(axes, (upper.items(), further.items()), strict=True))
    for panel, named in itertools.chain.from_iterable(lines):
        if named is None:
            panel.remove()
            continue
        name, head = named
        here = shown[shown["set"] == name]
        panel.tick_params(bottom=not here.empty, labelbottom=not here.empty)
        if here.empty:
            panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=GREY, fontsize=SMALL)
        for row in here.to_dict("records"):
            y, *along, down = heights[row["model"]]
            how = {"across": (row["low"], row["high"]), "along": along, "thickness": 0.7, "opacity": 0.6}
            plots.mark(panel, row["value"], y, row["look"], **how)
            if np.size(down) in (1, len(row["dots"])):  # in an unfinished sweep they may be of other replicates
                plots.dots(panel, row["dots"], down, row["look"].colour)
            if is_model(row, "oracle"):
                panel.axhline(y, color=row["look"].colour, linewidth=0.7, linestyle=":", zorder=0)
        panel.axhline(0, color=PALE, linewidth=0.6, zorder=0)
        panel.set_title(head, loc="left", fontweight="bold")
        panel.set_xlabel("" if here.empty else "right, %")
    drawn.supylabel("Forgotten: fall from vanilla on the forget set, points", fontsize=NORMAL)
    lowest = min(float(np.min([y, *np.ravel(down)])) for y, *_, down in heights.values())
    axes[0][0].set_ylim(bottom=max(lowest - 6, axes[0][0].get_ylim()[0]))
    seaborn.despine(drawn)
    right = axes[1][len(further) - 1]
    plots.name_ends(drawn, [plots.End(right, heights[row["model"]][0], row["name"], INK, row["look"]) for row in names])
    return drawn


@figure("oracle_gap", "gap of each model to the oracle with its interval and margin, a row a set, a column a metric")
def oracle_gap(scores: Scores) -> Figure:
    """A model that has forgotten answers as the oracle does: inside the grey band. Each model minus the oracle on
    Forget and Retain, views pooled; the band is the margin within which it counts as the oracle (10 points, 0.1 ROUGE,
    1 point of factuality). Bars: 95 % intervals; dots below them: replicates."""
    gaps = rows(scores, metrics(main=True), ["forget", "retain"], [POOLED], against="oracle").query("method != 'base'")
    if gaps.empty:
        raise KitError("the gap to the oracle needs a run of the oracle and another one about the same people")
    below = [ORACLE_KEY, *notes(scores, gaps)]
    places = {"y": "name", "row": "set_label", "column": "gap_label", "band": "margin", "right": "sign"}
    return plots.forest(gaps, **places, below=below, title=title(oracle_gap))


@figure("path", "what each method keeps against how much is forgotten, along its training, a panel a trained modality")
def along_the_path(scores: Scores) -> Figure:
    """The higher a line, the more the method keeps. What is kept (likelihood about Retain and the celebrities, half
    each, asked in both views) against the share of the gap between vanilla and the oracle that is closed on Forget, in
    the view that was trained. Dotted: guessing. Lines: the mean of the replicates, interpolated between the points of a
    path, as far as all of them get; dots: the replicates at 25, 50 and 75 %, with the 95 % interval, moved sideways so
    that their bars can be told apart. Star: the oracle."""
    kept = scores.kept[(scores.kept["closed_in"] == "trained") & (scores.kept["what"] == path.KEPT)]
    if kept.empty:
        raise KitError("no unlearning has a path beside an oracle about the same people")
    modalities = [name for name in MODALITIES if (kept["modality"] == name).any()]
    key = "Kept is asked in both views. Filled: unlearned on image + text; hollow: on text only. Dotted: guessing. "
    key += "Dots: replicates; bars: 95 % intervals. " if kept["of"].max() > 1 else "Bars: 95 % intervals. "
    key += "Marks of 25, 50 and 75 % are moved sideways so that their bars can be told apart. "
    below = [key, *fewer_replicates(scores, kept), grid.interpolated(scores), grid.asked_along(scores)]
    below += grid.collapse_note(scores, map(scores.named, scores.models()))
    size = PAGE, max(3.2, 0.75 + beside(scores, kept))
    drawn, axes = plots.panels(1, len(modalities), size, below, title(along_the_path), sharey=True)
    oracle = scores.points[is_model(scores.points, "oracle") & (scores.points["measure"] == path.LIKELIHOOD)]
    sums = oracle[oracle["set"].isin(("retain", "celebrity"))].groupby("set")[["score", "items"]].sum()
    goal, ends = 100 * (sums["score"] / sums["items"]).mean(), []
    for panel, modality in zip(axes[0], modalities, strict=True):
        panel.set_xlim(-3, 104)
        for name, look, mine in trails(panel, scores, kept[kept["modality"] == modality], 1.2):
            last = mine[(mine["n_replicates"] == mine["of"]) | mine["place"].isin(path.PLACES)].iloc[-1]
            ends.append(plots.End(panel, 100 * last["value"], name, INK, look, 100 * last["place"]))
        plots.mark(panel, 100, goal, plots.look("oracle"))
        panel.axhline(100 * CHANCE, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
        ends.append(plots.End(panel, goal, "Oracle", INK, plots.look("oracle")))
        panel.set_title(f"Unlearned on {MODALITIES[modality]}", loc="left", fontweight="bold")
        panel.set_xlabel("Forgotten: gap closed in the trained view, %")
    axes[0][0].set_ylabel(f"Kept: right about Retain{grid.celebrities(scores, ' and celebrities')}, %")
    seaborn.despine(drawn)
    plots.name_ends(drawn, ends)
    return drawn


def fewer_replicates(scores: Scores, kept: pd.DataFrame) -> list[str]:
    """The line below a figure of :func:`trails` that says which of its marks are of fewer replicates than others."""
    some = kept[kept["place"].isin(path.PLACES) & kept["n_replicates"].between(1, kept["of"] - 1)]
    if some.empty:
        return []
    key, counted = [*MODEL, *scores.by], []
    for place, here in some.groupby("place"):
        counts = {scores.name(tuple(row[c] for c in key)): row["n_replicates"] for row in here.to_dict("records")}
        counted.append(f"{100 * place:.0f} %: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    said = "A line ends where the first replicate stops. A mark beyond it is the mean of the replicates that get there"
    return [f"{said} (of {kept['of'].max()}; {'; '.join(counted)})."]


def trails(panel: Axes, scores: Scores, kept: pd.DataFrame, apart: float) -> Iterator[tuple]:
    """Draw what each model keeps (rows of ``Scores.kept`` of one modality and kind) against the share that is closed,
    in per cent: a line as far as all replicates get, and at 25, 50 and 75 % a mark with its interval and the replicates
    that get there, moved ``apart`` (less if there are many models). Yields names, looks, and rows by place."""
    key = [*MODEL, *scores.by]
    models = [model for model in scores.models() if has(kept, key, model).any()]
    apart = min(apart, 20 / max(1, len(models)))  # so that marks stay nearest to their own place
    for number, model in enumerate(models):
        rows, look = kept[has(kept, key, model)], plots.look(*model[:3])
        rows = rows[(rows["place"] != path.AREA) & (rows["n_replicates"] > 0)].sort_values("place")
        whole = rows[rows["n_replicates"] == rows["of"]]
        panel.plot(100 * whole["place"].astype(float), 100 * whole["value"], color=look.colour, linewidth=1.1)
        for row in rows[rows["place"].isin(path.PLACES)].to_dict("records"):
            x = 100 * row["place"] + apart * (number - (len(models) - 1) / 2)
            ends = [100 * row[end] for end in ("low", "high")]
            plots.dots(panel, x + 0.45 * apart, np.multiply(row["dots"], 100), look.colour)  # beside the bar
            plots.mark(panel, x, 100 * row["value"], look, along=None if np.isnan(ends).any() else ends, thickness=0.8)
        yield scores.named(model, True), look, rows


def beside(scores: Scores, kept: pd.DataFrame) -> float:
    """The height, in inches, that the names of the models of one modality and of the oracle need beside a panel."""
    models = kept[[*MODEL, *scores.by]].drop_duplicates()
    return 1.3 * SMALL / 72 * (1 + models["modality"].value_counts().max())


@plots.styled
def path_by_set(scores: Scores) -> Figure:
    """Retain and celebrities should stay high, Test should fall. What is right by likelihood about each set against the
    share of the gap that is closed, as in :func:`along_the_path`: a row a modality, a column a set."""
    kept = scores.kept[scores.kept["closed_in"] == "trained"]
    modalities = [name for name in MODALITIES if (kept["modality"] == name).any()]
    if not modalities:
        raise KitError("no unlearning has a path beside an oracle about the same people")
    below = ["Marks, at 25, 50 and 75 % but moved sideways: means with 95 % intervals; dots: replicates."]
    below += [*fewer_replicates(scores, kept[kept["what"] == "retain"]), grid.asked_along(scores)]
    below += grid.collapse_note(scores, map(scores.named, scores.models()))
    size, ends = (PAGE, 0.7 + max(1.7, 0.35 + beside(scores, kept)) * len(modalities)), []
    sets = [what for what in ("retain", "test", "celebrity") if (kept["what"] == what).any()]  # perhaps no celebrities
    drawn, axes = plots.panels(len(modalities), len(sets), size, below, title(path_by_set), sharex=True, sharey=True)
    for line, modality in zip(axes, modalities, strict=True):
        line[0].set_ylabel("right by likelihood, %")
        for panel, what in zip(line, sets, strict=True):
            here = kept[(kept["modality"] == modality) & (kept["what"] == what)]
            for name, look, rows in trails(panel, scores, here, 1.5):
                if panel is line[-1]:
                    ends.append(plots.End(panel, 100 * rows["value"].iloc[-1], name, INK, look))
            panel.set_title(f"{what.capitalize()}, unlearned on {MODALITIES[modality]}", fontsize=SMALL)
    axes[-1][len(sets) // 2].set_xlabel("Forgotten: gap closed in the trained view, %")
    seaborn.despine(drawn)
    plots.name_ends(drawn, ends)
    plots.corner(drawn, grid.group_title(scores))
    return drawn


@figure("leakage", "heat map of the gap to the oracle: trained in by asked in")
def leakage(scores: Scores) -> Figure:
    """The darker the orange, the more the model still knows. Gap to the oracle on the forget set in points, with 95 %
    intervals: rows by what was trained in, columns by what was asked in. White: as the oracle; grey and in brackets:
    vanilla is not shown to be above the oracle there. Exact: the fact stands in a free answer."""
    wanted = metrics(by_fact=True)
    gaps = rows(scores, wanted, ["forget"], list(VIEWS), against="oracle").query("method != 'base'")
    if gaps.empty:
        raise KitError("no model was asked what the oracle was asked about the forget set")
    ends = gaps[["value", "low", "high"]].round(9).itertuples(index=False)  # so that 7.5 is printed the same everywhere
    texts = [f"{round(gap):+d}\n[{round(low)}, {round(high)}]".replace("-", "−") for gap, low, high in ends]
    shut = gaps["gate"] != gates.OPEN
    texts = [f"({text})" if closed else text for text, closed in zip(texts, shut, strict=True)]
    cells, kinds = gaps.assign(text=texts, value=gaps["value"].mask(shut)), ["value", "text", "dots"]
    cells = cells.pivot(index="name", columns=["metric_label", "view_label"], values=kinds)
    values, texts, spots = (cells[name].sort_index(axis=1) for name in kinds)
    names = [name.replace(" (", "\n").replace(")", "") for name in values.index]
    grey = "In grey and brackets: vanilla is not shown to know more than the oracle there." if shut.any() else ""
    key = "Exact: the fact stands in a free answer." + " The dots' scale inside a cell is −100 to 100." * has_dots(gaps)
    below = [key, grey, of_whom(scores, gaps), *grid.collapse_note(scores, values.index)]
    drawn, [[panel]] = plots.panels(1, 1, (PAGE, 1.0 + 0.42 * len(values)), below, title(leakage))
    bar = {"location": "bottom", "aspect": 40, "pad": 0.02, "label": "points above (orange) or below the oracle (0)"}
    texts = texts.fillna("–").to_numpy(str)
    plots.heat(panel, values.astype(float), texts, colormaps["PuOr_r"], (-100, 100), spots, **bar)
    panel.set(xlabel="", ylabel="")
    panel.set_yticks(panel.get_yticks(), names)
    panel.set_xticks(panel.get_xticks(), [view.replace(" ", "\n", 1) for _, view in values])
    panel.tick_params(top=False, labeltop=True, bottom=False, labelbottom=False)
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "xytext": (0, 25)}
    for number, metric in enumerate(dict.fromkeys(metric for metric, _ in values)):
        panel.annotate(metric, (2 * number + 1, 1), **above)
        panel.axvline(2 * number, color=INK, linewidth=0.8 if number else 0)
    methods = [model[:2] for model in scores.models() if scores.named(model) in set(values.index)]
    for number, (one, other) in enumerate(itertools.pairwise(methods), start=1):
        panel.axhline(number, color=INK, linewidth=0.8 if one != other else 0)
    return drawn


# -- states of answers, losses ----------------------------------------------------------------------------------------

STATE_FACES = {  # from right to broken; Okabe and Ito's colours, greys for broken answers; hatches tell them apart too
    "correct": {"facecolor": "#0072B2"},
    "wrong": {"facecolor": "#E69F00", "hatch": "////"},
    "refusal": {"facecolor": "#CC79A7", "hatch": "xxxx"},
    "gibberish": {"facecolor": "#dcdcdc", "hatch": "...."},
    "repeated": {"facecolor": "#a0a0a0", "hatch": "||||"},
    "empty": {"facecolor": "#ffffff"},
}
WRITTEN = 0.12  # smaller shares are not written into their bars
EDGE = {"edgecolor": GREY, "linewidth": 0.4}


@figure("health", "stacked bars of the kinds of answers of every model, a panel a set and view")
def health(scores: Scores) -> Figure:
    """Blue (correct) should disappear on Forget and stay on Retain. What kind of answer the free answers are, per cent,
    by set and view. Broken answers (gibberish, repeated, empty: grey and white) stand to the right."""
    wanted = [by_key()["generation", "", name] for name in (*STATES, BROKEN_SHARE[-1])]
    shown = rows(scores, wanted, ["forget", "retain"], list(VIEWS))
    if not shown["metric"].isin(STATES).any():
        raise KitError("no run was asked for a free answer about the forget or the retain people whose fact is known")
    asked = list(shown.groupby(["set_label", "view_label"]))
    names = plots.values(shown, "name")
    size = PAGE, 0.75 + 1.6 * LINE * len(names)
    key = f"Shares of the free answers, per cent; those under {100 * WRITTEN:.0f} are not written. "
    key += "Their intervals are in the tables."
    dots = " Dots, one a replicate: below a bar its share of correct answers, above it 100 minus its broken ones."
    key += dots * has_dots(shown)
    drawn, axes = plots.panels(1, len(asked), size, [key, *notes(scores, shown)], f"{title(health)}\n", sharey=True)
    for panel, ((set_label, view_label), here) in zip(axes[0], asked, strict=True):
        shares = here.pivot(index="name", columns="metric", values="value")
        shares = shares.reindex(index=names, columns=list(STATES)).fillna(0) / 100
        left = np.zeros(len(names))
        for state, face in STATE_FACES.items():
            share = shares[state].to_numpy()
            there = np.flatnonzero(share)
            boxes = panel.barh(there, share[there], 0.6, left=left[there], **EDGE, **face)
            texts = [f"{100 * one:.0f}" if one >= WRITTEN else "" for one in share[there]]
            ink = "white" if state == "correct" else INK
            plain = {"facecolor": face["facecolor"], "edgecolor": "none", "pad": 0.8}  # no hatch behind a number
            panel.bar_label(boxes, texts, label_type="center", color=ink, fontsize=SMALL, bbox=plain)
            left += share
        for row in here.to_dict("records"):
            place, each = names.index(row["name"]), np.divide(row["dots"], 100)
            if row["metric"] == "correct":
                plots.dots(panel, each, place + 0.4, INK)
            elif row["metric"] == BROKEN_SHARE[-1]:
                plots.dots(panel, 1 - each, place - 0.4, INK)
        panel.set_title(f"{set_label}, {view_label}", loc="left")
        panel.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xticks=[], yticks=range(len(names)), yticklabels=names)
        panel.tick_params(axis="y", length=0)
    seaborn.despine(drawn, left=True, bottom=True)
    plots.legend(drawn, {STATES[state].lower(): Patch(**EDGE, **face) for state, face in STATE_FACES.items()})
    return drawn


@figure("losses", "loss against step, a panel a method")
def losses(scores: Scores) -> Figure:
    """Training loss against step. Lines: the mean of a method's trainings, as a running mean where they are long; pale:
    each of them. Solid: image + text (or the whole mixture for vanilla and oracle); dashed: text only. A low loss does
    not show what a model still knows."""
    return loss_curves(scores.runs, scores)


LONG = 50  # steps from which the loss of one run is drawn behind its running mean


@plots.styled
def loss_curves(runs: Sequence[Run], scores: Scores | None = None) -> Figure:
    """Draw the loss of trainings, one panel per method, one line per model: the mean of its runs, and behind it each
    of them, or for one run its raw curve. With the ``scores`` of the runs, models that have
    collapsed are marked, and models that differ in a parameter of a grid are separate."""
    trained = [run for run in runs if run.train.get("losses")]
    trained = [run for run in trained if not run["after"]] or trained  # a step after unlearning trains nothing
    if not trained:
        raise KitError("no run has a training log with losses")
    name, mark = (scores.name, scores.mark) if scores else (lambda model: label(*model), lambda model: "")
    models = {run.id: scores.model_of(run) if scores else run.model for run in trained}
    by_method: dict[str, list[tuple]] = {}
    for model in models_in_order(models.values()):
        by_method.setdefault(name((*model[:2], "none", *model[3:])), []).append(model)
    columns = min(3, len(by_method))
    lines = math.ceil(len(by_method) / columns)
    width = PAGE if columns > 1 else plots.COLUMN
    several = max(Counter(models.values()).values())
    key = f"Bold: the mean of the trainings (up to {several}); pale: each of them." if several > 1 else ""
    if several == 1 and any(run.train["steps"] >= LONG for run in trained):
        key = "Bold: the running mean of the pale line."
    below = [key, *(grid.collapse_note(scores, map(mark, models.values())) if scores else ())]
    over = "\n".join(plots.wrap(title(losses), width * plots.SMALL / plots.TITLE - 0.1, weight="bold"))
    drawn, axes = plots.panels(lines, columns, (width, 0.25 + 1.55 * lines), below, over)
    ends = []
    for number, (panel, (method, mine)) in enumerate(zip(axes.ravel(), by_method.items(), strict=False)):
        for model in mine:
            look, own = plots.look(*model[:3]), [run for run in trained if models[run.id] == model]
            logs = [pd.DataFrame(run.train["losses"])["loss"].rename(lambda row: row + 1) for run in own]
            smooth = [log.rolling(max(1, len(log) // 25), min_periods=1, center=True).mean() for log in logs]
            mean = pd.concat(smooth, axis=1).mean(axis=1)
            for log in smooth if len(logs) > 1 else logs * (len(mean) >= LONG):
                panel.plot(log.index, log, color=look.colour, linewidth=0.4, alpha=0.25)
            dashes = "-" if look.filled else (0, (3, 1.5))
            panel.plot(mean.index, mean, color=look.colour, linewidth=1.1, linestyle=dashes)
            if model[2] in MODALITIES:
                text = MODALITIES[model[2]] + mark(model)
                ends.append(plots.End(panel, float(mean.iloc[-1]), text, x=mean.index[-1]))
        panel.set_title(method, loc="left", fontweight="bold")
        panel.set_xmargin(0.03)
        panel.set_ylabel("" if number % columns else "loss, nats")
        panel.set_xlabel("step" if number + columns >= len(by_method) else "")
    for panel in axes.ravel()[len(by_method) :]:
        panel.axis("off")
    seaborn.despine(drawn)
    plots.name_ends(drawn, ends)
    return drawn
