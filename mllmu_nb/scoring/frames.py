"""Names of the columns that every frame of scores has, and who an answer is about; docs/scoring.md ("The frames")."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

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
TAUGHT = "taught"  # the task of a metric of sentences
REFERENCES = ("vanilla", "oracle")


def persons(rows: pd.DataFrame) -> pd.Series:
    """Who each row is about: profile "007" of another data seed is another person."""
    return rows["data_seed"].astype(str) + ":" + rows["profile"].astype(str)


def filled(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """``rows`` with "" for a parameter that a run does not have, so that it can be grouped by."""
    return rows.assign(**{column: rows[column].astype(object).where(rows[column].notna(), "") for column in by})


def is_model(rows: pd.DataFrame, method: str) -> pd.Series:
    """Whether each row is of ``method`` as it was trained, no step after it."""
    return (rows["method"] == method) & (rows["after"] == "")


def of_metric(items: pd.DataFrame, task: str, scoring: str) -> pd.DataFrame:
    """The answers to one task, scored in one way."""
    return items[(items["task"] == task) & (items["scoring"] == scoring)]
