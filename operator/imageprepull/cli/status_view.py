"""How an ImagePrepull looks on a terminal: pure rendering of the object.

Only the object is read, nothing else of the cluster, so what is shown is what every other client can see.
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import (
    ImagePrepull,
    ImageStatus,
    LayerSummary,
    NodeDetail,
    PlatformImage,
)
from imageprepull.resources.nodeprepull import LayerState

STYLES = {
    "ready": "green", "pulling": "cyan", "waiting": "yellow", "failed": "red",
    "Ready": "green", "Pulling": "cyan", "Waiting": "yellow", "Failed": "red",
}  # fmt: skip
MARKS = {
    LayerState.WAITING: ("·", "dim"),
    LayerState.DOWNLOADING: ("↓", "cyan"),
    LayerState.DOWNLOADED: ("▪", "blue"),
    LayerState.EXTRACTING: ("⇄", "magenta"),
    LayerState.EXTRACTED: ("▣", "magenta"),
    LayerState.APPLIED: ("✔", "green"),
    LayerState.EXISTS: ("=", "green"),
    LayerState.FAILED: ("✘", "red"),
}
STATE_OF_LETTER = {state.letter: state for state in LayerState}
DIGEST_SHOWN = 12


def size_text(count: int) -> str:
    """Bytes as people read them: 999 B, 1.2 MB (decimal, as registries count)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def short(digest: str) -> str:
    """The first hexadecimal digits, as docker and crictl show them."""
    return digest.removeprefix("sha256:")[:DIGEST_SHOWN]


def condition(prepull: ImagePrepull, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition; unknown where the operator has not spoken yet."""
    for found in prepull.status.conditions:
        if found.type == kind:
            return found.status, found.reason, found.message
    return "Unknown", "NotObserved", "the operator has not looked at it yet; is it running?"


def settled(document: dict[str, Any]) -> bool:
    """Whether the object's present generation is Ready."""
    prepull = decode(ImagePrepull, document)
    return any(
        found.type == "Ready"
        and found.status == "True"
        and found.observed_generation == prepull.metadata.generation
        for found in prepull.status.conditions
    )


def overview(documents: list[dict[str, Any]], namespace: str) -> RenderableType:
    """A table of all objects of a namespace."""
    if not documents:
        return Text(f"No ImagePrepull in namespace {namespace}.")
    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "READY", "NODES", "PROGRESS", "FAILED", "REASON"):
        table.add_column(column)
    for document in documents:
        prepull = decode(ImagePrepull, document)
        status, reason, _ = condition(prepull, "Ready")
        failed = prepull.status.nodes.failed if prepull.status.nodes else 0
        table.add_row(
            prepull.metadata.name,
            status,
            prepull.status.ready_nodes or "-",
            prepull.status.progress or "-",
            str(failed),
            reason,
        )
    return table


def detailed(document: dict[str, Any], *, layers: bool) -> RenderableType:
    """Everything the object says: head, images with their layers, nodes, failures, what was left out."""
    prepull = decode(ImagePrepull, document)
    parts: list[RenderableType] = [head(prepull)]
    for image in prepull.status.images:
        parts += image_view(image, prepull, layers=layers)
    if prepull.status.node_details:
        parts.append(nodes_view(prepull))
    parts += [
        Text(
            f"✘ {failure.count} x {failure.reason} (e.g. {failure.example_node}): {failure.message}",
            style="red",
        )
        for failure in prepull.status.failures
    ]
    parts += [
        Text(f"○ {skipped.count} skipped: {skipped.reason} (e.g. {skipped.example_node})", style="dim")
        for skipped in prepull.status.skipped
    ]
    omitted = [
        f"{count} {what}"
        for count, what in (
            (prepull.status.images_omitted, "images"),
            (prepull.status.nodes_omitted, "nodes"),
        )
        if count
    ]
    if omitted:
        parts.append(Text(f"… and {' and '.join(omitted)} more than an object can hold", style="dim"))
    return Group(*parts)


def head(prepull: ImagePrepull) -> RenderableType:
    """Name, condition, counts, and a bar over all bytes."""
    status, reason, message = condition(prepull, "Ready")
    style = {"True": "bold green", "False": "bold yellow"}.get(status, "bold")
    title = Text.assemble(
        (f"{prepull.metadata.namespace}/{prepull.metadata.name}", "bold"),
        "  ",
        (f"Ready={status}", style),
        f"  {reason}",
    )
    lines: list[RenderableType] = [title]
    if message:
        lines.append(Text(f"  {message}"))
    stalled, stall_reason, stall_message = condition(prepull, "Stalled")
    if stalled == "True" and stall_message != message:
        lines.append(Text(f"  Stalled: {stall_reason}: {stall_message}", style="red"))
    counts = prepull.status.nodes
    if counts:
        text = Text("  nodes ")
        for state in ("ready", "pulling", "waiting", "failed", "skipped"):
            count = getattr(counts, state)
            if count or state == "ready":
                text.append(f"{count} {state}  ", style=STYLES.get(state, "dim"))
        text.append(f"of {counts.desired}")
        lines.append(text)
    amount = prepull.status.bytes
    if amount and amount.total:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            " ",
            ProgressBar(total=amount.total, completed=amount.done, width=40),
            f"{prepull.status.progress}  {size_text(amount.done)} of {size_text(amount.total)}",
        )
        lines.append(grid)
    return Group(*lines)


def image_view(image: ImageStatus, prepull: ImagePrepull, *, layers: bool) -> list[RenderableType]:
    """An image with, for each platform, a row per layer: digest, size, and a mark per node."""
    title = Text.assemble("\n", (image.image, "bold"))
    if image.digest:
        title.append(f"  {image.digest}", style="dim")
    parts: list[RenderableType] = [title]
    if image.reason:
        parts.append(Text(f"  {image.reason}: {image.message}", style="red"))
    details = [
        (node, index)
        for node in prepull.status.node_details
        for index, detail in enumerate(node.images)
        if detail.image == image.image
    ]
    for platform in image.platforms:
        parts.append(
            Text(
                f"  {platform.platform}  {size_text(platform.size)}  ready on {image.nodes_ready} nodes",
                style="dim",
            )
        )
        busy = any(node.images[index].layers for node, index in details)
        if platform.layers and (layers or busy or not image.nodes_ready):
            parts.append(layer_table(platform, details))
        if platform.layers_omitted:
            parts.append(Text(f"    … {platform.layers_omitted} layers omitted", style="dim"))
    return parts


def layer_table(platform: PlatformImage, details: list[tuple[NodeDetail, int]]) -> RenderableType:
    """Layers down, nodes across; where the object holds no nodes, the counts by state."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for column in ("", "LAYER", "SIZE"):
        table.add_column(column, justify="right" if column == "SIZE" else "left")
    for node, _ in details:
        table.add_column(escape(node.node))
    if not details:
        table.add_column("NODES")
    for number, layer in enumerate(platform.layers):
        cells: list[RenderableType] = [cell(layer, node, index, number) for node, index in details]
        if not details:
            cells = [Text(", ".join(f"{count} {state}" for state, count in layer.nodes.items()))]
        table.add_row(f"   {number + 1:>3}", short(layer.digest), size_text(layer.size), *cells)
    return table


def cell(layer: LayerSummary, node: NodeDetail, index: int, number: int) -> RenderableType:
    """One layer on one node: a mark, the state, and how many bytes while it downloads."""
    detail = node.images[index]
    if number < len(detail.layers):
        state, done = detail.layers[number].state, detail.layers[number].done
    elif number < len(detail.layer_states):
        state, done = str(STATE_OF_LETTER.get(detail.layer_states[number], "")), layer.size
    else:
        return Text("-", style="dim")
    mark, style = MARKS.get(LayerState(state), ("?", "")) if state in list(LayerState) else ("?", "")
    percent = f" {done * 100 // layer.size}%" if state == LayerState.DOWNLOADING and layer.size else ""
    return Text(f"{mark} {state}{percent}", style=style)


def nodes_view(prepull: ImagePrepull) -> RenderableType:
    """A row per node, with the reason where an image waits or failed."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for column in ("NODE", "STATE", "IMAGES", ""):
        table.add_column(column)
    for node in prepull.status.node_details:
        ready = sum(detail.state == "Ready" for detail in node.images)
        troubles = [
            f"{detail.image}: {detail.reason} {detail.message}".strip()
            + (
                f" (attempt {detail.attempts}"
                + (f", next {detail.next_attempt})" if detail.next_attempt else ")")
            )
            for detail in node.images
            if detail.reason
        ]
        table.add_row(
            escape(node.node),
            Text(node.state, style=STYLES.get(node.state, "")),
            f"{ready}/{len(node.images)}",
            Text("; ".join(troubles), style="red"),
        )
    return Group(Text(""), table)
