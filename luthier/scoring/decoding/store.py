"""Keys and values that are kept: of beginnings that several answers share, once; and of each answer's own tokens.

Shapes: S slots, K key-value heads, C capacity of a slot in tokens, P tokens of a beginning, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Beginning:
    """The keys and values of tokens with which several answers go on; computed once.

    Args:
        parent: the beginning before it.
        count: tokens.
        users: answers that have not ended; where none is left, its memory goes.
    """

    def __init__(self, parent: Beginning | None, count: int, users: int) -> None:
        self.parent = parent
        self.count = count
        self.users = users
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.logits_V: Tensor | None = None  # after its last token, where a prompt ends there

    @property
    def is_computed(self) -> bool:
        """Whether a pass has filled it."""
        return bool(self.keys)

    def put(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep a layer's [1, K, P, D]."""
        self.keys[layer], self.values[layer] = key.contiguous(), value.contiguous()

    def chain(self) -> list[Beginning]:
        """From the root down to this one."""
        return [*(self.parent.chain() if self.parent is not None else ()), self]

    def release(self) -> None:
        """One answer less that goes on with it."""
        self.users -= 1
        if not self.users:
            self.keys.clear()
            self.values.clear()
            self.logits_V = None
        if self.parent is not None:
            self.parent.release()


class Slots:
    """Room for the own tokens of as many answers as are made at a time.

    Attributes:
        lengths: tokens that each slot holds.
    """

    def __init__(self, count: int) -> None:
        self.lengths = [0] * count
        self.capacity = 0
        self._free = list(range(count))[::-1]
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def take(self) -> int:
        """A free slot, empty."""
        slot = self._free.pop()
        self.lengths[slot] = 0
        return slot

    def give_back(self, slot: int) -> None:
        """Nobody needs it any more."""
        self._free.append(slot)

    def reserve(self, tokens: int) -> None:
        """Make every slot long enough for so many tokens."""
        if tokens <= self.capacity:
            return
        longer = max(tokens, self.capacity + self.capacity // 2)
        for store in (self._keys, self._values):
            for layer, old in store.items():
                # zeros: what is not yet written is masked, but must be a number
                new = old.new_zeros(old.shape[0], old.shape[1], longer, old.shape[3])
                new[:, :, : self.capacity] = old
                store[layer] = new
        self.capacity = longer

    def keep_only(self, slots: Sequence[int]) -> None:
        """Let go of all other slots; those that stay get the numbers 0, 1, 2, ... in this order."""
        index = torch.tensor(slots)
        for store in (self._keys, self._values):
            for layer, old in store.items():
                store[layer] = old.index_select(0, index.to(old.device))
        self.lengths = [self.lengths[slot] for slot in slots]
        self._free = []

    def put_prompt(self, layer: int, slot: int, key: Tensor, value: Tensor) -> None:
        """Write the first tokens of a slot, [1, K, L, D]."""
        keys, values = self._of(layer, key, value)
        keys[slot, :, : key.shape[2]] = key[0]
        values[slot, :, : key.shape[2]] = value[0]

    def put_next(self, layer: int, slots_A: Tensor, places_A: Tensor, key: Tensor, value: Tensor) -> None:
        """Write a token into each of some slots, [1, K, A, D]."""
        keys, values = self._of(layer, key, value)
        keys[slots_A, :, places_A] = key[0].transpose(0, 1)
        values[slots_A, :, places_A] = value[0].transpose(0, 1)

    def filled(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """The first tokens of all slots, [S, K, length, D] each."""
        return self._keys[layer][:, :, :length], self._values[layer][:, :, :length]

    def _of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._keys:
            for store, like in ((self._keys, key), (self._values, value)):
                store[layer] = like.new_zeros(len(self), like.shape[1], self.capacity, like.shape[3])
        return self._keys[layer], self._values[layer]
