"""Point-wise epilogues: bias + GELU, and bias + residual."""
