"""A method that lives outside the package: one file, a copy of a notebook, and a grid that names it."""

import json
import os
import sys

import nbformat
import pandas as pd
import pytest
import yaml

from mllmu_nb import __main__ as door
from mllmu_nb import paths, run, unlearning
from mllmu_nb.config import Config

METHOD = '''
"""Ascent that stops pulling at what is unlikely already."""

from dataclasses import dataclass

from mllmu_nb.unlearning import Method, mean_nll, register


@register
@dataclass(frozen=True)
class Bounded(Method):
    """L = −min(E_f ℓ̄, ceiling) + E_r ℓ̄"""

    ceiling: float = 4.0

    name = "bounded"
    uses = ("forget", "retain")

    def loss(self, scored, reference):
        forget, retain = mean_nll(scored["forget"]), mean_nll(scored["retain"])
        return -forget.clamp(max=self.ceiling) + retain, {"forget": forget.item(), "retain": retain.item()}
'''
SMALL = {"people": 12, "pool": 8, "celebrities": 8, "forget_ratio": 25, "shots": 0, "replay": 0.0}
QUICK = {"train_steps": 2, "unlearn_epochs": 1}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Somebody adds a method as CONTRIBUTING says: the file, a notebook copied beside it, and two variables."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "bounded_ascent.py").write_text(METHOD, encoding="utf-8")
    book = nbformat.read(paths.notebooks() / "04_grad_diff.ipynb", as_version=4)
    guard = next(cell for cell in book.cells if cell["id"] == "guard")
    assert 'method="grad_diff"' in guard.source
    guard.source = guard.source.replace('method="grad_diff"', 'method="bounded"')
    kept = [cell for cell in book.cells if cell["id"] in ("imports", "parameters", "guard", "make", "bars", "changes")]
    book.cells = [nbformat.v4.new_markdown_cell("# Bounded ascent", id="title"), *kept]
    nbformat.write(book, folder / "11_bounded.ipynb")
    # the processes that are started see what a user's would; in this one the method is made known, and unknown again
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("MLLMU_NB_METHODS", "bounded_ascent")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(paths.PACKAGE.parent)]))
    monkeypatch.syspath_prepend(folder)
    unlearning.bring(os.environ["MLLMU_NB_METHODS"])
    yield folder
    del unlearning.METHODS["bounded"], sys.modules["bounded_ascent"]


def test_a_method_from_outside_goes_through_config_sweep_and_notebook(outside, tiny_base, tmp_path, capsys):
    parameters = {**SMALL, **QUICK, "base_path": str(tiny_base)}
    for method in ("vanilla", "oracle"):  # what the notebook compares with
        run.items(Config(method=method, **parameters))
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**parameters, "grid": {"method": ["bounded"], "modality": ["multimodal"]}}))
    assert door.main(["sweep", str(grid)]) == 0, capsys.readouterr()
    folder = paths.runs("miniature") / "llava-r25-d0-bounded-multimodal-s0"
    items, told = pd.read_parquet(folder / "items.parquet"), json.loads((folder / "train.json").read_text())
    assert set(items["method"]) == {"bounded"}
    # three people, 15 questions each with the portrait, 8 a step
    assert told["steps"] == 6 and {"loss", "forget", "retain"} <= told["losses"][0].keys()
    table = (paths.results("miniature") / "tables" / "table2_main.md").read_text(encoding="utf-8")
    assert "| bounded" in table, "it stands in the tables as any other, with or without a mark"


def test_a_method_from_outside_without_a_notebook_is_named(outside, tmp_path, capsys):
    (outside / "11_bounded.ipynb").unlink()
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**SMALL, "method": "bounded", "modality": "multimodal"}))
    assert door.main(["sweep", str(grid)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no notebook for method 'bounded': *_bounded.ipynb in ")
    assert str(outside) in said and said.count("\n") == 1
