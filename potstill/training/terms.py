"""A term of a recipe while it is trained on: its objective, with settings that may change from step to step."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from potstill import objectives, recipe, schedules
from potstill.features.matching import Match
from potstill.objectives.chunked import BoundTerm
from potstill.types import Batch


class LiveTerm:
    """A term and the schedules of its coefficient and of its objective's settings; ``match`` where it looks inside."""

    def __init__(self, stream: str, spec: recipe.Term, match: Match | None = None):
        self.key = f"{stream}/{spec.label}"
        self.spec = spec
        self.match = match
        elsewhere = ("name", *spec.objective.made_elsewhere)
        fields = [name for name in type(spec.objective).model_fields if name not in elsewhere]
        settings = {name: getattr(spec.objective, name) for name in fields}
        skew = settings.get("skew")
        self.curriculum = _curriculum(settings.pop("skew")) if isinstance(skew, recipe.CurriculumSkew) else None
        scheduled = {name: value for name, value in settings.items() if isinstance(value, recipe.Schedule)}
        self._fixed = {name: value for name, value in settings.items() if name not in scheduled}
        self._scheduled = {name: schedules.build(value) for name, value in scheduled.items()}
        self._coefficient = schedules.build(spec.coefficient)

    @property
    def metric(self) -> str:
        """The name of the term's value in the metrics, with its unit."""
        return f"train/{self.key}_nats" if self.spec.objective.in_nats else f"train/{self.key}"

    @property
    def changes(self) -> bool:
        """Whether a setting of the objective is another one at other steps, or for other tokens."""
        return bool(self._scheduled) or self.curriculum is not None

    def coefficient(self, progress: float) -> float:
        """What the term is multiplied by at a step with this share of the budget spent."""
        return self._coefficient.value(progress)

    def settings(self, progress: float) -> dict[str, float]:
        """The settings that change, by their names in the metrics."""
        found = {name: schedule.value(progress) for name, schedule in self._scheduled.items()}
        if isinstance(self.spec.coefficient, recipe.Schedule):
            found["coefficient"] = self.coefficient(progress)
        return {f"schedule/{self.key}_{name}": value for name, value in found.items()}

    @property
    def scores(self) -> set[recipe.Score]:
        """What has to be known of each token before the term can be computed."""
        of_weighting = {score} if (score := self.spec.weighting.score) else set()
        return of_weighting | ({"student_loss", "teacher_loss"} if self.curriculum else set())

    def bound(self, scale: Tensor, progress: float, batch: Batch, gaps: Tensor | None) -> BoundTerm:
        """The term as the evaluator takes it, for one micro-batch.

        Args:
            scale: of each position. progress: share of the budget spent.
            batch: whose tokens it is about.
            gaps: of each response, where a curriculum goes by them.
        """
        spec = self.spec.objective
        now: dict[str, Any] = {name: schedule.value(progress) for name, schedule in self._scheduled.items()}
        objective = partial(getattr(objectives, spec.function or spec.name), **self._fixed, **now)
        settings = self._by_position(scale, batch, gaps)
        return BoundTerm(self.key, objective, spec.reads, self.coefficient(progress), scale, settings)

    def _by_position(self, scale: Tensor, batch: Batch, gaps: Tensor | None) -> dict[str, Tensor]:
        """The objective's settings that differ from token to token."""
        if self.curriculum is not None and gaps is not None:
            return {"skew": self.curriculum.values(gaps).to(scale)[:, None].expand_as(scale)}
        if not isinstance(self.spec.objective, recipe.PolicyGradient):
            return {}
        if batch.credit is None:
            raise ValueError(f"{self.key} is about sampled tokens with credit, and this batch has none")
        weights = batch.importance_weights if self.spec.objective.use_importance_weights else None
        return vars(batch.credit) | ({} if weights is None else {"importance_weights": weights})

    def observe(self, value: float, progress: float) -> None:
        """Tell adaptive schedules the term's value at the step they were used for."""
        for schedule in (*self._scheduled.values(), self._coefficient):
            schedule.observe(value, progress)

    def state_dict(self) -> dict[str, Any]:
        return {name: schedule.state_dict() for name, schedule in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, schedule in self._stateful().items():
            schedule.load_state_dict(state[name])

    def _stateful(self) -> dict[str, schedules.Schedule | schedules.CurriculumSkew]:
        curriculum = {"skew": self.curriculum} if self.curriculum else {}
        return {**self._scheduled, "coefficient": self._coefficient, **curriculum}


def _curriculum(spec: recipe.CurriculumSkew) -> schedules.CurriculumSkew:
    return schedules.CurriculumSkew(start=spec.start, least=spec.least)
