"""Chat templates as files: what encoding they have, and the one day that they write."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from onebase.errors import BaseError

DAY = datetime(2024, 7, 26)
"""Today, for chat templates that write the date: the day that Llama's own fall back to."""

BYTE_ORDER_MARK = "\ufeff"


def read_template(path: Path) -> str:
    """The template of `chat.template`; BaseError if it is missing or not UTF-8. A byte order mark is left out: an
    editor wrote it, and every prompt would begin with it."""
    if not path.is_file():
        raise BaseError(f"chat.template: there is no file {path}. Pass a jinja file, or leave it out.")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BaseError(f"chat.template: {path} cannot be read ({error.strerror}). Check its permissions.") from None
    require_utf8(raw, f"chat.template: {path}")
    template = raw.decode("utf-8-sig")
    if not template.strip():
        raise BaseError(f"chat.template: {path} is empty. Pass a jinja file, or leave it out.")
    return template


def require_utf8(raw: bytes, what: str) -> None:
    """BaseError unless these bytes of a file are a text in UTF-8. what: how the error calls the file."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"not UTF-8 (byte {raw[error.start]:#04x})"
        raise BaseError(f"{what}:{line}: the file is {kind}. Save it as UTF-8.") from None
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise BaseError(f"{what}:{line}: the file holds a zero byte, so it is not text. Save it as UTF-8.")


def require_readable_templates(folder: Path) -> None:
    """BaseError where a template beside the tokenizer is not UTF-8: the library's own error names no file."""
    for path in [folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))]:
        if path.is_file():
            require_utf8(path.read_bytes(), f"base.model: {path}")


def normalised(template: Any) -> Any:
    """A tokenizer's template, or its templates by name, without a byte order mark and on one day.

    Where it writes today's date (Llama 3.2), one day is put in its place: else a run that is resumed tomorrow would see
    other prompts. It is saved with the tokenizer: whoever serves the adapter prompts as training did.
    """
    if isinstance(template, dict):
        return {name: normalised(inner) for name, inner in template.items()}
    if not isinstance(template, str):
        return template
    call = r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)"
    return re.sub(call, lambda match: repr(DAY.strftime(match["format"])), template.removeprefix(BYTE_ORDER_MARK))
