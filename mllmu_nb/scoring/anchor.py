"""The anchor: how the released vanilla model's answers score, beside what independent reports have of it."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from mllmu_nb.errors import KitError
from mllmu_nb.scoring.text import rouge

NEAR = 0.05  # of ROUGE-L; farther off, something is wrong


def score(asked: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The mean ROUGE-L of ``asked``, its ``answers`` against the ``true`` ones, and of how many questions."""
    pairs = list(zip(asked["true"], asked["answers"], strict=True))
    return {"rougeL": fmean(rouge(*pair)["rougeL"] for pair in pairs), "questions": len(pairs)}


def check(asked: Mapping[str, Sequence[str]], published: float, name: str) -> None:
    """Raises KitError where the model ``name`` does not answer as in the reports."""
    measured = score(asked)["rougeL"]
    if abs(measured - published) > NEAR:
        raise KitError(
            f"the vanilla model {name} has ROUGE-L {measured:.3f} on its anchor, and reports have {published:.3f}: "
            "its weights, the people, the prompts (protocol) or the precision are not theirs"
        )
