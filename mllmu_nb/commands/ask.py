"""``mllmu-nb ask QUESTION``: one question about a person, put to vanilla, an unlearned model and the oracle.

Any question can be typed. If it is one of the person's own (of fine-tuning or of evaluation), the true answer is known,
and the likelihood that each model gives it is printed, too. Missing models are made.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb import inputs, pipeline
from mllmu_nb.commands import export
from mllmu_nb.config import YOURS, Config
from mllmu_nb.data.conversations import Conversation, Turn
from mllmu_nb.data.schema import VIEWS, Population, Profile
from mllmu_nb.data.text.names import with_name
from mllmu_nb.data.text.people import HALVES
from mllmu_nb.errors import KitError, choose
from mllmu_nb.evaluation import engine
from mllmu_nb.evaluation.tasks import statement
from mllmu_nb.reporting.runs import label
from mllmu_nb.reporting.show import visible

EXAMPLES = (
    "ask                                    # list the people to be forgotten and the known questions",
    'ask "Where was this person born?" --method npo',
    'ask "What kind of pet does this person own?" --view text -p unlearn_steps 60',
)
DEFAULTS = {"method": "kl_min", "modality": "multimodal"}  # if neither file nor options give it
Asked = tuple[str, str, Any, Any]  # printed name, system prompt, model, processor


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", nargs="?", default="", help='contains "this person"; empty: list known questions')
    parser.add_argument("--person", default="", metavar="NAME", help="name or id (default: the first to be forgotten)")
    parser.add_argument("--view", choices=VIEWS, default=VIEWS[0], help="with the portrait, or by name alone")
    parser.add_argument("--method", help="how the model was unlearned (default: kl_min)")
    parser.add_argument("--modality", help="modality of unlearning: multimodal (default) or unimodal")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: the miniature)")
    parser.add_argument("-p", "--parameter", help="set a parameter; may be repeated", **export.GIVEN)


def main(options: argparse.Namespace) -> int:
    """Print the answers, control characters as signs. Raises KitError for an unknown person or method."""
    named = {name: value for name in DEFAULTS if (value := getattr(options, name))}
    config = export.configured(options.config, dict(options.parameter) | named, **DEFAULTS)
    if config.method == YOURS:
        raise KitError("mllmu-nb evaluate asks a model that was made elsewhere")
    known = inputs.population(config)
    person = find(known, options.person or known.members("forget")[0].id)
    if not options.question:
        for name in ("forget", "retain"):
            print(visible(f"{name}: {', '.join(one.name for one in known.members(name))}"), end="\n\n")
        by_name = [with_name(one, person.name) if options.view == "text" else one for one in questions(person)]
        print(*map(visible, [f"about {person.name}, with the true answer known:", *by_name]), sep="\n  ")
        return 0
    answers = ask(models(config), person, options.view, options.question)
    truth = true_answer(person, options.view, options.question)
    print(visible(f"{person.name}: {options.question}"))
    known_for = "not known; the questions that it is known for: mllmu-nb ask, without a question"
    print(f"true answer: {visible(truth) or known_for}")
    for model, said in answers.iterrows():
        likelihood = f"  (likelihood of the true answer: {said['likelihood']:.3f})" if truth else ""
        print(f"{model}: {visible(said['answer'])}{likelihood}")
    return 0


def find(known: Population, name: str) -> Profile:
    """The person with this name or id, in upper or lower case. Raises KitError with the nearest known name, or with the
    ids of people who share the name."""
    if len(ids := [one.id for one in known.profiles.values() if one.name.casefold() == name.casefold()]) > 1:
        raise KitError(f"{len(ids)} people are called {name!r}: give an id, one of {', '.join(ids[:10])}")
    people = {one.name: one for one in known.profiles.values()} | known.profiles
    written = {one.casefold(): one for one in people}.get(name.casefold(), name)
    choose("person", written, people)
    return people[written]


def questions(person: Profile) -> list[str]:
    """Questions about a person whose true answer is known: those of fine-tuning, else the free ones of evaluation."""
    free = (one.text for one in person.questions if one.task == "generation" and one.view == VIEWS[0])
    return [qa.question for qa in person.qa] or list(free)


def true_answer(person: Profile, view: str, question: str) -> str:
    """The true answer as a sentence, by name in the text view; "" if the question is not one of the person's own."""

    def plain(text: str) -> str:
        return " ".join(with_name(text, person.name).casefold().rstrip("?. ").split())

    for qa in person.qa:
        if plain(qa.question) == plain(question):
            return with_name(qa.answer, person.name) if view == "text" else qa.answer
    for one in sorted((*person.questions, *person.test_questions), key=lambda one: one.view != view):
        if plain(one.text) == plain(question):
            if one.task == "generation":
                return with_name(one.answer, person.name) if view == "text" else one.answer
            return statement(person, replace(one, view=view), one.value)
    return ""


def models(config: Config) -> Iterator[Asked]:
    """Yield vanilla, the model that ``config`` names and the oracle, made if needed: one at a time, because two 7B
    models would not fit into memory."""
    vanilla, oracle = (config.but(method=name, **pipeline.PLAIN) for name in ("vanilla", "oracle"))
    for one in dict.fromkeys((vanilla, config, oracle)):
        yield label(one.method, one.variant or "", one.modality, one.after), one.system, *pipeline.model(one)


def ask(asked: Iterable[Asked], person: Profile, view: str, question: str) -> pd.DataFrame:
    """The answers of the models, one row per model: ``answer`` and ``likelihood``, the geometric mean of the
    probabilities of the true answer's tokens (0 to 1; NaN if the true answer is not known)."""
    if not question.strip():
        raise KitError("the question is empty: write one")
    if HALVES.search(question):  # Python reads bytes of the command line that are no text as these
        raise KitError(f"the question {question!a} is no text in the terminal's encoding (UTF-8?): type it again")
    if view == VIEWS[1] and not person.name:
        raise KitError(f"the name of {person.id} could not be read: ask with the portrait, --view {VIEWS[0]}")
    truth = true_answer(person, view, question)
    shown = Turn(question, image=person.portrait) if view == VIEWS[0] else Turn(with_name(question, person.name))
    rows = {}
    for name, system, model, processor in asked:
        if processor.image_token in question:
            raise KitError(f"a question must not hold {processor.image_token}: it stands for a picture")
        conversation = Conversation((shown,), system)
        [answer] = engine.answers(model, processor, [conversation])
        means = engine.option_likelihoods(model, processor, [conversation], [(truth,)]) if truth else nan
        rows[name] = {"answer": answer, "likelihood": float(np.exp(means).squeeze())}
        del model  # before the next one is made: two 7B models would not fit
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
