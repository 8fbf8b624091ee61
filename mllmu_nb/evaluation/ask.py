"""Who is asked what: from a model and a population to one row an answer. Nothing is scored here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import pandas as pd

from mllmu_nb.data.schema import LETTERS, SETS, TASKS, Item, Population
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import draws as drawing
from mllmu_nb.evaluation.engine import Prompts, closed_likelihoods, greedy
from mllmu_nb.evaluation.tasks import Asking, Inquiry
from mllmu_nb.models import families
from mllmu_nb.progress import progress_bar

PROTOCOLS = ("clean", "upstream")
PIECE = 4096  # items that are answered and kept together; a task of the miniature has fewer
OPTIONS = tuple(f"option_{letter}" for letter in LETTERS)
COLUMNS = ("set", "task", "view", "scoring", "order", "profile", "question_id", "shots", "answer", *OPTIONS, "tokens")


def ask(
    model,
    processor,
    population: Population,
    *,
    sets: Sequence[str] = SETS,
    shots: int = 5,
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
    kept: Path | None = None,
) -> pd.DataFrame:
    """Ask the model everything the sets ask and keep every answer: one row an answer, ``COLUMNS`` wide.

    ``shots`` worked examples (0 to 5) precede letter questions and, up to four, cloze questions; whose they are is
    drawn (``draws.draw``) unless it stands in ``draws``. ``system`` precedes everything; ``limit`` keeps the first so
    many people of each set. A multiple-choice question gives a row for each ``scoring``, with ``cyclic`` one for the
    letter in every cyclic ``order`` of the options. Raises ``KitError`` for a set that is unknown.

    Where a question with its shots does not fit the model's context, ``long_prompts`` decides: ``refuse`` raises
    KitError before anything is answered, ``fewer_shots`` shows all questions of the task only as many as fit, ``ask``
    asks all the same, as upstream does; the frame's ``attrs["beyond_context"]`` then counts the prompts too long.

    What is answered is put into the folder ``kept``, if given, ``PIECE`` items at a time, and taken from there when the
    same is asked again after a stop.
    """
    if not sets or not set(sets) <= set(SETS):
        raise KitError(f"the sets to be asked are {', '.join(sets) or 'none'}: choose from {', '.join(SETS)}")
    family = families.of(model)
    processor = family.asking(processor, protocol)
    if draws is None:
        how = {"shots": shots, "shot_source": shot_source, "shot_seed": shot_seed, "protocol": protocol}
        draws = drawing.draw(population, sets, shot_people=family.shot_people, **how)
    asking = Asking(population, draws, shots, protocol, system, cyclic)
    inquiries = inquiries_of(asking, sets=sets, scoring=scoring, limit=limit)
    # all of it is encoded before anything is answered
    encoded = [prompts_of(model, processor, inquiry, long_prompts) for inquiry in inquiries]
    frames, total = [pd.DataFrame(columns=COLUMNS)], sum(len(inquiry.conversations) for inquiry in inquiries)
    with progress_bar(total=total, desc="questions", shown=progress) as bar:
        pieces = (piece for pair in zip(inquiries, encoded, strict=True) for piece in _pieces(*pair))
        for number, (inquiry, prompts) in enumerate(pieces):
            file = kept and kept / f"{number}.parquet"
            if file and file.is_file():
                frames.append(pd.read_parquet(file))
                continue
            rows = pd.DataFrame(answer(model, processor, inquiry, prompts, batch_size, bar.update), columns=COLUMNS)
            frames.append(rows)
            if file:
                kept.mkdir(parents=True, exist_ok=True)
                rows.to_parquet(unfinished := file.with_suffix(".part"), index=False)
                os.replace(unfinished, file)
    answers = pd.concat([rows for rows in frames if len(rows)] or frames, ignore_index=True)
    if long_prompts == "ask":
        pairs = zip(inquiries, encoded, strict=True)
        answers.attrs["beyond_context"] = sum(prompts.too_long(model, inquiry.tokens) for inquiry, prompts in pairs)
    return answers


def inquiries_of(
    asking: Asking, *, sets: Sequence[str] = SETS, scoring: str = "both", limit: int | None = None
) -> list[Inquiry]:
    """What the sets ask: one inquiry a task that has items, two for multiple choice that is asked in both ways."""
    items = []
    for name in sets:
        scored = scored_items(asking, name)
        people = set(list(dict.fromkeys(item.question.profile for item in scored))[:limit])
        items += [item for item in scored if item.question.profile in people]
    choices, sentences, blanks = ([item for item in items if item.question.task == task] for task in TASKS)
    likelihoods = [asking.likelihoods(choices)] if scoring == "both" else []
    inquiries = [asking.letters(choices), *likelihoods, asking.sentences(sentences), asking.blanks(blanks)]
    return [inquiry for inquiry in inquiries if inquiry.items]


def _pieces(inquiry: Inquiry, prompts: Prompts) -> Iterator[tuple[Inquiry, Prompts]]:
    """An inquiry with its prompts, ``PIECE`` items at a time."""

    def cut(values, start: int):
        each = len(values) // len(inquiry.items)  # orders or options of an item
        return values[start * each : (start + PIECE) * each]

    for start in range(0, len(inquiry.items), PIECE):
        items, conversations = cut(inquiry.items, start), cut(inquiry.conversations, start)
        options = inquiry.options and cut(inquiry.options, start)
        read = (cut(values, start) for values in (prompts.conversations, prompts.rows, prompts.begins))
        yield replace(inquiry, items=items, conversations=conversations, options=options), Prompts(*read)


def answer(
    model, processor, inquiry: Inquiry, prompts: Prompts, batch_size: int, progress=None
) -> Iterator[dict[str, Any]]:
    """The rows of one inquiry, whose encoded ``prompts`` are given. Of a letter's answer one character is enough."""
    if inquiry.options is not None:
        table = closed_likelihoods(model, processor, prompts, len(inquiry.options[0]), batch_size, progress)
        for item, scores in zip(inquiry.items, table.tolist(), strict=True):
            # a model that diverged may find nothing likely at all
            known = [score if isfinite(score) else nan for score in scores]
            yield _row(item, inquiry.scoring, **dict(zip(OPTIONS, known, strict=False)))
        return
    one = int(inquiry.scoring == "letter")
    texts, lengths = greedy(model, processor, prompts, inquiry.tokens, batch_size, progress, inquiry.until, one)
    for number, (conversation, text, length) in enumerate(zip(prompts.conversations, texts, lengths, strict=True)):
        place, order = divmod(number, inquiry.orders)
        shots = len(conversation.turns) - 1
        yield _row(inquiry.items[place], inquiry.scoring, order=order, shots=shots, answer=text, tokens=length)


def _row(item: Item, scoring: str, **known: Any) -> dict[str, Any]:
    question = item.question
    names = {"set": item.set, "task": question.task, "view": question.view, "scoring": scoring}
    names |= {"profile": question.profile, "question_id": question.id}
    return {**names, "order": 0, "shots": 0, "answer": "", **dict.fromkeys(OPTIONS, nan), "tokens": 0, **known}


def prompts_of(model, processor, inquiry: Inquiry, long_prompts: str = "refuse") -> Prompts:
    """An inquiry as the model reads it, each option as an answer where it has options. What is too long for the model's
    context is dealt with as ``long_prompts`` says (:func:`ask`); else raises ``KitError`` naming the question."""
    conversations = inquiry.conversations
    if inquiry.options:
        pairs = zip(conversations, inquiry.options, strict=True)
        conversations = [conversation.answered(option) for conversation, options in pairs for option in options]
    prompts = Prompts.of(model, processor, conversations)
    if long_prompts == "fewer_shots":
        while prompts.too_long(model, inquiry.tokens) and any(len(one.turns) > 1 for one in conversations):
            conversations = [replace(one, turns=(*one.turns[:-2], one.turns[-1])) for one in conversations]
            prompts = Prompts.of(model, processor, conversations)
    if long_prompts != "ask":
        ways = len(conversations) // len(inquiry.items)
        names = [f"{item.question.id} ({item.set})" for item in inquiry.items for _ in range(ways)]
        prompts.require_room(model, inquiry.tokens, names)
    return prompts


def scored_items(asking: Asking, name: str) -> list[Item]:
    """The items of a set without those of the people left out, each test picture the drawn one."""
    population, draws, items = asking.population, asking.draws, []
    absent = {task: drawing.left_out(draws, population, name, task) for task in TASKS}
    for item in population.items(name):
        person, task = item.question.profile, item.question.task
        if name == "test" and item.image:
            number = draws["test_image"].get(person, {}).get(task, 0)
            item = replace(item, image=population.profiles[person].test_portraits[number])
        if person not in absent[task]:
            items.append(item)
    return items
