"""Reads what libtpu dumps of the programs it compiles: estimated cycles, and how full the loops' bundles are.

The flags are undocumented and the format is nobody's promise: what is not as expected raises ValueError.  A bundle is
what one TensorCore issues in a cycle, a row of slots; bundles that wait take more than one, which only the estimate of
cycles knows.
"""

import re
from pathlib import Path
from typing import NamedTuple


def flags(folder: Path) -> str:
    """LIBTPU_INIT_ARGS for a process whose programs are to be dumped; of each only its last pass."""
    dump, profile = f"--xla_jf_dump_to={folder}", f"--xla_jf_dump_static_llo_profile_to={folder}"
    return f"{dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final.* {profile}"


class Loop(NamedTuple):
    """The loop of a kernel that has most of its matrix products, without the loops inside it."""

    bundles: int
    mxu: float  # share of its matrix units' slots that are taken
    spills: int  # registers stored to VMEM and loaded again for want of room, in one turn of the loop


def estimated_cycles(folder: Path, kernel: str) -> int:
    """Of the kernel whose name begins so, on one TensorCore, with every grid step counted."""
    found = [path.read_text(encoding="utf-8") for path in folder.glob(f"{kernel}*_static_llo_profile.textproto")]
    if len(found) != 1:
        raise ValueError(f"{len(found)} estimates of cycles of {kernel}* in {folder}")
    return int(re.findall(r"estimated_cycles: (\d+)", found[0])[0])


def main_loops(folder: Path) -> list[Loop]:
    """The main loop of each kernel with matrix products, in the order they were compiled in."""
    loops = []
    for path in sorted(folder.glob("*-final_hlo-static-per-bundle-utilization.txt")):
        (bundles,) = folder.glob(f"{path.name.rsplit('-', 6)[0]}-??-final_bundles.txt")
        capacity, rows = utilization(path.read_text(encoding="utf-8"))
        owners = innermost_loops(bundles.read_text(encoding="utf-8"))
        if len(owners) != len(rows):
            raise ValueError(f"{bundles.name} has {len(owners)} bundles, {path.name} {len(rows)}")
        if loop := main_loop(capacity, rows, owners):
            loops.append(loop)
    return loops


def utilization(text: str) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Slots by kind: how many a bundle has, and how many each takes."""
    _, names, capacity, _, *rows = text.splitlines()
    kinds = names.split(", ")
    read = [dict(zip(kinds, map(int, line.split()), strict=True)) for line in (capacity, *rows) if line]
    return read[0], read[1:]


def innermost_loops(text: str) -> list[int | None]:
    """Of each bundle, the first bundle of the innermost loop that it is in; None outside of all.

    A line is `address LB: >> { ... }`: LB where a loop begins, as many > as loops are around it.  The scheduler moves
    bundles into and out of a loop without a sign, so that depth alone tells: a loop ends where one of its own depth or
    less begins.
    """
    owners, open_loops = [], {}
    for mark, depth in re.findall(r"^ *(?:0x[0-9a-f]+|0) +(\w\w)? *: *(>*) *\{", text, flags=re.M):
        if mark == "LB":
            open_loops = {level: start for level, start in open_loops.items() if level < len(depth)}
            open_loops[len(depth)] = len(owners)
        owners.append(open_loops.get(len(depth)))
    return owners


def main_loop(capacity: dict[str, int], rows: list[dict[str, int]], owners: list[int | None]) -> Loop | None:
    mxu: dict[int | None, int] = {}
    for row, owner in zip(rows, owners, strict=True):
        mxu[owner] = mxu.get(owner, 0) + row["MXU"]
    main = max(mxu, key=lambda owner: mxu[owner], default=None)
    if not mxu.get(main):
        return None
    own = [row for row, owner in zip(rows, owners, strict=True) if owner == main]
    spills = sum(row["VLOAD:FILL"] + row["VSTORE:SPILL"] for row in own)
    return Loop(len(own), mxu[main] / (capacity["MXU"] * len(own)), spills)
