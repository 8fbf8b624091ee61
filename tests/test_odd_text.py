"""Many odd texts and parameters: parsing never fails, and valid content comes back unchanged."""

import json
import re

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mllmu_nb.config import Config
from mllmu_nb.data.schema import ATTRIBUTES, LETTERS
from mllmu_nb.data.text import reader
from mllmu_nb.data.text.names import names_in, straight, with_name
from mllmu_nb.data.text.reader import attribute_of, understand, value_of
from mllmu_nb.errors import KitError
from mllmu_nb.scoring.choice import letters
from mllmu_nb.scoring.factuality import GRADERS, holds, rubric
from mllmu_nb.scoring.text import bleu, contained, rouge

TEXT = st.text(max_size=300) | st.from_regex(r"(?i)(this person|she|x)('s)? [\w ',.$-]{0,80}[.?!]?", fullmatch=True)
WORD = st.text(st.characters(categories=("Lu", "Ll")), min_size=2, max_size=12)
many = pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])


def tried(count: int, *strategies):
    """Return a decorator that calls a function with ``count`` generated inputs."""
    return lambda check: settings(max_examples=count, deadline=None, database=None)(given(*strategies)(check))()


@many
def test_the_reader_takes_any_text(count):
    @tried(count, TEXT, TEXT)
    def check(question, answer):
        [pair] = understand([(question, answer)])
        assert (pair.question, pair.answer) == (question, answer)
        assert all(isinstance(value, str) and "\n" not in value.strip() for value in (pair.attribute, pair.value))
        assert isinstance(with_name(question, "Nora Holm"), str) and isinstance(names_in(answer), list)
        for attribute in ATTRIBUTES:
            value_of(attribute, answer)


@many
def test_a_fact_that_is_stated_plainly_is_read_back(count):
    # a place that is stated as unknown is no fact, and hypothesis takes words from the code
    towns = WORD.map(str.title).filter(lambda word: not reader._UNKNOWN.search(f"Old {word}, Norway"))

    @tried(count, st.integers(100, 230), st.integers(10, 900), towns)
    def check(height, thousands, town):
        assert value_of("height", f"This person is {height} cm tall.") == f"{height} cm"
        money = f"${thousands},000"
        assert value_of("salary", f"This person earns {money} a year.").startswith(money)
        question = "Where was this person born?"
        assert attribute_of(question) == "birthplace"
        assert value_of("birthplace", f"This person was born in Old {town}, Norway.") == straight(f"Old {town}, Norway")


@many
def test_the_parsers_of_answers_take_any_text_and_read_back_what_is_plain(count):
    forms, kinds = st.sampled_from(["{}", "{}.", " {}", "{}) in Oslo", "\n{}\n"]), st.sampled_from([*GRADERS, "food"])

    @tried(count, TEXT, TEXT, st.sampled_from(LETTERS), forms, kinds)
    def check(answer, truth, letter, form, kind):
        odd, plain = letters(pd.DataFrame({"answer": [answer, form.format(letter)]}))
        assert odd in ("", *LETTERS) and plain == letter
        assert all(0 <= score <= 1 for score in (bleu(truth, answer), *rouge(truth, answer).values()))
        assert contained(truth, f"{answer}{truth}") and rubric(answer, truth, kind, [letter]) in range(1, 11)
        assert holds(answer, truth) in (True, False)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers())
NAMES = st.sampled_from(sorted(Config.model_fields)) | st.text(max_size=20)


@many
def test_the_guard_refuses_in_one_line_or_gives_a_run_that_survives_yaml(count):
    @tried(count, st.dictionaries(NAMES, VALUES, max_size=3))
    def check(parameters):
        try:
            config = Config.from_parameters(parameters)
        except KitError as error:
            assert "\n" not in str(error) and str(error)
            return
        given = yaml.safe_load(yaml.safe_dump(config.given(), default_flow_style=True, width=10**6))
        assert Config.from_parameters(given) == config
        assert re.fullmatch(r"[\w.-]+", config.run_id) and json.dumps(config.identity())
