"""Put fine-tuning questions into the forms of evaluation, but never make an item of the evaluation itself
(``docs/architecture.md``). Mixed training: Allen-Zhu and Li 2023, "Physics of language models 3.1"."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mllmu_nb.data.conversations import MODALITIES, Conversation, Turn, solved_turn, taught_turns
from mllmu_nb.data.facts import WORDINGS, pick, say
from mllmu_nb.data.generate import options_with
from mllmu_nb.data.schema import LETTERS, Profile
from mllmu_nb.data.text.names import THIS

FORMS = {"letter": 0.375, "cloze": 0.35, "generation": 0.1, "plain": 0.175}  # form → share


class Exams:
    """Puts a ``share`` of the questions about ``people`` into the forms of evaluation. The argument of a call is a
    conversation from :func:`training_conversations`."""

    def __init__(self, people: Sequence[Profile], share: float):
        self.share = share
        self.taught = {}  # (prompt, answer, picture) → person and pair
        self.asked = set()  # the items of evaluation
        self.values = defaultdict(list)  # attribute → everybody's values
        for person in people:
            asked = (*person.questions, *person.test_questions)
            self.asked |= {(person.id, q.task, q.text, frozenset(q.options)) for q in asked}
            for pair in person.qa:
                self.values[pair.attribute].append(pair.value)
            for modality in MODALITIES:
                for pair, turn in taught_turns(person, modality):
                    self.taught[turn.prompt, turn.answer, turn.image] = person, pair

    def __call__(self, conversation: Conversation, rng: np.random.Generator) -> Conversation:
        """Return ``conversation`` with a share of its questions in the forms of evaluation."""
        picture = conversation.images[0] if conversation.images else None
        turns = [self._exam(t, picture, rng) if rng.random() < self.share else t for t in conversation.turns]
        return replace(conversation, turns=tuple(turns))

    def _exam(self, turn: Turn, picture: bytes | None, rng: np.random.Generator) -> Turn:
        """Return ``turn`` in another form, or unchanged if the form does not fit or evaluation asks the same."""
        person, pair = self.taught[turn.prompt, turn.answer, picture]
        form = rng.choice(list(FORMS), p=list(FORMS.values()))
        question, answer, wording = turn.prompt, turn.answer, WORDINGS.get(pair.attribute)
        if wording and pair.question in {say(text, THIS) for text in wording.questions}:  # only for the kit's people
            who, text = THIS if picture else person.name, pick(rng, wording.questions)
            question, answer = say(text, who), say(wording.answer_to(text), who, pair.value)
        blank = answer.replace(pair.value, "__")
        if not pair.value or (form == "cloze" and blank.count("__") != 1):
            return turn
        options = ()
        if form == "letter":
            # a person's second hobby is true as well, and so no wrong option
            own = {one.value.lower() for one in person.qa if one.attribute == pair.attribute} - {pair.value.lower()}
            others = self.values[pair.attribute]
            others = [value for value in others if value.lower() not in own] if own else others
            if len({value.lower() for value in others}) < len(LETTERS):
                return turn
            options = options_with(pair.value, others, pick(rng, LETTERS), rng)
        task, text = "classification" if options else form, blank if form == "cloze" else question
        if (person.id, task, text, frozenset(options)) in self.asked:
            return turn
        view = "image_text" if picture else "text"
        return solved_turn(form, text, answer, pair.value, view, options, turn.image)
