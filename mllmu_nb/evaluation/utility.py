"""Questions that are not about people, in place of MMMU and LLaVA-Bench: multiple choice for a miniature, the same for
every model. ``docs/scoring.md`` ("Utility") describes the three sets and how answers are scored."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from mllmu_nb.data.conversations import Conversation, Turn
from mllmu_nb.evaluation.engine import greedy
from mllmu_nb.evaluation.tasks import TOKENS
from mllmu_nb.mixture import VISIBLE, Mixture
from mllmu_nb.models import families

SEED = 990_003  # no run, no training and no probe uses it
EACH = 64  # questions per kind; a score's 95 % interval is then about 20 points wide
HARMLESS = tuple(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))["harmless"])


def questions() -> list[tuple[str, str, Turn]]:
    """Return (set, system prompt, solved turn) of every question; the answer is a letter."""
    mixture = Mixture([], np.random.default_rng(SEED), faces=EACH + EACH // 2, letters=1.0)
    faces = iter(mixture.faces)

    def reading(count: int) -> list[Turn]:
        return [turn for _ in range(count) for turn in mixture.read_turns(6, 10, 1, 1.0)]

    def seeing(count: int) -> list[Turn]:
        traits = [*VISIBLE] * -(-count // len(VISIBLE))
        pairs = zip(traits[:count], faces, strict=False)
        return [mixture.trait_turn("letter", trait, known[trait], picture) for trait, (known, picture) in pairs]

    plain = {"reading": reading(EACH), "seeing": seeing(EACH)}
    asked = [(name, "", turn) for name, turns in plain.items() for turn in turns]
    both = [*reading(EACH // 2), *seeing(EACH // 2)]
    return asked + [("instructed", HARMLESS[n % len(HARMLESS)], turn) for n, turn in enumerate(both)]


def ask(model, processor, *, system: str = "", protocol: str = "clean", batch_size: int = 64) -> pd.DataFrame:
    """Return the model's answers: one row per question with set, task, view, scoring, order, profile (another one for
    each question), question_id (its set and its number in :func:`questions`), shots, answer_true, answer, tokens.
    ``system`` precedes everything."""
    asked, processor = questions(), families.of(model).asking(processor, protocol)
    opened = [
        Conversation((turn,), " ".join(filter(None, (system, rule))), protocol).answered("") for _, rule, turn in asked
    ]
    texts, lengths = greedy(model, processor, opened, TOKENS["miniature"]["classification"], batch_size, characters=1)
    rows = [
        (name, "image_text" if turn.image else "text", f"{name}/{number}", turn.answer)
        for number, (name, _, turn) in enumerate(asked)
    ]
    frame = pd.DataFrame(rows, columns=["set", "view", "question_id", "answer_true"])
    fixed = {"task": "classification", "scoring": "utility", "order": 0, "shots": 0}
    return frame.assign(profile=frame["question_id"], answer=texts, tokens=lengths, **fixed)
