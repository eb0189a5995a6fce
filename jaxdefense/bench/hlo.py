"""The traffic of a compiled program, between devices and to and from memory, from its text.

XLA's own cost analysis counts the body of a loop once. Here it counts once for each iteration, if
the program says how many there are.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ?([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:calls|body|condition|true_computation|false_computation|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "optimization-barrier", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program: `type_text` is the result's type, `rest` what follows the operands."""

    name: str
    opcode: str
    type_text: str
    operands: tuple[str, ...]
    arguments: str
    rest: str
    root: bool


@dataclasses.dataclass
class Collective:
    """The traffic of one kind of collective in a program.

    Fields:
        count: number of runs.
        bytes: bytes over all runs, the larger of what a device puts in and what it gets out.
        wire_bytes: bytes that a device sends if the collective runs on a ring.
    """

    count: int = 0
    bytes: int = 0
    wire_bytes: float = 0.0


class Program:
    """A compiled module."""

    def __init__(self, text: str):
        """Parse the text of a program.

        Args:
            text: `compiled.as_text()`.

        Raises:
            ValueError: the text has no entry.
        """
        self.computations: dict[str, dict[str, Instruction]] = {}
        self._entry = ""
        self.unknown_loops: set[str] = set()  # loops of unknown length, which count once
        at: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := _HEADER.match(line):
                at = self.computations.setdefault(header[2], {})
                if header[1]:
                    self._entry = header[2]
            elif found := _instruction(line):
                at[found.name] = found
        if not self._entry:
            raise ValueError("the text holds no HLO module with an ENTRY.")

    def walk(self, *, into_fusions: bool) -> Iterator[tuple[dict[str, Instruction], str, int]]:
        """Yield every instruction that runs: its computation, its name and its number of runs."""
        yield from self._walk(self._entry, 1, into_fusions)

    def _walk(
        self, name: str, times: int, into_fusions: bool
    ) -> Iterator[tuple[dict[str, Instruction], str, int]]:
        instructions = self.computations.get(name, {})
        for instruction in instructions.values():
            yield instructions, instruction.name, times
            if instruction.opcode == "fusion" and not into_fusions:
                continue
            inner = times
            if instruction.opcode == "while":
                inner = times * self._trips(instruction)
            for called in _called(instruction.rest):
                yield from self._walk(called, inner, into_fusions)

    def _trips(self, loop: Instruction) -> int:
        """Return the number of iterations of a loop; 1 if the program does not say."""
        if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(known[1])
        # Loops count from 0 to a constant: a scan by one, a product computed on a ring by two.
        condition, body = (
            self.computations.get(named[1], {})
            if (named := re.search(rf"{which}=%?([\w.\-]+)", loop.rest))
            else {}
            for which in ("condition", "body")
        )
        limits = list(_constants(condition).values())
        if len(limits) == 1 and any("direction=LT" in i.rest for i in condition.values()):
            return -(-limits[0] // self._stride(condition, body))
        self.unknown_loops.add(loop.name)
        return 1

    def _stride(self, condition: dict[str, Instruction], body: dict[str, Instruction]) -> int:
        """Return what a loop adds to its counter in each iteration; 1 if that is unknown."""
        counts = [i for i in condition.values() if i.opcode == "get-tuple-element"]
        state = next((i for i in body.values() if i.root), None)
        if len(counts) != 1 or state is None or state.opcode != "tuple":
            return 1
        index = re.search(r"index=(\d+)", counts[0].rest)
        added = body.get(state.operands[int(index[1])]) if index else None
        if added is None or added.opcode != "add":
            return 1
        constants = _constants(body)
        return next((constants[x] for x in added.operands if x in constants), 1)

    def collectives(self) -> dict[str, Collective]:
        """Sum up what devices send one another, by kind of collective."""
        out: dict[str, Collective] = {}
        # On TPU, a collective that overlaps with several fusions appears in each of them. An
        # all-reduce of which each device keeps a part is in an "all-reduce-scatter" computation.
        chains: set[str] = set()
        scatters = {
            id(body) for name, body in self.computations.items() if "all-reduce-scatter" in name
        }
        for inside, name, times in self.walk(into_fusions=True):
            instruction = inside[name]
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            if chain := re.search(r'[ {]chain_id="\d+"', instruction.rest):
                if chain[0] in chains:
                    continue
                chains.add(chain[0])
            if kind == "all-reduce" and id(inside) in scatters:
                kind = "reduce-scatter"
            given = sum(num_bytes(inside[x].type_text) for x in instruction.operands if x in inside)
            group = _group_size(instruction.rest)
            found = out.setdefault(kind, Collective())
            found.count += times
            found.bytes += times * given * (group if kind == "all-gather" else 1)
            found.wire_bytes += times * _wire(kind, given, group)
        return out

    def memory_bytes(self, *, loops: bool = True) -> int:
        """Sum up the bytes that instructions read from and write to memory off the chip.

        If a fusion reads or writes a slice of an array, the slice alone counts.

        Args:
            loops: whether the body of a loop counts once for each iteration, instead of once.
        """
        total = 0
        for inside, name, times in self.walk(into_fusions=False):
            instruction = inside[name]
            if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")):
                continue
            total += (times if loops else 1) * self._moved(inside, instruction)
        return total

    def _moved(self, inside: dict[str, Instruction], instruction: Instruction) -> int:
        """Return the bytes that an instruction reads and writes."""
        given = [num_bytes(inside[x].type_text, hbm=True) for x in instruction.operands]
        out = num_bytes(instruction.type_text, hbm=True)
        opcode = instruction.opcode
        if "AllocateBuffer" in instruction.rest:
            return 0
        if opcode.endswith("-start"):  # the result includes the operands
            whole = sum(num_bytes(inside[x].type_text) for x in instruction.operands)
            target = num_bytes(instruction.type_text) - whole
            read = min(sum(given), target) if "slice" in opcode else sum(given)
            return read + max(0, out - sum(given))
        if opcode in ("dynamic-slice", "slice", "gather"):
            return min(given[0], num_bytes(instruction.type_text)) + out
        if opcode in ("dynamic-update-slice", "scatter"):
            return 2 * given[1] if len(given) > 1 else 2 * out
        if opcode == "fusion":
            body = self._fused(instruction)
            for number, whole in enumerate(given):
                if whole:
                    given[number] = min(whole, self._read_parameter(body, number, whole))
            for update, new in self._updates(body):
                if update <= out:
                    out -= update - new
        return sum(given) + out

    def _fused(self, fusion: Instruction) -> dict[str, Instruction]:
        """Return the computation of a fusion."""
        (called,) = _called(fusion.rest)[:1] or ("",)
        return self.computations.get(called, {})

    def _read_parameter(self, body: dict[str, Instruction], number: int, whole: int) -> int:
        """Return the bytes that a fusion reads of its parameter `number`."""
        for instruction in body.values():
            if instruction.opcode == "parameter" and int(instruction.arguments) == number:
                return self._read(body, instruction.name, whole)
        return whole

    def _read(self, body: dict[str, Instruction], name: str, whole: int) -> int:
        """Return the bytes that a fusion reads of an array; follow bitcasts and inner fusions."""
        total = 0
        for user in body.values():
            if name not in user.operands:
                continue
            if user.opcode == "bitcast":
                total += self._read(body, user.name, whole)
            elif user.opcode == "fusion":
                for number, operand in enumerate(user.operands):
                    if operand == name:
                        total += self._read_parameter(self._fused(user), number, whole)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                total += num_bytes(user.type_text)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue
            else:
                return whole
        return total

    def _updates(self, body: dict[str, Instruction]) -> Iterator[tuple[int, int]]:
        """Yield the bytes of each array that a fusion writes a slice into, and of the slice."""
        for instruction in body.values():
            if instruction.opcode == "dynamic-update-slice":
                new = body[instruction.operands[1]]
                yield num_bytes(instruction.type_text), num_bytes(new.type_text)
            elif instruction.opcode == "fusion":
                yield from self._updates(self._fused(instruction))


def _instruction(line: str) -> Instruction | None:
    """Parse a line; return None if it holds no instruction."""
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    text = found[3]
    if text.startswith("("):  # the type of a tuple, whose layouts contain brackets
        end = _closing(text, 0)
    else:
        end = text.find(" ")
    opcode = _OPCODE.match(text, end)
    if not opcode:
        return None
    start = opcode.end()
    close = _closing(text, start - 1)
    arguments = text[start : close - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(
        found[2], opcode[1], text[:end], operands, arguments, text[close:], bool(found[1])
    )


def _closing(text: str, at: int) -> int:
    """Return the index after the bracket that closes the one at index `at`."""
    depth = 0
    for index in range(at, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index + 1
    return len(text)


def _called(rest: str) -> list[str]:
    """Return the names of the computations that an instruction calls."""
    names = []
    for many, one in _CALLED.findall(rest):
        names += [x.strip().lstrip("%") for x in many.split(",")] if many else [one]
    return names


def num_bytes(type_text: str, *, hbm: bool = False) -> int:
    """Return the bytes of an array or tuple from its type; with `hbm`, of its parts in HBM."""
    total = 0
    for dtype, dims, layout in _ARRAY.findall(type_text):
        if hbm and re.search(r"S\([1-9]\d*\)", layout):
            continue
        bits = _BITS.get(dtype)
        if bits is None:
            digits = re.match(r"[a-z]+(\d+)", dtype)
            bits = int(digits[1]) if digits else 0
        sizes = [int(x.lstrip("<=")) for x in dims.split(",") if x]
        total += math.ceil(math.prod(sizes) * bits / 8)
    return total


def _group_size(rest: str) -> int:
    """Return the number of devices in a group of a collective."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\)\))? *\{([^}]*)\}"
    if named := re.search(mesh, rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    return 1


def _wire(kind: str, given: int, group: int) -> float:
    """Return the bytes that a device sends on a ring of `group` devices."""
    if kind == "all-reduce":
        return 2 * given * (group - 1) / group
    if kind == "all-gather":
        return given * (group - 1)
    if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return given * (group - 1) / group
    return given


def _constants(inside: dict[str, Instruction]) -> dict[str, int]:
    """Return the integer constants of a computation by name."""
    return {
        i.name: int(i.arguments)
        for i in inside.values()
        if i.opcode == "constant" and i.type_text.startswith(("s32[]", "u32[]"))
    }
