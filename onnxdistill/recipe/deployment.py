"""The tables of what is made and asked of the student's file: `[export]`, `[bench]` and `[limits]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from onnxdistill.recipe.base import Batch, NotNegative, Positive, Table

ThreadCount = Annotated[int, Field(ge=1, le=1024)]


class ExportTable(Table):
    """`[export]`: how the ONNX files are written."""

    opset: Annotated[int, Field(ge=18, le=25)] = Field(20, description="ONNX operator set.")


class BenchTable(Table):
    """`[bench]`: how latency is measured."""

    threads: ThreadCount = Field(1, description="Intra-op threads.")
    batch: Batch = Field(1, description="Images a call.")
    provider: str = Field("cpu", description="Execution provider.")
    seconds: Annotated[float, Field(gt=0, le=3600)] = Field(4.0, description="For how long every model is timed.")
    remote: str | None = Field(
        None, description="Another machine, `[USER@]HOST[:PYTHON]`, that latency is measured on, over ssh."
    )


class LimitsTable(Table):
    """`[limits]`: what the student must meet to ship."""

    max_drop: NotNegative | None = Field(None, description="Points of accuracy below the teacher.")
    min_speedup: Positive | None = Field(None, description="Times faster than the teacher's fp32 ONNX.")
    max_latency_ms: Positive | None = Field(None, description="Median latency.")
