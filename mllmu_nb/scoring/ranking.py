"""Ranks methods by what they keep at equal forgetting, and tests which of them differ (docs/scoring.md, "Ranking")."""

import itertools
from collections.abc import Mapping
from math import nan
from typing import NamedTuple

import pandas as pd
from statsmodels.stats.multitest import multipletests

from mllmu_nb.scoring.frames import GROUP, KEY, LIKELIHOOD_KEY, MODEL, REPLICATE, has
from mllmu_nb.scoring.gates import OPEN
from mllmu_nb.scoring.health import Unsound
from mllmu_nb.scoring.path import HALF, KEPT, TRAINED_VIEW, kept, of_sets, paired
from mllmu_nb.statistics.intervals import paired_p
from mllmu_nb.statistics.ranking import shared_letters

NEEDED = 3  # replicates
LEVEL = 0.05  # for all comparisons of a group together
SHUT = "Gate closed: vanilla is not shown to be above the oracle, so nothing shows that there was something to forget."
UNKNOWN = "Gate unknown: vanilla and the oracle were not asked by likelihood."
RANKED, UNSOUND, NEVER, FEWER, BEHIND_GATE = "ranked", "unsound", "never gets there", "fewer replicates", "gate closed"


class Ranking(NamedTuple):
    """``methods``: one row per ``trained`` modality and model: what it keeps with half the gap closed (``value``,
    ``low``, ``high``, ``dots``; ``n_replicates`` of ``of`` get there), ``standing``, ``place``, ``group`` (letters) and
    ``note``. ``pairs``: one row per comparison of two models ``a`` and ``b`` (MODEL as tuples) with ``p``, ``p_holm``
    and ``apart``. ``refused``: why nothing is ranked, else ""."""

    methods: pd.DataFrame
    pairs: pd.DataFrame
    refused: str


def ranking(of_people: pd.DataFrame, unsound: Mapping[tuple, Unsound], gates: pd.DataFrame) -> Ranking:
    """Rank the models of one GROUP by what they keep, within each trained modality. ``of_people`` are from
    :func:`~mllmu_nb.scoring.path.kept_by_person`; the keys of ``unsound`` are (GROUP, MODEL)."""
    rows = of_people[(of_people["place"] == HALF) & (of_people["what"] == KEPT)]
    count = len(rows[REPLICATE].drop_duplicates())
    if count < NEEDED:
        why = f"ranking needs {NEEDED} replicates, and there {'is' if count == 1 else 'are'} {count}"
        return Ranking(pd.DataFrame(), pd.DataFrame(), why if count else "there are no paths")
    methods = kept(rows)
    standings = [_standing(row, count, unsound, gates) for row in methods.to_dict("records")]
    methods = methods.assign(trained=methods["modality"]).join(pd.DataFrame(standings, columns=["standing", "note"]))
    pairs = pd.DataFrame(_comparisons(methods, rows), columns=["trained", "a", "b", "p"])
    pairs["p_holm"] = multipletests(pairs["p"].astype(float), method="holm")[1]
    pairs["apart"] = pairs["p_holm"] < LEVEL
    return Ranking(_placed(methods, pairs), pairs, "")


def _standing(row: Mapping, count: int, unsound: Mapping[tuple, Unsound], gates: pd.DataFrame) -> tuple[str, str]:
    """Return the standing of a model, and a note why it is not ranked ("" if it is)."""
    group, model = ([row[column] for column in columns] for columns in (GROUP, MODEL))
    at = [*group, *LIKELIHOOD_KEY, TRAINED_VIEW[row["modality"]]]
    gate = gates.loc[has(gates, [*GROUP, *KEY, "view"], at), "gate"]
    if bad := unsound.get((*group, *model)):
        return UNSOUND, f"{bad.why[0].upper()}{bad.why[1:]}."
    if gate.empty:
        return BEHIND_GATE, UNKNOWN
    if gate.iloc[0] != OPEN:
        return BEHIND_GATE, SHUT
    if missing := row["of"] - row["n_replicates"]:
        return NEVER, f"It never closes half the gap in {missing} of {row['of']} replicates."
    if row["of"] < count:
        return FEWER, f"Run on {row['of']} of the {count} replicates."
    return RANKED, ""


def _comparisons(methods: pd.DataFrame, of_people: pd.DataFrame) -> list[tuple]:
    """Compare every two ranked models of a trained modality, on the same people of the same replicates. Each set counts
    half, as in what is kept."""
    rows = []
    for modality, here in methods[methods["standing"] == RANKED].groupby("trained", sort=False):
        models = list(here[MODEL].itertuples(index=False, name=None))
        for a, b in itertools.combinations(models, 2):
            both = paired(*(of_people[has(of_people, MODEL, one)] for one in (a, b)))
            both = both.dropna(subset=["value", "value_other"])
            mean, residual = of_sets((both["value"] - both["value_other"]).to_numpy(), both["set"].to_numpy(str))
            p = paired_p(mean + residual, both["person"], both.groupby(REPLICATE).ngroup())
            rows.append((modality, a, b, p))
    return rows


def _placed(methods: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Add ``place`` and ``group`` to the models; in each trained modality, the one that keeps most comes first."""
    frames = []
    for modality, rows in methods.groupby("trained", sort=False):
        ranked = rows[rows["standing"] == RANKED].sort_values("value", ascending=False, kind="stable")
        models = list(ranked[MODEL].itertuples(index=False, name=None))
        apart = pairs[pairs["apart"].astype(bool) & (pairs["trained"] == modality)]
        letters = shared_letters(models, [frozenset(pair) for pair in zip(apart["a"], apart["b"], strict=True)])
        place = ranked["value"].round(9).rank(method="min", ascending=False)
        ranked = ranked.assign(place=place, group=[letters[m] for m in models])
        frames += [ranked, rows[rows["standing"] != RANKED].assign(place=nan, group="")]
    return pd.concat(frames, ignore_index=True).astype({"place": "Int64"})
