"""The keys of an environment file, as a model: what the reader knows, and what an editor's schema says. Pure."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, WithJsonSchema

__all__ = ["MLFLOW_KEYS", "USUAL_KEYS", "EnvironmentFile"]

# What MLflow writes into python_env.yaml; its `dependencies` are pip's.
MLFLOW_KEYS: Final = ("python", "build_dependencies", "dependencies")

# Read as it is written: an editor takes 3.11 for a number.
Text = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean", "null"]})]
RULES: Final[dict[str, Any]] = {
    "if": {"required": ["build_dependencies"]},
    "then": {"propertyNames": {"enum": [*MLFLOW_KEYS]}},
    "else": {"not": {"required": ["dependencies", "requirements"]}},
}


class PipDependencies(BaseModel):
    """What pip installs, among conda's dependencies.

    Attributes:
        pip: Requirements as in requirements.txt.
    """

    model_config = ConfigDict(extra="forbid")

    pip: tuple[str, ...] | None


class EnvironmentFile(BaseModel):
    """An environment file: conda's environment.yml, with further keys, or MLflow's python_env.yaml.

    Attributes:
        name, version: For people. They do not count in the hash.
        channels, prefix: As conda writes them; nothing here reads them.
        dependencies: Conda's packages, which are translated to those of the Python package index, and one list under
            `pip`.
        python: The version of Python, such as `3.11`, or a range such as `>=3.10,<3.13`; without it the version that
            builds.
        base_image: The image that a container build begins with; without it the workspace's.
        docker_steps: Lines of a Dockerfile, run on the base image before anything is installed.
        requirements: Requirements as in requirements.txt, instead of `dependencies`.
        index_names: Names on the Python package index by conda's name; an empty one leaves the package out.
        build_dependencies: Of MLflow's python_env.yaml, beside `python` and `dependencies`, which are pip's there.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=RULES)

    name: Text = ""
    version: Text = ""
    python: Text = ""
    base_image: Text = ""
    docker_steps: tuple[str, ...] | None = None
    requirements: tuple[str, ...] | None = None
    dependencies: tuple[str | PipDependencies, ...] | None = None
    index_names: dict[str, str] | None = None
    build_dependencies: tuple[str, ...] | None = None
    channels: Any = None
    prefix: Any = None


# All keys but MLflow's own.
USUAL_KEYS: Final = tuple(name for name in EnvironmentFile.model_fields if name != "build_dependencies")
