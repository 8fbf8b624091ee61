"""Progress bars, in a terminal and below a notebook's cell while somebody uses the kernel. Elsewhere there are none, so
outputs of papermill, nbmake and nbconvert contain none.

A process that the kernel has started sends its bars to the kernel by ``send_to``; the kernel draws them by ``follow``.
"""

import io
import os
import queue
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import tqdm
import tqdm.auto

_kernel: Any = None  # the queue to the process that draws this one's bars


def live() -> bool:
    """Whether somebody at the kernel can type and click: JupyterLab, and not papermill, nbmake or nbconvert."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))


def progress_bar(*given: Any, shown: bool = True, **named: Any) -> tqdm.tqdm:
    """A tqdm bar over what is given, hidden if nobody would see it or if ``shown`` is False."""
    named["mininterval"] = 1.0
    if shown and _kernel:
        return _Sent(*given, file=io.StringIO(), **named)
    if shown and live():
        return tqdm.auto.tqdm(*given, leave=False, **named)
    return tqdm.tqdm(*given, disable=None if shown and sys.stderr else True, **named)  # stderr may be closed


class _Sent(tqdm.tqdm):
    """A bar that another process draws."""

    def display(self, *given: Any, **named: Any) -> None:
        _kernel.put((os.getpid(), self.desc, self.n, self.total))


def send_to(kernel: Any) -> None:
    """Make this process send its bars to ``kernel``, a queue; None: it draws them itself."""
    global _kernel
    _kernel = kernel


def follow(sent: Any, running: Sequence[Future]) -> None:
    """Draw the bars that processes put into ``sent`` until all ``running`` futures have ended."""
    bars: dict[tuple, tqdm.tqdm] = {}
    while not all(one.done() for one in running):
        try:
            process, name, done, total = sent.get(timeout=0.5)
        except queue.Empty:
            continue
        if (process, name) not in bars:
            bars[process, name] = progress_bar(desc=name)
        bar = bars[process, name]
        bar.n, bar.total = done, total
        bar.refresh()
    for bar in bars.values():
        bar.close()
