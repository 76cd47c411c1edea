"""What a compiled program computes, moves and sends, read from its text.

The compiler's own count (`cost_analysis`) takes one turn of a loop, and counts values that never leave the fast memory
(VMEM) as traffic. Here a loop counts as often as it runs, of several branches the one that computes most, and traffic
is that of the large memory (HBM). What a kernel of ours does inside is not seen.
"""

import re
from math import prod
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "f16": 16, "s8": 8, "u8": 8, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "f64": 64}
SENDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What only names a value, waits for one, or runs other instructions that count
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "while", "conditional", "call"}
FREE |= {"partition-id", "replica-id", "after-all", "async-start", "async-update", "async-done"}
SLICES = {"dynamic-slice", "slice", "gather"}
CALLED = {"fusion": "calls", "async-start": "calls", "call": "to_apply", "while": "body"}
CALLED |= {"conditional": "branch_computations|true_computation|false_computation"}
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


class Array(NamedTuple):
    """shape; bits of a number; near: whether it is in the fast memory, where it costs no traffic."""

    shape: tuple[int, ...]
    bits: int
    near: bool

    @property
    def bytes(self) -> int:
        """Bytes of it, wherever it is."""
        return prod(self.shape) * self.bits // 8

    @property
    def far(self) -> int:
        """Bytes of it in the large memory: 0 if it is near."""
        return 0 if self.near else self.bytes


class Op(NamedTuple):
    """An instruction: its name, kind, results, the names of its operands, and all text from these on."""

    name: str
    kind: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self) -> list[str]:
        """Returns the names of the computations that it runs."""
        if self.kind not in CALLED:
            return []
        found = re.findall(rf"(?:{CALLED[self.kind]})=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return re.findall(r"%([\w.\-]+)", " ".join(found))


class Costs(NamedTuple):
    """Of one chip in one run of a program.

    Attributes:
      flops: operations of matrix products.
      bytes: read from and written to the large memory.
      sent: bytes that each kind of collective results in, by name; of a reduce-scatter those that go in.
    """

    flops: int
    bytes: int
    sent: dict[str, int]


class _Sum(NamedTuple):
    """As Costs; sent: (kind, bytes) of each collective, by its channel. One that spans several fusions counts once."""

    flops: int
    bytes: int
    sent: dict[str, tuple[str, int]]

    def times(self, turns: int) -> "_Sum":
        sent = {channel: (kind, turns * size) for channel, (kind, size) in self.sent.items()}
        return _Sum(turns * self.flops, turns * self.bytes, sent)

    def __add__(self, other: "_Sum") -> "_Sum":
        return _Sum(self.flops + other.flops, self.bytes + other.bytes, self.sent | other.sent)


def costs(text: str) -> Costs:
    """Returns the costs of a compiled program, from its text.

    A loop runs as often as its text says, in words or by the constant to which its condition compares a counter from 0.
    A loop without either counts once.
    """
    program, entry = _read(text)
    found = _of_computation(program, entry)
    sent = dict.fromkeys(SENDS, 0)
    for kind, size in found.sent.values():
        sent[kind] += size
    return Costs(found.flops, found.bytes, {kind: size for kind, size in sent.items() if size})


def _read(text: str) -> tuple[dict[str, dict[str, Op]], str]:
    """Returns (instructions by name, of each computation by its name; name of the computation that is the program)."""
    program, entry, current = {}, "", {}
    for line in text.splitlines():
        if line.endswith("{") and (begins := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = program[begins[2]] = {}
            entry = begins[2] if begins[1] else entry
        elif found := INSTRUCTION.match(line):
            root, name, results, kind, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
            current[name] = Op(name, kind, _arrays(results), operands, rest, bool(root))
    return program, entry


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(tuple(int(n) for n in shape.split(",") if n), BITS.get(dtype, 0), "S(" in layout)
        for dtype, shape, layout in ARRAY.findall(text)
    )


def _of_computation(program: dict, name: str, fused: bool = False) -> _Sum:
    """fused: whether values between its instructions stay on the chip, and are not moved."""
    total, ops = _Sum(0, 0, {}), program[name]
    for op in ops.values():
        parts = [_of_computation(program, called, fused or op.kind == "fusion") for called in op.called()]
        if op.kind == "conditional":
            parts = [max(parts, key=lambda part: part[:2])]
        if op.kind == "while":
            parts = [part.times(_turns(program, op)) for part in parts]
        sent, kind = {}, op.kind.removesuffix("-done")
        if kind in SENDS:
            channel = re.search(r"channel_id=(\d+)", op.rest)
            sent = {channel[1] if channel else op.name: (kind, _sent(op, ops))}
        total = sum(parts, total) + _Sum(_products(op, ops), 0 if fused else _moved(op, ops, program), sent)
    return total


def _sent(op: Op, ops: dict[str, Op]) -> int:
    """Returns the bytes of a collective: of its results, but of a reduce-scatter what each chip has before it."""
    if not op.kind.startswith("reduce-scatter"):
        return sum(array.bytes for array in op.results)
    begun = ops[op.operands[0]] if op.kind.endswith("-done") else op
    return sum(array.bytes for name in begun.operands for array in ops[name].results)


def _turns(program: dict, loop: Op) -> int:
    """Returns how often a loop runs, and 1 if its text does not say."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):  # the compiler of GPUs says it
        return int(known[1])
    condition = program[re.search(r"condition=%([\w.\-]+)", loop.rest)[1]]
    constants = [op.rest.partition(")")[0] for op in condition.values() if op.kind == "constant"]
    return int(constants[0]) if len(constants) == 1 else 1


def _products(op: Op, ops: dict[str, Op]) -> int:
    """Returns the operations of a matrix product: two for each pair of numbers that it multiplies."""
    if op.kind == "custom-call" and "__cublas" in op.rest:  # how the compiler of GPUs writes large products
        summed = re.search(r'"lhs_contracting_dimensions":\[(.*?)\]', op.rest)[1]
        left = ops[op.operands[0]].results[0].shape
        return 2 * prod(op.results[0].shape) * prod(left[int(axis)] for axis in re.findall(r"\d+", summed))
    if op.kind not in ("dot", "convolution"):
        return 0
    left, right = (ops[name].results[0].shape for name in op.operands)
    (result,) = op.results
    if op.kind == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)[1]
        return 2 * prod(result.shape) * prod(left[int(axis)] for axis in summed.split(",") if axis)
    # The TPU's compiler writes each product as a convolution, and axes of a batch as a window
    of_left, of_right, of_result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest).groups()
    length = lambda shape, labels, axis: shape[labels.index(axis)]
    pairs = 1
    for place, axis in enumerate(filter(str.isdigit, of_result)):
        lengths = length(left, of_left, axis), length(right, of_right, axis), length(result.shape, of_result, axis)
        pairs *= _pairs(*lengths, op.rest, place)
    batch, features = length(result.shape, of_result, "b"), length(result.shape, of_result, "f")
    return 2 * batch * features * length(right, of_right, "i") * pairs


def _pairs(inputs: int, window: int, outputs: int, rest: str, place: int) -> int:
    """Returns how many (output, place in the window) of one axis of a convolution meet an input."""
    attribute = lambda name: (re.search(rf"window=\{{[^}}]*{name}=([\d_x\-]+)", rest) or ("", ""))[1].split("x")
    of_axis = lambda name, default: (attribute(name) + [""] * place)[place] or default
    stride, far, near = (int(of_axis(name, "1")) for name in (" stride", "rhs_dilate", "lhs_dilate"))
    before = int(of_axis("pad", "0_0").split("_")[0])
    places = [o * stride + k * far - before for o in range(outputs) for k in range(window)]
    return sum(0 <= place < inputs * near and place % near == 0 for place in places)


def _moved(op: Op, ops: dict[str, Op], program: dict) -> int:
    """Returns the bytes that an instruction reads and writes in the large memory; of slices the slices alone."""
    if op.kind in FREE or op.kind.endswith("-start") or "AllocateBuffer" in op.rest:
        return 0
    if op.kind.endswith("-done"):  # of a copy between the two memories, or of a collective
        return sum(array.bytes for array in op.results)
    if op.kind == "fusion":
        return _moved_by_fusion(op, ops, program[op.called()[0]])
    if op.kind in SLICES:
        return 2 * op.results[0].far
    if op.kind == "dynamic-update-slice":
        return 2 * ops[op.operands[1]].results[0].bytes * (not op.results[0].near)
    return sum(array.far for name in (op.name, *op.operands) for array in ops[name].results)


def _moved_by_fusion(op: Op, ops: dict[str, Op], inner: dict[str, Op]) -> int:
    """Of a fusion, whose parts may take or change slices of what it is given."""
    passed = re.search(r"output_to_operand_aliasing=\{(.*?\}\))\}", op.rest)  # nothing moves there
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", passed[1]) if passed else []
    kept, given = {int(result or 0) for result, _ in pairs}, {int(operand) for _, operand in pairs}
    (root,) = (one for one in inner.values() if one.root)
    roots = root.operands if root.kind == "tuple" else (root.name,) * len(op.results)
    of_parameter = {int(one.rest.partition(")")[0]): one for one in inner.values() if one.kind == "parameter"}
    moved = 0
    for place, (name, array) in enumerate(zip(roots, op.results, strict=True)):
        if place not in kept and not array.near:
            moved += min(array.bytes, _changed(inner, name))
    for place, name in enumerate(op.operands):
        if place not in given:
            whole = sum(array.far for array in ops[name].results)
            moved += whole and min(whole, _used(inner, of_parameter[place].name))
    return moved


def _changed(inner: dict[str, Op], name: str) -> int:
    """Returns the bytes of a fusion's result that it writes."""
    op = inner[name]
    if op.kind == "bitcast":
        return _changed(inner, op.operands[0])
    changed = inner[op.operands[1] if op.kind == "dynamic-update-slice" else name]
    return sum(array.bytes for array in changed.results)


def _used(inner: dict[str, Op], name: str) -> int:
    """Returns the bytes that a fusion reads of what it is given as this parameter."""
    used = 0
    for op in inner.values():
        if name not in op.operands:
            continue
        if op.kind == "bitcast":
            used += _used(inner, op.name)
        elif op.kind in SLICES and op.operands[0] == name:
            used += op.results[0].bytes
        elif not (op.kind == "dynamic-update-slice" and op.operands[0] == name):
            return inner[name].results[0].bytes
    return used
