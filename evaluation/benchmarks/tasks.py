"""Measures how fast the synthetic tasks are generated: rows per second of one core's own time.

    python evaluation/benchmarks/tasks.py [--output FILE.json]

Processor time, not wall time, so that a busy machine does not count; the best of several rounds. Every task of the
registry at its default sizes, and MQAR on its standard grid, where a bar is printed, met or not.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from dsf_models.tasks import SyntheticTask, get_task, list_tasks

MQAR_GRID = ((64, 4), (128, 8), (256, 16), (512, 64))
"""(sequence_length, num_pairs) of Zoology."""
LEAST = 20_000
"""Rows per second and core that are promised on that grid."""
ROUNDS, SECONDS = 3, 0.5


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast one size of a task is generated."""

    task: str
    sizes: dict[str, object]
    rows_per_cpu_second: float
    least: float | None


def rows_per_cpu_second(task: SyntheticTask, seconds: float = SECONDS) -> float:
    """Return the best rate of a few rounds of at least so many seconds of processor time each."""
    block = max(1, 2**20 // task.sequence_length)
    task.generate("train", 0, 0, block)  # fills what is computed once
    rates = []
    for _ in range(ROUNDS):
        rows, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            task.generate("train", 0, rows, rows + block)
            rows += block
        rates.append(rows / spent)
    return max(rates)


def measure(seconds: float = SECONDS) -> list[Rate]:
    """Return the rates of every task at its default sizes, and of MQAR on its grid."""
    wanted = [(get_task(name), None) for name in list_tasks()]
    grid = [get_task("mqar", sequence_length=length, num_pairs=pairs) for length, pairs in MQAR_GRID]
    rates = []
    for task, least in [*wanted, *((task, LEAST) for task in grid)]:
        rate = rows_per_cpu_second(task, seconds)
        rates.append(Rate(task=task.name, sizes=asdict(task), rows_per_cpu_second=rate, least=least))
        bar = "" if least is None else f"  at least {least:,}: {'met' if rate >= least else 'NOT MET'}"
        print(f"{task.name:24} length {task.sequence_length:6} {rate:12,.0f} rows/CPU-s{bar}", flush=True)
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, where asked, write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the rates and the machine as JSON")
    options = parser.parse_args(arguments)
    rates = measure()
    if options.output:
        write_json(options.output, {"rates": [asdict(rate) for rate in rates], "environment": environment_facts()})


if __name__ == "__main__":
    main()
