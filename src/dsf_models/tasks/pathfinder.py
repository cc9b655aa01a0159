"""Pathfinder: does a dashed contour connect the two discs? A picture, read pixel by pixel.

    grey levels of the pixels, row by row
    -100 ...                        label: "connected" or "apart", at the last pixel

Sources: D. Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units",
arXiv:1805.08315, with the sizes of Y. Tay et al., "Long Range Arena", arXiv:2011.04006. Contours grow here by exact
distances in place of masks, which makes the labels certain.

Letters: b rows, n dashes of a row, c = (x of start, y of start, x of end, y of end), p pixels of a patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, cos, isqrt, radians, sin
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Bools, Floats, Ints, RowRandom, UInts

APART, CONNECTED = 256, 257
DASH, GAP, THICKNESS, DISC = 2.0, 1.0, 0.5, 1.5
"""Lengths in pixels: of a dash, of the way between two dashes of a contour, and the radius of the discs."""
CLEARANCE = 2.25
"""Least distance in pixels of two dashes that do not follow each other on a contour; those that do are GAP apart."""
BORDER = 1.5
"""Least distance in pixels of a dash from the edges: its light leaves the outermost pixels black."""
BRIGHTNESS = 1.5
"""Light of a pixel that a dash covers wholly; half of it is the most, for half a pixel's thickness."""
_FRESH_TURNS, _PROPOSALS, _RETREAT, _PROPOSALS_AT_ONCE = 6, 24, 4, 64
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Pathfinder(SyntheticTask):
    """Pathfinder: whether the two discs are the ends of one dashed contour or of two, a task of 2 classes.

    Every picture shows two long contours, begun seed_distance pixels apart, and short ones to distract. One disc marks
    the beginning of the first long contour, the other its end or, where the answer is "apart", that of the second.
    Dashes are 2 pixels long and half a pixel thick. Those that follow each other on a contour are at most 1 pixel
    apart, any other two at least 2.25, so that no disc is on two contours. Answers are fair coins.

    Numbers and lengths are LRA's; gaps are of 1 pixel, and dashes begin anywhere, not at whole pixels.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "pathfinder"
    default_examples: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"train": 160_000, "validation": 20_000, "test": 20_000}
    )

    vocab_size: int = 258
    """Tokens 0..255 are grey levels, 0 black; 256 is the answer "apart", 257 "connected"."""
    sequence_length: int = 1024
    """Pixels of the square picture; the answer is due at the last, when all have been read."""
    contour_length: int = 14
    """Dashes of each of the two long contours."""
    num_distractors: int = 5
    """Number of short contours."""
    distractor_length: int = 4
    """Dashes of each of them."""
    continuity: float = 1.0
    """How straight contours are, 1 to 9: they turn by less than 90 / continuity degrees between dashes."""
    seed_distance: float = 7.0
    """Pixels between the beginnings of the two long contours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = self.side - 2 * BORDER
        room = 0.4 * inside**2 / ((DASH + GAP) * CLEARANCE)
        self._require(self.vocab_size >= 258, "vocab_size", "give at least 258: 256 grey levels, two answers")
        self._require(
            self.side**2 == self.sequence_length and self.side >= 16,
            "sequence_length",
            "a picture is square, of at least 16 times 16 pixels: give 1024, or another square number",
        )
        self._require(self.contour_length >= 3, "contour_length", "give at least 3 dashes, so that discs stay apart")
        self._require(self.num_distractors >= 0, "num_distractors", "give 0 or more")
        self._require(self.distractor_length >= 1, "distractor_length", "give at least 1 dash")
        self._require(1 <= self.continuity <= 9, "continuity", "give 1 to 9")
        self._require(
            CLEARANCE < self.seed_distance <= inside / 2, "seed_distance", f"give {CLEARANCE + 0.25} to {inside / 2}"
        )
        self._require(
            self.num_dashes <= room,
            "contour_length",
            f"a picture of {self.side} times {self.side} pixels has room for {int(room)} dashes, not for"
            f" {self.num_dashes}: give fewer or shorter contours, or a sequence_length of at least"
            f" {ceil(self.side * (self.num_dashes / room) ** 0.5 + 1) ** 2}",
        )

    @property
    def side(self) -> int:
        """Width and height in pixels."""
        return isqrt(self.sequence_length)

    @property
    def num_dashes(self) -> int:
        """Dashes in a picture."""
        return 2 * self.contour_length + self.num_distractors * self.distractor_length

    @property
    def chance(self) -> float:
        """Accuracy of a guess between the two answers."""
        return 0.5

    @property
    def best_trivial(self) -> float:
        """Accuracy of always giving one answer: each has probability 1/2 by construction.

        The distance of the discs adds next to nothing: on 1,024 pictures its best threshold is right in 0.522.
        """
        return 0.5

    @property
    def _rows_per_block(self) -> int:
        return _ROWS_AT_ONCE

    def vocabulary(self) -> dict[str, Any]:
        return {"grey": [0, 255], "apart": APART, "connected": CONNECTED}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The answer of each picture, "connected": 0 or 1 (b,).

        Args:
            input_ids: (b, t).
            labels: (b, t), one of each row scored.
        """
        return {"connected": labels[labels != IGNORE_INDEX].astype(np.int64) - APART}

    def scenes(self, rng: RowRandom) -> tuple[Floats, Ints]:
        """What the pictures show.

        Args:
            rng: rows (b,).

        Returns:
            dashes (c, b, n), those of the two long contours by turns, then the short contours one after the other; and
            whether the discs are connected (b,), 0 or 1. The discs are at the start of dash 0 and at the end of dash
            2 contour_length - 2 (connected) or of the one after it.
        """
        return _Growth(self, rng).dashes, rng.integers("answer", 1, 2)[:, 0]

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        dashes, connected = self.scenes(rng)
        last = 2 * self.contour_length - 1 - connected
        ends = dashes[2:, np.arange(len(last)), last]
        input_ids = paint(dashes, np.stack([dashes[:2, :, 0], ends], axis=2), self.side)
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[:, -1] = APART + connected
        return input_ids, labels


# ---- contours -------------------------------------------------------------------------------------------------------


class _Growth:
    """Contours that grow dash by dash, in each row at its own pace, until all dashes stand.

    Each round takes one word of a row's stream for a proposal: where the next dash might be. One that leaves the
    picture or comes too near to another dash is dropped. After many in a row the last few dashes are taken back, at
    the next dead end more of them.
    """

    def __init__(self, task: Pathfinder, rng: RowRandom) -> None:
        """Grow the contours of the rows (b,) of the generator."""
        rows, total, self.task = len(rng.rows), task.num_dashes, task
        self.before = _dash_before(task.contour_length, task.num_distractors, task.distractor_length)
        self.dashes, self.middles = np.zeros((4, rows, total)), np.zeros((2, rows, total))
        self.heading = np.zeros((rows, total), np.int64)
        self.number, self.failures, self.retreats = (np.zeros(rows, np.int64) for _ in range(3))
        growing, turn, words = np.arange(rows), 0, np.empty((rows, _PROPOSALS_AT_ONCE), np.uint64)
        while growing.size:
            part, column = divmod(turn, _PROPOSALS_AT_ONCE)
            if column == 0:
                words[growing] = rng.take(growing).bits(f"proposals {part}", _PROPOSALS_AT_ONCE)
            self._round(growing, words[growing, column])
            growing, turn = growing[self.number[growing] < total], turn + 1

    def _round(self, rows: Ints, words: UInts) -> None:
        """Let each of the rows (b,) make one proposal, decided by a word (b,)."""
        start, heading = self._proposal(rows, words)
        fits = self._fits(rows, start, heading)
        done, stuck = rows[fits], rows[~fits]
        place = self.number[done]
        self.dashes[:, done, place] = dash = _dash(start, heading, DASH)[:, fits]
        self.middles[:, done, place] = (dash[:2] + dash[2:]) / 2
        self.heading[done, place] = heading[fits]
        self.number[done] += 1
        self.failures[done] = 0
        self.failures[stuck] += 1
        back = stuck[self.failures[stuck] == _PROPOSALS]
        self.number[back] = np.maximum(0, self.number[back] - _RETREAT * (1 + self.retreats[back] % 3))
        self.retreats[back] += 1
        self.failures[back] = 0

    def _proposal(self, rows: Ints, words: UInts) -> tuple[Floats, Ints]:
        """Start (2, b) and heading in degrees (b,) of a next dash."""
        task, number = self.task, self.number[rows]
        before = self.before[number]
        old = self.heading[rows, before]
        widest = ceil(90 / task.continuity)
        turn = np.where(
            self.failures[rows] < _FRESH_TURNS,
            _scaled(words, 0, widest) - _scaled(words, 16, widest),
            _scaled(words, 0, 2 * widest - 1) - (widest - 1),
        )
        heading = np.where(before >= 0, (old + turn) % 360, _scaled(words, 0, 360))
        along = self.dashes[2:, rows, before] + GAP / 2 * (compass()[:, old] + compass()[:, heading])
        width = task.side - 2 * BORDER
        anywhere = BORDER + width * (np.stack([_scaled(words, 32, 2**16), _scaled(words, 48, 2**16)]) + 0.5) / 2**16
        beside = self.dashes[:2, rows, 0] + task.seed_distance * compass()[:, _scaled(words, 32, 360)]
        return np.where(before >= 0, along, np.where(number == 1, beside, anywhere)), heading

    def _fits(self, rows: Ints, start: Floats, heading: Ints) -> Bools:
        """Whether dashes, with half a gap at their ends, are in the picture and clear of the others: (b,)."""
        number, length = self.number[rows], DASH + GAP / 2
        ahead = _dash(start, heading, length)
        fits = ((ahead >= BORDER) & (ahead <= self.task.side - BORDER)).all(axis=0)
        # The second disc may be at the end of either long contour, and must not touch the first.
        last = (number >= 2 * self.task.contour_length - 2) & (number < 2 * self.task.contour_length)
        from_disc = ((_dash(start, heading, DASH)[2:] - self.dashes[:2, rows, 0]) ** 2).sum(axis=0)
        fits &= ~last | (from_disc >= (2 * DISC + 1.5) ** 2)
        some = np.flatnonzero(fits)
        mine, other = self._neighbours(rows[some], (ahead[:2, some] + ahead[2:, some]) / 2)
        mine = some[mine]
        gaps = squared_gaps(ahead[:, mine], length, self.dashes[:, rows[mine], other])
        fits[mine[gaps < CLEARANCE**2]] = False
        return fits

    def _neighbours(self, rows: Ints, middle: Floats) -> tuple[Ints, Ints]:
        """Pairs of proposals, by index, and dashes of their rows that may be too near, by the distance of the middles.

        Args:
            rows: (b,).
            middle: of the proposed dashes (2, b).
        """
        number = self.number[rows, None]
        column = np.arange(number.max(initial=0))
        x, y = self.middles[:, rows, : len(column)] - middle[:, :, None]
        near = x * x + y * y < (CLEARANCE + DASH + GAP / 4) ** 2
        return np.nonzero(near & (column < number) & (column != self.before[number]))


@cache
def _dash_before(contour_length: int, num_distractors: int, distractor_length: int) -> Ints:
    """Number of the dash that each one follows on its contour, -1 for the first: (n,)."""
    long, short = np.arange(2 * contour_length) - 2, np.arange(num_distractors * distractor_length)
    following = np.where(short % distractor_length == 0, -1, 2 * contour_length + short - 1)
    return np.concatenate([np.maximum(long, -1), following])


@cache
def compass() -> Floats:
    """Cosines and sines of the whole degrees, rounded to be the same on every platform: (2, 360)."""
    return np.array([[round(f(radians(degree)), 12) for degree in range(360)] for f in (cos, sin)])


def _scaled(words: UInts, shift: int, bound: int) -> Ints:
    """Integers of 0..bound-1 from the 16 bits of words at a shift; bound <= 2^16."""
    return ((words >> shift & 0xFFFF).astype(np.int64) * bound) >> 16


def _dash(start: Floats, heading: Ints, length: float) -> Floats:
    """Dashes (c, b) from starts (2, b) and headings in degrees (b,)."""
    return np.concatenate([start, start + length * compass()[:, heading]])


def squared_gaps(dash: Floats, length: float, others: Floats) -> Floats:
    """Squared distances of dashes from others, where they do not cross: that of an end of one from the other.

    Two that cross have an end nearer than length / 2 to the other dash.

    Args:
        dash: (c, b).
        length: of these.
        others: (c, b), of length DASH.

    Returns:
        (b,).
    """
    gaps = [squared_distance(point, others, DASH) for point in (dash[:2], dash[2:])]
    gaps += [squared_distance(point, dash, length) for point in (others[:2], others[2:])]
    return np.minimum.reduce(gaps)


def squared_distance(point: Floats, dash: Floats, length: float) -> Floats:
    """Squared distance of points (2, ...) from dashes (c, ...) of a length."""
    dx, dy = (dash[2:] - dash[:2]) / length
    x, y = point - dash[:2]
    along = np.minimum(np.maximum(x * dx + y * dy, 0), length)
    return (x - along * dx) ** 2 + (y - along * dy) ** 2


# ---- pictures -------------------------------------------------------------------------------------------------------


def paint(dashes: Floats, discs: Floats, side: int) -> Ints:
    """Grey levels of pictures of dashes and discs; of things that share a pixel the brighter one shows.

        light(pixel) = BRIGHTNESS clip(THICKNESS/2 + 1/2 - distance from the dash, 0, THICKNESS)
                     = clip(DISC + 1/2 - distance from the disc's centre, 0, 1)

    Args:
        dashes: (c, b, n).
        discs: centres (2, b, m).
        side: width and height in pixels.

    Returns:
        Levels 0..255 of the pixels, row by row (b, side * side).
    """
    light = np.zeros((dashes.shape[1], side + 4, side + 4))  # two pixels around it catch what falls off the edges
    reach = THICKNESS / 2 + 0.5
    middle = (dashes[:2] + dashes[2:]) / 2
    pixels = _patch(middle, DASH / 2 + reach)
    distance = np.sqrt(squared_distance(pixels + 0.5, dashes[..., None], DASH))
    _shine(light, pixels, BRIGHTNESS * np.clip(reach - distance, 0, THICKNESS))
    pixels = _patch(discs, DISC + 0.5)
    distance = np.sqrt(((pixels + 0.5 - discs[..., None]) ** 2).sum(axis=0))
    _shine(light, pixels, np.clip(DISC + 0.5 - distance, 0, 1))
    return np.floor(255 * light[:, 2:-2, 2:-2] + 0.5).astype(np.int64).reshape(len(light), -1)


def _patch(centre: Floats, radius: float) -> Floats:
    """Coordinates of all pixels whose centres are within a radius of points along both axes: (2, b, n) -> (2, b, n, p).

    Some of them may be further away.
    """
    offsets = np.stack(np.meshgrid(*[np.arange(int(2 * radius) + 1)] * 2)).reshape(2, -1)
    return np.ceil(centre - radius - 0.5)[..., None] + offsets[:, None, None]


def _shine(light: Floats, pixels: Floats, values: Floats) -> None:
    """Brighten the pixels (2, b, n, p) to values (b, n, p), where they are darker."""
    x, y = pixels.astype(np.int64) + 2
    row = np.arange(len(light))[:, None, None] * light.shape[1]
    np.maximum.at(light.reshape(-1), (row + y) * light.shape[2] + x, values)
