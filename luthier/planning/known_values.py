"""Values that a traced pass knows though its tensors are fake: those of the batch's indices, and what follows from them.

The code that trains asks for some: which rows are read (`unique`), how many of a chunk's (`tolist`), whether a mask hides
nothing (`all`). Integer and boolean tensors are small, so they are computed beside the fake ones wherever every argument
is known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

ATEN = torch.ops.aten
READ_OUT = frozenset({ATEN._local_scalar_dense.default, ATEN.equal.default})
SIZED_BY_VALUES = frozenset(
    {ATEN._unique2.default, ATEN.unique_dim.default, ATEN.nonzero.default, ATEN.bincount.default}
)
MOST_NUMBERS = 2**22


class KnownValues:
    """Real tensors beside fake ones.

    Args:
        mode: of the fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._storages = WeakIdKeyDictionary()  # a fake tensor's storage: the real one, laid out alike

    def know(self, fake: Tensor, real: Tensor) -> None:
        """Note what a fake tensor stands for, if it is one of integers or truth values."""
        theirs, ours = fake.untyped_storage(), real.untyped_storage()
        if not real.dtype.is_floating_point and real.numel() <= MOST_NUMBERS and theirs.nbytes() == ours.nbytes():
            self._storages[theirs] = ours

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation on fake tensors; and on real ones, where they are known.

        Raises:
            NotImplementedError: the result's size hangs on values that are not known.
        """
        if func in SIZED_BY_VALUES:
            if not self._is_known((args, kwargs)):
                raise NotImplementedError(f"the size of what {func} gives hangs on values that are not known")
            real = self._on_real(func, args, kwargs)
            result = tree_map(lambda value: self._fake(value) if isinstance(value, Tensor) else value, real)
            self._note(result, real)
            return result
        result = func(*args, **kwargs)
        if self._is_index(result) and self._is_known((args, kwargs)):
            self._note(result, self._on_real(func, args, kwargs))
        return result

    def read_out(self, func: Any, args: Any) -> Any:
        """A question about values.

        Raises:
            NotImplementedError: they are not known.
        """
        if not self._is_known(args):
            raise NotImplementedError(f"{func} asks for values that are not known")
        return self._on_real(func, args, {})

    def _is_known(self, arguments: Any) -> bool:
        return all(
            not isinstance(leaf, FakeTensor) or leaf.untyped_storage() in self._storages
            for leaf in tree_flatten(arguments)[0]
            if isinstance(leaf, Tensor)
        )

    def _is_index(self, result: Any) -> bool:
        if isinstance(result, Tensor) and result.dtype.is_floating_point:
            return False
        tensors = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        return bool(tensors) and all(
            not leaf.dtype.is_floating_point and not leaf.dtype.is_complex and leaf.numel() <= MOST_NUMBERS
            for leaf in tensors
        )

    def _on_real(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        with _disable_current_modes():
            args, kwargs = tree_map(self._as_real, (args, kwargs))
            return func(*args, **kwargs)

    def _as_real(self, leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor):
            return leaf
        real = torch.empty(0, dtype=leaf.dtype)
        return real.set_(self._storages[leaf.untyped_storage()], leaf.storage_offset(), leaf.shape, leaf.stride())

    def _note(self, fakes: Any, reals: Any) -> None:
        for fake, real in zip(tree_flatten(fakes)[0], tree_flatten(reals)[0], strict=True):
            if isinstance(fake, Tensor):
                self.know(fake, real)

    def _fake(self, real: Tensor) -> FakeTensor:
        bare = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        return FakeTensor(self._mode, bare, real.device)
