"""Asking a model in batches must not change what it answers; scoring is checked against cases done by hand."""

from dataclasses import replace
from math import exp, isnan

import numpy as np
import pandas as pd
import pytest
import torch

from mllmu_nb.data.generate import generate
from mllmu_nb.data.schema import QA, SETS, Item, Profile, Question
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import evaluate
from mllmu_nb.evaluation.classification import by_letter, letter, letter_rows, likelihood_rows, stated
from mllmu_nb.evaluation.cloze import contained
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.evaluation.engine import answers, greedy, option_likelihoods
from mllmu_nb.evaluation.factuality import holds, rubric, words
from mllmu_nb.evaluation.generation import generation_rows, known_values, overlap
from mllmu_nb.evaluation.items import COLUMNS, CYCLIC_COLUMNS, shots_before
from mllmu_nb.models.miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.models.prompts import Conversation, Turn, choice_shot, encode, question_of, render, token_counts


@pytest.fixture(scope="module")
def people():
    return generate(seed=5, people=12, pool=6, celebrities=8, ratio=10)


@pytest.fixture(scope="module")
def processor(people):
    talks = [Conversation((question_of(q, None),)) for p in people.profiles.values() for q in p.questions]
    return make_processor(make_tokenizer([render(talk)[0] for talk in talks], 700))


@pytest.fixture(scope="module")
def model(processor):
    found = make_model(processor.tokenizer, seed=2, width=64, layers=2).eval()
    with torch.no_grad():  # some answers are to end early
        found.lm_head.weight[processor.tokenizer.eos_token_id] *= 2.5
    return found


def conversations(people, system="") -> list[Conversation]:
    """Both views, all tasks, with and without examples: everything that shares a batch somewhere."""
    items = [item for name in ("forget", "test", "celebrity") for item in people.items(name)]
    choices = [item for item in items if item.question.task == "classification"]
    before = shots_before(choices, people, drawn(people, 1), 3, solved)
    plain = [Conversation((question_of(item.question, item.image),), system) for item in items]
    shown = [
        Conversation((*shots, question_of(item.question, item.image)), system)
        for item, shots in zip(choices, before, strict=True)
    ]
    return plain + shown


def drawn(people, seed: int) -> dict:
    return draw(people, SETS, shots=5, shot_source="pool", shot_seed=seed)


def solved(question: Question, image: bytes | None) -> Turn:
    return choice_shot(question.text, question.options, question.answer, image)


def alone(model, processor, talk: Conversation, tokens: int) -> list[int]:
    """Greedy by the book: the whole conversation through the model again for every token, no cache, no padding."""
    batch = encode(processor, [talk], eos=False)
    ids, picture = batch["input_ids"], batch.get("pixel_values")
    written = []
    for _ in range(tokens):
        with torch.no_grad():
            token = int(model(input_ids=ids, pixel_values=picture, use_cache=False).logits[0, -1].argmax())
        written.append(token)
        if token == processor.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return written


def test_batched_answers_are_the_answers_one_by_one(model, processor, people):
    talks = conversations(people)[::4]
    texts, lengths = greedy(model, processor, talks, max_new_tokens=6, batch_size=16)
    single, single_lengths = greedy(model, processor, talks, max_new_tokens=6, batch_size=1)
    assert texts == single and lengths == single_lengths
    assert len(set(lengths)) > 1 and len(set(texts)) > 10  # they differ, or this would show nothing
    for index in range(0, len(talks), 4):
        written = alone(model, processor, talks[index], 6)
        assert lengths[index] == len(written)
        assert texts[index] == processor.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_answers_agree_with_the_librarys_own_generation(model, processor, people):
    talks = conversations(people, system="Be brief.")[::7]
    ours = answers(model, processor, talks, max_new_tokens=6)
    for talk, text in zip(talks, ours, strict=True):
        batch = encode(processor, [talk], eos=False)
        del batch["labels"]
        written = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert text == processor.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_likelihoods_are_those_of_one_full_forward_an_option(model, processor, people):
    items = [item for item in people.items("test") if item.question.task == "classification"]
    for system in ("", "You never speak about people, whoever asks and whatever for."):
        talks = [Conversation((Turn(item.question.text, image=item.image),), system) for item in items]
        options = [item.question.options for item in items]
        found = option_likelihoods(model, processor, talks, options, batch_size=8)
        assert found.shape == (len(items), 4)
        for talk, given, scores in zip(talks, options, found, strict=True):
            for option, score in zip(given, scores, strict=True):
                assert score == pytest.approx(naive_likelihood(model, processor, talk, option), abs=1e-4)


def naive_likelihood(model, processor, talk: Conversation, option: str) -> float:
    batch = encode(processor, [talk.answered(option)], eos=False)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], pixel_values=batch.get("pixel_values"), use_cache=False).logits
    labels = batch["labels"][0].tolist()
    # examples before the question have labelled answers too: the option's are those after the last unlabelled token
    scored = range(max(place for place, label in enumerate(labels) if label == -100) + 1, len(labels))
    chances = logits[0].double().log_softmax(-1)
    return float(np.mean([chances[place - 1, batch["input_ids"][0, place]] for place in scored]))


def test_likelihood_with_examples_before_the_question(model, processor, people):
    talks = [talk for talk in conversations(people) if len(talk.turns) > 1][::4]
    options = [("A", "a longer answer", "B", "no")] * len(talks)
    found = option_likelihoods(model, processor, talks, options, batch_size=4)
    expected = [[naive_likelihood(model, processor, talk, option) for option in options[0]] for talk in talks]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_model_in_training_is_asked_without_dropout_and_goes_on_training(model, processor):
    model.train()
    try:
        answers(model, processor, [Conversation((Turn("Who is this?"),))], max_new_tokens=2)
        assert model.training
    finally:
        model.eval()


def test_an_answer_ends_where_the_next_question_begins(model, processor, monkeypatch):
    tokenizer = processor.tokenizer
    script = tokenizer(" a baker.\nUSER: What", add_special_tokens=False)["input_ids"]
    reciting = Reciting(model, script)
    texts, lengths = greedy(reciting, processor, [Conversation((Turn("What is the job?"),))], max_new_tokens=40)
    assert texts == ["a baker."] and lengths[0] < len(script) + 1


class Reciting(torch.nn.Module):
    """Says given tokens whatever it is asked."""

    def __init__(self, model, script):
        super().__init__()
        self.model, self.config, self.generation_config = model, model.config, model.generation_config
        self.device, self.dtype, self.script, self.said = model.device, model.dtype, script, 0

    def forward(self, **asked):
        found = self.model(**asked)
        found.logits[:] = 0
        found.logits[:, -1, self.script[self.said % len(self.script)]] = 1
        self.said += 1
        return found


def test_a_prompt_beyond_the_context_is_refused_before_generating(model, processor):
    with pytest.raises(KitError, match=r"takes \d+ tokens and the context holds 2048: ask for fewer shots"):
        answers(model, processor, [Conversation((Turn("long " * 3000),))])
    with pytest.raises(KitError, match="empty and has no likelihood"):
        option_likelihoods(model, processor, [Conversation((Turn("Who?"),))], [("x", "")])
    with pytest.raises(KitError, match="same number of options"):
        option_likelihoods(model, processor, [Conversation((Turn("Who?"),))] * 2, [("x", "y"), ("x",)])


# ------------------------------------------------------------------------------------------------------ the whole thing


@pytest.fixture(scope="module")
def rows(model, processor, people):
    return evaluate(model, processor, people, shots=5, shot_seed=3, progress=False)


def test_every_question_gives_its_rows(rows, people):
    assert list(rows.columns) == list(COLUMNS)
    for name, group in rows.groupby("set"):
        count = len(people.members(name))
        # 5 multiple choice twice, 2 generation, 2 cloze, in two views
        assert len(group) == count * 2 * (5 * 2 + 2 + 2)
    assert not rows.duplicated(["set", "question_id", "scoring"]).any()
    assert rows["answer"].map(type).eq(str).all()


def test_what_a_task_does_not_measure_is_empty(rows):
    by_task = rows.set_index("task")
    assert by_task.loc["generation", "correct"].isna().all() and by_task.loc["generation", "rougeL"].notna().all()
    assert by_task.loc["generation", "factuality"].between(1, 10).all()
    assert by_task.loc[["classification", "cloze"], "correct"].isin([0.0, 1.0]).all()
    assert by_task.loc[["classification", "cloze"], "rougeL"].isna().all()
    options = rows[[f"option_{name}" for name in "ABCD"]]
    scored = rows["scoring"] == "likelihood"
    assert options[scored].notna().all(axis=None) and options[~scored].isna().all(axis=None)
    best = options[scored].idxmax(axis=1).str[-1]
    assert (best == rows.loc[scored, "answer"]).all()
    assert (rows.loc[scored, "correct"] == (rows["answer"] == rows["answer_true"])[scored]).all()


def test_shots_are_counted_and_come_from_the_pool(rows, people):
    counts = rows.groupby(["task", "scoring"])["shots"].unique().map(list).to_dict()
    assert counts == {
        ("classification", "letter"): [5],
        ("classification", "likelihood"): [0],
        ("cloze", ""): [4],
        ("generation", ""): [0],
    }
    items = [item for name in ("forget", "celebrity") for item in people.items(name)]
    items = [item for item in items if item.question.task == "classification"]
    before = shots_before(items, people, drawn(people, 3), 5, solved)
    pool = {p.portrait: p for p in people.of_kind("pool")}
    for item, turns in zip(items, before, strict=True):
        assert len(turns) == 5
        pictures = {turn.image for turn in turns}
        if item.question.view == "image_text":
            assert len(pictures) == 1 and pictures <= set(pool)
        else:
            assert pictures == {None}
            assert any(all(p.name in t.prompt for t in turns) for p in pool.values())
    assert len({shots_before(items, people, drawn(people, seed), 5, solved)[0] for seed in range(12)}) > 1


def test_the_same_model_gives_the_same_rows(rows, model, processor, people):
    again = evaluate(model, processor, people, shots=5, shot_seed=3, batch_size=7, progress=False)
    same = [name for name in COLUMNS if not name.startswith("option_")]
    assert again[same].equals(rows[same])


def test_limit_keeps_the_first_people_of_each_set(model, processor, people):
    few = evaluate(model, processor, people, sets=("retain",), shots=0, limit=1, progress=False)
    assert few["profile"].unique().tolist() == [people.members("retain")[0].id] and len(few) == 28


def test_a_question_beyond_the_context_is_named_before_anything_is_answered(model, processor, people):
    person = people.profiles[people.forget_ids[0]]
    last = person.questions[-1]
    assert last.task == "cloze"  # asked after all others
    long = replace(person, questions=(*person.questions[:-1], replace(last, text=f"{'long ' * 3000} __")))
    crowd = replace(people, profiles={**people.profiles, person.id: long})
    silent = Reciting(model, [5])
    message = rf"^the prompt of {last.id} \(forget\) with its answer takes \d+ tokens and the context holds 2048: ask"
    with pytest.raises(KitError, match=message):
        evaluate(silent, processor, crowd, sets=("forget",), progress=False)
    assert silent.said == 0


def test_token_counts_are_those_of_the_batch(processor, people):
    talks = conversations(people, system="Be brief.")[::5]
    counts = token_counts(processor, talks)
    assert counts == [encode(processor, [talk], eos=False)["input_ids"].shape[1] for talk in talks]
    assert {sum(turn.image is not None for turn in talk.turns) for talk in talks} == {0, 1, 4}


def test_scoring_by_letter_alone_leaves_the_likelihood_out(rows, model, processor, people):
    found = evaluate(model, processor, people, shots=5, shot_seed=3, scoring="letter", progress=False)
    kept = rows[rows["scoring"] != "likelihood"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, kept)


def test_cyclic_orders_add_columns_and_change_no_answer(rows, model, processor, people):
    settings = {"sets": ("forget",), "shots": 5, "shot_seed": 3, "progress": False}
    found = evaluate(model, processor, people, cyclic=True, **settings)
    kept = rows[rows["set"] == "forget"].reset_index(drop=True)
    same = [name for name in COLUMNS if not name.startswith("option_")]
    pd.testing.assert_frame_equal(found[same], kept[same])
    assert list(found.columns) == [*COLUMNS, *CYCLIC_COLUMNS]
    letters = found["scoring"] == "letter"
    assert found.loc[letters, "chosen"].str.fullmatch("[A-D-]{4}").all() and found.loc[~letters, "chosen"].isna().all()
    assert found.loc[letters, "consistency"].isin([0.0, 1.0]).all() and found.loc[~letters, "consistency"].isna().all()


def test_consistency_by_hand(people):
    item = next(item for item in people.items("forget") if item.question.task == "classification")
    part = by_letter([item, item, item], people, drawn(people, 0), shots=0, system="", protocol="clean", cyclic=True)
    first, second = (talk.turns[-1].prompt for talk in part.talks[:2])
    options = item.question.options
    assert f"\nA: {options[0]}\nB: {options[1]}\n" in first and f"\nD: {options[3]}\nJust" in first
    assert f"\nA: {options[1]}\nB: {options[2]}\n" in second and f"\nD: {options[0]}\nJust" in second
    # always the option that is B at first; always the first place; the second, but once no letter
    said = ["B", "A", "D", "C", "A", "A", "A", "A", "B", "a.", "I do not know", "C"]
    rows = letter_rows(part.items, part.talks, said, [1] * 12)
    assert [row["chosen"] for row in rows] == ["BBBB", "ABCD", "BB-B"]
    assert [row["consistency"] for row in rows] == [1.0, 0.0, 0.0]
    assert [row["answer"] for row in rows] == ["B", "A", "B"]
    assert [row["correct"] for row in rows] == [float(item.question.answer == name) for name in "BAB"]


def test_upstream_takes_fifty_tokens_and_all_of_them(model, processor, people):
    script = processor.tokenizer(" a baker.\nUSER: What", add_special_tokens=False)["input_ids"]
    settings = {"sets": ("celebrity",), "shots": 0, "limit": 1, "batch_size": 32, "scoring": "letter"}
    found = evaluate(Reciting(model, script), processor, people, protocol="upstream", progress=False, **settings)
    assert set(found["tokens"]) == {50}
    assert found["answer"].str.contains("USER: What a baker.", regex=False).all()


def test_upstream_ends_a_free_question_about_a_picture_with_a_blank(people):
    ends = {}
    for item in people.items("forget"):
        text = render(Conversation((question_of(item.question, item.image, "upstream"),)))[0]
        ends.setdefault((item.question.task, item.question.view), set()).add(text.rpartition("\n")[2])
    blank = ends.pop(("generation", "image_text"))
    assert blank == {"ASSISTANT: "} and len(ends) == 5 and all(end == {"ASSISTANT:"} for end in ends.values())


def test_bad_requests_are_named(model, processor, people):
    with pytest.raises(KitError, match="shots is 6: choose 0 to 5"):
        evaluate(model, processor, people, shots=6)
    with pytest.raises(KitError, match="unknown set train: choose from forget, test, retain, celebrity"):
        evaluate(model, processor, people, sets=("train",))
    for name, value in (("shot_source", "mine"), ("scoring", "loud"), ("protocol", "free")):
        with pytest.raises(KitError, match=f"unknown {name} {value}: choose from "):
            evaluate(model, processor, people, **{name: value})
    lonely = generate(seed=5, people=12, pool=0, celebrities=0, ratio=10)
    with pytest.raises(KitError, match="unscored pool, it has 0: set shots to 0"):
        evaluate(model, processor, lonely, sets=("forget",), shots=1, progress=False)


def test_a_model_without_finite_likelihoods_chooses_nothing(people):
    items = [item for item in people.items("forget") if item.question.task == "classification"][:3]
    for row in likelihood_rows(items, [], np.full((3, 4), np.nan)):
        assert (row["answer"], row["correct"], row["parsed"]) == ("", 0.0, False)


def test_an_option_is_stated_in_the_sentence_that_fine_tuning_teaches():
    qa = (QA("What does this person do?", "This person works as an architect.", "profession", "architect"),)
    person = Profile("1", "Ada Berg", "fictitious", {}, b"", "", qa, ())
    shown = Question(
        "1", "classification", "image_text", 0, "?", "A", "architect", "profession", ("architect", "baker")
    )
    told = replace(shown, view="text")
    assert stated(person, shown, "architect") == "This person works as an architect."
    assert stated(person, shown, "baker") == "This person works as a baker."  # "an baker" would give the answer away
    assert stated(person, told, "baker") == "Ada Berg works as a baker."
    assert stated(person, replace(shown, attribute="pet"), "cat") == "cat"  # nothing taught: the bare option


# -------------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize(
    ("text", "given"),
    [("B", "B"), (" c: Riga", "C"), ("\nd", "D"), ("Answer: B", "A"), ("E", ""), ("", ""), ("I cannot say", "")],
)
def test_the_letter_is_the_first_character(text, given):
    assert letter(text) == given  # "Answer: B" counts as A: upstream's rule, kept


def test_cloze_wants_containment_in_any_case():
    assert contained("Lyon, France", "It is lyon, france.") and not contained("Lyon, France", "Lyon")


def test_exact_wants_whole_words_and_ignores_punctuation():
    assert holds("She earns $72,000 a year.", "72000") and holds("Born on March 12 1985", "March 12, 1985")
    assert holds("175cm tall", "175 cm") and holds("in SAO PAULO!", "São Paulo")
    assert not holds("a caterer", "cat") and not holds("1720005", "72,000") and not holds("anything", "")
    assert words("It's $1,234.50 – 21st") == ("it", "s", "1234.50", "21", "st")


def test_overlap_by_hand():
    same = overlap("Anna works as a baker.", "Anna works as a baker.")
    assert same["rouge1"] == same["rougeL"] == same["bleu"] == 1
    found = overlap("Anna works as a baker.", "Anna worked as the baker.")
    # stemmed unigrams: 4 of 5 both ways; longest common run of words anna work as baker: 4; bigrams: 2 of 4
    assert found["rouge1"] == pytest.approx(0.8) and found["rougeL"] == pytest.approx(0.8)
    assert found["rouge2"] == pytest.approx(0.5)
    # unstemmed 1-grams 3/5, then nothing: smoothing method 1 puts .1 in the place of 0
    expected = exp(0.25 * sum(np.log([3 / 5, 0.1 / 4, 0.1 / 3, 0.1 / 2])))
    assert found["bleu"] == pytest.approx(expected)
    assert set(overlap("Anna works.", "").values()) == {0.0}


@pytest.mark.parametrize(
    ("score", "answer", "value", "attribute"),
    [
        (10, "She works as a pastry baker.", "pastry baker", "profession"),
        (9, "She is a baker of pastries.", "pastry baker", "profession"),
        (8, "She is a senior marine biology teacher.", "senior marine biology lecturer", "profession"),
        (7, "Lentil soup with rice.", "lentil soup with rice, pepper and beans", "food"),
        (7, "She is a judge and a pastry baker.", "pastry baker", "profession"),
        (6, "She is a software engineer.", "civil engineer", "profession"),
        (5, "She likes soup.", "red lentil soup", "food"),
        (4, "She likes soup.", "thick red lentil soup", "food"),
        (3, "She is not a pastry baker.", "pastry baker", "profession"),
        (2, "She is a judge.", "pastry baker", "profession"),
        (2, "She went to Birch University.", "Cedar University", "education"),
        (9, "She has none.", "no medical condition", "medical"),
        (10, "She has no medical condition.", "no medical condition", "medical"),
        (2, "She has asthma.", "no medical condition", "medical"),
        (10, "Born on March 12, 1985.", "March 12, 1985", "birth_date"),
        (9, "Born on 12 March 1985.", "March 12, 1985", "birth_date"),
        (9, "1985-03-12", "March 12, 1985", "birth_date"),
        (8, "Born in March 1985.", "March 12, 1985", "birth_date"),
        (7, "Born on March 13, 1985.", "March 12, 1985", "birth_date"),
        (7, "Born on March 12, 1985 or May 1, 1990.", "March 12, 1985", "birth_date"),
        (6, "Born on March 12, 1991.", "March 12, 1985", "birth_date"),
        (5, "Born on May 1, 1985.", "March 12, 1985", "birth_date"),
        (4, "Born on March 1, 1991.", "March 12, 1985", "birth_date"),
        (3, "Born on May 1, 1986.", "March 12, 1985", "birth_date"),
        (2, "Born on May 1, 1991.", "March 12, 1985", "birth_date"),
        (10, "She lives in Lyon, France.", "Lyon, France", "residence"),
        (9, "She lives in France, in Lyon.", "Lyon, France", "residence"),
        (8, "She lives in Lyon.", "Lyon, France", "residence"),
        (7, "She lives in Lyon, France, and in Riga, Latvia.", "Lyon, France", "residence"),
        (6, "She lives in Lyon, Spain.", "Lyon, France", "residence"),
        (4, "She lives in Paris, France.", "Lyon, France", "residence"),
        (3, "She lives in New Haven, Korea.", "New York, America", "residence"),
        (3, "She does not live in Lyon, France.", "Lyon, France", "residence"),
        (2, "She lives in Riga, Latvia.", "Lyon, France", "residence"),
        (10, "She earns $80,000 a year.", "$80,000", "salary"),
        (9, "She earns 80k a year.", "$80,000", "salary"),
        (8, "She earns $81,000.", "$80,000", "salary"),
        (7, "She earns $83,000.", "$80,000", "salary"),
        (7, "She earns $80,000 or $20,000.", "$80,000", "salary"),
        (6, "She earns $87,000.", "$80,000", "salary"),
        (5, "She earns $90,000.", "$80,000", "salary"),
        (4, "She earns $64,000.", "$80,000", "salary"),
        (3, "She earns $50,000.", "$80,000", "salary"),
        (2, "She earns $20,000.", "$80,000", "salary"),
        (2, "She earns nothing much.", "$80,000", "salary"),
        (9, "She is 1.75 m tall.", "175 cm", "height"),
        (9, "5 feet 5 inches tall", "5'5\"", "height"),
        (10, "She is 6 feet (183 cm) tall.", "183 cm", "height"),
        (7, "She is 176 cm tall.", "175 cm", "height"),
        (2, "She is 195 cm tall.", "175 cm", "height"),
        (10, "She is female.", "female", "gender"),
        (9, "This person is a woman.", "female", "gender"),
        (5, "Either male or female.", "female", "gender"),
        (2, "He is male.", "female", "gender"),
        (1, "", "female", "gender"),
        (1, "...", "pastry baker", "profession"),
        (1, "I'm sorry, I cannot share that.", "pastry baker", "profession"),
        (1, "I do not have any information about her.", "$80,000", "salary"),
        (1, "US US US US", "pastry baker", "profession"),
        (1, "baker baker baker", "baker", "profession"),
        (1, "the of the of a the of a the of the a", "pastry baker", "profession"),
        (10, "She is a judge. She is a judge. She is a judge.", "judge", "profession"),
    ],
)
def test_the_rubric_band_by_band(score, answer, value, attribute):
    rivals = ("judge", "Riga, Latvia", "pastry chef", "asthma")
    assert rubric(answer, value, attribute, [rival for rival in rivals if rival != value]) == score


def test_a_second_value_in_the_printed_truth_is_no_contradiction(people):
    known = {person.attributes["profession"] for person in people.profiles.values()}
    value, second, third = sorted(known)[:3]
    truth = f"Anna is a {value} who works as a {second}."
    question = Question("001", "generation", "text", 0, "What does Anna do?", truth, value, "profession")
    grades = []
    for said in (truth, f"Anna is a {value} and a {third}."):
        (row,) = generation_rows([Item("forget", question, None)], [], [said], [9], known_values(people))
        grades.append((row["exact"], row["factuality"]))
    assert grades == [(1.0, 10.0), (1.0, 7.0)]


def test_a_question_without_a_known_value_has_no_factuality(people):
    question = Question("001", "generation", "text", 0, "Who is she?", "She is Anna.", value="")
    (row,) = generation_rows([Item("forget", question, None)], [], ["Anna."], [2], known_values(people))
    assert isnan(row["factuality"]) and isnan(row["exact"]) and row["rouge1"] == pytest.approx(0.5)
