"""Shows what vanilla and the oracle know, task by task: python benchmarks/vanilla.py [--profiles FILE --people N]

Without options it shows the shipped miniature. ``--profiles`` takes the fine-tuning sentences of people whom the base
never met (docs/data.md) and derives the questions from them; ``--exams 0`` teaches plain sentences alone. Trained
models are kept (MLLMU_NB_OUT), so a second call only prints. It prints right answers in per cent, with 95 % limits over
people and, if there are several ``--replicates``, over these too.
"""

from __future__ import annotations

import argparse
import sys

from mllmu_nb import pipeline
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profiles", default="", help="people as JSON lines")
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--exams", type=float, help="share of the taught questions in the forms of evaluation")
    parser.add_argument("--replicates", type=int, nargs="+", default=[0])
    parser.add_argument("--base-model", default="llava")
    options = parser.parse_args()
    folders = []
    for replicate in options.replicates:
        known = {"profiles_file": options.profiles, "people": options.people, "base_model": options.base_model}
        config = Config(method="vanilla", exams=options.exams, replicate=replicate, **known)
        folders += pipeline.beside(config, "oracle")
    print(show.known(show.runs(folders)).to_string())


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
