"""The tracker as the collector serves it: `headrace.js` without what only its reader needs."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from importlib import resources
from itertools import product
from string import ascii_letters

from headrace.base.http import Request, Response

_CACHE_SECONDS = 300

# A text stays as it is; around all that is no word, spaces mean nothing.
_TEXTS_AND_SIGNS = re.compile(r'("[^"\n]*")| *([^\w\s"$]+) *')
# Where a line's end can't stand for a semicolon.
_IDLE_ENDS = re.compile(r"(?<=[{(,=>?:|&])\n|\n(?=[})\].?:|&])")
_OWN_NAMES = re.compile(r"\$\w+")


def shorten(source: str) -> str:
    r"""Returns a script without comments, indentation and spaces around signs, its own `$names` as letters.

    Ends of lines that may stand for semicolons are kept.

    >>> shorten('// why\nconst $sum = ($one) => {\n  return $one + $one + " + "\n}\n$sum(1)')
    'const b=(a)=>{return a+a+" + "}\nb(1)'
    """
    lines = [line.strip() for line in source.splitlines()]
    text = "\n".join(line for line in lines if line and not line.startswith("//"))
    text = _TEXTS_AND_SIGNS.sub(lambda found: found[1] or found[2], text)
    text = _IDLE_ENDS.sub("", text)
    # The most used name comes first: it then costs gzip the least.
    names = [name for name, _ in Counter(_OWN_NAMES.findall(text)).most_common()]
    letters = dict(zip(names, _letters(), strict=False))
    return _OWN_NAMES.sub(lambda found: letters[found[0]], text)


def _letters() -> Iterator[str]:
    yield from ascii_letters
    yield from map("_".join, product(ascii_letters, repeat=2))


@cache
def _tracker() -> tuple[bytes, bytes, bytes]:
    """Returns the script, the same with gzip, and its entity tag."""
    source = resources.files("headrace.collect").joinpath("headrace.js").read_text(encoding="utf-8")
    plain = shorten(source).encode()
    # 16 + MAX_WBITS writes a gzip header without a time, so that the bytes are the same each time.
    squeeze = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    # Weak, as it stands for both.
    tag = f'W/"{blake2b(plain, digest_size=8).hexdigest()}"'
    return plain, squeeze.compress(plain) + squeeze.flush(), tag.encode()


async def serve_tracker(request: Request) -> Response:
    """Returns the tracker, for a page of any origin; 304 if the browser has it."""
    plain, squeezed, tag = _tracker()
    headers = [
        (b"etag", tag),
        (b"cache-control", b"public, max-age=%d" % _CACHE_SECONDS),
        (b"vary", b"Accept-Encoding"),
        (b"access-control-allow-origin", b"*"),
        # For a page that admits only what agrees to be embedded.
        (b"cross-origin-resource-policy", b"cross-origin"),
    ]
    if tag in request.headers.get(b"if-none-match", b""):
        return Response(304, b"", headers)
    headers.append((b"content-type", b"text/javascript; charset=utf-8"))
    if b"gzip" not in request.headers.get(b"accept-encoding", b""):
        return Response(200, plain, headers)
    headers.append((b"content-encoding", b"gzip"))
    return Response(200, squeezed, headers)
