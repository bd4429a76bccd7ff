# SPDX-License-Identifier: Apache-2.0
"""Of which jobs previews are wanted: an actor of the front that replicas ask.

A request to Ray Serve brings nothing to a running one, and a second request would take the replica of another
job, so the front's answer is fetched.
"""

ASK_SECONDS = 0.5
"""Between the questions of a replica while it makes a video."""


class Wishes:
    """The jobs of which previews are wanted."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()

    def want(self, job: str, wanted: bool) -> None:
        (self._jobs.add if wanted else self._jobs.discard)(job)

    def wanted(self, job: str) -> bool:
        return job in self._jobs


def actor_error() -> type[Exception]:
    """What a question raises while the actor is being started again, and when it is gone."""
    from ray.exceptions import RayError

    error: type[Exception] = RayError
    return error


def front_is_gone(error: Exception) -> bool:
    """Whether an actor_error means that the actor's front has ended."""
    from ray.exceptions import ActorDiedError

    return isinstance(error, ActorDiedError)
