"""Read protobuf whose texts are not all UTF-8: a router's span has headers as their caller sent them, in any bytes.

protobuf refuses the whole message for one such text. A caller could so take the rows of other callers' requests away.
"""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

__all__ = ["read_any_text"]


def read_any_text(body: bytes) -> ExportTraceServiceRequest:
    r"""Return an export whose texts may have any bytes: what is not UTF-8 in them is written as `\xe9`.

    Raises:
        google.protobuf.message.DecodeError: It is no export for another reason.
    """
    message = _class_without_check().FromString(body)
    _repair_texts(message)
    checked = ExportTraceServiceRequest()
    checked.ParseFromString(message.SerializeToString())
    return checked


@cache
def _class_without_check() -> Any:
    """Return the class of the same messages whose texts are not checked: those of proto2 are not."""
    pool, added = descriptor_pool.DescriptorPool(), set()

    def add(file: FileDescriptor) -> None:
        """Add a file and those that it imports, as proto2."""
        if file.name in added:
            return
        added.add(file.name)
        for imported in file.dependencies:
            add(imported)
        copy = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(copy)
        copy.syntax = "proto2"
        pool.Add(copy)

    add(ExportTraceServiceRequest.DESCRIPTOR.file)
    name = ExportTraceServiceRequest.DESCRIPTOR.full_name
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _repair_texts(message: Message) -> None:
    """Make each text of a message valid UTF-8; protobuf gives one that is not as bytes."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                _repair_texts(part)
        elif field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
            value[:] = [_escaped_text(part) for part in value]
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, _escaped_text(value))


def _escaped_text(value: str | bytes) -> str:
    """Return a text in which bytes that are no UTF-8 are written out, so that two of them stay two."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
