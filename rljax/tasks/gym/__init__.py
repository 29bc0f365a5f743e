"""Task for the generators and scorers of the package reasoning-gym."""

from rljax.tasks.gym.task import ReasoningGymTask, transcript

__all__ = ["ReasoningGymTask", "transcript"]
