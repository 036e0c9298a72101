"""Real views, from the released layout to a pruned model that has learned each of their labels."""

from pathlib import Path

import pytest

from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.taskonomy.buildings import BuildingSplits
from data_pipelines.convert.taskonomy.converter import write_taskonomy
from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.export import export_run
from trainer.loop import train
from trainer.scoring.scores import score_model
from trainer.session import start_session

ROOT = Path(__file__).resolve().parents[2]
VIEWS = ROOT / ".." / "shared" / "data" / "taskonomy_sample"


@pytest.mark.slow
@pytest.mark.skipif(not VIEWS.is_dir(), reason=f"no views in {VIEWS}")
def test_every_label_is_learned(tmp_path):
    shards, run, model = (tmp_path / name for name in ("shards", "run", "model.safetensors"))
    options = ConversionOptions(progress=False)
    write_taskonomy(VIEWS, shards, BuildingSplits(val_fraction=0), options)
    overrides = [f"run.out={run}", f"data.shards={shards}", "log.progress=false"]
    config = load_config(ROOT / "experiments" / "taskonomy_sample.yaml", overrides)
    with start_session(config, make_accelerator(config)) as session:
        train(session)
    export_run(run, model)
    scores = score_model(model, shards, split="train", train_split="train", batch=4).scores
    assert [score.task for score in scores if not score.beats_constant] == []
    assert len(scores) == 9
