"""NoSync: a mode in which an operation that would make the host wait for a GPU is an error, on a CPU too."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Their result, or its shape, depends on values that only the device knows.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim"}
WAITS |= {"unique_consecutive", "is_nonzero", "allclose", "repeat_interleave"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # wait where an index is boolean


class NoSync(TorchDispatchMode):
    """with NoSync(): step() raises AssertionError where an operation of `step` waits for the device.

    Seen are operations that PyTorch dispatches: `.item()`, `bool(tensor)`, boolean indices, blocking copies
    from one device to another. Not seen are `.tolist()` and `.numpy()` of a tensor that is on the CPU.
    """

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        waits = name in WAITS
        if name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            waits = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name == "_to_copy":
            target = torch.device(kwargs.get("device") or args[0].device)
            waits = target != args[0].device and not kwargs.get("non_blocking")
        if name == "copy_":
            blocking = not (kwargs.get("non_blocking") or args[2:] == (True,))
            waits = args[0].device != args[1].device and blocking
        assert not waits, f"{operation} makes the host wait for the device"
        return operation(*args, **kwargs)
