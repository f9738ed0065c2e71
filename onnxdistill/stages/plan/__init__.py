"""Stage `plan`: `whole` goes from cut to cut, and `cut` makes one."""

from __future__ import annotations

from onnxdistill.stages.plan.cut import Deployed
from onnxdistill.stages.plan.whole import Cut, PlanResult, plan

__all__ = ["Cut", "Deployed", "PlanResult", "plan"]
