"""What is learned from: Eq. 3 of Brown et al. 2025 with its four terms, over packed batches and any number of ranks."""
