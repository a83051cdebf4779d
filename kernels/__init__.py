"""Fused operators of the STP encoder, each beside its plain PyTorch reference. Imported as `aef.kernels`."""
