"""What is done with which tensors: one file for each recipe."""
