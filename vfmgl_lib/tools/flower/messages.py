"""What a message and its answer hold, over Flower's Message API, and how an answer is read.

    type          to a centre                       from it
    query         nothing                           its name, its study's key, library's version, teacher's hash, number of samples
    train         round, study, shared model        model, number of samples, declared metrics and aggregates; or the kind of its failure
    query.finish  shared model of the last round    nothing

An answer never holds the text of an error: it could name files and patients. The site's own log has it.

An answer is whatever a centre chose to send. Its size is compared with what the method declares before anything of it is decoded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from vfmgl_lib import __version__
from vfmgl_lib.federation.servers import DECLARED_METRICS, Server, State, Update, UpdateError, is_count
from vfmgl_lib.tools.flower.site import Site, state_bytes

MODEL, AGGREGATES, METRICS, ABOUT = "model", "aggregates", "metrics", "about"
FILE = "safetensors"
FINISH = "query.finish"
_arriving = threading.local()


class Limits(NamedTuple):
    """The most bytes that the two safetensors files of an update may have."""

    model: int
    aggregates: int


def limits_of(server: Server) -> Limits:
    """The limits that follow from what a server's method declares."""
    model, aggregates = server.declared()
    return Limits(_file_limit(model), _file_limit({name: None for name in aggregates}) + 4 * sum(map(_product, aggregates.values())))


def _file_limit(state: Mapping[str, Any]) -> int:
    """Bytes of a file with these tensors, and room for its header: names, types, shapes and places."""
    tensors = {name: tensor for name, tensor in state.items() if tensor is not None}
    return state_bytes(tensors) + 4096 + sum(6 * len(name) + 512 for name in state)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def pack(state: State) -> ArrayRecord:
    """Tensors as one safetensors file in one of Flower's arrays: one object on the wire instead of hundreds, and no pickle."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = to_safetensors(plain)
    # The file itself, not an array of its bytes: NumPy's header could declare any size, which is allocated before it is filled.
    return ArrayRecord({FILE: Array("uint8", (len(content),), FILE, content)})


def unpack(record: ArrayRecord | MetricRecord | ConfigRecord, where: str, limit: int | None = None) -> State:
    """What `pack` wrote.

    Args:
        limit: the most bytes that the file may have; None: any number.
    Raises: UpdateError: anything else; names `where` it came from.
    """
    try:
        if not isinstance(record, ArrayRecord) or set(record) != {FILE}:
            raise ValueError(f"{type(record).__name__} with {sorted(record)[:5]}, expected an ArrayRecord with {FILE}")
        array = record[FILE]
        if array.stype != FILE or not isinstance(array.data, bytes):
            raise ValueError(f"an array of type {array.stype!r}, expected {FILE}")
        if limit is not None and len(array.data) > limit:
            raise ValueError(f"{len(array.data)} bytes, the method declares {limit} at most")
        return from_safetensors(array.data)
    except (SafetensorError, TypeError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        raise UpdateError(f"update of {where}: not a safetensors file: {error}") from error


def identity(site: Site) -> dict[str, str | int]:
    """What a centre declares before it takes part."""
    client = site.client
    teacher = client.teacher.identity if client.teacher else "none"
    samples = len(client.data) if client.settings.exchange.share_counts else 0
    named = {"center": client.center, "study": client.settings.key(), "vfmgl_lib": __version__, "teacher": teacher}
    return {**named, "samples": samples}


def train_records(number: int, message: State | None, study: str) -> RecordDict:
    """What a centre receives before it trains."""
    content = RecordDict({ABOUT: ConfigRecord({"round": number, "study": study})})
    if message is not None:
        content[MODEL] = pack(message)
    return content


def update_records(update: Update, stored: bool = False) -> RecordDict:
    """Everything that leaves a centre after a round.

    Args:
        stored: it was trained for an earlier question, so that the time of this answer says nothing.
    """
    content = RecordDict({MODEL: pack(update.state), AGGREGATES: pack(update.aggregates), METRICS: MetricRecord({**update.metrics})})
    content[ABOUT] = ConfigRecord({"center": update.center, "samples": update.samples, "stored": stored})
    return content


def read_update(content: RecordDict, center: str, limits: Limits | None = None) -> Update:
    """The update of a centre.

    Raises: UpdateError: content that is not an update, is larger than the method declares, or another centre's.
    """
    if set(content) != {MODEL, AGGREGATES, METRICS, ABOUT} or set(content[ABOUT]) != {"center", "samples", "stored"}:
        raise UpdateError(f"update of centre {center}: holds {sorted(content)[:9]}, expected {MODEL}, {AGGREGATES}, {METRICS}, {ABOUT}")
    about: Mapping[str, Any] = content[ABOUT]
    if about["center"] != center:
        raise UpdateError(f"update of centre {center}: says that it is centre {about['center']!r}")
    if not is_count(about["samples"]):
        raise UpdateError(f"update of centre {center}: the number of samples must be a whole number, got {about['samples']!r}")
    sizes = limits or (None, None)
    state, aggregates = (unpack(content[part], f"centre {center}", limit) for part, limit in zip((MODEL, AGGREGATES), sizes, strict=True))
    values: Mapping[str, Any] = content[METRICS]
    if len(values) > len(DECLARED_METRICS):
        raise UpdateError(f"update of centre {center}: {len(values)} metrics; declared are {DECLARED_METRICS}")
    metrics = {}
    for name, value in values.items():
        if not isinstance(value, int | float):
            raise UpdateError(f"update of centre {center}: the metric {name} must be a number, got {value!r}")
        metrics[name] = float(value)
    return Update(center, state, about["samples"], metrics, aggregates)


@contextmanager
def arrays_up_to(limit: int) -> Iterator[None]:
    """Within it, in this thread, an array of Flower's that arrives is refused if it has more bytes, before it is put together.

    An array travels as chunks and a list of which chunk stands where. A list of a million times one chunk would become a million chunks.
    """
    _check_arrays()
    _arriving.limit = limit
    try:
        yield
    finally:
        del _arriving.limit


def _check_arrays() -> None:
    """Puts the check before Flower's own `Array.inflate`, once: it offers no place for one."""
    put_together = Array.inflate
    if getattr(put_together, "checked", False):
        return

    def inflate(cls: type[Array], object_content: bytes, children: dict | None = None) -> Array:
        limit = getattr(_arriving, "limit", None)
        if limit is not None and children:
            places = json.loads(object_content[object_content.index(b"\0") + 1 :])["arraychunk_ids"]
            largest = max(len(chunk.data) for chunk in children.values())
            if (len(places) - 1) * largest > limit:
                raise UpdateError(f"an array of {len(places)} times up to {largest} bytes, the method declares {limit} at most")
        return put_together.__func__(cls, object_content, children)  # type: ignore[attr-defined]

    inflate.checked = True  # type: ignore[attr-defined]
    Array.inflate = classmethod(inflate)  # type: ignore[method-assign,assignment]
