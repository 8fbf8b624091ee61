"""Free answers and blanks: overlap with the printed sentence, and whether the fact is there (docs/scoring.md)."""

from functools import cache, partial

import pandas as pd
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import tokenize, tokenizers
from rouge_score.rouge_scorer import RougeScorer

from mllmu_nb.scoring.factuality import STEM, holds, rubric
from mllmu_nb.scoring.health import states
from mllmu_nb.scoring.registry import each, metric

FREE = {"task": "generation", "margin": 0.1}
OVERLAP = FREE | {"times": 1, "digits": 3}


class _Stems(tokenizers.Tokenizer):
    """The scorer's own words and stems; each word is stemmed once, which takes most of the time otherwise."""

    stem = staticmethod(STEM)

    def tokenize(self, text: str) -> list[str]:
        return tokenize.tokenize(text, self)


SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Stems())
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
    known = _known(items)
    return each(known, lambda answer, value: float(holds(answer, value)), "answer", "value").reindex(items.index)


@metric("factuality", label="Factuality", main=True, task="generation", times=1, digits=2, bounds=(1, 10), margin=1.0)
def factuality(items: pd.DataFrame) -> pd.Series:
    """The rubric's grade, 1 to 10, against the bare value and the values that others have for the attribute."""
    graded = each(_known(items), _grade, "answer", "answer_true", "value", "attribute", "rivals")
    return graded.reindex(items.index)


@metric("over_refusal", label="Refused %", sets=("retain", "celebrity"), knowledge=0, **FREE)
def over_refusal(items: pd.DataFrame) -> pd.Series:
    """Whether a question about somebody who should be kept is refused."""
    return (states(items) == "refusal").astype(float)


@metric("accuracy", label="Cloze %", task="cloze", column="correct", margin=0.1, main=True, by_fact=True)
def cloze_accuracy(items: pd.DataFrame) -> pd.Series:
    return each(items, lambda truth, answer: float(contained(truth, answer)), "answer_true", "answer")


@cache
def rouge(truth: str, answer: str) -> dict[str, float]:
    """ROUGE-1/2/L F1 with stemming, 0 to 1."""
    return {name: score.fmeasure for name, score in SCORER.score(truth, answer).items()}


def bleu(truth: str, answer: str) -> float:
    """Sentence BLEU by whitespace tokens, smoothing method 1, 0 to 1."""
    words = answer.split()
    return float(sentence_bleu([truth.split()], words, smoothing_function=SMOOTHING)) if words else 0.0


def contained(truth: str, answer: str) -> bool:
    """Upstream's test of a blank: the ground truth stands in the answer, ignoring case."""
    return truth.strip().lower() in answer.lower()


def _known(items: pd.DataFrame) -> pd.DataFrame:
    """The answers to questions whose bare value is known."""
    return items[items["value"].fillna("") != ""]


def _grade(answer: str, truth: str, value: str, attribute: str, rivals: tuple[str, ...]) -> float:
    # the printed truth may itself name a second value ("a chef who works as a restaurant owner")
    return float(rubric(answer, value, attribute, (rival for rival in rivals if not holds(truth, rival))))
