"""Trackers continue their runs and get every step once, whatever ends and resumes the training."""

import json
from collections import Counter

import accelerate.tracking
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.config.loading import parse_config
from trainer.config.log import LogSection
from trainer.errors import UserError
from trainer.monitoring import trackers
from trainer.monitoring.logs import RunLog
from trainer.run_folder import RunFolder

SETTINGS = {"run": {"seed": 5}, "data": {"image_size": [8, 8]}, "optim": {"max_grad_norm": None}}


class FakeTracker(GeneralTracker):
    """Keeps its runs in one process, as a server would."""

    name = "fake"
    requires_logging_directory = False
    runs: dict = {}  # noqa: RUF012 - shared on purpose
    fails_at = None

    def __init__(self, project, run_id=None, **options):
        super().__init__()
        self.project, self.options, self._run_id = project, options, run_id

    def start(self):
        if self._run_id is None:
            self._run_id = f"run-{len(self.runs)}"
        self.runs.setdefault(self._run_id, {"points": [], "settings": [], "starts": 0})
        self.run["starts"] += 1

    @property
    def run(self):
        return self.runs[self._run_id]

    @property
    def run_id(self):
        return self._run_id

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.run["settings"].append(values)

    def log(self, values, step=None, **_):
        if step == self.fails_at:
            raise ConnectionError("no route to the server")
        self.run["points"] += [(step, name) for name in values]

    def finish(self):
        self.run["finished"] = True


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", FakeTracker)
    monkeypatch.setattr(FakeTracker, "runs", {})
    return FakeTracker


class Training:
    """A run whose steps are only logged: `train` at every step, and `eval` at its end."""

    def __init__(self, folder, names, **options):
        self.folder = RunFolder(folder)
        self.section = LogSection(trackers=names, tracker_options=options, progress=False)
        self.checkpoint = {"start_step": 0, "metrics_bytes": 0, "run_ids": {}}

    def start(self, stop, *, save_at, num_steps, final=True):
        """Log up to the step `stop`; the evaluation follows the last step."""
        log = RunLog(
            self.folder, self.section, rank=0, num_steps=num_steps, settings=SETTINGS,
            **self.checkpoint,
        )  # fmt: skip
        for step in range(self.checkpoint["start_step"] + 1, stop + 1):
            log.write(step, "train", loss=1.0 / step)
            log.scalars(step, {"train/loss": 1.0 / step})
            log.scalars(step, {"speed/step_seconds": 0.1})
            log.probabilities(step, torch.full((3, 2), 0.5))
            if step == save_at:
                self.checkpoint = {
                    "start_step": step,
                    "metrics_bytes": log.metrics_bytes,
                    "run_ids": json.loads(json.dumps(log.run_ids)),
                }
        if stop == num_steps and final:
            log.write(stop, "eval", metrics={})
            log.scalars(stop, {"eval/a/mae": 0.5}, kind="eval")
        log.close()

    def interrupted(self):
        """Killed after step 5 with a checkpoint of step 3, twice started again when finished."""
        self.start(5, save_at=3, num_steps=8)
        self.start(7, save_at=6, num_steps=8)
        self.start(8, save_at=8, num_steps=8, final=False)  # killed before its evaluation
        self.start(8, save_at=None, num_steps=8)
        self.start(8, save_at=None, num_steps=8)


EXPECTED = {
    "train/loss": list(range(1, 9)),
    "speed/step_seconds": list(range(1, 9)),
    "eval/a/mae": [8],
}


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})  # all
    events.Reload()
    return events


def test_tensorboard_has_every_step_once_after_resumes(tmp_path):
    Training(tmp_path, ["tensorboard"]).interrupted()
    events = events_of(tmp_path / "tensorboard")
    steps = {name: [e.step for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert steps == EXPECTED
    assert [e.step for e in events.Images("grouping/probabilities")] == list(range(1, 9))
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(
        [1.0 / step for step in range(1, 9)]
    )


def test_tensorboard_discards_a_start_that_left_no_checkpoint(tmp_path):
    training = Training(tmp_path, ["tensorboard"])
    training.start(2, save_at=None, num_steps=4)
    training.start(4, save_at=4, num_steps=4)
    events = events_of(tmp_path / "tensorboard")
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_registered_tracker_continues_its_run_and_has_every_step_once(fake, tmp_path):
    Training(tmp_path / "runs" / "first", ["fake"]).interrupted()
    (run,) = fake.runs.values()
    assert run["starts"] == 5 and run["finished"]
    assert run["settings"] == [
        {
            "run.seed": 5,
            "data.image_size": "[8, 8]",
            "optim.max_grad_norm": None,
        }  # of the first start only
    ]
    assert set(Counter(run["points"]).values()) == {1}
    steps = {name: sorted(s for s, n in run["points"] if n == name) for name in EXPECTED}
    assert steps == EXPECTED


def test_a_tracker_that_a_resumed_run_names_anew_gets_what_follows(fake, tmp_path):
    training = Training(tmp_path, [])
    training.start(5, save_at=3, num_steps=8)
    training.section = LogSection(trackers=["fake"], progress=False)
    training.start(8, save_at=8, num_steps=8)
    (run,) = fake.runs.values()
    assert [s for s, name in run["points"] if name == "train/loss"] == [4, 5, 6, 7, 8]


def test_project_and_options(fake, tmp_path, monkeypatch):
    made = []
    start = fake.start
    monkeypatch.setattr(fake, "start", lambda self: (made.append(self), start(self)))
    Training(tmp_path / "runs" / "a", ["fake"]).start(1, save_at=1, num_steps=2)
    options = {"project": "mine", "entity": "us"}
    Training(tmp_path / "runs" / "b", ["fake"], fake=options).start(1, save_at=1, num_steps=2)
    assert [(t.project, t.options) for t in made] == [("runs", {}), ("mine", {"entity": "us"})]


def test_a_tracker_that_fails_is_dropped_with_a_warning(fake, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fake, "fails_at", 3)
    training = Training(tmp_path, ["fake", "tensorboard"])
    training.start(5, save_at=5, num_steps=8)
    (run,) = fake.runs.values()
    assert [s for s, name in run["points"] if name == "train/loss"] == [1, 2]
    assert caplog.text.count("fake failed and is not used any more: no route to the") == 1
    events = events_of(tmp_path / "tensorboard")
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_tracker_that_cannot_start_ends_the_run(fake, tmp_path, monkeypatch):
    def refuse(_self):
        raise ConnectionError("no key")

    monkeypatch.setattr(fake, "start", refuse)
    with pytest.raises(UserError, match=r"log\.trackers: fake cannot be started: .*: no key"):
        Training(tmp_path, ["fake"]).start(1, save_at=1, num_steps=1)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UserError, match=r"comet_ml is not installed; run `pip install comet-ml`"):
        trackers.check_trackers(LogSection(trackers=["tensorboard", "comet_ml"]))


def test_a_run_with_a_tracker_that_is_not_installed_writes_nothing(
    rooms_config, train_here, monkeypatch, tmp_path
):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(UserError, match=r"wandb is not installed"):
        train_here(rooms_config("log.trackers=[wandb]", f"run.out={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused():
    message = r"log\.trackers: found 'tensorbord'; allowed are aim, .*, tensorboard, trackio, wandb"
    with pytest.raises(UserError, match=message):
        trackers.check_trackers(LogSection(trackers=["tensorbord"]))


def test_every_tracker_of_accelerate_that_is_installed_is_allowed(monkeypatch):
    names = sorted(LOGGER_TYPE_TO_CLASS)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: names)
    trackers.check_trackers(LogSection(trackers=names))
    installed = {kind.value for kind in accelerate.tracking.get_available_trackers()}
    assert "tensorboard" in installed <= set(names)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"trackers": ["wandb", "wandb"]}, "log.trackers: names 'wandb' twice"),
        (
            {"tracker_options": {"wandb": {}}},
            "log.tracker_options: given for 'wandb', which",
        ),
        ({"trackers": "wandb"}, "log.trackers"),
    ],
)
def test_what_is_no_list_of_trackers_is_refused(log, message):
    tree = {
        "run": {"out": "x", "steps": 10},
        "data": {"shards": "s", "image_size": [8, 8], "global_batch": 8},
        "model": {"encoder": {"name": "residual64"}, "branches": 3},
        "log": log,
    }
    with pytest.raises(UserError) as error:
        parse_config(tree, "test")
    assert message in str(error.value)


def test_without_trackers_no_library_is_loaded(launcher):
    """SummaryWriter alone takes more than a second."""
    end = launcher.python(
        "import sys, trainer.monitoring.logs\n"
        "print([m for m in ('tensorboard', 'tensorflow', 'wandb', 'mlflow') if m in sys.modules])"
    )
    assert end.stdout.strip() == "[]", end.stderr


def test_a_resumed_run_is_in_tensorboard_once(rooms_config, train_here):
    """Its ids travel through the checkpoint, its steps through the loop."""
    options = ("run.steps=6", "run.checkpoint_every=3", "run.keep_last=9", "eval.every=3")
    config = rooms_config(*options, "log.trackers=[tensorboard]", "run.resume=auto")
    folder = train_here(config).folder
    progress = folder.checkpoints / "step-000000006" / "progress.json"
    assert json.loads(progress.read_text())["trackers"] == {"tensorboard": "tensorboard"}
    before = folder.metrics.read_bytes()
    progress.unlink()
    train_here(config)
    assert folder.metrics.read_bytes() == before
    events = events_of(folder.out / "tensorboard")
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.Scalars("eval/normal/angle")] == [3, 6]


def test_mlflow_continues_its_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'store'}")
    mlflow.set_tracking_uri(f"file://{tmp_path / 'store'}")
    Training(tmp_path / "runs" / "first", ["mlflow"]).interrupted()
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'runs'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "first" and run.data.params["run.seed"] == "5"
    history = {
        name: sorted(p.step for p in client.get_metric_history(run.info.run_id, name))
        for name in EXPECTED
    }
    assert history == EXPECTED


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    training = Training(tmp_path / "runs" / "first", ["wandb"])
    training.start(5, save_at=3, num_steps=8)
    run_id = training.checkpoint["run_ids"]["wandb"]
    training.start(8, save_at=8, num_steps=8)
    assert training.checkpoint["run_ids"] == {"wandb": run_id}
    folders = sorted((tmp_path / "runs" / "first" / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(folders) == 2


def test_trackio_continues_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio")
    training = Training(tmp_path / "runs" / "first", ["trackio"])
    training.interrupted()
    assert training.checkpoint["run_ids"] == {"trackio": "first"}
    (run,) = trackio.Api().runs("runs")
    assert run.name == "first"
