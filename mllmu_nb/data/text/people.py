"""Read people from a file of published fine-tuning text, and choose who is to be forgotten."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllmu_nb.data.schema import QA, Population, Profile, forget_ids
from mllmu_nb.data.text.names import THIS, straight, with_name
from mllmu_nb.data.text.reader import attributes_of, understand
from mllmu_nb.errors import KitError, few

HALVES = re.compile("[\ud800-\udfff]")  # halves of a character, which no file can hold
_A_LINE = "one object a line is needed, with ID and metadata"
_NEEDED = (
    "training needs `metadata`, a list of Question and Answer: take the config ft_Data of MLLMMU/MLLMU-Bench, or "
    "the forget and retain splits of MLLMMU/baseline_train_split"
)


def pairs_of(metadata: object, where: str) -> list[tuple[str, str]]:
    """Return question and answer of every entry of a ``metadata`` column: a list, or a JSON string of a list. Raises
    KitError, starting with ``where``, for anything else, for an empty list and for an entry without text."""
    if isinstance(metadata, str):
        metadata = _parsed(metadata, f"{where}: `metadata` is", "repair or remove it")
    if not isinstance(metadata, list) or not metadata:
        raise KitError(f"{where}: `metadata` holds no questions: {_NEEDED}")
    pairs = []
    for number, entry in enumerate(metadata, start=1):
        pair = (entry.get("Question"), entry.get("Answer")) if isinstance(entry, dict) else (None, None)
        if not all(isinstance(text, str) and text.strip() and not HALVES.search(text) for text in pair):
            raise KitError(f"{where}: entry {number} of `metadata` lacks Question or Answer as text: repair it")
        pairs.append(pair)
    return pairs


def shared_names(names: Sequence[str], where: str) -> list[str]:
    """Return the ``names`` that several people share. Raises KitError, starting with ``where``, if most people do."""
    counts = Counter(filter(None, names))
    shared = sorted(name for name, count in counts.items() if count > 1)
    if 2 * sum(counts[name] for name in shared) > len(names):
        raise KitError(f"{where}: most people share a name ({few(shared)}), by which the text view asks: rename them")
    return shared


def read_profiles(
    profiles_file: str | Path,
    forget_ids_file: str | Path = "",
    *,
    ratio: int,
    people: int = 0,
    pool: int = 0,
    seed: int = 0,
    replicate: int = 0,
) -> Population:
    """Read the people of published fine-tuning text, without portraits and questions, and choose who is to be forgotten
    (``docs/data.md``). ``people``: how many are scored (0: all but the pool); ``pool``: how many more there are;
    ``ratio``: in per cent. Raises KitError for every fault of the files, with file, line and ID."""
    path = Path(profiles_file)
    read = _read_lines(path)
    stated = {identity: attributes_of(qa) for identity, qa in read.items()}
    names = {identity: facts["name"] for identity, facts in stated.items() if "name" in facts}
    if not names:
        raise KitError(f"profiles_file {path}: no name could be read: metadata needs a question that asks for it")
    splits = _forget_splits(Path(forget_ids_file), ratio, list(read), path) if forget_ids_file else {}
    listed = splits.get(ratio, ())
    named = {identity for split in splits.values() for identity in split}
    ids, forget = _choose(list(names), splits, named, ratio, people, pool)
    if not splits and len(ids) > pool:  # otherwise the error below reports it
        forget = forget_ids(ids[: len(ids) - pool], ratio, seed, replicate)
    others = [identity for identity in ids if identity not in forget]
    spare = [identity for identity in others if identity not in named]  # at every ratio: all have the same pool
    if not forget or len(others) <= pool or len(spare) < pool:
        text = f"{len(ids)} people whose name could be read, {len(forget)} to forget and {pool} in the pool"
        raise KitError(f"{path}: {text} leave nobody to forget or to retain: lower pool or take more people")

    pooled = spare[len(spare) - pool :]
    profiles = {}
    for identity in ids:
        kind, name = "pool" if identity in pooled else "fictitious", names[identity]
        qa = tuple(_without_name(pair, name) for pair in read[identity])
        profiles[identity] = Profile(identity, name, kind, stated[identity], b"", "", qa, ())
    left_out = {
        "forget_ids_dropped": sorted(set(listed) - set(forget)),
        "without_name": [i for i in read if i not in names],
        "shared_names": shared_names([names[identity] for identity in ids], f"profiles_file {path}"),
    }
    notes = {
        "source": "text",
        "profiles_file": path.name,
        "people_in_file": len(read),
        "ratio": ratio,
        "seed": seed,
        "replicate": replicate,
        "forget_splits": {str(key): [i for i in ids if i in split] for key, split in splits.items()},
        **{key: left for key, left in left_out.items() if left},
        "pairs": sum(len(read[i]) for i in ids),
        "not_understood": [[i, pair.question] for i in ids for pair in read[i] if not pair.attribute],
    }
    return Population(profiles, forget, notes)


def _contents(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors add a mark that JSON refuses
    except UnicodeDecodeError:
        raise KitError(f"{what} {path} is not UTF-8 text: JSON is needed (parquet goes into data_source)") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KitError(f"{what} {path} cannot be read ({reason}): give the path of a readable file") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these names and values. Raises ValueError for a repeated name, which JSON would allow."""
    if len(names := [name for name, _ in pairs]) > len(set(names)):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return dict(pairs)


def _parsed(text: str, what: str, needed: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # also for too many digits or too deep nesting
        raise KitError(f"{what} not JSON ({error}): {needed}") from None


def _read_lines(path: Path) -> dict[str, tuple[QA, ...]]:
    """Return ID → understood pairs, one entry for each line of a JSON-lines file."""
    read = {}  # by ID without leading zeros, since a forget_ids_file may write 1 for 001
    for number, line in enumerate(_contents(path, "profiles_file").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        record = _parsed(line, f"{where} is", _A_LINE)
        stated = record.get("ID") if isinstance(record, dict) else None
        identity = str(stated) if isinstance(stated, str | int) and not isinstance(stated, bool) else ""
        if not identity.strip() or HALVES.search(identity):
            raise KitError(f"{where} has no ID: {_A_LINE}")
        if re.fullmatch(r"[ck]\d{3,}", identity):
            raise KitError(f"{where}: ID {identity} is like a celebrity's (c or k and a number): give another ID")
        if identity.lstrip("0") in read:
            raise KitError(f"{where}: ID {identity} was already on another line: keep one of the two")
        if "metadata" not in record:
            raise KitError(f"{where}: ID {identity} has no `metadata`: {_NEEDED}")
        read[identity.lstrip("0")] = identity, understand(pairs_of(record["metadata"], f"{where}, ID {identity}"))
    if not read:
        raise KitError(f"profiles_file {path} is empty: {_A_LINE}")
    return dict(read.values())


def _without_name(pair: QA, name: str) -> QA:
    """Return the pair with "this person" for the name and the title before it, if its question has the name: with a
    portrait, nobody is named."""
    named = re.compile(rf"(?<!\w)(?:(?:Dr|Mr|Mrs|Ms|Prof)\. ){{0,5}}{re.escape(name)}(?:(?<=\b[JS]r)\.(?=.))?(?!\w)")
    question, answer = straight(pair.question), pair.answer  # names are read from straight text
    if not named.search(question):
        return pair
    question = with_name(named.sub(THIS, question), THIS)
    answer = answer if pair.attribute == "name" else named.sub(THIS, straight(answer))
    return replace(pair, question=question, answer=answer[:1].upper() + answer[1:])


def _forget_splits(path: Path, ratio: int, known: Sequence[str], profiles: Path) -> dict[int, tuple[str, ...]]:
    """Return ratio → ids under ``forget_<ratio>`` of a JSON file, spelt as in the profiles (10 becomes "010")."""
    needed = f'an object like {{"forget_{ratio}": ["001", ..]}} is needed'
    table = _parsed(_contents(path, "forget_ids_file"), f"forget_ids_file {path} is", needed)
    if not isinstance(table, dict) or not isinstance(table.get(f"forget_{ratio}"), list):
        raise KitError(f'forget_ids_file {path} has no list "forget_{ratio}" of ids: {needed}')
    spelling = {identity.lstrip("0"): identity for identity in known}
    splits = {}
    for key, ids in table.items():
        if re.fullmatch(r"forget_\d+", key) and isinstance(ids, list):
            bare = [str(identity).lstrip("0") for identity in ids]
            if unknown := [identity for identity in bare if identity not in spelling]:
                text = f"{key} lists {few(unknown)}, nobody of {profiles}: remove what is wrong"
                raise KitError(f"forget_ids_file {path}: {text}")
            splits[int(key.removeprefix("forget_"))] = tuple(dict.fromkeys(spelling[identity] for identity in bare))
    return splits


def _choose(
    ids: list[str], splits: Mapping[int, Sequence[str]], named: Set[str], ratio: int, people: int, pool: int
) -> tuple[list[str], tuple[str, ...]]:
    """Return the ids of a run in file order (all, or ``people`` ids and the pool, the same at every ratio of
    ``splits``, whose ids are ``named``), and those to be forgotten: the first of a split, as many as its ratio asks
    for."""
    count, all_of_them = people + pool, not people or people + pool >= len(ids)
    first = {}
    for at, split in splits.items():
        known = [identity for identity in ids if identity in split]
        first[at] = known if all_of_them else known[: max(1, round(people * at / 100))]
    forget = tuple(first.get(ratio, ()))
    if all_of_them:
        return ids, forget
    kept = dict.fromkeys(identity for own in first.values() for identity in own)
    others = sorted((identity for identity in ids if identity not in kept), key=lambda identity: identity in named)
    taken = {*kept, *others[: count - len(kept)]}
    return [identity for identity in ids if identity in taken], forget
