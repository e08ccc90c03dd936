"""What a run shows and what it does not, as sentences that follow from its numbers by the rules of this module.

A lead, or a distance from chance, is shown where its 95 % interval leaves out 0 (or chance). Nothing is corrected for there being several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vfmgl_lib.tools.batch.measures import METHODS

CHANCE = {"auc": 0.5}  # metric -> what guessing gives
MOVED = 0.1  # of the spread between pairs; below it the ranking of the stages is that of the initial weights (notebook 02)
WEAK_TEACHERS = ("RANDOM", "drawn images alone")  # in a teacher's description (`models.teachers`)
Finding = tuple[bool, str, str]  # is it shown?, the rule, the sentence


def findings(task: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The sentences of a task of the report, each with the name of its rule.

    Args:
        task: metric, metric_title, measures, and of its run phantoms, teacher, seed and deviations (their number; None: not known).
    Returns: shows, does_not_show: rule and text.
    """
    said = [*_of_chance(task), *_of_leads(task), *_of_selection(task), *_of_lambda(task), *_of_maps(task), *_of_the_run(task)]
    kinds = {"shows": True, "does_not_show": False}
    return {name: [{"rule": rule, "text": text} for is_shown, rule, text in said if is_shown is kind] for name, kind in kinds.items()}


def with_limits(number: Mapping[str, Any], spec: str = "z.2f") -> str:
    """ "0.83 (0.72 to 0.91)", without limits that are not there or are the value itself; "–" without a value."""
    value, lo, hi = (number[name] for name in ("value", "lo", "hi"))
    if value is None:
        return "–"
    limits = "" if lo is None or hi is None or lo == value == hi else f" ({lo:{spec}} to {hi:{spec}})"
    return f"{value:{spec}}{limits}".replace("-", "\N{MINUS SIGN}").replace("%", "\N{NO-BREAK SPACE}%")


def _of_chance(task: Mapping[str, Any]) -> Iterator[Finding]:
    own, chance = task["measures"]["vfmgl"]["all"], CHANCE.get(task["metric"])
    if chance is None or own["lo"] is None:
        return
    numbers = f"{task['metric_title']} {with_limits(own)}, mean of the centres; chance gives {chance:.2f}"
    if own["lo"] > chance:
        yield True, "chance", f"At home VFMGL's models are better than chance: {numbers}."
    elif own["hi"] < chance:
        yield True, "chance", f"At home VFMGL's models are worse than chance: {numbers}."
    else:
        yield False, "chance", f"Whether VFMGL's models are better than chance: {numbers}."


def _of_leads(task: Mapping[str, Any]) -> Iterator[Finding]:
    """One sentence a method; those that cannot be judged for the same reason have one together."""
    open_: dict[str, list[str]] = {}
    for key, title in METHODS.items():
        if key == "vfmgl":
            continue
        lead = task["measures"][f"ahead_of_{key}"]["all"]
        rule, numbers = f"ahead_of_{key}", f"by {with_limits(lead)} in {task['metric_title']}, mean of the centres"
        if lead["value"] is None:
            open_.setdefault(lead["reason"], []).append(title)
        elif lead["lo"] is None:
            why = f"there is no interval of its lead ({lead['reason']})"
            open_.setdefault(why, []).append(f"{title} ({with_limits(lead, '+z.2f')})")
        elif lead["lo"] > 0:
            yield True, rule, f"VFMGL is ahead of {title} {numbers}."
        elif lead["hi"] < 0:
            yield True, rule, f"VFMGL is behind {title} {numbers}."
        else:
            yield False, rule, f"Whether VFMGL is better than {title}: it differs {numbers}, which may be chance."
    for why, titles in open_.items():
        yield False, "leads", f"Whether VFMGL is better than {' or '.join(filter(None, [', '.join(titles[:-1]), titles[-1]]))}: {why}."


def _of_selection(task: Mapping[str, Any]) -> Iterator[Finding]:
    share = task["measures"]["kept_share"]["all"]
    if share["value"] is None:
        yield False, "kept_share", f"How DDBL selects: {share['reason']}."
        return
    dropped = share["n"] - round(share["value"] * share["n"])
    if dropped:
        yield True, "kept_share", f"DDBL dropped {dropped} of {share['n']} batches. Whether these were the right ones is another question."
    else:
        yield False, "kept_share", f"How DDBL selects: it kept all of the {share['n']} batches."


def _of_lambda(task: Mapping[str, Any]) -> Iterator[Finding]:
    moved = task["measures"]["lambda_moved"]["all"]
    if moved["value"] is None:
        yield False, "lambda_moved", f"Which stages are critical: {moved['reason']}."
    elif moved["value"] < MOVED:
        why = f"λ moved by {moved['value']:.2f} of the spread between pairs, so their ranking is that of the initial weights"
        yield False, "lambda_moved", f"Which stages are critical: {why}."
    else:
        yield True, "lambda_moved", f"Training moved λ: by {moved['value']:.2f} of the spread between pairs at the start, on average."


def _of_maps(task: Mapping[str, Any]) -> Iterator[Finding]:
    inside, chance, *gains = (task["measures"][key]["all"] for key in ("cam_inside", "cam_chance", "cam_gain", "cam_gain_over_place"))
    if inside["value"] is None:
        yield False, "cam", f"Where the models look: {inside['reason']}."
        return
    shares = [with_limits(one, ".1%") for one in (inside, chance)]
    numbers = f"{shares[0]} of the activation maps' energy lies inside the lesion, whose share of the image is {shares[1]}"
    if any(gain["lo"] is None for gain in gains):
        yield False, "cam", f"Where the models look: {numbers}; {inside['reason'] or 'there is no interval'}."
    elif min(gain["lo"] for gain in gains) > 0:
        less = [center for center, gain in task["measures"]["cam_gain"]["centers"].items() if gain["hi"] is not None and gain["hi"] < 0]
        where = f" Not so at {', '.join(less)}, where it is less than chance." if less else ""
        yield True, "cam", f"The models look at the lesion: {numbers}. Both intervals, over chance and over place, lie above 0.{where}"
    else:
        yield False, "cam", f"That the models look at the lesion: {numbers}, and an interval, over chance or over place, reaches 0."


def _of_the_run(task: Mapping[str, Any]) -> Iterator[Finding]:
    if task["phantoms"]:
        yield False, "phantoms", "Anything about patients: a program drew these images."
    if any(word in task["teacher"] for word in WEAK_TEACHERS):
        yield False, "teacher", f"What a foundation model is worth: the teacher here is {task['teacher']}."
    if task["deviations"]:
        yield (
            False,
            "deviations",
            f"The paper's results: {task['deviations']} settings differ from the paper's (section 8 of each notebook).",
        )
    if task["seed"] is not None:
        yield (
            False,
            "seed",
            f"What another training would give: these numbers are of seed {task['seed']} alone, and the intervals leave that out.",
        )
