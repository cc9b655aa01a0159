"""How a model is loaded, saved and pushed: as in transformers, from safetensors alone, with its code if asked."""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import CommitInfo, CommitOperationDelete, HfApi
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from ..portable import is_own
from .checkpoint import check_files, check_index, damaged_file, stale_weights

__all__ = ["PersistenceMixin"]


class PersistenceMixin:
    """Stands before `PreTrainedModel` among the bases of every model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *model_args: Any, **kwargs: Any) -> Self:
        """Load a model as transformers does, from safetensors files alone.

        Args:
            pretrained_model_name_or_path: a folder or a repository of the Hub.
            model_args: passed on to the constructor.
            kwargs: keywords of `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: use_safetensors=False; unpickling a .bin file can run any code that somebody put into it.
            OSError: there is no safetensors file, one is damaged, or the files do not belong to the configuration.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError(
                "use_safetensors=False: only safetensors files are loaded, since unpickling can run foreign code; "
                "convert the file with safetensors.torch.save_file."
            )
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        for index in sorted(folder.glob("*.safetensors.index*.json")) if pretrained_model_name_or_path else ():
            check_index(index)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, use_safetensors=True, **kwargs)
        except SafetensorError as error:
            name = damaged_file(pretrained_model_name_or_path) or pretrained_model_name_or_path
            raise OSError(f"{name} is damaged or cut off ({error}): copy or download it again.") from error

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, include_code: bool | None = None, **kwargs: Any
    ) -> None:
        """Save a model as transformers does, in safetensors files.

        Args:
            save_directory: the folder.
            args: passed on.
            include_code: write the code of the model beside it, so that it loads with trust_remote_code=True where
                dsf_models is not installed; None does so for a model that was loaded with its code beside it.
            kwargs: keywords of `PreTrainedModel.save_pretrained`.
        """
        with self.config.carrying_code(include_code):
            super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, include_code: bool = True, **kwargs: Any) -> str:
        """Push a model to the Hub as transformers does, by default with its code; arguments as in `save_pretrained`."""
        with self.config.carrying_code(include_code):
            return super().push_to_hub(repo_id, *args, **kwargs)

    def _upload_modified_files(
        self, working_dir: str | Path, repo_id: str, *args: Any, create_pr: bool = False, **kwargs: Any
    ) -> CommitInfo:
        commit = super()._upload_modified_files(working_dir, repo_id, *args, create_pr=create_pr, **kwargs)
        where = {name: kwargs.get(name) for name in ("token", "revision")}
        new = [path.name for path in Path(working_dir).iterdir()]
        stale = [] if create_pr else stale_weights(HfApi().list_repo_files(repo_id, **where), new)
        if stale:
            operations = [CommitOperationDelete(name) for name in stale]
            HfApi().create_commit(repo_id, operations, commit_message="Remove earlier weights", **where)
        return commit

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do what transformers does for classes of users; those of this package save their code by `include_code`."""
        if not is_own(cls.__module__):
            super().register_for_auto_class(auto_class)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: dict[str, Tensor] | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        expected_keys: list[str] | None = None,
    ) -> Any:
        # Where transformers has found the files, on the Hub or here, and built the model on the meta device.
        if state_dict is None:
            # An adapter is loaded into a model whose own parameters may lie on the disk, and so on the meta device too.
            wanted = model.parameters()
            if expected_keys is not None:
                wanted = [model.get_parameter(key) for key in expected_keys]
            weight_map = (load_config.sharded_metadata or {}).get("weight_map")
            check_files(wanted, checkpoint_files or [], weight_map, load_config.is_quantized)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys)
