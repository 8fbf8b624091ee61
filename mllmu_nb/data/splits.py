"""Which people are to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllmu_nb.errors import KitError

RATIOS = (5, 10, 15)


def forget_ids(ids: Sequence[str], ratio: int, seed: int, draw: int = 0) -> tuple[str, ...]:
    """The forget ids at ``ratio`` per cent: a seeded sample of ``ids``, sorted; draws of a seed and ratio are disjoint.

    Raises KitError when the ratio leaves nobody to forget or nobody to keep, or the draw lies past the last one.
    """
    count = round(len(ids) * ratio / 100)
    if not 0 < count < len(ids):
        side = "forget" if count <= 0 else "keep"
        raise KitError(f"forget_ratio={ratio} of {len(ids)} people leaves nobody to {side}: raise people or change it")
    if not 0 <= draw < len(ids) // count:
        raise KitError(f"replicate={draw} does not exist: {len(ids)} people at {ratio} % give {len(ids) // count}")
    order = np.random.default_rng([seed, ratio]).permutation(sorted(ids))
    return tuple(sorted(order[draw * count : (draw + 1) * count].tolist()))
