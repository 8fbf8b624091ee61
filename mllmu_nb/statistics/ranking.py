"""Letters for groups of names that cannot be told apart."""

from collections.abc import Hashable, Iterable, Sequence


def shared_letters(names: Sequence[Hashable], apart: Iterable[frozenset]) -> dict[Hashable, str]:
    """Return name → letters: two names share a letter exactly if they are not ``apart``; the first name has an "a".
    (Insert and absorb, Piepho 2004: one group of all is split at every pair, and groups inside another group are
    dropped.)"""
    groups = [frozenset(names)]
    for pair in apart:
        split = {group - {one} for group in groups if pair <= group for one in pair}
        split |= {group for group in groups if not pair <= group}
        groups = [group for group in split if not any(group < other for other in split)]
    groups.sort(key=lambda group: sorted(names.index(name) for name in group))
    return {name: "".join(letter(i) for i, group in enumerate(groups) if name in group) for name in names}


def letter(number: int) -> str:
    """0 → a, 25 → z, 26 → aa."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)
