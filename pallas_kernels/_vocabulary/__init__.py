"""Tiled passes over the vocabulary, shared by token_stats, token_topk and token_kl."""
