"""From one value per answer to one value per cell: means and paired differences with their intervals."""

from collections.abc import Iterable, Sequence
from math import nan

import numpy as np
import pandas as pd

from mllmu_nb.errors import KitError
from mllmu_nb.scoring.frames import ASKED, PAIRED_ON, PEOPLE, POOLED, REPLICATE, is_model, of_metric
from mllmu_nb.scoring.registry import Metric
from mllmu_nb.statistics.intervals import interval, paired_difference

NOTHING = {"value": nan, "low": nan, "high": nan, "dots": ()}
# The questions that worked examples precede, and the parameters that decide how many and whose.
WITH_EXAMPLES = {("classification", "letter"), ("cloze", "")}
EXAMPLES = ("shots", "shot_source")


def summaries(rows: pd.DataFrame, by: Sequence[str], metrics: Iterable[Metric], minus: bool = False) -> list[dict]:
    """Return the mean of each metric, with its interval, in each group of ``rows`` with the same values of ``by``. A
    group without a value is left out. ``minus``: of paired differences to the columns that end in ``_reference``.

    ``rows`` are scored, with ``person`` and the columns of the run. Each summary has the columns ``by``, KEY, value,
    low, high, n_items, n_profiles, n_replicates, and ``dots``: the value of each replicate, if there are several.
    """
    result = []
    people, replicates = pd.factorize(rows["person"])[0], rows.groupby(REPLICATE).ngroup().to_numpy()
    groups = rows.groupby(list(by), sort=False, observed=True, dropna=False).indices  # key → places of its rows
    for metric in metrics:
        values = rows[metric.column].to_numpy(float)
        reference = rows[f"{metric.column}_reference"].to_numpy(float) if minus else np.zeros(len(rows))
        known = np.isfinite(values - reference)
        for key, places in groups.items():
            at, here = dict(zip(by, key, strict=True)), places[known[places]]
            if at.get("set", metric.sets[0]) not in metric.sets or not len(here):
                continue
            scores = (values[here], reference[here]) if minus else (values[here],)
            function, some = paired_difference if minus else interval, replicates[here]
            try:
                summary = function(*scores, people[here], bounds=metric.bounds, replicates=some)
            except KitError as error:
                raise KitError(f"metric {' '.join(filter(None, metric.key))}: {error} (its bounds)") from None
            counts, sums = np.bincount(some), np.bincount(some, values[here] - reference[here])
            dots = tuple(sums[counts > 0] / counts[counts > 0])
            cell = {"task": metric.task, "scoring": metric.scoring, "metric": metric.name, **vars(summary)}
            result.append(at | cell | {"dots": dots if len(dots) > 1 else ()})
    return result


def by_task(wanted: Iterable[Metric]) -> dict[tuple[str, str], list[Metric]]:
    """(task, scoring) → its metrics."""
    result: dict[tuple[str, str], list[Metric]] = {}
    for one in wanted:
        result.setdefault((one.task, one.scoring), []).append(one)
    return result


def by_view(rows: pd.DataFrame, by: list[str], wanted: Iterable[Metric], against: str = "") -> list[dict]:
    """The :func:`summaries` of the answers to each metric's own task, by set and view, and with the views pooled; of
    the differences to the model ``against``, if one is named."""
    result = []
    for (task, scoring), group in by_task(wanted).items():
        columns = [one.column for one in group]
        needed = [*by, *PAIRED_ON, "shot_seed", "method", "after", "replicate", "view", "person", *columns]
        asked = of_metric(rows[list(dict.fromkeys([*needed, "task", "scoring"]))], task, scoring)
        if against:
            asked = paired(asked, against, columns, [*PAIRED_ON, *examples(group[0], by)])
            asked = asked[~is_model(asked, against)]
        for view in (asked, asked.assign(view=POOLED)):
            result += summaries(view, [*by, "set", "view"], group, minus=bool(against))
    return result


def examples(metric: Metric, names: Sequence[str]) -> list[str]:
    """Return which of the parameters ``names`` decide about the worked examples before the metric's questions."""
    return [name for name in EXAMPLES if name in names and metric.key[:2] in WITH_EXAMPLES]


def asked_differently(rows: pd.DataFrame) -> list[str]:
    """The parameters of asking that differ among ``rows``: each replicate draws its own shots, so their seed is one
    only if it differs among rows about the same people."""
    names = [name for name in ASKED if name in rows and rows[name].nunique() > 1]
    shots = "shot_seed" in rows and rows.groupby(PEOPLE)["shot_seed"].nunique().gt(1).any()
    return [*names, "shot_seed"] if shots else names


def paired(rows: pd.DataFrame, against: str, columns: Sequence[str], on: Sequence[str] = PAIRED_ON) -> pd.DataFrame:
    """The rows that ``against`` (vanilla, oracle) was asked as well, with its ``columns`` as ``.._reference``."""
    reference = rows[is_model(rows, against)]
    on = list(dict.fromkeys([*on, *asked_differently(reference)]))
    reference = reference[[*on, *columns]].drop_duplicates(on)
    return rows.merge(reference, on=on, suffixes=("", "_reference"))
