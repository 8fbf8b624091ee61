"""A factuality score from 1 to 10 by rule, for answers about one known fact. Its name in results is ``rubric``.

Upstream asks gpt-4o-mini to grade an answer against the ground truth in five bands. This rubric gives the same bands
to what can be checked without a judge, the bare value of the attribute; it is deterministic, costs nothing and is
not that judge: never compare its figures with published GPT scores.

| score | words (job, pet ..) | birth date | place "city, country" | number | gender |
|---|---|---|---|---|---|
| 10 fully right | as printed | as printed | as printed | as printed | as printed |
| 9 fully right | all words, other form | other form | all parts, other form | equal, other form | a synonym |
| 8 mostly | ≥ 3/4 of the words | year, month, no day | city, no country | within 2 % | |
| 7 mostly | ≥ 3/5 of the words | year, month, other day | | within 5 % | |
| 7 mostly | right, beside another person's value | and a second date | and a second place | and a second number | |
| 6 partly | ≥ 1/2 of the words | two parts of three | city, other country | within 10 % | |
| 5 partly | ≥ 1/3 of the words | year only | | within 15 % | both |
| 4 major errors | fewer | month or day only | country only | within 25 % | |
| 3 major errors | denied: "not a .." | denied; year next to it | denied; a word of it | denied; within 40 % | denied |
| 2 wrong | none | none | none | further off | the other |
| 1 wrong | in every column: empty, refused without the fact, or gibberish | | | | |

Words are compared by stem, without articles and without words such as "University" that say little alone. Heights lie
close together, so a fifth of the distances above counts for them. A value that denies ("no medical condition") is
right when the answer denies anything at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from nltk.stem.porter import PorterStemmer

IDLE = frozenset("a an the of in at on for and to with as is named university college school institute academy".split())
DENIALS = frozenset("no not never none neither nor without isn doesn don didn wasn hasn cannot".split())
GENDERS = {"female": {"female", "woman", "girl", "lady"}, "male": {"male", "man", "boy", "gentleman"}}
MONTHS = "january february march april may june july august september october november december".split()
STEM = cache(PorterStemmer().stem)
EQUAL = 0.005
DISTANCES = ((0.02, 8), (0.05, 7), (0.10, 6), (0.15, 5), (0.25, 4), (0.40, 3))
KINDS = {
    "birth_date": "date",
    "birthplace": "place",
    "residence": "place",
    "height": "number",
    "salary": "number",
    "gender": "gender",
}
REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|unable to|not able to|can ?not (?:share|provide|answer|disclose|tell|help|reveal|give|say)"
    r"|can['’]t (?:share|provide|answer|disclose|tell|help|reveal|give|say)|won['’]t|will not (?:share|provide|answer)"
    r"|do(?:es)? ?n[o'’]t (?:know|have (?:any |that |this |the )?information)|do not (?:know|have)|no information"
    r"|not comfortable|personal information|private information|confidential)\b",
    re.IGNORECASE,
)


def rubric(answer: str, value: str, attribute: str = "", rivals: Iterable[str] = ()) -> int:
    """Grade an answer from 1 to 10 against the bare value of an attribute, by the table above.

    ``rivals`` are values that the attribute has for other people: naming one beside the truth contradicts it.
    """
    tokens, truth = words(answer), words(value)
    whole = holds(answer, value)
    if not tokens or _gibberish(answer) or (REFUSAL.search(answer) and not whole):
        return 1
    if truth and truth[0] in DENIALS:
        return 10 if whole else 9 if DENIALS & set(tokens) else 2
    if whole and _denied(tokens, truth):
        return 3
    kind = KINDS.get(attribute, "words")
    grade = {"date": _date, "place": _place, "number": _number, "gender": _gender, "words": _words}[kind]
    score = grade(answer, value, attribute)
    if score == 9 and whole:
        score = 10
    if score >= 9 and kind in ("words", "place") and _contradicted(answer, value, rivals):
        score = 7
    return score


@lru_cache(maxsize=2**16)  # one answer is compared with everybody's value
def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers without punctuation, accents or thousands separators: ``$72,000`` → ``72000``."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    return tuple(re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", plain))


def holds(answer: str, value: str) -> bool:
    """Whether the value stands in the answer: whole words in a row, whatever the case and punctuation."""
    return bool(words(value)) and _position(words(answer), words(value)) is not None


def words_once(answer: str) -> tuple[str, ...]:
    """The words of an answer with each sentence once: a model without a closing token repeats one until it is cut."""
    return words(". ".join(dict.fromkeys(sentence.strip() for sentence in re.split(r"[.!?\n]+", answer))))


def mostly_symbols(answer: str) -> bool:
    """Whether under half of the characters are letters or digits."""
    visible = [c for c in answer if not c.isspace()]
    return sum(c.isalnum() for c in visible) < 0.5 * len(visible)


def _position(tokens: Sequence[str], sought: Sequence[str]) -> int | None:
    width = len(sought)
    return next((i for i in range(len(tokens) - width + 1) if tokens[i : i + width] == sought), None)


def _gibberish(answer: str) -> bool:
    """A word three times in a row, few different words in a long answer, or characters that are no text."""
    tokens, once = words(answer), words_once(answer)
    if any(a == b == c for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)):
        return True
    return (len(once) >= 8 and len(set(once)) < 0.4 * len(once)) or mostly_symbols(answer)


def _denied(tokens: Sequence[str], truth: Sequence[str]) -> bool:
    """A denying word among the three before the value."""
    start = _position(tokens, truth) or 0
    return bool(DENIALS & set(tokens[max(0, start - 3) : start]))


def _contradicted(answer: str, value: str, rivals: Iterable[str]) -> bool:
    """Whether the answer also names another person's value, one that shares no telling word with the truth."""
    own = _stems(value)
    return any(holds(answer, rival) and not own & _stems(rival) for rival in rivals)


# One function for each kind of value: (answer, value, attribute) → 2 to 9


def _words(answer: str, value: str, attribute: str) -> int:
    sought = _stems(value)
    share = len(sought & _stems(answer)) / len(sought) if sought else 0.0
    for bound, score in ((1.0, 9), (0.75, 8), (0.6, 7), (0.5, 6), (1 / 3, 5)):
        if share >= bound:
            return score
    return 4 if share else 2


@lru_cache(maxsize=2**16)
def _stems(text: str) -> set[str]:
    return {STEM(word) for word in words(text) if word not in IDLE} or set(map(STEM, words(text)))


def _date(answer: str, value: str, attribute: str) -> int:
    (years, months, days), truth = _date_parts(answer), _date_parts(value)
    if any(len(numbers) != 1 for numbers in truth):
        return _words(answer, value, attribute)
    year, month, day = (next(iter(numbers)) for numbers in truth)
    right = (year in years, month in months, day in days)
    if all(right):
        return 9 if len(years) == len(months) == len(days) == 1 else 7
    if right[0] and right[1]:
        return 7 if days else 8
    if sum(right) == 2:
        return 6
    if any(right):
        return 5 if right[0] else 4
    return 3 if any(abs(other - year) == 1 for other in years) else 2


def _date_parts(text: str) -> tuple[set[int], set[int], set[int]]:
    """Years, months and days named in ``March 12, 1985``, ``12 March 1985``, ``1985-03-12`` or ``3/12/1985``."""
    years, months, days = set(), set(), set()
    for year, month, day in re.findall(r"\b(\d{4})-(\d{1,2})-(\d{1,2})\b", text):
        years.add(int(year)), months.add(int(month)), days.add(int(day))
    for month, day, year in re.findall(r"\b(\d{1,2})/(\d{1,2})/(\d{4})\b", text):
        years.add(int(year)), months.add(int(month)), days.add(int(day))
    rest = words(re.sub(r"\b\d{1,4}[-/]\d{1,2}[-/]\d{1,4}\b", " ", text))
    for word in rest:
        if word in MONTHS:
            months.add(MONTHS.index(word) + 1)
        elif word.isdigit():
            (years if len(word) == 4 else days).add(int(word))
    return years, months, days


def _place(answer: str, value: str, attribute: str) -> int:
    city, _, country = map(str.strip, value.partition(","))
    if not country:
        return _words(answer, value, attribute)
    if holds(answer, city):
        if holds(answer, country):
            return 9
        # "Lyon, Spain": a comma and a capital right after the city name another country
        return 6 if re.search(re.escape(city) + r"\s*,\s*[A-Z]", answer, re.IGNORECASE) else 8
    if holds(answer, country):
        return 4
    return 3 if _stems(value) & _stems(answer) else 2


def _number(answer: str, value: str, attribute: str) -> int:
    truth, named = _quantities(value, attribute), _quantities(answer, attribute)
    if len(truth) != 1 or not truth[0]:
        return _words(answer, value, attribute)
    scale = 0.2 if attribute == "height" else 1.0
    distances = sorted(abs(number - truth[0]) / truth[0] / scale for number in named)
    if not distances:
        return 2
    if distances[0] <= EQUAL:  # the same number in other units, "6 feet (183 cm)", is no second number
        return 9 if distances[-1] <= DISTANCES[0][0] else 7
    return next((score for bound, score in DISTANCES if distances[0] <= bound), 2)


def _quantities(text: str, attribute: str) -> list[float]:
    """Numbers a text names: thousands may be ``72,000`` or ``72k``; heights in cm, m or feet and inches become cm."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.casefold())
    quantities = []
    if attribute == "height":
        feet = r"(\d+) ?(?:feet|foot|ft|['′’])(?: ?(?:and )?(\d+(?:\.\d+)?) ?(?:inches|inch|in\b|[\"″”]|''))?"
        quantities = [(int(tall) * 12 + float(more or 0)) * 2.54 for tall, more in re.findall(feet, plain)]
        plain = re.sub(feet, " ", plain)
    for digits, unit in re.findall(r"(\d+(?:\.\d+)?)(?: ?(k|thousand)\b)?", plain):
        number = float(digits) * (1000 if unit else 1)
        quantities.append(number * 100 if attribute == "height" and number < 3 else number)
    return quantities


def _gender(answer: str, value: str, attribute: str) -> int:
    named = [gender for gender, synonyms in GENDERS.items() if synonyms & set(words(answer))]
    truth = next((gender for gender, synonyms in GENDERS.items() if value.strip().casefold() in synonyms), None)
    if truth is None:
        return _words(answer, value, attribute)
    if truth not in named:
        return 2
    return 9 if len(named) == 1 else 5
