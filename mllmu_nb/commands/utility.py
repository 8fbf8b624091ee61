"""``mllmu-nb utility RUN --output FOLDER``: MMMU and LLaVA-Bench for a run of the paper's scale, through ``lmms-eval``
(``docs/scoring.md``, "Utility"). Its output, written here or elsewhere, becomes ``utility.parquet``."""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from importlib import util
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from mllmu_nb.errors import KitError, few
from mllmu_nb.models import families
from mllmu_nb.models.files import check_model
from mllmu_nb.stages import OF_A_RUN, RECORD, add_file, is_whole, read_json

EXAMPLES = (
    "utility results/paper/runs/RUN --model ga_model --output lmms --yes",
    "utility results/paper/runs/RUN --output lmms",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="output folder of lmms-eval")
    about = "folder of the exported model; without it, existing output is read"
    parser.add_argument("--model", type=Path, metavar="FOLDER", help=about)
    parser.add_argument("--yes", action="store_true", help="run the command; without it, only print it")
    parser.add_argument("--device", default="cuda", help="where the model runs (default: cuda)")
    about = "lmms-eval's tasks (default: both)"
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help=about)


def main(options: argparse.Namespace) -> int:
    """Ask, read, and print one line per task. Raises KitError if there is no run, no lmms-eval or no output."""
    if not is_whole(options.run, named=OF_A_RUN):
        raise KitError(f"there is no finished run in {options.run}, or a file of it was changed")
    if read_json(options.run / "train.json").get("settings", {}).get("system"):
        raise KitError("this run asks with a system prompt, and lmms-eval asks without one: take the run of vanilla")
    if options.model:
        family = read_json(options.run / RECORD)["parameters"]["base_model"]
        asked = command(options.model, family, options.output, options.tasks, options.device)
        print(shlex.join(asked), flush=True)
        if not options.yes:  # it may be run elsewhere
            return 0
        check_model(options.model, family)
        if not util.find_spec("lmms_eval"):
            raise KitError("lmms-eval is not installed: pip install -e '.[utility]'")
        if code := subprocess.run(asked, check=False).returncode:
            raise KitError(f"lmms-eval has failed (exit status {code}): its last lines above say why")
    items, failed = read(options.output, options.tasks)
    file = options.run / "utility.parquet"
    kept = pd.read_parquet(file) if file.is_file() else items.iloc[:0]
    sets = [TASKS[task][0] for task in options.tasks]
    together = pd.concat([kept[~kept["set"].isin(sets)], items], ignore_index=True)  # other tasks, read before, stay
    add_file(options.run, file.name, partial(together.to_parquet, index=False), utility="lmms-eval")
    for name, scores in items.groupby("set", sort=False)["score"]:
        print(f"{name}: {len(scores)} questions, {100 * scores.mean():.1f} %")
    if empty := int((items["answer"].str.strip() == "").sum()):
        print(f"{empty} answers are empty: nothing was written, or lmms-eval could not generate and said why")
    if failed:
        print(f"{failed} answers have no valid grade of the judge and no score")
    return 1 if failed else 0


def command(model: Path, family: str, output: Path, tasks: list[str], device: str) -> list[str]:
    """The command that runs lmms-eval and logs all samples. Raises KitError for a family that it does not know."""
    if not (name := families.get(family).lmms_eval):
        raise KitError(f"the name of the family {family} in lmms-eval is not known: set lmms_eval in the family's file")
    # transformers 5 refuses lmms-eval's own default of device_map
    where = f"pretrained={model},device_map=auto"
    asked = [sys.executable, "-m", "lmms_eval", "--model", name, "--model_args", where]
    asked += ["--tasks", ",".join(tasks), "--batch_size", "1", "--device", device]
    return [*asked, "--output_path", str(output), "--log_samples"]


def read(output: Path, tasks: list[str]) -> tuple[pd.DataFrame, int]:
    """The samples that lmms-eval logged, from the newest file of each task, as rows of ``utility.parquet`` with a
    ``score`` from 0 to 1; and the number without a judge's grade. Raises KitError if there is no file, if files are of
    several models or of another form, and for repeated or only empty answers."""
    rows: list[dict[str, Any]] = []
    for task in tasks:
        files = sorted(output.rglob(f"*_samples_{task}.jsonl"), key=lambda file: file.name)
        if not files:
            raise KitError(f"{output} holds no samples of {task}: lmms-eval writes them with --log_samples")
        if len(folders := sorted({str(file.parent) for file in files})) > 1:  # lmms-eval makes a folder for each model
            raise KitError(f"samples of {task} lie in {few(folders)}: name by --output the folder of the run's model")
        try:
            lines = files[-1].read_text(encoding="utf-8").split("\n")  # an answer may hold other separators
            rows += [_row(task, json.loads(line)) for line in lines if line.strip()]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise KitError(f"{files[-1]} is not in the form of lmms-eval 0.7 ({error!r:.80})") from None
    if not rows:
        raise KitError(f"the samples in {output} are empty: run lmms-eval again")
    frame = pd.DataFrame(rows)
    if twice := frame.loc[frame["question_id"].duplicated(), "question_id"].tolist():
        raise KitError(f"{output} has several answers to {few(twice)}: give each run of lmms-eval a folder of its own")
    if (frame["answer"].str.strip() == "").all():
        raise KitError(f"every answer in {output} is empty: lmms-eval could not generate, and its output said why")
    return frame.dropna(subset=["score"]).reset_index(drop=True), int(frame["score"].isna().sum())


def _row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    set_name, metric, score = TASKS[task]
    entry, said = sample[metric], sample["filtered_resps"]
    name = f"{set_name}/{entry.get('id', sample['doc_id'])}"
    fixed = {"task": "classification", "view": "image_text", "scoring": "utility", "order": 0, "shots": 0, "tokens": 0}
    about = {"set": set_name, "profile": name, "question_id": name, "question": str(sample["input"])}
    answers = {"answer": said if isinstance(said, str) else str(said[0]), "answer_true": str(sample["target"])}
    return {**fixed, **about, **answers, "score": score(entry, answers["answer"])}


def _mmmu(entry: Mapping[str, Any], answer: str) -> float:
    """1 if a parsed answer is right, by the benchmark's rule: the letter; for an open question the number to two
    digits, or the words somewhere in it. Else 0, also for an empty answer, for which lmms-eval draws a letter."""
    if not answer.strip():
        return 0.0
    truths = entry["answer"] if isinstance(entry["answer"], list) else [entry["answer"]]
    if entry["question_type"] == "multiple-choice":
        return float(any(said in truths for said in entry["parsed_pred"]))
    numbers = [number for number in map(_number, truths) if number is not None]
    words = [word.strip().lower() for word in truths if _number(word) is None]
    words = [form for word in words for form in ((f" {word}", f"{word} ") if len(word) == 1 else (word,))]
    said = [one for answer in entry["parsed_pred"] for one in (answer if isinstance(answer, list) else [answer])]
    return float(any(any(w in one for w in words) if isinstance(one, str) else one in numbers for one in said))


def _number(text: str) -> float | None:
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


def _graded(entry: Mapping[str, Any], answer: str) -> float:
    """The judge's grade of the model's answer, divided by 10; NaN if it gave none (lmms-eval stores -1). The
    benchmark's own figure is the sum of these divided by the sum for the reference answers."""
    _, grade = entry["scores"]
    return grade / 10 if 1 <= grade <= 10 else nan


# lmms-eval's task → its set here, the metric whose entry in a sample has the score, and how to read the score
TASKS = {
    "mmmu_val": ("mmmu", "mmmu_acc", _mmmu),
    "llava_in_the_wild": ("llava_bench", "gpt_eval_llava_all", _graded),
}
