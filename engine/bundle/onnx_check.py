"""Checks the bytes of an ONNX graph before a backend reads them.

A backend follows references to files outside the graph and runs every operator that it knows. So this walks
the protobuf wire format, with limits: only the fields that a plain graph needs are allowed, operators must be
on a list, and each tensor's numbers must be inside the file and as many as its shape says.
Field numbers are those of onnx.proto3, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import BundleError

# what timm's convolutional backbones, the pyramid, the heads and the BiGAN need, as exporters write it: no
# control flow, no random numbers, nothing that makes a large tensor out of a small one
OPERATORS = frozenset(
    """
    Abs Add AveragePool BatchNormalization Cast Clip Concat Constant Conv Div Elu Erf Exp Flatten Gather
    Gelu Gemm GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LayerNormalization
    LeakyRelu Log MatMul Max MaxPool Min Mish Mul Neg Pow PRelu Reciprocal ReduceL1 ReduceL2 ReduceMax
    ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Shape Sigmoid Sign Slice Softmax
    Softplus Split Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze
    """.split()  # noqa: SIM905 - fifty quotes tell a reader nothing
)
DOMAINS = ("", "ai.onnx")
OPSETS = range(13, 25)
FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, DOUBLE = 1, 2, 3, 6, 7, 9, 10, 11  # TensorProto.DataType
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, BOOL: 1, FLOAT16: 2, DOUBLE: 8}
# the field that lists a tensor's numbers if they are not in raw_data
FLOAT_DATA, INT32_DATA, INT64_DATA, DOUBLE_DATA = 4, 5, 7, 10
NUMBER_FIELD: dict[int, int] = {
    **dict.fromkeys((UINT8, INT8, INT32, BOOL, FLOAT16), INT32_DATA),
    FLOAT: FLOAT_DATA,
    INT64: INT64_DATA,
    DOUBLE: DOUBLE_DATA,
}
NUMBER_BYTES = {FLOAT_DATA: 4, INT32_DATA: None, INT64_DATA: None, DOUBLE_DATA: 8}  # None: varints
MOST_NODES = 20_000
MOST_ELEMENTS = 1 << 28
MOST_DIMENSIONS = 8

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Shape = tuple[int | None, ...]  # None is a free dimension
Port = tuple[int, Shape]  # type and shape of an input or output


@dataclass
class _GraphContents:
    """Inputs, outputs and sizes that a walk through a graph has gathered."""

    inputs: dict[str, Port] = field(default_factory=dict)
    outputs: dict[str, Port] = field(default_factory=dict)
    initializers: set[str] = field(default_factory=set)
    nodes: int = 0


def check_graph(data: bytes, name: str, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> None:
    """Raise BundleError unless the file `name` is a plain graph with exactly these inputs and outputs.

    A free dimension of `inputs` and `outputs` must be free in the graph, every other must have its size.
    """
    graph = _GraphContents()
    try:
        _walk_model(memoryview(data), graph)
    except _NotPlain as error:
        raise BundleError(f"{name} {error}") from None
    found_inputs = {key: port for key, port in graph.inputs.items() if key not in graph.initializers}
    for kind, actual, wanted in (("inputs", found_inputs, inputs), ("outputs", graph.outputs, outputs)):
        if actual != wanted:
            raise BundleError(f"{name} has the {kind} {_describe(actual)} and must have {_describe(wanted)}")


def _describe(ports: Mapping[str, Port]) -> str:
    def one(name: str, port: Port) -> str:
        sizes = ", ".join("N" if size is None else str(size) for size in port[1])
        return f"{name[:40]!r} [{sizes}] of type {port[0]}"

    return ", ".join(one(name, port) for name, port in list(ports.items())[:8]) or "none"


class _NotPlain(Exception):
    """What is wrong with the graph: the rest of a sentence that begins with the file's name."""


Field = tuple[int, int, int | memoryview]  # number, wire type, value


def _fields(data: memoryview) -> Iterator[Field]:
    """Yield the fields of one message, each checked to be inside it."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise _NotPlain("is not a protobuf message")
        if length > len(data) - at:
            raise _NotPlain("is cut short")
        yield number, wire, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _NotPlain("is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise _NotPlain("is not a protobuf message")


def _known_fields(
    data: memoryview, message: str, single: dict[int, str], many: dict[int, str]
) -> Iterator[Field]:
    """Yield the fields of a message, all known, those of `single` at most once: parsers merge duplicates."""
    seen: set[int] = set()
    for number, wire, value in _fields(data):
        if number not in single and number not in many:
            raise _NotPlain(f"holds the {message} field {number}, which is not allowed")
        if number in single and number in seen:
            raise _NotPlain(f"holds the {message} field {single[number]} twice")
        seen.add(number)
        yield number, wire, value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _NotPlain("is not a protobuf message")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _NotPlain("is not a protobuf message")
    return value


def _text(value: int | memoryview) -> str:
    data = _message(value)
    if len(data) > 4096:
        raise _NotPlain("holds a name longer than 4096 bytes")
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise _NotPlain("holds a name that is not UTF-8") from None


def _walk_model(data: memoryview, graph: _GraphContents) -> None:
    single = {1: "ir_version", 2: "producer_name", 3: "producer_version", 4: "domain", 5: "model_version"}
    single |= {6: "doc_string", 7: "graph"}
    graphs = 0
    for number, _, value in _known_fields(data, "model", single, {8: "opset_import", 14: "metadata_props"}):
        if number == 7:
            _walk_graph(_message(value), graph)
            graphs += 1
        elif number == 8:
            _check_opset(_message(value))
    if not graphs:
        raise _NotPlain("holds no graph")


def _check_opset(data: memoryview) -> None:
    domain, version = "", 0
    for number, _, value in _known_fields(data, "opset_import", {1: "domain", 2: "version"}, {}):
        if number == 1:
            domain = _text(value)
        else:
            version = _number(value)
    if domain not in DOMAINS:
        raise _NotPlain(f"needs operators of {domain[:60]!r}, and only ONNX's own are supported")
    if version not in OPSETS:
        raise _NotPlain(f"needs operator set {version}, and {OPSETS[0]} to {OPSETS[-1]} are supported")


def _walk_graph(data: memoryview, graph: _GraphContents) -> None:
    single = {2: "name", 10: "doc_string"}
    many = {1: "node", 5: "initializer", 11: "input", 12: "output", 13: "value_info", 16: "metadata_props"}
    for number, _, value in _known_fields(data, "graph", single, many):
        if number == 1:
            graph.nodes += 1
            _check_node(_message(value))
        elif number == 5:
            graph.initializers.add(_check_tensor(_message(value)))
        elif number in (11, 12):
            name, port = _port(_message(value))
            ports = graph.inputs if number == 11 else graph.outputs
            if name in ports:
                raise _NotPlain(f"names {name[:80]!r} twice")
            ports[name] = port
    if graph.nodes > MOST_NODES:
        raise _NotPlain(f"holds {graph.nodes} operators, above the limit of {MOST_NODES}")


def _check_node(data: memoryview) -> None:
    single = {3: "name", 4: "op_type", 6: "doc_string", 7: "domain"}
    many = {1: "input", 2: "output", 5: "attribute", 9: "metadata_props"}
    kind, domain = "", ""
    for number, _, value in _known_fields(data, "node", single, many):
        if number == 4:
            kind = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            _check_attribute(_message(value))
    if domain not in DOMAINS or kind not in OPERATORS:
        prefix = f"{domain[:60]}." if domain not in DOMAINS else ""
        raise _NotPlain(
            f"holds the operator {(prefix + kind[:60])!r}, which is not on the list of known ones"
        )


def _check_attribute(data: memoryview) -> None:
    # graphs (6, 11), sparse tensors, tensor lists and references to function attributes are not among them
    single = {1: "name", 2: "f", 3: "i", 4: "s", 5: "t", 13: "doc_string", 20: "type"}
    for number, _, value in _known_fields(data, "attribute", single, {7: "floats", 8: "ints", 9: "strings"}):
        if number == 5:
            _check_tensor(_message(value))


@dataclass
class _Tensor:
    """The fields of a TensorProto."""

    name: str = ""
    kind: int = 0
    dims: list[int] = field(default_factory=list)
    raw: int | None = None  # bytes
    listed: Counter[int] = field(default_factory=Counter)  # count of listed numbers, by field


def _check_tensor(data: memoryview) -> str:
    """Check one tensor and return its name."""
    tensor = _read_tensor(data)
    if tensor.kind not in ITEM_BYTES:
        raise _NotPlain(
            f"holds the tensor {tensor.name[:80]!r} of type {tensor.kind}, which is not supported"
        )
    if len(tensor.dims) > MOST_DIMENSIONS or math.prod(tensor.dims) > MOST_ELEMENTS:
        raise _NotPlain(f"holds the tensor {tensor.name[:80]!r}, which is too large")
    if tensor.raw is None:
        held = {NUMBER_FIELD[tensor.kind]: math.prod(tensor.dims)}
        fits = +tensor.listed == +Counter(held)
    else:
        fits = not tensor.listed and tensor.raw == math.prod(tensor.dims) * ITEM_BYTES[tensor.kind]
    if not fits:
        raise _NotPlain(f"holds the tensor {tensor.name[:80]!r} of another size than its shape {tensor.dims}")
    return tensor.name


def _read_tensor(data: memoryview) -> _Tensor:
    tensor = _Tensor()
    single = {2: "data_type", 8: "name", 9: "raw_data", 12: "doc_string", 14: "data_location"}
    many = {1: "dims", 13: "external_data", 16: "metadata_props", **dict.fromkeys(NUMBER_BYTES, "numbers")}
    for number, wire, value in _known_fields(data, "tensor", single, many):
        if number == 13 or (number == 14 and value != 0):
            raise _NotPlain("refers to numbers in another file, which is not allowed")
        if number == 1:
            tensor.dims += _varints(wire, value)
        elif number == 2:
            tensor.kind = _number(value)
        elif number == 8:
            tensor.name = _text(value)
        elif number == 9:
            tensor.raw = len(_message(value))
        elif number in NUMBER_BYTES:
            tensor.listed[number] += _count(NUMBER_BYTES[number], wire, value)
    return tensor


def _varints(wire: int, value: int | memoryview) -> list[int]:
    """Return the numbers of a repeated field, packed or not."""
    if wire == VARINT:
        return [_number(value)]
    data, at, numbers = _message(value), 0, []
    while at < len(data):
        number, at = _varint(data, at)
        numbers.append(number)
    return numbers


def _count(size: int | None, wire: int, value: int | memoryview) -> int:
    """Count the numbers of a field: of fixed size, or varints, of which only the last byte is below 128."""
    if wire != BYTES:
        return 1
    data = _message(value)
    return len(data) // size if size else sum(byte < 0x80 for byte in data)


def _port(data: memoryview) -> tuple[str, Port]:
    """Return name, type and shape of an input or output."""
    name = ""
    kind: int | None = None
    sizes: list[int | None] = []
    single = {1: "name", 2: "type", 3: "doc_string"}
    for number, _, value in _known_fields(data, "value", single, {4: "metadata_props"}):
        if number == 1:
            name = _text(value)
        elif number == 2:
            kind, sizes = _tensor_type(_message(value))
    if kind is None:
        raise _NotPlain(f"holds the value {name[:80]!r} without a type")
    return name, (kind, tuple(sizes))


def _tensor_type(data: memoryview) -> tuple[int, list[int | None]]:
    kind = 0
    sizes: list[int | None] = []
    for _, _, value in _known_fields(data, "type", {1: "tensor_type"}, {}):
        for number, _, inner in _known_fields(
            _message(value), "tensor type", {1: "elem_type", 2: "shape"}, {}
        ):
            if number == 1:
                kind = _number(inner)
            else:
                sizes = [
                    _size(_message(each))
                    for _, _, each in _known_fields(_message(inner), "shape", {}, {1: "dim"})
                ]
    return kind, sizes


def _size(data: memoryview) -> int | None:
    size: int | None = None
    for number, _, value in _known_fields(
        data, "dimension", {1: "dim_value", 2: "dim_param"}, {3: "denotation"}
    ):
        if number == 1:
            size = _number(value)
    return size
