"""Multiple choice, scored twice: by the letter the model writes and by the option it finds likeliest.

``letter`` is upstream's: the answer's first character, upper-cased, if it is one of the options. Anything else is
wrong and is counted as a parse failure. ``likelihood`` takes the option with the highest mean log-likelihood per token.

Asked by letter in all cyclic orders of its options, a question also shows whether the model means an option or a
place: it is consistent where the same option is named in every order.

The truth ratio R of a question is the geometric mean over the wrong options of p(option)^(1/tokens), divided by the
same of the right one (Maini et al. 2024, who also use the arithmetic mean), given as R / (1 + R): near 0 the model
knows the truth, at 1/2 it finds it as likely as a wrong option.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit

from mllmu_nb.data.schema import LETTERS
from mllmu_nb.scoring.registry import metric

OPTIONS = tuple(f"option_{letter}" for letter in LETTERS)
PLACES = {letter: place for place, letter in enumerate(LETTERS)}
TEXTS = tuple(f"option_text_{letter}" for letter in LETTERS)
LETTER = {"task": "classification", "scoring": "letter"}
LIKELIHOOD = {"task": "classification", "scoring": "likelihood"}


@metric("accuracy", label="Letter %", column="correct", margin=0.1, main=True, **LETTER)
def letter_accuracy(items: pd.DataFrame) -> pd.Series:
    return (letters(items) == items["answer_true"]).astype(float)


@metric("parse_failure", label="No letter %", margin=0.1, knowledge=0, **LETTER)
def parse_failure(items: pd.DataFrame) -> pd.Series:
    return (letters(items) == "").astype(float)


@metric("accuracy", label="Likelihood %", column="correct", margin=0.1, main=True, by_fact=True, **LIKELIHOOD)
def likelihood_accuracy(items: pd.DataFrame) -> pd.Series:
    return (likeliest(items) == items["answer_true"]).astype(float)


@metric("consistency", label="Consistent %", knowledge=0, optional=True, margin=0.1, **LETTER)
def consistency(items: pd.DataFrame) -> pd.Series:
    """1 where one option is named in all four orders, else 0; NaN for a question asked in one order only."""
    # order n moves the options up by n places; this is the place in order 0, NaN where no option is named
    option = (letters(items).map(PLACES).astype(float) + items["order"]) % counts(items)
    questions = option.groupby([items["run"], items["set"], items["question_id"]])
    same = (questions.transform("nunique") == 1) & (questions.transform("count") == questions.transform("size"))
    return same.astype(float).where(questions.transform("size") > 1)


@metric("truth_ratio", label="R / (1 + R)", times=1, digits=2, knowledge=-1, margin=0.1, table="quality", **LIKELIHOOD)
def truth_ratio(items: pd.DataFrame) -> pd.Series:
    rows = items[items["answer_true"].isin(LETTERS)]
    right = rows["answer_true"].map(PLACES)
    logs = [log_truth_ratio(*row) for row in zip(rows[list(OPTIONS)].to_numpy(float), right, strict=True)]
    return pd.Series(expit(np.array(logs, float)), rows.index).reindex(items.index)


def log_truth_ratio(likelihoods: np.ndarray, right: int) -> float:
    """log R of one question from the mean log-likelihoods per token of its options, ``right`` being the true one's."""
    likelihoods = np.asarray(likelihoods, float)
    return float(np.delete(likelihoods, right).mean() - likelihoods[right])


def letters(items: pd.DataFrame) -> pd.Series:
    """The letter each answer gives, or "" when its first character is none of the question's letters."""
    first = items["answer"].str.strip().str[:1].str.upper()
    return first.where(first.map(PLACES).astype(float) < counts(items), "")


def likeliest(items: pd.DataFrame) -> pd.Series:
    """The letter of the likeliest option (the first of equals); "" where an option has no finite likelihood, as those
    of a model that diverged."""
    table, there = items[list(OPTIONS)].to_numpy(float), np.arange(len(OPTIONS)) < counts(items).to_numpy()[:, None]
    best = np.where(there, table, -np.inf).argmax(axis=1)
    known = (np.isfinite(table) | ~there).all(axis=1)
    return pd.Series(np.where(known, np.array(LETTERS)[best], ""), items.index)


def counts(items: pd.DataFrame) -> pd.Series:
    """How many options each question has: those with a text, or four where the texts are not there."""
    if not set(TEXTS) <= set(items):
        return pd.Series(len(LETTERS), items.index)
    return (items[list(TEXTS)].fillna("") != "").sum(axis=1)


def parsed(items: pd.DataFrame) -> pd.Series:
    """Whether an option came out of each answer; true of answers to other tasks."""
    result = pd.Series(True, items.index)
    for scoring, choose in (("letter", letters), ("likelihood", likeliest)):
        rows = items[items["scoring"] == scoring]
        if len(rows):
            result[rows.index] = choose(rows) != ""
    return result
