"""The results of the GPU tests in a file, which outlives a run of the tests that is stopped."""

from pathlib import Path

import pytest


class Report:
    """Writes each result as soon as it is known: failures with all that the test has printed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", buffering=1)  # each line is written at once

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        when = "" if report.when == "call" else f" in {report.when}"
        self._file.write(f"{report.outcome}{when}: {report.nodeid} ({report.duration:.1f} s)\n")
        if report.skipped:
            self._file.write(f"    {report.longrepr[2]}\n")
        elif report.failed:
            self._file.write(f"{report.longreprtext}\n")
            for title, text in report.sections:
                self._file.write(f"--- {title}\n{text}\n")

    def pytest_unconfigure(self) -> None:
        self._file.close()
