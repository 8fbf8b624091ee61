"""The values for fictitious people and the wordings of questions and answers, both from ``facts.yaml``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
        """Return the wording that answers one of ``questions``."""
        return self.answers[self.questions.index(question)]


read_wordings = TypeAdapter(dict[str, Wording]).validate_python  # from a YAML table: attribute → wording

_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FEMALE, MALE, FAMILY = _TABLE["female"], _TABLE["male"], _TABLE["family"]  # names
CITIES, SCHOOLS, HOBBIES, FOODS, PETS = (_TABLE[kind] for kind in ("cities", "schools", "hobbies", "foods", "pets"))
MEDICAL, HEALTHY, MONTHS = _TABLE["medical"], _TABLE["healthy"], _TABLE["months"]
PROFESSIONS: dict[str, list[int]] = _TABLE["professions"]  # → lowest and highest salary in $1,000
WORDINGS = read_wordings(_TABLE["wordings"])


def pick(rng: np.random.Generator, texts: Sequence[str]) -> str:
    """Return one of ``texts``: the same as ``rng.choice``, which first makes an array of them."""
    return texts[rng.integers(len(texts))]


def say(template: str, who: str, value: str = "") -> str:
    """Fill a wording; the sentence starts with a capital and "a" becomes "an" before a vowel."""
    text = template.replace("{who}", who)
    if value and value[0].lower() in "aeiou":
        text = text.replace(" a {value}", " an {value}")
    text = text.replace("{value}", value)
    return text[0].upper() + text[1:]
