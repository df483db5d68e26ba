"""Who is told how engine processes fare."""

from __future__ import annotations

from typing import Protocol

from mlx_manager.mlx_server.engine.messages import StepTimes


class EngineWatch(Protocol):
    """Told of each model's engine as it happens, on the event loop: it must not wait and must not fail."""

    def loaded(self, model_id: str, seconds: float) -> None:
        """An engine can generate, `seconds` after its process was asked for."""
        ...

    def load_failed(self, model_id: str, seconds: float, error_type: str) -> None:
        """An engine could not be brought up."""
        ...

    def restarted(self, model_id: str) -> None:
        """An engine has died or stalled, and a fresh one is started in its place."""
        ...

    def resumed(self, model_id: str) -> None:
        """A request is given to an engine again, because its own has ended or lost its batch."""
        ...

    def stepped(self, model_id: str, steps: list[StepTimes]) -> None:
        """How long an engine's steps took; once a second."""
        ...


class NoWatch:
    """Looks away."""

    def loaded(self, model_id: str, seconds: float) -> None:
        """Let it."""

    def load_failed(self, model_id: str, seconds: float, error_type: str) -> None:
        """Let it."""

    def restarted(self, model_id: str) -> None:
        """Let it."""

    def resumed(self, model_id: str) -> None:
        """Let it."""

    def stepped(self, model_id: str, steps: list[StepTimes]) -> None:
        """Let it."""
