"""Pathfinder: geometry that keeps its distances, answers found again by flood fill, pictures against plain sampling."""

import numpy as np
import pytest

from dsf_models.tasks.counter_rng import RowRandom
from dsf_models.tasks.pathfinder import APART, BORDER, CLEARANCE, DASH, DISC, GAP, THICKNESS, Pathfinder, paint

GOLDEN = {
    (): "84e5e69b2b5bc12a0b704b0a445c8c2143907ba4e34ab52bbfe4d3f63361c6a5",
    (
        ("contour_length", 6),
        ("num_distractors", 3),
        ("continuity", 2.0),
    ): "49d557698c3e0d936e634c6cb54da0d3f1cc16300361ae38d68f823bfc62ad93",
}
ROWS = 400


@pytest.fixture(scope="module")
def scenes():
    """Dashes (row, dash, start or end, x or y) and answers of the first rows of the training split."""
    rng = RowRandom(0, "pathfinder/train", np.arange(ROWS, dtype=np.uint64))
    dashes, connected = Pathfinder().scenes(rng)
    return dashes.transpose(1, 2, 0).reshape(ROWS, -1, 2, 2), connected


def sampled_gaps(dashes):
    """Return distances of all pairs of dashes (n, n), by points along them."""
    weight = np.linspace(0, 1, 21)[:, None]
    points = dashes[:, 0, None] * (1 - weight) + dashes[:, 1, None] * weight
    flat = points.reshape(-1, 2)
    distance = np.hypot(*(flat[:, None] - flat[None]).transpose(2, 0, 1))
    return distance.reshape(len(dashes), 21, len(dashes), 21).min(axis=(1, 3))


def flooded(near, start):
    """Return which dashes can be reached from one by steps between near ones."""
    reached = np.zeros(len(near), bool)
    reached[start] = True
    while (grown := near[reached].any(axis=0) | reached).sum() > reached.sum():
        reached = grown
    return reached


@pytest.mark.parametrize("sizes", GOLDEN, ids=lambda sizes: str(len(sizes)))
def test_golden_hashes(sizes):
    assert Pathfinder(**dict(sizes)).data_hash("train", 0, 8) == GOLDEN[sizes]


def test_answers_are_what_a_flood_fill_finds(scenes):
    """Steps of up to GAP reach the dashes of one contour and no other, since those of others are CLEARANCE away."""
    for dashes, connected in zip(scenes[0][:30], scenes[1], strict=False):
        gaps = sampled_gaps(dashes)
        near = gaps <= GAP + 1e-9
        assert gaps[~near].min() >= CLEARANCE - 1e-9
        reached = flooded(near, 0)
        assert reached[:28].tolist() == [True, False] * 14
        assert not reached[28:].any()
        assert reached[27 - connected] == connected
        contours = {tuple(flooded(near, n)) for n in range(len(dashes))}
        assert sorted(map(sum, contours)) == [4] * 5 + [14] * 2


def test_dashes_have_their_length_and_place(scenes):
    dashes = scenes[0]
    np.testing.assert_allclose(np.hypot(*(dashes[:, :, 1] - dashes[:, :, 0]).transpose(2, 0, 1)), DASH, atol=1e-9)
    assert dashes.min() >= BORDER
    assert dashes.max() <= 32 - BORDER
    np.testing.assert_allclose(np.hypot(*(dashes[:, 0, 0] - dashes[:, 1, 0]).T), 7, atol=1e-9)
    along = (dashes[:, :, 1] - dashes[:, :, 0])[:, :28:2]
    assert ((along[:, 1:] * along[:, :-1]).sum(axis=2) > 0).all(), "a contour turns by less than 90 degrees"
    for end in (26, 27):
        assert (np.hypot(*(dashes[:, end, 1] - dashes[:, 0, 0]).T) > 2 * DISC + 1).all()


def test_the_distance_of_the_discs_tells_nothing(scenes):
    """Neither the answers nor the distance between the discs, with the best threshold, beat a coin by more than 5 %."""
    dashes, connected = scenes
    assert abs(connected.mean() - 0.5) < 4 * 0.5 / ROWS**0.5
    apart, together = (np.hypot(*(dashes[:, end, 1] - dashes[:, 0, 0]).T) for end in (27, 26))
    thresholds = np.linspace(4, 40, 73)
    rule = [((together < limit).mean() + (apart >= limit).mean()) / 2 for limit in thresholds]
    assert max(abs(np.array(rule) - 0.5)) < 0.05


def test_pictures_are_those_of_a_plain_painter(scenes):
    """Each pixel by its own distance from every dash and disc, without patches."""
    dashes, connected = scenes
    columns = Pathfinder().generate("train", 0, 0, 3)
    y, x = np.mgrid[:32, :32] + 0.5
    pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    for row in range(3):
        start, end = dashes[row, :, 0], dashes[row, :, 1]
        along = np.clip(((pixels - start) * (end - start)).sum(axis=2, keepdims=True) / DASH**2, 0, 1)
        from_dash = np.linalg.norm(pixels - start - along * (end - start), axis=2).min(axis=1)
        discs = np.stack([start[0], end[27 - connected[row]]])
        from_disc = np.linalg.norm(pixels - discs, axis=2).min(axis=1)
        light = np.maximum(1.5 * np.clip(THICKNESS / 2 + 0.5 - from_dash, 0, THICKNESS), np.clip(2 - from_disc, 0, 1))
        np.testing.assert_array_equal(columns["input_ids"][row], np.rint(255 * light))
        assert columns["labels"][row, -1] == APART + connected[row]
        assert (columns["labels"][row, :-1] == -100).all()


def test_painting_does_not_reach_over_edges():
    disc = np.array([[[BORDER, 16 - BORDER]]] * 2)
    picture = paint(np.full((4, 1, 1), 8.0) + np.array([0, 0, 2, 0])[:, None, None], disc, 16).reshape(16, 16)
    assert picture[1, 1] == picture[14, 14] == 255
    assert picture[0, 0] == picture[15, 15] == round(255 * (2 - 2**0.5))
    assert not picture[0, 4:].any()
    assert not picture[15, :12].any()


def test_a_row_does_not_depend_on_its_company(scenes):
    rng = RowRandom(0, "pathfinder/train", np.array([ROWS - 1, 5], np.uint64))
    dashes = Pathfinder().scenes(rng)[0].transpose(1, 2, 0).reshape(2, -1, 2, 2)
    np.testing.assert_array_equal(dashes, scenes[0][[ROWS - 1, 5]])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 257}, "pathfinder.vocab_size=257: give at least 258"),
        ({"sequence_length": 1000}, "sequence_length=1000: a picture is square"),
        ({"sequence_length": 225}, "sequence_length=225: .* 16 times 16"),
        ({"contour_length": 2}, "contour_length=2: give at least 3"),
        ({"num_distractors": -1}, "num_distractors=-1: give 0 or more"),
        ({"distractor_length": 0}, "distractor_length=0: give at least 1"),
        ({"continuity": 0.5}, r"continuity=0\.5: give 1 to 9"),
        ({"seed_distance": 2.0}, r"seed_distance=2\.0: give 2\.5 to 14\.5"),
        (
            {"contour_length": 40},
            "contour_length=40: a picture of 32 times 32 pixels has room for 49 dashes, not for 100",
        ),
    ],
)
def test_sizes_without_room_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Pathfinder(**sizes)
