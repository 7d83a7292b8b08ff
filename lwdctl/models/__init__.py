"""Networks, losses and samplers: tensors in, tensors out."""
