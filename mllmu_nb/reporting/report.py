"""From runs to everything that is printed: scores, tables, figures; and small HTML for the notebooks."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from mllmu_nb import paths, stages
from mllmu_nb.data.schema import Profile
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import statistics
from mllmu_nb.reporting import all_items, figures, gates, leakage, quality, ranking, tables

COMMITTED = "the committed reference run"


def which_runs(scale: str) -> tuple[Path, str]:
    """The runs a report is made of and how to call them: one's own where there are any, else the committed ones.

    In a checkout both lie in the same folder; one's own are those whose answers are also in the cache of this machine.
    """
    for root in (paths.runs(scale), paths.committed_runs(scale)):
        found = [path.parent for path in root.glob("*/items.parquet")]
        if found:
            own = len(found)
            if root.resolve() == paths.committed_runs(scale).resolve():
                own = sum(map(made_here, found))
            if own == len(found):
                return root, "your own run"
            return (
                root,
                f"the committed reference run ({own} of its {len(found)} parts made here)" if own else COMMITTED,
            )
    raise KitError(f"no finished run under {paths.runs(scale)}: `make reproduce` makes them")


def made_here(run: Path) -> bool:
    """Whether the stage that a run was copied from is in the cache, which is never committed."""
    record = run / stages.RECORD
    key = stages.read_json(record).get("key") if record.is_file() else None
    return bool(key) and (paths.cache() / "stages" / key).is_dir()


def write_all(
    scale: str, people: Sequence[Profile] = (), say: Callable[[str], None] = print, jobs: int = 1
) -> list[Path]:
    """Write ``scores.csv``, all tables and all figures of a scale; returns the written files.

    ``people`` are shown on the profile sheet, which is left as it is without them. A figure whose runs are not there
    is left out and ``captions.md`` says why. ``say`` is told which runs were used; ``jobs`` processes share the work.
    """
    runs_root, source = which_runs(scale)
    say(f"Tables and figures of {source}.")
    out, pictures = paths.writable(paths.results(scale)), paths.writable(paths.figures(scale))
    known = tables.numbers(runs_root)
    work: list[tuple] = [(quality.write_all, scale, known, out / "tables", pictures)]  # the longest, so it goes first
    work += [(figures.write_profiles, people, pictures)] if people else []
    work += [(figures.write_group, key, part, pictures) for key, part in known.groups()]
    work += [(part.write_all, scale, known, out / "tables", pictures) for part in (ranking, leakage)]
    work += [(_write_tables, scale, runs_root, known, out)]
    written = figures.together(_carried_out(work, jobs))
    heading = [f"<!-- made from results/{scale}/runs; do not edit -->", ""]
    (pictures / "captions.md").write_text("\n".join([*heading, *written.captions]) + "\n", encoding="utf-8")
    return [*written.paths, pictures / "captions.md"]


def _carried_out(work: list[tuple], jobs: int) -> list[figures.Written]:
    """What each (function, arguments ..) returns, in the order given."""
    if jobs == 1:
        return [function(*arguments) for function, *arguments in work]
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=get_context("spawn")) as pool:
        return [done.result() for done in [pool.submit(*one) for one in work]]


def _write_tables(scale: str, runs_root: Path, known: tables.Numbers, out: Path) -> figures.Written:
    scores = gates.with_gate(statistics.scores(all_items(known.runs)), known.gates)
    scores.to_csv(out / "scores.csv", index=False)
    return figures.Written([out / "scores.csv", *tables.write_all(scale, runs_root, out / "tables", known)], [])


def show_answer_html(question: str, answer: str, truth: str = "", right: bool | None = None, image: bytes = b"") -> str:
    """One question and answer as HTML for a notebook. Whatever a model wrote is shown as text, never run as markup."""
    colour, mark = {True: ("#0072B2", "✓ "), False: ("#C04F00", "✗ "), None: ("inherit", "")}[right]
    picture = ""
    if image:
        kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
        data = base64.b64encode(image).decode("ascii")
        picture = f'<img alt="portrait" width="96" src="data:image/{kind};base64,{data}">'
    lines = [f"<div>{html.escape(question)}</div>"]
    lines.append(f'<div style="color:{colour}">{mark}{html.escape(answer) or "(nothing)"}</div>')
    if truth:
        lines.append(f"<div><small>truth: {html.escape(truth)}</small></div>")
    return f'<div style="display:flex;gap:12px;margin:6px 0">{picture}<div>{"".join(lines)}</div></div>'
