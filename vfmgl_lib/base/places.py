"""Where notebooks, profiles and datasheets are, however the library came here.

a clone                  notebooks/  data_manifests/    beside vfmgl_lib/
an installed package     notebooks/  data_manifests/    in vfmgl_lib/workbook/, where pyproject.toml packs them
a folder of one's own    notebooks/  workbook.json      what `vfmgl init` laid down
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from vfmgl_lib import __version__

log = logging.getLogger(__name__)
LIBRARY = Path(__file__).resolve().parents[1]
_PACKED = LIBRARY / "workbook"
IS_CLONE = not _PACKED.is_dir()
DELIVERED = LIBRARY.parent if IS_CLONE else _PACKED  # holds notebooks/ and data_manifests/ as this version came with them
MARK = "workbook.json"  # of a folder that `vfmgl init` made


class PlaceError(ValueError):
    """There is no folder to work in; the message says how to make one."""


def own_folder(here: Path | None = None) -> Path | None:
    """The folder made by `vfmgl init` that `here` is, or whose notebooks/ or notebooks/tutorials/ it is; None: it is no such place.

    No folder further up is asked: on a machine of many users somebody else's could lie there.

    Args:
        here: None: where the process stands.
    """
    try:
        here = Path.cwd() if here is None else here
    except OSError:  # that folder has been removed
        return None
    places = [here, *(here.parents[up] for up in (0, 1) if len(here.parents) > up and here.parts[-1 - up] == "notebooks")]
    return next((place for place in places if (place / MARK).is_file()), None)


def project_folder(here: Path | None = None) -> Path:
    """The folder with the notebooks to run, whose runs/ takes the results: `own_folder`, else the clone.

    Of one's own folder that another version made it warns.

    Raises: PlaceError: the library is an installed package, and `here` is no folder of one's own; a workbook.json that was altered.
    """
    if own := own_folder(here):
        try:
            made = json.loads((own / MARK).read_text("utf-8"))["vfmgl_lib"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlaceError(f'{own / MARK}: cannot be read ({error!r}), expected {{"vfmgl_lib": "{__version__}"}}') from error
        if made != __version__:
            log.warning("%s: its notebooks are of version %s, this is %s; `vfmgl init` makes a folder of this one", own, made, __version__)
        return own
    if not IS_CLONE:
        raise PlaceError(
            f"{here or Path.cwd()} is no folder of a workbook: `vfmgl init FOLDER` makes one with the notebooks; then go there (cd FOLDER)"
        )
    return DELIVERED


def profiles_folder(here: Path | None = None) -> Path:
    """The folder where profiles are looked up by name: that of one's own folder, else that which this version came with."""
    return (own_folder(here) or DELIVERED) / "notebooks" / "profiles"
