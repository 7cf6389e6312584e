"""`kubectl image-prepull status [NAME] [-w]`: one object, or all of a namespace, now or as it changes."""

from __future__ import annotations

import argparse
import sys
from contextlib import aclosing

from imageprepull.cli import interrupts, kubeconfig
from imageprepull.cli.follow import changes
from imageprepull.kube.access import AccessError
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import IMAGEPREPULLS

FAILED, USAGE = 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `status` takes."""
    parser.add_argument("name", nargs="?", help="name of the ImagePrepull (default: all of the namespace)")
    parser.add_argument("-w", "--watch", action="store_true", help="follow it until it is Ready")
    parser.add_argument("--forever", action="store_true", help="with -w: go on when it is Ready")
    parser.add_argument("--layers", action="store_true", help="also list the layers of images that are ready")
    kubeconfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0: shown (with -w: Ready); 1: not found, or no API server; 2: flags that don't go together."""
    if arguments.watch and not arguments.name:
        print("error: -w needs the name of an ImagePrepull", file=sys.stderr)
        return USAGE
    try:
        target = kubeconfig.target(arguments)
        if arguments.name is None:
            return interrupts.run(show_all(target))
        if arguments.watch:
            return interrupts.run(follow(target, arguments.name, arguments))
        return interrupts.run(show(target, arguments.name, layers=arguments.layers))
    except (AccessError, ApiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


async def show_all(target: kubeconfig.Target) -> int:
    """A line an object."""
    from imageprepull.cli import screen, status_view  # noqa: PLC0415  rich is slow to import

    async with ApiClient(target.access) as api:
        documents, _ = await api.list(IMAGEPREPULLS, namespace=target.namespace)
    screen.console().print(status_view.overview(documents, target.namespace))
    return 0


async def show(target: kubeconfig.Target, name: str, *, layers: bool) -> int:
    """One object in full."""
    from imageprepull.cli import screen, status_view  # noqa: PLC0415  rich is slow to import

    async with ApiClient(target.access) as api:
        document = await api.get(IMAGEPREPULLS, name, target.namespace)
    screen.console().print(status_view.detailed(document, layers=layers))
    return 0


async def follow(target: kubeconfig.Target, name: str, arguments: argparse.Namespace) -> int:
    """Redraw at every change until the object is Ready; off a terminal, print a line a change instead."""
    from imageprepull.cli import screen, status_view  # noqa: PLC0415  rich is slow to import

    with screen.Screen(layers=arguments.layers) as drawn:
        async with (
            ApiClient(target.access) as api,
            aclosing(changes(api, IMAGEPREPULLS, name, target.namespace)) as found,
        ):
            async for document in found:
                drawn.show(document)
                if status_view.settled(document) and not arguments.forever:
                    return 0
    print(f"ImagePrepull {target.namespace}/{name} was deleted", file=sys.stderr)
    return FAILED
