"""How often to report: flags give defaults, the operator's shared ConfigMap changes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CONFIGMAP = "imageprepull-pace"


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between samples and between heartbeats. In a storm even urgent news waits a jittered `spread`."""

    report_interval: float = 2
    heartbeat: float = 600
    storm: bool = False
    storm_spread: float = 3
    big_storm_spread: float = 15
    big_storm_interval: float = 100
    """Nodes / 10: from this interval on more than 1,000 nodes pull at once."""

    @property
    def spread(self) -> float:
        """The longest wait of urgent news, in seconds."""
        if not self.storm:
            return 0
        return self.big_storm_spread if self.report_interval >= self.big_storm_interval else self.storm_spread


def pace_from(data: Mapping[str, str], default: Pace) -> Pace:
    """The pace that the ConfigMap's data asks for; a value that is no sensible number keeps the default."""
    return Pace(
        report_interval=number(data.get("reportIntervalSeconds"), default.report_interval),
        heartbeat=number(data.get("heartbeatSeconds"), default.heartbeat),
        storm=data.get("storm", "") == "true",
        storm_spread=default.storm_spread,
        big_storm_spread=default.big_storm_spread,
        big_storm_interval=default.big_storm_interval,
    )


def number(text: str | None, default: float) -> float:
    """Positive seconds, at most a day: nobody may silence a node for ever by a typing error."""
    try:
        value = float(text) if text is not None else default
    except ValueError:
        return default
    return value if 0 < value <= 86400 else default  # noqa: PLR2004 - a day.
