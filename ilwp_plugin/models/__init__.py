"""Models as recipes see them: layers in execution order, their tensors, and files that hold these."""
