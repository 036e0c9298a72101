"""The configuration of a run that searches for the groups."""

from __future__ import annotations

from typing import Any

from trainer.config.config import Config
from trainer.config.loading import parse_config


def search_config(config: Config, grouping: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """Return the configuration of a search, without what belongs to the training only.

    Args:
        config: Of the training.
        grouping: Replaces its section.
        sections: Values of other sections, which replace those of the training.
    """
    tree = config.model_dump(mode="json")
    tree["grouping"] = grouping
    tree["eval"]["every"] = 0
    tree["finetune"] = {}
    tree["run"]["profile"] = None
    if len(config.model.init_from) > 1:  # a file for each branch of the training
        tree["model"]["init_from"] = []
    for name, values in sections.items():
        tree[name] |= values
    return parse_config(tree, "the search for groups")
