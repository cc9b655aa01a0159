"""Copying and recall by one or two SSM layers with networks between them, in the shapes of Nishikawa & Suzuki 2025.

    python evaluation/papers/token_selection/shapes.py recall --size small --hours 1
    python evaluation/papers/token_selection/shapes.py copying --size small --report

A study is a sweep of training runs and what is read from it. The same command goes on after an interruption, also on
another machine: what has finished is kept under evaluation/results/. `--report` writes report and figure from there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from evaluation.papers.command import setup
from evaluation.papers.study import Axis, Study

_STATED = (
    "Two SSM layers with expressive enough networks answer about as well as a Transformer, and better than one layer "
    "(figure C.1). A theorem says that two such layers suffice, with a number of parameters that grows with a power of "
    "a logarithm."
)
_UNKNOWN = (
    "Axes, vocabulary, lengths, widths, depths, optimiser and numbers of the paper's figure are not available to this "
    "project; nor is it known whether its filters look both ways. Only the order of the shapes can be compared."
)
_SHAPES = (
    "The SSM is S4D (diagonal, time-invariant) with residual connections and norms, which the theory has not. At the "
    "small size one learning rate, 0.003, serves all. "
)
_SERIES = Axis(key="mixer", label="mixer")
_DEPTH = Axis(key="model.channel_mixer_depth", label="hidden layers of each FNN", log=True)

RECALL = Study(
    name="recall",
    paper="token_selection",
    title="Associative recall by one or two SSM layers",
    question="How many time-invariant layers recall a value by its key, and must they look both ways?",
    stated=_STATED,
    ours=(
        f"{_SHAPES}Besides one-sided SSMs there are two-sided ones: one-sided states of a few numbers cannot hold all "
        "pairs, so the query has to reach them."
    ),
    unknown=_UNKNOWN,
    series=_SERIES,
    x=_DEPTH,
    panels=Axis(key="model.num_hidden_layers", label="layers:"),
    contrasts=(("two_sided", "one_sided"), ("transformer", "two_sided")),
)

COPYING = Study(
    name="copying",
    paper="token_selection",
    title="Copying by one or two SSM layers",
    question="How many time-invariant layers copy a string whose length varies?",
    stated=_STATED,
    ours=(
        f"{_SHAPES}Strings of one fixed length are the control: copying them is a filter of fixed delay, no selection. "
        "A two-sided model would see each letter that it has to name, so there is none."
    ),
    unknown=_UNKNOWN,
    series=Axis(key="model", label="model"),
    x=_DEPTH,
    panels=Axis(key="strings", label="strings:"),
    contrasts=(("ssm_2", "ssm_1"), ("transformer_2", "ssm_2")),
)

STUDIES = {study.name: study for study in (RECALL, COPYING)}

if __name__ == "__main__":
    setup(STUDIES, __doc__)
