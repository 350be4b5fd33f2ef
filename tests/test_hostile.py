"""Files made to do harm: each refused in one sentence, and nothing in it ever runs."""

import builtins
import functools
import gzip
import importlib
import io
import json
import operator
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from official import EasyDict, official_modules, old_stream, persistent
from torch import nn
from toys import environment, is_one_sentence

from talk3d.cli import main
from talk3d.containers import read_pickle
from talk3d.convert import convert_file
from talk3d.core import InputError

CANARY = Path(tempfile.gettempdir()) / f"talk3d-canary-{os.getpid()}"
TOUCH = f"touch {CANARY}"
OPEN = f"open({str(CANARY)!r}, 'w')"


class Call:
    """Pickled, it is a call, which an unpickler makes."""

    def __init__(self, function: Callable, *arguments: object):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class Built:
    """Pickled, it is a call and a state that is set on its result."""

    def __init__(self, function: Callable, arguments: tuple, state: object):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def dotted(module: str, name: str) -> bytes:
    """A call of a name that protocol 4 would look up attribute by attribute."""
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x04" + words + b"\x93\x8c" + bytes([len(TOUCH)]) + TOUCH.encode() + b"\x85R."


PROGRAMS: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: pickle.dumps(Call(os.system, TOUCH), 2),
    "os.system, below G_ema": lambda: pickle.dumps({"G_ema": [Call(os.system, TOUCH)]}, 4),
    "os.system, as a key": lambda: pickle.dumps({Call(os.system, TOUCH): 1}, 4),
    "eval": lambda: pickle.dumps(Call(eval, OPEN), 2),
    "exec": lambda: pickle.dumps(Call(exec, OPEN), 4),
    "importlib": lambda: pickle.dumps(Call(importlib.import_module, "antigravity"), 2),
    "__import__": lambda: pickle.dumps(Call(builtins.__import__, "antigravity"), 2),
    "open": lambda: pickle.dumps(Call(open, str(CANARY), "w"), 2),
    "subprocess": lambda: pickle.dumps(Call(subprocess.Popen, ["touch", str(CANARY)]), 4),
    "getattr chain": lambda: pickle.dumps(
        Call(getattr, Call(importlib.import_module, "os"), "system"), 4
    ),
    "partial": lambda: pickle.dumps(functools.partial(os.system, TOUCH), 4),
    "methodcaller": lambda: pickle.dumps(operator.methodcaller("system", TOUCH), 4),
    "map over eval": lambda: pickle.dumps(Call(list, Call(map, eval, [OPEN])), 4),
    "torch.load": lambda: pickle.dumps(Call(torch.load, "x"), 4),
    "torch.hub.load": lambda: pickle.dumps(Call(torch.hub.load, "a/b", "c"), 4),
    "dotted os": lambda: dotted("os", "path.os.system"),
    "dotted torch": lambda: dotted("torch", "os.system"),
    "dotted torch.nn": lambda: dotted("torch.nn", "Module.__init__.__globals__"),
    "dotted stub": lambda: dotted("training.triplane", "torch.os.system"),
    "dotted maker": lambda: dotted("collections", "OrderedDict.fromkeys"),
    "INST opcode": lambda: b"\x80\x02(X" + struct.pack("<I", 4) + b"trueios\nsystem\n.",
    "OBJ opcode": lambda: b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "EXT opcode": lambda: b"\x80\x02\x82\x01)R.",
    "state of a tensor": lambda: pickle.dumps(
        Built(torch._utils._rebuild_parameter, (torch.ones(2), True, {}), {"x": os.system}), 2
    ),
    "state of a class": lambda: b"\x80\x02ctorch.nn\nModule\n}X\x08\x00\x00\x00__call__Nsb.",
    "call of a stub": lambda: b"\x80\x02ctorch.nn\nModule\n)R)R.",
    "items of a stub": lambda: b"\x80\x02ctorch.nn\nModule\n)RX\x01\x00\x00\x00aNs.",
}


def in_zip(data: bytes, **more: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in {"a/data.pkl": data, "a/version": b"3\n", **more}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def in_stream(data: bytes, keys: bytes = pickle.dumps([], 2)) -> bytes:
    facts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(fact, 2) for fact in facts) + data + keys


def nested(data: bytes) -> bytes:
    """A pickle that reads a torch stream in it as a storage."""
    blob = b"B" + struct.pack("<I", len(data)) + data
    return b"\x80\x02ctorch.storage\n_load_from_bytes\n" + blob + b"\x85R."


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "pickle": lambda data: data,
    "torch zip": in_zip,
    "torch stream": in_stream,
    "nested stream": lambda data: nested(in_stream(data)),
    "wrapped": lambda data: nested(data),
}


# Bombs, liars and wrecks: name -> bytes. Opcodes are written by hand where no pickler writes them.


def storage(key: str = "0", count: int = 4, kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    """The opcodes of a persistent id."""
    words = [b"(X\x07\x00\x00\x00storage", kind, text(key), text("cpu")]
    return b"".join(words) + long(count) + b"tQ"


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def long(number: int) -> bytes:
    raw = number.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def tensor(offset: int, size: tuple, stride: tuple, source: bytes | None = None) -> bytes:
    """A pickle of one tensor with this header, in a dictionary."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    shape = b"".join(b"(" + b"".join(map(long, n)) + b"t" for n in (size, stride))
    header = (source or storage()) + long(offset) + shape + b"\x89}t"
    return b"\x80\x02}" + text("weight") + rebuild + header + b"Rs."


def with_storage(data: bytes, count: int = 4) -> bytes:
    """A zip file that has the storage a tensor asks for."""
    return in_zip(data, **{"a/data/0": bytes(4 * count)})


def doubled(times: int = 60, grow: bytes = b"\x86") -> bytes:
    """Each tuple is the one before, twice; the last one is the top of the stack."""
    start = b"\x80\x04)\x94"
    return start + b"".join(b"h%ch%c" % (i, i) + grow + b"\x94" for i in range(times))


def network(**state: object) -> bytes:
    """A pickle of something that looks like a generator and is none."""
    with official_modules():
        module = persistent("TriPlaneGenerator", "training.triplane")
        for part in ("backbone", "decoder", "superresolution", "renderer"):
            module.add_module(part, persistent("Part"))
        vars(module).update(state)
        return pickle.dumps(EasyDict(G_ema=module), 4)


def endless() -> bytes:
    with official_modules():
        module = persistent("MappingNetwork")
        module.add_module("mapping", module)
        module.add_module("synthesis", persistent("SynthesisNetwork"))
        return pickle.dumps({"G_ema": module}, 4)


def repeated() -> bytes:
    """One tensor under a thousand names: small to read, large to write."""
    with official_modules():
        module, weight = persistent("Generator"), nn.Parameter(torch.zeros(50_000))
        for part in ("mapping", "synthesis"):
            module.add_module(part, persistent("Part"))
        for i in range(900):
            module.register_parameter(f"w{i}", weight)
        return pickle.dumps({"G_ema": module}, 4)


def many_options() -> bytes:
    value: list = []
    for _ in range(60):
        value = [value, value]
    return network(_init_kwargs={"rendering_kwargs": {"x": value}})


def doubly_named() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what we want
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            for _ in range(2):
                archive.writestr("a/data.pkl", pickle.dumps({}, 2))
    return buffer.getvalue()


def zip_bomb() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50_000_000))
    return buffer.getvalue()


def overlapping() -> bytes:
    """A hundred members that are all the same bytes of the file."""
    data = bytearray(in_zip(pickle.dumps({}, 2), **{"a/data/0": bytes(100_000)}))
    end = data.rindex(b"PK\x05\x06")
    entry = data[data.rindex(b"PK\x01\x02") : end]
    copies = b"".join(bytes(entry).replace(b"a/data/0", b"a/dat%03d" % i) for i in range(100))
    entry_count = struct.pack("<HH", 103, 103)
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    size = struct.pack("<I", end - start + len(copies))
    tail = data[end : end + 8] + entry_count + size + data[end + 16 :]
    return bytes(data[:end] + copies + tail)


def lying_size() -> bytes:
    """A central directory that says a member is four gigabytes."""
    data = bytearray(in_zip(pickle.dumps({}, 2)))
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    return bytes(data)


def tar(name: str) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.addfile(info := tarfile.TarInfo(name), None)
        assert info.size == 0
    return buffer.getvalue()


def honest_zip() -> bytes:
    torch.save({"weight": torch.ones(100)}, buffer := io.BytesIO())
    return buffer.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "persistent id of another class": lambda: with_storage(
        tensor(0, (4,), (1,), storage(kind=b"cos\nsystem\n"))
    ),
    "persistent id of a stub": lambda: with_storage(
        tensor(0, (4,), (1,), storage(kind=b"ctorch.nn\nModule\n"))
    ),
    "persistent id of a device": lambda: with_storage(
        tensor(0, (4,), (1,), storage(kind=b"ctorch\ndevice\n"))
    ),
    "persistent id of a module": lambda: in_zip(b"\x80\x02" + text("module") + b"Q."),
    "persistent id in a plain pickle": lambda: tensor(0, (4,), (1,)),
    "2^62 elements": lambda: with_storage(tensor(0, (2**31, 2**31), (2**31, 1))),
    "2^62 elements, stride 0": lambda: with_storage(tensor(0, (2**31, 2**31), (0, 0))),
    "2^62 elements in the storage": lambda: in_zip(tensor(0, (4,), (1,), storage(count=2**62))),
    "2^62 elements in a stream": lambda: in_stream(tensor(0, (4,), (1,), storage(count=2**62))),
    "2^62 rows": lambda: with_storage(tensor(0, (2**62,), (1,))),
    "more elements than stored": lambda: with_storage(tensor(0, (5,), (1,))),
    "beyond the storage": lambda: with_storage(tensor(2, (3,), (1,))),
    "wide stride": lambda: with_storage(tensor(0, (2,), (2**39,))),
    "negative offset": lambda: with_storage(tensor(-1, (2,), (1,))),
    "negative stride": lambda: with_storage(tensor(3, (2,), (-1,))),
    "negative size": lambda: with_storage(tensor(0, (-2,), (1,))),
    "negative storage": lambda: in_zip(tensor(0, (), (), storage(count=-4))),
    "storage that is absent": lambda: in_zip(tensor(0, (4,), (1,))),
    "storage that is short": lambda: with_storage(tensor(0, (4,), (1,)), count=3),
    "storage that is not delivered": lambda: in_stream(tensor(0, (4,), (1,))),
    "storage with a path": lambda: in_zip(tensor(0, (4,), (1,), storage("../../etc/passwd"))),
    "deep lists": lambda: b"\x80\x04" + b"]" * 3_000_000 + b".",
    "deep marks": lambda: b"\x80\x04" + b"(" * 3_000_000 + b"N.",
    "deep tuples": lambda: b"\x80\x04)" + b"\x85" * 3_000_000 + b".",
    "deep dictionary": lambda: b"\x80\x04" + b"}K\x01" * 1_000_000 + b"N" + b"s" * 1_000_000 + b".",
    "many steps": lambda: b"\x80\x04" + b"N0" * 4_000_000 + b"N.",
    "many sets": lambda: b"\x80\x04" + b"\x8f0" * 4_000_000 + b"N.",
    "doubled tuples": lambda: doubled() + b".",
    "doubled tuples as a key": lambda: doubled() + b"}h\x3cK\x01s.",
    "doubled lists": lambda: (
        b"\x80\x04]\x94" + b"".join(b"]\x94(h%ch%ce" % (i, i) for i in range(60)) + b"."
    ),
    "doubled options": many_options,
    "LONG4 of 2 GB": lambda: b"\x80\x04\x8b" + struct.pack("<I", 2**31 - 1) + bytes(64) + b".",
    "LONG4 of 8 MB": lambda: b"\x80\x04\x8b" + struct.pack("<I", 2**23) + bytes(2**23) + b".",
    "LONG1 of 255 bytes": lambda: b"\x80\x04\x8a\xff" + b"\x01" * 255 + b".",
    "BINBYTES8 of 2^62": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "BINUNICODE8 of 2^62": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "BYTEARRAY8 of 2^62": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
    "FRAME of 2^62": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "memo place 2^32": lambda: b"\x80\x04Nr\xff\xff\xff\xff.",
    "long name": lambda: b"\x80\x02c" + b"a" * 5_000_000 + b"\nb\n.",
    "long text": lambda: b"\x80\x04X" + struct.pack("<I", 2**27) + b"a" * 2**27 + b".",
    "network in itself": endless,
    "network of nothing": network,
    "one tensor, 900 names": repeated,
    "source text": lambda: network(_init_kwargs={}, module_src=OPEN),
    "zip with ..": lambda: in_zip(pickle.dumps({}, 2), **{"../../evil": b"x"}),
    "zip with an absolute name": lambda: in_zip(pickle.dumps({}, 2), **{"/etc/evil": b"x"}),
    "zip with backslashes": lambda: in_zip(pickle.dumps({}, 2), **{"..\\evil": b"x"}),
    "zip with a name twice": doubly_named,
    "zip bomb": zip_bomb,
    "zip of overlapping members": overlapping,
    "zip with a lying size": lying_size,
    "zip without weights": lambda: in_zip(b"x").replace(b"data.pkl", b"read.txt"),
    "TorchScript": lambda: in_zip(pickle.dumps({}, 2), **{"a/code/x.py": OPEN.encode()}),
    "tar with ..": lambda: tar("../../evil"),
    "tar": lambda: tar("storages"),
    "gzip": lambda: gzip.compress(pickle.dumps({}, 2)),
    "text": lambda: b"these are not weights\n" * 99,
    "web page": lambda: b"<!DOCTYPE html><html>Quota exceeded</html>",
    "empty": lambda: b"",
    "zeros": lambda: bytes(4096),
    "noise": lambda: bytes(i * 37 % 251 for i in range(4096)),
    "protocol 0": lambda: pickle.dumps(Call(os.system, TOUCH), 0),
    "protocol 9": lambda: b"\x80\x09N.",
    "safetensors": lambda: struct.pack("<Q", 2) + b"{}",
    "cut zip": lambda: honest_zip()[:-70],
    "cut stream": lambda: old_stream({"weight": torch.ones(100)})[:-70],
    "cut pickle": lambda: pickle.dumps({"weight": torch.ones(100)}, 4)[:-70],
    "bytes behind the end": lambda: pickle.dumps({"weight": torch.ones(100)}, 4) + b"N.",
    "a flipped number in a zip": lambda: honest_zip().replace(b"\0\0\x80\x3f", b"\0\1\x80\x3f", 1),
    "a list": lambda: pickle.dumps([1, 2, 3], 4),
    "names with line breaks": lambda: pickle.dumps({"a\nb": torch.ones(1)}, 4),
}


@pytest.fixture(autouse=True)
def canary():
    """Whatever the file, its payload has not run."""
    CANARY.unlink(missing_ok=True)
    yield
    assert not CANARY.exists() and "antigravity" not in sys.modules
    CANARY.unlink(missing_ok=True)


@pytest.fixture
def verdict(capfd, monkeypatch, tmp_path):
    """The sentence `talk3d convert` refuses bytes with; one line, exit code 2, nothing written."""

    def run(data: bytes) -> str:
        path = tmp_path / "file.pkl"
        path.write_bytes(data)
        words = ["talk3d", "convert", str(path), str(tmp_path / "out.safetensors")]
        monkeypatch.setattr(sys, "argv", words)
        capfd.readouterr()
        start = time.process_time()
        with pytest.raises(SystemExit) as ended:
            main()
        seconds = time.process_time() - start
        printed, complaints = capfd.readouterr()
        assert (ended.value.code, printed) == (2, ""), complaints
        assert complaints.startswith("talk3d: ") and complaints.count("\n") == 1, complaints
        told = complaints.strip().removeprefix("talk3d: ")
        assert is_one_sentence(told) and "file.pkl" in told, told
        assert [p.name for p in tmp_path.iterdir()] == ["file.pkl"], "something was written"
        assert seconds < 10, f"{seconds:.1f} s"
        return told

    return run


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_refused(verdict, program, container):
    told = verdict(CONTAINERS[container](PROGRAMS[program]()))
    assert "damaged" not in told, "refused by chance and not by rule"
    assert told.endswith(("do not use this file", "get it again from its official project"))


SAYS = {  # a word of the verdict, where being refused is not enough
    "persistent id of another class": "os.system, which is code and no data",
    "persistent id of a stub": "something else than a storage by a persistent id",
    "persistent id of a device": "something else than a storage by a persistent id",
    "persistent id of a module": "something else than a storage by a persistent id",
    "2^62 elements": "larger than its storage of 4 numbers",
    "2^62 elements, stride 0": "larger than its storage of 4 numbers",
    "2^62 elements in the storage": "more numbers than a file of its size",
    "2^62 elements in a stream": "more numbers than a file of its size",
    "beyond the storage": "larger than its storage",
    "negative offset": "impossible shape, offset or stride",
    "negative stride": "impossible shape, offset or stride",
    "deep lists": "nested too deeply",
    "many steps": "more steps",
    "deep tuples": "more steps",
    "doubled tuples as a key": "uses a tuple as a key",
    "doubled options": "options are too many or too deep",
    "LONG4 of 2 GB": "an integer of 2147483647 bytes",
    "BINBYTES8 of 2^62": "more bytes than it has",
    "network in itself": "without end or form",
    "one tensor, 900 names": "larger than the file",
    "source text": "constructor arguments are not in the file",
    "zip with ..": "the name ../../evil in it",
    "doubled lists": "it holds a list",
    "zip without weights": "holds no weights",
    "zip bomb": "compressed members",
    "zip of overlapping members": "longer than itself",
    "TorchScript": "TorchScript program",
    "tar with ..": "tar archive",
    "text": "neither a pickle nor a file of torch",
    "web page": "web page",
    "empty": "is empty",
    "storage that is not delivered": "does not deliver all its storages",
    "bytes behind the end": "goes on behind its end",
    "safetensors": "is a safetensors file",
    "names with line breaks": "a\\nb",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_liars_and_wrecks_are_refused(verdict, bomb):
    assert SAYS.get(bomb, "") in verdict(BOMBS[bomb]())


def test_honest_files_of_the_same_makers_are_read(tmp_path):
    """The makers above are right: without the lie, their files hold what they say."""
    for i, data in enumerate([with_storage(tensor(0, (2, 2), (2, 1))), honest_zip()]):
        (tmp_path / f"{i}.pt").write_bytes(data)
        assert torch.is_tensor(read_pickle(tmp_path / f"{i}.pt")["weight"])
        assert torch.equal(
            read_pickle(tmp_path / f"{i}.pt")["weight"],
            torch.load(tmp_path / f"{i}.pt", weights_only=True)["weight"],
        )
    numbers = pickle.dumps(["0"], 2) + struct.pack("<Q", 3) + bytes(12)
    stream = in_stream(b"\x80\x02" + storage(count=3) + b".", numbers)
    (tmp_path / "x").write_bytes(nested(stream))
    assert len(read_pickle(tmp_path / "x").numbers) == 3
    (tmp_path / "y").write_bytes(in_stream(pickle.dumps({"x": 1}, 2)))
    assert read_pickle(tmp_path / "y") == {"x": 1}


def test_the_payloads_would_run(tmp_path):
    """The canary is no dummy: Python's own unpickler makes it sing."""
    code = "import pickle, sys; getattr(pickle, 'loads')(open(sys.argv[1], 'rb').read())"
    for name in ("os.system", "eval", "exec", "open", "dotted os", "dotted torch"):
        (tmp_path / "x").write_bytes(PROGRAMS[name]())
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True)
        assert CANARY.exists(), name
        CANARY.unlink()


BOUNDED = """
import io, json, resource, sys, time
from contextlib import redirect_stderr
from pathlib import Path
import torch
import talk3d.convert
from talk3d.cli import main

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
told = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    sys.argv = ["talk3d", "convert", str(path), f"{path}.safetensors"]
    with redirect_stderr(io.StringIO()) as complaints:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    told[path.name] = code, complaints.getvalue(), time.process_time() - start
print(json.dumps(told))
"""


def test_memory_and_time_are_bounded(tmp_path):
    """All bombs in one process that may use 400 MB more than it has after its imports."""
    for i, make in enumerate(BOMBS.values()):
        (tmp_path / f"{i:03d}").write_bytes(make())
    command = [sys.executable, "-c", BOUNDED, str(tmp_path), str(400 * 2**20)]
    result = subprocess.run(command, env=environment(1), text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert len(told) == len(BOMBS) == len(list(tmp_path.iterdir()))
    for name, (number, (code, complaints, seconds)) in zip(
        BOMBS, sorted(told.items()), strict=True
    ):
        assert code == 2 and complaints.count("\n") == 1, (name, number, complaints)
        assert "MemoryError" not in complaints and seconds < 5, (name, complaints, seconds)


@pytest.mark.parametrize("program", ["os.system", "getattr chain", "dotted torch"])
def test_as_a_user_would_call_it(tmp_path, program):
    (tmp_path / "file.pkl").write_bytes(PROGRAMS[program]())
    words = ["convert", "file.pkl", "out.safetensors"]
    command = [sys.executable, "-m", "talk3d.cli", *words]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(1), text=True, capture_output=True
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "code and no data" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file.pkl"]


def test_places_that_are_no_files(tmp_path):
    out = tmp_path / "out.safetensors"
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a file; check the path"):
            convert_file(path, out)
    assert not out.exists()


# Damage by chance. A flipped bit may hit a number, and then the file is a valid one.


def small_module() -> bytes:
    with official_modules():
        module = persistent("Discriminator")
        module.register_parameter("weight", nn.Parameter(torch.ones(3)))
        module.register_buffer("spare", torch.ones(1), persistent=False)
        module.gain = 0.5
        return pickle.dumps({"D": module, "G_ema": None}, 4)


WHOLE: dict[str, Callable[[], bytes]] = {
    "torch zip": lambda: with_storage(tensor(0, (2, 2), (2, 1))),
    "torch stream": lambda: old_stream({"weight": torch.ones(2), "step": 3}),
    "network": small_module,
    "program": lambda: PROGRAMS["os.system"](),
    "program in a zip": lambda: in_zip(PROGRAMS["eval"]()),
}


@pytest.mark.parametrize("kind", WHOLE)
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(cut=st.floats(0, 1), flips=st.lists(st.integers(0, 2**32), max_size=4))
@example(cut=1.0, flips=[])
def test_damage_is_survived(tmp_path, kind, cut, flips):
    data = bytearray(WHOLE[kind]())
    for flip in flips:
        data[flip // 8 % len(data)] ^= 1 << flip % 8
    path, out = tmp_path / "file", tmp_path / "out.safetensors"
    path.write_bytes(data[: int(cut * len(data))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        convert_file(path, out, part="D")
        assert kind == "network" and out.exists()
    except InputError as error:
        assert is_one_sentence(str(error)) and not out.exists(), error
    for left in tmp_path.iterdir():
        left.unlink()
    assert not CANARY.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize("kind", WHOLE)
def test_every_cut_is_refused(tmp_path, kind):
    """No beginning of a file is taken for the whole."""
    data = WHOLE[kind]()
    for end in range(0, len(data), max(1, len(data) // 60)):
        (tmp_path / "file").write_bytes(data[:end])
        with pytest.raises(InputError):
            read_pickle(tmp_path / "file")
