"""Multiple choice, scored twice: by the letter the model writes and by the option it finds likeliest (docs/scoring.md,
"Multiple choice", "Distances to the oracle")."""

from collections.abc import Callable, Sequence
from functools import partial
from math import nan

import numpy as np
import pandas as pd
from scipy.special import expit

from mllmu_nb.data.schema import LETTERS, OPTIONS
from mllmu_nb.scoring.frames import REPLICATE
from mllmu_nb.scoring.registry import NO_PAIR, NotMeasured, metric
from mllmu_nb.statistics.intervals import Bounds, Interval
from mllmu_nb.statistics.samples import jackknife, jensen_shannon, jensen_shannon_by_chance, ks

INDEX_OF_LETTER = {letter: place for place, letter in enumerate(LETTERS)}
LETTER = {"task": "classification", "scoring": "letter"}
LIKELIHOOD = {"task": "classification", "scoring": "likelihood"}
ACCURACY = {"column": "correct", "margin": 0.1, "main": True}


@metric("accuracy", label="Letter %", **ACCURACY, **LETTER)
def letter_accuracy(items: pd.DataFrame) -> pd.Series:
    return (letters(items) == items["answer_true"]).astype(float)


@metric("parse_failure", label="No letter %", margin=0.1, knowledge=0, **LETTER)
def parse_failure(items: pd.DataFrame) -> pd.Series:
    return (letters(items) == "").astype(float)


@metric("accuracy", label="Likelihood %", by_fact=True, **ACCURACY, **LIKELIHOOD)
def likelihood_accuracy(items: pd.DataFrame) -> pd.Series:
    return (likeliest(items) == items["answer_true"]).astype(float)


@metric("consistency", label="Consistent %", knowledge=0, optional=True, margin=0.1, **LETTER)
def consistency(items: pd.DataFrame) -> pd.Series:
    """1 if the answers in all orders name the same option, else 0; NaN for a question asked in only one order."""
    # order n moves the options up by n places: take the option's place in order 0 (NaN if the answer names none)
    option = (letters(items).map(INDEX_OF_LETTER).astype(float) + items["order"]) % len(LETTERS)
    questions = option.groupby([items["run"], items["set"], items["question_id"]])
    same = (questions.transform("nunique") == 1) & (questions.transform("count") == questions.transform("size"))
    return same.astype(float).where(questions.transform("size") > 1)


@metric("truth_ratio", label="R / (1 + R)", times=1, digits=2, knowledge=-1, margin=0.1, table="quality", **LIKELIHOOD)
def truth_ratio(items: pd.DataFrame) -> pd.Series:
    rows = items[items["answer_true"].isin(LETTERS)]
    right = rows["answer_true"].map(INDEX_OF_LETTER)
    logs = log_truth_ratio(rows[list(OPTIONS)].to_numpy(float), right.to_numpy(int))
    return pd.Series(expit(logs), rows.index).reindex(items.index)


def log_truth_ratio(likelihoods: np.ndarray, right: np.ndarray | int) -> np.ndarray:
    """Return log R [..]: the mean of ``likelihoods`` over the wrong options minus that of the right one.
    ``likelihoods`` [.., options] are mean log-likelihoods per token; ``right`` [..] is the right option's index."""
    likelihoods, shape, options = np.asarray(likelihoods, float), np.shape(right), np.shape(likelihoods)[-1]
    is_right = np.arange(options) == np.asarray(right)[..., None]
    return likelihoods[~is_right].reshape(*shape, options - 1).mean(-1) - likelihoods[is_right].reshape(shape)


def distance(ours: Sequence, theirs: Sequence, function: Callable[..., float], bounds: Bounds | None) -> Interval:
    """Return ``function(model's truth ratios, oracle's, people)`` over the questions with a ratio from both models;
    within ``bounds``, if given, an interval over several replicates."""
    columns, pairs = ["truth_ratio", "person", *REPLICATE], []
    for run, oracle in zip(ours, theirs, strict=True):
        if oracle is not None:
            ratios = oracle.set_index("question_id")["truth_ratio"]
            pairs.append(run[columns].assign(truth_ratio_oracle=run["question_id"].map(ratios)).dropna())
    if not any(map(len, pairs)):
        raise NotMeasured(NO_PAIR.format("oracle"))
    both = pd.concat(pairs)
    samples = [both[name].to_numpy() for name in ("truth_ratio", "truth_ratio_oracle", "person")]
    ends = nan, nan
    if bounds:
        ends = np.clip(jackknife(function, samples, both.groupby(REPLICATE).ngroup().to_numpy()), *bounds).tolist()
    return Interval(function(*samples), *ends, len(both), both["person"].nunique())


# name, label, digits, bounds, and a function of two samples and the person of each question
for _name, _label, _digits, _bounds, _function in (
    ("ks", "KS", 2, (0, 1), lambda ours, theirs, people: ks(ours, theirs)[0]),
    ("ks_log10_p", "log10 p", 1, (-300, 0), lambda ours, theirs, people: ks(ours, theirs)[1]),
    ("js", "JS", 2, (0, 1), lambda ours, theirs, people: jensen_shannon(ours, theirs)),
    ("js_chance", "JS by chance", 2, (0, 1), jensen_shannon_by_chance),
):
    _printed = {"label": _label, "digits": _digits, "times": 1, "table": "quality", "sets": ("forget",)}
    _register = metric(_name, per="pair", bounds=_bounds, gate_of="truth_ratio", **_printed, **LIKELIHOOD)
    _register(partial(distance, function=_function, bounds=_bounds if _name in ("ks", "js") else None))


def letters(items: pd.DataFrame) -> pd.Series:
    """The letter that each answer gives: its first character, or "" if this is not the letter of an option."""
    first = items["answer"].str.strip().str[:1].str.upper()
    return first.where(first.isin(LETTERS), "")


def likeliest(items: pd.DataFrame) -> pd.Series:
    """The letter of the most likely option (the first one in a tie); "" if an option has no finite likelihood."""
    table = items[list(OPTIONS)].to_numpy(float)
    best = np.array(LETTERS)[table.argmax(axis=1)]
    return pd.Series(np.where(np.isfinite(table).all(axis=1), best, ""), items.index)
