"""A notebook in JupyterLab as a new user opens it: a real server, a real (headless) browser, Run All Cells."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pandas as pd
import pytest
from IPython.display import HTML
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook, new_output

from mllmu_nb import paths
from mllmu_nb.reporting import show

BOOK = "01_data.ipynb"  # needs no model
ASK = "16_ask.ipynb"
RACE = "18_race.ipynb"
DOLLARS = "dollars.ipynb"  # outputs with dollar signs
SEEN = "13_along_the_path.ipynb"  # opened without being run, as a notebook that is not trusted
TRAINED = {"people: int = 100": "people: int = 12", "celebrities: int = 40": "celebrities: int = 12"}
TRAINED |= {"train_steps: int = None": "train_steps: int = 10"}
QUICK = {  # replacements in the notebook, so that it takes a minute
    BOOK: {},
    ASK: TRAINED | {"unlearn_steps: int = None": "unlearn_steps: int = 2"},
    RACE: TRAINED | {"unlearn_steps: int = None": "unlearn_steps: int = 10", "MOST = 5, 10": "MOST = 5, 2"},
}
ENDING = "people: all sound"  # text of its last cell
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    # without windowing, every cell stays in the page, visible or not
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
}
MINUTE = 60_000

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Start JupyterLab, once for all tests, with its own settings, on copies of the notebooks without outputs:
    (address, folder, token). ``SEEN`` keeps its outputs.

    The models of ``ASK`` and ``RACE`` are hardly trained, because their answers do not matter here.
    """
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(8)
    root = home / "notebooks"
    root.mkdir()
    for name, changes in QUICK.items():
        book = nbformat.read(paths.notebooks() / name, as_version=4)
        for cell in (c for c in book.cells if c.cell_type == "code"):
            cell.outputs, cell.execution_count = [], None
        for long, short in changes.items():
            [cell] = [c for c in book.cells if long in c.source]
            cell.source = cell.source.replace(long, short)
        nbformat.write(book, root / name)
    (root / SEEN).write_bytes((paths.notebooks() / SEEN).read_bytes())
    names = "CONFIG_DIR DATA_DIR RUNTIME_DIR LAB_SETTINGS_DIR LAB_WORKSPACES_DIR".split()
    folders = {("JUPYTER" if n.startswith("LAB") else "JUPYTER_") + n: str(home / n) for n in names}
    for name, setting in SETTINGS.items():
        file = home / "LAB_SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = open(home / "lab.log", "w")
    server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600  # long enough for a busy machine
        while not _answers(f"{address}/api/status?token={token}"):
            assert server.poll() is None and time.monotonic() < deadline, (home / "lab.log").read_text()[-2000:]
            time.sleep(0.3)
        yield address, root, token
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:  # JupyterLab sometimes loses the signal; how it ends is not tested here
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(60)
        log.close()


def _answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def page(browser):
    """A page of a headless browser; ``problems`` collects its errors."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(5 * MINUTE)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    return page


def run_all(page, lab, name):
    """Open a notebook, run all its cells, and return its panel."""
    address, _, token = lab
    page.goto(f"{address}/lab/tree/{name}?token={token}&reset")
    panel = page.locator(".jp-NotebookPanel:visible")
    # the menu must wait for a kernel: without one it opens a dialog
    panel.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for()
    page.locator("#jp-main-statusbar", has_text="Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    return panel


def alts(panel):
    """Return the alt texts of the visible pictures; JupyterLab gives "Image" to one without."""
    pictures = panel.locator(".jp-OutputArea-output img")
    pictures.first.wait_for(timeout=MINUTE)
    assert pictures.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    texts = pictures.evaluate_all("all => all.map(one => one.alt)")
    assert all(texts) and "Image" not in texts
    return texts


def test_the_pictures_of_a_notebook_that_is_not_trusted_have_alt_texts(page, lab):
    address, _, token = lab
    page.goto(f"{address}/lab/tree/{SEEN}?token={token}&reset")
    panel = page.locator(".jp-NotebookPanel:visible")
    panel.locator(".jp-OutputArea-output", has_text="kept where half of the gap is closed").wait_for(timeout=MINUTE)
    assert "what is kept against how much of the gap is closed" in alts(panel)


def test_dollar_signs_of_answers_are_no_mathematics(page, lab):
    """The last output is read as mathematics, so JupyterLab has come to the others, too."""
    written = "$32,000 or $45,000"
    shown = [HTML(f"<p>{written}</p>"), show.text(written), show.table(pd.DataFrame({written: [written]}))]
    shown += [show.gallery({written: show.plots.png(Figure((1, 1)))}), HTML(show.heading_html(written))]
    shown += [HTML(show.answer_html(written, written, written))]
    outputs = [new_output("display_data", {"text/html": one.data}) for one in shown]
    cells = [new_code_cell("", outputs=[output]) for output in reversed(outputs)]
    address, folder, token = lab
    nbformat.write(new_notebook(cells=cells), folder / DOLLARS)
    page.goto(f"{address}/lab/tree/{DOLLARS}?token={token}&reset")
    found, formula = page.locator(".jp-NotebookPanel:visible .jp-OutputArea-output"), page.locator("mjx-container")
    found.filter(has=formula).first.wait_for()
    assert found.filter(has=formula).count() == 1
    assert found.filter(has_not=formula).filter(has_text=written).count() == len(shown) - 1


def test_run_all_cells_in_jupyterlab(page, lab):
    panel = run_all(page, lab, BOOK)
    panel.locator(".jp-OutputArea-output", has_text=ENDING).wait_for()
    # errors have this type, and so has what was written to stderr
    assert panel.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts() == []
    assert "portraits, facts and questions of two people" in alts(panel)
    assert page.problems == []
    page.keyboard.press("Control+s")
    kept = _when_saved(lab[1] / BOOK)
    for cell in (c for c in kept.cells if c.cell_type == "code"):
        assert cell.execution_count and not [o for o in cell.outputs if o.output_type == "error"]


def test_ask_the_unlearned_model_in_jupyterlab(page, lab):
    """A step is chosen in the form and a question typed, and three models answer it side by side."""
    panel = run_all(page, lab, ASK)
    form = panel.locator(".jp-OutputArea-output", has=page.get_by_role("button", name="Ask", exact=True))
    form.wait_for(timeout=20 * MINUTE)
    step = form.get_by_role("spinbutton")
    assert step.input_value() == "2", "as the notebook's parameter says"
    step.fill("1")
    step.press("Tab")
    box = form.get_by_role("combobox").last
    box.fill("Does this person like <b>rain</b>?")
    box.press("Tab")
    form.get_by_role("button", name="Ask", exact=True).click()
    form.get_by_text("Does this person like <b>rain</b>?").wait_for()
    rows = form.locator("tbody tr th").all_inner_texts()
    assert rows == ["Vanilla", "KL Min. (image + text)", "Oracle"]
    assert form.locator("img").get_attribute("alt") and form.get_by_text("no true answer is known").count() == 1
    assert panel.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts() == []
    assert page.problems == []


def test_the_race_in_jupyterlab(page, lab):
    """The animation is visible, and a slider plays it step by step."""
    panel = run_all(page, lab, RACE)
    slider = panel.get_by_role("slider")
    slider.wait_for(timeout=20 * MINUTE)
    panel.locator('img[src^="data:image/gif"]').wait_for()
    played = panel.locator(".widget-interact img")
    first = played.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowRight")
    panel.locator(f'.widget-interact img:not([src="{first}"])').wait_for()
    panel.locator(".jp-OutputArea-output", has_text="points from the finish").wait_for()
    assert panel.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts() == []
    assert page.problems == []


def _when_saved(path):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(nbformat.reader.NotJSONError):  # while JupyterLab is writing it, the file is empty
            book = nbformat.read(path, as_version=4)
            if book.cells[-1].get("outputs"):
                return book
        time.sleep(0.3)
    raise AssertionError("the notebook was not saved with its outputs")
