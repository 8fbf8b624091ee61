"""What a GPU would find, tried without one: tensors of two devices together, types that do not fit, reads that wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils import backend_registration

from mllmu_nb import pinning
from mllmu_nb.models import families

SCRIPT, TOOLS = Path(__file__).with_name("second_device.py"), Path(__file__).parents[1] / "tools"
WITHOUT = not hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.mark.slow
@pytest.mark.skipif(WITHOUT, reason="this torch cannot pretend a second device")
@pytest.mark.parametrize("family", [family.name for family in families.FAMILIES.values()])
def test_another_device_and_half_precision_give_what_the_cpu_gives_in_full_precision(family):
    """Each way of training, both protocols, for LLaVA each method; attention as for a larger model."""
    environment = {name: value for name, value in os.environ.items() if name not in pinning.VARIABLES}
    environment[pinning.UNPINNED] = "1"  # pinned, bf16 is slow
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (TOOLS, TOOLS / "base_model")))
    done = subprocess.run([sys.executable, SCRIPT, family], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    given = json.loads(done.stdout)
    cpu, half, card = (given[way] for way in ("cpu", "half", "card"))
    assert "aten.add.Tensor of tensors on the card and of others" in given["refused"]
    reads = {name: card.pop(name) for name in list(card) if name.startswith("reads: ")}
    assert card and card.keys() == cpu.keys() - reads.keys()
    for name, values in card.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(values, cpu[name], rtol=1e-4, err_msg=name)
            np.testing.assert_allclose(half[name], cpu[name], rtol=0.05, atol=0.05, err_msg=f"{name} in half precision")
            assert half[name] != cpu[name], name
        else:
            assert values == cpu[name], name
    assert not any(cpu[name][0] for name in reads)
    # a token is read once for all rows, and transformers reads the mask; before them, Qwen's sizes of pictures
    assert 0 < reads.pop("reads: tokens")[0] <= 2 * max(cpu["tokens"]) + 40
    assert all(0 < one[0] < 100 for one in reads.values())  # per step, in two pieces
