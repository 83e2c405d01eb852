"""Golden cases: those that were given, and others of other sizes from a second implementation, in PyTorch."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.convert import rwsan, to_torch
from jaxvqa.golden import runner, weights
from jaxvqa.golden.options import rwsan as of_rwsan
from tests import listening
from tests.oracle import torch

GOLDEN = Path(__file__).parent.parent / "golden"


def failures(rows):
    return [row for row in rows if row.passed is False]


# --- the cases that were given -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "outputs"), [("small", 13), ("full", 6)])
def test_given_cases(case, outputs):
    file = GOLDEN / "rwsan" / f"{case}.manifest.json"
    with listening.heard() as noted:
        rows = runner.run(file)
    listening.assert_lines_before(noted, {r"jit\(.*\)": f"{re.escape(str(file))} …"})
    assert not failures(rows)
    assert sum(row.passed is True for row in rows) == outputs + 1  # and the checkpoint's way there and back


def test_given_training_case(float64_alone):
    rows = runner.run(GOLDEN / "rwsan/small_train.manifest.json")
    assert not failures(rows)
    assert sum(row.passed is True for row in rows) == 16


@pytest.mark.slow
@pytest.mark.parametrize("system", ["rwsan", "cmsa", "sysu_hcp", "flamingo", "blip", "metrics"])
def test_a_whole_folder_by_the_command(system):
    # In a process without the tests' flags: machine code that is made quickly rounds otherwise, on some processors by more than
    # the limit of a float32 gradient.
    command = [sys.executable, "-m", "jaxvqa.golden", str(GOLDEN / system)]
    environment = os.environ | {"XLA_FLAGS": "", "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=GOLDEN.parent.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


SECTIONS = ["tokenise", "vocabulary", "answers", "answer_dictionary", "soft_scores", "vqa_accuracy"]
SECTIONS += ["schedule", "image_files", "image_features", "trim"]


@pytest.mark.parametrize("section", SECTIONS)
def test_given_text_cases(section, tmp_path):
    content = json.loads((GOLDEN / "rwsan" / "text_cases.json").read_text())
    (tmp_path / "text_cases.json").write_text(json.dumps({section: content[section]}))
    (row,) = runner.run(tmp_path)
    assert row.passed, row.note


def test_text_cases_are_all_checked():
    content = json.loads((GOLDEN / "rwsan" / "text_cases.json").read_text())
    assert sorted(content) == sorted([*SECTIONS, "about"])


def test_metric_cases_skip_visibly(jaxvqa_data, monkeypatch):
    cases = jaxvqa_data / "reference" / "metrics" / "cases.json"
    rows = runner.run(cases)
    assert not failures(rows)
    assert sum(row.passed is True for row in rows if row.output == "vqa_v2") == 2
    monkeypatch.delenv("JAXVQA_DATA")
    rows = runner.run(cases)
    skipped = [row.note for row in rows if row.passed is None and row.output == "vqa_v2"]
    assert len(skipped) == 1
    assert "JAXVQA_DATA" in skipped[0]


# --- cases of other sizes, from a second implementation --------------------------------------------------------------------


class Reference:
    """RWSAN in PyTorch functions, written from docs/originals/rwsan.md for these tests; parameters by the original's keys."""

    def __init__(self, options, parameters):
        self.o, self.p = options, parameters

    def linear(self, key, x):
        return x @ self.p[f"{key}.weight"].T + self.p[f"{key}.bias"]

    def norm(self, key, x):
        spread = x.std(-1, keepdim=True)
        return self.p[f"{key}.a_2"] * (x - x.mean(-1, keepdim=True)) / (spread + 1e-6) + self.p[f"{key}.b_2"]

    def lstm(self, x):
        width = self.o["HIDDEN_SIZE"]
        h = c = torch.zeros(len(x), width)
        states = []
        for t in range(x.shape[1]):
            gates = x[:, t] @ self.p["lstm.weight_ih_l0"].T + self.p["lstm.bias_ih_l0"]
            gates = gates + h @ self.p["lstm.weight_hh_l0"].T + self.p["lstm.bias_hh_l0"]
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return torch.stack(states, 1)

    def attention(self, key, q, kv, padding, rank):
        heads = self.o["MULTI_HEAD"]
        size = self.o["HIDDEN_SIZE"] // heads
        query, keys, value = (self.linear(f"{key}.linear_{n}", x) for n, x in (("q", q), ("k", kv), ("v", kv)))
        results = []
        for j in range(heads):
            part = slice(j * rank, (j + 1) * rank)
            scores = query[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(rank)
            scores = scores.masked_fill(padding[:, None, :], -50000.0)
            results.append(scores.softmax(-1) @ value[..., j * size : (j + 1) * size])
        return self.linear(f"{key}.linear_merge", torch.cat(results, -1))

    def mlp(self, key, x):
        return self.linear(f"{key}.mlp.linear", self.linear(f"{key}.mlp.fc.linear", x).relu())

    def sa(self, x, padding):
        key = "RWSA_layer.srwsa.denceenc1"
        x = self.norm(f"{key}.norm1", x + self.attention(f"{key}.mhatt", x, x, padding, self.o["SRWSA_MIDSIZE"]))
        return self.norm(f"{key}.norm2", x + self.mlp(f"{key}.ffn", x))

    def sga(self, x, y, x_padding, y_padding):
        key, o = "RWSA_layer.sgrwsa.dec1", self.o
        y = self.norm(f"{key}.norm1", y + self.attention(f"{key}.mhatt1", y, y, y_padding, o["SGRWSA_SA_MIDSIZE"]))
        y = self.norm(f"{key}.norm2", y + self.attention(f"{key}.mhatt2", y, x, x_padding, o["SGRWSA_GA_MIDSIZE"]))
        return self.norm(f"{key}.norm3", y + self.mlp(f"{key}.ffn", y))

    def flatten(self, key, x, padding):
        scores = self.mlp(key, x)[..., 0].masked_fill(padding, -50000.0)
        return self.linear(f"{key}.linear_merge", (scores.softmax(-1)[..., None] * x).sum(1))

    def __call__(self, regions, question):
        x_padding, y_padding = question == 0, regions.abs().sum(-1) == 0
        out = {"lstm": self.lstm(self.p["embedding.weight"][question])}
        out["img_linear"] = self.linear("img_feat_linear", regions)
        x, y = out["lstm"], out["img_linear"]
        out["sa_first"], out["sga_first"] = self.sa(x, x_padding), None
        for i in range(self.o["SRWSA_LAYER"]):
            x2 = self.sa(self.norm("RWSA_layer.srwsa.norm1", self.sa(x, x_padding) + x), x_padding)
            x = self.sa(self.norm("RWSA_layer.srwsa.norm2", x2 + x), x_padding)
            if i == 0:
                out["srwsa_first"] = x
        out["encoder"], out["sga_first"] = x, self.sga(x, y, x_padding, y_padding)
        for i in range(self.o["SGRWSA_LAYER"]):
            y1 = self.sga(x, y, x_padding, y_padding)
            y2 = self.sga(x, self.norm("RWSA_layer.sgrwsa.norm1", y1 + y), x_padding, y_padding)
            y3 = self.sga(x, y2, x_padding, y_padding)
            y = self.norm("RWSA_layer.sgrwsa.norm3", y3 + y)
            if i == 0:
                out["sgrwsa_first"] = y
        out["decoder"] = y
        out["attflat_lang"] = self.flatten("attflat_lang", x, x_padding)
        out["attflat_img"] = self.flatten("attflat_img", y, y_padding)
        out["proj_norm"] = self.norm("proj_norm", out["attflat_lang"] + out["attflat_img"])
        out["logits"] = self.linear("proj", out["proj_norm"])
        return out


def write_case(folder, name, options, seed, train):
    """Writes a manifest and the reference's results, with train steps if asked for."""
    batch, regions, length = 3, options["IMG_FEAT_PAD_SIZE"], options["MAX_TOKEN"]
    inputs = [
        {"name": "img_feat", "seed": seed, "shape": [batch, regions, options["IMG_FEAT_SIZE"]], "kind": "normal"},
        {"name": "ques_ix", "seed": seed + 1, "shape": [batch, length], "kind": "int"},
        {"name": "target", "seed": seed + 2, "shape": [batch, options["answer_size"]], "kind": "int"},
    ]
    inputs[0]["edits"] = [{"op": "zero_after", "lengths": [regions, 3, 1]}, {"op": "zero_row", "batch": 0, "row": 1}]
    inputs[0]["edits"] += [{"op": "alternate_row", "batch": 1, "row": 0}]
    inputs[1] |= {"low": 1, "high": options["token_size"]}
    inputs[1]["edits"] = [{"op": "zero_after", "lengths": [length, 2, 1]}]
    inputs[2] |= {"low": 0, "high": 4, "edits": [{"op": "levels", "table": [0.0, 0.0, 0.3, 1.0]}]}
    features = {"img_feat_linear.weight": np.zeros((0, options["IMG_FEAT_SIZE"]))}
    model = of_rwsan(options)
    shapes = rwsan.ORIGINAL.shapes(model, rwsan.ORIGINAL.inputs(features, model))
    zeros = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in golden_flatten(shapes).items()}
    tensors = to_torch(golden_unflatten(zeros), rwsan.KEYS)
    listed = [{"key": k, "shape": list(v.shape), "dtype": "float32"} for k, v in tensors.items()]
    optimizer = {"betas": [0.9, 0.98], "eps": 1e-9, "lr_base": 1e-4, "data_size": 640, "batch_size": 4}
    path = {"lr_base": 1e-3, "data_size": 7, "epochs": 3, "lr_decay_list": [2], "lr_decay_r": 0.2, "batch_size": 3}
    manifest = {"model": "rwsan", "options": options, "tensors": listed, "inputs": inputs}
    if train:
        manifest["train"] = {"optimizer": optimizer, "trajectory": path}
    small_train = json.loads((GOLDEN / "rwsan" / "small_train.manifest.json").read_text())
    manifest["rounding_only_gradients"] = small_train["rounding_only_gradients"]
    (folder / f"{name}.manifest.json").write_text(json.dumps(manifest))

    values = {key: torch.nn.Parameter(torch.from_numpy(v)) for key, v in weights.checkpoint(listed).items()}
    given = [torch.from_numpy(weights.make_input(spec)) for spec in inputs]

    def loss():
        logits = Reference(options, values)(*given[:2])["logits"]
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, given[2], reduction="sum")

    def norms(arrays):
        return np.asarray([np.linalg.norm(a.detach().numpy().astype(np.float64)) for a in arrays])

    results = {f"out_{k}": v.detach().numpy() for k, v in Reference(options, values)(*given[:2]).items()}
    if not train:
        np.savez(folder / f"{name}.npz", **results)
        return
    start = loss()
    start.backward()
    results |= {"keys": np.asarray(list(values)), "out_loss": start.detach().numpy()}
    results["out_grad_norm"] = norms(v.grad for v in values.values())
    first = [np.resize(np.append(v.grad.numpy().ravel()[:8], np.zeros(8)), 8) for v in values.values()]
    results["out_grad_first8"] = np.stack(first)
    adam = torch.optim.Adam(values.values(), betas=(0.9, 0.98), eps=1e-9)
    rates, losses = [1e-3 / 4] * 2 + [1e-3 / 2] * 2 + [1e-3 * 0.2 * 3 / 4] * 2, []  # the third epoch drops
    for rate in rates:
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        value = loss()
        losses.append(value.item())
        value.backward()
        adam.step()
    results |= {"out_traj_lr": np.asarray(rates), "out_traj_loss": np.asarray(losses, np.float32)}
    results |= {"out_traj_loss_end": loss().detach().numpy(), "out_traj_param_norm": norms(values.values())}
    np.savez(folder / f"{name}.npz", **results)


def golden_flatten(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {path: leaf for k, v in tree.items() for path, leaf in golden_flatten(v, f"{prefix}/{k}".strip("/")).items()}


def golden_unflatten(leaves):
    tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


BASE = {"HIDDEN_SIZE": 24, "MULTI_HEAD": 3, "SRWSA_LAYER": 1, "SGRWSA_LAYER": 1, "WORD_EMBED_SIZE": 10}
BASE |= {"IMG_FEAT_SIZE": 14, "FLAT_MLP_SIZE": 9, "FLAT_OUT_SIZE": 20, "SRWSA_MIDSIZE": 5, "SGRWSA_SA_MIDSIZE": 2}
BASE |= {"SGRWSA_GA_MIDSIZE": 7, "DROPOUT_R": 0.1, "token_size": 17, "answer_size": 6, "MAX_TOKEN": 5}
BASE |= {"IMG_FEAT_PAD_SIZE": 6}
OTHER = {"HIDDEN_SIZE": 16, "MULTI_HEAD": 1, "SRWSA_LAYER": 2, "SGRWSA_LAYER": 2, "token_size": 40, "MAX_TOKEN": 9}


@pytest.mark.oracle
def test_a_case_of_other_sizes_passes(tmp_path):
    write_case(tmp_path, "other", BASE | OTHER, 90, train=False)
    rows = runner.run(tmp_path)
    assert not failures(rows)
    assert {row.output for row in rows} >= {"logits", "sga_first", "sgrwsa_first", "decoder", "attflat_img"}


@pytest.mark.oracle
def test_a_train_case_of_other_sizes_passes(tmp_path):
    write_case(tmp_path, "other", BASE, 5, train=True)
    rows = runner.run(tmp_path)
    assert not failures(rows)
    later = {"traj_loss", "traj_loss_end", "traj_param_norm"}
    assert {row.output for row in rows if row.passed} >= {"loss", "grad_norm", "grad_first8", "traj_lr", *later}


# --- what the runner refuses ---------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    for suffix in (".manifest.json", ".npz"):
        shutil.copyfile(GOLDEN / "rwsan" / f"small{suffix}", tmp_path / f"small{suffix}")
    with np.load(tmp_path / "small.npz") as stored:
        return tmp_path, dict(stored)


def test_misses_and_unknown_outputs_fail(small):
    folder, arrays = small
    arrays["out_encoder"] = arrays["out_encoder"] * np.float32(1 + 3e-4)
    arrays["out_decoder"] = arrays["out_decoder"][:, 1:]
    arrays["out_new"] = np.zeros(3)
    arrays["out_logits"][0, 0] = np.nan
    np.savez(folder / "small.npz", **arrays)
    rows = runner.run(folder / "small.npz")
    assert {row.output for row in failures(rows)} == {"encoder", "decoder", "new", "logits"}
    assert "does not know" in next(row.note for row in rows if row.output == "new")


def test_what_cannot_be_run_fails(small, capsys):
    folder, _ = small
    (folder / "nothing").mkdir()
    np.savez(folder / "alone.npz", out_x=np.zeros(1))
    manifest = json.loads((folder / "small.manifest.json").read_text())
    (folder / "small.manifest.json").write_text(json.dumps(manifest | {"model": "another"}))
    (folder / "some_cases.json").write_text(json.dumps({"tokenise": [], "unheard_of": []}))
    rows = runner.run(folder)
    notes = {row.case: row.note for row in rows if row.passed is False}
    assert "'another'" in notes["small"]
    assert "no alone.manifest.json" in notes["alone.npz"]
    assert [row.passed for row in rows if row.case == "some_cases.json"] == [None, False]
    assert next(row.output for row in rows if row.case == "some_cases.json" and row.passed is False) == "unheard_of"
    assert runner.main([str(folder / "nothing"), str(folder / "absent")]) == 1
    assert "2 failed" in capsys.readouterr().out


def test_wrong_text_rules_fail(tmp_path, capsys):
    cases = {"tokenise": [{"question": "Is it?", "tokens": ["is", "it"]}, {"question": "Yes", "tokens": ["Yes"]}]}
    (tmp_path / "text_cases.json").write_text(json.dumps(cases))
    (row,) = runner.run(tmp_path)
    assert row.passed is False
    assert row.note == "1/2; first miss: Yes: ['yes'], expected ['Yes']"
    (tmp_path / "text_cases.json").write_text(json.dumps({"tokenise": cases["tokenise"][:1]}))
    assert runner.main([str(tmp_path)]) == 0
    assert "1/1" in capsys.readouterr().out


def test_weights_follow_the_recipe():
    recipe = json.loads((GOLDEN / "rwsan" / "small.manifest.json").read_text())["tensors"]
    assert list(weights.checkpoint(recipe)) == [t["key"] for t in recipe]
    assert weights.tensor("a.weight", (3,), "float32").mean() > 0.5
    assert weights.tensor("a.b_2", (3,), "float32").mean() < 0.5
    assert (weights.tensor("bn.running_var", (100,), "float32") >= 0.5).all()
    np.testing.assert_array_equal(weights.tensor("n", (2,), "int64"), [1, 1])
    np.testing.assert_array_equal(weights.tensor("ids", (2, 2), "int64", [0, 1, 2, 3]), [[0, 1], [2, 3]])


@pytest.mark.skipif("JAXVQA_DATA" not in os.environ, reason="JAXVQA_DATA is not set: no reference recipe at hand")
def test_weights_are_those_of_the_reference_bit_for_bit():
    namespace = {}
    exec((Path(os.environ["JAXVQA_DATA"]) / "reference" / "weights.py").read_text(), namespace)
    for key, shape in (("x.weight", (7, 5)), ("x.bias", (7,)), ("x.a_2", (4,)), ("x.running_var", (4,))):
        theirs = namespace["tensor"](key, shape)
        np.testing.assert_array_equal(weights.tensor(key, shape, "float32"), theirs)
