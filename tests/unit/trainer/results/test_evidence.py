"""The evidence for groups: in memory, in files, in checkpoints, and as text of 80 columns."""

import json
import shutil

import pytest
import torch

from model.grouping.paired_losses import PairedLosses
from model.tasks.spec import TaskSpec
from tests.runs import AGREEMENT, FIRMNESS, write_run
from trainer.recipes.groups import read_groups as read_given
from trainer.results.evidence import TaskEvidence, gather_evidence, is_firm
from trainer.results.evidence_text import describe_tasks
from trainer.results.groups import RunGroups, TaskBranch, groups_json, read_groups
from trainer.results.lines import WIDTH
from trainer.results.result import RunResult, write_result
from trainer.results.text import describe_groups, describe_scores
from trainer.scoring.scores import Score

CPU = torch.device("cpu")
SURE, CHANCE = TaskEvidence(3.1, 0.4, True, 0.93), TaskEvidence(0.25, 0.5, False, 0.4)
WORSE, UNKNOWN = TaskEvidence(-12.0, 1.0, False, 0.7), TaskEvidence()


def run_groups(evidence, agreement=None, branches=2):
    tasks = [
        TaskBranch(f"task_{n:04}", n % branches, 1.0, 1, each) for n, each in enumerate(evidence)
    ]
    return RunGroups(9, tuple(tasks), agreement)


def text_of(found):
    lines = describe_groups(found, 12)
    assert all(len(line) <= WIDTH for line in lines)
    return " ".join(line.strip() for line in lines)


def paired(losses):
    """Of 40 steps in which every other one is harder by 1 for all heads [N,K]."""
    losses = torch.tensor(losses)
    sums = PairedLosses(*losses.shape, CPU)
    for step in range(40):
        noise = 0.01 * (-1) ** step * torch.arange(losses.shape[1])
        sums.add(losses + step % 2 + noise, torch.ones(len(losses)), torch.ones(losses.shape) > 0)
    return sums


def test_margins_are_in_percent_of_the_best_other_loss():
    """Tasks on branches 1, 0 and 0; every other step is harder by 1, so that the mean is so by 0.5.

    Of branch 1 the loss changes by 0.01, which gives the standard error.
    """
    sums = paired([[2.0, 1.0, 3.0], [1.0, 1.001, 9.0], [1.0, 0.5, 2.0]])
    evidence, agreement = gather_evidence([1, 0, 0], sums, torch.tensor([0.25, 0.5, 1.0, 0.875]))
    assert agreement == 0.875 and [each.firmness for each in evidence] == [0.25, 0.5, 1.0]
    margins = [each.margin for each in evidence]
    # The last steps count most, so the mean of alternating values is not exactly their middle.
    assert margins == pytest.approx([100 / 2.5, 0.1 / 1.501, -50 / 1.0], rel=0.1, abs=0.2)
    assert [each.significant for each in evidence] == [True, False, False]
    assert [each.worse for each in evidence] == [False, False, True]
    assert all(0 < each.standard_error < 1 for each in evidence)


def test_nothing_is_known_of_given_groups():
    evidence, agreement = gather_evidence([0, 1, 2], PairedLosses(3, 3, CPU), None)
    assert evidence == [UNKNOWN] * 3 and agreement is None
    assert not any(each.known for each in evidence)


def test_firmness_alone_is_evidence():
    evidence, _ = gather_evidence([0, 0], PairedLosses(2, 2, CPU), torch.tensor([0.3, 0.6, 0.5]))
    assert [each.firmness for each in evidence] == pytest.approx([0.3, 0.6])
    assert all(each.known and each.margin is None for each in evidence)


def test_a_loss_below_zero_has_no_percentage_but_a_verdict():
    evidence, _ = gather_evidence([0], paired([[-9.0, -5.0]]), None)
    assert (evidence[0].margin, evidence[0].significant) == (None, True)


@pytest.mark.parametrize("evidence", [SURE, CHANCE, WORSE, UNKNOWN])
def test_groups_survive_json(evidence):
    found = run_groups([evidence] * 3, 0.5)
    assert RunGroups.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_groups_of_an_earlier_version_have_no_evidence():
    found = RunGroups.from_json({"step": 3, "tasks": {"a": [1, 0.625, 2]}})
    assert found == RunGroups(3, (TaskBranch("a", 1, 0.625, 2),))


@pytest.mark.parametrize("wrong", [{"significant": 3}, {"margin": "x"}, {"firmness": [1]}])
def test_other_json_is_refused(wrong):
    values = run_groups([SURE]).to_json()
    values["tasks"]["task_0000"] |= wrong
    with pytest.raises((ValueError, TypeError)):
        RunGroups.from_json(values)


def test_groups_json_is_what_another_run_trains(tmp_path):
    found = run_groups([SURE, UNKNOWN, CHANCE], 0.5)
    result = RunResult(tmp_path, "affinity", 9, 9, found, {}, {}, ())
    write_result(result)
    written = json.loads((tmp_path / "groups.json").read_text())
    assert written == groups_json(found)
    assert written["tasks"]["task_0001"] == {
        "branch": 1, "probability": 1.0, "choices": 1, "margin": None, "standard_error": None,
        "significant": None, "firmness": None,
    }  # fmt: skip
    assert (written["agreement"], written["decided"]) == (0.5, 3)
    names = [task.task for task in found.tasks]
    assert read_given(tmp_path / "groups.json", names) == ((0, 2), (1,))
    assert read_given(tmp_path / "result.json", names) == ((0, 2), (1,))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["agreement"] == 0.5 and result["evidence"]["task_0002"]["margin"] == 0.25


def test_a_checkpoint_has_the_evidence(tmp_path):
    """Of a run that was stopped, or has no status."""
    write_run(tmp_path / "run", [TaskSpec("a", "binary"), TaskSpec("b", "binary")], 2)
    found = read_groups(tmp_path / "run")
    first, second = (task.evidence for task in found.tasks)
    assert first.margin == pytest.approx(25, rel=0.1) and first.significant is True
    assert second.significant is False and second.standard_error > 10 * first.standard_error
    assert first.firmness == pytest.approx(FIRMNESS) and found.agreement == pytest.approx(AGREEMENT)
    write_run(tmp_path / "old", [TaskSpec("a", "binary")], 2, recorded=False)
    assert read_groups(tmp_path / "old").tasks[0].evidence == UNKNOWN
    shutil.rmtree(tmp_path / "old" / "checkpoints")
    with pytest.raises(ValueError, match="no groups yet"):
        read_groups(tmp_path / "old")


def test_a_sentence_about_the_margins():
    text = text_of(run_groups([SURE, CHANCE, SURE, UNKNOWN]))
    assert text.endswith(
        "margins: 2 of 3 tasks: the chosen branch is better than the best other one beyond chance "
        "(3 standard errors)"
    )
    text = text_of(run_groups([SURE, WORSE, WORSE]))
    assert text.endswith("(3 standard errors); 2: it is worse beyond chance")
    assert "margins" not in text_of(run_groups([UNKNOWN] * 3))


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        (0.93, "The groups are firm: groups from resampled steps of the warm-up agree with them at "
         "0.93 (adjusted Rand index, 1 = always the same)."),
        (0.75, "The groups are firm: "),
        (0.746, "The groups are firm: groups from resampled steps of the warm-up agree with them "
         "at 0.75"),
        (0.744, "The groups are NOT firm: groups from resampled steps of the warm-up agree with "
         "them at 0.74 (adjusted Rand index, 1 = always the same); other seeds will give other "
         "groups. Compare with random groups before you rely on them (dmtg compare)."),
        (-0.004, " at 0.00 ("),
        (None, None),
    ],
)  # fmt: skip
def test_a_sentence_about_firmness(agreement, said):
    text = text_of(run_groups([UNKNOWN] * 3, agreement))
    assert said in text if said else "firm" not in text
    assert agreement is None or is_firm(agreement) == ("are firm" in text)


@pytest.mark.parametrize(("number", "branches"), [(3, 1), (3, 3)])
def test_one_group_and_a_group_for_each_task_are_always_the_same(number, branches):
    assert "firm" not in text_of(run_groups([UNKNOWN] * number, 1.0, branches))


def test_the_table_of_a_few_tasks():
    lines = describe_tasks(run_groups([SURE, CHANCE, WORSE, UNKNOWN]))
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["task"] == ["branch", "margin", "error", "firm"]
    assert rows["task_0000"] == ["0", "+3.1", "%", "0.40", "%", "0.93"]
    assert rows["task_0001"] == ["1", "(+0.25", "%)", "0.50", "%", "0.40"]
    assert rows["task_0002"] == ["0", "-12", "%", "1.0", "%", "0.70"]
    assert "task_0003" not in rows
    assert "  margin: loss below that of the best other branch; in brackets: may be chance" in lines


def test_without_firmness_there_is_no_column_of_it():
    lines = describe_tasks(run_groups([TaskEvidence(3.1, 0.4, True, None)]))
    assert "firm" not in " ".join(lines) and "brackets" not in " ".join(lines)
    assert describe_tasks(run_groups([UNKNOWN] * 3)) == []


def test_of_a_thousand_tasks_those_with_the_least_evidence_are_shown():
    evidence = [TaskEvidence(n / 100, 0.5, n / 100 > 1.5, 0.5 + n / 2000) for n in range(1000)]
    found = run_groups(evidence, 0.8, branches=8)
    lines = describe_tasks(found)
    assert len(lines) < 20 and all(len(line) <= WIDTH for line in lines)
    shown = [line.split()[0] for line in lines if line.startswith("  task_")]
    assert shown == [f"task_{n:04}" for n in range(12)]
    assert "margins: 849 of 1000 tasks" in text_of(found)


def test_evidence_stands_beside_the_scores():
    scores = [Score(name, 0, "error", 0.5, 1.0, False) for name in ("sure", "chance", "n" * 90)]
    evidence = {"sure": SURE, "chance": CHANCE}
    lines = describe_scores(scores, evidence)
    assert all(len(line) <= WIDTH for line in lines)
    assert lines[1].split()[-3:] == ["gain", "margin", "firm"]
    assert next(line for line in lines if "sure" in line).split()[-3:] == ["+3.1", "%", "0.93"]
    assert next(line for line in lines if "chance" in line).split()[-3:] == ["(+0.25", "%)", "0.40"]
    assert describe_scores(scores, {"sure": UNKNOWN}) == describe_scores(scores)


@pytest.mark.parametrize(("agreement", "shown"), [(0.4, True), (0.9, False), (None, False)])
def test_what_to_do_about_groups_that_are_not_firm(agreement, shown, tmp_path):
    found = run_groups([SURE] * 3, agreement)
    text = str(RunResult(tmp_path / "a b", "affinity", 9, 9, found, {}, {}, ()))
    command = (
        f"dmtg compare '{tmp_path}/a b'/config.yaml --recipes affinity,random "
        f"--out '{tmp_path}/a b'-compare"
    )
    assert (command in text) == shown
