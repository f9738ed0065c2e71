"""Stage `plan`: `whole` goes from cut to cut, `cut` makes one, and `account` tells what became of everything."""

from __future__ import annotations

from onnxdistill.stages.plan.deployed import Deployed
from onnxdistill.stages.plan.whole import Cut, PlanResult, plan

__all__ = ["Cut", "Deployed", "PlanResult", "plan"]
