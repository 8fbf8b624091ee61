"""Progress bars: shown only if somebody can see them, also those of other processes."""

import queue
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import IPython
import pytest

from mllmu_nb import progress, stages


@pytest.fixture
def kernel(monkeypatch):
    """A kernel with a user."""
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    return shell.kernel


def test_without_a_terminal_and_under_papermill_there_is_no_bar(kernel, capsys):
    kernel._allow_stdin = False
    bar = progress.progress_bar(range(3))
    assert not progress.live() and bar.disable and list(bar) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_if_stderr_is_closed_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with stages.status("vanilla"):
        assert list(progress.progress_bar(range(3))) == [0, 1, 2]


def test_in_a_live_kernel_the_bar_is_tqdms_own_and_goes_when_the_work_is_done(kernel, monkeypatch):
    seen = []
    monkeypatch.setattr(progress.tqdm.auto, "tqdm", lambda *given, **named: seen.append((given, named)))
    progress.progress_bar([1], desc="steps")
    assert progress.live() and seen == [(([1],), {"desc": "steps", "leave": False, "mininterval": 1.0})]
    assert progress.progress_bar([1], shown=False).disable and len(seen) == 1


def test_a_process_sends_its_bars_to_the_one_that_draws(kernel, monkeypatch):
    sent, drawn, work = queue.Queue(), [], Future()
    monkeypatch.setattr(progress, "_kernel", None)
    progress.send_to(sent)
    with progress.progress_bar(total=4, desc="questions") as bar:
        bar.update(4)
        bar.refresh()
    progress.send_to(None)
    last = list(sent.queue)[-1]
    assert last[1:] == ("questions", 4, 4)

    class Drawn(SimpleNamespace):
        def refresh(self):
            drawn.append((self.desc, self.n, self.total))
            if sent.empty():
                work.set_result(None)

        def close(self):
            drawn.append("closed")

    monkeypatch.setattr(progress.tqdm.auto, "tqdm", lambda **named: Drawn(**named))
    progress.follow(sent, [work])
    assert drawn[-2:] == [("questions", 4, 4), "closed"] and drawn.count("closed") == 1
