"""Predicted memory and hours, compared with what torch's profiler counts in real steps on the CPU."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch

from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb import after, inputs, paths, prediction, training
from mllmu_nb.config import Config
from mllmu_nb.evaluation import ask, attention, engine
from mllmu_nb.evaluation.engine import Prompts
from mllmu_nb.evaluation.tasks import Asking
from mllmu_nb.models import adapters, families, load
from mllmu_nb.prediction import Estimate, Rate, Tally
from mllmu_nb.registry import Registry
from mllmu_nb.unlearning import get

RECIPE = replace(Config(scale="paper").training, precision="fp32", lora_init="kaiming")
FULL = replace(Config().training, optimizer="adamw", turns=1, batch_size=4)
WAYS = {
    "all weights": (FULL, None, "eager"),
    "an adapter": (RECIPE, None, "sdpa"),
    "on the tower as well": (replace(RECIPE, adapter_reach="upstream", label_mode="text"), None, "sdpa"),
    "checkpointing": (replace(RECIPE, checkpointing=True), None, "sdpa"),
    "in pieces": (replace(RECIPE, micro_batch=1), None, "sdpa"),
    "grad_diff, two graphs": (RECIPE, get("grad_diff"), "sdpa"),
    "kl_min, reference beside": (RECIPE, get("kl_min"), "sdpa"),
    "kl_min, logits everywhere": (replace(RECIPE, label_mode="text"), get("kl_min", "upstream"), "sdpa"),
    "npo": (RECIPE, get("npo"), "sdpa"),
    "npo, stored": (RECIPE, get("npo", "upstream"), "sdpa"),
}
PAPER = Config(scale="paper", data_source="MLLMMU/MLLMU-Bench")


def model_of(family="llava", width=64, layers=4):
    tokenizer = make_tokenizer(["Where was this person born?"], 300, family)
    return make_model(tokenizer, 0, width=width, layers=layers, heads=4, family=family)


def most_bytes(work) -> int:
    """Return the most bytes of tensors that ``work`` holds at once, by torch's own profiler."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]).cumsum(0)
    return int(held.max())


def measured(model, recipe, method, names, full):
    """Return the peak bytes of two real steps by the loop's own code, including the weights."""
    model = load.unfreeze(model) if full else adapters.attach(model, recipe, 0, method.trains)
    if recipe.checkpointing:
        training.keep_less(model)
    estimate, rows = Estimate(model.config, full), recipe.micro_batch or recipe.batch_size
    batch = estimate.batch(rows, 1, True, recipe.label_mode)
    if method.other_reference:
        count = int((batch["labels"][:, 1:] != -100).sum(1).max())
        batch["stored_log_probs"] = torch.zeros(rows, count)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers, autocast = training.make_optimizers(trained, recipe), training._autocast(recipe, model.device)
    pieces = [dict.fromkeys(names, batch)] * (recipe.batch_size // rows)

    def steps():
        for _ in range(2):
            training.back_propagate(model.train(), pieces, method, trained, autocast)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    weights = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(weights.values()) + most_bytes(steps)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_holds_the_bytes_that_are_predicted(way):
    """With widths and depths that were not used when the prediction was written; nothing is fitted."""
    recipe, method, attention = WAYS[way]
    full, method = recipe is FULL, method or training.FineTuning()
    names = method.all_passes[-1]
    for width, layers in ((96, 6), (160, 3))[: 2 if way == "an adapter" else 1]:
        model = model_of(width=width, layers=layers)
        model.set_attn_implementation(attention)
        predicted = Estimate(model.config, eager=attention == "eager").step(recipe, full, method, names)["peak"]
        assert predicted == pytest.approx(measured(model, recipe, method, names, full), rel=0.15)


@pytest.mark.parametrize("family", ["idefics2", "qwen2_5_vl"])
def test_other_families_hold_the_bytes_that_are_predicted(family):
    model = model_of(family)
    model.set_attn_implementation("sdpa")
    predicted = Estimate(model.config, eager=False).step(RECIPE, False)["peak"]
    assert predicted == pytest.approx(measured(model, RECIPE, training.FineTuning(), ("train",), False), rel=0.15)


def test_half_precision_holds_the_bytes_that_are_predicted(monkeypatch):
    monkeypatch.setattr("mllmu_nb.pinning.pinned", lambda: False)
    model, recipe = model_of().bfloat16(), replace(RECIPE, precision="bf16")
    model.set_attn_implementation("sdpa")
    predicted = Estimate(model.config, eager=False).step(recipe, False)["peak"]
    whole = Estimate(model.config, eager=False).step(RECIPE, False)["peak"]
    assert predicted == pytest.approx(measured(model, recipe, training.FineTuning(), ("train",), False), rel=0.15)
    assert predicted < 0.75 * whole


def test_operations_are_those_of_the_real_step_and_of_the_textbook():
    model = model_of()
    estimate = Estimate(model.config, eager=True)
    batch = estimate.batch(4, 1, True, "answer")
    trained = dict(load.unfreeze(model).named_parameters())
    with Tally(model) as tally:
        training.back_propagate(
            model, [{"train": batch}], training.FineTuning(), trained, torch.autocast("cpu", enabled=False)
        )
    assert estimate.step(FULL, True)["flops"] == pytest.approx(tally.flops, rel=0.01)
    # per weight and token: forward 2, backward 4; the tower only forward; plus attention and the last layer's logits
    text = sum(p.numel() for name, p in model.named_parameters() if "language_model.layers" in name and p.ndim == 2)
    assert 6 * text * batch["input_ids"].numel() < tally.flops < 9 * text * batch["input_ids"].numel()


@pytest.mark.parametrize("family, parameters", [("llava", 7_063_427_072), ("idefics2", 8_402_768_112)])
def test_the_published_shapes_have_the_published_size(family, parameters):
    assert Estimate(families.get(family).published_shape(), eager=False).parameters == parameters


@pytest.mark.parametrize("where", ["", "mlp.down_proj"])
def test_the_adapter_that_is_counted_is_the_one_that_is_attached(where):
    """At a depth to which the estimate extrapolates."""
    method = type("Placed", (training.FineTuning,), {"trains": where})()
    for reach in ("language", "upstream"):
        recipe, model = replace(RECIPE, adapter_reach=reach), model_of(layers=6)
        counted = Estimate(model.config, eager=True).step(recipe, False, method)["trained"]
        assert counted == adapters.attach(model, recipe, 0, where).num_parameters(only_trainable=True) > 0


@pytest.mark.slow
def test_the_sizes_of_a_card_that_a_way_of_training_needs():
    """fp32 (upstream) needs over 40 GiB, less with checkpointing; bf16 with checkpointing under 24, 4 bits even less.
    Two terms need hardly more than one, because only one graph is held at a time."""
    upstream = PAPER.but(protocol="upstream")
    estimate = Estimate(families.get("llava").published_shape(), eager=False)

    def size(way, method=None, quantised=False):
        config = upstream.but(**way, **({"method": method, "modality": "multimodal"} if method else {}))
        recipe = config.unlearning if method else config.training
        return sum(estimate.training(recipe, False, config.objective if method else None, quantised).values())

    half = {"precision": "bf16"}
    tenth = 0.9  # the share of a card's memory that the allocator can use
    assert 40 * tenth < size({}) < 80 * tenth and size({**half, "micro_batch": 1}) < 24
    assert max(size({"checkpointing": True}, method) for method in (None, "ga", "kl_min", "npo")) < 40 * tenth
    for method in (None, "ga", "grad_diff", "kl_min", "npo"):
        assert size({**half, "micro_batch": 2}, method) < 40 * tenth
        assert size({**half, "checkpointing": True}, method) < 24 * tenth
        assert size({**half, "micro_batch": 1}, method, quantised=True) < 24 * tenth
    clean = PAPER.but(checkpointing=True)  # in bf16
    assert sum(estimate.training(clean.training, False).values()) < 24 * tenth
    methods = [{"method": name} for name in ("ga", "grad_diff", "kl_min", "npo")]
    for given in (*methods, {"method": "npo", "variant": "retain"}):
        config = clean.but(modality="multimodal", **given)
        assert config.unlearning.precision == "bf16"
        assert sum(estimate.training(config.unlearning, False, config.objective).values()) < 24 * tenth
    for protocol in ("clean", "upstream"):
        assert sum(estimate.answering(PAPER.but(protocol=protocol)).values()) < 24 * tenth
    both, one = (size(half, method) for method in ("grad_diff", "ga"))
    assert one <= both < 1.1 * one
    assert size({**half, "micro_batch": 1}, quantised=True) < size({**half, "micro_batch": 1}) - 8


@pytest.mark.parametrize("way", ["letters", "likelihoods"])
@pytest.mark.parametrize("family", ["llava", "idefics2"])
def test_a_batch_of_questions_holds_the_bytes_that_are_predicted(family, way, monkeypatch):
    """With attention and batches as on a GPU, and a width and a depth that no other test has; nothing is fitted."""
    monkeypatch.setattr(engine, "_threads", lambda model: 1)
    monkeypatch.setattr(attention, "_attention", attention._plain)
    config = Config(people=12, pool=8, celebrities=8, forget_ratio=25)
    known = inputs.population(config)
    tokenizer = make_tokenizer([q.text for p in known.profiles.values() for q in p.questions], 900, family)
    model = make_model(tokenizer, 0, width=128, layers=5, heads=4, family=family).eval()
    processor = make_processor(tokenizer, family)
    model.set_attn_implementation("sdpa")
    asking = Asking(known, inputs.draws_of(config, ("retain",)), 5)
    items = [item for item in ask.ways_of(asking, sets=("retain",))[way] if item.question.view == "image_text"]
    inquiry = getattr(asking, way)(items[:8])
    prompts = Prompts.of(model, processor, inquiry.conversations, inquiry.options)
    with Tally(model) as tally:
        list(ask.answer(model, processor, inquiry, 8, prompts=prompts))
    estimate = Estimate(model.config, eager=False)
    turns = len(inquiry.conversations[0].turns)
    estimate.text = round((max(map(len, prompts.rows)) / turns - estimate.image_tokens) / 2)
    scoring = "letter" if way == "letters" else "both"
    need = estimate.answering(PAPER.but(eval_precision="fp32", eval_batch=8, shots=turns - 1, scoring=scoring))
    assert (sum(need.values()) - need["libraries"]) * prediction.GIB == pytest.approx(tally.peak, rel=0.15)


def test_rows_that_are_dropped_and_batches_that_are_joined_are_not_in_memory_twice():
    """A copy of one layer is enough."""
    model = model_of(layers=8).eval()
    one = engine.State(model, 1)
    with engine.evaluating(model), Tally() as tally:
        one.extend(torch.ones(1, 400, dtype=torch.long))
        states = [one.fork().keep([0] * 4) for _ in range(2)]
        held = tally.peak = tally.now
        states[0].keep(range(3))
        assert tally.peak < 1.1 * held and tally.now < held
        held = tally.peak = tally.now
        engine.State.joined(states)
        assert tally.peak < 1.3 * held


def test_a_picture_that_is_split_is_read_as_often():
    estimate = Estimate(families.get("idefics2").published_shape(), eager=False)
    upstream = PAPER.but(protocol="upstream", base_model="idefics2", checkpointing=True)
    whole = upstream.but(protocol="clean", scoring="letter")
    split, unsplit = (estimate.answering(config)["keys and values"] for config in (upstream, whole))
    image, text = estimate.image_tokens, 2 * estimate.text
    # pictures of five examples, of four faces, and once more for each of eight questions
    assert split / unsplit == pytest.approx((17 * 5 * image + 13 * text) / (17 * image + 13 * text), rel=0.01)
    unlearned = {"method": "ga", "modality": "multimodal", "precision": "bf16"}
    asked = {"forget": 4}, prediction.ASKED_ON_PATH, lambda precision: Rate(1e12, 1e12)
    seconds = [estimate.asking(config.but(**unlearned), *asked) for config in (upstream, whole)]
    assert seconds[0] == seconds[1], "along a path pictures are never split"
    for given, card in (({}, 48), ({"precision": "bf16"}, 24)):
        assert sum(estimate.training(upstream.but(**given).training, False).values()) < 0.9 * card
    assert sum(estimate.answering(upstream).values()) < 0.9 * 24


def test_hours_are_operations_by_the_rate_and_a_training_counts_once(monkeypatch):
    estimate = Estimate(model_of().config, eager=False)
    grid = [
        PAPER.but(method=method, modality=modality, forget_ratio=ratio)
        for ratio in (5, 10)
        for method, modality in (("vanilla", "none"), ("oracle", "none"), ("ga", "unimodal"), ("npo", "multimodal"))
    ]
    stages = prediction.hours(grid, estimate, lambda precision: Rate(1e9, 1e12))
    assert {name: count for name, (count, _) in stages.items()} == {
        "answers": 8, "vanilla": 1, "oracle": 2, "path_start": 2, "unlearned": 4
    }  # fmt: skip
    recipe = PAPER.training
    flops = [estimate.step(recipe, False, shown=shown)["flops"] for shown in (True, False)]
    steps = 5 * 2 * 500 * 15 / 4  # epochs, modalities, people, questions, batch
    assert stages["vanilla"][1] == pytest.approx(steps * sum(flops) / 2 / 1e9 / 3600, rel=0.01)
    assert stages["oracle"][1] == pytest.approx((0.95 + 0.9) * stages["vanilla"][1], rel=0.01)
    twice = prediction.hours(grid, estimate, lambda precision: Rate(2e9, 1e15))
    assert twice["vanilla"][1] == pytest.approx(stages["vanilla"][1] / 2)
    ways = [PAPER.but(protocol=word, train_lr=rate) for word in ("clean", "upstream") for rate in (1e-5, 2e-5)]
    assert prediction.hours(ways, estimate, lambda p: Rate(1e9, 1e12))["vanilla"][0] == 4, "each its own"
    monkeypatch.setattr(after, "STEPS", Registry("step after unlearning"))
    after.after("scaled")(lambda model, config, share=0.5: model)
    later = [{"after": "scaled"}, {"after": "scaled", "share": 0.9}, {"shots": 0}, {"shot_seed": 3}]
    once = [PAPER.but(method="ga", modality="unimodal", **given) for given in ({}, *later, {"unlearn_seed": 3})]
    counts = {name: count for name, (count, _) in prediction.hours(once, estimate, lambda p: Rate(1e9, 1e12)).items()}
    assert counts == {"answers": 6, "vanilla": 1, "path_start": 1, "unlearned": 2}, "later steps repeat none"
    released = prediction.hours(
        [PAPER.but(protocol="upstream", method="npo", modality="multimodal")], estimate, lambda p: Rate(1e9, 1e12)
    )
    assert 4 < stages["vanilla"][1] / released["retain_epoch"][1] and released["retain_epoch"][0] == 1


def test_points_of_a_path_are_asked_in_the_precision_of_training_and_in_their_own_batches():
    """Only the time of reading the weights counts here: once for each of the 50 tokens of an answer, batch by batch."""
    estimate = Estimate(model_of().config, eager=False)

    def seconds(**given):
        config = PAPER.but(method="ga", modality="unimodal", **given)
        # 10 people × 2 questions × 2 views
        return estimate.asking(config, {"forget": 10}, prediction.ASKED_ON_PATH, lambda p: Rate(float("inf"), 1e12))

    token = estimate.parameters / 1e12  # seconds to read a byte of each weight
    assert seconds(precision="bf16") == pytest.approx(10 * 50 * 2 * token)  # 4 at once: 10 batches
    assert seconds(precision="fp32") == pytest.approx(10 * 50 * 4 * token)
    assert seconds(precision="bf16", eval_precision="fp32") == seconds(precision="bf16")
    assert seconds(precision="bf16", eval_batch=20) == pytest.approx(2 * 50 * 2 * token)


def test_letters_in_all_four_orders_are_asked_four_times():
    """Two tokens for each letter, as in the test above; 4 people × 5 questions, 8 at once."""
    estimate = Estimate(model_of().config, eager=False)

    def seconds(kinds, **given):
        config = PAPER.but(eval_precision="bf16", **given)
        return estimate.asking(config, {"retain": 4}, kinds, lambda precision: Rate(float("inf"), 1e12))

    token = 2 * estimate.parameters / 1e12
    assert seconds(["letter"]) == pytest.approx(2 * 3 * 2 * token)
    assert seconds(["letter"], cyclic=True) == pytest.approx(2 * 10 * 2 * token)
    assert seconds(["cloze"], cyclic=True) == seconds(["cloze"])


@pytest.mark.slow
def test_the_check_of_a_card_runs_on_the_miniatures_shapes(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
    environment = {**os.environ, "MLLMU_NB_OUT": str(tmp_path)}
    command = [sys.executable, str(script), "--tiny", "--steps", "1", "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    names = ["vanilla", "ga", "grad_diff", "kl_min", "npo"]
    assert [row[0].removeprefix("| ") for row in rows if row[0] != "| training"] == 2 * names
    plain = [row[3] for row in rows if row[0] != "| training"]
    assert plain[3:5] == plain[8:] == ["–", "–"] and all(float(one) > 0 for one in plain[:3] + plain[5:8])
    counted = [(float(row[6]), float(row[7])) for row in rows if row[0] != "| training"]
    assert all(0 < real < 2 * predicted < 6 * real for real, predicted in counted)
    assert done.stdout.count("times as fast") == 2
    formula = "utilisation = FLOPs of a step / (seconds of a step × FLOP/s of that matrix product)\n"
    assert done.stdout.count(formula) == 1 and all(
        re.fullmatch(r"\d+% \|", row[-1]) for row in rows if row[0] != "| training"
    )


@pytest.mark.slow
def test_minutes_and_hours_of_notebooks_and_readme_are_the_predicted_ones():
    """On an H100, LLaVA with upstream at 10 %, on image + text, in bf16 with checkpointing."""
    source = "MLLMMU/MLLMU-Bench, MLLMMU/baseline_train_split"
    plain = Config(scale="paper", protocol="upstream", data_source=source, precision="bf16", checkpointing=True)
    estimate = Estimate(families.get("llava").published_shape(), eager=False)

    def minutes(*names, **given):
        stages = prediction.hours([plain.but(**given)], estimate, lambda p: prediction.assumed_rate(p, here=False))
        return f"{60 * sum(stages[name][1] for name in names):.0f}"

    questions = minutes("answers", method="base")
    said = {
        "02_finetune": f"{minutes('vanilla', method='vanilla')} a model, then ",
        "07_prompting": "",
        "08_evaluate": "",
    }
    for name in ("03_ga", "04_grad_diff", "05_kl_min", "06_npo"):
        minutes_of = minutes("path_start", "unlearned", method=name[3:], modality="multimodal")
        said[name] = f"{minutes_of}, then "
    for name, before in said.items():
        title = nbformat.read(paths.notebooks() / f"{name}.ipynb", 4).cells[0].source
        assert f"(estimated, notebook 14): {before}{questions} for the questions |" in title, name
    printed = str([cell.get("outputs") for cell in nbformat.read(paths.notebooks() / "14_paper_scale.ipynb", 4).cells])
    half, single = (re.search(rf"{name}[^:]*: about (\d+) hours", printed)[1] for name in ("bf16", "fp32"))
    readme = (paths.checkout() / "README.md").read_text(encoding="utf-8")
    both = " and ".join(re.search(rf"sum, {name}[^:]*: about (\d+) hours", printed)[1] for name in ("bf16", "fp32"))
    assert f"about {half} hours in bf16, {single} as shipped (predicted); with Idefics2, {both}." in readme
    assert "`eval_batch: 32` takes 33 GiB and less than half the time" in readme
    needs = [sum(estimate.answering(plain.but(eval_batch=size)).values()) for size in (8, 32)]
    assert [round(need) for need in needs] == [21, 33]
    assert 2 * float(minutes("answers", method="base", eval_batch=32)) < float(questions)
