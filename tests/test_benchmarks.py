"""What benchmarks compute themselves: the operations of a step; and the peers, where they need no others to be run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import blip_texts, planted_lesions, proposals
from benchmarks.flop import flop
from jaxvqa import configs, models, paths
from jaxvqa.errors import ConfigError
from jaxvqa.explain.explanation import AttentionMap, Explanation
from tests.oracle import torch

IMAGE, KERNEL = jnp.zeros((2, 9, 8, 4)), jnp.zeros((3, 3, 4, 6))


def convolution(x, kernel, stride, padding):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding,) * 2] * 2, dimension_numbers=dimensions)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1), (2, 3)])
def test_convolutions_and_their_gradients_count_as_xla_counts_them(stride, padding):
    def squares(x, kernel):
        return jnp.sum(convolution(x, kernel, stride, padding))

    for function in (lambda x, k: convolution(x, k, stride, padding), jax.grad(squares, 0), jax.grad(squares, 1)):
        traced = jax.jit(function).trace(IMAGE, KERNEL)
        xla = traced.lower().compile().cost_analysis()["flops"]
        assert flop(traced) == pytest.approx(xla, rel=0.03)  # XLA counts the additions outside, too


def test_a_loop_counts_as_often_as_it_runs_and_what_nobody_uses_does_not():
    matrix = jnp.zeros((8, 8))

    def powers(a):
        _ = a @ a @ a
        return jax.lax.scan(lambda power, _: (power @ a, None), a, None, length=5)[0]

    assert flop(jax.jit(powers).trace(matrix)) == 5 * 2 * 8**3


def test_a_choice_counts_its_longer_branch():
    def chosen(a):
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a @ a @ a, a)

    assert flop(jax.jit(chosen).trace(jnp.zeros((4, 4)))) == 2 * 2 * 4**3


@pytest.mark.oracle
def test_flamingos_peer_has_its_parameters():
    from benchmarks.peers.flamingo import Flamingo

    config = configs.load("configs/flamingo.py:vqa_rad,mlmi")
    model = models.build(config.model.to_dict(), vocab_size=50261, image_token=50258, num_answers=458)
    inputs = {"text": jnp.zeros((1, 2), jnp.int32), "image": jnp.zeros((1, 224, 224, 3))}
    inputs["question_end"] = jnp.zeros((1,), jnp.int32)
    shapes = jax.eval_shape(lambda key: model.init(key, **inputs), jax.random.key(0))["params"]
    sizes = {path: leaf.size for path, leaf in paths.flatten(shapes).items()}
    with torch.device("meta"):
        peer = Flamingo(model, config.data.image_size)
    # Of the vectors for media, the peer has that of a single one.
    media = sizes["resampler/media_position"]
    assert sum(p.numel() for p in peer.parameters()) == sum(sizes.values()) - media * (model.media - 1) // model.media


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("network", "parameters"), [("resnet50", 24_184_202), ("resnest50", 26_110_410), ("vgg16", 135_612_554)]
)
def test_peers_of_sysu_have_the_published_sizes(network, parameters):
    from benchmarks.peers import sysu_hcp

    with torch.device("meta"):
        assert sum(p.numel() for p in sysu_hcp.NETWORKS[network](330).parameters()) == parameters


@pytest.mark.oracle
def test_a_peer_of_sysu_trains_and_answers():
    from benchmarks.peers import sysu_hcp

    config = configs.load("configs/sysu_hcp.py:vqa_med_2021,resnest50")
    batch = {"image": torch.randint(256, (2, 40, 40, 3), dtype=torch.uint8), "answer_class": torch.tensor([1, 329])}
    assert np.isfinite(sysu_hcp.train_step(config)(batch))
    assert sysu_hcp.inference(config)(batch).shape == (2,)


@pytest.mark.oracle
def test_a_peer_of_sysu_that_is_not_there_is_an_error():
    from benchmarks.peers import sysu_hcp

    with pytest.raises(ConfigError, match="not densenet121"):
        sysu_hcp.inference(configs.load("configs/sysu_hcp.py:vqa_med_2021,densenet121"))


TINY_BLIP = {
    **{"image": 32, "vision_width": 16, "vision_depth": 2, "vision_heads": 2, "width": 24, "depth": 2, "heads": 2},
    **{"hidden": 32, "positions": 12, "vocabulary": 50, "shared": 8, "queue": 8, "start": 48, "encode": 49},
}


@pytest.mark.oracle
def test_blips_peer_has_the_published_sizes():
    from benchmarks.peers import blip

    config = configs.load("configs/blip_pretrain.py:published")
    assert blip.sizes_of(config) == blip.Sizes()
    with torch.device("meta"):
        model = blip.Blip(blip.Sizes())
    assert sum(p.numel() for p in model.parameters()) == 475_892_799
    assert sum(p.numel() for p in model.trained()) == 252_441_919
    with pytest.raises(ConfigError, match=r"reads pixels.*'region-vit'"):
        blip.sizes_of(configs.load("configs/blip_pretrain.py"))


@pytest.mark.oracle
def test_blips_peer_learns_and_keeps_its_queue_and_momentum():
    from benchmarks.peers.blip import MOMENTUM, Sizes, Step

    torch.manual_seed(0)
    step = Step(Sizes(**TINY_BLIP), lr=1e-3, mean=(0.5,) * 3, std=(0.2,) * 3)
    model, mask = step.model, torch.ones(4, 6)
    mask[1, 4:] = 0
    image = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8)
    batch = {"image": image, "text": torch.randint(1, 48, (4, 6)), "text_mask": mask}
    weights = {name: module.vision.norm.weight for name, module in (("fast", model.online), ("slow", model.momentum))}
    before = weights["fast"].detach().clone()
    losses, queues = [step(batch)], [model.image_queue.clone()]
    moved = weights["fast"].detach().clone()
    assert torch.equal(weights["slow"], before)  # the momentum encoders move before the first gradient
    losses.append(step(batch))
    torch.testing.assert_close(weights["slow"], MOMENTUM * before + (1 - MOMENTUM) * moved)
    assert torch.equal(model.image_queue[:, :4], queues[0][:, :4])  # the second batch went to the other half
    assert not torch.equal(model.image_queue[:, 4:], queues[0][:, 4:])
    assert model.place == 0
    losses += [step(batch) for _ in range(8)]
    assert losses[-1] < losses[0] - 2
    assert set(step.passes()) == {"optimiser", "momentum"}


@pytest.mark.oracle
def test_blips_ranker_has_the_published_size_and_keeps_the_best_first_tokens():
    from benchmarks.peers import blip

    config = configs.load("configs/blip_vqa.py:published")
    with torch.device("meta"):
        model = blip.Ranker(blip.sizes_of(config))
    assert sum(p.numel() for p in model.parameters()) == 361_478_972
    torch.manual_seed(0)
    small = blip.Ranker(blip.Sizes(**TINY_BLIP)).eval()
    small.bias.data[7] = 9.0  # an answer that begins so is likely, and the others are much less so
    answers = torch.tensor([[48, 5, 3], [48, 7, 3], [48, 9, 3], [48, 7, 5]])
    kept, loss = small(torch.rand(2, 3, 32, 32), torch.randint(1, 40, (2, 4)), answers, 2)
    assert [set(row) for row in kept.tolist()] == [{1, 3}] * 2
    assert loss.shape == (2, 2)


def test_a_row_of_blips_table_stands_beside_its_peer():
    found = {"rank, jaxvqa": [3.0, 1.0, 2.0], "rank, PyTorch": [8.0, 2.0, 5.0], "answer, jaxvqa": [1.0]}
    lines = blip_texts.table(found)
    assert lines[1].split() == ["rank,", "jaxvqa", "1.000", "2.000", "0.50", "0.40"]
    assert lines[2].split() == ["rank,", "PyTorch", "2.000", "5.000"]
    assert lines[3].split() == ["answer,", "jaxvqa", "1.000", "1.000"]


def test_blips_work_is_as_long_for_both():
    for kind, tokens in (("caption", 20), ("answer", 9)):
        work = blip_texts.Work(kind, "small", 2)
        generate = work.config.generate
        assert generate.min_length == generate.max_length == work.prompt + tokens
        assert generate.beams == (3 if kind == "caption" else 1)
    candidates, there = blip_texts.Work("rank", "small", 2).task.candidates
    assert candidates.shape[1] == blip_texts.ANSWER_TOKENS
    assert there.all()


def test_the_time_of_a_whole_retrieval_is_that_of_its_parts():
    from benchmarks import retrieval

    assert retrieval.sizes("5000,25010,256") == (5000, 25010, 256)
    with pytest.raises(ConfigError, match="--of=5000: expected images, texts and k"):
        retrieval.sizes("5000")
    assert retrieval.union(100, 500, 16) == (8000, 9600)
    row = retrieval.per_second({"image_features": 0.5, "text_features": 0.1, "match": 2.0}, images=4, texts=8)
    assert row == {"images_per_second": 8, "texts_per_second": 40, "pairs_per_second": 16}
    assert retrieval.reckoned(row, 100, 500, 8000, passes=2) == 25 + 12.5 + 500


def explanation(weights, boxes, words=()):
    maps = tuple(AttentionMap(np.asarray(w, np.float32)) for w in weights)
    word_attention = np.asarray(words or [1 / max(len(maps), 1)] * len(maps), np.float32)
    words = tuple("w" * len(maps))
    return Explanation(
        1, 1, "?", words, word_attention, (("yes", 1.0),), (), np.asarray(boxes, np.float32), maps, b"", (200, 100)
    )


def test_a_peak_is_in_the_strongest_box_of_the_strongest_word():
    boxes = [[0, 0, 40, 40], [150, 50, 190, 90]]
    x, y = planted_lesions.peak(explanation([[0.9, 0.1], [0.1, 0.9]], boxes, words=[0.2, 0.8]))
    assert (x, y) == pytest.approx((0.85, 0.7), abs=0.01)
    assert planted_lesions.peak(explanation([[0.0, 0.0]], boxes)) is None


def test_the_control_lays_a_peak_on_the_other_images_of_its_view():
    left, right = np.asarray([[0.1, 0.1, 0.3, 0.3]]), np.asarray([[0.6, 0.6, 0.9, 0.9], [0.1, 0.1, 0.2, 0.2]])
    peaks = [(0.25, 0.25), (0.7, 0.7), None, (0.7, 0.7), (0.5, 0.5)]
    lesions = [left, right, left, left, left]
    hit, control = planted_lesions.hits(peaks, lesions, ["a", "a", "a", "a", "alone"])
    np.testing.assert_allclose(hit, [1, 1, 0, 0])
    np.testing.assert_allclose(control, [2 / 3, 0, 0, 1 / 3])


def test_lesions_meet_the_box_that_shares_most_with_them():
    lesions = np.asarray([[0, 0, 4, 4], [10, 10, 12, 14]], np.float32)
    boxes = np.asarray([[2, 0, 6, 4], [0, 0, 4, 3], [20, 20, 30, 30]], np.float32)
    np.testing.assert_allclose(proposals.best_overlaps(lesions, boxes), [12 / 16, 0])
