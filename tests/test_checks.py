"""The checks for additions: the kit's own parts pass, and each kind of mistake gets its message."""

from dataclasses import dataclass, replace

import pytest
import torch
from fake_runs import make

from miniature import make_model
from mllmu_nb import after, checks, unlearning
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.models import families
from mllmu_nb.models.families.llava import Llava
from mllmu_nb.models.load import load_base
from mllmu_nb.reporting.figures import rows
from mllmu_nb.reporting.grid import csv_rows
from mllmu_nb.reporting.runs import Scores
from mllmu_nb.scoring.frames import RUN, SEEDS
from mllmu_nb.scoring.registry import metrics
from mllmu_nb.unlearning import METHODS, Method, Needs, Recipe, register


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Unregister afterwards what a test registers."""
    for one in (METHODS, families.FAMILIES, after.STEPS):
        monkeypatch.setattr(one, "_entries", dict(one._entries))


@pytest.mark.parametrize("key", list(METHODS), ids=" ".join)
def test_every_method_passes(key):
    checks.check_method(METHODS.get(key))


class Mine(Method):
    """Gradient ascent, for tests that break it."""

    name, label = "mine", "Mine"

    def loss(self, step):
        yield "forget", -step.forget.mean_nll.mean()


def spoilt(**attributes):
    """Return the method with other attributes or another loss."""
    loss = attributes.pop("yields", None)
    if loss:
        attributes["loss"] = lambda self, step: iter(loss(step))
    return register(dataclass(frozen=True)(type("Spoilt", (Mine,), {"__module__": __name__, **attributes})))


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"marker": ""}, "needs a marker for figures"),
        ({"colour": "red"}, "colour must be like #0072B2"),
        ({"needs": Needs(hidden=("layer",))}, "needs.hidden names layer, which is no hyper-parameter"),
        ({"recipes": {"tiny": Recipe(lr=1e-3, steps=3, source="me")}}, "recipes has 'tiny': give a scale"),
        ({"recipes": {"paper": Recipe(lr=1e-3)}}, "its recipe for paper has no source"),
        ({"recipes": {"paper": Recipe(steps=3, epochs=3, source="me")}}, "gives both steps and epochs"),
        ({"recipes": {"paper": Recipe(settings={"beta": 3.0}, source="me")}}, "sets what is no hyper-parameter"),
        ({"__annotations__": {"scale": "float"}, "scale": 1.0}, "every run has a parameter scale: choose another name"),
        ({"__annotations__": {"low": "float"}, "low": 1.0}, "low is a column of the scores: choose another name"),
        ({"__annotations__": {"beta": "list"}, "beta": ()}, "beta needs a default: a number, text, True or False"),
        ({"before_update": lambda self: None}, "before_update does not take what it is called with: too many"),
        ({"yields": lambda step: []}, "its loss gives nothing: a loss yields pairs"),
        ({"yields": lambda step: [("forget", step.forget.mean_nll)]}, "its loss gives ('forget', tensor(["),
        ({"yields": lambda step: [("a", step.forget.mean_nll[:1])]}, "its loss gives ('a', tensor(["),
        ({"yields": lambda step: [("forget", step.forget.token_nll / 0)]}, "forget must be finite"),
        (
            {"yields": lambda step: [("a", step.forget.token_nll), ("b", step.forget.token_nll)]},
            "b cannot be back-prop",
        ),
        ({"yields": lambda step: [("a", step.forget.token_nll), ("b", step.forget.logits[0].sum())]}, "b cannot be ba"),
        ({"yields": lambda step: [("a", 0 * step.forget.token_nll)]}, "no gradient reaches the model"),
        ({"yields": lambda step: [("a", step.forget.logits.mean())]}, "a depends on positions without a label"),
    ],
)
def test_a_mistake_in_a_method_is_named(attributes, problem):
    with pytest.raises(KitError) as error:
        checks.check_method(spoilt(**attributes))
    assert str(error.value).startswith("method mine (canonical)") and problem in str(error.value)
    assert "\n" not in str(error.value)


def test_no_hyper_parameter_may_be_called_as_a_column_of_scores():
    """A grid adds the parameters that it varies to each of these frames."""
    small = {"people": 12, "famous": 4, "asked": {"classification": 2, "generation": 1, "cloze": 1}}
    models = (("vanilla", "none"), ("oracle", "none"), ("ga", "multimodal"))
    scores = Scores.of([make(name, modality=modality, **small) for name, modality in models])
    [wanted] = metrics(name="rougeL")
    drawn = rows(scores, [wanted], ["forget"], ["text"])
    frames = (scores.items, scores.cells, scores.judged, scores.points, scores.kept, drawn, csv_rows(scores, drawn))
    assert not {name for frame in frames for name in frame} - checks._columns() - {*RUN, *SEEDS}


def test_a_method_must_be_registered_and_a_dataclass():
    with pytest.raises(KitError, match="is not registered: put @register above the class"):
        checks.check_method(Mine)

    @register
    class Bare(Mine):
        beta: float = 0.1

    with pytest.raises(KitError, match="beta is no hyper-parameter yet: put @dataclass.frozen=True. above the class"):
        checks.check_method(Bare)


# -- families ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_base):
    """A random LLaVA whose attention depends more on positions than that of a new one."""
    _, processor = load_base(str(tiny_base), "llava", "miniature")
    made = make_model(processor.tokenizer, 0, width=32, layers=2, heads=2)
    for layer in made.model.language_model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            part.weight.data *= 8
    return made, processor


def test_llava_passes_and_its_model_is_left_as_it_was(model):
    before, places = {name: p.clone() for name, p in model[0].named_parameters()}, []

    class Placed(Llava):
        def encode(self, *given, device=None, **named):
            places.append(device)
            return super().encode(*given, device=device, **named)

    checks.check_family(Placed(), *model)
    assert places[:2] == [None, None] and set(places[2:]) == {model[0].device}, "what a model on a GPU reads is there"
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model[0].named_parameters())


def _cut(rows):
    """Rows as a family returns them that loses a token of worked examples, if it encodes them for several questions."""
    lost = len(rows) == 3 and len(rows[0].spans) > 8
    return [replace(row, ids=row.ids[lost:]) for row in rows]


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        (
            {"render": lambda self, c, slot="", eos="": (Llava().render(c, slot, eos)[0], [(0, 4)])},
            "not the answer",
        ),
        (
            {"image_tokens": lambda self, processor, picture: 4},
            "cannot read what is encoded: Image features and image tokens",
        ),
        ({"pictures": lambda self, p, rows: {k: 0 * v for k, v in Llava.pictures(self, p, rows).items()}}, "picture"),
        ({"positions": lambda self, *asked: 3 * Llava.positions(self, *asked)}, "likelihood of an answer is another"),
        ({"tokens": lambda self, *given: _cut(Llava.tokens(self, *given))}, "encoded otherwise together than alone"),
        ({"vision": "nowhere"}, "its vision pattern matches 0 of"),
        ({"language_linears": r".*(q_proj|v_proj)"}, "language_linears reaches into the vision tower"),
    ],
)
def test_a_mistake_in_a_family_is_named(model, attributes, problem):
    families.FAMILIES._entries["llava"] = type("Spoilt", (Llava,), attributes)
    with pytest.raises(KitError) as error:
        checks.check_family(families.get("llava"), *model)
    assert problem in str(error.value)


# -- steps after unlearning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (lambda model, config: None, "gives NoneType and no model: return the model"),
        (lambda model, config: [p.data.fill_(torch.nan) for p in model.parameters()] and model, "not finite"),
        (lambda model, config: [p.data.normal_() for p in model.parameters()] and model, "another model each time"),
        (lambda model, config, seed=0: model, "every run has a parameter seed: choose another name"),
    ],
)
def test_a_mistake_in_a_step_after_unlearning_is_named(model, step, problem):
    after.after("spoilt")(step)
    with pytest.raises(KitError, match=problem):
        checks.check_after("spoilt", model[0], Config())


def test_a_step_that_does_nothing_passes_and_one_without_defaults_is_refused(model):
    after.after("nothing")(lambda model, config, bits=4: model)
    checks.check_after("nothing", model[0], Config(method="ga", modality="multimodal"))
    with pytest.raises(KitError, match="the step after unlearning 'int4' has no default for bits"):
        after.after("int4")(lambda model, config, bits: model)
    with pytest.raises(KitError, match="the step after unlearning 'int4' must take a model and a config, not .model."):
        after.after("int4")(lambda model: model)
    assert unlearning.names() and "int4" not in after.STEPS
