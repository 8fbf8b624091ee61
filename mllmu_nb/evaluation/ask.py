"""Ask a model the questions about a population; the result has one row per answer. Nothing is scored here."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb.data.schema import OPTIONS, SETS, TASKS, Item, Population
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import draws as drawing
from mllmu_nb.evaluation.engine import Prompts, greedy, option_likelihoods
from mllmu_nb.evaluation.tasks import Asking, Inquiry
from mllmu_nb.models import families
from mllmu_nb.progress import progress_bar

PIECE = 4096  # items answered and stored together; a task of the miniature has fewer
ANSWER = ("answer", *OPTIONS, "tokens")  # what comes from the model
COLUMNS = ("set", "task", "view", "scoring", "order", "profile", "question_id", "shots", *ANSWER)


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
    seen: dict[str, dict] | None = None,
    free_only: Collection[str] = (),
    scale: str = "miniature",
) -> pd.DataFrame:
    """Ask the model all questions of the sets. Return one row per answer, with the columns ``COLUMNS``.

    ``shots`` worked examples (0 to 5) precede letter questions and, up to four, cloze questions. ``draws`` says whose
    they are; without it they are drawn (``draws.draw``). ``system`` precedes everything; ``limit`` keeps only that many
    people of each set, the first ones. A multiple-choice question gives one row per ``scoring`` and, with ``cyclic``,
    one letter row per cyclic ``order`` of the options. ``docs/architecture.md`` explains ``long_prompts``. The folder
    ``kept`` stores answers, ``PIECE`` items at a time; the same call after a stop takes them from there. ``seen`` holds
    answers of the same model (prompt and end of the answer, as a hash → ``ANSWER``): such prompts are not asked again,
    and the others are added. The sets ``free_only`` are asked for free answers alone. Raises ``KitError`` for an
    unknown set, and for prompts that are too long before anything is answered.
    """
    sets = list(dict.fromkeys(sets))
    if not sets or not set(sets) <= set(SETS):
        raise KitError(f"the sets to be asked are {', '.join(sets) or 'none'}: choose from {', '.join(SETS)}")
    family = families.of(model)
    processor = family.asking(processor, protocol)
    if draws is None:
        how = {"shots": shots, "shot_source": shot_source, "shot_seed": shot_seed, "protocol": protocol}
        draws = drawing.draw(population, sets, shot_people=family.shot_people, **how)
    asking = Asking(population, draws, shots, protocol, system, cyclic, scale)
    ways = ways_of(asking, sets=sets, scoring=scoring, limit=limit, free_only=free_only)

    @lru_cache(len(ways))  # a small evaluation is encoded once; of a large one, only a few pieces are kept
    def encoded(way: str, shown: int, start: int) -> tuple[Inquiry, Prompts]:
        inquiry = getattr(replace(asking, shots=shown), way)(ways[way][start : start + PIECE])
        return inquiry, Prompts.of(model, processor, inquiry.conversations, inquiry.options)

    def too_long(piece: tuple[str, int, int]) -> int:
        inquiry, prompts = encoded(*piece)
        return prompts.too_long(model, inquiry.tokens)

    pieces, total, beyond = [], 0, 0
    for way, items in ways.items():
        own = [(way, shots, start) for start in range(0, len(items), PIECE)]
        while long_prompts == "fewer_shots" and own[0][1] and any(map(too_long, own)):
            own = [(way, shown - 1, start) for _, shown, start in own]
        pieces += own
    for piece in pieces:  # checks all of them before anything is answered
        inquiry, prompts = encoded(*piece)
        total, beyond = total + len(inquiry.conversations), beyond + too_long(piece)
        if long_prompts != "ask":
            require_room(model, inquiry, prompts)
    with TemporaryDirectory() as unkept, progress_bar(total=total, desc="questions", shown=progress) as bar:
        folder, files = kept or Path(unkept), []
        folder.mkdir(parents=True, exist_ok=True)
        for number, piece in enumerate(pieces):
            files.append(file := folder / f"{number}.parquet")
            if not file.is_file():
                inquiry, prompts = encoded(*piece)
                rows = answer(model, processor, inquiry, batch_size, bar.update, prompts, seen)
                pd.DataFrame(rows, columns=COLUMNS).to_parquet(unfinished := file.with_suffix(".part"), index=False)
                os.replace(unfinished, file)
            if seen is not None:
                stored = pd.read_parquet(file, columns=list(ANSWER)).to_dict("records")
                seen |= zip(_keys(*encoded(*piece)), stored, strict=True)
        frames = [pd.read_parquet(file) for file in files] or [pd.DataFrame(columns=COLUMNS)]
    answers = pd.concat(frames, ignore_index=True)
    if long_prompts == "ask":
        answers.attrs["beyond_context"] = beyond
    return answers


def check_room(model, processor, asking: Asking, **asked: Any) -> None:
    """Raise ``KitError`` for a prompt beyond the context of ``model``, of which only the ``config`` is read. ``asked``:
    as in :func:`ways_of`."""
    for way, items in ways_of(asking, **asked).items():
        for start in range(0, len(items), PIECE):
            inquiry = getattr(asking, way)(items[start : start + PIECE])
            require_room(model, inquiry, Prompts.of(model, processor, inquiry.conversations, inquiry.options))


def ways_of(
    asking: Asking,
    *,
    sets: Sequence[str] = SETS,
    scoring: str = "both",
    limit: int | Mapping[str, int] | None = None,
    free_only: Collection[str] = (),
) -> dict[str, list[Item]]:
    """Return the items of each way to ask, by the name of a method of :class:`Asking`. ``limit``: how many people of
    each set are asked about (one number, or set → number), the first ones. ``free_only``: as in :func:`ask`."""
    items = []
    for name in sets:
        scored = scored_items(asking, name)
        if name in free_only:
            scored = [item for item in scored if item.question.task == "generation"]
        first = limit[name] if isinstance(limit, Mapping) else limit
        people = set(list(dict.fromkeys(item.question.profile for item in scored))[:first])
        items += [item for item in scored if item.question.profile in people]
    choices, free, blanks = ([item for item in items if item.question.task == task] for task in TASKS)
    ways = {"letters": choices, "likelihoods": choices, "free_answers": free, "blanks": blanks}
    return {way: items for way, items in ways.items() if items and (way != "likelihoods" or scoring == "both")}


def inquiries_of(asking: Asking, **asked: Any) -> list[Inquiry]:
    """Return all questions of the sets, one inquiry for each way to ask; ``asked`` as in :func:`ways_of`."""
    return [getattr(asking, way)(items) for way, items in ways_of(asking, **asked).items()]


def answer(
    model,
    processor,
    inquiry: Inquiry,
    batch_size: int,
    progress=None,
    prompts: Prompts | None = None,
    seen: Mapping[str, dict] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one inquiry. ``prompts``: the encoded prompts, of any length; without them, raises ``KitError``
    for a question beyond the model's context. ``seen``: as in :func:`ask`."""
    if prompts is None:
        prompts = Prompts.of(model, processor, inquiry.conversations, inquiry.options)
        require_room(model, inquiry, prompts)
    known = dict(enumerate(map(seen.get, _keys(inquiry, prompts)))) if seen else {}
    new = [number for number in range(len(prompts.conversations)) if not known.get(number)]
    known |= zip(new, _answers(model, processor, inquiry, batch_size, progress, prompts.some(new)), strict=True)
    for number, conversation in enumerate(prompts.conversations):
        place, order = divmod(number, inquiry.orders)
        shots = 0 if inquiry.options else len(conversation.turns) - 1
        yield _row(inquiry.items[place], inquiry.scoring, order=order, shots=shots, **known[number])


def _keys(inquiry: Inquiry, prompts: Prompts) -> list[str]:
    """Return what decides each answer of a model: the prompt, and where the answer ends."""
    return [f"{key}-{inquiry.tokens}-{inquiry.until}" for key in prompts.keys()]


def _answers(model, processor, inquiry: Inquiry, batch_size: int, progress, prompts: Prompts) -> list[dict[str, Any]]:
    """Return what the model answers to ``prompts``. For a letter, one character is enough."""
    if inquiry.options is not None:
        table = option_likelihoods(model, processor, prompts, batch_size=batch_size, progress=progress)
        # a model that diverged may give no option a finite likelihood
        finite = np.where(np.isfinite(table), table, nan).tolist()
        return [dict(zip(OPTIONS, scores, strict=False)) for scores in finite]
    one = int(inquiry.scoring == "letter")
    texts, lengths = greedy(model, processor, prompts, inquiry.tokens, batch_size, progress, inquiry.until, one)
    return [{"answer": text, "tokens": length} for text, length in zip(texts, lengths, strict=True)]


def _row(item: Item, scoring: str, **known: Any) -> dict[str, Any]:
    question = item.question
    names = {"set": item.set, "task": question.task, "view": question.view, "scoring": scoring}
    names |= {"profile": question.profile, "question_id": question.id}
    return {**names, "order": 0, "shots": 0, "answer": "", **dict.fromkeys(OPTIONS, nan), "tokens": 0, **known}


def require_room(model, inquiry: Inquiry, prompts: Prompts) -> None:
    """Raise ``KitError``, with the question's name, if a prompt and its answer do not fit the model's context."""
    each = len(prompts.rows) // len(inquiry.items)
    names = (f"{item.question.id} ({item.set})" for item in inquiry.items for _ in range(each))
    prompts.require_room(model, inquiry.tokens, names)


def scored_items(asking: Asking, name: str) -> list[Item]:
    """Return the items of a set, without the people left out and with the drawn test pictures."""
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
