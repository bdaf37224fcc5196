"""What the package says while it works: readable lines on a terminal, one JSON object a line on a cluster."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from types import TracebackType
from typing import Any, TextIO

from automonai.errors import UserError

FORMAT_VARIABLE = "AUTOMONAI_LOG_FORMAT"
IDS = ("study", "run")
"""What a line says about where it comes from, as far as that is known."""
HIDDEN = "***"

_PACKAGE = "automonai"
# Each with its least length: a shorter value is none that a store gives out, or, of an id, a plain user's name, and to
# hide it would hide parts of innocent words.
_SECRET_VARIABLES = {"AWS_SECRET_ACCESS_KEY": 8, "AWS_SESSION_TOKEN": 8, "AWS_ACCESS_KEY_ID": 16}
_SECRETS_OF_URLS = re.compile(
    r"""(\b(?:Signature|Credential|Security-Token|WebIdentityToken)['"]?\s*[=:]\s*['"]?)[^&\s'",)]+""", re.IGNORECASE
)
_USER_OF_URLS = re.compile(r"(://)[^/\s@]+@")

_ids: ContextVar[Mapping[str, str]] = ContextVar("ids")
_ids_of_process: dict[str, str] = {}
"""Where no context says more, and for threads, which begin with an empty context: the main thread's ids."""


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


def chosen_format(environment: Mapping[str, str] = os.environ) -> LogFormat:
    """Return what AUTOMONAI_LOG_FORMAT says; text where it says nothing.

    Raises:
        UserError: If it names no format.
    """
    text = environment.get(FORMAT_VARIABLE) or LogFormat.TEXT
    try:
        return LogFormat(text)
    except ValueError as error:
        raise UserError(f"{FORMAT_VARIABLE} is '{text}'; expected json or text") from error


def set_up(*, level: int = logging.WARNING) -> None:
    """Send what is logged from now on to standard error; called again, it replaces what it has set up.

    An error that nobody catches becomes a line too, so that it shows no secret either; in JSON, warnings and what ends
    a thread do as well.

    Args:
        level: Least one of the package's own lines; of libraries, only warnings and errors are shown.

    Raises:
        UserError: If AUTOMONAI_LOG_FORMAT names no format, or the package for JSON lines is not installed.
    """
    handler = _StandardError()
    handler.setLevel(level)
    handler.addFilter(_add_ids)
    if chosen_format() is LogFormat.JSON:
        handler.setFormatter(_json_formatter())
        logging.captureWarnings(True)
        threading.excepthook = lambda caught: _log_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    else:
        handler.setFormatter(_TextFormatter())
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if isinstance(known, _StandardError)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    logging.getLogger(_PACKAGE).setLevel(level)
    sys.excepthook = _log_uncaught


def name_process(*, study: str | None = None, run: str | None = None) -> None:
    """Give every line of this process these ids, to its very end; contexts may say more. None: not known."""
    _ids_of_process.update(_known(study, run))


@contextmanager
def log_context(*, study: str | None = None, run: str | None = None) -> Iterator[None]:
    """Give every line that is logged meanwhile these ids; None leaves what an outer context says.

    Threads that begin meanwhile have the main thread's ids.
    """
    given = _known(study, run)
    token = _ids.set({**_ids.get(_ids_of_process), **given})
    before = dict(_ids_of_process)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        _ids_of_process.update(given)
    try:
        yield
    finally:
        _ids.reset(token)
        if is_main:
            _ids_of_process.clear()
            _ids_of_process.update(before)


@contextmanager
def copied_to(stream: TextIO) -> Iterator[None]:
    """Write the package's lines, from INFO up, to a stream as well; readable whatever the format is elsewhere."""
    handler, package = logging.StreamHandler(stream), logging.getLogger(_PACKAGE)
    handler.setFormatter(_TextFormatter())
    handler.addFilter(_add_ids)
    level = package.level
    package.setLevel(min(logging.INFO, package.getEffectiveLevel()))
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


def redacted(text: str) -> str:
    """Return a text without the store's keys of the environment, and without signatures, tokens and users of URLs."""
    for name, least_length in _SECRET_VARIABLES.items():
        secret = os.environ.get(name, "")
        if len(secret) >= least_length:
            text = text.replace(secret, HIDDEN)
    return _USER_OF_URLS.sub(rf"\1{HIDDEN}@", _SECRETS_OF_URLS.sub(rf"\1{HIDDEN}", text))


def readable(line: str) -> str:
    """Return a JSON line as the text format would show it; any other line as it is."""
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    if not isinstance(fields, dict) or not {"time", "level", "logger", "message"} <= fields.keys():
        return line
    ids = "".join(f" {fields[name]}" for name in IDS if name in fields)
    text = f"{fields['time']} {fields['level']} {fields['logger']}{ids}: {fields['message']}"
    return f"{text}\n{fields['exception']}" if "exception" in fields else text


def _known(study: str | None, run: str | None) -> dict[str, str]:
    return {name: value for name, value in zip(IDS, (study, run), strict=True) if value}


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a live table puts lines above itself by replacing it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # not by setStream, which flushes the former one, closed as it may be
        super().emit(record)


class _TextFormatter(logging.Formatter):
    """Time, level, logger, ids, message; an exception's lines below."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        ids = "".join(f" {getattr(record, name)}" for name in IDS if hasattr(record, name))
        return f"{self.formatTime(record)} {record.levelname} {record.name}{ids}: {record.message}"


def _json_formatter() -> logging.Formatter:
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ModuleNotFoundError as error:
        raise UserError(
            f"{FORMAT_VARIABLE} is json, which needs one more package: pip install '.[cluster]' in the clone"
        ) from error
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        timestamp="time",
        json_serializer=_redacted_json,
    )


def _redacted_json(fields: Mapping[str, object], **options: Any) -> str:
    shown = {name: redacted(value) if isinstance(value, str) else value for name, value in fields.items()}
    return json.dumps(shown, **options)


def _add_ids(record: logging.LogRecord) -> bool:
    """Write the context's ids into a record, unless it was logged with its own."""
    for name, value in _ids.get(_ids_of_process).items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        logging.getLogger(_PACKAGE).critical("nobody caught: %s", error, exc_info=(kind, error, traceback))
