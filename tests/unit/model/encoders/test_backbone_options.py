import pytest
from transformers import AutoConfig

from model.encoders import build_encoder
from model.encoders.backbone import resolve_config
from model.encoders.backbone_options import allowed_options, to_options

SIZE = (64, 64)


def test_options_are_what_the_family_itself_defines():
    allowed = allowed_options(type(AutoConfig.for_model("convnext")))
    assert {"hidden_sizes", "depths", "num_hidden_layers", "image_size"} <= allowed
    refused = {"attn_implementation", "dtype", "id2label", "return_dict", "stage_names"}
    assert not allowed & refused and not any(name.startswith("_") for name in allowed)


def test_options_of_earlier_versions_are_taken():
    """They hold what follows from other options, and attributes of classifiers."""
    options = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    old = {"model_type": "swin", **options, "hidden_size": 768, "num_layers": 4}
    config = resolve_config({**old, "problem_type": "regression"}, None, SIZE)
    assert config.problem_type is None and config.depths == [1, 1]
    assert {k: v for k, v in to_options(config).items() if k in old} == old


def test_a_nested_config_may_only_repeat_the_default():
    options = {"model_type": "vit", "hidden_act": {"model_type": "bert"}}
    with pytest.raises(ValueError, match=r"options.hidden_act is .*, must not be a mapping"):
        resolve_config(options, None, SIZE)


def test_attributes_of_a_folder_that_no_option_sets_are_dropped(tmp_path):
    """A kernel that its `config.json` names is not used, and none is exported."""
    config = AutoConfig.for_model("vit", hidden_size=24, num_attention_heads=2)
    config.attn_implementation = config.auto_map = "someone/kernel"
    config.save_pretrained(tmp_path)
    assert "someone/kernel" in (tmp_path / "config.json").read_text()
    resolved = resolve_config({}, str(tmp_path), SIZE)
    assert resolved.hidden_size == 24 and "someone" not in resolved.to_json_string()
    assert "someone" not in str(to_options(resolved))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**17, "num_hidden_layers is 131072, must be at most 65536"),
        ([2**15, [2**15, 1]], "must be at most 65536, the sum for a list"),
        ("some one", "num_hidden_layers is 'some one', must be a word"),
        ([["a/b"]], "num_hidden_layers is 'a/b', must be a word"),
        ([{"a": 1}], "num_hidden_layers has {'a': 1}, must not have a mapping"),
    ],
)
def test_values(value, message):
    with pytest.raises(ValueError, match=message):
        resolve_config({"model_type": "vit", "num_hidden_layers": value}, None, SIZE)


SMALL = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("option", "cause"),
    [
        ({"hidden_act": "nonesuch"}, "KeyError: 'nonesuch'"),
        ({"num_attention_heads": 0}, "ZeroDivisionError: "),
        ({"initializer_range": -1.0}, "RuntimeError: normal expects std >= 0.0"),
    ],
)
def test_an_option_that_the_library_cannot_use_is_one_line(option, cause):
    with pytest.raises(ValueError, match=r"^model\.encoder\.options is \{.*vit") as caught:
        build_encoder("backbone", 1, image_size=SIZE, options={**SMALL, **option})
    text = str(caught.value)
    assert str(option)[1:-1] in text and cause in text and "\n" not in text


def test_a_pretrained_folder_without_weights_is_one_line(tmp_path):
    resolve_config(SMALL, None, SIZE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^model\.encoder\.pretrained is .*OSError: .*$"):
        build_encoder("backbone", 1, image_size=SIZE, pretrained=str(tmp_path))


def test_no_memory_is_no_fault_of_an_option(monkeypatch):
    def no_memory(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("transformers.ViTModel.__init__", no_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        build_encoder("backbone", 1, image_size=SIZE, options=SMALL)
