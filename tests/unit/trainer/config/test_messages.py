"""Wrong inputs of every kind of key: each message names the key, the value and what is allowed."""

import re
from copy import deepcopy

import pytest

from trainer.config.keys import all_keys
from trainer.config.loading import apply_overrides, parse_config
from trainer.config.suggestions import _OTHER_NAMES
from trainer.errors import UserError

TREE = {
    "run": {"out": "out", "steps": 10},
    "data": {"shards": "shards", "image_size": [64, 48], "global_batch": 8},
    "model": {"encoder": {"name": "residual64"}, "branches": 3},
}
COUNT = "a whole number from 1 to 10^12"
SIZE = "[height, width], two whole numbers from 1 to 4096, or one number for both"
ENCODERS = "backbone, mlp, residual64, timm, xception"
RECIPES = "affinity, evidence, fixed, grad_tag, hoa, multitask, published, random, single_task, tag"
SAMPLERS = "diagonal, gumbel, gumbel_per_sample, relaxed_one_hot, softmax, straight_through"
KINDS = "binary, dense_classification, dense_regression, multiclass, regression"
# Words of pydantic, of Python and of this program's classes.
FOREIGN = re.compile(
    r"Input should|valid (string|integer|tuple|dict)|Field required|pydantic|Section\b|NoneType"
    r"|Tuple|tuple\[|lax-or-strict|Extra inputs|discriminat|instance of|<class"
)


def config_of(*overrides):
    tree = deepcopy(TREE)
    apply_overrides(tree, overrides)
    return parse_config(tree, "here.yaml")


def errors_of(*overrides):
    with pytest.raises(UserError) as error:
        config_of(*overrides)
    first, *lines = str(error.value).splitlines()
    assert first == f"here.yaml: {len(lines)} error(s)"
    return [line.strip() for line in lines]


WRONG = [
    # a wrong type
    ("run.steps=many", f"run.steps: found 'many'; allowed: {COUNT}, or null"),
    ("run.steps=2.5", f"run.steps: found 2.5; allowed: {COUNT}, or null"),
    ("run.steps=true", f"run.steps: found true; allowed: {COUNT}, or null"),
    ("run.steps=[1]", f"run.steps: found [1]; allowed: {COUNT}, or null"),
    ("run.steps={a: 1}", f"run.steps: found {{a: 1}}; allowed: {COUNT}, or null"),
    ("optim.lr=fast", "optim.lr: found 'fast'; allowed: a number above 0"),
    ("optim.lr=yes", "optim.lr: found true; allowed: a number above 0"),
    ("data.flip=maybe", "data.flip: found 'maybe'; allowed: true or false"),
    ("data.flip=2", "data.flip: found 2; allowed: true or false"),
    ("run.out=", "run.out: found null; allowed: a path"),
    ("run.out=[a]", "run.out: found ['a']; allowed: a path"),
    ("run.out=5", "run.out: found 5; allowed: a path; text is written in quotes: '5'"),
    (
        "data.train_split=5",
        "data.train_split: found 5; allowed: text; text is written in quotes: '5'",
    ),
    ("data.shards=5", "data.shards: found 5; allowed: a folder or a URL of shards, or null"),
    ("data.shards=[a]", "data.shards: found ['a']; allowed: a folder or a URL of shards, or null"),
    (
        "tasks.names=[a, no]",
        "tasks.names.1: found false; allowed: text; YAML reads yes, no, on and off as true and "
        "false unless they are in quotes",
    ),
    # a value in place of a list or a mapping, and the other way round
    ("tasks.names=hat", "tasks.names: found 'hat'; allowed: a list of texts, or null; a list is "
     "written [hat]"),
    ("model.init_from=a.safetensors", "model.init_from: found 'a.safetensors'; allowed: a list of "
     "paths; a list is written [a.safetensors]"),
    ("model.dense_widths=64", "model.dense_widths: found 64; allowed: a list of whole numbers "
     "from 1 to 10^12; a list is written [64]"),
    ("tasks.define=[a]", "tasks.define: found ['a']; allowed: a mapping"),
    ("model.decoder_options=5", "model.decoder_options: found 5; allowed: a mapping"),
    ("log.tracker_options={wandb: 5}", "log.tracker_options.wandb: found 5; allowed: a mapping"),
    ("model.encoder=5", "model.encoder: found 5; allowed: a mapping with keys among name, options, "
     "pretrained"),
    ("optim.schedule=5", "optim.schedule: found 5; allowed: a mapping with the key name, one of "
     "constant, cosine, multistep, plateau"),
    ("finetune.order=[together]", "finetune.order: found ['together']; allowed: one_by_one or "
     "together"),
    # the length of a list, and its elements
    ("data.image_size=[64]", f"data.image_size: found [64]; allowed: {SIZE}"),
    ("data.image_size=[64, 64, 3]", f"data.image_size: found [64, 64, 3]; allowed: {SIZE}"),
    ("data.image_size=64x64", f"data.image_size: found '64x64'; allowed: {SIZE}"),
    ("data.image_size=0", f"data.image_size: found 0; allowed: {SIZE}"),
    ("data.image_size=true", f"data.image_size: found true; allowed: {SIZE}"),
    ("data.image_size=[64, x]", "data.image_size.1: found 'x'; allowed: a whole number from 1 to "
     "4096"),
    ("optim.betas=[0.9]", "optim.betas: found [0.9]; allowed: a list of 2 numbers from 0 to 1"),
    ("optim.betas=0.9", "optim.betas: found 0.9; allowed: a list of 2 numbers from 0 to 1"),
    ("optim.betas=[0.9, 2]", "optim.betas.1: found 2; allowed: a number from 0 to 1"),
    ("optim.schedule={name: multistep, milestones: []}", "optim.schedule.milestones: found []; "
     "allowed: a list of one or more numbers from 0 to 1"),
    # out of range
    ("run.steps=0", f"run.steps: found 0; allowed: {COUNT}, or null"),
    ("run.seed=-1", "run.seed: found -1; allowed: a whole number from 0 to 2^63 - 1"),
    ("data.workers=100000", "data.workers: found 100000; allowed: a whole number from 0 to 1024"),
    ("pruning.threshold=1", "pruning.threshold: found 1; allowed: a number of at least 0 and below "
     "1"),
    ("data.crop=0", "data.crop: found 0; allowed: a number above 0 and at most 1, or null"),
    ("optim.lr=.inf", "optim.lr: found inf; allowed: a number above 0; it must be finite"),
    ("run.profile=5:3", "run.profile: found '5:3'; allowed: START:END, two step numbers of which "
     "the second is larger, such as 100:105, or null"),
    # a wrong choice
    ("run.resume=nevr", "run.resume: found 'nevr'; allowed: never or auto; did you mean 'never'?"),
    ("run.resume=yes", "run.resume: found true; allowed: never or auto"),
    ("run.precision=fp8", "run.precision: found 'fp8'; allowed: fp32, tf32, bf16, fp16 or null"),
    ("model.compile=fast", "model.compile: found 'fast'; allowed: true, false or reduce-overhead"),
    ("model.encoder=resnet18", f"model.encoder.name: found 'resnet18'; allowed: {ENCODERS}; "
     "models of libraries: {name: timm, options: {model: resnet18}}, docs/encoders.md"),
    ("model.encoder.name=residual", f"model.encoder.name: found 'residual'; allowed: {ENCODERS}; "
     "did you mean 'residual64'?"),
    ("model.encoder.name=family", f"model.encoder.name: found 'family'; allowed: {ENCODERS}; "
     "models of libraries: {name: timm, options: {model: resnet18}}, docs/encoders.md"),
    ("model.decoder=linear", "model.decoder: found 'linear'; allowed: deconv, resize"),
    ("data.source=shard", "data.source: found 'shard'; allowed: shards; did you mean 'shards'?"),
    ("tasks.preset=celeba", "tasks.preset: found 'celeba'; allowed: taskonomy5, taskonomy, "
     "celeba9, celeba40 or null; did you mean 'celeba9'?"),
    ("optim.schedule=cosin", "optim.schedule.name: found 'cosin'; allowed: constant, cosine, "
     "multistep, plateau; did you mean 'cosine'?"),
    # the description of a task
    ("tasks.define={a: {kind: binry}}", f"tasks.define.a.kind: found 'binry'; allowed: {KINDS}; "
     "did you mean 'binary'?"),
    ("tasks.define={a: {loss: mze}}", "tasks.define.a.loss: found 'mze'; allowed: bce, "
     "cross_entropy, focal, huber, l1, l1_shift, mse; did you mean 'mse'?"),
    ("tasks.define={a: {loss: 5}}", "tasks.define.a.loss: found 5; allowed: bce, cross_entropy, "
     "focal, huber, l1, l1_shift, mse or null; text is written in quotes: '5'"),
    ("tasks.define={a: {channels: 2.5}}", f"tasks.define.a.channels: found 2.5; allowed: {COUNT}"),
    ("tasks.define={a: {mean: 0.5}}", "tasks.define.a.mean: found 0.5; allowed: a list of numbers; "
     "a list is written [0.5]"),
    ("tasks.define={a: {mean: ['0.5']}}", "tasks.define.a.mean.0: found '0.5'; allowed: a number"),
    ("tasks.define={a: {classes: [a, 5]}}", "tasks.define.a.classes.1: found 5; allowed: text; "
     "text is written in quotes: '5'"),
    ("tasks.define={a: {display: red}}", "tasks.define.a.display: found 'red'; allowed: grey, "
     "depth, normal, classes or signed"),
    ("tasks.define={5: {kind: binary}}", "tasks.define: found the key 5; allowed are texts, "
     "write it in quotes"),
    # missing keys
    ("model.encoder={options: {}}", "model.encoder.name: required and not given; allowed: "
     "backbone, mlp, residual64, timm or xception"),
    ("model.encoder=null", "model.encoder.name: required and not given; allowed: backbone, mlp, "
     "residual64, timm or xception"),
    ("grouping.recipe=fixed", "grouping.groups: required and not given; allowed: a path or a list "
     "of groups, such as [[task1, task3], [task2]]"),
    ("optim.schedule={gamma: 0.1}", "optim.schedule.name: required and not given; allowed: "
     "constant, cosine, multistep, plateau"),
    ("data.shards=null", "data.shards: required by data.source 'shards' and not given"),
    # keys that contradict each other
    ("run.keep_every=1500", "run.keep_every: found 1500; must be a multiple of "
     "run.checkpoint_every, 1000"),
    ("run.stall_seconds=60", "run.stall_seconds: found 60; must be above run.timeout_seconds, "
     "600: a rank that waits for another makes no progress"),
    ("log.trackers=[a, a]", "log.trackers: names 'a' twice, each is allowed once"),
    ("log.tracker_options={wandb: {}}", "log.tracker_options: given for 'wandb', which "
     "log.trackers does not name"),
    ("data.source_options={a: 1}", "data.source_options: given, but data.source 'shards' has no "
     "options"),
    ("data.source_options={a: .inf}", "data.source_options.a: found inf; allowed: a finite number"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "line"), WRONG, ids=[override for override, _ in WRONG])
def test_wrong_value(override, line):
    assert errors_of(override) == [line]
    assert not FOREIGN.search(line)


UNKNOWN = [
    # nearly right
    ("optim.learnig_rate=1", "optim.lr"),
    ("pruning.beginn=0.1", "pruning.begin"),
    ("eval.bach_size=3", "eval.batch_size"),
    ("modle.branches=3", "model"),
    ("optm.lr=3", "optim"),
    ("tasks.define={a: {knd: binary}}", "tasks.define.a.kind"),
    # the words of other programs
    ("optim.learning_rate=1", "optim.lr"),
    ("data.batch_size=8", "data.global_batch"),
    ("run.num_epochs=8", "run.epochs"),
    ("data.num_workers=8", "data.workers"),
    ("optim.scheduler=cosine", "optim.schedule"),
    # in another section
    ("model.lr=1", "optim.lr"),
    ("run.threshold=0.1", "pruning.threshold"),
    ("data.checkpoint_every=5", "run.checkpoint_every"),
]


@pytest.mark.parametrize(("override", "meant"), UNKNOWN, ids=[override for override, _ in UNKNOWN])
def test_unknown_key(override, meant):
    (line,) = errors_of(override)
    assert re.match(r"[\w.]+: unknown key; allowed: \w+(, \w+)+; did you mean ", line)
    assert line.endswith(f"; did you mean {meant}?")


def test_an_unknown_key_that_is_like_no_other():
    (line,) = errors_of("eval.zzz=1")
    assert line == "eval.zzz: unknown key; allowed: batch_size, every, limit"


def test_a_key_of_another_recipe_is_named_with_that_recipe():
    (line,) = errors_of("grouping.recipe=published", "grouping.warmup=0.1")
    assert line.startswith("grouping.warmup: unknown key of recipe 'published'; allowed: entropy, ")
    assert line.endswith("; warmup is a key of recipe affinity or evidence")
    (line,) = errors_of("grouping.recipe=published", "grouping.temprature.initial=3")
    assert line.endswith("; did you mean grouping.temperature?")
    (line,) = errors_of("grouping.recipe=published", "grouping.sampler=gumbell")
    expected = f"grouping.sampler: found 'gumbell'; allowed: {SAMPLERS}; did you mean 'gumbel'?"
    assert line == expected


@pytest.mark.parametrize(
    ("value", "found", "end"),
    [("afinity", "'afinity'", "; did you mean 'affinity'?"), ("5", "5", ""), ("null", "null", "")],
)
def test_an_unknown_recipe(value, found, end):
    (line,) = errors_of(f"grouping.recipe={value}")
    # Other tests may have registered more.
    assert line.startswith(f"grouping.recipe: found {found}; allowed: {RECIPES}")
    assert line.endswith(end)


def test_required_keys_of_a_missing_section_are_listed():
    with pytest.raises(UserError) as error:
        parse_config({"run": {"steps": 1}, "model": None}, "here.yaml")
    assert [line.strip().partition(":")[0] for line in str(error.value).splitlines()[1:]] == [
        "run.out",
        "data.image_size",
        "data.global_batch",
        "model.branches",
    ]


@pytest.mark.parametrize(
    ("override", "end"),
    [
        ("lr=1e-3", "; did you mean optim.lr?"),
        ("steps=3", "; did you mean run.steps?"),
        ("shards=x", "; did you mean data.shards?"),
        ("batch_size=4", "; did you mean data.global_batch?"),
        ("model=residual64", "; model is a section, its keys are set as in model.KEY=VALUE"),
        ("--optim.lr=3", ", without dashes: optim.lr=..."),
        ("run.steps", "expected section.key=value"),
    ],
)
def test_an_override_of_another_form(override, end):
    with pytest.raises(UserError) as error:
        config_of(override)
    assert str(error.value).startswith(f"override {override!r}: expected section.key=value")
    assert str(error.value).endswith(end)


def test_what_stands_for_something_else():
    assert config_of("data.image_size=64").data.image_size == (64, 64)
    assert config_of("model.encoder=xception").model.encoder.name == "xception"
    tree = {**deepcopy(TREE), "grouping": None, "tasks": {"define": None}, "log": None}
    assert parse_config(tree, "here.yaml") == config_of()


def test_the_description_of_a_task_stays_as_it_is_given():
    given = {
        "a": {"kind": "multiclass", "classes": ["x", "y"], "channels": 2, "mean": [1]},
        "b": {"loss": None, "metric": "", "field": None, "valid_below": 5},
    }
    config = parse_config({**deepcopy(TREE), "tasks": {"define": given}}, "here.yaml")
    assert config.tasks.define == given


def test_the_words_of_other_programs_stand_for_keys_that_exist():
    assert set(_OTHER_NAMES.values()) <= {key.path for key in all_keys()}
