"""Documents of the tasks of this folder for EleutherAI's evaluation harness, from the generators of `dsf_models.tasks`.

The harness calls these functions with what stands under `metadata` in a task's file, and with entries of its own:

    sizes           sizes of the task
    num_examples    number of documents
    seed            of the examples
    split           of the task

Each document is one row of the task as words (`dsf_models.tasks.words`): what stands in front of the answer, and the
answer.
"""

from typing import Any

import numpy as np
from datasets import Dataset

from dsf_models.errors import require
from dsf_models.tasks import IGNORE_INDEX, get_token_task
from dsf_models.tasks.words import render, word

Documents = dict[str, Dataset]


def mqar(
    *,
    sizes: dict[str, Any] | None = None,
    num_examples: int = 200,
    seed: int = 0,
    split: str = "test",
    **_: Any,
) -> Documents:
    """Multi-query associative recall: each document ends with one query of a row.

    Row r asks for the query r mod K of its K, so that documents are independent.

    Args:
        sizes: of the task `mqar`.
        num_examples: number of documents.
        seed: of the examples.
        split: of the task.

    Returns:
        "test": `context`, `target`, and `choices`, the values that the row has shown.
    """
    task, ids, labels = _rows("mqar", sizes, num_examples, seed, split)
    documents = []
    for number, (row, answers) in enumerate(zip(ids, labels, strict=True)):
        scored = np.flatnonzero(answers != IGNORE_INDEX)
        place = scored[number % len(scored)]
        shown = row[1 : 2 * task.num_pairs : 2]
        documents.append(
            {
                "context": render(row[: place + 1]),
                "target": word(answers[place]),
                "choices": [word(value) for value in dict.fromkeys(shown.tolist())],
            }
        )
    return {"test": Dataset.from_list(documents)}


def needle(
    *,
    sizes: dict[str, Any] | None = None,
    num_examples: int = 200,
    seed: int = 0,
    split: str = "test",
    **_: Any,
) -> Documents:
    """Needle in a haystack: each document ends with marker and key; otherwise as `mqar`, without choices.

    Raises:
        ValueError: the variant asks for several needles one after the other.
    """
    return _whole_answers("needle", sizes, num_examples, seed, split)


def copy(
    *,
    sizes: dict[str, Any] | None = None,
    num_examples: int = 200,
    seed: int = 0,
    split: str = "test",
    **_: Any,
) -> Documents:
    """Input copying: each document ends with the bar; otherwise as `mqar`, without choices."""
    return _whole_answers("input_copying", sizes, num_examples, seed, split)


def _rows(
    name: str, sizes: dict[str, Any] | None, num_examples: int, seed: int, split: str
) -> tuple[Any, np.ndarray, np.ndarray]:
    task = get_token_task(name, **(sizes or {}))
    columns = task.generate(split, seed, 0, num_examples)
    return task, columns["input_ids"], columns["labels"]


def _whole_answers(name: str, sizes: dict[str, Any] | None, num_examples: int, seed: int, split: str) -> Documents:
    """Rows whose answer is the text behind the first scored position."""
    _, ids, labels = _rows(name, sizes, num_examples, seed, split)
    documents = []
    for row, answers in zip(ids, labels, strict=True):
        scored = np.flatnonzero(answers != IGNORE_INDEX)
        first, last = scored[0], scored[-1]
        one_piece = len(scored) == last - first + 1 and (row[first + 1 : last + 1] == answers[first:last]).all()
        require(one_piece, f"{name}.sizes", sizes, "its answers are not one piece of text: choose a variant with one")
        documents.append({"context": render(row[: first + 1]), "target": render(answers[scored])})
    return {"test": Dataset.from_list(documents)}
