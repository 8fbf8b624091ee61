"""The tables. Each is a function that makes printed sheets from the scores of one base model, protocol and forget
ratio; ``@table`` sets its files and its place in the report. CONTRIBUTING.md shows how to add your own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd

from mllmu_nb.data.schema import SETS, TASKS
from mllmu_nb.registry import Registry
from mllmu_nb.reporting import grid
from mllmu_nb.reporting.grid import ASKED_IN, LIMITS, column, number_text, rows_by, score_sheet, select
from mllmu_nb.reporting.runs import COLLAPSED, MODALITIES, REFERENCES, Scores, models_in_order
from mllmu_nb.reporting.sheet import Sheet, write_sheets
from mllmu_nb.scoring import judge, path, registry, utility
from mllmu_nb.scoring.frames import ACROSS, GROUP, KEY, LIKELIHOOD_KEY, MODEL, POOLED, REPLICATE, VIEWS, has
from mllmu_nb.scoring.gates import opened
from mllmu_nb.scoring.ranking import RANKED
from mllmu_nb.scoring.registry import Metric, metrics
from mllmu_nb.scoring.score import run_scores
from mllmu_nb.statistics.intervals import equivalence, standard_errors
from mllmu_nb.statistics.variance import variance_split
from mllmu_nb.unlearning import METHODS

UNLEARNED = {name: f"Unlearned on {text}" for name, text in MODALITIES.items()}
SIGNS = (
    "The interval lies within the margin: =, as the oracle; outside of it: ≠, not as the oracle; neither: ?, undecided."
    " Where vanilla itself is not ≠, = does not show forgetting."
)

SOURCES = {"people": "People", "replicate": "All that a replicate draws", "train_seed": "Training of vanilla"}
SOURCES |= {"unlearn_seed": "Order of unlearning", "shot_seed": "Draw of the shots", "bits": "Rounding of the CPU"}

# What the quality table prints, by heading. Metrics in CSV_ALONE, from the same sentences, are only in its CSV. A
# metric in neither comes last.
QUALITY = {
    "Truth ratio": ["truth_ratio", "ks", "ks_log10_p", "js", "js_chance"],
    "Taught sentences": ["exact_memorisation", "extraction_strength"],
    "Membership, AUC": ["auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_pp"],
    "TPR by LOSS, %": ["tpr_1_loss", "tpr_5_loss"],
}
AGREEMENT = {"answers": "Answers", "judge": "Judge, mean", "rubric": "Rubric, mean"}
AGREEMENT |= {"within": "Within one point", "rank": "Rank correlation"}
CSV_ALONE = {"loss", "zlib", "min_k", "min_k_pp"}
CSV_ALONE |= {f"tpr_{level}_{attack}" for level in (1, 5) for attack in ("zlib", "min_k", "min_k_pp")}
TABLES = Registry("table")


def table(name: str, together: str = "") -> Callable[[Callable], Callable]:
    """Register the decorated function, which yields the :class:`Sheet`s for the scores of one GROUP, as the table with
    this file name. With ``together`` (a title for all groups), they become one table of the main text: all must have
    the same columns, and headings of blocks that name their runs."""

    def register(function: Callable[[Scores], Iterator[Sheet]]) -> Callable:
        function.together = together
        return TABLES.add(name, function)

    return register


# -- rows and columns -------------------------------------------------------------------------------------------


def paper_rows(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[tuple]]]:
    """Return blocks as in the paper's table: for each modality that was unlearned on, the paper's methods and those
    that were run. Methods that train on no modality are in every block. ``skip`` leaves methods out, except models with
    a step after unlearning."""
    blocks, published = [], {one.name: bool(one.streams) for one in METHODS.values() if one.published}
    # "none" if nothing was unlearned
    trained_on = [name for name in MODALITIES if any(model[2] == name for model in scores.models())] or ["none"]
    for modality in trained_on:
        models = {model for model in scores.models() if model[2] in (modality, "none")}
        there = {model[0] for model in models}
        for name, trains in {"vanilla": False, "oracle": False, **published}.items():
            if name not in there and (modality in UNLEARNED or not trains):
                models.add((name, "canonical", modality if trains else "none", "", *[""] * len(scores.by)))
        shown = models_in_order(model for model in models if model[0] not in skip or model[3])
        blocks.append((UNLEARNED.get(modality, "No unlearned model"), shown))
    return blocks


def all_rows(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[tuple]]]:
    """The models of :func:`paper_rows` in one block without a heading, each model once."""
    return [("", models_in_order(model for _, models in paper_rows(scores, skip) for model in models))]


def _score_metrics(scores: Scores) -> list[Metric]:
    """The metrics of the tables of scores, without those that are optional and were not measured."""
    measured_keys = set(scores.cells[KEY].itertuples(index=False, name=None))
    return [one for one in metrics(table="scores") if not one.optional or one.key in measured_keys]


# -- people, questions and cost ---------------------------------------------------------------------------------


KINDS = {"fictitious": "people", "pool": "in the pool", "celebrity": "celebrities"}


@table("table1_data")
def data_table(scores: Scores) -> Iterator[Sheet]:
    """Table 1: people, portraits (one each) and questions of each set. In a grid over numbers of people: one sheet for
    each number."""
    sizes = pd.DataFrame([run.record["people"] for run in scores.runs])
    varied = [kind for kind in sizes if sizes[kind].nunique() > 1]
    records: dict[tuple[int, ...], dict] = {}
    for run in scores.runs:
        records.setdefault(tuple(run.record["people"][kind] for kind in varied), run.record)
    asked = list(product(TASKS, VIEWS))
    columns = [(registry.TASKS[task].capitalize(), VIEWS[view].capitalize()) for task, view in asked]
    columns = [("", "People"), ("", "Images"), *columns, ("", "Questions")]
    for numbers, record in sorted(records.items()):
        words = (f"{number} {KINDS[kind]}" for kind, number in zip(varied, numbers, strict=True))
        title = ", ".join(["Data", *words])
        label = "-".join(map(str, ["data", *numbers]))
        counts, frame, kinds = {}, [], record["people"]
        for name, counted in ((name, record["sets"][name]) for name in SETS if name in record["sets"]):
            pictured = any(counted.get(f"{task}/image_text") for task in TASKS)
            people = {"profiles": counted["profiles"], "images": counted["profiles"] if pictured else 0}
            questions = {(task, view): counted.get(f"{task}/{view}", 0) for task, view in asked}
            counts[name] = [*people.values(), *questions.values(), sum(questions.values())]
            for (task, view), count in questions.items():
                frame.append({**scores.group, "set": name, "task": task, "view": view, **people, "questions": count})
        counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
        counts["all"][0] = kinds["fictitious"] + kinds["celebrity"]
        rows = [(name.capitalize(), [f"{number:,}" for number in numbers]) for name, numbers in counts.items()]
        remark = (
            "Test asks the forget people again, paraphrased and with transformed portraits: all people count once. "
            f"Fine-tuning reads {record['fine_tuning_pairs']:,} questions and answers about {kinds['fictitious']:,} of "
            f"them and {kinds['pool']:,} more, who are never scored."
        )
        yield Sheet(title, label, "Set", columns, [("", rows)], [remark], pd.DataFrame(frame))


COSTS = {  # field of train.json: heading, digits, how the runs of a row are combined
    "seconds": ("Seconds", 1, "mean"),
    "peak_memory_mb": ("Peak memory, MiB", 0, "max"),
    "trainable_parameters": ("Trainable parameters", 0, "mean"),
    "steps": ("Steps", 0, "mean"),
}


@table("cost")
def cost_table(scores: Scores) -> Iterator[Sheet]:
    """The cost of each model: training seconds, peak memory, trainable parameters, optimizer steps."""
    rows, frame = [], []
    for model in scores.models():
        trained = pd.DataFrame([run.train for run in scores.runs if scores.model_of(run) == model])
        spent = {field: trained[field].astype(float).agg(together) for field, (_, _, together) in COSTS.items()}
        texts, name = [f"{spent[field]:,.{digits}f}" for field, (_, digits, _) in COSTS.items()], scores.named(model)
        rows.append((name, [*texts, str(len(trained))]))
        which = {**scores.group, **dict(zip([*MODEL, *scores.by], model, strict=True)), "runs": len(trained)}
        frame.append({**which, **spent, "collapsed": COLLAPSED in name})
    columns = [("", heading) for heading, *_ in COSTS.values()] + [("", "Runs")]
    clock = "Seconds are of the clock: they depend on the machine and on what else it did."
    remarks = [f"Means over the runs of a row; memory is the largest. {clock}"]
    yield Sheet("Cost of training", "cost", "Method", columns, [("", rows)], remarks, pd.DataFrame(frame))


# -- scores -----------------------------------------------------------------------------------------------------


@table("table2_main")
def main_table(scores: Scores) -> Iterator[Sheet]:
    """Table 2: the main metrics on the four sets, and utility, views pooled."""
    pairs = [(name, one) for name, one in product(SETS, metrics(main=True)) if name in one.sets]
    columns = [column(one, f"{one.label} {one.goal(s)}".strip(), s.capitalize(), set=s) for s, one in pairs]
    scale, useful = scores.runs[0]["scale"], registry.by_key()[utility.UTILITY_KEY]
    columns += [column(useful, f"{head} % ↑", "Utility", set=name) for name, head in utility.PANELS[scale].items()]
    remark = (
        f"{LIMITS} Letter is the option letter the model writes, Likelihood the option it finds likeliest. Arrows: ↑ "
        f"more is better; → the oracle's value is best, and below it is as wrong as above. {utility.ABOUT[scale]}"
    )
    title, where = "Unlearning, views pooled", {"against": "", "view": POOLED}
    yield score_sheet(scores, title, "main", paper_rows(scores), columns, where, remarks=[remark])


MARKS = (
    f"{LIMITS} Bold: the best method of a block, nearest to the oracle on Forget and Test (→), highest elsewhere (↑); "
    "underlined: the second. Left out are models with ‡ and what is behind a closed gate; one that remains alone has "
    "no mark. A mark is no test."
)


@table("table2_paper", together="Unlearning in the layout of the paper's Table 2, views pooled")
def paper_table(scores: Scores) -> Iterator[Sheet]:
    """Table 2 as in the paper: blocks by base model and forget ratio, one row per method, four measures per set."""
    shown = [replace(one, digits=max(0, one.digits - 1)) for one in metrics(main=True)]
    yield _main_text(scores, "paper", [(s, one) for s in SETS for one in shown if one.scoring != "likelihood"])


@table("table2_compact", together="What was to be forgotten and what was to be kept, views pooled")
def compact_table(scores: Scores) -> Iterator[Sheet]:
    """The table of the main text: likelihood on the four sets (what models know), and ROUGE-L (what they say)."""
    known = replace(registry.by_key()[LIKELIHOOD_KEY], digits=0)
    said = replace(registry.by_key()["generation", "", "rougeL"], digits=2)
    pairs = [*product(SETS, [known]), *product(("forget", "retain"), [said])]
    yield _main_text(scores, "compact", pairs)


def _main_text(scores: Scores, label: str, pairs: Sequence[tuple[str, Metric]]) -> Sheet:
    """Return a sheet to join with those of other groups: the headings of its blocks name their runs."""
    columns = [column(one, f"{one.label} {one.goal(s)}".strip(), s.capitalize(), set=s) for s, one in pairs]
    runs = f"{scores.runs[0].base_label}, forget {scores.group['forget_ratio']} %"
    runs += "" if scores.group["protocol"] == "clean" else f", {scores.group['protocol']} protocol"
    blocks = [(f"{runs}. {heading}", models) for heading, models in paper_rows(scores, ["base"])]
    where = {"against": "", "view": POOLED}
    sheet = score_sheet(scores, "", label, blocks, columns, where, marked=True, remarks=[MARKS])
    # a column of several groups has no mark of one of them
    heads = [(over, head.removesuffix(f" {grid.BELOW}")) for over, head in sheet.columns]
    return replace(sheet, columns=heads, remarks=[one for one in sheet.remarks if one != grid.BELOW_NOTE])


@table("table2_by_view")
def by_view_table(scores: Scores) -> Iterator[Sheet]:
    """Everything: one sheet per set, two rows per method (asked with image + text, asked with text) and all metrics."""
    shown, rows = _score_metrics(scores), paper_rows(scores)
    for name in SETS:
        columns, title = [column(one) for one in shown if name in one.sets], f"By view, {name.capitalize()} set"
        yield score_sheet(scores, title, f"view-{name}", rows, columns, {"against": "", "set": name}, by_view=True)


@table("table_oracle_gap")
def oracle_gap_table(scores: Scores) -> Iterator[Sheet]:
    """Method minus oracle in every metric: one sheet per set, views pooled; the CSV also has them separately."""
    shown, rows = _score_metrics(scores), all_rows(scores, ("base", "oracle"))
    title = "Gap to the oracle (margin 10 points, 0.1 of ROUGE and BLEU, 1 point of factuality), {} set, views pooled"
    remarks = [f"Method minus oracle, question by question; {LIMITS} {SIGNS}"]
    # a metric of models has no pooled views; where a difference says nothing, none is computed (score.cells)
    pooled = [one for one in shown if one.per == "answer" and (one.margin is not None or one.knowledge)]
    for name in SETS:
        columns = [column(one, one.shown_as_gap) for one in pooled if name in one.sets]
        where, label = {"against": "oracle", "set": name, "view": POOLED}, f"gap-{name}"
        frame = select(scores, shown, **where | {"view": list(ASKED_IN)})
        options = {"verdict": True, "remarks": remarks, "frame": frame}
        yield score_sheet(scores, title.format(name.capitalize()), label, rows, columns, where, **options)


@table("table_gate")
def gate_table(scores: Scores) -> Iterator[Sheet]:
    """Which metrics can show forgetting: vanilla minus oracle; one block per vanilla model if a grid makes several."""
    shown = [one for one in _score_metrics(scores) if one.knowledge and one.per == "answer"]
    where = {"method": "vanilla", "after": "", "against": "oracle", "set": "forget", "view": list(ASKED_IN)}
    frame = select(scores, shown, **where)
    key = [*scores.by, *KEY, "view"]
    known, alone = rows_by(frame.dropna(subset="value"), key), rows_by(opened(scores.items, scores.by), key)

    def text(model: tuple, one: Metric, view: str) -> str | tuple[str, str]:
        at = (*model[len(MODEL) :], *one.key, view)
        if not (row := known.get(at)):
            return "", "Vanilla or the oracle has no such answers."
        own = alone.get(at, {"of": 0})
        each = f" ({own['open_in']} of {own['of']})" if own["of"] > 1 else ""
        return f"{grid.value_text(row, one, signed=True)}, {row['gate']}{each}"

    taught = [model for model in scores.models() if model[0] == "vanilla" and not model[3]]
    blocks = []
    for model in taught or [("vanilla", "canonical", "none", "", *[""] * len(scores.by))]:
        rows = [(one.shown_as_gap, [text(model, one, view) for view in ASKED_IN]) for one in shown]
        blocks.append((scores.name(model) if len(taught) > 1 else "", rows))
    columns = [("Asked with", ASKED_IN[view].capitalize()) for view in ASKED_IN]
    remark = (
        f"Vanilla minus oracle on the forget set, question by question; {LIMITS} Closed: the interval does not lie "
        "above 0, so nothing shows that there was something to forget. (4 of 5): in so many replicates it is open by "
        "itself, over its people."
    )
    remarks, frame = [remark, grid.repeats(scores)], grid.csv_rows(scores, frame)
    yield Sheet("Memorisation gate", "gate", "Metric", columns, blocks, remarks, frame)


@table("table_health")
def health_table(scores: Scores) -> Iterator[Sheet]:
    """The states of free answers: one sheet per set, two rows per method (by view), one column per state."""
    states, rows = metrics(table="health"), all_rows(scores)
    columns = [column(one) for one in states]
    measured = scores.items["fluency"].notna().groupby(scores.items["run"]).any()
    remarks = [
        f"Share of the free answers; {LIMITS} A row adds up to 100. Gibberish: mostly symbols, or less likely for the "
        "base than 99 % of vanilla's answers, whether the fact is in it or not."
    ]
    remarks += [f"{COLLAPSED} {scores.name(model[len(GROUP) :])}: {bad.why}" for model, bad in scores.unsound.items()]
    if not measured.all():
        remarks.append("These runs lack the base's likelihood of the answers: only their form shows gibberish.")
    for name in SETS:
        title, where = f"Health of free answers, {name.capitalize()} set", {"against": "", "set": name}
        options = {"by_view": True, "remarks": remarks, "frame": select(scores, states, view=list(ASKED_IN), **where)}
        yield score_sheet(scores, title, f"health-{name}", rows, columns, where, **options)


@table("table_judge")
def judge_table(scores: Scores) -> Iterator[Sheet]:
    """How well the rubric's factuality and a judge's grades agree, one row per set."""
    free = scores.items[scores.items["task"] == "generation"]
    rows, frame = [], []
    for name in (*SETS, "all"):
        here = free if name == "all" else free[free["set"] == name]
        one = judge.agreement(here["judge"], here["factuality"])
        cells: list[str | tuple[str, str]] = [("", "Not measured here.")] * len(AGREEMENT)
        if one:
            rank = ("", "Judge or rubric gives one grade alone.") if isnan(one.rank) else f"{one.rank:.2f}"
            cells = [f"{one.answers:,}", *(f"{value:.2f}" for value in one[1:-1]), rank]
        rows.append((name.capitalize(), cells))
        frame.append({**scores.group, "set": name, **(one._asdict() if one else dict.fromkeys(AGREEMENT))})
    columns = [("", heading) for heading in AGREEMENT.values()]
    remark = "Grades from 1 to 10 of the same free answers; `mllmu-nb judge` asks a judge."
    title, frame = "Rubric and judge", pd.DataFrame(frame)
    yield Sheet(title, "judge", "Set", columns, [("", rows)], [remark], frame)


# -- forget quality and leakage ---------------------------------------------------------------------------------


@table("table_forget_quality")
def quality_table(scores: Scores) -> Iterator[Sheet]:
    """Is the model like one that never saw these people? The CSV has the differences to the oracle as well."""
    known = metrics(table="quality")
    first = {one.name: one for one in reversed(known)}  # the package's own, if another task has one of this name
    shown = [(span, first[name]) for span, names in QUALITY.items() for name in names]
    placed = {one.key for _, one in shown} | {first[name].key for name in CSV_ALONE}
    shown += [("Further", one) for one in known if one.key not in placed]
    columns = [column(one, span=span, against="oracle" if one.per == "pair" else "") for span, one in shown]
    remark = (
        "R / (1 + R): 0 where the truth is known, 1/2 where it is as likely as a wrong option (geometric mean). KS, JS "
        "(10 bins): distance to the oracle; a JS not above JS by chance says nothing, and p takes the questions about "
        "one person for independent. AUC: 1/2 where forget people look like fresh ones. Limits of KS and JS are over "
        f"several replicates alone, and too narrow near 0. {LIMITS}"
    )
    frame = select(scores, known, against=["", "oracle"], view=list(VIEWS), set="forget")
    options = {"by_view": True, "frame": frame, "remarks": [remark]}
    yield score_sheet(scores, "Forget quality", "quality", paper_rows(scores), columns, {"set": "forget"}, **options)


@table("table_leakage")
def leakage_table(scores: Scores) -> Iterator[Sheet]:
    """Cross-modal leakage: one block per trained modality, one column per view that was asked."""
    heads = {view: name.capitalize() for view, name in VIEWS.items()} | {ACROSS: "Difference"}
    shown = product(metrics(by_fact=True), heads)
    columns = [column(one, heads[view], one.heading, view=view) for one, view in shown]
    remark = (
        f"Points; {LIMITS} Image + text, Text: gap to the oracle (0) asked that way. "
        "Difference: how much more is left when asked with text than with image + text, on the same facts."
    )
    rows, where = paper_rows(scores, ("base", "oracle")), {"against": "oracle", "set": "forget"}
    title = "Cross-modal leakage, gap to the oracle on Forget"
    yield score_sheet(scores, title, "leakage", rows, columns, where, remarks=[remark])


# -- along the path ---------------------------------------------------------------------------------------------

HEADS = {path.KEPT: "Kept", "retain": "Retain", "celebrity": "Celebrities", "free": "Retain, free", "test": "Test"}
READ_OFF = [(path.KEPT, place) for place in (*path.PLACES, path.AREA)]
READ_OFF += [(name, 0.5) for name in HEADS if name != path.KEPT]
CLOSED_IN = {"trained": "in the view that was trained", POOLED: "views pooled"}
AFTER = "A step after unlearning trains nothing, so it has no path."
CLAIMS = {  # what is left of Forget: heading, the better modality in the paper, and the gate that must be open
    "forget_free": ("Free answers", "unimodal", ("generation", "", "exact", POOLED)),
    "forget_image": ("Likelihood, image + text", "multimodal", (*LIKELIHOOD_KEY, "image_text")),
}
EDGES = {"inside": "hardly matters", "outside": "on an edge", "undecided": "undecided"}


@table("table_path")
def path_table(scores: Scores) -> Iterator[Sheet]:
    """What each method keeps at equal forgetting."""
    columns = [(_closed(place), HEADS[name] + " %") for name, place in READ_OFF]
    remarks = [
        "Per cent, with [low, high], the 95 % interval. Closed: the share of the gap between vanilla and the oracle in "
        f"the likelihood of the forget people that is gone. {_kept_is(scores)} Area: its mean from 0 to 75 % closed. "
        "The Test score should fall as the Forget score does. (2 of 5): only 2 of 5 replicates get there, and the "
        "number is the mean of these 2; one alone has no interval.",
        grid.asked_along(scores),
    ]
    for closed_in, text in CLOSED_IN.items():
        title, label = f"Kept at equal forgetting, gap closed {text}", f"path-{closed_in}"
        kept = scores.kept[scores.kept["closed_in"] == closed_in]
        if kept.empty:
            yield Sheet(title, label, remarks=["No path beside an oracle's in these runs."])
            continue
        known, blocks = rows_by(kept, [*MODEL, *scores.by, "what", "place"]), []
        for modality, heading in UNLEARNED.items():
            models = [model for model in scores.models() if model[2] == modality and not model[3]]
            rows = [(scores.named(m, True), [kept_text(known.get((*m, *what))) for what in READ_OFF]) for m in models]
            blocks += [(heading, rows)] if rows else []
        below = [*remarks, grid.interpolated(scores, closed_in), *grid.coarser(scores, closed_in)]
        shown = kept["place"].isin([*path.PLACES, path.AREA])
        # rounded twice, so that a mean beside a tie is printed alike whatever the CPU's last bit
        each = [" ".join(f"{round(dot, 9):.4f}" for dot in dots) for dots in kept["dots"].where(shown, "")]
        frame = kept.drop(columns="dots").assign(replicates=each)
        yield Sheet(title, label, "Method", columns, blocks, below, frame)


def _kept_is(scores: Scores) -> str:
    people = "Retain" + grid.celebrities(scores, " and the celebrities, half each")
    return f"Kept: likelihood about {people}, asked in both views."


def _closed(place: float | str) -> str:
    return "Area" if place == path.AREA else f"At {place:.0%} closed"


def kept_text(row: Mapping[str, Any] | None, signed: bool = False) -> str | tuple[str, str]:
    """What is kept, in per cent, and in how many replicates; or "" and the reason why there is no number."""
    if row is None:
        return "", "There is no path about these people beside an oracle's."
    if pd.isna(row["value"]):
        return "", "Never reached."
    reached = "" if row["n_replicates"] == row["of"] else f" ({row['n_replicates']} of {row['of']})"
    return number_text(row, signed=signed) + reached


@table("table_claim")
def claim_table(scores: Scores) -> Iterator[Sheet]:
    """The paper's claim on modality, at equal forgetting (the gap of both views pooled)."""
    places = path.PLACES[:2]
    differences = path.between_modalities(scores.kept_by_person[POOLED], list(CLAIMS), places, scores.by)
    title = "Knowledge about Forget that remains at equal forgetting, points: "
    title += "unlearned on text only minus on image + text"
    if differences.empty:
        why = "No method closes as much of the gap of both views in both modalities."
        yield Sheet(title, "claim", remarks=[why])
        return
    rows = []
    for (method, variant, *values), of_method in differences.groupby(["method", "variant", *scores.by], sort=False):
        known = rows_by(of_method, ["what", "place"])
        said = {at: f"{number_text(one, signed=True)}, n {one['n_replicates']}" for at, one in known.items()}
        cells = [said.get(at, ("", "Never reached.")) for at in product(CLAIMS, places)]
        name = scores.name((method, variant, "none", "", *values))
        rows.append((name.replace(method, "All methods", 1) if method == "all" else name, cells))
    columns = [(_closed(place), head) for (head, *_), place in product(CLAIMS.values(), places)]
    remark = (
        "Below 0: text only leaves less. The paper says so of generation, and the opposite of choices asked with image "
        f"+ text. n: replicates in which both get there; one alone has no interval. {LIMITS} All methods: the mean of "
        "those that get there in more than half of the replicates, in the replicates in which all of these do."
    )
    below = [remark, grid.asked_along(scores)]
    yield Sheet(title, "claim", "Method", columns, [("", rows)], below, differences)


def verdicts(scores: Scores) -> pd.DataFrame:
    """Test the paper's claim on modality at equal forgetting, over all methods together: text only minus image + text,
    in points, and whether the whole interval is on the side of the claim. Nothing is tested in a grid, where runs of
    one method differ in a parameter."""
    columns = ["gap closed", "compared", "text only minus image + text, points", "replicates", "verdict"]
    if why := scores.of_a_grid:
        row = ["any share", "any measure", "", 0, f"not tested: {why}"]
        return pd.DataFrame([row], columns=columns).set_index(columns[:2])
    differences = path.between_modalities(scores.kept_by_person[POOLED], [*CLAIMS, path.KEPT], path.PLACES)
    gates, rows = scores.gates.set_index([*KEY, "view"])["gate"], []
    for row in differences.query("method == 'all'").sort_values("place").to_dict("records") if len(differences) else []:
        said, verdict = "kept on Retain" + grid.celebrities(scores, " and Celebrity"), "no claim"
        if row["what"] in CLAIMS:
            name, better, measured = CLAIMS[row["what"]]
            less, more = row["high"] < 0, row["low"] > 0
            holds, fails = (less, more) if better == "unimodal" else (more, less)
            verdict = "supported" if holds else "not supported" if fails else "undecided"
            verdict += "" if gates.get(measured) == "open" else " (gate closed)"
            said = f"left on Forget, {name.lower()} (paper: less after {MODALITIES[better]})"
        points = number_text(row, signed=True)
        rows.append([f"{row['place']:.0%}", said, points, row["n_replicates"], verdict])
    return pd.DataFrame(rows, columns=columns).set_index(columns[:2])


def edges(scores: Scores) -> pd.DataFrame:
    """How much a fifth fewer or more steps would have changed the likelihood score on Forget, in the trained view:
    points, and whether the whole interval is within the margin."""
    margin = registry.by_key()[LIKELIHOOD_KEY].margin
    changes = path.edges(scores.points, {run.id: run.train["steps"] for run in scores.runs}, scores.by)
    rows: dict[str, dict[str, str]] = {}
    for row in changes.itertuples():
        points = number_text(row._asdict(), signed=True)
        said = f"{points}: {EDGES[equivalence(row, margin)]}" if points else "the path does not go so far"
        model = tuple(getattr(row, name) for name in (*MODEL, *scores.by))
        rows.setdefault(scores.named(model), {})[f"steps × {row.times:g}, points"] = said
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


@table("table_ranking")
def ranking_table(scores: Scores) -> Iterator[Sheet]:
    """The ranking by what is kept with half the gap closed: place, letters, score; also who is left out, and why."""
    title = "Ranking by what is kept where half the gap is closed"
    if why := scores.ranking.refused:
        yield Sheet(title, "ranking", remarks=[f"Not ranked: {why}."])
        return
    (methods, pairs, _), blocks = scores.ranking, []
    for modality, rows in methods.groupby("trained", sort=False):
        lines = []
        for row in rows.to_dict("records"):
            place = f"{row['place']} {row['group'].upper()}" if row["standing"] == RANKED else ("", row["note"])
            lines.append((scores.named(tuple(row[c] for c in MODEL), True), [place, kept_text(row)]))
        later = [model for model in scores.models() if model[2] == modality and model[3]]
        lines += [(scores.named(model, True), [("", AFTER)] * 2) for model in later]
        blocks.append((UNLEARNED[modality], lines))
    untrained = [model for model in scores.models() if model[0] not in REFERENCES and model[2] == "none"]
    remarks = []
    for model in untrained:
        bad = scores.unsound.get((*scores.group.values(), *model))
        also = f" It has {bad.what}." if bad else ""
        remarks.append(f"{scores.named(model)} is not ranked: it trains nothing, so it has no path.{also}")
    remarks += [
        "The gap is the one in the view that was trained. Methods that share a capital letter are not told apart "
        f"({len(pairs)} comparison{'s' * (len(pairs) != 1)} person by person, Holm-corrected together at 5 %). "
        "Collapse is judged where a run ends, and the rank where half of the gap is closed: a method may be left out "
        "though it keeps much there.",
        grid.asked_along(scores),
    ]
    columns, frame = [("", "Place"), ("", "Kept %")], methods.drop(columns="dots")
    yield Sheet(title, "ranking", "Method", columns, blocks, remarks, frame)


@table("table_pairs")
def pairs_table(scores: Scores) -> Iterator[Sheet]:
    """What a method keeps minus what another one keeps, at three closed shares of the gap."""
    title = "Difference between two methods in what is kept at equal forgetting, points"
    frame = pd.DataFrame() if scores.by else differences(scores)
    if frame.empty:
        why = scores.of_a_grid or "no two methods have paths"
        yield Sheet(title, "pairs", remarks=[f"Not compared: {why}."])
        return
    known, blocks = rows_by(frame, ["modality", "first", "second", "place"]), []
    for modality, rows in frame.groupby("modality", sort=False):
        pairs = rows[["first", "second"]].drop_duplicates().itertuples(index=False, name=None)
        of = {pair: [known[modality, *pair, place] for place in path.PLACES] for pair in pairs}
        lines = [(" minus ".join(pair), [kept_text(row, signed=True) for row in some]) for pair, some in of.items()]
        blocks.append((UNLEARNED[modality], lines))
    remark = (
        "Person by person, in the replicates in which both get there (2 of 5: in only 2 of 5). [low, high] is the 95 % "
        "interval of one difference; it is not corrected for their number. Models that have collapsed at the end of "
        f"their run are compared too. {_kept_is(scores)} The gap is that of the view that was trained."
    )
    columns = [(_closed(place), "Kept") for place in path.PLACES]
    below = [remark, grid.asked_along(scores)]
    yield Sheet(title, "pairs", "Methods", columns, blocks, below, frame.drop(columns="dots"))


def differences(scores: Scores) -> pd.DataFrame:
    """What a method keeps minus what each of those before it in tables keeps, after unlearning on the same modality:
    rows of :func:`~mllmu_nb.scoring.path.kept_difference` with the printed names of the ``first`` and ``second``."""
    rows, frames = scores.kept_by_person["trained"], []
    rows = rows[(rows["what"] == path.KEPT) & rows["place"].isin(path.PLACES)]
    for other, one in combinations(models_in_order(rows[MODEL].itertuples(index=False, name=None)), 2):
        if one[2] == other[2]:
            difference = path.kept_difference(*(rows[has(rows, MODEL, model)] for model in (one, other)))
            first, second = (scores.name((*model[:2], "none", model[3])) for model in (one, other))
            frames.append(difference.assign(first=first, second=second))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


# -- where the spread comes from -------------------------------------------------------------------------------


@table("table_variance")
def variance_table(scores: Scores) -> Iterator[Sheet]:
    """How much of the spread of an unlearned model's score comes from people and from each random choice, in points."""
    title = "Standard deviation of a score by its source, points, views pooled"
    named = {run.id: scores.name(scores.model_of(run)) for run in scores.runs}
    items = scores.items[~scores.items["method"].isin(REFERENCES)]
    runs = run_scores(items, scores.by, main=True).assign(model=lambda rows: rows["run"].map(named))
    frame = sources(runs, grid.one_forget_set(scores))
    columns = {(row["set"], *(row[name] for name in KEY)): None for row in frame.to_dict("records")}
    heads = [(at[0].capitalize(), registry.by_key()[at[1:]].heading) for at in columns]
    lines = [(SOURCES[one], [*map(sd_text, of.to_dict("records"))]) for one, of in frame.groupby("factor", sort=False)]
    count = len({tuple(run[column] for column in REPLICATE) for run in scores.runs})
    remark = (
        "People: the error of one run. The others: 95 % limits of the standard deviation, without people's. All "
        "unlearned models together: those that spread most weigh most. The runs are of "
        f"{count} replicate{'s' * (count != 1)}."
    )
    frame = frame.assign(**scores.group)[[*GROUP, *frame]]
    yield Sheet(title, "variance", "Source", heads, [("", lines)], [remark], frame)


def sources(runs: pd.DataFrame, one_forget_set: bool = False) -> pd.DataFrame:
    """Return how far each source moves an unlearned model's score: one row per set (forget, retain), main metric and
    ``factor`` (one of SOURCES: people, or what varies), as in :func:`~mllmu_nb.statistics.variance.variance_split`.

    ``runs`` are from ``Scores.run_scores``, of one GROUP, with a column ``model``: a source moves the scores of runs
    that have the same ``model``. A column ``bits`` says which runs were computed with other rounding. Another data seed
    is another replicate. With ``one_forget_set``, all replicates have the same people.
    """
    runs = runs[~runs["method"].isin(REFERENCES) & (runs["view"] == POOLED)]
    # the forget people are a replicate's own, with several data seeds the retain people too; else all are the same
    people_of = set() if one_forget_set else {"forget", "retain"} if runs["data_seed"].nunique() > 1 else {"forget"}
    runs = runs.assign(replicate=runs.groupby(REPLICATE).ngroup())
    # a replicate's number sets its seeds, so a seed is a source of its own only if it varies within a replicate
    seeds = [name for name in SOURCES if name in runs and name != "replicate"]
    within = runs.groupby(["model", "replicate"])[seeds].nunique().gt(1).any()
    factors, rows = ["model", "replicate", *within.index[within]], []
    for set_name, one in product(("forget", "retain"), metrics(main=True)):
        here = runs[(runs["set"] == set_name) & has(runs, KEY, one.key)]
        if here.empty or one.bounds != (0.0, 1.0):
            continue
        error = standard_errors(here["low"], here["high"], here["n_profiles"])
        drawn = ["replicate"] if set_name in people_of else []
        split = variance_split(here.assign(se=error), factors, drawn).query("factor != 'model'")
        people = {"factor": "people", "levels": here["n_profiles"].max(), "sd": float((error**2).mean() ** 0.5)}
        asked = {"set": set_name, **dict(zip(KEY, one.key, strict=True))}
        rows += [asked | row for row in (people, *split.to_dict("records"))]
    return pd.DataFrame(rows, columns=["set", *KEY, "factor", "levels", "sd", "variance", "low", "high"])


def sd_text(row: Mapping[str, Any]) -> str | tuple[str, str]:
    """A standard deviation of :func:`sources` in points, with its limits; or "" and the reason why there is none."""
    if pd.isna(row["sd"]):
        return "", "It is at one level in these runs."
    low, high = (100 * row.get(end, nan) ** 0.5 for end in ("low", "high"))
    upper = f"{high:.1f}" if high <= 50 else "over 50"  # no score between 0 and 100 varies by more
    return f"{100 * row['sd']:.1f}" + ("" if isnan(low) else f" [{low:.1f}, {upper}]")


# -- files ------------------------------------------------------------------------------------------------------


def _as_one(made: Sequence[Sheet], title: str) -> Sheet:
    """Join sheets with the same columns; a remark that only some have comes after the name of its runs."""
    blocks = [block for sheet in made for block in sheet.blocks]
    shared = [remark for remark in made[0].remarks if all(remark in sheet.remarks for sheet in made)]
    own = [" ".join(remark for remark in sheet.remarks if remark not in shared) for sheet in made]
    own = [f"{sheet.title.partition(': ')[2]}: {said}" for sheet, said in zip(made, own, strict=True) if said]
    frame = pd.concat([sheet.frame for sheet in made], ignore_index=True)
    return replace(made[0], title=title, blocks=blocks, remarks=[*shared, *own], frame=frame)


def sheets(name: str, scores: Scores) -> list[Sheet]:
    """The printed tables of one name: one or more for each base model, protocol and forget ratio, or one for all.
    Titles and labels name the group of the runs, and ‡ is explained if a row has it."""
    make, made = TABLES.get(name), []
    together = getattr(make, "together", "")
    for _, group in scores.groups:
        for sheet in make(group):
            title = f"{sheet.title}: {grid.group_title(group)}"
            label = sheet.label if together else grid.sheet_label(sheet.label, group)
            note = grid.collapse_note(group, (name for _, rows in sheet.blocks for name, _ in rows))
            made.append(replace(sheet, title=title, label=label, remarks=[*sheet.remarks, *note]))
    return [_as_one(made, together)] if together else made


def write_tables(scores: Scores, folder: Path, source: str) -> None:
    """Write every table as CSV, Markdown and LaTeX, and ``appendix.tex``, which inputs those that are not for the main
    text. The first line of the Markdown names ``source``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [r"% Before this is read: \newcommand{\tables}{the folder it lies in}", r"\providecommand{\tables}{.}"]
    for name in TABLES:
        write_sheets(sheets(name, scores), folder / name, source)
        lines += [] if getattr(TABLES.get(name), "together", "") else [rf"\input{{\tables/{name}}}\clearpage"]
    (folder / "appendix.tex").write_text("\n".join([*lines, ""]), encoding="utf-8")
