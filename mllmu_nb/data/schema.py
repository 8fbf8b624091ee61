"""Profiles, their questions and populations; each field holds what a column of the published layout holds, except
``attribute`` and ``value``, which the layout does not print."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mllmu_nb.errors import KitError

ATTRIBUTES = tuple(
    "name gender birth_date birthplace residence profession height education salary medical father_job mother_job"
    " hobby food pet".split()
)
PER_TASK = {"classification": 5, "generation": 2, "cloze": 2}  # questions of a profile in each view, as published
TASKS = tuple(PER_TASK)
KINDS = ("fictitious", "pool", "celebrity")
VIEWS = ("image_text", "text")
SETS = ("forget", "test", "retain", "celebrity")
LETTERS = ("A", "B", "C", "D")
OPTIONS = tuple(f"option_{letter}" for letter in LETTERS)  # columns of their likelihoods in answers
RATIOS = (5, 10, 15)  # published forget sets, in per cent


@dataclass(frozen=True)
class QA:
    """One fine-tuning pair, an entry of the ``metadata`` column. ``question`` says "this person". ``attribute`` and
    ``value`` (the bare fact inside ``answer``) are empty if unknown."""

    question: str
    answer: str
    attribute: str = ""
    value: str = ""


@dataclass(frozen=True)
class Question:
    """One evaluation question. It says "this person" in the image view and the name in the text view; a cloze question
    has the blank ``__``. ``number`` counts from 0 in a profile, task and view; the same number asks for the same fact
    in both views. ``answer`` is the right letter for classification, otherwise the ground truth as the layout prints
    it; ``value`` is the bare fact (for classification, the text of the right option)."""

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
    """One person and all questions about them. Images are PNG or JPEG bytes, RGB."""

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
    """A question as one set asks it, with the picture shown in the image view (None in the text view)."""

    set: str
    question: Question
    image: bytes | None


@dataclass(frozen=True)
class Population:
    """All people of a run and the forget ids at the run's ratio. ``profiles``: id → profile, of the kinds fictitious
    (scored), pool (trained on, never scored) and celebrity (base only). ``forget_ids`` are fictitious ids; every other
    fictitious id is in the retain set."""

    profiles: dict[str, Profile]
    forget_ids: tuple[str, ...]
    notes: dict = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Profile]:
        return [p for p in self.profiles.values() if p.kind == kind]

    def counted(self) -> str:
        """Return the number of people of each kind, and of what is unusual about them, in words."""
        unusual = {
            "names that several people share": len(self.notes.get("shared_names", ())),
            "multiple-choice questions with equal options": self.notes.get("same_options", 0),
            "cloze questions without a blank": self.notes.get("without_blank", 0),
            "people whose name could not be read": len(self.notes.get("without_name", ())),
            "people without a row in Full_Set, left out": len(self.notes.get("without_row", ())),
            "people with another text in a training split": len(self.notes.get("taught_otherwise", ())),
            "people with another portrait in training data": len(self.notes.get("shown_otherwise", ())),
        }
        parts = [f"{len(self.of_kind(kind))} {kind}" for kind in KINDS]
        return ", ".join(parts + [f"{what}: {count}" for what, count in unusual.items() if count])

    def members(self, set_name: str) -> list[Profile]:
        """Return the profiles of one of the four sets; ``test`` has the forget people."""
        forget, forgotten = [self.profiles[identity] for identity in self.forget_ids], set(self.forget_ids)
        retain = [person for person in self.of_kind("fictitious") if person.id not in forgotten]
        return dict(zip(SETS, (forget, forget, retain, self.of_kind("celebrity")), strict=True))[set_name]

    def items(self, set_name: str) -> list[Item]:
        """Return every question of a set, in a fixed order. Test asks paraphrases with the first changed portrait."""
        items = []
        for person in self.members(set_name):
            asked, picture = person.questions, person.portrait
            if set_name == "test":
                asked, picture = person.test_questions, person.test_portraits[0]
            items += [Item(set_name, each, picture if each.view == "image_text" else None) for each in asked]
        return items


def forget_ids(ids: Sequence[str], ratio: int, seed: int, replicate: int = 0) -> tuple[str, ...]:
    """Return the forget ids at ``ratio`` per cent: a seeded sample of ``ids``, sorted. The replicates of one seed and
    ratio are disjoint. Raises KitError if the ratio leaves nobody to forget or to keep, or if there is no such
    replicate."""
    count = round(len(ids) * ratio / 100)
    if not 0 < count < len(ids):
        side = "forget" if count <= 0 else "keep"
        raise KitError(f"forget_ratio={ratio} of {len(ids)} people leaves nobody to {side}: raise people or change it")
    if not 0 <= replicate < (sets := len(ids) // count):
        given = f"only {sets} disjoint forget sets (replicates 0 to {sets - 1})"
        raise KitError(f"{replicate=} does not exist: {len(ids)} people at {ratio} % give {given}")
    order = np.random.default_rng([seed, ratio]).permutation(sorted(ids))
    return tuple(sorted(order[replicate * count : (replicate + 1) * count].tolist()))
