"""The words of a comparison, for changes and rows whose numbers are known."""

import dataclasses

import pytest

from trainer.compare.paired import PairedChange
from trainer.compare.table import RecipeResult, Spread
from trainer.compare.verdict import closing, percent, sentence, sentences, signed, times

FIVE = (0, 1, 2, 3, 4)


def change(low, high, *, against="random", seeds=FIVE, tasks=28, left_out=0):
    mean = (low + high) / 2
    single = len(seeds) < 2
    return PairedChange(
        against, mean, None if single else low, None if single else high, seeds,
        (mean,) * len(seeds), {f"t{n}": (mean,) * len(seeds) for n in range(tasks)},
        tuple(f"x{n}" for n in range(left_out)),
    )  # fmt: skip


def row(label, gain=None, one=None, *, parameters=300, branches=None, fewer=None, ratio=1.0):
    name = label.partition(" ")[0].partition("=")[0]
    return RecipeResult(
        recipe=label, name=name, branches=branches, done=5, failed=0, total_error=None,
        train_loss=None, gain=gain, one_branch=one, fewer=fewer, seconds=None, times_seconds=None,
        parameters=Spread.of([parameters]), times_parameters=ratio, groups=None, agreement=None,
        tasks={}, gains={},
    )  # fmt: skip


def of_one(low, high, **options):
    return change(low, high, against="multitask", **options)


RANDOM = row("random", change(0.0, 0.0))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (change(9.0, 13.0), "11.0 % better (95 % interval 9.0 to 13.0, 5 seeds, 28 tasks)"),
        (change(-5.3, -1.1), "3.2 % worse (95 % interval 1.1 to 5.3, 5 seeds, 28 tasks)"),
        (
            change(-0.4, 0.9),
            "no difference that 5 seeds can show (95 % interval -0.4 to +0.9, 28 tasks)",
        ),
        (
            change(0.02, 0.5, tasks=1, left_out=2),
            "0.3 % better (95 % interval 0.02 to 0.5, 5 seeds, 1 task, 2 left out)",
        ),
        (change(2.0, 2.0, seeds=(3,)), "2.0 % better with seed 3 (28 tasks; one seed gives no"),
        (change(1.0, 2.0, seeds=()), "no comparison, no seed has a finished run of both"),
        (
            dataclasses.replace(change(1, 2, tasks=0, left_out=4), mean=None, values=()),
            "no comparison, no task of 4 has a reference above 0 and a metric in every run",
        ),
        (
            dataclasses.replace(change(1, 2), low=None, values=(1.0, float("nan"), 1, 1, 1)),
            "no comparison, a metric is not finite with seed 1",
        ),
    ],
)
def test_sentences_of_every_outcome(found, expected):
    assert sentence("affinity", found).startswith(f"affinity against random: {expected}")


def test_a_sentence_ends_with_the_cost_and_the_reference_has_none():
    tag = row("tag", change(1, 2), ratio=0.333)
    tag = dataclasses.replace(tag, times_seconds=2.71)
    (line,) = sentences([RANDOM, tag, row("affinity")])
    assert line.endswith("28 tasks); 0.33 times the parameters and 2.7 times the seconds.")


def test_numbers():
    assert [percent(v) for v in (11.04, 0.0, 0.04, 0.0004, -0.02)] == [
        "11.0", "0.0", "0.04", "0.0004", "-0.02",
    ]  # fmt: skip
    assert [signed(v) for v in (1.0, -1.0, 0.0, -0.0, 0.01)] == [
        "+1.0", "-1.0", "0.0", "0.0", "+0.01",
    ]  # fmt: skip
    assert [times(v) for v in (0.333, 0.996, 1.0, 9.94, 12.3)] == [
        "0.33",
        "1.0",
        "1.0",
        "9.9",
        "12",
    ]


def test_groups_that_matter():
    rows = [
        RANDOM,
        row("tag", change(1, 3)),
        row("affinity", change(9, 13)),
        row("x", change(-1, 1)),
    ]
    assert closing(rows) == (
        "affinity (+11.0 %) and tag (+2.0 %) are better than random groups: the groups matter."
    )


def test_any_groups_do_only_if_no_gain_can_be_large():
    near = [RANDOM, row("affinity", change(-0.4, 0.9)), row("tag", change(-3, -1))]
    assert closing(near) == (
        "No recipe is better than random groups by a difference that 5 seeds can show, and no "
        "interval goes beyond +0.9 %: any groups do."
    )
    wide = [RANDOM, row("affinity", change(-9, 12))]
    assert closing(wide) == (
        "No recipe is better than random groups by a difference that 5 seeds can show. Undecided: "
        "an interval goes up to +12.0 %; compare more seeds."
    )
    assert (
        closing([RANDOM, row("tag", change(-3, -1))]) == "tag (-2.0 %) is worse than random groups."
    )


def test_take_one_branch():
    one = row("multitask", change(-1, 1), parameters=100)
    rows = [RANDOM, row("affinity", change(-0.4, 0.9), of_one(-0.5, 0.8)), one]
    assert closing(rows).endswith(
        "No grouping is better than one branch by a difference that 5 seeds can show, and no "
        "interval goes beyond +0.8 %: nothing here, take K = 1; one branch has 0.33 times the "
        "parameters of affinity."
    )
    rows = [RANDOM, row("affinity", change(-0.4, 0.9), of_one(-3, -1)), one]
    assert "Nothing here: take K = 1. Every grouping is worse than one branch; one" in closing(rows)
    rows = [RANDOM, row("affinity", change(-0.4, 0.9), of_one(-3, 9)), one]
    text = closing(rows)
    assert "than one branch by a difference that 5 seeds can show. Undecided: an" in text
    assert "take K = 1" not in text


def test_grouping_that_pays_and_single_networks_that_pay_more():
    one = row("multitask", of_one(0, 0), parameters=100)
    rows = [
        one,
        row("affinity", of_one(5, 9), of_one(5, 9)),
        row("random", of_one(1, 3), of_one(1, 3)),
        row("single_task", of_one(8, 12), of_one(8, 12), parameters=1200),
    ]
    assert closing(rows) == (
        "More than one branch pays: affinity is 7.0 % better than one branch (95 % interval 5.0 to "
        "9.0), with 3.0 times the parameters. One network for each task is 10.0 % better than one "
        "branch, with 12 times the parameters."
    )


def test_how_many_branches_are_enough():
    one = row("multitask", change(-1, 1, against="random K=2"), parameters=100)
    rows = [
        row("random K=2", change(0, 0, against="random K=2"), branches=2, fewer=of_one(1, 2)),
        row("affinity K=2", change(1, 3, against="random K=2"), branches=2, fewer=of_one(1, 3)),
        row("affinity K=4", change(1, 3, against="random K=4"), branches=4,
            fewer=change(0.5, 2, against="affinity K=2")),
        row("affinity K=8", change(1, 3, against="random K=8"), branches=8,
            fewer=change(-1, 2, against="affinity K=4")),
        row("random K=4", change(0, 0, against="random K=4"), branches=4),
        row("random K=8", change(0, 0, against="random K=8"), branches=8),
        one,
    ]  # fmt: skip
    text = closing(rows)
    assert "are better than random groups: the groups matter." in text
    assert text.endswith(
        "affinity: K = 4 is the largest K that is better than the next smaller one."
    )
    none = [dataclasses.replace(r, fewer=r.fewer and of_one(-1, 2)) for r in rows]
    assert closing(none).endswith("affinity: no K is better than the next smaller one.")


def test_one_seed_has_no_verdict():
    rows = [row("random", change(0, 0, seeds=(0,))), row("affinity", change(9, 9, seeds=(0,)))]
    assert closing(rows) == (
        "No verdict: with one seed a difference cannot be told from chance. Compare with more "
        "seeds, such as --seeds 5."
    )
    assert closing([row("affinity")]) == "" == closing([RANDOM])
