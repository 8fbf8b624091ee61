"""Turns and conversations without any model's template, and the benchmark's wordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mllmu_nb.data.schema import LETTERS, QA, Profile, Question
from mllmu_nb.data.text.names import with_name
from mllmu_nb.errors import choose

if TYPE_CHECKING:
    from PIL import Image

VIEW_OF = {"multimodal": "image_text", "unimodal": "text"}  # modality of training → view that asks for the same facts
MODALITIES = tuple(VIEW_OF)


@dataclass(frozen=True)
class Turn:
    """One exchange. ``prompt`` has no role words; an empty ``answer`` is left open for the model.

    ``reply`` is the text before the answer; few-shot examples of the benchmark use "Correct Answer:". ``gap`` is the
    text between the user's role word and the picture (without a picture: the prompt); None: the family's own.
    """

    prompt: str
    answer: str = ""
    image: bytes | Image.Image | None = None
    reply: str = "ASSISTANT:"
    gap: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns in order, after an optional system prompt. Only the last turn may be open. Under the ``protocol`` upstream,
    a family writes it as the released evaluation does, which differs from how the family is taught."""

    turns: tuple[Turn, ...]
    system: str = ""
    protocol: str = "clean"

    def answered(self, answer: str) -> Conversation:
        """Return the same conversation with its last answer filled in."""
        *before, last = self.turns
        return replace(self, turns=(*before, replace(last, answer=answer)))

    @property
    def images(self) -> list[bytes | Image.Image]:
        """The pictures shown, in order."""
        return [turn.image for turn in self.turns if turn.image is not None]


Sets = Mapping[str, Sequence[Conversation]]  # input of unlearning: name of a set → conversations


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=True))


def choice_prompt(text: str, options: Sequence[str]) -> str:
    """A multiple-choice question that asks for one letter."""
    return f"{text}\n{_listed(options)}\nJust give ONE letter representing the answer directly."


def cloze_prompt(text: str) -> str:
    """A cloze sentence with the instruction to fill its ``__``."""
    blank = text.replace("__", "[Blank]")
    return f"{blank}\nPlease **ONLY** provide the correct answer that should replace the [Blank]."


def generation_prompt(text: str, view: str) -> str:
    """A free question. The text view's wording lacks "accurately", as upstream's does."""
    accurately = "accurately " if view == "image_text" else ""
    return f"{text}\nAnswer the question based on your trained knowledge in one sentence {accurately}in ENGLISH."


def choice_shot(text: str, options: Sequence[str], letter: str, image: bytes | None = None) -> Turn:
    """A solved multiple-choice example."""
    return Turn(f"Question: {text}\n{_listed(options)}", letter, image, "Correct Answer:")


def cloze_shot(text: str, value: str, image: bytes | None = None, protocol: str = "clean") -> Turn:
    """A solved cloze example. ``upstream`` omits "Question:", repeats the instruction, and has no space before the
    picture."""
    if protocol == "upstream":
        return Turn(cloze_prompt(text), value, image, "Correct Answer:", gap="" if image is not None else None)
    return Turn(f"Question: {text.replace('__', '[Blank]')}", value, image, "Correct Answer:")


def question_turn(question: Question, image: bytes | None, protocol: str = "clean") -> Turn:
    """Return the open turn that asks one evaluation question in its task's wording. ``upstream`` changes only free
    questions (``docs/architecture.md``, "Asking")."""
    if question.task == "classification":
        return Turn(choice_prompt(question.text, question.options), image=image)
    if question.task == "cloze":
        return Turn(cloze_prompt(question.text), image=image)
    turn = Turn(generation_prompt(question.text, question.view), image=image)
    if protocol != "upstream":
        return turn
    return replace(turn, reply="ASSISTANT: ") if question.view == "image_text" else replace(turn, gap=" ")


def solved_turn(
    form: str, question: str, answer: str, blank: str, value: str, view: str, options: Sequence[str], image=None
) -> Turn:
    """Return a question with its answer in one form of evaluation: ``letter`` (with four ``options``), ``cloze``,
    ``generation``, or ``plain`` (no instruction)."""
    if form == "letter":
        return Turn(choice_prompt(question, options), LETTERS[options.index(value)], image)
    if form == "cloze":
        return Turn(cloze_prompt(blank), value, image)
    return Turn(generation_prompt(question, view) if form == "generation" else question, answer, image)


def taught_turns(person: Profile, modality: str) -> Iterator[tuple[QA, Turn]]:
    """Yield each fine-tuning pair of a person with the turn that teaches it; ``unimodal`` leaves out the name."""
    for qa in person.qa:
        if modality == "multimodal":
            yield qa, Turn(qa.question, qa.answer, person.portrait)
        elif qa.attribute != "name":
            yield qa, Turn(with_name(qa.question, person.name), with_name(qa.answer, person.name))


def training_conversations(profiles: Sequence[Profile], modality: str) -> list[Conversation]:
    """Return one conversation per person, with one turn for each fine-tuning question.

    ``multimodal``: the portrait and "this person". ``unimodal``: no image, and the person's name in question and
    answer; the question that asks for the name is left out. Turns are independent: batches cut and shuffle them.
    """
    choose("modality", modality, MODALITIES)
    return [Conversation(tuple(turn for _, turn in taught_turns(person, modality))) for person in profiles]
