"""The newcomer's script runs from end to end on real text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.reviews import movie_reviews, write_reviews
from tests.consumers.tokenizers_of_text import ROOT, english_text
from tests.hub.server import serving

TINY = ["--steps", "6", "--lora-steps", "2", "--width", "32", "--vocab-size", "400"]


def first_steps(data: Path, *options: str, **environment: str) -> str:
    """Run the script on this text; return what it prints."""
    command = [sys.executable, str(ROOT / "examples" / "first_steps.py"), "--data", str(data), *options]
    environment = os.environ | environment
    run = subprocess.run(command, cwd=data.parent, capture_output=True, text=True, timeout=500, env=environment)
    assert run.returncode == 0, run.stderr
    for line in ("training: held-out loss", "LoRA: held-out loss", *([] if "lstm" in options else ["Φ of layer 0"])):
        assert line in run.stdout
    return run.stdout


def losses(printed: str) -> tuple[float, float]:
    """Held-out losses before and after the training."""
    before, after = next(line for line in printed.splitlines() if line.startswith("training")).split()[-3::2]
    return float(before), float(after)


def test_the_first_steps_lead_through(tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(english_text())
    with serving() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_alice"}
        printed = first_steps(data, *TINY, "--push", "alice/first-steps", HF_HOME=str(tmp_path / "home"), **environment)
    assert "pushed to alice/first-steps and pulled again; equal logits: True" in printed
    before, after = losses(printed)
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hybrid", "lstm", "rg_lru"])
def test_architectures_that_leave_fewer_choices(name, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(english_text())
    before, after = losses(first_steps(data, *TINY, "--architecture", name, HF_HOME=str(tmp_path / "home")))
    assert after < before


@pytest.mark.slow
def test_real_reviews_are_learnt(tmp_path):
    data = tmp_path / "reviews.csv"
    write_reviews(data, movie_reviews()[:20_000:40])
    before, after = losses(first_steps(data, "--steps", "150", "--lora-steps", "5", "--width", "64"))
    assert after < before - 1
