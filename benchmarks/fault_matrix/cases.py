"""What can happen to a run, and what `docs/failures.md` says of it; for `benchmarks/faults.py`."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from data_pipelines.shards import remote
from data_pipelines.shards.manifest import MANIFEST_NAME, Manifest, index_name
from fault_matrix.runs import Ended, Run, Site
from fault_matrix.server import FAULTS as SERVER_FAULTS
from fault_matrix.server import Server
from tests.processes import ROOT, Launcher, mounted

_AFTER = 4  # the step after which most faults happen
_ENDLESS = 100_000  # steps of a run that only the fault ends
_MEMORY = 4 * 2**30  # bytes that a run may ask for where a server sends too much
_TIMEOUT = 12.0  # seconds that ranks wait for each other
_SLACK = 60.0  # until a busy machine has ended all processes
_END_SECONDS = 2.0  # in which SIGTERM ends a run that has not begun to train
_GOING_ON = ("starting", "running", "evaluating")
_CANNOT_WRITE = "No space left on device|Read-only file system|File too large"


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        documented: Whether it ended as `docs/failures.md` says.
        silent: Whether it went on as if nothing had happened.
        hung: Whether it did not end in time.
        lost: Whether work that was saved is lost or unreadable.
        detail: What was seen, where it did not end as it should.
    """

    documented: bool
    silent: bool = False
    hung: bool = False
    lost: bool = False
    detail: str = ""


Case = tuple[str, Callable[[], Result]]


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        key: Its name on the command line.
        name: What happens.
        expected: What is documented.
        cases: The cases with their names; few of them for a fast site.
    """

    key: str
    name: str
    expected: str
    cases: Callable[[Site], Sequence[Case]]


def _refused(ended: Ended, pattern: str, codes: Sequence[int] = (2,)) -> Result:
    """Judge a run that has to end with one message."""
    errors = ended.errors
    message = ended.text.partition("error: ")[2] if errors else ""
    good = ended.code in codes and len(errors) == 1 and bool(re.search(pattern, message))
    return Result(good, ended.code == 0, ended.code is None, detail="" if good else _seen(ended))


def _same(ended: Ended, run: Run, expected: dict[str, bytes]) -> Result:
    """Judge a run that has to end like one that was left alone."""
    differs = [name for name, data in run.result().items() if data != expected[name]]
    good = ended.code == 0 and not differs
    silent = ended.code == 0 and bool(differs)
    detail = "" if good else f"{_seen(ended)}; differs: {', '.join(differs)}"
    return Result(good, silent, ended.code is None, detail=detail)


def _seen(ended: Ended) -> str:
    last = ended.errors or ended.text.strip().splitlines()[-1:]
    return f"code {ended.code} after {ended.seconds:.1f} s: {' | '.join(last)[:300]}"


def _few(site: Site, cases: Sequence[Case], count: int) -> Sequence[Case]:
    return cases[:: max(1, len(cases) // count)] if site.fast else cases


def _full_disks(site: Site) -> Sequence[Case]:
    def while_it_runs(options: str) -> Result:
        run = site.run(steps=_ENDLESS)
        process = run.start()
        run.wait_for_step(process, _AFTER)
        with mounted("-t", "tmpfs", "-o", options, "tmpfs", at=run.checkpoints):
            ended = run.finish(process)
        return _unwritable(ended, run, _AFTER)

    def from_the_start(options: str) -> Result:
        run = site.run("run.keep_last=100", steps=_ENDLESS)  # until the disk is full
        run.out.mkdir()
        with mounted("-t", "tmpfs", "-o", options, "tmpfs", at=run.out):
            ended = run.run()
            return _unwritable(ended, run, 0)

    def large_files(size: int) -> Result:
        run = site.run(steps=_ENDLESS)
        ended = run.run(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
        return _unwritable(ended, run, 0)

    cases: list[Case] = [
        ("checkpoints: full after step 4", lambda: while_it_runs("size=64k")),
        ("checkpoints: read-only after step 4", lambda: while_it_runs("ro")),
        ("run.out: read-only", lambda: from_the_start("ro")),
    ]
    cases += [
        (f"run.out: {size}", lambda size=size: from_the_start(f"size={size}"))
        for size in ("16k", "64k", "400k", "4m", "8m")
    ]
    cases += [
        (f"files of {size} bytes at most", lambda size=size: large_files(size))
        for size in (1_000, 20_000, 300_000)
    ]
    return _few(site, cases, 3)


def _unwritable(ended: Ended, run: Run, saved: int) -> Result:
    result = _refused(ended, _CANNOT_WRITE, (1, 2))
    lost = run.newest() < saved or run.unreadable() > 0
    state = run.state()
    if result.documented and state in _GOING_ON:
        return Result(False, lost=lost, detail=f"status.json says {state!r} after the end")
    return Result(result.documented, result.silent, result.hung, lost, result.detail)


def _two_starts(site: Site) -> Sequence[Case]:
    other = "optim.lr=5e-4"

    def start_two(delay: float, *overrides: str, second: Sequence[str] = ()) -> list[Ended]:
        nonlocal run
        run = site.run(*overrides)
        later = Run(run.config.parent, site.shards, run.steps, *overrides)
        processes = [run.start()]
        time.sleep(delay)
        processes.append(later.start(*second))
        return [run.finish(processes[0]), later.finish(processes[1])]

    run = site.run()

    def equal(delay: float) -> Result:
        results = [_same(ended, run, site.undisturbed) for ended in start_two(delay)]
        return _worst(results)

    def different(delay: float) -> Result:
        ends = start_two(delay, second=(other,))
        return one_wins(ends, "holds another run", [site.undisturbed, of_other()])

    def never(delay: float) -> Result:
        ends = start_two(delay, "run.resume=never")
        refusal = "already holds a run|uses .*; end it first"
        return one_wins(ends, refusal, [site.undisturbed] * 2)

    def one_wins(ends: list[Ended], message: str, expected: list[dict[str, bytes]]) -> Result:
        winner = 0 if ends[0].code == 0 else 1
        won = _same(ends[winner], run, expected[winner])
        return _worst([won, _refused(ends[1 - winner], message)])

    alone: list[dict[str, bytes]] = []

    def of_other() -> dict[str, bytes]:
        if not alone:
            undisturbed = site.run(other)
            undisturbed.run()
            alone.append(undisturbed.result())
        return alone[0]

    cases: list[Case] = []
    for delay in (0.0, 0.1, 0.5, 1.0):
        cases += [
            (f"equal, {delay} s apart", lambda delay=delay: equal(delay)),
            (f"different, {delay} s apart", lambda delay=delay: different(delay)),
            (f"run.resume=never, {delay} s apart", lambda delay=delay: never(delay)),
        ]
    return cases[:3] if site.fast else cases


def _worst(results: Sequence[Result]) -> Result:
    details = [result.detail for result in results if result.detail]
    return Result(
        all(result.documented for result in results),
        *(any(getattr(r, name) for r in results) for name in ("silent", "hung", "lost")),
        detail="; ".join(details),
    )


def _damaged_shards(site: Site) -> Sequence[Case]:
    names = sorted(path.name for path in site.shards.glob("train-*.tar"))

    def damaged(change: Callable[[Path], object], name: str, *overrides: str) -> Ended:
        copy = site.folder() / "shards"
        shutil.copytree(site.shards, copy)
        change(copy / name)
        return site.run(*overrides, shards=copy).run()

    def refuses(change: Callable[[Path], object], name: str) -> Result:
        return _refused(damaged(change, name), re.escape(name))

    def replaces(name: str) -> Result:
        ended = damaged(_flip_picture, name, "data.on_error=replace", "data.max_bad_fraction=0.5")
        good = ended.code == 0 and "damaged: crc32" in ended.text
        return Result(good, ended.code == 0 and not good, detail="" if good else _seen(ended))

    cases: list[Case] = []
    for name in names:
        cases += [
            (f"{name}: a bit", lambda name=name: refuses(_flip_picture, name)),
            (f"{name}: replaced", lambda name=name: replaces(name)),
            (f"{name}: cut", lambda name=name: refuses(_cut, name)),
            (f"{name}: missing", lambda name=name: refuses(Path.unlink, name)),
            (f"{name}: index", lambda name=name: refuses(_flip_index, name)),
            (f"{name}: no index", lambda name=name: refuses(_flip_without_index, name)),
        ]
    return cases[:6] if site.fast else cases


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def _flip_picture(shard: Path) -> None:
    at = shard.read_bytes().index(b"rgb.jpg")
    _flip(shard, at // 512 * 512 + 512 + 300)


def _flip_index(shard: Path) -> None:
    index = shard.with_name(index_name(shard.name))
    _flip(index, index.stat().st_size // 2)


def _flip_without_index(shard: Path) -> None:
    """Change a shard that has only its hash in the manifest."""
    path = shard.with_name(MANIFEST_NAME)
    manifest = json.loads(path.read_text())
    for split in manifest["splits"].values():
        for entry in split["shards"]:
            entry["index"] = None
    manifest.pop("checksum")
    path.write_text(json.dumps(manifest))
    Manifest.load(path.parent).save(path.parent)
    for index in path.parent.glob("*.index"):
        index.unlink()
    _flip_picture(shard)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def _servers(site: Site) -> Sequence[Case]:
    def reads(fault: str, suffix: str, *overrides: str) -> Result:
        site.undisturbed  # noqa: B018 - made before the limit of the processes
        with Server(site.shards, fault, suffix) as server:
            run = site.run("data.retry_seconds=2", *overrides, shards=server.url)
            ended = run.run(before=_limited)
        if ended.code == 0:  # what came was right after all
            return _same(ended, run, site.undisturbed)
        return _refused(ended, re.escape(server.url))

    cases: list[Case] = [
        (f"{suffix}: {fault}", lambda f=fault, s=suffix: reads(f, s))
        for fault in SERVER_FAULTS
        for suffix in (MANIFEST_NAME, ".tar", ".index")
    ]
    cached = f"data.cache_dir={site.folder()}"
    cases += [
        (f"cache: {fault}", lambda f=fault: reads(f, ".tar", cached))
        for fault in ("breaks off", "never ends", "sends other bytes")
    ]
    return _few(site, cases, 6)


def _limited() -> None:
    """Let a forked run wait shortly for a server, and spare the machine."""
    remote.TIMEOUT = 3.0
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))


def _early_signals(site: Site) -> Sequence[Case]:
    def stops(delay: float) -> Result:
        run = site.run()
        process = _launcher(site).train(run.config)
        time.sleep(delay)
        trains = run.newest() > 0  # then it finishes a step and saves
        process.send(signal.SIGTERM)
        sent = time.monotonic()
        ended = _finished(process, _SLACK)
        took = time.monotonic() - sent
        in_time = took <= (_SLACK if trains else _END_SECONDS + 1.0)  # one for the machine
        state = run.state()
        good = ended.code is not None and in_time and state not in _GOING_ON
        good = good and "Traceback" not in ended.text
        detail = "" if good else f"{took:.1f} s, status {state!r}, {_seen(ended)}"
        return Result(good, hung=not in_time, detail=detail)

    delays = [0.25 * number for number in range(1, 25)]
    cases: list[Case] = [(f"after {delay:g} s", lambda d=delay: stops(d)) for delay in delays]
    return _few(site, cases, 4)


def _ranks(site: Site) -> Sequence[Case]:
    script = ROOT / "tests" / "distributed" / "faulty_main.py"

    def fails(fault: str, pattern: str, seconds: float, code: int = 1) -> Result:
        run = site.run(steps=12)
        overrides = (
            "--config", str(run.config), "run.checkpoint_every=2", "optim.max_grad_norm=null",
            f"run.timeout_seconds={_TIMEOUT}", "run.stall_seconds=200",
        )  # fmt: skip
        process = _launcher(site).start(fault, *overrides, engine="ddp_cpu", script=script)
        _wait(process, run)
        began = time.monotonic()
        ended = _finished(process, seconds + _SLACK)
        result = _refused(ended, pattern, (code,))
        lost = run.newest() < _AFTER or run.unreadable() > 0
        took = f" {time.monotonic() - began:.0f} s after step {_AFTER}"
        detail = result.detail and result.detail + took
        return Result(result.documented, result.silent, result.hung, lost, detail)

    def launcher() -> Result:
        run = site.run(steps=_ENDLESS)
        process = _launcher(site).train(run.config, engine="ddp_cpu")
        _wait(process, run)
        workers = [process.worker(rank) for rank in (0, 1)]
        process.send(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=_SLACK)
        ended = _finished(process, _SLACK)
        result = _refused(ended, "has ended", (-9,))
        lost = run.newest() < _AFTER or run.unreadable() > 0
        return Result(result.documented and not alive, False, bool(alive), lost, result.detail)

    cases: list[Case] = [
        ("killed", lambda: fails("kill:1:5", "no heartbeat from rank 1", 10.0)),
        ("stopped", lambda: fails("stop:1:5", "no heartbeat from rank 1", _TIMEOUT)),
        ("an error", lambda: fails("error:1:5", "RuntimeError at step 5", 5.0)),
        ("a NaN", lambda: fails("nan:1:5", "NaN or infinite in step 5", 5.0)),
        ("its data", lambda: fails("data:1:5", "rank 1 .* reading data", _TIMEOUT)),
        ("the launcher", launcher),
    ]
    return cases[:2] if site.fast else cases


def _launcher(site: Site) -> Launcher:
    return Launcher(site.folder())


def _finished(process: object, seconds: float) -> Ended:
    """Return the end of a process of `tests/processes.py`; one that hangs is killed there."""
    began = time.monotonic()
    try:
        end = process.finish(seconds)  # type: ignore[attr-defined]
    except pytest.fail.Exception as error:
        return Ended(None, str(error), time.monotonic() - began)
    return Ended(end.code, end.stderr, time.monotonic() - began)


def _wait(process: object, run: Run) -> None:
    """Wait for the step after which the fault happens, or for an earlier end."""
    path = run.checkpoints / f"step-{_AFTER:09d}"
    try:
        process.wait_for(path)  # type: ignore[attr-defined]
    except pytest.fail.Exception:
        return


def _damaged_checkpoints(site: Site) -> Sequence[Case]:
    finished: list[Run] = []

    def resumes(change: Callable[[Path], object], name: str) -> Result:
        if not finished:
            finished.append(site.run("run.keep_last=3"))
            finished[0].run()
        run = site.run("run.keep_last=3")
        shutil.copytree(finished[0].out, run.out)
        change(run.checkpoints / f"step-{run.steps:09d}" / name)
        ended = run.run()
        passed_over = "passing over checkpoint" in ended.text
        result = _same(ended, run, site.undisturbed)
        good = result.documented and passed_over and run.resumed() == run.steps - 1
        detail = "" if good else f"resumed from {run.resumed()}; {result.detail}"
        return Result(good, result.silent or not passed_over, result.hung, detail=detail)

    cases: list[Case] = []
    names = ("weights", "moments", "grouping")
    for name in (*(f"{n}.safetensors" for n in names), "progress.json", "files.json"):
        for what, change in (
            ("a bit", lambda path: _flip(path, path.stat().st_size // 2)),
            ("cut", lambda path: path.write_bytes(path.read_bytes()[:-1])),
            ("empty", lambda path: path.write_bytes(b"")),
            ("missing", Path.unlink),
        ):
            cases.append((f"{name}: {what}", lambda c=change, n=name: resumes(c, n)))
    return _few(site, cases, 4)


FAULTS = (
    Fault("disk", "full disk, read-only folder", "one message, code 1 or 2", _full_disks),
    Fault("starts", "two starts of a run", "one trains, the other waits or refuses", _two_starts),
    Fault("shards", "damaged shard", "code 2 and its name, or counted", _damaged_shards),
    Fault("servers", "broken server", "code 2 and the URL", _servers),
    Fault("sigterm", "SIGTERM during start-up", "ends within 2 s", _early_signals),
    Fault("ranks", "a rank fails", "all end, one message", _ranks),
    Fault("checkpoints", "damaged checkpoint", "the one before it", _damaged_checkpoints),
)
