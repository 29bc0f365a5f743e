"""The optimizer steps of both stages: losses, gradients and updates."""
