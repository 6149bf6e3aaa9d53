"""Which kernel multiplies by a matrix in few bits on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from manylora.server.kernels.codes import Codes
from manylora.server.kernels.reference.quantized import Product

logger = logging.getLogger(__name__)


class Products:
    """Makes the products of a model's matrices, until one fails: then the others are unpacked, too."""

    def __init__(self) -> None:
        self._make: Callable[[Codes, torch.Tensor | None], Product | None] | None = None
        self._failed = False

    def of(self, codes: Codes, bias: torch.Tensor | None, dtype: torch.dtype) -> Product | None:
        """Triton's for ``codes`` on a GPU, where it runs; None elsewhere."""
        if self._failed or codes.packed.device.type != "cuda":
            return None
        try:
            product = self._made(codes, bias)
            if product is not None:
                product(torch.zeros(1, codes.shape[1], dtype=dtype, device=codes.packed.device))
        except Exception as error:  # of imports, Triton, its compilers, the driver: there is no common base
            self._failed = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            logger.warning("matrices are unpacked for every product, which is slow: %s", reason)
            return None
        return product

    def _made(self, codes: Codes, bias: torch.Tensor | None) -> Product | None:
        if self._make is None:
            from manylora.server.kernels.cuda.coded.products import coded_product  # noqa: PLC0415 - needs Triton

            self._make = coded_product
        return self._make(codes, bias)
