"""Texts escaped for Markdown."""

from __future__ import annotations

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
