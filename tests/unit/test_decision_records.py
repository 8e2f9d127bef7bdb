from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "adr"


def test_decisions_are_numbered_without_a_gap_and_each_title_has_its_number() -> None:
    files = sorted(FOLDER.glob("*.md"))

    assert [file.name.partition("-")[0] for file in files] == [f"{at:04}" for at in range(1, len(files) + 1)]
    titles = [file.read_text().partition("\n")[0] for file in files]
    assert [title.partition(".")[0] for title in titles] == [f"# {at}" for at in range(1, len(files) + 1)]
