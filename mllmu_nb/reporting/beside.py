"""Compares your own model with vanilla and the oracle: its scores, what it lost, and if the scores can be trusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import pandas as pd

from mllmu_nb.data.schema import SETS
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.grid import ASKED_IN, cell_text, closed_gates, rows_by, select
from mllmu_nb.reporting.runs import Run, Scores
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import KEY, MODEL, PEOPLE, is_model
from mllmu_nb.scoring.health import judged
from mllmu_nb.scoring.registry import metrics
from mllmu_nb.scoring.score import cells, item_scores


@dataclass(frozen=True)
class Beside:
    """Your model's run ``own`` and, if there are any, vanilla's and the oracle's about the same people."""

    own: Run
    vanilla: Run | None = None
    oracle: Run | None = None

    @classmethod
    def among(cls, own: Run, runs: Iterable[Run]) -> Beside:
        """Find vanilla and the oracle in ``runs``. Raises KitError if one was asked other questions than ``own``."""
        others = {name: one for one in runs for name in ("vanilla", "oracle") if is_model(one, name)}
        for one in others.values():
            asked, mine = (set(zip(run.items["set"], run.items["question_id"], strict=True)) for run in (one, own))
            if asked != mine:
                raise KitError(f"{own.label} and {one.label} were asked different questions")
        return cls(own, **others)

    @cached_property
    def scores(self) -> Scores:
        """The scores of all three models, paired question by question even if their seeds differ."""
        # by id: the model may be vanilla or the oracle itself, and counts once
        runs = list({run.id: run for run in (self.own, self.vanilla, self.oracle) if run}.values())
        answers = pd.concat([run.answers for run in runs], ignore_index=True)
        items = item_scores(answers.assign(**{column: self.own[column] for column in PEOPLE}))
        return Scores(runs, items, cells(items), judged(items), path.no_points(), [])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The model's own rows of the long frame: its scores, and its differences to the references."""
        return select(self.scores, **dict(zip(MODEL, self.own.model, strict=True)))

    def score_table(self, against: str = "") -> pd.DataFrame:
        """The model's scores as text, ``51.7 [47.2, 55.9]``, or its differences to ``against`` (vanilla, oracle), in
        brackets if the gate is closed: one row per set and view, one column per main metric."""
        known = rows_by(self.cells[self.cells["against"] == against].dropna(subset=["value"]), ["set", "view", *KEY])
        texts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for set_name, view, metric in product(SETS, ASKED_IN, metrics(main=True)):
            if cell := known.get((set_name, view, *metric.key)):
                head = metric.shown_as_gap if against else metric.label
                texts[set_name.capitalize(), ASKED_IN[view]][head] = cell_text(cell, metric, signed=bool(against))
        index = pd.MultiIndex.from_tuples(texts, names=["set", "asked with"]) if texts else None
        return pd.DataFrame(texts.values(), index).fillna("")

    def remarks(self) -> list[str]:
        """A few lines that say if scores can be read (the gates), and if the model has collapsed."""
        lacking = [name for name in ("vanilla", "oracle") if getattr(self, name) is None]
        if lacking:
            return [f"Without {' and '.join(lacking)} nobody can say whether a low score is forgetting."]
        rows = select(self.scores, metrics(main=True), set="forget", view=list(ASKED_IN))
        opened = "Vanilla answers better about the forget people than the oracle, in every metric that was asked: "
        opened += "scores can be read."
        unsound = [f"A low score of this model is no forgetting ({self.unsound})."] if self.unsound else []
        return (closed_gates(self.scores, rows) or [opened]) + unsound

    @property
    def unsound(self) -> str:
        """Why the model counts as collapsed or as refusing everybody; "" if it does not."""
        bad = self.scores.unsound.get((*self.scores.group.values(), *self.own.model))
        return bad.why if bad else ""
