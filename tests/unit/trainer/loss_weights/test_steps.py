"""Steps with weighted losses, compared with a plain training loop."""

import pytest
import torch
import torch.nn.functional as F

from data_pipelines.synthetic.planted import PlantedProblem
from trainer.bench.planted import PlantedData, planted_config
from trainer.builders import build_network
from trainer.engines.accelerator import make_accelerator
from trainer.loop import train
from trainer.session import start_session
from trainer.step import train_step

STEPS, BATCH, NUM_TASKS = 6, 32, 5
EXACT = {"rtol": 0.0, "atol": 0.0}

pytestmark = pytest.mark.usefixtures("forget_accelerate")


@pytest.fixture
def planted(tmp_path):
    """Starts a session on a planted problem."""

    def start(*overrides, recipe="multitask", branches=1, name="run"):
        out = tmp_path / name
        config = planted_config(out, branches, 3, recipe, STEPS, BATCH, overrides)
        data = PlantedData(PlantedProblem(NUM_TASKS, 2, seed=3), config)
        return start_session(config, make_accelerator(config), data)

    return start


def steps(session, count=STEPS):
    """Make steps and return their results."""
    batches = session.data.train_batches(session.step, STEPS, rank=0, world_size=1)
    accumulation = session.config.optim.gradient_accumulation_steps
    results = []
    for _ in range(count):
        results.append(train_step(session, [next(batches) for _ in range(accumulation)]))
        session.step += 1
    return results


class Naive:
    """A network of one branch, trained by a plain loop on all samples of a step."""

    def __init__(self, session):
        self.session = session
        self.network = build_network(session.config, session.data.tasks, ((*range(NUM_TASKS),),))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=session.config.optim.lr)
        batches = session.data.train_batches(0, STEPS, rank=0, world_size=1)
        accumulation = session.config.optim.gradient_accumulation_steps
        self.batches = [[next(batches) for _ in range(accumulation)] for _ in range(STEPS)]

    def losses(self, step):
        """Return the mean binary cross-entropy of every task [N]."""
        selection = self.network.select(self.network.heads)
        images = torch.cat([batch.images for batch in self.batches[step]])
        labels = torch.cat([batch.scalars for batch in self.batches[step]], dim=1)
        logits = self.network(images, selection)["predictions"]
        return torch.stack(
            [
                F.binary_cross_entropy_with_logits(logits[task.name][:, 0], labels[number])
                for number, task in enumerate(self.session.tasks)
            ]
        )

    def step(self, objective):
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()

    def check(self, results, weights):
        for result, expected in zip(results, weights, strict=True):
            torch.testing.assert_close(result.loss_weights, expected, rtol=1e-4, atol=1e-5)
        state = self.session.engine.module.state_dict()
        for name, value in self.network.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_famo_is_the_published_algorithm(planted, accumulation):
    with planted(
        "loss_weights={method: famo, lr: 0.3, decay: 0.01}",
        f"optim.gradient_accumulation_steps={accumulation}",
    ) as session:
        naive, expected = Naive(session), []
        logits = torch.zeros(NUM_TASKS, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.3, weight_decay=0.01)
        results = steps(session)
        for step in range(STEPS):
            before = naive.losses(step)
            z = logits.softmax(dim=0).detach()
            c = 1 / (z / before).sum().detach()
            expected.append((NUM_TASKS * c * z / before).detach())
            naive.step(NUM_TASKS * c * (z * before.log()).sum())
            with torch.no_grad():
                delta = before.log() - naive.losses(step).log()
            (logits.grad,) = torch.autograd.grad(logits.softmax(dim=0), logits, delta)
            optimizer.step()
        naive.check(results, expected)
        assert not torch.allclose(expected[-1], expected[0], rtol=0.05)


def test_uncertainty_trains_the_published_objective(planted):
    with planted("loss_weights={method: uncertainty, lr: 0.2}") as session:
        naive, expected = Naive(session), []
        log_variances = torch.zeros(NUM_TASKS, requires_grad=True)
        optimizer = torch.optim.Adam([log_variances], lr=0.2)
        results = steps(session)
        for step in range(STEPS):
            expected.append((-log_variances).exp().detach())
            optimizer.zero_grad()
            losses = naive.losses(step)
            naive.step(((-log_variances).exp() * losses + log_variances / 2).sum())
            optimizer.step()
        naive.check(results, expected)
        assert not torch.allclose(expected[-1], expected[0], rtol=0.1)


def test_given_weights_scale_the_losses_and_not_what_is_reported(planted):
    given = {"task0000": 3.0, "task0002": 0.0}
    with planted(
        "loss_weights={method: given, weights: {task0000: 3.0, task0002: 0.0}}"
    ) as session:
        assert {"task0000", "task0002"} <= {task.name for task in session.tasks}
        naive = Naive(session)
        weights = torch.tensor([given.get(task.name, 1.0) for task in session.tasks])
        results = steps(session)
        for step in range(STEPS):
            losses = naive.losses(step)
            torch.testing.assert_close(results[step].objective, losses.detach())
            naive.step((weights * losses).sum())
        naive.check(results, [weights] * STEPS)


def test_equal_weights_do_not_change_a_bit(planted):
    states = []
    for name, method in (("plain", "equal"), ("ones", "{method: given, weights: {}}")):
        with planted(f"loss_weights={method}", name=name, recipe="evidence", branches=2) as session:
            steps(session)
            states.append({**session.engine.module.state_dict(), **session.learner.tensors()})
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], equal_nan=True, **EXACT)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("published", ("grouping.entropy=0.3", "grouping.sampler=gumbel_per_sample")),
        ("published", ("grouping.sampled_heads=2",)),
        ("affinity", ("grouping.warmup=0.5",)),
        ("evidence", ("grouping.warmup=0.5",)),
    ],
)
def test_the_grouping_does_not_see_the_loss_weights(planted, recipe, overrides):
    """From the same network, one step gives the learner the same numbers under all weights."""
    learned, networks = [], []
    methods = ("equal", "{method: given, weights: {task0000: 50.0, task0001: 0.1}}", "famo")
    for number, method in enumerate(methods):
        with planted(
            f"loss_weights={method}", *overrides, recipe=recipe, branches=3, name=str(number)
        ) as session:
            session.step = 1  # the warm-up ends after it where it has three steps
            steps(session, 1)
            learned.append(session.learner.tensors())
            networks.append(session.engine.module.state_dict())
    for other in learned[1:]:
        assert other.keys() == learned[0].keys()
        for name, value in other.items():
            torch.testing.assert_close(value, learned[0][name], equal_nan=True, **EXACT)
    assert any(not value.equal(networks[1][name]) for name, value in networks[0].items())


def test_running_statistics_are_those_of_the_training_pass(rooms_config):
    """The passes that FAMO compares the losses by leave no trace in them."""
    encoder = ("model.encoder.name=residual64", "model.encoder.options={channels: 8}")
    states = []
    for method in ("equal", "famo"):
        config = rooms_config(
            *encoder, f"run.out={rooms_config().run.out}-{method}", f"loss_weights={method}",
            "optim.gradient_accumulation_steps=2",
        )  # fmt: skip
        with start_session(config, make_accelerator(config)) as session:
            batches = session.data.train_batches(0, 1, rank=0, world_size=1)
            train_step(session, list(batches)[:2])
            module = session.engine.module
            states.append({name: buffer.clone() for name, buffer in module.named_buffers()})
    running = [name for name in states[0] if "running" in name or "tracked" in name]
    assert running
    for name in running:
        assert states[0][name].equal(states[1][name]), name


@pytest.mark.parametrize("method", ["uncertainty", "{method: dwa, every: 2}", "famo"])
def test_a_resumed_run_equals_an_uninterrupted_one(rooms_config, method):
    """Through pruning and compaction, with the state of the loss weights from the checkpoint."""
    common = (f"loss_weights={method}", "run.steps=9", "run.checkpoint_every=4")
    records = []
    for name, stops in (("whole", []), ("parts", [4])):
        config = rooms_config(
            *common, "run.resume=auto", f"run.out={rooms_config().run.out}-{name}"
        )
        for stop in [*stops, 9]:
            with start_session(config, make_accelerator(config)) as session:
                if stop < 9:  # as if it had been killed after the save
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr("trainer.loop.train_step", _killed_at(stop + 1))
                        with pytest.raises(KeyboardInterrupt):
                            train(session)
                else:
                    train(session)
        records.append((config.run.out / "metrics.jsonl").read_bytes())
    assert records[0] == records[1]
    assert b'"loss_weights"' in records[0] and b'"compact"' in records[0]


def _killed_at(step):
    def until(session, batches):
        if session.step == step:
            raise KeyboardInterrupt
        return train_step(session, batches)

    return until
