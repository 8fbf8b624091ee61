"""What a model gives each token of the sentences it was, or was never, taught: the raw material of forget quality.

The model is not asked to answer here. It reads the question and the true answer ("teacher forcing"), and at each token
of the answer it is noted how likely that token was to come next. From these few numbers ``reporting.quality`` computes
memorisation and membership inference, so a finished run can be measured anew without its model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from mllmu_nb.data.schema import Population, Profile
from mllmu_nb.evaluation import asked
from mllmu_nb.models.prompts import Conversation, encode
from mllmu_nb.training import label_scores, modality_conversations

VIEWS = {"multimodal": "image_text", "unimodal": "text"}  # what a model is taught in, and how that is asked
FAR = 1e4  # standard deviations; a model that is sure of another token puts the true one beyond any number
HALF = pa.list_(pa.float16())  # three digits are plenty and halve the file
STORED = {"log_probs": HALF, "right": pa.list_(pa.bool_()), "spread": HALF}


class Forced(NamedTuple):
    """One answer read token by token, without its closing token; each array is [tokens].

    ``log_probs``: log p(y_t | x, y_<t) in nats. ``right``: whether y_t was the likeliest token. ``spread``: how many
    standard deviations log p(y_t) lies above its mean, both taken over the vocabulary under p (what Min-K++ sums up).
    """

    log_probs: np.ndarray
    right: np.ndarray
    spread: np.ndarray


def teacher_forced(
    model, processor, conversations: Sequence[Conversation], batch_size: int = 64, progress: str = ""
) -> list[Forced]:
    """Read the answers of ``conversations``, each of one answered turn, in the order given.

    ``progress`` names the bar, which stays silent without a terminal. Raises ``KitError`` for an empty answer.
    """
    order = sorted(range(len(conversations)), key=lambda i: _length(conversations[i]))  # little padding
    found: dict[int, Forced] = {}
    bar = tqdm(total=len(order), desc=progress, mininterval=1.0, disable=None if progress else True)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = encode(processor, [conversations[i] for i in indices], eos=False, device=model.device)
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            scored = label_scores(model, batch)
            tokens = [values.split(scored.counts.tolist()) for values in _measured(scored)]
        for index, *values in zip(indices, *tokens, strict=True):
            found[index] = Forced(*(value.cpu().numpy() for value in values))
        bar.update(len(indices))
    bar.close()
    return [found[index] for index in range(len(order))]


def sentences(
    model,
    processor,
    people: Mapping[str, Sequence[Profile]],
    *,
    system: str = "",
    batch_size: int = 64,
) -> pd.DataFrame:
    """One row a fine-tuning sentence of ``people`` (``member`` → profiles) and view, read by the model as it is taught:
    portrait and "this person", or the name and no picture.

    ``member`` is ``forget`` or ``fresh`` (in no training set); the same number at the end of ``question_id`` is the
    same fact in both views. ``log_probs``, ``right`` and ``spread`` hold an entry a token (:class:`Forced`);
    ``zlib_bytes`` is the length of the compressed answer. ``system`` precedes everything.
    """
    rows, talks = [], []
    for member, profiles in people.items():
        for modality, view in VIEWS.items():
            for person, conversation in zip(profiles, modality_conversations(profiles, modality), strict=True):
                numbered = [(n, qa) for n, qa in enumerate(person.qa) if view == "image_text" or qa.attribute != "name"]
                for (number, qa), turn in zip(numbered, conversation.turns, strict=True):
                    key = f"{person.id}/finetuning/{view}/{number}"
                    told = {"profile": person.id, "member": member, "attribute": qa.attribute}
                    rows.append({**told, "question_id": key, "view": view, "answer": turn.answer})
                    talks.append(Conversation((turn,), system))
    forced = teacher_forced(model, processor, talks, batch_size, "sentences")
    frame = pd.DataFrame(rows, columns=["profile", "member", "attribute", "question_id", "view", "answer"])
    return frame.drop(columns="answer").assign(
        n_tokens=[len(one.right) for one in forced],
        **{name: [getattr(one, name) for one in forced] for name in Forced._fields},
        zlib_bytes=[len(zlib.compress(answer.encode())) for answer in frame["answer"]],
    )


def fluency(
    base,
    processor,
    answers: pd.DataFrame,
    population: Population,
    draws: Mapping[str, Any],
    *,
    sets: Sequence[str],
    limit: int | None = None,
    protocol: str = "clean",
    batch_size: int = 64,
) -> np.ndarray:
    """Mean log-likelihood per token that ``base`` gives each free answer after the same question and picture, [rows].

    ``answers`` are the rows of ``evaluate``, whose settings the others are. NaN for the other tasks and where nothing
    was answered. A system prompt is left out: all models' answers are read in the same place.
    """
    parts = asked(population, draws, sets=sets, limit=limit, shots=0, scoring="letter", protocol=protocol)
    talks = [t for part in parts if part.items and part.items[0].question.task == "generation" for t in part.talks]
    free = np.flatnonzero(answers["task"] == "generation")
    # a model may write anything, even the word that stands for a picture
    texts = [text.replace(processor.image_token, " ").strip() for text in answers["answer"].iloc[free]]
    said = [(row, talk.answered(text)) for row, talk, text in zip(free, talks, texts, strict=True) if text]
    found = np.full(len(answers), np.nan)
    for (row, _), one in zip(said, teacher_forced(base, processor, [t for _, t in said], batch_size), strict=True):
        found[row] = one.log_probs.mean()
    return found


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write what ``sentences`` gives, in half precision."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for name, kind in STORED.items():
        values = [np.asarray(one, kind.value_type.to_pandas_dtype()) for one in frame[name]]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))
    pq.write_table(table, path, compression="zstd")


# ------------------------------------------------------------------------------------------------------------- inside


def _measured(scored) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three quantities of :class:`Forced` for all supervised tokens of a batch, one after the other."""
    mask = scored.mask
    labels, log_p = scored.labels[mask], scored.logits[mask].float().log_softmax(-1)
    chosen = log_p.gather(-1, labels[:, None])[:, 0]
    p = log_p.exp()
    mean = (p * log_p).sum(-1, keepdim=True)
    deviation = (p * (log_p - mean) ** 2).sum(-1).sqrt().clamp(min=1e-6)  # 0 where one token has all of p
    return chosen, log_p.argmax(-1) == labels, ((chosen - mean[:, 0]) / deviation).clamp(-FAR, FAR)


def _length(talk: Conversation) -> tuple[bool, int]:
    return talk.turns[0].image is not None, len(talk.turns[0].prompt) + len(talk.turns[0].answer)
