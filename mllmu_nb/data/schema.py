"""What a profile is: the types that every floor above passes around.

They carry the columns of the published layout (``ID``, ``biography``, ``metadata``, ``Classification_Task``,
``Generation_Task``, ``Mask_Task``, images) and, beside them, what generated profiles know and published ones
do not print: which attribute a question asks for and the bare value that answers it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ATTRIBUTES = (
    "name",
    "gender",
    "birth_date",
    "birthplace",
    "residence",
    "profession",
    "height",
    "education",
    "salary",
    "medical",
    "father_job",
    "mother_job",
    "hobby",
    "food",
    "pet",
)
TASKS = ("classification", "generation", "cloze")
VIEWS = ("image_text", "text")
SETS = ("forget", "test", "retain", "celebrity")
LETTERS = ("A", "B", "C", "D")
KINDS = ("fictitious", "pool", "celebrity")


@dataclass(frozen=True)
class QA:
    """One fine-tuning pair, one entry of the ``metadata`` column. ``question`` says "this person".

    ``attribute`` and ``value`` (the bare fact inside ``answer``) are empty where they are not known.
    """

    question: str
    answer: str
    attribute: str = ""
    value: str = ""


@dataclass(frozen=True)
class Question:
    """One evaluation question. In the image view it says "this person"; in the text view, the name.

    ``answer`` is the right letter for classification, else the ground truth as the layout prints it;
    ``value`` is the bare fact (for classification the text of the right option). A cloze question holds the
    blank ``__``. ``number`` counts questions of one profile, task and view from 0: the same number in both views asks
    for the same fact.
    """

    profile: str
    task: str
    view: str
    number: int
    text: str
    answer: str
    value: str
    attribute: str = ""
    options: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.profile}/{self.task}/{self.view}/{self.number}"


@dataclass(frozen=True)
class Profile:
    """One person with everything asked of them. Images are PNG or JPEG bytes, RGB."""

    id: str
    name: str
    kind: str
    attributes: dict[str, str]
    portrait: bytes
    biography: str
    qa: tuple[QA, ...]
    questions: tuple[Question, ...]
    test_portraits: tuple[bytes, ...] = ()
    test_questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Item:
    """A question as one set asks it: with the picture shown in the image view (None in the text view)."""

    set: str
    question: Question
    image: bytes | None


@dataclass(frozen=True)
class Population:
    """All people of a run and the forget ids at the run's ratio.

    ``profiles`` maps id → profile for fictitious (scored), pool (trained on, never scored) and celebrity (base only).
    ``forget_ids`` are fictitious ids; every other fictitious id is in the retain set.
    """

    profiles: dict[str, Profile]
    forget_ids: tuple[str, ...]
    notes: dict = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Profile]:
        return [p for p in self.profiles.values() if p.kind == kind]

    def members(self, set_name: str) -> list[Profile]:
        """Profiles of one of the four sets; ``test`` holds the forget people."""
        forget = set(self.forget_ids)
        if set_name in ("forget", "test"):
            return [self.profiles[i] for i in self.forget_ids]
        if set_name == "retain":
            return [p for p in self.of_kind("fictitious") if p.id not in forget]
        if set_name == "celebrity":
            return self.of_kind("celebrity")
        raise ValueError(f"unknown set {set_name!r}: choose one of {', '.join(SETS)}")

    def items(self, set_name: str, test_image: int = 0) -> list[Item]:
        """Every question of a set, in a fixed order. Test asks the paraphrase with a transformed portrait."""
        found = []
        for person in self.members(set_name):
            test = set_name == "test"
            pictures = person.test_portraits if test else (person.portrait,)
            picture = pictures[test_image % len(pictures)]
            for question in person.test_questions if test else person.questions:
                found.append(Item(set_name, question, picture if question.view == "image_text" else None))
        return found
