import pytest
import torch

from trainer.config.loading import load_config, parse_config
from trainer.engines.accelerator import REDUCE_BUCKET
from trainer.errors import UserError
from trainer.planning.forecast import forecast
from trainer.planning.stages import GIB, Machine
from trainer.planning.step_time import MeasuredTime

ENCODER = {"name": "mlp", "options": {"widths": [6, 64, 64]}}


def config_of(**sections):
    tree = {
        "run": {"out": "x", "steps": 1, "precision": "fp32"},
        "data": {"shards": "/nowhere", "image_size": [1, 1], "global_batch": 32},
        "tasks": {"preset": "celeba9"},
        "model": {"branches": 3, "encoder": ENCODER},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return parse_config(tree, "test")


def test_parameters_before_and_after_pruning():
    found = forecast(config_of(), Machine(1, 16.0, tflops=1.0))
    before, after = found.stages["before"], found.stages["after"]
    assert (before.heads, before.computed, before.branches) == (27, 27, 3)
    assert (after.heads, after.computed, after.branches) == (9, 9, 3)
    assert before.parameters - after.parameters == 18 * 2 * (64 + 1)
    assert before.cost.flops > after.cost.flops


def test_times_are_operations_over_the_given_rate():
    found = forecast(
        config_of(optim={"gradient_accumulation_steps": 4}), Machine(2, 16.0, tflops=2.0)
    )
    stage = found.stages["before"]
    assert found.micro_batch == 4
    assert stage.time["ddp"].arithmetic == pytest.approx(4 * stage.cost.flops / 2e12)
    assert stage.epoch["ddp"] is None and any("--samples" in note for note in found.notes)


@pytest.mark.parametrize(("micro_batches", "passes"), [(1, "1 forward pass "), (4, "2 forward")])
def test_passes_that_are_not_counted_are_named(micro_batches, passes):
    config = config_of(
        optim={"gradient_accumulation_steps": micro_batches}, loss_weights={"method": "famo"}
    )
    notes = forecast(config, Machine(1, 16.0, tflops=1.0)).notes
    assert any(passes in note and "famo" in note for note in notes)
    assert not any(
        "loss_weights" in n for n in forecast(config_of(), Machine(1, 16.0, tflops=1.0)).notes
    )


def test_an_epoch_has_the_given_samples():
    found = forecast(config_of(), Machine(1, 16.0, tflops=1.0), samples=100)
    stage = found.stages["before"]
    assert stage.epoch["zero2"] == pytest.approx(3 * stage.time["zero2"].total)


def test_tasks_and_samples_of_a_manifest(rooms_config):
    found = forecast(rooms_config(), Machine(2, 16.0, tflops=1.0))
    assert found.samples == 36
    assert found.stages["before"].heads == 6 * 3
    stage = found.stages["before"]
    assert stage.epoch["ddp"] == pytest.approx(4 * stage.time["ddp"].total)


def test_what_fits_and_what_is_taken():
    config = config_of()
    stage = forecast(config, Machine(2, 16.0, tflops=1.0)).stages["before"]
    totals = {engine: own.total for engine, own in stage.memory.items()}
    assert totals["fsdp2"] < totals["ddp"] < totals["zero1"], "a small network, a large buffer"
    between = (totals["fsdp2"] + totals["ddp"]) / 2 / 0.9 / GIB
    assert forecast(config, Machine(2, between, tflops=1.0)).fits == ("fsdp2",)
    roomy = forecast(config, Machine(2, 80.0, tflops=1.0))
    assert len(roomy.fits) == 6 and roomy.cheapest == "ddp" and not roomy.advice


def test_a_slow_link_makes_the_engine_that_overlaps_the_cheapest():
    slow = forecast(config_of(), Machine(8, 80.0, tflops=0.001, link=1e-4))
    time = slow.stages["before"].time
    assert slow.cheapest == min(time, key=lambda engine: time[engine].total)
    assert time["zero1"].messages > time["ddp"].messages > 0


def test_what_helps_if_nothing_fits():
    sections = {"data": {"global_batch": 512}, "grouping": {"recipe": "published"}}
    cost = forecast(config_of(**sections), Machine(1, 16.0, tflops=1.0)).stages["before"].cost
    tight = Machine(1, 0.6 * cost.peak / 0.9 / GIB, tflops=1.0)
    found = forecast(config_of(**sections), tight)
    assert found.fits == () and found.cheapest is None
    assert (
        "optim.gradient_accumulation_steps=" in found.advice[0]
        and "fits with ddp" in found.advice[0]
    )
    assert "model.activation_checkpointing=true" in found.advice[1]
    factor = int(found.advice[0].split("accumulation_steps=")[1].split()[0])
    helped = forecast(config_of(**sections, optim={"gradient_accumulation_steps": factor}), tight)
    assert "ddp" in helped.fits


def test_what_can_not_be_helped():
    found = forecast(config_of(data={"global_batch": 1}), Machine(1, 0.0001, tflops=1.0))
    assert found.advice == (
        "not even one sample fits: more GPUs, more memory, or a smaller network",
    )


def test_heads_that_are_sampled():
    every = forecast(config_of(), Machine(1, 16.0, tflops=1.0)).stages["before"]
    config = config_of(grouping={"sampled_heads": 2})
    some = forecast(config, Machine(1, 16.0, tflops=1.0)).stages["before"]
    assert (some.heads, some.computed) == (27, 18)
    assert some.parameters == every.parameters and some.cost.flops < every.cost.flops


def test_groups_that_are_given_have_nothing_to_prune():
    config = config_of(grouping={"recipe": "multitask"})
    stages = forecast(config, Machine(1, 16.0, tflops=1.0)).stages
    assert stages["before"] == stages["after"]
    assert (stages["after"].heads, stages["after"].branches) == (9, 1)


def test_precision_is_that_of_the_launch_files_unless_the_run_has_one():
    assert forecast(config_of(run={"precision": None}), Machine(1, 16.0, tflops=1.0)).precision == (
        "bf16"
    )


def test_a_pass_that_does_not_fit_is_a_note(monkeypatch):
    times = iter([MeasuredTime(0.5, 0.1, largest=8), MeasuredTime(0.4, 0.1)])
    monkeypatch.setattr("trainer.planning.stages.measure_time", lambda *_: next(times))
    found = forecast(config_of(), Machine(1, 16.0))
    assert found.stages["before"].measured.largest == 8
    assert found.stages["before"].time["ddp"].arithmetic == pytest.approx(0.6)
    [note] = [note for note in found.notes if "do not fit" in note]
    assert note == (
        "32 samples do not fit into the memory of this machine's CPU: the time before pruning is "
        "inferred from passes of 8"
    )


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    ("precision", "exact"), [("fp32", True), ("tf32", False), ("bf16", False), (None, False)]
)
def test_a_gpu_is_measured_with_the_arithmetic_of_the_run(monkeypatch, precision, exact):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = []

    def measure(*arguments):
        products = torch.get_float32_matmul_precision()
        settings.append((arguments[-1].type, products, torch.backends.cudnn.allow_tf32))
        return MeasuredTime(0.5, 0.1)

    monkeypatch.setattr("trainer.planning.stages.measure_time", measure)
    forecast(config_of(run={"precision": precision}), Machine(1, 16.0))
    assert settings == [("cuda", "highest" if exact else "high", not exact)] * 2


def test_tf32_takes_the_memory_and_the_messages_of_fp32():
    fp32, tf32 = (
        forecast(config_of(run={"precision": name}), Machine(2, 16.0, tflops=1.0))
        for name in ("fp32", "tf32")
    )
    assert tf32.precision == "tf32" and tf32.stages == fp32.stages


def test_overlapping_messages_take_a_second_buffer():
    plain, overlapping = (
        forecast(config_of(run={"overlap_comm": value}), Machine(2, 16.0, tflops=1.0))
        for value in (None, True)
    )
    before, after = (found.stages["before"].memory for found in (plain, overlapping))
    assert after["zero2"].total - before["zero2"].total == 4 * REDUCE_BUCKET
    assert after["zero3"] == before["zero3"] and after["ddp"] == before["ddp"]


def test_links_within_a_node_and_between():
    assert Machine(8, 80.0).ring == 450.0
    assert Machine(16, 80.0).ring == 12.5
    assert Machine(16, 80.0, link=50.0).ring == 50.0


@pytest.mark.parametrize(
    ("gpus", "sections", "message"),
    [
        (
            3,
            {},
            "data.global_batch is 32; it must be a multiple of --gpus x "
            "optim.gradient_accumulation_steps",
        ),
        (8, {"optim": {"gradient_accumulation_steps": 8}}, "8 x 8"),
        (1, {"tasks": {"preset": None}}, "without shards the tasks must be given by tasks.preset"),
        (1, {"tasks": {"preset": None, "names": ["fog"]}}, "tasks.define.fog"),
    ],
)
def test_what_cannot_be_planned(gpus, sections, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        forecast(config_of(**sections), Machine(gpus, 16.0, tflops=1.0))


@pytest.mark.parametrize("name", ["celeba9_k2", "digits"])
def test_experiments_can_be_planned(name, pytestconfig):
    overrides = ["tasks.preset=celeba9"]
    config = load_config(pytestconfig.rootpath / "experiments" / f"{name}.yaml", overrides)
    found = forecast(config, Machine(1, 80.0, tflops=10.0))
    assert found.cheapest == "ddp"
