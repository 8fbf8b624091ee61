"""Studies: many small models that are no run, each asked a part of the questions. The miniature's alone.

A study is one module here. It says what is trained and what is asked (``measure``), one stage a configuration, so that
one that was stopped goes on where it was; here is what the studies share. Their answers and tables lie in
``results/<scale>/<study>``, apart from the runs. Reading and drawing them is the module of the same name in
:mod:`mllmu_nb.reporting`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllmu_nb import paths, provenance, run, stages
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

if TYPE_CHECKING:
    import pandas as pd

JOBS = 2  # a thread each gets more out of two cores than one model after the other on both


def miniature(config: Config) -> Config:
    """The vanilla model whose people and settings are those of ``config``, made if need be. KitError for another scale
    than the miniature's, where nobody could wait for so many models."""
    if config.scale != "miniature" or config.adaptation != "full":
        raise KitError("studies are made on the miniature, all of whose weights are fine-tuned")
    plain = config.but(method="vanilla", modality="none")
    run.vanilla(plain)
    return plain


def each(work: Callable[[Any], Path], tasks: Sequence[Any], jobs: int = JOBS) -> list[Path]:
    """What ``work`` makes of every task, in their order: ``jobs`` at a time, each in a process of its own, or with one
    job in this one. Stopped, it lets go of the tasks that have not begun."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tqdm import tqdm

    bar = {"total": len(tasks), "unit": "model", "disable": None, "mininterval": 1.0}
    if jobs == 1:
        return list(tqdm(map(work, tasks), **bar))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            return list(tqdm(pool.map(work, tasks), **bar))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write(study: str, config: Config, tables: Mapping[str, pd.DataFrame], told: Mapping[str, Any]) -> Path:
    """The study's folder with ``tables`` as <name>.parquet and how they were made (provenance.json), whole."""
    target = paths.study(config.scale, study)
    hashes = {"data_hash": run.data_hash(config), "base_hash": run.base_hash(config)}
    with stages.lock(target), stages.whole(target) as partial:
        for name, table in tables.items():
            table.to_parquet(partial / f"{name}.parquet", index=False)
        record = provenance.record(scale=config.scale, parameters=config.parameters(), **hashes, **told)
        stages.write_json(partial / stages.RECORD, record)
    return target
