"""`task.json` in a checkpoint folder: which task the model was trained on, and what its token ids mean."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsf_models.hub.files import write_json

_FILE = "task.json"


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The task behind a checkpoint: what says what to feed a model that has no tokenizer, and how to score it."""

    name: str
    """Name of the task."""

    sizes: Mapping[str, Any]
    """All its sizes."""

    seed: int | None
    """Seed that the examples were generated from; None where they were not generated."""

    num_examples: Mapping[str, int]
    """Number of examples of each split."""

    data_hash: Mapping[str, str]
    """SHA-256 of each split that results were reported on."""

    description: Mapping[str, Any]
    """The task's own description: layout of the vocabulary, baselines, label convention."""

    def save(self, folder: Path) -> None:
        """Write the record into a checkpoint folder."""
        write_json(folder / _FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "TaskRecord | None":
        """Read the record of a checkpoint folder.

        Returns:
            The record, or None where the folder has none.

        Raises:
            ValueError: where the file is damaged, naming it.
        """
        file = folder / _FILE
        if not file.is_file():
            return None
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{file} is no task record: {error}. Remove it and name the task yourself.") from error
