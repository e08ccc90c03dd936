"""Whatever an admitted centre answers: the round ends, the others count, and the server's memory does not grow with what is declared."""

import io
import json
import resource
import struct
import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from tests.tools.flower.centres import CENTERS, MODEL, Grid, joined, rounds, settings
from vfmgl_lib.federation.servers import Averaging
from vfmgl_lib.tools.flower.messages import ABOUT, AGGREGATES, FILE, METRICS, arrays_up_to, limits_of, pack, unpack

pytestmark = pytest.mark.usefixtures("quick_network")
MUTATIONS, SEED = 700, 20
KINDS = {"refused", "failed"}


def file_of(header: dict, data: bytes = b"") -> bytes:
    """A safetensors file with this header, whatever the data are."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def arrays(content: bytes, stype: str = FILE) -> ArrayRecord:
    return ArrayRecord({FILE: Array("uint8", (len(content),), stype, content)})


def npy(shape: tuple, data: bytes = b"") -> bytes:
    """NumPy's container, as the library of before took it; its header declares what it likes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


# Answers that a hand has made ------------------------------------------------------------------------------------------------------------


def pebibyte(content):
    content["model"] = arrays(npy((2**50,)), "numpy.ndarray")
    assert len(content["model"][FILE].data) < 130


def other_kind(content):
    content["model"] = ConfigRecord({FILE: b"no array"})


def two_arrays(content):
    content["model"] = ArrayRecord({FILE: content["model"][FILE], "more": content["model"][FILE]})


def no_center(content):
    content[ABOUT] = ArrayRecord()


def samples_as_text(content):
    content[ABOUT] = ConfigRecord({**content[ABOUT], "samples": "10"})


def samples_as_list(content):
    content[ABOUT] = ConfigRecord({**content[ABOUT], "samples": [10]})


def many_metrics(content):
    content[METRICS] = MetricRecord({f"m{number}": 0.0 for number in range(10_000)})


def failure_of_a_thousand_lines(content):
    content[ABOUT] = ConfigRecord({"failed": "Error\n\x1b[31m" * 1000})


def shape_without_data(content):
    content["model"] = arrays(file_of({"w": {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 4]}}, bytes(4)))


def empty_of_any_size(content):
    content["model"] = arrays(file_of({"w": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}))


def header_of_any_size(content):
    content["model"] = arrays(struct.pack("<Q", 2**62))


def unknown_type(content):
    content["model"] = arrays(file_of({"w": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)))


def larger_than_declared(content):
    content["model"] = pack({"w": torch.zeros(10**6), "bn.running_var": torch.ones(2)})


def aggregates_not_declared(content):
    content[AGGREGATES] = pack({"images": torch.zeros(10**5)})


def huge_names(content):
    content["model"] = pack({"w" * 2000: torch.zeros(3)})


MADE = [
    *(pebibyte, other_kind, two_arrays, no_center, samples_as_text, samples_as_list, many_metrics, failure_of_a_thousand_lines),
    *(shape_without_data, empty_of_any_size, header_of_any_size, unknown_type, larger_than_declared, aggregates_not_declared, huge_names),
]


@pytest.mark.parametrize("place", CENTERS[:2])
@pytest.mark.parametrize("spoil", MADE, ids=[spoil.__name__ for spoil in MADE])
def test_one_bad_answer_costs_its_centre_the_round_and_no_more(spoil, place):
    study = settings(deadline=60)
    grid = Grid(study)
    members, before = joined(grid, study), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = grid.centers[place].update()
    spoil(content)
    grid.centers[place].update = lambda: content
    (done,) = rounds(grid, study, members=members)
    assert done.centers == [name for name in CENTERS if name != place] and torch.equal(done.shared["w"], torch.ones(3))
    (fault,) = done.faults
    assert fault.center == place and fault.kind in KINDS and len(fault.detail) < 1000 and fault.detail.isprintable()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100, "MiB"


@pytest.mark.parametrize("place", CENTERS[:2])
@pytest.mark.parametrize("error", [MemoryError(), ValueError("not an object"), RecursionError(), AttributeError("x")], ids=repr)
def test_an_answer_that_flower_cannot_put_together_is_its_centre_s_fault(error, place):
    study = settings(deadline=60)
    grid = Grid(study)
    members = joined(grid, study)
    grid.centers[place].update = lambda: lambda: (_ for _ in ()).throw(error)
    (done,) = rounds(grid, study, members=members)
    (fault,) = done.faults
    assert fault.center == place and fault.kind == "refused" and type(error).__name__ in fault.detail


@pytest.mark.parametrize("place", CENTERS)
def test_an_answer_to_who_are_you_that_is_none_is_its_centre_s_fault(place):
    study = settings(deadline=60)
    for wrong in (RecordDict(), RecordDict({ABOUT: ArrayRecord()}), lambda: (_ for _ in ()).throw(MemoryError())):
        grid = Grid(study)
        grid.centers[place].answer = lambda kind, content, wrong=wrong: wrong
        (done,) = rounds(grid, study)  # nobody has joined: all are asked within the round
        assert done.centers == [name for name in CENTERS if name != place] and done.faults[0].center == place


def test_a_list_of_a_million_times_one_chunk_is_not_put_together():
    study = settings(deadline=60)
    grid = Grid(study)
    members, before = joined(grid, study), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = grid.centers["SiteB"].update()
    content["model"] = arrays(bytes(2**20))
    objects = {name: found.deflate() for name, found in get_all_nested_objects(content).items()}
    (name,) = (name for name, deflated in objects.items() if b'"shape": [1048576]' in deflated)
    head, _, body = objects[name].partition(b"\0")
    body = json.dumps(json.loads(body) | {"arraychunk_ids": [0] * 10**6}).encode()
    objects[name] = head.rpartition(b" ")[0] + b" %d\0" % len(body) + body
    grid.centers["SiteB"].update = lambda: lambda: inflate_object_from_contents(content.object_id, dict(objects))
    (done,) = rounds(grid, study, members=members)
    (fault,) = done.faults
    assert "an array of 1000000 times up to 1048576 bytes, the method declares" in fault.detail and fault.center == "SiteB"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100, "MiB"


def test_the_limit_holds_for_the_thread_that_asks_for_it_and_while_it_does():
    content = RecordDict({"model": pack({"w": torch.arange(3 * 2**20, dtype=torch.float32)})})
    objects = {name: found.deflate() for name, found in get_all_nested_objects(content).items()}

    def read():
        return inflate_object_from_contents(content.object_id, dict(objects))

    with arrays_up_to(13 * 2**20):
        assert torch.equal(unpack(read()["model"], "A")["w"], torch.arange(3 * 2**20, dtype=torch.float32))
    with arrays_up_to(2**20), pytest.raises(ValueError, match="the method declares 1048576 at most"):
        read()
    read()


def test_what_a_method_declares_fits_its_limits():
    long = {f"block{number}.conv.weight" + "x" * 100: torch.zeros(3, 3, 2, 1) for number in range(300)}
    server = Averaging(long | {"amplitude": torch.zeros(3, 5, 5)}, aggregates={"amplitude": (3, 5, 5)})
    limits = limits_of(server)
    model, aggregates = pack(long), pack({"amplitude": torch.zeros(3, 5, 5)})
    assert unpack(model, "A", limits.model).keys() == long.keys() and unpack(aggregates, "A", limits.aggregates)
    assert limits.model < 2**20 and limits.aggregates < 2**14
    assert limits_of(Averaging({})).model <= 2**12


# Answers that chance has made ------------------------------------------------------------------------------------------------------------


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """Bytes changed, cut off, doubled or put in; numbers become extreme ones."""
    data = bytearray(content)
    place = int(draw.integers(len(data)))
    kind = draw.integers(5)
    if kind == 0:
        for at in draw.integers(len(data), size=draw.integers(1, 9)):
            data[at] = draw.integers(256)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place:place] = data[: draw.integers(1, 200)]
    elif kind == 3:
        data[place : place + 8] = struct.pack("<Q", [0, 1, 2**31, 2**62, 2**64 - 1][draw.integers(5)])
    else:
        digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
        at = digits[draw.integers(len(digits))]
        data[at : at + 1] = draw.choice([b"-1", b"99999999999999999999", b"1e9", b"", b"null", b"[]"])
    return bytes(data)


VALUES = ["", "x" * 1000, b"\0", 0, -1, 2**62, 1e308, float("nan"), True, [], [1, 2], ["a"], [1.5]]


def other_records(content: RecordDict, draw: np.random.Generator) -> RecordDict:
    """A record taken out, put in under another name, of another kind, or with another value."""
    names = sorted(content)
    name, kind = names[draw.integers(len(names))], draw.integers(5)
    record, value = content[name], VALUES[draw.integers(len(VALUES))]
    if kind == 0:
        del content[name]
    elif kind == 1:
        content[str(draw.choice(["", "images", "about", "a" * 500]))] = record
    elif kind == 2:
        content[name] = content[names[draw.integers(len(names))]]
    elif kind == 3:
        content[name] = ConfigRecord({key: value for key in record})
    else:
        fields = ["center", "samples", "stored", "failed", "task_loss"]
        content[name] = ConfigRecord({str(draw.choice(fields)): value for _ in range(draw.integers(1, 5))})
    return content


def damaged_object(content: RecordDict, draw: np.random.Generator):
    """An object as it travels, damaged; Flower puts the answer together of it when it is pulled."""
    objects = {name: found.deflate() for name, found in get_all_nested_objects(content).items()}
    name = sorted(objects)[draw.integers(len(objects))]
    objects[name] = damaged(objects[name], draw)
    return lambda: inflate_object_from_contents(content.object_id, dict(objects))


def test_whatever_a_centre_answers_the_round_ends_and_the_others_count():
    study, draw = settings(deadline=60), np.random.default_rng(SEED)
    grid = Grid(study)
    members, valid = joined(grid, study), grid.centers["SiteB"].update
    before, started, kinds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), []
    for number in range(MUTATIONS):
        content = valid()
        if number % 3 == 0:
            content = other_records(content, draw)
        elif number % 3 == 1:
            content = damaged_object(content, draw)
        else:
            content["model"] = arrays(damaged(content["model"][FILE].data, draw))
        grid.centers["SiteB"].update = lambda content=content: content
        (done,) = rounds(grid, study, members=members)
        assert [name for name in done.centers if name != "SiteB"] == ["SiteA", "SiteC"], number
        assert done.centers == list(CENTERS) or done.faults[0].center == "SiteB", number
        assert all(torch.isfinite(tensor).all() for tensor in done.shared.values()) and done.shared.keys() == MODEL.keys()
        kinds += [fault.kind for fault in done.faults] or ["took part"]
    assert set(kinds) <= KINDS | {"took part"} and kinds.count("refused") > 0.7 * MUTATIONS, "most of them are no updates"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100, "MiB"
    assert time.monotonic() - started < 200, "seconds, on a busy machine"
