"""Writes tests/golden/torch_files with PyTorch: `python -m tests.write_torch_files`. The files are kept, a few kB in all.

Each is one of PyTorch's forms with a few tensors and numbers; `expected.json` holds what `torch.load` and
`torch.jit.load` give for them: file -> [key, type, shape, bytes in hexadecimal digits] of each tensor, in order.
"""

import argparse
import collections
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden/torch_files"


class Small(torch.nn.Module):
    """A module with every kind of tensor that a state has, and some that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.second = torch.nn.Linear(2, 3)
        self.register_buffer("scale", torch.tensor([0.5, 2.0]))
        self.gate = torch.nn.Parameter(torch.tensor([0.25]))
        self.table = torch.full((2,), 7.0)  # neither parameter nor buffer
        self.norm = torch.nn.BatchNorm1d(3)
        self.layers = torch.nn.Sequential(self.second, torch.nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Uses all of them."""
        return self.norm(self.layers(x * self.scale + self.table)) * self.gate


def tensors() -> dict[str, torch.Tensor]:
    """A state with every type of numbers, views of one storage, and a scalar."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = collections.OrderedDict(
        base=base,
        rows=base[1:3],
        strided=base[:, ::2],
        transposed=base.T,
        expanded=torch.tensor([3.0]).expand(2, 3),
        parameter=torch.nn.Parameter(base[0] + 1),
        scalar=torch.tensor(-1.5),
        empty=torch.zeros(0, 3),
    )
    kinds = (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    )
    state.update({str(kind): torch.tensor([1, 2, 100]).to(kind) for kind in kinds})
    state["bool"] = torch.tensor([True, False])
    state["complex"] = torch.tensor([1 + 2j])
    return state


def main(folder: Path = FOLDER) -> None:
    """Writes every file."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    module = Small()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    module(torch.randn(4, 2)).square().sum().backward()
    optimiser.step()
    module.eval()
    state = tensors()
    beside = {
        "epoch": 3,
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1),
        "name": "α",
        "sizes": [1, (2, None)],
    }
    expected: dict[str, list[list[Any]]] = {}

    def keep(name: str, found: dict[str, torch.Tensor]) -> None:
        expected[name] = []
        for key, value in found.items():
            kind = str(value.dtype).removeprefix("torch.")
            value = value.detach().contiguous()
            array = (value.view(torch.int16) if kind == "bfloat16" else value).numpy()
            expected[name].append([key, kind, list(array.shape), array.tobytes().hex()])

    for name, new in (("zip.pth", True), ("legacy.pth", False)):
        torch.save({"state_dict": state, **beside}, folder / name, _use_new_zipfile_serialization=new)
        keep(name, torch.load(folder / name, weights_only=False)["state_dict"])
    parallel = torch.nn.DataParallel(module)
    content = {"model_state": parallel.state_dict(), "optimizer_state": optimiser.state_dict()}
    torch.save(content, folder / "parallel.pth")
    keep("parallel.pth", module.state_dict())
    torch.save(module, folder / "module.pt")
    keep("module.pt", module.state_dict())
    for name, scripted in (
        ("scripted.pt", torch.jit.script(module)),
        ("traced.pt", torch.jit.trace(module, torch.ones(2, 2))),
    ):
        torch.jit.save(scripted, folder / name)
        keep(name, torch.jit.load(folder / name).state_dict())
    stream = io.BytesIO()
    torch.save({"w": torch.arange(6, dtype=torch.float32)}, stream)
    keep("big_endian.pth", {"w": torch.arange(6, dtype=torch.float32)})
    write_big_endian(stream.getvalue(), folder / "big_endian.pth")
    (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")))


def write_big_endian(content: bytes, path: Path) -> None:
    """Writes an archive as a machine of the other byte order would have."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            new.writestr(name, data)


if __name__ == "__main__":
    main()
