"""A factuality score from 1 to 10 by rule, for answers about one known fact (docs/scoring.md, "The factuality rubric").
It is not upstream's judge, gpt-4o-mini: never compare its figures with published GPT scores."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache, lru_cache, partial

from nltk.stem.porter import PorterStemmer

IDLE = frozenset("a an the of in at on for and to with as is named university college school institute academy".split())
DENIALS = frozenset("no not never none neither nor without isn doesn don didn wasn hasn cannot".split())
GENDERS = {"female": {"female", "woman", "girl", "lady"}, "male": {"male", "man", "boy", "gentleman"}}
MONTHS = "january february march april may june july august september october november december".split()
NUMBER_OF = {word: n for n, name in enumerate(MONTHS, 1) for word in (name, name[:3])} | {"sept": 9}
STEM = cache(PorterStemmer().stem)
SHARES = ((1.0, 9), (0.75, 8), (0.6, 7), (0.5, 6), (1 / 3, 5))  # (smallest share of the value's words, grade)
EQUAL = 0.005  # numbers with a smaller relative distance are the same
DISTANCES = ((0.02, 8), (0.05, 7), (0.10, 6), (0.15, 5), (0.25, 4), (0.40, 3))  # (largest relative distance, grade)
# (year right, month right, day right) → grade
DATES = {(1, 1, 0): 8, (1, 0, 1): 6, (0, 1, 1): 6, (1, 0, 0): 5, (0, 1, 0): 4, (0, 0, 1): 4}
ENDLESS = re.compile(r"(?:\d,?){300,}")  # no quantity; as a number it may be too large, and takes long to read
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
FEET = re.compile(
    r"(\d+(?:\.\d+)?) ?(?:(?:feet|foot|ft)\.?,?|['′’])"
    r"(?: ?(?:and )?(?:(\d+(?:\.\d+)?) ?(?:inches|inch|in\b|[\"″”]|'')|(1[01]|\d)(?!\.?\d| ?[cm])))?"  # "5 foot 9"
)
REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|unable to|not able to|not comfortable|decline to|must (?:\w+ )?decline"
    r"|(?:can ?not|can['’]t|won['’]t|will not) (?:share|provide|answer|disclose|tell|help|assist|reveal|give|say"
    r"|identify|comply|respond|comment|discuss|determine|generate|confirm|fulfill?)|do(?:es)? ?n[o'’]t know"
    r"|can ?not be (?:shared|provided|disclosed|determined)|I (?:must )?refuse to|I(?: am|['’]m) not allowed to"
    r"|not possible to (?:tell|say|determine)|I(?: would|['’]d)? (?:prefer|rather) not|I have no idea"
    r"|do(?:es)? ?n[o'’]t have (?:\w+ ){0,3}(?:information|details|data|access|knowledge)"
    r"|no information|personal(?:-related)? information|private information|confidential)\b",
    re.IGNORECASE,
)


def rubric(answer: str, value: str, attribute: str = "", rivals: Iterable[str] = ()) -> int:
    """Grade an answer from 1 to 10 against the bare value of an attribute. ``rivals`` are the values of other people
    for it: an answer that names one of them beside the truth contradicts itself."""
    answer, value = ENDLESS.sub(" ", answer), ENDLESS.sub(" ", value)
    tokens, truth = words(answer), words(value)
    before, whole, _ = f" {' '.join(tokens)} ".partition(f" {' '.join(truth)} ")
    if not tokens or _gibberish(answer) or (REFUSAL.search(answer) and not whole):
        return 1
    if truth and truth[0] in DENIALS:
        return 10 if whole else 9 if DENIALS & set(tokens) else 2
    said = [word for word in before.split() if word not in IDLE | {"t"}]  # the t of "doesn't"
    if whole and DENIALS & set(said[-2:]):  # "does not work as a baker": "not" and "work"
        return 3
    grade, own = GRADERS.get(attribute), _stems(value)
    score = grade and grade(answer, value) or _words(answer, value)
    # another person's value contradicts the truth if they have no content word in common
    others = (rival for rival in rivals if not own & _stems(rival))
    if score >= 9 and grade in (None, _place) and any(holds(answer, rival) for rival in others):
        return 7
    return 10 if score == 9 and whole else score


@lru_cache(maxsize=2**16)  # one answer is compared with everybody's value
def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers without punctuation, accents or thousands separators: ``$72,000`` → ``72000``."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    return tuple(re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", THOUSANDS.sub("", plain)))


def holds(answer: str, value: str) -> bool:
    """Whether the answer contains the value: whole words in a row, ignoring case and punctuation."""
    return bool(words(value)) and f" {' '.join(words(value))} " in f" {' '.join(words(answer))} "


def words_once(answer: str) -> tuple[str, ...]:
    """The words of an answer, each sentence once: a model without an end token repeats one until it is cut off."""
    return words(". ".join(dict.fromkeys(sentence.strip() for sentence in re.split(r"[.!?\n]+", answer))))


def mostly_symbols(answer: str) -> bool:
    """Whether under half of the characters are letters or digits; accents and vowel signs are parts of a letter."""
    visible = [c for c in answer if not c.isspace() and unicodedata.category(c)[0] != "M"]
    return sum(c.isalnum() for c in visible) < 0.5 * len(visible)


def _gibberish(answer: str) -> bool:
    tokens, once = words(answer), words_once(answer)
    if any(a == b == c for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)):
        return True
    return (len(once) >= 8 and len(set(once)) < 0.4 * len(once)) or mostly_symbols(answer)


# One function for each kind of value. It returns 2 to 9, or None if the value is not of this kind


def _words(answer: str, value: str) -> int:
    sought = _stems(value)
    share = len(sought & _stems(answer)) / len(sought) if sought else 0.0
    return next((score for bound, score in SHARES if share >= bound), 4 if share else 2)


@lru_cache(maxsize=2**16)
def _stems(text: str) -> set[str]:
    return {STEM(word) for word in words(text) if word not in IDLE} or set(map(STEM, words(text)))


def _date(answer: str, value: str) -> int | None:
    named, truth = _date_numbers(answer), _date_numbers(value)
    if any(len(numbers) != 1 for numbers in truth):
        return None
    right = tuple(true <= numbers for true, numbers in zip(truth, named, strict=True))
    if all(right):
        return 9 if all(len(numbers) == 1 for numbers in named) else 7
    if not any(right):
        [year] = truth[0]
        return 3 if {year - 1, year + 1} & named[0] else 2
    return DATES[right] - (DATES[right] == 8 and bool(named[2]))  # a wrong day is worse than no day


def _date_numbers(text: str) -> tuple[set[int], set[int], set[int]]:
    """Years, months and days named in ``March 12, 1985``, ``12 March 1985``, ``1985-03-12`` or ``3/12/1985``. The month
    comes before the day, unless its number is above 12 (``25.3.1985``)."""
    dates = re.findall(r"\b(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})\b", text)
    for a, b, year in re.findall(r"\b(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})\b", text):
        dates.append((year, b, a) if int(a) > 12 else (year, a, b))
    years, months, days = ({int(date[i]) for date in dates} for i in range(3))
    for word in words(re.sub(r"\b\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b", " ", text)):
        if word in NUMBER_OF:
            months.add(NUMBER_OF[word])
        elif word.isdecimal() and (len(word) == 4 or 1 <= int(word) <= 31):  # an age is no day
            (years if len(word) == 4 else days).add(int(word))
    return years, months, days


def _place(answer: str, value: str) -> int | None:
    city, _, country = map(str.strip, value.partition(","))
    if not country:
        return None
    if holds(answer, city):
        parts = [holds(answer, part) for part in country.split(",")]  # "Denver, Colorado, USA" has two
        if any(parts):
            return 9 if all(parts) else 8
        # "Lyon, Spain": a comma and a capital letter after the city mean another country
        return 6 if re.search(rf"(?i:{re.escape(city)})\s*,\s*[A-Z]", answer) else 8
    if holds(answer, country):
        return 4
    return 3 if _stems(value) & _stems(answer) else 2


def _quantities(text: str) -> list[float]:
    """The numbers in a text; thousands may be written as ``72,000`` or ``72k``."""
    numbers = re.findall(r"(\d+(?:\.\d+)?)(?: ?(k|thousand|million)\b)?", THOUSANDS.sub("", text.casefold()))
    return [float(digits) * {"": 1, "million": 1e6}.get(unit, 1e3) for digits, unit in numbers]


def _number(
    answer: str, value: str, quantities: Callable[[str], list[float]] = _quantities, scale: float = 1.0
) -> int | None:
    truth, named = quantities(value), quantities(answer)
    if len(truth) != 1 or not truth[0]:
        return None
    distances = sorted(abs(number - truth[0]) / truth[0] / scale for number in named)
    if distances and distances[0] <= EQUAL:  # the same number in other units, "6 feet (183 cm)", is no second number
        return 9 if distances[-1] <= DISTANCES[0][0] else 7
    return next((score for bound, score in DISTANCES if distances and distances[0] <= bound), 2)


def _centimetres(text: str) -> list[float]:
    """Heights in cm, m or feet and inches."""
    plain = re.sub(r"(?<=\d),(?=\d{1,2}(?!\d))", ".", THOUSANDS.sub("", text.casefold()))  # "1,75 m"
    feet = [round((float(tall) * 12 + float(inches or bare or 0)) * 2.54) for tall, inches, bare in FEET.findall(plain)]
    return feet + [number * 100 if number < 3 else number for number in _quantities(FEET.sub(" ", plain))]


def _gender(answer: str, value: str) -> int | None:
    named = [gender for gender, synonyms in GENDERS.items() if synonyms & set(words(answer))]
    truth = next((gender for gender, synonyms in GENDERS.items() if value.strip().casefold() in synonyms), None)
    if truth is None:
        return None
    return (9 if len(named) == 1 else 5) if truth in named else 2


GRADERS = {
    "birth_date": _date,
    "birthplace": _place,
    "residence": _place,
    "height": partial(_number, quantities=_centimetres, scale=0.2),  # people differ little in height
    "salary": _number,
    "gender": _gender,
}
