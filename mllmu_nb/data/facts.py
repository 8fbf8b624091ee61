"""What fictitious people are made of, and the wordings of questions and answers, both from ``facts.yaml``."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The wordings of one attribute; ``facts.yaml`` says what each list is for."""

    cloze: str
    questions: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    def answer_to(self, question: str) -> str:
        """The wording in which one of ``questions`` is answered."""
        return self.answers[self.questions.index(question)]


read_wordings = TypeAdapter(dict[str, Wording]).validate_python  # of a table of YAML: attribute → wording

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
