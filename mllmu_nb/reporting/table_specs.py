"""The tables: each a function from the scores of one base model, protocol and forget ratio to printed sheets.

Adding one is a function with ``@table``, here or in a module of one's own; its files and its place in the report
follow.
A metric that is registered appears in those tables whose columns are the registry's metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mllmu_nb.data.schema import SETS, TASKS
from mllmu_nb.reporting import published
from mllmu_nb.reporting.runs import COLLAPSED, MODALITIES, Scores, models_in_order
from mllmu_nb.reporting.tables import (
    ASKED_IN,
    HALF_WIDTH,
    KEY,
    Axis,
    Blocks,
    Sheet,
    bracketed,
    column,
    difference,
    gap,
    grid,
    group_of,
    group_title,
    select_metrics,
    sheet_label,
    table,
    value_text,
)
from mllmu_nb.scoring import registry
from mllmu_nb.scoring.frames import GROUP, MODEL, POOLED, VIEWS
from mllmu_nb.scoring.gates import CLOSED
from mllmu_nb.scoring.leakage import ACROSS, ALIGNED, ALIGNMENT
from mllmu_nb.scoring.ranking import SHARED, UNRANKED, agreement
from mllmu_nb.scoring.registry import Metric, metrics
from mllmu_nb.statistics.ranking import smallest_p

PAPER = {
    "vanilla": False,
    "ga": True,
    "grad_diff": True,
    "kl_min": True,
    "npo": True,
    "prompting": False,
    "oracle": False,
}
VANILLA = ("vanilla", "canonical", "none", "")
VIEWS_POOLED = [*VIEWS, POOLED]
UNLEARNED = {name: f"Unlearned on {text}" for name, text in MODALITIES.items()}
MARGINS = "10 points of a share, 0.1 of R / (1 + R) and AUC"
SIGNS = (
    "The interval lies within the margin: =, as the oracle; outside of it: ≠, not as the oracle; neither: ?, undecided."
)

# what the quality table prints, by heading; the other metrics of taught sentences that follow from these stand in its
# CSV, and metrics that are in neither get a heading of their own
TRUTH, SENTENCES, MEMBERSHIP, RATE = "Truth ratio", "Taught sentences", "Membership, AUC", "TPR by LOSS, %"
QUALITY = {
    TRUTH: ["truth_ratio", "ks", "ks_log10_p", "js", "js_chance"],
    SENTENCES: ["exact_memorisation", "extraction_strength"],
    MEMBERSHIP: ["auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_pp"],
    RATE: ["tpr_1_loss", "tpr_5_loss"],
}
QUALITY_GAPS = {TRUTH: ["truth_ratio"], SENTENCES: [*QUALITY[SENTENCES], "loss"], MEMBERSHIP: QUALITY[MEMBERSHIP]}
CSV_ALONE = {"loss", "zlib", "min_k", "min_k_pp"}
CSV_ALONE |= {f"tpr_{level}_{attack}" for level in (1, 5) for attack in ("zlib", "min_k", "min_k_pp")}


# -- rows and columns -------------------------------------------------------------------------------------------


def model_row(scores: Scores, model: tuple, name: str) -> Axis:
    """The row of a model, ``name`` marked where it has collapsed."""
    mark = f" {COLLAPSED}" if (*group_of(scores), *model) in scores.collapsed else ""
    return Axis(name + mark, dict(zip([*MODEL, *scores.by], model, strict=True)))


def short_name(scores: Scores, model: tuple) -> str:
    """A model's name where the heading of its block has the modality."""
    method, variant, _, *rest = model
    return scores.name((method, variant, "none", *rest))


def trained_on(scores: Scores) -> list[str]:
    """The modalities that something was unlearned on."""
    return [name for name in MODALITIES if any(model[2] == name for model in scores.models())]


def paper_rows(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[Axis]]]:
    """Blocks as in the paper's table: for each modality that something was unlearned on, the methods of the paper and
    those that were run, whoever trains on no modality in every block. ``skip`` leaves methods out."""
    blocks = []
    for modality in trained_on(scores) or ["none"]:
        here = [model for model in scores.models() if model[2] in (modality, "none")]
        run = {model[0] for model in here}
        for name, trains in PAPER.items():
            if name not in run and not (trains and modality == "none"):
                here.append((name, "canonical", modality if trains else "none", "", *[""] * len(scores.by)))
        models = [model for model in models_in_order(here) if model[0] not in skip or model[3]]
        rows = [model_row(scores, model, short_name(scores, model)) for model in models]
        blocks.append((UNLEARNED.get(modality, "No unlearned model"), rows))
    return blocks


def all_rows(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[Axis]]]:
    """The same in one block without a heading, each model once."""
    models = {tuple(row.where.values()) for _, rows in paper_rows(scores, skip) for row in rows}
    return [("", [model_row(scores, model, scores.name(model)) for model in models_in_order(models)])]


def rows_by_training(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[Axis]]]:
    """The models that were run by what they were unlearned on; first those that were not."""
    blocks = []
    for modality, heading in {"none": "Not unlearned", **UNLEARNED}.items():
        models = [m for m in scores.models() if m[2] == modality and (m[0] not in skip or m[3])]
        if models:
            blocks.append((heading, [model_row(scores, model, short_name(scores, model)) for model in models]))
    return blocks


def by_view(blocks: Blocks) -> list[tuple[str, list[Axis]]]:
    """Two rows for each, one a view."""
    return [
        (heading, [Axis(f"{row.text}, {VIEWS[view]}", {**row.where, "view": view}) for row in rows for view in VIEWS])
        for heading, rows in blocks
    ]


def score_metrics(scores: Scores) -> list[Metric]:
    """The metrics of the tables of scores, without those that are optional and were not measured."""
    there = set(scores.cells[KEY].itertuples(index=False, name=None))
    return [one for one in metrics(table="scores") if not one.optional or one.key in there]


# -- people, questions and cost ---------------------------------------------------------------------------------


@table("table1_data")
def data_table(scores: Scores) -> Iterator[Sheet]:
    """Table 1: people, portraits and questions of each set, as a run's record counts them (one portrait a person)."""
    record = next((run.record for run in scores.runs if run.record.get("sets")), {})
    asked = [(task, view) for task in TASKS for view in VIEWS]
    body, frame, totals = [], [], []
    for name in SETS:
        counted = record.get("sets", {}).get(name)
        why = "" if counted else f"No record of these runs counts the {name} set."
        counts = [counted.get(f"{task}/{view}", 0) if counted else 0 for task, view in asked]
        people = counted["profiles"] if counted else 0
        pictures = people if any(n for n, (_, view) in zip(counts, asked, strict=True) if view != "text") else 0
        numbers = [people, pictures, *counts, sum(counts)]
        for (task, view), count in zip(asked, counts, strict=True):
            at = {**dict(zip(GROUP, group_of(scores), strict=True)), "set": name, "task": task, "view": view}
            values = {"profiles": people, "images": pictures, "questions": count}
            frame.append(at | (values if counted else dict.fromkeys(values)) | {"note": why})
        body.append((name.capitalize(), [("" if why else f"{number:,}", why) for number in numbers]))
        totals.append(numbers)
    columns = [("", "People"), ("", "Images")]
    columns += [(registry.TASKS[task].capitalize(), VIEWS[view].capitalize()) for task, view in asked]
    sheet = Sheet(f"Data: {group_title(scores)}", sheet_label("data", scores), "Set", [*columns, ("", "Questions")])
    if record:
        kinds = record["people"]
        total = [
            kinds["fictitious"] + kinds["celebrity"],
            *(sum(column) for column in list(zip(*totals, strict=True))[1:]),
        ]
        body.append(("All", [(f"{number:,}", "") for number in total]))
        sheet.remarks = [
            "Test asks the forget people again, paraphrased and with transformed portraits: all people count once. "
            f"Fine-tuning reads {record['fine_tuning_pairs']:,} questions and answers about {kinds['fictitious']:,} of "
            f"them and {kinds['pool']:,} more, who are never scored."
        ]
    sheet.blocks, sheet.frame = [("", body)], pd.DataFrame(frame)
    yield sheet


COSTS = {  # of train.json: heading, digits, how the runs of a row are taken together
    "seconds": ("Seconds", 1, "mean"),
    "peak_memory_mb": ("Peak memory, MB", 0, "max"),
    "trainable_parameters": ("Trainable parameters", 0, "mean"),
    "steps": ("Steps", 0, "mean"),
}


@table("cost")
def cost_table(scores: Scores) -> Iterator[Sheet]:
    """What each model took: training seconds, peak memory, trainable parameters, optimizer steps."""
    body, frame = [], []
    [(_, rows)] = all_rows(scores)
    for row in rows:
        runs = [run for run in scores.runs if scores.model_of(run) == tuple(row.where.values())]
        record = {**dict(zip(GROUP, group_of(scores), strict=True)), **row.where, "runs": len(runs)}
        record["collapsed"], cells = COLLAPSED in row.text, []
        for name, (heading, digits, together) in COSTS.items():
            values = pd.Series([run.train.get(name) for run in runs], dtype=float)
            value = values.agg(together) if values.notna().any() else None
            why = f"{heading.split(',')[0]} was not recorded." if runs else "There is no run of it."
            cells.append(("", why) if value is None else (f"{value:,.{digits}f}", ""))
            record |= {name: value, f"{name}_note": "" if value is not None else why}
        body.append((row.text, [*cells, (str(len(runs)) if runs else "", cells[0][1])]))
        frame.append(record)
    columns = [("", heading) for heading, *_ in COSTS.values()] + [("", "Runs")]
    remarks = ["Means over the runs of a row; memory is the largest. Seconds depend on the machine."]
    title, label = f"Cost of training: {group_title(scores)}", sheet_label("cost", scores)
    sheet = Sheet(title, label, "Method", columns, [("", body)], remarks, pd.DataFrame(frame))
    sheet.remarks += sheet.collapsed_note()
    yield sheet


# -- scores -----------------------------------------------------------------------------------------------------


def _on_all_sets(text: Callable[[Metric, str], str]) -> list[Axis]:
    """The main metrics on the four sets, headed by ``text`` of metric and set."""
    return [
        column(one, text(one, name), name.capitalize(), set=name)
        for name in SETS
        for one in metrics(main=True)
        if name in one.sets
    ]


@table("table2_main")
def main_table(scores: Scores) -> Iterator[Sheet]:
    """Table 2: a row a method and a block a trained modality; four sets and the main metrics, views pooled."""
    columns = _on_all_sets(lambda one, name: f"{one.label} {one.goal(name)}".strip())
    remark = (
        "± is half the width of the 95 % interval over people (its limits are in the CSV). Letter is the option letter "
        "the model writes, Likelihood the option it finds likeliest. Arrows: where a good method goes."
    )
    where, title = {"against": "", "view": POOLED}, "Unlearning, views pooled"
    yield grid(scores, title, "main", paper_rows(scores), columns, where, remarks=[remark], people=True)


@table("table2_by_view")
def by_view_table(scores: Scores) -> Iterator[Sheet]:
    """Everything: a sheet a set, two rows a method (asked with the image, asked in text) and all metrics."""
    columns, rows = [column(one) for one in score_metrics(scores)], by_view(paper_rows(scores))
    for name in SETS:
        title, where = f"By view, {name.capitalize()} set", {"against": "", "set": name}
        yield grid(scores, title, f"view-{name}", rows, columns, where, first="Method, asked with")


@table("table2_differences")
def difference_table(scores: Scores) -> Iterator[Sheet]:
    """Table 2 again as paired differences: to vanilla (what unlearning changed) and to the oracle (what is left)."""
    columns = _on_all_sets(lambda one, _: one.shown_as_gap)
    remarks = ["± is half the width of the 95 % interval of the paired difference over people."]
    for against in ("vanilla", "oracle"):
        title, label = f"Difference to {against}, question by question, views pooled", f"to-{against}"
        rows, where = paper_rows(scores, ("base", against)), {"against": against, "view": POOLED}
        yield grid(scores, title, label, rows, columns, where, cell=difference, remarks=remarks, people=True)


@table("table_oracle_gap")
def oracle_gap_table(scores: Scores) -> Iterator[Sheet]:
    """Method minus oracle in every metric, two-sided: below the oracle is as wrong as above it. A sheet a set, views
    pooled; the CSV has them apart as well."""
    shown, rows = score_metrics(scores), all_rows(scores, ("base", "oracle"))
    columns = [column(one, one.shown_as_gap) for one in shown]
    remarks = [f"Method minus oracle, question by question; {HALF_WIDTH} {SIGNS}"]
    for name in SETS:
        title = "Gap to the oracle (margin 10 points, 0.1 of ROUGE and BLEU, 1 point of factuality), "
        title, label = f"{title}{name.capitalize()} set, views pooled", f"gap-{name}"
        where = {"against": "oracle", "set": name, "view": POOLED}
        frame = select_metrics(scores, shown, **where | {"view": VIEWS_POOLED})
        yield grid(scores, title, label, rows, columns, where, cell=gap, remarks=remarks, frame=frame)


@table("table_gate")
def gate_table(scores: Scores) -> Iterator[Sheet]:
    """Which metrics can show forgetting: vanilla minus oracle on the forget set, a row a metric, a column a view."""
    remark = (
        f"Vanilla minus oracle on the forget set, question by question; {HALF_WIDTH} Closed: the interval does not lie "
        "above 0, so nothing shows that there was something to forget."
    )
    vanilla = next((model for model in scores.models() if model[0] == "vanilla" and not model[3]), VANILLA)
    where = dict(zip([*MODEL, *scores.by], vanilla, strict=False)) | {"against": "oracle", "set": "forget"}
    rows = [column(one, one.shown_as_gap) for one in score_metrics(scores) if one.knowledge]
    columns = [Axis(text.capitalize(), {"view": view}, "Asked with") for view, text in ASKED_IN.items()]
    title, text = "Memorisation gate", {"remarks": [remark], "absent": "Vanilla or the oracle has no such answers."}
    yield grid(scores, title, "gate", [("", rows)], columns, where, first="Metric", cell=_with_gate, **text)


def _with_gate(cell: Mapping[str, Any], metric: Metric) -> str:
    text = value_text(cell, metric, signed=True)
    return text and f"{text}, {cell['gate']}"


@table("table_health")
def health_table(scores: Scores) -> Iterator[Sheet]:
    """What kind of answer a free answer is: a sheet a set, two rows a method (by view), a column a state."""
    states, rows = metrics(table="health"), by_view(all_rows(scores))
    columns, measured = [column(one) for one in states], scores.items["fluency"].groupby(scores.items["run"]).any()
    remarks = [f"Share of the free answers; {HALF_WIDTH} A row adds up to 100."]
    remarks += [f"{COLLAPSED} {scores.name(model[len(GROUP) :])}: {why}" for model, why in scores.collapsed.items()]
    if not measured.all():
        remarks.append("These runs lack the base's likelihood of the answers: only their form shows gibberish.")
    for name in SETS:
        title, first, where = f"Health of free answers, {name.capitalize()} set", "Method, asked with", {"set": name}
        frame, where = select_metrics(scores, states, view=VIEWS_POOLED, against="", **where), where | {"against": ""}
        yield grid(scores, title, f"health-{name}", rows, columns, where, first=first, remarks=remarks, frame=frame)


# -- forget quality and leakage ---------------------------------------------------------------------------------


def _quality_columns(headings: Mapping[str, Sequence[str]], against: str) -> list[Axis]:
    known = {one.name: one for one in metrics(table="quality")}
    listed = CSV_ALONE.union(*QUALITY.values())
    more = [name for name, one in known.items() if name not in listed and (one.per != "pair" or not against)]
    return [
        column(known[name], span=span, against="oracle" if known[name].per == "pair" else against)
        for span, names in {**headings, "Further": more}.items()
        for name in names
    ]


@table("table_forget_quality")
def quality_table(scores: Scores) -> Iterator[Sheet]:
    """Is the model like one that never saw these people? The values, and what is left of them beside the oracle's."""
    of_levels = (
        "R / (1 + R): 0 where the truth is known, 1/2 where it is as likely as a wrong option (geometric mean). KS, JS "
        "(10 bins): distance to the oracle; a JS not above JS by chance says nothing, and p takes the questions about "
        f"one person for independent. AUC: 1/2 where forget people look like fresh ones. {HALF_WIDTH}"
    )
    of_gaps = (
        "0: like a model that never saw these people. The same people and sentences, paired. "
        f"{HALF_WIDTH} Margin: {MARGINS}. {SIGNS}"
    )
    levels, gaps = _quality_columns(QUALITY, ""), _quality_columns(QUALITY_GAPS, "oracle")
    where, first, title = {"set": "forget"}, "Method, asked with", "Forget quality"
    frame = select_metrics(scores, metrics(table="quality"), against=["", "oracle"], view=list(VIEWS), **where)
    rows, label = by_view(paper_rows(scores)), "quality"
    yield grid(scores, title, label, rows, levels, where, first=first, remarks=[of_levels], frame=frame)
    rows, label = by_view(paper_rows(scores, ("oracle",))), "quality-to-oracle"
    title, frame = "Forget quality as difference to the oracle", frame[:0]  # the rows are among those above
    yield grid(scores, title, label, rows, gaps, where, first=first, cell=gap, remarks=[of_gaps], frame=frame)


@table("table_leakage")
def leakage_table(scores: Scores) -> Iterator[Sheet]:
    """Cross-modal leakage: blocks are what was trained on, columns what was asked in."""
    heads = {"image_text": "Image", "text": "Text", ACROSS: "Text − image"}
    columns = [
        column(one, text, one.label.removesuffix(" %"), view=view)
        for one in metrics(by_fact=True)
        for view, text in heads.items()
    ]
    remark = (
        "Points, ± half the 95 % interval over people. Image, Text: gap to the oracle (0) asked that way. "
        "Text − image: how much more is left in text than with the image, on the same facts."
    )
    rows, where = rows_by_training(scores, ("base", "oracle")), {"against": "oracle", "set": "forget"}
    title, absent = "Cross-modal leakage, gap to the oracle on Forget", "Not asked of the oracle, or of the model."
    yield grid(scores, title, "leakage", rows, columns, where, cell=difference, remarks=[remark], absent=absent)


@table("table_alignment")
def alignment_table(scores: Scores) -> Iterator[Sheet]:
    """Whether both views agree fact by fact: AccF on the forget set, AccR on the retain set."""
    spans = {"acc_f": "Forget: both wrong (AccF)", "acc_r": "Retain: both right (AccR ↑)"}
    columns = [
        column(one, None, spans[name], metric=f"{name}_{one.name}", set=set_name)
        for name, set_name in ALIGNMENT.items()
        for one in metrics(by_fact=True)
    ]
    remark = (
        "± is half the 95 % interval over people. A fact is asked once with the image and once in text. The oracle "
        "guesses some facts rightly: AccF should come up to its value, and AccR stay at vanilla's."
    )
    rows, where = rows_by_training(scores), {"against": "", "view": ALIGNED}
    title, absent = "Alignment of the two views, fact by fact", "No fact was asked in both views."
    yield grid(scores, title, "alignment", rows, columns, where, remarks=[remark], absent=absent)


# -- ranking ----------------------------------------------------------------------------------------------------


def _refused(scores: Scores, title: str, label: str) -> list[Sheet]:
    """A sheet that says why the models of ``scores`` cannot be ranked; none where they are."""
    why = scores.ranking.refused.get(group_of(scores), "")
    return [Sheet(title, sheet_label(label, scores), "Method", [], [], [f"Not ranked: {why}."])] if why else []


@table("table_ranking")
def ranking_table(scores: Scores) -> Iterator[Sheet]:
    """Place, letters and gap of every method on the forget set, nearest to the oracle first."""
    title = f"Ranking by the distance to the oracle on Forget, views pooled: {group_title(scores)}"
    if refused := _refused(scores, title, "ranking"):
        yield from refused
        return
    ranking, shown = scores.ranking, metrics(main=True)
    key = ["trained", *MODEL, *KEY]
    known = {tuple(row[c] for c in key): row for row in ranking.methods.to_dict("records")}
    blocks = []
    for modality, (heading, rows) in zip(trained_on(scores) or ["none"], paper_rows(scores, UNRANKED), strict=True):
        body = []
        for row in rows:
            model, cells = tuple(row.where[c] for c in MODEL), []
            for one in shown:
                cell = known.get((modality, *model, *one.key))
                note = cell["note"] if cell else f"There is no run of {scores.name((*model, *[''] * len(scores.by)))}."
                cells.append((value_text(cell, one, signed=True) if cell else "", note))
                cells.append((f"{cell['place']} {cell['group']}" if cell and not note else "", note))
            body.append((row.text, cells))
        blocks.append((heading, body))
    people, sets = ranking.methods["n_profiles"].max(), ranking.sets[group_of(scores)]
    remarks = [
        "Gap: method − oracle, ± half the 95 % interval over people; in points, ROUGE-L and Factuality in their own "
        "unit. Place 1 is nearest to the oracle. Methods that share a letter are not told apart "
        f"({len(ranking.pairs)} comparisons of two distances, Holm-corrected together at 5 %).",
        *_undecided(scores),
        f"{people:.0f} people in {sets} forget sets.",
    ]
    columns = [(one.label.removesuffix(" %"), text) for one in shown for text in ("Gap", "Place")]
    yield Sheet(title, sheet_label("ranking", scores), "Method", columns, blocks, remarks, ranking.methods)


def _undecided(scores: Scores) -> list[str]:
    """A line naming the columns in which no two methods are told apart; none where there is no such column."""
    known, names = registry.by_key(), []
    for (modality, *key), pairs in scores.ranking.pairs.groupby(["trained", *KEY], sort=False):
        if not pairs["apart"].any():
            heading = UNLEARNED.get(modality, "no modality")
            names.append(f"{known[tuple(key)].label.removesuffix(' %')} ({heading[0].lower()}{heading[1:]})")
    return [f"Undecided, no two methods told apart: {', '.join(names)}."] if names else []


@table("table_ranking_pairs")
def pairs_table(scores: Scores) -> Iterator[Sheet]:
    """Every comparison behind the ranking, as CSV alone."""
    pairs = scores.ranking.pairs
    names = {
        side: [scores.name((*model, *[""] * len(scores.by))) for model in pairs[side]] for side in "ab" if len(pairs)
    }
    yield Sheet("", "", "", [], frame=pairs.assign(**names))


@table("table_tau")
def tau_table(scores: Scores) -> Iterator[Sheet]:
    """Kendall's τ of our order to each list of at least four shared methods that others printed."""
    title = f"Kendall's τ to published lists: {group_title(scores)}"
    if refused := _refused(scores, title, "tau"):
        yield from refused
        return
    family, protocol, ratio = group_of(scores)
    lists, rows = published.lists(published.load()), []
    for at, printed, why in lists:
        if len(printed) >= SHARED and published.OURS["base_model"].get(at["base_model"]) == family:
            result = {"n": len(printed), "methods": list(printed["method"]), "note": why}
            result |= {} if why else agreement(scores.cells, scores.judged, printed)
            result["methods"] = ", ".join(
                short_name(scores, (m, "canonical", "", "", *[""] * len(scores.by))) for m in result["methods"]
            )
            rows.append({**at, **result, "our_protocol": protocol, "our_forget_ratio": ratio})
    columns = [*published.LIST, "methods", "n", "tau", "p", "smallest_p", "n_gap", "tau_gap", "p_gap", "gate", "note"]
    frame = pd.DataFrame(rows, columns=[*columns, "our_protocol", "our_forget_ratio"])
    compared = frame[frame["n_gap"].notna()]
    blocks = [("", [_tau_row(row) for row in compared.to_dict("records")])]
    remarks = _tau_remarks(frame, compared, sum(len(printed) < SHARED for _, printed, _ in lists))
    heads = ["Ratio %", "Set", "View", "Metric", "Methods", "τ, scores", "p", "Smallest p", "Ranked", "τ, gap", "p"]
    yield Sheet(title, sheet_label("tau", scores), "List", [("", head) for head in heads], blocks, remarks, frame)


def _tau_row(row: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    tied = "All values are the same, so there is no order."
    few = "" if row["n_gap"] >= SHARED else f"The others have collapsed, and fewer than {SHARED} are no list."

    def number(name: str, why: str) -> tuple[str, str]:
        value = row[name]
        return ("", why) if pd.isna(value) else (f"{value:.2g}".replace("-", "−"), "")

    texts = (row["forget_ratio"], row["set"], row["view"].replace("_", " + "), row["metric"], row["n"])
    cells = [(str(text), "") for text in texts]
    for text, why in (number(name, tied) for name in ("tau", "p", "smallest_p")):
        cells.append((bracketed(text, row["gate"]), why))
    cells.append((f"{row['n_gap']:.0f}", ""))
    return row["source"].split("; ")[0], cells + [
        number(name, row["note"] or few or tied) for name in ("tau_gap", "p_gap")
    ]


def _tau_remarks(frame: pd.DataFrame, compared: pd.DataFrame, short: int) -> list[str]:
    sizes = sorted({SHARED, SHARED + 1, *compared["n"]})
    smallest = [f"{smallest_p(range(n), range(n)):.2g} with {n} methods" for n in sizes]
    remarks = [
        "Both sides: same metric, set and view, unlearned on image + text; ours at the ratio of the title, theirs at "
        "the ratio of the row. τ, scores: theirs against ours. τ, gap: the distance to our oracle, of the methods that "
        "have not collapsed, against their order, lower being better on Forget and Test, higher elsewhere. With ties "
        "it is τ-b.",
        "p is two-sided and exact, over all orders. With 4 or 5 methods hardly any τ is significant: the smallest p "
        f"there is, for the very same order without ties, is {', '.join(smallest)}; with ties it is larger, and the "
        "column says how large for the two lists of its row.",
    ]
    if (compared["gate"] == CLOSED).any():
        remarks.append("In brackets: a τ of scores behind a closed gate, which is no agreement about forgetting.")
    counts = frame.loc[frame["n_gap"].isna(), "note"].value_counts(sort=False)
    if len(counts):
        listed = (f"{note} ({count} {'list' if count == 1 else 'lists'})" for note, count in counts.items())
        remarks.append(f"Not compared: {'; '.join(listed)}.")
    return [*remarks, f"Lists that share fewer than {SHARED} unlearning methods with ours: {short}."]
