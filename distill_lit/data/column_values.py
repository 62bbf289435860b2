"""Values of a row's columns: bytes that are text become text, others stay what no template can print."""

from typing import Any

Row = dict[str, Any]


class Binary(bytes):
    """Binary data of a column that is no text: fine as long as nobody reads it as one."""

    location: str

    def __str__(self) -> str:
        raise ValueError(f"{self.location} is binary data that is no UTF-8 text")


def as_text(value: Any, location: str) -> Any:
    """A value with texts for its binary parts that are UTF-8, at any depth."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8-sig")
        except UnicodeDecodeError:
            binary = Binary(value)
            binary.location = location
            return binary
    if isinstance(value, dict):
        return {key: as_text(item, location) for key, item in value.items()}
    return [as_text(item, location) for item in value] if isinstance(value, list) else value
