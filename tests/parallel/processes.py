"""Runs functions in two processes that talk by gloo, and what each of them checks of a model.

Every check compares a model that lies on two processes with the same model on one.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from tests.contract import VOCAB, assert_close, assert_gradients_close

WORLD = 2
TOLERANCE = 1e-10


def run(function: Callable[..., None], *args: Any) -> None:
    """Call function(rank, *args) in each of two new processes; an error of one is an error here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_start, args=(port, function, args), nprocs=WORLD)


def _start(rank: int, port: int, function: Callable[..., None], args: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()


def check_all(rank: int, folders: Iterable[Path], checks: Iterable[str]) -> None:
    """Run the named checks on every saved model."""
    for folder in folders:
        for check in checks:
            try:
                globals()[check](rank, folder)
            except Exception as error:
                raise AssertionError(f"{Path(folder).name}, {check}: {error}") from error


def batch() -> Tensor:
    """Return token ids (2, 12), one row for each process."""
    return torch.randint(1, VOCAB, (WORLD, 12), generator=torch.Generator().manual_seed(0))


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may lie on several processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def backward(model: torch.nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of ids as their own labels, and every gradient, whole."""
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    named = model.module.named_parameters() if isinstance(model, DistributedDataParallel) else model.named_parameters()
    return loss.detach(), {name: full(x.grad) for name, x in named if x.grad is not None}


def load(folder: Path, **sizes: int) -> PreTrainedModel:
    """Load a saved language model, sharded where sizes say so."""
    sharding = {"distributed_config": DistributedConfig(**sizes)} if sizes else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **sharding)


def assert_same_training(model: torch.nn.Module, folder: Path, ids: Tensor) -> None:
    """The mean loss of the processes and their gradients are those of one process with all rows."""
    expected_loss, expected = backward(load(folder), batch())
    loss, gradients = backward(model, ids)
    dist.all_reduce(loss)
    assert_close(loss / WORLD, expected_loss, TOLERANCE, "loss")
    assert gradients.keys() == expected.keys()
    assert_gradients_close(gradients, expected, TOLERANCE, "gradients")


def assert_saves_whole(rank: int, model: PreTrainedModel, folder: Path) -> None:
    """A sharded model saves one complete checkpoint."""
    target = Path(f"{folder}.saved")
    model.save_pretrained(target, is_main_process=rank == 0)
    dist.barrier()
    found, expected = load(target).state_dict(), load(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [path.name for path in target.glob("*.safetensors")] == ["model.safetensors"]
    dist.barrier()
    if rank == 0:
        shutil.rmtree(target)
    dist.barrier()


def data_parallel(rank: int, folder: Path) -> None:
    """DistributedDataParallel, a row for each process."""
    assert_same_training(DistributedDataParallel(load(folder)), folder, batch()[rank : rank + 1])


def sharded_by_torch(rank: int, folder: Path) -> None:
    """FSDP2 as torch has it: fully_shard over the blocks and the model."""
    model = load(folder)
    for block in model.model.layers:
        fully_shard(block)
    assert_same_training(fully_shard(model), folder, batch()[rank : rank + 1])


def sharded_by_transformers(rank: int, folder: Path) -> None:
    """FSDP2 as transformers has it: sharded while loading."""
    model = load(folder, fsdp_size=WORLD)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert_saves_whole(rank, model, folder)
    assert_same_training(model, folder, batch()[rank : rank + 1])


def sharded_in_bfloat16(rank: int, folder: Path) -> None:
    """FSDP2 of a bfloat16 model whose Λ is float32."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, distributed_config=DistributedConfig(fsdp_size=WORLD)
    )
    loss, gradients = backward(model, batch()[rank : rank + 1])
    assert bool(loss.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def tensor_parallel(rank: int, folder: Path) -> None:
    """Projections by rows or columns, all rows on every process; losses, gradients and cached generation are equal."""
    model, whole = load(folder, tp_size=WORLD), load(folder).eval()
    replicated = {name for name, x in model.named_modules() if isinstance(x, torch.nn.Linear | torch.nn.Embedding)}
    sharded = {
        name.rpartition(".")[0] for name, x in model.named_parameters(remove_duplicate=False) if isinstance(x, DTensor)
    }
    assert replicated - sharded <= {"model.embed_positions"}, replicated - sharded
    assert_saves_whole(rank, model, folder)
    model.eval()
    ids = batch()
    with torch.no_grad():
        assert_close(model(ids).logits, whole(ids).logits, TOLERANCE, "logits")
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), whole.generate(ids, **options))
    assert_same_training(model.train(), folder, ids)
