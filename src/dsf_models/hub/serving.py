"""An HTTP server with OpenAI's interface for any model of this package: `transformers serve`, told of our classes.

By itself that command looks up a checkpoint's class among those of transformers, so that it finds none of ours, trusted
code or not.
"""

import contextlib

import transformers
from transformers.utils.import_utils import is_serve_available

from ..backbone import get_architecture, list_architectures
from .usage import UsageError

__all__ = ["serve"]


def serve(model: str, *, host: str = "localhost", port: int = 8000, device: str = "auto", dtype: str = "auto") -> None:
    """Answer /v1/chat/completions, /v1/completions and their kin until interrupted (SIGINT or SIGTERM).

    Args:
        model: a folder with a language model and its tokenizer, or the id of a repository on the Hub. Chats need a
            tokenizer with a chat template.
        host: address to listen at.
        port: its port.
        device: where the model runs, e.g. "cpu" or "cuda:0".
        dtype: what its weights are loaded in; "auto" is what they were saved in.

    Raises:
        UsageError: the packages of the extra `serve` are missing, or the port is none.
        OSError: there is no such model.
    """
    if not 0 < port < 2**16:
        raise UsageError(f"--port={port}: give a number from 1 to {2**16 - 1}.")
    if not is_serve_available():
        raise UsageError('serving needs packages that are not installed: run pip install "dsf-models[serve]".')
    from transformers.cli.serve import Serve  # imports typer, which only the extra brings

    for name in list_architectures():
        kind = get_architecture(name).causal_lm_class
        if kind is not None:
            setattr(transformers, kind.__name__, kind)
    with contextlib.suppress(KeyboardInterrupt):  # raised behind the server's own orderly end
        Serve(force_model=model, host=host, port=port, device=device, dtype=dtype)
