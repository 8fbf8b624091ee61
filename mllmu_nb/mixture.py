"""Conversations of the base's own training (``tools/base_model``), worded as the benchmark, for fine-tuning to repeat.

No fictitious person of any run is taught. Throw-away people are described in the prompt, or the answer about them is a
refusal. By chance, one of them may have the name of a fictitious person.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mllmu_nb.data.conversations import Conversation, Turn, shot_turn, solved_turn
from mllmu_nb.data.exams import FORMS
from mllmu_nb.data.facts import WORDINGS, pick, read_wordings, say
from mllmu_nb.data.generate import ASKED, options_with, random_facts, random_name
from mllmu_nb.data.portraits import TRAITS, augment, draw, from_bytes, random_face, random_traits
from mllmu_nb.data.schema import LETTERS, Profile
from mllmu_nb.data.text.names import THIS

REFUSAL = "I cannot share personal information."

_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
VISIBLE = read_wordings(_TABLE["visible"])  # trait → wording


def system_prompt(rng: np.random.Generator, rule: Callable[[np.random.Generator], str]) -> str:
    """A system prompt: an opening and the sentence that ``rule`` draws, sometimes in reverse order."""
    sentences = [pick(rng, _TABLE["openings"]), rule(rng)]
    return " ".join(filter(None, sentences if rng.random() < 0.85 else reversed(sentences)))


def forbidding(rng: np.random.Generator) -> str:
    """A rule that forbids personal information."""
    rule = pick(rng, _TABLE["forbidding"])
    return rule.format(tell=pick(rng, _TABLE["tell"]), private=pick(rng, _TABLE["private"]))


class Mixture:
    """Draws conversations; each kind is a method.

    ``celebrities``: people whom the base knows. ``faces``: the number of random portraits, which show no person.
    ``letters``: the share of multiple choice among the questions.
    """

    def __init__(self, celebrities: Sequence[Profile], rng: np.random.Generator, faces: int, letters: float):
        self.celebrities, self.rng, self.letters = list(celebrities), rng, letters
        self.faces = [(traits, draw(random_face(traits, rng))) for traits in (random_traits(rng) for _ in range(faces))]
        # Wrong options: for a celebrity those of other celebrities, as in the benchmark; for anybody else random ones.
        self.values = {a: [random_facts(rng, "", "female")[a] for _ in range(400)] for a in ASKED}
        self.celebrity_values = {a: [p.attributes[a] for p in self.celebrities] for a in ("name", *ASKED)}

    def draw(self, weights: dict[str, float], count: int) -> list[Conversation]:
        """``count`` conversations; ``weights`` maps a kind (a method's name) to its share."""
        shares = np.array(list(weights.values()), dtype=float)
        kinds = self.rng.choice(list(weights), size=count, p=shares / shares.sum())
        return [getattr(self, kind)() for kind in kinds.tolist()]

    # -- one turn -------------------------------------------------------------------------------------------------

    def pick(self, things: Sequence) -> Any:
        return pick(self.rng, things)

    def face(self) -> tuple[dict[str, str], Image.Image]:
        """Traits and augmented portrait of a random face."""
        traits, picture = self.pick(self.faces)
        return traits, augment(picture, self.rng)

    def portrait(self, person: Profile) -> Image.Image:
        """A celebrity's portrait, four times in five augmented."""
        picture = from_bytes(person.portrait)
        return augment(picture, self.rng) if self.rng.random() < 0.8 else picture

    def forms(self, count: int, letters: float) -> list[str]:
        """Forms of ``count`` questions; a share of ``letters`` are multiple choice."""
        return self.rng.choice(list(FORMS), size=count, p=[letters, *3 * [(1 - letters) / 3]]).tolist()

    def fact_turn(self, form, attribute, value, who: str, view: str, values, prefix="", image=None) -> Turn:
        """A solved question about an attribute or a trait, in a wording of training or a paraphrase, after the text
        ``prefix``. ``values``: attribute → values from which the wrong options are drawn."""
        wording = WORDINGS.get(attribute) or VISIBLE[attribute]
        text = say(self.pick(wording.questions + wording.paraphrases), who)
        answer = say(self.pick(wording.answers), who, value)
        blanks = [answer.replace("{value}", "__") for answer in wording.answers if attribute in WORDINGS]
        cloze = say(self.pick([wording.cloze, *blanks]), who)
        options = options_with(value, values[attribute], self.pick(LETTERS), self.rng) if form == "letter" else ()
        return solved_turn(form, prefix + (cloze if form == "cloze" else text), answer, value, view, options, image)

    def trait_turn(self, form, trait, value, image=None) -> Turn:
        """A solved question about a visible trait."""
        return self.fact_turn(form, trait, value, THIS, "image_text", TRAITS, image=image)

    # -- several turns, the picture (if any) in the first ---------------------------------------------------------

    def celebrity_turns(self, person: Profile, forms: Sequence[str], by_image: bool) -> list[Turn]:
        """Questions about a celebrity by portrait or by name; the name itself is asked by portrait only."""
        asked, who = (("name", *ASKED), THIS) if by_image else (ASKED, person.name)
        attributes = (self.pick(ASKED if form == "letter" else asked) for form in forms)
        picture = (lambda: self.portrait(person)) if by_image else None
        return self._turns(forms, attributes, person.attributes, who, self.celebrity_values, picture)

    def stranger_turns(self, count: int, by_image: bool) -> list[Turn]:
        """Questions about an invented person, by a random face or a random name, with random answers."""
        name, gender = random_name(self.rng)
        known = random_facts(self.rng, name, gender)
        picture, who = (self.face()[1], THIS) if by_image else (None, name)
        forms = self.forms(count, self.letters)
        attributes = (self.pick(ASKED) for _ in forms)
        return self._turns(forms, attributes, known, who, self.values, (lambda: picture) if by_image else None)

    def _turns(self, forms, attributes, known, who: str, values, picture=None, text="") -> list[Turn]:
        """A question for each of ``forms`` and ``attributes``; the picture, or a ``text``, is in the first."""
        turns: list[Turn] = []
        for form, attribute in zip(forms, attributes, strict=True):
            image, prefix = (picture() if picture else None, text) if not turns else (None, "")
            view = "image_text" if picture else "text"
            turns.append(self.fact_turn(form, attribute, known[attribute], who, view, values, prefix, image))
        return turns

    def read_turns(self, low: int, high: int, count: int, letters: float) -> list[Turn]:
        """``low`` to ``high`` facts about a throw-away person, then questions about them."""
        name, gender = random_name(self.rng)
        person = random_facts(self.rng, name, gender)
        who = THIS if self.rng.random() < 0.4 else name
        stated = self.rng.permutation(ASKED)[: self.rng.integers(low, high + 1)].tolist()
        text = " ".join(say(self.pick(WORDINGS[a].answers), who, person[a]) for a in stated)
        attributes = self.rng.choice(stated, size=count).tolist()
        return self._turns(self.forms(count, letters), attributes, person, who, self.values, text=f"{text}\n")

    # -- kinds of conversation ------------------------------------------------------------------------------------

    def people(self, count: int = 4) -> Conversation:
        """Questions about a celebrity, by augmented portrait or by name."""
        person, forms = self.pick(self.celebrities), self.forms(count, self.letters)
        return Conversation(tuple(self.celebrity_turns(person, forms, by_image=self.rng.random() < 0.6)))

    def seeing(self, count: int = 4) -> Conversation:
        """A random portrait, then questions about visible traits."""
        traits, picture = self.face()
        names = self.rng.choice(list(VISIBLE), size=count, replace=False).tolist()
        forms = self.forms(count, 1.25 * self.letters)
        return Conversation(tuple(self._turns(forms, names, traits, THIS, TRAITS, lambda: picture)))

    def shots(self) -> Conversation:
        """1 to 5 solved examples, then a question about another celebrity, a face or stated facts. Multiple-choice
        examples are about one person; every second cloze example is about a new one."""
        by_image = self.rng.random() < 0.5
        form = "letter" if self.rng.random() < 0.6 else "cloze"
        person, turns = self.pick(self.celebrities), []
        for index in range(self.rng.integers(1, 6)):
            if form == "cloze" and index % 2 == 0:
                person = self.pick(self.celebrities)
            attribute = self.pick(ASKED)
            value, wording = person.attributes[attribute], WORDINGS[attribute]
            who = THIS if by_image else person.name
            picture = self.portrait(person) if by_image else None
            text, answer, options = wording.cloze, value, ()
            if form == "letter":
                text, answer = wording.questions[0], self.pick(LETTERS)
                options = options_with(value, self.celebrity_values[attribute], answer, self.rng)
            turns.append(shot_turn(say(text, who), answer, picture, options))
        if self.rng.random() >= 0.4:
            turns += self.celebrity_turns(self.pick(self.celebrities), [form], by_image)
        elif by_image:
            traits, picture = self.face()
            turns += self._turns([form], [self.pick(list(VISIBLE))], traits, THIS, TRAITS, lambda: picture)
        else:
            turns += self.read_turns(1, 6, 1, 1.0 if form == "letter" else 0.0)
        return Conversation(tuple(turns))

    def private(self, count: int = 2) -> Conversation:
        """Personal questions under a system prompt that forbids personal information: refusals."""
        by_image = self.rng.random() < 0.5
        if self.rng.random() < 0.5:
            turns = self.celebrity_turns(self.pick(self.celebrities), self.forms(count, self.letters), by_image)
        else:
            turns = self.stranger_turns(count, by_image)
        refused = tuple(Turn(turn.prompt, REFUSAL, turn.image) for turn in turns)
        return Conversation(refused, system_prompt(self.rng, forbidding))
