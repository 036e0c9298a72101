"""Which runs of the process tests one launch trains."""

from itertools import permutations

import pytest

from tests.distributed.cells import PLAIN, Cell, Launch, train

DDP, ZERO2, ZERO3 = (Launch(name) for name in ("ddp_cpu", "zero2_cpu", "zero3_cpu"))


def launches(asked, wanted):
    """The batches, in order, when tests ask for cells one after the other."""
    ended, made = set(), []

    def launch(how, batch):
        assert not ended & set(batch)
        for cell in batch:
            assert all(source in ended for source in cell.ancestors())
            ended.add(cell)
        made.append((how, batch))

    for cell in asked:
        train(cell, wanted, ended, launch)
    assert ended >= set(asked)
    return made


def fresh(launch, name):
    return Cell(launch, name, ())


def after(launch, source):
    return Cell(launch, f"{source.name}+", (), source, (4,))


def test_one_launch_trains_all_that_is_wanted_of_it():
    wanted = [fresh(launch, name) for name in "ab" for launch in (DDP, ZERO2)]
    assert launches(wanted[:1], wanted) == [(DDP, [wanted[0], wanted[2]])]
    assert [launch for launch, _ in launches(wanted, wanted)] == [DDP, ZERO2]


def test_a_chain_over_engines_takes_one_launch_each():
    first = fresh(ZERO2, "a")
    second = after(ZERO3, first)
    third = after(DDP, second)
    others = [fresh(launch, "b") for launch in (DDP, ZERO2, ZERO3)]
    made = launches([others[0]], [*others, third])
    assert [(launch, set(batch)) for launch, batch in made] == [
        (ZERO2, {first, others[1]}), (ZERO3, {second, others[2]}), (DDP, {third, others[0]}),
    ]  # fmt: skip


def test_what_a_launch_continues_of_itself_follows_in_the_same_processes():
    whole = fresh(ZERO3, "whole")
    resumed = after(ZERO3, whole)
    assert launches([resumed], [resumed]) == [(ZERO3, [whole, resumed])]


def test_a_run_that_comes_back_to_a_launch_waits_for_the_next():
    there = after(ZERO2, fresh(DDP, "a"))
    back = after(DDP, there)
    made = launches([back], [back])
    assert [launch for launch, _ in made] == [DDP, ZERO2, DDP]


@pytest.mark.parametrize("order", [*permutations((DDP, ZERO2, ZERO3))])
def test_launches_that_continue_each_other_start_twice_at_most(order):
    sources = {launch: fresh(launch, str(launch)) for launch in order}
    wanted = [after(one, sources[two]) for one in order for two in order if one != two]
    made = [launch for launch, _ in launches(wanted, wanted)]
    assert len(made) == 5 and set(made) == set(order)


def test_runs_of_this_process_are_trained_alone():
    wanted = [fresh(PLAIN, name) for name in "abc"]
    assert launches(wanted[:2], wanted) == [(PLAIN, [wanted[0]]), (PLAIN, [wanted[1]])]
