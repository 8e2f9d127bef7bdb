"""Corrects what the stock server makes of a project folder: its files, its script, its logging set-up.

The stock server takes every `config.json`, `logging.json` and `swagger.json` for its own, executes the script under a
name that no module has, and loses its own log, and with it what the script prints, when the script sets up logging.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import logging.config
import os
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from controlled_rollout_scoring.log import log
from controlled_rollout_scoring.settings import SettingError, Settings

if TYPE_CHECKING:
    from azureml_inference_server_http.server.user_script import UserScript

CONFIG_VARIABLE = "AZUREML_CONFIG_FILE"
# The name of a script whose own name belongs to another module, as in the stock server.
ENTRY_MODULE = "entry_module"


def read_object(file: str) -> tuple[dict[str, Any], str]:
    """Return the JSON object in a file, and why there is none: it is no JSON, or no object; else an empty text."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{type(error).__name__}: {error}"
    return (content, "") if isinstance(content, dict) else ({}, f"it is no object, but a {type(content).__name__}")


@contextlib.contextmanager
def own_configuration(settings: Settings) -> Iterator[None]:
    """Let the stock server read its configuration within the block only from files that are one.

    Raises:
        SettingError: The file that `AZUREML_CONFIG_FILE` names cannot be read as one, or a file has a setting of the
            server that is not valid.
    """
    from azureml_inference_server_http import log_config

    log_config.load_logging_config = _load_logging_config
    stock_logger = logging.getLogger("azmlinfsrv")
    stock_logger.addFilter(_is_not_about_extra_keys)
    try:
        with _own_file(settings):
            yield
    finally:
        stock_logger.removeFilter(_is_not_about_extra_keys)


def _is_not_about_extra_keys(record: logging.LogRecord) -> bool:
    """Return whether a line is to be logged: not that there are extra keys in the configuration file.

    The stock server says that of its own environment variables, as `AZUREML_ENTRY_SCRIPT`, where pydantic names them as
    such, and of no key of a file.
    """
    return not str(record.msg).startswith("Found extra keys in the config file")


@contextlib.contextmanager
def _own_file(settings: Settings) -> Iterator[None]:
    """Let the stock server read, within the block, a configuration file only if it is one."""
    named = os.environ.get(CONFIG_VARIABLE)
    folders = (settings.app_root, os.path.dirname(os.path.join(settings.app_root, settings.entry_script)))
    files = [named or "", *(os.path.join(folder, "config.json") for folder in folders)]
    file = next((file for file in files if os.path.isfile(file) and os.path.getsize(file)), None)
    if file is None:
        yield
        return
    content, fault = read_object(file)
    if fault and file == named:
        raise SettingError(f"{CONFIG_VARIABLE}={file!r} is not a configuration of the server: {fault}")
    if fault:
        log(f"{file} is not a configuration of the server ({fault}): it is left to the script")
    # The stock server reads a file again for each of its settings, and takes the name of one only.
    with os.fdopen(os.memfd_create("config.json"), "w", encoding="utf-8") as stream:
        json.dump(content, stream)
        stream.flush()
        os.environ[CONFIG_VARIABLE] = f"/proc/self/fd/{stream.fileno()}"
        try:
            yield
        except SystemExit as error:
            # The stock server ends the process for a setting that is not valid, and does not name the file.
            if isinstance(error.__context__, ValueError):
                raise SettingError(f"{file} has settings of the server that are not valid") from error.__context__
            raise
        finally:
            del os.environ[CONFIG_VARIABLE]
            if named is not None:
                os.environ[CONFIG_VARIABLE] = named


def _load_logging_config(folder: str, silent: bool = False) -> bool:
    """Set up logging from a folder's `logging.json` if it is a configuration of Python's logging; return whether."""
    return _set_up_logging_from(os.path.realpath(os.path.join(folder, "logging.json")))


# The stock server asks for the project folder and for the script's, which may be the same.
@functools.cache
def _set_up_logging_from(file: str) -> bool:
    """Set up logging from a file if it is a configuration of Python's logging; return whether."""
    if not os.path.isfile(file):
        return False
    content, fault = read_object(file)
    if fault or "version" not in content:
        log(f"{file} is not a configuration of Python's logging ({fault or 'it has no version'}): left to the script")
        return False
    try:
        logging.config.dictConfig(content)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise SettingError(f"{file} is not a valid configuration of Python's logging: {error}{cause}") from error
    return True


class ServerLogger(logging.Logger):
    """A logger that no set-up of logging in a script switches off: it has what the script prints and raises."""

    # `logging.config.dictConfig({"version": 1})` disables all loggers that exist.
    disabled = property(lambda self: False, lambda self, disabled: None)

    def isEnabledFor(self, level: int) -> bool:
        """Return whether a message of this level is logged; also after `logging.disable()`."""
        return level >= self.getEffectiveLevel()


def keep_loggers(*names: str) -> None:
    """Make loggers such that no set-up of logging in a script switches them off."""
    for name in names:
        logging.getLogger(name).__class__ = ServerLogger


def use_script_as_module() -> None:
    """Let the stock server import the script as a module, and read a `swagger.json` only if it is one."""
    from azureml_inference_server_http.server import aml_blueprint, swagger, user_script

    class ModuleScript(user_script.UserScript):  # type: ignore[misc]
        def load_script(self, app_root: str) -> None:
            _load_as_module(self, super().load_script, app_root)

    def read_swagger(builder: Any, name: str) -> dict[str, Any] | None:
        file = os.path.join(builder.app_root, name)
        if not os.path.isfile(file):
            return None
        content, fault = read_object(file)
        if fault:
            log(f"{file} is not a description of the service ({fault}): the generated one is served")
        return content or None

    aml_blueprint.UserScript = ModuleScript
    swagger._SwaggerBuilder._read_swagger = read_swagger


def _load_as_module(script: UserScript, stock_load: Any, app_root: str) -> None:
    """Import the script under its own name, as `import score` would, and let the stock server look at it.

    Dataclasses, pydantic, pickle and child processes look a class or a function up in the module of that name.
    """
    from azureml_inference_server_http.server.user_script import UserScriptImportException

    entry_script = script.entry_script
    name = module_name(entry_script)
    spec = importlib.util.spec_from_file_location(name, os.path.join(app_root, entry_script))
    assert spec is not None and spec.loader is not None  # noqa: S101 - the file exists
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise UserScriptImportException(error) from error
    # Without an entry script the stock server imports a module of the name `main`.
    script.entry_script = None
    former = sys.modules.get("main")
    sys.modules["main"] = module
    try:
        stock_load(app_root)
    finally:
        script.entry_script = entry_script
        if former is not None:
            sys.modules["main"] = former
        elif name != "main":
            del sys.modules["main"]


def module_name(entry_script: str) -> str:
    """Return the name under which other modules would import a script, such as `src.score` for `src/score.py`.

    `entry_module` if it has none, or if another module has it.
    """
    path = PurePosixPath(os.path.normpath(entry_script))
    parts = path.with_suffix("").parts
    name = ".".join(parts)
    is_importable = path.suffix == ".py" and all(part.isidentifier() for part in parts)
    is_taken = name in sys.modules or parts[0] in sys.stdlib_module_names
    return name if is_importable and not is_taken else ENTRY_MODULE
