"""AdamW without torch's compiler."""

from __future__ import annotations

from inspect import unwrap

import torch

_TORCH = torch.optim.AdamW


class AdamW(_TORCH):
    """torch's AdamW without the wrappers that its methods have for `torch.compile`.

    Outside of a compiled function the wrappers change nothing, but the first call of each imports
    `torch._dynamo`, which takes as long as `import torch`.
    """

    add_param_group = unwrap(_TORCH.add_param_group)
    zero_grad = unwrap(_TORCH.zero_grad)
    state_dict = unwrap(_TORCH.state_dict)
    load_state_dict = unwrap(_TORCH.load_state_dict)
    # The wrapper of this one turns gradients off, too.
    step = torch.no_grad()(unwrap(_TORCH.step))
