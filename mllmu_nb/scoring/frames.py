"""The frames that scores are made of: their columns, answers joined with what they are scored against, and means and
paired differences of scores with their intervals; docs/scoring.md ("The frames")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import LETTERS, Population
from mllmu_nb.statistics.intervals import interval, paired_difference

if TYPE_CHECKING:
    from mllmu_nb.scoring.registry import Metric

SEEDS = ["data_seed", "train_seed", "unlearn_seed", "shot_seed"]
GROUP = ["base_model", "protocol", "forget_ratio"]  # what runs in one printed table have in common
MODEL = ["method", "variant", "modality", "after"]
RUN = ["run", "scale", "base_model", "forget_ratio", "replicate", "method", "protocol", "variant", "modality"]
RUN += ["after", *SEEDS, "taught"]  # taught: a hash of all that decides the vanilla model that the run starts from
CELL = ["set", "task", "view", "scoring"]
KEY = ["task", "scoring", "metric"]  # of a metric
COUNTS = ["n_items", "n_profiles", "n_replicates"]
DRAW = ["data_seed", "replicate"]
PEOPLE = [*GROUP, *DRAW, "train_seed", "taught"]  # models that learnt the same people in the same way
PAIRED_ON = [*PEOPLE, "set", "question_id"]  # one question to two of them
VIEWS = {"image_text": "image + text", "text": "text"}
POOLED = "both"
ACROSS = "text - image"  # the view of what compares the two, fact by fact
TAUGHT = "taught"  # the task of a metric of sentences
REFERENCES = ("vanilla", "oracle")
NOTHING = {"value": nan, "low": nan, "high": nan, "dots": ()}  # of a summary
IN_ANSWERS = ["profile", "task", "view", "number"]  # columns of questions that answers have already, or need not


def persons(rows: pd.DataFrame) -> pd.Series:
    """Who each row is about: profile "007" of another data seed is another person."""
    return rows["data_seed"].astype(str) + ":" + rows["profile"].astype(str)


def filled(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """``rows`` with "" for a parameter that a run does not have, so that it can be grouped by."""
    return rows.assign(**{column: rows[column].astype(object).where(rows[column].notna(), "") for column in by})


def is_model(rows: pd.DataFrame | pd.Series | dict, method: str) -> pd.Series | bool:
    """Whether each row, or the one row, is of ``method`` as it was trained, no step after it."""
    return (rows["method"] == method) & (rows["after"] == "")


def of_metric(items: pd.DataFrame, task: str, scoring: str) -> pd.DataFrame:
    """The answers to one task, scored in one way."""
    return items[(items["task"] == task) & (items["scoring"] == scoring)]


def people_frames(known: Population) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a question, as ``plain`` or as the ``test`` set asks it; and a row a fact."""
    questions = [
        {
            "version": version,
            "question_id": q.id,
            **{name: getattr(q, name) for name in (*IN_ANSWERS, "attribute")},
            "question": q.text,
            "answer_true": q.answer,
            "value": q.value,
            **{f"option_text_{letter}": text for letter, text in zip(LETTERS, q.options, strict=False)},
        }
        for person in known.profiles.values()
        for version, asked in (("plain", person.questions), ("test", person.test_questions))
        for q in asked
    ]
    facts = [(p.id, p.kind, p.name, *fact) for p in known.profiles.values() for fact in p.attributes.items()]
    return pd.DataFrame(questions), pd.DataFrame(facts, columns=["profile", "kind", "name", "attribute", "value"])


def with_questions(answers: pd.DataFrame, questions: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """``answers`` with their questions, and ``rivals``: all values that anybody has for the attribute asked for.

    The question of an answer that ``questions`` lack is NaN.
    """
    values = {attribute: tuple(rows.unique()) for attribute, rows in facts.groupby("attribute")["value"]}
    rivals = [values.get(attribute, ()) for attribute in questions["attribute"]]
    questions = questions.drop(columns=IN_ANSWERS).assign(rivals=rivals)
    answers = answers.assign(version=answers["set"].eq("test").map({True: "test", False: "plain"}))
    joined = answers.merge(questions, on=["version", "question_id"], how="left", validate="many_to_one")
    return joined.drop(columns="version")


def summaries(rows: pd.DataFrame, by: Sequence[str], metrics: Iterable[Metric], minus: bool = False) -> list[dict]:
    """The mean of each metric in each group of ``rows`` with its interval, over people or, where the group holds
    several replicates, over these crossed with people; none where nothing has a value.

    ``rows`` are scored, with ``person`` and the columns of the run; groups agree in the columns ``by``. With ``minus``,
    the mean of paired differences to the columns that end in ``_reference``. Each summary has the columns ``by``, task,
    scoring, metric, value, low, high, n_items, n_profiles, n_replicates, and ``dots``: the value of each replicate.
    """
    result = []
    people, replicates = pd.factorize(rows["person"])[0], rows.groupby(DRAW).ngroup().to_numpy()
    group = rows.groupby(list(by), sort=False, observed=True, dropna=False).ngroup().to_numpy()
    groups = [(at, group == n) for n, at in enumerate(rows[list(by)].drop_duplicates().to_dict("records"))]
    for metric in metrics:
        values = rows[metric.column].to_numpy(float)
        reference = rows[f"{metric.column}_reference"].to_numpy(float) if minus else np.zeros(len(rows))
        named = {"task": metric.task, "scoring": metric.scoring, "metric": metric.name}
        for at, here in groups:
            here = here & np.isfinite(values - reference)
            if at.get("set", metric.sets[0]) not in metric.sets or not here.any():
                continue
            scores = (values[here], reference[here]) if minus else (values[here],)
            function, some = paired_difference if minus else interval, replicates[here]
            summary = function(*scores, people[here], bounds=metric.bounds, replicates=some)
            counts, sums = np.bincount(some), np.bincount(some, values[here] - reference[here])
            dots = tuple(sums[counts > 0] / counts[counts > 0])
            result.append(at | named | vars(summary) | {"dots": dots if len(dots) > 1 else ()})
    return result


def paired(
    rows: pd.DataFrame, against: str, columns: Sequence[str], on: Sequence[str] = tuple(PAIRED_ON)
) -> pd.DataFrame:
    """Rows that the model ``against`` (vanilla, oracle) was asked as well, with its ``columns`` as ``.._reference``."""
    reference = rows.loc[is_model(rows, against), [*on, *columns]].drop_duplicates(list(on))
    return rows.merge(reference, on=list(on), suffixes=("", "_reference"))
