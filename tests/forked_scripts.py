"""Runs scripts one after the other, each in a process forked from this one, whose imports are paid once.

    python tests/forked_scripts.py SCRIPT...

Each runs in its own folder, and its output goes to SCRIPT.log beside it. Prints a line of JSON: exit status by script.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import accelerate  # noqa: F401
import datasets  # noqa: F401
import torch
import transformers

torch.set_num_threads(1)
# What a lazy package imports only when it is asked for, and all scripts ask for.
transformers.AutoModelForCausalLM, transformers.PreTrainedModel, transformers.Trainer  # noqa: B018


def run(script: Path) -> int:
    """Run a script in a process of its own and return its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(f"{script}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(script.parent)
    status = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Without what ends an interpreter: that of this process is the parent's.
    os._exit(status)


if __name__ == "__main__":
    print(json.dumps({script: run(Path(script)) for script in sys.argv[1:]}))
