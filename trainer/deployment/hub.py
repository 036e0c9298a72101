"""Upload an exported model and its card to a repository of the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from dmtg.names import one_line
from model.bundle import load_pruned
from trainer.deployment.card import CARD, model_card, run_metrics
from trainer.deployment.deploy import SUFFIXES, Format, deploy
from trainer.deployment.deployed import Preprocessing
from trainer.errors import UserError

MODEL = "model"  # names of the files, without their suffixes


@dataclass(frozen=True)
class PushReport:
    """What was uploaded, or would be.

    Attributes:
        repo: Repository.
        files: Size in bytes by name.
        url: Of the commit; None if nothing was uploaded.
    """

    repo: str
    files: dict[str, int]
    url: str | None


def push(
    source: Path,
    repo: str,
    formats: Sequence[Format] = ("safetensors",),
    *,
    preprocessing: Preprocessing = "normalize",
    public: bool = False,
    revision: str | None = None,
    licence: str | None = None,
    message: str = "Upload the model and its card",
    shards: str | None = None,
    dry_run: bool = False,
) -> PushReport:
    """Export a model, write its card, and upload both in one commit.

    The token is that of `hf auth login` or of the environment (`HF_TOKEN`). A repository that does
    not exist is created.

    Args:
        source: Folder of a run, or an exported model.
        repo: Repository, as in `user/name`.
        formats: Formats to upload besides safetensors.
        preprocessing: See `DeployedModel`.
        public: Whether a repository that is created may be read by everyone.
        revision: Branch; None means the main one.
        licence: See `model_card`.
        message: Of the commit.
        shards: See `deploy`.
        dry_run: Whether to do all but the upload.

    Raises:
        UserError: The repository's name is not allowed, or the hub refuses or does not answer.
        BundleError, ValueError: As `deploy`.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"REPO: {one_line(str(error), 300)}") from None
    if "/" not in repo:
        raise UserError(f"REPO: found {repo!r}; allowed: USER/NAME, or ORGANIZATION/NAME")
    with tempfile.TemporaryDirectory(prefix="dmtg-push-") as folder:
        file = Path(folder) / f"{MODEL}.safetensors"
        deploy(source, file, "safetensors", shards=shards)
        model = load_pruned(file)
        metrics = run_metrics(source, model)
        for suffix, name in SUFFIXES.items():
            if name in formats and name != "safetensors":
                deploy(file, file.with_suffix(suffix), name, preprocessing=preprocessing)
        names = sorted(file.name for file in Path(folder).iterdir())
        card = model_card(
            model, repo.rpartition("/")[2], names, metrics, repo=repo, licence=licence
        )
        (Path(folder) / CARD).write_text(card, encoding="utf-8")
        files = {file.name: file.stat().st_size for file in sorted(Path(folder).iterdir())}
        url = None
        if not dry_run:
            url = _upload(Path(folder), repo, public, revision, message)
    return PushReport(repo, files, url)


def _upload(folder: Path, repo: str, public: bool, revision: str | None, message: str) -> str:
    """Upload all files of a folder in one commit and return its URL."""
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = (
            "; log in with `hf auth login`, or set HF_TOKEN to a token that may write to it"
            if status in (401, 403)
            else ""
        )
        raise UserError(f"{api.endpoint}: {one_line(str(error), 300)}{advice}") from None
    except (HTTPError, OSError, ValueError) as error:  # no connection, among others
        raise UserError(f"{api.endpoint}: {one_line(str(error), 300)}") from None
    return str(commit.commit_url)
