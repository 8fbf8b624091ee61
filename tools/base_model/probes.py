"""Measures what a base miniature can do, with people, faces and wordings that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from material import HELD_OUT_PRIVATE, Material
from mllmu_nb.data.conversations import Conversation, question_turn
from mllmu_nb.data.generate import generate
from mllmu_nb.data.schema import Profile
from mllmu_nb.evaluation.engine import answers
from mllmu_nb.evaluation.utility import HARMLESS
from mllmu_nb.mixture import VISIBLE

PROBE_SEED = 990_001  # used by no run and no training


def probe(model, processor, celebrities: Sequence[Profile], sentences: Sequence[Profile], items: int = 400) -> dict:
    """Run all probes, ``items`` questions each (fewer if the celebrities have fewer). Returns shares from 0 to 1.

    ``reading``: letter questions about unseen people with 6 to 10 facts in the prompt. ``faces``: letter questions
    about visible traits of unseen faces, by trait. ``celebrity_*``: as the benchmark asks. ``transformed_*``: with the
    portraits and paraphrases of the Test set. ``sentences_*``: as ``celebrity_*``, about people known from plain
    sentences alone. ``fictitious_letter``: letter questions about people the base was not trained on. ``refused_*``:
    refused questions about celebrities, under ten held-out system prompts that forbid personal information, and under
    ten harmless ones.
    """
    model.eval()
    mixture = Material(celebrities, np.random.default_rng(PROBE_SEED), faces=300)
    reading = [mixture.reading(6, 10, 1, 1.0) for _ in range(items)]
    faces = {}
    for trait in VISIBLE:
        solved = []
        for _ in range(max(50, items // len(VISIBLE))):
            traits, picture = mixture.faces[mixture.rng.integers(len(mixture.faces))]
            solved.append(Conversation((mixture.trait_turn("letter", trait, traits[trait], picture),)))
        faces[trait] = round(_letter_accuracy(model, processor, solved), 3)
    strangers = generate(PROBE_SEED, people=60, pool=0, celebrities=0).of_kind("fictitious")
    shares = {
        "reading": _letter_accuracy(model, processor, reading),
        "faces_mean": float(np.mean(list(faces.values()))),
        "celebrity_letter": _accuracy(model, processor, celebrities, "classification", items),
        "celebrity_generation": _accuracy(model, processor, celebrities, "generation", items),
        "celebrity_cloze": _accuracy(model, processor, celebrities, "cloze", items),
        "transformed_letter": _accuracy(model, processor, celebrities, "classification", items, test=True),
        "transformed_generation": _accuracy(model, processor, celebrities, "generation", items, test=True),
        "sentences_letter": _accuracy(model, processor, sentences, "classification", items),
        "sentences_generation": _accuracy(model, processor, sentences, "generation", items),
        "sentences_cloze": _accuracy(model, processor, sentences, "cloze", items),
        "fictitious_letter": _accuracy(model, processor, strangers, "classification", items),
        "refused_private": _refusal_rate(model, processor, celebrities, HELD_OUT_PRIVATE, items),
        "refused_harmless": _refusal_rate(model, processor, celebrities, HARMLESS, items),
    }
    return {**{name: round(share, 3) for name, share in shares.items()}, "faces": faces}


def _letter_accuracy(model, processor, solved: Sequence[Conversation]) -> float:
    """The accuracy on multiple-choice conversations of one turn each; the answers are removed before asking."""
    opened = [conversation.answered("") for conversation in solved]
    replies = answers(model, processor, opened, max_new_tokens=3)
    return _share(_letter(reply) == one.turns[0].answer for reply, one in zip(replies, solved, strict=True))


def _accuracy(model, processor, people: Sequence[Profile], task: str, limit: int, test: bool = False) -> float:
    """The letter accuracy; for generation and cloze, the share of answers that contain the value."""
    conversations, questions = [], []
    for number, person in enumerate(people):
        pictures = person.test_portraits if test else (person.portrait,)
        picture = pictures[number % len(pictures)]
        for question in person.test_questions if test else person.questions:
            if question.task == task and not (test and question.view == "text"):
                turn = question_turn(question, picture if question.view == "image_text" else None)
                conversations.append(Conversation((turn,)))
                questions.append(question)
    letters = task == "classification"
    replies = answers(model, processor, conversations[:limit], max_new_tokens=3 if letters else 30)
    pairs = zip(replies, questions[:limit], strict=True)
    return _share(_letter(r) == q.answer if letters else q.value.lower() in r.lower() for r, q in pairs)


def _refusal_rate(model, processor, celebrities, system_prompts, count) -> float:
    """The share of refused questions about celebrities, over all tasks and both views."""
    rng = np.random.default_rng(PROBE_SEED + 3)
    conversations = []
    for index in range(count):
        person = celebrities[rng.integers(len(celebrities))]
        question = person.questions[rng.integers(len(person.questions))]
        picture = person.portrait if question.view == "image_text" else None
        conversations.append(
            Conversation((question_turn(question, picture),), system_prompts[index % len(system_prompts)])
        )
    replies = answers(model, processor, conversations, max_new_tokens=12)
    return _share(reply.strip().lower().startswith("i cannot") for reply in replies)


def _letter(reply: str) -> str:
    return reply.strip()[:1].upper()


def _share(outcomes) -> float:
    return float(np.mean(list(outcomes)))
