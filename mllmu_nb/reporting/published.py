"""What others printed about the benchmark: figures of the paper, of re-evaluations and of reproductions.

``published_results.csv`` holds facts with their source, one a row, in the unit in which the source prints them
(accuracies in percent, ROUGE from 0 to 1). Levels differ between sources, so compare within one source only. The
paper's own Table 2 could not be read in full: what is not in the file is unknown and stays empty.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mllmu_nb.errors import KitError

FILE = Path(__file__).with_name("published_results.csv")
COLUMNS = ("base_model", "forget_ratio", "method", "set", "view", "metric", "value", "kind", "source")
KINDS = ("published", "re-evaluation", "reproduction")


def load(path: Path = FILE) -> pd.DataFrame:
    """Every known figure: COLUMNS, with ``forget_ratio`` in percent and ``value`` NaN where the file leaves it empty.

    Raises KitError when a column is missing, a value is no number or a row has no source.
    """
    found = pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in found.columns]
    if missing:
        raise KitError(f"{path} lacks the columns {', '.join(missing)}")
    values = pd.to_numeric(found["value"], errors="coerce")
    broken = found["value"].notna() & values.isna()
    if broken.any():
        raise KitError(f"{path}, row {broken.idxmax() + 2}: {found['value'][broken.idxmax()]!r} is not a number")
    if found["source"].isna().any():
        raise KitError(f"{path}, row {found['source'].isna().idxmax() + 2}: a figure needs its source")
    return found[list(COLUMNS)].assign(value=values, forget_ratio=found["forget_ratio"].astype(int))


def wide(found: pd.DataFrame) -> pd.DataFrame:
    """Figures as a table: a row a source, base model, ratio and method, a column a set, view and metric.

    Unknown cells are NaN. Figures that one source prints twice under the same heading are a KitError: they cannot share
    a cell.
    """
    rows, columns = ["source", "base_model", "forget_ratio", "method"], ["set", "view", "metric"]
    twice = found[found.duplicated(rows + columns, keep=False)]
    if len(twice):
        first = twice.iloc[0]
        raise KitError(f"{first['source']} has two figures for {first['method']}, {first['set']}, {first['metric']}")
    return found.pivot(index=rows, columns=columns, values="value")
