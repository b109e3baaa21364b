"""A term of a recipe while it is trained on: its objective, with settings that may change from step to step."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from potstill import objectives, recipe, schedules
from potstill.objectives.chunked import BoundTerm


class LiveTerm:
    """A term and the schedules of its coefficient and of its objective's settings."""

    def __init__(self, stream: str, spec: recipe.Term):
        self.key = f"{stream}/{spec.objective.name}"
        self.spec = spec
        settings = {name: getattr(spec.objective, name) for name in type(spec.objective).model_fields if name != "name"}
        scheduled = {name: value for name, value in settings.items() if isinstance(value, recipe.Schedule)}
        self._fixed = {name: value for name, value in settings.items() if name not in scheduled}
        self._scheduled = {name: schedules.build(value) for name, value in scheduled.items()}
        self._coefficient = schedules.build(spec.coefficient)

    @property
    def metric(self) -> str:
        """The name of the term's value in the metrics, with its unit."""
        return f"train/{self.key}_nats" if self.spec.objective.in_nats else f"train/{self.key}"

    def coefficient(self, progress: float) -> float:
        """What the term is multiplied by at a step with this share of the budget spent."""
        return self._coefficient.value(progress)

    def settings(self, progress: float) -> dict[str, float]:
        """The settings that change, by their names in the metrics."""
        found = {name: schedule.value(progress) for name, schedule in self._scheduled.items()}
        if isinstance(self.spec.coefficient, recipe.Schedule):
            found["coefficient"] = self.coefficient(progress)
        return {f"schedule/{self.key}_{name}": value for name, value in found.items()}

    def bound(self, scale: Tensor, progress: float) -> BoundTerm:
        """The term as the evaluator takes it, for one micro-batch."""
        now: dict[str, Any] = {name: schedule.value(progress) for name, schedule in self._scheduled.items()}
        objective = partial(getattr(objectives, self.spec.objective.name), **self._fixed, **now)
        return BoundTerm(self.key, objective, self.spec.objective.reads, self.coefficient(progress), scale)

    def observe(self, value: float, progress: float) -> None:
        """Tell adaptive schedules the term's value at the step they were used for."""
        for schedule in (*self._scheduled.values(), self._coefficient):
            schedule.observe(value, progress)

    def state_dict(self) -> dict[str, Any]:
        return {name: schedule.state_dict() for name, schedule in self._scheduled.items()} | {
            "coefficient": self._coefficient.state_dict()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, schedule in self._scheduled.items():
            schedule.load_state_dict(state[name])
        self._coefficient.load_state_dict(state["coefficient"])
