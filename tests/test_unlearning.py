"""Every method's loss against values worked out by hand, and its gradient against a formula of its own."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from mllmu_nb import unlearning
from mllmu_nb.errors import KitError
from mllmu_nb.unlearning import (
    IGNORE,
    METHODS,
    Method,
    Recorded,
    Scored,
    bring,
    get,
    mean_kl,
    mean_nll,
    register,
    sequence_log_probs,
    summed_kl,
    token_log_probs,
    token_nll,
)

LOG = math.log


def scored(probabilities, labels):
    """A batch whose model gives these probabilities [B, T, V]; logits may carry any constant, here 3."""
    logits = torch.tensor(probabilities).log() + 3.0
    return Scored(logits.requires_grad_(), torch.tensor(labels))


# Vocabulary of three. The first answer has two tokens of probability 1/2 and 1/8, the second has one of 1/4.
HALF, EIGHTH, QUARTER, EVEN = [0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]


def forget():
    return scored([[HALF, EIGHTH], [QUARTER, EVEN]], [[0, 1], [1, IGNORE]])


def retain():
    return scored([[EVEN, HALF]], [[2, 0]])


def gradient(loss, batch):
    return torch.autograd.grad(loss, batch.logits)[0]


def ascent(batch, weights):
    """d/dlogits of Σ_t w_t log p(y_t), which is w_t (onehot − p): what all gradients are checked against."""
    probabilities = batch.logits.detach().softmax(-1)
    onehot = torch.nn.functional.one_hot(batch.labels.clamp(min=0), 3).float()
    return torch.tensor(weights).unsqueeze(-1) * (onehot - probabilities)


def test_mean_nll_averages_each_answer_first():
    # (ln 2 + ln 8) / 2 = 2 ln 2 for the first answer, ln 4 = 2 ln 2 for the second
    assert mean_nll(forget()).item() == pytest.approx(2 * LOG(2), abs=1e-6)
    uneven = scored([[HALF, HALF], [EIGHTH, EVEN]], [[0, 0], [0, IGNORE]])
    assert mean_nll(uneven).item() == pytest.approx((LOG(2) + LOG(8)) / 2, abs=1e-6)
    assert token_nll(uneven).item() == pytest.approx((LOG(2) + LOG(2) + LOG(8)) / 3, abs=1e-6)


def test_sequence_log_probs_are_sums_with_their_counts():
    batch = forget()
    assert sequence_log_probs(batch).tolist() == pytest.approx([-4 * LOG(2), -2 * LOG(2)], abs=1e-6)
    assert batch.counts.tolist() == [2, 1]


def test_gradient_ascent():
    batch = forget()
    loss, parts = get("ga").loss({"forget": batch}, {})
    assert loss.item() == pytest.approx(-2 * LOG(2), abs=1e-6)
    assert parts == {"forget": pytest.approx(2 * LOG(2), abs=1e-6)}
    # +log p, averaged over 2 sequences, and over 2 and 1 tokens
    torch.testing.assert_close(gradient(loss, batch), ascent(batch, [[1 / 4, 1 / 4], [1 / 2, 0.0]]))


def test_gradient_difference_weighs_both_sets():
    lost, kept = forget(), retain()
    loss, parts = get("grad_diff", gamma=2.0, alpha=3.0).loss({"forget": lost, "retain": kept}, {})
    # retain: two tokens of probability 1/2, so ln 2 each
    assert loss.item() == pytest.approx(-2 * 2 * LOG(2) + 3 * LOG(2), abs=1e-6)
    assert parts["retain"] == pytest.approx(LOG(2), abs=1e-6)
    grad_lost, grad_kept = torch.autograd.grad(loss, (lost.logits, kept.logits))
    torch.testing.assert_close(grad_lost, 2 * ascent(lost, [[1 / 4, 1 / 4], [1 / 2, 0.0]]))
    torch.testing.assert_close(grad_kept, -3 * ascent(kept, [[1 / 2, 1 / 2]]))


def test_gradient_difference_defaults_are_one():
    assert (get("grad_diff").gamma, get("grad_diff").alpha) == (1.0, 1.0)


def test_kl_minimization():
    lost, now = forget(), scored([[EVEN, HALF]], [[2, 0]])
    before = scored([[HALF, HALF]], [[2, 0]])
    loss, parts = get("kl_min").loss({"forget": lost, "retain": now}, {"retain": before})
    # first token: 1/2 ln(1/2 / 1/4) + 1/4 ln 1 + 1/4 ln(1/4 / 1/2) = 1/4 ln 2; second: the same distribution, 0
    kl = (LOG(2) / 4 + 0) / 2
    assert parts == {"forget": pytest.approx(2 * LOG(2), abs=1e-6), "kl": pytest.approx(kl, abs=1e-6)}
    assert loss.item() == pytest.approx(-2 * LOG(2) + kl, abs=1e-6)
    # dKL(q‖p)/dlogits = p − q at each token, averaged over the two
    expected = (torch.tensor([[EVEN, HALF]]) - torch.tensor([[HALF, HALF]])) / 2
    torch.testing.assert_close(gradient(loss, now), expected)


def test_kl_runs_from_the_reference_to_the_model():
    """KL is not symmetric: this one is KL(reference ‖ model)."""
    before, now = scored([[EIGHTH]], [[0]]), scored([[HALF]], [[0]])
    forward = LOG(0.125 / 0.5) / 8 + LOG(0.125 / 0.25) / 8 + 0.75 * LOG(0.75 / 0.25)
    assert mean_kl(before, now).item() == pytest.approx(forward, abs=1e-6)
    assert mean_kl(now, before).item() != pytest.approx(forward, abs=1e-2)


def test_kl_of_a_model_with_itself_is_zero_and_pulls_nowhere():
    batch = forget()
    kl = mean_kl(forget(), batch)
    assert kl.item() == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(gradient(kl, batch), torch.zeros_like(batch.logits), atol=1e-7, rtol=0)


def test_npo():
    now = forget()
    before = scored([[HALF, HALF], [QUARTER, EVEN]], [[0, 0], [1, IGNORE]])
    before = Scored(before.logits.detach(), now.labels)
    # the first answer was ln(1/2) + ln(1/4) and is ln(1/2) + ln(1/8): ratio −ln 2; the second is as it was: ratio 0
    beta = 0.1
    loss, parts = get("npo").loss({"forget": now}, {"forget": before})
    expected = -(2 / beta) * (LOG(1 / (1 + math.exp(beta * -LOG(2)))) + LOG(1 / 2)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert parts["ratio"] == pytest.approx(-LOG(2) / 2, abs=1e-6)
    # gradient ascent's, each answer weighted by 2σ(β ratio) and its tokens summed
    weight = 2 / (1 + math.exp(beta * LOG(2)))
    torch.testing.assert_close(gradient(loss, now), ascent(now, [[weight / 2, weight / 2], [1 / 2, 0.0]]))


@pytest.mark.parametrize(
    ("variant", "tokens", "weight"),
    [("canonical", 5, 0.76), ("canonical", 20, 0.24), ("upstream", 5, 0.80), ("upstream", 20, 0.80)],
)
def test_npo_weight_one_nat_per_token_above_the_reference(variant, tokens, weight):
    """The weight with which an answer still pulls, after each of its tokens has lost one nat.

    Canonical 2σ(−.1 · tokens): 2 / (1 + e^.5) = .755 and 2 / (1 + e^2) = .238. Upstream 2σ(−.4) = 2 / (1 + e^.4) =
    .803 at any length, of a loss that is a mean over the tokens.
    """
    labels = [[0] * tokens]
    now = scored([[[0.2, 0.4, 0.4]] * tokens], labels)
    p = 0.2 * math.e
    before = scored([[[p, (1 - p) / 2, (1 - p) / 2]] * tokens], labels)
    loss, _ = get("npo", variant).loss({"forget": now}, {"forget": before})
    plain = gradient(sequence_log_probs(now).sum() if variant == "canonical" else -token_nll(now), now)
    ratio = gradient(loss, now) / plain
    assert ratio.flatten().tolist() == pytest.approx([weight] * tokens * 3, abs=0.005)


def test_npo_stays_finite_far_from_the_reference():
    now = scored([[[1e-30, 0.5, 0.5]] * 20, [[1.0, 1e-30, 1e-30]] * 20], [[0] * 20] * 2)
    before = scored([[[1.0, 1e-30, 1e-30]] * 20, [[1e-30, 0.5, 0.5]] * 20], [[0] * 20] * 2)
    loss, _ = get("npo").loss({"forget": now}, {"forget": before})
    # 20 tokens × 30 ln 10 nats: −(2/β) log σ(β·1381.6) ≈ 0 and (2/β)·β·1381.6 for the two
    assert loss.item() == pytest.approx(2 * 20 * 30 * LOG(10) / 2, rel=1e-4)


def everywhere(probabilities, labels, supervised):
    """A batch scored at all its positions [B, S, V], of which ``supervised`` [B, T] say where the labelled ones are."""
    logits = (torch.tensor(probabilities).log() + 3.0).requires_grad_()
    rows = torch.arange(len(labels)).unsqueeze(-1)
    return Scored(logits[rows, torch.tensor(supervised)], torch.tensor(labels), logits)


def test_upstream_gradient_ascent_takes_every_token_alike():
    batch = forget()
    loss, parts = get("ga", "upstream").loss({"forget": batch}, {})
    # ln 2 + ln 8 + ln 4 = 6 ln 2 over three tokens: 2 ln 2
    assert loss.item() == pytest.approx(-2 * LOG(2), abs=1e-6)
    assert parts == {"forget": pytest.approx(2 * LOG(2), abs=1e-6)}
    torch.testing.assert_close(gradient(loss, batch), ascent(batch, [[1 / 3, 1 / 3], [1 / 3, 0.0]]))
    # two halves and one eighth: (ln 2 + ln 2 + ln 8) / 3 = 5/3 ln 2, where a mean over answers has (ln 2 + ln 8) / 2
    uneven = scored([[HALF, HALF], [EIGHTH, EVEN]], [[0, 0], [0, IGNORE]])
    assert get("ga", "upstream").loss({"forget": uneven}, {})[0].item() == pytest.approx(-5 / 3 * LOG(2), abs=1e-6)
    assert get("ga").loss({"forget": uneven}, {})[0].item() == pytest.approx(-2 * LOG(2), abs=1e-6)


def test_upstream_gradient_difference_goes_up_and_down_in_steps_of_their_own():
    method, lost, kept = get("grad_diff", "upstream"), forget(), retain()
    assert method.passes == (("forget",), ("retain",))
    up, parts = method.loss({"forget": lost}, {})
    assert up.item() == pytest.approx(-2 * LOG(2), abs=1e-6) and parts == {"forget": -up.item()}
    torch.testing.assert_close(gradient(up, lost), ascent(lost, [[1 / 3, 1 / 3], [1 / 3, 0.0]]))
    down, parts = method.loss({"retain": kept}, {})
    assert down.item() == pytest.approx(LOG(2), abs=1e-6) and parts == {"retain": down.item()}
    torch.testing.assert_close(gradient(down, kept), -ascent(kept, [[1 / 2, 1 / 2]]))


def test_summed_kl_counts_every_position():
    """Two rows of three positions. At a position KL(HALF ‖ EVEN) is 1/4 ln 2 and KL(EVEN ‖ HALF) as much: 1/4 ln(1/2)
    + 1/4 ln 1 + 1/2 ln 2. Four of the six differ, and two of these are not supervised: 4 · 1/4 ln 2 / 2 rows.
    """
    now = everywhere([[EVEN, HALF, HALF], [EVEN, EVEN, HALF]], [[2, IGNORE], [2, 2]], [[0, 0], [0, 1]])
    before = everywhere([[HALF, HALF, EVEN], [HALF, HALF, HALF]], [[2, IGNORE], [2, 2]], [[0, 0], [0, 1]])
    kl = summed_kl(before, now)
    assert kl.item() == pytest.approx(4 * LOG(2) / 4 / 2, abs=1e-6)
    # dKL(q‖p)/dlogits = p − q at every position, padding or not, over two rows
    expected = (torch.tensor([[EVEN, HALF, HALF], [EVEN, EVEN, HALF]]) - before.everywhere.softmax(-1)) / 2
    torch.testing.assert_close(torch.autograd.grad(kl, now.everywhere)[0], expected.detach())
    # averaged over the supervised tokens it is 1/4 ln 2, however long the sequences are
    assert mean_kl(before, now).item() == pytest.approx(LOG(2) / 4, abs=1e-6)


def test_summed_kl_is_what_pytorch_calls_batchmean():
    torch.manual_seed(0)
    before, now = (Scored(torch.empty(0), torch.empty(0), torch.randn(3, 7, 11)) for _ in range(2))
    theirs = torch.nn.functional.kl_div(
        now.everywhere.log_softmax(-1), before.everywhere.softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(summed_kl(before, now), theirs)


def test_upstream_kl_minimization():
    method = get("kl_min", "upstream", alpha=3.0)
    lost = forget()
    up, parts = method.loss({"forget": lost}, {})
    assert up.item() == pytest.approx(-2 * LOG(2), abs=1e-6) and parts == {"forget": -up.item()}
    torch.testing.assert_close(gradient(up, lost), ascent(lost, [[1 / 3, 1 / 3], [1 / 3, 0.0]]))
    # One row of three positions, the middle one labelled with a token of probability 1/2; the other two have moved
    # from HALF to EVEN, 1/4 ln 2 each: ℓ̄_r = ln 2, KL = 2 · 1/4 ln 2 / 1
    now = everywhere([[EVEN, HALF, EVEN]], [[0]], [[1]])
    before = everywhere([[HALF, HALF, HALF]], [[0]], [[1]])
    down, parts = method.loss({"retain": now}, {"retain": before})
    assert parts == {"retain": pytest.approx(LOG(2), abs=1e-6), "kl": pytest.approx(LOG(2) / 2, abs=1e-6)}
    assert down.item() == pytest.approx(LOG(2) + 3 * LOG(2) / 2, abs=1e-6)
    moved = torch.tensor([EVEN]) - torch.tensor([HALF])  # p − q, three times for α; at the middle p − onehot alone
    middle = torch.tensor([HALF]) - torch.tensor([[1.0, 0.0, 0.0]])
    expected = torch.stack([3 * moved, middle, 3 * moved], 1)
    torch.testing.assert_close(torch.autograd.grad(down, now.everywhere)[0], expected)


def test_upstream_npo():
    now = forget()
    # now 6 ln 2 over three tokens, 2 ln 2 a token. The reference: 1/2, 1/2 and 1/4, so 4 ln 2 over three
    before = scored([[HALF, HALF], [QUARTER, EVEN]], [[0, 0], [1, IGNORE]])
    excess, beta = 2 * LOG(2) - 4 / 3 * LOG(2), 0.4
    loss, parts = get("npo", "upstream").loss({"forget": now}, {"forget": before})
    assert loss.item() == pytest.approx(2 / beta * LOG(1 + math.exp(-beta * excess)), abs=1e-5)
    assert parts == {"forget": pytest.approx(2 * LOG(2), abs=1e-6), "excess": pytest.approx(excess, abs=1e-6)}
    # ascent on the batch's mean, all of it weighted by 2σ(−β excess)
    weight = 2 / (1 + math.exp(beta * excess))
    torch.testing.assert_close(gradient(loss, now), ascent(now, [[weight / 3, weight / 3], [weight / 3, 0.0]]))


def test_what_was_recorded_of_a_model_stands_for_it():
    batch = forget()
    kept = Recorded(token_log_probs(batch).detach(), batch.labels)
    assert kept.counts.tolist() == [2, 1]
    for quantity in (token_log_probs, sequence_log_probs, mean_nll, token_nll):
        assert torch.equal(quantity(kept), quantity(batch))
    loss, parts = get("npo", "upstream").loss({"forget": batch}, {"forget": kept})
    assert parts["excess"] == 0 and loss.item() == pytest.approx(2 / 0.4 * LOG(2), abs=1e-6)


@pytest.mark.parametrize("name", ["ga", "grad_diff", "kl_min", "npo"])
@pytest.mark.parametrize("junk", [1e4, float("inf"), float("nan")])
def test_padding_has_no_influence(name, junk):
    """More padding, filled with anything, changes neither the loss nor the gradient."""

    def padded(batch):
        filling = torch.full((batch.labels.shape[0], 2, 3), junk)
        labels = torch.nn.functional.pad(batch.labels, (0, 2), value=IGNORE)
        return Scored(torch.cat([batch.logits.detach(), filling], 1).requires_grad_(), labels)

    method, results = get(name), []
    for change in (lambda batch: batch, padded):
        now = {"forget": change(forget()), "retain": change(retain())}
        before = {"forget": change(forget()), "retain": change(scored([[HALF, EIGHTH]], [[2, 0]]))}
        loss, _ = method.loss(now, before)
        results.append((loss.detach(), gradient(loss, now["forget"])))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1][:, :2])
    assert not results[1][1][:, 2:].any()


def test_methods_state_what_they_need():
    needs = {name: (get(name).uses, get(name).reference) for name in ("ga", "grad_diff", "kl_min", "npo", "prompting")}
    assert needs == {
        "ga": (("forget",), ()),
        "grad_diff": (("forget", "retain"), ()),
        "kl_min": (("forget", "retain"), ("retain",)),
        "npo": (("forget",), ("forget",)),
        "prompting": ((), ()),
    }


def test_upstream_variants_state_what_they_need():
    given = ("uses", "passes", "reference", "reference_model", "everywhere")
    needs = {name: [getattr(get(name, "upstream"), told) for told in given] for name in METHODS if name != "prompting"}
    both = (("forget",), ("retain",))
    assert needs == {
        "ga": [("forget",), (("forget",),), (), "vanilla", ()],
        "grad_diff": [("forget", "retain"), both, (), "vanilla", ()],
        "kl_min": [("forget", "retain"), both, ("retain",), "vanilla", ("retain",)],
        "npo": [("forget",), (("forget",),), ("forget",), "retain_epoch", ()],
    }
    assert [name for name in METHODS if get(name).measured_elsewhere or get(name).everywhere] == []
    assert get("npo", "upstream").measured_elsewhere and not get("kl_min", "upstream").measured_elsewhere


def test_prompting_is_a_system_prompt():
    assert "personal-related information" in get("prompting").system
    assert get("prompting").passes == () and get("ga").system == ""


def test_unknown_names_are_refused_by_name():
    with pytest.raises(KitError, match="unknown method 'gax': choose one of ga, grad_diff, kl_min, npo, prompting"):
        get("gax")
    with pytest.raises(KitError, match="npo has no variant 'upstraem': choose one of canonical, upstream"):
        get("npo", "upstraem")
    with pytest.raises(KitError, match="prompting has no variant 'upstream': choose one of canonical"):
        get("prompting", "upstream")
    with pytest.raises(KitError, match="npo has no setting 'gamma': it takes beta"):
        get("npo", gamma=1.0)


OUTSIDE = '''
from mllmu_nb.unlearning import Method, register

@register
class Nothing(Method):
    """L = 0"""
    name = "nothing"
    def loss(self, scored, reference):
        return 0 * scored["forget"].logits.sum(), {}

@register
class OneAfterTheOther(Method):
    """Ascent over forget, then descent over retain, in steps of their own."""
    name, variant = "grad_diff", "one_after_the_other"
    uses = ("forget", "retain")
    passes = (("forget",), ("retain",))
'''


def test_a_package_outside_adds_a_method_and_a_variant(tmp_path, monkeypatch):
    monkeypatch.setattr("mllmu_nb.unlearning.base.METHODS", {name: dict(known) for name, known in METHODS.items()})
    file = tmp_path / "mine.py"
    file.write_text(OUTSIDE)
    spec = importlib.util.spec_from_file_location("mine", file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    loss, _ = get("nothing").loss({"forget": forget()}, {})
    assert loss.item() == 0
    assert get("grad_diff", "one_after_the_other").passes == (("forget",), ("retain",))
    assert get("grad_diff").passes == (("forget", "retain"),)


def test_a_name_taken_is_not_taken_twice():
    with pytest.raises(KitError, match="'ga' .canonical. is registered already"):

        @register
        class Other(Method):
            name = "ga"


def test_a_reference_that_nobody_makes_is_refused():
    with pytest.raises(KitError, match="odd has no reference_model 'gpt': choose one of vanilla, retain_epoch"):

        @register
        class Odd(Method):
            name, reference, reference_model = "odd", ("forget",), "gpt"


def test_modules_named_in_the_environment_bring_their_methods(tmp_path, monkeypatch):
    known = {name: dict(variants) for name, variants in METHODS.items()}
    monkeypatch.setattr("mllmu_nb.unlearning.base.METHODS", known)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brought.py").write_text(OUTSIDE)
    bring("")
    assert list(known) == list(METHODS)
    bring(" brought, ")
    assert list(known) == [*METHODS, "nothing"] and known["grad_diff"].keys() - METHODS["grad_diff"].keys()
    with pytest.raises(KitError, match="MLLMU_NB_METHODS names 'yours', which cannot be imported: No module named"):
        bring("brought,yours")


def test_every_file_of_the_package_is_imported():
    files = {file.stem for file in Path(unlearning.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == set(METHODS)
