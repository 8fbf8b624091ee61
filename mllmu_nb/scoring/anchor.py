"""The anchor: compares how the released vanilla model's answers score with what independent reports say."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from mllmu_nb.errors import KitError

NEAR = 0.05  # a larger difference in ROUGE-L means that something is wrong


def score(asked: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The mean ROUGE-L of the ``answers`` in ``asked`` against the ``true`` ones, and the number of questions."""
    from mllmu_nb.scoring.text import rouge  # takes a second, and few runs have an anchor

    pairs = list(zip(asked["true"], asked["answers"], strict=True))
    return {"rougeL": fmean(rouge(*pair)["rougeL"] for pair in pairs), "questions": len(pairs)}


def check(asked: Mapping[str, Sequence[str]], published: float, name: str) -> None:
    """Raise KitError if the score of the model ``name`` is not close to the published one."""
    measured = score(asked)["rougeL"]
    if abs(measured - published) > NEAR:
        raise KitError(
            f"the vanilla model {name} has ROUGE-L {measured:.3f} on its anchor, and reports have {published:.3f}: "
            "its weights, the people, the prompts (protocol) or the precision are not theirs"
        )
