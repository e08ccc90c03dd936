"""vfmgl teachers: what it lists is what timm has, in 80 columns."""

import timm

from vfmgl_lib.models import teachers
from vfmgl_lib.tools.teachers import main


def _lines(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines), [line for line in lines if len(line) > 80]
    return lines


def test_families_count_every_network_once(capsys):
    header, *lines = _lines([], capsys)
    counts = [line.split() for line in lines[:-3]]
    assert header.split() == ["family", "networks", "weights", "for", "example"] and {row[0] for row in counts} == set(timm.list_modules())
    assert sum(int(row[1]) for row in counts) == len(timm.list_models())
    assert sum(int(row[2]) for row in counts) == len(timm.list_pretrained())


def test_a_network_has_its_size_patch_licence_and_whether_it_is_here(capsys, monkeypatch):
    monkeypatch.setattr(
        teachers.huggingface_hub, "try_to_load_from_cache", lambda repository, file: "/x" if "sat493m" in repository else None
    )
    found = {line.split()[0]: line.split()[1:] for line in _lines(["vit_large_patch16_dinov3"], capsys)}
    assert found["vit_large_patch16_dinov3"] == ["303.1", "M", "256", "16"]
    assert found[".lvd1689m"] == ["random", "dinov3-license"] and found[".sat493m"] == ["cached", "dinov3-license"]
    found = {line.split()[0]: line.split()[1:] for line in _lines(["swin_s3_tiny*"], capsys)}
    assert found["swin_s3_tiny_224"] == ["28.3", "M", "224", "only", "4/8/16/32"]


def test_a_pattern_is_a_part_of_a_name_or_of_weights_or_has_wildcards(capsys):
    def names(pattern):
        return [line.split()[0] for line in _lines([pattern], capsys)[2:]]

    assert names("samvit_b") == names("samvit_b*")
    assert [name for name in names("samvit") if not name.startswith((".", "("))] == timm.list_models("samvit*")
    assert names("resnet18.a1_in1k") == ["resnet18", ".a1_in1k"]
    assert names("vit_small_patch14_dinov2") == ["vit_small_patch14_dinov2", ".lvd142m"], "one network, not those that begin alike"


def test_a_pattern_that_nothing_is_like_has_similar_names(capsys):
    assert main(["dinvo3"]) == 2
    said = capsys.readouterr()
    assert not said.out and "is like 'dinvo3'; similar: dinov3" in said.err
