"""Forget quality from taught sentences: how likely they are under a model (docs/scoring.md, "Taught sentences")."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf, nan

import numpy as np
import pandas as pd

from mllmu_nb.scoring.frames import REPLICATE, TAUGHT
from mllmu_nb.scoring.registry import NotMeasured, metric
from mllmu_nb.statistics.intervals import Interval, interval, paired_difference
from mllmu_nb.statistics.samples import Pairs, PerModel, Sample, hits

MIN_K = 0.2
NEGATIVES = 300  # with fewer, 1 % is less than three sentences
LEAST = float(np.finfo(np.float16).min)  # half precision stores smaller values as -inf
QUALITY = {"task": TAUGHT, "table": "quality", "sets": ("forget",)}
ENDLESS = QUALITY | {"bounds": (-inf, inf), "times": 1, "digits": 2}
LEVELS = {"tpr_1": 0.01, "tpr_5": 0.05}
Level = tuple[Interval, Interval | None]


@metric("exact_memorisation", label="Exact mem. %", margin=0.1, **QUALITY)
def exact_memorisation(sentences: pd.DataFrame) -> pd.Series:
    return _by_length(sentences["right"], lambda right: right.mean(1))


@metric("extraction_strength", label="Extraction %", margin=0.1, **QUALITY)
def extraction_strength(sentences: pd.DataFrame) -> pd.Series:
    return _by_length(sentences["right"], strength)


def loss(sentences: pd.DataFrame) -> pd.Series:
    return _by_length(sentences["log_probs"], lambda values: _finite(values).mean(1))


# attack → the label of its value, its own label, and its value for each sentence
ATTACKS = {
    "loss": ("log p", "LOSS", loss),
    "zlib": ("log p / byte", "zlib", lambda sentences: loss(sentences) / sentences["zlib_bytes"]),
    "min_k": ("Min-K %, log p", "Min-K %", lambda sentences: _by_length(sentences["log_probs"], least)),
    "min_k_pp": ("Min-K++", "Min-K++", lambda sentences: _by_length(sentences["spread"], least)),
}
for _attack, (_label, _, _value) in ATTACKS.items():
    metric(_attack, label=_label, **ENDLESS)(_value)


def _by_length(rows: pd.Series, function: Callable[[np.ndarray], np.ndarray]) -> pd.Series:
    """Apply ``function`` ([sentences, tokens] → [sentences]) to one array per sentence, once for each length."""
    result = np.full(len(rows), nan)
    for places in rows.groupby(rows.map(len).to_numpy()).indices.values():
        result[places] = function(np.stack(rows.to_numpy()[places]))
    return pd.Series(result, rows.index)


def strength(right: np.ndarray) -> np.ndarray:
    """1 − k/n for sentences [.., n]; k is the smallest number of tokens after which the first choice is right for all
    tokens. It is 0 if even the last token is wrong."""
    right = np.asarray(right, bool)
    from_the_end, length = np.cumprod(right[..., ::-1], axis=-1).sum(-1), right.shape[-1]
    return 1 - (length - from_the_end) / length


def least(values: np.ndarray) -> np.ndarray:
    """The mean of the smallest values of each sentence [.., tokens]: a share MIN_K, rounded down, but at least one."""
    return np.sort(_finite(values))[..., : max(1, int(MIN_K * values.shape[-1]))].mean(-1)


def _finite(values: np.ndarray) -> np.ndarray:
    """The values of tokens in full precision; values below the range of half precision become its smallest value."""
    return np.maximum(np.asarray(values, float), LEAST)


def auc(ours: Sequence[pd.DataFrame], theirs: Sequence[pd.DataFrame | None], attack: str) -> Level:
    """Area under the ROC curve of an attack, and its difference to the oracle's."""
    models, reference = _samples(ours, attack), _samples(theirs, attack)
    pairs = Pairs(models)
    difference = Interval(*pairs.minus(Pairs(reference)), *_counts(ours)) if reference else None
    return Interval(*pairs.auc(), *_counts(ours)), difference


def rate(ours: Sequence[pd.DataFrame], theirs: Sequence[pd.DataFrame | None], attack: str, level: float) -> Level:
    """True positive rate of an attack at a false positive rate, and its difference to the oracle's. The intervals take
    the thresholds, which the fresh sentences give, as fixed."""
    models, reference = _samples(ours, attack), _samples(theirs, attack)
    fewest = min(len(fresh.values) for _, fresh in models)
    if level == LEVELS["tpr_1"] and fewest < NEGATIVES:
        raise NotMeasured(f"1 % needs {NEGATIVES} fresh sentences: {fewest} there.")
    (values, who), number = hits(models, level), dict(zip(("n_items", "n_profiles"), _counts(ours), strict=True))
    over = {"profiles": who, "replicates": who if len(set(map(_replicate, ours))) > 1 else None}
    gap = paired_difference(values, hits(reference, level).values, **over) if reference else None
    return replace(interval(values, **over), **number), gap and replace(gap, **number)


def _counts(runs: Sequence[pd.DataFrame]) -> tuple[int, int]:
    """The number of sentences, forget and fresh, and the number of people in them."""
    people = {person for run in runs for person in zip(run["member"].tolist(), run["person"].tolist(), strict=True)}
    return sum(map(len, runs)), len(people)


def _replicate(run: pd.DataFrame) -> str:
    return ", ".join(str(run[name].iat[0]) for name in REPLICATE)


def _samples(runs: Sequence[pd.DataFrame | None], attack: str) -> PerModel:
    """Return the forget and the fresh sentences of each run; an empty list if a run is missing. With several
    replicates, the units on the forget side are the replicates: the fresh people are the same in all. Raises
    NotMeasured if there are no fresh sentences, or if a sentence has no value: it would lose against all others."""
    if any(run is None or run.empty for run in runs):
        return []
    models, replicates = [], list(map(_replicate, runs))
    for run, replicate in zip(runs, replicates, strict=True):
        order = np.argsort(run["question_id"].to_numpy(str), kind="stable")  # as in other models of the same people
        values, people, member = (run[name].to_numpy()[order] for name in (attack, "person", "member"))
        if len(set(replicates)) > 1:
            people = np.where(member == "forget", replicate, people)
        models.append(tuple(Sample(values[member == side], people[member == side]) for side in ("forget", "fresh")))
    if any(np.isnan(side.values).any() for sides in models for side in sides):
        raise NotMeasured("The model finds no likelihood for some sentences: it has diverged.")
    if not all(len(fresh.values) for _, fresh in models):
        raise NotMeasured(
            "There are no fresh people, whom no model was taught: only differences to the oracle are known."
        )
    return models


for _attack, (_, _label, _) in ATTACKS.items():
    _of_model = QUALITY | {"per": "model"}
    _area = metric(f"auc_{_attack}", label=_label, margin=0.1, times=1, digits=2, **_of_model)
    _area(partial(auc, attack=_attack))
    for _name, _level in LEVELS.items():
        _label = f"at {100 * _level:g} %"
        _rate = metric(f"{_name}_{_attack}", label=_label, digits=0, gate_of=f"auc_{_attack}", **_of_model)
        _rate(partial(rate, attack=_attack, level=_level))
