"""What is wrong with a command line, in one line without the parser's own words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

_KEY = re.compile(r'^Parser key "([^"]+)":')
_GIVEN = re.compile(r"(?:Given value|Got value): (.+)$", re.MULTILINE)
_EXPECTED = re.compile(r"Expected a (<class '[\w.]+'>|typing\.Literal\[[^]]*\])")
_LITERAL = re.compile(r"Literal\[([^]]*)\]")
_LIST = re.compile(r"\blist\[")
_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_PROBLEM = re.compile(r"Problem with given class_path '[^']+':\s*\n?\s*(.+)$", re.MULTILINE)
_REQUIRED = re.compile(r"the following arguments are required: (.+)$")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}


def in_one_line(message: str, classes: Sequence[str] = ()) -> str:
    r"""Return what a person needs of an error of the parser.

    Args:
        message: The parser's own text, over several lines.
        classes: Names of classes that may be given by their short name.

    Example:
        >>> in_one_line('Parser key "max_lr":\n  Expected a <class \'float\'>. Got value: high')
        '--max_lr: high is not a number'
    """
    required = _REQUIRED.search(message)
    if required:
        names = [f"--{name.split('.', 1)[-1].strip()}" for name in required[1].split(",")]
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} required"
    key = _KEY.match(message)
    if key is None:
        return _joined(message)
    return f"--{key[1]}: {_reason(message, classes)}"


def _reason(message: str, classes: Sequence[str]) -> str:
    problem, unknown = _PROBLEM.search(message), _CLASS.search(message)
    if problem is not None:
        return problem[1].strip()
    if unknown is not None:
        near = difflib.get_close_matches(unknown[1], classes, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        return f"there is no class {unknown[1]}{hint}"
    given, kinds = _GIVEN.search(message), _kinds(message)
    if given is None or not kinds:
        return _joined(message.split("\n", 1)[-1])
    return f"{given[1].strip()} is not {' or '.join(kinds)}"


def _kinds(message: str) -> list[str]:
    """Return what is expected, in words, without None."""
    words = _LITERAL.search(message)
    if words is not None and _LIST.search(message):
        first = words[1].split(",")[0].strip(" '\"")
        return [f'a list of {_plain(words[1])}; write "[{first}]"']
    found = []
    for kind in _EXPECTED.findall(message):
        literal = _LITERAL.search(kind)
        name = kind.removeprefix("<class '").removesuffix("'>")
        if literal is not None:
            found.append(f"one of {_plain(literal[1])}")
        elif name != "NoneType":
            found.append(_KINDS.get(name, name))
    return list(dict.fromkeys(found))


def _plain(words: str) -> str:
    return ", ".join(word.strip(" '\"") for word in words.split(","))


def _joined(message: str) -> str:
    lines = [line.strip().lstrip("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line)
