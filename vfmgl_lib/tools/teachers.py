"""vfmgl teachers [PATTERN]: which of timm's networks can be teachers, and what is known of each.

Without PATTERN: timm's families, one a line. PATTERN is a part of a name (dinov3) or has wildcards (vit_*_dinov3*; '*' is all of
them and takes minutes). A network is a line, each of its weights another below it:

    parameters  M, with the classifier that timm builds
    images      side in pixels that it was built for; "only": it takes no other (Swin: no other than whole multiples)
    patch       of a network of blocks; else the strides of its levels
    offline     cached: the weights are on this machine; random: not without the hub, random:NAME alone
    licence     of the weights, as the hub's tag says in timm; "not said": look there

--teacher NAME or NAME.TAG uses one. Models that timm does not list: hf-hub:OWNER/REPOSITORY, or a file. Exit status: 0 found,
2 no such name.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import timm
import torch
from timm.models import get_pretrained_cfg

from vfmgl_lib.base.surroundings import print_anything, write_out
from vfmgl_lib.models.networks import form_of
from vfmgl_lib.models.teacher_names import POCKET, TeacherError
from vfmgl_lib.models.teachers import is_cached

NAME, TAG = 42, 34  # columns of a network's name and of its weights'; what follows ends at 80
WILD = "*?["


def main(arguments: Sequence[str] | None = None) -> int:
    print_anything()
    parser = argparse.ArgumentParser(
        prog="vfmgl teachers", description=(__doc__ or "").split("\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="part of a name, or one with * and ?")
    pattern = parser.parse_args(arguments).pattern
    try:
        if not pattern:
            write_out("".join(families()))
            return 0
        networks = matching(pattern)
        if not networks:
            sys.stderr.write(
                f"no network of timm {timm.__version__} is like {pattern!r}; similar: {', '.join(similar(pattern)) or 'none'}\n"
            )
            return 2
        write_out(f"{'network':<{NAME}}{'parameters':>10} {'images':>10}  patch\n")
        write_out(f"  {'weights':<{TAG}} offline licence\n")
        for name, tags in networks.items():  # written as they come: each network is built, though without content
            write_out("".join(lines_of(name, tags)))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        return 0
    return 0


def families() -> Iterator[str]:
    """Lines: timm's families, how many networks and weights each has, and one of its names."""
    weights = Counter(name.split(".")[0] for name in timm.list_pretrained())
    yield f"{'family':<32}{'networks':>8} {'weights':>8}  for example\n"
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        yield f"{family:<32}{len(names):>8} {sum(weights[name] for name in names):>8}  {names[0][:30]}\n"
    yield f"\n{len(timm.list_models())} networks in timm {timm.__version__}; {POCKET} comes with this project.\n"
    yield "vfmgl teachers PATTERN lists those with PATTERN in their names.\n"


def matching(pattern: str) -> dict[str, list[str]]:
    """timm's networks whose name is like the pattern, with the names of all their weights; and those of whose weights some are, with these.

    An exact name is that one alone.
    """
    model, _, tag = pattern.partition(".")
    if timm.is_model(model) and (not tag or pattern in timm.list_pretrained(f"{model}.*")):
        return {model: [pattern] if tag else _weights(model)}
    wild = pattern if any(sign in pattern for sign in WILD) else f"*{pattern}*"
    found = {name: _weights(name) for name in timm.list_models(wild)}
    for full in timm.list_pretrained(wild):
        name = full.split(".")[0]
        if full not in found.setdefault(name, []):
            found[name].append(full)
    return dict(sorted(found.items()))


def similar(pattern: str) -> list[str]:
    """Parts of names near to the pattern's, and whole names."""
    names = timm.list_models(pretrained=False) + timm.list_pretrained()
    words = {word for name in names for word in name.replace(".", "_").split("_")}
    plain = pattern.strip(WILD)
    return [*get_close_matches(plain, sorted(words), 3, 0.7), *get_close_matches(plain, timm.list_models(), 3, 0.6)]


def _weights(name: str) -> list[str]:
    return [full for full in timm.list_pretrained(f"{name}.*") if full.split(".")[0] == name]


def lines_of(name: str, weights: Sequence[str]) -> Iterator[str]:
    """A network's line and those of some of its weights, given by their whole names."""
    with torch.device("meta"):
        network = timm.create_model(name).eval()
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    try:
        form = form_of(network, name)
        images = f"{form.own}{'' if form.sides == 'any' else ' only'}"
        patch = f"{form.step}" if form.blocks else "/".join(label.split()[-1] for label in form.names)
        patch = patch if form.blocks or form.names[0].startswith("stride") else "levels"
    except TeacherError:
        images, patch = "no maps", "-"
    yield f"{name:<{NAME}}{millions:>8.1f} M {images:>10}  {patch}\n"
    for full in weights:
        config = get_pretrained_cfg(full)
        licence = (config.license if config else None) or "not said"
        offline = "cached" if config and config.hf_hub_id and is_cached(config.hf_hub_id) else "random"
        yield f"  {'.' + full.partition('.')[2]:<{TAG}} {offline:<7} {licence}\n"
    if not weights:
        yield f"  {'(timm has no weights)':<{TAG}} random\n"


if __name__ == "__main__":
    sys.exit(main())
