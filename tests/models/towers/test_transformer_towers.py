"""GPT-2, BERT and CLIP beside transformers' own, and what their parts promise."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.convert import towers
from jaxvqa.golden import runner
from jaxvqa.models.layers.attention import KeyValue, MultiHeadAttention, attend, attend_in_parts, causal
from jaxvqa.models.layers.feed_forward import FeedForward
from jaxvqa.models.layers.transformer import LayerNorm, usual_block
from jaxvqa.models.towers import clip, gpt2, make
from jaxvqa.models.towers.palm import PaLM
from tests.made_up import made_up
from tests.oracle import torch

GOLDEN = Path(__file__).parents[2] / "golden" / "flamingo"


@pytest.mark.parametrize(
    ("case", "outputs"),
    [
        ("gpt2_small", 8),
        ("bert_small", 7),
        ("clip_openai_small", 4),
        pytest.param("clip_vision_small", 8, marks=pytest.mark.slow),
    ],
)
def test_given_cases(case, outputs):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert [row.passed for row in rows] == [True] * outputs


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt2_full", "bert_full", "clip_openai_b32_full", "clip_vision_b32_full"])
def test_full_size_golden_cases(case, jaxvqa_data):
    rows = runner.run(jaxvqa_data / "reference" / "flamingo" / f"{case}.manifest.json")
    assert len(rows) > 4
    assert not [row for row in rows if not row.passed]


# --- beside transformers -----------------------------------------------------------------------------------------------

TEXT = np.array([[5, 3, 9, 2, 7, 1], [4, 4, 8, 0, 0, 0]])
REAL = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
SHORT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@functools.cache
def theirs(kind):
    """A small random model of transformers, whose norms and biases are random as well."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 11, "n_positions": 8}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends))
    elif kind == "bert":
        config = transformers.BertConfig(vocab_size=11, max_position_embeddings=8, **SHORT)
        model = transformers.BertModel(config)
    elif kind == "clip_vision":
        config = transformers.CLIPVisionConfig(image_size=12, patch_size=4, projection_dim=6, **SHORT)
        model = transformers.CLIPVisionModelWithProjection(config)
    else:
        ends = {"bos_token_id": 0, "eos_token_id": 10, "pad_token_id": 1}
        config = transformers.CLIPTextConfig(
            vocab_size=11, max_position_embeddings=8, projection_dim=6, **SHORT, **ends
        )
        model = transformers.CLIPTextModelWithProjection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def their_result(kind, model, text, mask):
    if kind == "clip_vision":
        image = np.random.default_rng(0).standard_normal((2, 12, 12, 3), dtype=np.float32)
        return model(torch.from_numpy(image).permute(0, 3, 1, 2)).image_embeds, (jnp.asarray(image),)
    text = text.copy()
    if kind == "clip_text":
        text[:, -1] = 10
        return model(torch.from_numpy(text)).text_embeds, (jnp.asarray(text, jnp.int32),)
    inputs = jnp.asarray(text, jnp.int32), jnp.asarray(mask, jnp.bool_)
    result = model(torch.from_numpy(text), attention_mask=torch.from_numpy(mask))
    return (result.logits if kind == "gpt2" else result.last_hidden_state), inputs


@pytest.mark.oracle
@pytest.mark.parametrize(
    "kind", ["gpt2", "clip_vision", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bert", "clip_text"))]
)
def test_folders_of_transformers_give_its_numbers_and_gradients(kind, tmp_path):
    model = theirs(kind)
    model.save_pretrained(tmp_path)
    found = towers.TOWERS[kind].load(tmp_path)
    module = towers.TOWERS[kind].module(**found.config)
    expected, inputs = their_result(kind, model, TEXT, REAL)
    weight = np.asarray(np.random.default_rng(1).standard_normal(expected.shape), np.float32)
    if kind in ("gpt2", "bert"):
        weight *= REAL[..., None]

    def loss(params):
        result, _ = module.apply({"params": params}, *inputs)
        return jnp.sum(result * weight), result

    model.zero_grad()
    (expected * torch.from_numpy(weight)).sum().backward()
    (_, result), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(found.params)
    real = weight != 0
    np.testing.assert_allclose(np.asarray(result)[real], expected.detach().numpy()[real], atol=1e-5)
    written = found.layout.write({"params": gradient})
    names = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(names) > 20
    for name, value in names.items():
        ours = written.get(name, written.get(f"vision_model.{name}", written.get(f"text_model.{name}")))
        np.testing.assert_allclose(ours, value, atol=1e-5 * max(float(value.abs().max()), 1), err_msg=name)


# --- parts -------------------------------------------------------------------------------------------------------------


def test_a_query_that_may_read_nothing_reads_everything_alike():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.standard_normal((1, 2, 3, 4), dtype=np.float32)) for _ in range(3))
    mask = causal(3) & jnp.asarray([False, True, True])[None, None, None]
    read, weights = attend(query, KeyValue(key, value), mask, scale=0.5)
    np.testing.assert_allclose(weights[0, :, 0], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(read[0, :, 0], value[0].mean(1), rtol=1e-5)
    np.testing.assert_array_equal(weights[0, :, 1], jnp.asarray([[0.0, 1.0, 0.0]] * 2))


@pytest.mark.oracle
def test_attention_is_pytorchs():
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    expected, weights = theirs(x, memory, memory)
    names = ("query", "key", "value")
    kernels = zip(names, theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True)
    params = {name: {"kernel": w.T, "bias": b} for name, w, b in kernels}
    params["output"] = {"kernel": theirs.out_proj.weight.T, "bias": theirs.out_proj.bias}
    params = jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), params)
    layer = MultiHeadAttention(2, 4, 8).bind({"params": params})
    result, maps = layer(jnp.asarray(x.numpy()), layer.project(jnp.asarray(memory.numpy())), train=False)
    np.testing.assert_allclose(result, expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(maps.mean(1), weights.detach().numpy(), atol=1e-6)


def made(kind, name):
    return make(kind, name, {}, "tower", "sizes")


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (made("language model", "distilgpt2"), 81_912_576),
        (made("language model", "bert-base-uncased"), 109_482_240),
        (made("image encoder", "ViT-B/32"), 87_849_216),
        (made("text encoder", "ViT-B/32"), 63_428_096),
        *(
            pytest.param(module, count, marks=pytest.mark.slow)
            for module, count in (
                (gpt2.GPT2(), 124_439_808),
                (made("language model", "gpt2-medium"), 354_823_168),
                (made("language model", "gpt2-large"), 774_030_080),
                (made("language model", "gpt2-xl"), 1_557_611_200),
                (made("language model", "bert-large-uncased"), 335_141_888),
                (made("image encoder", "ViT-L/14"), 303_966_208),
            )
        ),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, int) else str(x),
)
def test_published_sizes_have_the_published_number_of_parameters(module, count):
    vision = isinstance(module, clip.VisionTransformer)
    inputs = jnp.zeros((1, 224, 224, 3)) if vision else jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("make", [gpt2.GPT2, PaLM], ids=["gpt2", "palm"])
def test_decoders_do_not_look_ahead_nor_at_padding(make):
    model = make(vocab_size=11, width=16, depth=2, heads=2)
    text, real = jnp.asarray(TEXT, jnp.int32), jnp.asarray(REAL, jnp.bool_)
    params = jax.jit(model.init)(jax.random.key(0), text)
    logits, out = jax.jit(model.apply)(params, jnp.concatenate([text, text.at[:, 4:].set(0)]), jnp.tile(real, (2, 1)))
    np.testing.assert_array_equal(logits[0, :4], logits[2, :4])
    assert jnp.abs(logits[0, 4] - logits[2, 4]).max() > 1e-3
    np.testing.assert_array_equal(out["attention_1"][1, :, :, 3:], 0.0)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    text = jnp.asarray(TEXT, jnp.int32)
    models = [gpt2.GPT2(vocab_size=11, width=16, depth=2, heads=2, dtype=d) for d in (jnp.float32, jnp.bfloat16)]
    params = jax.jit(models[1].init)(jax.random.key(0), text)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    (exact, _), (logits, out) = (jax.jit(m.apply)(params, text) for m in models)
    assert (logits.dtype, out["block_1"].dtype, out["attention_0"].dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    assert 0 < jnp.abs(logits - exact).max() < 0.05 * jnp.abs(exact).max()


# --- attention in parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_in_parts_the_same_is_read_with_the_same_gradients(padding):
    """Causal and not, with parts that do not divide the length, scaled or as MLMI's GPT-2."""
    rng = np.random.default_rng(0)
    query, key, value, weight = (jnp.asarray(rng.standard_normal((2, 3, 10, 4), np.float32)) for _ in range(4))
    real = {"none": np.ones((2, 10)), "right": np.arange(10) < [[10], [6]], "left": np.arange(10) >= [[0], [4]]}
    mask = causal(10) & jnp.asarray(real[padding], bool)[:, None, None] if padding != "none" else None
    scale = 0.5 if padding == "left" else 1.0

    def result(read):
        return jax.value_and_grad(
            lambda q, k, v: jnp.sum(weight * read(q, KeyValue(k, v), mask, scale=scale)), argnums=(0, 1, 2)
        )

    expected = jax.jit(result(lambda *given, **options: attend(*given, **options)[0]))(query, key, value)
    in_parts = jax.jit(result(functools.partial(attend_in_parts, part=4)))(query, key, value)
    for one, other in zip(jax.tree.leaves(in_parts), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_in_parts_memory_grows_with_the_length_and_not_with_its_square():
    def temporary(read, length):
        x = jax.ShapeDtypeStruct((1, 2, length, 4), jnp.float32)
        gradient = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(read(q, KeyValue(k, v), None, scale=1.0))), (0, 1, 2))
        return jax.jit(gradient).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    in_parts = functools.partial(attend_in_parts, part=16)
    assert temporary(in_parts, 1024) < 2.5 * temporary(in_parts, 512)

    def whole(*given, **options):
        return attend(*given, **options)[0]

    assert temporary(whole, 1024) > 3 * temporary(whole, 512)


def test_gpt2_without_maps_is_the_same_and_drops_weights():
    text = jnp.asarray(TEXT, jnp.int32)
    sizes = {"vocab_size": 11, "width": 16, "depth": 1, "heads": 2, "positions": 8}
    model, without = gpt2.GPT2(**sizes), gpt2.GPT2(**sizes, maps=False)
    variables = jax.jit(model.init)(jax.random.key(0), text)
    logits, out = jax.jit(model.apply)(variables, text, jnp.asarray(REAL, bool))
    again, out_again = jax.jit(without.apply)(variables, text, jnp.asarray(REAL, bool))
    np.testing.assert_allclose(again, logits, atol=1e-5)
    assert out.keys() - out_again.keys() == {"attention_0"}
    attention = MultiHeadAttention(2, 8, 16, dropout=0.5)
    x = jax.random.normal(jax.random.key(1), (2, 6, 16))
    params = attention.init(jax.random.key(0), x, method=lambda module, x: module(x, module.project(x), train=False))

    def read(seed):
        return attention.apply(
            params,
            x,
            rngs={"dropout": jax.random.key(seed)},
            method=lambda module, x: module.in_parts(x, module.project(x), train=True),
        )

    np.testing.assert_array_equal(read(0), read(0))
    assert (read(0) != read(1)).any()


# --- the block ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [True, False], ids=["before", "after"])
def test_blocks_are_their_formula_with_cross_attention(norm_first):
    """x + part(norm(x)), or norm(x + part(x)), of the three parts in turn; without a memory, of two."""
    options = {"norm_first": norm_first, "epsilon": 1e-6, "cross_attention": True}
    block = usual_block(8, 2, 12, "gelu", **options)
    x, memory = (jax.random.normal(jax.random.key(i), (2, n, 8)) for i, n in enumerate((3, 5)))
    mask, memory_mask = causal(3), jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])[:, None, None]

    def apply(block, memory):
        seen = None if memory is None else block.remember(memory)
        return block(x, mask, memory=seen, memory_mask=memory_mask, train=False)[:2]

    variables = made_up(jax.eval_shape(lambda: block.init(jax.random.key(0), memory, method=apply)))
    params = variables["params"]

    def norm(name, x):
        return LayerNorm(epsilon=1e-6).apply({"params": params[f"{name}_norm"]}, x)

    def attention(name, x, memory, mask):
        layer = MultiHeadAttention(2, 4, 8).bind({"params": params[name]})
        return layer(x, layer.project(x if memory is None else memory), mask, train=False)[0]

    parts = {
        "attention": lambda x: attention("attention", x, None, mask),
        "cross_attention": lambda x: attention("cross_attention", x, memory, memory_mask),
        "feed_forward": lambda x: FeedForward(12, 8, activation="gelu").apply(
            {"params": params["feed_forward"]}, x, train=False
        ),
    }
    for given, names in ((memory, parts), (None, ("attention", "feed_forward"))):
        expected = x
        for name in names:
            part = parts[name]
            expected = expected + part(norm(name, expected)) if norm_first else norm(name, expected + part(expected))
        result, maps = block.apply(variables, given, method=apply)
        np.testing.assert_allclose(result, expected, atol=1e-5)
        assert maps.keys() == set(names) - {"feed_forward"}


def test_drop_path_drops_a_part_of_whole_examples():
    """Each example's row gets nothing of a part, or the part over the share that is kept."""
    block = usual_block(8, 2, 12, "gelu", norm_first=True, epsilon=1e-6, drop_path=0.25)
    x = jax.random.normal(jax.random.key(0), (64, 3, 8))
    variables = block.init(jax.random.key(1), x, train=False)
    feed_forward = variables["params"]["feed_forward"]
    feed_forward["down"] = jax.tree.map(jnp.zeros_like, feed_forward["down"])  # it adds nothing
    added = block.apply(variables, x, train=False)[0] - x
    dropped = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)})[0] - x
    kept = jnp.any(dropped != 0, axis=(1, 2))
    np.testing.assert_allclose(dropped, jnp.where(kept[:, None, None], added / 0.75, 0), atol=1e-5)
    assert 34 < kept.sum() < 60
