"""Forget quality: is the model like one that never saw these people, or does it only answer wrongly?

A wrong answer can hide knowledge, so here nothing is asked: it is measured how likely the model finds the truth, and
each measure is set beside the oracle's, since the oracle is how a model looks that has nothing to forget. Per method,
trained modality and view asked with, about the forget people:

- **Truth ratio** R of a multiple-choice question: the geometric mean over the wrong options of p(option)^(1/tokens),
  divided by the same of the right one (TOFU's own table has the arithmetic mean). Printed as R / (1 + R): near 0 the
  model knows the truth, at 1/2 it finds it as likely as a wrong option. Kolmogorov and Smirnov's test sets the values
  of all questions against the oracle's; its p takes questions for independent, which those about one person are not.
  The Jensen-Shannon distance (base 2, 0 to 1) is that of histograms in BINS equal bins of R / (1 + R); distances below
  ``js_chance`` come out in 95 % of draws when it is left to chance, person by person, which of the two models is which.
- **Exact memorisation**: share of a taught answer's tokens that are the model's first choice when it reads the answer.
  **Extraction strength**: the share of the answer, counted from its end, that is right without a break.
- **Membership inference**: can one tell the forget people's sentences from those of fresh people, who are in no
  training set? Scores of a sentence, higher where it is likelier known: LOSS (mean log p of a token), zlib (that, by
  the bytes of the compressed sentence), Min-K % (mean of the K % least likely tokens, K = 20), Min-K++ (the same of
  standardised log p). AUC: how often a forget sentence scores above a fresh one, 1/2 for the oracle but for chance.
  TPR: forget sentences found when 1 or 5 % of fresh ones are taken for known; 1 % needs NEGATIVES of them.

Models of several forget sets are compared each with its own fresh sentences and its own oracle; then all pairs of
sentences count alike. Intervals of AUC resample forget people and fresh people, both with all their sentences.

**Gate and verdict**, per measure and view. A measure says something about forgetting only where vanilla knows more by
it than the oracle: the gate is open where the interval of vanilla minus oracle lies above 0 (of the truth ratio:
below). KS and JS have the gate of the truth ratio, a TPR that of its AUC. The verdict is that of the gap table: = where
the interval of the difference to the oracle lies within the margin, ≠ outside of it, ? neither. Margins: those of
:attr:`Measure.margin`, 10 points; log p has no ends that would give one a meaning.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from math import inf, log10, nan
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from scipy.spatial.distance import jensenshannon
from scipy.special import expit
from scipy.stats import ks_2samp
from scipy.stats import t as student
from sklearn.metrics import roc_curve
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.data.schema import LETTERS
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.evaluation.statistics import Interval
from mllmu_nb.reporting import GROUP, VIEWS, Measure, Run, gates, label, models_in_order, persons
from mllmu_nb.reporting.figures import CLOSED, INK, PAGE, PALE, SMALL, Written, look, put, styled, together
from mllmu_nb.reporting.tables import (
    COLLAPSED,
    VERDICTS,
    Numbers,
    Sheet,
    blocks,
    bracketed,
    group_title,
    latex_label,
    write_sheets,
    written,
)

BINS = 10
MIN_K = 0.2
NEGATIVES = 300  # below, 1 % of them are fewer than three sentences
RESAMPLES = 2000
AT_END = 0.5  # people's worth of pairs on the wrong side, below which an area is close to its end
LEAST = float(np.finfo(np.float16).min)  # what is below is kept as -inf
TINY = 1e-300  # a p below is written as this one
ATTACKS = {"loss": "LOSS", "zlib": "zlib", "min_k": "Min-K %", "min_k_pp": "Min-K++"}
LEVELS = {"tpr_1": 0.01, "tpr_5": 0.05}

TRUTH = Measure("R / (1 + R)", "classification", "likelihood", "truth_ratio", 1, 2)
EXACTLY = Measure("Exact mem. %", "taught", "", "exact_memorisation", 100, 1)
STRENGTH = Measure("Extraction %", "taught", "", "extraction_strength", 100, 1)
LOG_P = Measure("log p", "taught", "", "loss", 1, 2)
AUCS = tuple(Measure(name, "taught", "", f"auc_{key}", 1, 2) for key, name in ATTACKS.items())
KS = Measure("KS", "classification", "likelihood", "ks", 1, 2)
KS_P = Measure("log10 p", "classification", "likelihood", "ks_log10_p", 1, 1)
JS = Measure("JS", "classification", "likelihood", "js", 1, 2)
JS_CHANCE = Measure("JS by chance", "classification", "likelihood", "js_chance", 1, 2)
TPRS = tuple(Measure(f"at {100 * x:g} %", "taught", "", f"{key}_loss", 100, 0) for key, x in LEVELS.items())
COLUMNS = ["base_model", "protocol", "forget_ratio", "method", "variant", "modality", "view", "metric"]
COLUMNS += ["value", "low", "high", "to_oracle", "to_oracle_low", "to_oracle_high", "margin", "verdict", "gate"]
COLUMNS += ["n_items", "n_profiles", "note"]
MARGIN_NOTE = "10 points of a share, 0.1 of R / (1 + R) and AUC"
JUDGED = {measure.metric: measure for measure in (TRUTH, EXACTLY, STRENGTH, *AUCS)}
GATE_OF = dict.fromkeys((m.metric for m in (KS, KS_P, JS, JS_CHANCE)), TRUTH.metric)  # without intervals of their own
GATE_OF |= {f"{kind}_{attack}": f"auc_{attack}" for kind in LEVELS for attack in ATTACKS}
SHOWN = (TRUTH, STRENGTH, AUCS[0])  # in the figure
NOTHING = Interval(nan, nan, nan, 0, 0)


# One question, one sentence


def log_truth_ratio(likelihoods: Sequence[float], right: int) -> float:
    """log R of one question from the mean log-likelihoods per token of its options, ``right`` being the true one's."""
    return float(np.delete(np.asarray(likelihoods, float), right).mean() - likelihoods[right])


def exact_memorisation(right: np.ndarray) -> float:
    """The share of tokens [tokens] that were the first choice."""
    return float(np.mean(right))


def extraction_strength(right: np.ndarray) -> float:
    """1 − k/n, k the fewest of n tokens after which all are the first choice: 0 where not even the last is."""
    wrong = np.flatnonzero(~np.asarray(right, bool))
    return 1 - (wrong[-1] + 1) / len(right) if len(wrong) else 1.0


def least(values: np.ndarray, share: float = MIN_K) -> float:
    """The mean of the ``share`` smallest values, rounded down, but of one at least."""
    return float(np.sort(_finite(values))[: max(1, int(share * len(values)))].mean())


def _finite(values: np.ndarray) -> np.ndarray:
    """The values of tokens in full precision, those beyond the half precision they were kept in at its end."""
    return np.maximum(np.asarray(values, float), LEAST)


def truth_ratios(items: pd.DataFrame) -> pd.DataFrame:
    """The forget set's questions asked by likelihood, with ``truth_ratio`` R / (1 + R) and ``person``."""
    needed = {"answer_true", *(f"option_{letter}" for letter in LETTERS)}
    if not needed <= set(items):
        items = items.head(0).reindex(columns=[*items.columns, *needed])
    chosen = items[(items["set"] == "forget") & (items["task"] == "classification")]
    chosen = chosen[(chosen["scoring"] == "likelihood") & chosen["answer_true"].isin(LETTERS)]
    options = chosen[[f"option_{letter}" for letter in LETTERS]].to_numpy(float)
    rights = [LETTERS.index(letter) for letter in chosen["answer_true"]]
    logs = np.array([log_truth_ratio(row, right) for row, right in zip(options, rights, strict=True)], float)
    return chosen.assign(truth_ratio=expit(logs), person=persons)


def scored_sentences(run: Run) -> pd.DataFrame:
    """The run's taught sentences with memorisation and the scores of ATTACKS; empty without tokens.parquet."""
    if run.tokens is None:
        return pd.DataFrame(columns=["question_id", "member", "view", "person"])
    told = run.tokens
    loss = told["log_probs"].map(lambda values: float(_finite(values).mean()))
    return told.assign(
        person=f"{run['data_seed']}:" + told["profile"],
        exact_memorisation=told["right"].map(exact_memorisation),
        extraction_strength=told["right"].map(extraction_strength),
        loss=loss,
        zlib=loss / told["zlib_bytes"],
        min_k=told["log_probs"].map(least),
        min_k_pp=told["spread"].map(least),
    ).drop(columns=["log_probs", "right", "spread"])


# Two models


def ks(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Kolmogorov and Smirnov's statistic of two samples and log10 of its p."""
    found = ks_2samp(ours, theirs)
    return float(found.statistic), log10(max(float(found.pvalue), TINY))


def jensen_shannon(ours: np.ndarray, theirs: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """The distance of two histograms over [0, 1], and what it stays below by chance in 95 % of draws.

    All three are [questions]; for a draw the two models change places for about half of the ``people``.
    """
    codes = pd.factorize(people)[0]
    edges = np.linspace(0, 1, BINS + 1)
    a, b = (np.histogram2d(codes, v, [np.arange(codes.max() + 2), edges])[0] for v in (ours, theirs))
    swapped = np.random.default_rng(0).integers(2, size=(RESAMPLES, len(a))).astype(float)
    chance = jensenshannon(a.sum(0) + swapped @ (b - a), b.sum(0) + swapped @ (a - b), base=2, axis=1)
    return float(jensenshannon(a.sum(0), b.sum(0), base=2)), float(np.quantile(chance, 0.95))


class Pairs:
    """Forget sentences against fresh ones of the same model, person by person.

    ``higher`` and ``count`` [forget people, fresh people]: in how many pairs of sentences the forget one scores higher
    (half for a tie), and how many there are. ``parts`` are sentences of one model each.
    """

    def __init__(self, parts: Sequence[pd.DataFrame], attack: str):
        known = pd.concat([part[["member", "person"]] for part in parts])
        people = [np.unique(known.loc[known["member"] == m, "person"].to_numpy(str)) for m in ("forget", "fresh")]
        self.higher, self.count = np.zeros((2, *map(len, people)))
        for part in parts:
            sides = [part[part["member"] == m] for m in ("forget", "fresh")]
            ours, fresh = (side[attack].to_numpy() for side in sides)
            whose, other = (p[:, None] == s["person"].to_numpy(str) for p, s in zip(people, sides, strict=True))
            above = (ours[:, None] > fresh) + 0.5 * (ours[:, None] == fresh)
            self.higher += whose @ above @ other.T.astype(float)
            self.count += np.outer(whose.sum(1), other.sum(1))

    def auc(self) -> tuple[float, float, float]:
        """The area with its interval. Close to its end few people speak against it, and resampling them says too
        little of those who are not there: it is as wide as Wilson's on so many people as the smaller side has."""
        value, draws = self.higher.sum() / self.count.sum(), self._drawn(self.higher)
        people = min(self.count.shape)
        ends = [] if np.isnan(found := self._around(value, draws, 0)).any() else [found]
        if not ends or self._at_end():
            ends.append(proportion_confint(value * people, people, method="wilson"))
        return value, *_widest(value, ends)

    def minus(self, other: Pairs) -> tuple[float, float, float]:
        """The difference to the area of another model, read about the same people, with its paired interval.

        Where it has no spread or both areas are close to an end: at least as wide as their own intervals make it.
        """
        value = (self.higher - other.higher).sum() / self.count.sum()
        found = self._around(value, self._drawn(self.higher - other.higher), -1)
        ends = [] if np.isnan(found).any() else [found]
        if not ends or (self._at_end() and other._at_end()):  # MOVER, as in statistics.paired_difference
            (a, a_low, a_high), (b, b_low, b_high) = self.auc(), other.auc()
            ends.append((value - np.hypot(a - a_low, b_high - b), value + np.hypot(a_high - a, b - b_low)))
        return value, *_widest(value, ends)

    def _at_end(self) -> bool:
        share = self.higher.sum() / self.count.sum()
        return bool(min(self.count.shape) * min(share, 1 - share) < AT_END)

    def _around(self, value: float, draws: np.ndarray, lowest: float) -> np.ndarray:
        """The interval that the draws make: their percentiles, or with few people Student's t on their spread, inside
        ``lowest`` to 1. NaN for one person and without a spread."""
        people = min(self.count.shape)
        if people < 2 or np.ptp(draws) < 1e-9:
            return np.array([nan, nan])
        if people >= statistics.FEW_PEOPLE:
            return np.quantile(draws, [0.025, 0.975])
        reach = student.ppf(0.975, people - 1) * draws.std(ddof=1)
        return np.clip([value - reach, value + reach], lowest, 1)

    def _drawn(self, sums: np.ndarray) -> np.ndarray:
        ours, fresh = (_resampled(n, seed) for seed, n in enumerate(sums.shape))
        return ((ours @ sums) * fresh).sum(1) / ((ours @ self.count) * fresh).sum(1)


def _widest(value: float, intervals: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Ends that hold every one of some intervals, and the value."""
    lows, highs = zip(*intervals, strict=True)
    return float(min(value, *lows)), float(max(value, *highs))


def _resampled(people: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=RESAMPLES)
    return drawn.astype(float)


def tpr(parts: Sequence[pd.DataFrame], attack: str, level: float) -> float:
    """Share of forget sentences found where at most ``level`` of the fresh ones are, each model by its own bar."""
    found = []
    for part in parts:
        known = part["member"] == "forget"
        false, true, _ = roc_curve(known, part[attack], drop_intermediate=False)
        found.append((true[false <= level].max() * known.sum(), known.sum()))
    return float(np.divide(*np.sum(found, axis=0)))


# All models


def measured(known: Numbers) -> pd.DataFrame:
    """Every measure of every model and view: COLUMNS, ``note`` saying why a value is empty."""
    rows = []
    for key, part in known.groups():
        sentences = {run.id: scored_sentences(run) for run in part.runs}
        ratios = {run.id: truth_ratios(run.items) for run in part.runs}
        oracles = {_place(run): run for run in part.runs if run["method"] == "oracle"}
        for model in models_in_order((r["method"], r["variant"], r["modality"]) for r in part.runs):
            mine = [r for r in part.runs if (r["method"], r["variant"], r["modality"]) == model]
            pairs = [(run, oracles.get(_place(run))) for run in mine]
            for view in VIEWS:
                at = dict(zip(COLUMNS[:7], (*key, *model, view), strict=True))
                found = _choices(pairs, ratios, view) + _taught(pairs, sentences, view)
                rows += [at | row | _judged(row) for row in found]
    return _with_gate(pd.DataFrame(rows, columns=COLUMNS))


def _judged(row: dict) -> dict:
    """The margin of a measure that has one, and whether the interval of the difference to the oracle keeps to it."""
    measure = JUDGED.get(row["metric"])
    if measure is None:
        return {"margin": nan, "verdict": ""}
    gap = Interval(*(row[f"to_oracle{end}"] for end in ("", "_low", "_high")), row["n_items"], row["n_profiles"])
    said = "" if np.isnan(gap.value) else statistics.equivalence(gap, measure.margin)
    return {"margin": measure.margin, "verdict": said}


def _with_gate(found: pd.DataFrame) -> pd.DataFrame:
    """``found`` with each row's ``gate``: open, closed, or "" where vanilla or the oracle lacks the measure."""
    keys = [*GROUP, "view", "metric"]
    vanilla = found[(found["method"] == "vanilla") & found["to_oracle"].notna()].set_index(keys)
    knows = (vanilla["to_oracle_low"] > 0).where(
        vanilla.index.get_level_values("metric") != TRUTH.metric, vanilla["to_oracle_high"] < 0
    )
    states = knows.map({True: gates.OPEN, False: gates.CLOSED}).to_dict()
    asked = found.assign(metric=found["metric"].replace(GATE_OF))[keys].itertuples(index=False, name=None)
    return found.assign(gate=[states.get(place, "") for place in asked])


def told(found: pd.DataFrame, measures: Sequence[Measure], how: str = "In brackets") -> str:
    """What stands below a table or figure of ``found`` (rows of :func:`measured` of one GROUP): ``how`` the measures
    behind a closed gate look, and which they are; "" where all of them are open."""
    metrics = [measure.metric for measure in measures]
    gated = found[(found["gate"] != "") & found["metric"].isin(metrics)]
    if gated.empty:
        return "Without vanilla and the oracle nobody can say whether there was something to forget."
    closed = set(gated.loc[gated["gate"] == gates.CLOSED, ["metric", "view"]].itertuples(index=False, name=None))
    names = []
    for measure in measures:
        views = [asked_with for view, asked_with in VIEWS.items() if (measure.metric, view) in closed]
        if views:
            name = f"AUC by {measure.label}" if measure in AUCS else measure.label.removesuffix(" %")
            names.append(name if len(views) == len(VIEWS) else f"{name} ({', '.join(views)})")
    if not names:
        return ""
    return (
        f"{how}: gate closed, by this measure vanilla knows no more about the forget people than the oracle, so "
        f"nothing shows that there was something to forget: {', '.join(names)}."
    )


def _place(run: Run) -> tuple:
    return run["forget_draw"], run["data_seed"], run["train_seed"]


def _row(metric: str, found: Interval = NOTHING, gap: Interval = NOTHING, note: str = "") -> dict:
    gaps = {"to_oracle": gap.value, "to_oracle_low": gap.low, "to_oracle_high": gap.high}
    return {"metric": metric, **vars(found), **gaps, "note": note}


def _choices(pairs: list[tuple[Run, Run | None]], ratios: dict[str, pd.DataFrame], view: str) -> list[dict]:
    name = _name(pairs)
    asked = pd.concat([ratios[run.id] for run, _ in pairs])
    asked = asked[asked["view"] == view]
    if asked.empty:
        note = f"{name} was asked no choices by likelihood."
        return [_row(m.metric, note=note) for m in (TRUTH, KS, KS_P, JS, JS_CHANCE)]
    value = statistics.interval(asked["truth_ratio"], asked["person"])
    both = _beside(pairs, ratios, view)
    if both.empty:
        note = "It is the oracle." if name == label("oracle") else f"No oracle was asked the questions of {name}."
        return [_row("truth_ratio", value), *(_row(m.metric, note=note) for m in (KS, KS_P, JS, JS_CHANCE))]
    ours, theirs = both["truth_ratio"].to_numpy(), both["truth_ratio_oracle"].to_numpy()
    gap = statistics.paired_difference(ours, theirs, both["person"])
    found = (*ks(ours, theirs), *jensen_shannon(ours, theirs, both["person"].to_numpy()))
    counts = value.n_items, value.n_profiles
    alone = [Interval(number, nan, nan, *counts) for number in found]
    metrics = (m.metric for m in (KS, KS_P, JS, JS_CHANCE))
    return [_row("truth_ratio", value, gap), *(_row(m, one) for m, one in zip(metrics, alone, strict=True))]


def _taught(pairs: list[tuple[Run, Run | None]], sentences: dict[str, pd.DataFrame], view: str) -> list[dict]:
    attacks = [f"{kind}_{attack}" for kind in ("auc", *LEVELS) for attack in ATTACKS]
    kept = ("exact_memorisation", "extraction_strength", *ATTACKS)
    pairs = [(run, oracle) for run, oracle in pairs if len(sentences[run.id])] or pairs
    parts = [part[part["view"] == view] for part in (sentences[run.id] for run, _ in pairs)]
    ours = pd.concat([part[part["member"] == "forget"] for part in parts])
    if ours.empty:
        note = "The run kept no tokens.parquet, as those of earlier versions."
        return [_row(metric, note=note) for metric in (*kept, *attacks)]
    both = _beside(pairs, sentences, view)
    rows = []
    for metric in kept:
        endless = metric in ATTACKS
        value = (_endless if endless else statistics.interval)(ours[metric], ours["person"])
        gap = NOTHING
        if len(both):
            a, b, people = (both[column] for column in (metric, f"{metric}_oracle", "person"))
            gap = _endless(a - b, people) if endless else statistics.paired_difference(a, b, people)
        rows.append(_row(metric, value, gap))
    return rows + _attacked(pairs, sentences, view, parts)


def _endless(values: pd.Series, people: pd.Series) -> Interval:
    """Mean of scores that have no ends [items] with its interval over ``people`` [items].

    Without a spread between people (or with one person) there is nothing to make an interval of: its ends are NaN.
    """
    means = values.groupby(people.to_numpy()).mean()
    if np.ptp(means) < 1e-9:
        return Interval(float(values.mean()), nan, nan, len(values), len(means))
    return statistics.interval(values, people, bounds=(-inf, inf))


def _attacked(pairs, sentences, view: str, parts: list[pd.DataFrame]) -> list[dict]:
    fewest = min((part["member"] == "fresh").sum() for part in parts)
    if not fewest:
        note = "There are no people of the same kind whom nobody was taught: only the difference to the oracle is told."
        return [_row(f"{kind}_{attack}", note=note) for kind in ("auc", *LEVELS) for attack in ATTACKS]
    theirs = [sentences[oracle.id] for run, oracle in pairs if oracle and oracle is not run]
    theirs = [part[part["view"] == view] for part in theirs]
    paired = len(theirs) == len(pairs) and all(map(len, theirs))
    rows = []
    for attack in ATTACKS:
        found = Pairs(parts, attack)
        counts = sum(map(len, parts)), sum(found.count.shape)
        gap = Interval(*found.minus(Pairs(theirs, attack)), *counts) if paired else NOTHING
        rows.append(_row(f"auc_{attack}", Interval(*found.auc(), *counts), gap))
        for kind, level in LEVELS.items():
            if kind == "tpr_1" and fewest < NEGATIVES:
                rows.append(_row(f"{kind}_{attack}", note=f"1 % needs {NEGATIVES} fresh sentences: {fewest} there."))
                continue
            value = tpr(parts, attack, level)
            gap = Interval(value - tpr(theirs, attack, level), nan, nan, *counts) if paired else NOTHING
            rows.append(_row(f"{kind}_{attack}", Interval(value, nan, nan, *counts), gap))
    return rows


def _beside(pairs, frames: dict[str, pd.DataFrame], view: str) -> pd.DataFrame:
    """What the runs and their oracles were both asked; the oracle's columns end in ``_oracle``."""
    found = []
    for run, oracle in pairs:
        if oracle is None or oracle is run or frames[oracle.id].empty:
            continue
        ours, theirs = (frames[one.id] for one in (run, oracle))
        ours = ours[(ours["view"] == view) & (ours.get("member", "forget") == "forget")]
        found.append(ours.merge(theirs, on="question_id", suffixes=("", "_oracle")))
    return pd.concat(found) if found else pd.DataFrame()


def _name(pairs) -> str:
    run = pairs[0][0]
    return label(run["method"], run["variant"], run["modality"])


# Table


def table(known: Numbers, found: pd.DataFrame | None = None) -> tuple[pd.DataFrame, list[Sheet]]:
    """The long frame of :func:`measured` and two sheets a group: the values, and what is left of them beside the
    oracle's."""
    found = measured(known) if found is None else found
    sheets = []
    for key, part in known.groups():
        here = found[(found[COLUMNS[:3]].astype(str) == [str(k) for k in key]).all(axis=1)]
        cells = {tuple(r[c] for c in COLUMNS[3:8]): r for r in here.to_dict("records")}
        title, first = group_title(key, part.runs), "Method, asked with"
        spans = [("Truth ratio", 5), ("Taught sentences", 2), ("Membership, AUC", 4), ("TPR by LOSS, %", 2)]
        printed = (TRUTH, KS, KS_P, JS, JS_CHANCE, EXACTLY, STRENGTH, *AUCS, *TPRS)
        sheet = Sheet(f"Forget quality: {title}", latex_label("quality", key), first, spans, _heads(printed))
        sheet.blocks = _blocks(key, part, cells, printed, ("value", "low", "high"))
        sheet.remarks = [
            "R / (1 + R): 0 where the truth is known, 1/2 where it is as likely as a wrong option (geometric mean). "
            f"KS, JS ({BINS} bins): distance to the oracle; a JS not above JS by chance says nothing, and p takes the "
            "questions about one person for independent. AUC: 1/2 where forget people look like fresh ones. ± is half "
            "the width of the 95 % interval over people.",
            *_warnings(part, here, (TRUTH, EXACTLY, STRENGTH, *AUCS)),
        ]
        sheets.append(sheet)
        spans = [("Truth ratio", 1), ("Taught sentences", 3), ("Membership, AUC", 4)]
        printed = (TRUTH, EXACTLY, STRENGTH, LOG_P, *AUCS)
        sheet = Sheet(
            f"Forget quality as difference to the oracle: {title}",
            latex_label("quality-to-oracle", key),
            first,
            spans,
            _heads(printed),
        )
        sheet.blocks = _blocks(key, part, cells, printed, ("to_oracle", "to_oracle_low", "to_oracle_high"))
        sheet.remarks = [
            "0: like a model that never saw these people. The same people and sentences, paired. ± is half the width "
            "of the 95 % interval over people. The interval lies within the margin "
            f"({MARGIN_NOTE}): =, as the oracle; outside of it: ≠, not as the oracle; neither: ?, undecided.",
            *_warnings(part, here, printed),
        ]
        sheets.append(sheet)
    return found, sheets


def _warnings(part: Numbers, here: pd.DataFrame, measures: Sequence[Measure]) -> list[str]:
    """The lines below a sheet: which gates are closed, and what ‡ means."""
    shut = told(here, measures)
    return [*([shut] if shut else []), *part.warnings(())]


def _heads(printed: Sequence[Measure]) -> list[str]:
    return [measure.label for measure in printed]


def _blocks(key, part: Numbers, cells: dict, printed: Sequence[Measure], columns: tuple[str, str, str]) -> list:
    signed = columns[0] == "to_oracle"
    found = []
    for heading, rows in blocks(part.runs):
        body = []
        for row in rows:
            if signed and row.method == "oracle":
                continue
            for view, asked_with in VIEWS.items():
                shown = []
                for measure in printed:
                    cell = cells.get((row.method, row.variant, row.modality, view, measure.metric))
                    text = written(*(cell[c] for c in columns), measure, signed) if cell else ""
                    if text and signed and cell["verdict"]:
                        text += f" {VERDICTS[cell['verdict']]}"
                    text = bracketed(text, cell["gate"]) if cell else ""
                    why = cell["note"] if cell else f"No run of {row.full_name} was found."
                    shown.append((text, "" if text else why or "No oracle of the same people was found."))
                body.append((f"{part.marked(key, row, row.name)}, {asked_with}", shown))
        found.append((heading, body))
    return found


# Figure


@styled
def figure(found: pd.DataFrame, collapsed: Collection[tuple] = ()) -> Figure:
    """How far each model is from the oracle in truth ratio, extraction strength and membership inference, by view.

    ``found``: rows of :func:`measured` of one base model, protocol and forget ratio; ``collapsed``: its models
    (method, variant, modality) that have and are marked. The band is the measure's margin.
    """
    titles = ("R / (1 + R)", "Extraction, points", "AUC by LOSS")
    gaps = found[found["metric"].isin(m.metric for m in SHOWN)].dropna(subset=["to_oracle", "to_oracle_low"])
    shown = [(m, title) for m, title in zip(SHOWN, titles, strict=True) if (gaps["metric"] == m.metric).any()]
    if not shown:
        raise KitError("the forget quality figure needs an oracle and another model asked about the same people")
    models = models_in_order(zip(gaps["method"], gaps["variant"], gaps["modality"], strict=True))
    names = [label(*model) + f" {COLLAPSED}" * (model in collapsed) for model in models]
    result = Figure(figsize=(PAGE, 1.0 + max(1.4, 0.17 * len(models)) * len(VIEWS)), layout="constrained")
    axes = result.subplots(len(VIEWS), len(shown), sharex="col", sharey=True, squeeze=False)
    for row, (view, asked_with) in enumerate(VIEWS.items()):
        for column, (measure, title) in enumerate(shown):
            panel = axes[row][column]
            cells = gaps[(gaps["metric"] == measure.metric) & (gaps["view"] == view)]
            cells = cells.set_index(["method", "variant", "modality"])
            ends = measure.margin * measure.times
            panel.axvspan(-ends, ends, color=PALE, alpha=0.6, linewidth=0, zorder=0)
            panel.axvline(0, color=INK, linewidth=0.7, zorder=1)
            panel.grid(axis="x", color=PALE, linewidth=0.4, zorder=0)
            for place, model in enumerate(models):
                if model in cells.index:
                    _gap(panel, place, cells.loc[model], measure, model)
            panel.set_yticks(range(len(models)), names)
            panel.tick_params(axis="y", length=0)
            if row == 0:
                panel.set_title(title)
        axes[row][0].set_ylabel(f"Asked with {asked_with}")
        axes[row][0].set_ylim(len(models) - 0.5, -0.5)
    key = "Difference to the oracle, which never saw these people (0)"
    if (gaps["gate"] == gates.CLOSED).any():
        key += ". Grey: gate closed, vanilla is not told from the oracle"
    result.supxlabel(key, fontsize=SMALL)
    seaborn.despine(result, left=True)
    return result


def _gap(panel, place: int, cell: pd.Series, measure: Measure, model: tuple[str, str, str]) -> None:
    value, low, high = (measure.times * cell[f"to_oracle{end}"] for end in ("", "_low", "_high"))
    colour, marker = look(model[0])
    colour = CLOSED if cell["gate"] == gates.CLOSED else colour
    panel.plot([low, high], [place, place], color=colour, linewidth=1.0, zorder=2)
    fill = "white" if model[2] == "unimodal" else colour
    panel.scatter([value], [place], s=20, marker=marker, facecolor=fill, edgecolor=colour, linewidth=1.0, zorder=3)
    sign = VERDICTS[cell["verdict"]]
    panel.text(1.03, place, sign, transform=panel.get_yaxis_transform(), va="center", fontsize=SMALL)


# Files

CAPTION = (
    "How far each model is from the oracle on the forget set (0: like a model that never saw these people): truth "
    "ratio, share of a taught answer that comes out without a break, membership inference. Filled: unlearned on image "
    "+ text; hollow: on text only. Bars: 95 % intervals over people. Band: the margin, "
    + MARGIN_NOTE
    + "; = the interval "
    "lies within it, ≠ outside, ? neither. ‡: collapsed."
)


def write_all(scale: str, known: Numbers, tables: Path, figures: Path) -> Written:
    """Write ``table_forget_quality`` into ``tables`` and a figure a group into ``figures``."""
    found, sheets = table(known)
    made = [Written(write_sheets({"table_forget_quality": (found, sheets)}, scale, tables), [])]
    for key, part in known.groups():
        stem = figures / latex_label("forget_quality", key).replace("-", "_")
        here = found[(found[COLUMNS[:3]].astype(str) == [str(k) for k in key]).all(axis=1)]
        caption = " ".join(filter(None, [CAPTION, told(here, SHOWN, "Grey")]))
        made.append(put(stem, caption, partial(figure, here, {model[3:] for model in part.collapsed})))
    return together(made)
