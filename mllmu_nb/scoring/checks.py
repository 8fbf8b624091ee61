"""``check_metric`` tests whether a metric keeps its promises, like scikit-learn's ``check_estimator``."""

from collections.abc import Iterator
from itertools import chain, product

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import LETTERS, SETS
from mllmu_nb.errors import KitError
from mllmu_nb.scoring import utility
from mllmu_nb.scoring.frames import RUN, TAUGHT, VIEWS, of_metric
from mllmu_nb.scoring.registry import PER, TABLES, Metric, metrics

FORMS = [("classification", "letter", order) for order in range(4)]
FORMS += [("classification", "likelihood", 0), utility.UTILITY_KEY[:2] + (0,), ("generation", "", 0), ("cloze", "", 0)]
ANSWERS = ("Amara lives in Turin, Italy.", "Amara lives in Oslo, Norway.", "The The The", "I cannot share that.", "")
SAMPLE = dict.fromkeys(RUN, 0) | {"run": "sample", "method": "vanilla", "after": "", "attribute": "residence"}


def check_metric(metric: Metric) -> None:
    """Raise KitError with the promise that ``metric`` breaks. Its values are checked on made-up answers; for a metric
    of models or pairs, only the declaration is checked, not the values."""
    rows = sample_sentences() if metric.task == TAUGHT else of_metric(sample_items(), metric.task, metric.scoring)
    for kept, problem in chain(_declaration(metric), _values(metric, rows) if metric.per == "answer" else ()):
        if not kept:
            raise KitError(f"metric {' '.join(filter(None, metric.key))}: {problem}")


def _declaration(metric: Metric) -> Iterator[tuple[bool, str]]:
    """Whether each promise is kept, and the problem if it is not."""
    low, high = metric.bounds
    stored = {*sample_items(), *sample_sentences()}
    alike = [one.name for one in metrics(task=metric.task, scoring=metric.scoring, column=metric.column, per="answer")]
    yield low < high, f"its bounds {low} and {high} are no range"
    yield metric.margin is None or metric.margin > 0, f"its margin {metric.margin} must be above 0, or None"
    yield metric.per in PER, f"per is one of {', '.join(PER)}"
    yield metric.table in (*TABLES, ""), f"its table is one of {', '.join(TABLES)}, or none"
    sets = (*SETS, *chain(*utility.PANELS.values()))
    yield set(metric.sets) <= set(sets), f"its sets are some of {', '.join(sets)}"
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


def sample_items() -> pd.DataFrame:
    """Answers about eight people to every task in every form, as the runs store them."""
    places, rows = ("Turin, Italy", "Oslo, Norway", "Lyon, France"), []
    for n, (number, view, (task, scoring, order)) in enumerate(product(range(8), VIEWS, FORMS)):
        choice, place = task == "classification", places[number % 3]
        row = {"set": "forget", "task": task, "view": view, "scoring": scoring, "order": order, "shots": 0, "tokens": 5}
        row |= {"profile": f"{number:03d}", "question_id": f"{number:03d}/{task}/{view}/0", "question": "Where?"}
        row |= {"answer": "ABCD?"[n % 5] if choice else ANSWERS[n % 5], "rivals": places}
        row |= {"fluency": -1.0 - n % 7, "judge_grade": n % 10 + 1, "judge_name": "a judge"}
        row |= {"answer_true": LETTERS[number % 4] if choice else f"In {place}.", "value": place if number else ""}
        for at, letter in enumerate(LETTERS):
            row |= {f"option_{letter}": -1.0 - (n + at) % 4, f"option_text_{letter}": (*places, "Bonn")[at]}
        rows.append(SAMPLE | row)
    return pd.DataFrame(rows)


def sample_sentences() -> pd.DataFrame:
    """Taught sentences about ten people, four to be forgotten and six fresh ones."""
    rows = pd.DataFrame(product(range(10), VIEWS), columns=["number", "view"])
    rows["member"] = np.where(rows["number"] < 4, "forget", "fresh")
    rows["profile"] = rows.pop("number").map("{:03d}".format)
    spread = list(np.random.default_rng(0).normal(-1.0, 1.0, (len(rows), 6)))
    arrays = {"spread": spread, "right": [row > -1 for row in spread], "log_probs": [-abs(row) for row in spread]}
    question_id = rows["profile"] + "/finetuning/" + rows["view"] + "/0"
    return rows.assign(question_id=question_id, n_tokens=6, zlib_bytes=40, **arrays, **SAMPLE)
