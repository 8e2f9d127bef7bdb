"""Whether a gate's columns can be judged by what the versions collect, before anything is read. Pure."""

from controlled_rollout.collection_settings import Collection
from controlled_rollout.gate import Gate

__all__ = ["cannot_be_judged"]


def cannot_be_judged(gate: Gate, version: str, collected: Collection | None) -> str:
    """Return a sentence on why a version does not collect what a gate judges; empty if it does.

    Args:
        gate: The gate.
        version: The version's name.
        collected: What the version keeps; None if it collects nothing.
    """
    if not gate.collections:
        return ""
    judged = gate.judged_columns
    columns = ", ".join(sorted({column for _, column in judged} or gate.collections))
    if collected is None:
        return (
            f"the gate judges {columns}, and version {version!r} does not collect its inputs and predictions: give it "
            "the setting collect_model_data=True, or judge no columns"
        )
    if collected.layout != "parquet":
        return (
            f"the gate judges {columns}, and version {version!r} collects in the layout {collected.layout!r}: only "
            "'parquet' can be judged"
        )
    for metric, name in judged:
        of = f"the gate judges {name} (metric {metric!r}), and version {version!r}"
        if name.partition(".")[2].startswith("$"):
            continue  # not of the body: type, size, status
        if collected.keep is not None and not _is_named(name, collected.keep):
            return f"{of} does not keep it: name it in the collection's keep"
        if _is_named(name, collected.mask):
            return f"{of} masks it: all of its values are alike then; take it out of the collection's mask"
        category = gate.categories.get(metric)
        if _is_named(name, collected.hash) and (category is None or category.buckets is not None):
            return f"{of} hashes it: only a Category without buckets can be judged then"
    return ""


def _is_named(name: str, columns: tuple[str, ...]) -> bool:
    """Return whether columns name `<collection>.<column>`, as that or plainly."""
    return name in columns or name.partition(".")[2] in columns
