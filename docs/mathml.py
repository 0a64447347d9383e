"""A hook of the documentation's build: TeX between dollars becomes MathML, which browsers show themselves."""

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_post_page(output: str, page, config) -> str:
    """The page with its equations as MathML."""
    output = INLINE.sub(lambda found: convert(html.unescape(found[1])), output)
    return BLOCK.sub(lambda found: convert(html.unescape(found[1]), display="block"), output)
