"""How a sentence refers to its person: "this person" with a portrait, the person's name in text alone."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mllmu_nb.data.schema import QA, Profile, Question

THIS = "this person"
_PLACE = (
    r"(?:the|this|that) (?:given |shown |attached )?"
    r"(?:image|picture|photo(?:graph)?|portrait|biography|bio|profile|description)"
)
_SHOWN = r"(?:shown|seen|depicted|pictured|featured|portrayed|presented|displayed|described|mentioned|stated|given)"
_IN_PLACE = rf"(?:,? (?:as )?(?:{_SHOWN} )?(?:in|from|on|by|of|within) {_PLACE})"
_SOMEBODY = r"(?:this|the|that) (?:person|individual|man|woman|lady|gentleman|subject|character|figure)\b"
_LEAD = rf"^(?:(?:based on|according to|judging by|looking at|from) |(?:as )?(?:{_SHOWN} )?in ){_PLACE}, "
_PERSON = re.compile(rf"\b{_SOMEBODY}(?:,? (?:who is |that is )?{_SHOWN}(?! in a))?{_IN_PLACE}?(?P<own>'s)?", re.I)
_RELATION = re.compile(r"\bthe (father|mother|dad|mom|parents|pet|cat|dog)\b", re.I)
# a word that begins with a capital letter of any alphabet, perhaps after d', l', al- or el-
UPPER = r"(?:[dl]'|[ae]l-)?[^\W\d_a-zß-öø-ÿ][^\s,;:!?()\[\]{}\"«»/|–—…*]*"
PARTICLE = (
    r"(?:d[aeiou]s?|dell?|della|l[aei]|l[ao]s|van|von|de[rn]|te[rn]?|zu[mr]?|a[fv]|à|bint?|ibn|[ae]l|y|e|ser|of|'[ts])"
)
Asked = tuple[str, int, QA, str, Sequence[str], str, str]  # what is asked: see with_texts
LONGEST_WORD = 100  # characters; the time that patterns take grows with the square of a word's length


def straight(text: str) -> str:
    """``text`` with straight quotes, single spaces, and an accented letter as one character (NFC)."""
    text = unicodedata.normalize("NFC", text).translate(str.maketrans("’‘“”", "''\"\""))
    return re.sub(r"\s+", " ", text).strip()


def with_person(text: str, name: str) -> str:
    """Return ``text`` with ``name`` in place of "this person" and similar words, and without "in the image"."""
    text = _PERSON.sub(lambda match: name + (match["own"] or ""), text)
    return re.sub(_IN_PLACE, "", text, flags=re.I)


def with_name(text: str, name: str) -> str:
    """Return ``text`` with the name in place of "this person", "the woman shown" and similar words, for the text view.

    Removes "in the image", because the text view has no image. Adds the name to a question that names nobody ("What is
    the father's occupation?"). Upstream replaces only the words "this person".
    """
    capital = text[:1].isupper()
    text = re.sub(_LEAD, "", straight(text), flags=re.I)
    text, named = with_person(text, name), re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")  # "Al" is not in "Alaska"
    text = re.sub(rf"\b{_PLACE}\b", name, text, flags=re.I) if not named.search(text) else text
    if not named.search(text):
        text = _RELATION.sub(lambda match: f"{name}'s {match[1].lower()}", text, count=1)
    if not named.search(text) and text.endswith("?"):
        text = f"About {name}: {text}"
    return text[:1].upper() + text[1:] if capital else text


def with_texts(person: Profile, asked: Iterable[Asked]) -> Profile:
    """Return the person with a biography of the known facts, and with what is ``asked`` (task, number, fact, answer,
    options, text, the Test set's text) as questions in both views. The text view names the person, also in an answer
    sentence."""
    sets: tuple[list[Question], list[Question]] = [], []
    for task, number, fact, answer, options, *texts in asked:
        named = with_name(answer, person.name) if task == "generation" else answer
        for questions, text in zip(sets, texts, strict=True):
            stated = answer, fact.value, fact.attribute, tuple(options)
            shown = Question(person.id, task, "image_text", number, text, *stated)
            questions += shown, replace(shown, view="text", text=with_name(text, person.name), answer=named)
    known = (with_name(pair.answer, person.name) for pair in person.qa if pair.value and pair.attribute != "name")
    return replace(person, biography=" ".join(known), questions=tuple(sets[0]), test_questions=tuple(sets[1]))


def names_in(text: str) -> list[str]:
    """Return every run of two or more capitalised words in ``text``, without possessives."""
    text = re.sub(rf"\S{{{LONGEST_WORD},}}", " ", straight(text))
    runs = re.finditer(rf"{UPPER}(?: (?:{PARTICLE} )*{UPPER})+", text)
    return [re.sub(r"(?:'s)?[.,]*$", "", run[0]) for run in runs]
