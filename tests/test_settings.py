"""The rule that chooses settings on other worlds (tools/settings.py), on curves worked out by hand."""

import json
import re

import numpy as np
import pytest

import settings
from mllmu_nb import inputs, paths
from mllmu_nb.config import Config
from mllmu_nb.scoring.path import Curve


def curve(closed, retain, celebrity=None):
    """Return a curve in steps of ten, with kept values of one person."""
    steps = 10 * np.arange(len(closed))
    read = {name: (np.array(["p"]), np.array(values)[:, None]) for name, values in
            (("retain", retain), ("celebrity", celebrity or retain))}  # fmt: skip
    return Curve(steps, np.array(closed, float), read)


def test_a_point_is_read_where_the_worlds_close_half_of_the_gap():
    curves = [curve([0, 0.3, 0.7], [1, 0.9, 0.5], [1, 0.8, 0.6]), curve([0, 0.5, 0.7], [1, 0.9, 0.5], [1, 0.8, 0.6])]
    found = settings.read(curves, gap=0.8)
    # the mean closes .4 at step 10 and .7 at 20, so half at 10 + 10/3; kept: 2/3 and 1/3 of the two points
    assert found["steps"] == pytest.approx(40 / 3) and found["reached"] == pytest.approx(0.7)
    assert found["kept"] == pytest.approx(2 / 3 * 0.85 + 1 / 3 * 0.55)
    # 20 % of the steps are 8/3: 3/100 per step up; down, 2/75 of that slope are below step 10
    assert found["edge"] == pytest.approx(0.8 * 0.03 * 8 / 3)
    assert settings.read([curve([0, 0.2, 0.4], [1, 1, 1])], gap=0.8) == {"reached": 0.4}


def test_the_edge_is_the_larger_change_on_either_side():
    steep_before = settings.read([curve([0, 0.0, 0.5, 0.52], [1, 1, 1, 1])], gap=1.0)
    assert steep_before["steps"] == 20 and steep_before["edge"] == pytest.approx(0.2)  # from four of ten steps before


def test_what_keeps_most_without_an_edge_is_chosen():
    rows = [
        {"lr": 1e-3, "weight": 1.0, "steps": 40, "kept": 0.9, "edge": 0.2},
        {"lr": 5e-4, "weight": 1.0, "steps": 80, "kept": 0.8, "edge": 0.05},
        {"lr": 5e-4, "weight": 2.0, "steps": 90, "kept": 0.7, "edge": 0.05},
        {"lr": 2e-3, "weight": 2.0, "reached": 0.3},
        {"lr": 4e-3, "weight": 2.0, "diverged": True},
    ]
    assert settings.best(rows) is rows[1]
    assert settings.best([rows[0], {**rows[0], "kept": 0.95}])["kept"] == 0.95, "all have one: what keeps most"
    assert settings.best(rows[3:]) is None


def worlds(best_rate, monkeypatch, weights=("alpha", (1.0, 2.0, 4.0))):
    """Fake points that keep more, the nearer their rate is to ``best_rate``; return the list of tried points."""
    seen = []

    def tried(_, method, variant, modality, point):
        seen.append(point)
        distance = abs(np.log2(point[0] / best_rate)) + abs(point[1] - 2.0)
        return {"lr": point[0], "weight": point[1], "steps": 50, "kept": 1 - 0.1 * distance, "edge": 0.01}

    monkeypatch.setattr(settings, "tried", tried)
    monkeypatch.setitem(settings.WEIGHTS, ("ga", "canonical"), weights)
    return seen


def test_every_method_begins_with_the_same_budget(monkeypatch):
    for weights in (("", ()), ("alpha", (1.0, 2.0, 4.0))):
        seen = worlds(1e-3, monkeypatch, weights)
        choice = settings.search([], "ga", "canonical", "multimodal")
        assert len(seen) == 5 and choice["inside"] and choice["lr"] == pytest.approx(1e-3)


def test_a_grid_grows_until_the_choice_lies_inside_it(monkeypatch):
    seen = worlds(4e-3, monkeypatch)
    choice = settings.search([], "ga", "canonical", "multimodal")
    assert (choice["lr"], choice["weight"], choice["inside"]) == (4e-3, 2.0, True)
    assert len(seen) == len(set(seen)) == 5 + 2, "two rates more, and nothing twice"
    seen = worlds(1.0, monkeypatch)
    choice = settings.search([], "ga", "canonical", "multimodal")
    assert not choice["inside"] and len(seen) == 5 + settings.GROWTHS, "it says that it is at the border"


def test_a_choice_on_the_border_is_continued_from_the_known_points(monkeypatch):
    monkeypatch.setattr(settings, "GROWTHS", 1)
    seen = worlds(8e-3, monkeypatch)
    before = settings.search([], "ga", "canonical", "multimodal")
    monkeypatch.setattr(settings, "GROWTHS", 3)
    seen.clear()
    after = settings.search([], "ga", "canonical", "multimodal", known=before["points"])
    assert not before["inside"] and after["inside"] and after["lr"] == 8e-3
    assert seen[0] == (8e-3, 2.0) and not {(p["lr"], p["weight"]) for p in before["points"]} & set(seen)


def test_a_rate_on_the_border_is_continued_where_another_weight_keeps_more(monkeypatch):
    """NPO with its retain term: the lowest rate was chosen at the middle weight, then a larger weight."""
    monkeypatch.setattr(settings, "GROWTHS", 0)
    worlds(5e-4, monkeypatch)
    before = settings.search([], "ga", "canonical", "multimodal")
    points = [{**point, "kept": 1.1} if point["weight"] == 4.0 else point for point in before["points"]]
    points.append({**points[0], "lr": 5e-4, "weight": 8.0, "kept": 0.5})
    monkeypatch.setattr(settings, "GROWTHS", 2)
    seen = worlds(2.5e-4, monkeypatch)
    settings.search([], "ga", "canonical", "multimodal", known=points)
    assert seen[0] == (2.5e-4, 2.0), "the next lower rate, though the best of all points has another weight"


def test_a_point_is_trained_for_the_length_that_suits_it(monkeypatch):
    trained = []

    def measured(_, given):
        trained.append(given["unlearn_steps"])
        steps = given["unlearn_steps"] * np.linspace(0, 2, 11)
        closed = np.minimum(steps / 600, 1)  # half of the gap at step 300
        return [curve(closed, np.ones(11))._replace(steps=steps)]

    monkeypatch.setattr(settings, "measured", measured)
    monkeypatch.setattr(settings, "_gap", lambda *_: 0.8)
    row = settings.tried([None], "ga", "canonical", "multimodal", (1e-3, 0.0))
    assert trained == [80, 160, 320] and row["steps"] == pytest.approx(300) and row["trained"] == 320
    trained.clear()
    settings.tried([None], "ga", "canonical", "multimodal", (2.5e-4, 0.0))
    assert trained == [320], "a low rate begins with more steps"


def test_what_was_read_of_a_shorter_training_stays_where_a_longer_one_diverges(monkeypatch):
    def measured(_, given):
        steps = given["unlearn_steps"] * np.linspace(0, 2, 11)
        short = given["unlearn_steps"] <= 80
        return [curve(np.minimum(steps / 220, 1), np.ones(11))._replace(steps=steps)] if short else None

    monkeypatch.setattr(settings, "measured", measured)
    monkeypatch.setattr(settings, "_gap", lambda *_: 0.8)
    row = settings.tried([None], "ga", "canonical", "multimodal", (1e-3, 0.0))
    assert row["steps"] == pytest.approx(110) and row["trained"] == 80


# -- what is committed --------------------------------------------------------------------------------------------


def committed(name):
    return json.loads((paths.reference() / name).read_text(encoding="utf-8"))["choices"]


def test_presets_are_the_committed_choices():
    for one in committed("settings.json"):
        config = Config(method=one["method"], variant=one["variant"], modality=one["modality"])
        assert (config.unlearn_lr, config.unlearn_steps) == (one["lr"], one["steps"]), one["method"]
        assert config.settings.get(one["weight_name"], 0.0) == one["weight"]


def test_readme_and_docs_say_what_the_committed_search_has_shown():
    """Compares each choice with the middle of its grid; and the methods keep their order."""
    choices, kept, gains = committed("settings.json"), {}, []
    names = [(one["method"], one["variant"], one["modality"]) for one in choices]
    assert names == [(*name, modality) for name in settings.WEIGHTS for modality in ("multimodal", "unimodal")]
    for one in choices:
        _, weights = settings.WEIGHTS[one["method"], one["variant"]]
        middle = (settings.RATES[1], weights[1] if weights else 0.0)
        [beside] = [point for point in one["points"] if (point["lr"], point["weight"]) == middle]
        gains.append(one["kept"] - beside["kept"])
        assert one["kept"] == settings.best(one["points"])["kept"]
        for name, value in (("chosen", one["kept"]), ("middle", beside["kept"])):
            kept.setdefault((one["modality"], name), {})[one["method"], one["variant"]] = value
    text = " ".join((paths.checkout() / "docs" / "limits.md").read_text(encoding="utf-8").split())

    def numbers(pattern):
        return [int(number) for number in re.search(pattern, text).groups()]

    assert all(one["inside"] for one in choices) and len(choices) == 10
    never = [(one["method"], one["variant"]) for one in choices for p in one["points"] if "kept" not in p]
    assert never == [("npo", "retain")] * 5 and "Five trials of NPO with its retain term, next to its choices" in text
    assert f"within the longest training, {2 * max(settings.LENGTHS)} steps" in text
    assert "None of the ten chosen settings is the smallest or largest value that was tried" in text
    assert numbers(r"the searched settings keep (\d+) to (\d+) points more") == [
        round(100 * end(gains)) for end in (min, max)
    ]
    retaining, spread = {("grad_diff", "canonical"), ("kl_min", "canonical"), ("npo", "retain")}, 0.0
    for (_, which), values in kept.items():  # methods with a retain term keep more than those without
        with_term, without = ([v for k, v in values.items() if (k in retaining) == has] for has in (True, False))
        assert min(with_term) > max(without)
        spread = max(spread, max(with_term) - min(with_term)) if which == "chosen" else spread
    assert spread <= numbers(r"within (\d+) points of one another")[0] / 100 < spread + 0.01
    edges = [100 * one["edge"] for one in choices]
    assert numbers(r"on Forget by (\d+) to (\d+) points there") == [round(end(edges)) for end in (min, max)]
    assert sum(edge <= 10 for edge in edges) == 2 and "at most 10 for two of the ten" in text
    stored = {name for one in choices for row in (one, *one["points"]) for name in row}
    assert not {name for name in stored if "low" in name or "high" in name}, "then the page has to give these limits"
    assert "All these numbers are means of two populations, and have no limits: the search stored nothing else." in text
    stated = json.loads((paths.reference() / "settings.json").read_text(encoding="utf-8"))
    assert stated["worlds"] == [101, 102] and stated["base_hash"] == inputs.base_hash(Config()), "or another base's"
    rates = [p["kept"] for p in committed("settings.json")[0]["points"]]
    docs = " ".join((paths.checkout() / "docs" / "scoring.md").read_text(encoding="utf-8").split())
    assert f"keeps {100 * min(rates):.0f} to {100 * max(rates):.0f} % at half closed" in docs
