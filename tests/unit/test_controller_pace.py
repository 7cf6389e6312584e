import pytest

from imageprepull.controller.pace import pace_for


@pytest.mark.parametrize(
    ("pulling", "nodes", "interval", "heartbeat", "storm"),
    [
        (0, 3, 2, 600, False),
        (20, 100, 2, 600, False),
        (21, 100, 5, 600, False),
        (40, 100, 5, 600, True),
        (500, 1000, 60, 600, True),
        (5000, 5000, 600, 2520, True),
    ],
)
def test_the_pace_follows_the_cluster_in_coarse_steps(
    pulling: int, nodes: int, interval: int, heartbeat: int, storm: bool
) -> None:
    pace = pace_for(pulling=pulling, nodes=nodes)
    assert (pace.report_interval, pace.heartbeat, pace.storm) == (interval, heartbeat, storm)
    assert pulling / pace.report_interval <= 10
    assert pace.data()["storm"] == ("true" if storm else "false")
