"""Names and numbers as text: for Markdown, for files, to seed by."""

from __future__ import annotations

import hashlib
import re

from mtkd_jax.types import printable


def in_markdown(text: str) -> str:
    r"""A text in which Markdown sees no tag, entity, link, code or column, whatever names it holds.

    >>> print(in_markdown(r"<script>, p < 0.001, R&D, &lt; [a](b) c:\d e|f"))
    &lt;script>, p < 0.001, R&D, &amp;lt; [a]\(b) c:\\d e\|f
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", printable(text))
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.replace("\\", "\\\\"))
    return text.replace("](", "]\\(").replace("`", "\\`").replace("|", "\\|")


def seed_of(text: str) -> int:
    """A stable 31-bit number for a name, to seed by it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


LONGEST_SLUG = 100  # characters: file names hold 255 bytes


def slug(address: str) -> str:
    """An address as a file name; others for different addresses.

    What a file name cannot tell apart, such as a sign, is told by the beginning of a SHA-256.

    >>> slug("mlp(hidden=(32,))"), slug("stimuli.ods(step_size=-1.0)")
    ('mlp-hidden-32', 'stimuli.ods-step-size-1.0-ee2aee1d')
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-")
    if re.fullmatch(r"[\w.(,)= ]+", address, re.ASCII) and len(name) <= LONGEST_SLUG:
        return name
    return f"{name[:LONGEST_SLUG]}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def short_number(value: object) -> str:
    """A number as short as it can be without becoming another one; what is no number as Python writes it.

    >>> short_number(0.5), short_number(4.0), short_number(0.1234567), short_number(True)
    ('0.5', '4', '0.1234567', 'True')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return repr(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
