"""What names, keys and the like may be: an expression for programs, and the same in words for people."""

from __future__ import annotations

from db.tenants import ALLOWED

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$"
KEY = r"^[\x20-\x7e]{1,255}$"
LINE = r"^[^\x00\n]*$"
NO_NUL = r"^[^\x00]*$"

IN_WORDS = {
    NAME: ALLOWED,
    KEY: "use 1 to 255 printable ASCII characters",
    LINE: "it may hold no line feed and no NUL",
    NO_NUL: "it may hold no NUL",
}
