from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime, timedelta

import pytest

from automonai.errors import StorageError, UserError
from automonai.observability import logs

SECRET = 'a/key+with"marks\\and==more'
TOKEN = "a-token-of-the-session"
SIGNATURE = "0f" * 32

logger = logging.getLogger("automonai.somewhere")


@pytest.fixture
def json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pythonjsonlogger", reason="needs the extra automonai[cluster]")
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Return the one line that was written."""
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert not output.out
    fields: dict[str, object] = json.loads(line)
    return fields


def test_without_a_word_lines_are_text_and_a_wrong_word_is_refused() -> None:
    assert logs.chosen_format({}) is logs.LogFormat.TEXT
    assert logs.chosen_format({logs.FORMAT_VARIABLE: ""}) is logs.LogFormat.TEXT
    assert logs.chosen_format({logs.FORMAT_VARIABLE: "json"}) is logs.LogFormat.JSON
    with pytest.raises(UserError, match="'yaml'; expected json or text"):
        logs.chosen_format({logs.FORMAT_VARIABLE: "yaml"})


@pytest.mark.usefixtures("json_lines")
def test_a_json_line_has_time_level_logger_message_ids_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(level=logging.INFO)
    with logs.log_context(study="brain"), logs.log_context(run="trial-0001"):
        logger.info("queued\n%s", "again", extra={"event": "run_queued"})
    fields = shown(capsys)
    moment = datetime.fromisoformat(str(fields.pop("time")))
    assert moment.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - moment) < timedelta(seconds=60)
    assert fields == {
        "level": "INFO",
        "logger": "automonai.somewhere",
        "message": "queued\nagain",
        "study": "brain",
        "run": "trial-0001",
        "event": "run_queued",
    }


@pytest.mark.usefixtures("json_lines")
def test_an_exceptions_lines_are_one_field(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    try:
        raise StorageError("no answer")
    except StorageError:
        logger.exception("it failed")
    exception = str(shown(capsys)["exception"])
    assert exception.startswith("Traceback")
    assert exception.endswith("StorageError: no answer")


@pytest.mark.usefixtures("json_lines")
def test_an_id_that_a_line_brings_itself_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    with logs.log_context(study="brain", run="of-the-context"):
        logger.warning("lost", extra={"run": "of-the-line"})
    fields = shown(capsys)
    assert (fields["study"], fields["run"]) == ("brain", "of-the-line")


@pytest.mark.usefixtures("json_lines")
def test_ids_end_with_their_context(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    with pytest.raises(StorageError), logs.log_context(study="brain", run="trial-0001"):
        raise StorageError
    logger.warning("afterwards")
    assert not {"study", "run"} & shown(capsys).keys()


@pytest.mark.usefixtures("json_lines")
def test_a_thread_has_the_ids_of_the_main_thread(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    with logs.log_context(study="brain"):
        thread = threading.Thread(target=lambda: logger.warning("from a thread"))
        thread.start()
        thread.join()
    assert shown(capsys)["study"] == "brain"


@pytest.mark.usefixtures("json_lines")
def test_a_context_of_another_thread_is_its_own_affair(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()

    def in_a_context() -> None:
        with logs.log_context(study="of-the-thread"):
            logger.warning("from a thread")

    with logs.log_context(study="of-the-main-thread"):
        thread = threading.Thread(target=in_a_context)
        thread.start()
        thread.join()
        assert shown(capsys)["study"] == "of-the-thread"
        logger.warning("from here")
        assert shown(capsys)["study"] == "of-the-main-thread"


def test_a_text_line_is_readable_and_names_its_ids(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    logs.set_up()
    with logs.log_context(study="brain", run="trial-0001"):
        logger.warning("no answer from %s", "there")
    line = capsys.readouterr().err
    assert line.endswith(" WARNING automonai.somewhere brain trial-0001: no answer from there\n")
    assert datetime.fromisoformat(line.partition(" WARNING")[0].replace(",", "."))


def test_set_up_twice_writes_a_line_once_and_the_last_level_counts(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    logger.info("not yet")
    logs.set_up(level=logging.INFO)
    logger.info("now")
    logging.getLogger("some.library").info("never")
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()] == ["now"]


def test_a_copy_has_what_is_too_fine_for_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(level=logging.WARNING)
    copy = io.StringIO()
    with logs.copied_to(copy):
        logger.info("epoch=3")
    logger.info("afterwards")
    assert copy.getvalue().endswith("automonai.somewhere: epoch=3\n")
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("json_lines")
def test_warnings_of_libraries_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.set_up()
        warnings.warn("an old way to call it", FutureWarning, stacklevel=1)
    fields = shown(capsys)
    assert fields["logger"] == "py.warnings"
    assert "an old way to call it" in str(fields["message"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise ValueError('what nobody expects')", 1),
        ("import threading; t = threading.Thread(target=fail); t.start()", 0),
    ],
)
@pytest.mark.usefixtures("json_lines")
def test_an_error_that_nobody_catches_is_one_line(body: str, code: int) -> None:
    program = f"""
from automonai.observability import logs
def fail():
    raise ValueError('what nobody expects')
logs.set_up()
{body}
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    fields = json.loads(ended.stderr)
    assert (ended.returncode, fields["level"]) == (code, "CRITICAL")
    assert fields["exception"].endswith("ValueError: what nobody expects")


def test_an_error_that_nobody_catches_shows_no_secret_as_text_either() -> None:
    program = (
        f"from automonai.observability import logs; logs.set_up(); raise ValueError('?X-Amz-Signature={SIGNATURE}')"
    )
    environment = {name: value for name, value in os.environ.items() if name != logs.FORMAT_VARIABLE}
    run = [sys.executable, "-c", program]
    ended = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: ?X-Amz-Signature=***\n")
    assert SIGNATURE not in ended.stderr


def test_a_process_may_be_named_and_a_context_may_say_more(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    logs.name_process(study="brain", run=None)
    with logs.log_context(run="trial-0001"):
        logger.warning("within")
    logger.warning("at the end")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("somewhere")[2] for line in lines] == [" brain trial-0001: within", " brain: at the end"]


def test_an_error_stream_that_was_replaced_and_closed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    former, present = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    monkeypatch.setattr(sys, "stderr", former)
    logs.set_up()
    logging.getLogger("automonai.test").warning("first")
    former.close()
    monkeypatch.setattr(sys, "stderr", present)
    logging.getLogger("automonai.test").warning("second")
    assert "second" in present.getvalue()


def test_without_the_library_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    monkeypatch.setitem(sys.modules, "pythonjsonlogger.json", None)
    with pytest.raises(UserError, match=r"pip install '\.\[cluster\]'"):
        logs.set_up()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Error: no JSON", "Error: no JSON"),
        ('{"some": "object"}', '{"some": "object"}'),
        ("[1, 2]", "[1, 2]"),
        (
            '{"level": "INFO", "logger": "a.b", "message": "m", "study": "s", "run": "r", "event": "e", "time": "t"}',
            "t INFO a.b s r: m",
        ),
        (
            '{"level": "ERROR", "logger": "a", "message": "m", "exception": "Traceback\\nE: x", "time": "t"}',
            "t ERROR a: m\nTraceback\nE: x",
        ),
    ],
)
def test_a_json_line_can_be_shown_as_text(line: str, text: str) -> None:
    assert logs.readable(line) == text


# Secrets

LEAKS = [
    f"cannot get https://s3.example/b/k?X-Amz-Credential=AKIA%2F2026&X-Amz-Signature={SIGNATURE}&versionId=3: denied",
    f"Authorization: AWS4-HMAC-SHA256 Credential=AKIA/2026/eu/s3, SignedHeaders=host, Signature={SIGNATURE}",
    f"no answer to https://sts.example/?Action=Assume&WebIdentityToken={SIGNATURE}",
    f"{{'X-Amz-Security-Token': '{SIGNATURE}'}}",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"the session's token is {TOKEN}",
    f"AWS_ENDPOINT_URL_S3 is http://admin:{SIGNATURE}@minio:9000",
]


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("how", ["json", "text"])
@pytest.mark.parametrize("where", ["message", "exception", "field"])
def test_no_line_has_a_key_a_signature_or_a_token(
    leak: str, how: str, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, how)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    if how == "json":
        pytest.importorskip("pythonjsonlogger", reason="needs the extra automonai[cluster]")
    logs.set_up()
    copy = io.StringIO()
    with logs.copied_to(copy):
        _say(leak, where)
    written = capsys.readouterr().err + copy.getvalue()
    assert "said" in written
    escaped = json.dumps(SECRET)[1:-1]
    assert not [secret for secret in (SECRET, escaped, TOKEN, SIGNATURE, "AKIA") if secret in written]


def _say(leak: str, where: str) -> None:
    if where == "message":
        logger.error("said: %s", leak)
    elif where == "field":
        logger.error("said", extra={"detail": leak})
    else:
        try:
            raise StorageError(leak)
        except StorageError:
            logger.exception("said")


def test_a_short_value_that_innocent_words_may_contain_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    assert logs.redacted("no such key") == "no such key"


def test_setting_logs_up_loads_no_library() -> None:
    code = "import sys; from automonai.observability import logs; logs.set_up(); print(*sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != logs.FORMAT_VARIABLE}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"pythonjsonlogger", "pydantic", "prometheus_client"} & set(ended.stdout.split())
