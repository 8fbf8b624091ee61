"""The columns of the frames of scores, and the join of answers with their questions; docs/scoring.md ("The frames")."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import LETTERS, Population

SEEDS = ["data_seed", "train_seed", "unlearn_seed", "shot_seed"]
GROUP = ["base_model", "protocol", "forget_ratio"]  # the same for all runs in one printed table
MODEL = ["method", "variant", "modality", "after"]
RUN = ["run", "scale", "base_model", "forget_ratio", "replicate", "method", "protocol", "variant", "modality"]
RUN += ["after", *SEEDS, "taught"]  # taught: a hash of everything that determines the run's vanilla model
CELL = ["set", "task", "view", "scoring"]
KEY = ["task", "scoring", "metric"]  # of a metric
PLACE = ["against", "set", "view", *KEY]  # together with the model, they identify a cell
LIKELIHOOD_KEY = ("classification", "likelihood", "accuracy")  # the metric that compares and judges methods
COUNTS = ["n_items", "n_profiles", "n_replicates"]
REPLICATE = ["data_seed", "replicate"]
PEOPLE = [*GROUP, *REPLICATE, "train_seed", "taught"]  # the same for models that learnt the same people in the same way
PAIRED_ON = [*PEOPLE, "set", "question_id"]  # the same question to two such models
# Parameters of asking: where models of a comparison differ in one, each is compared with one that was asked alike.
ASKED = ("shots", "shot_source", "draws_file", "cyclic", "scoring", "long_prompts", "eval_precision", "system")
VIEWS = {"image_text": "image + text", "text": "text"}
POOLED = "both"
ACROSS = "text - image"  # the view of scores that compare the two views, fact by fact
# Further columns of these frames, and of those that tables and figures make of them.
DERIVED = {*PLACE, *COUNTS, "value", "low", "high", "dots", "gate", "verdict", "note", "person", "margin", "times"}
DERIVED |= {"collapsed", "refuses", "why", "step", "measure", "score", "items", "place", "what", "of", "closed_in"}
DERIVED |= {"value_other", "model", "name", "look", "sign", "set_label", "view_label", "metric_label", "gap_label"}
TAUGHT = "taught"  # the task of metrics of taught sentences
IN_ANSWERS = ["profile", "task", "view", "number"]  # columns of questions that answers have already or do not need


def persons(rows: pd.DataFrame) -> pd.Series:
    """The person of each row: profile "007" of another data seed is another person, unless it is a celebrity."""
    profile = rows["profile"].astype(str)
    return profile.where(rows["set"] == "celebrity", rows["data_seed"].astype(str) + ":" + profile)


def is_model(rows: Any, method: str) -> pd.Series | bool:
    """Whether each row (or the single row or run) is of ``method``, with no step after training."""
    return (rows["method"] == method) & (rows["after"] == "")


def has(rows: pd.DataFrame, columns: Sequence[str], values: Sequence[Any]) -> np.ndarray:
    """Whether each row has these values in these columns. A value and its column may differ in type, for example if no
    run in ``rows`` has the parameter."""
    return np.logical_and.reduce([rows[name] == value for name, value in zip(columns, values, strict=True)])


def of_metric(items: pd.DataFrame, task: str, scoring: str) -> pd.DataFrame:
    """The answers to one task with one kind of scoring."""
    return items[(items["task"] == task) & (items["scoring"] == scoring)]


def people_frames(known: Population) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row per question and version (``plain``, or ``test`` as in the test set), and one row per fact."""
    questions = [
        {"version": version, "question_id": q.id}
        | {name: getattr(q, name) for name in (*IN_ANSWERS, "attribute")}
        | {"question": q.text, "answer_true": q.answer, "value": q.value}
        | {f"option_text_{letter}": text for letter, text in zip(LETTERS, q.options, strict=False)}
        for person in known.profiles.values()
        for version, asked in (("plain", person.questions), ("test", person.test_questions))
        for q in asked
    ]
    facts = [(p.id, p.kind, p.name, *fact) for p in known.profiles.values() for fact in p.attributes.items()]
    return pd.DataFrame(questions), pd.DataFrame(facts, columns=["profile", "kind", "name", "attribute", "value"])


def with_rivals(questions: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """What :func:`joined` adds to answers: the questions, with ``rivals``, the values that all people have for the
    attribute asked for."""
    values = {attribute: tuple(rows.unique()) for attribute, rows in facts.groupby("attribute")["value"]}
    rivals = [values.get(attribute, ()) for attribute in questions["attribute"]]
    return questions.drop(columns=IN_ANSWERS).assign(rivals=rivals)


def joined(answers: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Join ``answers`` with ``questions`` that :func:`with_rivals` has made; NaN if these lack one."""
    answers = answers.assign(version=answers["set"].eq("test").map({True: "test", False: "plain"}))
    rows = answers.merge(questions, on=["version", "question_id"], how="left", validate="many_to_one")
    return rows.drop(columns="version")
