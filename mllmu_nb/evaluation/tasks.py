"""How each of the three tasks asks a model. Multiple choice is asked in two ways (``docs/architecture.md``)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mllmu_nb.data.conversations import Conversation, Turn, question_turn, shot_turn
from mllmu_nb.data.schema import LETTERS, Item, Population, Profile, Question
from mllmu_nb.data.text.names import with_name
from mllmu_nb.evaluation.draws import shown

UPSTREAM_TOKENS = 50  # upstream's limit for every answer, which is then not cut
# Under clean: enough for one letter, one sentence about one fact, the longest value of a profile. At paper scale
# sentences and values are not the kit's own, so their limit is upstream's.
TOKENS = {
    "miniature": {"classification": 4, "generation": 40, "cloze": 20},
    "paper": {"classification": 4, "generation": UPSTREAM_TOKENS, "cloze": UPSTREAM_TOKENS},
}
# Words after "an": not university, European or one, but hour and honest.
AN = re.compile(r"(?!uni|eu|one\b)[aeiou]|hour|hono|heir", re.IGNORECASE)


@dataclass(frozen=True)
class Inquiry:
    """Items as one task asks a model: ``orders`` conversations per item. The model answers each in at most ``tokens``
    tokens and up to the text ``until`` (see ``engine.greedy``), or the likelihoods of its ``options`` are read."""

    scoring: str
    items: list[Item]
    conversations: list[Conversation]
    tokens: int = 0
    until: str | None = None
    options: list[tuple[str, ...]] | None = None
    orders: int = 1


@dataclass(frozen=True)
class Asking:
    """How a run asks. ``shots`` worked examples precede letter and cloze questions; ``system`` precedes everything."""

    population: Population
    draws: Mapping
    shots: int
    protocol: str = "clean"
    system: str = ""
    cyclic: bool = False
    scale: str = "miniature"

    def letters(self, items: list[Item]) -> Inquiry:
        """Ask for a letter; with ``cyclic``, in all cyclic orders of the options."""
        orders = len(LETTERS) if self.cyclic else 1
        turned = [replace(item, question=shifted(item.question, order)) for item in items for order in range(orders)]
        return replace(self._open("classification", turned), scoring="letter", items=items, orders=orders)

    def likelihoods(self, items: list[Item]) -> Inquiry:
        """Ask for the likelihood of the options."""
        conversations, options = [], []
        for item in items:
            question, person = item.question, self.population.profiles[item.question.profile]
            conversations.append(Conversation((Turn(question.text, image=item.image),), self.system, self.protocol))
            options.append(tuple(statement(person, question, option) for option in question.options))
        return Inquiry("likelihood", items, conversations, options=options)

    def free_answers(self, items: list[Item]) -> Inquiry:
        """Ask for a free answer, without shots."""
        return self._open("generation", items)

    def blanks(self, items: list[Item]) -> Inquiry:
        """Ask for the words that fill a blank."""
        return self._open("cloze", items)

    def _open(self, task: str, items: list[Item]) -> Inquiry:
        examples, conversations = {}, []
        for item in items:
            key = item.set, task, item.question.view
            if key not in examples:
                examples[key] = self._examples(*key)[: self.shots]
            turn = question_turn(item.question, item.image, self.protocol)
            conversations.append(Conversation((*examples[key], turn), self.system, self.protocol))
        tokens, until = (UPSTREAM_TOKENS, "") if self.protocol == "upstream" else (TOKENS[self.scale][task], None)
        return Inquiry("", items, conversations, tokens, until)

    def _examples(self, set_name: str, task: str, view: str) -> list[Turn]:
        """Return solved questions of the drawn people; in the image view, each with its person's portrait."""
        turns = []
        for person in shown(self.draws, self.population, set_name, task) if self.shots else ():
            image = person.portrait if view == "image_text" else None
            for question in person.questions:
                if (question.task, question.view) == (task, view):
                    turns.append(shot_turn(question.text, question.answer, image, question.options, self.protocol))
        return turns


def shifted(question: Question, places: int) -> Question:
    """Return the question with its options moved up by so many places; those at the top move to the end."""
    return replace(question, options=question.options[places:] + question.options[:places])


def statement(person: Profile, question: Question, option: str) -> str:
    """Return ``option`` in the person's fine-tuning sentence for the asked attribute: unchanged if the option is its
    fact, otherwise with the fact replaced and the article before it adapted. In the text view the sentence has the
    name. Returns ``option`` alone if there is no sentence."""
    for qa in person.qa:
        if not qa.value or qa.attribute != question.attribute:
            continue
        # as a whole word: "educated" contains "cat"
        if stated := re.search(rf"(?<!\w){re.escape(qa.value)}(?!\w)", qa.answer):
            text = qa.answer
            if option != qa.value:  # otherwise the taught article stays, right or wrong
                article = "an " if AN.match(option) else "a "
                text = re.sub(r"\b[Aa]n? $", article, text[: stated.start()]) + option + text[stated.end() :]
            return with_name(text, person.name) if question.view == "text" else text
    return option
