"""Fine-tuning questions in the forms that evaluation asks."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mllmu_nb.data.conversations import prompt_of, training_conversations
from mllmu_nb.data.exams import FORMS, Exams
from mllmu_nb.data.generate import generate
from mllmu_nb.data.schema import LETTERS, QA

PEOPLE = generate(5, people=40, pool=4).of_kind("fictitious")
MARKS = {"letter": "ONE letter", "cloze": "[Blank]", "generation": "in ENGLISH"}


def form_of(turn):
    return next((form for form, mark in MARKS.items() if mark in turn.prompt), "plain")


def put(share, modality="unimodal", rounds=20):
    """Yield (person, pair, plain turn, exam) of every question, ``rounds`` times."""
    exams, rng = Exams(PEOPLE, share), np.random.default_rng(0)
    for _ in range(rounds):
        for person, plain in zip(PEOPLE, training_conversations(PEOPLE, modality), strict=True):
            pairs = [pair for pair in person.qa if modality == "multimodal" or pair.attribute != "name"]
            yield from zip([person] * len(pairs), pairs, plain.turns, exams(plain, rng).turns, strict=True)


@pytest.mark.parametrize("modality", ["multimodal", "unimodal"])
def test_exams_ask_for_the_same_fact_and_carry_their_answer(modality):
    for _, pair, plain, exam in put(1.0, modality, rounds=3):
        assert exam.image == plain.image
        if form_of(exam) == "letter":
            options = dict(line.split(": ", 1) for line in exam.prompt.splitlines()[1:5])
            assert options[exam.answer] == pair.value and len({o.lower() for o in options.values()}) == 4
        elif form_of(exam) == "cloze":
            assert exam.answer == pair.value and pair.value not in exam.prompt.split("\n")[0]
        else:
            assert pair.value in exam.answer


def test_a_second_true_value_is_no_wrong_option():
    hobbies = [("chess", "rowing"), ("chess",), ("archery",), ("weaving",), ("sailing",), ("rowing",)]
    people = []
    for person, own in zip(PEOPLE, hobbies, strict=False):
        pairs = tuple(QA("What is a hobby of this person?", f"This person likes {h}.", "hobby", h) for h in own)
        people.append(replace(person, qa=pairs, questions=(), test_questions=()))
    exams, rng, [plain] = Exams(people, 1.0), np.random.default_rng(0), training_conversations(people[:1], "multimodal")
    asked = [turn.prompt for _ in range(60) for turn in exams(plain, rng).turns if form_of(turn) == "letter"]
    assert asked and not any("chess" in prompt and "rowing" in prompt for prompt in asked)


def test_no_item_of_evaluation_is_taught():
    asked = set()
    for person in PEOPLE:
        for question in (*person.questions, *person.test_questions):
            who = "" if question.view == "text" else person.id
            if question.task == "classification":
                options = "\n".join(sorted(question.options))
                asked.add((who, question.text, options))
            else:
                wrap = prompt_of("cloze", question.text) if question.task == "cloze" else ""
                asked.add((who, wrap or prompt_of("generation", question.text, question.view), ""))
    for modality, own in (("multimodal", True), ("unimodal", False)):
        for person, _, _, exam in put(1.0, modality):
            text, options = exam.prompt, ""
            if form_of(exam) == "letter":
                first, *listed = exam.prompt.splitlines()
                text, options = first, "\n".join(sorted(line.split(": ", 1)[1] for line in listed[:4]))
            assert (person.id if own else "", text, options) not in asked


def test_forms_come_in_their_shares_and_every_letter_equally_often():
    forms, letters = Counter(), Counter()
    for _, pair, plain, exam in put(0.5):
        if pair.attribute != "gender":
            forms["same" if exam == plain else form_of(exam)] += 1
            letters.update([exam.answer] if form_of(exam) == "letter" else [])
    total = sum(forms.values())
    assert forms["letter"] / total == pytest.approx(0.5 * FORMS["letter"], abs=0.01)
    assert 0.5 < forms["same"] / total < 0.7  # evaluation items, and the plain wording drawn again, stay plain
    assert all(0.22 < letters[letter] / sum(letters.values()) < 0.28 for letter in LETTERS)


def test_a_share_of_nothing_changes_nothing():
    assert all(exam == plain for _, _, plain, exam in put(0.0, rounds=1))
