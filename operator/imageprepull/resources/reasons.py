"""Reasons in a NodePrepull's status that others than the agent act on: of images that wait for room on the disk."""

from __future__ import annotations

INSUFFICIENT_DISK = "InsufficientDisk"
"""A pull that did not begin, or was stopped, since what must stay free would not have stayed free."""
DISK_FULL = "DiskFull"
NODE_DISK_PRESSURE = "NodeDiskPressure"
"""Nothing is pulled to such a node, whatever an image needs."""
NO_ROOM = (INSUFFICIENT_DISK, DISK_FULL, NODE_DISK_PRESSURE)
