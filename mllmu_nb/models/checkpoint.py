"""The state of a running training, in a file. A killed training continues from there, to the same bits."""

import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Checkpoint:
    """Saves a training's state every ``seconds`` beside the unfinished ``folder`` of a stage. The folder's name is a
    hash of everything that decides the training, so no other training finds it. Without a folder, nothing is saved.
    ``also``: plain values and tensors that caller and loop collect during the training."""

    def __init__(self, folder: Path | None = None, also: dict[str, Any] | None = None, seconds: float = 300.0):
        self.file = folder and folder.with_name(folder.name.removesuffix("~new") + ".checkpoint")
        self.also = {} if also is None else also
        self.seconds, self.saved = seconds, time.monotonic()

    def resume(self, batches: Iterator, trained: Mapping[str, Tensor], steered: Sequence[Any], log: Any) -> int:
        """Restore parameters, optimizers and schedules, the log and the random state; skip the batches already read;
        return the step. Returns 0 if there is no file, or if it is damaged."""
        if not self.file:
            return 0
        try:
            saved = torch.load(self.file, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
            return 0
        for _ in range(saved["step"]):
            next(batches)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved["trained"][name])
        for one, state in zip(steered, saved["steered"], strict=True):
            one.load_state_dict(state)
        vars(log).update(saved["log"])
        self.also.update(saved["also"])
        torch.set_rng_state(saved["random"])
        if "random_gpu" in saved and torch.cuda.is_available():  # it may have been saved on another machine
            torch.cuda.set_rng_state(saved["random_gpu"])
        return saved["step"]

    def save(self, step: int, trained: Mapping[str, Tensor], steered: Sequence[Any], log: Any) -> None:
        """Save the state after ``step``, but only every ``seconds``; the file is replaced in one step. If it cannot be
        written, the training goes on with the earlier one, if any."""
        if not self.file or time.monotonic() - self.saved < self.seconds:
            return
        state = {"step": step, "trained": {name: p.detach() for name, p in trained.items()}, "log": vars(log)}
        state |= {"steered": [one.state_dict() for one in steered], "also": self.also, "random": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["random_gpu"] = torch.cuda.get_rng_state()
        unfinished = self.file.with_suffix(".part")
        try:
            torch.save(state, unfinished)
            os.replace(unfinished, self.file)
        except (OSError, RuntimeError):  # torch says RuntimeError if the disk is full
            unfinished.unlink(missing_ok=True)
        self.saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file, after the training has finished."""
        if self.file:
            self.file.unlink(missing_ok=True)
