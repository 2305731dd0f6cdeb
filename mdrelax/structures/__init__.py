"""structures: atoms and the edges between them, as tensors."""
