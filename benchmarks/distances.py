"""How often the limits of KS and JS contain the true distance: python benchmarks/distances.py [--runs 400]

Simulates truth ratios of a model and its oracle, five questions a person. A ratio is the logistic function of a normal
number, with effects of the person and the question that both models share, and of the replicate that only the model
has. The true distance is that of four million questions. Near 0 both distances of a sample are too large, so there
the limits miss the truth.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from scipy.special import expit

from mllmu_nb.statistics.samples import jackknife, jensen_shannon, ks

# replicates, people in each, shift of the model's logit, standard deviation of the effect of a replicate
WORLDS = ((10, 10, -1.0, 0.4), (10, 10, -0.3, 0.4), (10, 10, 0.0, 0.1), (5, 5, -1.0, 0.4), (3, 15, -1.0, 0.4))
DISTANCES = {"KS": lambda ours, theirs: ks(ours, theirs)[0], "JS": jensen_shannon}
QUESTIONS, PERSON, OWN = 5, 0.5, 0.7
MANY = 2000  # replicates and, in each, as many questions, for the true distance


def drawn(rng, replicates: int, people: int, shift: float, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the truth ratios of the model and of its oracle, and the replicate of each question, all [questions]."""
    shape = replicates, people, QUESTIONS
    person, question = PERSON * rng.normal(size=(*shape[:2], 1)), rng.normal(size=shape)
    ours = shift + spread * rng.normal(size=(replicates, 1, 1)) + person + question + OWN * rng.normal(size=shape)
    theirs = person + question + OWN * rng.normal(size=shape)
    return expit(ours).ravel(), expit(theirs).ravel(), np.repeat(np.arange(replicates), people * QUESTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    runs, rows = parser.parse_args().runs, []
    for number, world in enumerate(WORLDS):
        rng = np.random.default_rng(number)
        ours, theirs, _ = drawn(rng, MANY, MANY // QUESTIONS, *world[2:])
        for name, distance in DISTANCES.items():
            true, held, values = distance(ours, theirs), 0, []
            for _ in range(runs):
                *samples, replicate = drawn(rng, *world)
                low, high = jackknife(distance, samples, replicate)
                held, values = held + (low <= true <= high), [*values, distance(*samples)]
            row = dict(zip(("replicates", "people", "shift", "spread"), world, strict=True))
            rows.append(row | {"distance": name, "true": true, "mean": np.mean(values), "coverage": held / runs})
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
