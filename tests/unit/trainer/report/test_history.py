import numpy as np

from trainer.report.history import read_history, switched_off_steps, thinned


def test_deaths_follow_branches_through_their_renumbering():
    """Branch 1 of the smaller network was branch 2 at first, later branch 3 became 1."""
    records = [
        {"kind": "train", "step": 1},
        {"kind": "prune", "step": 5, "off": [[0, 1], [1, 1]]},
        {"kind": "compact", "step": 5, "branches": [0, 2, 3]},
        {"kind": "prune", "step": 7, "off": [[0, 1], [1, 1]]},
        {"kind": "compact", "step": 7, "branches": [0, 2]},
        {"kind": "prune", "step": 9, "off": [[0, 0], [1, 1]]},
    ]
    expected = [[9, 5, 7, np.inf], [np.inf, 5, 7, 9]]
    np.testing.assert_array_equal(switched_off_steps(records, 2, 4), expected)


def test_a_given_grouping_is_drawn_as_it_was_given():
    records = [{"step": 0, "kind": "given", "heads": [[0, 1], [1, 0], [2, 1]]}]
    alive = switched_off_steps(records, num_tasks=3, num_branches=5)
    assert alive.tolist() == [[0, np.inf], [np.inf, 0], [0, np.inf]]


RECORDS = [
    {"kind": "train", "step": 4},
    {"kind": "prune", "step": 4, "off": [[0, 1], [1, 1]]},
    {"kind": "compact", "step": 4, "branches": [0, 2]},
    {"kind": "train", "step": 8},
    {"kind": "prune", "step": 8, "off": [[0, 1], [1, 0]]},
    {"kind": "train", "step": 10},
]
RECORDED = [
    {"kind": "probabilities", "step": 4, "probabilities": [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]},
    {"kind": "affinity", "step": 5, "affinity": [[1.0], [0.5, 1.0]]},
    {"kind": "probabilities", "step": 8, "probabilities": [[0.75, 0.25], [0.25, 0.75]]},
]


def history(grouping_records, most=100):
    return read_history(RECORDS, grouping_records, switched_off_steps(RECORDS, 2, 3), most)


def test_probabilities_keep_the_initial_numbers_of_the_branches():
    """The record of step 4 is written before the network loses branch 1; the end is pruned."""
    found = history(RECORDED)
    assert (found.steps, found.recorded) == ([4, 8, 10], True)
    expected = [
        [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]],
        [[0.75, 0.0, 0.25], [0.25, 0.0, 0.75]],
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    ]
    np.testing.assert_allclose(found.probabilities, expected)


def test_without_a_record_live_heads_count_the_same():
    found = history([])
    assert (found.steps, found.recorded) == ([0, 4, 8, 10], False)
    np.testing.assert_allclose(found.probabilities[0], np.full((2, 3), 1 / 3))
    np.testing.assert_allclose(found.probabilities[1], [[0.5, 0, 0.5]] * 2)
    np.testing.assert_allclose(found.probabilities[2:], [[[1, 0, 0], [0, 0, 1]]] * 2)


def test_a_long_history_is_thinned_to_its_ends():
    assert history(RECORDED, most=2).steps == [4, 10]
    assert thinned(1000, 5) == [0, 250, 500, 749, 999]
    assert thinned(3, 10) == [0, 1, 2]
