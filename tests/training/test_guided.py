"""What a recipe's table means for the loss."""

from __future__ import annotations

import pytest

from onnxdistill.recipe import DistillTable
from onnxdistill.training.guided import objective_of


@pytest.mark.parametrize(
    ("keys", "standardise", "soft_weight", "temperature"),
    [
        ({}, True, 9.0, 2.0),
        ({"standardise": False}, False, 1.0, 4.0),
        ({"loss": "dkd"}, False, 1.0, 4.0),
        ({"loss": "dkd", "standardise": True}, True, 9.0, 2.0),
        ({"loss": "dist"}, False, 2.0, 1.0),
        ({"loss": "dist", "temperature": 3.0, "soft_weight": 0.5}, False, 0.5, 3.0),
    ],
)
def test_what_is_left_out_is_as_published(
    keys: dict[str, object], standardise: bool, soft_weight: float, temperature: float
) -> None:
    objective = objective_of(DistillTable.model_validate({"epochs": 1, "hard_weight": 0.5, **keys}), 10)
    assert (objective.standardise, objective.soft_weight, objective.temperature) == (
        standardise,
        soft_weight,
        temperature,
    )
    assert (objective.hard_weight, objective.target_weight, objective.others_weight) == (0.5, 1.0, 8.0)


def test_of_two_classes_only_a_sign_would_be_left() -> None:
    for keys in ({}, {"standardise": True}):
        objective = objective_of(DistillTable.model_validate({"epochs": 1, **keys}), 2)
        assert (objective.standardise, objective.soft_weight, objective.temperature) == (False, 1.0, 4.0)
