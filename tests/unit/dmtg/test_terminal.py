"""Nothing that is logged or warned of holds credentials or controls the terminal."""

import io
import logging
import warnings

import pytest

from dmtg.terminal import ShownFormatter, protect_output, shown

SECRET = "https://me:key@host/a?sig=1"


@pytest.fixture
def protected():
    factory, form = logging.getLogRecordFactory(), warnings.formatwarning
    protect_output()
    yield
    logging.setLogRecordFactory(factory)
    warnings.formatwarning = form


def logged(formatter, *message, error=None):
    stream = io.StringIO()
    logger = logging.getLogger("some.library")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.error(*message, exc_info=error)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    return stream.getvalue()


def test_what_may_be_shown():
    assert shown(f"{SECRET}: \x1b[2J\x07é\n\t") == "https://host/a: \\x1b[2J\\x07é\n\t"


@pytest.mark.usefixtures("protected")
@pytest.mark.parametrize("formatter", [logging.Formatter("%(message)s"), ShownFormatter()])
def test_messages_of_any_library_and_handler(formatter):
    assert logged(formatter, "%s of %r", SECRET, "\x1b") == "https://host/a of '\\x1b'\n"


@pytest.mark.usefixtures("protected")
def test_tracebacks():
    try:
        raise ValueError(f"{SECRET} \x1b[31m")
    except ValueError as error:
        text = logged(ShownFormatter(), "failed", error=error)
    assert "ValueError: https://host/a \\x1b[31m" in text and "key" not in text


@pytest.mark.usefixtures("protected")
def test_tracebacks_and_stacks_that_another_formatter_has_written():
    try:
        raise ValueError(f"{SECRET} \x1b[31m")
    except ValueError as error:
        trace = (ValueError, error, error.__traceback__)
    record = logging.getLogger("some.library").makeRecord(
        "some.library", logging.ERROR, "a.py", 1, "failed", (), trace, sinfo=f"Stack {SECRET} \x07"
    )
    assert "key" in logging.Formatter().format(record)
    text = ShownFormatter().format(record)
    assert "ValueError: https://host/a \\x1b[31m" in text and "Stack https://host/a \\x07" in text
    assert "key" not in text


@pytest.mark.usefixtures("protected")
def test_a_message_is_cleaned_once_by_a_handler(monkeypatch):
    cleaned = []
    monkeypatch.setattr("dmtg.terminal.shown", lambda text: cleaned.append(text) or text)
    assert logged(ShownFormatter("%(name)s: %(message)s"), "a message") == (
        "some.library: a message\n"
    )
    assert cleaned == ["a message"]


@pytest.mark.usefixtures("protected")
def test_warnings():
    text = warnings.formatwarning(f"old {SECRET} \x1b", UserWarning, "file.py", 1)
    assert "UserWarning: old https://host/a \\x1b" in text
    protect_output()
    assert warnings.formatwarning("new", UserWarning, "file.py", 1).count("new") == 1
