"""The values that fictitious people are made of, and the wordings in which they are asked and answered.

The lists stand in ``facts.yaml``. In a wording ``{who}`` stands for the person ("this person" beside a portrait, the
name in text) and ``{value}`` for the fact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Wording:
    """The wordings of one attribute.

    ``questions``: each person is asked in one of them, in fine-tuning as in evaluation. ``paraphrases``: asked of the
    Test set only. ``answers``: question i is always answered by answer i, since an answer that varied independently
    would be one more thing to memorise about each person; further answers are used in paraphrased cloze sentences.
    ``cloze``: ``__`` is the blank.
    """

    questions: tuple[str, ...]
    paraphrases: tuple[str, ...]
    answers: tuple[str, ...]
    cloze: str

    def answer_to(self, question: str) -> str:
        """The wording in which one of ``questions`` is answered."""
        return self.answers[self.questions.index(question)]


def read_wordings(table: dict[str, dict]) -> dict[str, Wording]:
    """Wordings by attribute from a table of YAML; a list that is left out is empty."""
    lists = ("questions", "paraphrases", "answers")
    return {
        name: Wording(*(tuple(entry.get(key, ())) for key in lists), entry["cloze"]) for name, entry in table.items()
    }


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

FEMALE: list[str] = _TABLE["female"]
MALE: list[str] = _TABLE["male"]
FAMILY: list[str] = _TABLE["family"]
CITIES: list[str] = _TABLE["cities"]
PROFESSIONS = {job: (low, high) for job, (low, high) in _TABLE["professions"].items()}  # salary range in $1,000
SCHOOLS: list[str] = _TABLE["schools"]
MEDICAL: list[str] = _TABLE["medical"]
HEALTHY: str = _TABLE["healthy"]
HOBBIES: list[str] = _TABLE["hobbies"]
FOODS: list[str] = _TABLE["foods"]
PETS: list[str] = _TABLE["pets"]
MONTHS: list[str] = _TABLE["months"]
WORDINGS = read_wordings(_TABLE["wordings"])


def say(template: str, who: str, value: str = "") -> str:
    """Fill a wording; the sentence starts with a capital and "a" becomes "an" before a vowel."""
    text = template.replace("{who}", who)
    if value and value[0].lower() in "aeiou":
        text = text.replace(" a {value}", " an {value}")
    text = text.replace("{value}", value)
    return text[0].upper() + text[1:]
