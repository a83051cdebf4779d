"""The 3×3 convolution of the precision operator, with its epilogues."""
