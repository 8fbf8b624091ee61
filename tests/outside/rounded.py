"""The weights of the language model rounded to a few levels per row, as a toy version of quantisation."""

import torch

from mllmu_nb.after import after
from mllmu_nb.models import families


@after("rounded")
def rounded(model, config, bits: int = 4):
    largest = 2 ** (bits - 1) - 1
    for path in families.of(model).adapter_targets(model, "language"):
        weight = model.get_submodule(path).weight
        with torch.no_grad():
            step = weight.abs().amax(1, keepdim=True) / largest
            weight.copy_((weight / step).round() * step)
    return model
