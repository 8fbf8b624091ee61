"""Free answers and cloze: overlap with the true sentence, and whether the answer has the fact (docs/scoring.md)."""

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace

import pandas as pd
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from mllmu_nb.scoring.factuality import STEM, holds, rubric
from mllmu_nb.scoring.health import comparable, states
from mllmu_nb.scoring.registry import each, metric

FREE = {"task": "generation", "margin": 0.1}
OVERLAP = FREE | {"times": 1, "digits": 3}
# the scorer's own tokens and stems, but each word is stemmed only once: stemming takes most of the time
TOKENS = SimpleNamespace(tokenize=partial(tokenize, stemmer=SimpleNamespace(stem=STEM)))
SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=TOKENS)
SMOOTHING = SmoothingFunction().method1


def rouge_score(items: pd.DataFrame, name: str) -> pd.Series:
    return each(items, lambda truth, answer: rouge(truth, answer)[name], "answer_true", "answer")


for _name in SCORER.rouge_types:
    _label = _name.upper().replace("ROUGE", "ROUGE-")
    metric(_name, label=_label, main=_name == "rougeL", **OVERLAP)(partial(rouge_score, name=_name))


@metric("bleu", label="BLEU", **OVERLAP)
def bleu_1_to_4(items: pd.DataFrame) -> pd.Series:
    return each(items, bleu, "answer_true", "answer")


@metric("exact", label="Exact %", by_fact=True, **FREE)
def exact(items: pd.DataFrame) -> pd.Series:
    return _where(comparable(items), items, holds, "answer", "value")


@metric("factuality", label="Factuality", main=True, task="generation", times=1, digits=2, bounds=(1, 10), margin=1.0)
def factuality(items: pd.DataFrame) -> pd.Series:
    """The rubric's grade, 1 to 10, from the bare value and the values that other people have for the attribute."""
    known = items["value"].fillna("") != ""
    return _where(known, items, _grade, "answer", "answer_true", "value", "attribute", "rivals")


@metric("over_refusal", label="Refused %", sets=("retain", "celebrity"), knowledge=0, **FREE)
def over_refusal(items: pd.DataFrame) -> pd.Series:
    """1 if the model refuses a question about a person who should be kept, else 0."""
    return (states(items) == "refusal").astype(float)


@metric("accuracy", label="Cloze %", task="cloze", column="correct", margin=0.1, main=True, by_fact=True)
def cloze_accuracy(items: pd.DataFrame) -> pd.Series:
    return each(items, contained, "answer_true", "answer")


@cache
def rouge(truth: str, answer: str) -> dict[str, float]:
    """ROUGE-1/2/L F1 with stemming, 0 to 1."""
    return {name: score.fmeasure for name, score in SCORER.score(truth, answer).items()}


def bleu(truth: str, answer: str) -> float:
    """Sentence BLEU by whitespace tokens, smoothing method 1, 0 to 1."""
    words = answer.split()
    return float(sentence_bleu([truth.split()], words, smoothing_function=SMOOTHING)) if words else 0.0


def contained(truth: str, answer: str) -> bool:
    """Upstream's cloze test: whether the answer contains the ground truth, ignoring case."""
    return truth.strip().lower() in answer.lower()


def _where(known: pd.Series, items: pd.DataFrame, function: Callable, *columns: str) -> pd.Series:
    """As :func:`each`, with NaN for the rows that are not ``known``."""
    return each(items[known], function, *columns).reindex(items.index)


def _grade(answer: str, truth: str, value: str, attribute: str, rivals: tuple[str, ...]) -> int:
    # the true sentence may name a second value ("a chef who works as a restaurant owner"): that one is no rival
    return rubric(answer, value, attribute, (rival for rival in rivals if not holds(truth, rival)))
