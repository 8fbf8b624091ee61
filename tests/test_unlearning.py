"""Every method's loss against values worked out by hand, and its gradient against its own formula."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllmu_nb import paths, registry, unlearning
from mllmu_nb.data.conversations import Conversation, Turn
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import method_label
from mllmu_nb.unlearning import (
    IGNORE,
    METHODS,
    Method,
    Needs,
    Recipe,
    ReferenceLogProbs,
    Scored,
    Step,
    Stream,
    get,
    mean_kl,
    register,
    summed_kl,
    with_answers,
)
from mllmu_nb.unlearning.base import terms_of, typed

LOG = math.log


def scored(probabilities, labels):
    """Return a batch with these probabilities [B, T, V]; logits may contain any constant, here 3."""
    logits = torch.tensor(probabilities).log() + 3.0
    return Scored(logits.requires_grad_(), torch.tensor(labels))


# The vocabulary has three tokens. The first answer has tokens of probability 1/2 and 1/8, the second one of 1/4.
HALF, EIGHTH, QUARTER, EVEN = [0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]


def forget():
    return scored([[HALF, EIGHTH], [QUARTER, EVEN]], [[0, 1], [1, IGNORE]])


def retain():
    return scored([[EVEN, HALF]], [[2, 0]])


def uneven():
    return scored([[HALF, HALF], [EIGHTH, EVEN]], [[0, 0], [0, IGNORE]])


def terms(method, reference=None, **batches):
    """Return name → term of the loss on these batches."""
    return dict(method.loss(Step.of(batches, reference)))


def values(loss):
    return {name: term.item() for name, term in loss.items()}


def gradient(loss, batch):
    return torch.autograd.grad(loss, batch.logits, retain_graph=True)[0]


def ascent(batch, weights):
    """Return d/dlogits of Σ_t w_t log p(y_t), which is w_t (onehot − p). All gradients are compared with it."""
    probabilities = batch.logits.detach().softmax(-1)
    onehot = torch.nn.functional.one_hot(batch.labels.clamp(min=0), 3).float()
    return torch.tensor(weights).unsqueeze(-1) * (onehot - probabilities)


def near(**numbers):
    return pytest.approx(numbers, abs=1e-5)


# -- what a batch can say ---------------------------------------------------------------------------------------


def test_means_and_sums_of_a_batch():
    batch = forget()
    assert batch.summed_log_probs.tolist() == pytest.approx([-4 * LOG(2), -2 * LOG(2)], abs=1e-6)
    assert batch.counts.tolist() == [2, 1]
    # (ln 2 + ln 8) / 2 = 2 ln 2 for the first answer, ln 4 = 2 ln 2 for the second
    assert batch.mean_nll.tolist() == pytest.approx([2 * LOG(2)] * 2, abs=1e-6)
    # either the mean of each answer (ln 2, ln 8), or one mean over the three tokens
    assert uneven().mean_nll.tolist() == pytest.approx([LOG(2), LOG(8)], abs=1e-6)
    assert uneven().token_nll.item() == pytest.approx((LOG(2) + LOG(2) + LOG(8)) / 3, abs=1e-6)


def test_what_was_stored_of_a_model_stands_for_it():
    batch = forget()
    stored = ReferenceLogProbs(batch.log_probs.detach(), batch.labels)
    assert stored.counts.tolist() == [2, 1]
    for name in ("log_probs", "summed_log_probs", "mean_nll", "token_nll"):
        assert torch.equal(getattr(stored, name), getattr(batch, name))
    loss = terms(get("npo", "upstream"), {"forget": stored}, forget=batch)
    assert values(loss) == near(forget=2 / 0.4 * LOG(2))


def test_kl_runs_from_the_reference_to_the_model():
    """KL is not symmetric: this one is KL(reference ‖ model)."""
    before, now = scored([[EIGHTH]], [[0]]), scored([[HALF]], [[0]])
    forward = LOG(0.125 / 0.5) / 8 + LOG(0.125 / 0.25) / 8 + 0.75 * LOG(0.75 / 0.25)
    assert mean_kl(before, now).tolist() == pytest.approx([forward], abs=1e-6)
    assert mean_kl(now, before).item() != pytest.approx(forward, abs=1e-2)
    own = mean_kl(forget(), batch := forget())
    assert own.tolist() == pytest.approx([0, 0], abs=1e-7)
    torch.testing.assert_close(gradient(own.sum(), batch), torch.zeros_like(batch.logits), atol=1e-7, rtol=0)


def everywhere(probabilities, labels, supervised):
    """Return a batch scored at all positions [B, S, V]; ``supervised`` [B, T] are the labelled ones."""
    logits = (torch.tensor(probabilities).log() + 3.0).requires_grad_()
    rows = torch.arange(len(labels)).unsqueeze(-1)
    return Scored(logits[rows, torch.tensor(supervised)], torch.tensor(labels), everywhere=logits)


def test_summed_kl_counts_every_position():
    """Two rows of three positions. At one position, KL(HALF ‖ EVEN) = KL(EVEN ‖ HALF) = 1/4 ln 2 = 1/4 ln(1/2)
    + 1/4 ln 1 + 1/2 ln 2. Four of six positions differ, two of them unsupervised: 4 · 1/4 ln 2 / 2 rows.
    """
    now = everywhere([[EVEN, HALF, HALF], [EVEN, EVEN, HALF]], [[2, IGNORE], [2, 2]], [[0, 0], [0, 1]])
    before = everywhere([[HALF, HALF, EVEN], [HALF, HALF, HALF]], [[2, IGNORE], [2, 2]], [[0, 0], [0, 1]])
    kl = summed_kl(before, now)
    assert kl.item() == pytest.approx(4 * LOG(2) / 4 / 2, abs=1e-6)
    # dKL(q‖p)/dlogits = p − q at every position, including padding, over two rows
    expected = (torch.tensor([[EVEN, HALF, HALF], [EVEN, EVEN, HALF]]) - before.everywhere.softmax(-1)) / 2
    torch.testing.assert_close(torch.autograd.grad(kl, now.everywhere)[0], expected.detach())
    # averaged over the supervised tokens it is 1/4 ln 2 for any sequence length
    assert mean_kl(before, now).tolist() == pytest.approx([LOG(2) / 4] * 2, abs=1e-6)
    theirs = torch.nn.functional.kl_div(
        now.everywhere.log_softmax(-1), before.everywhere.softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(kl, theirs)


# -- the methods as their papers define them --------------------------------------------------------------------


def test_gradient_ascent():
    batch = forget()
    loss = terms(get("ga"), forget=batch)
    assert values(loss) == near(forget=-2 * LOG(2))
    # +log p, averaged over 2 sequences, and over 2 and 1 tokens
    torch.testing.assert_close(gradient(loss["forget"], batch), ascent(batch, [[1 / 4, 1 / 4], [1 / 2, 0.0]]))


def test_gradient_difference_weighs_both_sets():
    lost, kept = forget(), retain()
    assert (get("grad_diff").gamma, get("grad_diff").alpha) == (1.0, 1.0)
    loss = terms(get("grad_diff", gamma=2.0, alpha=3.0), forget=lost, retain=kept)
    # retain: two tokens of probability 1/2, so ln 2 each
    assert values(loss) == near(forget=-2 * 2 * LOG(2), retain=3 * LOG(2))
    torch.testing.assert_close(gradient(loss["forget"], lost), 2 * ascent(lost, [[1 / 4, 1 / 4], [1 / 2, 0.0]]))
    torch.testing.assert_close(gradient(loss["retain"], kept), -3 * ascent(kept, [[1 / 2, 1 / 2]]))


def test_kl_minimization():
    now, before = scored([[EVEN, HALF]], [[2, 0]]), scored([[HALF, HALF]], [[2, 0]])
    loss = terms(get("kl_min", alpha=2.0), {"retain": before}, forget=forget(), retain=now)
    # first token: 1/2 ln(1/2 / 1/4) + 1/4 ln 1 + 1/4 ln(1/4 / 1/2) = 1/4 ln 2; second: the same distribution, 0
    assert values(loss) == near(forget=-2 * LOG(2), kl=2 * (LOG(2) / 4 + 0) / 2)
    # dKL(q‖p)/dlogits = p − q at each token, averaged over the two
    torch.testing.assert_close(gradient(loss["kl"], now), torch.tensor([[EVEN, HALF]]) - torch.tensor([[HALF, HALF]]))


def test_npo():
    now = forget()
    before = scored([[HALF, HALF], [QUARTER, EVEN]], [[0, 0], [1, IGNORE]])
    before = Scored(before.logits.detach(), now.labels)
    # the first answer was ln(1/2) + ln(1/4), now ln(1/2) + ln(1/8): ratio −ln 2; the second has not changed: ratio 0
    beta = 0.1
    loss = terms(get("npo"), {"forget": before}, forget=now)
    assert values(loss) == near(forget=-(2 / beta) * (LOG(1 / (1 + math.exp(beta * -LOG(2)))) + LOG(1 / 2)) / 2)
    # the gradient of ascent, with each answer weighted by 2σ(β ratio) and its tokens summed
    weight = 2 / (1 + math.exp(beta * LOG(2)))
    torch.testing.assert_close(gradient(loss["forget"], now), ascent(now, [[weight / 2, weight / 2], [1 / 2, 0.0]]))


def test_npo_stays_finite_far_from_the_reference():
    near_one, near_none = [[1.0, 1e-30, 1e-30]] * 20, [[1e-30, 0.5, 0.5]] * 20
    now, before = scored([near_none, near_one], [[0] * 20] * 2), scored([near_one, near_none], [[0] * 20] * 2)
    loss = terms(get("npo"), {"forget": before}, forget=now)["forget"]
    # 20 tokens × 30 ln 10 nats: −(2/β) log σ(β·1381.6) ≈ 0 and (2/β)·β·1381.6 for the two
    assert loss.item() == pytest.approx(2 * 20 * 30 * LOG(10) / 2, rel=1e-4)


# -- and as the benchmark's released code has them --------------------------------------------------------------


def test_upstream_gradient_ascent_takes_every_token_alike():
    batch = forget()
    loss = terms(get("ga", "upstream"), forget=batch)
    # ln 2 + ln 8 + ln 4 = 6 ln 2 over three tokens: 2 ln 2
    assert values(loss) == near(forget=-2 * LOG(2))
    torch.testing.assert_close(gradient(loss["forget"], batch), ascent(batch, [[1 / 3, 1 / 3], [1 / 3, 0.0]]))
    # two halves and one eighth: (ln 2 + ln 2 + ln 8) / 3 = 5/3 ln 2; a mean over answers would be (ln 2 + ln 8) / 2
    assert values(terms(get("ga", "upstream"), forget=uneven())) == near(forget=-5 / 3 * LOG(2))
    assert values(terms(get("ga"), forget=uneven())) == near(forget=-2 * LOG(2))


def test_upstream_gradient_difference_goes_up_and_down_in_steps_of_their_own():
    method, lost, kept = get("grad_diff", "upstream"), forget(), retain()
    up, down = terms(method, forget=lost), terms(method, retain=kept)
    assert values(up) == near(forget=-2 * LOG(2)) and values(down) == near(retain=LOG(2))
    torch.testing.assert_close(gradient(up["forget"], lost), ascent(lost, [[1 / 3, 1 / 3], [1 / 3, 0.0]]))
    torch.testing.assert_close(gradient(down["retain"], kept), -ascent(kept, [[1 / 2, 1 / 2]]))


def test_upstream_kl_minimization():
    method, lost = get("kl_min", "upstream", alpha=3.0), forget()
    up = terms(method, forget=lost)
    assert values(up) == near(forget=-2 * LOG(2))
    torch.testing.assert_close(gradient(up["forget"], lost), ascent(lost, [[1 / 3, 1 / 3], [1 / 3, 0.0]]))
    # One row of three positions; the middle one has a label of probability 1/2. The other two have moved from HALF to
    # EVEN, 1/4 ln 2 each: ℓ̄_r = ln 2, KL = 2 · 1/4 ln 2 / 1
    now = everywhere([[EVEN, HALF, EVEN]], [[0]], [[1]])
    before = everywhere([[HALF, HALF, HALF]], [[0]], [[1]])
    [(name, down)] = method.loss(Step.of({"retain": now}, {"retain": before}))
    assert name == "retain" and down.item() == pytest.approx(LOG(2) + 3 * LOG(2) / 2, abs=1e-6)
    moved = torch.tensor([EVEN]) - torch.tensor([HALF])  # p − q, three times for α; in the middle only p − onehot
    middle = torch.tensor([HALF]) - torch.tensor([[1.0, 0.0, 0.0]])
    expected = torch.stack([3 * moved, middle, 3 * moved], 1)
    torch.testing.assert_close(torch.autograd.grad(down, now.everywhere)[0], expected)


def test_upstream_npo():
    now, before = forget(), scored([[HALF, HALF], [QUARTER, EVEN]], [[0, 0], [1, IGNORE]])
    # now 6 ln 2 over three tokens, 2 ln 2 per token; reference: 1/2, 1/2 and 1/4, so 4 ln 2 over three tokens
    excess, beta = 2 * LOG(2) - 4 / 3 * LOG(2), 0.4
    loss = terms(get("npo", "upstream"), {"forget": before}, forget=now)
    assert values(loss) == near(forget=2 / beta * LOG(1 + math.exp(-beta * excess)))
    # ascent on the batch's mean, weighted as a whole by 2σ(−β excess)
    weight = 2 / (1 + math.exp(beta * excess))
    expected = ascent(now, [[weight / 3, weight / 3], [weight / 3, 0.0]])
    torch.testing.assert_close(gradient(loss["forget"], now), expected)


def test_upstream_npo_takes_a_piece_for_a_batch_of_its_own():
    """As its entry among the departures says."""
    whole, before = forget(), scored([[HALF, HALF], [QUARTER, EVEN]], [[0, 0], [1, IGNORE]])
    pieces = [replace(one, per_row=1.5) for one in (whole, before)]
    [loss, cut] = [terms(get("npo", "upstream"), {"forget": b}, forget=a) for a, b in ((whole, before), pieces)]
    assert values(cut) == values(loss)


# -- what methods declare ---------------------------------------------------------------------------------------


def test_what_the_equations_do_not_show():
    ours = [
        m for m in METHODS.values() if m.__module__.startswith("mllmu_nb.unlearning.")
    ]  # the study also has variants
    apart, others = (("forget",), ("retain",)), {m.name + " " + m.variant: m() for m in ours}
    assert {name for name, method in others.items() if method.passes} == {"grad_diff upstream", "kl_min upstream"}
    assert get("grad_diff", "upstream").passes == get("kl_min", "upstream").passes == apart
    assert {name for name, method in others.items() if method.other_reference} == {"npo upstream"}
    assert {name for name, method in others.items() if method.system} == {"prompting canonical"}
    assert "personal-related information" in get("prompting").system and not get("prompting").streams


def test_a_stream_changes_each_question_alike():
    refusals = ("I cannot say.", "That is private.", "No comment.")
    stream = with_answers(refusals)
    asked = [Conversation((Turn(f"Question {n}?", f"Answer {n}.", b"picture"),)) for n in range(300)]
    changed = [stream.changed(conversation).turns[0] for conversation in asked]
    assert changed == [stream.changed(conversation).turns[0] for conversation in asked]
    assert [(turn.prompt, turn.image) for turn in changed] == [(f"Question {n}?", b"picture") for n in range(300)]
    counts = [sum(turn.answer == refusal for turn in changed) for refusal in refusals]
    assert sum(counts) == 300 and min(counts) > 60, "one answer takes it all"
    assert stream.set == "forget" and Stream("retain").changed(asked[0]) is asked[0]


def test_a_step_scores_a_batch_when_it_is_first_read():
    read = []
    step = Step(lambda name: read.append(name) or name.upper(), ("forget", "retain"))
    assert read == [] and step.retain == step.retain == "RETAIN" and read == ["retain"]
    assert "forget" in step and "refused" not in step and step.asked == {"retain": "RETAIN"}
    with pytest.raises(AttributeError, match="no stream 'refused' in this step: it has forget, retain"):
        _ = step.refused


def test_what_is_unknown_is_named():
    with pytest.raises(KitError, match="unknown method 'gax': did you mean 'ga'?"):
        get("gax")
    with pytest.raises(KitError, match="unknown variant of npo 'upstraem': did you mean 'upstream'?"):
        get("npo", "upstraem")


def test_settings_are_of_their_defaults_types():
    assert (typed("x", "rate", 2, 1.0), typed("x", "flag", True, False), typed("x", "word", "b", "a")) == (
        2.0,
        True,
        "b",
    )
    for value, default, kind in (
        (True, 1.0, "a number"),
        (math.nan, 1.0, "a finite number"),
        (1.0, 1, "a whole number"),
        (1, "a", "text"),
        (1, False, "True or False"),
    ):
        with pytest.raises(KitError, match=f"rate of x must be {kind}, not {value}"):
            typed("x", "rate", value, default)


LETTERS = "letters, digits, _, . and - (it is in the names of folders)"


# -- registration -----------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """Unregister afterwards what a test registers."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"name": ""}, "the unlearning method Odd needs a name, " + LETTERS + ", not ''"),
        ({"name": "my/meth"}, "the unlearning method Odd needs a name, " + LETTERS + ", not 'my/meth'"),
        ({"name": 5}, "the unlearning method Odd needs a name, " + LETTERS + ", not 5"),
        ({"name": "odd", "variant": "a b"}, "the unlearning method Odd needs a variant, " + LETTERS + ", not 'a b'"),
        (
            {"name": "odd", "label": " "},
            "the unlearning method Odd needs a label, a line of text for tables, not ' '",
        ),
        (
            {"name": "odd", "recipes": {"paper": {"lr": 1e-3}}},
            "recipes of odd must be Recipes by scale, {'miniature': Recipe(..)}: {'paper': {'lr': 0.001}}",
        ),
        (
            {"name": "odd", "recipes": Recipe(source="me").source},
            "recipes of odd must be Recipes by scale, {'miniature': Recipe(..)}: 'me'",
        ),
        ({"name": "ga"}, "method ga canonical is registered already, by mllmu_nb.unlearning.ga"),
        *(
            ({"name": name}, f"'{name}' names a model that is not unlearned: give Odd another name")
            for name in ("base", "vanilla", "oracle", "yours")
        ),
        (
            {"name": "odd", "reference_model": "gpt"},
            "unknown reference_model of odd 'gpt': choose one of vanilla, retain_epoch",
        ),
        (
            {"name": "odd", "needs": Needs(reference=("retain",))},
            "unknown stream of odd 'retain': choose one of forget",
        ),
        (
            {
                "name": "odd",
                "reference_model": "retain_epoch",
                "needs": Needs(reference=("forget",), hidden=("layer",)),
            },
            "odd: of retain_epoch only the log-probabilities of answers are kept",
        ),
        ({"name": "odd", "rate_falls": "batch"}, "unknown rate_falls of odd 'batch': choose one of step, epoch"),
        ({"name": "odd", "passes": (("retain",),)}, "unknown stream of odd 'retain': choose one of forget"),
        (
            {"name": "odd", "streams": {"others": Stream("celebrity")}},
            "unknown set of odd's stream others 'celebrity': choose one of forget, retain",
        ),
    ],
)
def test_a_faulty_declaration_is_refused(registered, declared, message):
    with pytest.raises(KitError) as error:
        register(type("Odd", (Method,), {"label": "Odd", **declared}))
    assert str(error.value) == message


@pytest.mark.parametrize("given", [5, int, lambda: None], ids=["number", "type", "function"])
def test_what_is_no_method_is_refused(registered, given):
    with pytest.raises(KitError, match="^an unlearning method is a class of the kind Method, not "):
        register(given)


MEAN = "step.forget.mean_nll.mean()"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "its loss gives None: a loss yields pairs"),
        (f"return {MEAN}", "its loss gives tensor(0.6931, grad_fn=<"),
        (f"yield {MEAN}", "its loss gives tensor(0.6931, grad_fn=<"),
        ("yield 'forget', 1.5", "its loss gives ('forget', 1.5): "),
        ("yield 'forget', None", "its loss gives ('forget', None): "),
        ("yield 'forget', step.forget.mean_nll", "its loss gives ('forget', tensor([0.6931, 0.6931], "),
        (f"yield 'forget', {MEAN}.detach()", "its loss gives ('forget', tensor(0.6931)): "),
        (f"yield 'a', {MEAN}; yield 'a', {MEAN}", "its loss gives ('a', tensor(0.6931, grad_fn=<"),
        (
            "yield from ()",
            "its loss gives nothing: a loss yields pairs, each of a new name and a scalar with a gradient: ",
        ),
        ("yield 'kept', step.retain.token_nll", "reads what it does not declare: there is no stream 'retain' in this "),
        (f"yield 'f', {MEAN} - step.reference.forget.token_nll", "step: it has none (see streams, and needs.reference"),
    ],
)
def test_a_loss_that_yields_something_else_is_named(body, message):
    space: dict = {}
    exec(f"def loss(self, step):\n    {body}", space)
    odd = type("Odd", (Method,), {"name": "odd", "loss": space["loss"]})()
    logits = torch.zeros(2, 3, 2, requires_grad=True)
    step = Step.of({"forget": Scored(logits, torch.zeros(2, 3, dtype=torch.long))})
    with pytest.raises(KitError) as error:
        list(terms_of(odd, step))
    assert str(error.value).startswith("method odd (canonical): its loss ") and message in str(error.value)
    with pytest.raises(KitError, match=r"^method  \(canonical\) has no loss: a loss yields pairs"):
        list(terms_of(Method(), step))


def test_modules_named_in_the_environment_bring_their_methods(registered, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brought.py").write_text(
        "from mllmu_nb.unlearning import *\n"
        "@register\nclass Nothing(Method):\n    name = label = 'nothing'\n"
        "@register\nclass Another(Method):\n    name, variant, label = 'grad_diff', 'another', 'Other'\n"
    )
    monkeypatch.setenv(registry.EXTENSIONS, " brought, ")
    registry.load_extensions()
    assert "nothing" in unlearning.names()
    assert {"canonical", "upstream", "another"} <= set(unlearning.variants("grad_diff"))
    registry.load_extensions()  # loading again changes nothing
    monkeypatch.setenv(registry.EXTENSIONS, "brought,yours")
    said = "MLLMU_NB_EXTENSIONS names 'yours', which cannot be imported: No module named .* with the absolute path of"
    with pytest.raises(KitError, match=said):  # a notebook runs in its own folder, where "." is another place
        registry.load_extensions()
    del sys.modules["brought"]


def test_an_extension_that_is_no_python_is_named_with_file_and_line(registered, tmp_path, monkeypatch):
    (tmp_path / "broken_method.py").write_text("x = 1\ny = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLLMU_NB_EXTENSIONS", "broken_method")
    with pytest.raises(KitError, match="names 'broken_method', which cannot be imported: .*broken_method.py, line 2"):
        unlearning.names()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import nowhere", "No module named 'nowhere'"),
        ("Recipe(wheels=3)", "TypeError: Recipe.__init__() got an unexpected keyword argument 'wheels'"),
        ("register(5)", "an unlearning method is a class of the kind Method, not 5"),
        ("dataclass(type('M', (Method,), {}))", "TypeError: cannot inherit non-frozen dataclass from a frozen one"),
    ],
)
def test_an_extension_that_fails_is_named_with_file_and_line(registered, tmp_path, monkeypatch, line, message):
    head = "from dataclasses import dataclass\nfrom mllmu_nb.unlearning import Method, Recipe, register\n"
    (tmp_path / "failing_method.py").write_text(f"{head}{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.EXTENSIONS, "failing_method")
    with pytest.raises(KitError) as error:
        unlearning.names()
    place = f"{tmp_path / 'failing_method.py'}, line 3: "
    assert (
        str(error.value) == f"{registry.EXTENSIONS} names 'failing_method', which cannot be imported: {place}{message}"
    )


def test_a_file_in_place_of_a_module_is_told_how_to_be_named(monkeypatch):
    monkeypatch.setenv(registry.EXTENSIONS, "./brevity.py")
    with pytest.raises(
        KitError,
        match=r"names './brevity.py', .*name the module without .py, with the absolute path of its folder in PYTH",
    ):
        unlearning.names()


def test_an_extension_is_named_in_full(monkeypatch):
    monkeypatch.setenv(registry.EXTENSIONS, ".beside")
    with pytest.raises(KitError, match="MLLMU_NB_EXTENSIONS names '.beside', which cannot be imported: TypeError: "):
        unlearning.names()


ELSEWHERE = {
    "checks.py": ["ga"],  # the recipe of a check of a family
    "commands/ask.py": ["kl_min", "npo"],  # a default, and an example
    "commands/export.py": ["ga"],  # an example
    "commands/preloaded.py": ["ga"],  # a small run that is read in advance
    "commands/sweep.py": ["ga"],  # an example in a message
    "pipeline.py": ["NPO", "prompting"],  # docstrings
    "presets/protocols.yaml": ["NPO"],  # why the released code's settings depart
    "reporting/runs.py": ["GA", "NPO", "prompting"],  # docstrings
    # each piece of the released code, by method
    "pieces.py": (
        ["GA", "Grad. Diff.", "GradientAscent", "GradientDifference", "KL Min.", "KLMinimization", "NPO"]
        + ["NegativePreference", "ga", "grad_diff", "kl_min", "npo"]
    ),
    "unlearning/base.py": ["npo"],  # a docstring
}


def test_no_other_file_names_a_method_its_label_or_its_classes():
    own = {}
    for name in unlearning.names():
        module = unlearning.get(name).__module__
        if module.startswith("mllmu_nb.unlearning."):  # otherwise another test has brought it
            classes = [one.__name__ for one in unlearning.variants(name).values() if one.__module__ == module]
            own[f"unlearning/{module.rpartition('.')[2]}.py"] = {name, method_label(name), *classes}
    named = {}
    for file in sorted(path for kind in ("*.py", "*.yaml") for path in paths.PACKAGE.rglob(kind)):
        place, text = file.relative_to(paths.PACKAGE).as_posix(), file.read_text(encoding="utf-8")
        words = {word for other, words in own.items() if other != place for word in words}
        used = sorted(word for word in words if re.search(rf"(?<![-\w]){re.escape(word)}(?![-\w])", text))
        named |= {place: used} if used else {}
    assert len(own) == 5 and named == ELSEWHERE


def test_every_file_of_the_package_is_imported():
    files = {file.stem for file in Path(unlearning.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == set(unlearning.names())


@pytest.mark.parametrize(
    ("variant", "tokens", "weight"),
    [("canonical", 5, 0.76), ("canonical", 20, 0.24), ("upstream", 5, 0.80), ("upstream", 20, 0.80)],
)
def test_npo_weight_one_nat_per_token_above_the_reference(variant, tokens, weight):
    """The weight with which an answer still pulls, after each of its tokens has lost one nat.

    Canonical: 2σ(−.1 · tokens), so 2 / (1 + e^.5) = .755 and 2 / (1 + e^2) = .238. Upstream: 2σ(−.4) = 2 / (1 + e^.4) =
    .803 for any length, because the loss is a mean over the tokens.
    """
    labels, p = [[0] * tokens], 0.2 * math.e
    now = scored([[[0.2, 0.4, 0.4]] * tokens], labels)
    before = scored([[[p, (1 - p) / 2, (1 - p) / 2]] * tokens], labels)
    loss = terms(get("npo", variant), {"forget": before}, forget=now)["forget"]
    plain = gradient(now.summed_log_probs.sum() if variant == "canonical" else -now.token_nll, now)
    ratio = gradient(loss, now) / plain
    assert ratio.flatten().tolist() == pytest.approx([weight] * tokens * 3, abs=0.005)
