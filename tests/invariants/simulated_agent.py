"""What runs beside the endpoints all the time, and takes treatments back that nobody looks at: supervisor or agent."""

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, cast

from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.steps.silence import SilenceWatch
from controlled_rollout.target.protocol import Revision, Target
from controlled_rollout.target.silence import Watched
from controlled_rollout.target.silence_checks import SilenceChecks
from controlled_rollout.workspace import Workspace
from tests.invariants.simulated_clock import moment, seconds

if TYPE_CHECKING:
    from tests.invariants.world import World

__all__ = ["CHECK_S", "IN_AGENT", "SimulatedAgent"]

CHECK_S: Final = 10.0
# Whether code runs for the agent: kills of tasks and of the triggerer do not reach it.
IN_AGENT: Final = ContextVar("IN_AGENT", default=False)


class SimulatedAgent:
    """Checks every few seconds whether somebody looks after the rollouts of a world and its neighbour.

    Args:
        world: The first world.
        workspace: The workspace of the endpoints.
    """

    def __init__(self, world: "World", workspace: Workspace) -> None:
        self._world = world
        self._workspace = workspace
        self._watched: Watched | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self.away_until = 0.0
        self.start()

    @property
    def begun(self) -> float:
        """Since when it checks without a gap, in seconds of the clock."""
        return seconds(self._watched.begun) if self._watched is not None else self._world.clock.seconds

    def start(self) -> None:
        """Begin to check, or go on where another one has just stopped."""
        self._watched = Watched.after(self._watched, self._world.clock.now())
        self._task = self._world.loop.create_task(self._run(self._watched), name="agent")

    def stop(self, away_s: float) -> None:
        """Kill it with all that it does; another one begins after so long."""
        for task in [self._task, *self._running.values()]:
            if task is not None:
                task.cancel()
        self._task, self._running = None, {}
        self.away_until = self._world.clock.seconds + away_s
        self._world.loop.call_later(away_s, self._begin_again)

    def _begin_again(self) -> None:
        """Begin to check unless it does already, or is to stay away for longer."""
        if self._task is None and self._world.clock.seconds >= self.away_until:
            self.start()

    def come_back(self) -> None:
        """Begin at once."""
        self.away_until = self._world.clock.seconds
        self._begin_again()

    async def _run(self, watched: Watched) -> None:
        """Check all endpoints again and again, each by itself: a roll-back takes time."""
        IN_AGENT.set(True)
        checks = SilenceChecks(watched_since=watched.begun)
        watch = SilenceWatch(self._workspace, checks)
        while True:
            self._watched = Watched.after(self._watched, self._world.clock.now())
            self._running = {name: task for name, task in self._running.items() if not task.done()}
            checks.begin_round({world.endpoint for world in self._world.both if world.target.revisions})
            for world in self._world.both:
                if world.target.revisions and world.endpoint not in self._running:
                    checking = self._look_after(watch, world, world.target.revisions[-1])
                    self._running[world.endpoint] = asyncio.create_task(checking, name=f"agent: {world.endpoint}")
            await asyncio.sleep(CHECK_S)

    async def _look_after(self, watch: SilenceWatch, world: "World", newest: Revision) -> None:
        """Check one endpoint."""
        try:
            await watch.look_after(cast("Target", world.target), newest, progress=world.log)
        except ControlledRolloutError as error:
            world.log(f"agent at {moment(world.clock.seconds):%H:%M:%S}: {error}")
