"""Starts notebooks fast: papermill and the kernel are forked from a process that has already imported everything. If a
fork is not safe (no Linux, or a GPU, whose driver does not survive it), papermill starts as it does by hand."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mllmu_nb.processes import end_with_parent

KERNEL = "ipykernel_launcher"  # the module that a kernel's command names
INLINE = "__import__('matplotlib').use('module://matplotlib_inline.backend_inline')"


def start(notebook: Path, executed: Path, log: Path, given: Mapping[str, Any], threads: int) -> BaseProcess:
    """Start a process in which papermill executes ``notebook`` in the notebook's folder with the parameters ``given``,
    and writes ``executed``. Its output goes to ``log``; the last line is the error of a cell, if any."""
    warm = can_fork()
    context = multiprocessing.get_context("forkserver" if warm else "spawn")
    if warm:
        context.set_forkserver_preload(["mllmu_nb.commands.preloaded"])
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    process = context.Process(target=_execute, args=(notebook, executed, log, dict(given), environment, warm))
    process.start()
    return process


def can_fork() -> bool:
    """Whether a process that has imported everything can be forked safely."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def _execute(notebook: Path, executed: Path, log: Path, given: dict, environment: dict, warm: bool) -> None:
    os.environ.clear()  # else it is that of the first start
    os.environ.update(environment)
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if warm:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        _fork_kernel()
    end_with_parent()
    from papermill import exceptions, execute_notebook

    try:
        execute_notebook(notebook, executed, given, cwd=notebook.parent, progress_bar=False)
    except exceptions.PapermillExecutionError as error:  # the executed notebook has the traceback
        said = " ".join(error.evalue.split()) or "in a cell that checks the result"
        raise SystemExit(f"{error.ename}: {said}") from None


def _fork_kernel() -> None:
    """Fork the kernel now, while this process has no threads. Later, jupyter_client starts it by sending it the
    arguments of the usual command."""
    from jupyter_client.provisioning import local_provisioner

    receiver, sender = multiprocessing.Pipe(duplex=False)
    kernel = multiprocessing.get_context("fork").Process(target=_kernel, args=(receiver, sender))
    kernel.start()
    receiver.close()
    usual = local_provisioner.launch_kernel

    def launch(command: list[str], **settings: Any) -> Any:
        if sender.closed or KERNEL not in command:  # started a second time, or the kernel of another language
            return usual(command, **settings)
        with sender:
            sender.send((command[command.index(KERNEL) + 1 :], settings.get("env") or {}, os.getcwd()))
        # what jupyter_client uses of a subprocess.Popen
        calls = {"poll": lambda: kernel.exitcode, "wait": lambda: kernel.join() or kernel.exitcode}
        calls["send_signal"] = partial(os.kill, kernel.pid)
        return SimpleNamespace(pid=kernel.pid, stdin=None, stdout=None, stderr=None, **calls)

    local_provisioner.launch_kernel = launch


def _kernel(receiver: Connection, sender: Connection) -> None:
    os.setsid()  # Ctrl-C is for the sweep
    end_with_parent()  # ipykernel reads its parent's id on import, too early here
    sender.close()
    try:
        arguments, environment, folder = receiver.recv()
    except EOFError:  # papermill ended before it needed a kernel
        return
    os.environ.update(environment)
    os.chdir(folder)
    import pandas
    from ipykernel.kernelapp import IPKernelApp

    # pandas and matplotlib were imported outside a kernel, so their settings do not suit one.
    pandas.set_option("display.max_columns", 20)
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.exec_lines={INLINE}"])
