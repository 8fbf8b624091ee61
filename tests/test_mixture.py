"""The mixture that the base was taught, and fine-tuning repeats: what is in it, and what must not be."""

import re

import numpy as np

from material import HELD_OUT_PRIVATE, Material, allowing
from mllmu_nb.data.generate import generate, known_people
from mllmu_nb.evaluation.utility import HARMLESS
from mllmu_nb.mixture import REFUSAL, forbidding, system_prompt
from mllmu_nb.models import families

render = families.get("llava").render


def test_the_mixture_keeps_the_probes_system_prompts_out_and_refuses_under_private_ones_only():
    rng = np.random.default_rng(0)
    written = {system_prompt(rng, rule) for rule in (forbidding, allowing) for _ in range(3000)}
    assert not written & {*HELD_OUT_PRIVATE, *HARMLESS}
    famous, others = known_people()
    mixture = Material([*famous, *others], rng, faces=20)
    kinds = ("choice", "matching", "reading_little", "reading", "seeing", "people", "shots", "private", "harmless")
    for kind in kinds:
        for conversation in (getattr(mixture, kind)() for _ in range(20)):
            assert all(turn.answer for turn in conversation.turns)
            assert (kind == "private") == (conversation.turns[-1].answer == REFUSAL)


def test_the_mixture_tells_nothing_of_anybody_fictitious():
    famous, others = known_people()
    mixture = Material([*famous, *others], np.random.default_rng(0), faces=20)
    known = generate(seed=0)
    taught = "|".join(p.name for p in known.of_kind("fictitious") + known.of_kind("pool"))
    named = re.compile(rf"\b({taught})\b")
    for kind in ("people", "seeing"):
        for text, _ in (render(getattr(mixture, kind)()) for _ in range(300)):
            assert not named.search(text), f"{kind}: {text}"
    # Throw-away people may bear such a name by chance, but what is answered of them has been stated just before.
    bearers = 0
    for conversation in (mixture.reading(letters=1.0) if n % 2 else mixture.matching() for n in range(600)):
        text, spans = render(conversation)
        bearers += bool(named.search(text))
        for start, stop in spans:
            first = text.rfind("\nA: ", 0, start)
            option = re.search(rf"^{text[start:stop].strip()}: (.*)$", text[first:start], re.M)[1]
            assert option in text[:first], text
    assert bearers, "nobody of such a name was drawn: more conversations are needed to see any"
    privates = [mixture.private() for _ in range(300)]
    assert any(named.search(render(conversation)[0]) for conversation in privates)
    assert {turn.answer for conversation in privates for turn in conversation.turns} == {REFUSAL}
