"""`dsf-models serve`, in a process of its own, answers over HTTP what the model generates here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dsf_models.cli import main
from dsf_models.hub import serving
from tests.consumers.tokenizers_of_text import trained_tokenizer
from tests.contract import fresh, others_slowly

PROMPT = "The state is a matrix"
MESSAGES = [{"role": "user", "content": "What is a state?"}]


def saved_model(name: str, folder: Path) -> Path:
    tokenizer = trained_tokenizer()
    model = fresh(name, "default", vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start the command, yield its address once it is healthy, and stop it as Ctrl+C does."""
    port = free_port()
    words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = (folder / "log.txt").open("w+")
    process = subprocess.Popen([sys.executable, "-m", "dsf_models.cli", *words], stdout=log, stderr=log, env=os.environ)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < deadline, (folder / "log.txt").read_text()
                time.sleep(0.2)
        yield address
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, (folder / "log.txt").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        log.close()


def post(url: str, **body) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def streamed(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def generated_here(name: str, ids: torch.Tensor) -> str:
    tokenizer = trained_tokenizer()
    model = fresh(name, "default", vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.feature("dsf-models serve")
@others_slowly("ssd")
def test_the_server_completes_chats_and_streams(name, tmp_path):
    folder = saved_model(name, tmp_path / "model")
    tokenizer = trained_tokenizer()
    asked = {"model": str(folder), "max_tokens": 6, "temperature": 0}
    with server(folder) as address:
        completion = json.loads(post(f"{address}/v1/completions", prompt=PROMPT, **asked))
        expected = generated_here(name, tokenizer(PROMPT, return_tensors="pt").input_ids)
        assert completion["choices"][0]["text"] == expected
        parts = streamed(post(f"{address}/v1/completions", prompt=PROMPT, stream=True, **asked))
        assert "".join(part["choices"][0]["text"] for part in parts if part["choices"]) == expected
        chat = json.loads(post(f"{address}/v1/chat/completions", messages=MESSAGES, **asked))
        ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        expected = generated_here(name, ids["input_ids"])
        assert chat["choices"][0]["message"]["content"] == expected
        parts = streamed(post(f"{address}/v1/chat/completions", messages=MESSAGES, stream=True, **asked))
        assert (
            "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"]) == expected
        )


def test_serving_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    assert main(["serve", "anything"]) == 2
    assert 'pip install "dsf-models[serve]"' in capsys.readouterr().err


def test_a_port_that_is_none_is_refused(capsys):
    assert main(["serve", "anything", "--port", "70000"]) == 2
    assert "--port=70000" in capsys.readouterr().err
