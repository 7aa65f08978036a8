"""Five hundred names that try to leave their place in a report.

Every one of them is what a tensor, a file, a folder, an architecture or some metadata could be
called. Whatever runs calls ``alert``, which the browser tests trap.
"""

from __future__ import annotations

import unicodedata
from itertools import product

COUNT = 500

_LIVE = [
    "<script>alert(1)</script>",
    "<ScRiPt/x>alert(1)</sCrIpT>",
    "<script src='data:text/javascript,alert(1)'></script>",
    "<img src=x onerror=alert(1)>",
    "<img/src/onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><a xlink:href='javascript:alert(1)'><text y=9>x</text></a></svg>",
    "<math><mtext><img src=x onerror=alert(1)></mtext></math>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<object data='javascript:alert(1)'></object>",
    "<embed src='data:text/html,<script>alert(1)</script>'>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<input autofocus onfocus=alert(1)>",
    "<select autofocus onfocus=alert(1)></select>",
    "<video><source onerror=alert(1) src=x></video>",
    "<audio src=x onerror=alert(1)></audio>",
    "<style>@keyframes k{}</style><p style='animation:k 1s' onanimationstart=alert(1)>",
    "<a href='javascript:alert(1)' autofocus onfocus=alert(1) tabindex=0>x</a>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "<form action='javascript:alert(1)'><button autofocus onfocus=alert(1)>x</button></form>",
    "<template><img src=x onerror=alert(1)></template>",
]
_WAYS_OUT = [
    "",
    '">',
    "'>",
    "`>",
    "-->",
    "]]>",
    "</title>",
    "</style>",
    "</script>",
    "</textarea></svg>",
    "</pre></table></div>",
    "&quot;&gt;",
    "%22%3E",
    '\\">',
    '\x00">',
    '\u2028">',
]
_OTHERS = [
    # attributes
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '" autofocus onfocus=alert(1) x="',
    '"style="background:url(javascript:alert(1))',
    '" onload=alert(1) //',
    "` onerror=`alert(1)`",
    # entities
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "&#x3c;img src=x onerror=alert(1)&#x3e;",
    "&amp;lt;svg onload=alert(1)&amp;gt;",
    "&colon;&NewLine;&Tab;&nbsp;",
    # addresses
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "java\nscript:alert(1)",
    " javascript:alert(1)",
    "\x01javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
    "vbscript:msgbox(1)",
    "//example.org/x.js",
    "file:///etc/passwd",
    "\\\\host\\share\\x",
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    # templates and formats
    "{{7*7}}",
    "{{config}}",
    "{{''.__class__.__mro__[1].__subclasses__()}}",
    "{% raw %}{% endraw %}",
    "{% include '/etc/passwd' %}",
    "{# comment #}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "%s%s%s%n",
    "%(asctime)s",
    "{0}{1}",
    "{0.__class__}",
    "$(touch x)",
    "`touch x`",
    "; touch x;",
    # links of a SARIF message and of markdown
    "[click](javascript:alert(1))",
    "[click](http://example.org)",
    "![x](http://example.org/x.png)",
    "[0](1)",
    "<http://example.org>",
    "| a | b |",
    "# heading",
    # markup of the terminal
    "[bold red]loud[/bold red]",
    "[link=http://example.org]x[/link]",
    "[/]",
    # escape sequences
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.org\x1b\\x\x1b]8;;\x1b\\",
    "\x1b]52;c;bHM=\x07",
    "\x1bP$q\x1b\\",
    "\x9b31m",
    "a\rb",
    "a\x08\x08b",
    "\x07",
    "\x7f",
    # direction, width and what is not seen
    "\u202egnp.exe\u202c",
    "\u2066x\u2069",
    "\u200bzero\u200d\ufeffwidth",
    "a\u0301\u0302\u0303" * 30,
    "\u2028line\u2029paragraph",
    "\ud800lone",
    "\udfffsurrogate",
    "\ue000private",
    "\U0001f600\U0010ffff",
    # cells of a table
    "=1+1",
    '=HYPERLINK("http://example.org","x")',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1+1",
    "\r\n=1+1",
    # NUL and lines
    "a\x00b",
    "\x00",
    "a\nb\n\nc",
    "\r\n\r\nHTTP/1.1 200 OK\r\n",
    # other notations
    "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
    "<![CDATA[x]]>",
    '{"a": 1}',
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "' OR 1=1 --",
    "__proto__",
    "constructor",
    # of no length, and of a great one
    "",
    " ",
    "A" * 4_000,
    "<" * 500,
    "&" * 500,
    '"' * 500,
    "\x1b" * 300,
    "[" * 500,
    "{{" * 300,
    "a/" * 500,
]


def hostile_strings() -> list[str]:
    """The names, all different; the same ones in the same order every time."""
    combined = [out + live for live, out in product(_LIVE, _WAYS_OUT)]
    strings = list(dict.fromkeys([*_OTHERS, *combined]))
    return strings[:COUNT]


def is_visible(text: str) -> bool:
    """Nothing that controls a terminal, turns text around or cannot be seen."""
    return not {unicodedata.category(c) for c in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def packed(size: int = 20) -> list[str]:
    """All of them in a few strings, each of ``size`` names on lines of their own."""
    names = hostile_strings()
    return ["\n".join(names[i : i + size]) for i in range(0, len(names), size)]
