"""training: a trainer for any task, its optimisers and its checkpoints."""
