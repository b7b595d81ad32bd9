"""Checks the XML of an OpenVINO model, the INT8 network, before OpenVINO reads it.

The XML holds operators and the offset of each constant in the second file. It is parsed by expat with limits:
ASCII only, no document type and so no entities, only the elements and operators that a plain graph needs, no
edge backwards, and every constant inside the file and as long as its shape says.
Format: https://docs.openvino.ai/2026/documentation/openvino-ir-format/operation-sets.html
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from ..errors import BundleError

# the operators of onnx_check, as OpenVINO names them, and what quantization adds; those with a body, with a
# state, with random numbers, and those that make a large tensor out of a small one are not among them
OPERATORS = frozenset(
    """
    Abs Add AvgPool Clamp Concat Const Convert Convolution Divide Elu Erf Exp FakeQuantize Gather Gelu
    GroupConvolution HSigmoid HSwish HardSigmoid Log MVN MatMul MaxPool Maximum Minimum Mish Multiply Negative
    PReLU Parameter Power ReLU ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Reshape Result
    ShapeOf Sigmoid Sign Slice SoftMax SoftPlus Split Sqrt Squeeze StridedSlice Subtract Swish Tanh Transpose
    Unsqueeze VariadicSplit
    """.split()  # noqa: SIM905 - fifty quotes tell a reader nothing
)
VERSIONS = frozenset(f"opset{number}" for number in range(1, 17))
PORT_TYPES = {"FP32": "f32"}  # of an output, as constants and parameters write it
ITEM_BYTES = {"boolean": 1, "u8": 1, "i8": 1, "f16": 2, "i32": 4, "f32": 4, "i64": 8}
IR_VERSION = "11"
LARGEST_XML = 64 << 20  # bytes
MOST_LAYERS = 20_000
MOST_PORTS = 64  # of one layer
MOST_DIMENSIONS = 8
LONGEST_TEXT = 4096  # characters
# the attributes that an element may have (None: any), and what may stand in it
ELEMENTS: dict[str, tuple[frozenset[str] | None, frozenset[str]]] = {
    "": (frozenset(), frozenset({"net"})),
    "net": (frozenset({"name", "version"}), frozenset({"layers", "edges"})),
    "layers": (frozenset(), frozenset({"layer"})),
    "layer": (
        frozenset({"id", "name", "type", "version", "output_names"}),
        frozenset({"data", "input", "output"}),
    ),
    "data": (None, frozenset()),
    "input": (frozenset(), frozenset({"port"})),
    "output": (frozenset(), frozenset({"port"})),
    "port": (frozenset({"id", "precision", "names"}), frozenset({"dim"})),
    "dim": (frozenset(), frozenset()),
    "edges": (frozenset(), frozenset({"edge"})),
    "edge": (frozenset({"from-layer", "from-port", "to-layer", "to-port"}), frozenset()),
}
ONCE = frozenset({"net", "layers", "edges", "data", "input", "output"})  # in the element around them

Shape = tuple[int | None, ...]  # None is a free dimension
Port = tuple[str, Shape]  # type and shape of an input or output


@dataclass
class _Port:
    """An input or output of a layer."""

    precision: str
    names: str
    shape: list[int | None] = field(default_factory=list)


@dataclass
class _Layer:
    """One operator as the XML describes it."""

    kind: str
    data: dict[str, str] = field(default_factory=dict)
    outputs: dict[int, _Port] = field(default_factory=dict)
    sources: list[tuple[int, int]] = field(default_factory=list)  # layer and port of each input


def check_ir(
    xml: bytes, weights: int, name: str, inputs: Mapping[str, Port], outputs: Mapping[str, Port]
) -> None:
    """Raise BundleError unless the XML file `name` is a plain graph with exactly these inputs and outputs.

    `weights` is the number of bytes of the file of constants. Types are those of the XML, such as f32; a free
    dimension must be free in the graph, every other must have its size.
    """
    try:
        layers = _Reader().read(xml)
        _check_constants(layers, weights)
        found_inputs, found_outputs = _inputs(layers), _outputs(layers)
    except _NotPlain as error:
        raise BundleError(f"{name} {error}") from None
    for kind, actual, wanted in (("inputs", found_inputs, inputs), ("outputs", found_outputs, outputs)):
        if actual != wanted:
            raise BundleError(f"{name} has the {kind} {_describe(actual)} and must have {_describe(wanted)}")


def _describe(ports: Mapping[str, Port]) -> str:
    def one(name: str, port: Port) -> str:
        sizes = ", ".join("N" if size is None else str(size) for size in port[1])
        return f"{name[:40]!r} [{sizes}] of type {port[0][:20]}"

    return ", ".join(one(name, port) for name, port in list(ports.items())[:8]) or "none"


class _NotPlain(Exception):
    """What is wrong with the graph: the rest of a sentence that begins with the file's name."""


class _Reader:
    """Gathers layers and edges while expat parses the XML."""

    def __init__(self) -> None:
        self.layers: dict[int, _Layer] = {}
        self._path = [""]
        self._seen: list[set[str]] = [set()]  # names of the elements already seen in each element of the path
        self._text = ""
        self._handlers: dict[str, Callable[[dict[str, str]], None]] = {
            "net": self._net,
            "layer": self._layer,
            "data": self._data,
            "port": self._port,
            "edge": self._edge,
        }

    def read(self, xml: bytes) -> dict[int, _Layer]:
        """Return the layers by number, in order."""
        if len(xml) > LARGEST_XML:
            raise _NotPlain(f"has {len(xml)} bytes, above the limit of {LARGEST_XML}")
        if not xml.isascii():  # parsers differ in how they detect other encodings
            raise _NotPlain("holds bytes that are not ASCII text")
        parser = expat.ParserCreate("us-ascii")
        parser.StartDoctypeDeclHandler = self._refuse("a document type")
        parser.ProcessingInstructionHandler = self._refuse("a processing instruction")
        parser.CommentHandler = self._refuse("a comment")
        parser.StartCdataSectionHandler = self._refuse("a CDATA section")
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._characters
        try:
            parser.Parse(xml, True)
        except expat.ExpatError as error:
            raise _NotPlain(f"is not XML ({expat.ErrorString(error.code)}, line {error.lineno})") from None
        return self.layers

    def _refuse(self, what: str) -> Callable[..., None]:
        def handler(*_: object) -> None:
            raise _NotPlain(f"holds {what}, which is not allowed")

        return handler

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        parent = self._path[-1]
        self._check_no_text(parent)
        if element not in ELEMENTS[parent][1]:
            raise _NotPlain(f"holds the element {element[:60]!r} in {parent or 'the document'!r}")
        if element in ONCE and element in self._seen[-1]:
            raise _NotPlain(f"holds the element {element!r} twice in {parent or 'the document'!r}")
        known = ELEMENTS[element][0]
        for name in attributes.keys() - known if known is not None else ():
            raise _NotPlain(f"holds the attribute {name[:60]!r} of {element!r}, which is not allowed")
        if any(len(value) > LONGEST_TEXT for value in attributes.values()):
            raise _NotPlain(f"holds an attribute of {element!r} longer than {LONGEST_TEXT} characters")
        self._seen[-1].add(element)
        self._path.append(element)
        self._seen.append(set())
        self._text = ""
        if element in self._handlers:
            self._handlers[element](attributes)

    def _end(self, element: str) -> None:
        if element == "dim":
            port = self._last_port
            if len(port.shape) == MOST_DIMENSIONS:
                raise _NotPlain(f"holds a port of more than {MOST_DIMENSIONS} dimensions")
            size = _number(self._text.strip(), signed=True)
            port.shape.append(None if size == -1 else size)
        else:
            self._check_no_text(element)
        self._text = ""
        self._path.pop()
        self._seen.pop()

    def _check_no_text(self, element: str) -> None:
        if self._text.strip():
            raise _NotPlain(f"holds text in the element {element!r}")

    def _characters(self, text: str) -> None:
        self._text += text
        if len(self._text) > LONGEST_TEXT:
            raise _NotPlain(f"holds text of more than {LONGEST_TEXT} characters")

    def _net(self, attributes: dict[str, str]) -> None:
        if attributes.get("version") != IR_VERSION:
            raise _NotPlain(
                f"has the version {attributes.get('version', '')[:20]!r} and must have {IR_VERSION!r}"
            )

    def _layer(self, attributes: dict[str, str]) -> None:
        number, kind = _number(attributes.get("id", "")), attributes.get("type", "")
        version = attributes.get("version", "")
        if kind not in OPERATORS or version not in VERSIONS:
            raise _NotPlain(
                f"holds the operator {f'{version}.{kind}'[:80]!r}, which is not on the list of known ones"
            )
        if number != len(self.layers):
            raise _NotPlain(f"numbers a layer {number} where {len(self.layers)} was expected")
        if len(self.layers) == MOST_LAYERS:
            raise _NotPlain(f"holds more than {MOST_LAYERS} layers")
        self._last_layer = self.layers[number] = _Layer(kind)

    def _data(self, attributes: dict[str, str]) -> None:
        self._last_layer.data = attributes

    def _port(self, attributes: dict[str, str]) -> None:
        port = _Port(attributes.get("precision", ""), attributes.get("names", ""))
        number = _number(attributes.get("id", ""))
        ports = self._last_layer.outputs if self._path[-2] == "output" else {}
        if number in ports or number >= MOST_PORTS:
            raise _NotPlain(f"holds the port {number} of a layer twice, or more than {MOST_PORTS} ports")
        self._last_port = ports[number] = port

    def _edge(self, attributes: dict[str, str]) -> None:
        ends = [
            _number(attributes.get(name, "")) for name in ("from-layer", "from-port", "to-layer", "to-port")
        ]
        source, port, target, _ = ends
        if source not in self.layers or port not in self.layers[source].outputs:
            raise _NotPlain(f"holds an edge from port {port} of layer {source}, which is not there")
        if not source < target < len(self.layers):
            raise _NotPlain(f"holds an edge from layer {source} to {target}, which leads backwards")
        self.layers[target].sources.append((source, port))


def _number(text: str, *, signed: bool = False) -> int:
    """Parse a whole number in the one spelling that all parsers read alike."""
    if not re.fullmatch(r"-1|0|[1-9][0-9]{0,11}" if signed else r"0|[1-9][0-9]{0,11}", text):
        raise _NotPlain(f"holds {text[:40]!r} in place of a number")
    return int(text)


def _sizes(text: str) -> list[int]:
    """Parse a constant's shape, such as '64, 3, 7, 7'; that of a scalar is ''."""
    sizes = [_number(size.strip()) for size in text.split(",")] if text.strip() else []
    if len(sizes) > MOST_DIMENSIONS:
        raise _NotPlain(f"holds a constant of more than {MOST_DIMENSIONS} dimensions")
    return sizes


def _check_constants(layers: Mapping[int, _Layer], weights: int) -> None:
    """Check that every constant lies inside the file of `weights` bytes and is as long as its shape says."""
    for number, layer in layers.items():
        if layer.kind != "Const":
            continue
        if layer.data.keys() != {"element_type", "shape", "offset", "size"}:
            raise _NotPlain(f"must describe the constant {number} by element_type, shape, offset and size")
        kind = layer.data["element_type"]
        if kind not in ITEM_BYTES:
            raise _NotPlain(f"holds the constant {number} of type {kind[:20]!r}, which is not supported")
        offset, size = _number(layer.data["offset"]), _number(layer.data["size"])
        if size != math.prod(_sizes(layer.data["shape"])) * ITEM_BYTES[kind]:
            raise _NotPlain(f"holds the constant {number} of another size than its shape")
        if offset + size > weights:
            raise _NotPlain(
                f"places the constant {number} beyond the {weights} bytes of the file of constants"
            )


def _inputs(layers: Mapping[int, _Layer]) -> dict[str, Port]:
    """Return name, type and shape of the graph's inputs, as their operators say."""
    ports: dict[str, Port] = {}
    for layer in layers.values():
        if layer.kind == "Parameter":
            shape = [each.strip() for each in layer.data.get("shape", "").split(",")]
            sizes = tuple(None if each in ("?", "-1") else _number(each) for each in shape)
            ports[_only(layer.outputs).names] = (layer.data.get("element_type", ""), sizes)
    return ports


def _outputs(layers: Mapping[int, _Layer]) -> dict[str, Port]:
    """Return name, type and shape of the graph's outputs, as the layers that compute them say."""
    ports: dict[str, Port] = {}
    for layer in layers.values():
        if layer.kind == "Result":
            if len(layer.sources) != 1:
                raise _NotPlain("holds an output that is not computed by exactly one layer")
            source, number = layer.sources[0]
            port = layers[source].outputs[number]
            ports[port.names] = (PORT_TYPES.get(port.precision, port.precision), tuple(port.shape))
    return ports


def _only(ports: Mapping[int, _Port]) -> _Port:
    if len(ports) != 1:
        raise _NotPlain("holds an input that does not have one port")
    return next(iter(ports.values()))
