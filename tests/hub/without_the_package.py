"""Run in a process that cannot import dsf_models: loads every folder named on the command line by the code in it."""

import importlib.abc
import json
import sys
from pathlib import Path


class Blocked(importlib.abc.MetaPathFinder):
    """Finds no dsf_models, wherever it is installed."""

    def find_spec(self, fullname, path=None, target=None):
        """Refuse the package and everything in it."""
        if fullname.partition(".")[0] == "dsf_models":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def check(folder: Path) -> dict[str, object]:
    """Use a checkpoint as its users would, and return what was seen."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    expected = torch.load(folder / "expected.pt", weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        same = torch.equal(model(expected["ids"]).logits, expected["logits"])
    tokens = model.generate(expected["ids"], max_new_tokens=4, do_sample=False)
    assisted = model.generate(expected["ids"][:1], max_new_tokens=4, do_sample=False, prompt_lookup_num_tokens=2)
    model.train()(input_ids=expected["ids"], labels=expected["ids"]).loss.backward()
    gradient = all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    again = folder / "again"
    model.save_pretrained(again)
    body = AutoModel.from_pretrained(again, trust_remote_code=True)
    head = AutoModelForSequenceClassification.from_pretrained(again, trust_remote_code=True, num_labels=2)
    return {
        "module": type(model).__module__.partition(".")[0],
        "logits": same,
        "tokens": torch.equal(tokens, expected["tokens"]),
        "assisted": torch.equal(assisted[0], expected["tokens"][0]),
        "gradient": bool(gradient),
        "heads": [type(body).__name__, type(head).__name__],
        "files": sorted(path.name for path in folder.glob("*.py")) == sorted(path.name for path in again.glob("*.py")),
    }


def main() -> None:
    """Print what was seen of each folder, as JSON."""
    sys.meta_path.insert(0, Blocked())
    try:
        import dsf_models  # noqa: F401
    except ModuleNotFoundError:
        print(json.dumps({Path(folder).name: check(Path(folder)) for folder in sys.argv[1:]}))


if __name__ == "__main__":
    main()
