"""A run may go on under another engine and with another number of processes at any checkpoint."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainer.checkpoints.checkpoint import load_checkpoint

pytestmark = pytest.mark.distributed

NUM_STEPS = 16
RECIPES = ("published", "affinity")
OPTIONS = (
    f"run.steps={NUM_STEPS} run.checkpoint_every=4 run.keep_last=100 run.resume=auto "
    "pruning.end=0.5"
)
KEYS = {"published": "", "affinity": " grouping.warmup=0.2"}
BEFORE, AFTER, LATE = 4, 8, 12  # the compaction, which step 8 ends with
LOSS = 1e-4  # relative
MOMENTS, WEIGHTS = 1e-3, 1e-5  # relative to the largest of a tensor, and absolute


@dataclass(frozen=True)
class Launch:
    """A way to start: a file of accelerate_configs/ or None, and the number of processes."""

    engine: str | None
    num_processes: int

    def __str__(self) -> str:
        return f"{self.engine or 'plain'}-{self.num_processes}"


PLAIN, PAIR = Launch(None, 1), Launch("ddp_cpu", 2)
ZERO2, ZERO2_ALONE, ZERO3 = Launch("zero2_cpu", 2), Launch("zero2_cpu", 1), Launch("zero3_cpu", 2)
ALL = (PLAIN, PAIR, Launch("zero1_cpu", 2), ZERO2, ZERO3, Launch("fsdp2_cpu", 2), ZERO2_ALONE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def go_on(session_launcher, rooms_yaml, root):
    """Starts or continues runs, by the names of their folders, and returns what was logged."""

    def launch(how: Launch, names: list[str]) -> str:
        recipes = [name.split("-")[0] for name in names]
        cells = [
            f"{name} grouping.recipe={recipe} {OPTIONS}{KEYS[recipe]}"
            for name, recipe in zip(names, recipes, strict=True)
        ]
        flags = ("--num_processes", str(how.num_processes))
        script = Path(__file__).with_name("train_cells.py")
        arguments = (str(rooms_yaml), str(root), *cells)
        process = session_launcher.start(*arguments, engine=how.engine, flags=flags, script=script)
        end = process.finish(900)
        assert end.code == 0, end.stderr[-4000:]
        return end.stderr

    return launch


@pytest.fixture(scope="module")
def reference(go_on, root):
    """The uninterrupted runs of one process."""
    names = {recipe: f"{recipe}-reference" for recipe in RECIPES}
    go_on(PLAIN, list(names.values()))
    return {recipe: root / name for recipe, name in names.items()}


def cut(source: Path, target: Path, *steps: int) -> None:
    """The folder of a run that was killed when it had these checkpoints, and a few steps later."""
    for step in steps:
        name = f"checkpoints/step-{step:09d}"
        shutil.copytree(source / name, target / name)
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(source / name, target)


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def assert_continues(run: Path, expected: Path) -> None:
    """The curve and the end of a run are those of the one that was never interrupted."""
    found, wanted = records(run, "train"), records(expected, "train")
    assert [r["step"] for r in found] == [r["step"] for r in wanted] == [*range(1, NUM_STEPS + 1)]
    for now, then in zip(found, wanted, strict=True):
        for task, value in then["losses"].items():
            error = abs(now["losses"][task] - value) / max(abs(value), 1e-12)
            assert error < LOSS, (run.name, now["step"], task, error)
        assert (now["heads"], now["branches"]) == (then["heads"], then["branches"])
    for kind in ("prune", "compact"):
        assert records(run, kind) == records(expected, kind)
    last = f"checkpoints/step-{NUM_STEPS:09d}"
    for name, limit in (("weights", WEIGHTS), ("moments", MOMENTS), ("grouping", MOMENTS)):
        tensors, others = (load_file(r / last / f"{name}.safetensors") for r in (run, expected))
        assert tensors.keys() == others.keys()
        for key, value in others.items():
            scale = 1.0 if name == "weights" else max(float(value.float().abs().max()), 1e-8)
            error = float((tensors[key].float() - value.float()).abs().max()) / scale
            assert error < limit, (run.name, name, key, error)
    ends = [load_checkpoint(r / last).progress for r in (run, expected)]
    assert ends[0].optimizer_step == ends[1].optimizer_step
    assert ends[0].logits_updates == ends[1].logits_updates


def assert_goes_on_from(run: Path, source: Path, step: int, log: str) -> None:
    """What the source had written up to the step is still there, and was not computed again."""
    assert f"continuing from {run / f'checkpoints/step-{step:09d}'}" in log
    kept = load_checkpoint(source / f"checkpoints/step-{step:09d}").progress.metrics_bytes
    contents = [(r / "metrics.jsonl").read_bytes()[:kept] for r in (run, source)]
    assert kept > 0 and contents[0] == contents[1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_network_gets_smaller_between_the_checkpoints(recipe, reference):
    heads = {
        step: len(load_checkpoint(reference[recipe] / f"checkpoints/step-{step:09d}")
                  .progress.network["heads"])
        for step in (BEFORE, AFTER)
    }  # fmt: skip
    assert heads[AFTER] == 6 < heads[BEFORE]
    assert records(reference[recipe], "compact")


def test_from_engine_to_engine_and_two_processes_to_one_to_two(go_on, reference, root):
    """ZeRO 2, ZeRO 3, DDP, one process; and ZeRO 2 with two, with one, DDP with two."""
    first, second = "published-zero2", "affinity-zero2"
    go_on(ZERO2, [first, second])

    cut(root / first, root / "published-zero3", BEFORE, AFTER)
    torn = root / f"published-zero3/checkpoints/step-{AFTER:09d}/weights.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    log = go_on(ZERO3, ["published-zero3"])
    assert_goes_on_from(root / "published-zero3", root / first, BEFORE, log)
    # Rank 0 alone looks at all of them, and every rank takes the one that it chose.
    assert log.count(f"passing over checkpoint {torn.parent}: weights.safetensors has 1000 ") == 1
    assert log.count("continuing from") == ZERO3.num_processes

    cut(root / second, root / "affinity-alone", BEFORE)
    log = go_on(ZERO2_ALONE, ["affinity-alone"])
    assert_goes_on_from(root / "affinity-alone", root / second, BEFORE, log)

    cut(root / "published-zero3", root / "published-ddp", AFTER)
    cut(root / "affinity-alone", root / "affinity-pair", AFTER)
    log = go_on(PAIR, ["published-ddp", "affinity-pair"])
    assert_goes_on_from(root / "published-ddp", root / "published-zero3", AFTER, log)
    assert_goes_on_from(root / "affinity-pair", root / "affinity-alone", AFTER, log)

    cut(root / "published-ddp", root / "published-end", LATE)
    log = go_on(PLAIN, ["published-end"])
    assert_goes_on_from(root / "published-end", root / "published-ddp", LATE, log)

    assert_continues(root / "published-end", reference["published"])
    assert_continues(root / "affinity-pair", reference["affinity"])


@pytest.fixture(scope="module")
def sources(go_on):
    """Uninterrupted runs of a way to start, made when they are first asked for."""
    made = {}

    def get(how: Launch) -> dict[str, str]:
        if how not in made:
            made[how] = {recipe: f"{recipe}-from-{how}" for recipe in RECIPES}
            go_on(how, list(made[how].values()))
        return made[how]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("target", ALL, ids=str)
def test_any_to_any(target, sources, go_on, reference, root):
    """All ways to start but this one hand a run over to it, before and after the compaction."""
    runs = []
    for source in ALL:
        if source != target:
            for recipe, name in sources(source).items():
                for step in (BEFORE, AFTER):
                    runs.append((recipe, root / name, step, f"{name}-{step}-to-{target}"))
                    cut(root / name, root / runs[-1][3], step)
    log = go_on(target, [name for *_, name in runs])
    for recipe, source, step, name in runs:
        assert_goes_on_from(root / name, source, step, log)
        assert_continues(root / name, reference[recipe])
