import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_collector.rows import Nested, Row
from controlled_rollout_collector.selection import Selection

SALT = b"salt of the version"
ROW: Row = {"age": 30, "name": "Ada", "city": None}


def hashed(text: str) -> str:
    return hmac.new(SALT, text.encode(), hashlib.sha256).hexdigest()


def test_without_rules_all_is_kept() -> None:
    assert Selection().apply([ROW], "inputs") == [ROW]
    assert not Selection().has_rules


def test_only_the_named_columns_are_kept() -> None:
    assert Selection(keep=frozenset({"age"})).apply([ROW], "inputs") == [{"age": 30}]
    assert Selection(keep=frozenset()).apply([ROW], "inputs") == [{}]


def test_values_are_masked_and_null_stays_null() -> None:
    assert Selection(mask=frozenset({"name", "city"})).apply([ROW], "inputs") == [
        {"age": 30, "name": "***", "city": None}
    ]


def test_values_are_hashed_with_the_salt() -> None:
    selection = Selection(hash=frozenset({"name", "age"}), salt=SALT)

    assert selection.apply([ROW], "inputs") == [{"age": hashed("30"), "name": hashed("Ada"), "city": None}]


def test_a_number_has_one_hash_however_it_is_written() -> None:
    selection = Selection(hash=frozenset({"x"}), salt=SALT)

    assert len({str(selection.apply([{"x": value}], "inputs")) for value in (1, 1.0, "1")}) == 1
    (nested,) = selection.apply([{"x": Nested("[1]")}], "inputs")
    assert nested == {"x": hashed("[1]")}


def test_a_rule_may_name_the_collection_of_its_column() -> None:
    selection = Selection(mask=frozenset({"inputs.name"}))

    assert selection.apply([{"name": "Ada"}], "inputs") == [{"name": "***"}]
    assert selection.apply([{"name": "Ada"}], "predictions") == [{"name": "Ada"}]


def test_a_column_to_hash_and_to_mask_is_hashed() -> None:
    selection = Selection(mask=frozenset({"name"}), hash=frozenset({"name"}), salt=SALT)

    assert selection.apply([{"name": "Ada"}], "inputs") == [{"name": hashed("Ada")}]


def test_hashing_without_salt_is_refused() -> None:
    with pytest.raises(ValueError, match="name are to be hashed, and the settings name no salt"):
        Selection(hash=frozenset({"name"}))


def test_the_salt_is_not_in_the_representation() -> None:
    assert "salt of the version" not in repr(Selection(hash=frozenset({"name"}), salt=SALT))


@pytest.mark.parametrize("value", ["age", 3, [1], {"a": 1}])
def test_a_rule_that_is_no_list_of_columns_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="has to be a list of column names"):
        Selection.from_settings({"mask": value}, b"")


@given(
    st.dictionaries(st.text(max_size=3), st.text(min_size=8) | st.integers(10**9) | st.none(), max_size=5),
    st.frozensets(st.text(max_size=3)),
    st.frozensets(st.text(max_size=3)),
)
def test_no_value_of_a_masked_or_hashed_column_is_left(
    row: dict[str, str | int | None], mask: frozenset[str], hash_: frozenset[str]
) -> None:
    (kept,) = Selection(mask=mask, hash=hash_, salt=SALT).apply([row], "inputs")

    assert kept.keys() == row.keys()
    for name in kept:
        if row[name] is not None and name in mask | hash_:
            assert kept[name] != row[name]
        else:
            assert kept[name] == row[name]
