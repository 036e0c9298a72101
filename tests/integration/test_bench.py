"""`dmtg bench grouping` as a user runs it."""

import json

import pytest

KEYS = {"seed", "error", "true_error", "ratio", "ari", "branches", "seconds"}


def measured(end):
    assert end.code == 0, end.stderr
    return json.loads(end.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("forget_accelerate")
def test_a_small_problem(dmtg):
    end = dmtg(
        "bench", "grouping", "--tasks", "24", "--groups", "2", "--branches", "2", "--seeds", "1",
        "--seed-base", "5", "--steps", "600", "--json",
    )  # fmt: skip
    found = measured(end)
    assert set(found) == {"seeds", "mean"} and set(found["mean"]) == KEYS - {"seed"}
    [result] = found["seeds"]
    assert set(result) == KEYS and result["seed"] == 5
    assert all(found["mean"][name] == result[name] for name in found["mean"])
    assert result["ratio"] == result["error"] / result["true_error"]
    # Too short for the truth to be found, long enough to learn the tasks.
    assert 0.05 < result["true_error"] < 0.2 and result["ratio"] < 1.3
    assert result["branches"] in (1, 2) and -0.5 <= result["ari"] <= 1
    assert "true_error" in end.stdout.splitlines()[1], "the table's head"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "5", "--groups", "6"), "--groups is 6, must be at most --tasks, 5"),
        (("--recipe", "best"), "grouping.recipe: found 'best'"),
        (("optim.speed=3",), "optim.speed: unknown key; allowed: betas"),
    ],
)
def test_what_cannot_be_measured(dmtg, options, message):
    end = dmtg("bench", "grouping", "--steps", "5", *options)
    assert end.code == 2 and message in end.stderr, end.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("forget_accelerate")
def test_the_default_recipe_finds_sixty_tasks_in_three_groups(dmtg):
    end = dmtg(
        "bench", "grouping", "--tasks", "60", "--groups", "3", "--branches", "3", "--seeds", "2",
        "--seed-base", "40", "--json",
    )  # fmt: skip
    mean = measured(end)["mean"]
    assert mean["ari"] >= 0.95 and mean["ratio"] <= 1.05, mean


@pytest.mark.slow
@pytest.mark.usefixtures("forget_accelerate")
def test_surplus_branches_are_emptied(dmtg):
    end = dmtg(
        "bench", "grouping", "--tasks", "60", "--groups", "3", "--branches", "8", "--seeds", "1",
        "--seed-base", "40", "--json",
    )  # fmt: skip
    [result] = measured(end)["seeds"]
    assert result["branches"] == 3 and result["ari"] >= 0.95 and result["ratio"] <= 1.05, result


STEP_KEYS = {
    "ours_ms", "naive_ms", "ratio", "floor_ms", "over_floor", "ours_peak_mb", "naive_peak_mb",
    "memory_ratio",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("forget_accelerate")
def test_a_step_beside_the_published_one(dmtg):
    end = dmtg(
        "bench", "step", "--encoder", "residual64", "--tasks", "12", "--branches", "3", "--batch",
        "8", "--size", "32", "--repeats", "2", "--json",
    )  # fmt: skip
    found = measured(end)
    assert found.keys() >= STEP_KEYS
    assert found["ratio"] == found["naive_ms"] / found["ours_ms"]
    assert found["over_floor"] == found["ours_ms"] / found["floor_ms"]
    assert found["memory_ratio"] == found["ours_peak_mb"] / found["naive_peak_mb"]
    assert all(found[key] > 0 for key in STEP_KEYS)
    assert found["loss_difference"] <= 1e-4
    # 12 tasks x 3 branches x (64 channels at 7x7 + bias), and three encoders
    assert found["weights"] == 36 * (64 * 49 + 1) + 3 * (27 * 64 + 2 * 64 + 2 * (36864 + 128))
    assert found["case"]["branches"] == 3


def test_a_step_of_heads_alone(dmtg):
    end = dmtg(
        "bench", "step", "--encoder", "none", "--tasks", "40", "--branches", "3", "--batch", "8",
        "--features", "16", "--repeats", "2", "--json",
    )  # fmt: skip
    found = measured(end)
    assert found["ratio"] == found["naive_ms"] / found["ours_ms"] and found["ours_ms"] > 0
    # forward, gradient of the weights, gradient of the features
    assert found["flops"] == 3 * 2 * 40 * 3 * 8 * 16


def test_a_precision_of_gpus_is_refused_without_one(dmtg):
    end = dmtg("bench", "step", "--encoder", "none", "--device", "cpu", "--precision", "tf32")
    assert end.code == 2 and "run.precision: tf32 needs a GPU" in end.stderr, end.stderr


def test_an_unknown_encoder_is_refused(dmtg):
    end = dmtg("bench", "step", "--encoder", "vgg")
    assert end.code == 2 and "residual64" in end.stderr


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize(
    ("value", "message"),
    [("fast", "reduce-overhead"), ("reduce-overhead", "which need a GPU; allowed on the CPU")],
)
def test_compilation_that_cannot_be_measured(value, message, dmtg):
    end = dmtg("bench", "step", "--batch", "2", "--size", "16", "--compile", value)
    assert end.code == 2 and message in end.stderr, end.stderr
    assert "Traceback" not in end.stderr
