"""The memorisation gate: whether there was something to forget at all (docs/scoring.md, "Gates")."""

from collections.abc import Sequence

import pandas as pd

from mllmu_nb.scoring.frames import DRAW, GROUP, KEY, POOLED, VIEWS, is_model, of_metric, persons
from mllmu_nb.scoring.registry import FORGOTTEN, by_key, metrics
from mllmu_nb.scoring.summary import paired, summaries

OPEN, CLOSED = "open", "closed"
AT = [*KEY, "view"]


def gates(cells: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The gates that ``cells`` make, one row per vanilla model and AT, with the difference behind each: columns GROUP,
    ``by``, AT, value, low, high, n_items, n_profiles, ``gate`` (open, closed)."""
    rows = cells[is_model(cells, "vanilla") & (cells["against"] == "oracle") & (cells["set"] == "forget")]
    rows = rows[rows["value"].notna() & rows["view"].isin([*VIEWS, POOLED])]
    rows = rows.assign(gate=_shown(rows).map({True: OPEN, False: CLOSED}))[_sides(rows) != 0]
    return rows[[*GROUP, *by, *AT, "value", "low", "high", "n_items", "n_profiles", "gate"]].reset_index(drop=True)


def _sides(rows: pd.DataFrame) -> pd.Series:
    """The side on which a model knows more (:attr:`Metric.knowledge`), by the metric of each row."""
    known = by_key()
    return pd.Series([known[key].knowledge for key in rows[KEY].itertuples(index=False, name=None)], rows.index, int)


def _shown(rows: pd.DataFrame) -> pd.Series:
    """Whether the whole interval of each difference to the oracle lies on the side of more knowledge."""
    side = _sides(rows)
    return ((side > 0) & (rows["low"] > 0)) | ((side < 0) & (rows["high"] < 0))


def opened(items: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """In how many replicates a gate is open by itself, the interval being over that replicate's people: one row per
    GROUP, ``by`` and AT, with ``open_in`` and ``of``. ``items`` are scored; metrics of sentences have no row."""
    asked = items[items["set"] == "forget"].assign(person=persons)
    at, rows = [*GROUP, *by, *AT], []
    for one in metrics(main=True):
        pairs = paired(of_metric(asked, one.task, one.scoring), "oracle", [one.column])
        pairs = pairs[is_model(pairs, "vanilla")]
        for view in (pairs, pairs.assign(view=POOLED)):
            rows += summaries(view, [*GROUP, *by, *DRAW, "set", "view"], [one], minus=True)
    alone = pd.DataFrame(rows, columns=[*at, "low", "high"])
    alone = alone.assign(open_in=_shown(alone), of=1)
    return alone.groupby(at, as_index=False, sort=False)[["open_in", "of"]].sum()


def with_gate(rows: pd.DataFrame, known: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """``rows`` (one row per GROUP, ``by``, set and AT) with the ``gate`` that ``known`` have: "" for sets whose score
    is to stay, and where vanilla or the oracle has no such answers; closed, of two views, if one of theirs is."""
    # a parameter in which vanilla models do not differ, such as a rate of unlearning, makes no gate of its own
    vanilla = [*GROUP, *(name for name in by if known[name].nunique() > 1)]
    states = known.set_index([*vanilla, *AT])["gate"].to_dict()
    metrics, gate = by_key(), []
    for set_name, *group, task, scoring, name, view in zip(*(rows[c] for c in ["set", *vanilla, *AT]), strict=True):
        source = metrics[task, scoring, name].gate_of or name
        views = [view] if view in (*VIEWS, POOLED) else VIEWS
        here = {states.get((*group, task, scoring, source, one), "") for one in views if set_name in FORGOTTEN}
        gate.append(OPEN if here == {OPEN} else CLOSED if CLOSED in here else "")
    return rows.assign(gate=gate)
