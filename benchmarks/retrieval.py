"""Times what retrieval is made of, images, texts, and pairs that are matched, and says how long a whole evaluation takes.

    python -m benchmarks.retrieval [--config=configs/blip_retrieval.py:coco] [--config.FIELD=VALUE …] [--images=2] [--texts=16]
                                   [--steps=3] [--of=5000,25010,256] [--peer] [--target=TARGET [--share=0.4]]

The predict functions of the config's task run at its own sizes on random data: `--images` at a time, with `--texts` beside
each in a step of matching. `--of` is the evaluation that is reckoned with the formula of `jaxvqa.evaluators.pairs`: images,
texts and k. `--peer` adds PyTorch, which projects keys and values for each pair, and scores both directions apart, as the
original does.

`--target` measures nothing: it compiles matching for devices that are not here (as `--mode=compile` does), says how much memory
each of them takes, and reckons the time from the operations of a whole evaluation, at a share of the devices' peak.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.train_step import random_batch, timed
from jaxvqa.errors import ConfigError, run_command

PEAK = {"v5e": 197e12, "v6e": 918e12, "h100": 989e12}
"""Products and sums a second of a chip in bfloat16, from the makers' data sheets."""


def union(images: int, texts: int, k: int) -> tuple[int, int]:
    """The fewest and the most pairs that are matched where those of both directions are matched once."""
    return max(images, texts) * k, (images + texts) * k


class Parts:
    """The three predict functions of a config's task, with arguments of their shapes.

    Attributes:
      predictions: by name.
      shapes: of what each reads, by name.
      count: images of a step, over all devices.
    """

    def __init__(self, config: Any, images: int, texts: int, devices: Any):
        import jax

        from jaxvqa import sharding
        from jaxvqa.evaluators.pairs import NAMES
        from jaxvqa.step import make_program
        from jaxvqa.tasks import abstract_batch, task_without_data

        self.mesh = sharding.make_mesh(config.mesh, devices)
        self.split = sharding.batch_sharding(self.mesh)
        task = task_without_data(config)
        self.predictions = {name: task.predictions[name] for name in NAMES}
        with jax.set_mesh(self.mesh):
            program = make_program(config, task, self.mesh, data_size=10**6, total_steps=10**4)
        self.state = program.shapes
        # Inside jit of its own, so that the optimiser's part of the state is never made.
        self.init = jax.jit(lambda: program.init().eval_variables)
        self.count = images * sharding.batch_shards(self.mesh)
        self.shapes = {
            name: abstract_batch(task, self.count, self.predictions[name].keys)
            for name in ("image_features", "text_features")
        }
        read = jax.eval_shape(
            self.predictions["image_features"].function, *self._variables(), self.shapes["image_features"]
        )
        beside = {
            key: jax.ShapeDtypeStruct((self.count, texts, *spec.shape[1:]), spec.dtype)
            for key, spec in self.shapes["text_features"].items()
        }
        self.shapes["match"] = {
            key: beside[key] if key in beside else read[key] for key in self.predictions["match"].keys
        }

    def _variables(self) -> tuple[Any, Any]:
        return self.state.eval_variables

    def traced(self, name: str) -> Any:
        """A predict function on its shapes."""
        import jax

        batch = {
            key: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=self.split)
            for key, spec in self.shapes[name].items()
        }
        with jax.set_mesh(self.mesh):
            return jax.jit(self.predictions[name].function).trace(*self._variables(), batch)


def values_of(shapes: dict[str, Any], vocabulary: int) -> dict[str, np.ndarray]:
    """Random images and texts, and random states of images, of which all are there."""
    rng = np.random.default_rng(0)
    found = random_batch(shapes, vocabulary)
    for key, spec in shapes.items():
        if np.issubdtype(spec.dtype, np.floating) and not key.startswith("image_mask"):
            found[key] = rng.standard_normal(spec.shape).astype(spec.dtype)
        if key.endswith("mask"):
            found[key] = np.ones(spec.shape, spec.dtype)
    return found


def per_second(seconds: dict[str, float], images: int, texts: int) -> dict[str, float]:
    """What a row of the table says of the times of a step of each part."""
    return {
        "images_per_second": images / seconds["image_features"],
        "texts_per_second": images / seconds["text_features"],
        "pairs_per_second": images * texts / seconds["match"],
    }


def ours(config: Any, args: argparse.Namespace) -> dict[str, float]:
    """Times our predict functions; compilation apart."""
    import jax

    parts = Parts(config, args.images, args.texts, jax.devices()[:1])
    with jax.set_mesh(parts.mesh):
        variables = parts.init()
        seconds = {}
        for name in parts.predictions:
            compiled = parts.traced(name).lower().compile()
            batch = jax.device_put(values_of(parts.shapes[name], config.compile.vocab_size), parts.split)

            def step(compiled: Any = compiled, batch: Any = batch) -> None:
                jax.block_until_ready(compiled(*variables, batch))

            step()
            seconds[name] = float(np.median(timed(step, args.steps)))
    return per_second(seconds, args.images, args.texts)


def peer(config: Any, args: argparse.Namespace) -> dict[str, float]:
    """Times the same in PyTorch."""
    import importlib

    import jax
    import torch

    parts = Parts(config, args.images, args.texts, jax.devices()[:1])
    module = importlib.import_module(f"benchmarks.peers.{config.model.name}")
    encoders, match = module.Encoders(module.sizes_of(config)).eval(), module.matcher(config)
    given: dict[str, Any] = {}
    for name in parts.predictions:
        arrays = values_of(parts.shapes[name], config.compile.vocab_size)
        given |= {f"{name}/{key}": torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    image = given["image_features/image"].permute(0, 3, 1, 2).float() / 255
    text, mask = (given[f"text_features/{key}"] for key in ("text", "text_mask"))
    functions: dict[str, Callable[[], Any]] = {
        "image_features": lambda: encoders.project_image(encoders.vision(image)[:, 0]),
        "text_features": lambda: encoders.project_text(encoders.text(text, mask.bool()[:, None, None])[:, 0]),
        "match": lambda: match(*(given[f"match/{key}"] for key in ("image_states", "text", "text_mask"))),
    }
    seconds = {}
    with torch.inference_mode():
        for name, function in functions.items():
            function()
            seconds[name] = float(np.median(timed(function, args.steps)))
    return per_second(seconds, args.images, args.texts)


def compiled_for(config: Any, args: argparse.Namespace) -> str:
    """What matching takes on devices that are not here, and how long an evaluation takes there."""
    from benchmarks.flop import flop
    from jaxvqa.compiling import devices_of, measures, options_for

    kind = args.target.partition(":")[0]
    if kind not in PEAK:
        raise ConfigError(f"--target={args.target}: the peak is known of {', '.join(PEAK)}.")
    images, texts, k = sizes(args.of)
    parts = Parts(config, args.images, args.texts, devices_of(args.target))
    values = measures(parts.traced("match").lower().compile(compiler_options=options_for(args.target)))
    each = {name: flop(parts.traced(name)) / parts.count for name in parts.predictions}
    each["match"] /= args.texts
    lines = [
        f"matching {args.images} images with {args.texts} texts each a device, {parts.mesh.size} x {kind}, {config.dtype}: "
        f"{values['total_bytes'] / 2**30:.2f} GiB a device",
        ", ".join(f"{name} {value / 1e9:.2f} GFLOP each" for name, value in each.items()),
    ]
    for words, pairs in zip(("at least", "at most"), union(images, texts, k), strict=True):
        work = 2 * images * each["image_features"] + texts * each["text_features"] + pairs * each["match"]
        seconds = work / (parts.mesh.size * PEAK[kind] * args.share)
        lines.append(
            f"{words} {pairs / 1e6:.2f} million pairs: {work / 1e15:.1f} PFLOP, {seconds:.0f} s at {100 * args.share:.0f} % of "
            "the peak"
        )
    return "\n".join(lines)


def sizes(text: str) -> tuple[int, int, int]:
    """Images, texts and k of an evaluation.

    Raises:
      ConfigError: these are not three numbers.
    """
    try:
        images, texts, k = map(int, text.split(","))
    except ValueError as error:
        raise ConfigError(f"--of={text}: expected images, texts and k, as in 5000,25010,256.") from error
    return images, texts, k


def reckoned(row: dict[str, float], images: int, texts: int, pairs: int, passes: int) -> float:
    """Seconds of a whole evaluation, of whose images each is encoded `passes` times."""
    return (
        passes * images / row["images_per_second"] + texts / row["texts_per_second"] + pairs / row["pairs_per_second"]
    )


ROWS = {"jaxvqa": ours, "pytorch": peer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/blip_retrieval.py:coco")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--of", default="5000,25010,256")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--target", default="")
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args, changes = parser.parse_known_args()
    if faults := [word for word in changes if not word.startswith("--config.") or "=" not in word]:
        parser.error(f"expected --config.FIELD=VALUE, got {' '.join(faults)}")
    images, texts, k = sizes(args.of)
    if args.row or args.target:
        from jaxvqa import configs

        config = configs.load(args.config)
        pairs = (change.removeprefix("--config.").partition("=") for change in changes)
        configs.override(config, [(name, value) for name, _, value in pairs])
        print(compiled_for(config, args) if args.target else json.dumps(ROWS[args.row](config, args)))
        return
    least, most = union(images, texts, k)
    print(f"{args.config} on {platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}")
    print(f"{'':10s}{'images/s':>10s}{'texts/s':>10s}{'pairs/s':>10s}   {images} x {texts}, k {k}")
    for name in ROWS if args.peer else ["jaxvqa"]:
        command = [sys.executable, "-m", "benchmarks.retrieval", *sys.argv[1:], f"--row={name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        # The peer keeps all states in memory, and matches each direction's pairs.
        bounds = [reckoned(row, images, texts, n, 2) for n in (least, most)] if name == "jaxvqa" else []
        bounds = bounds or [reckoned(row, images, texts, most, 1)]
        hours = " to ".join(f"{seconds / 3600:.1f}" for seconds in bounds)
        rates = (row[f"{part}_per_second"] for part in ("images", "texts", "pairs"))
        print(f"{name:10s}" + "".join(f"{rate:10.2f}" for rate in rates) + f"   {hours} hours", flush=True)


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.retrieval", main))
