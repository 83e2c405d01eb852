"""Times how fast texts are written: greedy, one image a prompt, at the published sizes of Flamingo, with random weights.

    python -m benchmarks.generate [--peer] [--batch=1,16] [--prompt=16] [--words=32] [--size=base] [--rounds=2] [--uncached]

Each row is a process of its own, on all cores that the command may use. `jaxvqa` writes with
`jaxvqa.decoding.loop.Generator`; it has a vision tower, a resampler and four cross-attentions beside the language model. `text
alone` is the same model without an image, which leaves GPT-2: the work that the peer does. `--peer` adds `transformers`: its
`generate` for plain GPT-2 of the same size in PyTorch, greedy, with its cache, as many words of prompt and answer. `--uncached`
adds the original's way with our model: everything, the image included, anew for each word; with `--peer` also in PyTorch, as
the original runs.

`decode` counts the words after each text's first one, which comes with the prompt (`prefill`). The rows take turns `--rounds`
times, and the best round counts. `cpu` is the processor time of all threads for one word of each text: on a machine that is
shared it says more than the seconds; threads that wait by turning (PyTorch's do) count as well.

    python -m benchmarks.generate --system=blip [--peer] [--batch=1] [--size=base] [--rounds=2] [--steps=3]

times BLIP at its published sizes: a caption by three beams, a greedy answer, and ranking 128 of a list of answers
(`benchmarks.blip_texts`), `--steps` calls a round, and says the best and the median of all calls.
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

from benchmarks import blip_texts
from jaxvqa.errors import run_command

VOCABULARY, IMAGE_TOKEN = 50261, 50258
POSITIONS = 256

# Fields of the language model, in our words; the vision tower's and the resampler's where they are not the published ones.
SIZES: dict[str, dict[str, Any]] = {
    "base": {"language": {"width": 768, "depth": 12, "heads": 12}},
    "small": {
        "language": {"width": 32, "depth": 4, "heads": 2},
        "vision_sizes": {"patch": 112, "width": 32, "depth": 1, "heads": 2},
        "model": {"vocab_size": 100, "image_token": 98, "latents": 4, "cross_heads": 2, "cross_head_width": 16},
    },
}


def clock(run: Callable[[], Any]) -> tuple[float, float]:
    """The seconds, and the processor's seconds, that a call takes."""
    seconds, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - seconds, time.process_time() - cpu


def measures(prefill: tuple[float, float], decode: tuple[float, float], batch: int, words: int) -> dict[str, float]:
    """What a row of the table says of the times for the prompts and for `words` more words of each text."""
    return {
        "prefill_seconds": prefill[0],
        "decode_words_per_second": batch * words / decode[0],
        "decode_cpu_ms": 1000 * decode[1] / words,
    }


def random_prompts(batch: int, length: int, vocabulary: int) -> np.ndarray:
    """int32[B, T], the same words each time; where an image belongs is the caller's to say."""
    return np.random.default_rng(0).integers(0, vocabulary - 4, (batch, length)).astype(np.int32)


def our_model(size: str, batch: int, prompt: int, *, see: bool) -> tuple[Any, Any, np.ndarray, dict[str, Any]]:
    """The model, its parameters, the prompts, and what it reads beside them."""
    import jax
    import jax.numpy as jnp

    from jaxvqa.models.flamingo import Flamingo

    fields = {"vocab_size": VOCABULARY, "image_token": IMAGE_TOKEN} | SIZES[size].get("model", {})
    language = SIZES[size]["language"] | {"positions": POSITIONS}
    model = Flamingo(**fields, language_sizes=language, vision_sizes=SIZES[size].get("vision_sizes", {}))
    text = random_prompts(batch, prompt, fields["vocab_size"])
    image = jnp.asarray(np.random.default_rng(1).standard_normal((batch, 224, 224, 3)), jnp.float32)
    inputs = {}
    if see:
        text[:, 1] = fields["image_token"]
        inputs = {"image": image}
    # Any values do, and these need no program of their own.
    shapes = jax.eval_shape(lambda key: model.init(key, text=text[:1, :2], image=image[:1]), jax.random.key(0))
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), shapes)
    return model, variables, text, inputs


def ours(args: argparse.Namespace, batch: int, *, see: bool = True) -> dict[str, float]:
    """Times our generator; its compilation apart."""
    import jax

    from jaxvqa.decoding.loop import Generator, pad, search_of

    model, variables, prompts, inputs = our_model(args.size, batch, args.prompt, see=see)
    generator = Generator(model, search_of({"max_new_tokens": args.words}))
    variables = generator.prepare(variables)
    text, mask = pad(list(prompts), 0)

    def read() -> Any:
        return jax.block_until_ready(generator.prefill(variables, text, mask, inputs))

    start = read()

    def write() -> Any:
        return jax.block_until_ready(generator.loop(variables, start, jax.random.key(0)))

    write()
    return measures(clock(read), clock(write), batch, args.words - 1)


def text_alone(args: argparse.Namespace, batch: int) -> dict[str, float]:
    """Times our generator without an image: plain GPT-2."""
    return ours(args, batch, see=False)


def uncached(args: argparse.Namespace, batch: int) -> dict[str, float]:
    """Times our model in the original's way: each word takes a call with all words so far, padded to the last one's number."""
    import jax
    import jax.numpy as jnp

    model, variables, prompts, inputs = our_model(args.size, batch, args.prompt, see=True)

    @jax.jit
    def next_word(variables: Any, text: Any, length: Any) -> Any:
        logits, _ = model.apply(variables, text=text, **inputs)
        return text.at[:, length].set(jnp.argmax(logits[:, length - 1], axis=-1))

    text = jnp.pad(prompts, ((0, 0), (0, args.words)))
    first = next_word(variables, text, args.prompt)

    def write(words: int) -> None:
        longer = first
        for i in range(1, words + 1):
            longer = next_word(variables, longer, args.prompt + i)
        longer.block_until_ready()

    few = min(args.words - 1, 4)  # every word takes as long
    one = clock(lambda: next_word(variables, text, args.prompt).block_until_ready())
    return measures(one, clock(lambda: write(few)), batch, few)


def peer(args: argparse.Namespace, batch: int) -> dict[str, float]:
    """Times transformers' `generate`; what the prompt takes is what one word takes."""
    import torch
    import transformers

    size = SIZES[args.size]["language"]
    vocabulary = SIZES[args.size].get("model", {}).get("vocab_size", VOCABULARY)
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=POSITIONS,
        n_embd=size["width"],
        n_layer=size["depth"],
        n_head=size["heads"],
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    text = torch.from_numpy(random_prompts(batch, args.prompt, vocabulary)).long()

    def write(words: int) -> None:
        given = {"attention_mask": torch.ones_like(text), "max_new_tokens": words, "pad_token_id": 0}
        written = model.generate(text, **given, do_sample=False, use_cache=True)
        assert written.shape[1] == args.prompt + words

    with torch.inference_mode():
        write(2)
        read, whole = clock(lambda: write(1)), clock(lambda: write(args.words))
    decode = whole[0] - read[0], whole[1] - read[1]
    return measures(read, decode, batch, args.words - 1)


def uncached_peer(args: argparse.Namespace, batch: int) -> dict[str, float]:
    """Times the original's way in PyTorch: each word takes a call with all words so far."""
    import torch

    from benchmarks.peers.flamingo import Flamingo

    model, _, prompts, inputs = our_model(args.size, batch, args.prompt, see=True)
    network = Flamingo(model, 224).eval()
    image = torch.from_numpy(np.array(inputs["image"])).permute(0, 3, 1, 2).contiguous()
    text = torch.from_numpy(prompts).long()
    few = min(args.words - 1, 4)
    middle = torch.nn.functional.pad(text, (0, (args.words - few) // 2))  # so long are texts on average

    def write(longer: torch.Tensor, words: int) -> None:
        for _ in range(words):
            logits, _ = network(image, longer, torch.zeros(batch).long())
            longer = torch.cat([longer, logits[:, -1].argmax(-1)[:, None]], 1)

    with torch.inference_mode():
        write(text, 1)
        return measures(clock(lambda: write(text, 1)), clock(lambda: write(middle, few)), batch, few)


ROWS = {
    "jaxvqa": ours,
    "text alone": text_alone,
    "transformers": peer,
    "uncached": uncached,
    "uncached PyTorch": uncached_peer,
}


def in_turn(args: argparse.Namespace, rows: list[str], batch: str) -> dict[str, list[Any]]:
    """What each row's process prints, `--rounds` times in turn."""
    sizes = [f"--{name}={getattr(args, name)}" for name in ("system", "prompt", "words", "size", "steps")]
    results: dict[str, list[Any]] = {row: [] for row in rows}
    for _ in range(args.rounds):
        for row, found in results.items():
            command = [sys.executable, "-m", "benchmarks.generate", *sizes, f"--batch={batch}", f"--row={row}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return results


def blip(args: argparse.Namespace) -> None:
    """Prints BLIP's tables."""
    wanted = [row for row, (function, _) in blip_texts.ROWS.items() if args.peer or function is blip_texts.ours]
    for batch in args.batch.split(","):
        print(f"{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}, batch {batch}")
        results = in_turn(args, wanted, batch)
        seconds = {row: [time for one in found for time in one["seconds"]] for row, found in results.items()}
        print("\n".join(blip_texts.table(seconds)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=("flamingo", "blip"), default="flamingo")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--uncached", action="store_true")
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--row", choices=(*ROWS, *blip_texts.ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.words < 2:
        parser.error("--words has to be 2 at least: the first one comes with the prompt")
    if args.row in blip_texts.ROWS:
        function, kind = blip_texts.ROWS[args.row]
        print(json.dumps(function(kind, args, int(args.batch))))
        return
    if args.row:
        print(json.dumps(ROWS[args.row](args, int(args.batch))))
        return
    if args.system == "blip":
        blip(args)
        return
    wanted = ["jaxvqa", "text alone", *["transformers"] * args.peer, *["uncached"] * args.uncached]
    wanted += ["uncached PyTorch"] * (args.peer and args.uncached)
    print(f"{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}, prompts of {args.prompt} words")
    print(f"{'':17s}{'batch':>8s}{'prefill, s':>12s}{'decode, words/s':>18s}{'cpu, ms a word':>16s}")
    for batch in args.batch.split(","):
        for row, results in in_turn(args, wanted, batch).items():
            prefill = min(r["prefill_seconds"] for r in results)
            decode = max(r["decode_words_per_second"] for r in results)
            cpu = min(r["decode_cpu_ms"] for r in results)
            print(f"{row:17s}{batch:>8s}{prefill:12.3f}{decode:18.1f}{cpu:16.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.generate", main))
