"""What every test and every notebook run by pytest shares: a throw-away output folder, one thread, pinned bits."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile

import pytest

from mllmu_nb.pinning import pin

pin()  # before anything imports torch, and for the kernels and processes that tests start

# Set at import, before any test module or kernel starts, so that nothing is ever written into the checkout.
_output = tempfile.TemporaryDirectory(prefix="mllmu-nb-tests-", ignore_cleanup_errors=True)
os.environ["MLLMU_NB_OUT"] = _output.name

# One thread for each process: threads of several processes on the same cores wait for one another most of the time.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if "MPLBACKEND" not in os.environ:
    # In this process only: in the environment it would also reach the kernels and silence their inline figures.
    import matplotlib

    matplotlib.use("Agg")


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder of the test's own that everything is written under."""
    monkeypatch.setenv("MLLMU_NB_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture(autouse=True, scope="session")
def short_paths():
    """Paths of unlearning have three points, not eleven: asking at them is half of the time of a tiny run. Gives the
    function that chooses the eleven."""
    from mllmu_nb.evaluation import path

    chosen = path.steps_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path, "steps_of", lambda length: [0, round(length / 2), length])
        yield chosen


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture
def browser():
    """A headless browser. A test that needs one is skipped where there is none."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'")
    with api.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def largest():
    """Inside ``with largest(bytes)`` no file may be longer, which ends in the same error as a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")

    @contextlib.contextmanager
    def limited(size):
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    return limited


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a tiny base model of the miniature's kind that has learnt nothing, with its recipe. Read only."""
    from miniature import make_model, make_processor, make_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer(["Where was this person born?", "USER: ASSISTANT: Just give ONE letter."], 400)
    make_model(tokenizer, 0, width=32, layers=1, heads=2).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "recipe.json").write_text(json.dumps({"sha256": hashlib.sha256(weights).hexdigest()}))
    return folder


def pytest_collection_modifyitems(config, items):
    """Mark what nbmake collects as `notebook`, and run notebooks after the unit tests; beside them they start first."""
    for item in items:
        if getattr(item, "nbmake", False):
            item.add_marker(pytest.mark.notebook)
    first = hasattr(config, "workerinput")  # one of several processes
    items.sort(key=lambda item: (item.get_closest_marker("notebook") is None) == first)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Notebooks have kernels that are forked from one process, as in a sweep: it has imported everything."""
    from mllmu_nb.commands import warm

    with warm.forked_kernels() if getattr(item, "nbmake", False) else contextlib.nullcontext():
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several processes one runs the notebooks, in order, since each finds what those before it have made."""
    from xdist.scheduler import LoadScopeScheduling

    class NotebooksTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return "notebooks" if file.endswith(".ipynb") else file

    return NotebooksTogether(config, log)


def pytest_unconfigure():
    _output.cleanup()
