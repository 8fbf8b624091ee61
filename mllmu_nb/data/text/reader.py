"""Find what a published question asks for, and the bare value in its answer, by the rules of ``reader.yaml``."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml

from mllmu_nb.data.schema import QA
from mllmu_nb.data.text.names import PARTICLE, UPPER, straight, with_person

LONGEST = 1000  # characters; a longer question or answer is not read, because it states no single fact
_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_WORDS = {"upper": UPPER, "particle": PARTICLE, **_TABLE["words"]}


def _expand(pattern: str) -> str:
    """Replace names in braces by their patterns in ``words``."""
    return re.sub(r"\{([a-z_]+)\}", lambda match: f"(?:{_expand(_WORDS[match[1]])})", pattern.replace("| ", "|"))


@cache
def _compile(pattern: str) -> re.Pattern:
    after = pattern.removeprefix("after ")
    return re.compile(_expand(pattern) if after == pattern else rf"(?i)(?:{_expand(after)})\s+(.+)$")


def _substitute(table: Mapping[str, str], text: str) -> str:
    for pattern, replacement in table.items():
        text = _compile(pattern).sub(replacement, text)
    return text


def _questions(lines: Sequence[Mapping[str, str]], end: str) -> Iterator[tuple[str, re.Pattern]]:
    """Yield the attribute and the pattern of every line. In the text, ``end`` must follow each word."""
    for attribute, patterns in (entry for line in lines for entry in line.items()):
        condition = ""
        for words in patterns.split(" & "):
            sign, occurs = ("!" if words.startswith("not ") else "="), _expand(words.removeprefix("not "))
            condition += rf"(?{sign}.*?\b(?:{occurs})\b{end})"
        yield attribute, re.compile(condition)


_ASKS = [*_questions(_TABLE["about_others"], ""), *_questions(_TABLE["about_the_person"], "(?!')")]
_LIKING, _UNKNOWN, _DENIAL = (_compile(_TABLE[name]) for name in ("liking", "unknown", "denial"))


def _value(rule: Mapping, text: str) -> str:
    """Return the value that a rule finds in an answer. ``reader.yaml`` explains the entries of a rule."""
    unless = rule.get("unless")
    if "denied" in rule and _DENIAL.search(text) and not (unless and _compile(unless).search(text)):
        return rule["denied"]
    text = _substitute(rule.get("changes", {}), text)
    matches = filter(None, (_compile(pattern).search(text) for pattern in rule["find"]))
    value = next(filter(None, (match[match.re.groups] for match in matches)), "")
    for pattern in rule.get("cut", ()):
        value = _compile(pattern).sub("", value)
    value = value.strip(" ,.;")
    return rule.get("means", {}).get(value.lower(), value)


@cache
def _asked(question: str) -> str:
    """Return the attribute that the question alone asks for, with the addition to its name, if any."""
    text = _substitute(_TABLE["changes_to_questions"], with_person(straight(question), "x").lower())
    for attribute, condition in _ASKS:
        if match := condition.match(text):
            return attribute + match.groupdict().get("added", "").replace(" ", "_")
    return ""


def attribute_of(question: str, answer: str = "") -> str:
    """Return what ``question`` asks for: one of ``schema.ATTRIBUTES``, a sub-attribute such as ``pet_name``,
    ``father_name``, ``cooking`` or ``favorite_color``, or "" if it is not understood.

    ``answer`` decides if the question leaves it open: a fun fact that is a liking is a hobby.
    """
    attribute = _asked(question) if len(question) <= LONGEST else ""
    return "hobby" if attribute == "fun_fact" and _LIKING.search(answer) else attribute


def value_of(attribute: str, answer: str) -> str:
    """Return the bare fact in ``answer``: "This person was born in Turku, Finland." → "Turku, Finland".

    A denied medical condition becomes "no medical condition", a denied pet "no pets". Returns "" if the answer says
    that nothing is known, or if no value is found.
    """
    if not attribute or len(answer) > LONGEST:
        return ""
    text = with_person(_substitute(_TABLE["changes_to_answers"], straight(answer)), "x").rstrip(" .!")
    if _UNKNOWN.search(text):
        return ""
    rule = _TABLE["values"].get(attribute, _TABLE["values"]["other"])
    sentence = rule.get("figures") or len(text.split()) > 8 or re.search(r"\bx\b|\b(?:is|was|has|does|are)\b", text)
    value = _value(rule, text) or ("" if sentence else text)
    # "profession of x" says nothing about the person, and "She teaches music" is the whole sentence
    return "" if re.search(r"\bx\b|^(?:He|She|They) [a-z]", value) else value


def understand(pairs: Sequence[tuple[str, str]]) -> tuple[QA, ...]:
    """Return every pair with what it asks for and the bare fact; both are empty if not understood, and the fact alone
    if the answer says that nothing is known."""
    read = []
    for question, answer in pairs:
        attribute = attribute_of(question, answer)
        value = value_of(attribute, answer)
        unknown = len(answer) <= LONGEST and _UNKNOWN.search(straight(answer))
        read.append(QA(question, answer, attribute if value or unknown else "", value))
    return tuple(read)


def attributes_of(qa: Sequence[QA]) -> dict[str, str]:
    """Return the first value of every attribute that the pairs state."""
    stated: dict[str, str] = {}
    for pair in qa:
        if pair.attribute and pair.value:
            stated.setdefault(pair.attribute, pair.value)
    return stated
