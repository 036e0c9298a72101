"""Job scripts, also run to their end by bash with stand-ins for the commands of Slurm."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainer.commands.app import app
from trainer.errors import UserError
from trainer.slurm.scripts import Resources, _seconds, submit

ROOT = Path(__file__).resolve().parents[4]
TEMPLATES = ROOT / "accelerate_configs" / "slurm"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("3:30", 210), ("1:02:03", 3723),
        ("2-3", 183600), ("1-00:30", 88200), ("1-02:03:04", 93784),
    ],
)  # fmt: skip
def test_times(text, seconds):
    assert _seconds(text) == seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "1h"}, r"--time: found '1h'; allowed: minutes, minutes:seconds, hours:min"),
        ({"time": ""}, r"--time: found ''"),
        ({"time": "2:00"}, r"--grace: found 120; must be above 20 s and below --time, 120 s"),
        ({"grace": 20}, r"--grace: found 20; must be above 20 s and below --time, 86400 s"),
    ],
)
def test_resources_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        Resources(**options)


@pytest.fixture
def slurm(rooms_yaml, tmp_path, monkeypatch):
    """Runs `dmtg slurm` in a folder of its own; the result, and the script's lines."""
    monkeypatch.chdir(tmp_path)

    def run(*options, config=rooms_yaml):
        result = CliRunner().invoke(app, ["slurm", str(config), *options])
        script = tmp_path / "job.sbatch"
        return result, script.read_text().splitlines() if script.exists() else []

    return run


def directives(lines):
    return [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]


def variables(lines):
    plain = (line.partition("=") for line in lines if not line.startswith(("#", " ")))
    return {name: value for name, equals, value in plain if equals and name.isupper()}


def test_the_script_of_a_run(slurm, rooms_yaml, tmp_path):
    override = "tasks.names=[normal, has_sphere]"
    options = ("--nodes", "4", "--gpus-per-node", "2", "--cpus-per-task", "6", "--time", "2-0")
    options += ("--account", "vision", "--partition", "gpu", "--sbatch", "exclusive")
    options += ("--sbatch", "job-name=rooms", "--grace", "300", "--max-restarts", "3")
    options += ("--wrap", "apptainer exec --nv it's.sif")
    result, lines = slurm(*options, "run.out=runs/it's mine", override)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["script: job.sbatch", "run: runs/it's mine"]
    assert sorted(directives(lines)) == [
        "account=vision", f"chdir={tmp_path}", "cpus-per-task=6", "exclusive", "gpus-per-node=2",
        "job-name=rooms", "nodes=4", "ntasks-per-node=1", "open-mode=append", "output=%x-%j.out",
        "partition=gpu", "requeue", "signal=B:USR1@300", "time=2-0",
    ]  # fmt: skip
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:])
    found = {name: shlex.split(value) for name, value in variables(lines).items()}
    assert found["CONFIG"] == [str(rooms_yaml)]
    assert found["OUT"] == ["runs/it's mine"]
    assert shlex.split(found["OVERRIDES"][0]) == ["run.out=runs/it's mine", override]
    assert found["ACCELERATE_CONFIG"] == [str(ROOT / "accelerate_configs" / "zero2.yaml")]
    assert found["TRAIN_SCRIPT"] == [str(ROOT / "trainer" / "main.py")]
    assert found["SETUP"] == [f"export PATH={os.path.dirname(sys.executable)}:$PATH"]
    assert found["WRAP"] == ["apptainer exec --nv it's.sif"]
    assert (found["SAVE_SECONDS"], found["MAX_RESTARTS"]) == (["280"], ["3"])


def test_the_script_without_gpus(slurm):
    options = ("--nodes", "2", "--processes-per-node", "4", "--setup", "module load x", "--json")
    lines = slurm(*options)[1]
    assert not any(line.startswith("gpus") for line in directives(lines))
    found = variables(lines)
    assert found["ACCELERATE_CONFIG"].endswith("accelerate_configs/ddp_cpu.yaml")
    assert (found["PROCESSES_PER_NODE"], found["SETUP"]) == ("4", "'module load x'")


def cores(lines):
    return [line for line in directives(lines) if line.startswith("cpus-per-")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--gpus-per-node", "8"), ["cpus-per-task=32"]),
        (("--processes-per-node", "4"), ["cpus-per-task=16"]),
        (("--gpus-per-node", "8", "--cpus-per-task", "64"), ["cpus-per-task=64"]),
        (("--gpus-per-node", "8", "--sbatch", "cpus-per-task=96"), ["cpus-per-task=96"]),
        (("--gpus-per-node", "8", "--sbatch", "cpus-per-gpu=12"), ["cpus-per-gpu=12"]),
        (("--compare", "all", "--gpus-per-node", "1"), ["cpus-per-task=4"]),
    ],
)
def test_every_process_and_every_reading_process_gets_a_core(slurm, options, expected):
    """Slurm would give one core to all processes of a node."""
    result, lines = slurm(*options, "data.workers=3")
    assert result.exit_code == 0, result.output
    assert cores(lines) == expected


def test_the_script_of_a_comparison(slurm, rooms_yaml):
    options = ("--compare", "runs/all", "--recipes", "random,multitask", "--seeds", "2")
    result, lines = slurm(*options, "--gpus-per-node", "1", "run.steps=2")
    assert result.exit_code == 0, result.output
    arguments = f"{rooms_yaml} run.steps=2 --out runs/all --recipes random,multitask"
    arguments += " --seeds 2 --seed-base 0"
    assert result.stdout.splitlines()[1:] == ["runs: 4", f"then: dmtg compare {arguments}"]
    assert "array=0-3" in directives(lines) and "gpus-per-node=1" in directives(lines)
    assert shlex.split(variables(lines)["COMPARE"]) == [arguments]


def test_the_script_of_a_comparison_of_numbers_of_branches(slurm, rooms_yaml):
    options = ("--compare", "runs/all", "--recipes", "random,single_task", "--seeds", "1")
    result, lines = slurm(*options, "--k", "1,2,3", "--single-task-chunk", "4")
    assert result.exit_code == 0, result.output
    arguments = f"{rooms_yaml} --out runs/all --recipes random,single_task --seeds 1 --seed-base 0"
    arguments += " --k 1,2,3 --single-task-chunk 4"
    assert result.stdout.splitlines()[1:] == ["runs: 5", f"then: dmtg compare {arguments}"]
    assert "array=0-4" in directives(lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("run.step=1",), r"run\.step: unknown key"),
        (
            ("--nodes", "3"),
            r"global_batch is 8; .* x optim\.gradient_accumulation_steps = 3 x 1 x 1",
        ),
        (("--gpus-per-node", "3"), r"= 1 x 3 x 1"),
        (("--accelerate-config", "no.yaml"), r"--accelerate-config no\.yaml: no such file"),
        (("--compare", "x", "--recipes", "best"), r"--recipes: found 'best'"),
        (("--compare", "x", "--nodes", "2"), r"--nodes: found 2; a run of --compare has one node"),
    ],
)
def test_jobs_that_cannot_be(options, message, slurm):
    result, lines = slurm(*options)
    assert not lines
    with pytest.raises(UserError, match=message):
        raise result.exception


def test_a_folder_with_another_run(slurm, rooms_config, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(rooms_config("run.seed=99").to_yaml())
    result, lines = slurm("run.out=other")
    assert not lines and "run.seed was 99, is 5" in str(result.exception)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts shell scripts in the place of commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name, body):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)

    return add


def test_submission(slurm, commands, monkeypatch):
    commands("sbatch", 'echo "$@" >&2; grep -q "^#SBATCH --nodes=2" "$2" && echo "77;cluster"')
    assert slurm("--nodes", "2", "--submit")[0].stdout.splitlines()[-1] == "job: 77"
    commands("sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1")
    with pytest.raises(UserError, match=r"refused job\.sbatch: sbatch: error: invalid account"):
        raise slurm("--submit")[0].exception
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="--submit: no sbatch on this machine"):
        submit(ROOT / "job.sbatch")


@pytest.fixture
def job(commands, tmp_path):
    """Starts a template as a job of two nodes, with a command in the place of the launch."""
    calls = tmp_path / "calls"
    step = tmp_path / "step"
    # As the real ones: the signal is for all processes of the node, srun runs what it is given.
    of_node = f"$(cat {step}) $(ps -o ppid= -p $(cat {step}))"
    commands("scancel", f'echo "scancel $*" >> {calls}; kill -USR1 {of_node}')
    commands("srun", f'echo "srun ${{*:1:4}}" >> {calls}; SLURM_NODEID=1 exec "${{@:4}}"')
    answers = 'show\\ hostnames) printf "localhost\\nn2\\n";; show\\ job) echo "JobState=$STATE";;'
    commands("scontrol", f'echo "scontrol $*" >> {calls}\ncase "$1 $2" in {answers} esac')
    settings = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3",
        "STATE": "RUNNING",
        "OUT": str(tmp_path / "run"), "SAVE_SECONDS": "3",
    }  # fmt: skip
    (tmp_path / "run").mkdir()

    def start(template, launch, *arguments, **more):
        command = "accelerate" if template == "train" else "dmtg"
        commands(command, f'echo "{command} $*" >> {calls}; echo $$ > {step}\n{launch}')
        process = subprocess.Popen(
            ["bash", str(TEMPLATES / f"{template}.sbatch"), *arguments],
            env={**os.environ, **settings, **more},
            stdout=subprocess.PIPE,
            text=True,
        )
        return process, calls, step

    return start


def ended(process):
    stdout = process.communicate(timeout=60)[0]
    return process.returncode, stdout.splitlines()


def says(state):
    return f"""echo '{{\n "state": "{state}",\n "step": 5\n}}' > "$OUT/status.json\""""


@pytest.mark.parametrize(
    ("launch", "state", "code", "requeued"),
    [
        (says("finished"), "RUNNING", 0, False),
        (f"{says('failed')}; exit 1", "RUNNING", 1, False),
        (f"{says('failed')}; exit 0", "RUNNING", 1, False),
        (f"{says('preempted')}", "RUNNING", 0, True),
        (f"{says('preempted')}; exit 1", "RUNNING", 0, True),
        (f"{says('preempted')}; exit 1", "COMPLETING", 0, False),
        (f"{says('running')}; exit 9", "RUNNING", 9, False),
        ("exit 5", "RUNNING", 5, False),
    ],
)
def test_when_a_job_is_queued_again(launch, state, code, requeued, job):
    process, calls, _ = job("train", launch, STATE=state)
    assert ended(process)[0] == code
    assert ("scontrol requeue 7" in calls.read_text().splitlines()) == requeued


def test_the_status_of_an_earlier_start_does_not_count(job, tmp_path):
    (tmp_path / "run" / "status.json").write_text('{\n "state": "preempted"\n}')
    process, calls, _ = job("train", "exit 2")
    code, lines = ended(process)
    assert (code, lines[-1]) == (2, "job 7: exit code 2, run unknown")
    assert "requeue" not in calls.read_text()


def test_a_controller_that_does_not_answer_is_asked_again(job, commands):
    process, calls, _ = job("train", says("preempted"))
    names = "if [[ $1 == show && $2 == hostnames ]]; then echo localhost; else exit 1; fi"
    commands("sleep", ":")
    commands("scontrol", f'echo "scontrol $*" >> {calls}\n{names}')
    code, lines = ended(process)
    assert code == 1 and calls.read_text().splitlines().count("scontrol requeue 7") == 4
    assert lines[-1] == "job 7: could not be queued again; submit it once more to go on"


def test_a_job_that_lost_a_node_waits_for_slurm_to_notice(job):
    lost = says("failed").replace('"step"', '"error": "lost contact with other ranks", "step"')
    process, calls, _ = job("train", f"{lost}; exit 1", NODE_DOWN_SECONDS="0")
    code, lines = ended(process)
    assert (code, lines[-1]) == (1, "job 7: waiting 0 s for Slurm to find a node down")
    assert "requeue" not in calls.read_text()


def test_a_job_is_not_queued_for_ever(job):
    process, calls, _ = job("train", says("preempted"), SLURM_RESTART_COUNT="4", MAX_REQUEUES="4")
    code, lines = ended(process)
    assert (code, lines[-1]) == (1, "job 7: was queued 4 times, not again")
    assert "requeue" not in calls.read_text()


def test_what_is_launched(job, commands, tmp_path):
    overrides = shlex.join(["run.steps=2", "tasks.names=[a, b]"])
    more = {"OVERRIDES": overrides, "CONFIG": "x.yaml", "PROCESSES_PER_NODE": "4"}
    more["SETUP"] = 'export FROM_SETUP=$UNSET_BY_THE_SITE"i m"'
    commands("apptainer", '[[ "$*" == "exec --env=i m i.sif accelerate launch "* ]] && "${@:4}"')
    wrap = 'apptainer exec "--env=$FROM_SETUP" i.sif'
    process, calls, _ = job("train", "exit 3", **more, WRAP=wrap)
    assert ended(process)[0] == 3
    srun, launch = calls.read_text().splitlines()[1:3]
    assert srun == "srun --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 bash"
    engine = f"--config_file {ROOT}/accelerate_configs/zero2.yaml"
    assert launch == (
        f"accelerate launch --machine_rank 1 {engine} --num_machines 2 --num_processes 8 "
        "--main_process_ip 127.0.0.1 --main_process_port 20007 --max_restarts 0 "
        f"--deepspeed_multinode_launcher standard {ROOT}/trainer/main.py --config x.yaml "
        f"run.steps=2 tasks.names=[a, b] run.out={tmp_path}/run run.resume=auto"
    )


def launched(calls):
    """The arguments of the training script in the launch."""
    line = next(line for line in calls.read_text().splitlines() if line.startswith("accelerate"))
    return line.partition("trainer/main.py ")[2].split()


@pytest.mark.parametrize("form", ["--config mine.yaml", "--config=mine.yaml", "mine.yaml"])
def test_arguments_after_the_script_are_used(form, job, tmp_path):
    arguments = (*form.split(), "run.steps=7", f"run.out={tmp_path}/other")
    more = {"CONFIG": "x.yaml", "OVERRIDES": "run.steps=2 optim.lr=1"}
    process, calls, _ = job("train", says("finished"), *arguments, **more)
    (tmp_path / "other").mkdir()
    ended(process)
    assert launched(calls) == [
        "--config", "mine.yaml", "run.steps=2", "optim.lr=1", "run.steps=7",
        f"run.out={tmp_path}/other", "run.resume=auto",
    ]  # fmt: skip


@pytest.mark.parametrize("template", ["train", "compare"])
@pytest.mark.parametrize("argument", ["--configs", "run.steps", "--nodes=4", ""])
def test_other_arguments_are_refused(argument, template, job):
    process, calls, _ = job(template, says("finished"), argument, "run.steps=2")
    code, lines = ended(process)
    assert code == 2 and len(lines) == 1 and f"argument '{argument}' is not known" in lines[0]
    assert not calls.exists()


def test_a_config_without_its_file_is_refused(job):
    process, calls, _ = job("train", says("finished"), "--config")
    assert ended(process) == (2, ["job 7: --config needs a file"])
    assert not calls.exists()


def test_a_job_with_less_than_a_core_for_a_process_is_refused(job):
    more = {"PROCESSES_PER_NODE": "4", "SLURM_CPUS_ON_NODE": "3"}
    process, calls, _ = job("train", says("finished"), **more)
    code, lines = ended(process)
    (message,) = lines
    assert code == 2 and message.startswith("job 7: 3 cores for 4 processes of a node; submit it")
    assert "--cpus-per-task=N, N at least processes x (1 + data.workers)" in message
    assert not calls.exists()
    process = job("train", says("finished"), **{**more, "SLURM_CPUS_ON_NODE": "4"})[0]
    assert ended(process)[0] == 0


@pytest.mark.parametrize("template", ["train", "compare"])
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "expandable_segments:True,"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:9"}, "max_split_size_mb:9,"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:9"}, ",max_split_size_mb:9"),
    ],
)
def test_freed_memory_of_a_gpu_can_be_used_in_other_sizes(job, template, chosen, expected):
    show = 'echo "$PYTORCH_ALLOC_CONF,$PYTORCH_CUDA_ALLOC_CONF"'
    process = job(template, f"{show}; {says('finished')}", COMPARE="x", **chosen)[0]
    code, lines = ended(process)
    assert code == 0 and expected in lines


def wait_for(path):
    end = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


READY = 'echo $$ > "$OUT/ready"'  # once the trap of a command is set
SAVES = f"{READY}; for i in {{1..600}}; do sleep 0.05; done"


def test_the_signal_reaches_the_run_which_is_queued_again(job, tmp_path):
    process, calls, _ = job(
        "train", f"save() {{ {says('preempted')}; exit 1; }}; trap save USR1; {SAVES}"
    )
    wait_for(tmp_path / "run" / "ready")
    process.send_signal(signal.SIGUSR1)
    code, lines = ended(process)
    assert code == 0
    assert lines[-2:] == [
        "job 7: exit code 0, run preempted, asked to stop by SIGUSR1",
        "job 7: queued again",
    ]
    assert [line for line in calls.read_text().splitlines() if line.startswith("sc")] == [
        "scontrol show hostnames n[1-2]",
        "scancel --signal=USR1 7",
        "scontrol show job 7",
        "scontrol requeue 7",
    ]


def test_a_run_that_does_not_save_in_time_is_queued_all_the_same(job, tmp_path):
    process, calls, _ = job(
        "train", f"trap '' USR1; {says('running')}; {READY}; sleep 3", SAVE_SECONDS="1"
    )
    wait_for(tmp_path / "run" / "ready")
    process.send_signal(signal.SIGUSR1)
    code, lines = ended(process)
    assert code == 0 and "job 7: not saved within 1 s of SIGUSR1" in lines
    assert "scontrol requeue 7" in calls.read_text()


@pytest.mark.parametrize(
    ("launch", "code", "requeued"),
    [("exit 0", 0, False), ("exit 1", 1, False), ("exit 75", 0, True)],
)
def test_when_a_run_of_a_comparison_is_queued_again(launch, code, requeued, job):
    process, calls, _ = job("compare", launch, COMPARE="x.yaml --out 'a b'")
    assert ended(process)[0] == code
    lines = calls.read_text().splitlines()
    assert lines[0] == "dmtg compare x.yaml --out a b --only 3"
    assert ("scontrol requeue 7_3" in lines) == requeued


def test_the_signal_reaches_a_run_of_a_comparison(job, tmp_path):
    process, calls, _ = job("compare", f"trap 'exit 75' USR1; {SAVES}", COMPARE="x")
    wait_for(tmp_path / "run" / "ready")
    process.send_signal(signal.SIGUSR1)
    code, lines = ended(process)
    assert code == 0
    assert lines[-2:] == [
        "run 3: exit code 75, asked to stop by SIGUSR1",
        "run 3: queued again",
    ]
    assert calls.read_text().endswith("scontrol show job 7_3\nscontrol requeue 7_3\n")
