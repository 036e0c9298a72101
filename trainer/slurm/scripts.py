"""Fill in the Slurm job templates of accelerate_configs/slurm/ and submit them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.config import Config
from trainer.errors import UserError
from trainer.launch_files import TRAIN_SCRIPT, job_template

_MARGIN = 20  # seconds between the time for the save and the end of the job
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?"  # days-hours[:minutes[:seconds]]
    r"|(?P<H>\d+):(?P<M>\d+):(?P<S>\d+)|(?P<min>\d+)(?::(?P<sec>\d+))?)"
)
_UNITS = {
    "days": 86400,
    "h": 3600,
    "H": 3600,
    "m": 60,
    "M": 60,
    "min": 60,
    "s": 1,
    "S": 1,
    "sec": 1,
}


@dataclass(frozen=True)
class Resources:
    """Resources that a job requests from Slurm.

    Attributes:
        time: Time limit in Slurm's notation.
        grace: Seconds before the time limit at which the run is asked to save.
        cpus_per_task: Cores of all processes of a node; None derives them from the run.
        more: Further options of sbatch, without the leading dashes: `constraint=a100`.

    Raises:
        UserError: The time limit is not in Slurm's notation, or not above `grace`.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    time: str = "24:00:00"
    grace: int = 120
    account: str | None = None
    partition: str | None = None
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seconds = _seconds(self.time)
        if seconds is None:
            raise UserError(
                f"--time: found {self.time!r}; allowed: minutes, minutes:seconds, "
                "hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds"
            )
        if seconds <= self.grace or self.grace <= _MARGIN:
            raise UserError(
                f"--grace: found {self.grace}; must be above {_MARGIN} s and below --time, "
                f"{seconds} s"
            )

    def directives(self, processes: int, workers: int) -> dict[str, str]:
        """Return the options of sbatch by name.

        Without a number of cores each process gets one, and one for each of its reading processes;
        otherwise Slurm would give one to all of them.

        Args:
            processes: Processes on a node.
            workers: `data.workers` of each.
        """
        given = any(text.startswith("cpus-per-gpu") for text in self.more)
        derived = None if given else processes * (1 + workers)
        values = {
            "nodes": self.nodes,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task or derived,
            "time": self.time,
            "signal": f"B:USR1@{self.grace}",
            "account": self.account,
            "partition": self.partition,
        }
        options = {name: str(value) for name, value in values.items() if value is not None}
        for text in self.more:
            name, _, value = text.partition("=")
            options[name] = value
        return options

    def variables(self) -> dict[str, str]:
        """Return the variables of the templates by name."""
        return {"SAVE_SECONDS": str(self.grace - _MARGIN)}


def _seconds(time: str) -> int | None:
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    return sum(_UNITS[unit] * int(value) for unit, value in match.groupdict().items() if value)


def train_script(
    config: Config,
    source: Path,
    overrides: Sequence[str],
    resources: Resources,
    launch: Path,
    setup: str | None = None,
    **variables: str,
) -> str:
    """Return the script of a job that trains.

    Args:
        config: The configuration that `source` and `overrides` give.
        source: Its YAML file.
        launch: Launch file of `accelerate launch`.
        setup: Shell commands to run first; None puts this Python environment on the PATH.
        variables: Further variables of the template, by name.

    Raises:
        UserError: The global batch does not divide among the processes.
    """
    processes = int(variables.get("PROCESSES_PER_NODE") or resources.gpus_per_node or 1)
    parts = resources.nodes * processes * config.optim.gradient_accumulation_steps
    if config.data.global_batch % parts:
        raise UserError(
            f"data.global_batch is {config.data.global_batch}; it must be a multiple of nodes x "
            "processes of a node x optim.gradient_accumulation_steps = "
            f"{resources.nodes} x {processes} x {config.optim.gradient_accumulation_steps}"
        )
    values = {
        "CONFIG": str(source.resolve()),
        "OUT": str(config.run.out),
        "OVERRIDES": shlex.join(overrides),
        "TRAIN_SCRIPT": str(TRAIN_SCRIPT),
        "ACCELERATE_CONFIG": str(launch.resolve()),
        "SETUP": _python_environment() if setup is None else setup,
        **variables,
    }
    directives = resources.directives(processes, config.data.workers)
    return _fill("train.sbatch", directives, resources.variables() | values)


def compare_script(
    arguments: Sequence[str],
    cells: int,
    workers: int,
    resources: Resources,
    setup: str | None = None,
    **variables: str,
) -> str:
    """Return the script of a job array with one run of a comparison in every task.

    Args:
        arguments: Arguments of `dmtg compare`.
        cells: Number of runs.
        workers: `data.workers` of each.
        setup: As in `train_script`.
        variables: As in `train_script`.
    """
    setup = _python_environment() if setup is None else setup
    values = {"COMPARE": shlex.join(arguments), "SETUP": setup, **variables}
    options = resources.directives(resources.gpus_per_node or 1, workers)
    directives = {"array": f"0-{cells - 1}", **options}
    return _fill("compare.sbatch", directives, resources.variables() | values)


def _python_environment() -> str:
    return f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"


def _fill(template: str, directives: Mapping[str, str], variables: Mapping[str, str]) -> str:
    """Replace the values of `#SBATCH --name=` and `NAME=${NAME:-...}` lines; add new directives."""
    text = job_template(template).read_text(encoding="utf-8")
    new = {"chdir": str(Path.cwd()), **directives}

    def directive(line: re.Match[str]) -> str:
        name = line[1]
        return f"#SBATCH --{name}={new.pop(name)}" if name in new else line[0]

    text = re.sub(r"^#SBATCH --([\w-]+)=.*$", directive, text, flags=re.MULTILINE)
    added = "".join(f"#SBATCH --{name}{value and f'={value}'}\n" for name, value in new.items())
    start = text.index("\n#SBATCH") + 1
    text = text[:start] + added + text[start:]
    for name, value in variables.items():
        default = re.search(rf"^{name}=\$\{{{name}:-.*$", text, flags=re.MULTILINE)
        assert default is not None, f"{template} has no variable {name}"
        text = text.replace(default[0], f"{name}={shlex.quote(value)}", 1)
    return text


def submit(script: Path) -> str:
    """Submit a script with sbatch.

    Returns:
        The job's number.

    Raises:
        UserError: This machine has no sbatch, or sbatch refused the job.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise UserError("--submit: no sbatch on this machine; submit from a login node of Slurm")
    done = subprocess.run([sbatch, "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--submit: sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
