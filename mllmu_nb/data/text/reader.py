"""What a published question asks for, and the bare value in its answer, by the rules of ``reader.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml

from mllmu_nb.data.schema import QA
from mllmu_nb.data.text.names import PARTICLE, UPPER, straight, with_person

LONGEST = 1000  # characters of a question or an answer; a longer one is not read, it states no single fact
_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_WORDS = {"upper": UPPER, "particle": PARTICLE, **_TABLE["words"]}


def _expand(pattern: str) -> str:
    """The pattern with those of ``words`` for their names in braces."""
    return re.sub(r"\{([a-z_]+)\}", lambda match: f"(?:{_expand(_WORDS[match[1]])})", pattern.replace("| ", "|"))


def _compile(pattern: str) -> re.Pattern:
    after = pattern.removeprefix("after ")
    return re.compile(_expand(pattern) if after == pattern else rf"(?i)(?:{_expand(after)})\s+(.+)$")


def _substitutions(table: Mapping[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(_compile(pattern), replacement) for pattern, replacement in table.items()]


def _substitute(substitutions: Iterable[tuple[re.Pattern, str]], text: str) -> str:
    for pattern, replacement in substitutions:
        text = pattern.sub(replacement, text)
    return text


def _questions(lines: Sequence[Mapping[str, str]], end: str) -> Iterator[tuple[str, list[re.Pattern]]]:
    """Attribute and patterns of every line; a word must have ``end`` behind it."""
    for attribute, patterns in (entry for line in lines for entry in line.items()):
        conditions = []
        for pattern in patterns.split(" & "):
            words = rf"\b(?:{_expand(pattern.removeprefix('not '))})\b{end}"
            conditions.append(re.compile(rf"^(?!.*{words})" if pattern.startswith("not ") else words))
        yield attribute, conditions


class _Rule:
    """How the value of one attribute is read; ``reader.yaml`` explains the arguments."""

    def __init__(self, find, cut=(), changes=None, denied=None, unless=None, means=None, figures=False):
        self.find = [_compile(pattern) for pattern in find]
        self.cut = [(_compile(pattern), "") for pattern in cut]
        self.changes = _substitutions(changes or {})
        self.denied, self.unless = denied, _compile(unless) if unless else None
        self.means, self.figures = means or {}, figures

    def read(self, text: str) -> str:
        if self.denied is not None and _DENIAL.search(text) and not (self.unless and self.unless.search(text)):
            return self.denied
        text = _substitute(self.changes, text)
        matches = filter(None, (pattern.search(text) for pattern in self.find))
        value = next(filter(None, (match[match.re.groups] for match in matches)), "")
        value = _substitute(self.cut, value).strip(" ,.;")
        return self.means.get(value.lower(), value)


_ASKS = [*_questions(_TABLE["about_others"], ""), *_questions(_TABLE["about_the_person"], "(?!')")]
_CHANGES_TO_QUESTIONS = _substitutions(_TABLE["changes_to_questions"])
_CHANGES_TO_ANSWERS = _substitutions(_TABLE["changes_to_answers"])
_LIKING, _UNKNOWN, _DENIAL = (_compile(_TABLE[name]) for name in ("liking", "unknown", "denial"))
_RULES = {attribute: _Rule(**entry) for attribute, entry in _TABLE["values"].items()}


@cache
def _asked(question: str) -> str:
    """The attribute and what is added to its name, of a question by itself."""
    text = _substitute(_CHANGES_TO_QUESTIONS, with_person(straight(question), "x").lower())
    for attribute, patterns in _ASKS:
        if all(pattern.search(text) for pattern in patterns):
            match = patterns[0].search(text)
            return attribute + match.groupdict().get("added", "").replace(" ", "_")
    return ""


def attribute_of(question: str, answer: str = "") -> str:
    """What ``question`` asks for: one of ``schema.ATTRIBUTES``, a sub-attribute such as ``pet_name``,
    ``father_name``, ``cooking`` or ``favorite_color``, or "" when it is not understood.

    ``answer`` decides where the question leaves it open: a fun fact that is a liking is a hobby.
    """
    attribute = _asked(question) if len(question) <= LONGEST else ""
    return "hobby" if attribute == "fun_fact" and _LIKING.search(answer) else attribute


def value_of(attribute: str, question: str, answer: str) -> str:
    """The bare fact in ``answer``: "This person was born in Turku, Finland." → "Turku, Finland".

    A denied medical condition becomes "no medical condition", a denied pet "no pets". "" when the answer says that
    nothing is known, or when nothing could be read.
    """
    if not attribute or len(answer) > LONGEST:
        return ""
    text = with_person(_substitute(_CHANGES_TO_ANSWERS, straight(answer)), "x").rstrip(" .!")
    if _UNKNOWN.search(text):
        return ""
    rule = _RULES.get(attribute, _RULES["other"])
    sentence = rule.figures or len(text.split()) > 8 or re.search(r"\bx\b|\b(?:is|was|has|does|are)\b", text)
    return rule.read(text) or ("" if sentence else text)


def understand(pairs: Sequence[tuple[str, str]]) -> tuple[QA, ...]:
    """Every pair with what it asks for and the bare fact, as far as both are understood (else both empty)."""
    read = []
    for question, answer in pairs:
        attribute = attribute_of(question, answer)
        value = value_of(attribute, question, answer)
        unknown = len(answer) <= LONGEST and _UNKNOWN.search(straight(answer))
        read.append(QA(question, answer, attribute if value or unknown else "", value))
    return tuple(read)


def attributes_of(qa: Sequence[QA]) -> dict[str, str]:
    """The first value of every attribute the pairs state."""
    stated: dict[str, str] = {}
    for pair in qa:
        if pair.attribute and pair.value:
            stated.setdefault(pair.attribute, pair.value)
    return stated
