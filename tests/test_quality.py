"""Forget quality: what is read off a model token by token, and what is computed from it, against cases done by hand."""

import zlib
from math import exp

import numpy as np
import pandas as pd
import pytest
import torch
from mllmu_nb.models.prompts import Conversation, Turn, encode, question_of
from sklearn.metrics import roc_auc_score

from mllmu_nb import run
from mllmu_nb.config import Config
from mllmu_nb.data.generate import fresh_people, generate
from mllmu_nb.data.schema import SETS
from mllmu_nb.data.text.names import with_name
from mllmu_nb.evaluation import evaluate, tokens
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.reporting import GROUP, Run, quality
from mllmu_nb.reporting.tables import Numbers
from mllmu_nb.unlearning import Scored

SYSTEM = "You never speak about people."


@pytest.fixture(scope="module")
def people():
    return generate(seed=5, people=12, pool=2, celebrities=4, ratio=10)


@pytest.fixture(scope="module")
def fresh():
    return fresh_people(5, 12, 2, 4, count=3)


@pytest.fixture(scope="module")
def processor(people):
    told = [text for p in people.profiles.values() for qa in p.qa for text in (f"{qa.question} {qa.answer}", p.name)]
    return make_processor(make_tokenizer(["USER: ASSISTANT: Answer in ONE sentence.", SYSTEM, *told], 700))


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor.tokenizer, seed=2, width=64, layers=2).eval()


@pytest.fixture(scope="module")
def asked(people, fresh):
    return {"forget": people.members("forget"), "fresh": fresh}


# what is written for each run


def alone(model, processor, talk: Conversation) -> tuple[list[float], list[bool], list[float]]:
    """Log p, rank one and Min-K++'s z of each answer token by one plain forward pass of one conversation."""
    batch = encode(processor, [talk], eos=False)
    labels = batch.pop("labels")[0]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[0].double()
    found = []
    for place in torch.nonzero(labels != -100)[:, 0].tolist():
        p = torch.softmax(logits[place - 1], -1)
        mean = sum(float(q) * float(q.log()) for q in p)
        variance = sum(float(q) * (float(q.log()) - mean) ** 2 for q in p)
        value = float(p[labels[place]].log())
        found.append((value, bool(p.argmax() == labels[place]), (value - mean) / variance**0.5))
    return tuple(map(list, zip(*found, strict=True)))


def test_every_token_has_the_numbers_of_a_forward_pass_of_its_own(model, processor, asked):
    found = tokens.sentences(model, processor, asked, system=SYSTEM, batch_size=7)
    turns = {}
    for profiles in asked.values():
        for person in profiles:
            for number, qa in enumerate(person.qa):
                turns[f"{person.id}/finetuning/image_text/{number}"] = Turn(qa.question, qa.answer, person.portrait)
    seen = found[found["view"] == "image_text"].iloc[::5]
    assert set(seen["member"]) == {"forget", "fresh"}
    for row in seen.itertuples():
        log_probs, right, spread = alone(model, processor, Conversation((turns[row.question_id],), SYSTEM))
        assert row.log_probs.tolist() == pytest.approx(log_probs, abs=1e-4)
        assert row.right.tolist() == right and row.n_tokens == len(right)
        assert row.spread.tolist() == pytest.approx(spread, abs=1e-3)


def test_sentences_are_those_that_were_taught_in_both_views(model, processor, asked):
    found = tokens.sentences(model, processor, asked)
    assert found["question_id"].is_unique
    counts = found.groupby(["member", "view"]).size().to_dict()
    # without a picture nobody is asked for the name
    assert counts == {
        ("forget", "image_text"): 15,
        ("forget", "text"): 14,
        ("fresh", "image_text"): 45,
        ("fresh", "text"): 42,
    }
    pairs = found.assign(fact=found["question_id"].str.replace("image_text|text", "", regex=True))
    assert (pairs.groupby("fact")["attribute"].nunique() == 1).all()  # the same number asks for the same fact
    person = asked["forget"][0]
    named = found[found["question_id"] == f"{person.id}/finetuning/text/2"]["zlib_bytes"].item()
    assert named == len(zlib.compress(with_name(person.qa[2].answer, person.name).encode()))


def test_a_model_that_is_sure_of_another_token_gives_a_number():
    sure = torch.tensor([[[200.0, 0.0, 0.0]]])
    chosen, right, spread = tokens._measured(Scored(sure, torch.tensor([[1]])))
    assert chosen.tolist() == [-200.0] and right.tolist() == [False] and spread.tolist() == [-tokens.FAR]
    even = torch.zeros(1, 1, 4)  # no token is likelier than another
    assert tokens._measured(Scored(even, torch.tensor([[2]])))[2].tolist() == [0.0]


def test_what_is_written_is_read_again_in_half_precision(model, processor, asked, tmp_path):
    found = tokens.sentences(model, processor, asked)
    tokens.write(found, tmp_path / "tokens.parquet")
    again = pd.read_parquet(tmp_path / "tokens.parquet")
    assert list(again.columns) == list(found.columns)
    for name in ("log_probs", "spread"):
        for ours, theirs in zip(found[name], again[name], strict=True):
            assert theirs.dtype == np.float16 and theirs == pytest.approx(ours, rel=1e-3, abs=1e-6)
    assert all((a == b).all() for a, b in zip(found["right"], again["right"], strict=True))


def test_fluency_is_what_the_base_gives_the_answer_to_the_same_question(model, processor, people):
    drawn = draw(people, SETS, shots=1, shot_source="pool", shot_seed=0)
    setting = {"sets": ("forget", "test"), "limit": 1}
    answers = evaluate(model, processor, people, shots=1, draws=drawn, progress=False, **setting)
    assert answers["fluency"].isna().all()  # nobody has been asked for it yet
    free = answers.index[answers["task"] == "generation"]
    answers.loc[free, "answer"] = [f"born in {n}" for n in range(len(free))]
    answers.loc[free[2], "answer"] = ""
    answers.loc[free[3], "answer"] = "a <image> of"  # is no picture
    base = make_model(processor.tokenizer, seed=3, width=64, layers=2).eval()
    found = tokens.fluency(base, processor, answers, people, drawn, **setting)
    assert set(np.flatnonzero(np.isfinite(found))) == set(free) - {free[2]}
    items = {("forget", i.question.id): i for i in people.items("forget")}
    for index in free[:2]:
        item = items["forget", answers["question_id"][index]]
        talk = Conversation((question_of(item.question, item.image),)).answered(answers["answer"][index])
        assert found[index] == pytest.approx(np.mean(alone(base, processor, talk)[0]), abs=1e-4)


# people whom nobody was taught


def test_fresh_people_are_none_of_the_population(people):
    found, again = fresh_people(5, 12, 2, 4), fresh_people(5, 12, 2, 4)
    assert found == again and len(found) == 25
    for column in ("id", "name", "portrait"):
        theirs = {getattr(person, column) for person in people.profiles.values()}
        assert len({getattr(person, column) for person in found}) == 25
        assert not theirs & {getattr(person, column) for person in found}
    assert sum(len(person.qa) - 1 for person in found) >= 300  # negatives in the view with fewer
    assert {p.name for p in fresh_people(6, 12, 2, 4)} != {p.name for p in found}


def test_people_who_are_read_have_no_fresh_ones_beside_them():
    assert run.fresh_people(Config(people=12, celebrities=4))
    assert run.fresh_people(Config(profiles_file="people.jsonl")) == []
    assert run.fresh_people(Config(scale="paper", data_source="hub/people")) == []


def test_without_fresh_people_only_the_forget_people_are_read(model, processor, people):
    found = tokens.sentences(model, processor, {"forget": people.members("forget"), "fresh": []})
    assert set(found["member"]) == {"forget"} and len(found) == 29


# what is computed from it


def test_extraction_strength_counts_right_tokens_from_the_end():
    strength = quality.extraction_strength
    assert strength([True, True, True, True]) == 1
    assert strength([True, True, True, False]) == 0  # only the last is wrong
    assert strength([True, False, True, True]) == pytest.approx(2 / 4)  # k = 2 of 4
    assert strength([False, True, True, True, True]) == pytest.approx(4 / 5)
    assert strength([False]) == 0 and strength([True]) == 1


def test_exact_memorisation_is_a_share_of_tokens():
    assert quality.exact_memorisation(np.array([True, False, True, True])) == 0.75


def test_the_truth_ratio_takes_the_geometric_mean_of_the_wrong_options():
    # per token the right one, B, has .5 and the wrong ones .1, .2 and .4: (.1 · .2 · .4)^(1/3) = .2
    found = quality.log_truth_ratio(np.log([0.1, 0.5, 0.2, 0.4]), 1)
    assert exp(found) == pytest.approx(0.2 / 0.5)
    assert quality.log_truth_ratio([-1.0, -1.0, -1.0, -1.0], 3) == 0


def test_min_k_is_the_mean_of_the_least_likely_fifth():
    values = np.array([-1.0, -9.0, -2.0, -3.0, -0.5, -7.0, -4.0, -0.1, -0.2, -0.3])
    assert quality.least(values) == pytest.approx(-8.0)  # two of ten
    assert quality.least(values[:4]) == -9.0  # a fifth of four is none: one
    assert quality.least(values, 1.0) == pytest.approx(values.mean())


def sentences_of(rng, people: int, shift: float, member: str, each: int = 12) -> pd.DataFrame:
    who = np.repeat([f"{member}{n}" for n in range(people)], each)
    return pd.DataFrame({"member": member, "person": who, "loss": rng.normal(shift, 1, people * each)})


def test_the_area_is_half_without_a_difference_and_the_librarys_with_one():
    rng = np.random.default_rng(0)
    same = pd.concat([sentences_of(rng, 40, 0, "forget"), sentences_of(rng, 40, 0, "fresh")])
    value, low, high = quality.Pairs([same], "loss").auc()
    assert abs(value - 0.5) < 0.06 and low < 0.5 < high
    apart = pd.concat([sentences_of(rng, 10, 1, "forget"), sentences_of(rng, 25, 0, "fresh")]).round(1)  # ties
    pairs = quality.Pairs([apart], "loss")
    value, low, high = pairs.auc()
    assert value == pytest.approx(roc_auc_score(apart["member"] == "forget", apart["loss"]))
    assert 0.5 < low < value < high and pairs.auc() == (value, low, high)  # the same draws every time


def test_models_of_several_forget_sets_are_each_compared_with_its_own_fresh_sentences():
    rng = np.random.default_rng(1)
    parts = []
    for level in (0.0, 50.0):  # another model, another scale: pooled blindly its fresh ones beat the first's people
        ours = sentences_of(rng, 5, level + 1, "forget")
        ours["person"] += f"/{level}"
        parts.append(pd.concat([ours, sentences_of(rng, 8, level, "fresh")]))
    apart = [quality.Pairs([part], "loss").auc()[0] for part in parts]
    both = quality.Pairs(parts, "loss")
    assert both.auc()[0] == pytest.approx(np.mean(apart)) and both.count.shape == (10, 8)


def test_a_perfect_area_is_not_certain_and_a_model_is_not_different_from_itself():
    rng = np.random.default_rng(2)
    perfect = pd.concat([sentences_of(rng, 5, 99, "forget"), sentences_of(rng, 25, 0, "fresh")])
    value, low, high = quality.Pairs([perfect], "loss").auc()
    assert value == 1 and low < 0.7 and high == pytest.approx(1)
    value, low, high = quality.Pairs([perfect], "loss").minus(quality.Pairs([perfect], "loss"))
    assert value == 0 and low < 0 < high


def test_an_area_of_few_people_has_students_interval():
    rng = np.random.default_rng(4)
    few = pd.concat([sentences_of(rng, 5, 0.5, "forget"), sentences_of(rng, 25, 0, "fresh")])
    pairs = quality.Pairs([few], "loss")
    value, low, high = pairs.auc()
    reach = 2.776 * pairs._drawn(pairs.higher).std(ddof=1)  # t of .975 with 4 degrees
    assert (value - low, high - value) == pytest.approx((reach, reach), rel=1e-3)
    a_low, a_high = np.quantile(pairs._drawn(pairs.higher), [0.025, 0.975])
    assert low < a_low and a_high < high  # wider than the percentiles
    alone = pd.concat([sentences_of(rng, 1, 0.5, "forget"), sentences_of(rng, 25, 0, "fresh")])
    value, low, high = quality.Pairs([alone], "loss").auc()
    assert low < 0.2 and high > 0.9  # one person says little


def test_an_area_close_to_one_is_not_certain_either():
    rng = np.random.default_rng(2)
    ours, fresh = sentences_of(rng, 5, 99, "forget"), sentences_of(rng, 25, 0, "fresh")
    ours.loc[0, "loss"] = -99  # one sentence of sixty
    pairs = quality.Pairs([pd.concat([ours, fresh])], "loss")
    value, low, high = pairs.auc()
    assert value == pytest.approx(59 / 60) and low < 0.6 and value < high <= 1
    gap, low, high = pairs.minus(quality.Pairs([pd.concat([ours.assign(loss=99.0), fresh])], "loss"))
    assert gap == pytest.approx(-1 / 60) and low < -0.3 and high > 0.3


def test_the_true_positive_rate_is_read_where_few_fresh_ones_pass():
    fresh = pd.DataFrame({"member": "fresh", "person": "f", "loss": np.arange(100.0)})
    ours = pd.DataFrame({"member": "forget", "person": "p", "loss": [98.5, 97.5, 94.5, 93.5]})
    part = pd.concat([ours, fresh])
    assert quality.tpr([part], "loss", 0.01) == 0.25  # one of a hundred fresh ones lies above 98.5
    assert quality.tpr([part], "loss", 0.05) == 0.75


def test_distances_of_distributions():
    rng = np.random.default_rng(3)
    people = np.repeat(np.arange(30), 5)
    a, b = rng.beta(2, 2, 150), rng.beta(2, 2, 150)
    distance, chance = quality.jensen_shannon(a, b, people)
    assert 0 < distance <= chance < 1
    low, high = np.full(150, 0.05), np.full(150, 0.95)
    distance, chance = quality.jensen_shannon(low, high, people)
    assert distance == pytest.approx(1) and chance < 0.5  # nothing in common
    assert quality.ks(low, high)[0] == 1 and quality.ks(low, high)[1] < -80
    assert quality.ks(a, a) == (0, 0)


# runs


def made_run(method: str, p_right: float, log_p: float, fresh: int = 25, people: int = 10) -> Run:
    """A run whose model gives the true option ``p_right``, the taught tokens ``log_p`` and those of fresh people −3."""
    rng = np.random.default_rng(len(method))
    at = {"run": method, "scale": "miniature", "base_model": "llava", "forget_ratio": 10, "forget_draw": 0}
    at |= {"method": method, "protocol": "clean", "variant": "canonical"}
    at |= {"modality": "multimodal" if method == "ga" else "none"}
    at |= dict.fromkeys(("data_seed", "train_seed", "unlearn_seed", "shot_seed"), 0)
    rows, read = [], []
    for view in ("image_text", "text"):
        for n in range(people * 5):
            options = np.log([p_right, *[(1 - p_right) / 3] * 3]) + rng.normal(0, 0.1, 4)
            told = {"set": "forget", "task": "classification", "view": view, "scoring": "likelihood"}
            told |= {"profile": f"{n // 5:03d}", "question_id": f"{n // 5:03d}/classification/{view}/{n % 5}"}
            rows.append(
                at | told | {"answer_true": "A"} | {f"option_{x}": v for x, v in zip("ABCD", options, strict=True)}
            )
        for member, count, level in (("forget", people, log_p), ("fresh", fresh, -3.0)):
            for n in range(count * 14):
                values = rng.normal(level, 1, 6)
                read.append(
                    {"profile": f"{member}{n // 14}", "member": member, "view": view, "zlib_bytes": 40}
                    | {"question_id": f"{member}{n // 14}/finetuning/{view}/{n % 14}", "log_probs": values}
                    | {"spread": values, "right": values > -2}
                )
    return Run(method, pd.DataFrame(rows), {}, {}, pd.DataFrame(read))


def known(*runs: Run) -> Numbers:
    nothing = pd.DataFrame(columns=[*GROUP, "collapsed"]).astype({"forget_ratio": int, "collapsed": bool})
    return Numbers(list(runs), *[nothing] * 5)


def of(found: pd.DataFrame, method: str, metric: str, view: str = "text") -> pd.Series:
    row = found[(found["method"] == method) & (found["metric"] == metric) & (found["view"] == view)]
    return row.iloc[0]


def test_a_model_that_knows_is_told_from_the_oracle_by_every_measure(tmp_path):
    here = known(made_run("vanilla", 0.9, -0.1), made_run("ga", 0.25, -3.0), made_run("oracle", 0.25, -3.0))
    found, sheets = quality.table(here)
    assert of(found, "vanilla", "truth_ratio")["value"] == pytest.approx(1 / (1 + 0.9 / (0.1 / 3)), abs=0.02)
    assert of(found, "vanilla", "ks_log10_p")["value"] < -20 < -2 < of(found, "ga", "ks_log10_p")["value"]
    assert of(found, "vanilla", "js")["value"] > of(found, "vanilla", "js_chance")["value"]
    for metric in ("exact_memorisation", "extraction_strength", "loss", "auc_loss", "auc_zlib", "auc_min_k"):
        row = of(found, "vanilla", metric)
        assert row["to_oracle_low"] > 0 and row["low"] < row["value"] <= row["high"]
        row = of(found, "ga", metric)
        assert row["to_oracle_low"] < 0.1 and row["to_oracle_high"] > -0.1
    assert of(found, "vanilla", "tpr_1_loss")["value"] > 0.9 and of(found, "oracle", "tpr_5_loss")["value"] < 0.15
    assert np.isnan(of(found, "oracle", "auc_loss")["to_oracle"])
    assert found["value"].notna().sum() + (found["note"] != "").sum() == len(found)  # a value or a reason
    values, gaps = (sheet.markdown() for sheet in sheets)
    assert "Vanilla, text" in values and "Oracle, text" in values and "Oracle, text" not in gaps
    written = quality.write_all("miniature", here, tmp_path / "tables", tmp_path)
    assert {path.name for path in written.paths} == {
        *(f"table_forget_quality.{kind}" for kind in ("csv", "md", "tex")),
        *(f"forget_quality_llava_10.{kind}" for kind in ("png", "pdf")),
    }
    assert written.captions[0].startswith("- `forget_quality_llava_10`: How far")


def test_a_measure_by_which_vanilla_knows_nothing_stands_behind_a_closed_gate(tmp_path):
    # letters know, sentences do not: by the truth ratio there was something to forget, by what was taught not
    here = known(made_run("vanilla", 0.9, -3.0), made_run("ga", 0.25, -3.0), made_run("oracle", 0.25, -3.0))
    found, (values, gaps) = quality.table(here)
    gate = found.set_index(["method", "view", "metric"])["gate"].to_dict()
    for method in ("vanilla", "ga", "oracle"):
        for metric in ("truth_ratio", "ks", "js_chance"):
            assert gate[method, "text", metric] == "open"
        for metric in ("extraction_strength", "loss", "auc_loss", "tpr_5_loss", "tpr_1_min_k_pp"):
            assert gate[method, "text", metric] == "closed"
    rows = {name: [text for text, _ in cells] for _, body in values.blocks for name, cells in body}
    assert not rows["GA, text"][0].startswith("(") and all(text[0] + text[-1] == "()" for text in rows["GA, text"][5:])
    assert "In brackets: gate closed" in values.markdown() and "Truth" not in values.remarks[1]
    assert "Exact mem., Extraction, log p, AUC by LOSS" in gaps.markdown()
    assert "Grey: gate closed" in quality.figure(found)._supxlabel.get_text()
    assert "Grey: gate closed" in quality.write_all("miniature", here, tmp_path, tmp_path).captions[0]
    bare = quality.measured(known(made_run("ga", 0.25, -3.0), made_run("oracle", 0.25, -3.0)))
    assert set(bare["gate"]) == {""} and "nobody can say" in quality.told(bare, quality.SHOWN)


def test_a_gap_is_judged_by_its_margin():
    runs = [made_run("vanilla", 0.9, -0.1, people=40), made_run("ga", 0.25, -3.0, people=40)]
    found, sheets = quality.table(known(*runs, made_run("oracle", 0.25, -3.0, people=40)))
    for metric in ("truth_ratio", "exact_memorisation", "extraction_strength", "auc_loss"):
        assert of(found, "vanilla", metric)["verdict"] == "outside" and of(found, "ga", metric)["verdict"] == "inside"
        assert of(found, "ga", metric)["margin"] == 0.1
    assert of(found, "ga", "loss")["verdict"] == "" and np.isnan(of(found, "ga", "loss")["margin"])
    assert of(found, "oracle", "auc_loss")["verdict"] == ""
    assert " ≠ |" in sheets[1].markdown() and " = |" in sheets[1].markdown() and "≠ |" not in sheets[0].markdown()
    wide = quality._judged(
        quality._row("auc_loss", gap=quality.Interval(0.0, -0.2, 0.2, 10, 10)) | {"n_items": 10, "n_profiles": 10}
    )
    assert wide["verdict"] == "undecided"


@pytest.mark.parametrize("level", [-300.0, -np.inf])
def test_a_model_that_has_collapsed_stops_no_report(level):
    runs = [made_run(name, p, log_p) for name, p, log_p in (("vanilla", 0.9, -0.1), ("oracle", 0.25, -3.0))]
    lost = made_run("ga", 0.25, -3.0)
    told = lost.tokens
    told["log_probs"] = told["log_probs"].map(lambda values: np.full(len(values), level, np.float16))
    told["spread"] = told["spread"].map(lambda values: np.full(len(values), -tokens.FAR, np.float16))
    told["right"] = told["right"].map(np.zeros_like)
    found, sheets = quality.table(known(*runs, lost))
    row = of(found, "ga", "min_k_pp")
    assert row["value"] == -tokens.FAR and np.isnan([row["low"], row["high"]]).all()  # all alike: no spread, no ends
    # beside an oracle that varies it is the oracle's spread, around a far value that nothing clips
    assert row["to_oracle_low"] < row["to_oracle"] < row["to_oracle_high"] < -9000
    assert row["to_oracle_high"] - row["to_oracle_low"] < 10
    assert of(found, "ga", "loss")["value"] == max(level, -65504)
    assert of(found, "ga", "auc_loss")["value"] == 0.5
    assert "GA, text" in sheets[1].markdown()
    quality.figure(found)
    one = lost.tokens["log_probs"].iloc[0]  # and a single sentence is not absurd either
    lost.tokens.at[0, "log_probs"] = np.append(one[:-1], np.float16(-1))
    assert of(quality.measured(known(*runs, lost)), "ga", "loss", "image_text")["low"] < max(level, -65504)


def test_without_fresh_people_only_the_difference_to_the_oracle_is_told():
    found = quality.measured(known(made_run("vanilla", 0.9, -0.1, fresh=0), made_run("oracle", 0.25, -3.0, fresh=0)))
    row = of(found, "vanilla", "auc_loss")
    assert np.isnan(row["value"]) and "nobody was taught" in row["note"]
    assert of(found, "vanilla", "loss")["to_oracle"] == pytest.approx(2.9, abs=0.1)
    assert of(found, "vanilla", "extraction_strength")["to_oracle_low"] > 0.5


def test_one_per_cent_of_few_is_not_told():
    few = [made_run("vanilla", 0.9, -0.1, fresh=21), made_run("oracle", 0.25, -3.0, fresh=21)]
    row = of(quality.measured(known(*few)), "vanilla", "tpr_1_loss")
    assert np.isnan(row["value"]) and row["note"] == "1 % needs 300 fresh sentences: 294 there."


def test_runs_of_earlier_versions_lack_the_tokens_and_say_so():
    old = Run("vanilla", made_run("vanilla", 0.9, -0.1).items, {}, {})
    found, sheets = quality.table(known(old, made_run("oracle", 0.25, -3.0)))
    assert of(found, "vanilla", "truth_ratio")["to_oracle_high"] < 0
    assert np.isnan(of(found, "vanilla", "auc_loss")["value"])
    assert "The run kept no tokens.parquet" in sheets[0].markdown()
    bare = Run("vanilla", old.items.drop(columns=["option_A", "answer_true"]), {}, {})
    assert "no choices by likelihood" in of(quality.measured(known(bare)), "vanilla", "ks")["note"]
