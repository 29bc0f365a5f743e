"""One optimizer step of each stage: losses, their gradients, and the optimizer's update."""
