"""The caption in an XMP sidecar: `dc:description`, and of that the text for `x-default`.

A sidecar holds what a person did to a picture in Lightroom, darktable or digiKam. So none is ever written
anew: the parser says at which bytes the description stands, and all other bytes stay what they are.

Reference: ISO 16684-1 (XMP), 6.2 and 7.
"""

import re
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape

from batchcap.errors import ExchangeError

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_LANG = "http://www.w3.org/XML/1998/namespace lang"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"\x00")

_NEW = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


@dataclass(slots=True)
class _Element:
    """Where an element stands, in bytes: `<start`, `content`, `</end`; `end` is `content` for `<empty/>`."""

    start: int
    content: int
    prefix: str
    is_empty: bool
    # What stands for Dublin Core at this place.
    dc_prefix: str | None
    end: int = -1
    language: str | None = None
    text: list[str] = field(default_factory=list)


def description(data: bytes) -> str | None:
    """The description of a sidecar, on one line; None if there is none.

    Raises:
        ExchangeError: it is no XMP.
    """
    found = _read(data)
    item = found.default or (found.items[0] if found.items else None)
    if item is not None:
        text = "".join(item.text)
    elif found.attribute is not None:
        text = found.attribute[1]
    elif found.description is not None and found.alternatives is None:
        text = "".join(found.description.text)
    else:
        return None
    return " ".join(text.split()) or None


def with_description(data: bytes | None, text: str) -> bytes:
    """A sidecar with this description for `x-default`, and everything else byte for byte as it was.

    Args:
        data: the sidecar; None if there is none yet.
        text: without characters that control.

    Raises:
        ExchangeError: it is no XMP.
    """
    if data is None:
        data = _NEW.encode()
    found = _read(data)
    if found.attribute is not None:
        start, end = _attribute_value(data, found.attribute[0])
        return data[:start] + _encoded(text, found, {'"': "&quot;", "'": "&apos;"}) + data[end:]
    words = _encoded(text, found)
    if found.default is not None:
        return _replace_content(data, found.default, words)
    place = found.alternatives or found.description or found.node or found.rdf
    if place is None:
        raise ExchangeError("it holds no rdf:RDF")
    rdf = (found.alternatives or found.node or found.rdf or place).prefix
    item = _tag(rdf, "li", words, ' xml:lang="x-default"')
    if found.alternatives is not None:
        # The default comes first.
        return _replace_content(data, found.alternatives, item + _content(data, found.alternatives))
    alternatives = _tag(rdf, "Alt", item)
    if found.description is not None:
        return _replace_content(data, found.description, alternatives)
    declared = "" if place.dc_prefix else f' xmlns:dc="{_DC}"'
    added = _tag(place.dc_prefix or "dc", "description", alternatives, declared)
    if found.node is None:
        added = _tag(rdf, "Description", added, f' {rdf}:about=""' if rdf else "")
    return _replace_content(data, place, _content(data, place) + added)


class _Reader:
    """What a parser finds on its way through a sidecar."""

    def __init__(self, data: bytes) -> None:
        self.is_utf8 = True
        self.rdf: _Element | None = None
        self.node: _Element | None = None  # the rdf:Description that a description is in, or would be
        self.description: _Element | None = None
        self.alternatives: _Element | None = None
        self.items: list[_Element] = []
        self.attribute: tuple[_Attribute, str] | None = None
        self._data = data
        self._path: list[tuple[str, _Element]] = []
        self._namespaces: list[tuple[str, str]] = []
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.namespace_prefixes = True
        self._parser.buffer_text = False
        self._parser.XmlDeclHandler = self._declaration
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartNamespaceDeclHandler = self._begin_namespace
        self._parser.EndNamespaceDeclHandler = self._end_namespace
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.Parse(data, True)

    @property
    def default(self) -> _Element | None:
        return next((item for item in self.items if item.language == "x-default"), None)

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        self.is_utf8 = encoding is None or encoding.lower() == "utf-8"

    def _refuse(self, *args: object) -> None:
        raise ExchangeError("it has a DOCTYPE, which XMP has not")

    def _begin_namespace(self, prefix: str | None, uri: str | None) -> None:
        self._namespaces.append((prefix or "", uri or ""))

    def _end_namespace(self, prefix: str | None) -> None:
        self._namespaces.pop()

    def _dc_prefix(self) -> str | None:
        bound: dict[str, str] = dict(self._namespaces)
        return next((prefix for prefix, uri in bound.items() if uri == _DC and prefix), None)

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        start = self._parser.CurrentByteIndex
        content = _end_of_tag(self._data, start)
        is_empty = self._data[content - 2 : content] == b"/>"
        uri, _, rest = name.partition(" ")
        local, _, prefix = rest.partition(" ")
        element = _Element(start, content, prefix, is_empty, self._dc_prefix())
        inside = [known for known, _ in self._path[-4:]]
        kind = {_RDF: f"rdf:{local}", _DC: f"dc:{local}"}.get(uri, "")
        match kind:
            case "rdf:RDF":
                self.rdf = self.rdf or element
            case "rdf:Description" if inside[-1:] == ["rdf:RDF"]:
                self._begin_node(element, attributes)
            case "dc:description" if inside[-2:] == ["rdf:RDF", "rdf:Description"]:
                if self.description is None and self.attribute is None:
                    self.description = element
                    self.node = self._path[-1][1]
            case "rdf:Alt" if self._path and self._path[-1][1] is self.description:
                self.alternatives = self.alternatives or element
            case "rdf:li" if self._path and self._path[-1][1] is self.alternatives:
                element.language = next(
                    (value.lower() for key, value in attributes.items() if key.startswith(_LANG)), None
                )
                self.items.append(element)
        self._path.append((kind, element))

    def _begin_node(self, element: _Element, attributes: dict[str, str]) -> None:
        self.node = self.node or element
        for name, value in attributes.items():
            uri, _, rest = name.partition(" ")
            local, _, prefix = rest.partition(" ")
            if (uri, local) == (_DC, "description") and self.attribute is None and self.description is None:
                self.attribute = (_Attribute(element, f"{prefix}:{local}"), value)

    def _end(self, name: str) -> None:
        _, element = self._path.pop()
        element.end = element.content if element.is_empty else self._parser.CurrentByteIndex

    def _text(self, text: str) -> None:
        for _, element in self._path[-1:]:
            element.text.append(text)


@dataclass(frozen=True, slots=True)
class _Attribute:
    """An attribute of an element, by the name as it is written."""

    element: _Element
    name: str


def _read(data: bytes) -> _Reader:
    if data.startswith(_UTF_16):
        raise ExchangeError("it is not in UTF-8")
    try:
        return _Reader(data)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ExchangeError(f"it is no XMP: {' '.join(str(error).split())}") from error


def _end_of_tag(data: bytes, start: int) -> int:
    """Where the content begins after the tag that begins at `start`; a quoted `>` ends no tag."""
    found = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""").match(data, start)
    if found is None:
        raise ExchangeError("it is no XMP: a tag does not end")
    return found.end()


def _attribute_value(data: bytes, attribute: _Attribute) -> tuple[int, int]:
    """Where the value stands, without its quotes."""
    element = attribute.element
    # From one attribute to the next, so that no value is taken for one.
    pattern = re.compile(rb"""\s+([^\s=]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
    for found in pattern.finditer(data, element.start, element.content):
        if found[1] == attribute.name.encode():
            return found.span(2) if found[2] is not None else found.span(3)
    raise ExchangeError(f"it is no XMP: {attribute.name} is nowhere")


def _content(data: bytes, element: _Element) -> bytes:
    return b"" if element.is_empty else data[element.content : element.end]


def _replace_content(data: bytes, element: _Element, content: bytes) -> bytes:
    if not element.is_empty:
        return data[: element.content] + content + data[element.end :]
    name = re.compile(rb"<([^\s/>]+)").match(data, element.start)
    closing = b"</" + (name[1] if name else b"") + b">"
    return data[: element.content - 2] + b">" + content + closing + data[element.content :]


def _tag(prefix: str, name: str, content: bytes, attributes: str = "") -> bytes:
    full = f"{prefix}:{name}" if prefix else name
    return f"<{full}{attributes}>".encode() + content + f"</{full}>".encode()


def _encoded(text: str, found: _Reader, quotes: dict[str, str] | None = None) -> bytes:
    escaped = escape(text, quotes or {})
    return escaped.encode("utf-8" if found.is_utf8 else "ascii", "xmlcharrefreplace")
