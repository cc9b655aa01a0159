"""A model on two processes is the model on one: data parallel, fully sharded, tensor parallel."""

import pytest

from dsf_models import list_architectures
from tests.contract import REPRESENTATIVES, fresh, variants
from tests.parallel import processes

CHECKS = {
    "data_parallel": "Data parallel training (DDP)",
    "sharded_by_torch": "Fully sharded training (FSDP2)",
    "sharded_by_transformers": "Fully sharded training (FSDP2)",
    "sharded_in_bfloat16": "Fully sharded training (FSDP2)",
    "tensor_parallel": "Tensor parallelism",
}


def save(folder, name, case):
    path = folder / f"{name}-{case}"
    fresh(name, case).save_pretrained(path)
    return path


def test_two_processes_train_as_one(tmp_path):
    """Three representatives, every way of spreading a model, in one pair of processes."""
    folders = [save(tmp_path, name, "full") for name in REPRESENTATIVES]
    folders += [save(tmp_path, "softmax_attention", "default")]
    processes.run(processes.check_all, folders, list(CHECKS))


def every_check():
    return pytest.mark.parametrize(
        "check", [pytest.param(check, marks=pytest.mark.feature(title)) for check, title in CHECKS.items()]
    )


@pytest.mark.slow
@every_check()
@pytest.mark.parametrize("name", list_architectures())
def test_two_processes_train_as_one_in_every_form(name, check, tmp_path):
    cases = [case for case in variants(name) if check != "sharded_in_bfloat16" or case == "full"]
    processes.run(processes.check_all, [save(tmp_path, name, case) for case in cases], [check])
