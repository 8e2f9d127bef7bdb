"""Find the program that installs environments."""

from controlled_rollout.errors import ImageError

__all__ = ["find_uv"]


def find_uv() -> str:
    """Return the path of the uv executable; raise `ImageError` if uv is not installed.

    Raises:
        ImageError: It is not installed.
    """
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError) as error:
        raise ImageError(
            "uv is needed to build an environment and is not installed: pip install "
            "'airflow-provider-controlled-rollout[local]'"
        ) from error
