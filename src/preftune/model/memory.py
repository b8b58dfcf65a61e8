"""How much memory training takes on each GPU, from a model's shapes and a handful of choices. Nothing is measured.

For P weights, T trained ones, N GPUs and products in bfloat16 (arXiv 1910.02054 for what is divided among GPUs):

    every weight     16 P in float32: weights, gradients and two moments of 4 bytes; 2 P more for copies in bfloat16
                     6 P in bfloat16 with moments of 8 bits
    an adapter       the base in its type, 16 T
    shard = "step"   moments / N
    shard = "layer"  weights, gradients and moments / N, and the layers in work and the embeddings whole

Held by tests/model/test_memory.py, and against measured peaks by bench/formula.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from preftune.model.logp import CHUNK, CHUNK_ELSEWHERE, KEEP, KEEP_ELSEWHERE, LEAST
from preftune.model.shapes import Shapes

Shard = Literal["none", "step", "layer"]
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / 16384}
"""A weight; nf4's scales of 64 weights are 8-bit numbers, whose own scales of 256 are in fp32 (arXiv 2305.14314)."""
MOMENTS = {"float32": 8.0, "int8": 2 * (1 + 4 / 256)}  # both of a number; 256 of 8 bits have a scale in fp32


@dataclass(frozen=True, slots=True)
class Setup:
    """What decides the memory of training, beside the model's shapes.

    weights: type of the weights, and under an adapter of its base; compute: of the products; state: of the moments;
    rank: of an adapter on all linear layers, 0 without one; trained: how many numbers are, where that is known better
    than from these; shard, gpus: what is divided, and among how many. Weights of further models: copied, of untrained
    copies of the model, which under an adapter are its base; frozen, of other untrained ones; value, of a trained one.
    """

    weights: Literal["float32", "bfloat16", "nf4", "int8"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"
    state: Literal["float32", "int8"] = "float32"
    rank: int = 0
    trained: int | None = None
    shard: Shard = "none"
    gpus: int = 1
    checkpointing: bool = False
    copied: int = 0
    frozen: int = 0
    value: int = 0
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def divisible(self) -> tuple[Shard, ...]:
        """What ranks can divide: of a base in few bits nothing."""
        return ("none",) if self.quantized else ("none", "step", "layer")

    @property
    def adapter(self) -> bool:
        return self.rank > 0

    @property
    def quantized(self) -> bool:
        return self.weights in ("nf4", "int8")

    @property
    def product(self) -> float:
        """Bytes of a number in a product."""
        return BYTES[self.compute]

    @property
    def whole(self) -> float:
        """Bytes of a weight outside linear layers, and of the residual stream, which begins as one."""
        return self.product if self.quantized else BYTES[self.weights]

    @property
    def learned(self) -> float:
        """Bytes of a number that is trained, and of its gradient; an adapter is in fp32."""
        return 4.0 if self.adapter else self.whole

    def trains(self, shapes: Shapes) -> int:
        """How many numbers are trained."""
        if self.trained is not None:
            return self.trained
        return self.rank * shapes.sides if self.adapter else shapes.parameters


@dataclass(frozen=True, slots=True)
class Expected:
    """Bytes on one GPU. weights: of all models, and copies for products; gradients, moments: of what is trained;
    activations: of a pack, with the head's."""

    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations


def expected(shapes: Shapes, setup: Setup, tokens: int) -> Expected:
    """Memory of training with packs of `tokens`."""
    trained, whole_models = setup.trains(shapes), 0 if setup.adapter else setup.copied
    weights, beside = _base(shapes, setup), setup.learned * trained if setup.adapter else 0
    gradients, moments, others = setup.learned * trained, MOMENTS[setup.state] * trained, setup.frozen + setup.value
    if setup.shard != "none":
        moments /= setup.gpus
    if setup.shard == "layer":  # the next layer is fetched while one works; an adapter is whole on each
        parts = setup.whole * (shapes.layer + shapes.embedding)
        weights = weights / setup.gpus + parts + setup.whole * shapes.layer
        gradients = gradients if setup.adapter else gradients / setup.gpus + parts
    return Expected(
        weights=round(weights + beside + _copies(shapes, setup) + setup.whole * (others + whole_models)),
        gradients=round(gradients + setup.whole * setup.value),
        moments=round(moments + MOMENTS[setup.state] * setup.value),
        activations=round(_activations(shapes, setup, tokens)),
    )


def _base(shapes: Shapes, setup: Setup) -> float:
    """Bytes of the model; of a quantized one only linear layers are, and the rest is in the type of the products."""
    linear = shapes.linear if setup.quantized else 0
    return linear * BYTES[setup.weights] + (shapes.parameters - linear) * setup.whole


def _copies(shapes: Shapes, setup: Setup) -> float:
    """Bytes of the copies of weights that autocast makes for narrower products. They last as long as a step, or where
    weights are cut by layers as long as what the backward pass keeps of a layer."""
    if setup.weights != "float32" or setup.product >= setup.whole:
        return 0.0
    one_layer = setup.shard == "layer" and setup.checkpointing
    return setup.product * (shapes.layer if one_layer else shapes.parameters - shapes.embedding)


def _activations(shapes: Shapes, setup: Setup, tokens: int) -> float:
    """Bytes of a pack where it takes most: what all layers keep, and beside it the head's work on all tokens or that of
    the layer whose turn it is; or, when that is gone, a gradient as large as the largest tensor beside its sum."""
    of_adapter = 2 * setup.rank * shapes.linears  # its input product, and that once more scaled
    saved = shapes.saved + (shapes.made_again if setup.quantized else 0) + of_adapter
    layer = (setup.whole * shapes.stream + setup.product * saved) / shapes.layers
    last = (setup.whole + setup.product) * shapes.width
    working = tokens * layer
    if setup.quantized:  # a matrix is whole while it is multiplied with; int8 is made in fp32 first
        working += shapes.matrix * (setup.product + (8 if setup.weights == "int8" else 0))
    if setup.trains(shapes) == 0:
        return tokens * last + max(_head(shapes, setup, tokens), working)
    whole = shapes.layers * layer
    if setup.checkpointing:  # layers keep their input and what attention gave
        whole = shapes.layers * setup.whole * shapes.width + setup.product * shapes.queries + layer
    most = tokens * (whole + last) + max(_head(shapes, setup, tokens), working)
    return most if setup.adapter else max(most, setup.learned * shapes.largest)


def _head(shapes: Shapes, setup: Setup, rows: int) -> float:
    """Bytes that model/logp.py takes for so many rows: logits in fp32, and their derivatives in the type of products;
    the matrix in that type; fp32 gradients of hidden states, and of the matrix before they are added where products are
    narrower than it. Where the matrix is frozen, or the derivatives of all rows are too many to keep, in chunks."""
    width, vocab, product, learns = shapes.width, shapes.vocab, setup.product, not setup.adapter and setup.trained != 0
    narrow = product if product < 4 else 0.0  # fp32 logits become their derivatives in place
    hidden = rows * width * (4 + 4 + product)
    copy = vocab * width * narrow if setup.whole > product else 0.0
    added = 4.0 * width if learns and setup.whole > product else 0.0
    slope = 8.0 if shapes.capped else 4.0  # a cap's derivative stands beside the logits
    if learns and rows * vocab * product <= KEEP.get(setup.device, KEEP_ELSEWHERE):
        logits = rows * vocab
        return hidden + copy + product * logits + max((slope if narrow else slope - 4) * logits, added * vocab)
    chunk = CHUNK.get(setup.device, CHUNK_ELSEWHERE)
    logits = min(rows * vocab, max(chunk // 4, LEAST[0] * vocab))
    words = min(vocab, max(LEAST[1], chunk // (4 * max(1, rows))))
    before = (narrow or 4.0) if logits < rows * vocab else 0.0  # the chunk before is there until the next one is made
    return hidden + copy + (slope + narrow + before) * logits + added * words
