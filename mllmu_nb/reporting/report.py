"""The report on the finished runs of a scale: scores, the table of runs, every table and every figure."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mllmu_nb import paths
from mllmu_nb.data.schema import Profile
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import figures, tables
from mllmu_nb.reporting import results as in_words
from mllmu_nb.reporting.runs import Scores, made_of, run_table
from mllmu_nb.reporting.sheet import write_csv
from mllmu_nb.stages import lock

UNFINISHED = ".unfinished"


def write_all(scale: str, people: Sequence[Profile] = (), say: Callable[[str], None] = print) -> list[Path]:
    """Writes scores.csv, runs.csv, all tables, the results in words and all figures of the runs under
    ``paths.results(scale)``, which may be the reference's; returns the files. They are written aside and take their
    places when all of them are there.

    ``people`` lend their portraits, and the first three are shown on the profile sheet, which is left as it is without
    them. A figure whose runs are not there is left out, and ``captions.md`` says why. Raises KitError when there is no
    run, or the disk is full.
    """
    results, pictures = paths.results(scale), paths.figures(scale)
    scores = Scores.read(results)
    source, written = f"results/{scale}/runs ({made_of(run.record for run in scores.runs)})", []
    say(f"Tables and figures of the {len(scores.runs)} runs in {source}.")
    with lock(results), _aside(results, written) as folder, _aside(pictures, written) as drawn:
        write_csv(scores.run_scores(), folder / "scores.csv")
        write_csv(run_table(scores.runs), folder / "runs.csv")
        tables.write_tables(scores, folder / "tables", source)
        in_words.write(scores, folder / "tables", source)
        captions = figures.write_all(scores, people, drawn)
        lines = [f"<!-- made from {source}; do not edit -->", "", *captions, ""]
        (drawn / "captions.md").write_text("\n".join(lines), encoding="utf-8")
    return sorted(written)


@contextlib.contextmanager
def _aside(folder: Path, written: list[Path]) -> Iterator[Path]:
    """A temporary folder in ``folder``, whose files take their places there, and among ``written``, in the end."""
    temporary = paths.writable(folder) / UNFINISHED
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir()
        yield temporary
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            written.append(target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise KitError(f"cannot write the report ({reason}): free space; the earlier one stays as it was") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
