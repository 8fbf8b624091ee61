"""The memorisation gate: a score says something about forgetting only where there was something to forget.

Where vanilla is not shown to answer better about the people to be forgotten than the oracle, which never saw them, a
low score shows no forgetting. A closed gate is no proof that vanilla knew nothing: few people show little. Each measure
has its own gate in each view (and with the views pooled), for every base model, protocol and forget ratio: open where
the 95 % interval over people of vanilla minus oracle on the forget set, question by question and with all forget draws
pooled, lies above 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mllmu_nb.reporting import GROUP, VIEWS, Measure

OPEN, CLOSED = "open", "closed"
GATED = ("forget", "test")  # sets on which a score is to come down
AT = ["task", "scoring", "metric", "view"]
ASKED_WITH = {**VIEWS, "both": "both"}


def of(differences: pd.DataFrame) -> pd.DataFrame:
    """From rows of ``tables.differences``: a row a GROUP, measure and view (``both`` among them).

    Columns GROUP, AT, value, low, high, n_items, n_profiles and ``gate``: open or closed. A missing letter is a matter
    of form and no knowledge, so ``parse_failure`` has no gate.
    """
    found = differences[(differences["method"] == "vanilla") & (differences["against"] == "oracle")]
    found = found[(found["set"] == "forget") & (found["metric"] != "parse_failure")]
    columns = [*GROUP, *AT, "value", "low", "high", "n_items", "n_profiles"]
    return found[columns].assign(gate=(found["low"] > 0).map({True: OPEN, False: CLOSED})).reset_index(drop=True)


def with_gate(numbers: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """``numbers`` (a row a GROUP, set, measure and view) with the column ``gate`` of ``known``, made by :func:`of`.

    Empty for the sets whose score is to stay, and where vanilla or the oracle has no such answers.
    """
    keys = [*GROUP, *AT]
    numbers = numbers.drop(columns="gate", errors="ignore")
    found = numbers.merge(known[[*keys, "gate"]], on=keys, how="left").set_axis(numbers.index)
    return found.assign(gate=found["gate"].where(found["set"].isin(GATED), "").fillna(""))


def shut(known: pd.DataFrame, measures: Iterable[Measure], views: Iterable[str]) -> list[tuple[Measure, str]]:
    """The measures and views behind a closed gate, of the gates of one GROUP."""
    closed = set(known.loc[known["gate"] == CLOSED, AT].itertuples(index=False, name=None))
    return [(m, view) for m in measures for view in views if (m.task, m.scoring, m.metric, view) in closed]


def told(known: pd.DataFrame, measures: Iterable[Measure], views: Iterable[str], how: str = "In brackets") -> str:
    """What stands below a table or figure whose measures have gates: ``how`` says how those that are closed look.

    "" where all of them are open.
    """
    if known.empty:
        return "Without vanilla and the oracle nobody can say whether a low score is forgetting."
    views = tuple(views)
    names = [
        m.label.removesuffix(" %") + ("" if views == ("both",) else f" ({ASKED_WITH[view]})")
        for m, view in shut(known, measures, views)
    ]
    if not names:
        return ""
    return (
        f"{how}: gate closed, vanilla is not shown to answer better about the forget people than the oracle, so "
        f"nothing shows that there was something to forget: {', '.join(names)}."
    )
