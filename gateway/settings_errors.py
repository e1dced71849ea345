"""Messages for settings that cannot be used: the value found and what is allowed. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from gateway.api_keys import ApiKey
from gateway.slo import SloClass

PREFIX, NESTED = "BERTIER_", "__"
CLIENTS_KEY = f"{PREFIX}API_KEY"  # not a setting: the API key of `bertier ask`
OPTIMIZERS_CACHE = f"{PREFIX}CACHE_DIR"  # not a setting: the download cache of `bertier-optimize`
# Variables that Kubernetes and container links set for a service called bertier or bertier-...
_OF_A_SERVICE = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)|(_PORT)?_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

# Settings that are tables of named tables, with the keys of each.
INSIDE: Mapping[str, Collection[str]] = {
    "classes": [f.name for f in fields(SloClass)],
    "api_keys": list(ApiKey.model_fields),
}
UNREPEATED = "api_keys"  # its values may be secrets: never quoted in a message
UNITS = {"_ms": "ms", "_bytes": "bytes", "_chars": "characters", "_port": "a port"}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
TYPES = ("bool_type", "float_type", "int_type", "string_type")  # strict: nothing is converted
NO_NUMBER = ("float_parsing", "float_type", "int_parsing", "int_type", "int_from_float")


def describe(errors: Sequence[Mapping[str, Any]], known: Collection[str]) -> tuple[str, str]:
    """Return the dotted name of the first setting to fix, and what is wrong with it.

    `known`: all settings. An unknown key comes before a missing one: it is probably that one, misspelt.
    """
    first = min(errors, key=lambda error: error["type"] not in UNKNOWN)
    loc = [str(part) for part in first["loc"]] or ["settings"]
    return ".".join(loc), _what(first, loc, known)


def nearest(name: str, known: Collection[str]) -> str:
    return get_close_matches(name, known, n=1, cutoff=0.0)[0]


def _what(error: Mapping[str, Any], loc: Sequence[str], known: Collection[str]) -> str:
    if error["type"] in UNKNOWN:
        inside = INSIDE.get(loc[0], known) if len(loc) > 2 else known
        return f"no such setting; the nearest is {nearest(loc[-1], inside)}"
    said = str(error["msg"]).removeprefix("Value error, ").replace("Input ", "")
    if error["type"] == "missing" or loc[0] == UNREPEATED or isinstance(error["input"], Mapping):
        return said
    if error["type"] in {"bool_type", "string_type"}:
        kind = "true or false" if error["type"] == "bool_type" else "a text in quotes"
        return f"{error['input']!r}: give {kind}"
    unit = next((unit for end, unit in UNITS.items() if loc[-1].endswith(end)), "")
    if error["type"] in NO_NUMBER:
        number = "a whole number" if error["type"].startswith("int") else "a number"
        of = f" of {unit}, without the unit" if unit and unit != UNITS["_port"] else ""
        return f"{error['input']!r}: give {number}{of}"
    return f"{error['input']!r}{f' ({unit})' if unit else ''}: {said}"


def misspelt(environ: Mapping[str, str], settings: Collection[str]) -> str | None:
    """Return what is wrong with a variable that looks like a setting but is none; None: nothing."""
    known = [(PREFIX + name).upper() for name in settings]
    tables = [(PREFIX + name).upper() for name in INSIDE]
    for name, value in environ.items():
        variable, *inside = name.upper().split(NESTED, 1)
        if not variable.startswith(PREFIX) or variable in (CLIENTS_KEY, OPTIMIZERS_CACHE):
            continue
        if _OF_A_SERVICE.search(variable) or _ADDRESS.match(value):
            continue
        # Names and fields inside tables are checked together with their values.
        if variable not in known or (inside and variable not in tables):
            return f"{name}: no such setting; the nearest is {nearest(variable, known)}"
    return None
