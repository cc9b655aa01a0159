"""Prints the demo's one table from what its runs and their evaluation wrote.

python evaluation/demo_table.py runs/demo
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Print a row for each model of the demo, and where its figure is.

    Raises:
        SystemExit: the folder holds no evaluation yet.
    """
    results_file = folder / "evaluation" / "results.json"
    if not results_file.is_file():
        sys.exit(f"demo_table.py: error: {results_file} does not exist: run `make demo` first.")
    results = json.loads(results_file.read_text(encoding="utf-8"))
    suite = results["suite"]
    length, pairs = suite["sizes"]["sequence_length"], suite["sizes"]["num_pairs"]
    print(
        f"\nMQAR, {length} tokens, {pairs} pairs, {suite['num_examples']:,} test examples "
        f"(chance {100 * suite['chance']:.2f} %, best trivial rule {100 * suite['best_trivial']:.2f} %)\n"
    )
    print(f"{'architecture':<20}{'parameters':>12}{'state, bytes':>14}{'accuracy, %':>13}{'training, s':>13}")
    for model in results["models"]:
        print(row(model, training_seconds(folder / Path(model["model"]).parent.name)))
    for figure in sorted((folder / "evaluation").glob("*.png")):
        print(f"\nFigure: {figure}")


def row(model: dict[str, Any], seconds: float) -> str:
    """Return one line of the table."""
    name, state = model["label"], model["state"]["bytes_per_sequence"]
    accuracy = 100 * model["accuracy"]["accuracy"]
    return f"{name:<20}{model['parameters']:>12,}{state:>14,}{accuracy:>13.2f}{seconds:>13.0f}"


def training_seconds(run: Path) -> float:
    """Return the seconds that a run trained for, from the last training record of its metrics."""
    records = (json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["seconds"] for record in records if "seconds" in record][-1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python evaluation/demo_table.py FOLDER")
    main(Path(sys.argv[1]))
