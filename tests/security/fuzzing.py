"""Fuzzing: a child process opens mutated files as a command does, and each outcome is judged.

A mutated file must load to a valid object, or be refused with the error that is documented for it
and a message that names the file. `FORMATS` of `tests/security/fuzz_formats.py` lists the formats.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

ROOT = Path(__file__).resolve().parents[2]
MAX_GROWTH = 200 * 2**20  # bytes of resident memory
MAX_SECONDS = 1.0  # of the processor: a busy machine does not change it
_HANGS = 15.0  # seconds until a case is killed
_ADDRESS_SPACE = 4 * 2**30  # bytes that a case may ask for, to spare the machine
_PACKAGES = ("dmtg", "model", "data_pipelines", "trainer")
_FORK = multiprocessing.get_context("fork")

_VALUES = re.compile(r"'[^']*'|\b[\d.]+ (?:MiB|s)\b|\n.*")  # differ between cases of one defect

LOADED, REFUSED = "loaded", "refused"
SILENT, OTHER, BOUND, OUTSIDE = "silent", "other error", "over the bound", "outside"
VERDICTS = (LOADED, REFUSED, SILENT, OTHER, BOUND, OUTSIDE)


@dataclass(frozen=True)
class Case:
    """The files of a folder, one of them mutated.

    Attributes:
        files: Content by path in the folder.
        note: What was changed.
        covered: Whether a hash that was not rewritten covers what was changed, so that nothing but
            the valid content may be loaded.
    """

    files: Mapping[str, bytes]
    note: str
    covered: bool = False


@dataclass(frozen=True)
class Format:
    """A format that strangers can hand to a user.

    Attributes:
        name: Of the format.
        error: The documented error.
        valid: A case without a mutation.
        cases: Mutated cases.
        load: Opens the files of a folder as a command does, and returns what they hold.
        wrong: What is wrong with what a case gave, compared with what the valid one gave.
        places: What a message may name in place of the file.
    """

    name: str
    error: type[Exception]
    valid: Case
    cases: SearchStrategy[Case]
    load: Callable[[Path], Any]
    wrong: Callable[[Case, Any, Any], str | None]
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a case: one of `VERDICTS`, why, and what it took."""

    verdict: str
    detail: str = ""
    seconds: float = 0.0
    growth: int = 0


@dataclass
class Failure:
    """The smallest case of one defect, and how many cases met it."""

    case: Case
    outcome: Outcome
    count: int = 1

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count a case, and keep it if it is smaller."""
        self.count += 1
        if len(case.note) < len(self.case.note):
            self.case, self.outcome = case, outcome


@dataclass
class Report:
    """The outcomes of many cases of a format."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Failure] = field(default_factory=dict)
    most_seconds: float = 0.0
    most_growth: int = 0

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count a case; keep it if it shows a defect."""
        self.counts[outcome.verdict] += 1
        self.most_seconds = max(self.most_seconds, outcome.seconds)
        self.most_growth = max(self.most_growth, outcome.growth)
        if outcome.verdict in (LOADED, REFUSED):
            return
        defect = f"{outcome.verdict}: {_VALUES.sub('', outcome.detail.partition(': ')[0])}"
        if defect in self.failures:
            self.failures[defect].add(case, outcome)
        else:
            self.failures[defect] = Failure(case, outcome)

    @property
    def num_cases(self) -> int:
        """Number of cases tried."""
        return self.counts.total()

    def describe(self) -> str:
        """Return a paragraph for each defect."""
        return "\n\n".join(
            f"{self.name}: {failure.count} x {failure.outcome.verdict}\n"
            f"  {failure.outcome.detail}\n  after: {failure.case.note[:300]}"
            for failure in self.failures.values()
        )


def fuzz(
    fmt: Format, num_cases: int, *, number: int = 0, tick: Callable[[], object] = lambda: None
) -> Report:
    """Try mutated files of a format, the same ones for the same number.

    Args:
        fmt: The format.
        num_cases: How many.
        number: Seed of the cases.
        tick: Called after each case.
    """
    report = Report(fmt.name)
    with tempfile.TemporaryDirectory() as sandbox, _Child(fmt, Path(sandbox)) as child:
        first = child.run(fmt.valid)
        if first.verdict != LOADED:
            raise ValueError(f"{fmt.name}: the valid files: {first}")

        @seed(number)
        @settings(
            max_examples=num_cases,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(fmt.cases)
        def one(case: Case) -> None:
            report.add(case, child.run(case))
            tick()

        one()
    return report


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of a case into an empty folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by path."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class _Child:
    """A process that opens cases; one that dies or hangs is replaced."""

    def __init__(self, fmt: Format, sandbox: Path) -> None:
        self._format, self._sandbox = fmt, sandbox
        self._start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, case: Case) -> Outcome:
        self._pipe.send(case)
        try:
            if self._pipe.poll(_HANGS):
                outcome: Outcome = self._pipe.recv()
            else:
                outcome = Outcome(BOUND, f"no end after {_HANGS:g} s")
        except EOFError:
            self._process.join()
            outcome = Outcome(BOUND, f"the process died: {self._process.exitcode}")
        if outcome.verdict == BOUND:  # its memory may be fragmented, so the next one starts anew
            self._end()
            self._start()
        return outcome

    def _start(self) -> None:
        self._pipe, theirs = _FORK.Pipe()
        arguments = (self._format, self._sandbox, theirs)
        self._process = _FORK.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(fmt: Format, sandbox: Path, pipe: Connection) -> None:
    if "torch" in sys.modules:  # its threads do not survive a fork
        sys.modules["torch"].set_num_threads(1)
    sys.dont_write_bytecode = True
    logging.getLogger().handlers.clear()  # may write the files of the process that was forked
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(sandbox)
    os.environ["DMTG_CACHE_DIR"] = str(sandbox / "case" / "cache")
    watch = _Watch(sandbox / "case")
    sys.addaudithook(watch)
    write_files(fmt.valid.files, _emptied(sandbox / "case"))
    expected = fmt.load(sandbox / "case")  # also imports all that is needed
    limit = _memory("VmSize") + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            case: Case = pipe.recv()
        except EOFError:
            os._exit(0)
        pipe.send(_judge(fmt, case, expected, sandbox, watch))


def _judge(fmt: Format, case: Case, expected: object, sandbox: Path, watch: _Watch) -> Outcome:
    folder = _emptied(sandbox / "case")
    write_files(case.files, folder)
    before = sorted(path for path in sandbox.iterdir())
    result, error = None, None
    with _measured() as taken, watch.watching():
        try:
            result = fmt.load(folder)
        except BaseException as caught:
            error = caught
    seconds, growth = taken
    if sorted(sandbox.iterdir()) != before:
        watch.seen.append("a file beside the folder")
    if watch.seen:
        verdict, detail = OUTSIDE, "; ".join(sorted(set(watch.seen))[:3])
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        verdict, detail = BOUND, f"over {_ADDRESS_SPACE} bytes of memory, {_place(error)}"
    elif growth > MAX_GROWTH or seconds > MAX_SECONDS:
        amount = f"{growth / 2**20:.0f} MiB, {seconds:.1f} s, {_place(error)}"
        verdict, detail = BOUND, amount
    elif error is None:
        try:
            wrong = fmt.wrong(case, result, expected)
        except Exception as caught:
            wrong = f"not usable: {_place(caught)}"
        verdict, detail = (LOADED, "") if wrong is None else (SILENT, wrong)
    elif not isinstance(error, fmt.error):
        verdict, detail = OTHER, f"{_place(error)}: {error}"[:500]
    elif not any(name in str(error) for name in (str(folder), *case.files, *fmt.places)):
        verdict, detail = OTHER, f"names no file, {_place(error)}: {error}"[:500]
    else:
        verdict, detail = REFUSED, str(error)[:500]
    return Outcome(verdict, detail, seconds, growth)


def _place(error: BaseException | None) -> str:
    """Return the type of an error and the last line of the project that it passed."""
    if error is None:
        return "loaded"
    at = "?"
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = frame.f_code.co_filename
        if any(path.startswith(f"{ROOT}/{package}/") for package in _PACKAGES):
            at = f"{Path(path).relative_to(ROOT)}:{line}"
    return f"{type(error).__name__} at {at}"


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@contextmanager
def _measured() -> Iterator[list[Any]]:
    """Give a list that holds, after the block, its processor time and its growth in bytes."""
    taken: list[Any] = []
    with suppress(OSError):  # without it the peak is that of all cases so far
        Path("/proc/self/clear_refs").write_text("5")
    size, began = _memory("VmRSS"), time.process_time()
    yield taken
    taken[:] = [time.process_time() - began, max(0, _memory("VmHWM") - size)]


def _memory(name: str) -> int:
    """Return an entry of the process's status in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{name}:")[2].split(maxsplit=1)[0])


class _Watch:
    """An audit hook that sees what no file may cause: writes elsewhere, processes, unpickling.

    Attributes:
        seen: What was done while it watched.
    """

    _WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    _PATHS = frozenset(
        f"os.{name}"
        for name in ("mkdir", "rename", "remove", "rmdir", "link", "symlink", "truncate", "chmod")
    )
    _NEVER = (
        "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn",
        "socket.connect", "socket.getaddrinfo", "urllib.Request", "pickle.find_class",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._watches = False
        self.seen: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs, beginning with an empty list."""
        self.seen.clear()
        self._watches = True
        try:
            yield
        finally:
            self._watches = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watches:
            return
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & self._WRITING:
                self._check("writes", arguments[0])
        elif event in self._PATHS:
            for path in arguments:
                if isinstance(path, str | bytes | os.PathLike):
                    self._check(event, path)
        elif event in self._NEVER:
            self.seen.append(f"{event} {arguments[0]!r:.80}")

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        real = os.path.realpath(os.fsdecode(path))
        inside = (f"{self._folder}/", "/dev/", "/proc/self/")
        if not f"{real}/".startswith(inside):
            self.seen.append(f"{event} {real:.120}")
