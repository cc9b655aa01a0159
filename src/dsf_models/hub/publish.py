"""Publishing a checkpoint folder on the Hub: in one commit, by a list of what may be uploaded."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from ..backbone.checkpoint import stale_weights
from ..portable import ENTRY, FLAT
from .card import folder_facts, model_card
from .conversion.checkpoint import CARRIED_OVER
from .evaluation_record import EVALUATIONS
from .files import write_text
from .usage import UsageError

__all__ = ["publish", "write_card"]

_CARD = "README.md"
_ALLOWED = (
    "config.json",
    *CARRIED_OVER,
    "model*.safetensors",
    "model.safetensors.index.json",
    "task.json",
    EVALUATIONS,
    _CARD,
    f"{ENTRY}.py",
    f"{FLAT}*.py",
    ".eval_results/*.yaml",
)
"""Patterns of what is uploaded; anything else in the folder, such as optimiser states, stays where it is."""
_PICKLED_WEIGHTS = ("*model*.bin", "*model*.pt", "*model*.pth", "*.ckpt")
"""What Trainer pickles beside the weights, such as training_args.bin, is not among them: it is just not uploaded."""


def publish(folder: Path, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a checkpoint folder to the Hub in one commit: readers see all of it or nothing.

    Weights that an earlier commit left there give way to the new ones, in one file or in shards. The repository and
    the branch are made where they are not there yet, and a model card where the folder has none.

    Args:
        folder: made by `save_pretrained`.
        repo_id: name of the repository, as in "user/model".
        private: whether others must not see it; a repository that is there already is never changed.
        revision: branch to commit to. Default: "main".

    Returns:
        Address of the commit.

    Raises:
        UsageError: the folder is no checkpoint of an architecture here or holds pickled weights, the repository is
            public though `private` was asked for, or the Hub cannot be reached or refuses.
    """
    check_folder(folder)
    if not (folder / _CARD).exists():
        write_card(folder, repo_id)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, folder / name) for name in publishable_files(folder)
    ]
    api = HfApi()
    try:
        # None leaves it to the Hub, where an organisation may keep new repositories private.
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise UsageError(
                f"private=True: {repo_id!r} is there already and public; make it private on the Hub first."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        earlier = stale_weights(api.list_repo_files(repo_id, revision=revision), publishable_files(folder))
        operations += [CommitOperationDelete(name) for name in earlier]
        commit = api.create_commit(
            repo_id, operations, commit_message="Upload model with dsf_models", revision=revision
        )
    except (HTTPError, ConnectionError, HFValidationError) as error:
        raise UsageError(_refusal(repo_id, error)) from error
    return commit.commit_url


def _refusal(repo_id: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedy = "; sign in with `hf auth login`, or set HF_TOKEN" if status == 401 else ""
    return f"repo_id={repo_id!r}: the Hub does not take it{remedy}: {' '.join(str(error).split())}"


def write_card(folder: Path, repo_id: str | None = None) -> None:
    """Write the model card that follows from a checkpoint folder alone into it, as README.md.

    Args:
        folder: holds config.json, and no card yet.
        repo_id: name that the model will have on the Hub, for the card's example.

    Raises:
        UsageError: there is a card, or the folder is no checkpoint of an architecture here.
    """
    if (folder / _CARD).exists():
        raise UsageError(f"{folder / _CARD} exists: edit it, or remove it first.")
    write_text(folder / _CARD, model_card(folder_facts(folder, repo_id)))


def publishable_files(folder: Path) -> list[str]:
    """The names, relative to the folder, of the files that `publish` uploads."""
    found = {path for pattern in _ALLOWED for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def check_folder(folder: Path) -> None:
    """Refuse a folder that others could not load, or not safely.

    Raises:
        UsageError: config.json or the weights are missing, or there are pickled weights.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder / 'config.json'} does not exist: give the folder of a saved model.")
    pickled = sorted(path.name for pattern in _PICKLED_WEIGHTS for path in folder.glob(pattern))
    if pickled:
        raise UsageError(
            f"{folder / pickled[0]}: pickled weights are not published, since unpickling can run foreign code; "
            "save the model with save_pretrained, and remove this file."
        )
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} holds no *.safetensors: save the model with save_pretrained first.")
