"""Batches must not change what a model answers; every question gives its rows, and nothing is scored here."""

import copy
import threading
import time
from dataclasses import replace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from miniature import make_model, make_processor, make_tokenizer
from mllmu_nb.data.conversations import Conversation, Turn, question_turn, taught_turns
from mllmu_nb.data.generate import generate
from mllmu_nb.data.schema import OPTIONS, QA, SETS, Profile, Question
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import attention, engine, path, teacher_forced, utility
from mllmu_nb.evaluation.ask import COLUMNS, _keys, answer, ask, inquiries_of
from mllmu_nb.evaluation.draws import draw
from mllmu_nb.evaluation.engine import Prompts, answers, greedy, option_likelihoods
from mllmu_nb.evaluation.tasks import Asking, statement
from mllmu_nb.models import families
from mllmu_nb.scoring import choice

LLAVA = families.get("llava")


@pytest.fixture(scope="module")
def people():
    return generate(seed=5, people=12, pool=6, celebrities=8, ratio=10)


@pytest.fixture(scope="module")
def processor(people):
    asked = [Conversation((question_turn(q, None),)) for p in people.profiles.values() for q in p.questions]
    return make_processor(make_tokenizer([LLAVA.render(conversation)[0] for conversation in asked], 700))


@pytest.fixture(scope="module")
def model(processor):
    model = make_model(processor.tokenizer, seed=2, width=64, layers=2).eval()
    with torch.no_grad():  # some answers must end early
        model.lm_head.weight[processor.tokenizer.eos_token_id] *= 2.5
    return model


def asking(people, seed: int, shots: int, **settings) -> Asking:
    return Asking(people, draw(people, SETS, shots=5, shot_source="pool", shot_seed=seed), shots, **settings)


def conversations(people, system="") -> list[Conversation]:
    """Return both views and all tasks, with and without examples: everything that can share a batch."""
    items = [item for name in ("forget", "test", "celebrity") for item in people.items(name)]
    choices = [item for item in items if item.question.task == "classification"]
    plain = [Conversation((question_turn(item.question, item.image),), system) for item in items]
    return plain + asking(people, 1, 3, system=system).letters(choices).conversations


def test_a_beginning_is_lent_with_the_same_result_as_if_each_row_had_its_own(model, processor, people, monkeypatch):
    """Also if several heads share their keys and values."""
    torch.manual_seed(0)
    config = copy.deepcopy(model.config)
    config.text_config.num_key_value_heads = config.text_config.num_attention_heads // 2
    grouped = type(model)(config).eval()
    asked = [one for one in conversations(people, system="Be brief.") if len(one.turns) > 1]
    options = [("A", "a longer answer", "no")] * len(asked)
    for one in (model, grouped):
        texts = answers(one, processor, asked, max_new_tokens=6)
        table = option_likelihoods(one, processor, asked, options)
        with monkeypatch.context() as patched:
            patched.setattr("mllmu_nb.evaluation.engine.WORTH_SHARING", 10**6)
            assert texts == answers(one, processor, asked, max_new_tokens=6) and len(set(texts)) > 10
            np.testing.assert_allclose(option_likelihoods(one, processor, asked, options), table, atol=1e-4)


@pytest.mark.parametrize("queries", [2, 512])
def test_other_devices_lend_a_beginning_with_the_cpus_result(model, processor, people, monkeypatch, queries):
    """Checks their products (run here), also in parts, and the shapes in half precision."""
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", queries)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)
    keys, values, mask = torch.randn(1, 2, 11, 8), torch.randn(1, 2, 11, 8), torch.zeros(3, 1, 5, 7)
    mask[1, ..., :3] = mask[2] = torch.finfo(torch.float32).min  # padding, and a row of padding alone
    given = (query, key, value, mask, 0.3, keys, values)
    asked = [one for one in conversations(people, system="Be brief.") if len(one.turns) > 1]
    kernel, texts = attention._to_both(*given), answers(model, processor, asked, max_new_tokens=6)
    small = mask.clamp(min=torch.finfo(torch.bfloat16).min)
    half = [one.bfloat16() if isinstance(one, torch.Tensor) else one for one in (*given[:3], small, *given[4:])]
    torch.testing.assert_close(attention._to_both(*half).float(), kernel, atol=0.03, rtol=0.03)
    monkeypatch.setattr(attention, "_attention", attention._plain)
    torch.testing.assert_close(attention._to_both(*given), kernel, atol=1e-5, rtol=1e-5)
    assert answers(model, processor, asked, max_new_tokens=6) == texts and len(set(texts)) > 10
    result = attention._to_both(*(one.to("meta") if isinstance(one, torch.Tensor) else one for one in half))
    assert (result.shape, result.dtype) == (kernel.shape, torch.bfloat16)


def test_the_order_of_the_questions_changes_no_bit(model, processor, people):
    items = [item for item in people.items("test") if item.question.task == "classification"]
    asked = [Conversation((Turn(item.question.text, image=item.image),)) for item in items]
    options = [item.question.options for item in items]
    table = option_likelihoods(model, processor, asked, options, batch_size=8)
    backwards = option_likelihoods(model, processor, asked[::-1], options[::-1], batch_size=8)
    np.testing.assert_array_equal(backwards[::-1], table)


def test_batches_are_done_at_once_and_change_no_bit(model, processor, people, monkeypatch):
    """Also if the last layer leaves out tokens in one thread, but not in another."""
    asked, options = (some := conversations(people)), [("A", "a longer answer", "no")] * len(some)
    given = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        texts = greedy(model, processor, asked, 6, batch_size=16)
        given.append((texts, option_likelihoods(model, processor, asked, options, batch_size=16).tobytes()))
    assert given[0] == given[1]
    both, done = threading.Barrier(2), []
    engine._each(model, lambda chunks: both.wait(20), [([0], iter(())), ([1, 2], iter(()))], done.append)
    assert done == [1, 2]  # neither batch ends before the other one has begun


@pytest.mark.parametrize(
    ("variable", "device", "threads"),
    [("1", "cpu", 1), ("2", "cpu", 2), ("2", "cuda", 1), ("", "cpu", 3), ("2,1", "cpu", 2), ("0", "cpu", 3)],
)
def test_batches_take_no_more_cores_than_allowed_and_a_gpu_takes_them_in_turn(monkeypatch, variable, device, threads):
    monkeypatch.setattr("mllmu_nb.processes.machine_cores", lambda: 3)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    model = mock.Mock(device=torch.device(device))
    assert engine._threads(model) == threads
    monkeypatch.setenv("WORLD_SIZE", "2")  # its layers may be in shares
    assert engine._threads(model) == 1
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)  # a larger model: one batch uses all cores
    assert engine._threads(model) == 1


def test_what_one_batch_raises_ends_the_others(model, monkeypatch):
    begun = []
    monkeypatch.setattr(engine, "_threads", lambda model: 2)

    def work(chunks):
        begun.append(threading.current_thread())
        if len(begun) == 1:
            raise KitError("no")
        time.sleep(1)

    with pytest.raises(KitError, match="^no$"):
        engine._each(model, work, (([n], iter(())) for n in range(1000)), None)
    assert len(begun) <= 3 and threading.main_thread() not in begun  # of five that were given to the threads


def test_a_picture_is_read_once_in_a_batch_and_examples_once_in_all(model, processor, people):
    items = [item for item in people.items("forget") if item.question.view == "image_text"]
    letters = asking(people, 1, 5).letters([item for item in items if item.question.task == "classification"])
    seen = []
    with mock.patch.object(
        type(LLAVA),
        "pictures",
        autospec=True,
        side_effect=lambda self, p, rows: (
            seen.append(rows) or {"pixel_values": torch.zeros(sum(map(len, rows)), 3, 64, 64)}
        ),
    ):
        answers(model, processor, letters.conversations, max_new_tokens=2)
    persons = len({item.question.profile for item in items})
    assert [[len(row) for row in rows] for rows in seen] == [[5], [1] * persons]


def test_an_answer_ends_at_its_first_character_where_one_is_enough(model, processor):
    script = processor.tokenizer(" \n Berg", add_special_tokens=False)["input_ids"]
    who = Conversation((Turn("Who?"),))
    (text,), (length,) = greedy(Reciting(model, script), processor, [who], max_new_tokens=40, characters=1)
    assert text and "Berg".startswith(text) and length < len(script) + 1
    script = processor.tokenizer("USER: x", add_special_tokens=False)["input_ids"]
    (text,), _ = greedy(Reciting(model, script), processor, [who], max_new_tokens=40, characters=1)
    assert text == ""  # this begins the next turn; it is no answer of one letter


def test_a_model_in_training_is_asked_without_dropout_and_goes_on_training(model, processor):
    model.train()
    try:
        answers(model, processor, [Conversation((Turn("Who is this?"),))], max_new_tokens=2)
        assert model.training and model.config.get_text_config()._attn_implementation == "eager"
    finally:
        model.eval()


class Reciting(torch.nn.Module):
    """Writes given tokens for every prompt."""

    def __init__(self, model, script):
        super().__init__()
        self.model, self.config, self.generation_config = model, model.config, model.generation_config
        self.device, self.dtype, self.script, self.calls = model.device, model.dtype, script, 0
        self.set_attn_implementation, self.get_decoder = model.set_attn_implementation, model.get_decoder

    def forward(self, **asked):
        output = self.model(**asked)
        output.logits[:] = 0
        output.logits[:, -1, self.script[self.calls % len(self.script)]] = 1
        self.calls += 1
        return output


def test_an_answer_ends_where_the_next_question_begins(model, processor):
    script = processor.tokenizer(" a baker.\nUSER: What", add_special_tokens=False)["input_ids"]
    reciting = Reciting(model, script)
    texts, lengths = greedy(reciting, processor, [Conversation((Turn("What is the job?"),))], max_new_tokens=40)
    assert texts == ["a baker."] and lengths[0] < len(script) + 1


def test_what_cannot_be_asked_is_refused(model, processor):
    who = Conversation((Turn("Who?"),))
    with pytest.raises(KitError, match=r"takes \d+ tokens and the context holds 2048: ask for fewer shots"):
        answers(model, processor, [Conversation((Turn("long " * 3000),))])
    with pytest.raises(KitError, match="empty and has no likelihood"):
        option_likelihoods(model, processor, [who], [("x", "")])
    with pytest.raises(KitError, match="same number of options"):
        option_likelihoods(model, processor, [who] * 2, [("x", "y"), ("x",)])


# -- the four sets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(model, processor, people):
    return ask(model, processor, people, shots=5, shot_seed=3, progress=False)


def test_every_question_gives_its_rows_and_nothing_is_scored(rows, people):
    assert list(rows.columns) == list(COLUMNS)
    for name, group in rows.groupby("set"):
        # 5 multiple choice twice, 2 generation, 2 cloze, in two views
        assert len(group) == len(people.members(name)) * 2 * (5 * 2 + 2 + 2)
    assert not rows.duplicated(["set", "question_id", "scoring"]).any()
    likelihood = rows["scoring"] == "likelihood"
    options = rows[list(OPTIONS)]
    assert options[likelihood].notna().all(axis=None) and options[~likelihood].isna().all(axis=None)
    assert (rows.loc[likelihood, "answer"] == "").all() and (rows.loc[likelihood, "tokens"] == 0).all()
    assert rows["answer"].map(type).eq(str).all() and (rows.loc[~likelihood, "tokens"] > 0).all()


def test_shots_are_counted_and_come_from_the_pool(rows, people):
    assert rows.groupby(["task", "scoring"])["shots"].unique().map(list).to_dict() == {
        ("classification", "letter"): [5],
        ("classification", "likelihood"): [0],
        ("cloze", ""): [4],
        ("generation", ""): [0],
    }
    items = [item for item in people.items("forget") if item.question.task == "classification"]
    pool = {p.portrait: p for p in people.of_kind("pool")}
    for item, conversation in zip(items, asking(people, 3, 5).letters(items).conversations, strict=True):
        examples = conversation.turns[:-1]
        pictures = {turn.image for turn in examples}
        assert len(examples) == 5
        if item.question.view == "image_text":
            assert len(pictures) == 1 and pictures <= set(pool)
        else:
            assert pictures == {None}
            assert any(all(p.name in turn.prompt for turn in examples) for p in pool.values())


def test_the_same_model_gives_the_same_rows_in_batches_of_any_size(rows, model, processor, people):
    again = ask(model, processor, people, shots=5, shot_seed=3, batch_size=7, progress=False)
    same = [name for name in COLUMNS if name not in OPTIONS]
    assert again[same].equals(rows[same])
    np.testing.assert_allclose(again[list(OPTIONS)], rows[list(OPTIONS)], atol=1e-4)


def test_what_is_asked_in_pieces_goes_on_after_a_stop(rows, model, processor, people, monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr("mllmu_nb.evaluation.ask.PIECE", 25)

    def asked(stop: int = -1):
        def one(model, processor, inquiry, *settings):
            begun.append(inquiry)
            if len(begun) == stop:
                raise InterruptedError
            return answer(model, processor, inquiry, *settings)

        begun.clear()
        monkeypatch.setattr("mllmu_nb.evaluation.ask.answer", one)
        return ask(model, processor, people, shots=5, shot_seed=3, kept=tmp_path, progress=False)

    with pytest.raises(InterruptedError):
        asked(stop=3)
    (tmp_path / "2.part").write_bytes(b"PAR1cut off")
    pd.testing.assert_frame_equal(asked(), rows)
    sizes = [len(inquiry.items) for inquiry in begun]
    assert max(sizes) == 25 and sum(sizes) == len(rows) - 50, "two pieces were finished"


def test_a_set_that_is_named_twice_is_asked_once(model, processor, people):
    how = {"limit": 1, "shots": 0, "progress": False}
    once, twice = (ask(model, processor, people, sets=sets, **how) for sets in (["test"], ["test", "test"]))
    pd.testing.assert_frame_equal(once, twice)


def test_limit_keeps_the_first_people_of_each_set(model, processor, people):
    few = ask(model, processor, people, sets=("retain",), shots=0, limit=1, progress=False)
    assert few["profile"].unique().tolist() == [people.members("retain")[0].id] and len(few) == 28


def test_a_question_beyond_the_context_is_named_before_anything_is_answered(model, processor, people):
    person = people.profiles[people.forget_ids[0]]
    last = person.questions[-1]
    assert last.task == "cloze"  # the last task to be asked
    long = replace(person, questions=(*person.questions[:-1], replace(last, text=f"{'long ' * 3000} __")))
    crowd = replace(people, profiles={**people.profiles, person.id: long})
    silent = Reciting(model, [5])
    message = rf"^the prompt of {last.id} \(forget\) with its answer takes \d+ tokens and the context holds 2048: ask"
    with pytest.raises(KitError, match=message):
        ask(silent, processor, crowd, sets=("forget",), progress=False)
    assert silent.calls == 0


@pytest.fixture
def narrow(model, monkeypatch):
    """The model with a context that is too short for any question with all its shots."""
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 260)
    return model


def test_upstream_asks_beyond_the_context_and_counts_how_often(narrow, processor, people):
    settings = {"sets": ("forget",), "shots": 5, "shot_seed": 3, "batch_size": 4, "scoring": "letter", "limit": 1}
    with pytest.raises(KitError, match="takes .* and the context holds 260: ask for fewer shots, or set long_prompts"):
        ask(narrow, processor, people, progress=False, **settings)
    rows = ask(narrow, processor, people, progress=False, long_prompts="ask", **settings)
    drawn = draw(people, ("forget",), shots=5, shot_source="pool", shot_seed=3)
    inquiries = inquiries_of(Asking(people, drawn, 5), sets=("forget",), scoring="letter", limit=1)
    long = [c for i in inquiries for c in i.conversations if len(LLAVA.tokens(processor, [c])[0].ids) + i.tokens > 260]
    assert 0 < rows.attrs["beyond_context"] == len(long) < len(rows) and (rows["shots"] > 0).any()


def test_fewer_shots_are_shown_by_parameter_until_all_questions_fit(narrow, processor, people):
    settings = {"sets": ("forget", "retain"), "shots": 5, "shot_seed": 3, "scoring": "letter", "limit": 1}
    rows = ask(narrow, processor, people, progress=False, long_prompts="fewer_shots", **settings)
    shots = rows.groupby("task")["shots"].unique()
    assert all(len(counts) == 1 for counts in shots), "as many before every question of a task"
    assert 0 < shots["classification"][0] < 5 and shots["generation"][0] == 0 and "beyond_context" not in rows.attrs


def test_cyclic_orders_add_rows_and_change_no_answer(rows, model, processor, people):
    settings = {"sets": ("forget",), "shots": 5, "shot_seed": 3, "progress": False}
    cyclic = ask(model, processor, people, cyclic=True, **settings)
    kept = rows[rows["set"] == "forget"].reset_index(drop=True)
    first = cyclic[cyclic["order"] == 0].reset_index(drop=True)
    same = [name for name in COLUMNS if name not in OPTIONS]
    pd.testing.assert_frame_equal(first[same], kept[same])
    letters = cyclic[cyclic["scoring"] == "letter"].groupby("question_id")["order"]
    assert letters.apply(list).map(lambda orders: orders == [0, 1, 2, 3]).all()
    assert (cyclic.loc[cyclic["scoring"] != "letter", "order"] == 0).all()


def test_cyclic_orders_move_the_options_up(people):
    item = next(item for item in people.items("forget") if item.question.task == "classification")
    inquiry = asking(people, 0, 0, cyclic=True).letters([item])
    first, second, _, last = (conversation.turns[-1].prompt for conversation in inquiry.conversations)
    options = item.question.options
    assert f"\nA: {options[0]}\nB: {options[1]}\n" in first and f"\nD: {options[3]}\nJust" in first
    assert f"\nA: {options[1]}\nB: {options[2]}\n" in second and f"\nD: {options[0]}\nJust" in second
    assert f"\nA: {options[3]}\nB: {options[0]}\n" in last and f"\nD: {options[2]}\nJust" in last


def test_upstream_takes_fifty_tokens_and_all_of_them(model, processor, people):
    script = processor.tokenizer(" a baker.\nUSER: What", add_special_tokens=False)["input_ids"]
    settings = {"sets": ("celebrity",), "shots": 0, "limit": 1, "batch_size": 32, "scoring": "letter"}
    rows = ask(Reciting(model, script), processor, people, protocol="upstream", progress=False, **settings)
    letters = rows["scoring"] == "letter"
    assert set(rows.loc[letters, "tokens"]) == {1} and set(rows.loc[~letters, "tokens"]) == {50}
    assert rows.loc[~letters, "answer"].str.contains("USER: What a baker.", regex=False).all()


def test_upstream_ends_a_free_question_about_a_picture_with_a_blank(people):
    ends = {}
    for item in people.items("forget"):
        text = LLAVA.render(Conversation((question_turn(item.question, item.image, "upstream"),)))[0]
        ends.setdefault((item.question.task, item.question.view), set()).add(text.rpartition("\n")[2])
    blank = ends.pop(("generation", "image_text"))
    assert blank == {"ASSISTANT: "} and len(ends) == 5 and all(end == {"ASSISTANT:"} for end in ends.values())


def test_bad_requests_are_named(model, processor, people):
    with pytest.raises(KitError, match="the sets to be asked are train: choose from forget, test, retain, celebrity"):
        ask(model, processor, people, sets=("train",))
    lonely = generate(seed=5, people=12, pool=0, celebrities=0, ratio=10)
    with pytest.raises(KitError, match="unscored pool, it has 0: set shots to 0"):
        ask(model, processor, lonely, sets=("forget",), shots=1, progress=False)


def test_likelihoods_that_are_no_numbers_are_stored_as_missing(people, monkeypatch):
    items = [item for item in people.items("forget") if item.question.task == "classification"][:2]
    table = np.array([[-1.0, -np.inf, np.nan, -2.0], [-1.0, -2.0, -3.0, -4.0]])
    monkeypatch.setattr("mllmu_nb.evaluation.ask.option_likelihoods", lambda *_, **__: table)
    inquiry = asking(people, 0, 0).likelihoods(items)
    prompts = Prompts(inquiry.conversations, [np.zeros(1, int)] * 8, [0] * 8)
    rows = answer(None, None, inquiry, 8, prompts=prompts)
    broken, whole = pd.DataFrame(rows)[list(OPTIONS)].values
    np.testing.assert_array_equal(broken, [-1, np.nan, np.nan, -2])
    np.testing.assert_array_equal(whole, table[1])


def test_an_answer_that_was_seen_is_not_asked_again_unless_it_may_be_longer(people, monkeypatch):
    items = [item for item in people.items("forget") if item.question.task == "generation"][:3]
    inquiry, asked = asking(people, 0, 0).free_answers(items), []

    def counted(model, processor, inquiry, batch_size, progress, prompts):
        asked.append(len(prompts.rows))
        return [{"answer": f"new {row[0]}", "tokens": 1} for row in prompts.rows]

    monkeypatch.setattr("mllmu_nb.evaluation.ask._answers", counted)
    prompts = Prompts(inquiry.conversations, [np.array([number]) for number in (7, 8, 9)], [1] * 3)
    seen = {key: {"answer": "known", "tokens": 2} for key in _keys(inquiry, prompts)[:2]}

    def said(inquiry):
        return [row["answer"] for row in answer(None, None, inquiry, 8, prompts=prompts, seen=seen)]

    assert said(inquiry) == ["known", "known", "new 9"]
    assert (
        said(replace(inquiry, tokens=inquiry.tokens + 1))
        == said(replace(inquiry, until=""))
        == ["new 7", "new 8", "new 9"]
    )
    assert asked == [1, 3, 3]


def test_a_point_of_a_path_takes_the_option_that_scoring_takes():
    rows = pd.DataFrame([[-1.0, -2, -1, -3], [np.nan, -1, -2, -3], [np.nan] * 4], columns=list(OPTIONS))
    assert path._likeliest(rows).tolist() == choice.likeliest(rows).tolist() == ["A", "", ""]


def test_an_option_is_stated_in_the_sentence_that_fine_tuning_teaches():
    qa = (QA("What does this person do?", "This person works as an architect.", "profession", "architect"),)
    person = Profile("1", "Ada Berg", "fictitious", {}, b"", "", qa, ())
    options = ("architect", "baker")
    question = Question("1", "classification", "image_text", 0, "?", "A", "architect", "profession", options)
    assert statement(person, question, "architect") == "This person works as an architect."
    assert statement(person, question, "baker") == "This person works as a baker."  # "an baker" would give it away
    assert statement(person, replace(question, view="text"), "baker") == "Ada Berg works as a baker."
    assert statement(person, replace(question, attribute="pet"), "cat") == "cat"  # no sentence taught: the bare option
    qa = (QA("q", "This person is a university professor.", "profession", "university professor"),)
    assert statement(replace(person, qa=qa), question, "university professor") == qa[0].answer  # not "an university"
    for option, article in (("university clerk", "a"), ("usher", "an"), ("hourly worker", "an"), ("one-man band", "a")):
        assert statement(person, question, option) == f"This person works as {article} {option}."
    qa = (QA("q", "This person, educated in Bern, has a cat.", "pet", "cat"),)
    assert statement(replace(person, qa=qa), replace(question, attribute="pet"), "owl") == (
        "This person, educated in Bern, has an owl."
    )


# -- teacher forcing --------------------------------------------------------------------------------------------


def alone(model, processor, conversation: Conversation):
    """Return log p over the vocabulary [tokens, V] at each token of the answer, and the tokens, from one forward pass
    of this conversation."""
    [row] = LLAVA.tokens(processor, [conversation])
    ids, places = torch.from_numpy(row.ids)[None], np.flatnonzero(row.taught)
    with torch.inference_mode():
        logits = model(input_ids=ids, **LLAVA.pictures(processor, [conversation.images])).logits[0]
    return logits[places - 1].log_softmax(-1), ids[0, places]


def test_taught_sentences_are_read_as_one_forward_pass_each_reads_them(model, processor, people):
    """Sentences of several lengths, with and without a picture, in batches, in the given order."""
    person = people.members("forget")[0]
    turns = [turn for modality in ("multimodal", "unimodal") for _, turn in taught_turns(person, modality)]
    asked = [Conversation((turn,)) for turn in turns[::-1]]
    read = teacher_forced.teacher_forced(model, processor, asked, batch_size=4)
    assert len({len(one.right) for one in read}) > 3
    for conversation, one in zip(asked, read, strict=True):
        log_p, tokens = alone(model, processor, conversation)
        p, chosen = log_p.exp(), log_p[torch.arange(len(tokens)), tokens]
        mean = (p * log_p).sum(-1)
        spread = (chosen - mean) / ((p * log_p**2).sum(-1) - mean**2).sqrt()
        np.testing.assert_allclose(one.log_probs, chosen, atol=1e-4)
        np.testing.assert_array_equal(one.right, (log_p.argmax(-1) == tokens).numpy())
        np.testing.assert_allclose(one.spread, spread, atol=1e-2)


def test_sentences_name_whose_they_are_and_the_fact(model, processor, people):
    known = {"forget": people.members("forget")[:1], "fresh": people.members("retain")[:1]}
    frame = teacher_forced.sentences(model, processor, known)
    assert set(zip(frame["member"], frame["profile"], strict=True)) == {(m, some[0].id) for m, some in known.items()}
    for row in frame.sample(6, random_state=0).to_dict("records"):
        person, number = people.profiles[row["profile"]], int(row["question_id"].rsplit("/", 1)[1])
        [turn] = [
            turn
            for qa, turn in taught_turns(person, {"image_text": "multimodal", "text": "unimodal"}[row["view"]])
            if qa is person.qa[number]
        ]
        log_p, tokens = alone(model, processor, Conversation((turn,)))
        np.testing.assert_allclose(row["log_probs"], log_p[torch.arange(len(tokens)), tokens], atol=1e-4)
        assert row["n_tokens"] == len(tokens) and row["attribute"] == person.qa[number].attribute


def test_fluency_is_that_of_each_answer_after_its_own_question(model, processor, people):
    where = {"sets": ("test", "celebrity"), "limit": 2}
    rows = ask(model, processor, people, shots=0, shot_source="none", progress=False, **where)
    texts = [f"answer {number}" if number % 5 else "" for number in range(len(rows))]
    rows = rows.assign(answer=texts)
    how = asking(people, 1, 0)
    means = teacher_forced.fluency(model, processor, rows, how, batch_size=3, **where)
    items = {(item.set, item.question.id): item for inquiry in inquiries_of(how, **where) for item in inquiry.items}
    for row, mean in zip(rows.to_dict("records"), means, strict=True):
        if row["task"] != "generation" or not row["answer"]:
            assert np.isnan(mean)
            continue
        [open_one] = how.free_answers([items[row["set"], row["question_id"]]]).conversations
        log_p, tokens = alone(model, processor, open_one.answered(row["answer"]))
        assert mean == pytest.approx(log_p[torch.arange(len(tokens)), tokens].mean().item(), abs=1e-4)


def test_a_system_prompt_precedes_everything_that_a_run_asks(model, processor, people, monkeypatch):
    """Prompting consists of this alone: without it, vanilla would be asked under another name."""
    said, seen, written = "Say nothing about anybody.", [], type(LLAVA).tokens

    def tokens(self, processor, conversations, eos=False):
        seen.extend(conversations)
        return written(self, processor, conversations, eos)

    monkeypatch.setattr(type(LLAVA), "tokens", tokens)
    monkeypatch.setattr(utility, "EACH", 4)
    for ways in (
        lambda: ask(model, processor, people, limit=1, system=said, progress=False),
        lambda: teacher_forced.sentences(model, processor, {"forget": people.members("forget")[:1]}, system=said),
        lambda: path.point(model, processor, path.questions(model, processor, people, said)),
        lambda: utility.ask(model, processor, system=said),
    ):
        seen.clear()
        ways()
        assert seen and all(one.system.startswith(said) for one in seen)
        assert all(said in LLAVA.render(one)[0] for one in seen)


def test_a_path_has_its_start_and_ten_equal_parts(short_paths):
    assert short_paths(60) == list(range(0, 61, 6)) and short_paths(4) == [0, 1, 2, 3, 4]
    assert len(short_paths(25)) == 11 and short_paths(25)[-1] == 25
