"""The page's files: where they are, and the small server that Airflow mounts for them."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["FILES", "create_app", "version"]

FILES: Final = Path(__file__).parent / "static"
# Airflow takes the component of a page from a global variable that has the page's name.
NOT_BUILT: Final = """
const text = "The page of Controlled Rollout was not built with this package: run scripts/install in its repository, " +
  "or install its wheel. The API, the operators and the command line work without it.";
globalThis.Rollouts = globalThis.Rollout = () => text;
"""


def version() -> str:
    """Return what tells one bundle from another in its address; `none` without a bundle."""
    try:
        return (FILES / "version").read_text(encoding="ascii").strip()
    except OSError:
        return "none"


def create_app() -> "Starlette":
    """Return the application that serves the files, which hold nothing of any endpoint: everybody may read them."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    if (FILES / "main.js").is_file():
        return Starlette(routes=[Mount("/", StaticFiles(directory=FILES))])

    async def not_built(_request: object) -> Response:
        """Answer with a page that says what is missing."""
        return Response(NOT_BUILT, media_type="text/javascript")

    return Starlette(routes=[Route("/main.js", not_built)])
