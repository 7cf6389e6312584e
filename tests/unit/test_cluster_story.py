"""What a failed cluster test tells of the objects: it must not fail itself, or nobody learns what was waited for."""

from typing import Any

from tests.cluster.product import summed_up


def test_layers_are_counted_by_state_on_a_node_and_of_a_manifest() -> None:
    manifest: list[dict[str, Any]] = [
        {"digest": "sha256:a", "size": 1, "nodes": {"Applied": 2, "Waiting": 1}},
        {"digest": "sha256:b", "size": 1, "nodes": {"Applied": 1}},
        {"digest": "sha256:c", "size": 1},
    ]
    node = [{"digest": "sha256:a", "size": 1, "state": state} for state in ("Exists", "Failed", "Exists")]
    status = {
        "images": [{"platforms": [{"layers": manifest}]}],
        "nodeDetails": [{"images": [{"layers": node}]}],
    }
    assert summed_up({"metadata": {"managedFields": [], "name": "web"}, "status": status}) == {
        "metadata": {"name": "web"},
        "status": {
            "images": [{"platforms": [{"layers": {"Applied": 3, "Waiting": 1}}]}],
            "nodeDetails": [{"images": [{"layers": {"Exists": 2, "Failed": 1}}]}],
        },
    }
