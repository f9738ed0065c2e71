"""Where the time of each case of a benchmark goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxdistill.device.cases import Case
from onnxdistill.device.measuring.openings import Feeds
from onnxdistill.device.profiling.peaks import Peaks, measure_peaks
from onnxdistill.device.profiling.placement import Audit, audit
from onnxdistill.device.profiling.roofline import OpProfile, op_profile
from onnxdistill.device.profiling.trace import trace


@dataclass(frozen=True)
class CaseProfile:
    """What was found out about the nodes of a case.

    Attributes:
        case: Its name.
        audit: Where the nodes run, in which precision, and what could be otherwise.
        profile: How long they take, against what the machine can do.
    """

    case: str
    audit: Audit
    profile: OpProfile

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {"case": self.case, "audit": self.audit.to_json(), "profile": self.profile.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseProfile:
        """The inverse of `to_json`."""
        return cls(data["case"], Audit.from_json(data["audit"]), OpProfile.from_json(data["profile"]))


class Profiler:
    """Profiles cases; the peaks of the machine are measured once for each number of threads and provider."""

    def __init__(self) -> None:
        self._peaks: dict[tuple[int, str], Peaks] = {}

    def profile(self, name: str, case: Case, feeds: Feeds) -> CaseProfile:
        """Profiles a case.

        Args:
            name: Of the case.
            case: The model and its settings.
            feeds: What it is run with.

        Raises:
            ModelFileError: If ONNX Runtime cannot load or run the model, or its profile cannot be read.
        """
        key = (case.settings.threads, case.settings.provider)
        if key not in self._peaks:
            self._peaks[key] = measure_peaks(case.settings)
        traced = trace(case.path, feeds, case.settings)
        return CaseProfile(name, audit(traced), op_profile(traced, self._peaks[key]))
