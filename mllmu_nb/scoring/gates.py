"""The memorisation gate: whether there was something to forget at all (docs/scoring.md, "Gates")."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mllmu_nb.scoring.frames import GROUP, KEY, LIKELIHOOD_KEY, POOLED, REPLICATE, VIEWS, is_model, persons
from mllmu_nb.scoring.registry import FORGOTTEN, by_key, metrics
from mllmu_nb.scoring.summary import by_view

OPEN, CLOSED = "open", "closed"
AT = [*KEY, "view"]
# What vanilla of the miniature should know in each view: shares of right answers, set before the first reference run.
GOALS = {
    LIKELIHOOD_KEY: {"forget": 0.95, "retain": 0.95, "test": 0.9},
    ("generation", "", "exact"): {"forget": 0.85, "retain": 0.85, "test": 0.75},
    ("cloze", "", "accuracy"): {"forget": 0.6, "retain": 0.6},
    ("classification", "letter", "accuracy"): {"forget": 0.5, "retain": 0.5, "test": 0.45},
}


def gates(cells: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the gates of ``cells``: one row per vanilla model and AT, with the difference vanilla minus oracle on the
    forget set. Columns GROUP, ``by``, AT, value, low, high, n_items, n_profiles, ``gate`` (open, closed)."""
    rows = cells[is_model(cells, "vanilla") & (cells["against"] == "oracle") & (cells["set"] == "forget")]
    rows = rows[rows["value"].notna() & rows["view"].isin([*VIEWS, POOLED])]
    rows = rows.assign(gate=_states(rows)).query("gate != ''")
    return rows[[*GROUP, *by, *AT, "value", "low", "high", "n_items", "n_profiles", "gate"]].reset_index(drop=True)


def _states(rows: pd.DataFrame) -> np.ndarray:
    """OPEN if the whole interval of a difference to the oracle shows more knowledge than the oracle has, else CLOSED;
    "" for a metric that shows no knowledge."""
    known = by_key()
    side = np.array([known[key].knowledge for key in rows[KEY].itertuples(index=False, name=None)], int)
    more = ((side > 0) & (rows["low"] > 0)) | ((side < 0) & (rows["high"] < 0))
    return np.select([side == 0, more], ["", OPEN], CLOSED)


def opened(items: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Count in how many replicates each gate is open, with the interval over the people of that replicate alone: one
    row per GROUP, ``by`` and AT, with ``open_in`` and ``of``. ``items`` are scored."""
    sides = items[(items["set"] == "forget") & (is_model(items, "vanilla") | is_model(items, "oracle"))]
    knowledge = [one for one in metrics(table="scores", per="answer") if one.knowledge]
    rows = by_view(sides.assign(person=persons), [*GROUP, *by, *REPLICATE], knowledge, "oracle")
    at = [*GROUP, *by, *AT]
    alone = pd.DataFrame(rows, columns=[*at, "low", "high"])
    alone = alone.assign(open_in=_states(alone) == OPEN, of=1)
    return alone.groupby(at, as_index=False, sort=False)[["open_in", "of"]].sum()


def missed(cells: pd.DataFrame) -> set[tuple[str, ...]]:
    """Return set and KEY of the scores in which vanilla is below its GOALS in a view."""
    rows = cells[is_model(cells, "vanilla") & (cells["against"] == "") & cells["view"].isin(VIEWS)]
    places = list(rows[["set", *KEY]].itertuples(index=False, name=None))
    pairs = zip(places, rows["value"], strict=True)
    return {(name, *key) for (name, *key), value in pairs if value < GOALS.get(tuple(key), {}).get(name, 0)}


def with_gate(rows: pd.DataFrame, known: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Add ``gate`` to ``rows`` (one per GROUP, ``by``, set and AT) from the gates ``known``: "" on sets that should be
    kept, or if vanilla or the oracle lacks such answers. A row about two views is closed if either gate is."""
    # what vanilla does not have, such as the rate of unlearning, has no separate gates
    vanilla = [*GROUP, *(name for name in by if known[name].ne("").any())]
    states = known.set_index([*vanilla, *AT])["gate"].to_dict()
    metrics, gate = by_key(), []
    for set_name, *group, task, scoring, name, view in zip(*(rows[c] for c in ["set", *vanilla, *AT]), strict=True):
        source = metrics[task, scoring, name].gate_of or name
        views = [view] if view in (*VIEWS, POOLED) else VIEWS
        here = {states.get((*group, task, scoring, source, one), "") for one in views if set_name in FORGOTTEN}
        gate.append(OPEN if here == {OPEN} else CLOSED if CLOSED in here else "")
    return rows.assign(gate=gate)
