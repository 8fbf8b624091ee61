"""``check_metric``: whether a metric keeps its promises, in the manner of scikit-learn's ``check_estimator``."""

from __future__ import annotations

import itertools
from math import isfinite

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import LETTERS, SETS
from mllmu_nb.errors import KitError
from mllmu_nb.scoring.frames import MODEL, RUN, SEEDS, TAUGHT, VIEWS, of_metric, persons
from mllmu_nb.scoring.registry import TABLES, Metric, NotMeasured, metrics
from mllmu_nb.scoring.score import item_scores, sentence_scores

MODELS = ("vanilla", "oracle", "ga")
PLACES = ("Turin, Italy", "Oslo, Norway", "Lyon, France")
ANSWERS = (
    "Amara lives in Turin, Italy.",
    "Amara lives in Oslo, Norway.",
    "The The The The",
    "I cannot share that.",
    "",
)


def check_metric(metric: Metric) -> None:
    """Raises KitError saying which promise ``metric`` breaks; made-up answers of three models are enough to see it."""
    _check_declaration(metric)
    rows = sample_sentences() if metric.task == TAUGHT else sample_items()
    if metric.per == "answer":
        _check_values(metric, rows if metric.task == TAUGHT else of_metric(rows, metric.task, metric.scoring))
    else:
        scored = sentence_scores(rows) if metric.task == TAUGHT else item_scores(rows)
        _check_models(metric, of_metric(scored, metric.task, metric.scoring))


def _check_declaration(metric: Metric) -> None:
    low, high = metric.bounds
    twins = [one.name for one in metrics(task=metric.task, scoring=metric.scoring, column=metric.column, per="answer")]
    stored = set(sample_items()) | set(sample_sentences())
    for broken, problem in (
        (not metric.label, "it needs a label"),
        (not low < high, f"its bounds {low} and {high} are no range"),
        (metric.times <= 0 or metric.digits < 0, "it is printed as times × value with digits, neither below 0"),
        (metric.margin is not None and not metric.margin > 0, f"its margin {metric.margin} must be above 0, or None"),
        (metric.knowledge not in (-1, 0, 1), "knowledge is 1, -1 or 0"),
        (metric.per not in ("answer", "model", "pair"), "per is answer, model or pair"),
        (metric.table not in (*TABLES, ""), f"its table is one of {', '.join(TABLES)}, or none"),
        (not metric.sets or not set(metric.sets) <= set(SETS), f"its sets are some of {', '.join(SETS)}"),
        (metric.column in stored, f"its column {metric.column} is one of the stored ones: give it another"),
        (metric.per == "answer" and len(twins) > 1, f"{' and '.join(twins)} share the column {metric.column}"),
    ):
        _require(metric, not broken, problem)


def _check_values(metric: Metric, rows: pd.DataFrame) -> None:
    before = rows.copy(deep=True)
    values = metric.function(rows)
    _require(metric, before.equals(rows), "it changes the rows it is given")
    _require(metric, isinstance(values, pd.Series) and values.index.equals(rows.index), "one value a row, same index")
    numbers = values.astype(float)
    low, high = metric.bounds
    outside = numbers[(numbers < low) | (numbers > high)]
    _require(metric, outside.empty, f"values such as {outside.head(1).tolist()} lie outside {low:g} to {high:g}")
    _require(metric, numbers.notna().any(), "it has no value for any of the sample answers")
    _require(metric, numbers.equals(metric.function(rows).astype(float)), "it is not the same the second time")
    mixed = metric.function(rows.sample(frac=1, random_state=0)).reindex(rows.index).astype(float)
    _require(metric, np.allclose(numbers, mixed, rtol=1e-9, equal_nan=True), "it depends on the order of the rows")
    _require(metric, metric.function(rows.head(0)).empty, "it cannot do without any answer")


def _check_models(metric: Metric, rows: pd.DataFrame) -> None:
    rows = rows[(rows["view"] == "text") & ((metric.task == TAUGHT) | rows["set"].isin(metric.sets))]
    runs = {name: rows[rows["method"] == name] for name in MODELS}
    try:
        level, difference = _of_models(metric, [runs["ga"]], [runs["oracle"]])
        _, none = _of_models(metric, [runs["oracle"]], [runs["oracle"]])
    except NotMeasured:
        return  # a sample of few people
    _require(metric, difference is not None, "beside an oracle it has no difference")
    _require(metric, level is None or metric.bounds[0] <= level.value <= metric.bounds[1], "a level out of its bounds")
    _require(metric, isfinite(difference.value) and none.value == 0, "a model is not at 0 beside itself")


def _of_models(metric: Metric, ours: list, theirs: list) -> tuple:
    outcome = metric.function(ours, theirs)
    return outcome if metric.per == "model" else (None, outcome)


def _require(metric: Metric, kept: bool, problem: str) -> None:
    if not kept:
        raise KitError(f"metric {' '.join(filter(None, metric.key))}: {problem}")


def sample_items() -> pd.DataFrame:
    """Answers of vanilla, an oracle and GA about four people, to every task in every form, as the runs store them."""
    rows = []
    for run, set_name, person, view in itertools.product(MODELS, ("forget", "retain"), range(4), VIEWS):
        at = {"set": set_name, "view": view, "profile": f"{person:03d}", "rivals": PLACES, "attribute": "residence"}
        for task, scoring, order in (
            *(("classification", "letter", order) for order in range(4)),
            ("classification", "likelihood", 0),
            ("generation", "", 0),
            ("cloze", "", 0),
        ):
            value, number = PLACES[person % 3], len(rows)
            row = at | {"task": task, "scoring": scoring, "order": order, "value": value if person else ""}
            row |= {"question_id": f"{person:03d}/{task}/{view}/0", "question": "Where?", "answer_true": f"In {value}."}
            row |= {"answer": ANSWERS[number % 5], "fluency": -1.0 - number % 7, "tokens": 5, "shots": 0}
            if task == "classification":
                row |= {"answer_true": LETTERS[person], "answer": (*LETTERS, "")[number % 5]}
                row |= {f"option_text_{letter}": text for letter, text in zip(LETTERS, (*PLACES, "Bonn"), strict=True)}
            if scoring == "likelihood":
                row |= {f"option_{letter}": -1.0 - (number + n) % 4 for n, letter in enumerate(LETTERS)}
            rows.append(row | _run(run))
    items = pd.DataFrame(rows)
    return items.assign(person=persons(items))


def sample_sentences() -> pd.DataFrame:
    """Taught sentences of the same models: those about four forget people, and about six fresh ones."""
    rows, random = [], np.random.default_rng(0)
    for run, person, view in itertools.product(MODELS, range(10), VIEWS):
        values = random.normal(-1.0, 1.0, 6)
        row = {"profile": f"{person:03d}", "member": "forget" if person < 4 else "fresh", "attribute": "residence"}
        row |= {"question_id": f"{person:03d}/finetuning/{view}/0", "view": view, "n_tokens": 6, "zlib_bytes": 40}
        rows.append(row | {"log_probs": -abs(values), "right": values > -1, "spread": values} | _run(run))
    sentences = pd.DataFrame(rows)
    return sentences.assign(person=persons(sentences))


def _run(method: str) -> dict:
    names = {"run": method, "scale": "sample", "base_model": "llava", "forget_ratio": 10, "forget_draw": 0}
    model = dict(zip(MODEL, (method, "canonical", "multimodal" if method == "ga" else "none", ""), strict=True))
    every = names | {"protocol": "clean"} | model | dict.fromkeys(SEEDS, 0)
    return {column: every.get(column, "") for column in RUN}
