"""Starts notebooks fast: papermill and the kernel are forked from a process that has already imported everything: the
sweep itself or, where it has threads, a second one. If a fork is not safe (no Linux, or a GPU, whose driver does not
survive it), papermill starts as it does by hand."""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mllmu_nb import paths
from mllmu_nb.processes import cores, end_with_parent

PRELOADED = "mllmu_nb.commands.preloaded"
KERNEL = "ipykernel_launcher"  # the module that a kernel's command names
INLINE = "__import__('matplotlib').use('module://matplotlib_inline.backend_inline')"


def start(notebook: Path, executed: Path, log: Path, given: Mapping[str, Any], threads: int) -> BaseProcess:
    """Start a process in which papermill executes ``notebook`` in the notebook's folder with the parameters ``given``,
    and writes ``executed``. Its output goes to ``log``; the last line is the error of a cell, if any."""
    warm, alone = can_fork(), threading.active_count() == 1  # a copy of a process with threads may wait for ever
    context = multiprocessing.get_context("spawn" if not warm else "fork" if alone else "forkserver")
    if warm and alone:
        importlib.import_module(PRELOADED)
    elif warm:
        context.set_forkserver_preload([PRELOADED])
    # a kernel runs in its notebook's folder, where relative paths mean other places
    places = {paths.OUT: str(paths.root())}
    if named := os.environ.get("PYTHONPATH"):
        places["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, named.split(os.pathsep)))
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ, **places}
    process = context.Process(target=_execute, args=(notebook, executed, log, dict(given), environment, warm))
    process.start()
    return process


def can_fork() -> bool:
    """Whether a process that has imported everything can be forked safely."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def _execute(notebook: Path, executed: Path, log: Path, given: dict, environment: dict, warm: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the sweep's way to end
    os.environ.clear()  # else it is that of the first start
    os.environ.update(environment)
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the caller may have replaced them
    if warm:
        import torch

        torch.set_num_threads(cores())
        # now, while this process has no threads; jupyter_client starts it later
        _launch_from(iter([_kernel_process("fork")]))
    end_with_parent()
    from papermill import exceptions, execute_notebook

    # papermill would put the value of a parameter in place of {name} in a path
    files = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, executed)]
    try:
        execute_notebook(*files, given, cwd=notebook.parent, progress_bar=False)
    except exceptions.PapermillExecutionError as error:  # the executed notebook has the traceback
        said = " ".join(error.evalue.split()) or "in a cell that checks the result"
        raise SystemExit(f"{error.ename}: {said}") from None


@contextlib.contextmanager
def forked_kernels() -> Iterator[None]:
    """Inside, each kernel that jupyter_client starts is forked from a process that has imported everything, if a fork
    is safe. For a process that has threads, such as pytest."""
    if not can_fork():
        yield
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOADED])
    stop = _launch_from(_kernel_process("forkserver") for _ in itertools.count())
    try:
        yield
    finally:
        stop()


def _kernel_process(way: str) -> tuple[BaseProcess, Connection]:
    """A process that becomes a kernel as soon as it is sent the arguments, and the connection to it."""
    ours, its = multiprocessing.Pipe()
    kernel = multiprocessing.get_context(way).Process(target=_kernel, args=(its, ours))
    kernel.start()
    its.close()
    return kernel, ours


def _launch_from(kernels: Iterator[tuple[BaseProcess, Connection]]) -> Callable:
    """Let jupyter_client take these ``kernels``, by sending them the arguments of the usual command; after the last, it
    starts them as usual. Returns a function that undoes this."""
    from jupyter_client.provisioning import local_provisioner

    usual = local_provisioner.launch_kernel

    def launch(command: list[str], **settings: Any) -> Any:
        ready = next(kernels, None) if KERNEL in command else None  # else the kernel of another language
        if ready is None:
            return usual(command, **settings)
        kernel, channel = ready
        with channel:
            channel.recv()  # jupyter_client reads its group of processes at once, to end the whole group
            arguments, folder = command[command.index(KERNEL) + 1 :], settings.get("cwd") or os.getcwd()
            channel.send((arguments, settings.get("env") or {}, folder))
        # what jupyter_client uses of a subprocess.Popen
        calls = {"poll": lambda: kernel.exitcode, "wait": lambda: kernel.join() or kernel.exitcode}
        calls["send_signal"] = partial(os.kill, kernel.pid)
        return SimpleNamespace(pid=kernel.pid, stdin=None, stdout=None, stderr=None, **calls)

    local_provisioner.launch_kernel = launch
    return partial(setattr, local_provisioner, "launch_kernel", usual)


def _kernel(channel: Connection, other: Connection) -> None:
    os.setsid()  # Ctrl-C is for the sweep
    end_with_parent()  # ipykernel reads its parent's id on import, too early here
    other.close()
    try:
        channel.send("ready")
        arguments, environment, folder = channel.recv()
    except (EOFError, BrokenPipeError):  # papermill ended before it needed a kernel
        return
    os.environ.update(environment)
    os.chdir(folder)
    import pandas
    from ipykernel.kernelapp import IPKernelApp

    # pandas and matplotlib were imported outside a kernel, so their settings do not suit one.
    pandas.set_option("display.max_columns", 20)
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.exec_lines={INLINE}"])
