"""Steps and runs that compute only some of the heads."""
# Legend: N tasks, K branches, S samples.

import itertools
import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from data_pipelines.synthetic.planted import PlantedProblem
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample
from trainer.bench.planted import PlantedData, planted_config
from trainer.config.loading import parse_config
from trainer.engines.accelerator import make_accelerator
from trainer.errors import UserError
from trainer.recipes.affinity import AffinityGroups
from trainer.recipes.evidence import EvidenceGroups
from trainer.recipes.learner import LearnerInput
from trainer.recipes.published import PublishedGroups
from trainer.run import train_run
from trainer.session import start_session
from trainer.step import train_step

N, K, SAMPLES = 2, 4, 8
PAIRS = list(itertools.combinations(range(K), 2))
RECIPES = {AffinityGroups: "affinity", EvidenceGroups: "evidence", PublishedGroups: "published"}


@pytest.fixture
def session(tmp_path, forget_accelerate):
    """Starts a run on two planted tasks with four branches, without weight decay or clipping."""

    def start(*overrides, recipe="published"):
        forget_accelerate()
        config = planted_config(tmp_path / "run", K, 1, recipe, 20, SAMPLES, overrides)
        data = PlantedData(PlantedProblem(N, 2, seed=1), config)
        return stack.enter_context(start_session(config, make_accelerator(config), data))

    with ExitStack() as stack:
        yield start


def step_of(session, head_sample):
    """The gradients of a step with these heads, after which the weights are as before."""
    found, given = {}, []

    def take(*_):
        for name, parameter in session.engine.module.named_parameters():
            found[name] = parameter.grad.double()
            parameter.grad = torch.zeros_like(parameter)

    parts = session.config.optim.gradient_accumulation_steps
    batches = list(session.data.train_batches(0, 1, rank=0, world_size=1))
    assert len(batches) == parts
    hook = session.engine.optimizer.optimizer.register_step_pre_hook(take)
    session.learner.sample_heads = lambda _: head_sample
    session.learner.update = given.append
    session.learner.record_losses = lambda _: None
    objective = train_step(session, batches).objective
    hook.remove()
    (result,) = given
    gradient = result.logits_gradient.double()
    return {**found, "logits": gradient, "objective": objective.double()}, result.losses


def draw_of(pairs, baseline):
    chosen = np.array([[k in pair for k in range(K)] for pair in pairs])
    return HeadSample(chosen, tuple(range(K)), torch.from_numpy(chosen).float() * 2, baseline)


@pytest.mark.parametrize("sampler", ["gumbel", "gumbel_per_sample"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_mean_step_over_all_choices_is_the_step_of_all_heads(session, sampler, parts):
    """All 36 choices of two of four heads for two tasks are equally likely."""
    own = session(f"grouping.sampler={sampler}", f"optim.gradient_accumulation_steps={parts}")
    expected, all_losses = step_of(own, None)
    baseline = torch.rand(N, K) + 0.4
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    spread = 0.0
    for pairs in itertools.product(PAIRS, repeat=N):
        head_sample = draw_of(pairs, baseline)
        found, losses = step_of(own, head_sample)
        assert torch.equal(losses.isnan(), ~torch.from_numpy(head_sample.chosen))
        torch.testing.assert_close(losses[head_sample.chosen], all_losses[head_sample.chosen])
        for name, value in found.items():
            mean[name] += value / len(PAIRS) ** N
        spread = max(spread, float((found["logits"] - expected["logits"]).abs().max()))
    for name, value in expected.items():
        torch.testing.assert_close(mean[name], value, atol=1e-6, rtol=0, msg=name)
        assert value.abs().max() > 1e-4, name
    assert spread > 1e-3, "a single choice is far from the mean"


def test_the_logits_of_a_task_without_a_baseline_stay(session):
    """Nobody knows yet what its losses are, so one that is large says nothing of a branch."""
    own = session()
    head_sample = draw_of(PAIRS[:2], torch.tensor([[torch.nan] * K, [0.0, 0.7, 0.7, 0.7]]))
    found, _ = step_of(own, head_sample)
    assert not found["logits"][0].any() and found["logits"][1].all()
    assert found["objective"][0] > 0.1, "its share of the objective is known all the same"


@pytest.mark.parametrize("recipe", ["affinity", "evidence"])
def test_the_mean_step_of_a_recipe_without_noise(session, recipe):
    own = session(recipe=recipe)
    expected, _ = step_of(own, None)
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    for pairs in itertools.product(PAIRS, repeat=N):
        found, _ = step_of(own, draw_of(pairs, torch.ones(N, K)))
        for name, value in found.items():
            mean[name] += value / len(PAIRS) ** N
    for name, value in expected.items():
        torch.testing.assert_close(mean[name], value, atol=1e-6, rtol=0, msg=name)


def test_a_branch_that_no_task_computes_has_a_gradient_of_zero(session):
    """Not none: every engine waits for the gradients of all its parameters in every step."""
    own = session()
    found, losses = step_of(own, draw_of([(0, 2), (0, 2)], torch.zeros(N, K)))
    assert own.selection.idle == (1, 3) and own.selection.branches == (0, 1, 2, 3)
    assert own.selection.heads == ((0, 0), (1, 0), (0, 2), (1, 2))
    for name, gradient in found.items():
        if name.startswith("branches."):
            assert bool(gradient.any()) == (name.split(".")[1] in "02"), name
        if name.startswith("stacked_heads."):
            heads = gradient.view(K, N, -1)
            assert heads[[0, 2]].any() and not heads[[1, 3]].any()
    assert losses[:, [0, 2]].isfinite().all()


def learner(kind, rank=0, size=1, num_tasks=6, **sections):
    tree = {
        "run": {"out": "out", "steps": 100, "seed": 3},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 1},
        "model": {"encoder": {"name": "residual64"}, "branches": K},
        "grouping": {"recipe": RECIPES[kind], "sampled_heads": size},
        "pruning": {"begin": 0.2, "end": 0.6, "every": 5, "threshold": 0.1},
    }  # fmt: skip
    for name, values in sections.items():
        tree[name] |= values
    grouping = Grouping(num_tasks, K)
    config = parse_config(tree, "test")
    return kind(grouping, config, config.run.steps, torch.device("cpu"), rank)


def test_every_rank_chooses_the_same_heads_with_noise_of_its_own():
    first, second = (learner(PublishedGroups, rank) for rank in (0, 1))
    gradient = torch.randn(6, K, generator=torch.Generator().manual_seed(0))
    for step in range(30):
        head_samples = [own.sample_heads(step) for own in (first, second)]
        assert np.array_equal(head_samples[0].chosen, head_samples[1].chosen)
        assert not torch.equal(first.weights(step, 1), second.weights(step, 1))
        losses = torch.where(head_samples[0].factor > 0, gradient.abs() + step, torch.nan)
        for own, head_sample in zip((first, second), head_samples, strict=True):
            result = LearnerInput(step, gradient, losses, 1.0, head_sample)
            own.record_losses(result)
            own.update(result)
        torch.testing.assert_close(
            *(sample.baseline for sample in head_samples), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("size", [K, K + 3, None])
def test_as_many_as_there_are_branches_means_all(size):
    own = learner(PublishedGroups, size=size)
    assert (
        own.sample_heads(0) is None
        and own.tensors().keys() == learner(PublishedGroups, size=None).tensors().keys()
    )


def test_all_that_are_left_are_computed_once_they_are_few_enough():
    own = learner(PublishedGroups, size=2)
    with torch.no_grad():
        own.grouping.logits[:, 2:] = -9.0
        own.grouping.logits[0, 2] = 1.0
    assert own.sample_heads(20).chosen.sum() == 12
    own.prune(20)  # the first task has three heads left, the others two
    head_sample = own.sample_heads(21)
    assert head_sample.chosen.sum(axis=1).tolist() == [2] * 6 and head_sample.branches == (0, 1, 2)
    assert torch.equal(head_sample.factor[1:, :2], torch.ones(5, 2)), "chosen for certain"
    with torch.no_grad():
        own.grouping.logits[0, 2] = -9.0
    own.prune(25)
    assert own.sample_heads(26) is None
    assert own.drop_empty_branches() == (0, 1)
    own.prune(60)
    assert own.finished and own.sample_heads(61) is None


def test_the_choice_follows_the_distributions():
    own = learner(PublishedGroups)
    with torch.no_grad():
        own.grouping.logits[:, 3] = 9.0
    counts = sum(own.sample_heads(step).chosen.sum(axis=0) for step in range(200))
    assert counts[3] / counts.sum() == pytest.approx(0.5 + 0.5 / K, abs=0.05)


def test_averages_of_losses_that_are_seen_now_and_then():
    """What is not seen stays, and a head without any loss so far is as good as its task's mean."""
    own = learner(AffinityGroups, pruning={"begin": 0.9, "end": 0.9})
    warm = own.warmup_end
    with torch.no_grad():
        own.grouping.logits.zero_()
    chosen = np.zeros((6, K), dtype=bool)
    chosen[:, [0, 2]] = True
    factor = torch.from_numpy(chosen).float() * 2
    head_sample = HeadSample(chosen, tuple(range(K)), factor, torch.zeros(6, K))
    losses = torch.where(factor > 0, torch.tensor([1.0, 0.0, 3.0, 0.0]), torch.nan)
    for step in range(warm, own._held_until + 3):
        own.update(LearnerInput(step, torch.zeros(6, K), losses, 1.0, head_sample))
    expected = torch.tensor([[1.0, torch.nan, 3.0, torch.nan]] * 6)
    torch.testing.assert_close(own.tensors()["average"], expected, equal_nan=True)
    temperature = own.temperature(own._held_until + 3)
    scaled = -torch.tensor([1.0, 2.0, 3.0, 2.0]) / 2.0 / temperature
    torch.testing.assert_close(own.weights(0, 1)[0], scaled.softmax(0), rtol=1e-3, atol=1e-6)


def chunk_statistics(groups, chosen):
    """Of a step of binary tasks that need two features of their group, for the chosen heads."""
    products = torch.zeros(K, len(groups), 4)
    needed = torch.randn(len(groups), 2, generator=torch.Generator().manual_seed(1))
    for task, group in enumerate(groups):
        products[chosen[task], task, 2 * group : 2 * group + 2] = needed[task]
    return {
        "count": torch.ones(K),
        "features": torch.zeros(K, 1, 4),
        "residuals": torch.zeros(K, len(groups), 1),
        "products": products,
        "second": torch.eye(4).expand(K, 4, 4).clone(),
    }


def learn_from(own, steps, losses_of, groups=(0, 1) * 6):
    """The steps of the loop, as far as a learner of the recipe `evidence` sees them.

    Returns:
        The heads that each step computed, bool [T,N,K].
    """
    computed = []
    for step in steps:
        sample = own.sample_heads(step) or HeadSample.all_heads(
            own.grouping.heads(), own.grouping.alive.shape, torch.device("cpu")
        )
        if own.collects(step):
            statistics = chunk_statistics(groups, torch.from_numpy(sample.chosen))
            own.collect(statistics, torch.arange(len(groups)))
        losses = sample.computed_only(losses_of(step))
        given = LearnerInput(step, torch.zeros(losses.shape), losses, 1.0, sample)
        own.record_losses(given)
        own.update(given)
        own.prune(step + 1)
        computed.append(sample.chosen)
    return np.array(computed)


@pytest.fixture
def evidence_learner(forget_accelerate):
    """Makes a learner of twelve tasks in two groups at the end of its warm-up of 100 steps."""
    forget_accelerate()

    def start(size, **grouping):
        own = learner(
            EvidenceGroups, size=size, num_tasks=12, run={"steps": 1000},
            grouping={"warmup": 0.1, **grouping}, pruning={"begin": 0.9, "end": 0.9},
        )  # fmt: skip
        learn_from(own, range(own.warmup_end), lambda _: torch.ones(12, K))
        return own

    return start


@pytest.mark.parametrize("size", [1, 2])
def test_the_groups_are_found_from_the_heads_that_steps_compute(evidence_learner, size):
    own = evidence_learner(size)
    branch = own.grouping.probabilities().argmax(dim=1).tolist()
    assert branch == [branch[0], branch[1]] * 6 and branch[0] != branch[1]
    assert own.take_group_start().labels in ([0, 1] * 6, [1, 0] * 6)


def test_pairs_are_compared_where_a_step_computes_both_heads(evidence_learner):
    """The noise of a batch is ten times the difference of the heads; it is the same for both."""
    own = evidence_learner(2, num_groups="all")
    first = own.grouping.probabilities().argmax(dim=1)
    better = torch.arange(12) % 3 == 0  # these have a better head than that of their group
    best = torch.where(better, (first + 1) % K, first)
    rng = torch.Generator().manual_seed(0)

    def losses(_):
        values = torch.full((12, K), 1.05)
        values[torch.arange(12), best] = 1.0
        noise = torch.randn(12, 1, generator=rng), torch.randn(12, K, generator=rng)
        return values + 0.5 * noise[0] + 0.01 * noise[1]

    held = own.warmup_end + 400
    computed = learn_from(own, range(own.warmup_end, held - 1), losses)
    assert computed.sum(axis=2).max() == 2
    assert computed[:, np.arange(12), first].all(), "the present head is in every pair"
    mean, error = own.paired_losses.compare(first)
    expected = torch.full((12, K), 0.05)
    expected[torch.arange(12), first] = 0.0
    expected[better] -= 0.05 * (torch.arange(K) != first[better][:, None])
    expected[better, best[better]] = -0.05
    rivals = torch.arange(K) != first[:, None]
    assert (error[rivals] < 0.004).all() and (error[rivals] > 0).all()
    assert ((mean - expected)[rivals].abs() < 4 * error[rivals]).all()
    assert torch.equal(own.grouping.probabilities().argmax(dim=1), first), "it still holds"
    learn_from(own, range(held - 1, held + 20), losses)
    assert torch.equal(own.grouping.probabilities().argmax(dim=1), best)


def test_with_one_head_in_a_step_the_start_decides(evidence_learner):
    """No two heads are computed on the same batch, so there is no evidence for another branch."""
    own = evidence_learner(1, num_groups="all")
    before = own.grouping.probabilities()
    first = before.argmax(dim=1)

    def losses(_):
        values = torch.full((12, K), 0.5)
        values[torch.arange(12), first] = 1.0
        return values

    learn_from(own, range(own.warmup_end, own.finish_step - 1), losses)
    torch.testing.assert_close(own.grouping.probabilities(), before)
    assert own.paired_losses.margins(first.tolist()) == [None] * 12
    learn_from(own, [own.finish_step - 1], losses)
    assert own.finished and own.chosen_heads() == list(enumerate(first.tolist()))


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_what_the_key_allows(value):
    with pytest.raises(
        UserError, match=rf"grouping\.sampled_heads: found {value}; allowed: a whole"
    ):
        learner(PublishedGroups, size=value)


def records(session):
    return [json.loads(line) for line in session.folder.metrics.read_text().splitlines()]


def files(session):
    last = max(session.folder.checkpoints.glob("step-*"))
    return {path.name: path.read_bytes() for path in last.iterdir()} | {
        "metrics.jsonl": session.folder.metrics.read_bytes()
    }


@pytest.fixture
def train_planted(tmp_path, forget_accelerate):
    """Trains on eight planted tasks with five branches."""

    def run(name, *overrides, recipe="published"):
        forget_accelerate()
        options = ("pruning.begin=0.3", "pruning.end=0.7", "pruning.every=2", *overrides)
        config = planted_config(tmp_path / name, 5, 3, recipe, 30, 32, (*options, "log.every=1"))
        data = PlantedData(PlantedProblem(8, 2, seed=3), config)
        return train_run(config, make_accelerator(config), data)[0]

    return run


@pytest.mark.parametrize("recipe", ["published", "affinity", "evidence"])
def test_a_run_of_all_branches_is_the_plain_run_to_the_last_bit(train_planted, recipe):
    plain = files(train_planted("plain", recipe=recipe))
    sampled = files(train_planted("sampled", "grouping.sampled_heads=5", recipe=recipe))
    names = ("weights.safetensors", "moments.safetensors", "grouping.safetensors", "metrics.jsonl")
    for name in names:
        assert sampled[name] == plain[name], name


RUNS = {
    "published": ("published", "grouping.sampled_heads=2", "optim.gradient_accumulation_steps=2"),
    "affinity": ("affinity", "grouping.sampled_heads=2", "grouping.warmup=0.4"),
    "evidence": ("evidence", "grouping.sampled_heads=2", "grouping.warmup=0.4"),
    "one": ("published", "grouping.sampled_heads=1", "grouping.noise=shared"),
    "every sample": (
        "published", "grouping.sampled_heads=1", "grouping.sampler=gumbel_per_sample",
    ),
}  # fmt: skip


def assert_resumes(train, options, steps):
    """A run that goes on after each of these steps, multiples of 6, ends as the whole one."""
    options = (*options, "run.checkpoint_every=6", "run.keep_last=100")
    whole = train(*options)
    expected = files(whole)
    for step in steps:
        for later in sorted(whole.folder.checkpoints.glob("step-*"))[step // 6 :]:
            shutil.rmtree(later)
        assert files(train(*options, "run.resume=auto")) == expected, step
    trained = [record for record in records(whole) if record["kind"] == "train"]
    assert all(np.isfinite(list(record["losses"].values())).all() for record in trained)
    assert {len(record["losses"]) for record in trained} == {len(whole.tasks)}
    assert trained[steps[-1] - 1]["heads"] > len(whole.tasks) == trained[-1]["heads"]


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_ends_as_the_whole_one(train_planted, name):
    recipe, *options = RUNS[name]

    def train(*options):
        return train_planted("run", *options, recipe=recipe)

    # In the warm-up of the recipes that have one, and when some heads may be off.
    assert_resumes(train, options, steps=(6, 18))


@pytest.mark.parametrize("recipe", [pytest.param("affinity", marks=pytest.mark.slow), "evidence"])
def test_a_run_of_dense_tasks_with_missing_labels(rooms_config, train_here, recipe):
    options = ("run.steps=12", "grouping.sampled_heads=2", f"grouping.recipe={recipe}")

    def train(*options):
        return train_here(rooms_config(*options))

    assert_resumes(train, options, steps=(6,))


def test_given_groups_have_no_heads_to_sample(tmp_path):
    with pytest.raises(UserError, match="sampled_heads: unknown key of recipe 'random'"):
        planted_config(tmp_path, 2, 3, "random", 6, 32, ["grouping.sampled_heads=1"])
