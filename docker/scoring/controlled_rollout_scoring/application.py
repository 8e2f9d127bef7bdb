"""The user's `init()` and `run()` behind the stock inference server's own WSGI application."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from controlled_rollout_scoring import collectors, project
from controlled_rollout_scoring.log import log, write
from controlled_rollout_scoring.responses import (
    WITHOUT_BODY,
    InvalidResponse,
    Response,
    StreamFailed,
    checked_headers,
    checked_length,
    checked_part,
    checked_status,
    close_body,
    internal_error,
    script_failed,
    whole_body,
)
from controlled_rollout_scoring.settings import Settings

STOCK_SERVER = "azureml_inference_server_http"
# The stock server's exit code when a script cannot be served.
CANNOT_SERVE = 3
STOCK_LOGGER = logging.getLogger("azmlinfsrv")

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Application:
    """Calls the WSGI application for one request at a time and returns its response as a value."""

    def __init__(self, wsgi: Wsgi, *, slots: int, workers: int) -> None:
        self._wsgi = wsgi
        self._constant = {
            "SCRIPT_NAME": "",
            "SERVER_SOFTWARE": "controlled-rollout",
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": slots > 1,
            "wsgi.multiprocess": workers > 1,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }

    def __call__(self, environ: dict[str, Any], body: bytes) -> Response:
        """Score one request; whatever a script does wrong is logged and becomes a 500.

        Raises:
            SystemExit: The script ends the process.
        """
        environ.update(self._constant)
        environ["wsgi.input"] = io.BytesIO(body)
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            started[:] = (status, headers)

        try:
            result = self._wsgi(environ, start_response)
        except SystemExit:
            raise
        except BaseException as error:
            _log_failure("the application failed", error)
            # Flask answers an `Exception` of run() itself, and lets others pass, such as asyncio's CancelledError.
            return internal_error() if isinstance(error, Exception) else script_failed()
        try:
            status, headers = started
            return _response(environ["REQUEST_METHOD"], checked_status(status), checked_headers(headers), result)
        except SystemExit:
            raise
        except BaseException as error:
            _log_failure("run() has returned what cannot be sent", error)
            _close_quietly(result)
            return script_failed()


def _response(method: str, status: int, headers: list[tuple[str, str]], result: Iterable[bytes]) -> Response:
    """Return the response of the application; a body without a length is streamed, from its first bytes on."""
    has_body = method != "HEAD" and status not in WITHOUT_BODY
    names = {name.lower() for name, _ in headers}
    if has_body and "content-length" not in names:
        stream = Stream(result)
        if stream.begin():
            return Response(status, headers, stream)
        result = ()
    body = whole_body(headers, result) if has_body else b""
    close_body(result)
    return Response(status, checked_length(headers, body, has_body=has_body), body)


class Stream:
    """A script's streamed body. An exception in it is logged, and ends it as `StreamFailed`."""

    def __init__(self, result: Iterable[object]) -> None:
        self._result = result
        self._parts = iter(result)
        self._first = b""

    def begin(self) -> bool:
        """Read up to the first bytes; False if there are none. The script's exception is raised as it is."""
        self._first = self._next_part() or b""
        return bool(self._first)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first:
            part, self._first = self._first, b""
            return part
        try:
            following = self._next_part()
        except SystemExit:
            raise
        except BaseException as error:
            _log_failure("the streamed answer of run() failed: its connection is broken off", error)
            raise StreamFailed from error
        if following is None:
            raise StopIteration
        return following

    def _next_part(self) -> bytes | None:
        """Return the next part that is not empty; None at the end."""
        for part in self._parts:
            if checked := checked_part(part):
                return checked
        return None

    def close(self) -> None:
        """Let the script's generator end."""
        _close_quietly(self._result)


def _close_quietly(result: object) -> None:
    """Close what a script has returned; the answer is decided, so a failure is logged only."""
    try:
        close_body(result)
    except SystemExit:
        raise
    except BaseException as error:
        _log_failure("closing the answer of run() failed", error)


def _log_failure(what: str, error: BaseException) -> None:
    """Log a failure of the script, with its traceback where that says more than the message."""
    # The script may have replaced or closed sys.stdout or sys.stderr: its caller gets an answer all the same.
    with contextlib.suppress(Exception):
        if isinstance(error, InvalidResponse):
            log(f"{what}: {error}")
        else:
            write(f"{what}:\n{''.join(traceback.format_exception(error))}")


def load(settings: Settings) -> Application:
    """Import the user's script, run its `init()` in this thread, and return the application.

    When the script cannot be served, end the process; the script's own traceback is then the end of the log.
    """
    _set_stock_variables(settings)
    _disable_stock_telemetry()
    collectors.install()
    try:
        # Relative names in the configuration begin there, too.
        os.chdir(settings.app_root)
        with project.own_configuration(settings):
            has_logging_configuration = _set_up_logging()
        _import_from_project_folder(settings.app_root)
        project.use_script_as_module()
        from azureml_inference_server_http.server.entry import app
    except SystemExit as error:
        _exit_unservable(settings.entry_script, error.__context__)
    except BaseException as error:
        _exit_unservable(settings.entry_script, error)
    STOCK_LOGGER.removeFilter(_is_no_error)
    if not has_logging_configuration:
        # From here on a request logs only what the script prints and raises.
        STOCK_LOGGER.setLevel(os.environ.get("AZUREML_LOG_LEVEL", "WARNING").upper())
        logging.getLogger("azmlinfsrv.print").setLevel(logging.INFO)
    app.request_class = _with_form_body(app.request_class)
    script = app.azml_blueprint.user_script
    script.input_parser = _refusing_unreadable(script.input_parser)
    return Application(app, slots=settings.slots, workers=settings.workers)


def _set_stock_variables(settings: Settings) -> None:
    """Set the environment variables that the `azmlinfsrv` command sets before it serves."""
    if os.environ.get("SERVER_VERSION_LOG_RESPONSE_ENABLED", "true").lower() == "true":
        from azureml_inference_server_http import __version__

        os.environ.setdefault("HTTP_X_MS_SERVER_VERSION", f"azmlinfsrv/{__version__}")
    # The stock server interrupts Python code after this time, with a SIGALRM: the same time-out as the queue's.
    os.environ["SCORING_TIMEOUT_MS"] = str(round(settings.scoring_timeout_s * 1000))


def _disable_stock_telemetry() -> None:
    """Replace the stock server's App Insights client by one that sends nothing: the router reports requests.

    The stock client's imports double the time to start (0.7 s) and cost 24 MB a worker.
    """

    class AppInsightsClient:
        enabled = False

        def log_request(self, *_: Any, **__: Any) -> None: ...

        send_model_data_log = send_exception_log = wait_for_upload = close = log_request

    name = f"{STOCK_SERVER}.server.appinsights_client"
    module = types.ModuleType(name)
    module.AppInsightsClient = AppInsightsClient  # type: ignore[attr-defined]
    sys.modules[name] = module


def _set_up_logging() -> bool:
    """Set up the stock server's logging, without errors during the start: `_exit_unservable` logs these.

    Returns whether the project has a logging configuration of its own, which then applies.
    """
    from azureml_inference_server_http.server import config

    project.keep_loggers("azmlinfsrv", "azmlinfsrv.print", "azmlinfsrv.user_script")
    STOCK_LOGGER.addFilter(_is_no_error)
    return bool(config.loaded)


def _import_from_project_folder(app_root: str) -> None:
    """Let the script import modules relative to the project folder, as in the old service."""
    # The stock server is imported first: the project's queue.py or argparse.py would hide Python's own.
    from azureml_inference_server_http.server import aml_blueprint  # noqa: F401

    sys.path[0] = app_root
    # The folder is part of an image and must not be written.
    sys.dont_write_bytecode = True


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _with_form_body(request_class: type) -> type:
    """Return a request class whose `data` is the body of a form too; the stock server's is empty for a form.

    `curl -d '{…}'` sends JSON with the content type of a form.
    """

    class Request(request_class):  # type: ignore[misc]
        @property
        def data(self) -> bytes:
            return bytes(self.get_data())

    return Request


def _refusing_unreadable(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the stock server's parser of requests, with a 400 for every body that is not JSON.

    The stock one fails by a body that is not UTF-8, is nested too deeply or has a number of 5,000 digits: a 500, which
    would count against the version.
    """
    from azureml_inference_server_http.server.input_parsers import BadInput

    def parse_or_refuse(request: Any) -> Any:
        try:
            return parse(request)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"POST body could not be decoded as JSON: {error}") from None

    return parse_or_refuse


def _exit_unservable(entry_script: str, error: BaseException | None) -> None:
    """Log why the script cannot be served, and end the process."""
    error = getattr(error, "user_ex", None) or error
    trace = (
        "".join(traceback.format_exception(type(error), error, error.__traceback__)) if error else "no cause given\n"
    )
    write(f"{entry_script} cannot be served:\n{trace}")
    # Not sys.exit: threads that the script has started must not keep the process alive.
    os._exit(CANNOT_SERVE)
