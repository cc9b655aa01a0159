"""Experiments of "Understanding the Differences in Foundation Models" (Sieber et al. 2024, arXiv 2405.15731) on MQAR.

    python evaluation/papers/dsf.py state_expansion --size small --hours 1
    python evaluation/papers/dsf.py state_expansion --size small --report

A study is a sweep of training runs and what is read from it. The same command goes on after an interruption, also on
another machine: what has finished is kept under evaluation/results/. `--report` writes report and figure from there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.papers.command import setup
from evaluation.papers.exponents import learned_exponents
from evaluation.papers.study import Axis, Study

_NUMBERS = "The paper's numbers are not available to this project, so only what it states in words can be compared."
_PROTOCOL = (
    "One short convolution, no positions, gates, dropout or MLP in any model, so that models differ in (Λ, B, C, D) "
    "alone; the learning rate is chosen on a validation split for each point; several seeds."
)
_TASK = Axis(key="task", label="tokens_pairs")

STATE_EXPANSION = Study(
    name="state_expansion",
    paper="dsf",
    title="State expansion: linear against softmax attention",
    question="How many states per channel does linear attention need to answer as softmax attention does?",
    stated="With more states per channel, linear attention approaches softmax attention (figure 1).",
    ours=_PROTOCOL,
    unknown=_NUMBERS,
    series=Axis(key="model.architecture", label="architecture"),
    x=Axis(key="model.state_size", label="states per channel n", log=True),
    panels=_TASK,
    contrasts=(("softmax_attention", "linear_attention"),),
)

_FIGURE_2 = "Figure 2 compares softmax, linear and normalized attention, SSD and S6 along the width."
_FIGURE_2_UNKNOWN = f"{_NUMBERS} What it finds has not been read by this project."
_ALONG_THE_WIDTH = (("normalized_attention", "linear_attention"), ("softmax_attention", "ssd"))

NORMALISATION = Study(
    name="normalisation",
    paper="dsf",
    title="Normalisation: five mixers along the width",
    question="What does the normaliser η bring where nothing else differs?",
    stated=_FIGURE_2,
    ours=_PROTOCOL,
    unknown=_FIGURE_2_UNKNOWN,
    series=Axis(key="model.architecture", label="architecture"),
    x=Axis(key="model.hidden_size", label="width d", log=True),
    contrasts=_ALONG_THE_WIDTH,
)

NORMALISATION_AS_RELEASED = Study(
    name="normalisation_as_released",
    paper="dsf",
    title="Normalisation as released: five mixers along the width",
    question="What comes out where each mixer keeps what the released code gives to it alone?",
    stated=_FIGURE_2,
    ours=(
        "As in the paper's code: its initialisation, no convolution, positions and biases in the attention models "
        "alone, dropout in softmax attention alone, an MLP in normalized attention alone. Unlike in it, validation "
        "chooses the learning rate and the weights, and there are several seeds."
    ),
    unknown=_FIGURE_2_UNKNOWN,
    series=Axis(key="mixer", label="mixer"),
    x=Axis(key="model.hidden_size", label="width d", log=True),
    contrasts=_ALONG_THE_WIDTH,
)

REVERSED_SIGMOID = Study(
    name="reversed_sigmoid",
    paper="dsf",
    title="The reversed sigmoid of the qLSTM",
    question="Does λ = σ(-f)^a help the qLSTM, and is it the reversal or the learned exponent a that helps?",
    stated="The transition of S6, a reversed sigmoid, improves the qLSTM, most on longer sequences (figure 3).",
    ours=(
        "The exponent is learned, or frozen at 1. Frozen, the reversed gate is the plain one with f -> -f, so that "
        "both have the same distribution of training runs: what differs beyond the seeds is the exponent's."
    ),
    unknown=f"{_NUMBERS} The number of its seeds is not known either.",
    series=Axis(key="gate", label="forget gate"),
    x=Axis(key="model.hidden_size", label="width d", log=True),
    panels=_TASK,
    contrasts=(("reversed_learned", "plain"), ("reversed_learned", "reversed_frozen"), ("reversed_frozen", "plain")),
    observe=learned_exponents,
)

NORMALISER = Study(
    name="normaliser",
    paper="dsf",
    title="The normaliser's nonlinearity: η = exp, softplus or sigmoid",
    question="Which function η of its pre-activation serves normalized attention best?",
    stated="exp is the best of exp, softplus and sigmoid (table of ablations in the appendix).",
    ours=(
        f"{_PROTOCOL} Besides the paper's three there is η = 1 + e^x, which a later study of the same group calls "
        "softplus and reports as the best."
    ),
    unknown=f"{_NUMBERS} Its exact form of softplus and sigmoid is not known; here η = log(1 + e^x) and σ(x).",
    series=Axis(key="eta", label="η"),
    x=Axis(key="task.sizes.num_pairs", label="pairs", log=True),
    contrasts=(("exp", "softplus"), ("exp", "sigmoid"), ("exp", "one_plus_exp")),
)

HEAT_MAPS = Study(
    name="heat_maps",
    paper="dsf",
    title="Heat maps: five mixers by width and states per channel",
    question="Where in the plane of width d and states per channel n does each mixer solve the task?",
    stated="Figure 5 of the appendix shows accuracies of five models over d and n; what they are is not known here.",
    ours=f"{_PROTOCOL} At the small size one learning rate, 0.01, serves all.",
    unknown=_NUMBERS,
    series=Axis(key="model.state_size", label="states per channel n", log=True),
    x=Axis(key="model.hidden_size", label="width d", log=True),
    panels=Axis(key="model.architecture", label="architecture"),
    heat_map=True,
)

_ALL = (STATE_EXPANSION, NORMALISATION, NORMALISATION_AS_RELEASED, REVERSED_SIGMOID, NORMALISER, HEAT_MAPS)
STUDIES = {study.name: study for study in _ALL}

if __name__ == "__main__":
    setup(STUDIES, __doc__)
