"""Steps after unlearning: model → model (quantise, relearn ..), one file each; CONTRIBUTING.md has an example. Name
and arguments are part of a run."""

import inspect
from collections.abc import Callable
from typing import Any

from mllmu_nb import registry
from mllmu_nb.errors import KitError

STEPS = registry.Registry("step after unlearning")


def after(name: str) -> Callable[[Callable], Callable]:
    """Decorator that registers a function (model, config, further arguments with defaults) → model as the step
    ``name``. The function gets the plain unlearned model, with its adapter merged."""

    def add(step: Callable) -> Callable:
        taken = inspect.signature(step).parameters
        if len(taken) < 2:
            raise KitError(
                f"the step after unlearning {name!r} must take a model and a config, not ({', '.join(taken)})"
            )
        _, _, *more = taken.values()
        lacking = [one.name for one in more if one.default is inspect.Parameter.empty]
        if lacking:
            raise KitError(f"the step after unlearning {name!r} has no default for {', '.join(lacking)}")
        return STEPS.add(name, step)

    return add


def settings_of(name: str) -> dict[str, Any]:
    """Name → default of a step's further arguments."""
    if name not in STEPS:
        return {}
    _, _, *more = inspect.signature(STEPS.get(name)).parameters.values()
    return {one.name: one.default for one in more}


def apply(name: str, model: Any, config: Any) -> Any:
    """Apply the step ``name`` to ``model`` with the run's settings, and return its model."""
    own = settings_of(name)
    return STEPS.get(name)(model, config, **{key: value for key, value in config.settings.items() if key in own})


registry.import_all(__name__)
