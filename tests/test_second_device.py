"""Nothing mixes tensors of a GPU with tensors of the CPU, and Python seldom waits for a GPU: tried without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils import backend_registration

from mllmu_nb.models import families

SCRIPT, TOOLS = Path(__file__).with_name("second_device.py"), Path(__file__).parents[1] / "tools"
WITHOUT = not hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.mark.slow
@pytest.mark.skipif(WITHOUT, reason="this torch cannot pretend a second device")
@pytest.mark.parametrize("family", [family.name for family in families.FAMILIES.values()])
def test_training_and_asking_on_another_device_give_what_they_give_on_the_cpu(family):
    """Each method, each way of training, both protocols; attention as for a larger model."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TOOLS, TOOLS / "base_model")))}
    done = subprocess.run([sys.executable, SCRIPT, family], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    cpu, card = (json.loads(done.stdout)[device] for device in ("cpu", "card"))
    reads = {name: card.pop(name) for name in list(card) if name.startswith("reads: ")}
    assert card and card.keys() == cpu.keys() - reads.keys()
    for name, values in card.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(values, cpu[name], rtol=1e-4, err_msg=name)
        else:
            assert values == cpu[name], name
    assert not any(cpu[name][0] for name in reads)
    # a token is read once for all rows, and transformers reads the mask; before them, Qwen's sizes of pictures
    assert 0 < reads["reads: tokens"][0] <= 2 * max(cpu["tokens"]) + 40
    assert all(0 < one[0] < 100 for one in reads.values())  # per step, in two pieces
