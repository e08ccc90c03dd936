"""YAML that says what it means."""

import pytest

from vfmgl_lib.base.strict_yaml import YamlError, read_yaml
from vfmgl_lib.config import ConfigError
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.tasks.datasheets import FOLDER, DatasheetError, read_datasheet
from vfmgl_lib.tools.flower.deployment import ServerSettings, _read

TWICE = "host: a\nport: 1\n\nport: 2\nwait: 3\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_editors_write_is_read(tmp_path, encoding, end):
    (tmp_path / "a.yaml").write_bytes("center: Müller\nlist: [1, 2]\n".replace("\n", end).encode(encoding))
    assert read_yaml(tmp_path / "a.yaml") == {"center": "Müller", "list": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TWICE, "^line 4: 'port' is in this table twice, the first time in line 2; keep one$"),
        ("a: {b: {c: 1, d: 2, c: 1}}\n", "^line 1: 'c' is in this table twice, the first time in line 1"),
        ("- x: 1\n- 'y': 1\n  z: 2\n  y: 3\n", "^line 4: 'y' is in this table twice, the first time in line 2"),
        ("a: &a {x: 1}\nb: {<<: *a, x: 2, x: 3}\n", "^line 2: 'x' is in this table twice"),
        ("1: a\n0x1: b\n", "^line 2: '0x1' is in this table twice, the first time in line 1"),
        ("yes: a\n'yes': b\ntrue: c\n", "^line 3: 'true' is in this table twice, the first time in line 1"),
        ("a:\n\tb: 1\n", r"^not valid YAML, line 2: .*'\\t'.*; indent with blanks, not tabs$"),
        ("a: [1\n", "^not valid YAML, line 2: while parsing a flow sequence"),
        ("a: *b\n", "^not valid YAML, line 1: found undefined alias"),
        ("a: !!python/object:os.system x\n", "^not valid YAML, line 1: could not determine a constructor"),
        ("a: 2024-99-99\n", "^not valid YAML: month must be in 1..12$"),
        ("[" * 5000, "^not valid YAML: maximum recursion depth exceeded"),
        ("a: ü\n".encode("cp1252"), "^not text in UTF-8, byte 3: invalid start byte; save it as UTF-8$"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(YamlError, match=message) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_what_another_table_brings_in_may_be_named_again(tmp_path):
    (tmp_path / "a.yaml").write_text("x: &x {a: 1}\ny: &y {<<: *x, a: 2}\nz: {<<: *y, a: 3}\n1: a\n'1': b\n")
    assert read_yaml(tmp_path / "a.yaml") == {"x": {"a": 1}, "y": {"a": 2}, "z": {"a": 3}, 1: "a", "1": "b"}


def test_profiles_datasheets_and_sites_name_file_and_lines(tmp_path):
    (tmp_path / "server.yaml").write_text(TWICE)
    with pytest.raises(ConfigError, match=r"server.yaml: cannot be read: line 4: 'port' is in this table twice, the first time in line 2"):
        _read(ServerSettings, tmp_path / "server.yaml")
    (tmp_path / "own.yaml").write_text("all:\n  optimizer: {lr: 0.1}\n  data: {workers: 0}\n  optimizer: {lr: 0.2}\n")
    with pytest.raises(ConfigError, match=r"own.yaml: line 4: 'optimizer' is in this table twice, the first time in line 2"):
        load_settings("nuclei", tmp_path / "own.yaml")
    sheet = (FOLDER / "nuclei.yaml").read_text(encoding="utf-8")
    (tmp_path / "nuclei.yaml").write_text(f"{sheet}\nname: nuclei\n", encoding="utf-8")
    with pytest.raises(DatasheetError, match=r"nuclei.yaml: cannot be read as YAML: line \d+: 'name' is in this table twice"):
        read_datasheet("nuclei", tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("federation__rounds", True),
        ("optimizer__lr", False),
        ("seed", True),
        ("comparison__splits", [[True, 3]]),
        ("optimizer__lr", float("inf")),
        ("transfer__meta_lr", float("nan")),
    ],
)
def test_yes_and_the_infinite_are_no_numbers(setting, value):
    name = setting.replace("__", ".")
    with pytest.raises(ConfigError, match=rf"{name}.*(must be a number, and yes, no, true and false are none|finite number)"):
        load_settings("nuclei", "smoke", **{setting: value})


def test_yes_is_still_yes():
    assert load_settings("nuclei", "smoke", federation__match_updates="no").federation.match_updates is False
