"""Checkpoints that carry their code: loaded where dsf_models is not installed, and with the package where it is."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsf_models import list_architectures
from dsf_models.portable import ENTRY, code_files
from tests.contract import fresh, small_config

every_architecture = pytest.mark.parametrize("name", list_architectures())


def save_with_code(name, folder):
    """Save a small model with its code, and what it puts out."""
    model, ids = fresh(name, "default"), torch.randint(1, 41, (2, 9))
    model.save_pretrained(folder, include_code=True)
    with torch.no_grad():
        tokens = model.generate(ids, max_new_tokens=4, do_sample=False)
        torch.save({"ids": ids, "logits": model(ids).logits, "tokens": tokens}, folder / "expected.pt")


def run(script, *arguments, home):
    """Run Python in a process of its own with an empty cache; what it prints last, as JSON."""
    environment = os.environ | {"HF_HOME": str(home)}
    done = subprocess.run([sys.executable, *script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.feature("Loads without this package (trust_remote_code)")
def test_without_the_package(tmp_path):
    """Equal logits and tokens, a gradient, all heads; saved again, the code goes along. All in one process."""
    names = list_architectures()
    for name in names:
        save_with_code(name, tmp_path / name)
    script = Path(__file__).with_name("without_the_package.py")
    seen = run([script], *(str(tmp_path / name) for name in names), home=tmp_path / "home")
    for name in names:
        heads = [type(fresh(name, "default", head)).__name__ for head in ("model", "sequence_classification")]
        expected = dict.fromkeys(seen[name], True) | {"module": "transformers_modules", "heads": heads}
        assert seen[name] == expected, name


@every_architecture
def test_with_the_package_the_code_is_not_looked_at(name, tmp_path):
    model = fresh(name, "default")
    model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    model.save_pretrained(tmp_path / "carrying", include_code=True)
    model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py")), "what one save was asked for, the next one does too"
    for file in (tmp_path / "carrying").glob("*.py"):
        file.write_text("raise RuntimeError('was run')")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "carrying")
    assert type(loaded) is type(model)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / f"{ENTRY}.py").exists()
    loaded.save_pretrained(tmp_path / "without", include_code=False)
    assert not list((tmp_path / "without").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "without" / "config.json").read_text())


def test_the_entry_prefers_a_package_that_is_new_enough(tmp_path):
    """In a process where the package is installed but not imported."""
    script = """
import json, sys
from transformers import AutoModelForCausalLM
kinds = [type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)) for folder in sys.argv[1:]]
print(json.dumps([kind.__module__.partition(".")[0] for kind in kinds]))
"""
    save_with_code("ssd", tmp_path / "ssd")
    later = shutil.copytree(tmp_path / "ssd", tmp_path / "later")
    entry = later / f"{ENTRY}.py"
    entry.write_text(entry.read_text().replace('< Version("', '< Version("99.'))
    assert run(["-c", script], str(later), home=tmp_path / "home") == ["transformers_modules"]
    assert run(["-c", script], str(tmp_path / "ssd"), home=tmp_path / "home") == ["dsf_models"]


@every_architecture
def test_the_code_is_whole_and_nothing_else(name):
    """Each file compiles, every import leads to a file, every file is led to, no other architecture comes along."""
    config = small_config(name, "default")
    layers = {type(config.layer_config(i)).__module__ for i in range(config.num_hidden_layers)}
    modules = [type(config).__module__, *sorted(layers - {type(config).__module__})]
    files = code_files(modules, [type(config).__name__])
    assert files == code_files(modules, [type(config).__name__])
    targets = {}
    for file, text in files.items():
        nodes = [node for node in ast.walk(ast.parse(text, file)) if isinstance(node, ast.ImportFrom)]
        assert all(node.level == 1 and node.module for node in nodes if node.level), file
        targets[file] = {f"{node.module}.py" for node in nodes if node.level}
    reached, waiting = set(), {f"{ENTRY}.py"}
    while waiting:
        reached |= waiting
        waiting = set().union(*(targets[file] for file in waiting)) - reached
    assert reached == files.keys()
    architectures = {file for file in files if file.startswith("dsf_architectures_")}
    assert len(architectures) <= len(modules) + (name not in {"hybrid"}) + 1, architectures
