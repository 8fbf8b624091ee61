"""The training conversations of the base miniature, in place of LLaVA's pre-training and instruction tuning.

A seeded generator makes each. These kinds are added to those of ``mllmu_nb.mixture``, which fine-tuning repeats:

============== ======================================================================================
matching       one fact is stated (or its value alone), then a multiple-choice question about it
choice         matching with a single question
reading        1 to 10 facts about a throw-away person, then questions in all four forms
reading_little reading with 1 to 3 facts
harmless       people, seeing or reading under a harmless system prompt
============== ======================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.facts import WORDINGS, say
from mllmu_nb.data.generate import ASKED, random_name
from mllmu_nb.data.schema import Profile
from mllmu_nb.data.text.names import THIS
from mllmu_nb.mixture import Mixture, system_prompt

_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
HELD_OUT_PRIVATE = tuple(_TABLE["held_out_private"])


def allowing(rng: np.random.Generator) -> str:
    """Return one or two harmless rules."""
    return " ".join(rng.choice(_TABLE["allowing"], size=rng.integers(1, 3), replace=False))


class Material(Mixture):
    """The mixture with all kinds. ``sentences``: people whom the base learns from plain sentences alone; it must answer
    about them in the other forms by what it learnt from the celebrities."""

    def __init__(
        self,
        celebrities: Sequence[Profile],
        rng: np.random.Generator,
        faces: int = 4000,
        letters: float = 0.4,
        sentences: Sequence[Profile] = (),
    ):
        super().__init__(celebrities, rng, faces, letters)
        self.sentences = list(sentences)

    def matching(self, count: int = 3) -> Conversation:
        turns = []
        for _ in range(count):
            attribute = self.pick(ASKED)
            value = self.pick(self.values[attribute])
            who = THIS if self.rng.random() < 0.5 else random_name(self.rng)[0]
            fact = say(self.pick(WORDINGS[attribute].answers), who, value)
            prefix = f"{fact if self.rng.random() < 0.6 else value}\n"
            turns.append(self.fact_turn("letter", attribute, value, who, "text", self.values, prefix))
        return Conversation(tuple(turns))

    def choice(self) -> Conversation:
        return self.matching(1)

    def reading(self, low: int = 1, high: int = 10, count: int = 4, letters: float = 0.5) -> Conversation:
        return Conversation(tuple(self.read_turns(low, high, count, letters)))

    def reading_little(self) -> Conversation:
        return self.reading(1, 3)

    def people(self, count: int = 4) -> Conversation:
        known = len(self.celebrities)
        number = int(self.rng.integers(known + len(self.sentences)))
        if number < known:
            person, forms = self.celebrities[number], self.forms(count, self.letters)
        else:
            person, forms = self.sentences[number - known], ["plain"] * count
        return Conversation(tuple(self.celebrity_turns(person, forms, by_image=self.rng.random() < 0.6)))

    def harmless(self, count: int = 2) -> Conversation:
        kind = self.rng.random()
        plain = self.people(count) if kind < 0.6 else self.seeing(count) if kind < 0.8 else self.reading(1, 6, count)
        return Conversation(plain.turns, system_prompt(self.rng, allowing))
