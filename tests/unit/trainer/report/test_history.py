import numpy as np

from trainer.report.history import switched_off_steps


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
