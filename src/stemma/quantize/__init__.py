"""Weights in fewer bits, as values: `nf4(tensor)` gives codes and scales, and `dequantize()` the numbers back.

q = stemma.quantize.nf4(weight)            # 4.127 bits a weight
error = (q.dequantize() - weight).abs().max()
"""

from stemma.quantize.normal_float import NF4Tensor, nf4

__all__ = ["NF4Tensor", "nf4"]
