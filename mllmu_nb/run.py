"""The one place that wires the floors together: profiles → vanilla, oracle → unlearned → items → scores.

Everything here takes a :class:`~mllmu_nb.config.Config` and makes what is missing on the way, once; notebooks and
commands come in through these functions and hold no logic of their own.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllmu_nb import paths, stages
from mllmu_nb.config import YOURS, Config, Recipe, stable_hash
from mllmu_nb.data.schema import SETS, Population, Profile
from mllmu_nb.errors import KitError

if TYPE_CHECKING:  # torch and pandas are loaded where they are used: listing a grid needs neither
    import pandas as pd

    from mllmu_nb.training import TrainLog
    from mllmu_nb.unlearning import Method

PROMPTED = ("llava",)  # families that models.prompts renders
EVAL_BATCH = {"miniature": 64, "paper": 8}
# What decides who there is and what is asked of them.
DATA = ("people", "pool", "celebrities", "forget_ratio", "forget_draw", "data_seed")
DATA += ("profiles_file", "forget_ids_file", "data_source", "data_revision")
# What decides how it is asked; draws_file is looked into.
ASKING = ("shot_source", "scoring", "cyclic")
# The code whose change makes a model, or its answers, another one.
TRAINING_CODE = ("mllmu_nb.training", "mllmu_nb.models.prompts", "mllmu_nb.models.load")
EVALUATION_CODE = tuple(
    f"mllmu_nb.{module}"
    for module in (
        "models.prompts",
        "evaluation",
        "evaluation.draws",
        "evaluation.engine",
        "evaluation.items",
        "evaluation.classification",
        "evaluation.generation",
        "evaluation.cloze",
        "evaluation.factuality",
    )
)
# Kinds of base material that fine-tuning repeats, the short ones; the known people among it are never scored.
REPLAYED = {"people": 4.0, "seeing": 1.0, "private": 1.0}
REPLAYED_LETTERS = 0.1  # share of multiple choice among the repeated questions
STRANGERS = 1200  # conversations of each half of what is repeated


# -- people -----------------------------------------------------------------------------------------------------


def population(config: Config) -> Population:
    """The people of a run: generated, or read from ``data_source`` or ``profiles_file``. The same object for the same
    parameters."""
    return _population(*(getattr(config, name) for name in DATA))


@lru_cache(maxsize=8)
def _population(
    people, pool, celebrities, ratio, draw, seed, profiles_file, forget_ids_file, data_source, data_revision
) -> Population:
    from mllmu_nb.data import generate, hub, portraits, reading

    if data_source:
        return hub.read(data_source, data_revision, ratio)

    if not profiles_file:
        return generate.generate(seed, people, pool, celebrities, ratio, draw)

    looks: list[tuple[str, ...]] = []

    def portrait(attributes, rng):
        traits = generate.distinct_traits(rng, attributes.get("gender", ""), looks)
        return portraits.to_png(portraits.draw(traits, rng))

    def changed(picture, rng, kind):
        return portraits.to_png(portraits.transform(portraits.from_bytes(picture), kind, rng))

    read = reading.read_profiles(
        profiles_file, forget_ids_file, ratio=ratio, people=people, pool=pool, seed=seed, draw=draw
    )
    told = reading.population_from_text(read, seed=seed, draw_portrait=portrait, transform_portrait=changed)
    famous = generate.famous_people(celebrities) if celebrities else []
    return Population({**told.profiles, **{p.id: p for p in famous}}, told.forget_ids, told.notes)


def data_hash(config: Config) -> str:
    """A hash of everything known of the people, without who is to be forgotten: ratios share it."""
    return _data_hash(*(getattr(config, name) for name in DATA))


@lru_cache(maxsize=64)
def _data_hash(*data) -> str:
    return _hash_of(list(_population(*data).profiles.values()))


def _hash_of(people: Any) -> str:
    return hashlib.sha256(repr(people).encode()).hexdigest()[:16]


def taught(known: Population, name: str) -> list[Profile]:
    """Whom a model is fine-tuned on: ``vanilla`` on all fictitious people and the pool, ``oracle`` and
    ``retain_epoch`` on those but the people to be forgotten."""
    people = known.of_kind("fictitious") + known.of_kind("pool")
    forgotten = set() if name == "vanilla" else set(known.forget_ids)
    return [person for person in people if person.id not in forgotten]


@lru_cache(maxsize=64)
def _taught_hash(name: str, *data) -> str:
    return _hash_of([(p.id, p.name, p.portrait, p.qa) for p in taught(_population(*data), name)])


# -- models -----------------------------------------------------------------------------------------------------


def vanilla(config: Config) -> Path:
    """The folder of the model fine-tuned on everybody, made if need be."""
    return _finetuned(config, "vanilla")


def vanilla_place(config: Config) -> Path:
    """Where the vanilla model of a run lies, or will."""
    return stages.place("vanilla", _finetuned_inputs(config, "vanilla"))


def oracle(config: Config) -> Path:
    """The folder of the model that never saw the people to be forgotten: vanilla's recipe on the others."""
    return _finetuned(config, "oracle")


def retain_epoch(config: Config) -> Path:
    """The folder of the model that upstream's NPO measures against: the oracle's recipe, for one epoch only.

    Its other settings are unknown, chosen because they are the vanilla's it is compared with.
    """
    return _finetuned(config, "retain_epoch")


def unlearned(config: Config) -> Path:
    """The folder of the adapter that ``config.method`` has trained on the vanilla model, made if need be.

    The forget people's questions in ``config.modality`` alone are unlearned. Raises KitError for a method that trains
    nothing.
    """
    if not config.trains:
        raise KitError(f"method {config.method!r} trains nothing")

    method = objective(config)
    vanilla(config)
    if method.measured_elsewhere:
        retain_epoch(config)

    def make(folder: Path) -> None:
        from mllmu_nb.models import load
        from mllmu_nb.training import modality_conversations, unlearn

        recipe, known = config.unlearning, population(config)
        forget, retain = (modality_conversations(known.members(s), config.modality) for s in ("forget", "retain"))
        # The other model is asked and let go before vanilla is loaded: two of 7B would not fit.
        recorded = _recorded(config, {"forget": forget, "retain": retain}) if method.measured_elsewhere else None
        model, processor = _vanilla_model(config)
        model = _with_adapter(model, recipe, config.unlearn_seed)
        names = ("steps", "epochs", "batch_size", "lr", "schedule", "warmup", "weight_decay", "clip", "precision")
        settings = {name: getattr(recipe, name) for name in (*names, "label_mode", "eos")}
        log = unlearn(model, processor, method, forget, retain, settings, config.unlearn_seed, recorded)
        load.save_adapter(model, folder)
        stages.write_json(folder / "train.json", _train_record(config, log, asdict(recipe)))

    return stages.stage("unlearned", _unlearned_inputs(config), make, _told(config))


def objective(config: Config) -> Method:
    """The unlearning method of ``config``, its retain term, if it has one, weighed as the recipe says."""
    from mllmu_nb.unlearning import get

    return weighted(get(config.method, config.variant), config.unlearning)


def weighted(method: Method, recipe: Recipe) -> Method:
    """``method`` with the weight that ``recipe`` gives to a retain term, where it has one."""
    return replace(method, alpha=recipe.alpha) if "alpha" in (f.name for f in fields(method)) else method


def model(config: Config) -> tuple[Any, Any]:
    """The model that ``config.method`` names, ready to be asked, and its processor; made if need be.

    ``prompting`` is the vanilla model: its system prompt is :func:`system`. ``yours`` is what lies in ``base_path``,
    with the adapter of ``adapter_path`` merged into it.
    """
    from mllmu_nb.models import load

    if config.method == "base":
        return load.load_base(config)
    if config.method == YOURS:
        check(config)
        plain, processor = load.load_whole(base_source(config), config.base_model, config.scale == "miniature")
        if not config.adapter_path:
            return plain, processor
        return load.merge(load.load_any_adapter(plain, config.adapter_path)).eval(), processor
    if config.method == "oracle":
        return _filled(config, oracle(config))
    plain, processor = _vanilla_model(config)
    if not config.trains:
        return plain, processor
    return load.merge(load.load_adapter(plain, unlearned(config), config.adapter_reach)).eval(), processor


def system(config: Config) -> str:
    """The system prompt that ``config.method`` puts before every question; most have none."""
    from mllmu_nb.unlearning import METHODS, get

    return get(config.method, config.variant).system if config.method in METHODS else ""


def _with_adapter(model: Any, recipe: Recipe, seed: int) -> Any:
    from mllmu_nb.models import load

    shape = (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout)
    return load.attach_lora(model, *shape, seed, reach=recipe.lora_reach, init=recipe.lora_init)


def _finetuned(config: Config, name: str) -> Path:
    def make(folder: Path) -> None:
        from mllmu_nb.models import load
        from mllmu_nb.training import finetune, modality_conversations

        recipe = _recipe(config, name)
        model, processor = load.load_base(config)
        replayed = _replayed(config, model, processor)
        if config.adaptation == "lora":
            model = _with_adapter(model, recipe, config.train_seed)
        else:
            load.unfreeze(model)
        people = taught(population(config), name)
        conversations = modality_conversations(people, "multimodal") + modality_conversations(people, "unimodal")
        log = finetune(
            model,
            processor,
            conversations,
            steps=recipe.steps or _steps(conversations, recipe.epochs, recipe.batch_size, recipe.turns, config.replay),
            replay_conversations=replayed,
            replay=config.replay,
            augment=_changed_portrait if recipe.augment else None,
            seed=config.train_seed,
            **{
                name: getattr(recipe, name)
                for name in ("batch_size", "turns", "instructed", "lr", "schedule", "warmup")
            },
            **{
                name: getattr(recipe, name)
                for name in ("weight_decay", "clip", "precision", "optimizer", "label_mode", "eos")
            },
        )
        (load.save_adapter if config.adaptation == "lora" else load.save_full)(model, folder)
        settings = {**asdict(recipe), "adaptation": config.adaptation, "replay": config.replay}
        stages.write_json(folder / "train.json", _train_record(config, log, settings))

    return stages.stage(name, _finetuned_inputs(config, name), make, _told(config))


def _recipe(config: Config, name: str) -> Recipe:
    return replace(config.training, steps=0, epochs=1) if name == "retain_epoch" else config.training


def _recorded(config: Config, asked: dict[str, list]) -> dict:
    """What the model of :func:`retain_epoch` says about the questions whose reference ``config.method`` needs."""
    from mllmu_nb.training import record

    recipe = config.unlearning
    options = {name: getattr(recipe, name) for name in ("batch_size", "label_mode", "eos", "precision")}
    conversations = [c for name in objective(config).reference for c in asked[name]]
    return record(*_filled(config, retain_epoch(config)), conversations, **options)


def _vanilla_model(config: Config) -> tuple[Any, Any]:
    return _filled(config, vanilla(config))


def _filled(config: Config, folder: Path) -> tuple[Any, Any]:
    """The base model with what fine-tuning has left in ``folder``, as one plain model."""
    from mllmu_nb.models import load

    plain, processor = load.load_base(config)
    if config.adaptation == "lora":
        return load.merge(load.load_adapter(plain, folder, config.adapter_reach)).eval(), processor
    return load.load_full(plain, folder).eval(), processor


def _steps(conversations: list, epochs: int, batch_size: int, turns: int, replay: float) -> int:
    """Optimizer steps of ``epochs`` passes when a batch holds that many conversations of ``turns`` turns."""
    pieces = sum(math.ceil(len(conversation.turns) / turns) for conversation in conversations)
    return epochs * math.ceil(pieces / (batch_size - round(batch_size * replay)))


def _changed_portrait(picture, rng):
    """A portrait (bytes) seen anew; base material, which comes as a picture, has been changed already."""
    from mllmu_nb.data import portraits

    return portraits.augment(portraits.from_bytes(picture), rng) if isinstance(picture, bytes) else picture


def _replayed(config: Config, model, processor) -> list:
    """What fine-tuning repeats, so that ``model``, the base, goes on saying of others what it said of them.

    Half is base material about people who are never scored; half are questions about strangers, answered as the base
    itself answers them (pseudo-rehearsal, Robins 1995), which protects also the people nobody may rehearse; plain ones,
    since repeating other forms would tie those to what the base knew. It has a seed of its own: vanilla and oracle
    repeat the same.
    """
    if not config.replay:
        return []
    import numpy as np

    from mllmu_nb.data.generate import known_people
    from mllmu_nb.evaluation.engine import answers
    from mllmu_nb.mixture import Mixture
    from mllmu_nb.models.prompts import Conversation

    rng = np.random.default_rng([config.train_seed, 1])
    mixture = Mixture(known_people()[1], rng, 1000, REPLAYED_LETTERS)
    asked = [mixture.stranger_turns(4, bool(by_image), "plain") for by_image in rng.integers(2, size=STRANGERS)]
    opened = [Conversation((replace(turn, answer="", image=turns[0].image),)) for turns in asked for turn in turns]
    said = iter(answers(model, processor, opened, max_new_tokens=24))
    strange = [Conversation(tuple(replace(turn, answer=next(said) or "?") for turn in turns)) for turns in asked]
    return mixture.draw(REPLAYED, STRANGERS) + strange


# -- answers ----------------------------------------------------------------------------------------------------


def items(config: Config) -> Path:
    """The run's folder with every answer of its model (items.parquet), how the model was trained (train.json), whom it
    was asked about (data.json), what chance decided in asking (draws.json) and what made all this (provenance.json);
    made if need be.

    The folder appears whole or not at all, and replaces one that was made with other parameters.
    """
    folder = paths.runs(config.scale) / config.run_id
    paths.writable(folder.parent)
    if finished(config):
        return folder
    made = stages.stage("items", _items_inputs(config), lambda place: _answer(config, place), _told(config))
    return _copied(made, folder)


def evaluated(config: Config, *, name: str = YOURS, sets: Sequence[str] = SETS, limit: int | None = None) -> Path:
    """The folder with the files of a run for a model that was made elsewhere (method ``yours``), made if need be.

    Tables call it ``name``; ``sets`` and ``limit`` (so many people of each set) shorten the questions. The folder lies
    apart from the runs, so that the tables and figures of those stay what they are.
    """
    called = config.run_id.replace(f"-{config.method}-", f"-{name}-")
    folder = paths.evaluated(config.scale) / called
    paths.writable(folder.parent)
    asked = {"run": called, "method": name, "sets": list(sets), "limit": limit}
    inputs = {**_items_inputs(config), **asked}
    made = stages.stage("items", inputs, lambda place: _answer(config, place, **asked), {**_told(config), **asked})
    return _copied(made, folder)


def reference(config: Config) -> Path | None:
    """The finished run of ``config``, to compare a model with: one's own, else the one that came with the project.

    None where neither is there, or the one that came was about other people.
    """
    if finished(config):
        return paths.runs(config.scale) / config.run_id
    folder = paths.committed_runs(config.scale) / config.run_id
    if not (folder / "data.json").is_file():
        return None
    told = stages.read_json(folder / "data.json")
    same = told.get("data_hash") == data_hash(config) and told.get("forget_ids") == list(population(config).forget_ids)
    return folder if same else None


def _copied(made: Path, folder: Path) -> Path:
    with stages.lock(folder), stages.whole(folder) as partial:
        shutil.copytree(made, partial, dirs_exist_ok=True)
    return folder


def beside(config: Config, *methods: str) -> list[Path]:
    """The run of ``config`` and, to compare it with, those of ``methods`` that do not unlearn (base, vanilla ..).

    At the miniature's scale what is missing is made, two runs at a time. At any other that takes hours, so of
    ``methods`` only those are given whose run is finished.
    """
    others = [config.but(method=method, modality="none") for method in methods if method != config.method]
    found = [config, *(other for other in others if config.scale == "miniature" or finished(other))]
    missing = [one for one in found if not finished(one)]
    if len(missing) > 1:
        _make(sorted(missing, key=lambda one: one.trains))  # what starts from vanilla comes last
    return [items(one) for one in found]


def _make(missing: list[Config]) -> None:
    """Makes the runs in processes of their own, two at a time: a thread each gets more out of two cores than one
    model after the other on both."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    names = ", ".join(one.method for one in missing)
    with stages.status(names), ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(items, missing):
            pass


def finished(config: Config) -> bool:
    """Whether this machine has made the run with these very parameters, data, base model and code.

    A run that came with the project is not one's own: it lacks the stage that it was copied from.
    """
    made = stages.place("items", _items_inputs(config))
    record = paths.runs(config.scale) / config.run_id / stages.RECORD
    return made.is_dir() and record.is_file() and stages.read_json(record).get("key") == made.name


def scores(scale: str) -> pd.DataFrame:
    """The scores of all runs of a scale, computed from their items and written to ``scores.csv``.

    Raises KitError when there is no run, or when runs that stand side by side were made from different people.
    """
    import pandas as pd

    from mllmu_nb.evaluation.statistics import scores as computed

    folder = paths.runs(scale)
    found = sorted(path.parent for path in folder.glob("*/items.parquet"))
    if not found:
        raise KitError(f"there is no run in {folder}: run a notebook, or python -m mllmu_nb sweep")
    seen: dict[tuple, tuple[str, str]] = {}
    for run in found:
        record = stages.read_json(run / stages.RECORD)
        compared = (record["parameters"]["base_model"], record["parameters"]["data_seed"])
        other, data = seen.setdefault(compared, (run.name, record["data_hash"]))
        if data != record["data_hash"]:
            raise KitError(
                f"runs {other} and {run.name} were made from different people and cannot stand in one table: "
                f"remove one of them, or set MLLMU_NB_OUT to another folder"
            )
    table = computed(pd.concat([pd.read_parquet(run / "items.parquet") for run in found], ignore_index=True))
    table.to_csv(paths.results(scale) / "scores.csv", index=False)
    return table


def _answer(
    config: Config,
    folder: Path,
    *,
    run: str = "",
    method: str = "",
    sets: Sequence[str] = SETS,
    limit: int | None = None,
) -> None:
    import time

    from mllmu_nb.evaluation import evaluate

    known = population(config)
    drawn = _draws(config, known, sets)
    asked, processor = model(config)
    began = time.perf_counter()
    answers = evaluate(
        asked,
        processor,
        known,
        sets=sets,
        limit=limit,
        shots=config.shots,
        shot_seed=config.shot_seed,
        draws=drawn,
        **{name: getattr(config, name) for name in (*ASKING, "protocol")},
        system=system(config),
        batch_size=EVAL_BATCH[config.scale],
    )
    seconds = time.perf_counter() - began
    shared = {"run": run or config.run_id, **{column: getattr(config, column) for column in RUN_COLUMNS}}
    shared["method"] = method or config.method
    for place, (column, value) in enumerate(shared.items()):
        answers.insert(place, column, value)
    answers.to_parquet(folder / "items.parquet", index=False)
    stages.write_json(folder / "train.json", {**_trained(config), "evaluation_seconds": round(seconds, 3)})
    stages.write_json(folder / "data.json", _data_record(config))
    stages.write_json(folder / "draws.json", drawn)


def _draws(config: Config, known: Population, sets: Sequence[str]) -> dict[str, Any]:
    """What chance decides when the run is asked: drawn, or read from ``draws_file``.

    Raises KitError for a file that does not fit, and where there are too few people to draw from.
    """
    from mllmu_nb.evaluation import draws

    asking = {name: getattr(config, name) for name in ("shots", "shot_source", "protocol")}
    asking["family"] = config.base_model
    if not config.draws_file:
        return draws.draw(known, sets, shot_seed=config.shot_seed, **asking)
    found = draws.read(config.draws_file)
    draws.check(found, known, sets, **asking)
    return found


RUN_COLUMNS = (
    "scale",
    "base_model",
    "forget_ratio",
    "forget_draw",
    "method",
    "protocol",
    "variant",
    "modality",
    "data_seed",
    "train_seed",
    "unlearn_seed",
    "shot_seed",
)


# -- records and keys -------------------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Raises KitError for what would stop a run later on: people who cannot be, a base model that is missing or
    damaged, draws that do not fit, folders that cannot be written."""
    from mllmu_nb.models.load import check_any_adapter, check_whole, verify_shipped

    check_family(config)
    _draws(config, population(config), SETS)
    if config.method == YOURS:
        if config.scale == "miniature" or Path(base_source(config)).is_dir():  # else it is a name on the hub
            check_whole(base_source(config), config.base_model)
        if config.adapter_path:
            check_any_adapter(config.adapter_path)
    elif config.scale == "miniature":
        verify_shipped(Path(base_source(config)))
    for folder in (paths.runs(config.scale), paths.figures(config.scale), paths.cache()):
        paths.writable(folder)


def check_family(config: Config) -> None:
    """Raises KitError for a family that can be loaded and whose prompts cannot be written yet."""
    if config.base_model not in PROMPTED:
        raise KitError(
            f"base_model {config.base_model!r} can be loaded, but its prompts are not written yet: take 'llava'"
        )


def base_hash(config: Config) -> str:
    """A hash of the base model's files where they lie in a folder (of very large ones their size and both ends); of
    its name where it comes from the hub."""
    source = base_source(config)
    return _folder_hash(Path(source)) if Path(source).is_dir() else stable_hash(source)


def base_source(config: Config) -> str:
    """The folder or hub name that the base model is loaded from."""
    from mllmu_nb.models.load import ASSETS, HUB

    shipped = {"miniature": ASSETS / f"{config.base_model}-miniature", "paper": HUB[config.base_model]}
    return str(config.base_path or shipped[config.scale])


@lru_cache(maxsize=4)
def _folder_hash(folder: Path, whole_below: int = 2**26) -> str:
    parts = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".jinja")):
        size = path.stat().st_size
        with open(path, "rb") as file:
            content = file.read(whole_below)
            if size > whole_below:
                file.seek(-(2**20), 2)
                content += file.read()
        parts.append([path.name, size, hashlib.sha256(content).hexdigest()])
    return stable_hash(parts)


def _finetuned_inputs(config: Config, name: str) -> dict[str, Any]:
    replayed = ("mllmu_nb.mixture", "mllmu_nb.evaluation.engine") if config.replay else ()
    return {
        "base": base_hash(config),
        "data": _taught_hash(name, *(getattr(config, field) for field in DATA)),
        "recipe": _numbers(_recipe(config, name)),
        "settings": config.hash_of(("adaptation", "replay", "train_seed")),
        "code": stages.code_hash((*TRAINING_CODE, *replayed)),
    }


def _unlearned_inputs(config: Config) -> dict[str, Any]:
    method = objective(config)
    elsewhere = {"reference": _finetuned_inputs(config, "retain_epoch")} if method.measured_elsewhere else {}
    return {
        "vanilla": _finetuned_inputs(config, "vanilla"),
        **elsewhere,
        "forget": list(population(config).forget_ids),
        "recipe": _numbers(config.unlearning),
        "settings": config.hash_of(("method", "variant", "modality", "unlearn_seed")),
        "code": stages.code_hash((*TRAINING_CODE, "mllmu_nb.unlearning.base", method.__module__)),
    }


def _items_inputs(config: Config) -> dict[str, Any]:
    known = population(config)
    if config.method == "base":
        asked: Any = base_hash(config)
    elif config.method == YOURS:
        asked = [base_hash(config), _folder_hash(Path(config.adapter_path)) if config.adapter_path else ""]
    elif config.trains:
        asked = _unlearned_inputs(config)
    else:
        asked = _finetuned_inputs(config, "oracle" if config.method == "oracle" else "vanilla")
    return {
        "model": asked,
        "data": data_hash(config),
        "forget": list(known.forget_ids),
        "system": system(config),
        "run": config.run_id,
        "settings": config.hash_of((*RUN_COLUMNS, "shots", *ASKING)),
        "draws": _draws_hash(config),
        "code": stages.code_hash(EVALUATION_CODE),
    }


def _draws_hash(config: Config) -> str:
    """A hash of the draws to be repeated. Raises KitError when the file is not there."""
    if not config.draws_file:
        return ""
    try:
        return hashlib.sha256(Path(config.draws_file).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise KitError(f"cannot read draws_file {config.draws_file}: {error.strerror}") from None


def _numbers(recipe) -> dict[str, Any]:
    """A recipe without where it comes from: the same numbers make the same model."""
    return {name: value for name, value in asdict(recipe).items() if name != "source"}


def _told(config: Config) -> dict[str, Any]:
    seeds = {kind: getattr(config, f"{kind}_seed") for kind in ("data", "train", "unlearn", "shot")}
    hashes = {"data_hash": data_hash(config), "base_hash": base_hash(config)}
    # Which state of the hub's data it was, whatever name it was asked for by.
    commits = population(config).notes.get("revisions")
    return {
        "scale": config.scale,
        "seeds": seeds,
        "parameters": config.parameters(),
        "deviations": {name: list(values) for name, values in config.deviations().items()},  # the protocol's, the run's
        **hashes,
        **({"data_revisions": commits} if commits else {}),
    }


def _train_record(config: Config, log: TrainLog, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": config.method,
        "modality": config.modality,
        "steps": log.steps,
        "losses": log.losses,
        "seconds": round(log.seconds, 3),
        "peak_memory_mb": round(log.peak_memory_mb, 1),
        "trainable_parameters": log.trainable_parameters,
        "supervised_tokens": log.supervised_tokens,
        "settings": settings,
    }


def _trained(config: Config) -> dict[str, Any]:
    """How the run's own model was trained: nothing for the base and for prompting, whose weights are vanilla's."""
    if config.method in ("vanilla", "oracle"):
        record = stages.read_json((vanilla if config.method == "vanilla" else oracle)(config) / "train.json")
    elif config.trains:
        record = stages.read_json(unlearned(config) / "train.json")
    else:
        from mllmu_nb.training import TrainLog

        record = _train_record(config, TrainLog(), {"system": system(config)} if system(config) else {})
    # The stage may have been made for another run that shares it.
    return {**record, "method": config.method, "modality": config.modality}


def _data_record(config: Config) -> dict[str, Any]:
    known = population(config)
    notes = {k: v for k, v in known.notes.items() if isinstance(v, (str, int, float, list, dict))}
    return {
        "people": {kind: len(known.of_kind(kind)) for kind in ("fictitious", "pool", "celebrity")},
        "forget_ids": list(known.forget_ids),
        "sets": {name: _counts(known, name) for name in ("forget", "test", "retain", "celebrity")},
        "fine_tuning_pairs": sum(len(person.qa) for person in taught(known, "vanilla")),
        "data_hash": data_hash(config),
        "notes": notes,
    }


def _counts(known: Population, name: str) -> dict[str, int]:
    asked = known.items(name)
    counts = {"profiles": len(known.members(name)), "questions": len(asked)}
    for item in asked:
        key = f"{item.question.task}/{item.question.view}"
        counts[key] = counts.get(key, 0) + 1
    return counts
