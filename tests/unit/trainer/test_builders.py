import pytest
from torch import nn

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Manifest
from model.heads.deconv import DeconvHeads
from model.tasks.presets import PRESETS, TASKONOMY
from trainer.builders import build_network
from trainer.config.tasks import TasksSection
from trainer.data_sources.shards import ShardData
from trainer.errors import UserError
from trainer.run_data import num_steps, open_manifest
from trainer.tasks import label_requests, resolve_tasks


@pytest.fixture(scope="module")
def manifest(rooms):
    return Manifest.load(rooms)


def resolve(manifest, **section):
    return {spec.name: spec for spec in resolve_tasks(TasksSection(**section), manifest)}


def test_without_names_every_label_is_a_task(manifest):
    expected = [name for name, field in manifest.fields.items() if field.kind != "image"]
    assert list(resolve(manifest)) == expected


def test_a_released_domain_has_the_recipe_scales_and_the_names_of_this_data(manifest):
    found = resolve(manifest, names=["depth_zbuffer", "segment_semantic"])
    assert found["depth_zbuffer"] == TASKONOMY["depth_zbuffer"]
    assert found["segment_semantic"].classes == manifest.fields["segment_semantic"].classes
    assert found["segment_semantic"].ignore_index == 0


def test_an_attribute_takes_kind_classes_and_scale_from_the_manifest(manifest):
    found = resolve(manifest, names=["camera_pitch", "num_solids", "has_sphere"])
    pitch = manifest.fields["camera_pitch"]
    assert found["camera_pitch"].mean == (pitch.mean,)
    assert found["camera_pitch"].scale == (pitch.std,)
    assert found["num_solids"].channels == len(found["num_solids"].classes) == 4
    assert found["has_sphere"].kind == "binary"


def test_a_definition_wins_and_may_read_another_field(manifest):
    define = {"pitch": {"field": "camera_pitch", "loss": "mse"}, "has_sphere": {"unit": "x"}}
    found = resolve(manifest, names=["pitch", "has_sphere"], define=define)
    assert found["pitch"].kind == "regression" and found["pitch"].loss == "mse"
    assert found["has_sphere"].unit == "x"
    assert label_requests(tuple(found.values()))[0].field == "camera_pitch"


def test_preset(manifest):
    assert list(resolve(manifest, preset="taskonomy5")) == [t.name for t in PRESETS["taskonomy5"]]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"names": []}, r"tasks\.names: found \[\]; allowed: one or more names, each once"),
        ({"names": ["has_sphere"] * 2}, r"allowed: one or more names, each once"),
        ({"names": ["has_sphere"], "define": {"x": {}}}, r"tasks\.define: x is not among"),
        (
            {"names": ["no_such"]},
            r"tasks\.names: found 'no_such', which is no label of rooms and not described by "
            r"tasks\.define\.no_such; labels in rooms: camera_pitch, ",
        ),
        ({"names": ["has_spere"]}, r"; did you mean 'has_sphere'\?$"),
        ({"names": ["rgb"]}, r"found 'rgb', .* tasks\.define\.rgb"),
        (
            {"names": ["has_sphere"], "define": {"has_spere": {}}},
            r"tasks\.define: has_spere is not among .*; did you mean 'has_sphere'\?$",
        ),
        (
            {"names": ["has_sphere"], "define": {"has_sphere": {"loss": "mse"}}},
            r"tasks\.define\.has_sphere: .*loss is 'mse', must be one of bce, cross_entropy",
        ),
    ],
)
def test_tasks_that_cannot_be(section, message, manifest):
    with pytest.raises(UserError, match=message):
        resolve(manifest, **section)


def test_network_follows_the_seed_and_the_config(rooms_config, manifest):
    config = rooms_config("model.trunk_depth=1")
    tasks = resolve_tasks(config.tasks, manifest)
    first, second = build_network(config, tasks), build_network(config, tasks)
    assert isinstance(first.trunk, nn.Sequential) and len(first.heads) == 18
    for (name, value), other in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert value.equal(other), name
    other = build_network(rooms_config("model.trunk_depth=1", "run.seed=6"), tasks)
    weight = "branches.0.0.layers.0.dwconv.weight"
    assert not first.state_dict()[weight].equal(other.state_dict()[weight])


def test_network_with_the_published_decoder_and_gradient_scale(rooms_config, manifest):
    config = rooms_config("model.decoder=deconv", "model.gradient_scale=paper")
    tasks = resolve_tasks(config.tasks, manifest)
    network = build_network(config, tasks)
    kinds = {
        type(stack) for name, stack in network.stacked_heads.items() if name.startswith("dense")
    }
    assert kinds == {DeconvHeads}
    factors = network.config()["gradient_scale"]
    assert factors == pytest.approx([config.model.branches**-0.5, len(tasks) ** -0.5])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dense_widths=[5]", r"dense_widths is \(5,\), must be positive multiples of 8"),
        ("model.trunk_depth=9", r"model\.trunk_depth is 9, must be from 0 to 2"),
        ("model.encoder.options.depth=3", r"has 'depth', .*; did you mean 'depths'\?$"),
        (
            "model.encoder.options.hidden_act=nonesuch",
            r"model\.encoder\.options is .*'nonesuch'.* cannot build it: KeyError: 'nonesuch'$",
        ),
        ("model.encoder.pretrained=/none", r"pretrained is '/none', must be a folder"),
    ],
)
def test_network_that_cannot_be_built(override, message, rooms_config, manifest):
    config = rooms_config(override)
    with pytest.raises(UserError, match=message):
        build_network(config, resolve_tasks(config.tasks, manifest))


def test_epochs_become_steps(rooms_config):
    def steps(*overrides):
        config = rooms_config(*overrides)
        return num_steps(config, ShardData(config))

    assert steps("run.steps=17") == 17
    assert steps("run.steps=null", "run.epochs=2.5") == 10
    assert steps("run.steps=null", "run.epochs=0.001") == 1


def test_missing_split(rooms_config):
    with pytest.raises(DataError, match="split 'test': rooms has train, val"):
        open_manifest(rooms_config("data.eval_split=test"))
