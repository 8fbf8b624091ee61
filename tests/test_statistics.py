"""Intervals by person, rankings and two samples: cases computed by hand, and coverage."""

import importlib.util
from itertools import product
from math import inf, nan, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from scipy.stats import t as student
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from mllmu_nb.errors import KitError
from mllmu_nb.statistics.intervals import (
    Interval,
    crossed,
    effective_items,
    equivalence,
    interval,
    paired_difference,
    paired_p,
    resample_counts,
    standard_errors,
)
from mllmu_nb.statistics.ranking import letter, shared_letters
from mllmu_nb.statistics.samples import Pairs, Sample, hits, jackknife, jensen_shannon, jensen_shannon_by_chance, ks
from mllmu_nb.statistics.variance import variance_split

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def people(count: int, items: int) -> np.ndarray:
    return np.repeat([f"p{number:03d}" for number in range(count)], items)


def answers(rng, count: int, items: int, share: float, correlation: float) -> np.ndarray:
    """Right/wrong answers; people's shares have a beta distribution with the given intra-person correlation."""
    spread = (1 - correlation) / correlation
    own = rng.beta(share * spread, (1 - share) * spread, count)
    return (rng.random((count, items)) < own[:, None]).astype(float).ravel()


def test_few_people_give_students_interval_of_their_means():
    # means .5, 1, 0: mean .5, standard deviation .5, standard error .5/sqrt(3), t(.975, 2) = 4.302653
    values, who = [1, 0, 1, 1, 0, 0], ["a", "a", "b", "b", "c", "c"]
    found = interval(values, who, bounds=(-10, 10))
    assert (found.value, found.n_items, found.n_profiles) == (0.5, 6, 3)
    assert found.high - 0.5 == pytest.approx(4.302653 * 0.5 / sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(1 - found.high)


def test_unequal_numbers_of_items_weigh_people():
    # sums 2 of 4 and 1 of 1 → 3/5; residuals 2 − 2.4 = −.4 and 1 − .6 = .4; se = sqrt(2/1 · .32)/5 = .16
    found = interval([1, 1, 0, 0, 1], list("aaaab"), bounds=(-10, 10))
    assert found.value == 0.6
    assert found.high == pytest.approx(0.6 + 12.706205 * 0.16, rel=1e-6)  # t(.975, 1)


def test_the_interval_is_clipped_to_the_range():
    found = interval([0.1, 0.9, 0.2], ["a", "b", "c"])
    assert (found.low, found.high) == (0.0, 1.0)
    assert interval([2.0, 9.0, 9.0], ["a", "b", "c"], bounds=(1, 10)).high == 10.0


def test_bootstrap_of_many_people_agrees_with_the_normal_interval():
    rng = np.random.default_rng(4)
    own = rng.random(200)
    found = interval(np.repeat(own, 3), people(200, 3))
    reach = 1.96 * own.std(ddof=1) / sqrt(200)  # a person's three answers are equal: only people count
    assert found.high - found.value == pytest.approx(reach, rel=0.1)
    assert found.value - found.low == pytest.approx(reach, rel=0.1)


def test_effective_items_lie_between_people_and_items():
    alike = np.array([5.0, 0.0] * 10)  # every person all right or all wrong: correlation 1
    mixed = np.array([2.0, 3.0] * 10)  # people differ less than by chance: correlation 0
    counts = np.full(20, 5.0)
    assert effective_items(alike, counts) == pytest.approx(20, rel=0.2)
    assert effective_items(mixed, counts) == pytest.approx(100)
    assert effective_items(np.ones(20), np.ones(20)) == 20
    # a perfect score with its imagined person, by hand: between .11364, within .028409 → ICC .375 → 50/2.5
    assert effective_items(np.full(10, 5.0), np.full(10, 5.0)) == pytest.approx(20.0, abs=0.01)


# With the imagined half-right person the ICC is .375, so 5 answers of a person are worth 5/2.5 = 2 independent ones;
# Wilson's lower limit of a perfect score is 1/(1 + 1.96²/items).
@pytest.mark.parametrize(("count", "items"), [(10, 20), (90, 180)])
def test_a_perfect_score_is_not_certain(count, items):
    perfect = interval(np.ones(count * 5), people(count, 5))
    nothing = interval(np.zeros(count * 5), people(count, 5))
    assert perfect.value == perfect.high == 1.0 and perfect.low == pytest.approx(1 / (1 + 3.8415 / items), abs=1e-5)
    assert nothing.low == 0.0 and nothing.high == pytest.approx(1 - perfect.low)


def test_no_interval_of_a_score_without_spread_is_a_point():
    rng = np.random.default_rng(9)
    for count in (1, 2, 5, 10, 29, 30, 75, 150):
        who = np.repeat(np.arange(count), rng.integers(1, 12, count))
        for score in (0.0, 0.1, 0.7, 1.0):
            alike = np.full(len(who), score)
            found = interval(alike, who)
            assert found.low <= score <= found.high and found.high - found.low > 0.5 / len(who)
            both = paired_difference(alike, alike, who)
            assert both.low < -0.5 / len(who) and both.high > 0.5 / len(who)
        apart = paired_difference(np.ones(len(who)), np.zeros(len(who)), who)
        assert apart.high - apart.low > 0.5 / len(who)


def test_replicates_crossed_with_people_by_hand():
    # nested: two replicates of two people, means 1/4 and 3/4: the variance of their mean is (1/8)/2 on one degree
    nested = crossed([0, 0.5, 0.5, 1], list("abcd"), [0, 0, 1, 1])
    assert nested == pytest.approx((0.5, 1 / 16, 1))
    # crossed without interaction: people 0 and 1 in both replicates, without a difference between these
    shared = crossed([0, 1, 0, 1, 0, 1], list("ababab"), [0, 0, 1, 1, 2, 2])
    assert shared == pytest.approx((0.5, 1 / 4, 1)), "the sd of the two people's means is 1/sqrt(2)"


def test_replicates_crossed_with_people_are_an_analysis_of_variance():
    """Everybody is in every replicate with equal numbers: expected mean squares of two crossed random factors."""
    table = np.array([[0.9, 0.2, 0.6, 0.4], [0.5, 0.1, 0.7, 0.3], [0.8, 0.4, 0.2, 0.6]])
    rows = pd.DataFrame([(r, p, table[r, p]) for r in range(3) for p in range(4)], columns=["replicate", "person", "y"])
    squares = anova_lm(ols("y ~ C(replicate) + C(person)", rows).fit())["mean_sq"]
    between, people_too, rest = squares["C(replicate)"], squares["C(person)"], squares["Residual"]
    assert people_too > rest > 0, "else the variance between people is cut off at 0"
    variance = (between + people_too - rest) / 12
    df = variance**2 / ((between / 12) ** 2 / 2 + ((people_too - rest) / 12) ** 2 / 3)
    values, who, replicate = (rows[name].to_numpy() for name in ("y", "person", "replicate"))
    assert crossed(values, who, replicate) == pytest.approx((table.mean(), variance, df))
    p = paired_p(values, who, replicate)
    assert p == pytest.approx(2 * student.sf(table.mean() / sqrt(variance), df))


def test_the_interval_of_a_method_is_on_the_logit_scale_of_replicates():
    values, who, replicate = [0.9, 0.7, 0.8], list("abc"), [0, 1, 2]
    found = interval(values, who, replicates=replicate)
    reach = 4.302653 * 0.1 / sqrt(3) / (0.8 * 0.2)
    assert found.n_replicates == 3 and found.low == pytest.approx(1 / (1 + np.exp(reach) / 4), rel=1e-6)
    assert found.high - 0.8 < 0.8 - found.low, "not symmetric"
    assert interval(values, who, replicates=[1, 1, 1]) == interval(values, who), "one replicate: over people"


def test_no_method_without_spread_is_certain():
    values, who, replicate = np.ones(60), np.tile(people(4, 5), 3), np.repeat([0, 1, 2], 20)
    alone, method = interval(values, who), interval(values, who, replicates=replicate)
    assert (method.low, method.high, method.n_replicates) == (alone.low, alone.high, 3) and alone.low < 0.95
    same = paired_difference(values, values, who, replicates=replicate)
    assert same.low < -0.02 < 0.02 < same.high


@pytest.fixture(scope="module")
def replicates():
    spec = importlib.util.spec_from_file_location("replicates", BENCHMARKS / "replicates.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_intervals_of_methods_cover_what_they_promise(replicates):
    table, known = replicates.simulate(runs=300, seed=1), pd.read_csv(BENCHMARKS / "replicates.csv")
    error = sqrt(0.95 * 0.05 / 300)  # for so few runs
    assert (table["coverage"] > 0.92 - 3 * error).all()
    assert table["coverage"].mean() < 0.98, "intervals that always hold the truth say nothing"
    assert ((table["coverage"] - known["coverage"]).abs() < 4 * error).all()


def test_the_page_on_scoring_says_how_often_intervals_of_methods_hold_the_truth(replicates):
    table = pd.read_csv(BENCHMARKS / "replicates.csv")
    grid = product(replicates.SETS, replicates.MEANS, replicates.SPREADS, ("level", "difference"))
    assert list(table[["people", "mean logit", "replicate sd", "of"]].itertuples(index=False, name=None)) == list(grid)
    assert (table["runs"] >= 2000).all()
    coverage = table["coverage"]
    low = table[coverage < replicates.BAR[0]]
    assert ((low["replicate sd"] == 1.2) & (low["mean logit"] == 3.0)).mean() > 0.5, "mostly around a score of .9"
    missed = table[coverage < replicates.BAR[0] - 2 * sqrt(0.95 * 0.05 / 2000)]
    assert set(missed["people"]) == {"kept, 3 x (10 + 10)", "celebrity, 3 x 40"}, "as the script says"
    assert len(missed) == 2 and set(missed["share"]) == {0.91}
    shown = {"all": f"{coverage.between(*replicates.BAR).mean():.0%}".replace("%", " %")}
    for end in ("idxmin", "idxmax"):
        row = table.loc[getattr(coverage, end)()]
        shown[end] = f"{100 * row['coverage']:.1f} % ({row['of']} of `{row['people']}`)"
    kept = 100 * table[table["people"].str.startswith("kept, 10 ")]["coverage"]
    text = (BENCHMARKS.parent / "docs" / "scoring.md").read_text(encoding="utf-8")
    assert (
        f"In {shown['all']} of its {len(table)} cells the interval holds the truth in 92 to 97 % of 2,000 simulated "
        f"data sets; the lowest coverage is {shown['idxmin']}, the highest {shown['idxmax']}. For what the README "
        f"compares (half Retain, half celebrities, ten replicates), it is {kept.min():.1f} to {kept.max():.1f} %."
    ) in " ".join(text.split())


def test_the_table_of_coverage_of_methods_is_what_the_intervals_do(replicates):
    table = pd.read_csv(BENCHMARKS / "replicates.csv").set_index(["people", "mean logit", "replicate sd"]).sort_index()
    for name in ("forget, 5 x 5", "kept, 3 x (10 + 10)"):  # the quickest of each kind
        again = replicates.cell(name, 1.5, 0.4, 2000, 0)
        assert [row["coverage"] for row in again] == pytest.approx(table.loc[name, 1.5, 0.4]["coverage"], abs=1e-3)
        assert {row["share"] for row in again} == set(table.loc[name, 1.5, 0.4]["share"])


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARKS / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def simulated():
    return pd.read_csv(BENCHMARKS / "coverage.csv", keep_default_na=False)


def test_the_table_of_coverage_is_whole_and_keeps_its_promise(benchmark, simulated):
    sizes = [benchmark.ACCURACIES, benchmark.PROFILES, benchmark.CORRELATIONS, benchmark.ITEMS, [0.0]]
    grid = set(pd.MultiIndex.from_product([benchmark.STATISTICS, *sizes]))
    grid |= {("sparse", share, n, 0.0, 10, lost) for share, lost in benchmark.SPARSE for n in benchmark.PROFILES}
    assert set(simulated.set_index(benchmark.CELL).index) == grid and len(simulated) == len(grid)
    assert (simulated["runs"] >= 2000).all() and benchmark.missed(simulated).empty
    sparse = simulated["statistic"] == "sparse"
    assert (simulated.loc[sparse, "inside"].astype(float) < 0.05).all(), "hardly ever falsely inside"
    promised = ~sparse & (simulated["profiles"] >= 10) & (simulated["accuracy"] <= 0.8)
    assert simulated.loc[promised, "coverage"].between(0.92, 0.97).all()
    assert (simulated["beware"] != "").eq(~promised).all(), "every other cell is warned against, and no promised one"


def test_the_table_of_coverage_is_what_the_intervals_do(benchmark, simulated):
    # here, both Wilson's and Student's intervals occur
    [mine] = simulated[(simulated[benchmark.CELL] == ["interval", 0.8, 10, 0.1, 4, 0.0]).all(axis=1)].to_dict("records")
    again = benchmark.cover("interval", mine["runs"], 0, 0.8, 10, 0.1, 4)
    assert again["coverage"] == pytest.approx(mine["coverage"], abs=1e-4)
    assert again["half_width"] == pytest.approx(mine["half_width"], abs=1e-5)


@pytest.mark.parametrize("count", [20, 60])
def test_paired_is_narrower_than_unpaired_where_models_agree(count):
    rng = np.random.default_rng(5)
    who = people(count, 5)
    first = answers(rng, count, 5, 0.6, 0.5)
    second = np.where(rng.random(len(first)) < 0.1, 0.0, first)
    found, a, b = paired_difference(first, second, who), interval(first, who), interval(second, who)
    assert found.value == pytest.approx(a.value - b.value)
    assert found.high - found.low < 0.7 * sqrt((a.high - a.low) ** 2 + (b.high - b.low) ** 2)
    assert found.low <= found.value <= found.high


def test_paired_difference_by_hand_and_without_spread():
    # differences of the people's means are 1, 0, .5: mean .5, sd .5
    found = paired_difference([1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], list("aabbcc"))
    assert found.value == 0.5 and found.low == pytest.approx(-0.742, abs=0.001) and found.high == 1.0
    same = paired_difference(np.ones(50), np.ones(50), people(10, 5))
    single = interval(np.ones(50), people(10, 5))
    assert same.value == 0 and same.high == pytest.approx(1 - single.low) and same.low == -same.high
    lost = paired_difference(np.ones(50), np.zeros(50), people(10, 5))
    assert lost.value == lost.high == 1 and 0.6 < lost.low < 1


@pytest.mark.parametrize("first", [np.ones(100), np.tile([1.0, 0.0], 50)])
def test_a_first_disagreement_makes_no_interval_narrower(first):
    """Ten people with ten questions: the second model differs on one question of one, two, three people."""
    who, widths = people(10, 10), []
    for differing in range(4):
        second = first.copy()
        second[: 10 * differing : 10] = 1 - second[: 10 * differing : 10]
        found = paired_difference(first, second, who)
        assert found.value == pytest.approx(differing / 100) and found.low < 0 < found.high
        assert equivalence(found, 0.1) == "undecided", "somebody not asked may be forgotten as a whole"
        widths.append(found.high - found.low)
    assert all(wider >= width - 1e-9 for width, wider in zip(widths, widths[1:], strict=False))
    # the first model against itself, by hand: the limits of two independent intervals
    own = interval(first, who)
    assert widths[0] == pytest.approx(2 * sqrt((own.value - own.low) ** 2 + (own.high - own.value) ** 2))


@pytest.mark.parametrize("count", [10, 40])
def test_the_error_behind_an_interval_is_found_again(count):
    rng = np.random.default_rng(1)
    values, who = rng.normal(0.5, 0.05, 4 * count), people(count, 4)
    made = interval(values, who)
    own = values.reshape(count, 4).mean(1).std(ddof=1) / count**0.5
    assert standard_errors([made.low], [made.high], [count]) == pytest.approx([own], rel=1e-6 if count < 30 else 0.05)


def test_a_difference_that_is_rounding_alone_is_none():
    """.1 + .2 - .3 is 6e-17 for every person."""
    one, other = np.tile([0.1, 0.2, 0.0], 5), np.tile([0.0, 0.0, 0.3], 5)
    assert paired_p(one - other, people(5, 3), [0, 1, 2] * 5) == 1


def test_paired_p_by_hand_and_where_everybody_differs_alike():
    # two replicates with the same mean, so the people decide: means 1, 0, 1, 0 give t = .5 / (1/sqrt 12) = sqrt 3
    assert paired_p([1, 0, 1, 0], list("abcd"), [0, 0, 1, 1]) == pytest.approx(2 * student.sf(sqrt(3), 3))
    assert paired_p([0.0, 0.0], ["a", "b"], [0, 1]) == 1.0
    assert paired_p(np.ones(8), list("aabbccdd"), [0, 1] * 4) == 2**-3  # four people, all in one direction
    assert paired_p([1.0, 1.0], ["a", "a"], [0, 1]) == 1.0  # one person shows nothing


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.04, "inside"),
        (-0.05, 0.05, "inside"),
        (0.06, 0.2, "outside"),
        (-0.2, -0.06, "outside"),
        (0.02, 0.08, "undecided"),  # maybe not 0, and maybe not relevant
        (-0.2, 0.2, "undecided"),
        (nan, nan, "undecided"),
    ],
)
def test_equivalence(low, high, verdict):
    assert equivalence(Interval((low + high) / 2, low, high, 10, 5), 0.05) == verdict


def test_values_not_measured_are_left_out():
    found = interval([1, nan, 0, nan, 1], list("aabbc"))
    assert (found.n_items, found.value) == (3, pytest.approx(2 / 3))
    empty = interval([nan], ["a"])
    assert empty.n_items == 0 and np.isnan([empty.value, empty.low, empty.high]).all()
    assert paired_difference([1, nan, 1, 0], [1, 1, 0, 0], list("abab")).n_items == 3


def test_bad_scores_are_refused():
    with pytest.raises(KitError, match="outside its range 0 to 1"):
        interval([0.5, 7.0], ["a", "b"])


def test_a_score_without_ends_has_students_interval_and_none_without_spread():
    found = interval([-3.0, -1.0, -9.0, -7.0], list("aabb"), bounds=(-inf, inf))
    # means -2 and -8: standard error 3, t(.975, 1) = 12.706
    assert (found.value, found.low) == (-5.0, pytest.approx(-5 - 12.706205 * 3))
    alike = interval([-3.0, -3.0], ["a", "b"], bounds=(-inf, inf))
    assert alike.value == -3.0 and np.isnan([alike.low, alike.high]).all()
    both = paired_difference([-1.0, -2.0, -5.0], [-2.0, -4.0, -5.0], list("abc"), bounds=(-inf, inf))
    assert both == interval([1.0, 2.0, 0.0], list("abc"), bounds=(-inf, inf))


# rankings


def test_groups_share_a_letter_exactly_if_they_are_not_told_apart():
    def letters(names, *apart):
        return shared_letters(list(names), [frozenset(pair) for pair in apart])

    assert letters("abc") == {"a": "a", "b": "a", "c": "a"}
    assert letters("ab", "ab") == {"a": "a", "b": "b"}
    assert letters("abcd", "ad", "bd") == {"a": "a", "b": "a", "c": "ab", "d": "b"}
    # the first two differ, and the third, less certain, differs from neither: a single order cannot show this
    assert letters("abc", "ab") == {"a": "a", "b": "b", "c": "ab"}
    assert letters("") == {} and [letter(n) for n in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


# two samples


def sample(rng, count: int, shift: float, name: str = "p", each: int = 12) -> Sample:
    who = np.repeat([f"{name}{n}" for n in range(count)], each)
    return Sample(rng.normal(shift, 1, count * each), who)


def test_the_area_is_half_without_a_difference_and_the_librarys_with_one():
    rng = np.random.default_rng(0)
    value, low, high = Pairs([(sample(rng, 40, 0), sample(rng, 40, 0))]).auc()
    assert abs(value - 0.5) < 0.06 and low < 0.5 < high
    ours, fresh = (Sample(one.values.round(1), one.people) for one in (sample(rng, 10, 1), sample(rng, 25, 0)))  # ties
    pairs = Pairs([(ours, fresh)])
    value, low, high = pairs.auc()
    # Mann and Whitney's U over all pairs is the area
    assert value == pytest.approx(mannwhitneyu(ours.values, fresh.values).statistic / (120 * 300))
    assert 0.5 < low < value < high and pairs.auc() == (value, low, high)  # the draws are always the same


def test_models_of_several_forget_sets_are_each_compared_with_its_own_negatives():
    rng, parts = np.random.default_rng(1), []
    for level in (0.0, 50.0):  # another model has another scale: pooled, its negatives would beat the first's positives
        parts.append((sample(rng, 5, level + 1, f"{level}/"), sample(rng, 8, level)))
    both = Pairs(parts)
    assert both.auc()[0] == pytest.approx(np.mean([Pairs([part]).auc()[0] for part in parts]))
    assert both.count.shape == (10, 8)


def test_an_area_close_to_its_end_is_not_certain_and_a_model_is_not_different_from_itself():
    rng = np.random.default_rng(2)
    ours, fresh = sample(rng, 5, 99), sample(rng, 25, 0)
    perfect = Pairs([(ours, fresh)])
    value, low, high = perfect.auc()
    assert value == 1 and low < 0.7 and high == pytest.approx(1)
    value, low, high = perfect.minus(perfect)
    assert value == 0 and low < 0 < high
    ours.values[0] = -99  # one sentence of sixty
    value, low, high = Pairs([(ours, fresh)]).auc()
    assert value == pytest.approx(59 / 60) and low < 0.6 and value < high <= 1
    gap, low, high = Pairs([(ours, fresh)]).minus(perfect)
    assert gap == pytest.approx(-1 / 60) and low < -0.3 and high > 0.3


def test_an_area_of_few_people_has_students_interval():
    rng = np.random.default_rng(4)
    pairs = Pairs([(sample(rng, 5, 0.5), sample(rng, 25, 0))])
    value, low, high = pairs.auc()
    drawn = [resample_counts(count, 2000, side) for side, count in enumerate(pairs.count.shape)]
    sums = [np.einsum("ri,ij,rj->r", drawn[0], pairs_of, drawn[1]) for pairs_of in (pairs.higher, pairs.count)]
    resampled = sums[0] / sums[1]
    reach = 2.776 * resampled.std(ddof=1) * sqrt(5 / 4)  # t of .975 with 4 degrees
    assert (value - low, high - value) == pytest.approx((reach, reach), rel=1e-3)
    percentiles = np.quantile(resampled, [0.025, 0.975])
    assert low < percentiles[0] and percentiles[1] < high
    value, low, high = Pairs([(sample(rng, 1, 0.5), sample(rng, 25, 0))]).auc()
    assert low < 0.2 and high > 0.9  # one person shows little


def test_the_true_positive_rate_is_read_where_few_negatives_pass():
    who = np.array(["p"] * 4)
    ours, fresh = Sample(np.array([98.5, 97.5, 94.5, 93.5]), who), Sample(np.arange(100.0), np.array(["f"] * 100))

    def tpr(models, level):
        return hits(models, level).values.mean()

    assert hits([(ours, fresh)], 0.01).values.tolist() == [1, 0, 0, 0]  # one of a hundred negatives is above 98.5
    assert tpr([(ours, fresh)], 0.05) == 0.75
    alike = Sample(np.full(100, 95.0), fresh.people)  # they pass all together or not at all
    assert tpr([(ours, alike)], 0.05) == 0.5 and tpr([(ours, fresh), (ours, alike)], 0.01) == (1 + 2) / 8
    assert tpr([(ours, fresh)], 1.0) == 1.0


def test_the_jackknife_of_a_mean_is_students_interval_over_its_groups():
    values, groups = np.random.default_rng(5).normal(size=(6, 20)), np.repeat(np.arange(6), 20)
    means = values.mean(1)
    reach = 2.5706 * means.std(ddof=1) / sqrt(6)  # t of .975 with 5 degrees
    ends = jackknife(np.mean, [values.ravel()], groups)
    assert ends == pytest.approx((means.mean() - reach, means.mean() + reach), rel=1e-4)
    assert np.isnan(jackknife(np.mean, [values.ravel()], np.zeros(120))).all()


def test_distances_of_distributions():
    rng = np.random.default_rng(3)
    who = np.repeat(np.arange(30), 5)
    a, b = rng.beta(2, 2, 150), rng.beta(2, 2, 150)
    assert 0 < jensen_shannon(a, b) <= jensen_shannon_by_chance(a, b, who) < 1
    low, high = np.full(150, 0.05), np.full(150, 0.95)
    assert jensen_shannon(low, high) == pytest.approx(1)  # nothing in common
    assert jensen_shannon_by_chance(low, high, who) < 0.5
    assert ks(low, high)[0] == 1 and ks(low, high)[1] < -80


def one_at_a_time(values: dict[str, list[float]], base: float) -> pd.DataFrame:
    """Return a base run with every factor at 0, and for each factor one run per further level."""
    rows = [dict.fromkeys(values, 0) | {"value": base}]
    for name, found in values.items():
        rows += [dict.fromkeys(values, 0) | {name: level, "value": v} for level, v in enumerate(found, start=1)]
    return pd.DataFrame(rows)


def test_variance_split_by_hand():
    table = one_at_a_time({"replicate": [0.4, 0.6], "train_seed": [0.52, 0.48], "shot_seed": []}, base=0.5)
    table["se"] = 0.06
    found = variance_split(table, ["replicate", "train_seed", "shot_seed"], ["replicate"]).set_index("factor")
    # var(.5, .4, .6) = .01, less .06² = .0064; chi-square on 2 degrees: 2 · .01/7.3778 and 2 · .01/.050636
    draw = found.loc["replicate"]
    assert draw["levels"] == 3 and draw["variance"] == pytest.approx(0.0064) and draw["sd"] == pytest.approx(0.08)
    assert draw["low"] == 0.0 and draw["high"] == pytest.approx(0.39498 - 0.0036, rel=1e-4)
    # var(.5, .52, .48) = .0004: the same people are asked, so their error is not in it
    training = found.loc["train_seed"]
    ends = 2 * 0.0004 / 7.3778, 2 * 0.0004 / 0.050636
    assert training[["variance", "sd", "low", "high"]].tolist() == pytest.approx([0.0004, 0.02, *ends], rel=1e-3)
    training = variance_split(table, ["replicate", "train_seed"], ["train_seed"]).set_index("factor").loc["train_seed"]
    # less than sampling alone gives: 0, but the upper limit is kept
    assert (training["variance"], training["sd"], training["low"]) == (0, 0, 0)
    assert training["high"] == pytest.approx(ends[1] - 0.0036, rel=1e-3)
    assert found.loc["shot_seed", "levels"] == 1 and np.isnan(found.loc["shot_seed", "variance"])


def test_variance_split_of_a_crossed_design_keeps_factors_apart():
    draws, seeds = np.meshgrid([-0.1, 0.0, 0.1], [-0.02, 0.02], indexing="ij")
    table = pd.DataFrame({"value": (0.5 + draws + seeds).ravel(), "draw": np.repeat([0, 1, 2], 2), "seed": [0, 1] * 3})
    found = variance_split(table.assign(se=0.0), ["draw", "seed"], []).set_index("factor")
    assert found["variance"].tolist() == pytest.approx([0.01, 0.0008])
    assert found["levels"].tolist() == [3, 2]  # a level counts once, even if it is in several groups


def test_variance_split_refuses_what_it_cannot_split():
    table = one_at_a_time({"draw": [0.4], "seed": [0.5]}, base=0.5)
    with pytest.raises(KitError, match="two rows have draw 0, seed 0"):
        variance_split(pd.concat([table, table.head(1)]), ["draw", "seed"], [])


def test_simulated_answers_have_the_accuracy_and_correlation_of_their_cell(benchmark):
    first, second = benchmark.answers(np.random.default_rng(1), 400, 50, 10, 0.8, 0.4)
    for found, share in ((first, 0.8), (second, 0.7)):
        means = found.reshape(400 * 50, 10).mean(axis=1)
        assert means.mean() == pytest.approx(share, abs=0.01)
        # variance of a person's mean of ten: p (1 - p) / 10 · (1 + 9 · .4)
        assert means.var() == pytest.approx(share * (1 - share) * 0.46, rel=0.05)
    assert 0.2 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.8  # the people and questions are the same
