"""The table of coverage: files add up to rooms, and a room below its floor is named."""

from scripts.coverage_by_room import TOLERATED, Tally, below, by_room


def summary(covered: int, missing: int) -> dict[str, int]:
    return {
        "num_statements": covered + missing,
        "covered_lines": covered,
        "num_branches": 0,
        "covered_branches": 0,
    }


FILES = {
    "docker/scoring/controlled_rollout_scoring/server.py": summary(1, 1),
    "operators/controlled_rollout/endpoint.py": summary(9, 1),
    "operators/controlled_rollout/errors.py": summary(5, 5),
    "operators/controlled_rollout/target/local/client.py": summary(1, 9),
    "operators/controlled_rollout/target/transition.py": summary(10, 0),
}


def test_a_folder_is_a_room_and_a_module_with_a_floor_has_a_line_of_its_own() -> None:
    rooms = by_room(FILES, {"endpoint": 97, "target/transition": 97})

    assert {room: (tally.lines, tally.percent) for room, tally in rooms.items()} == {
        "docker/scoring": (2, 50.0),
        "endpoint": (10, 90.0),
        "modules": (10, 50.0),
        "target": (20, 55.0),
        "target/transition": (10, 100.0),
    }


def test_branches_count_as_lines_do() -> None:
    tally = Tally()

    tally.add({"num_statements": 6, "covered_lines": 6, "num_branches": 4, "covered_branches": 2})

    assert tally.percent == 80.0


def test_a_room_below_its_floor_one_without_and_a_floor_without_a_room_are_named() -> None:
    files = {**FILES, "operators/controlled_rollout/endpoint.py": summary(90, 10)}
    rooms = by_room(files, {"endpoint": 97})

    complaints = below(rooms, {"endpoint": 97, "modules": 50, "target": 50, "gate": 97})

    assert [complaint.split()[0].rstrip(":") for complaint in complaints] == ["docker/scoring", "endpoint", "gate"]


def test_a_few_lines_below_the_floor_are_tolerated_in_a_room_of_any_size() -> None:
    for parts in (100, 10_000):
        least = parts * 97 // 100 - TOLERATED

        assert Tally(parts=parts, executed=least).reaches(97)
        assert not Tally(parts=parts, executed=least - 1).reaches(97)
