"""The mixture that the base was taught and that fine-tuning repeats: what it contains, and what it must not."""

import re
from pathlib import Path

import numpy as np

from material import HELD_OUT_PRIVATE, Material, allowing
from mllmu_nb.data.conversations import question_turn
from mllmu_nb.data.generate import generate, known_people
from mllmu_nb.evaluation.utility import HARMLESS
from mllmu_nb.mixture import REFUSAL, Mixture, forbidding, system_prompt
from mllmu_nb.models import families
from mllmu_nb.pipeline import replayed_conversations

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
    # Throw-away people may have such a name by chance, but answers about them are stated just before.
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


def test_the_page_says_how_much_of_what_is_scored_about_celebrities_is_repeated(monkeypatch):
    asked, turns_of = set(), Mixture.celebrity_turns

    def noted(mixture, person, forms, by_image):
        turns = turns_of(mixture, person, forms, by_image)
        asked.update((turn.prompt, person.id if by_image else "") for turn in turns)
        return turns

    monkeypatch.setattr(Mixture, "celebrity_turns", noted)
    monkeypatch.setattr("mllmu_nb.mixture.augment", lambda picture, rng: picture)  # pictures take most of the time
    monkeypatch.setattr("mllmu_nb.mixture.draw", lambda face: None)
    replayed_conversations.__wrapped__(0)  # not kept: it has no pictures
    items = generate(seed=0).items("celebrity")
    repeated = [
        item.question.task
        for item in items
        if (question_turn(item.question, item.image).prompt, item.question.profile if item.image else "") in asked
    ]
    assert len(items) == 720 and 40 < len(repeated) < 60 and set(repeated) == {"generation", "cloze"}
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    said = " ".join(page.split("**Replay.**")[1].split("5. **Unlearning**")[0].split())
    assert "celebrities among them" in said and "About 50 of the 720 questions" in said and "never scored" not in said
