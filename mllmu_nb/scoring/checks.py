"""``check_metric``: whether a metric keeps its promises, in the manner of scikit-learn's ``check_estimator``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, product

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import LETTERS, SETS
from mllmu_nb.errors import KitError
from mllmu_nb.scoring.frames import SEEDS, TAUGHT, VIEWS, of_metric, persons
from mllmu_nb.scoring.registry import PER, TABLES, Metric, NotMeasured, metrics
from mllmu_nb.scoring.score import item_scores, sentence_scores

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
    rows, score = (sample_sentences(), sentence_scores) if metric.task == TAUGHT else (sample_items(), item_scores)
    check = _values if metric.per == "answer" else _levels
    rows = rows if metric.per == "answer" else score(rows)
    asked = rows if metric.task == TAUGHT else of_metric(rows, metric.task, metric.scoring)
    for kept, problem in chain(_declaration(metric), check(metric, asked)):
        if not kept:
            raise KitError(f"metric {' '.join(filter(None, metric.key))}: {problem}")


# Each yields whether a promise is kept, and the problem if it is not


def _declaration(metric: Metric) -> Iterator[tuple[bool, str]]:
    low, high = metric.bounds
    alike = [one.name for one in metrics(task=metric.task, scoring=metric.scoring, column=metric.column, per="answer")]
    stored = set(sample_items()) | set(sample_sentences())
    yield low < high, f"its bounds {low} and {high} are no range"
    yield metric.margin is None or metric.margin > 0, f"its margin {metric.margin} must be above 0, or None"
    yield metric.knowledge in (-1, 0, 1), "knowledge is 1, -1 or 0"
    yield metric.per in PER, f"per is one of {', '.join(PER)}"
    yield metric.table in (*TABLES, ""), f"its table is one of {', '.join(TABLES)}, or none"
    yield set(metric.sets) <= set(SETS), f"its sets are some of {', '.join(SETS)}"
    yield metric.column not in stored, f"its column {metric.column} is one of the stored ones: give it another"
    yield metric.per != "answer" or len(alike) < 2, f"{' and '.join(alike)} share the column {metric.column}"


def _values(metric: Metric, rows: pd.DataFrame) -> Iterator[tuple[bool, str]]:
    before = rows.copy(deep=True)
    values = metric.function(rows)
    yield before.equals(rows), "it changes the rows it is given"
    yield isinstance(values, pd.Series) and values.index.equals(rows.index), "one value a row, same index"
    numbers, (low, high) = values.astype(float), metric.bounds
    outside = numbers[(numbers < low) | (numbers > high)]
    yield outside.empty, f"values such as {outside.head(1).tolist()} lie outside {low:g} to {high:g}"
    yield numbers.notna().any(), "it has no value for any of the sample answers"
    yield numbers.equals(metric.function(rows).astype(float)), "it is not the same the second time"
    mixed = metric.function(rows.sample(frac=1, random_state=0)).reindex(rows.index).astype(float)
    yield np.allclose(numbers, mixed, rtol=1e-9, equal_nan=True), "it depends on the order of the rows"


def _levels(metric: Metric, rows: pd.DataFrame) -> Iterator[tuple[bool, str]]:
    rows = rows[(rows["view"] == "text") & ((metric.task == TAUGHT) | rows["set"].isin(metric.sets))]
    unlearned, oracle = (rows[rows["method"] == name] for name in ("ga", "oracle"))
    try:
        results = [metric.function([ours], [oracle]) for ours in (unlearned, oracle)]
    except NotMeasured:
        return  # the sample has few people
    (level, difference), (_, same) = (one if metric.per == "model" else (None, one) for one in results)
    yield difference is not None, "beside an oracle it has no difference"
    yield level is None or metric.bounds[0] <= level.value <= metric.bounds[1], "a level out of its bounds"
    yield same.value == 0, "a model is not at 0 beside itself"


def sample_items() -> pd.DataFrame:
    """Answers of vanilla, an oracle and GA about four people, to every task in every form, as the runs store them."""
    forms = [("classification", "letter", order) for order in range(4)]
    forms += [("classification", "likelihood", 0), ("generation", "", 0), ("cloze", "", 0)]
    rows = product(("vanilla", "oracle", "ga"), ("forget", "retain"), range(4), VIEWS, forms)
    rows = pd.DataFrame(rows, columns=["method", "set", "number", "view", "form"])
    rows[["task", "scoring", "order"]] = rows.pop("form").tolist()
    row, choice = np.arange(len(rows)), rows["task"] == "classification"
    place = rows["number"].map(lambda number: PLACES[number % 3])
    rows = rows.assign(value=place.where(rows["number"] > 0, ""), question="Where?", rivals=[PLACES] * len(rows))
    rows["answer_true"] = rows["number"].map(LETTERS.__getitem__).where(choice, "In " + place + ".")
    rows["answer"] = np.where(choice, np.array([*LETTERS, ""])[row % 5], np.array(ANSWERS)[row % 5])
    for n, letter in enumerate(LETTERS):
        rows = rows.assign(**{f"option_text_{letter}": (*PLACES, "Bonn")[n], f"option_{letter}": -1.0 - (row + n) % 4})
    return _with_run(rows.assign(fluency=-1.0 - row % 7, tokens=5, shots=0))


def sample_sentences() -> pd.DataFrame:
    """Taught sentences of the same models: those about four forget people, and about six fresh ones."""
    rows = pd.DataFrame(product(("vanilla", "oracle", "ga"), range(10), VIEWS), columns=["method", "number", "view"])
    rows["member"] = np.where(rows["number"] < 4, "forget", "fresh")
    spread = list(np.random.default_rng(0).normal(-1.0, 1.0, (len(rows), 6)))
    arrays = {"spread": spread, "right": [row > -1 for row in spread], "log_probs": [-abs(row) for row in spread]}
    return _with_run(rows.assign(task="finetuning", n_tokens=6, zlib_bytes=40, **arrays)).drop(columns="task")


def _with_run(rows: pd.DataFrame) -> pd.DataFrame:
    shared = {"scale": "sample", "base_model": "llava", "forget_ratio": 10, "replicate": 0, "protocol": "clean"}
    shared |= {"variant": "canonical", "after": "", "taught": "", "attribute": "residence", **dict.fromkeys(SEEDS, 0)}
    rows = rows.assign(run=rows["method"], profile=rows.pop("number").map("{:03d}".format), **shared)
    rows["modality"] = rows["method"].map({"ga": "multimodal"}).fillna("none")
    rows["question_id"] = rows["profile"] + "/" + rows["task"] + "/" + rows["view"] + "/0"
    return rows.assign(person=persons(rows))
