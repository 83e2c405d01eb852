"""A task whose predictions are given, and splits that are lists: an evaluator runs in full, and no model is compiled."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxvqa import sharding, tasks
from jaxvqa.data.data_set import Split
from jaxvqa.evaluators import evaluator
from jaxvqa.evaluators.context import Context
from jaxvqa.metrics.score import as_row
from jaxvqa.state import TrainState
from jaxvqa.tasks.predictions import Predict


class Source(Split):
    """A split's records, each with its place."""

    def __init__(self, records):
        self.records = [record | {"place": np.int32(place)} for place, record in enumerate(records)]

    def __len__(self):
        return len(self.records)

    def read_records(self, indices):
        return [self.records[int(i)] for i in indices]

    def read(self, indices):
        return self.read_records(indices)


def in_training(example):
    """A transform that is not for evaluations: every example becomes the first one."""
    return example | {"place": np.int32(0)}


def keep(example):
    """What goes into a batch."""
    return {"place": example["place"]}


class Task(tasks.Task):
    """A task whose parameters are the outputs themselves: float or int[N, …] by name, of which each example reads its own."""

    assets, batch_keys = {}, ()
    init_batch = init = loss = lambda *_, **__: None

    def __init__(self, rule="exact", choices=(), text=None, shots=None):
        self.answer_rule = rule

        def function(params, collections, batch):
            return {name: table[batch["place"]] for name, table in params.items()}

        self.predictions = {"given": Predict(function, ("place",), choices, text, shots)}

    def transforms(self, *, train):
        return (in_training, keep) if train else (keep,)


def context(task, splits, workdir, **row):
    """What the evaluation `val` works with: batches of 3, so that the last one is filled up."""
    config = ml_collections.ConfigDict({"split": "val", "batch_size": 3, "predict": "given"} | row)
    mesh = sharding.make_mesh(ml_collections.ConfigDict(dict.fromkeys(sharding.AXES, 1)), jax.devices()[:1])
    return Context("val", config, task, lambda split: Source(splits[split]), mesh, workdir)


def state(outputs, step=7):
    """A state that predicts these outputs."""
    params = {name: jnp.asarray(values) for name, values in outputs.items()}
    return TrainState(jnp.asarray(step, jnp.int32), params, {}, (), None)


def evaluate(kind, task, splits, outputs, workdir, **row):
    """Everything that an evaluation of that type yields, as a row of metrics.jsonl has it, without `val/`."""
    made = evaluator(kind)(context(task, splits, workdir, type=kind, **row))
    found = as_row(made.run(state(outputs)))
    assert all(name.startswith("val/") for name in found)
    return {name.removeprefix("val/"): value for name, value in found.items()}


def chosen(answers, probability=0.5):
    """The outputs of a predict function that chooses these answers; -1 is none."""
    answer = np.asarray(answers, np.int32)[:, None]
    return {"answer": answer, "probability": np.where(answer < 0, 0, np.float32(probability))}
