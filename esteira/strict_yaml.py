"""Reads YAML that people write: a key that stands twice is refused, and a mistake has its line. What it means is the reader's."""

from typing import Any

import yaml

from esteira.errors import ConfigError


def parse(data: str | bytes, *, code: str, where: str, cure: str) -> Any:
    """The one document of a text; an empty one is None.

    Args:
        data: the text, or its bytes in UTF-8.
        code, where, cure: of the error.

    Raises:
        ConfigError: it is no UTF-8 or no YAML, or a mapping has a key twice, of which YAML readers silently take the last.
    """
    try:
        loader = yaml.SafeLoader(data if isinstance(data, str) else data.decode("utf-8"))
        node = loader.get_single_node()
        problem = _twice(node, set())
        if not problem:
            return None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} is {error.object[error.start]:#04x}, which is no UTF-8"
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        problem = f"{line}{error.problem or error.context}"
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML forbids; a date that is none
        problem = " ".join(str(error).split())
    raise ConfigError(f"it must be YAML with each key once, but {problem}"[:400], code=code, where=where, cure=cure)


def _twice(node: Any, seen: set[int]) -> str:
    """Where a key of a mapping, or of one below it, stands again; empty if none does."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return ""
    seen.add(id(node))
    children = node.value
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    return f"line {line}: {key.value!r} is there already, in line {lines[key.tag, key.value]}"
                lines[key.tag, key.value] = line
        children = [value for _, value in node.value]
    return next((problem for child in children if (problem := _twice(child, seen))), "")
