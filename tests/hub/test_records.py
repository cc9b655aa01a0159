"""What a checkpoint folder carries beside its weights: whole files, provenance, the task's record."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from dsf_models.hub import provenance
from dsf_models.hub.files import new_folder, write_json, write_text
from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import closest, explain_parser_error

RECORD = TaskRecord(
    name="mqar",
    sizes={"num_pairs": 4},
    seed=1,
    num_examples={"test": 10},
    data_hash={"test": "abc"},
    description={"vocabulary": {"keys": [1, 2]}},
)


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    def fill_half() -> None:
        with new_folder(tmp_path / "final") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_half()
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "final"
    for name in ("old", "new"):
        with new_folder(target) as folder:
            (folder / name).write_text("x")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "text"
    write_text(target, "old")
    write_text(target, "new λ")
    assert target.read_text(encoding="utf-8") == "new λ"
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"loss": float("nan")})
    assert target.read_text(encoding="utf-8") == "new λ"
    assert list(tmp_path.iterdir()) == [target]


def test_task_record_comes_back_equal(tmp_path: Path) -> None:
    assert TaskRecord.load(tmp_path) is None
    RECORD.save(tmp_path)
    assert TaskRecord.load(tmp_path) == RECORD


@pytest.mark.parametrize("content", ["{", "[1]", '{"name": "mqar"}'])
def test_damaged_task_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(ValueError, match=r"task\.json is no task record"):
        TaskRecord.load(tmp_path)


def test_environment_facts_are_json_and_name_what_decides_a_result() -> None:
    facts = json.loads(json.dumps(provenance.environment_facts()))
    assert {"python", "torch", "transformers", "accelerate", "dsf-models"} <= facts["versions"].keys()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["threads"]["intra_op"] == torch.get_num_threads()
    assert {"cpu", "cpu_capability", "logical_cores", "accelerators"} <= facts["hardware"].keys()
    assert facts["commit"] is None or len(facts["commit"]) == 40


def test_commit_of_somebody_elses_repository_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    module = tmp_path / "site-packages" / "provenance.py"
    module.parent.mkdir()
    module.touch()
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git_commit() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "now it is ours"], check=True)
    assert len(provenance.git_commit()) == 40
    assert provenance.has_uncommitted_changes() is False
    module.write_text("changed")
    assert provenance.has_uncommitted_changes() is True


def test_closest_name_is_offered() -> None:
    assert closest("mqra", ["mqar", "copying"]) == "Did you mean 'mqar'?"
    assert closest("x", ["mqar", "copying"]) == "Known: 'copying', 'mqar'."


def test_other_parser_errors_pass_unchanged() -> None:
    assert explain_parser_error('Parser key "a.b":\n  Expected an int.', ["a.b"]) == "a.b: Expected an int."
    assert explain_parser_error("something else", []) == "something else"
