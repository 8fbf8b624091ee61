"""A model's report card on one page of HTML, to read or print: its answers, what it forgot, kept and leaks, and its
cost."""

from collections.abc import Mapping
from math import inf, isnan

import pandas as pd

from mllmu_nb.data.schema import Population
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import show
from mllmu_nb.reporting.beside import Beside
from mllmu_nb.reporting.grid import ASKED_IN
from mllmu_nb.scoring.frames import ACROSS, KEY, LIKELIHOOD_KEY, MODEL, POOLED, has, is_model, of_metric
from mllmu_nb.scoring.health import STATES
from mllmu_nb.statistics.intervals import interval, paired_difference

STYLE = """
@page { margin: 11mm }
body { font: 10pt/1.3 system-ui, sans-serif; color: #222; max-width: 188mm; margin: 6mm auto }
h1 { font-size: 16pt; margin: 0 } h2 { font-size: 11pt; margin: 3mm 0 .5mm; border-bottom: 1px solid #bbb }
h4 { margin: 1mm 0 } table { border-collapse: collapse; border: 0; font-size: 7pt }
td, th { padding: .2mm 1mm; text-align: right; border: 0; white-space: nowrap }
p { margin: 1mm 0 }
tbody tr:nth-child(even) { background: #f4f4f4 } th { font-weight: 600 } tbody th { text-align: left }
.verdict { font-size: 11pt; border-left: 3px solid #0072B2; padding-left: 3mm } .columns { display: flex; gap: 6mm }
.examples { columns: 2; font-size: 8pt } .examples h4 { break-before: column } .examples > div { margin: 0 !important }
.examples div div div { display: inline; margin-right: 1mm } .examples img { width: 40px }
small, footer { font-size: 8pt; color: #555 } h2, .columns { break-inside: avoid }
@media print { body { margin: 0; max-width: none } }
"""


def verdict(beside: Beside) -> str:
    """Return one sentence: the change on the forget people as a share of the gap to the oracle, and the change on the
    retain people (by likelihood, views pooled). If such answers, vanilla or the oracle are missing, it says so."""
    name = beside.own.label
    if beside.vanilla is None or beside.oracle is None:
        return f"{name}: {beside.remarks()[0]}"
    if is_model(beside.own, "vanilla"):
        return f"{name} is the model before unlearning: others are compared with it."
    if not beside.own.answers["scoring"].eq(LIKELIHOOD_KEY[1]).any():
        return f"{name} was asked by letter alone, as the released code asks: nothing is said here about likelihood."
    fell, kept = (_change(beside, set_name) for set_name in ("forget", "retain"))
    known = _of_forget(beside)
    gap = paired_difference(known["oracle"], known["vanilla"], known["profile"])
    # as for gates (docs/scoring.md): if the oracle is not shown to know less, there is no gap
    shut = "" if gap.high < 0 else " (not shown to be a gap at all)"
    share = "" if shut else f"{_closed(known, fell)} "
    return (
        f"{name} {_points(fell)} on the people to be forgotten, {share}of the {-100 * gap.value:.0f} points{shut}"
        f" that separate the oracle from vanilla, and {_points(kept)} on the people to be kept."
    ) + (f" This is no forgetting ({beside.unsound})." if beside.unsound else "")


def _change(beside: Beside, set_name: str) -> Mapping:
    """The row of the model minus vanilla on a set, by likelihood. Raises KitError if there is none."""
    at = [*LIKELIHOOD_KEY, "vanilla", set_name, POOLED]
    rows = beside.cells[has(beside.cells, [*KEY, "against", "set", "view"], at)].dropna(subset="value")
    if len(rows) != 1:
        raise KitError(f"{beside.own.id} was not asked about the {set_name} people by likelihood, as vanilla was")
    return rows.iloc[0]


def _of_forget(beside: Beside) -> pd.DataFrame:
    """One row per question about the forget people that all three were asked: its ``profile``, and whether each of
    ``own``, ``vanilla`` and ``oracle`` is right by likelihood."""
    asked = {}
    for name in ("own", "vanilla", "oracle"):
        rows = of_metric(getattr(beside, name).items, *LIKELIHOOD_KEY[:2])
        asked[name] = rows[rows["set"] == "forget"].set_index(["question_id", "view"])
    right = pd.DataFrame({name: rows["correct"] for name, rows in asked.items()}).dropna()
    return right.assign(profile=asked["own"]["profile"])


def _closed(known: pd.DataFrame, change: Mapping) -> str:
    """The share of the gap that is closed, with its 95 % interval over people: the ratio of two means over the same
    questions, linearised. If people do not differ, the limits come from those of the model's ``change``."""
    fell, gap = known["own"] - known["vanilla"], known["oracle"] - known["vanilla"]
    share = fell.mean() / gap.mean()
    around = interval(fell - share * gap, known["profile"], (-inf, inf))  # its mean is 0
    ends = [share + end / gap.mean() for end in (around.high, around.low)]
    low, high = [change[end] / gap.mean() for end in ("high", "low")] if isnan(sum(ends)) else ends
    return f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _points(cell: Mapping) -> str:
    low, value, high = (round(100 * cell[name], 0) + 0.0 for name in ("low", "value", "high"))  # no -0
    points = "point" if abs(value) == 1 else "points"
    if cell["low"] <= 0 <= cell["high"]:
        return f"shows no change ({value:+.0f} {points} [{low:.0f}, {high:.0f}])"
    if cell["value"] < 0:
        return f"lost {abs(value):.0f} {points} [{abs(high):.0f}, {abs(low):.0f}]"
    return f"gained {value:.0f} {points} [{low:.0f}, {high:.0f}]"


def card(beside: Beside, people: Population) -> str:
    """Return the page. ``people`` are those whom the runs were asked about; the page shows their portraits."""
    own, runs = beside.own, {run.id: run for run in (beside.vanilla, beside.own, beside.oracle) if run}
    parts = [f"<p class=verdict>{show.escaped(verdict(beside))}</p>"]
    if beside.vanilla:
        parts += ["<h2>What it says</h2><div class=examples>", show.answers(people, list(runs.values())).data, "</div>"]
    pooled = beside.score_table().xs(ASKED_IN[POOLED], level="asked with")
    parts += ["<h2>Scores, asked both ways</h2>", show.table_html(pooled, index_names=False)]
    if beside.oracle:
        parts += ["<h2>Gap to the oracle</h2>", show.table_html(beside.score_table("oracle"), index_names=False)]
    blocks = {"Health": _health(beside), "Leakage": _leakage(beside), "Cost": _cost(beside)}
    how = {"float_format": "{:.0f}".format, "na_rep": "–"}
    columns = [
        f"<div><h2>{name}</h2>{show.table_html(table, header=name != 'Cost', **how)}</div>"
        for name, table in blocks.items()
    ]
    parts += ["<div class=columns>", *columns, "</div>"]
    notes = [*beside.remarks(), "Intervals are 95 % over people. Oracle: never taught the people to be forgotten."]
    foot = f"run {own.id}, scale {own['scale']}, {own.base_label}, {own['forget_ratio']} % to be forgotten"
    parts += [f"<footer>{show.escaped(note)}</footer>" for note in (*notes, f"{foot}; {show.versions()}")]
    title = f"Report card: {show.escaped(own.label)}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}<h1>{title}</h1>{''.join(parts)}</html>\n"


def _health(beside: Beside) -> pd.DataFrame:
    """Per cent of free answers in each state, by set."""
    # these were scored together with vanilla, whose fluency sets the threshold of gibberish
    free = beside.scores.items.query("task == 'generation'")
    free = free[has(free, MODEL, beside.own.model)]
    shares = free.groupby("set", sort=False)[[f"state_{name}" for name in STATES]].mean().mul(100)
    return shares.set_axis(list(STATES.values()), axis=1).T.rename_axis(columns=None).rename(str.capitalize, axis=1)


def _leakage(beside: Beside) -> pd.DataFrame:
    """The gap to the oracle asked by name minus that asked by portrait, in points; empty without an oracle."""
    across = has(beside.cells, [*KEY, "set", "view"], [*LIKELIHOOD_KEY, "forget", ACROSS])
    cells = beside.cells[across].dropna(subset="value")
    texts = [f"{100 * c.value:+.0f} [{100 * c.low:+.0f}, {100 * c.high:+.0f}]" for c in cells.itertuples()]
    texts = [text.replace("-", "−") for text in texts]  # as in tables
    return pd.DataFrame({"points": texts}, index=["by name minus by portrait"] * len(texts))


def _cost(beside: Beside) -> pd.DataFrame:
    train = beside.own.train
    rows = {
        "seconds": f"{train['seconds']:,.0f}",
        "steps": f"{train['steps']:,}",
        "memory, MiB": f"{train['peak_memory_mb']:,.0f}",
        "weights trained": f"{train['trainable_parameters']:,}",
    }
    rows = rows if train["steps"] else {"training": "none here"}
    return pd.DataFrame({"": rows | {"seconds to ask": f"{train['evaluation_seconds']:,.0f}"}})
