"""Uploads to a hub: files and card in one commit, and what the user reads where it fails."""

import pytest
import torch
import yaml
from huggingface_hub import hf_hub_download

from model.bundle import load_pruned
from trainer.deployment.hub import push
from trainer.errors import UserError

IMAGES = torch.arange(2 * 3 * 256).remainder(251).view(2, 3, 16, 16).to(torch.uint8)


def test_what_is_pushed_is_what_is_downloaded(hub, model_file, tmp_path):
    report = push(model_file, "me/rooms", licence="apache-2.0", message="First")
    assert report.url == f"{hub.url}/me/rooms/commit/{'0' * 40}"
    repo = hub.repos["me/rooms"]
    assert repo["private"] and hub.commits == [("First", "main")]
    files = repo["branches"]["main"]
    assert report.files == {name: len(data) for name, data in files.items()}
    assert files.keys() == {"README.md", "model.safetensors"}
    path = hf_hub_download("me/rooms", "model.safetensors", cache_dir=tmp_path, endpoint=hub.url)
    found, expected = load_pruned(path)(IMAGES), load_pruned(model_file)(IMAGES)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    card = files["README.md"].decode()
    facts = yaml.safe_load(card.split("---\n")[1])
    assert facts["license"] == "apache-2.0" and facts["library_name"] == "dmtg"
    assert 'hf_hub_download("me/rooms", "model.safetensors")' in card


def test_a_second_push_is_a_second_commit(hub, model_file):
    push(model_file, "me/rooms", public=True)
    assert not hub.repos["me/rooms"]["private"]
    push(model_file, "me/rooms", message="Again", revision="v2")
    assert hub.commits == [("Upload the model and its card", "main"), ("Again", "v2")]
    assert hub.repos["me/rooms"]["branches"]["v2"].keys() == {"README.md", "model.safetensors"}
    assert not hub.repos["me/rooms"]["private"]


def test_a_dry_run_asks_nothing_of_the_hub(hub, model_file):
    report = push(model_file, "me/rooms", dry_run=True)
    assert report.url is None and report.files.keys() == {"README.md", "model.safetensors"}
    assert hub.asked == [] and hub.repos == {}


def test_a_token_that_may_not_write(hub, model_file, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError) as error:
        push(model_file, "me/rooms")
    assert "hf auth login" in str(error.value) and "HF_TOKEN" in str(error.value)
    assert "hf_other" not in str(error.value) and "\n" not in str(error.value)
    assert hub.repos == {}


def test_no_hub(hub, model_file):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:\d+: .*refused"):
        push(model_file, "me/rooms")


@pytest.mark.parametrize("repo", ["rooms", "me/rooms/more", "me/ro oms", "../rooms"])
def test_names_of_repositories(hub, model_file, repo):
    with pytest.raises(UserError, match="REPO: "):
        push(model_file, repo)
    assert hub.asked == []
