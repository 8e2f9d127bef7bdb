"""The process that validates: `python -m controlled_rollout.expectations <request> <answer>`, both JSON files."""

import sys
from pathlib import Path

from controlled_rollout.expectations.result import ValidationRequest
from controlled_rollout.expectations.validation import count, validate


def main() -> None:
    """Answer one request."""
    request = ValidationRequest.model_validate_json(Path(sys.argv[1]).read_bytes())
    answer = validate(request) if request.bin_width is None else count(request)
    Path(sys.argv[2]).write_text(answer.model_dump_json())


if __name__ == "__main__":
    main()
