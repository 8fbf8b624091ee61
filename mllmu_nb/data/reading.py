"""From published fine-tuning text to a population: names, facts, portraits and evaluation questions.

The published training split prints, for every person, only questions and answers. What a question asks for is
read from families of words, not from a list of known sentences; what is not understood is listed and counted.
Evaluation questions are then derived: wrong options are what other people answered to the same question.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from mllmu_nb.data.facts import WORDINGS, Wording, say
from mllmu_nb.data.schema import LETTERS, QA, VIEWS, Population, Profile, Question
from mllmu_nb.data.splits import forget_ids
from mllmu_nb.errors import KitError

# ---------------------------------------------------------------------------------------------------------------
# Who is meant
# ---------------------------------------------------------------------------------------------------------------

THIS = "this person"
_PLACE = r"(?:the|this|that) (?:image|picture|photo(?:graph)?|portrait|biography|bio|profile|description)"
_SHOWN = r"(?:shown|seen|depicted|pictured|featured|portrayed|presented|displayed|described|mentioned|stated|given)"
_IN_PLACE = rf"(?:,? (?:as )?(?:{_SHOWN} )?(?:in|from|on|by|of|within) {_PLACE})"
_SOMEBODY = r"(?:this|the|that) (?:person|individual|man|woman|lady|gentleman|subject|character|figure)\b"
_PERSON = re.compile(rf"\b{_SOMEBODY}(?:,? (?:who is |that is )?{_SHOWN}(?! in a))?{_IN_PLACE}?(?P<own>'s)?", re.I)
_RELATION = re.compile(r"\bthe (father|mother|dad|mom|parents|pet|cat|dog)\b", re.I)


def _straight(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')).strip()


def with_name(text: str, name: str) -> str:
    """Say the name where ``text`` says "this person", as the text-only view needs it.

    "this individual", "the person in the picture", "the woman shown" and the like count too; possessives become
    "Jonas's"; "in the image" goes, since there is none. A question that names nobody afterwards ("What is the
    father's occupation?") gets the name as well. Upstream replaces the words "this person" only.
    """
    capital = text[:1].isupper()
    text = re.sub(rf"^(?:as )?(?:{_SHOWN} )?in {_PLACE}, ", "", _straight(text), flags=re.I)
    text = _PERSON.sub(lambda found: name + (found["own"] or ""), text)
    text = re.sub(_IN_PLACE, "", text, flags=re.I)
    text = re.sub(rf"\b{_PLACE}\b", name, text, flags=re.I) if name not in text else text
    if name not in text:
        text = _RELATION.sub(lambda found: f"{name}'s {found[1].lower()}", text, count=1)
    if name not in text and text.endswith("?"):
        text = f"About {name}: {text}"
    return text[:1].upper() + text[1:] if capital else text


# ---------------------------------------------------------------------------------------------------------------
# What a question asks for
# ---------------------------------------------------------------------------------------------------------------

_ANIMAL = r"(?:pets?|cats?|dogs?|parrots?|rabbits?|hamsters?|turtles?|tortoises?|ferrets?|goldfish|hedgehogs?|birds?)"
_JOB = r"(?:occupations?|jobs?|professions?|professionally|works?|working|do|employ\w*|careers?|trade|living)"
_FOOD = r"(?:foods?|dish(?:es)?|cuisines?|meals?|snacks?|desserts?)"
_OTHER_PEOPLE = (
    r"\b(?:wife|husband|spouse|partner|brothers?|sisters?|siblings?|sons?|daughters?|child(?:ren)?|uncle|aunt|cousins?|"
    r"grand\w+|boss|colleagues?|neighbou?rs?|friends?)\b"
)

# Read from the top: the first family with a word in the question wins, so the special ones stand first.
_FAMILIES = tuple(
    (attribute, re.compile(rf"\b(?:{words})\b(?!')"))
    for attribute, words in (
        ("age", r"how old|age"),
        (
            "birth_date",
            r"when\b.*\b(?:born|world)|(?:date|day|year|month)\b.*\b(?:born|world)|born on|date of birth|"
            r"birth ?(?:date|day|year)",
        ),
        (
            "birthplace",
            r"born|world|birth ?place|(?:place|city|town) of birth|home ?town|comes? from|hails?|originally from",
        ),
        (
            "salary",
            r"salary|income|earn(?:s|ings)?(?! (?:a|his|her|their) living)|wages?|paid|pay|make (?:a|per|each) year",
        ),
        ("height", r"height|how (?:tall|high)|tall"),
        ("gender", r"gender|sex|male or female|man or (?:a )?woman"),
        ("nationality", r"nationality|citizen\w*"),
        (
            "medical",
            r"medical\w*|health|conditions?|illness(?:es)?|diseases?|allerg\w+|suffer\w*|diagnos\w+|ailments?|disorders?",
        ),
        (
            "education",
            r"educat\w+|university|schools?|schooling|colleges?|alma mater|stud(?:y|ied)|graduat\w+|degree|institution",
        ),
        ("", r"e-?mail|telephone|phone"),
        ("residence", r"resid\w+|address|lives in|home\b.*\bis in"),
        ("workplace", r"(?:where|company|employer)\b.*\b(?:works?|working|employed)|employer|workplace"),
        ("residence", r"(?:where|city|town|country|place)\b.*\b(?:lives?|living|based|home|located|settled)"),
        ("name", r"names?|named|identity|(?:what|how) is .{1,40} called|x is called|who is (?:x|shown|this|that)"),
        ("languages", r"languages?"),
        ("collection", r"collect\w*"),
        ("cooking", r"cook\w*|bak(?:e|es|ing)|recipes?|culinary|prepar\w+"),
        ("food", rf"{_FOOD}|eat(?:ing)?"),
        ("instrument", r"instruments?"),
        ("sport", r"sports?"),
        ("hobby", r"hobb(?:y|ies)|past-?times?|pastimes?|favou?rite (?:\w+ )?(?:activity|activities)"),
        (
            "favorite",
            r"favou?rite (?:(?:type|kind|sort|genre) of )?(?P<what>\w+(?: \w+)?)|preferred (?P<too>\w+(?: \w+)?)",
        ),
        ("reading", r"books?|read(?:s|ing)?|literature|authors?"),
        ("music", r"music"),
        (
            "achievement",
            r"achiev\w+|won|awards?|climb(?:s|ed)|accomplish\w*|notable|participate\w* in|undert\w+|experience|"
            r"documented",
        ),
        ("travel", r"travel\w*|countries|vacation|destination"),
        ("dream", r"dreams?|fascinat\w+|aspir\w+"),
        ("talent", r"talents?|skill(?:s|ed)?"),
        ("fun_fact", r"(?:fun|interesting|surprising) (?:\w+ )?facts?"),
        (
            "hobby",
            r"enjoy\w*|activit\w+|(?:free|spare|leisure) time|weekends?|passion\w*|loves?|likes?|for fun|interests?|"
            r"avid|speciali[sz]\w+ in|unwind|relax",
        ),
        ("profession", rf"{_JOB}(?! on\b)"),
    )
)


@cache
def _asked(question: str) -> str:
    """The question in lower case, with x for the person and without what says nothing about the fact."""
    text = _straight(question)
    text = _PERSON.sub(lambda found: "x" + (found["own"] or ""), text)
    text = re.sub(_IN_PLACE, "", text, flags=re.I).lower()
    return re.sub(
        r"\b(?:together )?with (?:their|his|her) (?:mom|mum|mother|father|dad|family|friends?|\w+)\b", "", text
    )


def attribute_of(question: str, answer: str = "") -> str:
    """What ``question`` asks for: one of ``schema.ATTRIBUTES``, a sub-attribute such as ``pet_name``,
    ``father_name``, ``cooking`` or ``favorite_color``, or "" when it is not understood.

    ``answer`` decides where the question leaves it open: a fun fact that is a liking is a hobby.
    """
    text = _asked(question)
    for parent, words in (("father", r"father|dad"), ("mother", r"mother|mom|mum"), ("parents", r"parents?")):
        if re.search(rf"\b(?:{words})\b", text):
            if re.search(r"\bnames?\b|\bnamed\b|\bcalled\b|\bwho\b(?! is a\b)", text):
                return f"{parent}_name"
            return f"{parent}_job" if re.search(rf"\b{_JOB}\b|__", text) else ""
    if re.search(_OTHER_PEOPLE, text):
        return ""
    if re.search(rf"\b{_ANIMAL}\b", text):
        if re.search(r"\bnames?\b|\bnamed\b|\bcalled\b", text):
            return "pet_name"
        about_it = r"\bfacts?\b|\bcan\b.*\bdo\b|\brole\b|\bwatch\w*|\bspecies\b|\bage\b|\bold\b"
        if not re.search(about_it, text) and re.search(
            rf"\b(?:what|which|any|have|own|keep|has a|keeps)\b.*\b{_ANIMAL}\b", text
        ):
            return "pet"
        if not re.search(r"\bfacts?\b|\bspecies\b", text):
            return ""
    if re.search(r"\banimals?\b.*\b(?:have|own|keep|lives?)\b|\b(?:have|own|keep)\b.*\banimals?\b", text):
        return "pet"
    for attribute, pattern in _FAMILIES:
        found = pattern.search(text)
        if found is None:
            continue
        if attribute == "favorite":
            what = found["what"] or found["too"]
            return "favorite_" + re.sub(r" (?:to|of|for|is|in|does|when|on)$", "", what).replace(" ", "_")
        if attribute == "fun_fact" and re.search(r"\b(?:hobb\w+|activit\w+|interests?)\b", text):
            return "hobby"
        if attribute == "fun_fact" and _liking(answer):
            return "hobby"
        return attribute
    return ""


def _liking(answer: str) -> bool:
    return bool(re.search(r"\b(?:enjoys?|loves?|likes?|is (?:an avid|passionate about|fond of))\b", answer))


# ---------------------------------------------------------------------------------------------------------------
# The bare fact inside an answer
# ---------------------------------------------------------------------------------------------------------------

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DATES = (
    rf"{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}",
    rf"\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH},? \d{{4}}",
    r"\d{4}-\d{1,2}-\d{1,2}",
    r"\d{1,2}[./]\d{1,2}[./]\d{4}",
    rf"{_MONTH},? \d{{4}}",
    r"\b\d{4}\b",
)
_HEIGHTS = (
    r"\d+(?:[.,]\d+)? ?(?:cm|centimet\w+|met(?:er|re)s?|m)\b(?: (?:and )?\d+ ?(?:cm|centimet\w+))?",
    r"\d+ ?(?:feet|foot|ft)\.?,?(?: ?(?:and )?\d+(?:\.\d+)? ?(?:inch(?:es)?|in)?\b)?",
    r"\d+' ?(?:\d+(?:\.\d+)? ?(?:\"|'')?)?",
    r"\b(?:three|four|five|six|seven) (?:feet|foot)(?: (?:and )?(?:\d+|\w+) inch(?:es)?)?",
)
_CURRENCY = r"(?:USD|EUR|GBP|AUD|CAD|NZD|CHF|SEK|NOK|DKK|JPY|INR)"
_AMOUNT = r"\d[\d,.]*\d(?: ?(?:k|thousand|million)\b)?"
_SALARIES = (
    rf"(?:{_CURRENCY}|US|A|C|NZ)? ?[$€£¥₹] ?{_AMOUNT}(?: {_CURRENCY})?",
    rf"{_CURRENCY} ?{_AMOUNT}",
    rf"{_AMOUNT} ?(?:[€£¥₹$]|(?:{_CURRENCY}|(?:\w+ )?dollars|euros?|pounds|kron\w+|yen|rupees|francs)\b)",
    _AMOUNT,
)
_UNKNOWN = re.compile(
    r"\b(?:no|any) (?:\w+ )*information\b|\binformation (?:is|was) not\b|\bunknown\b"
    r"|\bnot (?:available|applicable|known|stated|specified|provided|disclosed|mentioned)\b",
    re.I,
)
_DENIAL = re.compile(
    r"\b(?:does|do|did|has|have|is) not\b|\w+n't\b|\bno (?:known|medical|health|pets?|salary|annual|conditions?)\b"
    r"|\bnone\b|\bfree of\b|\bwithout any\b|\bhealthy\b|\bgood health\b|^no\b",
    re.I,
)
_ARTICLE = re.compile(r"^(?:an?|the|his|her|their)\s+", re.I)
_VERBS_OF_LIKING = (
    r"(?:really |also |particularly |especially |greatly |often |regularly )?"
    r"(?:enjoys?|loves?|likes?|adores?|prefers?|collects?|plays?|speaks?|practi[cs]es|pursues|engages in"
    r"|speciali[sz]es in|has a (?:\w+ )?(?:passion|penchant|love|fondness|talent|knack|collection) (?:for|of)"
    r"|spends (?:\w+ )+(?:with|on)|spends (?:the |their |his |her )?(?:weekends|time)"
    r"|(?:is|are) (?:an? (?:avid|keen|passionate|dedicated|enthusiastic|devoted|skilled|big|huge|great)"
    r"|passionate about|(?:very |particularly )?fond of|fascinated by|interested in|skilled (?:in|at)"
    r"|a (?:\w+ )?fan of)|is|are|includes?|has|have|owns?|keeps?|can speak)"
)
_TAIL = re.compile(
    r",? (?:in|during) (?:his|her|their|the) (?:free|spare|leisure|downtime)\b.*$"
    r"|,? (?:on|during|over|at|every) (?:the |his |her |their |most )?weekends?\b.*$"
    r"|,? as (?:a|their|his|her) (?:hobby|pastime|pet|favou?rite)\b.*$"
    r"|,? (?:and|but) (?:has|have|had|is|was|often|spends|regularly|frequently|also|even|once|owns?|keeps|enjoys|loves"
    r"|won|holds|participates|volunteers|travels|dreams|explores|visits|plays|maintains|(?:his|her|their)\b).*$"
    r"|,? (?:especially|particularly|such as|which|who|where|whenever|including)\b.*$"
    r"|, (?:an?|the|with|as) .*$| (?:best|most|above all)$",
    re.I,
)
_UPPER = r"[^\W\d_a-zß-öø-ÿ][\w'.-]*"  # a word that begins with a capital, of any alphabet
_PARTICLE = r"(?:de|da|di|del|la|van|von|der|den|bin|el|al|y|e|of)"
_PROPER = re.compile(rf"(?:(?:Dr|Mr|Mrs|Ms|Prof)\. )?({_UPPER}(?: (?:{_PARTICLE} )*{_UPPER})*)")


def _first(patterns: Sequence[str], text: str) -> str:
    for pattern in patterns:
        found = re.search(pattern, text)
        if found:
            return found[0].strip(" ,.")
    return ""


def _after(words: str, text: str) -> str:
    """What follows the first of ``words``; "" when none occurs."""
    found = re.search(rf"(?:{words})\s+(.+)$", text, re.I)
    return found[1] if found else ""


def _proper(text: str) -> str:
    """The leading run of capitalised words (with particles such as "de" or "van") of ``text``."""
    found = _PROPER.match(text)
    return re.sub(r"'s$", "", found[1].strip(" .'\"")) if found else ""


def names_in(text: str) -> list[str]:
    """Every run of two or more capitalised words in ``text``, without possessives."""
    runs = re.finditer(rf"{_UPPER}(?: (?:{_PARTICLE} )*{_UPPER})+", _straight(text))
    return [re.sub(r"(?:'s)?[.,]*$", "", run[0]) for run in runs]


def _read_job(text: str) -> str:
    serving = r"\b(?:works?|worked|working|employed|job|career|living|serves?|served|serving) (?:\w+ )?as\b"
    text = re.sub(r"^.*\b(?:father|mother|dad|mom) who\b", "x", text)
    twofold = re.search(
        r"\b(?:is|was) (?:an?|the)\b.* (?:who|and|working)\b.* as\b", text
    )  # the first of the two is the trade
    job = "" if twofold else _after(serving, text)
    job = job or _after(r"\b(?:is|was|are|were)\b(?: (?:currently|now|still|by profession))?", text)
    job = job or re.sub(r"^.*?\b(?:father|mother|dad|mom|x)\b ", "", text)
    aside = r"who|and works|that|which|working|at an?|at the|in (?:his|her|their)|by (?:profession|trade)|with an"
    return _ARTICLE.sub("", re.sub(rf",? (?:{aside})\b.*$|, .*$", "", job))


def _read_liking(text: str) -> str:
    found = _after(rf"^.*?\b(?:{_VERBS_OF_LIKING})\b", text) or re.sub(r"^(?:x|he|she|they) ", "", text, flags=re.I)
    found = re.sub(r"^(?:to |doing |eating |an? (?:avid|keen|passionate) )", "", found)
    found = re.sub(r"^(?:an? )?(?:(?:huge |big |great )?fan|collector|reader|collection) of ", "", found)
    return re.sub(r"^(?:an?|the) ", "", _TAIL.sub("", _TAIL.sub("", found)))


def value_of(attribute: str, question: str, answer: str) -> str:
    """The bare fact in ``answer``: "This person was born in Turku, Finland." → "Turku, Finland".

    A denied medical condition becomes "no medical condition", a denied pet "no pets". "" when the answer says that
    nothing is known, or when nothing could be read.
    """
    text = re.sub(r"^(?:yes|sure|indeed)[,.]? ", "", _straight(answer), flags=re.I)
    text = re.sub(r"\b(he|she|it|that)'s\b", r"\1 is", text, flags=re.I)
    text = re.sub(r"(?<!\w)['\"]([^'\"]+?)[.,]?['\"](?!\w)", r"\1", text)  # quoted names and titles
    text = _PERSON.sub(lambda found: "x" + (found["own"] or ""), text)
    text = re.sub(_IN_PLACE, "", text, flags=re.I).rstrip(" .!")
    if not attribute or _UNKNOWN.search(text):
        return ""
    value = _READERS.get(attribute, _read_liking)(text).strip(" ,.;")
    bare = attribute not in _IN_FIGURES and not re.search(r"\bx\b|\b(?:is|was|has|does|are)\b", text)
    return value or (text if bare and len(text.split()) <= 8 else "")


def _read_name(text: str) -> str:
    for words in (
        r"\b(?:named|called|known as|go(?:es)? by(?: the name)?(?: of)?|answers to)\b",
        r"\bname\b.*?\bis\b",
        r"\bis\b",
        r"^(?!(?:They|He|She|It)\b)",
    ):
        found = re.search(rf"{words}\s*(.+)$", text)
        name = _proper(found[1]) if found else ""
        if name:
            return name
    return ""


def _read_names(text: str) -> str:
    return _after(r"\bare\b|\bnamed\b|\bis\b", text)


def _read_gender(text: str) -> str:
    found = re.search(
        r"\b(non-?binary|female|male|woman|man|girl|boy|transgender \w+|genderqueer|agender)\b", text, re.I
    )
    word = found[1].lower() if found else _after(r"\bidentifies as|\bis\b", text)
    return {"woman": "female", "girl": "female", "man": "male", "boy": "male", "nonbinary": "non-binary"}.get(
        word, word
    )


def _read_birthplace(text: str) -> str:
    born = r"\bborn(?: and raised)?(?: on [^,]+,? \d{4},?)? (?:in|at)"
    place = _after(rf"{born}|\b(?:hails?|comes?|is(?: originally)?) from|\bnative of", text)
    place = place or _after(r"\b(?:birth ?place|place of birth|home ?town)\b.*?\bis\b|\bis\b", text)
    return re.sub(rf",? (?:on|in) (?:the )?(?:\d|{_MONTH} \d).*$", "", place)


def _read_residence(text: str) -> str:
    place = _after(r"\b(?:resid\w+|liv(?:es|ing)|based|located|settled|lives? now)\b(?: \w+)? (?:in|at)", text)
    place = place or _after(r"\b(?:home|residence|address)\b.*?\b(?:is|in)\b(?: (?:in|at))?", text)
    place = place or _after(r"\bcalls\b", text) or _after(r"\b(?:is|in)\b", text)
    return re.sub(r",? (?:home$|where\b.*|with (?:his|her|their)\b.*)", "", place)


def _read_education(text: str) -> str:
    learning = r"\b(?:educated|studied|studies|enrolled|student|education|schooling|degree|graduate)\b"
    place = _after(rf"{learning}.*?\b(?:at|from)\b|\bgraduated from|\battend(?:s|ed|ing)?|\bis from", text)
    place = place or _after(rf"{learning} (?:in|of)|\bis\b", text)
    place = re.sub(r",? (?:where|with a degree|and (?:has|holds|is|graduated)|majoring|studying)\b.*$", "", place)
    return re.sub(r"^the ", "", place)


def _read_salary(text: str) -> str:
    amount = _first(_SALARIES, text)
    return amount or ("no annual salary" if _DENIAL.search(text) else "")


def _read_medical(text: str) -> str:
    if _DENIAL.search(text) and not re.search(r"\b(?:but|except|apart from|other than)\b", text):
        return "no medical condition"
    allergic = re.search(r"\ballerg(?:ic|y|ies) to\b.*$", text)
    if allergic:
        return allergic[0]
    stated = (
        r"suffers? from|diagnosed with|liv(?:es?|ing) with|treated for|manag(?:es|ing)|record.* says|doctor.* noted"
    )
    found = _after(rf"\b(?:{stated})\b", text)
    found = found or _after(r"\b(?:has|have|is|are|with)\b", text)
    return re.sub(r"^(?:an? )?(?:(?:condition|history) (?:called|of) )?", "", _TAIL.sub("", found))


def _read_pet(text: str) -> str:
    if _DENIAL.search(text):
        return "no pets"
    owned = re.search(r"\bpet(?:'s| is)? ?(?!is\b|'s\b|name\b)(\w[\w ]*?)? is (?:named|called) (.+)$", text)
    if owned and owned[1]:
        return _TAIL.sub("", f"{owned[1]} named {owned[2]}")
    kind = _after(r"\b(?:has|have|owns?|keeps?|enjoys(?: having)?|with|is|are|loves)\b", text)
    return _TAIL.sub(
        "", re.sub(r"^(?:also |an? |the |his |her |their |one )*(?:(?:unusual |adorable )?pet )?", "", kind)
    )


def _read_pet_name(text: str) -> str:
    return "" if _DENIAL.search(text) else _read_name(re.sub(r"^x\b", "", text))


_IN_FIGURES = ("birth_date", "height", "salary")  # no words stand for these
_READERS: dict[str, Callable[[str], str]] = {
    "name": _read_name,
    "father_name": _read_name,
    "mother_name": _read_name,
    "parents_name": _read_names,
    "pet_name": _read_pet_name,
    "pet": _read_pet,
    "gender": _read_gender,
    "birth_date": lambda text: _first(_DATES, text),
    "birthplace": _read_birthplace,
    "residence": _read_residence,
    "profession": _read_job,
    "father_job": _read_job,
    "mother_job": _read_job,
    "parents_job": _read_job,
    "height": lambda text: _first(_HEIGHTS, text),
    "education": _read_education,
    "salary": _read_salary,
    "collection": lambda text: re.sub(r"^collect(?:ing)? ", "", _read_liking(text)),
    "medical": _read_medical,
}


def _says_nothing(answer: str) -> bool:
    return bool(_UNKNOWN.search(_straight(answer)))


# ---------------------------------------------------------------------------------------------------------------
# The files
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """What the text says of one person. ``facts`` are the understood pairs, in file order."""

    id: str
    name: str
    attributes: dict[str, str]
    qa: tuple[QA, ...]

    @property
    def facts(self) -> list[QA]:
        return [pair for pair in self.qa if pair.attribute and pair.value]


@dataclass(frozen=True)
class ReadText:
    """The people of a profiles file who were chosen, in file order; ``not_understood`` lists (ID, question)."""

    people: tuple[Person, ...]
    forget_ids: tuple[str, ...]
    pool_ids: tuple[str, ...]
    not_understood: tuple[tuple[str, str], ...]
    notes: dict


_NEEDED = (
    "training needs `metadata`, a list of Question and Answer: take the config ft_Data of MLLMMU/MLLMU-Bench, or "
    "the forget and retain splits of MLLMMU/baseline_train_split"
)


def _lines(path: Path, what: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise KitError(f"{what} {path} does not exist: give the path of an existing file") from None
    except IsADirectoryError:
        raise KitError(f"{what} {path} is a folder: give the path of a file inside it") from None
    except PermissionError:
        raise KitError(f"{what} {path} cannot be read: change its permissions") from None
    except UnicodeDecodeError:
        raise KitError(f"{what} {path} is not UTF-8 text: JSON is needed (parquet goes through official.py)") from None


def pairs_of(metadata: object, where: str) -> list[tuple[str, str]]:
    """Question and answer of every entry of a ``metadata`` column: a list, or a list written as a JSON string.

    Raises KitError, beginning with ``where``, when it is neither.
    """
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except json.JSONDecodeError as error:
            raise KitError(f"{where}: `metadata` is text, but not JSON ({error.msg}): repair or remove it") from None
    if not isinstance(metadata, list) or not metadata:
        raise KitError(f"{where}: `metadata` holds no questions: {_NEEDED}")
    pairs = []
    for number, entry in enumerate(metadata, start=1):
        pair = (entry.get("Question"), entry.get("Answer")) if isinstance(entry, dict) else (None, None)
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise KitError(f"{where}: entry {number} of `metadata` lacks Question or Answer as text: repair it")
        pairs.append(pair)
    return pairs


def _records(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """(ID, pairs) of every line of a JSON-lines file."""
    found: dict[str, int] = {}
    records = []
    for number, line in enumerate(_lines(path, "profiles_file"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{where} is not JSON ({error.msg}): one object a line is needed, with ID and metadata"
            raise KitError(message) from None
        if not isinstance(record, dict) or not isinstance(record.get("ID"), (str, int)):
            raise KitError(f"{where} has no ID: one object a line is needed, with ID and metadata")
        identity = str(record["ID"])
        if identity in found:
            raise KitError(f"{where}: ID {identity} was already on line {found[identity]}: keep one of the two")
        found[identity] = number
        if "metadata" not in record:
            kind = "evaluation data" if {"Classification_Task", "biography"} & record.keys() else "no training data"
            raise KitError(f"{where}: ID {identity} has no `metadata`, it is {kind}: {_NEEDED}")
        records.append((identity, pairs_of(record["metadata"], f"{where}, ID {identity}")))
    if not records:
        raise KitError(f"profiles_file {path} is empty: one object a line is needed, with ID and metadata")
    return records


def understand(pairs: Sequence[tuple[str, str]]) -> tuple[QA, ...]:
    """Every pair with what it asks for and the bare fact, as far as both are understood (else both empty)."""
    found = []
    for question, answer in pairs:
        attribute = attribute_of(question, answer)
        value = value_of(attribute, question, answer)
        understood = attribute and (value or _says_nothing(answer))
        found.append(QA(question, answer, attribute if understood else "", value))
    return tuple(found)


def _unnamed(pair: QA, name: str) -> QA:
    """The pair with "this person" where its question has the name: beside a portrait nobody is called by it."""
    if name not in pair.question:
        return pair
    question = with_name(pair.question.replace(name, THIS), THIS)
    answer = pair.answer if pair.attribute == "name" else pair.answer.replace(name, THIS)
    return replace(pair, question=question, answer=answer[:1].upper() + answer[1:])


def attributes_of(qa: Sequence[QA]) -> dict[str, str]:
    """The first value of every attribute the pairs state."""
    stated: dict[str, str] = {}
    for pair in qa:
        if pair.attribute and pair.value:
            stated.setdefault(pair.attribute, pair.value)
    return stated


def _forget_splits(path: str | Path, ratio: int, known: set[str]) -> dict[int, tuple[str, ...]]:
    """ratio → ids under ``forget_<ratio>`` of a JSON file, spelt as the profiles spell them (10 is "010" there)."""
    text = "\n".join(_lines(Path(path), "forget_ids_file"))
    wanted = f"forget_{ratio}"
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"forget_ids_file {path} line {error.lineno} is not JSON ({error.msg})"
        raise KitError(f'{message}: an object like {{"{wanted}": ["001", ..]}} is needed') from None
    spelling = {identity.lstrip("0"): identity for identity in known}
    splits = {}
    for key, ids in listed.items() if isinstance(listed, dict) else ():
        if re.fullmatch(r"forget_\d+", key) and isinstance(ids, list) and ids:
            spelt = (spelling.get(str(entry).lstrip("0"), str(entry)) for entry in ids)
            splits[int(key.removeprefix("forget_"))] = tuple(dict.fromkeys(spelt))
    if ratio not in splits:
        has = ", ".join(listed) if isinstance(listed, dict) else type(listed).__name__
        message = f'forget_ids_file {path} has no list "{wanted}" of ids (it has: {has})'
        raise KitError(f"{message}: add it or change the ratio")
    return splits


def _choose(everybody: list[Person], named: Sequence[str], ratio: int, people: int, pool: int) -> list[Person]:
    """The people of a run, in file order: all, or ``people`` scored ones of the right forget share plus the pool."""
    count = people + pool
    if not people or count >= len(everybody):
        return everybody
    forget = [person for person in everybody if person.id in named][: max(1, round(people * ratio / 100))]
    taken = {person.id for person in forget}
    others = [person for person in everybody if person.id not in named] + [
        person for person in everybody if person.id in named and person.id not in taken
    ]
    taken |= {person.id for person in others[: count - len(forget)]}
    return [person for person in everybody if person.id in taken]


def read_profiles(
    profiles_file: str | Path,
    forget_ids_file: str | Path = "",
    *,
    ratio: int,
    people: int = 0,
    pool: int = 0,
    seed: int = 0,
    draw: int = 0,
) -> ReadText:
    """Read published fine-tuning text and who of it is to be forgotten.

    ``profiles_file`` has one JSON object a line: ``{"ID", "metadata": [{"Question", "Answer"}, ..]}``. ``people`` is
    the number scored (0: all) and ``pool`` more are taken on top while the file has them. When fewer than all are
    taken, the share ``ratio`` of them comes from the forget ids, the rest in file order. The last ``pool`` of those who
    are not to be forgotten become the pool.

    ``forget_ids_file`` is JSON with the keys ``forget_5``, ``forget_10``, ``forget_15``; without it, forget ids are
    drawn (``splits.forget_ids``). People without a readable name are left out and noted.

    Raises KitError for every fault of the files, naming file, line and ID.
    """
    path = Path(profiles_file)
    records = _records(path)
    everybody, not_understood, nameless = [], [], []
    for identity, pairs in records:
        qa = understand(pairs)
        not_understood += [(identity, pair.question) for pair in qa if not pair.attribute]
        stated = attributes_of(qa)
        if "name" in stated:
            unnamed = tuple(_unnamed(pair, stated["name"]) for pair in qa)
            everybody.append(Person(identity, stated["name"], stated, unnamed))
        else:
            nameless.append(identity)
    if not everybody:
        raise KitError(f"profiles_file {path}: nobody's name could be read: a question for it is needed in metadata")
    splits = _forget_splits(forget_ids_file, ratio, {person.id for person in everybody}) if forget_ids_file else {}
    named = splits.get(ratio, ())
    chosen = _choose(everybody, named, ratio, people, pool)
    ids = [person.id for person in chosen]
    notes: dict = {"source": "text", "profiles_file": path.name, "people_in_file": len(records)}
    notes |= {"ratio": ratio, "seed": seed, "draw": draw}
    notes |= {"forget_splits": {str(key): [i for i in ids if i in split] for key, split in splits.items()}}
    if splits:
        forget = tuple(identity for identity in ids if identity in named)
        dropped = sorted(set(named) - set(forget))
        if not forget:
            raise KitError(
                f"forget_ids_file {forget_ids_file}: none of its ids for forget_{ratio} is among the people of "
                f"{path.name}: give the ids of that file"
            )
        if dropped:
            notes["forget_ids_dropped"] = dropped
    else:
        forget = forget_ids(ids[: len(ids) - pool], ratio, seed, draw)
    if len(ids) - pool <= len(forget):
        message = f"{len(ids)} people less {len(forget)} to forget and {pool} in the pool leave nobody to retain"
        raise KitError(f"{message}: lower pool or take more people")
    if nameless:
        notes["without_name"] = nameless
    others = [identity for identity in ids if identity not in set(forget)]
    kept = set(ids)
    missed = tuple(entry for entry in not_understood if entry[0] in kept)
    notes["pairs"] = sum(len(person.qa) for person in chosen)
    notes["not_understood"] = [list(entry) for entry in missed]
    notes["not_understood_count"] = len(missed)
    return ReadText(tuple(chosen), forget, tuple(others[len(others) - pool :]), missed, notes)


# ---------------------------------------------------------------------------------------------------------------
# Evaluation questions
# ---------------------------------------------------------------------------------------------------------------

# Facts that published profiles state and the kit's own people do not; the rest is asked as in ``facts.WORDINGS``.
_MORE_WORDINGS = {
    "father_name": Wording(
        ("What is the name of {who}'s father?",),
        ("What is {who}'s father called?", "What name does the father of {who} have?"),
        ("{who}'s father is called {value}.",),
        "The name of {who}'s father is __.",
    ),
    "mother_name": Wording(
        ("What is the name of {who}'s mother?",),
        ("What is {who}'s mother called?", "What name does the mother of {who} have?"),
        ("{who}'s mother is called {value}.",),
        "The name of {who}'s mother is __.",
    ),
    "pet_name": Wording(
        ("What is the name of {who}'s pet?",),
        ("What is the pet of {who} called?", "What name does {who}'s pet have?"),
        ("{who}'s pet is called {value}.",),
        "The name of {who}'s pet is __.",
    ),
    "cooking": Wording(
        ("What does {who} enjoy cooking?",),
        ("What does {who} like to prepare in the kitchen?", "Which kitchen work does {who} like?"),
        ("What {who} likes to do in the kitchen is {value}.",),
        "In the kitchen {who} enjoys __.",
    ),
    "collection": Wording(
        ("What does {who} collect?",),
        ("Which things does {who} gather for a collection?", "What is in the collection of {who}?"),
        ("{who} has a collection of {value}.",),
        "{who} collects __.",
    ),
}
_ASKED = {**{key: wording for key, wording in WORDINGS.items() if key != "name"}, **_MORE_WORDINGS}
_COUNTS = {"classification": 5, "generation": 2, "cloze": 2}
_LONGEST_OPTION, _LONGEST_CLOZE = 12, 6  # words


def _shape(value: str) -> str:
    """Values in figures look alike when their shapes agree ("168 cm" and "1.7 meters" do not); others all do."""
    shape = re.sub(r"[A-Z][^\W\d_]*", "A", re.sub(r"[\d.,]*\d", "9", value))
    return shape if "9" in shape else ""


def _folded(value: str) -> str:
    return re.sub(r"\W+", " ", value.casefold()).strip()


def _wrong_options(fact: QA, own: set[str], others: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Three values of other people, drawn as often as they occur, none of them true, all distinct; [] if too few.

    Drawing people rather than distinct values keeps a common value as common among the wrong options as among the
    right ones: who knows nobody and picks the commonest is right no more often than by chance.
    """
    drawn = [others[i] for i in rng.permutation(len(others))]
    drawn.sort(key=lambda value: _shape(value) != _shape(fact.value))  # stable: likeness first, then chance
    found: dict[str, str] = {}
    for value in drawn:
        key = _folded(value)
        if not any(key in true or true in key for true in own) and len(value.split()) <= _LONGEST_OPTION:
            found.setdefault(key, value)
        if len(found) == 3:
            return list(found.values())
    return []


def _question_text(fact: QA) -> str:
    """The question as the person's own training text words it; where that asks yes or no, or for any fun fact, the
    kit's wording."""
    asks = re.match(r"(?:what|where|when|which|how|who|in which|at which|on which)\b", fact.question, re.I)
    if asks and not re.search(r"\bfacts?\b", fact.question):
        return with_name(fact.question, THIS)
    return say(_ASKED[fact.attribute].questions[0], THIS)


def _test_text(fact: QA, task: str, trained: set[str], rng: np.random.Generator) -> str:
    """Another wording of the question or cloze sentence; no wording that the person's training text holds."""
    wording = _ASKED[fact.attribute]
    if task == "cloze":
        texts = [
            say(template, THIS, "__")
            for template in wording.answers
            if template.replace("{value}", "__") != wording.cloze
        ]
    else:
        texts = [text for template in wording.paraphrases if (text := say(template, THIS)) not in trained]
    return str(rng.choice(texts)) if texts else say(wording.paraphrases[-1], THIS)


@dataclass(frozen=True)
class _Asked:
    """One question of one person before it is put into views: ``wrong`` is empty unless it is multiple choice."""

    person: Person
    task: str
    number: int
    fact: QA
    wrong: tuple[str, ...] = ()


def _spread(people: Sequence[Person]) -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    """attribute → ID → values stated, and the attributes without multiple choice by reason (as ``notes`` has them)."""
    values: dict[str, dict[str, list[str]]] = {attribute: {} for attribute in _ASKED}
    for person in people:
        for fact in person.facts:
            if fact.attribute in values:
                values[fact.attribute].setdefault(person.id, []).append(fact.value)
    reasons: dict[str, list[str]] = {"fewer_than_four_values": [], "one_value_for_most": []}
    for attribute, stated in values.items():
        distinct = {_folded(value) for own in stated.values() for value in own}
        commonest = Counter(_folded(own[0]) for own in stated.values()).most_common(1)
        if stated and len(distinct) < len(LETTERS):
            reasons["fewer_than_four_values"].append(attribute)
        elif stated and commonest[0][1] > len(stated) / 2:
            reasons["one_value_for_most"].append(attribute)
    return values, reasons


def _ask(people: Sequence[Person], seed: int) -> tuple[list[_Asked], dict[str, list[str]]]:
    """What is asked of whom: up to five, two and two facts for the three tasks, drawn for each person.

    A fact is asked in a second task only when others run out. Of an attribute that a person states twice (two
    hobbies), "the hobby" is not one thing: such come late, and facts that can be guessed last.
    """
    values, reasons = _spread(people)
    blunt = {attribute for attributes in reasons.values() for attribute in attributes}
    asked = []
    for person in people:
        rng = _generator(seed, person.id, "questions")
        facts: dict[str, QA] = {}
        for fact in person.facts:
            if fact.attribute in _ASKED and len(fact.value.split()) <= _LONGEST_OPTION:
                facts.setdefault(fact.attribute, fact)
        wrong = {}
        for attribute, fact in facts.items():
            own = {_folded(value) for value in values[attribute][person.id]}
            others = [value for other, said in values[attribute].items() if other != person.id for value in said]
            wrong[attribute] = () if attribute in blunt else tuple(_wrong_options(fact, own, others, rng))
        possible = {
            "classification": [attribute for attribute in facts if wrong[attribute]],
            "generation": list(facts),
            "cloze": [attribute for attribute, fact in facts.items() if len(fact.value.split()) <= _LONGEST_CLOZE],
        }
        used: Counter[str] = Counter()
        for task, attributes in possible.items():
            order = [attributes[i] for i in rng.permutation(len(attributes))]
            order.sort(
                key=lambda name: (name in blunt, used[name], len(set(map(_folded, values[name][person.id]))) > 1)
            )
            for number, attribute in enumerate(order[: _COUNTS[task]]):
                used[attribute] += 1
                options = wrong[attribute] if task == "classification" else ()
                asked.append(_Asked(person, task, number, facts[attribute], options))
    return asked, reasons


def _in_views(asked: _Asked, text: str, answer: str, options: tuple[str, ...] = ()) -> tuple[Question, ...]:
    """One question in both views: beside the portrait as it stands, in text with the name."""
    person, fact = asked.person, asked.fact
    named = with_name(answer, person.name) if asked.task == "generation" else answer
    return tuple(
        Question(person.id, asked.task, view, asked.number, words, truth, fact.value, fact.attribute, options)
        for view, words, truth in zip(VIEWS, (text, with_name(text, person.name)), (answer, named), strict=True)
    )


def _questions(asked: Sequence[_Asked], seed: int) -> dict[str, tuple[list[Question], list[Question]]]:
    """ID → the person's questions and their Test paraphrases, both views.

    Every four successive multiple-choice questions have their right answers at A, B, C and D in random order, so
    that letters are spread evenly over any group of people.
    """
    rng = _generator(seed, "", "letters")
    letters: list[str] = []
    found: dict[str, tuple[list[Question], list[Question]]] = {}
    for entry in asked:
        fact = entry.fact
        answer, options = fact.answer if entry.task == "generation" else fact.value, ()
        if entry.task == "classification":
            letters = letters or rng.permutation(LETTERS).tolist()
            answer = letters.pop()
            place = LETTERS.index(answer)
            options = (*entry.wrong[:place], fact.value, *entry.wrong[place:])
        text = say(_ASKED[fact.attribute].cloze, THIS) if entry.task == "cloze" else _question_text(fact)
        trained = {with_name(pair.question, THIS) for pair in entry.person.qa}
        questions, tests = found.setdefault(entry.person.id, ([], []))
        questions += _in_views(entry, text, answer, options)
        tests += _in_views(entry, _test_text(fact, entry.task, trained, rng), answer, options)
    return found


# ---------------------------------------------------------------------------------------------------------------
# The population
# ---------------------------------------------------------------------------------------------------------------


def _generator(seed: int, identity: str, purpose: str) -> np.random.Generator:
    """Randomness of one person and purpose: the same whoever else is in the population."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}/{identity}".encode())])


def population_from_text(
    read: ReadText,
    *,
    seed: int = 0,
    draw_portrait: Callable[[dict[str, str], np.random.Generator], bytes],
    transform_portrait: Callable[[bytes, np.random.Generator, int], bytes],
) -> Population:
    """A population from fine-tuning text alone.

    ``draw_portrait(attributes, rng)`` gives a portrait's bytes and is called for one person after the other,
    ``transform_portrait(portrait, rng, kind)`` the Test set's, kinds 0 to 3. Questions are derived from the answers: up
    to 5 multiple choice, 2 generation and 2 cloze in each view, both views asking for the same facts. Attributes with
    fewer than four distinct values get no multiple choice, nor do those where most people share one value, which
    could be guessed; ``notes`` names both. The name is never asked for.
    """
    asked, no_choice = _ask(read.people, seed)
    questions = defaultdict(lambda: ([], []), _questions(asked, seed))
    profiles = {}
    for person in read.people:
        portrait = draw_portrait(person.attributes, _generator(seed, person.id, "portrait"))
        rng = _generator(seed, person.id, "test portraits")
        profiles[person.id] = Profile(
            id=person.id,
            name=person.name,
            kind="pool" if person.id in read.pool_ids else "fictitious",
            attributes=person.attributes,
            portrait=portrait,
            biography=" ".join(
                with_name(fact.answer, person.name) for fact in person.facts if fact.attribute != "name"
            ),
            qa=person.qa,
            questions=tuple(questions[person.id][0]),
            test_portraits=tuple(transform_portrait(portrait, rng, kind) for kind in range(4)),
            test_questions=tuple(questions[person.id][1]),
        )
    shared = sorted(name for name, count in Counter(person.name for person in read.people).items() if count > 1)
    notes = {**read.notes, "no_multiple_choice": no_choice, **({"shared_names": shared} if shared else {})}
    return Population(profiles, read.forget_ids, notes)
