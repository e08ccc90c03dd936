"""Whether a name is one of timm's: NAME of a network, or NAME.TAG of weights of it."""

from __future__ import annotations

from difflib import get_close_matches

from vfmgl_lib.models.teacher_names import TeacherError

MOST = 5  # similar names


def unknown_name(name: str) -> str:
    """What is wrong with a name, with similar ones or the tags that there are; "" if timm knows it."""
    import timm
    from timm.models import get_pretrained_cfg

    network = name.partition(".")[0]
    if not timm.is_model(network):
        alike = [*get_close_matches(network, timm.list_models(), MOST), *timm.list_models(f"*{network.split('_')[0]}*")] if network else []
        return f"{name!r} is not a timm model; similar names: {', '.join(dict.fromkeys(alike[:MOST])) or 'none'}"
    try:
        get_pretrained_cfg(name)
    except RuntimeError:
        known = timm.list_pretrained(f"{network}.*")
        return f"{name!r}: timm has no such weights of {network}; there are {', '.join(known) or 'none'}"
    return ""


def check_name(name: str) -> None:
    """Raises: TeacherError: no model of timm's, or no such weights; the message names similar ones."""
    if problem := unknown_name(name):
        raise TeacherError(f"teacher {problem}")
