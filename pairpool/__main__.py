"""What can be asked of pairpool from a shell: ``python -m pairpool COMMAND``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any


def states() -> None:
    """Prints what may happen to slots and packets, as Markdown tables."""
    from pairpool._states import PACKET_TRANSITIONS, SLOT_TRANSITIONS, PacketEvent, SlotEvent

    print(_table("a slot that is", SLOT_TRANSITIONS, list(SlotEvent)))
    print()
    print(_table("a packet that is", PACKET_TRANSITIONS, list(PacketEvent)))


def _table(subject: str, transitions: Mapping[Any, Mapping[Any, StrEnum]], events: Sequence[StrEnum]) -> str:
    """A row for each state, a column for each event, and in the cell the state that follows."""
    rows = [[subject, *events], ["---"] * (1 + len(events))]
    rows += [[f"**{state}**", *(moves.get(event, "") for event in events)] for state, moves in transitions.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


COMMANDS: dict[str, Callable[[], None]] = {"states": states}


def main() -> None:
    """Runs the command that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m pairpool", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.__doc__).set_defaults(run=command)
    parser.parse_args().run()


if __name__ == "__main__":
    main()
