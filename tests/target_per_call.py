"""A target for tests that opens a new connection for each call, in any event loop."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, cast

from controlled_rollout.target.protocol import EndpointStatus, Target

T = TypeVar("T", bound=Target)


class _TargetPerCall:
    def __init__(self, open_target: Callable[[], AbstractAsyncContextManager[Target]]) -> None:
        self._open = open_target

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            async with self._open() as target:
                return await getattr(target, method)(*args, **kwargs)

        return call

    async def watch(self, *args: Any, **kwargs: Any) -> AsyncGenerator[EndpointStatus]:
        async with self._open() as target:
            async for status in target.watch(*args, **kwargs):
                yield status


def target_per_call(open_target: Callable[[], AbstractAsyncContextManager[T]]) -> T:
    """Return a target that opens and closes the target of `open_target` for each call.

    Args:
        open_target: Gives the target of the test's workspace, not yet open.
    """
    return cast(T, _TargetPerCall(open_target))
