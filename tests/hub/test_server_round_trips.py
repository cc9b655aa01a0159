"""What is pushed to a Hub comes back the same: real processes, a real HTTP server on the loopback, no mocks."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dsf_models import list_architectures
from dsf_models.hub.publish import publishable_files
from tests.contract import fresh
from tests.hub.server import Server, serving

ROOT = Path(__file__).parents[2]
WITHOUT_THE_PACKAGE = """
import json, sys
from tests.hub.without_the_package import Blocked
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("alice/hybrid", trust_remote_code=True).eval()
logits = model(torch.tensor([[3, 1, 4, 1, 5]])).logits.tolist()
print(json.dumps([type(model).__module__.partition(".")[0], logits]))
"""
each_architecture = pytest.mark.parametrize("name", list_architectures())


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def environment(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process whose Hub is the server, and whose user is alice."""
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    home = str(tmp_path_factory.mktemp("home"))
    return online | {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_alice", "HF_HOME": home}


@pytest.fixture(scope="session")
def found(environment: dict[str, str]) -> dict[str, Any]:
    """What the process of round_trips.py saw."""
    command = [sys.executable, "-m", "tests.hub.round_trips"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.feature("Push to and pull from the Hub")
@each_architecture
def test_a_pushed_model_comes_back_with_the_same_logits(name: str, found: dict[str, Any]) -> None:
    assert found["whole"][name] == 0


@pytest.mark.feature("Sharded weights")
@each_architecture
def test_weights_in_shards_come_back_with_the_same_logits(name: str, found: dict[str, Any]) -> None:
    assert found["sharded"][name]["shards"] > 1
    assert found["sharded"][name]["differs"] == 0


def test_new_weights_take_the_place_of_old_ones_however_they_are_cut(found: dict[str, Any]) -> None:
    steps = ["0", "1", "2", "pushed 0", "pushed 1", "pushed 2"]
    assert found["reshaped"] == {step: [0, True] for step in steps}


def test_generation_settings_come_back(found: dict[str, Any]) -> None:
    expected = {"max_new_tokens": 7, "temperature": 0.5, "do_sample": True, "generated": 7}
    assert found["generation_config"] == expected


def test_text_is_read_from_the_hub_in_both_ways(found: dict[str, Any]) -> None:
    assert [found["text"][what] for what in ("at hand", "streamed", "tokenizer")] == [True, True, True]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("column", "did you mean story? choose from story, number"),
        ("column of a stream", "did you mean story? choose from story, number"),
        ("no text", "holds int64, not text"),
        ("split", "['train']"),
        ("config", "['short']"),
        ("id", "No dataset 'alice/nothing' on the Hub that you can read: check the id"),
        ("id of a stream", "No dataset 'alice/nothing' on the Hub that you can read: check the id"),
        ("revision", "Revision 'nowhere' doesn't exist"),
    ],
)
def test_text_that_is_not_on_the_hub(found: dict[str, Any], missing: str, message: str) -> None:
    assert message in found["text"][missing]


def test_a_tokenizer_comes_back_and_the_rest_of_a_run_stays_at_home(found: dict[str, Any]) -> None:
    assert found["tokenizer"]["ids"] == [2, 3, 1]
    assert "tokenizer.json" in found["tokenizer"]["files"]
    assert "optimizer.pt" not in found["tokenizer"]["files"]


def test_each_revision_is_its_own_model(found: dict[str, Any]) -> None:
    revisions = found["revisions"]
    assert [revisions[revision] for revision in ("tag", "main", "branch", "commit")] == [0, 0, 0, 0]
    assert revisions["tag against main"] > 0
    assert revisions["commits"] == 3, "one commit for the empty repository, and one for each upload to main"


def test_a_private_model_is_given_to_its_owner_alone(found: dict[str, Any]) -> None:
    outcomes = found["private"]
    assert outcomes.pop("owner") == "0.0"
    assert "Invalid credentials" in outcomes.pop("stranger")
    assert set(outcomes) == {"other", "nobody"}
    assert all("private repository" in message for message in outcomes.values())


def test_what_cannot_be_published_is_refused_in_one_line(found: dict[str, Any]) -> None:
    refused = found["refused"]
    assert refused["somebody else's"].startswith("repo_id='bob/model': the Hub does not take it: ")
    assert "403" in refused["somebody else's"]
    assert "is there already and public" in refused["public"]
    assert not any("\n" in message for message in refused.values())


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HF_TOKEN": "hf_nobody"}, "sign in with `hf auth login`, or set HF_TOKEN: Client error '401 Unauthorized'"),
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
@pytest.mark.slow
def test_a_hub_out_of_reach_is_said_in_one_line(
    variables: dict[str, str], message: str, environment: dict[str, str], tmp_path: Path
) -> None:
    fresh("ssd").save_pretrained(tmp_path)
    command = [sys.executable, "-m", "dsf_models.cli", "push", str(tmp_path), "alice/model"]
    run = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=120)
    last = run.stderr.splitlines()[-1]
    assert (run.returncode, last[:12]) == (2, "dsf-models: ")
    assert message in last


def test_a_pulled_model_brings_its_code_to_a_process_without_the_package(
    environment: dict[str, str], found: dict[str, Any]
) -> None:
    assert found["whole"]["hybrid"] == 0, "pushed by the process of round_trips.py"
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    module, logits = json.loads(run.stdout.splitlines()[-1])
    assert module == "transformers_modules"
    assert torch.equal(torch.tensor(logits), fresh("hybrid")(torch.tensor([[3, 1, 4, 1, 5]])).logits)


def test_an_interrupted_upload_is_invisible_and_can_be_repeated(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    """The process is killed while half of the weights, more than the sockets' buffers hold, is on its way."""
    folder, repo_id = tmp_path / "model", "alice/large"
    fresh("ssd", "default", vocab_size=400_000).save_pretrained(folder)
    command = [sys.executable, "-m", "dsf_models.cli", "push", str(folder), repo_id]

    server.hub.flowing.clear()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        assert server.hub.stalled.wait(timeout=120)
        assert process.poll() is None
        process.kill()
    server.hub.flowing.set()
    repository = server.hub.repositories[repo_id]
    assert set(repository.commit("main").files) == {".gitattributes"}

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    (sha,) = set(repository.branches.values())
    assert again.stdout.strip() == f"{server.url}/{repo_id}/commit/{sha}"
    uploaded = {name: file.data for name, file in repository.commit("main").files.items() if name != ".gitattributes"}
    assert uploaded == {name: (folder / name).read_bytes() for name in publishable_files(folder)}
    assert {"config.json", "model.safetensors", "README.md"} <= set(uploaded)
