"""What has no Lipschitz constant, or none that is known without knowing the inputs, and why."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.nn import functional as F

from spectralnorm.network.rules.registry import refuse

__all__: list[str] = []

_ATTENTION = (
    "has no Lipschitz constant: dot-product attention is not Lipschitz on unbounded inputs (Kim, Papamakarios & "
    "Mnih, 'The Lipschitz Constant of Self-Attention', ICML 2021, arXiv 2006.04710)"
)
_RECURRENT = "has no rule: its constant grows with the length of the sequence and with the states it meets"
_STATELESS = "is called as a function, which has no rule; expected the module of torch.nn"
_PRODUCT = "has no rule, since a product of two values that depend on the input is not Lipschitz"

refuse(_ATTENTION, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
refuse(_ATTENTION, nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer)
refuse(_ATTENTION, F.scaled_dot_product_attention, F.multi_head_attention_forward)
refuse(_RECURRENT, nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
refuse(_STATELESS, F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.instance_norm, F.rms_norm)
refuse(_STATELESS, F.batch_norm, torch.batch_norm)
refuse(_PRODUCT, nn.Bilinear, F.bilinear, torch.bmm, "bmm")
refuse("has no rule; expected torch.matmul with a constant matrix", torch.einsum, torch.functional.einsum)
refuse("looks rows up by number, which is no map of a real input", nn.Embedding, nn.EmbeddingBag, F.embedding)
refuse("draws its windows at random", nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
refuse("draws its windows at random", F.fractional_max_pool2d, F.fractional_max_pool3d)
refuse("places values by indices that depend on the input", nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)
refuse("divides by a length that can be 0", F.normalize, nn.CosineSimilarity, F.cosine_similarity)
refuse("has no rule: it divides by what it reads", nn.LocalResponseNorm, F.local_response_norm, nn.CrossMapLRN2d)
refuse("has an unbounded slope", operator.pow, torch.pow, "pow", torch.square, "square", torch.exp, "exp")
refuse("has an unbounded slope", torch.log, "log", torch.sqrt, "sqrt", torch.rsqrt, "rsqrt")
refuse("has steps, so that no Lipschitz constant holds for it", torch.sign, "sign", torch.round, "round")
refuse("makes a number of the input that torch.fx cannot follow; expected tensors", "item", "tolist")
