"""Who is asked what: from a model and a population to one row an answer. Nothing is scored here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import pandas as pd
from tqdm import tqdm

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.schema import LETTERS, SETS, TASKS, Item, Population
from mllmu_nb.errors import KitError, choose
from mllmu_nb.evaluation import draws as drawing
from mllmu_nb.evaluation.engine import greedy, lengths, option_likelihoods, require_context
from mllmu_nb.evaluation.tasks import Asking, Inquiry
from mllmu_nb.models import families

MAX_SHOTS = 5
SCORINGS, PROTOCOLS = ("both", "letter"), ("clean", "upstream")
LONG_PROMPTS = ("refuse", "fewer_shots", "ask")  # what is done where a question and its shots exceed the context
OPTIONS = tuple(f"option_{letter}" for letter in LETTERS)
COLUMNS = ("set", "task", "view", "scoring", "order", "profile", "question_id", "shots", "answer", *OPTIONS, "tokens")


def ask(
    model,
    processor,
    population: Population,
    *,
    sets: Sequence[str] = SETS,
    shots: int = MAX_SHOTS,
    shot_seed: int = 0,
    shot_source: str = "pool",
    scoring: str = "both",
    cyclic: bool = False,
    draws: Mapping[str, Any] | None = None,
    protocol: str = "clean",
    long_prompts: str = "refuse",
    system: str = "",
    batch_size: int = 64,
    limit: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask the model everything the sets ask and keep every answer: one row an answer, ``COLUMNS`` wide.

    ``shots`` worked examples (0 to 5) precede letter questions and, up to four, cloze questions; whose they are is
    drawn (``draws.draw``) unless it stands in ``draws``. ``system`` precedes everything; ``limit`` keeps the first so
    many people of each set. A multiple-choice question gives a row for each ``scoring``, with ``cyclic`` one for the
    letter in every cyclic ``order`` of the options. Raises ``KitError`` for unknown values and draws that do not fit.

    Where a question with its shots does not fit the model's context, ``long_prompts`` decides: ``refuse`` raises
    KitError before anything is answered, ``fewer_shots`` shows all questions of the task only as many as fit, ``ask``
    asks all the same, as upstream does; the frame's ``attrs["beyond_context"]`` then counts the prompts too long.
    """
    if not 0 <= shots <= MAX_SHOTS:
        raise KitError(f"shots is {shots}: choose 0 to {MAX_SHOTS}")
    if not sets or not set(sets) <= set(SETS):
        raise KitError(f"the sets to be asked are {', '.join(sets) or 'none'}: choose from {', '.join(SETS)}")
    choose("shot_source", shot_source, drawing.SOURCES)
    choose("scoring", scoring, SCORINGS)
    choose("protocol", protocol, PROTOCOLS)
    choose("long_prompts", long_prompts, LONG_PROMPTS)
    people = families.of(model).shot_people
    drawn = {"shots": shots, "shot_source": shot_source, "shot_people": people, "protocol": protocol}
    if draws is None:
        draws = drawing.draw(population, sets, shot_seed=shot_seed, **drawn)
    drawing.check(draws, population, sets, **drawn)
    asking = Asking(population, draws, shots, protocol, system, cyclic)
    inquiries = inquiries_of(asking, sets=sets, scoring=scoring, limit=limit)
    inquiries = [_fewer_shots(model, processor, one) if long_prompts == "fewer_shots" else one for one in inquiries]
    too_long = sum(_beyond(model, processor, one, refuse=long_prompts != "ask") for one in inquiries)
    total = sum(len(inquiry.conversations) for inquiry in inquiries)
    # without a terminal (papermill, logs) the bar stays silent
    with tqdm(total=total, desc="questions", mininterval=1.0, disable=None if progress else True) as bar:
        rows = [
            row
            for one in inquiries
            for row in answer(model, processor, one, batch_size, bar.update, beyond=too_long > 0)
        ]
    answers = pd.DataFrame(rows, columns=COLUMNS)
    answers.attrs |= {"beyond_context": too_long} if long_prompts == "ask" else {}
    return answers


def inquiries_of(
    asking: Asking, *, sets: Sequence[str] = SETS, scoring: str = "both", limit: int | None = None
) -> list[Inquiry]:
    """What the sets ask, task by task, before anything is answered."""
    items = [item for name in sets for item in _of_first_people(_scored(asking, name), limit)]
    choices, sentences, blanks = ([item for item in items if item.question.task == task] for task in TASKS)
    likelihoods = [asking.likelihoods(choices)] if scoring == "both" else []
    return [asking.letters(choices), *likelihoods, asking.sentences(sentences), asking.blanks(blanks)]


def answer(
    model, processor, inquiry: Inquiry, batch_size: int, progress=None, beyond: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of one inquiry; ``beyond`` the model's context where need be."""
    conversations = inquiry.conversations
    if inquiry.options is not None:
        table = option_likelihoods(model, processor, conversations, inquiry.options, batch_size, progress, beyond)
        for item, scores in zip(inquiry.items, table.tolist(), strict=True):
            # a model that diverged may find nothing likely at all
            known = dict(zip(OPTIONS, (s if isfinite(s) else nan for s in scores), strict=False))
            yield _row(item, inquiry.scoring, **known)
        return
    how = {"progress": progress, "until": inquiry.until, "beyond": beyond}
    texts, counts = greedy(model, processor, conversations, inquiry.tokens, batch_size, **how)
    for number, (conversation, text, length) in enumerate(zip(conversations, texts, counts, strict=True)):
        place, order = divmod(number, inquiry.orders)
        shots = len(conversation.turns) - 1
        yield _row(inquiry.items[place], inquiry.scoring, order=order, shots=shots, answer=text, tokens=length)


def _row(item: Item, scoring: str, **known: Any) -> dict[str, Any]:
    question = item.question
    names = {"set": item.set, "task": question.task, "view": question.view, "scoring": scoring}
    names |= {"profile": question.profile, "question_id": question.id}
    return {**names, "order": 0, "shots": 0, "answer": "", **dict.fromkeys(OPTIONS, nan), "tokens": 0, **known}


def _needed(model, processor, inquiry: Inquiry) -> list[int]:
    """Tokens of the context that each prompt takes with its answer."""
    conversations = inquiry.conversations
    if inquiry.options:
        pairs = zip(conversations, inquiry.options, strict=True)
        conversations = [conversation.answered(option) for conversation, options in pairs for option in options]
    return [count + inquiry.tokens for count in lengths(model, processor, conversations)]


def _beyond(model, processor, inquiry: Inquiry, refuse: bool) -> int:
    """How many prompts do not fit the model's context with their answer; or KitError naming the longest of them."""
    needed = _needed(model, processor, inquiry)
    if refuse and needed:
        place = max(range(len(needed)), key=needed.__getitem__)
        item = inquiry.items[place * len(inquiry.items) // len(needed)]
        require_context(model, needed[place], f"the prompt of {item.question.id} ({item.set})")
    return sum(count > families.of(model).context(model) for count in needed)


def _fewer_shots(model, processor, inquiry: Inquiry) -> Inquiry:
    """The inquiry with as many shots, the first ones, as let all its questions fit the model's context."""

    def without_last(conversation: Conversation) -> Conversation:
        return replace(conversation, turns=(*conversation.turns[:-2], conversation.turns[-1]))

    while max(_needed(model, processor, inquiry), default=0) > families.of(model).context(model):
        if all(len(conversation.turns) == 1 for conversation in inquiry.conversations):
            break  # no shot is left: the question itself is too long, which is refused
        inquiry = replace(inquiry, conversations=[without_last(c) for c in inquiry.conversations])
    return inquiry


def _scored(asking: Asking, name: str) -> list[Item]:
    """The items of a set without those of the people left out, each test picture the drawn one."""
    absent = {task: drawing.left_out(asking.draws, asking.population, name, task) for task in TASKS}
    items = [i for i in asking.population.items(name) if i.question.profile not in absent[i.question.task]]
    if name != "test":
        return items

    def pictured(item: Item) -> Item:
        person = asking.population.profiles[item.question.profile]
        number = drawing.picture(asking.draws, person.id, item.question.task)
        return replace(item, image=person.test_portraits[number]) if item.image else item

    return [pictured(item) for item in items]


def _of_first_people(items: list[Item], limit: int | None) -> list[Item]:
    people = set(list(dict.fromkeys(item.question.profile for item in items))[:limit])
    return [item for item in items if item.question.profile in people]
