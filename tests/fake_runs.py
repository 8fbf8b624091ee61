"""Small runs without training, whose answers are right if a test says so, in the files that a real run writes.

``make`` returns a :class:`~mllmu_nb.reporting.runs.Run` in memory, ``write`` writes it to a results folder, and
``Scores.of`` scores any number of runs:

    Scores.of([make("vanilla", lambda q: True), make("ga", lambda q: q.view == "text", modality="multimodal")])
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mllmu_nb import paths
from mllmu_nb.config import Config
from mllmu_nb.data.schema import LETTERS, SETS, VIEWS
from mllmu_nb.reporting.runs import Run, columns_of
from mllmu_nb.scoring.frames import joined, with_rivals
from mllmu_nb.stages import RECORD, digests, write_json

VALUES = {
    "profession": ("pilot", "baker", "chemist", "painter", "nurse", "sailor", "judge"),
    "hobby": ("chess", "rowing", "pottery", "archery", "juggling", "knitting", "surfing"),
    "food": ("paella", "goulash", "ramen", "lasagne", "falafel", "fondue", "borscht"),
    "pet": ("parrot", "tortoise", "hamster", "ferret", "rabbit", "gecko", "pony"),
    "medical": ("asthma", "migraine", "anaemia", "eczema", "gout", "scurvy", "hay fever"),
}
ASKED = {"classification": 5, "generation": 2, "cloze": 2}  # questions per person and view
PEOPLE, FAMOUS, FORGET = 30, 5, 10

# chance of a right answer: on forget in the image view and the text view; on retain; on celebrities
MODELS = {
    ("base", "none"): ((0.25, 0.25), (0.25, 0.25), 0.95),
    ("vanilla", "none"): ((0.98, 0.97), (0.99, 0.98), 0.90),
    ("oracle", "none"): ((0.25, 0.22), (0.99, 0.98), 0.90),
    ("prompting", "none"): ((0.80, 0.70), (0.82, 0.75), 0.70),
    ("ga", "multimodal"): ((0.54, 0.91), (0.90, 0.95), 0.86),
    ("grad_diff", "multimodal"): ((0.70, 0.94), (0.99, 0.98), 0.88),
    ("kl_min", "multimodal"): ((0.61, 0.94), (0.98, 0.98), 0.88),
    ("npo", "multimodal"): ((0.53, 0.91), (0.90, 0.95), 0.86),
    ("ga", "unimodal"): ((0.97, 0.55), (0.99, 0.93), 0.88),
    ("grad_diff", "unimodal"): ((0.98, 0.68), (0.99, 0.97), 0.89),
    ("kl_min", "unimodal"): ((0.97, 0.58), (0.99, 0.96), 0.88),
    ("npo", "unimodal"): ((0.97, 0.53), (0.99, 0.93), 0.88),
}


class Asked(NamedTuple):
    """One question, from which a test decides whether the answer is right."""

    set: str
    person: int
    task: str
    scoring: str
    view: str
    number: int


Right = Callable[[Asked], bool]


def realistic(method: str, modality: str = "none", draw: int = 0, seed: int = 0) -> Right:
    """Draw right answers with the chances of MODELS, correlated within a person; letters are hard for every model."""
    on_forget, on_retain, on_famous = MODELS[method, modality]
    chances = {"forget": on_forget, "test": tuple(0.9 * chance for chance in on_forget), "retain": on_retain}
    chances["celebrity"] = (on_famous, on_famous)

    def right(asked: Asked) -> bool:
        def random(*names):
            return np.random.default_rng(zlib.crc32(repr((method, modality, draw, seed, *names)).encode()))

        chance = chances[asked.set][VIEWS.index(asked.view)]
        chance += random(asked.set, asked.person, asked.view).normal(0, 0.05)
        chance = 0.25 + 0.3 * chance if asked.scoring == "letter" else chance
        return bool(random(*asked).random() < chance)

    return right


def make(
    method: str,
    right: Right | None = None,
    *,
    modality: str = "none",
    draw: int = 0,
    sets: Sequence[str] = SETS,
    asked: Mapping[str, int] = ASKED,
    people: int = PEOPLE,
    famous: int = FAMOUS,
    taught: Callable[[str], float] | None = None,
    **parameters: Any,
) -> Run:
    """Return a run of ``method`` (any name), with right answers if ``right`` says so (default: `realistic`).

    People have the numbers 0 to ``people`` - 1; forget draw n is the n-th FORGET of them. ``taught`` gives the run
    sentences.parquet: member (forget, fresh) → how likely a token is. ``parameters`` are those of the run.
    """
    seed = parameters.get("seed", 0)
    right = right or realistic(method, modality, draw, seed)
    values = Config().parameters() | {"method": method, "modality": modality, "replicate": draw, "variant": "canonical"}
    values |= dict.fromkeys(("data_seed", "train_seed", "unlearn_seed", "shot_seed"), seed) | parameters
    changed = "".join(f"-{name}{value}" for name, value in parameters.items() if name != "settings")
    record = {"run": f"{method}-{modality}-d{draw}{changed}", "name": "", "scale": "miniature", "parameters": values}
    record |= {
        "base_label": "LLaVA",
        "data_hash": f"people-{people}-{famous}",
        "base_hash": "base",
        "deviations": {},
        "notes": {},
    }
    forget = range(draw * FORGET, (draw + 1) * FORGET)
    kept = [number for number in range(people) if number not in forget]
    members = {"forget": forget, "test": forget, "retain": kept, "celebrity": range(famous)}
    rows = [row for name in sets for number in members[name] for row in _answers(right, name, number, asked)]
    answers = pd.DataFrame(rows)
    questions = with_rivals(*people_frames(people, famous))
    answers = joined(answers.assign(**columns_of(record)), questions)
    record |= {"forget_ids": [profile(number) for number in forget], "sets": _counts(answers)}
    record |= {"people": {"fictitious": people, "pool": 12, "celebrity": famous}, "fine_tuning_pairs": 1680}
    sentences = _sentences(taught, list(forget)).assign(**columns_of(record)) if taught else None
    path = None
    if (method == "oracle" or modality != "none") and set(sets) == set(SETS) and "after" not in parameters:
        path = joined(along(answers, method, modality).assign(**columns_of(record)), questions)
    frames = {"answers": answers, "sentences": sentences, "path": path, "utility": None}
    return Run(Path(record["run"]), record, train(method, modality), frames)


def along(answers: pd.DataFrame, method: str, modality: str) -> pd.DataFrame:
    """Return a path of eleven points, up to twice the steps of `train`. It begins with vanilla's answers; each point
    takes a larger share of the run's own. On forget and test, in the trained view, it takes wrong answers; at the last
    point all are wrong."""
    columns = ["set", "task", "view", "scoring", "profile", "question_id", "answer", "answer_true"]
    asked = answers[columns + [f"option_{letter}" for letter in LETTERS]]
    asked = asked[(asked["scoring"] == "likelihood") | (asked["task"] == "generation")].reset_index(drop=True)
    own = asked[[f"option_{letter}" for letter in LETTERS]].to_numpy(float)
    chosen = np.array(LETTERS)[np.nan_to_num(own, nan=-9).argmax(1)]
    choice = (asked["scoring"] == "likelihood").to_numpy()
    right = asked["answer_true"].to_numpy(str)
    lost = asked["set"].isin(["forget", "test"]) & (asked["view"] == {"unimodal": "text"}.get(modality, "image_text"))
    wrong = np.where(right == "A", "B", "A")
    rng, points = np.random.default_rng(zlib.crc32(f"{method} {modality}".encode())), []
    turn = rng.random(len(asked))
    for step in range(0, 11) if modality != "none" else [0]:
        end = np.where(lost, wrong, chosen) if modality != "none" else chosen
        given = np.where(turn < step / 10, end, right) if modality != "none" else end
        points.append(asked.assign(step=8 * step, answer=np.where(choice, given, asked["answer"])))
    return pd.concat(points, ignore_index=True)[[*columns[:-1], "step"]].assign(order=0)


def everybody(draws: Iterable[int] = (0,), **options: Any) -> list[Run]:
    """Return a run of each of MODELS and each forget draw."""
    return [make(method, modality=modality, draw=draw, **options) for draw in draws for method, modality in MODELS]


def but(run: Run, **frames: pd.DataFrame | None) -> Run:
    """Return the run with these frames in place of its own."""
    return replace(run, frames=run.frames | frames)


def without(run: Run, **where: str) -> Run:
    """Return the run without the answers whose columns have all these values."""
    drop = np.logical_and.reduce([run.answers[column] == value for column, value in where.items()])
    return but(run, answers=run.answers[~drop].reset_index(drop=True))


def saying(run: Run, answer: str, **where: str) -> Run:
    """Return the run with the same answer to all questions whose columns have all these values."""
    asked = np.logical_and.reduce([run.answers[column] == value for column, value in where.items()])
    return but(run, answers=run.answers.assign(answer=run.answers["answer"].mask(asked, answer)))


def write(results: Path, *runs: Run) -> list[Path]:
    """Write the files of runs, and of their people, to a results folder; return the runs' folders."""
    folders = []
    for run in runs:
        folder = paths.runs(results) / run.id
        folder.mkdir(parents=True)
        stored = ["set", "task", "view", "scoring", "order", "profile", "question_id", "shots", "answer", "tokens"]
        stored += [f"option_{letter}" for letter in LETTERS] + ["fluency"]
        run.answers[stored].to_parquet(folder / "answers.parquet", index=False)
        if run.path is not None:
            kept = ["set", "task", "view", "scoring", "profile", "question_id", "answer", "step"]
            run.path[kept].to_parquet(folder / "path.parquet", index=False)
        if run.sentences is not None:
            run.sentences.drop(columns=list(columns_of(run.record))).to_parquet(folder / "sentences.parquet")
        write_json(folder / "train.json", run.train)
        write_json(folder / "draws.json", {})
        write_json(folder / RECORD, {**run.record, "key": "made-up", "files": digests(folder)})
        paths.people(results).mkdir(exist_ok=True)
        counts = run.record["people"]
        for end, frame in zip(("", "-facts"), people_frames(counts["fictitious"], counts["celebrity"]), strict=True):
            frame.to_parquet(paths.people(results) / f"{run.record['data_hash']}{end}.parquet", index=False)
        folders.append(folder)
    return folders


def profile(number: int, famous: bool = False) -> str:
    return f"c{number:03d}" if famous else f"{number + 1:03d}"


@cache
def people_frames(people: int = PEOPLE, famous: int = FAMOUS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return everybody's questions, plain and test, and facts, in the form of a results folder."""
    questions, facts = [], []
    for known, count in ((False, people), (True, famous)):
        for number in range(count):
            person = profile(number, known)
            for place, (attribute, values) in enumerate(VALUES.items()):
                facts.append(
                    (person, "celebrity" if known else "fictitious", f"Amina {person}", attribute, values[number % 7])
                )
                for version, task, view in ((v, t, w) for v in ("plain", "test") for t in ASKED for w in VIEWS):
                    questions.append({"version": version, **_question(person, number, task, view, place)})
    return pd.DataFrame(questions), pd.DataFrame(facts, columns=["profile", "kind", "name", "attribute", "value"])


def _question(person: str, number: int, task: str, view: str, place: int) -> dict:
    attribute, values = list(VALUES.items())[place]
    value = values[number % 7]
    who = "this person" if view == "image_text" else f"Amina {person}"
    row = {"question_id": f"{person}/{task}/{view}/{place}", "profile": person, "task": task, "view": view}
    row |= {"number": place, "attribute": attribute, "question": f"What is the {attribute} of {who}?", "value": value}
    true = {"classification": LETTERS[number % 4], "generation": sentence(attribute, value), "cloze": value}[task]
    options = [values[(number + place - number % 4) % 7] for place in range(4)]  # the right one gets the right letter
    texts = options if task == "classification" else [""] * 4
    return row | {"answer_true": true} | {f"option_text_{x}": text for x, text in zip(LETTERS, texts, strict=True)}


def sentence(attribute: str, value: str) -> str:
    return f"The {attribute} of the person in question is {value}, as everybody around here knows very well."


def _answers(right: Right, set_name: str, number: int, asked: Mapping[str, int]) -> list[dict]:
    person, rows = profile(number, set_name == "celebrity"), []
    for view, (task, count) in ((view, kind) for view in VIEWS for kind in asked.items()):
        for scoring in ("letter", "likelihood") if task == "classification" else ("",):
            for place in range(count):
                at = {"set": set_name, "task": task, "view": view, "scoring": scoring, "order": 0, "profile": person}
                at |= {"question_id": f"{person}/{task}/{view}/{place}", "shots": 0, "tokens": 9, "fluency": np.nan}
                at |= {f"option_{letter}": np.nan for letter in LETTERS} | {"answer": ""}
                knows = bool(right(Asked(set_name, number, task, scoring, view, place)))
                rows.append(at | _answer(number, task, scoring, place, knows))
    return rows


def _answer(number: int, task: str, scoring: str, place: int, right: bool) -> dict:
    attribute, values = list(VALUES.items())[place]
    chosen = LETTERS[(number if right else number + 1) % 4]
    value = values[(number if right else number + 1) % 7]
    if scoring == "likelihood":
        return {f"option_{letter}": -1.0 if letter == chosen else -2.0 for letter in LETTERS}
    if scoring == "letter":
        return {"answer": chosen}
    return {"answer": sentence(attribute, value) if task == "generation" else value}


def _counts(answers: pd.DataFrame) -> dict:
    """Return ``sets`` of a run's record."""
    counts = {}
    for name, rows in answers.drop_duplicates(["set", "question_id"]).groupby("set"):
        counts[name] = {"profiles": rows["profile"].nunique(), "questions": len(rows)}
        counts[name] |= {f"{task}/{view}": len(cell) for (task, view), cell in rows.groupby(["task", "view"])}
    return counts


def _sentences(taught: Callable[[str], float], forget: list[int]) -> pd.DataFrame:
    """Return two sentences per view about each forget person, and as many about fresh people."""
    rows, rng = [], np.random.default_rng(0)
    for member, (number, view) in (
        (m, at) for m in ("forget", "fresh") for at in ((n, v) for n in forget for v in VIEWS)
    ):
        for place, attribute in enumerate(list(VALUES)[:2]):
            chances = np.clip(taught(member) + rng.normal(0, 0.1, 6), 0.01, 0.99)
            person = profile(number + 1000 * (member == "fresh"))
            row = {"profile": person, "member": member, "attribute": attribute, "view": view, "n_tokens": 6}
            row |= {"question_id": f"{person}/finetuning/{view}/{place}", "log_probs": np.log(chances)}
            rows.append(row | {"right": chances > 0.5, "spread": np.log(chances) - 1, "zlib_bytes": 40})
    return pd.DataFrame(rows)


def train(method: str, modality: str) -> dict:
    """Return a train.json. GA's loss falls without end, and faster on text."""
    count = {"base": 0, "prompting": 0, "vanilla": 600, "oracle": 600}.get(method, 40)
    curve = [3 * np.exp(-5 * step / max(count, 1)) + 0.1 * np.sin(step) for step in range(count)]
    if method == "ga":
        curve = [-0.1 * step - (0.02 * step if modality == "unimodal" else 0) for step in range(count)]
    record = {"method": method, "modality": modality, "steps": count, "seconds": 3.25 * (count > 0)}
    record |= {"losses": {"loss": list(map(float, curve))} if count else {}}
    record |= {"peak_memory_mb": 1402.6, "trainable_parameters": 1234567 if count else 0, "supervised_tokens": 99}
    return record | {"settings": {"lr": 2e-4}, "evaluation_seconds": 1.5}
