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
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import log10, nan
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp
from sklearn.metrics import roc_curve
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.data.schema import LETTERS
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.evaluation.statistics import Interval
from mllmu_nb.reporting import VIEWS, Measure, Run, label, models_in_order, persons
from mllmu_nb.reporting.figures import INK, PAGE, PALE, SMALL, look, save, styled
from mllmu_nb.reporting.tables import COLLAPSED, Numbers, Sheet, blocks, group_title, latex_label, write_sheets, written

BINS = 10
MIN_K = 0.2
NEGATIVES = 300  # below, 1 % of them are fewer than three sentences
RESAMPLES = 2000
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
COLUMNS += ["value", "low", "high", "to_oracle", "to_oracle_low", "to_oracle_high", "n_items", "n_profiles", "note"]
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
    return float(np.sort(np.asarray(values, float))[: max(1, int(share * len(values)))].mean())


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
    return chosen.assign(truth_ratio=1 / (1 + np.exp(-logs)), person=persons)


def scored_sentences(run: Run) -> pd.DataFrame:
    """The run's taught sentences with memorisation and the scores of ATTACKS; empty without tokens.parquet."""
    if run.tokens is None:
        return pd.DataFrame(columns=["question_id", "member", "view", "person"])
    told = run.tokens
    loss = told["log_probs"].map(lambda values: float(np.mean(values, dtype=float)))
    return told.assign(
        person=f"{run['data_seed']}:" + told["profile"],
        exact_memorisation=told["right"].map(exact_memorisation),
        extraction_strength=told["right"].map(extraction_strength),
        loss=loss,
        zlib=loss / told["zlib_bytes"],
        min_k=told["log_probs"].map(least),
        min_k_pp=told["spread"].map(least),
    )


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
        """The area with its interval. One without spread (all above, or all below) gets Wilson's on so many people as
        the smaller side has."""
        value, draws = self.higher.sum() / self.count.sum(), self._drawn(self.higher)
        if np.ptp(draws) > 0:
            return value, *np.quantile(draws, [0.025, 0.975])
        people = min(self.count.shape)
        return value, *proportion_confint(value * people, people, method="wilson")

    def minus(self, other: Pairs) -> tuple[float, float, float]:
        """The difference to the area of another model, read about the same people, with its paired interval."""
        value = (self.higher - other.higher).sum() / self.count.sum()
        draws = self._drawn(self.higher - other.higher)
        if np.ptp(draws) > 0:
            return value, *np.quantile(draws, [0.025, 0.975])
        (a, a_low, a_high), (b, b_low, b_high) = self.auc(), other.auc()  # MOVER, as in statistics.paired_difference
        return value, value - np.hypot(a - a_low, b_high - b), value + np.hypot(a_high - a, b - b_low)

    def _drawn(self, sums: np.ndarray) -> np.ndarray:
        ours, fresh = (_resampled(n, seed) for seed, n in enumerate(sums.shape))
        return ((ours @ sums) * fresh).sum(1) / ((ours @ self.count) * fresh).sum(1)


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
                rows += [at | row for row in found]
    return pd.DataFrame(rows, columns=COLUMNS)


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
        bounds = (-100.0, 100.0) if metric in ATTACKS else (0.0, 1.0)
        value = statistics.interval(ours[metric], ours["person"], bounds=bounds)
        gap = NOTHING
        if len(both):
            gap = statistics.paired_difference(both[metric], both[f"{metric}_oracle"], both["person"], bounds=bounds)
        rows.append(_row(metric, value, gap))
    return rows + _attacked(pairs, sentences, view, parts)


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
            *part.warnings(()),
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
            "0: like a model that never saw these people. The same people and sentences, paired.",
            *part.warnings(()),
        ]
        sheets.append(sheet)
    return found, sheets


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
    (method, variant, modality) that have and are marked.
    """
    measures = ((TRUTH, "R / (1 + R)"), (STRENGTH, "Extraction, points"), (AUCS[0], "AUC by LOSS"))
    gaps = found.dropna(subset=["to_oracle", "to_oracle_low"])
    shown = [(m, title) for m, title in measures if (gaps["metric"] == m.metric).any()]
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
            panel.axvline(0, color=INK, linewidth=0.7, zorder=1)
            panel.grid(axis="x", color=PALE, linewidth=0.4, zorder=0)
            for place, model in enumerate(models):
                if model in cells.index:
                    columns = ("to_oracle", "to_oracle_low", "to_oracle_high")
                    _gap(panel, place, [measure.times * cells.loc[model, c] for c in columns], model)
            panel.set_yticks(range(len(models)), names)
            panel.tick_params(axis="y", length=0)
            if row == 0:
                panel.set_title(title)
        axes[row][0].set_ylabel(f"Asked with {asked_with}")
        axes[row][0].set_ylim(len(models) - 0.5, -0.5)
    result.supxlabel("Difference to the oracle, which never saw these people (0)", fontsize=SMALL)
    seaborn.despine(result, left=True)
    return result


def _gap(panel, place: int, ends: list[float], model: tuple[str, str, str]) -> None:
    value, low, high = ends
    colour, marker = look(model[0])
    panel.plot([low, high], [place, place], color=colour, linewidth=1.0, zorder=2)
    fill = "white" if model[2] == "unimodal" else colour
    panel.scatter([value], [place], s=20, marker=marker, facecolor=fill, edgecolor=colour, linewidth=1.0, zorder=3)


# Files

CAPTION = (
    "How far each model is from the oracle on the forget set (0: like a model that never saw these people): truth "
    "ratio, share of a taught answer that comes out without a break, membership inference. Filled: unlearned on image "
    "+ text; hollow: on text only. Bars: 95 % intervals over people. ‡: collapsed."
)


def write_all(scale: str, known: Numbers, tables: Path, figures: Path) -> list[Path]:
    """Write ``table_forget_quality`` into ``tables`` and a figure a group, with its caption, into ``figures``."""
    found, sheets = table(known)
    paths = write_sheets({"table_forget_quality": (found, sheets)}, scale, tables)
    for key, part in known.groups():
        name = latex_label("forget_quality", key).replace("-", "_")
        here = found[(found[COLUMNS[:3]].astype(str) == [str(k) for k in key]).all(axis=1)]
        try:
            paths += save(figure(here, {model[3:] for model in part.collapsed}), figures / name)
            line = f"- `{name}`: {CAPTION}"
        except KitError as reason:
            line = f"- `{name}` is not drawn: {reason}."
        with open(figures / "captions.md", "a", encoding="utf-8") as captions:
            captions.write(line + "\n")
    return paths
