"""A page as it was sent, read without a browser: its elements, their attributes and their text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

# Those that have no end.
VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})


@dataclass
class Element:
    """One element; `parts` are its texts and the elements in it, in their order."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    parts: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        return " ".join("".join(self._texts()).split())

    def all(self, name: str, /, **attributes: str) -> list[Element]:
        """The elements of this name in it that have these attributes, in the order of the page."""
        return [
            one
            for one in self._elements()
            if one.name == name and attributes.items() <= one.attributes.items()
        ]

    def one(self, name: str, /, **attributes: str) -> Element:
        """The only one of them."""
        [found] = self.all(name, **attributes)
        return found

    def _texts(self) -> Iterator[str]:
        for part in self.parts:
            if isinstance(part, str):
                yield part
            else:
                yield from part._texts()

    def _elements(self) -> Iterator[Element]:
        for part in self.parts:
            if isinstance(part, Element):
                yield part
                yield from part._elements()


def read(html: str) -> Element:
    """The page as one element."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert len(reader.open) == 1, f"never closed: {[one.name for one in reader.open[1:]]}"
    return reader.open[0]


class _Reader(HTMLParser):
    """Builds the tree; what is not closed in the order it was opened fails the test."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        one = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(one)
        if tag not in VOID:
            self.open.append(one)

    def handle_endtag(self, tag: str) -> None:
        last = self.open.pop()
        assert last.name == tag, f"</{tag}> closes <{last.name}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)
