"""The methods that weight losses, compared with the formulas of the papers written naively."""

import math

import pytest
import torch

from model.tasks.spec import TaskSpec
from trainer.bench.planted import planted_config
from trainer.errors import UserError
from trainer.loss_weights.weighting import WeightingInput, weighting_of

TASKS = (
    TaskSpec("a", "binary"),
    TaskSpec("b", "regression"),
    TaskSpec("c", "dense_regression", loss="huber"),
    TaskSpec("d", "multiclass", channels=3),
)
ALL = torch.ones(4, dtype=torch.bool)


@pytest.fixture
def method(tmp_path):
    """Makes a method from the value of `loss_weights`."""

    def make(text, trained=ALL, epoch_steps=None, tasks=TASKS):
        overrides = [f"loss_weights={text}", "optim.lr=0.01", "optim.betas=[0.8, 0.9]"]
        config = planted_config(tmp_path / "run", 2, 0, "multitask", 100, 8, overrides)
        return weighting_of(config)(config, tasks, trained, epoch_steps)

    return make


def losses_of_steps(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.5, 2.0, 30.0, 1e-3])
    return [scale * (0.2 + torch.rand(4, generator=generator)) for _ in range(count)]


def update(method, step, losses, labelled=ALL, factor=1.0, **compared):
    method.update(WeightingInput(step, losses, labelled, factor, **compared))


class Famo:
    """Algorithm 2 of the paper, for all tasks."""

    def __init__(self, lr, decay):
        self.logits = torch.zeros(4, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits], lr=lr, weight_decay=decay)

    def weights(self, losses):
        losses = losses.clone().requires_grad_()
        z = self.logits.detach().softmax(dim=0)
        d = losses + 1e-8
        c = 1 / (z / d).sum().detach()
        (gradient,) = torch.autograd.grad((c * d.log() * z).sum(), losses)
        return gradient

    def update(self, before, after):
        delta = (before + 1e-8).log() - (after + 1e-8).log()
        (self.logits.grad,) = torch.autograd.grad(self.logits.softmax(dim=0), self.logits, delta)
        self.optimizer.step()


@pytest.mark.parametrize("keys", ["", ", lr: 0.2, decay: 0.5"])
def test_famo(method, keys):
    found = method(f"{{method: famo{keys}}}")
    naive = Famo(*((0.2, 0.5) if keys else (0.025, 0.001)))
    before, after = losses_of_steps(25), losses_of_steps(25, seed=1)
    for step in range(25):
        weights = found.weights(step, before[step], ALL)
        torch.testing.assert_close(weights, 4 * naive.weights(before[step]))
        assert float(weights.sum()) == pytest.approx(4.0)
        update(found, step, before[step], before=before[step], after=after[step])
        naive.update(before[step], after[step])
    assert not torch.allclose(weights, found.weights(0, before[0], ALL))


def test_famo_leaves_a_task_without_labels_out_of_a_step(method):
    found, three = method("famo"), method("famo", tasks=TASKS[:3], trained=ALL[:3])
    labelled = torch.tensor([True, True, True, False])
    before, after = losses_of_steps(1)[0], losses_of_steps(1, seed=1)[0]
    before[3] = after[3] = 0.0
    weights = found.weights(0, before, labelled)
    assert weights[3] == 0.0
    torch.testing.assert_close(weights[:3], three.weights(0, before[:3], ALL[:3]))
    update(found, 0, before, labelled, before=before, after=after)
    update(three, 0, before[:3], ALL[:3], before=before[:3], after=after[:3])
    everyone = losses_of_steps(1, seed=2)[0]
    full = found.weights(1, everyone, ALL)
    ratios = three.weights(1, everyone[:3], ALL[:3])
    torch.testing.assert_close(full[:3] / full[0], ratios / ratios[0])


def test_famo_without_any_label_has_no_weights(method):
    found = method("famo")
    assert found.weights(0, torch.zeros(4), ~ALL).tolist() == [0.0] * 4
    update(found, 0, torch.zeros(4), ~ALL, before=torch.zeros(4), after=torch.zeros(4))
    assert found.tensors()["values"].tolist() == [0.0] * 4


def test_uncertainty(method):
    found = method("{method: uncertainty, lr: 0.05}")
    log_variances = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([log_variances], lr=0.05, betas=(0.8, 0.9))
    # Eq. 7 for values (b and c), eq. 10 for classes (a and d).
    factors = torch.tensor([1.0, 0.5, 0.5, 1.0])
    for step, losses in enumerate(losses_of_steps(30)):
        expected = factors / log_variances.exp()
        torch.testing.assert_close(found.weights(step, None, ALL), expected.detach())
        factor = 1 - step / 60
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.zero_grad()
        sigma = (log_variances / 2).exp()
        (factors * losses / sigma**2 + sigma.log()).sum().backward()
        optimizer.step()
        update(found, step, losses, factor=factor)


def test_uncertainty_follows_the_learning_rate_of_the_network_unless_it_has_its_own(method):
    found = method("uncertainty")
    update(found, 0, losses_of_steps(1)[0], factor=0.5)
    # Adam's first step has the length of the learning rate.
    steps = found.tensors()["values"].abs().tolist()
    assert steps == pytest.approx([0.005] * 4, rel=1e-3)


def test_uncertainty_reaches_the_minimum_of_its_objective(method):
    found = method("{method: uncertainty, lr: 0.05}")
    losses = torch.tensor([0.5, 2.0, 30.0, 0.01])
    for step in range(600):
        update(found, step, losses)
    # At sigma^2 = 2 c loss the weighted loss is 1/2.
    weighted = found.weights(600, None, ALL) * losses
    assert weighted.tolist() == pytest.approx([0.5] * 4, rel=0.05)


def test_uncertainty_of_a_loss_of_zero_is_bounded(method):
    found = method("{method: uncertainty, lr: 1.0}")
    for step in range(200):
        update(found, step, torch.zeros(4))
    assert found.weights(200, None, ALL).max() <= math.exp(20) * 1.001


def test_dwa(method):
    every, temperature = 3, 1.7
    found = method(f"{{method: dwa, temperature: {temperature}}}", epoch_steps=every)
    losses = losses_of_steps(5 * every)
    means = [torch.stack(losses[e * every :][:every]).mean(dim=0) for e in range(5)]
    for step in range(5 * every):
        epoch = step // every
        ratio = means[epoch - 1] / means[epoch - 2] if epoch > 1 else torch.ones(4)
        expected = [
            4 * math.exp(r / temperature) / sum(math.exp(s / temperature) for s in ratio.tolist())
            for r in ratio.tolist()
        ]
        torch.testing.assert_close(found.weights(step, None, ALL), torch.tensor(expected))
        update(found, step, losses[step])


def test_dwa_averages_over_the_steps_with_labels(method):
    found = method("{method: dwa, every: 2}")
    missing = torch.tensor([True, True, True, False])
    first, second = losses_of_steps(2)
    rows = [(first, ALL), (second, missing), (second, missing), (second, missing)]
    for step, (losses, labelled) in enumerate(rows):
        found.weights(step, None, labelled)
        update(found, step, losses, labelled)
    # Of d there is no loss in the second period: it keeps the ratio 1.
    ratios = second / ((first + second) / 2)
    ratios[3] = 1.0
    torch.testing.assert_close(found.weights(4, None, ALL), 4 * (ratios / 2.0).softmax(dim=0))
    previous = found.tensors()["previous"]
    torch.testing.assert_close(previous[:3], second[:3])
    assert previous[3] == first[3], "its last mean loss is kept"


def test_a_period_ends_even_if_its_last_step_is_left_out(method):
    found = method("{method: dwa, every: 2}")
    losses = losses_of_steps(6)
    for step in (0, 1, 2):
        found.weights(step, None, ALL)
        update(found, step, losses[step])
    found.weights(3, None, ALL)  # left out
    expected = 4 * (losses[2] / ((losses[0] + losses[1]) / 2) / 2.0).softmax(dim=0)
    torch.testing.assert_close(found.weights(4, None, ALL), expected)


def test_given(method):
    found = method("{method: given, weights: {b: 2.5, d: 0}}")
    assert found.weights(0, None, ALL).tolist() == [1.0, 2.5, 1.0, 0.0]
    assert method("equal").weights(0, None, ALL).tolist() == [1.0] * 4


@pytest.mark.parametrize("text", ["uncertainty", "{method: dwa, every: 2}", "famo"])
def test_only_the_tasks_that_a_phase_trains_take_part(method, text):
    trained = torch.tensor([True, False, True, False])
    found, two = method(text, trained), method(text, ALL[:2], tasks=TASKS[::2])
    for step in range(5):
        losses = losses_of_steps(1, seed=step)[0] * trained
        after = 0.9**step * losses
        weights = found.weights(step, losses, trained)
        expected = two.weights(step, losses[::2], ALL[:2])
        torch.testing.assert_close(weights[::2], expected)
        update(found, step, losses, trained, before=losses, after=after)
        update(two, step, losses[::2], ALL[:2], before=losses[::2], after=after[::2])


@pytest.mark.parametrize("text", ["equal", "uncertainty", "{method: dwa, every: 3}", "famo"])
def test_a_method_continues_from_its_tensors(method, text):
    whole = method(text)
    for step in range(8):
        if step == 4:
            part = method(text)
            part.load({name: value.clone() for name, value in whole.tensors().items()})
        losses, after = losses_of_steps(2, seed=step)
        for each in (whole, part) if step >= 4 else (whole,):
            weights = each.weights(step, losses, ALL)
            update(each, step, losses, before=losses, after=after)
    assert part.weights(8, losses, ALL).equal(whole.weights(8, losses, ALL))
    assert weights.equal(part.weights(7, losses, ALL)) == (text == "equal" or "dwa" in text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dwa", "loss_weights.every: required and not given: method 'dwa' averages over epochs"),
        (
            "{method: given, weights: {b: 1, depth: 2}}",
            "loss_weights.weights: depth is not among the tasks of the run: a, b, c, d",
        ),
        ("{method: given, weights: {a: 0, b: 0, c: 0, d: 0}}", "all are 0; one at least must be"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(method, text, message):
    with pytest.raises(UserError, match=message):
        method(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fammo", "loss_weights.method: found 'fammo'; allowed: dwa, equal, famo, given"),
        ("{method: famo, temperature: 2}", "temperature: unknown key of method 'famo'; allowed"),
        ("{method: given, weights: {a: -1}}", "loss_weights.weights.a: found -1"),
        ("{method: given}", "loss_weights.weights: required and not given"),
        ("{method: dwa, temperature: 0}", "loss_weights.temperature: found 0"),
        ("3", "loss_weights: found 3"),
    ],
)
def test_what_a_method_does_not_have_is_refused(method, text, message):
    with pytest.raises(UserError, match=message):
        method(text)
