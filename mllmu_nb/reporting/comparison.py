"""A model of one's own beside vanilla and the oracle: what it scores, what it lost, and whether that says anything:
whether the gate is open (``gates``), and whether the model has collapsed (``health``)."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import MAIN, SETS, Measure, Run, all_items, gates, health, tables
from mllmu_nb.reporting.gates import ASKED_WITH, CLOSED


def check_reference(run: Run, method: str, base_model: str, data_hash: str, forget_ids: Iterable[str]) -> None:
    """Raises KitError unless ``run`` is of ``method`` and family ``base_model``, and was asked about these people."""
    if run["method"] != method:
        raise KitError(f"the run {run.id} is of {run['method']}, not of {method}")
    if run["base_model"] != base_model:
        raise KitError(f"the run {run.id} is of the family {run['base_model']}, and your model of {base_model}")
    mine = {"data_hash": data_hash, "forget_ids": list(forget_ids)}
    for name, what in (("data_hash", "about other people"), ("forget_ids", "with other people to be forgotten")):
        if run.data.get(name) != mine[name]:
            raise KitError(f"the run {run.id} was made {what} than those of your configuration: look at data and ratio")


def gate(vanilla: Run, oracle: Run, measures: Iterable[Measure] = MAIN) -> pd.DataFrame:
    """The gates of one run of each, as :func:`gates.of` makes them: a row a measure and view."""
    return gates.of(tables.differences(_together([vanilla, oracle]), measures))


def beside(own: Run, vanilla: Run | None, oracle: Run | None, measures: Iterable[Measure] = MAIN) -> pd.DataFrame:
    """``own`` minus vanilla and minus the oracle: the rows of :func:`tables.differences`, and their ``gate``.

    ``gate`` is that of the measure and view for the sets whose score is to come down, and empty elsewhere, or where one
    of the two references is not at hand.
    """
    references = [run for run in (vanilla, oracle) if run]
    found = tables.differences(_together([own, *references]), list(measures))
    known = gates.of(found)
    return gates.with_gate(found[found["method"] == own["method"]].reset_index(drop=True), known)


def _together(runs: list[Run]) -> pd.DataFrame:
    """The answers of runs about the same people, so that a question of one is paired with the same one of another."""
    alike = [column for column in tables.PAIRED_ON if column not in ("set", "question_id")]
    return all_items(runs).assign(**{column: runs[0][column] for column in alike})


def printed_scores(own: Run, measures: Iterable[Measure] = MAIN) -> pd.DataFrame:
    """The scores as they are read, ``51.7 ± 4.1``: a row a set and view, a column a measure."""
    return _printed(statistics.scores(own.items), measures)


def printed_differences(found: pd.DataFrame, against: str, measures: Iterable[Measure] = MAIN) -> pd.DataFrame:
    """The differences to vanilla or the oracle likewise; one behind a closed gate stands in brackets."""
    return _printed(found[found["against"] == against], measures, signed=True)


def _printed(numbers: pd.DataFrame, measures: Iterable[Measure], signed: bool = False) -> pd.DataFrame:
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for set_name, view in ((s, v) for s in SETS for v in ASKED_WITH):
        here = numbers[(numbers["set"] == set_name) & (numbers["view"] == view)]
        if here.empty:
            continue
        cells = rows.setdefault((SETS[set_name], ASKED_WITH[view]), {})
        for measure in measures:
            same = (here["task"] == measure.task) & (here["scoring"] == measure.scoring)
            for cell in here[same & (here["metric"] == measure.metric)].itertuples():
                text = tables.written(cell.value, cell.low, cell.high, measure, signed)
                cells[measure.label] = f"({text})" if getattr(cell, "gate", "") == CLOSED else text
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    if rows:
        frame.index = pd.MultiIndex.from_tuples(list(rows), names=["set", "asked with"])
    return frame


def told(own: Run, vanilla: Run | None, oracle: Run | None) -> list[str]:
    """What the gate says, and whether the model has collapsed, in a few lines."""
    lacking = [name for name, run in (("vanilla", vanilla), ("oracle", oracle)) if run is None]
    if lacking:
        return [f"Without {' and '.join(lacking)} nobody can say whether a low score is forgetting."]
    shut = gates.told(gate(vanilla, oracle), MAIN, ASKED_WITH)
    opened = "Vanilla answers better about the forget people than the oracle, in every measure: scores can be read."
    judged = health.judged(_together([own, vanilla]))
    why = judged.loc[judged.index.get_level_values("method") == own["method"], "why"].iloc[0]
    return [shut or opened, *([f"The model has collapsed, so a low score is no forgetting: {why}."] if why else [])]
