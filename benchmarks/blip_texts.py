"""BLIP's rows of `benchmarks.generate`: captions by three beams, greedy answers and ranked ones, with random weights.

Ours are the predict functions of the tasks as evaluation calls them, from pixels to token ids. Beside the first two stands
`transformers`' BLIP, beside ranking plain PyTorch (`benchmarks.peers.blip.Ranker`). No text may end early, so that both write
as many tokens: `WRITTEN`, behind prompts of the same length.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.train_step import random_batch, timed

WRITTEN = {"caption": 20, "answer": 9, "rank": 0}
"""New tokens of a text: a caption's 20; an answer's, whose longest is 10 with what it begins with."""

CONFIGS = {"caption": "blip_caption", "answer": "blip_vqa", "rank": "blip_vqa"}
QUESTION_TOKENS, ANSWER_TOKENS = 16, 5


class Work:
    """One of `WRITTEN` at one size: the task, random variables, and a batch.

    Attributes:
      config: the task's.
      task: ours.
      batch: what its predict function reads.
      prompt: tokens before the new ones.
    """

    def __init__(self, kind: str, size: str, rows: int):
        from jaxvqa import configs
        from jaxvqa.tasks import abstract_batch

        variant = "published" if size == "base" else "pixels,small"
        self.kind, self.config = kind, configs.load(f"configs/{CONFIGS[kind]}.py:{variant}")
        changes: dict[str, Any] = {"compile.vocab_size": self.config.compile.vocab_size}
        self.prompt = 1
        if kind == "caption":
            self.prompt = len(_task(self.config).tokenizer.whole(self.config.data.prompt)) - 1
            changes |= {"generate.beams": 3, "data.max_tokens": 40}
        else:
            changes |= {"generate.beams": 1, "data.max_tokens": QUESTION_TOKENS}
        if WRITTEN[kind]:
            changes |= dict.fromkeys(("generate.max_length", "generate.min_length"), self.prompt + WRITTEN[kind])
        configs.override(self.config, [(name, str(value)) for name, value in changes.items()])
        self.task = _task(self.config)
        self.predict = self.task.predictions["ranked" if kind == "rank" else "answers"]
        vocabulary = self.config.compile.vocab_size
        self.batch = random_batch(abstract_batch(self.task, rows, self.predict.keys), vocabulary - 2)
        if "question_mask" in self.batch:
            self.batch["question_mask"] = np.ones_like(self.batch["question_mask"])
        if kind == "rank":
            shape = (len(self.task.candidates[0]), ANSWER_TOKENS)
            text = np.random.default_rng(3).integers(1, vocabulary - 10, shape).astype(np.int32)
            text[:, 0], text[:, -1] = self.task.tokenizer.decode_begin, self.task.tokenizer.end
            self.task.candidates = text, np.ones(shape, np.bool_)

    def call(self) -> Callable[[], Any]:
        """What predicts the batch once, to the end."""
        import jax
        import jax.numpy as jnp

        shapes = dict(jax.eval_shape(self.task.init, jax.random.key(0)))
        rng = np.random.default_rng(2)
        # Any values do, and these need no program of their own.
        filled = jax.tree.map(lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), shapes)
        params, batch = filled.pop("params"), {name: jnp.asarray(value) for name, value in self.batch.items()}
        return lambda: jax.block_until_ready(self.predict.jitted(params, filled, batch))


def _task(config: Any) -> Any:
    """A task of BLIP's, whose tokenizer and answers are not every task's."""
    from jaxvqa.tasks import task_without_data

    return task_without_data(config)


def seconds(call: Callable[[], Any], steps: int) -> dict[str, Any]:
    """The seconds of each of `steps` calls, behind one that counts nothing."""
    call()
    return {"seconds": timed(call, steps).tolist()}


def ours(kind: str, args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Times our predict function."""
    work = Work(kind, args.size, batch)
    call = work.call()
    if WRITTEN[kind]:
        assert (np.asarray(call()["length"]) == WRITTEN[kind]).all()
    return seconds(call, args.steps)


def peer(kind: str, args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Times PyTorch: `generate` of transformers' model, or ranking as the original does it."""
    import torch

    work = Work(kind, args.size, batch)
    image = torch.from_numpy(work.batch["image"]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (work.config.data.mean, work.config.data.std))
    pixels = ((image - mean) / std).contiguous()
    make = {"caption": _captioner, "answer": _answerer, "rank": _ranker}[kind]
    call = make(work, pixels)
    with torch.inference_mode():
        return seconds(call, args.steps)


def _captioner(work: Work, pixels: Any) -> Callable[[], Any]:
    import torch
    import transformers

    model = transformers.BlipForConditionalGeneration(_config(work)).eval()
    tokenizer = work.task.tokenizer
    prompt = torch.from_numpy(random_ids(len(pixels), work.prompt + 1, work)).long()  # the last is taken off again
    prompt[:, -1] = tokenizer.end
    whole = work.config.generate.max_length

    def call() -> None:
        given = {"pixel_values": pixels, "input_ids": prompt.clone(), "attention_mask": torch.ones_like(prompt)}
        written = model.generate(**given, max_length=whole, min_length=whole, num_beams=3, do_sample=False)
        assert written.shape == (len(pixels), whole)

    return call


def _answerer(work: Work, pixels: Any) -> Callable[[], Any]:
    import torch
    import transformers

    model = transformers.BlipForQuestionAnswering(_config(work)).eval()
    question = torch.from_numpy(work.batch["question"]).long()
    whole = work.config.generate.max_length

    def call() -> None:
        given = {"pixel_values": pixels, "input_ids": question, "attention_mask": torch.ones_like(question)}
        written = model.generate(**given, max_length=whole, min_length=whole, num_beams=1, do_sample=False)
        assert written.shape == (len(pixels), whole)

    return call


def _ranker(work: Work, pixels: Any) -> Callable[[], Any]:
    import torch

    from benchmarks.peers import blip

    model = blip.Ranker(blip.sizes_of(work.config)).eval()
    question, answers = (torch.from_numpy(x).long() for x in (work.batch["question"], work.task.candidates[0]))
    return lambda: model(pixels, question, answers, work.config.ranking.first)


def random_ids(rows: int, length: int, work: Work) -> np.ndarray:
    """int32[B, T], the same token ids each time."""
    return np.random.default_rng(0).integers(1, work.config.compile.vocab_size - 10, (rows, length)).astype(np.int32)


def _config(work: Work) -> Any:
    """The sizes of a task's model as transformers names them."""
    import transformers

    from benchmarks.peers import blip

    s, tokenizer = blip.sizes_of(work.config), work.task.tokenizer
    text = {"vocab_size": s.vocabulary, "hidden_size": s.width, "encoder_hidden_size": s.vision_width}
    text |= {"intermediate_size": s.hidden, "projection_dim": s.width, "num_hidden_layers": s.depth}
    text |= {"num_attention_heads": s.heads, "max_position_embeddings": s.positions}
    text |= {"bos_token_id": tokenizer.decode_begin, "sep_token_id": tokenizer.end, "eos_token_id": tokenizer.end}
    text |= {"pad_token_id": tokenizer.padding}
    vision = {"image_size": s.image, "patch_size": s.patch, "hidden_size": s.vision_width}
    vision |= {"intermediate_size": 4 * s.vision_width, "num_hidden_layers": s.vision_depth}
    vision |= {"num_attention_heads": s.vision_heads}
    return transformers.BlipConfig(text_config=text, vision_config=vision)


PEERS = {"caption": "transformers", "answer": "transformers", "rank": "PyTorch"}
ROWS: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    f"{kind}, {who}": (function, kind)
    for kind, other in PEERS.items()
    for who, function in (("jaxvqa", ours), (other, peer))
}
"""What a row of the table is called -> what times it, and the work."""


def table(results: dict[str, list[float]]) -> list[str]:
    """The lines of the table from the seconds of all calls of each row: best and median, and both beside the peer's."""
    lines = [f"{'':24s}{'best, s':>10s}{'median, s':>12s}{'x peer, best':>15s}{'median':>9s}"]
    for name, times in results.items():
        line = f"{name:24s}{min(times):10.3f}{float(np.median(times)):12.3f}"
        kind, _, who = name.partition(", ")
        if who == "jaxvqa" and (other := results.get(f"{kind}, {PEERS[kind]}")):
            line += f"{min(times) / min(other):15.2f}{float(np.median(times) / np.median(other)):9.2f}"
        lines.append(line)
    return lines
