"""What answers are scored against: everybody's questions and facts, and the join of both with answers."""

from __future__ import annotations

import pandas as pd

from mllmu_nb.data.schema import LETTERS, Population

IN_ANSWERS = ["profile", "task", "view", "number"]  # columns of questions that answers have already, or need not


def people_frames(known: Population) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a question, as ``plain`` or as the ``test`` set asks it; and a row a fact."""
    questions = [
        {
            "version": version,
            "question_id": q.id,
            **{name: getattr(q, name) for name in (*IN_ANSWERS, "attribute")},
            "question": q.text,
            "answer_true": q.answer,
            "value": q.value,
            **{f"option_text_{letter}": text for letter, text in zip(LETTERS, q.options, strict=False)},
        }
        for person in known.profiles.values()
        for version, asked in (("plain", person.questions), ("test", person.test_questions))
        for q in asked
    ]
    facts = [(p.id, p.kind, p.name, *fact) for p in known.profiles.values() for fact in p.attributes.items()]
    return pd.DataFrame(questions), pd.DataFrame(facts, columns=["profile", "kind", "name", "attribute", "value"])


def with_questions(answers: pd.DataFrame, questions: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """``answers`` with their questions, and ``rivals``: all values that anybody has for the attribute asked for.

    The question of an answer that ``questions`` lack is NaN.
    """
    values = {attribute: tuple(rows.unique()) for attribute, rows in facts.groupby("attribute")["value"]}
    rivals = [values.get(attribute, ()) for attribute in questions["attribute"]]
    questions = questions.drop(columns=IN_ANSWERS).assign(rivals=rivals)
    answers = answers.assign(version=answers["set"].eq("test").map({True: "test", False: "plain"}))
    joined = answers.merge(questions, on=["version", "question_id"], how="left", validate="many_to_one")
    return joined.drop(columns="version")
