"""The user's `init()` and `run()` behind the stock inference server's own WSGI application."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from controlled_rollout_scoring.answers import Answer, failed
from controlled_rollout_scoring.log import write
from controlled_rollout_scoring.settings import Settings

SERVER = "azureml_inference_server_http"
# What the stock server ends with when a script cannot be served.
CANNOT_SERVE = 3
STOCK_LOGGER = logging.getLogger("azmlinfsrv")

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class DataCapture:
    """The place where inputs and predictions are captured: every request that is scored passes through here.

    Nothing is captured yet.
    """

    def __init__(self, application: Wsgi) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Score one request."""
        return self._application(environ, start_response)


class Application:
    """Turns one request's WSGI environment into an answer."""

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

    def __call__(self, environ: dict[str, Any], body: bytes) -> Answer:
        """Run the application. What it raises is logged and answered 500."""
        environ.update(self._constant)
        environ["wsgi.input"] = io.BytesIO(body)
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            started[:] = (status, headers)

        try:
            result = self._wsgi(environ, start_response)
            status, headers = int(started[0][:3]), started[1]
            if any(name.lower() == "content-length" for name, _ in headers):
                return Answer(status, headers, _joined(result))
            return Answer(status, headers, iter(_Stream(result)))
        except Exception:
            write(f"the application failed:\n{traceback.format_exc()}")
            return failed()


def _joined(result: Iterable[bytes]) -> bytes:
    try:
        return b"".join(result)
    finally:
        _close(result)


class _Stream:
    """A streamed body that is closed at its end, or when its caller goes away."""

    def __init__(self, result: Iterable[bytes]) -> None:
        self._result = result
        self._iterator = iter(result)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._iterator)

    def close(self) -> None:
        """Called by the server when nothing more is sent."""
        _close(self._result)


def _close(result: Iterable[bytes]) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def load(settings: Settings) -> Application:
    """Import the user's script, run its `init()` in this thread, and return the application.

    Ends the process, the script's own traceback being the last lines of stderr, when there is no application to return.
    """
    _prepare_environment(settings)
    _switch_telemetry_off()
    try:
        own_logging = _start_logging(settings.app_root)
        _enter_project(settings.app_root)
        from azureml_inference_server_http.server.entry import app
    except SystemExit as refusal:
        _end(settings.entry_script, refusal.__context__)
    except BaseException as error:
        _end(settings.entry_script, error)
    STOCK_LOGGER.removeFilter(_no_errors)
    if not own_logging:
        # From here on nothing is logged for each request but what the script prints and raises.
        STOCK_LOGGER.setLevel(os.environ.get("AZUREML_LOG_LEVEL", "WARNING").upper())
        logging.getLogger("azmlinfsrv.print").setLevel(logging.INFO)
    app.request_class = _whole_body(app.request_class)
    return Application(DataCapture(app), slots=settings.slots, workers=settings.workers)


def _prepare_environment(settings: Settings) -> None:
    """Set what the `azmlinfsrv` command sets before it serves."""
    if os.environ.get("SERVER_VERSION_LOG_RESPONSE_ENABLED", "true").lower() == "true":
        from azureml_inference_server_http import __version__

        os.environ.setdefault("HTTP_X_MS_SERVER_VERSION", f"azmlinfsrv/{__version__}")
    # The stock server's alarm and this runtime's time-out are one and the same.
    os.environ["SCORING_TIMEOUT_MS"] = str(round(settings.scoring_timeout_s * 1000))


def _switch_telemetry_off() -> None:
    """Put a client that sends nothing in the place of the stock server's App Insights client.

    The router reports requests. The stock client's imports double the time to start (0.7 s) and cost 24 MB a worker.
    """

    class AppInsightsClient:
        enabled = False

        def log_request(self, *_: Any, **__: Any) -> None: ...

        send_model_data_log = send_exception_log = wait_for_upload = close = log_request

    name = f"{SERVER}.server.appinsights_client"
    module = types.ModuleType(name)
    module.AppInsightsClient = AppInsightsClient  # type: ignore[attr-defined]
    sys.modules[name] = module


def _start_logging(app_root: str) -> bool:
    """Let the stock server's logger report the start, but not its failure: `_end` does that.

    Returns whether the project brings a logging configuration of its own, which then holds.
    """
    from azureml_inference_server_http.server import config  # noqa: F401 - sets logging up

    STOCK_LOGGER.addFilter(_no_errors)
    return os.path.isfile(os.path.join(app_root, "logging.json"))


def _enter_project(app_root: str) -> None:
    """Let the script open files, and import modules, relative to the project folder, as in the old service."""
    # The stock server's own imports come first: the project's queue.py or argparse.py is not the one that they mean.
    from azureml_inference_server_http.server import aml_blueprint  # noqa: F401

    os.chdir(app_root)
    sys.path[0] = app_root
    # The folder is part of an image, and not to be written.
    sys.dont_write_bytecode = True


def _no_errors(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _whole_body(request_class: type) -> type:
    """Return the request class with a `data` that holds the whole body of a form too, where the stock one is empty.

    `curl -d '{…}'` sends JSON under the content type of a form.
    """

    class Request(request_class):  # type: ignore[misc]
        @property
        def data(self) -> bytes:
            return bytes(self.get_data())

    return Request


def _end(entry_script: str, error: BaseException | None) -> None:
    """Say why the script cannot be served, and end the process."""
    error = getattr(error, "user_ex", None) or error
    trace = (
        "".join(traceback.format_exception(type(error), error, error.__traceback__)) if error else "no cause given\n"
    )
    write(f"{entry_script} cannot be served:\n{trace}")
    # Threads that the script has started must not keep the process.
    os._exit(CANNOT_SERVE)
