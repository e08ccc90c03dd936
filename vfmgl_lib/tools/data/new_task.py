"""`vfmgl data new-task`: the YAML file of a task of one's own, with comments, from flags or from answers on a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from vfmgl_lib.base.files import write_text
from vfmgl_lib.data.preprocessing import RESIZES
from vfmgl_lib.tasks.folders import LAYOUTS
from vfmgl_lib.tasks.records import DEFAULTS, TASKS, TaskError, is_task_file, name_problem, read_task

BACKGROUNDS = ("white", "black")
QUESTIONS = {
    "kind": f"What is a sample's label? {' (a class) or '.join(DEFAULTS)} (a mask): ",
    "classes": "Its classes, separated by commas; of a segmentation the background first, of a classification the positive one last: ",
    "use": 'What does a trained model do? It goes on after "It", e.g. "tells skin lesions that are malign from benign ones": ',
}
TEMPLATE = """\
# A task of one's own. Next: vfmgl data template IMAGES --task {file}
# writes a first table of your images, IMAGES/samples.csv, by guesses; correct it, then: ./run_all.sh --task {file} --data IMAGES
# With the file's name a study, a table and a model are named too; another record needs another name.
name: {name}
kind: {kind}  # classification: a class an image; segmentation: a mask an image
classes: {classes}  # {order}
{mask_values}use: {use}  # what a trained model does, after "it"; for the model card

# How folders of images are read where no samples.csv lies in them.
#   {layout}
folders: {folders}
image_resize: {image_resize}  # how an image that is not square becomes the square input: stretch (the paper's), pad, or crop
background: {background}  # white or black: behind transparent pixels, and around padded images
stained: {stained}  # true: tissue stained with haematoxylin and eosin; notebook 01 then shows the two stains

# The student and its loss are these for a {kind}.
student: {student}
loss: {loss}

# Settings: those of this task of the paper, then the profile's, then the lines below, which hold under every profile.
settings_like: {settings_like}
settings:
  data: {{}}  # e.g. {{image_size: 224}}
  optimizer: {{}}  # e.g. {{lr: 1.0e-3, batch_size: 16}}
  federation: {{}}  # e.g. {{rounds: 20}}
"""

MASK_VALUES = "# mask_values: {example}  # the value of each class in mask files; without it 0, 1, … {last}\n"


def add_new_task(commands: argparse._SubParsersAction) -> None:
    """Adds the sub-command and its flags."""
    one = commands.add_parser("new-task", help="write the YAML file of a task of your own; asks on a terminal for what no flag says")
    one.add_argument("file", type=Path, metavar="FILE", help="the new file, e.g. my_task.yaml; the task is named after it")
    one.add_argument("--kind", default="", metavar="KIND", help=" or ".join(DEFAULTS))
    one.add_argument(
        "--classes", default="", metavar="A,B", help="of a segmentation the background first, of a classification the positive last"
    )
    one.add_argument("--use", default="", metavar="TEXT", help='what a trained model does, after "it"')
    one.add_argument("--image-resize", default="stretch", metavar="HOW", help=f"of images that are not square: {', '.join(RESIZES)}")
    one.add_argument("--background", default="white", metavar="COLOUR", help=" or ".join(BACKGROUNDS))
    one.add_argument("--stained", action="store_true", help="the images are of tissue stained with haematoxylin and eosin")
    one.add_argument(
        "--like", default="", metavar="TASK", help=f"whose settings it starts from: {', '.join(_of_paper())}; default: by kind"
    )


def new_task(given: argparse.Namespace) -> list[str]:
    """Writes the file that the flags and, on a terminal, the answers describe.

    Returns: what to say.
    Raises: TaskError: with everything that is wrong or missing; nothing is written then.
    """
    if sys.stdin.isatty():
        for key, question in QUESTIONS.items():
            if not getattr(given, key):
                setattr(given, key, input(question).strip())
    classes = [name.strip() for name in given.classes.split(",") if name.strip()]
    if problems := _problems(given, classes):
        raise TaskError("\n".join([f"{given.file}: {len(problems)} problem{'s' * (len(problems) > 1)}, nothing was written", *problems]))
    write_text(given.file, _text(given, classes))
    record = read_task(given.file)
    layout = LAYOUTS[record.folders].format.description
    return [
        f"{given.file}: written; next: vfmgl data template IMAGES --task {given.file}",
        "  it writes a first table of your images, IMAGES/samples.csv, by guesses; correct it, then:"
        f" ./run_all.sh --task {given.file} --data IMAGES",
        f"  (without a table images lie in {layout})",
    ]


def _problems(given: argparse.Namespace, classes: list[str]) -> list[str]:
    found = []
    if given.file.exists():
        found.append(f"{given.file} is there already; give another name, or edit it")
    if not is_task_file(given.file):
        found.append(f"{given.file}: expected a name that ends in .yaml")
    elif problem := name_problem(given.file.stem):
        found.append(f"the name {given.file.stem!r} {problem}")
    for key in QUESTIONS:
        if not getattr(given, key):
            found.append(f"--{key} is missing")
    choices: dict[str, tuple[str, Iterable[str]]] = {"--kind": (given.kind, DEFAULTS), "--image-resize": (given.image_resize, RESIZES)}
    choices |= {"--background": (given.background, BACKGROUNDS), "--like": (given.like, _of_paper())}
    found += [
        f"{flag} {value!r}, expected one of {', '.join(known)}" for flag, (value, known) in choices.items() if value and value not in known
    ]
    if given.classes and len(classes) < 2:
        found.append(f"--classes {given.classes!r}: {len(classes)} class, expected at least two, separated by commas")
    if again := sorted({name for name in classes if classes.count(name) > 1}):
        found.append(f"--classes: {', '.join(again)} is there twice")
    if paths := [name for name in classes if "/" in name]:
        found.append(f"--classes: {paths[0]!r} holds a '/', expected names that folders can have")
    return [f"  - {text}" for text in found]


def _text(given: argparse.Namespace, classes: list[str]) -> str:
    defaults = DEFAULTS[given.kind] | ({"settings_like": given.like} if given.like else {})
    orders = {"classification": "the positive one last", "segmentation": "the background first"}
    values = given.kind == "segmentation" and len(classes) > 2
    lines = TEMPLATE.format(
        file=given.file.name,
        name=_quoted(given.file.stem),
        kind=given.kind,
        classes=f"[{', '.join(map(_quoted, classes))}]",
        mask_values=MASK_VALUES.format(example=_spread(len(classes)), last=len(classes) - 1) if values else "",
        order=orders[given.kind],
        use=_quoted(given.use),
        layout=LAYOUTS[defaults["folders"]].format.description,
        image_resize=given.image_resize,
        background=given.background,
        stained=str(given.stained).lower(),
        **defaults,
    )
    return lines


def _spread(count: int) -> list[int]:
    """Values from 0 to 255, as programs that paint labels write so many classes in visible greys."""
    return [-(-255 * place // (count - 1)) for place in range(count)]  # rounded up: 0, 128, 255


def _quoted(text: str) -> str:
    """As YAML takes it for text, whatever it looks like: `no` and `1` are no words there."""
    return json.dumps(text, ensure_ascii=False)


def _of_paper() -> list[str]:
    return [name for name, record in TASKS.items() if record.is_built_in]
