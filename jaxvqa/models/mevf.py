"""BAN and SAN over one image vector: the two models of MEVF that CMSA-MTPT offers as options.

B. D. Nguyen, T.-T. Do, B. X. Nguyen, T. Do, E. Tjiputra, Q. D. Tran, "Overcoming Data Limitation in Medical Visual
Question Answering", MICCAI 2019, arXiv 1909.11867; here as in the public code of CMSA-MTPT (H. Gong et al., ICMR 2021,
arXiv 2105.00136). An image becomes one vector, a question a sequence of states; they meet in an attention:

    image ─────── branches ── vector ──┐
                                       ├ bilinear or stacked attention ── classifier
    question ── embedding ── LSTM ─────┘

The branches are those of MEVF, a small network from meta-learning (MAML) beside an auto-encoder; or the three residual
networks of CMSA, mixed by an organ classifier; or one ResNet-50. BAN and SAN were made for many regions of an image: with
the one vector that there is here, SAN's attention over the image is always 1, and BAN's is one over the words.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models.cmsa import ORGANS, OrganClassifier
from jaxvqa.models.layers.attention import LOWEST
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, ConvTranspose
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear, fan_in_uniform
from jaxvqa.models.layers.pooling import global_average, max_pool
from jaxvqa.models.layers.weight_norm import Classifier, WeightNormLinear, normalised, whole_norm
from jaxvqa.models.question import RadiologyModel, last_map
from jaxvqa.precision import wide, widened

INPUTS = {
    "mevf": ("image_84", "image_128", "question"),
    "maml": ("image_84", "question"),
    "autoencoder": ("image_128", "question"),
    "distmodal": ("image", "question"),
    "resnet50": ("image", "question"),
}
"""Kind of image branches -> keys of the batch that the model reads."""


def channels_first(x: Float[Array, "B H W D"]) -> Float[Array, "B L"]:
    """Flattens maps in the order channel, row, column, which the originals' linear maps expect."""
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


class MAMLBranch(nn.Module):
    """Four convolutions of stride 2, each with a ReLU and then a batch norm, and a mean over all positions.

    The norm comes after the ReLU, and moves its running statistics by only 0.05 (docs/originals/cmsa.md, section 5.1, and
    section 13, quirk 8).

    Attributes:
      width: number of channels.
      dtype: type of the multiplications and of the result.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 1"], *, train: bool) -> Float[Array, "B D"]:
        """Returns a vector of `width` values for a grey image; the original's has 84×84 values in [0, 1]."""
        x = image
        for i in range(1, 5):
            x = nn.relu(Conv(self.width, 3, 2, 1, dtype=self.dtype, name=f"conv_{i}")(x))
            x = BatchNorm(momentum=0.05, dtype=self.dtype, name=f"norm_{i}")(x, train=train)
        return global_average(x).astype(self.dtype)


class AutoEncoder(nn.Module):
    """A convolutional auto-encoder that halves the image twice (docs/originals/cmsa.md, section 5.1).

    Attributes:
      width: channels at the image's own size; half as many and a quarter as many at the two smaller ones.
      dtype: type of the multiplications and of the code.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 1"]) -> tuple[Float[Array, "B P Q D"], Float[Array, "B H W 1"]]:
        """Returns the code, a quarter of the image's height and width, and the image made from it, float32 in [0, 1].

        Args:
          image: float[B, H, W, 1], grey values in [0, 1]; 128×128 in the original. Four divides height and width.
        """

        def conv(x: Array, features: int, name: str) -> Array:
            return Conv(features, 3, 1, 1, dtype=self.dtype, name=name)(x)

        def double(x: Array, features: int, name: str) -> Array:
            return ConvTranspose(features, 3, 2, 1, 1, dtype=self.dtype, name=name)(x)

        x = max_pool(nn.relu(conv(image, self.width, "conv_1")), 2, 2, 0)
        x = max_pool(nn.relu(conv(x, self.width // 2, "conv_2")), 2, 2, 0)
        code = nn.relu(conv(x, self.width // 4, "conv_3"))
        x = nn.relu(double(code, self.width // 2, "up_1"))
        x = nn.relu(conv(x, self.width // 2, "conv_4"))
        x = nn.relu(double(x, self.width, "up_2"))
        return code, nn.sigmoid(widened(conv(x, 1, "conv_5")))


def project(
    x: Array,
    features: int,
    name: str,
    *,
    dropout: float,
    dtype: Any,
    train: bool,
    activation: Callable | None = nn.relu,
) -> Array:
    """Applies activation(linear(dropout(x))) with a weight-normalised map called `name`.

    docs/originals/cmsa.md, section 5.2.
    """
    x = WeightNormLinear(features, dtype, name=name)(Dropout(dropout)(x, train=train))
    return x if activation is None else activation(x)


class BilinearAttention(nn.Module):
    """Attention of several glimpses over all pairs of a visual token and a word.

    logits_g[i, j] = Σ_d relu(A vᵢ)_d · H_gd · relu(B qⱼ)_d + c_g with a weight-normalised H; the weights of a glimpse are a
    softmax over all its pairs jointly. A visual token of nothing but zeros takes no part (docs/originals/cmsa.md, section 5.3).

    Attributes:
      width: number of the sum's terms.
      glimpses: number of glimpses G.
      dropout: rate of dropout before both projections.
      image_dropout: rate of a further dropout after that of the visual tokens.
      dtype: type of the multiplications; logits and weights are float32.
    """

    width: int
    glimpses: int
    dropout: float = 0.2
    image_dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, v: Float[Array, "B N F"], q: Float[Array, "B T D"], *, train: bool
    ) -> tuple[Float[Array, "B G N T"], Float[Array, "B G N T"]]:
        """Returns logits and weights. Instead of −∞, masked logits are finite: tokens that are all zero have equal weights."""
        settings = {"dropout": self.dropout, "dtype": self.dtype, "train": train}
        image = Dropout(self.image_dropout)(project(v, self.width, "image", **settings), train=train)
        words = project(q, self.width, "question", **settings)
        direction = self.param("v", nn.initializers.normal(1.0), (self.glimpses, self.width))
        length = self.param("g", lambda key: whole_norm(direction))
        bias = self.param("bias", nn.initializers.normal(1.0), (self.glimpses,))
        kernel = normalised(direction, length).astype(self.dtype)
        logits = jnp.einsum(
            "bgnd,btd->bgnt", image[:, None] * kernel[None, :, None], words, preferred_element_type=wide(self.dtype)
        )
        logits += bias[None, :, None, None]
        logits = jnp.where(jnp.all(v == 0, axis=-1)[:, None, :, None], LOWEST, logits)
        return logits, jax.nn.softmax(logits, axis=(-2, -1))


class BilinearFusion(nn.Module):
    """Lets glimpse after glimpse add what it sees to every word, and sums the words.

    With the weights P_g of `BilinearAttention`, taken once from the first q: b = Σ_ij relu(A_g vᵢ) · P_g[i, j] ·
    relu(B_g qⱼ), then q ← q + C_g b, the same vector for each word (docs/originals/cmsa.md, section 5.3).

    Attributes:
      width: size of b.
      glimpses: number of glimpses G.
      attention_rank: the attention's projections are this many times as wide as b.
      dropout: rate of dropout before all projections.
      image_dropout: rate of a further dropout on the attention's visual tokens.
      dtype: type of the multiplications; logits and weights are float32.
    """

    width: int
    glimpses: int
    attention_rank: int = 3
    dropout: float = 0.2
    image_dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, v: Float[Array, "B N F"], q: Float[Array, "B T D"], *, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        """Returns the joint vector, and the attention's `logits` and `weights`, float32[B, G, N, T]."""
        settings = {"dropout": self.dropout, "dtype": self.dtype, "train": train}
        attention = BilinearAttention(
            self.attention_rank * self.width,
            self.glimpses,
            self.dropout,
            self.image_dropout,
            self.dtype,
            name="attention",
        )
        logits, weights = attention(v, q, train=train)
        for g in range(self.glimpses):
            image = project(v, self.width, f"image_{g}", **settings)
            words = project(q, self.width, f"question_{g}", **settings)
            seen = jnp.einsum("bnt,btd->bnd", weights[:, g].astype(self.dtype), words)
            joint = jnp.sum(widened(image * seen), axis=1).astype(self.dtype)
            q = q + project(joint, q.shape[-1], f"merge_{g}", activation=None, **settings)[:, None]
        return jnp.sum(widened(q), axis=1).astype(self.dtype), {"logits": logits, "weights": weights}


class StackedAttention(nn.Module):
    """Attention to the visual tokens, repeated with the question's vector refined by what was seen.

    a = A q, mᵢ = M vᵢ, p = softmax over i of s·dropout(tanh(a + mᵢ)); u = a + Σ pᵢ mᵢ. Each further stack has its own maps,
    takes a = A u, and adds to the u before, not to a. A token with m = 0 takes no part (docs/originals/cmsa.md, section 5.4).

    Attributes:
      width: size of u.
      stacks: number of stacks S.
      dropout: rate of dropout after the tanh.
      dtype: type of the multiplications; scores and weights are float32.
    """

    width: int
    stacks: int
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, v: Float[Array, "B N F"], q: Float[Array, "B D"], *, train: bool
    ) -> tuple[Float[Array, "B O"], Float[Array, "B S N"]]:
        """Returns the joint vector, and the weights of the visual tokens in each stack, float32."""
        u, all_weights = q, []
        for k in range(self.stacks):
            question = Linear(self.width, self.dtype, name=f"question_{k}")(u)
            init = fan_in_uniform(v.shape[-1])
            image = nn.Dense(self.width, use_bias=False, kernel_init=init, dtype=self.dtype, name=f"image_{k}")(v)
            hidden = Dropout(self.dropout)(nn.tanh(question[:, None] + image), train=train)
            scores = widened(Linear(1, self.dtype, name=f"score_{k}")(hidden)[..., 0])
            scores = jnp.where(jnp.all(image == 0, axis=-1), LOWEST, scores)
            weights = jax.nn.softmax(scores, axis=-1)
            seen = jnp.einsum("bn,bnd->bd", weights.astype(self.dtype), image)
            u = (question if k == 0 else u) + seen
            all_weights.append(weights)
        return u, jnp.stack(all_weights, axis=1)


class MEVFVector(nn.Module):
    """The vectors of both of MEVF's branches side by side, or one of them.

    Attributes:
      maml: the branch that reads `image_84`.
      autoencoder: the branch that reads `image_128`.
      code_width: size of the auto-encoder's vector.
      dtype: type of the multiplications and of the result.
    """

    maml: MAMLBranch | None
    autoencoder: AutoEncoder | None
    code_width: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Mapping[str, Array], *, train: bool) -> tuple[Float[Array, "B F"], dict[str, Array]]:
        """Returns the vector, and the named intermediates; see `ImageVectorVQA`."""
        vectors, out = {}, {}
        if self.maml:
            vectors["maml"] = self.maml(images["image_84"], train=train)
        if self.autoencoder:
            out["code"], out["reconstruction"] = self.autoencoder(images["image_128"])
            linear = Linear(self.code_width, self.dtype, name="autoencoder_vector")
            vectors["autoencoder"] = linear(channels_first(out["code"]))
        return jnp.concatenate(list(vectors.values()), axis=-1), vectors | out


class ResNetVector(nn.Module):
    """A linear layer of all of a residual network's last map.

    Attributes:
      resnet: the network.
      width: size of the vector.
      dtype: type of the multiplications and of the result.
    """

    resnet: nn.Module
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Mapping[str, Array], *, train: bool) -> tuple[Float[Array, "B F"], dict[str, Array]]:
        """Returns the vector, and no intermediates."""
        flat = channels_first(last_map(self.resnet, images["image"], train=train))
        return Linear(self.width, self.dtype, name="resnet_vector")(flat), {}


class OrganMixture(nn.Module):
    """The vectors of one network for each part of the body, weighted by how probable the part is.

    Attributes:
      network: makes a network of the given name.
      organ: classifies the part of the body.
      width: size of a vector; 0: it is the mean over the map's positions instead of a linear layer of the map.
      dtype: type of the multiplications and of the result.
    """

    network: Callable[..., nn.Module]
    organ: OrganClassifier
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Mapping[str, Array], *, train: bool) -> tuple[Float[Array, "B F"], dict[str, Array]]:
        """Returns the vector, and the named intermediates; see `ImageVectorVQA`."""
        out: dict[str, Array] = {}
        for name in ORGANS:
            branch_map = last_map(self.network(name=name), images["image"], train=train)
            if self.width:
                xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
                linear = nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name=f"{name}_vector")
                out[name] = linear(channels_first(branch_map))
            else:
                out[name] = global_average(branch_map).astype(self.dtype)
        organ_logits = self.organ(images["image"], train=train)
        share = jax.nn.softmax(organ_logits, axis=-1).astype(self.dtype)
        vectors = jnp.stack([out[name] for name in ORGANS])
        return jnp.einsum("bk,kbf->bf", share, vectors), out | {"organ_logits": organ_logits}


class ImageVectorVQA(RadiologyModel, kw_only=True):
    """What BAN and SAN have in common: everything but the fusion. The defaults are the published sizes.

    Attributes:
      num_answers: number of candidate answers A.
      image_branches: what makes the image's vector (docs/originals/cmsa.md, section 5.1): `mevf`, the vectors of `maml` and of
      `autoencoder` side
        by side; one of these two alone; `distmodal`, CMSA's three residual networks, mixed by the organ classifier; or
        `resnet50`.
      maml_width: channels of the MAML branch, and size of its vector.
      autoencoder_width: channels of the auto-encoder's widest layers.
      code_width: size of the auto-encoder's vector.
      image_width: size of the vector of `distmodal` and `resnet50`; 0 for the published 1024 and 128.
      pool: in `distmodal`, take the mean over each map's positions instead of a linear layer.
      organ_width: channels of the organ classifier.
      organ_hidden: width between its two linear layers.
      fusion_dropout: rate of dropout in the fusion; see the two models.
    """

    num_answers: int
    image_branches: str = "mevf"
    embed_width: int = 300
    maml_width: int = 64
    autoencoder_width: int = 64
    code_width: int = 64
    image_width: int = 0
    pool: bool = False
    organ_width: int = 64
    organ_hidden: int = 512
    fusion_dropout: float = 0.5

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the batch that the model reads, which are the names of the call's arguments."""
        if self.image_branches not in INPUTS:
            raise ConfigError(f"model.image_branches is {self.image_branches!r}{choose(self.image_branches, INPUTS)}")
        return INPUTS[self.image_branches]

    @nn.compact
    def __call__(
        self,
        *,
        question: Int[Array, "B T"],
        image_84: Float[Array, "B _ _ 1"] | None = None,
        image_128: Float[Array, "B _ _ 1"] | None = None,
        image: Float[Array, "B _ _ 3"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Scores every candidate answer.

        Args:
          question: int[B, T], numbers of the words; V is padding, which is not masked.
          image_84: float[B, 84, 84, 1], grey, in [0, 1]; what `inputs` does not name may be left out.
          image_128: float[B, 128, 128, 1], grey, in [0, 1].
          image: float[B, H, W, 3], normalised.
          train: applies dropout, which needs the random stream "dropout", and normalises by the batch's statistics, which
            needs the collection `batch_stats` to be mutable.

        Returns:
          float32[B, A] logits, and the named intermediates: `question` [B, T, D]; `image_vector` [B, F]; `fused` [B, D]; those
          of the fusion, see the two models; of MEVF's branches `maml` and `autoencoder` [B, 64], `code` [B, 32, 32, 16] and
          `reconstruction` float32[B, 128, 128, 1]; of `distmodal` `abdomen`, `head`, `chest` [B, F] and `organ_logits`
          float32[B, 3].
        """
        images = {"image_84": image_84, "image_128": image_128, "image": image}
        missing = [name for name in self.inputs if name in images and images[name] is None]
        if missing:
            raise ValueError(f"model.image_branches = {self.image_branches!r} needs {' and '.join(missing)}.")
        embed, encoder = self.question_parts()
        states = encoder.clone(name="question", parent=self)(
            embed.clone(name="embed", parent=self)(question), train=train
        )
        image_vector = self._image_vector()
        vector, out = image_vector({name: x for name, x in images.items() if x is not None}, train=train)
        fused, attention = self._fuse(vector[:, None], states, train=train)
        classifier = Classifier(2 * fused.shape[-1], self.num_answers, self.dropout, self.dtype, name="classifier")
        out |= attention | {"image_vector": vector, "question": states, "fused": fused}
        return classifier(fused, train=train), out

    def _image_vector(self) -> nn.Module:
        """The branches that `image_branches` names."""
        if self.image_branches == "resnet50":
            network = self.image_branch("resnet50")(parent=None)
            return ResNetVector(network, self.image_width or 128, self.dtype, name="image")
        if self.image_branches == "distmodal":
            organ = OrganClassifier(self.organ_width, self.organ_hidden, self.dropout, self.dtype, parent=None)
            width = 0 if self.pool else self.image_width or 1024
            return OrganMixture(self.image_branch(), organ, width, self.dtype, name="image")
        maml = MAMLBranch(self.maml_width, self.dtype, parent=None) if "image_84" in self.inputs else None
        autoencoder = (
            AutoEncoder(self.autoencoder_width, self.dtype, parent=None) if "image_128" in self.inputs else None
        )
        return MEVFVector(maml, autoencoder, self.code_width, self.dtype, name="image")

    def _fuse(
        self, v: Float[Array, "B N F"], states: Float[Array, "B T _"], *, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        """Returns the joint vector of the visual tokens, here one, and the words' states, and the named intermediates."""
        raise NotImplementedError


class BAN(ImageVectorVQA):
    """Bilinear attention: each glimpse adds to all words what it sees in the pairs of image and word.

    J.-H. Kim, J. Jun, B.-T. Zhang, "Bilinear Attention Networks", NeurIPS 2018.

    Its intermediates are `attention` and `attention_logits` float32[B, G, 1, T], and `question_attention` float32[B, T], the
    attention's mean over the glimpses.

    Attributes:
      glimpses: number of glimpses G.
      attention_rank: the attention's projections are this many times `width` wide.
      projection_dropout: rate of dropout before every projection; `fusion_dropout` is a further one on the image in the
        attention.
    """

    glimpses: int = 2
    attention_rank: int = 3
    projection_dropout: float = 0.2

    def _fuse(
        self, v: Float[Array, "B N F"], states: Float[Array, "B T _"], *, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        fusion = BilinearFusion(
            self.width,
            self.glimpses,
            self.attention_rank,
            self.projection_dropout,
            self.fusion_dropout,
            self.dtype,
            name="fusion",
        )
        fused, attention = fusion(v, states, train=train)
        weights = attention["weights"]
        out = {"attention": weights, "attention_logits": attention["logits"]}
        return fused, out | {"question_attention": jnp.mean(jnp.sum(weights, axis=2), axis=1)}


class SAN(ImageVectorVQA):
    """Stacked attention to the image by the question's last state.

    Z. Yang, X. He, J. Gao, L. Deng, A. Smola, "Stacked Attention Networks for Image Question Answering", CVPR 2016.

    Its intermediate is `attention` float32[B, S, 1], which is always 1.

    Attributes:
      stacks: number of stacks S; `fusion_dropout` is the rate of dropout after the tanh in each.
    """

    stacks: int = 2

    def _fuse(
        self, v: Float[Array, "B N F"], states: Float[Array, "B T _"], *, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        fusion = StackedAttention(self.width, self.stacks, self.fusion_dropout, self.dtype, name="fusion")
        fused, attention = fusion(v, states[:, -1], train=train)
        return fused, {"attention": attention}
