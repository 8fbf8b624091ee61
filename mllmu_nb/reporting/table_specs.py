"""The tables: each a function from the scores of one base model, protocol and forget ratio to printed sheets.

Adding one is a function with ``@table``, here or in a module of one's own; its files and its place in the report
follow. A metric that is registered appears in those tables whose columns are the registry's metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from mllmu_nb.data.schema import SETS, TASKS
from mllmu_nb.reporting import published, tables
from mllmu_nb.reporting.runs import COLLAPSED, MODALITIES, Scores, in_order, models_in_order
from mllmu_nb.reporting.tables import KEY, LIMITS, Column, Sheet, column, grid, new_sheet, row_name, table
from mllmu_nb.scoring import path, registry
from mllmu_nb.scoring.frames import GROUP, MODEL, POOLED, VIEWS
from mllmu_nb.scoring.gates import CLOSED
from mllmu_nb.scoring.leakage import ACROSS, ALIGNED, ALIGNMENT
from mllmu_nb.scoring.ranking import RANKED, SHARED, agreement
from mllmu_nb.scoring.registry import Metric, metrics
from mllmu_nb.statistics.ranking import smallest_p
from mllmu_nb.statistics.variance import variance_split

PAPER = ("vanilla", "ga", "grad_diff", "kl_min", "npo", "prompting", "oracle")  # its rows stand where no run does, too
UNTRAINED = ("vanilla", "prompting", "oracle")  # those of them that unlearn on no modality
UNLEARNED = {name: f"Unlearned on {text}" for name, text in MODALITIES.items()}
ANY_VIEW = [*VIEWS, POOLED]
SIGNS = (
    "The interval lies within the margin: =, as the oracle; outside of it: ≠, not as the oracle; neither: ?, undecided."
)

# What the quality table prints, by heading. What follows from the same sentences stands in its CSV alone, and a metric
# that is in neither has a place behind them.
QUALITY = {
    "Truth ratio": ["truth_ratio", "ks", "ks_log10_p", "js", "js_chance"],
    "Taught sentences": ["exact_memorisation", "extraction_strength"],
    "Membership, AUC": ["auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_pp"],
    "TPR by LOSS, %": ["tpr_1_loss", "tpr_5_loss"],
}
QUALITY_GAPS = QUALITY | {
    "Truth ratio": ["truth_ratio"],
    "Taught sentences": [*QUALITY["Taught sentences"], "loss"],
    "TPR by LOSS, %": [],
}
CSV_ALONE = {"loss", "zlib", "min_k", "min_k_pp"}
CSV_ALONE |= {f"tpr_{level}_{attack}" for level in (1, 5) for attack in ("zlib", "min_k", "min_k_pp")}


# -- rows and columns -------------------------------------------------------------------------------------------


def paper_rows(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[tuple]]]:
    """Blocks as in the paper's table: for each modality that something was unlearned on, the methods of the paper and
    those that were run, whoever trains on no modality in every block. ``skip`` leaves methods out."""
    blocks = []
    for modality in trained_on(scores):
        models = {model for model in scores.models() if model[2] in (modality, "none")}
        absent = set(PAPER if modality in UNLEARNED else UNTRAINED) - {model[0] for model in models}
        for name in absent:
            trained = "none" if name in UNTRAINED else modality
            models.add((name, "canonical", trained, "", *[""] * len(scores.by)))
        blocks.append((UNLEARNED.get(modality, "No unlearned model"), _without(models, skip)))
    return blocks


def all_rows(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[tuple]]]:
    """The same in one block without a heading, each model once."""
    return [("", models_in_order(model for _, models in paper_rows(scores, skip) for model in models))]


def rows_by_training(scores: Scores, skip: Iterable[str] = ()) -> list[tuple[str, list[tuple]]]:
    """The models that were run by what they were unlearned on; first those that were not."""
    headings = {"none": "Not unlearned", **UNLEARNED}
    blocks = [
        (heading, _without((model for model in scores.models() if model[2] == modality), skip))
        for modality, heading in headings.items()
    ]
    return [(heading, models) for heading, models in blocks if models]


def trained_on(scores: Scores) -> list[str]:
    """The modalities that something was unlearned on; none, where there is no unlearned model."""
    return [name for name in MODALITIES if any(model[2] == name for model in scores.models())] or ["none"]


def _without(models: Iterable[tuple], skip: Iterable[str]) -> list[tuple]:
    """Models in order, without some methods as they were trained (a step after it makes another model)."""
    return models_in_order(model for model in models if model[0] not in skip or model[3])


def score_metrics(scores: Scores) -> list[Metric]:
    """The metrics of the tables of scores, without those that are optional and were not measured."""
    there = set(scores.cells[KEY].itertuples(index=False, name=None))
    return [one for one in metrics(table="scores") if not one.optional or one.key in there]


def _on_all_sets(head: Callable[[Metric, str], str]) -> list[Column]:
    """The main metrics on the four sets, headed by ``head`` of metric and set."""
    pairs = [(name, one) for name, one in product(SETS, metrics(main=True)) if name in one.sets]
    return [column(one, head(one, name), name.capitalize(), set=name) for name, one in pairs]


# -- people, questions and cost ---------------------------------------------------------------------------------


@table("table1_data")
def data_table(scores: Scores) -> Iterator[Sheet]:
    """Table 1: people, portraits and questions of each set, as a run's record counts them (one portrait a person)."""
    record = next((run.record for run in scores.runs if run.record.get("sets")), {})
    asked, group = list(product(TASKS, VIEWS)), dict(zip(GROUP, tables.group_of(scores), strict=True))
    rows, frame, totals = [], [], []
    for name in SETS:
        counted = record.get("sets", {}).get(name, {})
        why = "" if counted else f"No record of these runs counts the {name} set."
        counts = [counted.get(f"{task}/{view}", 0) for task, view in asked]
        pictures = counted.get("profiles", 0) if any(counted.get(f"{task}/image_text") for task in TASKS) else 0
        totals.append([counted.get("profiles", 0), pictures, *counts, sum(counts)])
        rows.append((name.capitalize(), [("" if why else f"{number:,}", why) for number in totals[-1]]))
        for (task, view), count in zip(asked, counts, strict=True):
            known = {"profiles": counted.get("profiles"), "images": pictures, "questions": count}
            known = known if counted else dict.fromkeys(known)
            frame.append({**group, "set": name, "task": task, "view": view, **known, "note": why})
    columns = [(registry.TASKS[task].capitalize(), VIEWS[view].capitalize()) for task, view in asked]
    columns, remarks = [("", "People"), ("", "Images"), *columns, ("", "Questions")], []
    if record:
        kinds = record["people"]
        people = kinds["fictitious"] + kinds["celebrity"]
        total = [people, *list(map(sum, zip(*totals, strict=True)))[1:]]
        rows.append(("All", [(f"{number:,}", "") for number in total]))
        remarks.append(
            "Test asks the forget people again, paraphrased and with transformed portraits: all people count once. "
            f"Fine-tuning reads {record['fine_tuning_pairs']:,} questions and answers about {kinds['fictitious']:,} of "
            f"them and {kinds['pool']:,} more, who are never scored."
        )
    yield new_sheet(
        scores, "Data", "data", "Set", columns, blocks=[("", rows)], remarks=remarks, frame=pd.DataFrame(frame)
    )


COSTS = {  # of train.json: heading, digits, how the runs of a row are taken together
    "seconds": ("Seconds", 1, "mean"),
    "peak_memory_mb": ("Peak memory, MB", 0, "max"),
    "trainable_parameters": ("Trainable parameters", 0, "mean"),
    "steps": ("Steps", 0, "mean"),
}


@table("cost")
def cost_table(scores: Scores) -> Iterator[Sheet]:
    """What each model took: training seconds, peak memory, trainable parameters, optimizer steps."""
    rows, frame, group = [], [], dict(zip(GROUP, tables.group_of(scores), strict=True))
    for model in all_rows(scores)[0][1]:
        runs, name = [run for run in scores.runs if scores.model_of(run) == model], row_name(scores, model, False)
        record = {**group, **dict(zip([*MODEL, *scores.by], model, strict=True)), "runs": len(runs)}
        cells, absent = [], f"There is no run of {scores.name(model)}."
        for field, (heading, digits, together) in COSTS.items():
            values = pd.Series([run.train.get(field) for run in runs], dtype=float).dropna()
            why = absent if not runs else "" if len(values) else f"{heading.split(',')[0]} was not recorded."
            value = None if why else values.agg(together)
            cells.append(("" if why else f"{value:,.{digits}f}", why))
            record |= {field: value, f"{field}_note": why}
        rows.append((name, [*cells, (str(len(runs)), "") if runs else ("", absent)]))
        frame.append(record | {"collapsed": COLLAPSED in name})
    columns = [("", heading) for heading, *_ in COSTS.values()] + [("", "Runs")]
    remarks = ["Means over the runs of a row; memory is the largest. Seconds depend on the machine."]
    sheet = new_sheet(scores, "Cost of training", "cost", "Method", columns, blocks=[("", rows)])
    sheet.remarks, sheet.frame = remarks + sheet.collapsed_note(), pd.DataFrame(frame)
    yield sheet


# -- scores -----------------------------------------------------------------------------------------------------


@table("table2_main")
def main_table(scores: Scores) -> Iterator[Sheet]:
    """Table 2: a row a method and a block a trained modality; four sets and the main metrics, views pooled."""
    columns = _on_all_sets(lambda one, name: f"{one.label} {one.goal(name)}".strip())
    remark = (
        f"{LIMITS} Letter is the option letter the model writes, Likelihood the option it finds likeliest. Arrows: ↑ "
        "more is better; → the oracle's value is best, and below it is as wrong as above."
    )
    title, where = "Unlearning, views pooled", {"against": "", "view": POOLED}
    yield grid(scores, title, "main", paper_rows(scores), columns, where, remarks=[remark], people=True)


@table("table2_by_view")
def by_view_table(scores: Scores) -> Iterator[Sheet]:
    """Everything: a sheet a set, two rows a method (asked with the image, asked in text) and all metrics."""
    columns, rows = [column(one) for one in score_metrics(scores)], paper_rows(scores)
    for name in SETS:
        title, where = f"By view, {name.capitalize()} set", {"against": "", "set": name}
        yield grid(scores, title, f"view-{name}", rows, columns, where, by_view=True)


@table("table2_differences")
def difference_table(scores: Scores) -> Iterator[Sheet]:
    """Table 2 again as paired differences: to vanilla (what unlearning changed) and to the oracle (what is left)."""
    columns = _on_all_sets(lambda one, _: one.shown_as_gap)
    remarks = ["[low, high] is the 95 % interval of the paired difference."]
    for against in ("vanilla", "oracle"):
        title, label = f"Difference to {against}, question by question, views pooled", f"to-{against}"
        rows, where = paper_rows(scores, ("base", against)), {"against": against, "view": POOLED}
        yield grid(scores, title, label, rows, columns, where, signed=True, remarks=remarks, people=True)


@table("table_oracle_gap")
def oracle_gap_table(scores: Scores) -> Iterator[Sheet]:
    """Method minus oracle in every metric, two-sided: below the oracle is as wrong as above it. A sheet a set, views
    pooled; the CSV has them apart as well."""
    shown, rows = score_metrics(scores), all_rows(scores, ("base", "oracle"))
    columns = [column(one, one.shown_as_gap) for one in shown]
    title = "Gap to the oracle (margin 10 points, 0.1 of ROUGE and BLEU, 1 point of factuality), {} set, views pooled"
    remarks = [f"Method minus oracle, question by question; {LIMITS} {SIGNS}"]
    for name in SETS:
        where, label = {"against": "oracle", "set": name, "view": POOLED}, f"gap-{name}"
        frame = tables.select_metrics(scores, shown, **where | {"view": ANY_VIEW})
        options = {"signed": True, "verdict": True, "remarks": remarks, "frame": frame}
        yield grid(scores, title.format(name.capitalize()), label, rows, columns, where, **options)


@table("table_gate")
def gate_table(scores: Scores) -> Iterator[Sheet]:
    """Which metrics can show forgetting: vanilla minus oracle on the forget set, a row a metric, a column a view."""
    shown = [one for one in score_metrics(scores) if one.knowledge]
    where = {"method": "vanilla", "after": "", "against": "oracle", "set": "forget", "view": ANY_VIEW}
    frame = tables.select_metrics(scores, shown, **where)
    known = {(row["view"], *(row[c] for c in KEY)): row for row in frame.to_dict("records")}
    alone = scores.opened.to_dict("records")
    opened = {(row["view"], *(row[c] for c in KEY)): (row["open_in"], row["of"]) for row in alone}

    def text(one: Metric, view: str) -> tuple[str, str]:
        cell = known.get((view, *one.key), {"value": None, "low": None, "high": None})
        value = tables.value_text(cell, one, signed=True)
        alone = opened.get((view, *one.key))
        count = f" ({alone[0]} of {alone[1]})" if alone and alone[1] > 1 else ""
        return (f"{value}, {cell['gate']}{count}", "") if value else ("", "Vanilla or the oracle has no such answers.")

    rows = [(one.shown_as_gap, [text(one, view) for view in ANY_VIEW]) for one in shown]
    columns = [("Asked with", tables.ASKED_IN[view].capitalize()) for view in ANY_VIEW]
    remark = (
        f"Vanilla minus oracle on the forget set, question by question; {LIMITS} Closed: the interval does not lie "
        "above 0, so nothing shows that there was something to forget. (4 of 5): in so many replicates it is open by "
        "itself, over its people."
    )
    sheet = new_sheet(scores, "Memorisation gate", "gate", "Metric", columns, blocks=[("", rows)])
    sheet.remarks, sheet.frame = [remark, tables.repeats(scores)], tables.csv_rows(scores, frame)
    yield sheet


@table("table_health")
def health_table(scores: Scores) -> Iterator[Sheet]:
    """What kind of answer a free answer is: a sheet a set, two rows a method (by view), a column a state."""
    states, rows = metrics(table="health"), all_rows(scores)
    columns = [column(one) for one in states]
    measured = scores.items["fluency"].notna().groupby(scores.items["run"]).any()
    remarks = [f"Share of the free answers; {LIMITS} A row adds up to 100."]
    remarks += [f"{COLLAPSED} {scores.name(model[len(GROUP) :])}: {bad.why}" for model, bad in scores.unsound.items()]
    if not measured.all():
        remarks.append("These runs lack the base's likelihood of the answers: only their form shows gibberish.")
    for name in SETS:
        title, where = f"Health of free answers, {name.capitalize()} set", {"against": "", "set": name}
        frame = tables.select_metrics(scores, states, view=ANY_VIEW, **where)
        options = {"by_view": True, "remarks": remarks, "frame": frame}
        yield grid(scores, title, f"health-{name}", rows, columns, where, **options)


# -- forget quality and leakage ---------------------------------------------------------------------------------


def _quality_columns(headings: Mapping[str, Sequence[str]], against: str) -> list[Column]:
    known = {one.name: one for one in metrics(table="quality")}
    listed = CSV_ALONE.union(*QUALITY.values())
    more = [name for name, one in known.items() if name not in listed and (one.per != "pair" or not against)]
    shown = [(span, known[name]) for span, names in {**headings, "Further": more}.items() for name in names]
    return [column(one, span=span, against="oracle" if one.per == "pair" else against) for span, one in shown]


@table("table_forget_quality")
def quality_table(scores: Scores) -> Iterator[Sheet]:
    """Is the model like one that never saw these people? The values, and what is left of them beside the oracle's."""
    of_levels = (
        "R / (1 + R): 0 where the truth is known, 1/2 where it is as likely as a wrong option (geometric mean). KS, JS "
        "(10 bins): distance to the oracle; a JS not above JS by chance says nothing, and p takes the questions about "
        f"one person for independent. AUC: 1/2 where forget people look like fresh ones. {LIMITS}"
    )
    of_gaps = (
        "0: like a model that never saw these people. The same people and sentences, paired. "
        f"{LIMITS} Margin: 10 points of a share, 0.1 of R / (1 + R) and AUC. {SIGNS}"
    )
    where, known = {"set": "forget"}, metrics(table="quality")
    frame = tables.select_metrics(scores, known, against=["", "oracle"], view=list(VIEWS), **where)
    rows, columns, options = paper_rows(scores), _quality_columns(QUALITY, ""), {"by_view": True, "frame": frame}
    yield grid(scores, "Forget quality", "quality", rows, columns, where, remarks=[of_levels], **options)
    rows, columns = paper_rows(scores, ("oracle",)), _quality_columns(QUALITY_GAPS, "oracle")
    title, label = "Forget quality as difference to the oracle", "quality-to-oracle"
    options = {"by_view": True, "signed": True, "verdict": True, "frame": frame[:0]}  # these rows are among those above
    yield grid(scores, title, label, rows, columns, where, remarks=[of_gaps], **options)


@table("table_leakage")
def leakage_table(scores: Scores) -> Iterator[Sheet]:
    """Cross-modal leakage: blocks are what was trained on, columns what was asked in."""
    heads = {"image_text": "Image", "text": "Text", ACROSS: "Text − image"}
    shown = product(metrics(by_fact=True), heads)
    columns = [column(one, heads[view], one.label.removesuffix(" %"), view=view) for one, view in shown]
    remark = (
        f"Points; {LIMITS} Image, Text: gap to the oracle (0) asked that way. "
        "Text − image: how much more is left in text than with the image, on the same facts."
    )
    rows, where = rows_by_training(scores, ("base", "oracle")), {"against": "oracle", "set": "forget"}
    options = {"signed": True, "absent": "Not asked of the oracle, or of the model.", "remarks": [remark]}
    title = "Cross-modal leakage, gap to the oracle on Forget"
    yield grid(scores, title, "leakage", rows, columns, where, **options)


@table("table_alignment")
def alignment_table(scores: Scores) -> Iterator[Sheet]:
    """Whether both views agree fact by fact: AccF on the forget set, AccR on the retain set."""
    spans = {"acc_f": "Forget: both wrong (AccF)", "acc_r": "Retain: both right (AccR ↑)"}
    shown = product(ALIGNMENT, metrics(by_fact=True))
    columns = [column(m, span=spans[a], metric=f"{a}_{m.name}", set=ALIGNMENT[a]) for a, m in shown]
    remark = (
        f"{LIMITS} A fact is asked once with the image and once in text. The oracle "
        "guesses some facts rightly: AccF should come up to its value, and AccR stay at vanilla's."
    )
    options = {"absent": "No fact was asked in both views.", "remarks": [remark]}
    title, where = "Alignment of the two views, fact by fact", {"against": "", "view": ALIGNED}
    yield grid(scores, title, "alignment", rows_by_training(scores), columns, where, **options)


# -- along the path ---------------------------------------------------------------------------------------------

READ_OFF = [(path.KEPT, place) for place in path.PLACES] + [(path.KEPT, path.AREA)]
HEADS = {path.KEPT: "Kept", "retain": "Retain", "celebrity": "Celebrities", "free": "Retain, free", "test": "Test"}
READ_OFF += [(name, 0.5) for name in HEADS if name != path.KEPT]
CLOSED_IN = {"trained": "in the view that was trained", POOLED: "views pooled"}
PER_CENT = Metric(name="kept", label="%", task="classification", function=lambda rows: rows, digits=0)


@table("table_path")
def path_table(scores: Scores) -> Iterator[Sheet]:
    """What each method keeps where equally much is forgotten: at three shares of the gap that are closed, and between
    vanilla and the last of them (area)."""
    columns = [(_closed(place), HEADS[name] + " %") for name, place in READ_OFF]
    remarks = [
        "Per cent, with [low, high], the 95 % interval. Closed: the share of the gap between vanilla and the oracle in "
        "the likelihood of the forget people that is gone. Kept: likelihood about Retain and the celebrities, half "
        "each; Area: its mean from 0 to 75 % closed. Test is to go as Forget goes. (2 of 5): only so many replicates "
        "get there, and the number is theirs.",
        tables.repeats(scores),
    ]
    for closed_in, text in CLOSED_IN.items():
        kept = scores.kept[scores.kept["closed_in"] == closed_in]
        known = {(*(row[c] for c in (*MODEL, *scores.by)), row["what"], row["place"]): row for row in _records(kept)}
        blocks = []
        for modality in [name for name in trained_on(scores) if name in UNLEARNED]:
            models = [model for model in scores.models() if model[2] == modality and not model[3]]
            rows = [
                (row_name(scores, model, True), [_kept_text(known.get((*model, *at))) for at in READ_OFF])
                for model in models
            ]
            blocks.append((UNLEARNED[modality], rows))
        title, label = f"Kept at equal forgetting, gap closed {text}", f"path-{closed_in}"
        sheet = new_sheet(scores, title, label, "Method", columns if len(kept) else [], blocks=blocks)
        sheet.remarks = (
            [*remarks, *sheet.collapsed_note()] if len(kept) else ["No path beside an oracle's in these runs."]
        )
        sheet.frame = kept.drop(columns="dots", errors="ignore")
        yield sheet


def _closed(place: float | str) -> str:
    return "Area" if place == path.AREA else f"At {place:.0%} closed"


def _records(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")


def _kept_text(row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "", "There is no path beside an oracle's."
    text, reached = tables.value_text(row, PER_CENT), row["n_replicates"]
    if not text:
        return "", "Never reached."
    return (text if reached == row["of"] else f"{text} ({reached} of {row['of']})"), ""


CLAIMS = {"forget_free": "Free answers", "forget_image": "Likelihood, image"}  # what is left of Forget


@table("table_claim")
def claim_table(scores: Scores) -> Iterator[Sheet]:
    """The paper's claim at equal forgetting: what unlearning on text only leaves of Forget more, or less, than on image
    and text, where the same share of the gap in both views together is closed."""
    places = path.PLACES[:2]
    differences = path.between_modalities(scores.kept_by_person[POOLED], list(CLAIMS), places)
    title = "Left of Forget, text only minus image + text, at equal forgetting"
    if differences.empty:
        why = "No method closes as much of the gap of both views in both modalities."
        yield new_sheet(scores, title, "claim", "Method", [], remarks=[why])
        return
    known = {(row["method"], row["variant"], row["what"], row["place"]): row for row in _records(differences)}
    rows = []
    for method, variant in differences[["method", "variant"]].drop_duplicates().itertuples(index=False):
        cells = [known.get((method, variant, what, place)) for what, place in product(CLAIMS, places)]
        texts = [
            (f"{tables.value_text(one, PER_CENT, signed=True)}, n {one['n_replicates']}", "")
            if one
            else ("", "Never reached.")
            for one in cells
        ]
        rows.append(("All methods" if method == "all" else scores.name((method, variant, "none", "")), texts))
    columns = [(_closed(place), f"{head}, points") for head, place in product(CLAIMS.values(), places)]
    sheet = new_sheet(scores, title, "claim", "Method", columns, blocks=[("", rows)], frame=differences)
    sheet.remarks = [
        "Below 0: text only leaves less. The paper says so of generation, and the opposite of choices with the image. "
        f"n: replicates in which both get there. {LIMITS}",
        tables.repeats(scores),
    ]
    yield sheet


SOURCES = {"replicate": "All that a replicate draws", "train_seed": "Training of vanilla"}
SOURCES |= {"unlearn_seed": "Order of unlearning", "shot_seed": "Draw of the shots"}


@table("table_variance")
def variance_table(scores: Scores) -> Iterator[Sheet]:
    """Where the spread of an unlearned model's score comes from: people, and what chance decides, in points."""
    runs = scores.run_scores()
    runs = runs[~runs["method"].isin(("base", "vanilla", "oracle")) & (runs["view"] == POOLED)]
    shown = [one for one in metrics(main=True) if one.bounds == (0.0, 1.0)]
    columns, by_source, frame = [], {}, []
    for set_name, one in product(("forget", "retain"), shown):
        here = runs[(runs["set"] == set_name)].merge(pd.DataFrame([one.key], columns=KEY), on=KEY)
        if here.empty:
            continue
        columns.append((set_name.capitalize(), one.label.removesuffix(" %")))
        error = (here["high"] - here["low"]) / (2 * 1.96)
        own_error = error if set_name == "forget" else 0.0
        here = here.assign(model=here[MODEL].astype(str).agg(" ".join, axis=1), error=own_error)
        # the seeds of a replicate follow its number, so it is a source of its own only where nothing else is named
        own = [name for name in list(SOURCES)[1:] if (here.groupby(["model", "replicate"])[name].nunique() > 1).any()]
        split = variance_split(here, ["model", "replicate", *own], se="error")
        rows = [{"factor": "people", "levels": here["n_profiles"].max(), "sd": float((error**2).mean() ** 0.5)}]
        rows += _records(split[split["factor"] != "model"])
        for row in rows:
            by_source.setdefault(row["factor"], {})[columns[-1]] = row
            frame.append({"set": set_name, **dict(zip(KEY, one.key, strict=True)), **row})
    title, names = "Standard deviation of a score by its source, points, views pooled", {"people": "People", **SOURCES}
    blocks = [
        (names[source], [_sd_text(cells.get(column)) for column in columns])
        for source, cells in by_source.items()
        if source in names
    ]
    sheet = new_sheet(scores, title, "variance", "Source", columns, blocks=[("", blocks)], frame=pd.DataFrame(frame))
    sheet.remarks = [
        "People: the error of one run. The others: 95 % limits of the standard deviation, without people's."
    ]
    yield sheet


def _sd_text(row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None or pd.isna(row["sd"]):
        return "", "It is at one level in these runs."
    ends = [row.get("low"), row.get("high")]
    known = all(end is not None and end == end for end in ends)
    more = f" [{', '.join(f'{100 * end**0.5:.1f}' for end in ends)}]" if known else ""
    return f"{100 * row['sd']:.1f}{more}", ""


def _unranked(scores: Scores) -> list[str]:
    """Why the models of ``scores`` cannot be ranked; nothing where they are."""
    if scores.by:
        return [f"Not ranked: runs of one method differ in {', '.join(scores.by)}."]
    why = scores.ranking.refused.get(tables.group_of(scores))
    return (
        [f"Not ranked: {why}."] if why else [] if len(scores.ranking.methods) else ["Not ranked: there are no paths."]
    )


@table("table_ranking")
def ranking_table(scores: Scores) -> Iterator[Sheet]:
    """Place, letters and what is kept where half the gap is closed, who keeps most first; and who is out, and why."""
    title, remarks = "Ranking by what is kept where half the gap is closed", _unranked(scores)
    if remarks:
        yield new_sheet(scores, title, "ranking", "Method", [], remarks=remarks)
        return
    methods, pairs, _ = scores.ranking
    blocks = []
    for modality, rows in methods.groupby("trained", sort=False):
        lines = []
        for row in rows.to_dict("records"):
            place = (f"{row['place']} {row['group']}", "") if row["standing"] == RANKED else ("", row["note"])
            lines.append((row_name(scores, tuple(row[c] for c in MODEL), True), [place, _kept_text(row)]))
        blocks.append((UNLEARNED[modality], lines))
    apart_in = pairs.groupby("trained")["apart"].any()
    undecided = [UNLEARNED[name].lower() for name, apart in apart_in.items() if not apart]
    remarks = [
        "Methods that share a letter are not told apart "
        f"({len(pairs)} comparisons person by person, Holm-corrected together at 5 %).",
        *([f"No two methods are told apart: {', '.join(undecided)}."] if undecided else []),
        tables.repeats(scores),
    ]
    columns = [("", "Place"), ("", "Kept %")]
    frame = methods.drop(columns="dots")
    sheet = new_sheet(scores, title, "ranking", "Method", columns, blocks=blocks, remarks=remarks, frame=frame)
    sheet.remarks += sheet.collapsed_note()
    yield sheet


@table("table_ranking_pairs")
def pairs_table(scores: Scores) -> Iterator[Sheet]:
    """Every comparison behind the ranking, as CSV alone."""
    pairs = pd.DataFrame() if _unranked(scores) else scores.ranking.pairs
    names = {side: pairs[side].map(scores.name) for side in ("a", "b") if len(pairs)}
    yield Sheet("", "", "", [], frame=pairs.assign(**names))


@table("table_tau")
def tau_table(scores: Scores) -> Iterator[Sheet]:
    """Kendall's τ of our order to each list of at least four shared methods that others printed."""
    title, rows = "Kendall's τ to published lists", []
    if scores.by:
        yield new_sheet(scores, title, "tau", "List", [], remarks=_unranked(scores))
        return
    family, protocol, ratio = tables.group_of(scores)
    lists = published.lists(published.load())
    for at, printed, why in lists:
        if len(printed) >= SHARED and published.OURS["base_model"].get(at["base_model"]) == family:
            result = {"methods": printed["method"], "n": len(printed), "note": why}
            result |= {} if why else agreement(scores.cells, scores.unsound, printed)
            methods = ", ".join(scores.name((name, "canonical", "none", "")) for name in in_order(result["methods"]))
            rows.append({**at, **result, "methods": methods, "our_protocol": protocol, "our_forget_ratio": ratio})
    values = ["n", "tau", "p", "smallest_p", "n_gap", "tau_gap", "p_gap", "gate", "note"]
    frame = pd.DataFrame(rows, columns=[*published.LIST, "methods", *values, "our_protocol", "our_forget_ratio"])
    compared = frame[frame["n_gap"].notna()]
    few = sum(len(printed) < SHARED for _, printed, _ in lists)
    heads = ["Ratio %", "Set", "View", "Metric", "Methods", "τ, scores", "p", "Smallest p", "Ranked", "τ, gap", "p"]
    sheet = new_sheet(scores, title, "tau", "List", [("", head) for head in heads], frame=frame)
    sheet.blocks = [("", [(row["source"].split("; ")[0], _tau_cells(row)) for row in compared.to_dict("records")])]
    sheet.remarks = [*_tau_remarks(frame), f"Lists that share fewer than {SHARED} unlearning methods with ours: {few}."]
    yield sheet


def _tau_cells(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    tied = "All values are the same, so there is no order."
    few = "" if row["n_gap"] >= SHARED else f"The others have collapsed, and fewer than {SHARED} are no list."
    numbers = {name: f"{row[name]:.2g}".replace("-", "−") for name in ("tau", "p", "smallest_p", "tau_gap", "p_gap")}
    texts = [row["forget_ratio"], row["set"], row["view"].replace("_", " + "), row["metric"], row["n"]]
    cells = [(str(text), "") for text in texts]
    for name, number in numbers.items():
        why = tied if name in ("tau", "p", "smallest_p") else row["note"] or few or tied
        shown = number if name.endswith("gap") else tables.bracketed(number, row["gate"])
        cells.append(("", why) if pd.isna(row[name]) else (shown, ""))
    return [*cells[:8], (f"{row['n_gap']:.0f}", ""), *cells[8:]]


def _tau_remarks(frame: pd.DataFrame) -> list[str]:
    compared = frame["n_gap"].notna()
    sizes = sorted({SHARED, SHARED + 1, *frame.loc[compared, "n"]})
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
    if (frame.loc[compared, "gate"] == CLOSED).any():
        remarks.append("In brackets: a τ of scores behind a closed gate, which is no agreement about forgetting.")
    counts = frame.loc[~compared, "note"].value_counts(sort=False)
    listed = (f"{note} ({count} {'list' if count == 1 else 'lists'})" for note, count in counts.items())
    return [*remarks, *([f"Not compared: {'; '.join(listed)}."] if len(counts) else [])]
