"""A vulnerability scanner that finds nothing, for tests of what happens around it."""

import os
import stat
import sys
from datetime import datetime
from pathlib import Path

import pytest


def empty_scanner(folder: Path, monkeypatch: pytest.MonkeyPatch, built: datetime) -> Path:
    """Put a scanner that finds nothing on the PATH; return the file with its arguments and environment."""
    folder.mkdir()
    program = folder / "grype"
    report = (
        '{"matches": [], "source": {"type": "directory", "target": "%s"}, '
        '"descriptor": {"db": {"status": {"valid": true, "built": "%s"}}}}'
    )
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"open({str(folder / 'call')!r}, 'w').write(repr((sys.argv, dict(os.environ))))\n"
        f"open(sys.argv[5], 'w').write({report!r} % (sys.argv[1].removeprefix('dir:'), {built.isoformat()!r}))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "call"
