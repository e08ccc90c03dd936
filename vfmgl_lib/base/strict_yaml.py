"""YAML that says what it means: a key twice in a table is an error, and every error is one line; what is wrong with what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """A file that is no YAML, or names a key twice; one line, without the file's name."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises: OSError: it cannot be read. YamlError: it is not YAML; a table has a key twice, of which YAML would take the last.
    """
    try:
        return _StrictLoader(path.read_bytes()).get_single_data()
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        text = ", ".join(filter(None, [error.context, error.problem]))
        remedy = "; indent with blanks, not tabs" if "'\\t'" in text else ""
        raise YamlError(f"not valid YAML, {_line(error.problem_mark)}: {text}{remedy}") from error
    except yaml.reader.ReaderError as error:
        raise YamlError(f"not text in UTF-8, byte {error.position}: {error.reason}; save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # of numbers and dates, too
        raise YamlError(f"not valid YAML: {' '.join(str(error).split())}") from error


def key_lines(path: Path) -> dict[str, int]:
    """The line, from 1, of every key at the top of a YAML file that `read_yaml` has read."""
    root = yaml.compose(path.read_bytes(), Loader=_StrictLoader)
    keys = [key for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    return {str(key.value): key.start_mark.line + 1 for key in keys}


def problems(error: ValidationError, whole: str) -> list[str]:
    """What pydantic found wrong with values read from a file: "place: what is wrong, got the value" each.

    Args:
        whole: what stands for the place where a finding is about all of the values.
    """
    # A part that begins with "_" is the name of a choice, no part of a setting's name.
    places = (".".join(part for part in map(str, found["loc"]) if not part.startswith("_")) for found in error.errors())
    return [f"{place or whole}: {found['msg']}, got {found['input']!r:.80}" for place, found in zip(places, error.errors(), strict=True)]


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that a table has twice; what `<<` brings in may be named again."""

    def flatten_mapping(self, node: Any) -> None:  # a yaml.MappingNode, which is marked below
        keys = [] if hasattr(node, "unique") else [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        lines: dict[Any, str] = {}
        for key in keys:
            # As the table will have it: 1 and 0x1 are one key. What `<<` brings in is none yet.
            here, read = _line(key.start_mark), key.value if key.tag == MERGE else self.construct_object(key)
            if read in lines:
                raise YamlError(f"{here}: {key.value!r} is in this table twice, the first time in {lines[read]}; keep one")
            lines[read] = here
        node.unique = True  # from here on it may have keys twice: those of another table that it overrides
        super().flatten_mapping(node)


def _line(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}" if mark else "the file"
