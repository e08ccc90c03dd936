"""YAML that says what it means: a key twice in a table is an error, and every error is one line; what is wrong with what it holds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """A file that is no YAML, or names a key twice; one line, without the file's name."""


class StrictModel(BaseModel):
    """What a file's values become: every key is known, and `yes` is no number, which pydantic would take as 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if (_mentions(wanted, int) or _mentions(wanted, float)) and not _mentions(wanted, bool) and _has_truth(value):
            raise ValueError("must be a number, and yes, no, true and false are none")
        return value


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


def _has_truth(value: Any, depth: int = 3) -> bool:  # a list of YAML may hold itself
    return isinstance(value, bool) or (depth > 0 and isinstance(value, list | tuple) and any(_has_truth(part, depth - 1) for part in value))


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


def key_line(path: Path, keys: Sequence[str]) -> int:
    """The line, from 1, of a key below others of a YAML file that `read_yaml` has read; of the last of them that is written out there."""
    node, line = yaml.compose(path.read_bytes(), Loader=_StrictLoader), 1
    for wanted in keys:
        found = [pair for pair in node.value if str(pair[0].value) == wanted] if isinstance(node, yaml.MappingNode) else []
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line


def place_of(found: Mapping[str, Any]) -> list[str]:
    """The names that lead to what a finding of pydantic's is about."""
    # A part that begins with "_" is the name of a choice, no part of a setting's name.
    return [part for part in map(str, found["loc"]) if not part.startswith("_")]


def problems(error: ValidationError, whole: str, model: type[BaseModel] | None = None) -> list[str]:
    """What pydantic found wrong with values read from a file: "place: what is wrong, got the value" each.

    Args:
        whole: what stands for the place where a finding is about all of the values.
        model: what the values were to become, for the names that an unknown key may have meant; None: none are named.
    """
    texts = []
    for found in error.errors():
        place = place_of(found)
        meant = similar_key(model, place) if model and found["type"] == "extra_forbidden" else ""
        texts.append(f"{'.'.join(place) or whole}: {found['msg']}, got {found['input']!r:.80}{meant}")
    return texts


def similar_key(model: type[BaseModel], place: Sequence[str]) -> str:
    """What an unknown key of a model may have meant: "; did you mean optimizer?", else which keys there are."""
    section: Any = model
    for part in place[:-1]:
        section = section.model_fields[part].annotation if part in getattr(section, "model_fields", {}) else None
    names = list(getattr(section, "model_fields", {}))
    alike = difflib.get_close_matches(place[-1], names, 1)
    return f"; did you mean {alike[0]}?" if alike else f"; the keys are {', '.join(names)}" * bool(names)


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
