from model.tasks.spec import TaskSpec
from trainer.report.data_facts import DataFacts
from trainer.report.problems import list_problems

TASKS = [TaskSpec("sphere", "binary"), TaskSpec("pitch", "regression", field="angle")]
TRAIN = {"step": 5, "kind": "train", "losses": {"sphere": 0.5, "pitch": 0.1}}
METRICS = {"sphere": {"error": 0.2}, "pitch": {"mae": 1.0}}


def found(records=(TRAIN,), timing=(), metrics=METRICS, **facts):
    problems = list_problems(list(records), list(timing), TASKS, metrics, DataFacts(**facts))
    return [f"{problem['level']}: {problem['text']}" for problem in problems]


def test_a_run_without_problems():
    constants = {"sphere": {"error": 0.3}, "pitch": {"mae": 2.0}}
    labelled = {"train": {"samples": 10, "labels": {"sphere": 10, "angle": 9}}}
    assert found(constants=constants, labelled=labelled) == []


def test_warnings_come_first():
    records = [
        {**TRAIN, "losses": {"sphere": 0.5, "pitch": None}, "replaced": 7},
        {"step": 9, "kind": "skip"},
    ]
    slow = {"step": 5, "kind": "steps", "step_seconds": 1.0, "data_seconds": {"max": 0.5}}
    listed = found(
        records,
        [slow],
        {"sphere": {"error": 0.3}},
        constants={"sphere": {"error": 0.3}, "pitch": {"mae": 2.0}},
        labelled={"val": {"samples": 100, "labels": {"sphere": 100, "angle": 3}}},
        skipped={"too large": 4},
        lost={"angle": {"not a number": 2}},
    )
    assert listed == [
        "warning: Damaged samples that were replaced in training: 7.",
        "warning: Steps left out because of a loss that is not finite: 1 (9).",
        "warning: No loss was logged for pitch.",
        "warning: No label in the evaluation split for pitch.",
        "warning: 1 of 1 tasks are not better than the best constant prediction: sphere.",
        "note: Few labels in the split val: pitch (3 of 100).",
        "note: Samples that the conversion left out: 4 (too large).",
        "note: The conversion left out labels of angle: not a number (2).",
        "note: Half of the steps spent more than 50 % of their time waiting for data; more "
        "data.workers may help.",
    ]
