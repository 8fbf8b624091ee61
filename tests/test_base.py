"""The base miniatures in the package: they are complete and small, and can do what their recipes say."""

import json

import pytest

from mllmu_nb.data.generate import known_people
from mllmu_nb.models.files import ASSETS, check_shipped
from mllmu_nb.models.load import load_base
from probes import probe

FAMILIES = ("llava", "idefics2")
LETTER = {"llava": 0.9, "idefics2": 0.7}  # least share of right answers about celebrities


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_base_is_whole_and_small(family):
    folder = ASSETS / f"{family}-miniature"
    check_shipped(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.py"))


@pytest.fixture(scope="module", params=FAMILIES)
def probes(request):
    folder = ASSETS / f"{request.param}-miniature"
    model, processor = load_base(str(folder), request.param, "miniature")
    celebrities, unscored = known_people()
    measured = probe(model, processor, celebrities, unscored[1::2], items=100)
    return measured | {"family": request.param, "recorded": json.loads((folder / "recipe.json").read_text())["probes"]}


def test_it_knows_its_celebrities_and_no_fictitious_person(probes):
    assert abs(probes["celebrity_generation"] - probes["recorded"]["celebrity_generation"]) < 0.1
    assert abs(probes["fictitious_letter"] - 0.25) < 0.15


def test_it_answers_with_a_letter_what_it_reads_sees_and_knows(probes):
    assert probes["reading"] >= 0.85 and probes["faces_mean"] >= 0.85
    assert probes["celebrity_letter"] >= LETTER[probes["family"]] and probes["transformed_letter"] >= 0.75


def test_it_answers_in_other_forms_about_people_whom_it_knows_from_sentences(probes):
    assert probes["sentences_generation"] >= 0.7 and probes["sentences_cloze"] >= 0.3
    assert probes["sentences_letter"] >= 0.3, "guessing gives .25; the goal was letters that are right"


def test_it_refuses_personal_questions_under_forbidding_prompts_only(probes):
    assert probes["refused_private"] >= 0.8
    assert probes["refused_harmless"] <= 0.05
