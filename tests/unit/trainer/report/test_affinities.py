import json

import numpy as np
import pytest

from trainer.report.affinities import block_order, read_affinities, read_co_assignment

NAMES = ["a", "b", "c"]


def test_recorded_rows_become_a_symmetric_matrix(tmp_path):
    records = [{"kind": "affinity", "step": 3, "affinity": [[1.0], [0.2, 1.0], [0.7, None, 1.0]]}]
    found = read_affinities(tmp_path, records, NAMES)
    np.testing.assert_array_equal(found.values, [[1, 0.2, 0.7], [0.2, 1, 0], [0.7, 0, 1]])
    assert found.meaning.startswith("RV coefficient")
    rows = [[1.0], [0.0, 1.0], [1.0, 0.0, 1.0]]
    records.append({"kind": "co_assignment", "step": 3, "co_assignment": rows})
    assert "combination" in read_affinities(tmp_path, records, NAMES).meaning


def test_co_assignments_are_those_of_these_tasks():
    rows = [[1.0], [0.25, 1.0], [0.5, 0.75, 1.0]]
    records = [{"kind": "affinity"}, {"kind": "co_assignment", "step": 3, "co_assignment": rows}]
    found = read_co_assignment(records, 3)
    np.testing.assert_array_equal(found, [[1, 0.25, 0.5], [0.25, 1, 0.75], [0.5, 0.75, 1]])
    assert read_co_assignment(records, 4) is None and read_co_assignment(records[:1], 3) is None


def test_a_search_has_affinities_in_both_directions(tmp_path):
    tree = {"tasks": NAMES, "affinity": [[0, 1, 2], [3, 0, 4], [6, 8, 0]], "groups": []}
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "groups.json").write_text(json.dumps(tree))
    found = read_affinities(tmp_path, [], NAMES)
    np.testing.assert_array_equal(found.values, [[0, 2, 4], [2, 0, 6], [4, 6, 0]])
    with pytest.raises(ValueError, match="is not of these tasks"):
        read_affinities(tmp_path, [], ["a", "b", "d"])


def test_a_run_without_affinities(tmp_path):
    with pytest.raises(ValueError, match="has recorded no affinities"):
        read_affinities(tmp_path, [], NAMES)


def test_similar_tasks_are_beside_each_other_within_their_branch():
    """Tasks 0, 2, 4 and 6 are on branch 0; 0 is like 4, and 2 like 6."""
    affinity = np.full((8, 8), 0.1)
    for a, b in ((0, 4), (2, 6), (1, 7)):
        affinity[a, b] = affinity[b, a] = 0.9
    order = block_order(affinity, [n % 2 for n in range(8)])
    assert sorted(order[:4]) == [0, 2, 4, 6] and sorted(order[4:]) == [1, 3, 5, 7]
    place = {task: position for position, task in enumerate(order)}
    assert all(abs(place[a] - place[b]) == 1 for a, b in ((0, 4), (2, 6), (1, 7)))
