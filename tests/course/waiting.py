"""NoWaiting: a mode in which an operation that would make the host wait for a GPU is an error, on a CPU too.

tests/sync.py has the same for whole programs; this one says what to write instead, and loads nothing more.
"""

import torch
from torch.overrides import TorchFunctionMode

# Their result, or its shape, depends on values that only the device knows.
WAITS = {
    "item",
    "tolist",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "nonzero",
}
WAITS |= {"argwhere", "masked_select", "masked_scatter", "equal", "allclose", "bincount", "unique", "histc"}
WAITS |= {"unique_consecutive", "repeat_interleave", "is_nonzero", "__array__", "cpu"}
WAITS |= {"__dlpack__", "storage", "untyped_storage", "apply_", "map_", "__format__", "__repr__"}
INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}  # wait where an index is boolean


class NoWaiting(TorchFunctionMode):
    """with NoWaiting(): AssertionError where an operation waits for the device; it says what to write."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in INDEXING:
            indices = args[1] if isinstance(args[1], (tuple, list)) else (args[1],)
            boolean = [
                i for i in indices if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
            ]
            assert not boolean, (
                "a boolean index: how many places it finds is known to the device alone, so the host waits "
                "for a GPU. masked_fill, torch.where or scatter do the same on all places at once"
            )
        alone = name == "where" and len(args) == 1
        assert name not in WAITS and not alone, (
            f"{name} brings a number from the device to the host, which waits for a GPU until all is "
            "computed; keep it a tensor"
        )
        return function(*args, **(kwargs or {}))


def without_waiting(function):
    """The result of a function in which nothing waits. Raises AssertionError, which says what would."""
    with NoWaiting():
        return function()
