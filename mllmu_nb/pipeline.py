"""Makes a run, and each missing stage on the way once (``docs/architecture.md``): people → vanilla, oracle → unlearned
→ after → answers. The inputs of a run and their hashes are in :mod:`mllmu_nb.inputs`."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import lru_cache, partial
from math import isfinite
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb import after as after_steps
from mllmu_nb import inputs, paths, pinning, progress
from mllmu_nb.config import YOURS, Config, stable_hash
from mllmu_nb.data import generate
from mllmu_nb.data.conversations import MODALITIES, Conversation, training_conversations
from mllmu_nb.data.exams import Exams
from mllmu_nb.data.schema import LETTERS, SETS
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import draws as drawing
from mllmu_nb.processes import cores, end_with_parent, launched
from mllmu_nb.scoring import anchor
from mllmu_nb.stages import OF_A_RUN, RECORD, Stage, is_whole, read_json, status, write_frame, write_json

EVAL_BATCH = {"miniature": 256, "paper": 8}  # questions asked at once, if eval_batch is 0
PATH_BATCH = {"miniature": 256, "paper": 4}  # along a path, where the model may be in fp32
# Parameters that decide how a run is asked. (Of draws_file, the content counts.)
ASKING = ("scale", "protocol", "shots", "shot_source", "shot_seed", "scoring", "cyclic", "long_prompts")
ANCHOR_RATIO = 5  # the forget ratio that the published anchor is for
SHARED_RATIO = 10  # the forget ratio at which a model that is the same at all ratios is asked
# Kinds of base material that fine-tuning repeats, with their weights.
REPLAY_KINDS = {"people": 4.0, "shots": 2.0, "seeing": 1.0, "private": 1.0}
REPLAY_LETTERS = 0.35  # share of multiple choice among the repeated questions
REPLAY_COUNT = 4000  # conversations, each repeated about twice
PLAIN: dict[str, Any] = {"modality": "none", "variant": None, "after": ""}  # of a model that is not unlearned


# -- models -----------------------------------------------------------------------------------------------------


def finetuned(config: Config, name: str = "vanilla") -> Stage:
    """The stage of a fine-tuned model: ``vanilla``, trained on everybody; ``oracle``, by the same recipe on those who
    are not to be forgotten; ``retain_epoch``, as the oracle but for one epoch, the reference of upstream's NPO."""
    people = inputs.taught(inputs.population(config), name)
    recipe = replace(config.training, steps=0, epochs=1) if name == "retain_epoch" else config.training

    def make(folder: Path) -> None:
        from mllmu_nb.models import adapters, load
        from mllmu_nb.models.checkpoint import Checkpoint
        from mllmu_nb.training import finetune

        lora = config.adaptation == "lora"
        model, processor = load.load_base(*inputs.base_of(config), config.quantise_base or recipe.precision)
        replayed = replayed_conversations(config.train_seed) if config.replay else []
        model = adapters.attach(model, recipe, config.train_seed) if lora else load.unfreeze(model)
        modalities = MODALITIES if config.train_modality == "both" else [config.train_modality]
        conversations = [c for modality in modalities for c in training_conversations(people, modality)]
        exams = Exams(people, config.exams) if config.exams else None
        more = {"replayed": replayed, "replay": config.replay, "exams": exams}
        log = finetune(
            model, processor, conversations, recipe, config.train_seed, material=more, checkpoint=Checkpoint(folder)
        )
        (adapters.save if lora else load.save_full)(model, folder)
        settings = {**recipe.numbers(), **{name: getattr(config, name) for name in ("adaptation", "replay", "exams")}}
        write_json(folder / "train.json", log.record(settings))

    depends_on = {
        "base": inputs.base_hash(config),
        "data": inputs.hash_of(people, taught=not config.exams),  # exams skip the questions of evaluation
        "recipe": recipe.numbers(),
        "settings": config.hash_of(("adaptation", "replay", "exams", "train_modality", "train_seed")),
        "bits": pinning.settings(),
        "quantise_base": config.quantise_base,
    }
    return Stage(name, depends_on, make, (inputs.family(config),), partial(_record, config))


@lru_cache(maxsize=1)  # a notebook trains vanilla and the oracle one after the other
def replayed_conversations(seed: int) -> list[Conversation]:
    """The conversations that fine-tuning repeats to keep the base's knowledge: material of the base's own training
    about the people it knows, including celebrities. Vanilla and the oracle repeat the same ones."""
    from mllmu_nb.mixture import Mixture

    celebrities, unscored = generate.known_people()
    known = [*celebrities, *unscored[::2]]
    return Mixture(known, np.random.default_rng([seed, 1]), 1000, REPLAY_LETTERS).draw(REPLAY_KINDS, REPLAY_COUNT)


def unlearned(config: Config) -> Stage:
    """The stage of the adapter that ``config.method`` trains on the vanilla model, with questions of
    ``config.modality`` alone. Raises KitError for a method that trains nothing, and for a length that the
    method does not accept."""
    if not config.trains:
        raise KitError(f"method {config.method!r} trains nothing")
    method, recipe = config.objective, config.unlearning
    method.check_length(recipe.steps, recipe.epochs)  # before vanilla is trained
    known = inputs.population(config)
    other = finetuned(config, method.other_reference) if method.other_reference else None
    start, weights_precision = path_start(config), config.quantise_base or recipe.precision
    hyper_parameters = {name: getattr(method, name) for name in method.hyper_parameters()}

    def make(folder: Path) -> None:
        from mllmu_nb.batches import unlearning_steps
        from mllmu_nb.evaluation import path
        from mllmu_nb.models import adapters
        from mllmu_nb.models.checkpoint import Checkpoint
        from mllmu_nb.training import reference_log_probs, unlearn

        check_anchor(config)
        sets = {name: training_conversations(known.members(name), config.modality) for name in ("forget", "retain")}
        check_commits(config, start.get())
        first = pd.read_parquet(start.folder / "path.parquet").drop(columns="step")
        stored = None
        if other:  # asked and removed before vanilla is loaded: two 7B models would not fit
            streams = dict.fromkeys(method.streams[name] for name in method.needs.reference)
            asked = [stream.changed(conversation) for stream in streams for conversation in sets[stream.set]]
            stored = reference_log_probs(*filled(config, other, weights_precision), asked, recipe)
        model, processor = vanilla(config, weights_precision)
        # with the seed of vanilla's own adapter, this one would move in the very directions of vanilla's matrix A
        seed = (config.unlearn_seed + 2**31 * (config.adaptation == "lora")) % 2**32  # torch reads 32 bits
        model = adapters.attach(model, recipe, seed, method.trains)
        length = unlearning_steps(method, recipe, sets)
        checkpoint = Checkpoint(folder, {"points": {0: first.to_dict("list")}})
        # a rate that falls to 0 trains nothing beyond its end
        beyond = path.BEYOND * length if recipe.schedule == "constant" else length
        due = path.steps_of(beyond)
        questions = path.questions(model.get_base_model(), processor, known, config.system, config.scale)

        def after_step(step: int, model: Any) -> None:
            if step in due:
                plain = model.get_base_model()  # with the adapter in its layers
                rows = path.point(plain, processor, questions, asked_at_once(config, PATH_BATCH))
                checkpoint.also["points"][step] = rows.to_dict("list")

        loop = {"after_step": after_step, "beyond": beyond, "checkpoint": checkpoint}
        log = unlearn(model, processor, method, sets, recipe, config.unlearn_seed, stored, **loop)
        adapters.save(model, folder)
        points = {step: pd.DataFrame(rows) for step, rows in checkpoint.also["points"].items()}
        path.write(points, folder / "path.parquet")
        write_json(folder / "train.json", log.record({**recipe.numbers(), **hyper_parameters}))

    depends_on = {
        "vanilla": vanilla_key(config),
        "reference": other.key if other else "",
        "data": inputs.data_hash(config),  # the path's answers are about everybody
        "forget": list(known.forget_ids),
        "recipe": recipe.numbers(),
        "hyper_parameters": hyper_parameters,
        "settings": config.hash_of(("method", "variant", "modality", "unlearn_seed", "eval_batch")),
        "quantise_base": config.quantise_base,
    }
    return Stage("unlearned", depends_on, make, (inputs.family(config), method), partial(_record, config))


def path_start(config: Config) -> Stage:
    """The stage that asks the vanilla model the questions of a path: every unlearning of these people starts there."""
    known, precision = inputs.population(config), config.quantise_base or config.unlearning.precision

    def make(folder: Path) -> None:
        from mllmu_nb.evaluation import path

        model, processor = vanilla(config, precision)
        questions = path.questions(model, processor, known, config.system, config.scale)
        point = path.point(model, processor, questions, asked_at_once(config, PATH_BATCH))
        path.write({0: point}, folder / "path.parquet")

    depends_on = {
        "vanilla": vanilla_key(config),
        "data": inputs.data_hash(config),
        "forget": list(known.forget_ids),
        "asking": [config.system, config.eval_batch, config.scale, precision],
    }
    return Stage("path_start", depends_on, make, (inputs.family(config),), partial(inputs.record_of, config))


def vanilla(config: Config, precision: str | None = None) -> tuple[Any, Any]:
    """The vanilla model for unlearning, fine-tuned here or read from ``vanilla_path``, and its processor."""
    from mllmu_nb.models import load

    if not config.vanilla_path:
        return filled(config, finetuned(config), precision)
    where = config.vanilla_path, config.base_model, config.scale, config.vanilla_revision
    return load.load_model(*where, precision, (inputs.base_source(config), config.base_revision))


def vanilla_key(config: Config) -> str:
    """The key of the vanilla model's stage, or a hash of the model in ``vanilla_path``, of the base, whose processor it
    takes, and of what else decides the numbers of a training that starts from it."""
    if config.vanilla_path:
        weights = inputs.hash_of_model(config.vanilla_path, config.vanilla_revision)
        return stable_hash([weights, inputs.base_hash(config), config.adaptation, pinning.settings()])
    return finetuned(config).key


def anchored(config: Config) -> Stage | None:
    """The stage that asks the released vanilla model, by upstream's protocol, the questions of independent reports.
    ``anchor.json`` has its answers and the true ones. None for any other model, or if no report is known."""
    own, given = inputs.family(config), config.vanilla_path and config.data_source and config.method != YOURS
    released = given and PurePath(config.vanilla_path).name == PurePath(own.released).name
    if not (released and isfinite(own.anchor)):
        return None
    asked = {"protocol": "upstream", "eval_precision": None}  # None: the protocol's
    plain = config.but(method="vanilla", forget_ratio=ANCHOR_RATIO, **asked, **PLAIN)
    known = inputs.population(plain)

    def make(folder: Path) -> None:
        from mllmu_nb.evaluation.ask import answer
        from mllmu_nb.evaluation.tasks import Asking

        items = [i for i in known.items("forget") if (i.question.task, i.question.view) == ("generation", "image_text")]
        inquiry = Asking(known, {}, 0, plain.protocol).free_answers(items)
        model, processor = vanilla(plain, plain.eval_precision)
        processor = own.asking(processor, plain.protocol)
        rows = answer(model, processor, inquiry, asked_at_once(plain))
        true = [item.question.answer for item in items]
        write_json(folder / "anchor.json", {"true": true, "answers": [row["answer"] for row in rows]})

    depends_on = {"vanilla": vanilla_key(plain), "data": inputs.data_hash(plain), "forget": list(known.forget_ids)}
    depends_on["settings"] = plain.hash_of(("protocol", "eval_precision", "eval_batch"))
    return Stage("anchor", depends_on, make, (own,), partial(inputs.record_of, plain))


def check_anchor(config: Config) -> None:
    """Raise KitError, before hours of work, if the released vanilla model does not answer as in the reports."""
    if stage := anchored(config):
        check_commits(config, stage.get())
        anchor.check(read_json(stage.folder / "anchor.json"), inputs.family(config).anchor, config.vanilla_path)


def filled(config: Config, stage: Stage, precision: str | None = None) -> tuple[Any, Any]:
    """The base model with the weights or the merged adapter of ``stage``, made if needed, and its processor."""
    from mllmu_nb.models import adapters, load

    folder = stage.get()
    model, processor = load.load_base(*inputs.base_of(config), precision)
    check_commits(config, folder)
    if config.adaptation == "lora":
        return adapters.merge(adapters.load(model, folder)), processor
    return load.load_full(model, folder).eval(), processor


def check_commits(config: Config, folder: Path) -> None:
    """Raise KitError if a model on the hub is known to have another commit now than when the stage in ``folder`` was
    made, since a name without a revision means the newest."""
    made, now = read_json(folder / RECORD), inputs.record_of(config)
    for name in ("base", "vanilla"):
        old, new = (record.get(f"{name}_commit", "") for record in (made, now))
        if old and new and old != new:  # "": a folder, or not in the hub's cache at that time
            raise KitError(
                f"{folder.name} was made from commit {old} of the {name} model, whose newest is {new}: set "
                f"{name}_revision to the commit that you want"
            )


def model(config: Config) -> tuple[Any, Any]:
    """The model that ``config.method`` names, made if needed and ready to be asked, and its processor. ``prompting`` is
    the vanilla model. ``yours`` is the model in ``base_path``, with the adapter of ``adapter_path`` merged into it."""
    from mllmu_nb.models import adapters, load

    precision = config.eval_precision
    if config.method == "base":
        loaded, processor = load.load_base(*inputs.base_of(config), precision)
    elif config.method == YOURS:
        inputs.check(config)
        loaded, processor = load.load_model(*inputs.base_of(config), precision)
        if config.adapter_path:
            loaded = adapters.merge(adapters.load(loaded, Path(config.adapter_path)))
    elif config.method == "oracle":
        loaded, processor = filled(config, finetuned(config, "oracle"), precision)
    else:
        adapter = unlearned(config).get() if config.trains else None  # first: two 7B models would not fit
        loaded, processor = vanilla(config, precision)
        if adapter:
            check_commits(config, adapter)
            loaded = adapters.merge(adapters.load(loaded, adapter))
    if config.after:
        loaded = after_steps.apply(config.after, loaded, config).eval()
    return loaded, processor


def trained(config: Config) -> Stage | None:
    """The stage that trains the run's own model; None if its weights are not trained here, such as the base's."""
    if config.trains:
        return unlearned(config)
    own = config.method == "oracle" or (config.method == "vanilla" and not config.vanilla_path)
    return finetuned(config, config.method) if own else None


def _model_key(config: Config) -> Any:
    """The key of a run's model before the step after unlearning: of its stage, else of its files."""
    if stage := trained(config):
        return stage.key
    if config.method == YOURS:
        return [inputs.base_hash(config), inputs.hash_of_model(config.adapter_path) if config.adapter_path else ""]
    return inputs.base_hash(config) if config.method == "base" else vanilla_key(config)


# -- answers ----------------------------------------------------------------------------------------------------


def asked_at_once(config: Config, usual: Mapping[str, int] = EVAL_BATCH) -> int:
    """The number of questions in a batch of the evaluation."""
    return config.eval_batch or usual[config.scale]


def shared_answers(config: Config) -> Stage | None:
    """The stage that asks a model which is the same at every forget ratio (vanilla, base, prompting) the questions of
    one ratio; at another, only further ones are asked. Sets with other worked examples at each ratio are asked only
    what no example precedes. None for any other model, and for people without a set of that ratio or with too few in
    one to draw from."""
    if config.trains or config.after or config.method in ("oracle", YOURS):
        return None
    try:
        shared = config.but(forget_ratio=SHARED_RATIO)
        drawn = inputs.draws_of(shared)
    except KitError:
        return None
    free_only = drawing.of_one_ratio(drawn)

    def make(folder: Path) -> None:
        from mllmu_nb.evaluation import utility

        (asked, processor), seen, began = model(shared), dict[str, dict](), time.perf_counter()
        _ask(shared, asked, processor, folder, made.key, draws=drawn, seen=seen, free_only=free_only)
        write_json(folder / "asked.json", {"seconds": round(time.perf_counter() - began, 3)})
        pd.DataFrame.from_dict(seen, orient="index").to_parquet(folder / "answers.parquet")
        if shared.scale == "miniature":
            how = {"system": shared.system, "protocol": shared.protocol}
            write_frame(
                folder / "utility.parquet", utility.ask(asked, processor, **how, batch_size=asked_at_once(shared))
            )

    depends_on = {
        "model": _model_key(shared),
        "data": inputs.data_hash(shared),
        "forget": list(inputs.population(shared).forget_ids),
        "system": shared.system,
        "identity": shared.identity(),
        "draws": drawn,
    }
    made = Stage("asked", depends_on, make, (inputs.family(config),), partial(inputs.record_of, shared))
    return made


def answered(
    config: Config,
    *,
    name: str = "",
    sets: Sequence[str] = SETS,
    limit: int | None = None,
    compared_with: Config | None = None,
) -> Stage:
    """The stage of a run, with the files that ``docs/architecture.md`` describes. ``sets`` and ``limit``: ask only
    about these sets, and about the first ``limit`` people of each. For a model that was made elsewhere: ``name`` is its
    name in tables, and ``compared_with`` the configuration of vanilla and the oracle, whose base scores the fluency of
    its answers, too (without it, the base that comes with the kit)."""
    known, fresh, size = inputs.population(config), inputs.fresh_people(config), asked_at_once(config)
    drawn, every = inputs.draws_of(config, sets), set(sets) == set(SETS)
    complete = every and limit is None
    # The base scores the fluency of answers; the base of a large model that was made elsewhere is not known.
    fluency_base = inputs.base_source(config)
    if config.method == YOURS:
        judge = compared_with or config.but(base_path="")
        fluency_base = inputs.base_source(judge) if config.scale == "miniature" else ""

    def make(folder: Path) -> None:
        from mllmu_nb.evaluation import path, teacher_forced, utility
        from mllmu_nb.evaluation.tasks import Asking
        from mllmu_nb.models import load
        from mllmu_nb.training import TrainLog

        check_anchor(config)
        stage, seen, before = trained(config), dict[str, dict](), 0.0
        if stage and not stage.finished and config.long_prompts == "refuse":
            check_prompts(config, drawn, sets=sets, limit=limit)
        if shared := shared_answers(config) if complete else None:  # before the model is loaded: one of 7B at a time
            check_commits(config, shared.get())
            seen = pd.read_parquet(shared.folder / "answers.parquet").to_dict("index")
            before = read_json(shared.folder / "asked.json")["seconds"]
        asked, processor = model(config)
        began = time.perf_counter()
        answers = _ask(config, asked, processor, folder, made.key, sets=sets, limit=limit, draws=drawn, seen=seen)
        seconds = round(before + time.perf_counter() - began, 3)
        if "forget" in sets:
            people = {"forget": known.members("forget")[:limit], "fresh": fresh[:limit]}
            always: dict[str, Any] = {"system": config.system, "batch_size": size}
            taught = teacher_forced.sentences(asked, processor, people, **always)
            teacher_forced.write(taught, folder / "sentences.parquet")
        if config.trains and not config.after:
            shutil.copyfile(stage.get() / "path.parquet", folder / "path.parquet")
        elif every:
            end = path.questions(asked, processor, known, config.system, config.scale)
            path.write({0: path.point(asked, processor, end, size, seen)}, folder / "path.parquet")
        if shared and config.scale == "miniature":
            shutil.copyfile(shared.folder / "utility.parquet", folder / "utility.parquet")
        elif complete and config.scale == "miniature":
            write_frame(folder / "utility.parquet", utility.ask(asked, processor, protocol=config.protocol, **always))
        del asked  # two 7B models would not fit
        fluency = np.full(len(answers), np.nan)
        if fluency_base:
            where = fluency_base, config.base_model, config.scale, config.base_revision
            base = load.load_base(*where, config.eval_precision)
            asking = Asking(known, drawn, 0, config.protocol)
            fluency = teacher_forced.fluency(*base, answers, asking, sets=sets, limit=limit, batch_size=size)
        write_answers(answers.assign(fluency=fluency), folder / "answers.parquet")
        untrained = TrainLog().record({"system": config.system or None})
        log = {"method": config.method, "modality": config.modality}
        log |= read_json(stage.get() / "train.json") if stage else untrained
        write_json(folder / "train.json", {**log, "evaluation_seconds": seconds, **answers.attrs})
        write_json(folder / "draws.json", drawn)

    depends_on = {
        "model": _model_key(config),
        "judge": fluency_base and inputs.hash_of_model(fluency_base),
        "data": inputs.data_hash(config),
        "fresh": inputs.hash_of(fresh, taught=True),
        "forget": list(known.forget_ids),
        "system": config.system,
        "identity": config.identity(),
        "asked": [list(sets), limit],
        "draws": drawn,
    }

    def record() -> dict[str, Any]:
        return {"run": config.run_id, "name": name, "limit": limit, **_record(config), **inputs.counts(config, sets)}

    objective = [config.objective] if config.trains else []
    uses = (inputs.family(config), *objective, *([after_steps.STEPS.get(config.after)] if config.after else []))
    made = Stage("answers", depends_on, make, uses, record, inputs.run_folder(config, name))
    return made


def check_prompts(config: Config, drawn: Mapping[str, Any], **asked: Any) -> None:
    """Raise KitError, before hours of training, if a prompt of the evaluation exceeds the model's context."""
    from mllmu_nb.evaluation.ask import check_room
    from mllmu_nb.evaluation.tasks import Asking
    from mllmu_nb.models import load

    outline, processor = load.load_outline(*inputs.base_of(config))
    processor, known = inputs.family(config).asking(processor, config.protocol), inputs.population(config)
    asking = Asking(known, drawn, config.shots, config.protocol, config.system, config.cyclic, config.scale)
    check_room(outline, processor, asking, scoring=config.scoring, **asked)


def _ask(config: Config, asked: Any, processor: Any, folder: Path, key: str, **which: Any) -> pd.DataFrame:
    """The answers of a model. While it is asked, they are kept beside ``folder``, under the ``key`` of the stage."""
    from mllmu_nb.evaluation.ask import ask

    how = {name: getattr(config, name) for name in (*ASKING, "system")}
    # outside the unfinished folder, which a rerun empties; by key, so that answers of other code are not used
    kept = folder.with_name(folder.name.removesuffix("~new") + ".asked") / key
    how |= {"batch_size": asked_at_once(config), "kept": kept}
    answers = ask(asked, processor, inputs.population(config), **how, **which)
    shutil.rmtree(kept.parent, ignore_errors=True)
    return answers


def run(config: Config, *, name: str = "", **asked: Any) -> Path:
    """The folder of a run, made if needed. It is complete or absent, and replaces a folder with another key. ``name``
    and ``asked``: as in :func:`answered`."""
    results = paths.writable(inputs.run_folder(config, name).parent).parent
    inputs.write_people(config, paths.people(results))
    inputs.fetch(config)
    return answered(config, name=name, **asked).get()


def finished(config: Config) -> bool:
    """Whether exactly this run exists and is complete: same parameters, data, base model and code."""
    return answered(config).finished


def reference(config: Config, own: bool = True) -> Path | None:
    """The finished run of ``config``, for comparison: the user's ``own``, else the one that comes with the project if
    its people and base model are the same, else None."""
    if own and finished(config):
        return inputs.run_folder(config)
    folder = paths.runs(paths.reference()) / config.run_id
    if not is_whole(folder, named=OF_A_RUN):
        return None
    record, ids = read_json(folder / RECORD), list(inputs.population(config).forget_ids)
    same = record["data_hash"] == inputs.data_hash(config) and record["forget_ids"] == ids
    return folder if same and record["base_hash"] == inputs.base_hash(config) else None


def beside(config: Config, *methods: str) -> list[Path]:
    """The folders of the run of ``config`` and, for comparison, of the runs of ``methods``, which unlearn nothing (base
    ..). At the miniature's scale all are made, in parallel. At other scales, where they take hours, only those of
    ``methods`` that are finished are included."""
    others = [config.but(method=method, **PLAIN) for method in methods if method != config.method]
    if config.scale != "miniature":
        others = [one for one in others if finished(one)]
    missing = [one for one in (config, *others) if not finished(one)]
    together = launched("WORLD_SIZE", 1) > 1  # by `accelerate launch`: all its processes train one model
    if len(missing) > 1 and not together:  # one process per run: faster on two cores than one after the other on both
        spawn = multiprocessing.get_context("spawn")
        bars = spawn.Queue() if progress.live() else None
        given = bars, max(1, cores() // len(missing))
        pool = ProcessPoolExecutor(len(missing), mp_context=spawn, initializer=_begin, initargs=given)
        with status(", ".join(one.method for one in missing)), pool:
            running = [pool.submit(run, one) for one in missing]
            if bars:
                progress.follow(bars, running)
            try:
                for one in running:
                    one.result()
            except BrokenProcessPool:
                reason = "the process of a run was killed, most often for want of memory"
                raise KitError(f"{reason}: `mllmu-nb sweep` with --jobs 1 makes one run after the other") from None
    return [run(one) for one in (config, *others)]


def _begin(bars: Any, threads: int) -> None:
    """Prepare a process of :func:`beside`, which may use so many cores."""
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    progress.send_to(bars)


def write_answers(answers: pd.DataFrame, path: Path) -> None:
    """Write answers. Likelihoods are float64 numbers in single precision, so half of their bytes are 0; splitting them
    by bytes makes the file smaller."""
    words = ["set", "task", "view", "scoring", "profile"]
    numbers = dict.fromkeys([*(f"option_{letter}" for letter in LETTERS), "fluency"], "BYTE_STREAM_SPLIT")
    small = answers.astype({"order": "int8", "shots": "int8", "tokens": "int16"})
    write_frame(path, small, use_dictionary=words, column_encoding=numbers)


def _record(config: Config) -> dict[str, Any]:
    """The record of a model that was made: its inputs, and how the released vanilla model answered."""
    stage = anchored(config)
    if not (stage and stage.finished):
        return inputs.record_of(config)
    scores = anchor.score(read_json(stage.folder / "anchor.json"))
    return {**inputs.record_of(config), "anchor": {**scores, "published": inputs.family(config).anchor}}
