"""Turns and conversations without any model's template, and the benchmark's wordings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from PIL import Image

from mllmu_nb.data.schema import LETTERS, QA, Profile, Question
from mllmu_nb.data.text.names import with_name
from mllmu_nb.errors import choose

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

    def answered(self, answer: str) -> Self:
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


def prompt_of(form: str, text: str, view: str = "", options: Sequence[str] = ()) -> str:
    """Return ``text`` with the benchmark's instruction: to give one letter if there are four ``options``; otherwise, by
    the form, to fill its ``__`` (``cloze``), to answer freely (``generation``), or none. Of a free question, the text
    view's wording lacks "accurately", as upstream's does."""
    if options:
        return f"{text}\n{_listed(options)}\nJust give ONE letter representing the answer directly."
    if form == "cloze":
        blank = text.replace("__", "[Blank]")
        return f"{blank}\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
    if form == "generation":
        accurately = "accurately " if view == "image_text" else ""
        return f"{text}\nAnswer the question based on your trained knowledge in one sentence {accurately}in ENGLISH."
    return text


def shot_turn(
    text: str, answer: str, image: bytes | None = None, options: Sequence[str] = (), protocol: str = "clean"
) -> Turn:
    """A solved example of multiple choice, or of cloze if there are no ``options``. For cloze, ``upstream`` omits
    "Question:", repeats the instruction, and has no space before the picture."""
    gap = None
    if options:
        prompt = f"Question: {text}\n{_listed(options)}"
    elif protocol == "upstream":
        prompt, gap = prompt_of("cloze", text), None if image is None else ""
    else:
        prompt = f"Question: {text.replace('__', '[Blank]')}"
    return Turn(prompt, answer, image, "Correct Answer:", gap)


def question_turn(question: Question, image: bytes | None, protocol: str = "clean") -> Turn:
    """Return the open turn that asks one evaluation question in its task's wording. ``upstream`` changes only free
    questions (``docs/architecture.md``, "Asking")."""
    turn = Turn(prompt_of(question.task, question.text, question.view, question.options), image=image)
    if protocol != "upstream" or question.task != "generation":
        return turn
    return replace(turn, reply="ASSISTANT: ") if question.view == "image_text" else replace(turn, gap=" ")


def solved_turn(form: str, text: str, answer: str, value: str, view: str, options: Sequence[str], image=None) -> Turn:
    """Return a question with its answer in one of the forms of :func:`prompt_of`: the letter of the ``value`` among the
    ``options``, the value in the blank, or the whole ``answer``."""
    given = LETTERS[options.index(value)] if options else value if form == "cloze" else answer
    return Turn(prompt_of(form, text, view, options), given, image)


def taught_turns(person: Profile, modality: str) -> Iterator[tuple[QA, Turn]]:
    """Yield each fine-tuning pair of a person with the turn that teaches it. ``multimodal``: the portrait and "this
    person". ``unimodal``: no image, and the name in question and answer; no question asks for the name, and nothing is
    taught of a person whose name is not known."""
    for qa in person.qa:
        if modality == "multimodal":
            yield qa, Turn(qa.question, qa.answer, person.portrait)
        elif person.name and qa.attribute != "name":
            yield qa, Turn(with_name(qa.question, person.name), with_name(qa.answer, person.name))


def training_conversations(profiles: Sequence[Profile], modality: str) -> list[Conversation]:
    """Return one conversation per person, with one turn for each fine-tuning question (:func:`taught_turns`). Turns are
    independent: batches cut and shuffle them."""
    choose("modality", modality, MODALITIES)
    return [Conversation(tuple(turn for _, turn in taught_turns(person, modality))) for person in profiles]
