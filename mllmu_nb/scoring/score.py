"""Answers → scores: one value per answer, one row per run and cell, and the one long frame of all tables."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import nan
from typing import Any

import pandas as pd

from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.scoring import frames
from mllmu_nb.scoring.frames import PEOPLE, PLACE, POOLED, TAUGHT, VIEWS, is_model, of_metric, persons
from mllmu_nb.scoring.gates import gates, with_gate
from mllmu_nb.scoring.registry import NO_PAIR, PER, Metric, NotMeasured, by_key, metrics
from mllmu_nb.scoring.summary import NOTHING, asked_differently, by_task, by_view, examples, paired, summaries
from mllmu_nb.statistics.intervals import Interval, equivalence

RUN_KEYS = ["run", "base_model", "forget_ratio", "replicate", "method", "protocol", "variant", "modality", "after"]
RUN_KEYS += ["seed", *frames.SEEDS]
VALUES = ["value", "low", "high", *frames.COUNTS, "dots"]
NO_SENTENCES = "The run has no sentences.parquet."
NO_SCORE = "The run has no such score on the {} set."
NOT_ASKED = "The model was not asked these questions."


def item_scores(items: pd.DataFrame) -> pd.DataFrame:
    """Add one column per metric to ``items`` (of any number of runs, see :mod:`~mllmu_nb.scoring.frames`), NaN if an
    answer has no value. If a question was asked in several orders of its options, only the row of order 0 is returned.
    Answers without a column ``run``, such as those of a model that was just asked, count as one run."""
    items = (items if "run" in items else items.assign(run="")).reset_index(drop=True)
    scored = _scored(items, [one for one in metrics(per="answer") if one.task != TAUGHT])
    return scored[scored["order"] == 0].reset_index(drop=True)


def sentence_scores(sentences: pd.DataFrame) -> pd.DataFrame:
    """Add to ``sentences`` (of any number of runs) one column per metric of sentences, and set, task and scoring."""
    sentences = sentences.assign(set=sentences["member"], task=TAUGHT, scoring="").reset_index(drop=True)
    return _scored(sentences, metrics(per="answer", task=TAUGHT)).drop(columns=["log_probs", "right", "spread"])


def _scored(rows: pd.DataFrame, wanted: Sequence[Metric]) -> pd.DataFrame:
    columns = {one.column: pd.Series(nan, rows.index) for one in wanted}
    for (task, scoring), group in by_task(wanted).items():
        asked = of_metric(rows, task, scoring)
        for one in group if len(asked) else ():
            columns[one.column][asked.index] = one.function(asked).astype(float)
    return rows.assign(**columns)


def run_scores(items: pd.DataFrame, by: Sequence[str] = (), **wanted: Any) -> pd.DataFrame:
    """Summarise scored ``items``: one row per run, set, task, view (``both`` pools the two), scoring and metric, if an
    answer has a value. ``wanted``: which metrics of the tables of scores, as in :func:`metrics`; all if none is named.
    Columns RUN_KEYS, ``by``, CELL, metric, value, low, high, n_items, n_profiles."""
    items = items.assign(person=persons, seed=items["unlearn_seed"])
    key = [*RUN_KEYS, *by]
    rows = by_view(items, key, metrics(per="answer", table="scores", **wanted))
    return pd.DataFrame(rows, columns=[*key, *frames.CELL, "metric", *VALUES]).drop(columns=["n_replicates", "dots"])


def cells(items: pd.DataFrame, sentences: pd.DataFrame | None = None, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the long frame (docs/scoring.md, "The frames"): every metric of every model, over its replicates.

    ``items`` are scored, ``sentences`` as read (None if no run kept any), ``by`` are parameters that a grid varies.
    Raises KitError if two runs of one model have the same people and seeds.
    """
    key = [*frames.GROUP, *frames.MODEL, *by]
    items = items.assign(person=persons)
    alike = [*key, "replicate", *frames.SEEDS]
    runs = items[[*alike, "run"]].drop_duplicates()
    for _, twins in runs.groupby(alike, sort=False, dropna=False)["run"]:
        if len(twins) > 1:
            raise KitError(
                f"runs {' and '.join(twins)} are of one method with the same people and seeds, and would be pooled: "
                "name the parameter in which they differ, or move one of them away"
            )
    models, parts, known = items[key].drop_duplicates(), [], [items]
    if sentences is not None:
        known.append(sentence_scores(sentences).assign(person=persons))
    for taught, rows in enumerate(known):
        wanted = {per: [one for one in metrics(per=per) if (one.task == TAUGHT) == taught] for per in PER}
        answered = [one for one in wanted["answer"] if not one.optional or rows[one.column].notna().any()]
        parts.append(_of_answers(rows, answered, models, key))
        parts.append(pd.DataFrame(_of_models(rows, wanted["pair"] + wanted["model"], models, key)))
    parts.append(pd.DataFrame(_across_views(items, key)))
    result = pd.concat(parts, ignore_index=True)
    result = result.reindex(columns=[*key, *PLACE, *VALUES, "note"]).astype(dict.fromkeys(frames.COUNTS, "Int64"))
    dots = [one if isinstance(one, tuple) else () for one in result["dots"]]
    result = result.assign(note=result["note"].fillna(""), dots=dots, verdict=_verdicts(result))
    return with_gate(result, gates(result, by), by)


def _of_answers(rows: pd.DataFrame, wanted: Sequence[Metric], models: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Summarise metrics with one value per row: level and differences per model, set and view, or a note why not."""
    values, grid = [], []
    for against in ("", "vanilla", "oracle"):
        # for other metrics, a difference says nothing
        shown = [one for one in wanted if not against or one.margin is not None or one.knowledge != 0]
        places = [(s, one.task, v, one.scoring, one.name) for one in shown for s in one.sets for v in (*VIEWS, POOLED)]
        places = pd.DataFrame(places, columns=[*frames.CELL, "metric"]).assign(against=against)
        grid.append(models[~is_model(models, against)].merge(places, how="cross"))
        values += [row | {"against": against} for row in by_view(rows, key, shown, against)]
    values = pd.DataFrame(values, columns=[*key, *PLACE, *VALUES]).astype(models.dtypes.to_dict())
    result = pd.concat(grid).merge(values, on=[*key, *PLACE], how="left")
    notes = [
        NO_PAIR.format(against) if against else NO_SENTENCES if task == TAUGHT else NO_SCORE.format(set_name)
        for against, task, set_name in zip(result["against"], result["task"], result["set"], strict=True)
    ]
    return result.assign(note=pd.Series(notes, result.index).where(result["value"].isna(), ""))


def _of_models(rows: pd.DataFrame, wanted: Sequence[Metric], models: pd.DataFrame, key: list[str]) -> list[dict]:
    """Summarise metrics of a model (its level and difference to its oracle) or of the two as a pair, for each view."""
    result, first = [], rows.drop_duplicates("run")
    alike = [*PEOPLE, *asked_differently(first[is_model(first, "oracle")])]
    identities = (first[names].itertuples(index=False, name=None) for names in (key, alike, frames.REPLICATE))
    model_of, people_of, replicate_of = (dict(zip(first["run"], one, strict=True)) for one in identities)
    oracle_of = {people_of[run]: run for run in first.loc[is_model(first, "oracle"), "run"]}
    groups = [(of_metric(rows, *names), group) for names, group in by_task(wanted).items()]
    for (asked, group), view, set_name in product(groups, VIEWS, SETS):
        group = [one for one in group if set_name in one.sets]
        if not group:
            continue
        here, task, scoring = asked["view"] == view, group[0].task, group[0].scoring
        if task != TAUGHT:  # sentences about forget people are compared with those about fresh ones
            here &= asked["set"] == set_name
        asked = asked[here]
        answers = dict(list(asked.groupby("run", sort=False)))
        runs = defaultdict(list)
        for run in answers:
            runs[model_of[run]].append(run)
        for model in models.to_dict("records"):
            its, is_oracle = runs[tuple(model.values())], is_model(model, "oracle")
            own = [answers[run] for run in its]
            theirs = [None if is_oracle else answers.get(oracle_of.get(people_of[run])) for run in its]
            with_oracle = [run for run, oracle in zip(its, theirs, strict=True) if oracle is not None]
            for one in group:
                level, gap, why = None, None, NO_PAIR.format("oracle")
                try:
                    if not own:
                        raise NotMeasured(NO_SENTENCES if task == TAUGHT else NOT_ASKED)
                    outcome = one.function(own, theirs)
                    level, gap = outcome if one.per == "model" else (None, outcome)
                except NotMeasured as reason:
                    why = str(reason)
                at = model | {"set": set_name, "task": task, "view": view, "scoring": scoring, "metric": one.name}
                outcomes = [("", level, its)] if one.per == "model" else []
                outcomes += [] if is_oracle else [("oracle", gap, with_oracle)]
                for against, summary, counted in outcomes:
                    replicates = len({replicate_of[run] for run in counted})
                    values = vars(summary) | {"n_replicates": replicates, "dots": ()} if summary else NOTHING
                    result.append(at | {"against": against, "note": "" if summary else why} | values)
    return result


def _across_views(items: pd.DataFrame, key: list[str]) -> list[dict]:
    """Return the cells of the view ACROSS, for ``by_fact`` metrics: the gap to the oracle asked with text minus that
    asked with image + text. It shows if a fact unlearned in one view can be asked in the other."""
    result = []
    for metric in metrics(by_fact=True, per="answer"):
        facts = paired_facts(items, metric)
        on = [*PEOPLE, "profile", "number", *examples(metric, key)]
        forget = paired(facts[facts["set"] == "forget"], "oracle", list(VIEWS), on)
        gaps = forget.assign(**{view: forget[view] - forget[f"{view}_reference"] for view in VIEWS})
        gaps = gaps[~is_model(gaps, "oracle")].rename(columns={"text": "gap", "image_text": "gap_reference"})
        low, high = metric.bounds
        gap = replace(metric, column="gap", bounds=(low - high, high - low))
        at = {"against": "oracle", "view": frames.ACROSS}
        result += [row | at for row in summaries(gaps, [*key, "set"], [gap], minus=True)]
    return result


def paired_facts(items: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return one row per fact that a run asked in both views, with the scores ``image_text`` and ``text``."""
    asked = of_metric(items, metric.task, metric.scoring)
    asked = asked.assign(number=asked["question_id"].str.rsplit("/", n=1).str[-1], score=asked[metric.column])
    asked = asked.dropna(subset=["score"])
    same = ["run", "set", "profile", "number"]
    image, text = (asked[asked["view"] == view] for view in VIEWS)
    facts = image.merge(text[[*same, "value", "score"]], on=same, suffixes=("", "_text"))
    values = [facts[column].fillna("").str.casefold() for column in ("value", "value_text")]
    facts = facts[(values[0] == values[1]) | (values[0] == "") | (values[1] == "")]
    return facts.drop(columns="view").rename(columns={"score": "image_text", "score_text": "text"})


def _verdicts(cells: pd.DataFrame) -> list[str]:
    known = by_key()
    margins = [known[key].margin for key in cells[frames.KEY].itertuples(index=False, name=None)]
    judged = (cells["against"] == "oracle") & cells["view"].isin([*VIEWS, POOLED]) & cells["value"].notna()
    gaps = (Interval(*ends, 0, 0) for ends in cells[["value", "low", "high"]].to_numpy(float))
    return [equivalence(gap, m) if there and m else "" for there, m, gap in zip(judged, margins, gaps, strict=True)]
